//! What one event means for the plain files here.
//!
//! Files and directories are recognised by the inode in their `user.ks`, so one is moved or removed only when it is the event's. Directories
//! that do not say which they are are recognised by path, which is exact at the event's place in the stream, and by the mark that says up to
//! which event they (and those above them) stand right: one that stands right for this event or a later one was moved or made
//! after it, and is left alone. Symlinks carry nothing; they are made again as the catalog has them now.
use super::super::files::{Standing, is, is_not_that_file};
use super::super::{Store, StoreError, UNKNOWN_DIRECTORY, confine};
use super::names::Names;
use crate::catalog::EventId;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use std::sync::Arc;

/// The data directory and what it is compared with.
pub(super) struct Local<'a> {
    pub(super) store: &'a Arc<Store>,
    pub(super) names: &'a dyn Names,
    pub(super) me: NodeId,
}

impl Local<'_> {
    /// Applies one event; again, it changes nothing that a later one put right.
    pub(super) async fn apply(&self, id: EventId, event: &Event) -> Result<(), StoreError> {
        match event {
            // A file appears here when it is made or fetched here.
            Event::Linked { .. } | Event::Entered { .. } => Ok(()),
            Event::Unlinked {
                ino, path, gone, ..
            } => match TreePath::new(path) {
                Some(path) => self.unlinked(id, &path, *ino, *gone).await,
                None => Ok(()),
            },
            Event::Renamed {
                ino,
                from_path,
                to_path,
                replaced,
                ..
            } => match (TreePath::new(from_path), TreePath::new(to_path)) {
                (Some(from), Some(to)) => self.renamed(id, &from, &to, *ino, *replaced).await,
                _ => Ok(()),
            },
            Event::Exchanged {
                first_ino,
                second_ino,
                first_path,
                second_path,
                ..
            } => match (TreePath::new(first_path), TreePath::new(second_path)) {
                (Some(first), Some(second)) => {
                    let (first, second) = ((&first, *first_ino), (&second, *second_ino));
                    self.exchanged(id, first, second).await
                }
                _ => Ok(()),
            },
            Event::Attributes { ino, path } => match TreePath::new(path) {
                Some(path) => self.attributes(&path, *ino).await,
                None => Ok(()),
            },
            Event::Published {
                ino,
                path,
                version,
                home,
            } => match TreePath::new(path) {
                Some(path) if *home != self.me => self.published(&path, *ino, *version).await,
                _ => Ok(()),
            },
        }
    }

    async fn unlinked(
        &self,
        id: EventId,
        path: &TreePath,
        ino: Ino,
        gone: bool,
    ) -> Result<(), StoreError> {
        let standing = self.look(path)?;
        match standing {
            Standing::File { .. } if standing.meta_of(ino).is_some() => {
                if gone {
                    self.store.remove(path, ino)?;
                } else {
                    self.put_right(id, path, ino).await?;
                }
            }
            Standing::Directory { .. } if !self.may_be(&standing, ino).await? => {}
            Standing::Directory { .. } if self.seen_at(path)? < id => self.remove_empty(path)?,
            Standing::Symlink => self.redo_symlink(path).await?,
            _ => {}
        }
        if gone {
            self.store.discard_partials_before(ino, u64::MAX);
        }
        Ok(())
    }

    async fn renamed(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
        ino: Ino,
        replaced: Option<Ino>,
    ) -> Result<(), StoreError> {
        if let Some(replaced) = replaced {
            self.clear(id, to, replaced).await?;
        }
        if let Standing::Symlink = self.look(from)? {
            self.redo_symlink(from).await?;
            return self.redo_symlink(to).await;
        }
        // Else: not here, or here already, made where it stands now before this event came by.
        if self.is_to_move(id, from, ino).await? {
            self.move_any(id, from, to, ino).await?;
        }
        Ok(())
    }

    async fn exchanged(
        &self,
        id: EventId,
        (first, first_ino): (&TreePath, Ino),
        (second, second_ino): (&TreePath, Ino),
    ) -> Result<(), StoreError> {
        let one = self.is_to_move(id, first, first_ino).await?;
        let other = self.is_to_move(id, second, second_ino).await?;
        if one && other {
            self.exchange(first, second)?;
            self.mark(id, first)?;
            return self.mark(id, second);
        }
        for path in [first, second] {
            if matches!(self.look(path)?, Standing::Symlink) {
                // Out of the way; made again below where it stands now.
                let removed = self.store.root.unlink(path, false);
                removed.map_err(self.store.io(path))?;
            }
        }
        if one {
            self.move_any(id, first, second, first_ino).await?;
        } else if other {
            self.move_any(id, second, first, second_ino).await?;
        }
        self.redo_symlink(first).await?;
        self.redo_symlink(second).await
    }

    /// Whether what stands at `path` is the event's (file of that inode, or directory) and has not been moved by it or later.
    async fn is_to_move(&self, id: EventId, path: &TreePath, ino: Ino) -> Result<bool, StoreError> {
        let standing = self.look(path)?;
        let is_of_event = match standing {
            Standing::File { .. } => standing.meta_of(ino).is_some(),
            Standing::Directory { .. } => self.may_be(&standing, ino).await?,
            _ => false,
        };
        Ok(is_of_event && self.seen_at(path)? < id)
    }

    /// Whether a directory may be inode `ino`: it says so, or nothing that counts (what it says may be of before the tree was rebuilt).
    async fn may_be(&self, standing: &Standing, ino: Ino) -> Result<bool, StoreError> {
        match standing.directory() {
            0 => Ok(true),
            says if says == ino => Ok(true),
            UNKNOWN_DIRECTORY => Ok(false),
            says => Ok(self.names.inode(says).await?.is_none()),
        }
    }

    async fn move_any(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
        ino: Ino,
    ) -> Result<(), StoreError> {
        match self.look(from)? {
            Standing::Directory { .. } => self.move_directory(id, from, to).await,
            _ => self.move_file(id, from, to, ino).await,
        }
    }

    /// What lost the name `path` goes, or to where else it stands.
    async fn clear(&self, id: EventId, path: &TreePath, replaced: Ino) -> Result<(), StoreError> {
        let standing = self.look(path)?;
        match standing {
            Standing::File { .. } if standing.meta_of(replaced).is_some() => {
                self.put_right(id, path, replaced).await
            }
            // Only an empty directory can be replaced.
            Standing::Directory { .. } if !self.may_be(&standing, replaced).await? => Ok(()),
            Standing::Directory { .. } if self.seen_at(path)? < id => self.remove_empty(path),
            // What took its name may not be here.
            Standing::Symlink => self.redo_symlink(path).await,
            _ => Ok(()),
        }
    }

    /// A file of ours that has lost the name it has here: to where the catalog has it now, or gone with its inode.
    pub(super) async fn put_right(
        &self,
        id: EventId,
        path: &TreePath,
        ino: Ino,
    ) -> Result<(), StoreError> {
        match self.names.path_of(ino).await? {
            Some(now) if now == *path => Ok(()),
            Some(now) => self.move_simply(id, path, &now, ino),
            None => {
                self.store.remove(path, ino)?;
                self.store.discard_partials_before(ino, u64::MAX);
                Ok(())
            }
        }
    }

    async fn attributes(&self, path: &TreePath, ino: Ino) -> Result<(), StoreError> {
        if matches!(self.look(path)?, Standing::Nothing | Standing::Other) {
            return Ok(());
        }
        // What stands there is the event's only if the catalog still has it there (files are compared by inode).
        match self.names.at(path).await? {
            Some((there, inode)) if there == ino => self.store.set_attributes(path, ino, &inode),
            _ => Ok(()),
        }
    }

    /// Another node has a newer version: an untouched copy of an older one goes, one that was changed here is kept as a conflict.
    pub(super) async fn published(
        &self,
        path: &TreePath,
        ino: Ino,
        version: u64,
    ) -> Result<(), StoreError> {
        let standing = self.look(path)?;
        if standing
            .meta_of(ino)
            .is_some_and(|meta| meta.version < version)
        {
            if standing.is_dirty() {
                let aside = self.store.set_aside(path)?;
                tracing::warn!(
                    %path, kept_as = %aside,
                    "changed here and on another node: the copy here is kept under another name; the next scan enters it"
                );
            } else {
                self.store.remove(path, ino)?;
            }
            self.names.withdraw(ino).await?;
        }
        self.store.discard_partials_before(ino, version);
        Ok(())
    }

    /// Makes the symlink at `path` as the catalog has it now: there, with its target, or not there.
    pub(super) async fn redo_symlink(&self, path: &TreePath) -> Result<(), StoreError> {
        let wanted = self.names.at(path).await?;
        let wanted = wanted.filter(|(_, inode)| inode.kind == Kind::Symlink);
        match (wanted, self.look(path)?) {
            (Some((_, inode)), Standing::Symlink | Standing::Nothing) => {
                self.store.make_symlink(path, &inode)
            }
            (None, Standing::Symlink) => {
                let removed = self.store.root.unlink(path, false);
                removed.map_err(self.store.io(path))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn look(&self, path: &TreePath) -> Result<Standing, StoreError> {
        self.store.standing(path).map_err(self.store.io(path))
    }

    /// Up to which event what stands at `path` is known to stand right: the latest mark on it and on the directories above it.
    pub(super) fn seen_at(&self, path: &TreePath) -> Result<EventId, StoreError> {
        let mut seen = EventId::default();
        let mut at = path.clone();
        while !at.is_root() {
            let tag = match self.look(&at)? {
                Standing::File { tag, .. } | Standing::Directory { tag, .. } => tag,
                _ => None,
            };
            seen = seen.max(tag.map_or(EventId::default(), |tag| tag.seen()));
            at = confine::split(&at).map_or(TreePath::root(), |(parent, _)| parent);
        }
        Ok(seen)
    }

    /// A directory that holds something the tree does not know stays: the next scan enters it.
    pub(super) fn remove_empty(&self, path: &TreePath) -> Result<(), StoreError> {
        match self.store.root.unlink(path, true) {
            Err(error) if is(&error, Errno::NOTEMPTY) || is(&error, Errno::EXIST) => {
                tracing::info!(%path, "a removed directory holds files that the tree does not know; it stays");
                Ok(())
            }
            Err(error) if is_not_that_file(&error) => Ok(()),
            other => other.map_err(self.store.io(path)),
        }
    }

    /// Renames. `false`: something stands at `to` or in the way to it, or nothing at `from` any more.
    pub(super) fn rename(
        &self,
        from: &TreePath,
        to: &TreePath,
        flags: RenameFlags,
    ) -> Result<bool, StoreError> {
        match self.store.root.stat(from) {
            Err(error) if is_not_that_file(&error) => return Ok(false),
            _ => {}
        }
        let renamed = self
            .store
            .with_parents(to, || self.store.root.rename(from, to, flags));
        match renamed {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::EXIST) || is_not_that_file(&error) => Ok(false),
            Err(error) => Err(self.store.io(from)(error)),
        }
    }
}
