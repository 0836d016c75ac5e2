//! Comparing what the start of the node did not wait for, while the node runs.
//!
//! Always: nothing is changed here. What is as the tree says is passed by (and hashed, where it is not yet); what is not is made
//! due, to be looked at as after an event. Copies are not told: one that is given up meanwhile would count again.
use super::decide::{self, Local, Verdict};
use super::entry::Entry;
use super::{BATCHES_AHEAD, Batch, Known, Scan, read_all};
use crate::catalog::Catalog;
use crate::path::TreePath;
use crate::record::*;
use crate::store::hasher::Hasher;
use crate::store::watch::Watches;
use crate::store::watch::due::Hint;
use crate::store::{Store, StoreError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// After each batch others have their turn for as long as it took, but no longer than this.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Walks the whole data directory. Returns how many files it saw, and how many things were not as the tree says.
pub(crate) async fn survey(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    watches: &Arc<Watches>,
) -> Result<(u64, u64), StoreError> {
    let scan = Scan::new(store, catalog, hasher);
    let (send, mut batches) = mpsc::channel::<Batch>(BATCHES_AHEAD);
    let (walked, watched) = (Arc::clone(store), Arc::clone(watches));
    let start = TreePath::root();
    let walking =
        tokio::task::spawn_blocking(move || read_all(&walked, start, Some(&watched), &send));
    let (mut files, mut differing) = (0, 0);
    while let Some(batch) = batches.recv().await {
        let began = Instant::now();
        files += batch.len() as u64;
        for path in scan.differing(batch).await? {
            differing += 1;
            let now_ms = watches.now_ms();
            watches.due().event(path, Hint::Made, now_ms);
        }
        tokio::time::sleep(began.elapsed().min(PAUSE_MAX)).await;
    }
    walking.await?;
    Ok((files, differing))
}

impl Scan<'_> {
    /// What is not plainly as the tree says.
    async fn differing(&self, batch: Batch) -> Result<Vec<TreePath>, StoreError> {
        let (mut unmarked, mut marked, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for entry in batch.into_iter().flatten() {
            match (entry.inode.kind, &entry.meta) {
                (Kind::Directory | Kind::Symlink, _) => unmarked.push(entry),
                (_, Some(_)) => marked.push(entry),
                (_, None) => paths.push(entry.path),
            }
        }
        let others = self.not_in_tree(unmarked).await?;
        paths.extend(others.into_iter().map(|entry| entry.path));
        for (entry, known) in self.ask(marked).await? {
            if !self.is_as_known(&entry, &known) {
                paths.push(entry.path);
            }
        }
        Ok(paths)
    }

    /// A file that carries a meta.
    fn is_as_known(&self, entry: &Entry, known: &Known) -> bool {
        let (Known::Here(node), Some(meta)) = (known, &entry.meta) else {
            return false;
        };
        let local = Local {
            inode: &entry.inode,
            is_untouched: entry.is_untouched,
        };
        match decide::known(local, meta, &node.inode, self.store.node_id()) {
            Verdict::Current => {
                if meta.blake3.is_none() || node.inode.blake3.is_none() {
                    self.hasher
                        .queue(entry.path.clone(), meta.ino, meta.version);
                }
                true
            }
            Verdict::Old => true,
            _ => false,
        }
    }
}
