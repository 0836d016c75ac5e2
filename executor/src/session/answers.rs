//! The questions that a session answers beside taking calls.
use super::Session;
use crate::placement::resolve::tree_path;
use crate::protocol::{Answer, Ask, KeepAs, KeptFile, Tell, VERSION};
use crate::queue::job_is_valid;
use ks_fs::path::TreePath;
use ks_fs::record::Kind;
use serde_bytes::ByteBuf;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time between two words on the progress of a fetch.
pub(super) const PROGRESS: Duration = Duration::from_millis(100);
/// Files fetched for one request, below the directories it names.
const FILES_MAX: usize = 1_000_000;

/// Files that could not be fetched are told by name up to this many.
const REFUSED_TOLD_MAX: usize = 20;

/// A question that cannot be answered: the Python exception's name, and the text.
pub(super) type Refusal = (&'static str, String);

impl Session {
    pub(super) async fn introduction(&self) -> Answer {
        let nodes = self.executor.fs.catalog().nodes().await;
        let nodes = nodes.unwrap_or_default();
        let peers = nodes
            .iter()
            .filter(|node| node.alive && node.id != self.executor.me().node);
        let options = &self.executor.options;
        Answer::Hello {
            version: VERSION,
            node: options.node_name.clone(),
            node_id: self.executor.me().node.to_string(),
            mountpoint: options.mountpoint.as_os_str().as_bytes().to_vec().into(),
            datadir: options.datadir.as_os_str().as_bytes().to_vec().into(),
            program: format!("ks {}", env!("CARGO_PKG_VERSION")),
            memory: self
                .executor
                .memory_directory()
                .map(|path| path.as_os_str().as_bytes().to_vec().into()),
            peers: peers.map(|node| node.info.address.clone()).collect(),
        }
    }

    pub(super) async fn answer(&self, request: u64, ask: Ask) {
        let answered = match ask {
            Ask::Attach { jobs } => {
                let attached = self.executor.attach(jobs, &self.audience).await;
                attached
                    .map(|()| Answer::Accepted)
                    .map_err(|e| (e.kind(), e.to_string()))
            }
            Ask::Cancel { jobs, all } => self.cancel(jobs, all).await,
            Ask::Jobs { limit } => self.jobs(limit).await,
            Ask::Logs { job } => self.logs(job).await,
            Ask::Nodes => self.nodes().await,
            Ask::ForgetNode { node, force } => self.forget_node(&node, force).await,
            Ask::Status => Ok(Answer::Status(self.status().await)),
            Ask::Records => self.records().await,
            Ask::Where { paths, md5 } => self.locate(paths, md5).await,
            Ask::Fetch { paths } => self.fetch(request, paths).await,
            Ask::Drop { paths } => self.drop_copies(paths).await,
            Ask::Pin { paths, pinned } => self.pin(paths, pinned).await,
            Ask::Push { paths, to } => self.push(request, paths, to).await,
            Ask::Replicate { paths, count } => self.replicate(paths, count).await,
            Ask::Verify { paths } => self.verify(paths).await,
            Ask::Recover { begin } => self.recover(begin).await,
            Ask::Keep { values } => self.keep(values).await,
            Ask::Kept { ids } => self.kept(ids).await,
            Ask::KeptGroup { group } => self.kept_group(&group).await,
            Ask::Forget { ids, groups } => self.forget(ids, &groups).await,
            Ask::Nested { job, waits } => {
                let heeded = self.executor.nested(&job, waits);
                heeded.map(|()| Answer::Done)
            }
            Ask::Shutdown => self.shutdown(),
            Ask::Ping | Ask::Hello { .. } | Ask::Submit { .. } | Ask::Tie { .. } => return,
        };
        match answered {
            Ok(answer) => self.reply(request, answer),
            Err((kind, message)) => self.fail(request, kind, message),
        }
    }

    async fn keep(&self, values: Vec<(KeepAs, KeptFile)>) -> Result<Answer, Refusal> {
        self.executor.record_kept(values).await?;
        Ok(Answer::Done)
    }

    async fn kept(&self, ids: Vec<String>) -> Result<Answer, Refusal> {
        let values = self.executor.kept_values(ids).await;
        Ok(Answer::Kept(values?))
    }

    async fn kept_group(&self, group: &str) -> Result<Answer, Refusal> {
        let values = self.executor.kept_group(group).await?;
        Ok(Answer::KeptGroup(values))
    }

    async fn forget(&self, ids: Vec<String>, groups: &[String]) -> Result<Answer, Refusal> {
        let count = self.executor.forget_kept(ids, groups).await;
        let count = count.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        Ok(Answer::Forgotten { count })
    }

    async fn cancel(&self, jobs: Vec<String>, all: bool) -> Result<Answer, Refusal> {
        let cancelled = match all {
            true => self.executor.cancel_all().await,
            false => self.executor.cancel(&jobs).await,
        };
        let jobs = cancelled.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        Ok(Answer::Cancelled { jobs })
    }

    async fn jobs(&self, limit: u32) -> Result<Answer, Refusal> {
        let listed = self.executor.list_jobs(limit).await;
        let (total, jobs) = listed.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        Ok(Answer::Jobs { total, jobs })
    }

    async fn logs(&self, job: String) -> Result<Answer, Refusal> {
        if !job_is_valid(&job) {
            return Err(("JobUnknown", format!("'{job}' is no job's id")));
        }
        let logs = self.executor.logs(&job).await;
        let logs = logs.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        logs.ok_or_else(|| ("JobUnknown", format!("there is no job {job}")))
    }

    async fn nodes(&self) -> Result<Answer, Refusal> {
        let nodes = self.executor.fs.catalog().nodes().await;
        let nodes = nodes.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        let describe = |node: &ks_fs::catalog::nodes::NodeState| {
            let info = &node.info;
            json!({
                "name": info.name, "id": node.id.to_string(), "address": info.address, "alive": node.alive,
                "workers": info.workers, "queues": info.queues, "mountpoint": info.mountpoint, "datadir": info.datadir,
                "free_bytes": info.free_bytes, "total_bytes": info.total_bytes, "version": info.version,
                "read_only": info.read_only,
            })
        };
        Ok(Answer::Nodes(nodes.iter().map(describe).collect()))
    }

    async fn status(&self) -> Value {
        match self.executor.facts.get() {
            Some(facts) => facts.status().await,
            None => json!({"calls": self.executor.status().await}),
        }
    }

    async fn records(&self) -> Result<Answer, Refusal> {
        let looked_at = self.executor.fs.catalog().look_at_records().await;
        let looked_at = looked_at.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        let value =
            serde_json::to_value(looked_at).map_err(|e| ("ProtocolError", e.to_string()))?;
        Ok(Answer::Status(value))
    }

    fn shutdown(&self) -> Result<Answer, Refusal> {
        match self.executor.facts.get() {
            Some(facts) if self.rights.may_end => {
                facts.shutdown();
                Ok(Answer::Done)
            }
            _ => Err((
                "PermissionError",
                "only a node, or who may open the control socket, may end a node".into(),
            )),
        }
    }

    /// The path in the tree: given as it is under this node's mount point, or relative to the tree's root.
    pub(super) fn in_tree(&self, path: &[u8]) -> Result<TreePath, Refusal> {
        let mountpoint = self.executor.options.mountpoint.as_os_str().as_bytes();
        let found = match path.first() {
            Some(b'/') => tree_path(path, mountpoint),
            _ => TreePath::new(path),
        };
        found.ok_or_else(|| {
            let path = String::from_utf8_lossy(path);
            let mountpoint = self.executor.options.mountpoint.display();
            (
                "FileNotFoundError",
                format!("{path}: outside the tree, which is mounted at {mountpoint}"),
            )
        })
    }

    async fn locate(&self, paths: Vec<ByteBuf>, md5: bool) -> Result<Answer, Refusal> {
        let mut found = Vec::with_capacity(paths.len());
        for path in paths {
            let tree_path = self.in_tree(&path)?;
            if md5 {
                self.compute_md5(&tree_path).await?;
            }
            let place = self.executor.fs.where_is(&tree_path).await;
            let place = place.map_err(|e| (kind_of(&e), self.said_of(&tree_path, &e)))?;
            let row = serde_json::to_value(place);
            let mut row = row.map_err(|e| ("ProtocolError", e.to_string()))?;
            name_row(&mut row, &self.as_seen(&tree_path));
            found.push(row);
        }
        Ok(Answer::Where(found))
    }

    async fn compute_md5(&self, path: &TreePath) -> Result<(), Refusal> {
        let fs = &self.executor.fs;
        let node = fs.catalog().resolve(path).await;
        let node = node.map_err(|e| ("CatalogUnavailable", e.to_string()))?;
        let Some(node) = node.filter(|node| node.inode.kind == Kind::File) else {
            return Ok(());
        };
        let computed = fs.md5(node.ino).await;
        computed
            .map(drop)
            .map_err(|e| ("OSError", self.said_of(path, &e)))
    }

    /// All that can be fetched is; what cannot is told at the end.
    async fn fetch(&self, request: u64, paths: Vec<ByteBuf>) -> Result<Answer, Refusal> {
        let mut refused: Vec<Refusal> = Vec::new();
        for path in paths {
            let below = async { self.files_below(self.in_tree(&path)?).await };
            let files = match below.await {
                Ok(files) => files,
                Err(refusal) if is_for_all(&refusal) => return Err(refusal),
                Err(refusal) => {
                    refused.push(refusal);
                    continue;
                }
            };
            for file in files {
                match self.fetch_one(request, &file).await {
                    Ok(()) => {}
                    Err(refusal) if is_for_all(&refusal) => return Err(refusal),
                    Err(refusal) => refused.push(refusal),
                }
            }
        }
        match all_in_one(refused) {
            None => Ok(Answer::Done),
            Some(refusal) => Err(refusal),
        }
    }

    async fn fetch_one(&self, request: u64, file: &TreePath) -> Result<(), Refusal> {
        let name = file.under(&self.executor.options.mountpoint);
        let told = Mutex::new(None::<Instant>);
        let progress = |have: u64, size: u64| {
            let mut told = told.lock().unwrap();
            if have < size && told.is_some_and(|at| at.elapsed() < PROGRESS) {
                return;
            }
            *told = Some(Instant::now());
            let path = name.as_os_str().as_bytes().to_vec().into();
            self.audience.tell(&Tell::Progress {
                request,
                path,
                have,
                size,
            });
        };
        let fetched = self.executor.fs.fetch_whole(file, progress).await;
        fetched.map_err(|e| (kind_of(&e), self.said_of(file, &e)))
    }

    /// What went wrong with a file, under the path by which this node's programs know it.
    pub(super) fn said_of(&self, file: &TreePath, error: &dyn std::fmt::Display) -> String {
        let text = error.to_string();
        let bare = text.strip_prefix(&format!("{file}: ")).unwrap_or(&text);
        format!("{}: {bare}", self.as_seen(file).display())
    }

    /// The file itself, or the files below a directory.
    pub(super) async fn files_below(&self, path: TreePath) -> Result<Vec<TreePath>, Refusal> {
        let catalog = self.executor.fs.catalog();
        let unavailable = |e: ks_fs::catalog::CatalogError| ("CatalogUnavailable", e.to_string());
        let mut files = Vec::new();
        let node = catalog.resolve(&path).await.map_err(unavailable)?;
        let node = node.ok_or_else(|| {
            (
                "FileNotFoundError",
                self.said_of(&path, &"no such file or directory"),
            )
        })?;
        let mut queue = vec![(path, node.ino, node.inode.kind)];
        while let Some((path, ino, kind)) = queue.pop() {
            match kind {
                Kind::File => files.push(path),
                Kind::Directory => {
                    let listing = catalog.list(ino).await.map_err(unavailable)?;
                    for (name, node) in listing.entries.iter().rev() {
                        queue.push((path.join(name), node.ino, node.inode.kind));
                    }
                }
                _ => {}
            }
            if files.len() > FILES_MAX {
                return Err((
                    "OSError",
                    format!("more than {FILES_MAX} files; name fewer"),
                ));
            }
        }
        Ok(files)
    }
}

/// Whether it is no matter of that one path: the others would not fare better.
pub(super) fn is_for_all(refusal: &Refusal) -> bool {
    refusal.0 == "CatalogUnavailable"
}

/// A path that cannot be served, among others that can.
pub(super) fn refused_row(path: &[u8], (_, message): Refusal) -> Value {
    let shown = String::from_utf8_lossy(path);
    let bare = message.strip_prefix(&format!("{shown}: "));
    let mut row = json!({"ok": false, "error": bare.unwrap_or(&message)});
    name_row(&mut row, Path::new(OsStr::from_bytes(path)));
    row
}

/// Says which file a row is of: `path`, and `path_hex` (its bytes) where it is not UTF-8, as the text is not all of it then.
pub(super) fn name_row(row: &mut Value, path: &Path) {
    row["path"] = path.to_string_lossy().into();
    if path.to_str().is_none() {
        row["path_hex"] = hex::encode(path.as_os_str().as_bytes()).into();
    }
}

/// Several refusals as one: each on a line of its own.
fn all_in_one(refused: Vec<Refusal>) -> Option<Refusal> {
    let kind = refused.first()?.0;
    let mut lines: Vec<String> = (refused.iter().take(REFUSED_TOLD_MAX))
        .map(|(_, message)| message.clone())
        .collect();
    if let Some(more) = refused.len().checked_sub(REFUSED_TOLD_MAX + 1) {
        lines.push(format!("and {} more", more + 1));
    }
    Some((kind, lines.join("\n")))
}

pub(super) fn kind_of(error: &ks_fs::error::FsError) -> &'static str {
    match error {
        ks_fs::error::FsError::NotFound => "FileNotFoundError",
        ks_fs::error::FsError::IsADirectory => "IsADirectoryError",
        ks_fs::error::FsError::NotADirectory => "NotADirectoryError",
        ks_fs::error::FsError::Catalog(_) => "CatalogUnavailable",
        _ => "OSError",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_names_its_file_whatever_its_bytes() {
        let row = refused_row(
            b"/ks/a\xff",
            ("FileNotFoundError", "/ks/a\u{fffd}: gone".into()),
        );
        let path_hex = hex::encode(b"/ks/a\xff");
        let expected =
            json!({"path": "/ks/a\u{fffd}", "path_hex": path_hex, "ok": false, "error": "gone"});
        assert_eq!(row, expected);
        let plain = refused_row("/ks/ä".as_bytes(), ("OSError", "no".into()));
        assert_eq!(plain, json!({"path": "/ks/ä", "ok": false, "error": "no"}));
    }

    #[test]
    fn refusals_are_told_together_but_not_without_end() {
        assert!(all_in_one(vec![]).is_none());
        let refused = |n: usize| ("OSError", format!("file {n}"));
        let one = all_in_one(vec![refused(1)]).unwrap();
        assert_eq!(one, ("OSError", "file 1".to_owned()));
        let (_, many) = all_in_one((0..100).map(refused).collect()).unwrap();
        assert_eq!(many.lines().count(), REFUSED_TOLD_MAX + 1);
        assert!(many.ends_with("and 80 more"), "{many}");
    }
}
