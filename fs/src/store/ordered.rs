//! The plain files of the data directory in the order of their paths, from any of them on.
//!
//! Always: memory is bounded (a part of each directory on the way, [`PART_MAX`] names of each), and so is what is open (one directory at a time); what appears
//! or goes meanwhile may be seen or not; `.ks`, symlinks and other file systems mounted inside are passed over.
use super::Store;
use crate::path::{TreePath, is_own_name};
use rustix::fs::{Dir, FileType};
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

/// Names of one directory that are remembered; for the ones behind them it is read again.
const PART_MAX: usize = 16_384;

/// See the module's head.
pub(crate) struct Ordered {
    store: Arc<Store>,
    levels: Vec<Level>,
    part_max: usize,
}

/// A directory on the way.
struct Level {
    path: TreePath,
    /// All names up to it have been given.
    after: Vec<u8>,
    part: VecDeque<Vec<u8>>,
    /// There are no names behind this part.
    is_last: bool,
}

impl Level {
    fn new(path: TreePath, after: &[u8]) -> Self {
        Self {
            path,
            after: after.to_vec(),
            part: VecDeque::new(),
            is_last: false,
        }
    }
}

impl Ordered {
    /// The files behind `position` (the root: all of them).
    pub(crate) fn after(store: Arc<Store>, position: &TreePath) -> Self {
        let mut levels = Vec::new();
        let mut path = TreePath::root();
        for name in position.names() {
            levels.push(Level::new(path.clone(), name));
            path = path.join(name);
        }
        if levels.is_empty() {
            levels.push(Level::new(path, b""));
        }
        Self {
            store,
            levels,
            part_max: PART_MAX,
        }
    }

    /// Reads the next part of the innermost directory; one that is gone or cannot be read has no names.
    fn read(store: &Store, level: &mut Level, part_max: usize) {
        let mut least = BinaryHeap::new();
        level.is_last = true;
        let opened = store.root.open_directory(&level.path);
        let Ok(directory) = opened.and_then(|opened| Ok(Dir::new(opened)?)) else {
            return;
        };
        for entry in directory.flatten() {
            let name = entry.file_name().to_bytes();
            let is_own = is_own_name(&level.path, name);
            if name == b"." || name == b".." || is_own || name <= &level.after[..] {
                continue;
            }
            least.push(name.to_vec());
            if least.len() > part_max {
                least.pop();
                level.is_last = false;
            }
        }
        level.part = least.into_sorted_vec().into();
    }

    fn next_name(&mut self) -> Option<TreePath> {
        let level = self.levels.last_mut()?;
        if level.part.is_empty() && !level.is_last {
            Self::read(&self.store, level, self.part_max);
        }
        let name = level.part.pop_front()?;
        let path = level.path.join(&name);
        level.after = name;
        Some(path)
    }
}

impl Iterator for Ordered {
    type Item = TreePath;

    fn next(&mut self) -> Option<TreePath> {
        loop {
            let Some(path) = self.next_name() else {
                self.levels.pop()?;
                continue;
            };
            let Ok(stat) = self.store.root.stat(&path) else {
                continue;
            };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => return Some(path),
                FileType::Directory if self.store.root.is_same_device(stat.st_dev) => {
                    self.levels.push(Level::new(path, b""));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_come_once_from_wherever_one_begins() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let mut expected = Vec::new();
        for name in ["a", "a/b", "a/b/c", "a.b", "b", "b/x", "z"] {
            std::fs::create_dir_all(directory.path().join(format!("d/{name}"))).unwrap();
        }
        for (place, count) in [
            ("", 3),
            ("d/", 1),
            ("d/a/", 40),
            ("d/a/b/c/", 2),
            ("d/b/x/", 7),
        ] {
            for number in 0..count {
                let path = format!("{place}f{number:03}");
                std::fs::write(directory.path().join(&path), "x").unwrap();
                expected.push(path);
            }
        }
        std::os::unix::fs::symlink("f000", directory.path().join("d/link")).unwrap();
        let components =
            |path: &String| -> Vec<String> { path.split('/').map(str::to_owned).collect() };
        expected.sort_by_key(components);
        let from = |position: &str, part_max| -> Vec<String> {
            let position = TreePath::new(position.as_bytes()).unwrap();
            let mut walk = Ordered::after(Arc::clone(&store), &position);
            walk.part_max = part_max;
            walk.map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned())
                .collect()
        };
        for part_max in [1, 3, PART_MAX] {
            assert_eq!(from("", part_max), expected);
            for (at, path) in expected.iter().enumerate() {
                assert_eq!(from(path, part_max), expected[at + 1..], "after {path}");
            }
        }
        assert_eq!((from("d/a/f020x", 3).len(), from("d/a", 3).len()), (30, 11));
        assert_eq!(from("d/gone/deep/file", 3), ["f000", "f001", "f002"]);
    }
}
