//! A node's data directory: plain files at their own paths, and beside them under `.ks/` what the program needs:
//! `node` (who this is), `lock`, `partial/` (sparse partial files with their block maps), `trees/` (BLAKE3 outboards by hash), `blobs/` (payloads by hash), `redis/`, `events` (how far the event stream has been applied).
pub mod apply;
pub mod hasher;
pub mod meta;
pub mod partial;
pub mod scan;
pub mod source;
pub mod trees;

use crate::{path::TreePath, record::*};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}: in use by another node on this machine (its lock is held)")]
    Locked(PathBuf),
    #[error(
        "{0}: the file system has no user extended attributes, which a data directory needs (ext4, xfs, btrfs and tmpfs have them)"
    )]
    NoXattrs(PathBuf),
    /// The plain file is not the one the catalog means (yet): wait for the events to be applied, then try again.
    #[error("{path}: not the file that was meant")]
    Mismatch { path: PathBuf },
    #[error("no space: {free} bytes free, {keep} are kept free")]
    NoSpace { free: u64, keep: u64 },
}

/// What stands in a plain file's `user.ks` attribute: enough to rebuild its catalog entry.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LocalMeta {
    pub ino: Ino,
    pub version: u64,
    pub epoch: u32,
    pub home: NodeId,
    /// Size and mtime of the file when this was written: when they differ, somebody changed it behind our back.
    pub size: u64,
    pub mtime: Time,
    pub blake3: Option<Hash>,
}

/// What a local copy is worth, compared with the catalog's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Whole, and of the current version.
    Current,
    /// Whole, of an older version.
    Old,
    /// Changed behind our back, or being written.
    Dirty,
    Absent,
}

/// The data directory; share it in an `Arc`.
pub struct Store {/* root, lock, node id, ... */}

/// Space on the data directory's disk, bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

/// How a plain file is opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenLocal {
    pub write: bool,
    pub truncate: bool,
}

impl Store {
    /// Opens (at first makes) it, takes its lock, reads or makes the node's identity. All methods that touch the disk are blocking.
    pub fn open(datadir: &Path, keep_free_bytes: u64) -> Result<Self, StoreError> {
        todo!()
    }
    pub fn node_id(&self) -> NodeId {
        todo!()
    }
    pub fn datadir(&self) -> &Path {
        todo!()
    }
    pub fn state_dir(&self) -> PathBuf {
        todo!()
    }
    pub fn space(&self) -> std::io::Result<Space> {
        todo!()
    }

    // -- whole files
    /// Makes an empty plain file (its directories too), mode, owner and `user.ks` set.
    pub fn create(&self, path: &TreePath, ino: Ino, inode: &Inode) -> Result<File, StoreError> {
        todo!()
    }
    /// Opens the plain file at `path` when it is inode `ino` (by `user.ks`).
    pub fn open_file(
        &self,
        path: &TreePath,
        ino: Ino,
        how: OpenLocal,
    ) -> Result<(File, LocalMeta), StoreError> {
        todo!()
    }
    pub fn copy_state(&self, path: &TreePath, ino: Ino, inode: &Inode) -> CopyState {
        todo!()
    }
    /// Writes `user.ks` of an open file.
    pub fn set_meta(&self, file: &File, meta: &LocalMeta) -> Result<(), StoreError> {
        todo!()
    }
    pub fn make_dir(&self, path: &TreePath, inode: &Inode) -> Result<(), StoreError> {
        todo!()
    }
    pub fn make_symlink(&self, path: &TreePath, inode: &Inode) -> Result<(), StoreError> {
        todo!()
    }
    /// Gives up the local plain file of `ino` if it stands there (caller has made sure it is not the last copy, or it was unlinked).
    pub fn remove(&self, path: &TreePath, ino: Ino) -> Result<(), StoreError> {
        todo!()
    }
    /// Sets mode, owner and times of the local copy as the record says.
    pub fn set_attributes(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
    ) -> Result<(), StoreError> {
        todo!()
    }

    // -- blobs: payloads by hash in the hidden part of the tree
    pub fn put_blob(&self, data: &[&[u8]]) -> Result<(Hash, u64), StoreError> {
        todo!()
    }
    pub fn blob_path(&self, hash: &Hash) -> PathBuf {
        todo!()
    }
    pub fn has_blob(&self, hash: &Hash) -> bool {
        todo!()
    }
}
