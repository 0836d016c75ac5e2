//! Files of this home that other nodes have open: what `crate::peer::server` calls.
use super::{
    FileSystem, Stamp,
    data::{read_local, seek_local},
    handles::{Content, Served},
    opening::Want,
    writing::Writing,
};
use crate::{error::FsError, record::*};
use bytes::Bytes;
use std::{fs::File, sync::Arc};

/// One handle of another node.
pub(crate) struct Remote {
    ino: Ino,
    file: Arc<File>,
    writing: Option<Arc<Writing>>,
}

impl Remote {
    pub(crate) fn stamp(&self) -> Result<Stamp, FsError> {
        Ok(Stamp::of(&self.file)?)
    }

    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Bytes, FsError> {
        read_local(&self.file, offset, len)
    }

    pub(crate) fn seek(&self, offset: u64, whence: i32) -> Result<u64, FsError> {
        seek_local(&self.file, offset, whence)
    }

    fn writing(&self) -> Result<&Arc<Writing>, FsError> {
        let not_for_writing = || FsError::Io(std::io::Error::from_raw_os_error(libc::EBADF));
        self.writing.as_ref().ok_or_else(not_for_writing)
    }
}

impl FileSystem {
    /// Opens a file for another node; only its home does.
    pub(crate) async fn open_for_peer(
        &self,
        ino: Ino,
        write: bool,
        truncate: bool,
    ) -> Result<Remote, FsError> {
        let want = Want {
            write,
            truncate,
            ..Want::READ
        };
        let found = self.find(ino, want).await?;
        if found.located.node.inode.home != self.me() {
            return Err(FsError::Stale);
        }
        match self.serve(&found, want).await? {
            Served::Writing(writing) => Ok(Remote {
                ino,
                file: writing.file.clone(),
                writing: Some(writing),
            }),
            Served::Own(Content::Local(file)) => Ok(Remote {
                ino,
                file,
                writing: None,
            }),
            _ => Err(FsError::Stale),
        }
    }

    /// Writes at `offset` or at the end; returns where.
    pub(crate) async fn write_for_peer(
        &self,
        remote: &Remote,
        offset: Option<u64>,
        data: Bytes,
        clear_privileges: bool,
    ) -> Result<u64, FsError> {
        self.write_here(remote.writing()?, offset, &data).await?;
        if clear_privileges {
            self.clear_privileges(remote.ino).await?;
        }
        match offset {
            Some(offset) => Ok(offset),
            None => Ok(remote.stamp()?.size.saturating_sub(data.len() as u64)),
        }
    }

    pub(crate) async fn allocate_for_peer(
        &self,
        remote: &Remote,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), FsError> {
        self.allocate_here(remote.writing()?, offset, len, mode)
            .await
    }

    pub(crate) async fn truncate_for_peer(
        &self,
        remote: &Remote,
        size: u64,
    ) -> Result<(), FsError> {
        let writing = remote.writing()?;
        writing.file.set_len(size)?;
        writing.touch();
        Ok(())
    }

    /// Makes a version of what was written, and tells this node's own kernel, which did not see the writes.
    pub(crate) async fn publish_for_peer(
        &self,
        remote: &Remote,
        to_disk: bool,
    ) -> Result<(), FsError> {
        let Some(writing) = &remote.writing else {
            return Ok(());
        };
        if to_disk {
            let file = writing.file.clone();
            let synced = tokio::task::spawn_blocking(move || file.sync_all());
            synced.await.map_err(std::io::Error::other)??;
        }
        self.publish(writing).await?;
        self.tell_contents(remote.ino);
        Ok(())
    }

    pub(crate) async fn close_for_peer(&self, remote: Remote) {
        if let Some(writing) = &remote.writing {
            self.release_writer(remote.ino, writing).await;
            self.tell_contents(remote.ino);
        }
    }

    /// The hash of a version that this node holds whole, computed now if need be.
    pub(crate) async fn hash_for_peer(&self, ino: Ino, version: u64) -> Result<Hash, FsError> {
        let found = self.find(ino, Want::READ).await?;
        let inode = &found.located.node.inode;
        if inode.version != version {
            return Err(FsError::Stale);
        }
        match inode.blake3 {
            Some(hash) => Ok(hash),
            None => self.hasher.hash_now(&found.path, ino, version).await,
        }
    }
}
