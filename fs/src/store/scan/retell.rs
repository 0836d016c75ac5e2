//! After the tree was rebuilt: which copies stand in the data directory is told to it anew.
//!
//! Always: a file counts as a copy only when it is untouched and of the record's version and content. What nobody else knows comes back under
//! its old number; what is newer here than in the tree becomes the tree's, unless somebody has written since: then, and where the same
//! version has other bytes, it is kept as `NAME.conflict-NODE`. What is being written, or was changed behind our back, stays as it is (the
//! scan's). Doing it again changes nothing.
use super::decide::{Retold, retold};
use super::entry::Entry;
use super::{BATCHES_AHEAD, Batch, Known, Scan, read_all};
use crate::catalog::{Catalog, Node_};
use crate::path::TreePath;
use crate::record::*;
use crate::store::hasher::Hasher;
use crate::store::{LocalMeta, Store, StoreError, confine};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What was told.
#[derive(Clone, Debug, Default)]
pub struct RetoldReport {
    /// Copies that are the tree's current version.
    pub copies: u64,
    /// Files that only this node knew.
    pub found: u64,
    /// Files that were newer here.
    pub newer: u64,
    /// Kept under another name: tree paths.
    pub conflicts: Vec<String>,
}

/// Walks the data directory and tells the tree what is there.
pub async fn retell(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
) -> Result<RetoldReport, StoreError> {
    let mut retelling = Retelling {
        scan: Scan::new(store, catalog, hasher),
        report: RetoldReport::default(),
    };
    let (send, mut batches) = mpsc::channel::<Batch>(BATCHES_AHEAD);
    let walked = Arc::clone(store);
    let walking =
        tokio::task::spawn_blocking(move || read_all(&walked, TreePath::root(), None, &send));
    while let Some(batch) = batches.recv().await {
        retelling.take_batch(batch).await?;
    }
    walking.await?;
    let mut report = retelling.report;
    report.conflicts = retelling.scan.report.conflicts;
    Ok(report)
}

struct Retelling<'s> {
    scan: Scan<'s>,
    report: RetoldReport,
}

impl Retelling<'_> {
    async fn take_batch(&mut self, batch: Batch) -> Result<(), StoreError> {
        let read = batch.into_iter().flatten();
        let marked = read.filter(|entry| entry.meta.is_some() && entry.is_untouched);
        let mut held = Vec::new();
        for (entry, known) in self.scan.ask(marked.collect()).await? {
            let Some(meta) = entry.meta.clone() else {
                continue;
            };
            match known {
                Known::Here(node) | Known::Elsewhere(node, _) => {
                    let verdict = retold(&meta, &node.inode, self.scan.store.node_id());
                    match verdict {
                        Retold::Copy => held.push((node.ino, node.inode, entry.is_put)),
                        Retold::Newer => self.newer(entry, &meta, node).await?,
                        Retold::Conflict => self.keep_beside(entry).await?,
                        Retold::Nothing => {}
                    }
                }
                Known::Unknown => self.unknown(entry, &meta).await?,
            }
        }
        self.report.copies += held.len() as u64;
        self.scan.catalog.tell_copies(&held).await?;
        Ok(())
    }

    /// Nobody has told the tree of it; or it was removed, and goes by `reconcile`.
    async fn unknown(&mut self, entry: Entry, meta: &LocalMeta) -> Result<(), StoreError> {
        let (store, catalog) = (self.scan.store, self.scan.catalog);
        if catalog.was_removed(meta.ino).await? {
            return Ok(());
        }
        let Some((parent, name)) = confine::split(&entry.path) else {
            return Ok(());
        };
        let Some(parent_ino) = self.directory(&parent, &entry).await? else {
            return self.keep_beside(entry).await;
        };
        if catalog.lookup(parent_ino, name).await?.is_some() {
            return self.keep_beside(entry).await;
        }
        let inode = Inode {
            parent: parent_ino,
            name: name.to_vec(),
            version: meta.version.max(1),
            epoch: meta.epoch.saturating_add(1),
            home: store.node_id(),
            blake3: meta.blake3,
            ..entry.inode.clone()
        };
        self.report.found += 1;
        Ok(catalog.enter_found(meta.ino, inode).await?)
    }

    /// The directory at a path, made where it is missing; `None`: something else is there.
    async fn directory(&self, path: &TreePath, below: &Entry) -> Result<Option<Ino>, StoreError> {
        let catalog = self.scan.catalog;
        if catalog.resolve(path).await?.is_none() {
            let directory = Inode {
                kind: Kind::Directory,
                mode: 0o755,
                size: 0,
                version: 0,
                epoch: 0,
                home: NodeId::NONE,
                blake3: None,
                ..below.inode.clone()
            };
            catalog.adopt(vec![(path.clone(), directory)]).await?;
        }
        let node = catalog.resolve(path).await?;
        let directory = node.filter(|node| node.inode.kind == Kind::Directory);
        Ok(directory.map(|node| node.ino))
    }

    async fn newer(
        &mut self,
        entry: Entry,
        meta: &LocalMeta,
        node: Node_,
    ) -> Result<(), StoreError> {
        let newer = Inode {
            version: meta.version,
            size: meta.size,
            mtime: meta.mtime,
            blake3: meta.blake3,
            ..(*node.inode).clone()
        };
        match self.scan.catalog.put_newer(node.ino, newer).await? {
            true => self.report.newer += 1,
            // Somebody has written since.
            false => self.keep_beside(entry).await?,
        }
        Ok(())
    }

    async fn keep_beside(&mut self, entry: Entry) -> Result<(), StoreError> {
        if self.scan.store.open_entry(&entry)?.is_none() {
            return Ok(());
        }
        let (_, entry) = self.scan.conflict(entry)?;
        self.scan.adopt(vec![entry]).await?;
        Ok(())
    }
}
