//! Plain files, directories and symlinks at their tree paths.
//!
//! Always: a file is acted upon only when its `user.ks` names the inode that was meant. Not for where names move to:
//! that is `apply`'s.
use super::meta::{self, Tag};
use super::{CopyState, DIRTY_SIZE, LocalMeta, OpenLocal, Store, StoreError, confine, io_at};
use crate::path::{TreePath, conflict_name};
use crate::record::*;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// How often an open is tried again that meets a lease, and the pause before each.
const LEASE_TRIES: u32 = 100;
const LEASE_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// How many names `NAME.conflict-NODE`, `NAME.conflict-NODE-2`, ... are tried.
const CONFLICT_NAMES_MAX: usize = 1_000;

/// What stands at a path of the data directory.
#[derive(Debug)]
pub(super) enum Standing {
    Nothing,
    File {
        file: File,
        stat: Stat,
        tag: Option<Tag>,
    },
    Directory {
        directory: OwnedFd,
        tag: Option<Tag>,
    },
    Symlink,
    /// A socket, a pipe or a device: nothing that the store keeps.
    Other,
}

impl Standing {
    /// The file's meta, when it is inode `ino`.
    pub(super) fn meta_of(&self, ino: Ino) -> Option<&LocalMeta> {
        self.meta().filter(|meta| meta.ino == ino)
    }

    /// Which inode a directory says it is; 0: it does not say, or is none.
    pub(super) fn directory(&self) -> Ino {
        match self {
            Standing::Directory { tag: Some(tag), .. } => tag.directory,
            _ => 0,
        }
    }

    pub(super) fn meta(&self) -> Option<&LocalMeta> {
        match self {
            Standing::File { tag, .. } => tag.as_ref()?.meta.as_ref(),
            _ => None,
        }
    }

    /// Whether it is a file that somebody changed since its meta was written (or one without meta).
    pub(super) fn is_dirty(&self) -> bool {
        match (self, self.meta()) {
            (Standing::File { stat, .. }, Some(meta)) => !meta::is_untouched(meta, stat),
            (Standing::File { .. }, None) => true,
            _ => false,
        }
    }
}

impl Store {
    /// Makes an empty plain file (its directories too), mode, owner and `user.ks` set. A file of the same inode that stands
    /// there already is emptied; anything else there: `Mismatch`.
    pub fn create(&self, path: &TreePath, ino: Ino, inode: &Inode) -> Result<File, StoreError> {
        self.create_with(path, ino, inode, false)
    }

    /// As `create`, for a file that is written from now on: its `user.ks` says so.
    pub fn create_for_writing(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
    ) -> Result<File, StoreError> {
        self.create_with(path, ino, inode, true)
    }

    fn create_with(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
        is_written: bool,
    ) -> Result<File, StoreError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let mode = inode.mode & 0o777;
        let made = self.with_parents(path, || self.root.open_at(path, flags, mode));
        let (file, is_new) = match made {
            Ok(descriptor) => (File::from(descriptor), true),
            Err(error) if is(&error, Errno::EXIST) => {
                let emptied = OpenLocal {
                    write: true,
                    truncate: true,
                };
                (self.open_file(path, ino, emptied)?.0, false)
            }
            Err(error) => return Err(self.io(path)(error)),
        };
        match self.name_as(&file, ino, inode, is_written, is_new) {
            Ok(()) => Ok(file),
            Err(error) => {
                // A file that does not say what it is would be in the way of every later one of that name.
                if is_new && let Err(left) = self.root.unlink(path, false) {
                    tracing::warn!(%path, error = %left, "a file that could not be made whole is left behind");
                }
                Err(self.io(path)(error))
            }
        }
    }

    /// The attributes of a file that was made or emptied, and the `user.ks` that says which it is.
    fn name_as(
        &self,
        file: &File,
        ino: Ino,
        inode: &Inode,
        is_written: bool,
        is_new: bool,
    ) -> io::Result<()> {
        self.attributes_of(file, inode)?;
        self.times_of(file, inode)?;
        let stat = rustix::fs::fstat(file)?;
        let mut meta = meta_from(ino, inode, &stat);
        if is_written {
            meta.size = DIRTY_SIZE;
        }
        if is_new {
            return meta::write_on(file, stat.st_ino, self.new_tag(Some(meta)));
        }
        let _guard = self.meta_lock(ino);
        self.write_meta(file, &meta)
    }

    /// Opens the plain file at `path` when it is inode `ino` (by `user.ks`).
    pub fn open_file(
        &self,
        path: &TreePath,
        ino: Ino,
        how: OpenLocal,
    ) -> Result<(File, LocalMeta), StoreError> {
        let flags = if how.write {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let mut opened = self.root.open_at(path, flags | OFlags::NONBLOCK, 0);
        // Another thread holds a lease for a moment, to see whether somebody writes to the file (`filesystem/mapped.rs`).
        for _ in 0..LEASE_TRIES {
            if !matches!(&opened, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
            std::thread::sleep(LEASE_PAUSE);
            opened = self.root.open_at(path, flags | OFlags::NONBLOCK, 0);
        }
        let file = match opened {
            Ok(descriptor) => File::from(descriptor),
            Err(error) if is_not_that_file(&error) => return Err(self.mismatch(path)),
            Err(error) => return Err(self.io(path)(error)),
        };
        let meta = self.read_meta(&file).map_err(self.io(path))?;
        let meta = meta
            .filter(|meta| meta.ino == ino)
            .ok_or_else(|| self.mismatch(path))?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty())
            .map_err(|error| self.io(path)(error.into()))?;
        if how.truncate {
            file.set_len(0).map_err(self.io(path))?;
        }
        Ok((file, meta))
    }

    /// What the plain file at `path` is worth, compared with the catalog's record of inode `ino`.
    pub fn copy_state(&self, path: &TreePath, ino: Ino, inode: &Inode) -> CopyState {
        self.copy_and_file(path, ino, inode).0
    }

    /// As `copy_state`, and the file that was looked at, open for reading, where it is that inode's.
    pub fn copy_and_file(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
    ) -> (CopyState, Option<File>) {
        let Ok(standing) = self.standing(path) else {
            return (CopyState::Absent, None);
        };
        let state = match standing.meta_of(ino) {
            None => return (CopyState::Absent, None),
            Some(_) if standing.is_dirty() => CopyState::Dirty,
            Some(meta) if meta.version < inode.version => CopyState::Old,
            Some(meta) if meta.version == inode.version && meta.size == inode.size => {
                match self.is_damaged(path, inode.version) {
                    true => CopyState::Damaged,
                    false => CopyState::Current,
                }
            }
            Some(_) => CopyState::Dirty,
        };
        let Standing::File { file, .. } = standing else {
            return (state, None);
        };
        // It was opened so that a pipe in its place would not be waited for.
        let plain = rustix::fs::fcntl_setfl(&file, OFlags::empty());
        (state, plain.is_ok().then_some(file))
    }

    /// Writes `user.ks` of an open file.
    pub fn set_meta(&self, file: &File, meta: &LocalMeta) -> Result<(), StoreError> {
        let _guard = self.meta_lock(meta.ino);
        self.write_meta(file, meta).map_err(io_at(&self.datadir))
    }

    /// Adds the hash of its content to `user.ks`, if the file is still that version. `false`: it is not.
    pub(super) fn add_hash_to_meta(
        &self,
        file: &File,
        ino: Ino,
        version: u64,
        hash: Hash,
    ) -> io::Result<bool> {
        let _guard = self.meta_lock(ino);
        let stat = rustix::fs::fstat(file)?;
        match self.read_meta(file)? {
            Some(mut meta)
                if meta.ino == ino
                    && meta.version == version
                    && meta::is_untouched(&meta, &stat) =>
            {
                meta.blake3 = Some(hash);
                self.write_meta(file, &meta)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn write_meta(&self, file: &File, meta: &LocalMeta) -> io::Result<()> {
        let mut tag = self.new_tag(Some(meta.clone()));
        if let Some(old) = self.read_tag(file)? {
            tag.seen = tag.seen.max(old.seen);
            let old_meta = old.meta.as_ref();
            let is_same = old_meta.is_some_and(|old| old.version == meta.version);
            tag.is_put = old.is_put && old_meta.is_some_and(|old| old.ino == meta.ino);
            tag.stored = old.stored.filter(|_| is_same);
        }
        meta::write(file, &tag)
    }

    /// Makes a directory (those above it too), or gives the one that stands there the record's attributes.
    pub fn make_dir(&self, path: &TreePath, ino: Ino, inode: &Inode) -> Result<(), StoreError> {
        let made = self.with_parents(path, || {
            let (parent, name) = self.root.parent(path)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                Ok(()) => self.stamp_directory(&self.root.open_directory(path)?, ino),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(())
        });
        made.map_err(self.io(path))?;
        match self.root.open_directory(path) {
            Ok(directory) => self.attributes_of(&directory, inode).map_err(self.io(path)),
            Err(error) if is_not_that_file(&error) => Err(self.mismatch(path)),
            Err(error) => Err(self.io(path)(error)),
        }
    }

    /// Makes a symlink as the record says. Another one that stands there is replaced (the catalog's targets never change, so
    /// it is a left-over); anything else there: `Mismatch`.
    pub fn make_symlink(&self, path: &TreePath, inode: &Inode) -> Result<(), StoreError> {
        if let Standing::Symlink = self.standing(path).map_err(self.io(path))? {
            if self.read_link(path).map_err(self.io(path))? == inode.target {
                return Ok(());
            }
            self.root.unlink(path, false).map_err(self.io(path))?;
        }
        let made = self.with_parents(path, || {
            let (parent, name) = self.root.parent(path)?;
            Ok(rustix::fs::symlinkat(&inode.target[..], &parent, name)?)
        });
        match made {
            Ok(()) => self.set_attributes(path, 0, inode),
            Err(error) if is(&error, Errno::EXIST) => Err(self.mismatch(path)),
            Err(error) => Err(self.io(path)(error)),
        }
    }

    /// A symlink's target.
    pub(super) fn read_link(&self, path: &TreePath) -> io::Result<Vec<u8>> {
        let (parent, name) = self.root.parent(path)?;
        Ok(rustix::fs::readlinkat(&parent, name, Vec::new())?.into_bytes())
    }

    /// Gives up the local plain file of `ino` if it stands there (caller has made sure it is not the last copy, or it was unlinked).
    /// A file that is not that inode stays, and that is no error.
    pub fn remove(&self, path: &TreePath, ino: Ino) -> Result<(), StoreError> {
        let standing = self.standing(path).map_err(self.io(path))?;
        let Some(meta) = standing.meta_of(ino) else {
            return Ok(());
        };
        // Another file may have been put there since it was looked at.
        if self.is_still(path, &standing) {
            self.root.unlink(path, false).map_err(self.io(path))?;
            self.contents.forget(ino);
            if let Some(hash) = meta.blake3 {
                self.remove_tree(&hash);
            }
        }
        Ok(())
    }

    /// Sets mode, owner and times of the local copy as the record says (of a directory or a symlink too; `ino` is compared for files).
    /// What is not here, or is another file, stays as it is: no error.
    pub fn set_attributes(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
    ) -> Result<(), StoreError> {
        let set = match self.standing(path).map_err(self.io(path))? {
            Standing::File { file, .. } if inode.kind == Kind::File => {
                self.set_file_attributes(&file, ino, inode)
            }
            Standing::Directory { directory, .. } if inode.kind == Kind::Directory => self
                .attributes_of(&directory, inode)
                .and_then(|()| self.times_of(&directory, inode)),
            Standing::Symlink if inode.kind == Kind::Symlink => {
                self.set_symlink_attributes(path, inode)
            }
            _ => Ok(()),
        };
        set.map_err(self.io(path))
    }

    fn set_file_attributes(&self, file: &File, ino: Ino, inode: &Inode) -> io::Result<()> {
        let _guard = self.meta_lock(ino);
        let Some(mut meta) = self.read_meta(file)?.filter(|meta| meta.ino == ino) else {
            return Ok(());
        };
        self.attributes_of(file, inode)?;
        let stat = rustix::fs::fstat(file)?;
        // The time of a file that is being written is the writer's; published with what it wrote.
        if meta::is_untouched(&meta, &stat) {
            self.times_of(file, inode)?;
            meta.mtime = meta::mtime_ns(&rustix::fs::fstat(file)?);
            self.write_meta(file, &meta)?;
        }
        Ok(())
    }

    fn set_symlink_attributes(&self, path: &TreePath, inode: &Inode) -> io::Result<()> {
        let (parent, name) = self.root.parent(path)?;
        if self.is_superuser {
            let (uid, gid) = owner_of(inode);
            let owned = rustix::fs::chownat(
                &parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            );
            tolerate_not_permitted(owned)?;
        }
        let times = timestamps(inode);
        Ok(rustix::fs::utimensat(
            &parent,
            name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Owner and mode of an open file or directory.
    pub(super) fn attributes_of(&self, file: &impl AsFd, inode: &Inode) -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        if self.is_superuser && (stat.st_uid, stat.st_gid) != (inode.uid, inode.gid) {
            let (uid, gid) = owner_of(inode);
            tolerate_not_permitted(rustix::fs::fchown(file, Some(uid), Some(gid)))?;
        }
        let wanted = match (self.is_superuser, inode.kind) {
            (true, _) => inode.mode & 0o7777,
            (false, Kind::Directory) => inode.mode & 0o7777 | 0o700,
            (false, _) => inode.mode & 0o7777 | 0o600,
        };
        if stat.st_mode & 0o7777 != wanted {
            tolerate_not_permitted(rustix::fs::fchmod(file, Mode::from_raw_mode(wanted)))?;
        }
        Ok(())
    }

    /// Times of an open file or directory.
    pub(super) fn times_of(&self, file: &impl AsFd, inode: &Inode) -> io::Result<()> {
        tolerate_not_permitted(rustix::fs::futimens(file, &timestamps(inode)))
    }

    /// What stands at `path`. What is below something that is no directory is `Nothing`.
    pub(super) fn standing(&self, path: &TreePath) -> io::Result<Standing> {
        let stat = match self.root.stat(path) {
            Ok(stat) => stat,
            Err(error) if is_not_that_file(&error) => return Ok(Standing::Nothing),
            Err(error) => return Err(error),
        };
        let opened = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => return Ok(Standing::Symlink),
            FileType::RegularFile => self
                .root
                .open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, 0)
                .and_then(|file| self.standing_file(File::from(file))),
            FileType::Directory => self.root.open_directory(path).and_then(|directory| {
                let tag = self.read_tag(&directory)?;
                Ok(Standing::Directory { directory, tag })
            }),
            _ => return Ok(Standing::Other),
        };
        match opened {
            Err(error) if is_not_that_file(&error) => Ok(Standing::Nothing),
            other => other,
        }
    }

    fn standing_file(&self, file: File) -> io::Result<Standing> {
        let tag = self.read_tag(&file)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok(Standing::File { file, stat, tag })
    }

    /// Whether the file that was looked at is the one that stands there now.
    pub(super) fn is_still(&self, path: &TreePath, standing: &Standing) -> bool {
        match (standing, self.root.stat(path)) {
            (Standing::File { stat, .. }, Ok(now)) => {
                (stat.st_dev, stat.st_ino) == (now.st_dev, now.st_ino)
            }
            _ => false,
        }
    }

    /// Moves what stands at `path` to `NAME.conflict-NODE` beside it and takes it out of the tree (a file loses its `user.ks`):
    /// the next scan enters it under that name. Returns the new path.
    pub(super) fn set_aside(&self, path: &TreePath) -> Result<TreePath, StoreError> {
        let (parent, name) =
            confine::split(path).ok_or_else(|| self.io(path)(Errno::INVAL.into()))?;
        let node = match self.node_name.get() {
            Some(name) => name.clone(),
            None => self.node.to_string(),
        };
        for attempt in 1..=CONFLICT_NAMES_MAX {
            let aside = parent.join(&conflict_name(name, &node, attempt));
            match self.root.rename(path, &aside, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    if let Standing::File { file, .. } =
                        self.standing(&aside).map_err(self.io(&aside))?
                    {
                        meta::clear(&file).map_err(self.io(&aside))?;
                    }
                    self.note_conflict(&aside);
                    return Ok(aside);
                }
                Err(error) if is(&error, Errno::EXIST) => continue,
                Err(error) => return Err(self.io(path)(error)),
            }
        }
        Err(self.io(path)(Errno::EXIST.into()))
    }

    /// Does `act`; where directories above `path` are missing, makes them and does it again.
    pub(super) fn with_parents<T>(
        &self,
        path: &TreePath,
        act: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        match act() {
            Err(error) if is(&error, Errno::NOENT) => {
                self.root
                    .make_parents(path, |made| self.stamp_directory(made, 0))?;
                act()
            }
            other => other,
        }
    }

    /// Notes on a new directory which inode it is (0: not known here), and up to which event it stands right. Failing costs only that
    /// replayed events may take it for an older one, and that it is not known again where it is moved.
    fn stamp_directory(&self, directory: &OwnedFd, ino: Ino) {
        let tag = Tag {
            directory: ino,
            ..self.new_tag(None)
        };
        let _ = meta::write(directory, &tag);
    }

    /// Notes on the directory at `path` which inode it is, if it is the one that has this number on its disk (`None`: whichever). One that
    /// belongs to another user stays as it is.
    pub(crate) fn mark_directory(
        &self,
        path: &TreePath,
        disk: Option<(u64, u64)>,
        ino: Ino,
    ) -> io::Result<()> {
        let directory = match self.root.open_directory(path) {
            Ok(directory) => directory,
            Err(error) if is_not_that_file(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let stat = rustix::fs::fstat(&directory)?;
        if disk.is_some_and(|disk| disk != (stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let tag = self.read_tag(&directory)?;
        let tag = Tag {
            directory: ino,
            ..tag.unwrap_or_else(|| self.new_tag(None))
        };
        match meta::write_on(&directory, stat.st_ino, tag) {
            Err(error) if is(&error, Errno::PERM) || is(&error, Errno::ACCESS) => Ok(()),
            written => written,
        }
    }

    pub(super) fn io(&self, path: &TreePath) -> impl Fn(io::Error) -> StoreError + use<> {
        let path = path.under(&self.datadir);
        move |source| StoreError::Io {
            path: path.clone(),
            source,
        }
    }

    pub(super) fn mismatch(&self, path: &TreePath) -> StoreError {
        StoreError::Mismatch {
            path: path.under(&self.datadir),
        }
    }
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Whether an open failed because something else (or nothing) stands there.
pub(super) fn is_not_that_file(error: &io::Error) -> bool {
    [
        Errno::NOENT,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::LOOP,
        Errno::NXIO,
        Errno::XDEV,
    ]
    .into_iter()
    .any(|errno| is(error, errno))
}

fn tolerate_not_permitted(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::PERM) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn owner_of(inode: &Inode) -> (Uid, Gid) {
    (Uid::from_raw(inode.uid), Gid::from_raw(inode.gid))
}

pub(super) fn meta_from(ino: Ino, inode: &Inode, stat: &Stat) -> LocalMeta {
    LocalMeta {
        ino,
        version: inode.version,
        epoch: inode.epoch,
        home: inode.home,
        size: stat.st_size as u64,
        mtime: meta::mtime_ns(stat),
        blake3: inode.blake3,
    }
}

fn timestamps(inode: &Inode) -> Timestamps {
    Timestamps {
        last_access: timespec(inode.atime),
        last_modification: timespec(inode.mtime),
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.div_euclid(1_000_000_000),
        tv_nsec: time.rem_euclid(1_000_000_000),
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
