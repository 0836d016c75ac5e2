//! A node's data directory: plain files at their own paths, and beside them under `.ks/` what the program needs:
//! `node` (who this is), `lock`, `partial/` (sparse partial files with their block maps), `trees/` (BLAKE3 outboards by hash),
//! `blobs/` (payloads by hash), `kept/` (values that are kept and have no room in memory), `pins` (files that are kept), `troubles` (what a person must look at), `scrub` (how far the scrub is), `redis/`, `events` (how far the event stream has been applied), `synced` (what is safely on disk).
//!
//! Who takes part: [`Store`] is the directory itself (files, blobs, trees, partials); [`apply`] follows the catalog's events,
//! [`scan`] finds what is there at start, [`hasher`] hashes, [`source`] serves peers.
//!
//! Always: one process has a data directory at a time (its lock); nothing outside of it is ever opened, whatever symlinks
//! stand in it; no path of the tree reaches `.ks/`; other file systems mounted inside it are not entered. A plain file belongs
//! to the inode that its `user.ks` attribute names, and to none without it: a file without it is never overwritten or removed.
//!
//! Owners and modes: as root, plain files have the owner and mode that the catalog records. As another user chown is not
//! possible (the owner stays in the catalog alone), and files are kept readable and writable for that user, directories also
//! searchable (mode | 0600 and | 0700), because reading them and writing `user.ks` needs it; the recorded mode is the catalog's.
//!
//! All methods of [`Store`] block on the disk.
pub mod apply;
mod blobs;
mod census;
pub(crate) mod check;
mod confine;
mod files;
pub mod hasher;
pub mod kept;
pub mod memory;
pub mod meta;
pub(crate) mod ordered;
pub mod partial;
mod pins;
pub mod scan;
pub mod source;
mod state;
mod sums;
#[cfg(test)]
mod testing;
pub mod trees;
pub mod troubles;
mod walk;
pub mod watch;

use crate::catalog::EventId;
use crate::error::FsError;
use crate::record::*;
use confine::Root;
use meta::Tag;
pub(crate) use meta::UNKNOWN_DIRECTORY;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
pub(crate) use sums::{md5_of, md5_of_file};

/// Why the data directory did not do what was asked. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has this data directory.
    #[error("{0}: in use by another node on this machine (its lock is held)")]
    Locked(PathBuf),
    /// The disk cannot carry what a plain file is in the tree.
    #[error(
        "{0}: the file system has no user extended attributes, which a data directory needs (ext4, xfs, btrfs and tmpfs have them)"
    )]
    NoXattrs(PathBuf),
    /// The plain file is not the one the catalog means (yet): wait for the events to be applied, then try again.
    #[error("{path}: not the file that was meant")]
    Mismatch {
        /// Which file.
        path: PathBuf,
    },
    /// The disk is fuller than it may become.
    #[error("no space: {free} bytes free, {keep} are kept free")]
    NoSpace {
        /// Bytes free now.
        free: u64,
        /// Bytes that stay free (`--keep-free`).
        keep: u64,
    },
    /// The events of others did not arrive in time.
    #[error(
        "{datadir}: the catalog's events up to {event:?} were not applied within {waited_ms} ms"
    )]
    Behind {
        /// Whose events.
        datadir: PathBuf,
        /// Up to which event was waited for.
        event: EventId,
        /// For how long.
        waited_ms: u64,
    },
    /// What an operation on the data directory needed from the catalog did not come.
    #[error("the catalog does not answer: {0}")]
    Catalog(String),
}

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { source, .. } => FsError::Io(source),
            StoreError::Mismatch { .. } => FsError::Stale,
            StoreError::NoSpace { .. } => FsError::NoSpace,
            StoreError::Catalog(text) => FsError::Catalog(text),
            other => FsError::Io(std::io::Error::other(other.to_string())),
        }
    }
}

impl From<crate::catalog::CatalogError> for StoreError {
    fn from(error: crate::catalog::CatalogError) -> Self {
        StoreError::Catalog(error.to_string())
    }
}

/// The size in `user.ks` that says "being written".
pub(crate) const DIRTY_SIZE: u64 = u64::MAX;

/// What stands in a plain file's `user.ks` attribute: enough to rebuild its catalog entry.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LocalMeta {
    /// Which inode of the tree this file is.
    pub ino: Ino,
    /// Of which version its content is.
    pub version: u64,
    /// The home's epoch when this was written.
    pub epoch: u32,
    /// The file's home when this was written.
    pub home: NodeId,
    /// Size of the file when this was written: when it differs, somebody changed it behind our back.
    pub size: u64,
    /// Modification time of the plain file when this was written, as `size`.
    pub mtime: Time,
    /// The content's hash, once it has been computed.
    pub blake3: Option<Hash>,
}

/// What a local copy is worth, compared with the catalog's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Whole, and of the current version.
    Current,
    /// As `Current` by its numbers, and found damaged when no copy was found good (`troubles`): it is not read.
    Damaged,
    /// Whole, of an older version.
    Old,
    /// Changed behind our back, or being written.
    Dirty,
    /// No plain file of that inode stands there.
    Absent,
}

/// Locks for the read-change-write of `user.ks`, by inode.
const META_LOCKS: usize = 64;

/// The data directory; share it in an `Arc`.
pub struct Store {
    datadir: PathBuf,
    root: Root,
    node: NodeId,
    keep_free_bytes: u64,
    /// Whether owners can be set.
    is_superuser: bool,
    cluster: AtomicU64,
    /// How far events are applied: what new tags are stamped with.
    position: Mutex<EventId>,
    node_name: OnceLock<String>,
    meta_locks: [Mutex<()>; META_LOCKS],
    partials: Mutex<partial::Partials>,
    pins: pins::Pins,
    troubles: Mutex<troubles::Book>,
    contents: source::ContentCache,
    durability: Arc<state::Durability>,
    memory: OnceLock<memory::MemoryTier>,
    /// Held while a payload becomes a kept value.
    keeping: Mutex<()>,
    /// A kept value stands elsewhere than before.
    kept_moved: std::sync::atomic::AtomicBool,
    /// An empty file that takes nothing: the tree of contents that have none.
    nothing: Arc<File>,
    /// Held (flock) for as long as the store is open.
    _lock: File,
}

/// Space on the data directory's disk, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// The disk's size.
    pub total: u64,
    /// What an ordinary user may still write.
    pub free: u64,
}

/// How a plain file is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenLocal {
    /// For writing too.
    pub write: bool,
    /// Emptied at once.
    pub truncate: bool,
}

impl Store {
    /// Opens (at first makes) it, takes its lock, reads or makes the node's identity. All methods that touch the disk are blocking.
    /// `keep_free_bytes` of the disk are never used by fetched data.
    pub fn open(datadir: &Path, keep_free_bytes: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(datadir).map_err(io_at(datadir))?;
        let datadir = &std::fs::canonicalize(datadir).map_err(io_at(datadir))?;
        let root = Root::open(datadir).map_err(io_at(datadir))?;
        let state_dir = datadir.join(crate::path::STATE_DIR);
        state::make_private_directory(&state_dir)?;
        let lock = state::take_lock(datadir, &state_dir)?;
        state::check_xattrs(datadir, &state_dir)?;
        for name in ["partial", "trees", "blobs", "kept"] {
            state::make_private_directory(&state_dir.join(name))?;
        }
        let partials = partial::Partials::open(&state_dir.join("partial"))?;
        let node = state::node_identity(&state_dir)?;
        let durability = Arc::new(state::Durability::open(&state_dir)?);
        let null = Path::new("/dev/null");
        let nothing = File::options().read(true).write(true).open(null);
        Ok(Self {
            root,
            node,
            keep_free_bytes,
            is_superuser: rustix::process::geteuid().is_root(),
            cluster: AtomicU64::new(0),
            position: Mutex::new(EventId::default()),
            node_name: OnceLock::new(),
            meta_locks: std::array::from_fn(|_| Mutex::new(())),
            partials: Mutex::new(partials),
            pins: pins::Pins::open(&state_dir),
            troubles: Mutex::new(troubles::Book::open(&state_dir)),
            contents: source::ContentCache::default(),
            durability,
            memory: OnceLock::new(),
            keeping: Mutex::default(),
            kept_moved: std::sync::atomic::AtomicBool::new(false),
            nothing: Arc::new(nothing.map_err(io_at(null))?),
            _lock: lock,
            datadir: datadir.clone(),
        })
    }

    /// Whether no daemon has that data directory. Error: `Locked`.
    pub fn ensure_free(datadir: &Path) -> Result<(), StoreError> {
        let state_dir = datadir.join(crate::path::STATE_DIR);
        match state_dir.join("lock").exists() {
            true => state::take_lock(datadir, &state_dir).map(drop),
            false => Ok(()),
        }
    }

    /// Who this node is: made at the first start on this data directory.
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// The data directory's absolute path.
    pub fn datadir(&self) -> &Path {
        &self.datadir
    }

    /// `.ks/` in the data directory.
    pub fn state_dir(&self) -> PathBuf {
        self.datadir.join(crate::path::STATE_DIR)
    }

    /// Space on the data directory's disk.
    pub fn space(&self) -> std::io::Result<Space> {
        let found = rustix::fs::fstatvfs(self.root.descriptor())?;
        Ok(Space {
            total: found.f_blocks * found.f_frsize,
            free: found.f_bavail * found.f_frsize,
        })
    }

    /// Whether owners can be set: the daemon runs as root.
    pub(crate) fn sets_owners(&self) -> bool {
        self.is_superuser
    }

    /// Whether the data directory stands where it stood: not moved away, nor being removed as a whole.
    pub(crate) fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(self.state_dir().join("node")).is_ok()
    }

    /// `NoSpace` when `bytes` more of fetched data would use what is to stay free. One system call: cheap enough to ask before each window.
    pub fn ensure_room(&self, bytes: u64) -> Result<(), StoreError> {
        let space = self.space().map_err(io_at(&self.datadir))?;
        if space.free < self.keep_free_bytes.saturating_add(bytes) {
            return Err(StoreError::NoSpace {
                free: space.free,
                keep: self.keep_free_bytes,
            });
        }
        Ok(())
    }

    /// Says which catalog the inode numbers belong to; files that carry another's count as unknown. The applier does it at its start.
    pub fn set_cluster(&self, cluster: u64) {
        self.cluster.store(cluster, Ordering::Release);
    }

    /// This node's name, as conflict names end with it; the first one stays.
    pub fn set_node_name(&self, name: &str) {
        let _ = self.node_name.set(name.to_owned());
    }

    /// Saves what is only in memory: the maps of the partials in use, and that all is on disk. For the end, in order.
    pub fn stop(&self) -> Result<(), StoreError> {
        for partial in self.live_partials() {
            partial.save()?;
        }
        self.durability.sync(self.root.descriptor())
    }

    fn position(&self) -> EventId {
        *lock(&self.position)
    }

    fn stamp_position(&self, position: EventId) {
        *lock(&self.position) = position;
    }

    /// The attribute of an open file, if it is of the catalog in use.
    fn read_tag(&self, file: impl AsFd) -> std::io::Result<Option<Tag>> {
        let tag = meta::read(file)?;
        Ok(tag.filter(|tag| self.is_own_tag(tag)))
    }

    /// Whether it was written by this node, and for the catalog in use.
    fn is_own_tag(&self, tag: &Tag) -> bool {
        let is_signed_here = tag.node == self.node || tag.node == NodeId::NONE;
        is_signed_here && tag.cluster == self.cluster.load(Ordering::Acquire)
    }

    /// The attribute that was read of the file with this status, if it is its own and of the catalog in use.
    fn own_tag(&self, bytes: &[u8], stat: &rustix::fs::Stat) -> Option<Tag> {
        meta::decode(bytes).filter(|tag| tag.disk_ino == stat.st_ino && self.is_own_tag(tag))
    }

    fn read_meta(&self, file: impl AsFd) -> std::io::Result<Option<LocalMeta>> {
        Ok(self.read_tag(file)?.and_then(|tag| tag.meta))
    }

    /// A tag that says: stands right as of now.
    fn new_tag(&self, meta: Option<LocalMeta>) -> Tag {
        let EventId(ms, sequence) = self.position();
        Tag {
            cluster: self.cluster.load(Ordering::Acquire),
            disk_ino: 0,
            node: self.node,
            seen: (ms, sequence),
            stored: None,
            is_put: false,
            directory: 0,
            meta,
        }
    }

    fn meta_lock(&self, ino: Ino) -> MutexGuard<'_, ()> {
        lock(&self.meta_locks[(ino % META_LOCKS as u64) as usize])
    }
}

/// Everything below a directory of the data directory, each directory watched before it is listed.
pub(crate) fn walk_found(
    store: &Arc<Store>,
    start: crate::path::TreePath,
    watches: &Arc<watch::Watches>,
) -> impl Iterator<Item = crate::path::TreePath> {
    let walker = walk::Walker::watched(Arc::clone(store), start, watches);
    walker.filter_map(|found| match found {
        walk::Found::Entry { path, .. } => Some(path),
        walk::Found::Unreadable { .. } => None,
    })
}

/// Names the file that an operation failed on.
fn io_at(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
    move |source| StoreError::Io {
        path: path.to_owned(),
        source,
    }
}

/// What these locks guard is whole after a panic elsewhere: every change of it is one assignment or one insertion.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
