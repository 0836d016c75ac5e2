//! What a session is asked about copies: give up, pin, spread, keep several, re-read.
//!
//! Each answers with a row for every file, so that one file that cannot be done does not hide the others.
use super::Session;
use super::answers::{PROGRESS, Refusal, kind_of};
use crate::protocol::{Answer, Tell};
use ks_fs::filesystem::PushProgress;
use ks_fs::path::TreePath;
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A row: the file, and why not.
fn row(path: &std::path::Path, outcome: Result<(), String>) -> Value {
    json!({"path": path.to_string_lossy(), "ok": outcome.is_ok(), "error": outcome.err()})
}

/// An error's text without the path that its row has already; a command at its end names the file as it is `seen`.
fn bare(file: &TreePath, seen: &std::path::Path, error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let bare = text.strip_prefix(&format!("{file}: ")).unwrap_or(&text);
    match bare.strip_suffix(&format!(" {file}")) {
        Some(command) => format!("{command} {}", seen.display()),
        None => bare.to_owned(),
    }
}

impl Session {
    async fn files_of(&self, paths: Vec<ByteBuf>) -> Result<Vec<TreePath>, Refusal> {
        let mut files = Vec::new();
        for path in paths {
            files.extend(self.files_below(self.in_tree(&path)?).await?);
        }
        Ok(files)
    }

    /// What could be asked of this node at all.
    fn trusted(&self) -> Result<(), Refusal> {
        match self.rights.may_end {
            true => Ok(()),
            false => Err((
                "PermissionError",
                "a client may read and call; copies are for nodes and the control socket".into(),
            )),
        }
    }

    pub(super) async fn drop_copies(&self, paths: Vec<ByteBuf>) -> Result<Answer, Refusal> {
        self.trusted()?;
        let mut rows = Vec::new();
        for file in self.files_of(paths).await? {
            let dropped = self.executor.fs.drop_copy(&file).await;
            rows.push(row(
                &self.as_seen(&file),
                dropped.map_err(|error| bare(&file, &self.as_seen(&file), &error)),
            ));
        }
        Ok(Answer::Report(rows))
    }

    pub(super) async fn pin(&self, paths: Vec<ByteBuf>, pinned: bool) -> Result<Answer, Refusal> {
        self.trusted()?;
        let (mut inos, mut rows) = (Vec::new(), Vec::new());
        for file in self.files_of(paths).await? {
            let node = self.executor.fs.catalog().resolve(&file).await;
            if let Some(node) = node.map_err(|e| ("CatalogUnavailable", e.to_string()))? {
                inos.push(node.ino);
                rows.push(row(&self.as_seen(&file), Ok(())));
            }
        }
        let done = self.executor.fs.pin(inos, pinned).await;
        done.map_err(|error| (kind_of(&error), error.to_string()))?;
        Ok(Answer::Report(rows))
    }

    pub(super) async fn verify(&self, paths: Vec<ByteBuf>) -> Result<Answer, Refusal> {
        self.trusted()?;
        let mut rows = Vec::new();
        for file in self.files_of(paths).await? {
            let seen = self.as_seen(&file);
            rows.push(match self.executor.fs.verify(&file).await {
                Ok(found) => json!({
                    "path": seen.to_string_lossy(), "ok": found.good, "lost": found.lost, "copies": found.copies,
                }),
                Err(error) => row(&seen, Err(bare(&file, &self.as_seen(&file), &error))),
            });
        }
        Ok(Answer::Report(rows))
    }

    pub(super) async fn recover(&self, begin: bool) -> Result<Answer, Refusal> {
        self.trusted()?;
        let catalog = self.executor.fs.catalog();
        let recovered = async {
            if begin {
                catalog.recover().await?;
            }
            catalog.recovery_state().await
        };
        let state = recovered.await;
        let state = state.map_err(|error| ("CatalogUnavailable", error.to_string()))?;
        let row = serde_json::to_value(state).map_err(|error| ("OSError", error.to_string()))?;
        Ok(Answer::Report(vec![row]))
    }

    pub(super) async fn push(
        &self,
        request: u64,
        paths: Vec<ByteBuf>,
        to: Vec<String>,
    ) -> Result<Answer, Refusal> {
        self.trusted()?;
        let fs = &self.executor.fs;
        let targets = fs
            .nodes_named(&to)
            .await
            .map_err(|error| ("OSError", error.to_string()))?;
        let mut rows = Vec::new();
        for file in self.files_of(paths).await? {
            let seen = self.as_seen(&file);
            match fs.push(&file, &targets, self.progress_of(request, &seen)).await {
                Ok(pushed) => rows.extend(pushed.into_iter().map(|at| {
                    json!({"path": seen.to_string_lossy(), "node": at.node, "ok": at.error.is_none(), "error": at.error})
                })),
                Err(error) => rows.push(row(&seen, Err(error.to_string()))),
            }
        }
        Ok(Answer::Report(rows))
    }

    pub(super) async fn replicate(
        &self,
        paths: Vec<ByteBuf>,
        count: usize,
    ) -> Result<Answer, Refusal> {
        self.trusted()?;
        let fs = &self.executor.fs;
        for path in &paths {
            let path = self.in_tree(path)?;
            let set = fs.set_replicas(&path, count).await;
            set.map_err(|error| ("OSError", self.said_of(&path, &error)))?;
        }
        let mut rows = Vec::new();
        for file in self.files_of(paths).await? {
            let made = fs.replicate(&file).await;
            rows.push(row(
                &self.as_seen(&file),
                made.map(drop)
                    .map_err(|error| bare(&file, &self.as_seen(&file), &error)),
            ));
        }
        Ok(Answer::Report(rows))
    }

    /// Tells the client how far each node is: not too often.
    fn progress_of(&self, request: u64, path: &std::path::Path) -> PushProgress {
        let (audience, path) = (self.audience.clone(), path.to_owned());
        let told: Mutex<HashMap<String, Instant>> = Mutex::default();
        Arc::new(move |node: &str, have, size| {
            let mut told = told.lock().unwrap();
            if have < size && told.get(node).is_some_and(|at| at.elapsed() < PROGRESS) {
                return;
            }
            told.insert(node.to_owned(), Instant::now());
            let mut label = path.as_os_str().as_bytes().to_vec();
            label.extend_from_slice(format!(" -> {node}").as_bytes());
            let path = label.into();
            audience.tell(&Tell::Progress {
                request,
                path,
                have,
                size,
            });
        })
    }

    /// A path as this node's programs see it.
    pub(super) fn as_seen(&self, path: &TreePath) -> std::path::PathBuf {
        path.under(&self.executor.options.mountpoint)
    }
}
