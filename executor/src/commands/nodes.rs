//! `ks nodes`: the nodes of the cluster.
use super::{Format, connect, human_bytes, number, print_json, print_table, text};
use anyhow::bail;
use clap::Args;
use ks_executor::protocol::{Answer, Ask};
use serde_json::Value;
use std::process::ExitCode;

/// `ks nodes`.
#[derive(Args, Debug)]
pub struct NodesArgs {
    #[command(flatten)]
    format: Format,
}

impl NodesArgs {
    /// Asks the node and prints a row for each.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(None).await?;
        let nodes = match node.ask(Ask::Nodes).await? {
            Answer::Nodes(nodes) => nodes,
            other => bail!("the node said {other:?}"),
        };
        if self.format.json {
            print_json(&nodes)?;
        } else {
            print_table(
                &[
                    "node",
                    "state",
                    "address",
                    "mounted",
                    "data directory",
                    "workers",
                    "free",
                    "queues",
                ],
                nodes.iter().map(row).collect(),
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(node: &Value) -> Vec<String> {
    let alive = node.get("alive") == Some(&Value::Bool(true));
    let free = format!(
        "{} of {}",
        human_bytes(number(node, "free_bytes")),
        human_bytes(number(node, "total_bytes"))
    );
    vec![
        text(node, "name"),
        if alive { "up" } else { "gone" }.into(),
        text(node, "address"),
        text(node, "mountpoint"),
        text(node, "datadir"),
        text(node, "workers"),
        free,
        text(node, "queues"),
    ]
}
