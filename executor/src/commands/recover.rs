//! `ks recover`: rebuilds the catalog from the nodes' data directories, and says what was found.
use super::{Format, connect, print_json, print_table, text};
use anyhow::bail;
use clap::Args;
use ks_executor::control::{Control, failed};
use ks_executor::protocol::{Answer, Ask, Tell};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Shown after the help.
pub const EXAMPLES: &str = "\
A Redis that was emptied is noticed, and the tree rebuilt, without this command. It is for a catalog that
is there but damaged (`ks doctor` names it). What Redis still has is kept; files stay as they are; reading
and writing wait a few seconds. Exit status 1: a node was not there (it brings its part when it comes),
or is not done.

Example:
  ks recover
  ks recover --json | jq '.nodes[].told.conflicts[]'";

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(300);
/// Nothing has changed for so long: it is given up (the nodes go on).
const STALLED: Duration = Duration::from_secs(60);

/// `ks recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// The tree's mount point, or a file below it [default: this machine's only node]
    #[arg(value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl RecoverArgs {
    /// Returns when every node that lives is done.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(self.path.as_deref()).await?;
        let mut state = ask(&mut node, true).await?;
        let mut changed = Instant::now();
        while state.get("done") != Some(&Value::Bool(true)) {
            if changed.elapsed() > STALLED {
                bail!(
                    "nothing has happened for {} s; the nodes go on, their logs (.ks/ks.log) say why: {}",
                    STALLED.as_secs(),
                    told(&state)
                );
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = tokio::signal::ctrl_c() => bail!("interrupted; the nodes go on"),
            }
            let next = ask(&mut node, false).await?;
            if next != state {
                changed = Instant::now();
                if !self.format.json {
                    eprintln!("{}", told(&next));
                }
            }
            state = next;
        }
        let all_there = nodes(&state).iter().all(|row| is(row, "done"));
        if self.format.json {
            print_json(&state)?;
        } else {
            print(&state);
        }
        Ok(match all_there {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

async fn ask(node: &mut Control, begin: bool) -> anyhow::Result<Value> {
    let sent = node.send(Ask::Recover { begin }, &[]).await?;
    loop {
        if let (Tell::Reply { request, answer }, _) = node.next().await?
            && request == sent
        {
            return match failed(answer)? {
                Answer::Report(mut rows) => Ok(rows.pop().unwrap_or_default()),
                other => bail!("the node said {other:?}"),
            };
        }
    }
}

fn nodes(state: &Value) -> Vec<Value> {
    let nodes = state.get("nodes").and_then(Value::as_array);
    nodes.cloned().unwrap_or_default()
}

fn is(row: &Value, field: &str) -> bool {
    row.get(field) == Some(&Value::Bool(true))
}

/// How far it is, in a line.
fn told(state: &Value) -> String {
    let nodes = nodes(state);
    let living = nodes.iter().filter(|row| is(row, "alive"));
    let of_nodes = living.map(|row| {
        let so_far = match (is(row, "done"), text(row, "brought")) {
            (true, _) => "done".to_owned(),
            (false, brought) if brought.is_empty() => "looks at its files".to_owned(),
            (false, brought) if brought == "done" => "waits for the others".to_owned(),
            (false, brought) => format!("{brought} entries"),
        };
        format!("{}: {so_far}", text(row, "node"))
    });
    let stands = if is(state, "whole") {
        "the tree is whole"
    } else {
        "rebuilding"
    };
    let parts = std::iter::once(stands.to_owned()).chain(of_nodes);
    parts.collect::<Vec<_>>().join(", ")
}

fn print(state: &Value) {
    let mut rows = Vec::new();
    let mut conflicts = Vec::new();
    for row in nodes(state) {
        let told = row.get("told").cloned().unwrap_or_default();
        let so = match (is(&row, "done"), is(&row, "alive")) {
            (true, _) => "done",
            (false, true) => "not done",
            (false, false) => "not there; it brings its part when it comes",
        };
        let kept = told.get("conflicts").and_then(Value::as_array);
        let kept = kept.cloned().unwrap_or_default();
        rows.push(vec![
            text(&row, "node"),
            text(&told, "copies"),
            text(&told, "found"),
            text(&told, "newer"),
            kept.len().to_string(),
            so.to_owned(),
        ]);
        conflicts.extend(kept);
    }
    print_table(
        &["node", "copies", "found", "newer", "conflicts", "state"],
        rows,
    );
    for path in conflicts.iter().filter_map(Value::as_str) {
        println!("kept beside another: {}", path.escape_debug());
    }
}
