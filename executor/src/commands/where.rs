//! `ks where`: who holds files, how much of them, which version, their hashes.
use super::{Format, connect, human_bytes, number, print_json, print_table, shown_path, text};
use anyhow::bail;
use clap::Args;
use ks_executor::control::{Refused, absolute};
use ks_executor::daemon::described;
use ks_executor::protocol::{Answer, Ask};
use serde_bytes::ByteBuf;
use serde_json::Value;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `ks where`.
#[derive(Args, Debug)]
pub struct WhereArgs {
    /// Files or directories in the tree
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// With the MD5 of the files
    #[arg(long)]
    md5: bool,
    #[command(flatten)]
    format: Format,
}

/// Paths as a node is told them.
pub fn path_bytes(paths: &[PathBuf]) -> anyhow::Result<Vec<ByteBuf>> {
    paths
        .iter()
        .map(|path| Ok(ByteBuf::from(absolute(path)?.as_os_str().as_bytes())))
        .collect()
}

impl WhereArgs {
    /// Asks the node and prints a row for each copy.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let mut node = connect(self.paths.first().map(PathBuf::as_path)).await?;
        let mut found = Vec::new();
        let mut refused = Vec::new();
        for path in path_bytes(&self.paths)? {
            let ask = Ask::Where {
                paths: vec![path],
                md5: self.md5,
            };
            match node.ask(ask).await {
                Ok(Answer::Where(rows)) => found.extend(rows),
                Ok(other) => bail!("the node said {other:?}"),
                // Silence is not waited for again at the next path.
                Err(error) if !error.is::<Refused>() => return Err(error),
                Err(error) => refused.push(error),
            }
        }
        let mountpoint = node.hello.mountpoint.clone();
        if self.format.json {
            print_json(&found)?;
        } else {
            let mut headings = vec!["path", "size", "version", "node", "has", "state", "blake3"];
            headings.extend(self.md5.then_some("md5"));
            let of_file = |file: &Value| {
                let mut rows = rows(&mountpoint, file);
                if self.md5 {
                    rows.iter_mut().for_each(|row| row.push(text(file, "md5")));
                }
                rows
            };
            let rows: Vec<_> = found.iter().flat_map(of_file).collect();
            if !rows.is_empty() {
                print_table(&headings, rows);
            }
        }
        for error in &refused {
            eprintln!("ks: {}", described(error));
        }
        let status = match refused.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        };
        Ok(status)
    }
}

/// A row for each copy of a file; one for what has no copies (a directory).
fn rows(mountpoint: &Path, file: &Value) -> Vec<Vec<String>> {
    let size = number(file, "size");
    let hash: String = text(file, "blake3").chars().take(16).collect();
    let copies = file
        .get("copies")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let first = [
        seen(mountpoint, file),
        human_bytes(size),
        text(file, "version"),
    ];
    if copies.is_empty() {
        let [path, size, version] = first;
        return vec![vec![
            path,
            size,
            version,
            String::new(),
            String::new(),
            text(file, "kind"),
            hash,
        ]];
    }
    copies
        .iter()
        .map(|copy| {
            let [path, human_size, version] = first.clone();
            vec![
                path,
                human_size,
                version,
                text(copy, "node"),
                share(number(copy, "bytes"), size),
                state(copy),
                hash.clone(),
            ]
        })
        .collect()
}

/// The path as programs on this machine open it.
fn seen(mountpoint: &Path, file: &Value) -> String {
    mountpoint.join(shown_path(file)).display().to_string()
}

/// How much of a file a copy is.
fn share(bytes: u64, size: u64) -> String {
    if bytes >= size {
        "whole".into()
    } else {
        format!("{:.1}%", 100.0 * bytes as f64 / size as f64)
    }
}

fn state(copy: &Value) -> String {
    let is = |field| copy.get(field) == Some(&Value::Bool(true));
    let words = [
        (is("home"), "home"),
        (!is("current"), "old"),
        (!is("alive"), "node gone"),
    ];
    let said: Vec<&str> = words
        .iter()
        .filter(|(so, _)| *so)
        .map(|(_, word)| *word)
        .collect();
    if said.is_empty() {
        "copy".into()
    } else {
        said.join(", ")
    }
}
