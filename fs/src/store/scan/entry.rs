//! One thing that the walk came by, with all that a decision needs; and writing `user.ks` on it.
use super::super::files::Standing;
use super::super::meta::{self, Tag, atime_ns, ctime_ns, mtime_ns};
use super::super::walk::{Found, Mark};
use super::super::{LocalMeta, Store, StoreError};
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{OFlags, Stat};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// What was found, as it was when it was looked at.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: TreePath,
    /// As it would be entered: version 1, home here.
    pub(super) inode: Inode,
    pub(super) meta: Option<LocalMeta>,
    pub(super) is_untouched: bool,
    /// A copy of another node's file that somebody put here.
    pub(super) is_put: bool,
    /// Of a directory: which inode its mark says it is; 0: it does not say.
    pub(super) directory: Ino,
    /// Of a directory: the daemon made it, on the way to a file.
    pub(super) is_own_make: bool,
    /// Fetched shortly before a crash of the machine: to be checked against its hash.
    pub(super) is_doubtful: bool,
    /// Device and number of the file on its disk.
    pub(super) disk: (u64, u64),
    /// Names that it has there.
    pub(super) links: u64,
}

impl Entry {
    /// Looks at what the walk found; `None`: it is gone again.
    pub(super) fn read(
        store: &Store,
        found: Found,
    ) -> Result<Option<Entry>, (TreePath, io::Error)> {
        let (path, kind, stat, mark) = match found {
            Found::Entry {
                path,
                kind,
                stat,
                mark,
            } => (path, kind, stat, mark),
            Found::Unreadable { path, error } => return Err((path, error)),
        };
        let read = || match kind {
            Kind::File => match mark {
                Mark::Read(tag) if store.is_superuser || is_marked(tag.as_deref()) => {
                    let entry = Self::from_stat(store, &path, kind, &stat);
                    Ok(Some(entry.marked(store, tag.map(|tag| *tag), &stat)))
                }
                _ => Self::read_file(store, &path),
            },
            Kind::Symlink => {
                let target = store.read_link(&path)?;
                let entry = Self::from_stat(store, &path, kind, &stat);
                Ok(Some(entry.with_target(target)))
            }
            _ => Self::read_directory(store, &path, &stat),
        };
        read().map_err(|error| (path.clone(), error))
    }

    fn read_directory(store: &Store, path: &TreePath, stat: &Stat) -> io::Result<Option<Entry>> {
        let mut entry = Self::from_stat(store, path, Kind::Directory, stat);
        if let Ok(directory) = store.root.open_directory(path) {
            let tag = store.read_tag(&directory)?;
            entry.is_own_make = tag.as_ref().is_some_and(|tag| tag.directory == 0);
            entry.directory = tag.map_or(0, |tag| tag.directory);
        }
        Ok(Some(entry))
    }

    fn read_file(store: &Store, path: &TreePath) -> io::Result<Option<Entry>> {
        let Standing::File { file, stat, tag } = store.standing(path)? else {
            return Ok(None);
        };
        let entry = Self::from_stat(store, path, Kind::File, &stat).marked(store, tag, &stat);
        if entry.meta.is_none() {
            store.make_markable(&file, &stat)?;
        }
        Ok(Some(entry))
    }

    /// With what the file's mark says of it.
    fn marked(mut self, store: &Store, tag: Option<Tag>, stat: &Stat) -> Self {
        if let Some(Tag {
            meta: Some(meta),
            stored,
            is_put,
            ..
        }) = tag
        {
            self.is_put = is_put;
            self.is_untouched = meta::is_untouched(&meta, stat);
            self.is_doubtful = store.durability.is_doubtful(stored);
            self.meta = Some(meta);
        }
        self
    }

    fn from_stat(store: &Store, path: &TreePath, kind: Kind, stat: &Stat) -> Entry {
        let size = match kind {
            Kind::Directory => 0,
            _ => stat.st_size as u64,
        };
        let is_empty_file = kind == Kind::File && size == 0;
        let inode = Inode {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: 0,
            nlink: 1,
            size,
            atime: atime_ns(stat),
            mtime: mtime_ns(stat),
            ctime: ctime_ns(stat),
            parent: ROOT,
            name: path.names().last().unwrap_or_default().to_vec(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            version: 1,
            epoch: 1,
            home: match kind {
                Kind::File => store.node_id(),
                _ => NodeId::NONE,
            },
            blake3: is_empty_file.then(|| *blake3::hash(b"").as_bytes()),
            md5: None,
        };
        Entry {
            path: path.clone(),
            inode,
            meta: None,
            is_untouched: true,
            is_put: false,
            directory: 0,
            is_own_make: false,
            is_doubtful: false,
            disk: (stat.st_dev, stat.st_ino),
            links: stat.st_nlink,
        }
    }

    fn with_target(mut self, target: Vec<u8>) -> Self {
        self.inode.target = target;
        self
    }

    /// The meta that says: this file, as it was found, is that version of that inode.
    pub(super) fn meta_as(&self, ino: Ino, record: &Inode) -> LocalMeta {
        LocalMeta {
            ino,
            version: record.version,
            epoch: record.epoch,
            home: record.home,
            size: self.inode.size,
            mtime: self.inode.mtime,
            blake3: record.blake3,
        }
    }
}

/// Whether it says which inode it is.
fn is_marked(tag: Option<&Tag>) -> bool {
    tag.is_some_and(|tag| tag.meta.is_some())
}

impl Store {
    /// As a user who is not root: makes a file of one's own writable for its owner, or its `user.ks` could not be written.
    fn make_markable(&self, file: &File, stat: &Stat) -> io::Result<()> {
        let is_own = stat.st_uid == rustix::process::geteuid().as_raw();
        if self.is_superuser || !is_own || stat.st_mode & 0o600 == 0o600 {
            return Ok(());
        }
        let mode = rustix::fs::Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o600);
        Ok(rustix::fs::fchmod(file, mode)?)
    }

    /// Writes `user.ks` on what was found, if it still stands there. `false`: it does not.
    pub(super) fn mark_entry(&self, entry: &Entry, meta: &LocalMeta) -> Result<bool, StoreError> {
        match self.open_entry(entry)? {
            Some(file) => self.set_meta(&file, meta).map(|()| true),
            None => Ok(false),
        }
    }

    /// As `mark_entry`, on a copy of another node's file that somebody put here.
    pub(super) fn mark_put(&self, entry: &Entry, meta: &LocalMeta) -> Result<bool, StoreError> {
        let Some(file) = self.open_entry(entry)? else {
            return Ok(false);
        };
        let _guard = self.meta_lock(meta.ino);
        let tag = Tag {
            is_put: true,
            ..self.new_tag(Some(meta.clone()))
        };
        meta::write(&file, &tag).map_err(self.io(&entry.path))?;
        Ok(true)
    }

    /// Opens what was found, if it still stands there.
    pub(super) fn open_entry(&self, entry: &Entry) -> Result<Option<File>, StoreError> {
        let opened = self
            .root
            .open_at(&entry.path, OFlags::RDONLY | OFlags::NONBLOCK, 0);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(error) if super::super::files::is_not_that_file(&error) => return Ok(None),
            Err(error) => return Err(self.io(&entry.path)(error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| self.io(&entry.path)(e.into()))?;
        Ok(((stat.st_dev, stat.st_ino) == entry.disk).then_some(file))
    }

    /// The hash of what was found, its tree kept; `None`: it changed, or stands there no more.
    pub(super) fn hash_entry(&self, entry: &Entry) -> Result<Option<Hash>, StoreError> {
        let Some(file) = self.open_entry(entry)? else {
            return Ok(None);
        };
        let is_as_found = || -> Result<bool, StoreError> {
            let stat = rustix::fs::fstat(&file).map_err(|e| self.io(&entry.path)(e.into()))?;
            let found = (entry.inode.size, entry.inode.mtime);
            Ok((stat.st_size as u64, mtime_ns(&stat)) == found)
        };
        if !is_as_found()? {
            return Ok(None);
        }
        let (hash, outboard) = ks_transport::blocks::hash_file(&file, entry.inode.size)
            .map_err(self.io(&entry.path))?;
        if !is_as_found()? {
            return Ok(None);
        }
        self.put_tree(&hash, &outboard)?;
        Ok(Some(hash))
    }
}
