//! Files that stand here and, with the same size, on another node: one file with two copies when the hashes are the same, else a
//! conflict. The other's hash comes through the catalog, when its node has computed it.
//!
//! Always: until it is decided the file here stands untouched and is no copy.
use super::super::hasher::Hasher;
use super::super::{Store, StoreError};
use super::Scan;
use super::entry::Entry;
use crate::catalog::{Catalog, Node_};
use crate::record::*;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a scan waits for hashes of other nodes, in all.
pub const SETTLE_WAIT: Duration = Duration::from_secs(10);
/// How long they are waited for in the background.
pub const SETTLE_LONGEST: Duration = Duration::from_secs(3_600);
/// Between two looks at the catalog while the scan waits.
const LOOK_OFTEN: Duration = Duration::from_millis(100);
/// Between two looks in the background.
const LOOK_SELDOM: Duration = Duration::from_secs(5);

/// A file that may be a copy of another node's.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    entry: Entry,
    ino: Ino,
    ours: Option<Hash>,
}

impl Pending {
    pub(super) fn new(entry: Entry, ino: Ino) -> Self {
        Self {
            entry,
            ino,
            ours: None,
        }
    }
}

impl Scan<'_> {
    /// Decides what can be decided within `wait`; returns the rest.
    pub(super) async fn settle(
        &mut self,
        pending: Vec<Pending>,
        wait: Duration,
    ) -> Result<Vec<Pending>, StoreError> {
        let deadline = Instant::now() + wait;
        let mut undecided = pending;
        loop {
            undecided = self.settle_once(undecided, deadline).await?;
            self.tell_copies().await?;
            self.all_told().await?;
            if undecided.is_empty() || Instant::now() >= deadline {
                return Ok(undecided);
            }
            tokio::time::sleep(LOOK_OFTEN).await;
        }
    }

    /// Looks at each once; what there is no time for stays undecided.
    async fn settle_once(
        &mut self,
        pending: Vec<Pending>,
        deadline: Instant,
    ) -> Result<Vec<Pending>, StoreError> {
        let mut undecided = Vec::new();
        for pending in pending {
            if Instant::now() >= deadline {
                undecided.push(pending);
            } else if let Some(still) = self.settle_one(pending).await? {
                undecided.push(still);
            }
        }
        Ok(undecided)
    }

    async fn settle_one(&mut self, mut pending: Pending) -> Result<Option<Pending>, StoreError> {
        let Some(node) = self.catalog.node(pending.ino).await? else {
            return self.is_free_again(pending.entry).await;
        };
        let size = pending.entry.inode.size;
        if node.inode.kind == Kind::File && node.inode.size == size {
            let Some(theirs) = node.inode.blake3 else {
                return Ok(Some(pending));
            };
            match self.hash_ours(&mut pending).await? {
                Some(ours) if ours == theirs => {
                    return match self.becomes_copy(&pending.entry, &node).await? {
                        true => Ok(None),
                        false => self.is_free_again(pending.entry).await,
                    };
                }
                Some(_) => {}
                // Changed or gone meanwhile: the next scan looks at it anew.
                None => return Ok(None),
            }
        }
        let (_, entry) = self.conflict(pending.entry)?;
        self.adopt(vec![entry]).await?;
        Ok(None)
    }

    async fn hash_ours(&self, pending: &mut Pending) -> Result<Option<Hash>, StoreError> {
        if pending.ours.is_none() {
            let (store, entry) = (Arc::clone(self.store), pending.entry.clone());
            let hashed = tokio::task::spawn_blocking(move || store.hash_entry(&entry));
            pending.ours = hashed.await??;
        }
        Ok(pending.ours)
    }

    /// It was unlinked there: the name may be free.
    async fn is_free_again(&mut self, entry: Entry) -> Result<Option<Pending>, StoreError> {
        self.adopt(vec![entry]).await?;
        Ok(None)
    }

    /// The catalog knows of it before it is marked: a file that is marked goes with its inode, and this one somebody may have moved here from
    /// where that inode's file stood. `false`: the inode is gone.
    async fn becomes_copy(&mut self, entry: &Entry, node: &Node_) -> Result<bool, StoreError> {
        let meta = entry.meta_as(node.ino, &node.inode);
        let holding = Holding {
            version: meta.version,
            bytes: meta.size,
            is_put: true,
        };
        if !self.catalog.add_holding(node.ino, holding).await? {
            return Ok(false);
        }
        if !self.store.mark_put(entry, &meta)? {
            self.catalog.set_holding(node.ino, None).await?;
        }
        Ok(true)
    }
}

/// Goes on deciding after the scan; what is undecided at last is a conflict. Ends with the store or the hasher.
pub(super) fn settle_in_background(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    pending: Vec<Pending>,
) {
    if pending.is_empty() {
        return;
    }
    tracing::info!(
        files = pending.len(),
        "waiting for the hashes of other nodes' files that may be the same as here"
    );
    let (store, catalog) = (Arc::downgrade(store), catalog.clone());
    let hasher = hasher.handle();
    tokio::spawn(async move {
        let deadline = Instant::now() + SETTLE_LONGEST;
        let mut pending = pending;
        while !pending.is_empty() {
            tokio::time::sleep(LOOK_SELDOM).await;
            let (Some(store), Some(hasher)) = (Weak::upgrade(&store), hasher.upgrade()) else {
                return;
            };
            let is_last = Instant::now() >= deadline;
            match settle_tick(&store, &catalog, &hasher, pending.clone(), is_last).await {
                Ok(undecided) => pending = undecided,
                Err(error) => {
                    tracing::warn!(%error, "files cannot be compared with other nodes' now");
                }
            }
        }
    });
}

async fn settle_tick(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    pending: Vec<Pending>,
    is_last: bool,
) -> Result<Vec<Pending>, StoreError> {
    let mut scan = Scan::new(store, catalog, hasher);
    let undecided = scan.settle(pending, LOOK_SELDOM).await?;
    if !is_last {
        return Ok(undecided);
    }
    for pending in undecided {
        let (_, entry) = scan.conflict(pending.entry)?;
        scan.adopt(vec![entry]).await?;
    }
    Ok(Vec::new())
}
