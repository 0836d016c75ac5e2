//! Which files a process group opened, and what had to be fetched for it: what placement learns from.
//!
//! The file system tells of opens and fetched bytes of the groups that are watched; whoever watches takes the lists.
//! Bounded: a group that opens more files than `FILES_MAX` is remembered by those it opened first.
use crate::path::TreePath;
use crate::record::Ino;
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Files remembered for one group.
pub const FILES_MAX: usize = 4096;

/// One file that a watched process group opened.
#[derive(Clone, Debug)]
pub struct FileUse {
    /// Which file.
    pub ino: Ino,
    /// Where it stood when it was opened.
    pub path: TreePath,
    /// Its size then, bytes.
    pub size: u64,
    /// Bytes of it that were on this node when it was opened.
    pub local_bytes: u64,
    /// Bytes of it that were fetched from peers for this group.
    pub fetched_bytes: u64,
}

/// Watches process groups (each worker is one). Cheap when nothing is watched.
#[derive(Default)]
pub struct Usage {
    watched: AtomicUsize,
    groups: Mutex<HashMap<i32, HashMap<Ino, FileUse>>>,
}

impl Usage {
    /// From now on the group's opens are remembered.
    pub fn watch(&self, process_group: i32) {
        let mut groups = self.groups.lock().unwrap();
        groups.insert(process_group, HashMap::new());
        self.watched.store(groups.len(), Ordering::Release);
    }

    /// What the group used since `watch` or the last `take`.
    pub fn take(&self, process_group: i32) -> Vec<FileUse> {
        let mut groups = self.groups.lock().unwrap();
        let files = groups.get_mut(&process_group).map(std::mem::take);
        let mut uses: Vec<_> = files.unwrap_or_default().into_values().collect();
        uses.sort_by(|a, b| a.path.cmp(&b.path));
        uses
    }

    /// The group is forgotten.
    pub fn unwatch(&self, process_group: i32) {
        let mut groups = self.groups.lock().unwrap();
        groups.remove(&process_group);
        self.watched.store(groups.len(), Ordering::Release);
    }

    /// Whether any group is watched.
    pub(crate) fn is_watching(&self) -> bool {
        self.watched.load(Ordering::Acquire) > 0
    }

    /// Whether this group is.
    pub(crate) fn is_watched(&self, process_group: i32) -> bool {
        self.groups.lock().unwrap().contains_key(&process_group)
    }

    /// The group opened a file.
    pub(crate) fn opened(&self, process_group: i32, file: FileUse) {
        let mut groups = self.groups.lock().unwrap();
        let Some(files) = groups.get_mut(&process_group) else {
            return;
        };
        if files.len() < FILES_MAX {
            files.entry(file.ino).or_insert(file);
        }
    }

    /// Bytes of a file came from peers for the group.
    pub(crate) fn fetched(&self, process_group: i32, ino: Ino, bytes: u64) {
        let mut groups = self.groups.lock().unwrap();
        let files = groups.get_mut(&process_group);
        if let Some(file) = files.and_then(|files| files.get_mut(&ino)) {
            file.fetched_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(ino: Ino) -> FileUse {
        FileUse {
            ino,
            path: TreePath::new(format!("f{ino}").as_bytes()).unwrap(),
            size: 10,
            local_bytes: 4,
            fetched_bytes: 0,
        }
    }

    #[test]
    fn only_watched_groups_are_remembered_and_taken_once() {
        let usage = Usage::default();
        usage.opened(7, file(1));
        assert!(!usage.is_watching());
        usage.watch(7);
        usage.opened(7, file(2));
        usage.opened(8, file(3));
        usage.fetched(7, 2, 6);
        usage.fetched(7, 9, 6);
        let taken = usage.take(7);
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].ino, taken[0].fetched_bytes), (2, 6));
        assert!(usage.take(7).is_empty());
        usage.unwatch(7);
        assert!(!usage.is_watching());
    }

    #[test]
    fn the_list_of_a_group_is_bounded() {
        let usage = Usage::default();
        usage.watch(1);
        for ino in 0..FILES_MAX as Ino + 10 {
            usage.opened(1, file(ino));
        }
        assert_eq!(usage.take(1).len(), FILES_MAX);
    }
}
