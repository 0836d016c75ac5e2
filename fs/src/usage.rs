//! Which files a process group opened, and what had to be fetched for it: what placement learns from.
//!
//! `filesystem` tells of every open and every fetch ([`Usage::note_open`], [`Usage::note_fetched`]); the executor watches the
//! process groups of its workers and takes what they used when a call ends. Always: when nothing is watched, telling costs one
//! atomic load; a group's list is bounded ([`FILES_PER_GROUP_MAX`]).
//!
//! Not for accounting of bytes read from what is here: passthrough reads never come by.
use crate::path::TreePath;
use crate::record::Ino;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// At most so many files are kept for a group; more are not listed, and [`Used::is_cut`] says so.
pub const FILES_PER_GROUP_MAX: usize = 10_000;

/// One file that a watched process group opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// The file.
    pub ino: Ino,
    /// Its path when it was opened first.
    pub path: TreePath,
    /// Its size in bytes when it was opened last.
    pub size: u64,
    /// Bytes of it that were on this node when it was opened.
    pub local_bytes: u64,
    /// Bytes of it that were fetched from peers for this group.
    pub fetched_bytes: u64,
}

/// What a group used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// In the order in which they were opened.
    pub files: Vec<FileUse>,
    /// There were more than [`FILES_PER_GROUP_MAX`].
    pub is_cut: bool,
    /// How long at least one read of it waited for files of other nodes.
    pub waited: Duration,
}

#[derive(Default)]
struct Group {
    used: Used,
    /// Where in `used.files` an inode stands.
    index: HashMap<Ino, usize>,
    /// Reads that wait now, and since when there are some.
    waiting: usize,
    since: Option<Instant>,
}

/// A read that waits, until it is dropped.
pub struct Waiting<'a> {
    usage: &'a Usage,
    process_group: i32,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.usage.groups().get_mut(&self.process_group) {
            group.wait_ends(Instant::now());
        }
    }
}

/// Watches process groups (each worker is one). Cheap when nothing is watched.
#[derive(Default)]
pub struct Usage {
    /// How many groups are watched: the fast path's only question.
    watched: AtomicUsize,
    groups: Mutex<HashMap<i32, Group>>,
}

impl Usage {
    /// Begins (anew) to note what the group uses.
    pub fn watch(&self, process_group: i32) {
        let mut groups = self.groups();
        groups.insert(process_group, Group::default());
        self.watched.store(groups.len(), Ordering::Release);
    }

    /// What the group used since `watch` or the last `take`.
    pub fn take(&self, process_group: i32) -> Vec<FileUse> {
        self.take_used(process_group).files
    }

    /// As `take`, and says whether the list was cut.
    pub fn take_used(&self, process_group: i32) -> Used {
        match self.groups().get_mut(&process_group) {
            Some(group) => group.take(Instant::now()),
            None => Used::default(),
        }
    }

    /// Ends it; what was not taken is forgotten.
    pub fn unwatch(&self, process_group: i32) {
        let mut groups = self.groups();
        groups.remove(&process_group);
        self.watched.store(groups.len(), Ordering::Release);
    }

    /// Whether any group is watched: ask before finding out which group a process belongs to.
    pub fn is_watching(&self) -> bool {
        self.watched.load(Ordering::Acquire) > 0
    }

    /// The watched process group of a process, for `note_open` and `note_fetched`; `None`: nobody watches it, or it is gone.
    pub fn group_of(&self, pid: u32) -> Option<i32> {
        if !self.is_watching() {
            return None;
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
        let group = rustix::process::getpgid(Some(pid)).ok()?.as_raw_nonzero();
        let group = group.get();
        self.groups().contains_key(&group).then_some(group)
    }

    /// A process of the group opened a file of which `local_bytes` of `size` bytes are here.
    pub fn note_open(
        &self,
        process_group: i32,
        ino: Ino,
        path: &TreePath,
        size: u64,
        local_bytes: u64,
    ) {
        if !self.is_watching() {
            return;
        }
        if let Some(group) = self.groups().get_mut(&process_group) {
            match group.file(ino) {
                // Opened again: what was here at first is what counts.
                Some(file) => file.size = size,
                None => group.add(FileUse {
                    ino,
                    path: path.clone(),
                    size,
                    local_bytes,
                    fetched_bytes: 0,
                }),
            }
        }
    }

    /// Bytes of a file came from peers because a process of the group read it. After a `take`, files that were opened before it
    /// and are still being read are not listed again.
    pub fn note_fetched(&self, process_group: i32, ino: Ino, bytes: u64) {
        if bytes == 0 || !self.is_watching() {
            return;
        }
        if let Some(group) = self.groups().get_mut(&process_group)
            && let Some(file) = group.file(ino)
        {
            file.fetched_bytes = file.fetched_bytes.saturating_add(bytes);
        }
    }

    /// A read of the group waits for bytes of another node from now on, until what is returned is dropped.
    pub fn waiting(&self, process_group: i32) -> Waiting<'_> {
        if let Some(group) = self.groups().get_mut(&process_group) {
            group.wait_begins(Instant::now());
        }
        Waiting {
            usage: self,
            process_group,
        }
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<i32, Group>> {
        // Whole after a panic elsewhere: counters and inserts only.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn file(&mut self, ino: Ino) -> Option<&mut FileUse> {
        let at = *self.index.get(&ino)?;
        self.used.files.get_mut(at)
    }

    fn add(&mut self, file: FileUse) {
        if self.used.files.len() >= FILES_PER_GROUP_MAX {
            self.used.is_cut = true;
            return;
        }
        self.index.insert(file.ino, self.used.files.len());
        self.used.files.push(file);
    }

    fn wait_begins(&mut self, now: Instant) {
        if self.waiting == 0 {
            self.since = Some(now);
        }
        self.waiting += 1;
    }

    /// Nothing, where the group is watched anew since that wait began.
    fn wait_ends(&mut self, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0
            && let Some(since) = self.since.take()
        {
            self.used.waited += now.saturating_duration_since(since);
        }
    }

    /// Takes what was used until now. Waits that go on count anew from here.
    fn take(&mut self, now: Instant) -> Used {
        let mut taken = std::mem::take(self);
        if let Some(since) = taken.since {
            taken.used.waited += now.saturating_duration_since(since);
            (self.waiting, self.since) = (taken.waiting, Some(now));
        }
        taken.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_group_uses_is_taken_once() {
        let usage = Usage::default();
        usage.note_open(7, 1, &path("before"), 10, 10);
        assert_eq!(usage.take(7), []);
        usage.watch(7);
        usage.note_open(7, 2, &path("a"), 100, 0);
        usage.note_open(8, 3, &path("of another"), 100, 0);
        usage.note_fetched(7, 2, 40);
        usage.note_fetched(7, 2, 2);
        usage.note_open(7, 2, &path("a"), 100, 42);
        let expected = FileUse {
            ino: 2,
            path: path("a"),
            size: 100,
            local_bytes: 0,
            fetched_bytes: 42,
        };
        assert_eq!(usage.take(7), [expected]);
        assert_eq!(usage.take(7), []);
        usage.unwatch(7);
        assert!(!usage.is_watching());
    }

    #[test]
    fn waits_that_overlap_count_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut group = Group::default();
        group.wait_begins(at(0));
        group.wait_begins(at(10));
        group.wait_ends(at(20));
        group.wait_ends(at(30));
        group.wait_begins(at(100));
        assert_eq!(group.take(at(105)).waited, Duration::from_millis(35));
        group.wait_ends(at(107));
        assert_eq!(group.take(at(200)).waited, Duration::from_millis(2));
        group.wait_ends(at(300));
        assert_eq!(group.take(at(400)).waited, Duration::ZERO);
    }

    #[test]
    fn a_wait_of_a_watched_group_is_told() {
        let usage = Usage::default();
        usage.watch(7);
        let (other, waiting) = (usage.waiting(8), usage.waiting(7));
        std::thread::sleep(Duration::from_millis(5));
        drop((other, waiting));
        let used = usage.take_used(7);
        assert!(used.waited >= Duration::from_millis(5), "{used:?}");
    }

    #[test]
    fn a_list_is_cut_and_says_so() {
        let usage = Usage::default();
        usage.watch(1);
        for ino in 0..FILES_PER_GROUP_MAX as u64 + 1 {
            usage.note_open(1, ino, &path("f"), 1, 1);
        }
        let used = usage.take_used(1);
        assert_eq!(used.files.len(), FILES_PER_GROUP_MAX);
        assert!(used.is_cut);
        assert!(!usage.take_used(1).is_cut);
    }

    #[test]
    fn a_process_is_found_in_its_group() {
        let usage = Usage::default();
        let me = std::process::id();
        assert_eq!(usage.group_of(me), None);
        let group = rustix::process::getpgrp().as_raw_nonzero().get();
        usage.watch(group);
        assert_eq!(usage.group_of(me), Some(group));
        assert_eq!(usage.group_of(u32::MAX), None);
    }
}
