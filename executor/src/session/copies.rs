//! What a session is asked about copies: give up, pin, spread, keep several, re-read.
//!
//! Each answers with a row for every file, so that one file that cannot be done does not hide the others.
use super::Session;
use super::answers::{PROGRESS, Refusal, is_for_all, kind_of, name_row, refused_row};
use crate::protocol::{Answer, Tell};
use ks_fs::catalog::forgotten::ForgetError;
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
    named(path, json!({"ok": outcome.is_ok(), "error": outcome.err()}))
}

fn named(path: &std::path::Path, mut row: Value) -> Value {
    name_row(&mut row, path);
    row
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
    /// The files at and below the paths. Of several paths, one that is not there is a row in `rows`, and the others are done.
    async fn files_of(
        &self,
        paths: Vec<ByteBuf>,
        rows: &mut Vec<Value>,
    ) -> Result<Vec<TreePath>, Refusal> {
        let is_alone = paths.len() == 1;
        let mut files = Vec::new();
        for path in paths {
            let below = async { self.files_below(self.in_tree(&path)?).await };
            match below.await {
                Ok(found) => files.extend(found),
                Err(refusal) if is_alone || is_for_all(&refusal) => return Err(refusal),
                Err(refusal) => rows.push(refused_row(&path, refusal)),
            }
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
        for file in self.files_of(paths, &mut rows).await? {
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
        for file in self.files_of(paths, &mut rows).await? {
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
        for file in self.files_of(paths, &mut rows).await? {
            let seen = self.as_seen(&file);
            rows.push(match self.executor.fs.verify(&file).await {
                Ok(found) => named(
                    &seen,
                    json!({"ok": found.good, "lost": found.lost, "copies": found.copies}),
                ),
                Err(error) => row(&seen, Err(bare(&file, &self.as_seen(&file), &error))),
            });
        }
        Ok(Answer::Report(rows))
    }

    pub(super) async fn forget_node(&self, node: &str, force: bool) -> Result<Answer, Refusal> {
        self.trusted()?;
        let forgotten = self.executor.fs.catalog().forget_node(node, force).await;
        let forgotten = forgotten.map_err(|error| match error {
            ForgetError::Catalog(error) => ("CatalogUnavailable", error.to_string()),
            other => ("OSError", other.to_string()),
        })?;
        let mut rows = vec![json!({
            "node": forgotten.name, "done": forgotten.is_done, "copies": forgotten.copies,
            "homes": forgotten.homes, "lost": forgotten.lost,
        })];
        let why = "its only copy is there".to_owned();
        let lost = forgotten.lost_paths.iter();
        rows.extend(lost.map(|path| row(&self.as_seen(path), Err(why.clone()))));
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
        for file in self.files_of(paths, &mut rows).await? {
            let seen = self.as_seen(&file);
            match fs
                .push(&file, &targets, self.progress_of(request, &seen))
                .await
            {
                Ok(pushed) => rows.extend(pushed.into_iter().map(|at| {
                    let row = json!({"node": at.node, "ok": at.error.is_none(), "error": at.error});
                    named(&seen, row)
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
        let (mut rows, is_alone) = (Vec::new(), paths.len() == 1);
        let mut counted = Vec::new();
        for path in paths {
            let set = async {
                let at = self.in_tree(&path)?;
                let set = fs.set_replicas(&at, count).await;
                set.map_err(|error| ("OSError", self.said_of(&at, &error)))
            };
            match set.await {
                Ok(()) => counted.push(path),
                Err(refusal) if is_alone => return Err(refusal),
                Err(refusal) => rows.push(refused_row(&path, refusal)),
            }
        }
        let paths = counted;
        for file in self.files_of(paths, &mut rows).await? {
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
