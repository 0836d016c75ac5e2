//! Opens and renames inside the data directory, and nowhere else.
//!
//! Everything the store does to plain files goes through a [`Root`]: a descriptor of the data directory, below which paths
//! are resolved by the kernel with `openat2` (beneath, no symlinks, no mount points in between). Where the kernel has no
//! `openat2`, the same is done a component at a time.
//!
//! Always: a symlink inside the tree never leads out of it (nor anywhere: none is ever followed), a path with `..` or one
//! that names `.ks` is refused before the kernel sees it. Not for the files under `.ks/` itself: those are the program's own.
use super::watch::own::OwnRemovals;
use crate::path::{STATE_DIR, TreePath};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Longest piece of a path that is given to the kernel at once (PATH_MAX is 4,096); deeper trees go piece by piece.
const PIECE_BYTES: usize = 3_500;
/// How often an open is tried again when the kernel says that a rename got in its way.
const RENAME_RACES_MAX: usize = 8;

/// The data directory.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    device: u64,
    has_openat2: bool,
    /// What is taken from its name here.
    pub(crate) own_removals: OwnRemovals,
}

impl Root {
    /// Opens the data directory, which must exist.
    pub(crate) fn open(datadir: &Path) -> io::Result<Self> {
        let directory = rustix::fs::open(
            datadir,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let device = rustix::fs::fstat(&directory)?.st_dev;
        let probe = rustix::fs::openat2(
            &directory,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve_flags(),
        );
        Ok(Self {
            directory,
            device,
            has_openat2: probe.is_ok(),
            own_removals: OwnRemovals::default(),
        })
    }

    /// As on a kernel without `openat2`.
    #[cfg(test)]
    pub(crate) fn without_openat2(mut self) -> Self {
        self.has_openat2 = false;
        self
    }

    /// Whether a file of that device is of the data directory's own file system.
    pub(crate) fn is_same_device(&self, device: u64) -> bool {
        self.device == device
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens what stands at `path`; a symlink there is an error (ELOOP).
    pub(crate) fn open_at(&self, path: &TreePath, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
        guard(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        if path.is_root() {
            return self.piece(self.descriptor(), b".", flags, mode);
        }
        let (leading, last) = pieces(path);
        let mut base: Option<OwnedFd> = None;
        for piece in leading {
            let from = base.as_ref().map_or(self.descriptor(), |fd| fd.as_fd());
            base = Some(self.piece(from, &piece, directory_flags(), Mode::empty())?);
        }
        let from = base.as_ref().map_or(self.descriptor(), |fd| fd.as_fd());
        self.piece(from, &last, flags, mode)
    }

    /// Opens the directory at `path` for being listed.
    pub(crate) fn open_directory(&self, path: &TreePath) -> io::Result<OwnedFd> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0)
    }

    /// The directory that `path` stands in, and its name there. The root has none (EINVAL).
    pub(crate) fn parent<'p>(&self, path: &'p TreePath) -> io::Result<(OwnedFd, &'p [u8])> {
        guard(path)?;
        let (parent, name) = split(path).ok_or(Errno::INVAL)?;
        let directory = self.open_at(&parent, OFlags::PATH | OFlags::DIRECTORY, 0)?;
        Ok((directory, name))
    }

    /// Attributes of what stands at `path` (of a symlink: its own).
    pub(crate) fn stat(&self, path: &TreePath) -> io::Result<Stat> {
        if path.is_root() {
            return Ok(rustix::fs::fstat(&self.directory)?);
        }
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::statat(
            &parent,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// Makes the directories above `path` that are missing (0755); `made` is told each new one.
    pub(crate) fn make_parents(
        &self,
        path: &TreePath,
        mut made: impl FnMut(&OwnedFd),
    ) -> io::Result<()> {
        guard(path)?;
        let Some((parent, _)) = split(path) else {
            return Ok(());
        };
        let mut directory: Option<OwnedFd> = None;
        for name in parent.names() {
            let from = directory
                .as_ref()
                .map_or(self.descriptor(), |fd| fd.as_fd());
            let is_new = match rustix::fs::mkdirat(from, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let next = self.piece(
                from,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            if is_new {
                made(&next);
            }
            directory = Some(next);
        }
        Ok(())
    }

    /// Renames inside the data directory.
    pub(crate) fn rename(
        &self,
        from: &TreePath,
        to: &TreePath,
        flags: RenameFlags,
    ) -> io::Result<()> {
        let (from_directory, from_name) = self.parent(from)?;
        let (to_directory, to_name) = self.parent(to)?;
        let taken: &[&TreePath] = match flags.contains(RenameFlags::EXCHANGE) {
            true => &[from, to],
            false => &[from],
        };
        self.taking(taken, || {
            rustix::fs::renameat_with(&from_directory, from_name, &to_directory, to_name, flags)
        })
    }

    /// Does `act`, which takes what stands there from these names.
    pub(crate) fn taking(
        &self,
        names: &[&TreePath],
        act: impl FnOnce() -> rustix::io::Result<()>,
    ) -> io::Result<()> {
        for name in names {
            self.own_removals.announce(name);
        }
        let done = act();
        if done.is_err() {
            for name in names {
                self.own_removals.take(name);
            }
        }
        Ok(done?)
    }

    /// Removes the name `path` (a file or a symlink; with `directory` an empty directory).
    pub(crate) fn unlink(&self, path: &TreePath, directory: bool) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        self.taking(&[path], || rustix::fs::unlinkat(&parent, name, flags))
    }

    fn piece(
        &self,
        from: BorrowedFd<'_>,
        piece: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> io::Result<OwnedFd> {
        if !self.has_openat2 {
            return self.walk(from, piece, flags, mode);
        }
        for _ in 0..RENAME_RACES_MAX {
            match rustix::fs::openat2(from, piece, flags, mode, resolve_flags()) {
                Err(Errno::AGAIN) => continue,
                other => return Ok(other?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// `piece` a component at a time, for kernels without `openat2`.
    fn walk(
        &self,
        from: BorrowedFd<'_>,
        piece: &[u8],
        flags: OFlags,
        mode: Mode,
    ) -> io::Result<OwnedFd> {
        let mut names = piece.split(|&b| b == b'/').peekable();
        let mut base: Option<OwnedFd> = None;
        while let Some(name) = names.next() {
            let is_last = names.peek().is_none();
            let from = base.as_ref().map_or(from, |fd| fd.as_fd());
            let (flags, mode) = if is_last {
                (flags | OFlags::NOFOLLOW, mode)
            } else {
                (directory_flags(), Mode::empty())
            };
            let next = rustix::fs::openat(from, name, flags, mode)?;
            if rustix::fs::fstat(&next)?.st_dev != self.device {
                return Err(Errno::XDEV.into());
            }
            base = Some(next);
        }
        base.ok_or_else(|| Errno::INVAL.into())
    }
}

fn resolve_flags() -> ResolveFlags {
    ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV
}

fn directory_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// Refuses what no path of the tree may be: `..`, and the program's own directory.
fn guard(path: &TreePath) -> io::Result<()> {
    if path
        .names()
        .any(|name| name == b".." || name == b"." || name.contains(&0))
    {
        return Err(Errno::INVAL.into());
    }
    match path.names().next() {
        Some(first) if first == STATE_DIR.as_bytes() => Err(Errno::ACCESS.into()),
        _ => Ok(()),
    }
}

/// A path as its directory and its name; `None` for the root.
pub(crate) fn split(path: &TreePath) -> Option<(TreePath, &[u8])> {
    let bytes = path.as_bytes();
    if bytes.is_empty() {
        return None;
    }
    match bytes.iter().rposition(|&b| b == b'/') {
        Some(slash) => Some((TreePath::new(&bytes[..slash])?, &bytes[slash + 1..])),
        None => Some((TreePath::root(), bytes)),
    }
}

/// `path` in pieces that the kernel takes: all but the last are directories.
fn pieces(path: &TreePath) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut done = Vec::new();
    let mut current: Vec<u8> = Vec::new();
    for name in path.names() {
        if !current.is_empty() && current.len() + 1 + name.len() > PIECE_BYTES {
            done.push(std::mem::take(&mut current));
        }
        if !current.is_empty() {
            current.push(b'/');
        }
        current.extend_from_slice(name);
    }
    (done, current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    fn both(datadir: &Path) -> [Root; 2] {
        [
            Root::open(datadir).unwrap(),
            Root::open(datadir).unwrap().without_openat2(),
        ]
    }

    #[test]
    fn symlinks_never_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let inside = tempfile::tempdir().unwrap();
        symlink(outside.path(), inside.path().join("way")).unwrap();
        symlink(outside.path().join("secret"), inside.path().join("secret")).unwrap();
        std::fs::create_dir(inside.path().join("real")).unwrap();
        symlink("real", inside.path().join("alias")).unwrap();
        std::fs::write(inside.path().join("real/file"), "f").unwrap();
        for root in both(inside.path()) {
            for refused in ["way/secret", "secret", "alias/file"] {
                assert!(
                    root.open_at(&path(refused), OFlags::RDONLY, 0).is_err(),
                    "{refused}"
                );
            }
            assert!(root.make_parents(&path("way/new/file"), |_| ()).is_err());
            assert!(
                root.rename(
                    &path("real/file"),
                    &path("way/file"),
                    RenameFlags::NOREPLACE
                )
                .is_err()
            );
            assert!(root.unlink(&path("way/secret"), false).is_err());
            assert!(root.open_at(&path("real/file"), OFlags::RDONLY, 0).is_ok());
        }
        assert!(outside.path().join("secret").exists());
        assert!(!outside.path().join("new").exists());
    }

    #[test]
    fn parents_and_the_state_directory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".ks")).unwrap();
        std::fs::write(directory.path().join(".ks/node"), "n").unwrap();
        std::fs::create_dir_all(directory.path().join("a/.ks")).unwrap();
        let climbing = path("a").join(b"..").join(b".ks").join(b"node");
        for root in both(directory.path()) {
            assert!(root.open_at(&path(".ks/node"), OFlags::RDONLY, 0).is_err());
            assert!(root.open_at(&path(".ks"), OFlags::RDONLY, 0).is_err());
            assert!(root.open_at(&climbing, OFlags::RDONLY, 0).is_err());
            assert!(root.stat(&path(".ks/node")).is_err());
            assert!(root.open_at(&path("a/.ks"), OFlags::RDONLY, 0).is_ok());
        }
    }

    #[test]
    fn trees_deeper_than_a_path_may_be_long() {
        let directory = tempfile::tempdir().unwrap();
        let mut deep = TreePath::root();
        for _ in 0..60 {
            deep = deep.join(&[b'd'; 200]);
        }
        let file = deep.join(b"file");
        for root in both(directory.path()) {
            root.make_parents(&file, |_| ()).unwrap();
            root.open_at(&file, OFlags::CREATE | OFlags::RDWR, 0o600)
                .unwrap();
            assert!(root.stat(&file).is_ok());
            root.unlink(&file, false).unwrap();
        }
    }
}
