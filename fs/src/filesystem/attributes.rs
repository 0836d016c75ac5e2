//! Attributes: as they are now, and changing them (truncation included).
use super::{
    FileSystem, Handle,
    handles::{Served, with_stamp},
    opening::{PRIVILEGE_BITS, Want, without_privileges},
    writing::Writing,
};
use crate::{
    catalog::{AttributeChange, Node_},
    error::FsError,
    record::*,
};
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT};
use std::sync::Arc;

impl FileSystem {
    /// Live attributes: of a file open for writing here those of the plain file, of a forwarded one those at its home.
    pub async fn attributes(&self, ino: Ino) -> Result<Node_, FsError> {
        let open = self.table.live_inode(ino);
        let node = match self.catalog.node(ino).await? {
            Some(node) => node,
            // Unlinked while it is open: what the open handle still shows.
            None => match self.table.inode(ino) {
                Some(inode) => Node_ {
                    nlink: 0,
                    ..inode.node()
                },
                None => return Err(FsError::Stale),
            },
        };
        let Some(open) = open else {
            return Ok(node);
        };
        match (open.writing(), open.forwarded()) {
            (Some(writing), _) => Ok(with_stamp(node, writing.stamp()?)),
            (None, Some(forwarded)) => Ok(with_stamp(node, forwarded.attributes().await?)),
            (None, None) => Ok(node),
        }
    }

    /// Whether an inode's attributes change without anybody telling: those the kernel must not keep.
    pub fn attributes_are_live(&self, ino: Ino) -> bool {
        self.table.live_inode(ino).is_some()
    }

    /// Changes attributes; `size` truncates or extends. A change of the owner clears set-user-id and set-group-id.
    pub async fn set_attributes(
        &self,
        ino: Ino,
        handle: Option<Handle>,
        size: Option<u64>,
        mut change: AttributeChange,
    ) -> Result<Node_, FsError> {
        if let Some(size) = size {
            self.truncate(ino, handle, size).await?;
        }
        if (change.uid.is_some() || change.gid.is_some()) && change.mode.is_none() {
            let inode = self.catalog.node(ino).await?.ok_or(FsError::Stale)?.inode;
            if inode.kind != Kind::Directory && inode.mode & PRIVILEGE_BITS != 0 {
                change.mode = Some(without_privileges(inode.mode));
            }
        }
        if has_change(&change) {
            self.change_attributes(ino, change).await?;
        }
        self.attributes(ino).await
    }

    async fn change_attributes(&self, ino: Ino, change: AttributeChange) -> Result<(), FsError> {
        let open = self.table.live_inode(ino);
        let writing = open.and_then(|inode| inode.writing());
        let before = writing
            .as_ref()
            .map(|writing| writing.stamp())
            .transpose()?;
        let committed = self.catalog.set_attributes(ino, change.clone()).await?;
        self.own(&committed).await;
        if let (Some(writing), Some(before)) = (writing, before) {
            keep_mtime(&writing, change.mtime.unwrap_or(before.mtime))?;
        }
        Ok(())
    }

    async fn truncate(&self, ino: Ino, handle: Option<Handle>, size: u64) -> Result<(), FsError> {
        let through = match handle {
            Some(handle) => Some(self.table.handle(handle)?.served.clone()),
            None => None,
        };
        match through {
            Some(Served::Writing(writing)) => cut(&writing, size),
            Some(Served::Forwarded(forwarded)) => forwarded.truncate(size).await,
            _ => self.truncate_path(ino, size).await,
        }
    }

    /// Truncation without a handle: opened for writing, cut, published, closed.
    async fn truncate_path(&self, ino: Ino, size: u64) -> Result<(), FsError> {
        let want = Want {
            write: true,
            truncate: size == 0,
            ..Want::READ
        };
        let found = self.find(ino, want).await?;
        match self.serve(&found, want).await? {
            Served::Writing(writing) => {
                let mut done = cut(&writing, size);
                if done.is_ok() {
                    done = self.publish(&writing).await;
                }
                self.release_writer(ino, &writing).await;
                done
            }
            Served::Forwarded(forwarded) => {
                forwarded.truncate(size).await?;
                forwarded.publish().await?;
                self.look_again(ino).await
            }
            Served::Own(_) | Served::Shared => Err(FsError::Invalid("not writable")),
        }
    }

    /// After the home published for us: the catalog's cache must not answer with what was before.
    pub(super) async fn look_again(&self, ino: Ino) -> Result<(), FsError> {
        self.catalog.located(ino).await?;
        Ok(())
    }
}

fn has_change(change: &AttributeChange) -> bool {
    let AttributeChange {
        mode,
        uid,
        gid,
        atime,
        mtime,
        ctime,
    } = change;
    mode.is_some()
        || uid.is_some()
        || gid.is_some()
        || atime.is_some()
        || mtime.is_some()
        || ctime.is_some()
}

fn cut(writing: &Arc<Writing>, size: u64) -> Result<(), FsError> {
    writing.file.set_len(size)?;
    writing.touch();
    Ok(())
}

/// The plain file that is being written was given the record's times: its own are right, and what was written is not forgotten.
fn keep_mtime(writing: &Writing, mtime: Time) -> Result<(), FsError> {
    if writing.stamp()?.mtime == mtime {
        return Ok(());
    }
    writing.touch();
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: mtime.div_euclid(1_000_000_000),
            tv_nsec: mtime.rem_euclid(1_000_000_000),
        },
    };
    rustix::fs::futimens(&*writing.file, &times).map_err(std::io::Error::from)?;
    Ok(())
}
