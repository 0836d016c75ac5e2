//! The file system without a kernel: every operation as an async function, testable without a mount.
use crate::{
    catalog::{AttributeChange, Catalog, Node_},
    error::FsError,
    fetch::Fetcher,
    path::TreePath,
    record::*,
    store::{Store, apply::Applier, hasher::Hasher},
    usage::Usage,
};
use ks_transport::pool::PeerPool;
use std::{fs::File, sync::Arc};

/// An open file's handle number.
pub type Handle = u64;

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// How an opened inode is served. One inode is open in one mode at a time: the kernel refuses passthrough beside cached.
pub enum Opened {
    /// Hand this file to the kernel; reads never come back.
    Passthrough { handle: Handle, file: Arc<File> },
    /// Reads come to us through the page cache. `keep_cache`: the kernel's pages are of this version.
    Cached { handle: Handle, keep_cache: bool },
    /// Reads and writes come to us, uncached (forwarded to the home).
    Direct { handle: Handle },
}

/// What a node is started with (the file system's part).
pub struct FileSystemOptions {
    pub datadir: std::path::PathBuf,
    pub node_name: String,
    pub keep_free_bytes: u64,
    pub memory_limit_bytes: usize,
    pub read_only: bool,
    pub passthrough: bool,
}

/// The whole file system of a node.
pub struct FileSystem {/* store, catalog, fetcher, applier, hasher, usage, handles, pool */}

/// A copy of a file, for `ks where`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Copy_ {
    pub node: String,
    pub alive: bool,
    pub bytes: u64,
    pub version: u64,
    pub current: bool,
    pub home: bool,
}
/// Who holds a file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Where {
    pub path: String,
    pub kind: String,
    pub size: u64,
    pub version: u64,
    pub blake3: Option<String>,
    pub copies: Vec<Copy_>,
}

/// Counters for `ks status`, the bench and tests; all since the start.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub opens: u64,
    pub opens_passthrough: u64,
    pub bytes_fetched: u64,
    pub bytes_sent: u64,
    pub open_handles: u64,
}

impl FileSystem {
    /// Puts the parts together; catches up with events, scans the data directory (returns when the tree is complete).
    pub async fn start(
        options: FileSystemOptions,
        store: Arc<Store>,
        catalog: Catalog,
        pool: PeerPool,
    ) -> Result<Arc<Self>, FsError> {
        todo!()
    }
    /// The peers' side: handlers for the endpoint (BLOCKS, FILES).
    pub fn handlers(
        self: &Arc<Self>,
    ) -> Vec<(
        ks_transport::endpoint::StreamKind,
        Arc<dyn ks_transport::endpoint::Handler>,
    )> {
        todo!()
    }
    pub fn catalog(&self) -> &Catalog {
        todo!()
    }
    pub fn store(&self) -> &Arc<Store> {
        todo!()
    }
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        todo!()
    }
    /// The catalog tells that an inode's record or directory changed elsewhere; `None`: anything may have.
    pub fn changed(&self, ino: Option<Ino>) {
        todo!()
    }
    pub fn usage(&self) -> &Usage {
        todo!()
    }
    pub fn counters(&self) -> Counters {
        todo!()
    }

    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Node_, FsError> {
        todo!()
    }
    /// Live attributes: of a file open for writing here, those of the plain file.
    pub async fn attributes(&self, ino: Ino) -> Result<Node_, FsError> {
        todo!()
    }
    pub async fn list(&self, dir: Ino) -> Result<Arc<crate::catalog::Listing>, FsError> {
        todo!()
    }
    pub async fn open(
        self: &Arc<Self>,
        ino: Ino,
        flags: i32,
        who: Caller,
    ) -> Result<Opened, FsError> {
        todo!()
    }
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
        who: Caller,
    ) -> Result<(Node_, Opened), FsError> {
        todo!()
    }
    pub async fn read(
        &self,
        handle: Handle,
        offset: u64,
        len: usize,
    ) -> Result<bytes::Bytes, FsError> {
        todo!()
    }
    pub async fn write(
        &self,
        handle: Handle,
        offset: u64,
        data: bytes::Bytes,
    ) -> Result<u32, FsError> {
        todo!()
    }
    /// At `close()`: publishes what was written; returns when others can see it.
    pub async fn flush(&self, handle: Handle) -> Result<(), FsError> {
        todo!()
    }
    pub async fn fsync(&self, handle: Handle, data_only: bool) -> Result<(), FsError> {
        todo!()
    }
    pub async fn release(&self, handle: Handle) {
        todo!()
    }
    pub async fn set_attributes(
        &self,
        ino: Ino,
        handle: Option<Handle>,
        size: Option<u64>,
        change: AttributeChange,
    ) -> Result<Node_, FsError> {
        todo!()
    }
    pub async fn make(
        &self,
        parent: Ino,
        name: &[u8],
        kind: Kind,
        mode: u32,
        rdev: u32,
        target: &[u8],
        who: Caller,
    ) -> Result<Node_, FsError> {
        todo!()
    }
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Node_, FsError> {
        todo!()
    }
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        todo!()
    }
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<(), FsError> {
        todo!()
    }
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), FsError> {
        todo!()
    }
    pub async fn statfs(&self) -> (u64, u64) {
        todo!()
    }

    // -- for commands and calls
    pub async fn where_is(&self, path: &TreePath) -> Result<Where, FsError> {
        todo!()
    }
    /// Brings a whole file here; `progress(have, size)`.
    pub async fn fetch_whole(
        self: &Arc<Self>,
        path: &TreePath,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<(), FsError> {
        todo!()
    }
    /// Stops in order: publishes what is open for writing, saves partial maps, tells the catalog.
    pub async fn stop(&self) {
        todo!()
    }
}
