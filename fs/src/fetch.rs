//! Brings missing blocks: which ones, from whom, how many at once.
//!
//! Who takes part: `Fetcher` (all contents of a node that are being fetched), `RemoteFile` (one of them, shared by its readers), `core` (its shell), `plan` and
//! `readahead` (the decisions, pure), `flight` (one fetch in flight per group, however many wait), `backing` (where the bytes go), `surroundings` (peers, catalog and
//! store, or their doubles).
//!
//! Always: every byte handed out was checked against the content's hash by the transport; every wait has a deadline; bytes under way stay within the memory limit; a content that
//! is whole becomes a plain file and this node a holder, except on read-only nodes.
//!
//! Not for: opening files (`filesystem`) or serving peers (`store::source`).
mod absence;
mod backing;
mod blob;
mod budget;
mod core;
mod flight;
mod group_map;
mod holdings;
mod plan;
mod ranges;
mod readahead;
mod scratch;
mod surroundings;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use self::backing::{Backing, OVERFLOW_BYTES, SMALL_BYTES};
use self::budget::{Budget, SmallRoom};
use self::core::{ContentKind, Core, Opening, Shared};
use self::flight::{Claims, lock};
use self::plan::Limits;
use self::scratch::Scratch;
use self::surroundings::{Node, Surroundings, file_locator, store_error};
use crate::{
    catalog::Catalog,
    error::FsError,
    path::TreePath,
    record::*,
    store::{Store, StoreError, apply::Applier, partial::ContentKey},
};
use ks_transport::pool::PeerPool;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak, atomic::AtomicU64};
use tokio::runtime::Handle;

/// Contents open at once; each costs a few file descriptors.
const OPEN_MAX: usize = 16 * 1024;
/// Connections to one peer for one transfer at most.
const LANES_MAX: usize = 4;
/// This part of the memory limit may hold small files that are open.
const SMALL_SHARE: u64 = 16;
/// Bytes of a file that a read-only node keeps while it is open.
const READ_ONLY_BYTES: u64 = 1024 * 1024 * 1024;

/// Counters for `ks status` and tests.
#[derive(Default)]
pub struct FetchCounters {
    /// Bytes of files that came from peers.
    pub bytes_fetched: AtomicU64,
    /// Requests sent to peers.
    pub requests: AtomicU64,
    /// Requests that peers did not answer in full.
    pub failures: AtomicU64,
}

/// Fetches contents from peers into the store.
pub struct Fetcher {
    store: Arc<Store>,
    shared: Shared,
    read_only: bool,
    open: Arc<OpenContents>,
    blobs: Claims<Hash>,
    /// Memory for small files while they are open.
    small: SmallRoom,
}

/// The contents that somebody has open, or that are being closed.
type OpenContents = Mutex<HashMap<ContentKey, OpenContent>>;

struct OpenContent {
    core: Arc<Core>,
    file: Weak<RemoteFile>,
}

/// A content that is (or was) not whole here; shared by all who read it.
pub struct RemoteFile {
    core: Arc<Core>,
    key: ContentKey,
    open: Arc<OpenContents>,
    runtime: Handle,
    keeps: bool,
}

/// Progress of bringing a whole file.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes that are here.
    pub have_bytes: u64,
    /// Bytes of the whole.
    pub size: u64,
}

impl Fetcher {
    /// For one node. Call inside the tokio runtime that its requests shall run on. `memory_limit_bytes` bounds the bytes
    /// under way. A `read_only` node keeps nothing of what it fetches.
    pub fn new(
        store: Arc<Store>,
        catalog: Catalog,
        applier: Arc<Applier>,
        pool: PeerPool,
        memory_limit_bytes: usize,
        read_only: bool,
    ) -> Arc<Self> {
        let node = Node::new(store.clone(), catalog, applier, pool);
        Self::within(Arc::new(node), store, memory_limit_bytes, read_only)
    }

    /// The same, in any surroundings.
    fn within(
        around: Arc<dyn Surroundings>,
        store: Arc<Store>,
        memory_limit_bytes: usize,
        read_only: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            shared: Shared {
                around,
                budget: Budget::new(memory_limit_bytes as u64),
                counters: Arc::default(),
                runtime: Handle::current(),
                limits: Limits {
                    lanes: lanes(),
                    ..Limits::default()
                },
            },
            read_only,
            open: Arc::default(),
            blobs: Claims::default(),
            small: SmallRoom::new(memory_limit_bytes as u64 / SMALL_SHARE),
        })
    }

    /// Shares the `RemoteFile` of a content (one per key while anyone has it open). `holders`: who has all of it, without this node.
    pub fn open(
        self: &Arc<Self>,
        key: ContentKey,
        path: TreePath,
        inode: Arc<Inode>,
        holders: Vec<NodeId>,
    ) -> Result<Arc<RemoteFile>, FsError> {
        debug_assert_eq!(inode.version, key.version);
        if let Some(file) = self.already_open(&key, &holders)? {
            return Ok(file);
        }
        // The disk is not waited for under the lock; who comes second takes what the first made.
        let opening = Opening {
            locator: file_locator(key.ino, &path),
            backing: self.backing(&key, &path)?,
            key: key.clone(),
            path,
            kind: if self.read_only {
                ContentKind::FileNotKept
            } else {
                ContentKind::File
            },
            holders: spread(holders, key.ino),
        };
        let core = Core::new(opening, self.shared.clone());
        let mut open = lock(&self.open);
        let content = open.entry(key.clone()).or_insert_with(|| OpenContent {
            core,
            file: Weak::new(),
        });
        Ok(self.share(content, &key))
    }

    fn already_open(
        &self,
        key: &ContentKey,
        holders: &[NodeId],
    ) -> Result<Option<Arc<RemoteFile>>, FsError> {
        let mut open = lock(&self.open);
        if let Some(content) = open.get_mut(key) {
            let file = self.share(content, key);
            drop(open);
            file.core.know_holders(holders.to_vec());
            return Ok(Some(file));
        }
        if open.len() >= OPEN_MAX {
            return Err(FsError::TooManyOpen(OPEN_MAX));
        }
        Ok(None)
    }

    /// The handle that all share; a new one where the last was dropped and what it had is still being written down.
    fn share(&self, content: &mut OpenContent, key: &ContentKey) -> Arc<RemoteFile> {
        if let Some(file) = content.file.upgrade() {
            return file;
        }
        let file = self.handle(content.core.clone(), key.clone());
        content.file = Arc::downgrade(&file);
        file
    }

    fn handle(&self, core: Arc<Core>, key: ContentKey) -> Arc<RemoteFile> {
        Arc::new(RemoteFile {
            core,
            key,
            open: self.open.clone(),
            runtime: self.shared.runtime.clone(),
            keeps: !self.read_only,
        })
    }

    /// Where the bytes of a content go; a disk that is full keeps nobody from reading.
    fn backing(&self, key: &ContentKey, path: &TreePath) -> Result<Backing, FsError> {
        if key.size <= SMALL_BYTES
            && let Some(room) = self.small.take(key.size)
        {
            return Ok(Backing::small(key.size, Some(room)));
        }
        if self.read_only {
            let directory = self.store.state_dir();
            let scratch = Scratch::unlinked(&directory, key.size, READ_ONLY_BYTES)
                .or_else(|_| Scratch::in_memory(key.size, OVERFLOW_BYTES))?;
            return Ok(Backing::scratch(key.size, scratch));
        }
        match self.store.open_partial(key) {
            Ok(partial) => Ok(Backing::partial(partial)),
            Err(error) if is_disk_full(&error) => {
                tracing::warn!(%path, %error, "no space to keep what is fetched: the file is read without being kept");
                let scratch = Scratch::in_memory(key.size, OVERFLOW_BYTES)?;
                let backing = Backing::scratch(key.size, scratch);
                backing.set_disk_full();
                Ok(backing)
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Brings a payload blob to this node's store (from `holders`, addresses of nodes).
    pub async fn blob(
        &self,
        hash: Hash,
        size: u64,
        holders: &[NodeId],
    ) -> Result<std::path::PathBuf, FsError> {
        blob::fetch(&self.store, &self.shared, &self.blobs, hash, size, holders).await
    }

    /// Counters since the start.
    pub fn counters(&self) -> &FetchCounters {
        &self.shared.counters
    }

    /// Bytes under way now; never more than the memory limit.
    pub fn bytes_under_way(&self) -> u64 {
        self.shared.budget.used_bytes()
    }
}

/// Connections for one long transfer: one connection is bound by one core, but the other end, the disk and the readers need theirs, too.
/// (On two cores that both ends share, a second connection gained nothing.)
fn lanes() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, LANES_MAX)
}

/// Holders in an order that differs from file to file, so that one node is not everybody's first.
fn spread(mut holders: Vec<NodeId>, ino: Ino) -> Vec<NodeId> {
    if !holders.is_empty() {
        let by = (ino % holders.len() as u64) as usize;
        holders.rotate_left(by);
    }
    holders
}

impl RemoteFile {
    /// Reads verified bytes, at most up to the size. Every wait has a deadline: a slow, gone or wrong holder is left for the next; none left: `NoHolder`.
    /// Returns also how many bytes were fetched for this read (for usage), those that were brought ahead of it included.
    pub async fn read(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
    ) -> Result<(bytes::Bytes, u64), FsError> {
        self.core.read(offset, len).await
    }

    /// Brings all of it, several holders and lanes at once; on return it is a plain file here and this node a holder. Dropping the future cancels it; what has come stays.
    pub async fn fetch_whole(
        self: &Arc<Self>,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<(), FsError> {
        if !self.keeps {
            return Err(FsError::ReadOnly(
                "this node keeps no copies (--read-only), so it cannot fetch whole files",
            ));
        }
        let size = self.key.size;
        let progress = |have_bytes| progress(Progress { have_bytes, size });
        self.core.fetch_whole(progress).await
    }

    /// How much of it is here.
    pub fn progress(&self) -> Progress {
        Progress {
            have_bytes: self.core.backing().had_bytes(),
            size: self.key.size,
        }
    }
}

impl Drop for RemoteFile {
    /// The last reader is gone: what is under way ends, what is here is written down.
    fn drop(&mut self) {
        let (core, key, open) = (self.core.clone(), self.key.clone(), self.open.clone());
        self.runtime.spawn(async move {
            if is_open(&open, &key) {
                return;
            }
            core.close();
            core.kept_or_failed().await;
            core.save().await;
            let mut open = lock(&open);
            if open
                .get(&key)
                .is_some_and(|content| content.file.strong_count() == 0)
            {
                open.remove(&key);
                ks_transport::memory::release_at_rest();
            }
        });
    }
}

/// Whether somebody opened it again meanwhile.
fn is_open(open: &OpenContents, key: &ContentKey) -> bool {
    let open = lock(open);
    open.get(key)
        .is_some_and(|content| content.file.strong_count() > 0)
}

fn is_disk_full(error: &StoreError) -> bool {
    match error {
        StoreError::NoSpace { .. } => true,
        StoreError::Io { source, .. } => {
            matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        }
        _ => false,
    }
}
