//! The catalog in Redis: names, versions, holders, nodes. One shared truth; every change is one atomic script.
//!
//! Keys (all begin with `ks:`): `ks:meta` (hash: format, cluster, next_ino) · `ks:i:<ino>` (encoded Inode) · `ks:d:<ino>` (hash: name -> encoded Entry;
//! the illegal names `/t` and `/n` keep the directory's change time and its number of subdirectories) · `ks:l:<ino>` (set of parent+name: further hard links) ·
//! `ks:h:<ino>` (hash: NodeId -> encoded Holding) · `ks:nodes` (hash: NodeId -> encoded NodeInfo) · `ks:alive:<node>` (expires with the heart-beat) · `ks:events` (stream of encoded Events).
pub mod cache;
pub mod namespace;
pub mod nodes;
pub mod transaction;

use crate::{
    path::TreePath,
    record::*,
    redis_client::{Redis, RedisError},
};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Damaged(#[from] DamagedRecord),
    /// What POSIX says no to: ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, ...
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Posix(i32),
    /// Changed under us more often than we retry.
    #[error("too much contention on {0}")]
    Contention(String),
}

/// An inode with the attributes the catalog derives.
#[derive(Clone, Debug)]
pub struct Node_ {
    pub ino: Ino,
    pub inode: Arc<Inode>,
    /// Directories: change time of their entries, 2 + subdirectories.
    pub dir_time: Time,
    pub nlink: u32,
}

/// A position in the event stream ("ms-seq" of Redis, comparable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId(pub u64, pub u64);

/// A whole directory.
#[derive(Debug)]
pub struct Listing {
    pub entries: Vec<(Vec<u8>, Node_)>,
}

/// A file's current record and who holds copies of it.
#[derive(Clone, Debug)]
pub struct Located {
    pub node: Node_,
    pub holders: Vec<(NodeId, Holding)>,
}

/// What a committed change says: where it stands in the event stream and what stood before it (so that the
/// caller can tell whether its data directory is up to date), and what it made.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    pub event: EventId,
    pub previous: EventId,
    pub value: T,
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Catalog {/* redis, cache, me, .. */}

/// What changes attributes (setattr, chmod, chown, utimens).
#[derive(Clone, Debug, Default)]
pub struct AttributeChange {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
    pub ctime: Option<Time>,
}

/// A content that became current.
#[derive(Clone, Debug)]
pub struct Publication {
    pub size: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub blake3: Option<Hash>,
}

impl Catalog {
    /// Opens (and at first makes) the tree. `on_change` is told which inodes' records or directories changed elsewhere; `None`: all of them.
    pub async fn open(
        redis_target: crate::redis_client::RedisTarget,
        me: NodeId,
        on_change: Arc<dyn Fn(Option<Ino>) + Send + Sync>,
    ) -> Result<Self, CatalogError> {
        todo!()
    }
    pub fn redis(&self) -> &Redis {
        todo!()
    }
    pub fn me(&self) -> NodeId {
        todo!()
    }

    // -- reads: cached while Redis tracks the keys for us, else one round trip
    pub async fn node(&self, ino: Ino) -> Result<Option<Node_>, CatalogError> {
        todo!()
    }
    /// Always asks Redis: what `open` uses, so that close-to-open holds. One round trip.
    pub async fn located(&self, ino: Ino) -> Result<Option<Located>, CatalogError> {
        todo!()
    }
    /// A name; one round trip unless the whole directory is cached. A negative answer is always asked for afresh.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Node_>, CatalogError> {
        todo!()
    }
    /// A whole directory: one round trip a thousand names.
    pub async fn list(&self, dir: Ino) -> Result<Arc<Listing>, CatalogError> {
        todo!()
    }
    pub async fn resolve(&self, path: &TreePath) -> Result<Option<Node_>, CatalogError> {
        todo!()
    }
    /// The path of an inode's first link; `None` when it has none any more.
    pub async fn path_of(&self, ino: Ino) -> Result<Option<TreePath>, CatalogError> {
        todo!()
    }
    pub async fn locate_path(&self, path: &TreePath) -> Result<Option<Located>, CatalogError> {
        todo!()
    }

    // -- changes: each is one atomic script, with its event
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
    ) -> Result<Committed<Node_>, CatalogError> {
        todo!()
    }
    /// mkdir, symlink and mknod, too, go through `create` (by `inode.kind`).
    pub async fn link(
        &self,
        ino: Ino,
        parent: Ino,
        name: &[u8],
    ) -> Result<Committed<Node_>, CatalogError> {
        todo!()
    }
    /// Removes a name. `Some(ino)`: the inode went with it.
    pub async fn unlink(
        &self,
        parent: Ino,
        name: &[u8],
    ) -> Result<Committed<Option<Ino>>, CatalogError> {
        todo!()
    }
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<Committed<Ino>, CatalogError> {
        todo!()
    }
    /// `flags`: RENAME_NOREPLACE (1), RENAME_EXCHANGE (2). Refuses to move a directory into itself (EINVAL).
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<Committed<()>, CatalogError> {
        todo!()
    }
    pub async fn set_attributes(
        &self,
        ino: Ino,
        change: AttributeChange,
    ) -> Result<Committed<Node_>, CatalogError> {
        todo!()
    }
    pub async fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Result<Committed<()>, CatalogError> {
        todo!()
    }
    /// The home publishes a new version: `version` goes up by one, this node's holding is whole, others are old. Fails (ESTALE) when this node is not the home of `epoch` any more.
    pub async fn publish(
        &self,
        ino: Ino,
        epoch: u32,
        publication: Publication,
    ) -> Result<Committed<Node_>, CatalogError> {
        todo!()
    }
    /// Adds the hash of a version computed later; no-op when the version is not current any more.
    pub async fn set_hash(&self, ino: Ino, version: u64, hash: Hash) -> Result<(), CatalogError> {
        todo!()
    }
    pub async fn set_holding(
        &self,
        ino: Ino,
        holding: Option<Holding>,
    ) -> Result<(), CatalogError> {
        todo!()
    }
    /// Enters files that a scan found, in batches; parents are made as needed. For each: what stands there now.
    pub async fn adopt(&self, found: Vec<(TreePath, Inode)>) -> Result<Vec<Adopted>, CatalogError> {
        todo!()
    }

    // -- events
    /// Events after `after`, waiting up to 10 s for the first; `Err(Trimmed)` in the inner result when the stream no longer reaches back that far.
    pub async fn events(
        &self,
        after: EventId,
        max: usize,
    ) -> Result<Result<Vec<(EventId, NodeId, Event)>, EventsTrimmed>, CatalogError> {
        todo!()
    }
    pub async fn last_event(&self) -> Result<EventId, CatalogError> {
        todo!()
    }
}

/// Where a file found by a scan came to stand.
#[derive(Clone, Debug)]
pub enum Adopted {
    /// Entered as new.
    New(Node_),
    /// The tree has something at that path already (decide by size and hash).
    Occupied(Node_),
}

/// The event stream was trimmed: compare the whole data directory instead.
#[derive(Debug, Clone, Copy)]
pub struct EventsTrimmed;
