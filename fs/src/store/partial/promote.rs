//! A whole partial becomes a plain file.
//!
//! Always: the file has its attributes, its `user.ks` and its tree before it has its name; the name is given by one rename that
//! replaces nothing but an untouched older copy of the same inode (swapped out atomically, looked at, then removed).
use super::super::files::{is, meta_from};
use super::super::meta::{self, Tag};
use super::super::{Store, StoreError, io_at, lock, state};
use super::{ContentKey, GroupMap, Partial, Saved, remove_files, with_suffix};
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How often a name that changes between looking and renaming is looked at again.
const RACES_MAX: usize = 4;

impl Partial {
    /// A whole content in a temporary file that is nobody's partial: the next start removes it, if nothing else does.
    fn small(store: &Store, key: &ContentKey, data: &[u8]) -> Result<Self, StoreError> {
        let path = state::temporary_beside(&store.state_dir().join("partial/small"));
        let file = std::fs::File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))?;
        file.write_all_at(data, 0).map_err(io_at(&path))?;
        let mut map = GroupMap::new(key.size);
        map.mark(0..key.size);
        Ok(Self {
            key: key.clone(),
            data: Arc::new(file),
            tree: store.nothing.clone(),
            nodes: Default::default(),
            path,
            save: Mutex::new(Saved {
                at: Instant::now(),
                had_bytes: key.size,
            }),
            map: Mutex::new(map),
            grown: tokio::sync::Notify::new(),
            is_closed: Mutex::new(true),
        })
    }
}

impl Store {
    /// A whole partial becomes the plain file at `path`: attributes, `user.ks` and tree in place first, then one rename.
    /// Replaces an old copy of the same inode only; any other file there (also one that was changed behind our back): `Mismatch`.
    /// A copy of this version that stands there already stays; the partial is given up then, and that is success.
    pub fn promote(
        &self,
        partial: &Partial,
        path: &TreePath,
        inode: &Inode,
    ) -> Result<(), StoreError> {
        let key = &partial.key;
        if !partial.is_whole() || inode.version != key.version || *lock(&partial.is_closed) {
            return Err(self.mismatch(path));
        }
        self.dress(partial, inode).map_err(io_at(&partial.path))?;
        if ks_transport::blocks::outboard_len(key.size) > 0 {
            self.link_tree(&key.hash, key.size, &with_suffix(&partial.path, ".tree"))?;
        }
        for _ in 0..RACES_MAX {
            if self.give_name(partial, path)? {
                self.forget(partial);
                self.sync_when_due();
                return Ok(());
            }
        }
        Err(self.mismatch(path))
    }

    /// A small whole content becomes the plain file at `path`, as `promote` makes a partial one, without having been a partial
    /// with a map. It has no tree: one group (`outboard_len` 0). `false`: there is a
    /// partial of it, or something at `path`: go the way of `promote`.
    pub fn keep_small(
        &self,
        key: &ContentKey,
        data: &[u8],
        path: &TreePath,
        inode: &Inode,
    ) -> Result<bool, StoreError> {
        let slot = (key.ino, key.version);
        let has_partial = lock(&self.partials).on_disk.contains(&slot);
        if has_partial || ks_transport::blocks::outboard_len(key.size) > 0 {
            return Ok(false);
        }
        if data.len() as u64 != key.size || inode.version != key.version {
            return Err(self.mismatch(path));
        }
        self.ensure_room(key.size)?;
        let whole = Partial::small(self, key, data)?;
        let dressed = self.dress(&whole, inode).map_err(io_at(&whole.path));
        let named = dressed.and_then(|()| {
            match self.rename_partial(&whole, path, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(true),
                Err(error) if is(&error, Errno::EXIST) => Ok(false),
                Err(error) => Err(self.io(path)(error)),
            }
        });
        match named {
            Ok(true) => self.sync_when_due(),
            // It is still ours, and not wanted.
            _ => drop(std::fs::remove_file(&whole.path)),
        }
        named
    }

    /// Attributes and `user.ks` of the partial's file.
    fn dress(&self, partial: &Partial, inode: &Inode) -> io::Result<()> {
        let file: &std::fs::File = &partial.data;
        self.attributes_of(file, inode)?;
        self.times_of(file, inode)?;
        let stat = rustix::fs::fstat(file)?;
        let mut meta = meta_from(partial.key.ino, inode, &stat);
        meta.blake3 = Some(partial.key.hash);
        let tag = Tag {
            stored: Some(state::now_ns()),
            ..self.new_tag(Some(meta))
        };
        meta::write(file, &tag)
    }

    /// `true`: a copy of this version stands at `path`. `false`: what stood there changed, look again.
    fn give_name(&self, partial: &Partial, path: &TreePath) -> Result<bool, StoreError> {
        let key = &partial.key;
        match self.rename_partial(partial, path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(error) if is(&error, Errno::EXIST) => {}
            Err(error) => return Err(self.io(path)(error)),
        }
        let standing = self.standing(path).map_err(self.io(path))?;
        match standing.meta_of(key.ino) {
            Some(old) if !standing.is_dirty() && old.version == key.version => Ok(true),
            Some(old) if !standing.is_dirty() && old.version < key.version => {
                let old_hash = old.blake3;
                match self.rename_partial(partial, path, RenameFlags::EXCHANGE) {
                    Ok(()) => {}
                    Err(error) if is(&error, Errno::NOENT) => return Ok(false),
                    Err(error) => return Err(self.io(path)(error)),
                }
                self.finish_exchange(partial, path, old_hash)
            }
            _ => Err(self.mismatch(path)),
        }
    }

    /// After the exchange the old copy stands at the partial's own path: it goes, unless it turns out to be something else.
    fn finish_exchange(
        &self,
        partial: &Partial,
        path: &TreePath,
        old_hash: Option<Hash>,
    ) -> Result<bool, StoreError> {
        let swapped = std::fs::File::open(&partial.path).map_err(io_at(&partial.path))?;
        let stat = rustix::fs::fstat(&swapped).map_err(|e| io_at(&partial.path)(e.into()))?;
        let meta = self.read_meta(&swapped).map_err(io_at(&partial.path))?;
        let is_old_copy = meta.is_some_and(|meta| {
            meta.ino == partial.key.ino
                && meta.version < partial.key.version
                && meta::is_untouched(&meta, &stat)
        });
        if !is_old_copy {
            self.rename_partial(partial, path, RenameFlags::EXCHANGE)
                .map_err(self.io(path))?;
            return Ok(false);
        }
        if let Some(hash) = old_hash.filter(|hash| *hash != partial.key.hash) {
            self.remove_tree(&hash);
        }
        Ok(true)
    }

    fn rename_partial(
        &self,
        partial: &Partial,
        path: &TreePath,
        flags: RenameFlags,
    ) -> io::Result<()> {
        self.with_parents(path, || {
            let (directory, name) = self.root.parent(path)?;
            let moved = rustix::fs::renameat_with(CWD, &partial.path, &directory, name, flags);
            Ok(moved?)
        })
    }

    /// The partial is one no more: what is left of it under `.ks/partial/` goes.
    fn forget(&self, partial: &Partial) {
        let mut partials = lock(&self.partials);
        partial.close();
        let slot = (partial.key.ino, partial.key.version);
        partials.live.remove(&slot);
        partials.on_disk.remove(&slot);
        remove_files(&partial.path);
    }

    /// Once in a while, asks the disk to write everything out (see `Durability`), in a thread of its own.
    fn sync_when_due(&self) {
        if !self.durability.is_due() {
            return;
        }
        let (Ok(directory), durability) = (
            self.root.descriptor().try_clone_to_owned(),
            Arc::clone(&self.durability),
        ) else {
            return;
        };
        std::thread::spawn(move || {
            use std::os::fd::AsFd;
            if let Err(error) = durability.sync(directory.as_fd()) {
                tracing::warn!(%error, "fetched files could not be synced to the disk");
            }
        });
    }
}
