//! `ks drop`, `ks pin`, `ks push`, `ks replicate`, `ks verify`: what is done with copies. Each prints a row for every file that needs a word.
use super::fetch::Bars;
use super::{Format, connect, print_json, print_table, shown_path, text, r#where::path_bytes};
use anyhow::bail;
use clap::Args;
use ks_executor::control::failed;
use ks_executor::protocol::{Answer, Ask, Tell};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

/// `ks drop`.
#[derive(Args, Debug)]
pub struct DropArgs {
    /// Files in the tree (a directory: those below it)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl DropArgs {
    /// Gives up this node's copies.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let ask = Ask::Drop {
            paths: path_bytes(&self.paths)?,
        };
        report("copies given up", &self.paths, ask, self.format).await
    }
}

/// `ks pin`.
#[derive(Args, Debug)]
pub struct PinArgs {
    /// Files in the tree (a directory: those below it now)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Let them be evicted again
    #[arg(long)]
    unpin: bool,
    #[command(flatten)]
    format: Format,
}

impl PinArgs {
    /// Pins, or takes pins off.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let ask = Ask::Pin {
            paths: path_bytes(&self.paths)?,
            pinned: !self.unpin,
        };
        let done = match self.unpin {
            true => "files unpinned",
            false => "files pinned",
        };
        report(done, &self.paths, ask, self.format).await
    }
}

/// `ks push`.
#[derive(Args, Debug)]
pub struct PushArgs {
    /// Files in the tree (a directory: those below it)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// To this node (repeat for several) [default: all]
    #[arg(long, value_name = "NODE", conflicts_with = "all")]
    to: Vec<String>,
    /// To all nodes that keep files
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

impl PushArgs {
    /// Returns when all of the nodes have all of the files.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let ask = Ask::Push {
            paths: path_bytes(&self.paths)?,
            to: self.to,
        };
        report("copies there", &self.paths, ask, self.format).await
    }
}

/// `ks replicate`.
#[derive(Args, Debug)]
pub struct ReplicateArgs {
    /// Files or directories in the tree (new files below a directory inherit its number)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Copies to keep
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    count: u16,
    #[command(flatten)]
    format: Format,
}

impl ReplicateArgs {
    /// Returns when there are so many copies.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let ask = Ask::Replicate {
            paths: path_bytes(&self.paths)?,
            count: self.count.into(),
        };
        report("files with enough copies", &self.paths, ask, self.format).await
    }
}

/// `ks verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Files in the tree (a directory: those below it) [default: the whole tree]
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl VerifyArgs {
    /// Re-reads every copy, and mends damaged ones.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let paths = match self.paths.is_empty() {
            true => vec![connect(None).await?.hello.mountpoint],
            false => self.paths,
        };
        let ask = Ask::Verify {
            paths: path_bytes(&paths)?,
        };
        report("good files", &paths, ask, self.format).await
    }
}

/// Asks, shows how far it is, and prints what came of it. Exit status 1 where something could not be done.
async fn report(
    done: &str,
    paths: &[PathBuf],
    ask: Ask,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let mut node = connect(paths.first().map(PathBuf::as_path)).await?;
    let sent = node.send(ask, &[]).await?;
    let mut bars = Bars::new(format.json);
    let rows = loop {
        let (tell, _) = tokio::select! {
            next = node.next() => next?,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; what has been done stays"),
        };
        match tell {
            Tell::Progress {
                path, have, size, ..
            } => bars.update(&path, have, size),
            Tell::Reply { request, answer } if request == sent => match failed(answer)? {
                Answer::Report(rows) => break rows,
                other => bail!("the node said {other:?}"),
            },
            _ => {}
        }
    };
    let is_ok = |row: &Value| row.get("ok") == Some(&Value::Bool(true));
    let all_ok = rows.iter().all(is_ok);
    if format.json {
        print_json(&rows)?;
    } else {
        print_rows(done, &rows, is_ok);
    }
    Ok(if all_ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What went wrong or was mended; the rest is a number of what was to be `done`.
fn print_rows(done: &str, rows: &[Value], is_ok: impl Fn(&Value) -> bool) {
    let mut said = Vec::new();
    for row in rows {
        let copies = row
            .get("copies")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for copy in copies.filter(|copy| copy.get("state").is_some_and(|state| state != "good")) {
            let mended = copy.get("mended") == Some(&Value::Bool(true));
            let state = text(copy, "state") + if mended { ", mended" } else { "" };
            said.push(vec![shown_path(row), text(copy, "node"), state]);
        }
        if let Some(error) = row.get("error").filter(|error| !error.is_null()) {
            let error = error.as_str().unwrap_or_default().to_owned();
            said.push(vec![shown_path(row), text(row, "node"), error]);
        }
    }
    if !said.is_empty() {
        print_table(&["path", "node", "state"], said);
    }
    let well = rows.iter().filter(|row| is_ok(row)).count();
    println!("{done}: {well} of {}", rows.len());
}
