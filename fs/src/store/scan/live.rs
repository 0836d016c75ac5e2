//! Taking in single paths while the node runs: what a scan does with what it finds, for what was heard of.
//!
//! Always: what is open for writing here is left to its writer, who publishes it; a new version is published as a write through the
//! mount would be.
use super::entry::Entry;
use super::{BATCH_MAX, Batch, Scan, ScanReport, compare};
use crate::catalog::{Catalog, Node_};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use crate::store::hasher::Hasher;
use crate::store::walk::{Found, Mark};
use crate::store::{DIRTY_SIZE, LocalMeta, Store, StoreError};
use ks_transport::BoxFuture;
use rustix::fs::FileType;
use std::sync::Arc;
use std::time::Duration;

/// How long files that may be copies of another node's are waited for at once; then in the background.
const SETTLE_WAIT: Duration = Duration::from_millis(500);

/// The node that runs.
pub trait Live: Send + Sync {
    /// Whether a file is open (or mapped) for writing here.
    fn is_written(&self, ino: Ino) -> bool;
    /// Publishes what stands in the plain file of a file whose home is here, as one who has written it would.
    fn publish(&self, ino: Ino) -> BoxFuture<'_, Result<(), FsError>>;
}

/// Takes in what stands at these paths now.
pub async fn take_paths(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    live: &dyn Live,
    paths: &[TreePath],
) -> Result<ScanReport, StoreError> {
    let mut scan = Scan::new(store, catalog, hasher);
    scan.live = Some(live);
    for paths in paths.chunks(BATCH_MAX) {
        let batch: Batch = paths.iter().filter_map(|path| scan.read(path)).collect();
        let mut stale = Vec::new();
        scan.take_batch(batch, &mut stale).await?;
    }
    while let Some(start) = scan.aside.pop() {
        scan.walk(start).await?;
    }
    scan.all_told().await?;
    let pending = std::mem::take(&mut scan.pending);
    let undecided = match pending.is_empty() {
        true => pending,
        false => scan.settle(pending, SETTLE_WAIT).await?,
    };
    scan.report.undecided += undecided.len() as u64;
    let report = scan.report;
    compare::settle_in_background(store, catalog, hasher, undecided);
    Ok(report)
}

impl Scan<'_> {
    /// What stands at a path now.
    pub(super) fn read(
        &self,
        path: &TreePath,
    ) -> Option<Result<Entry, (TreePath, std::io::Error)>> {
        let stat = match self.store.root.stat(path) {
            Ok(stat) => Box::new(stat),
            Err(error) if crate::store::files::is_not_that_file(&error) => return None,
            Err(error) => return Some(Err((path.clone(), error))),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Directory => Kind::Directory,
            _ => return None,
        };
        let path = path.clone();
        let found = Found::Entry {
            path,
            kind,
            stat,
            mark: Mark::Unread,
        };
        Entry::read(self.store, found).transpose()
    }

    /// A new version of a file whose home is here, while the node runs.
    pub(super) async fn publish_live(
        &mut self,
        live: &dyn Live,
        entry: Entry,
        node: &Node_,
    ) -> Result<(), StoreError> {
        if live.is_written(node.ino) {
            return Ok(());
        }
        // As a writer's mark: not to be served under a hash until it is published.
        let written = LocalMeta {
            size: DIRTY_SIZE,
            blake3: None,
            ..entry.meta_as(node.ino, &node.inode)
        };
        if !self.store.mark_entry(&entry, &written)? {
            return Ok(());
        }
        match live.publish(node.ino).await {
            Ok(()) => {
                self.report.changed += 1;
                Ok(())
            }
            Err(error) => Err(StoreError::Catalog(format!("{}: {error}", entry.path))),
        }
    }
}
