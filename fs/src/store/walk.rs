//! Everything in the data directory, one at a time.
//!
//! Always: memory does not grow with the number of files (open directories, one a level, and beyond [`OPEN_MAX`] levels the paths
//! of directories still to be entered); `.ks`, what else is called like it in the root, and other file systems mounted inside are not entered, symlinks not followed. What
//! appears or goes meanwhile may be seen or not. A directory comes before what is in it.
use super::Store;
use super::meta::{self, Tag};
use super::watch::Watches;
use crate::path::{TreePath, is_own_name};
use crate::record::Kind;
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Directories held open at once.
const OPEN_MAX: usize = 128;

/// What the walk came by.
#[derive(Debug)]
pub(super) enum Found {
    /// A file, directory or symlink.
    Entry {
        path: TreePath,
        kind: Kind,
        stat: Box<Stat>,
        mark: Mark,
    },
    /// It could not be looked at.
    Unreadable { path: TreePath, error: io::Error },
}

/// The `user.ks` of a file that was found.
#[derive(Debug)]
pub(super) enum Mark {
    /// It was not read.
    Unread,
    /// It was; `None`: there is none that is the file's own and of the catalog in use.
    Read(Option<Box<Tag>>),
}

pub(super) struct Walker {
    store: Arc<Store>,
    /// Directories are watched before they are listed.
    watches: Option<Arc<Watches>>,
    /// Files' marks are read.
    reads_marks: bool,
    open: Vec<(TreePath, Dir)>,
    waiting: Vec<TreePath>,
}

impl Walker {
    /// Walks what is below `start` (not itself).
    pub(super) fn new(store: Arc<Store>, start: TreePath) -> Self {
        Self {
            store,
            watches: None,
            reads_marks: false,
            open: Vec::new(),
            waiting: vec![start],
        }
    }

    /// As `new`; each directory, also `start`, is watched from before it is listed.
    pub(super) fn watched(store: Arc<Store>, start: TreePath, watches: &Arc<Watches>) -> Self {
        Self {
            watches: Some(Arc::clone(watches)),
            ..Self::new(store, start)
        }
    }

    /// As it is; with the marks of files.
    pub(super) fn reading_marks(self) -> Self {
        Self {
            reads_marks: true,
            ..self
        }
    }

    fn enter(&mut self, path: TreePath) -> Option<Found> {
        let opened = self.store.root.open_directory(&path).and_then(|directory| {
            if let Some(watches) = &self.watches {
                watches.add(&path, &directory);
            }
            Ok(Dir::new(directory)?)
        });
        match opened {
            Ok(directory) => {
                self.open.push((path, directory));
                None
            }
            Err(error) if is_gone(&error) => None,
            Err(error) => Some(Found::Unreadable { path, error }),
        }
    }

    /// The next name of the innermost directory; `None`: it has no more, or only what is passed over.
    fn read(&mut self) -> Option<Found> {
        let (above, directory) = self.open.last_mut()?;
        let name = match directory.read() {
            None => {
                self.open.pop();
                return None;
            }
            Some(Err(error)) => {
                let path = above.clone();
                self.open.pop();
                let error = error.into();
                return Some(Found::Unreadable { path, error });
            }
            Some(Ok(entry)) => entry.file_name().to_bytes().to_vec(),
        };
        if name == b"." || name == b".." || is_own_name(above, &name) {
            return None;
        }
        let path = above.join(&name);
        let found = directory
            .fd()
            .and_then(|fd| rustix::fs::statat(fd, &name[..], AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                let mark = match directory.fd() {
                    Ok(fd) if is_file && self.reads_marks => self.store.mark_at(fd, &name, &stat),
                    _ => Mark::Unread,
                };
                self.found(path, stat, mark)
            }
            Err(Errno::NOENT) => None,
            Err(error) => Some(Found::Unreadable {
                path,
                error: error.into(),
            }),
        }
    }

    fn found(&mut self, path: TreePath, stat: Stat, mark: Mark) -> Option<Found> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Directory => Kind::Directory,
            // Sockets, pipes and devices belong to the programs of this machine.
            _ => return None,
        };
        if !self.store.root.is_same_device(stat.st_dev) {
            let error = io::Error::other("another file system is mounted there; it is not entered");
            return Some(Found::Unreadable { path, error });
        }
        if kind == Kind::Directory {
            self.waiting.push(path.clone());
        }
        let stat = Box::new(stat);
        Some(Found::Entry {
            path,
            kind,
            stat,
            mark,
        })
    }
}

impl Iterator for Walker {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            // A new directory is entered at once, so that at most one waits; beyond the limit they pile up.
            let may_enter = self.open.len() < OPEN_MAX;
            let found = match self.waiting.pop_if(|_| may_enter) {
                Some(path) => self.enter(path),
                None if self.open.is_empty() => return None,
                None => self.read(),
            };
            if found.is_some() {
                return found;
            }
        }
    }
}

impl Store {
    /// The mark of a file of this directory, read without opening the file.
    fn mark_at(&self, directory: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Mark {
        let mut at = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        at.extend_from_slice(name);
        let mut buffer = [MaybeUninit::<u8>::uninit(); meta::ATTRIBUTE_BYTES_MAX];
        match rustix::fs::lgetxattr(&at[..], meta::ATTRIBUTE, &mut buffer) {
            Ok((bytes, _)) => Mark::Read(self.own_tag(bytes, stat).map(Box::new)),
            Err(Errno::NODATA) => Mark::Read(None),
            // Without /proc, or whatever it is: whoever opens the file sees.
            Err(_) => Mark::Unread,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn walked(store: &Arc<Store>) -> BTreeMap<Vec<u8>, Kind> {
        let mut seen = BTreeMap::new();
        for found in Walker::new(Arc::clone(store), TreePath::root()) {
            let Found::Entry { path, kind, .. } = found else {
                panic!("{found:?}")
            };
            let parent = path.as_bytes().iter().rposition(|&b| b == b'/');
            if let Some(slash) = parent {
                assert!(
                    seen.contains_key(&path.as_bytes()[..slash]),
                    "after its directory"
                );
            }
            assert!(
                seen.insert(path.as_bytes().to_vec(), kind).is_none(),
                "once"
            );
        }
        seen
    }

    #[test]
    fn all_is_seen_once_but_not_the_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let mut expected = BTreeMap::new();
        for a in 0..7u8 {
            let outer = directory.path().join(OsStr::from_bytes(&[b'd', 0xf0 + a]));
            std::fs::create_dir_all(outer.join("inner/.ks")).unwrap();
            std::fs::create_dir_all(directory.path().join(".ks-of-nobody")).unwrap();
            std::fs::write(outer.join("inner/f\n"), "x").unwrap();
            std::os::unix::fs::symlink("/", outer.join("link")).unwrap();
            let name = [b'd', 0xf0 + a];
            expected.insert(name.to_vec(), Kind::Directory);
            for (below, kind) in [
                (&b"/inner"[..], Kind::Directory),
                (b"/inner/.ks", Kind::Directory),
                (b"/inner/f\n", Kind::File),
                (b"/link", Kind::Symlink),
            ] {
                expected.insert([&name[..], below].concat(), kind);
            }
        }
        assert_eq!(walked(&store), expected);
    }

    #[test]
    fn depth_is_no_limit() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let mut deep = TreePath::root();
        for _ in 0..OPEN_MAX * 3 {
            deep = deep.join(b"deeper");
        }
        let root = &store.root;
        root.make_parents(&deep.join(b"f"), |_| ()).unwrap();
        root.make_parents(&TreePath::new(b"wide/x/f").unwrap(), |_| ())
            .unwrap();
        assert_eq!(walked(&store).len(), OPEN_MAX * 3 + 2);
    }
}
