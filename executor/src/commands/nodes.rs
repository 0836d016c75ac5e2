//! `ks nodes`: the nodes of the cluster; `--forget` takes one out that will not come back.
use super::{Format, connect, human_bytes, number, print_json, print_table, text};
use anyhow::bail;
use clap::Args;
use ks_executor::control::failed;
use ks_executor::protocol::{Answer, Ask, Tell};
use serde_json::Value;
use std::process::ExitCode;

/// `ks nodes`.
#[derive(Args, Debug)]
pub struct NodesArgs {
    /// Take a node that is gone for good, by name or id, out of the cluster: files of which others have a copy get
    /// a new home there
    #[arg(long, value_name = "NODE")]
    forget: Option<String>,
    /// Forget it even if it has the only copy of files: they stay in the tree, without content
    #[arg(long, requires = "forget")]
    force: bool,
    #[command(flatten)]
    format: Format,
}

impl NodesArgs {
    /// Asks the node and prints a row for each.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(gone) = self.forget {
            return forget(gone, self.force, self.format).await;
        }
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

/// Asks for it, however long it takes, and says what came of it. Exit status 1: nothing was done.
async fn forget(gone: String, force: bool, format: Format) -> anyhow::Result<ExitCode> {
    let mut node = connect(None).await?;
    let ask = Ask::ForgetNode { node: gone, force };
    let sent = node.send(ask, &[]).await?;
    let rows = loop {
        let (tell, _) = tokio::select! {
            next = node.next() => next?,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; the node goes on"),
        };
        if let Tell::Reply { request, answer } = tell
            && request == sent
        {
            match failed(answer)? {
                Answer::Report(rows) => break rows,
                other => bail!("the node said {other:?}"),
            }
        }
    };
    let (told, lost) = rows
        .split_first()
        .map_or((Value::Null, &[][..]), |(told, lost)| (told.clone(), lost));
    let is_done = told.get("done") == Some(&Value::Bool(true));
    if format.json {
        print_json(&rows)?;
    } else {
        print_forgotten(&told, is_done, lost);
    }
    Ok(match is_done {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print_forgotten(told: &Value, is_done: bool, lost: &[Value]) {
    let rows = lost
        .iter()
        .map(|file| vec![text(file, "path"), text(file, "error")]);
    if !lost.is_empty() {
        print_table(&["path", "why"], rows.collect());
    }
    let (name, count) = (text(told, "node"), number(told, "lost"));
    if is_done {
        let (copies, homes) = (number(told, "copies"), number(told, "homes"));
        println!(
            "{name} is forgotten: {copies} copies were there, {homes} files have a new home, {count} have no copy any more"
        );
    } else {
        eprintln!(
            "ks: nothing was done: {name} has the only copy of {count} files; bring it back and copy them, or give --force: they stay in the tree, without content"
        );
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
