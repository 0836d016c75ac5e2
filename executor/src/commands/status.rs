//! `ks status`: what this machine's node does.
use super::{Format, connect, human_bytes, number, print_json, text};
use anyhow::bail;
use clap::Args;
use ks_executor::protocol::{Answer, Ask};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// `ks status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// A mount point, where there are several
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl StatusArgs {
    /// Asks the node and prints what it says.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(self.mountpoint.as_deref()).await?;
        let status = match node.ask(Ask::Status).await? {
            Answer::Status(status) => status,
            other => bail!("the node said {other:?}"),
        };
        if self.format.json {
            print_json(&status)?;
        } else {
            print(&status);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(status: &Value) {
    let null = Value::Null;
    let part = |name: &str| status.get(name).unwrap_or(&null);
    let (files, nodes, redis, disk) = (part("files"), part("nodes"), part("redis"), part("disk"));
    let lines = [
        (
            "node",
            format!(
                "{} at {} (pid {})",
                text(status, "node"),
                text(status, "address"),
                text(status, "pid")
            ),
        ),
        (
            "mounted",
            format!(
                "{} over {}",
                text(status, "mountpoint"),
                text(status, "datadir")
            ),
        ),
        (
            "up",
            format!(
                "{} s, version {}",
                text(status, "uptime_s"),
                text(status, "version")
            ),
        ),
        (
            "nodes",
            match nodes.get("error") {
                Some(_) => text(nodes, "error"),
                None => format!("{} of {} alive", text(nodes, "alive"), text(nodes, "known")),
            },
        ),
        (
            "redis",
            format!(
                "{}{}",
                if redis.get("connected") == Some(&Value::Bool(true)) {
                    "connected"
                } else {
                    "NOT CONNECTED: local files stay readable, nothing can be changed"
                },
                if redis.get("private") == Some(&Value::Bool(true)) {
                    " (private, on this node)"
                } else {
                    ""
                }
            ),
        ),
        (
            "disk",
            format!(
                "{} free of {}",
                human_bytes(number(disk, "free_bytes")),
                human_bytes(number(disk, "total_bytes"))
            ),
        ),
        ("memory", human_bytes(number(status, "memory_bytes"))),
        (
            "files",
            format!(
                "{} opens ({} by passthrough), {} reads, {} fetched, {} sent, {} open now",
                text(files, "opens"),
                text(files, "opens_passthrough"),
                text(files, "reads"),
                human_bytes(number(files, "bytes_fetched")),
                human_bytes(number(files, "bytes_sent")),
                text(files, "open_handles")
            ),
        ),
    ];
    for (name, value) in lines {
        println!("{name:<8} {value}");
    }
    print_calls(part("calls"));
    for conflict in status
        .get("conflicts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        println!("conflict {}", conflict.as_str().unwrap_or_default());
    }
}

fn print_calls(calls: &Value) {
    let workers = calls.get("workers").and_then(Value::as_array);
    let busy = workers.map_or(0, |workers| {
        workers
            .iter()
            .filter(|w| w.get("job").is_some_and(|job| !job.is_null()))
            .count()
    });
    println!(
        "{:<8} {busy} of {} busy",
        "workers",
        workers.map_or(0, Vec::len)
    );
}
