//! Moving files and directories of the data directory to where the tree has them, when something may stand there already.
//!
//! Always: nothing is overwritten. What is in the way is moved to where the catalog has it; what the catalog does not know is set
//! aside as a conflict; of two copies of the same inode the newer untouched one stays.
use super::super::files::Standing;
use super::super::{StoreError, meta};
use super::local::Local;
use crate::catalog::EventId;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::RenameFlags;

/// Names of a directory that are looked at in one go while two directories are merged.
const NAMES_MAX: usize = 10_000;

/// What is still to be done of a merge, innermost last.
enum Merge {
    Enter(TreePath, TreePath),
    Leave(TreePath, TreePath),
}

impl Local<'_> {
    /// Moves the file of `ino` from `from` to `to`.
    pub(super) async fn move_file(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
        ino: Ino,
    ) -> Result<(), StoreError> {
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            return self.mark(id, to);
        }
        let standing = self.look(to)?;
        match standing.meta().map(|meta| meta.ino) {
            Some(same) if same == ino => return self.keep_better(id, from, to, ino),
            Some(other) => self.give_way(id, to, other).await?,
            None => match standing {
                Standing::Nothing => {}
                Standing::Directory { .. } => {
                    self.remove_empty(to)?;
                    self.set_aside_what_is_left(to)?;
                }
                Standing::Symlink => {
                    self.redo_symlink(to).await?;
                    self.set_aside_what_is_left(to)?;
                }
                Standing::File { .. } | Standing::Other => self.set_aside_what_is_left(to)?,
            },
        }
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            return self.mark(id, to);
        }
        // The name is another's by now: to where the catalog has this one.
        match self.names.path_of(ino).await? {
            Some(now) if now != *to && now != *from => self.move_simply(id, from, &now, ino),
            _ => Ok(()),
        }
    }

    /// Another file of the tree stands at `path`: to its own place, if that is elsewhere.
    async fn give_way(&self, id: EventId, path: &TreePath, ino: Ino) -> Result<(), StoreError> {
        match self.names.path_of(ino).await? {
            Some(now) if now == *path => Ok(()),
            Some(now) => {
                self.move_simply(id, path, &now, ino)?;
                self.set_aside_what_is_left(path)
            }
            None => self.store.remove(path, ino),
        }
    }

    /// Moves a file where nothing stands in the way, or the same inode; else it stays.
    pub(super) fn move_simply(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
        ino: Ino,
    ) -> Result<(), StoreError> {
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            return self.mark(id, to);
        }
        if self.look(to)?.meta_of(ino).is_some() {
            return self.keep_better(id, from, to, ino);
        }
        Ok(())
    }

    /// Two copies of one inode: at `to` stays the newer one, or the one that was changed; the other goes, unless it was changed too.
    fn keep_better(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
        ino: Ino,
    ) -> Result<(), StoreError> {
        let (moving, standing) = (self.look(from)?, self.look(to)?);
        let (Some(ours), Some(theirs)) = (moving.meta_of(ino), standing.meta_of(ino)) else {
            return Ok(());
        };
        match (moving.is_dirty(), standing.is_dirty()) {
            (true, true) => {
                let aside = self.store.set_aside(from)?;
                tracing::warn!(path = %to, kept_as = %aside, "two changed copies of one file: both are kept");
                return Ok(());
            }
            (false, true) => {}
            (true, false) => self.exchange(from, to)?,
            (false, false) if ours.version > theirs.version => self.exchange(from, to)?,
            (false, false) => {}
        }
        self.mark(id, to)?;
        let is_linked = same_file(&moving, &standing);
        if is_linked {
            // Two names of one file: only the name goes, and not its tree.
            let gone = self.store.root.unlink(from, false);
            return gone.map_err(self.store.io(from));
        }
        self.store.remove(from, ino)
    }

    pub(super) fn exchange(&self, first: &TreePath, second: &TreePath) -> Result<(), StoreError> {
        let exchanged = self.store.root.rename(first, second, RenameFlags::EXCHANGE);
        exchanged.map_err(self.store.io(first))
    }

    /// Moves a directory as a whole.
    pub(super) async fn move_directory(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<(), StoreError> {
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            return self.mark(id, to);
        }
        let standing = self.look(to)?;
        match standing.meta().map(|meta| meta.ino) {
            Some(other) => self.give_way(id, to, other).await?,
            None => match standing {
                // Files were fetched to the new place before this event came by.
                Standing::Directory { .. } => return self.merge(id, from, to).await,
                Standing::Symlink => self.redo_symlink(to).await?,
                _ => {}
            },
        }
        self.set_aside_what_is_left(to)?;
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            self.mark(id, to)?;
        }
        Ok(())
    }

    /// Moves what is in `from` into `to`, then removes `from`.
    async fn merge(&self, id: EventId, from: &TreePath, to: &TreePath) -> Result<(), StoreError> {
        let mut steps = vec![Merge::Enter(from.clone(), to.clone())];
        while let Some(step) = steps.pop() {
            let (from, to) = match step {
                Merge::Enter(from, to) => (from, to),
                Merge::Leave(from, to) => {
                    self.mark(id, &to)?;
                    self.remove_empty(&from)?;
                    continue;
                }
            };
            let names = self.names_in(&from)?;
            let is_all = names.len() < NAMES_MAX;
            let mut inner = Vec::new();
            for name in &names {
                let (below, target) = (from.join(name), to.join(name));
                if !self.merge_one(id, &below, &target).await? {
                    inner.push(Merge::Enter(below, target));
                }
            }
            // What is left of a huge directory comes after the directories in it.
            let has_moved = inner.len() < names.len();
            steps.push(if is_all || !has_moved {
                Merge::Leave(from, to)
            } else {
                Merge::Enter(from, to)
            });
            steps.append(&mut inner);
        }
        Ok(())
    }

    /// `false`: both are directories, to be merged in turn.
    async fn merge_one(
        &self,
        id: EventId,
        from: &TreePath,
        to: &TreePath,
    ) -> Result<bool, StoreError> {
        if self.rename(from, to, RenameFlags::NOREPLACE)? {
            return Ok(true);
        }
        let (moving, standing) = (self.look(from)?, self.look(to)?);
        match (&moving, &standing) {
            (Standing::Directory { .. }, Standing::Directory { .. }) => return Ok(false),
            (Standing::Symlink, _) => self.redo_symlink(from).await?,
            _ => match moving.meta() {
                Some(meta) if standing.meta_of(meta.ino).is_some() => {
                    self.keep_better(id, from, to, meta.ino)?;
                }
                Some(meta) => self.put_right(id, from, meta.ino).await?,
                None => {}
            },
        }
        // What is still here is not the tree's, or has no place: kept beside what stands there.
        if !matches!(self.look(from)?, Standing::Nothing) {
            let aside = self.store.set_aside(from)?;
            if let Some(name) = aside.names().last() {
                let beside = super::super::confine::split(to)
                    .map_or(TreePath::root(), |(parent, _)| parent)
                    .join(name);
                self.rename(&aside, &beside, RenameFlags::NOREPLACE)?;
            }
        }
        Ok(true)
    }

    /// Some of the names in a directory, all if there are few.
    fn names_in(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, StoreError> {
        let list = || -> std::io::Result<Vec<Vec<u8>>> {
            let opened = self.store.root.open_directory(path)?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(opened)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." {
                    names.push(name);
                }
                if names.len() == NAMES_MAX {
                    break;
                }
            }
            Ok(names)
        };
        list().map_err(self.store.io(path))
    }

    /// Something that the tree does not know stands in the way.
    fn set_aside_what_is_left(&self, path: &TreePath) -> Result<(), StoreError> {
        let standing = self.look(path)?;
        if standing.meta().is_some() || matches!(standing, Standing::Nothing) {
            return Ok(());
        }
        let aside = self.store.set_aside(path)?;
        tracing::warn!(
            %path, kept_as = %aside,
            "a file that the tree does not know stood where one of the tree belongs: it is kept under another name; the next scan enters it"
        );
        Ok(())
    }

    /// Notes that what stands at `path` stands right up to this event.
    pub(super) fn mark(&self, id: EventId, path: &TreePath) -> Result<(), StoreError> {
        let marked = match self.look(path)? {
            Standing::File {
                file,
                tag: Some(mut tag),
                ..
            } => {
                tag.seen = (id.0, id.1);
                meta::write(&file, &tag)
            }
            Standing::Directory { directory, tag } => {
                let mut tag = tag.unwrap_or_else(|| self.store.new_tag(None));
                tag.seen = (id.0, id.1);
                meta::write(&directory, &tag)
            }
            _ => Ok(()),
        };
        marked.map_err(self.store.io(path))
    }
}

fn same_file(one: &Standing, other: &Standing) -> bool {
    match (one, other) {
        (Standing::File { stat: one, .. }, Standing::File { stat: other, .. }) => {
            (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
        }
        _ => false,
    }
}
