//! Brings missing blocks: which ones, from whom, how many at once. The decisions are pure (`plan`, `readahead`); one fetch in flight per group, however many wait (`flight`).
pub mod flight;
pub mod plan;
pub mod readahead;

use crate::{
    catalog::Catalog,
    error::FsError,
    path::TreePath,
    record::*,
    store::{Store, partial::ContentKey},
};
use ks_transport::pool::PeerPool;
use std::sync::{Arc, atomic::AtomicU64};

/// Counters for `ks status` and tests.
#[derive(Default)]
pub struct FetchCounters {
    pub bytes_fetched: AtomicU64,
    pub requests: AtomicU64,
    pub failures: AtomicU64,
}

/// Fetches contents from peers into the store.
pub struct Fetcher {/* store, catalog, pool, open contents by key, counters, memory budget */}

/// A content that is (or was) not whole here; shared by all who read it.
pub struct RemoteFile {/* .. */}

/// Progress of bringing a whole file.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub have_bytes: u64,
    pub size: u64,
}

impl Fetcher {
    pub fn new(
        store: Arc<Store>,
        catalog: Catalog,
        pool: PeerPool,
        memory_limit_bytes: usize,
        read_only: bool,
    ) -> Arc<Self> {
        todo!()
    }
    /// Shares the `RemoteFile` of a content (one per key while anyone has it open).
    pub fn open(
        self: &Arc<Self>,
        key: ContentKey,
        path: TreePath,
        inode: Arc<Inode>,
        holders: Vec<NodeId>,
    ) -> Result<Arc<RemoteFile>, FsError> {
        todo!()
    }
    /// Brings a payload blob to this node's store (from `holders`, addresses of nodes).
    pub async fn blob(
        &self,
        hash: Hash,
        size: u64,
        holders: &[NodeId],
    ) -> Result<std::path::PathBuf, FsError> {
        todo!()
    }
    pub fn counters(&self) -> &FetchCounters {
        todo!()
    }
}

impl RemoteFile {
    /// Reads verified bytes, at most up to the size. Every wait has a deadline: a slow, gone or wrong holder is left for the next; none left: `NoHolder`.
    /// Returns also how many bytes were fetched for this read (for usage).
    pub async fn read(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
    ) -> Result<(bytes::Bytes, u64), FsError> {
        todo!()
    }
    /// Brings all of it, several holders and lanes at once; on return it is a plain file here and this node a holder.
    pub async fn fetch_whole(
        self: &Arc<Self>,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<(), FsError> {
        todo!()
    }
    pub fn progress(&self) -> Progress {
        todo!()
    }
}
