//! Small remote files: their one block is asked for while the catalog is asked what is current, not after it.
//!
//! A guess, by what is remembered: the home most likely still has that version, and whoever opens a small file for reading
//! reads it. The open itself waits for the catalog's answer as always; when that names the same content, it finds it under way (or
//! here), because all who have a content open share its fetch. When it names another one, the guess is dropped.
use super::FileSystem;
use super::opening::Want;
use crate::{
    fetch::RemoteFile,
    record::{Ino, Kind, NodeId},
    store::{CopyState, partial::ContentKey},
};
use std::sync::Arc;

/// The largest file that is asked for on a guess.
const AHEAD_BYTES_MAX: u64 = 64 * 1024;

impl FileSystem {
    /// Begins to fetch what this open will most likely read; keep the result until the open is served. Not for watched
    /// processes (`pid`), whose reads are told by what each of them fetched.
    pub(super) fn fetch_ahead(&self, ino: Ino, want: Want, pid: u32) -> Option<Arc<RemoteFile>> {
        if want.write || self.usage.group_of(pid).is_some() {
            return None;
        }
        let (node, path) = self.catalog.remembered(ino)?;
        let inode = &node.inode;
        let hash = inode.blake3?;
        let is_elsewhere = inode.home != NodeId::NONE && inode.home != self.me();
        let is_small = (1..=AHEAD_BYTES_MAX).contains(&inode.size);
        if inode.kind != Kind::File || !is_elsewhere || !is_small {
            return None;
        }
        if self.store.copy_state(&path, ino, inode) != CopyState::Absent {
            return None;
        }
        let key = ContentKey {
            ino,
            version: inode.version,
            size: inode.size,
            hash,
        };
        let holders = vec![inode.home];
        let opened = self.fetcher.open(key, path, inode.clone(), holders);
        // What is wrong with it the open itself will say.
        let remote = opened.ok()?;
        let (reading, bytes) = (remote.clone(), inode.size as usize);
        tokio::spawn(async move {
            if let Err(error) = reading.read(0, bytes).await {
                tracing::debug!(ino, %error, "not fetched ahead");
            }
        });
        Some(remote)
    }
}
