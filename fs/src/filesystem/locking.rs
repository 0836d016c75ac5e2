//! Locks as programs ask for them, over `crate::locks`. What was written under a lock is a version before the lock is given back.
use super::{FileSystem, Handle, handles::Served};
use crate::{
    error::FsError,
    locks::{self, Kind, Range, Waiter, Want, caller},
    record::Ino,
};
use std::sync::Arc;

/// A lock that is asked for, on an open file.
#[derive(Clone, Copy, Debug)]
pub struct Locking {
    /// The file.
    pub ino: Ino,
    /// The handle it is asked through.
    pub handle: Handle,
    /// What is wanted.
    pub want: Want,
    /// The thread that asks.
    pub thread: u32,
}

impl FileSystem {
    /// Locks, or gives back. `waiter`: waits for it; else EAGAIN where another is in the way.
    pub async fn lock(&self, asked: Locking, waiter: Option<&Waiter>) -> Result<(), FsError> {
        let Locking {
            ino, handle, want, ..
        } = asked;
        let spaces = caller::spaces(asked.thread, &want.range).await;
        if want.kind.is_none() {
            self.publish_before_unlock(handle).await?;
        }
        self.locks.change(ino, handle, &want, spaces, waiter).await
    }

    async fn publish_before_unlock(&self, handle: Handle) -> Result<(), FsError> {
        let open = self.table.handle(handle)?;
        match &open.served {
            Served::Writing(writing) => self.publish(writing).await,
            Served::Forwarded(forwarded) => forwarded.publish().await,
            Served::Own(_) | Served::Shared => Ok(()),
        }
    }

    /// What is in the way of an `fcntl` lock: how, which bytes, and its process (0 where that is on another node).
    pub async fn lock_in_the_way(
        &self,
        asked: Locking,
    ) -> Result<Option<(Kind, Range, u32)>, FsError> {
        let found = self.locks.test(asked.ino, &asked.want).await?;
        Ok(found.map(|lock| {
            let pid = match self.locks.is_mine(&lock) {
                true => lock.pid,
                false => 0,
            };
            (lock.kind, lock.range, pid)
        }))
    }

    /// The asker went before it heard that it has the lock.
    pub async fn lock_unwanted(&self, asked: Locking) {
        let unwanted = Want {
            kind: None,
            ..asked.want
        };
        for space in [locks::Space::File, locks::Space::Process] {
            let given_back = self
                .locks
                .change(asked.ino, asked.handle, &unwanted, &[space], None)
                .await;
            if let Err(error) = given_back {
                tracing::debug!(ino = asked.ino, %error, "an unwanted lock");
            }
        }
    }

    /// A process closed a descriptor of the file; `owner` is the kernel's number for it.
    pub async fn closed_by(&self, ino: Ino, owner: u64) {
        self.locks.closed(ino, owner).await;
    }

    /// This node's locks.
    pub fn locks(&self) -> &Arc<locks::Locks> {
        &self.locks
    }
}
