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
                if redis.get("connected") != Some(&Value::Bool(true)) {
                    "NOT CONNECTED: local files stay readable, nothing can be changed".to_owned()
                } else if redis.get("refuses").is_some_and(Value::is_string) {
                    format!("REFUSES CHANGES: {}", text(redis, "refuses"))
                } else {
                    "connected".to_owned()
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
    print_scrub(part("scrub"));
    print_listed(
        "waiting",
        part("unpublished"),
        "written here and not seen by others yet: published when redis answers again",
    );
    print_listed(
        "conflict",
        part("conflicts"),
        "compare, then remove or rename one of the two",
    );
    print_listed(
        "damaged",
        part("damaged"),
        "no good copy is left: restore it, or remove it",
    );
}

fn print_scrub(scrub: &Value) {
    if scrub.is_null() {
        return;
    }
    let when = match number(scrub, "ended_s") {
        0 => "its first round is not over".to_owned(),
        ended => format!("last whole round {} ago", ago(ended)),
    };
    println!(
        "{:<8} {} files re-read in this round, {when}; {} damaged copies found, {} mended",
        "scrub",
        text(scrub, "files"),
        text(scrub, "damaged"),
        text(scrub, "mended")
    );
}

/// How long a time in seconds since 1970 is gone.
fn ago(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let gone = now.map_or(0, |now| now.as_secs().saturating_sub(seconds));
    match gone {
        0..7200 => format!("{} min", gone / 60),
        7200..172_800 => format!("{} h", gone / 3600),
        _ => format!("{} days", gone / 86_400),
    }
}

/// How many there are, the first few, and what to do about them.
fn print_listed(name: &str, listed: &Value, cure: &str) {
    let count = number(listed, "count");
    if count == 0 {
        return;
    }
    println!("{name:<8} {count} ({cure})");
    let first = listed.get("first").and_then(Value::as_array);
    let first: Vec<&Value> = first.into_iter().flatten().collect();
    for one in &first {
        println!("{:<8} {} on {}", "", text(one, "path"), text(one, "node"));
    }
    if count > first.len() as u64 {
        println!("{:<8} and {} more", "", count - first.len() as u64);
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
