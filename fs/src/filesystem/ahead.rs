//! Small remote files: their one block is asked for while the catalog is asked what is current, not after it.
//!
//! A guess, by what is remembered: the home most likely still has that version, and whoever opens a small file for reading
//! reads it. The open itself waits for the catalog's answer as always; when that names the same content, it finds it under way (or
//! here), because all who have a content open share its fetch. When it names another one, the guess is dropped.
//!
//! Who goes through a directory file by file finds the next ones under way, or here (`neighbours`).
use super::FileSystem;
use super::neighbours::NAMES_MAX;
use super::opening::Want;
use crate::{
    fetch::RemoteFile,
    path::TreePath,
    record::{Ino, Inode, Kind, NodeId},
    store::{CopyState, partial::ContentKey},
};
use std::sync::Arc;

/// The largest file that is asked for on a guess.
const AHEAD_BYTES_MAX: u64 = 64 * 1024;
/// Files of the directories' neighbours under way at a time; what is more is fetched when it is opened.
pub(super) const FETCHES_MAX: usize = 64;

impl FileSystem {
    /// Begins to fetch what this open will most likely read; keep the result until the open is served. Also what whoever goes through
    /// the directory opens next. Not for watched processes (`pid`), whose reads are told by what each of them fetched.
    pub(super) fn fetch_ahead(
        self: &Arc<Self>,
        ino: Ino,
        want: Want,
        pid: u32,
    ) -> Option<Arc<RemoteFile>> {
        if want.write || self.usage.group_of(pid).is_some() {
            return None;
        }
        let (key, path, inode) = self.small_elsewhere(ino)?;
        self.fetch_neighbours(inode.parent, ino);
        let remote = self.guess(&key, path, inode)?;
        let reading = remote.clone();
        tokio::spawn(read_whole(reading, key));
        Some(remote)
    }

    /// A small file that lives on another node, by what is remembered.
    fn small_elsewhere(&self, ino: Ino) -> Option<(ContentKey, TreePath, Arc<Inode>)> {
        let (node, path) = self.catalog.remembered(ino)?;
        let inode = node.inode;
        let hash = inode.blake3?;
        let is_elsewhere = inode.home != NodeId::NONE && inode.home != self.me();
        let is_small = (1..=AHEAD_BYTES_MAX).contains(&inode.size);
        if inode.kind != Kind::File || !is_elsewhere || !is_small {
            return None;
        }
        let key = ContentKey {
            ino,
            version: inode.version,
            size: inode.size,
            hash,
        };
        Some((key, path, inode))
    }

    /// Its content, where no copy of it is here.
    fn guess(
        &self,
        key: &ContentKey,
        path: TreePath,
        inode: Arc<Inode>,
    ) -> Option<Arc<RemoteFile>> {
        if self.store.copy_state(&path, key.ino, &inode) != CopyState::Absent {
            return None;
        }
        let holders = vec![inode.home];
        let opened = self.fetcher.open(key.clone(), path, inode, holders);
        // What is wrong with it the open itself will say.
        opened.ok()
    }

    /// Asks for what comes next in a directory whose files are opened one after the other, `FETCHES_MAX` at a time; they become
    /// copies here, and go first when space is needed.
    fn fetch_neighbours(self: &Arc<Self>, directory: Ino, ino: Ino) {
        let order = || self.catalog.remembered_order(directory, NAMES_MAX);
        let next = {
            let mut neighbours = self.neighbours.lock().unwrap();
            neighbours.opened(directory, ino, order)
        };
        for ino in next {
            let Ok(turn) = self.fetching_ahead.clone().try_acquire_owned() else {
                return;
            };
            let file_system = self.clone();
            tokio::spawn(async move {
                if let Some((key, path, inode)) = file_system.small_elsewhere(ino)
                    && let Some(remote) = file_system.guess(&key, path, inode)
                {
                    read_whole(remote, key).await;
                }
                drop(turn);
            });
        }
    }
}

async fn read_whole(remote: Arc<RemoteFile>, key: ContentKey) {
    if let Err(error) = remote.read(0, key.size as usize).await {
        tracing::debug!(ino = key.ino, %error, "not fetched ahead");
    }
}
