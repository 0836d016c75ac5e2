//! Tells the kernel what to drop from its caches.
//!
//! A thread of its own does it, because a notification may wait for a lock that a request holds which we are still to answer:
//! whoever answers requests must never wait for a notification. What is to be dropped is collected in a bounded set, each
//! thing once; when there is more than fits, everything the kernel has from us is dropped instead.
use super::known::Known;
use crate::{
    filesystem::{Change, Watcher},
    record::{Ino, ROOT},
};
use fuser::INodeNo;
use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Condvar, Mutex},
};

/// Things waiting to be dropped; more of them are dropped as "everything".
const WAITING_MAX: usize = 10_000;

/// What of an inode is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Attributes,
    Contents,
}

#[derive(Default)]
struct Waiting {
    inodes: HashMap<Ino, Part>,
    names: HashSet<(Ino, Vec<u8>)>,
    everything: bool,
    ended: bool,
}

impl Waiting {
    fn add(&mut self, change: Change) {
        match change {
            _ if self.everything => {}
            Change::Everything => self.all_of_it(),
            Change::Attributes(ino) => {
                self.inodes.entry(ino).or_insert(Part::Attributes);
            }
            Change::Contents(ino) => {
                self.inodes.insert(ino, Part::Contents);
            }
            Change::Name { parent, name } => {
                self.names.insert((parent, name));
            }
        }
        if self.inodes.len() + self.names.len() > WAITING_MAX {
            self.all_of_it();
        }
    }

    fn all_of_it(&mut self) {
        self.everything = true;
        self.inodes.clear();
        self.names.clear();
    }

    fn is_empty(&self) -> bool {
        !self.everything && self.inodes.is_empty() && self.names.is_empty()
    }
}

struct Shared {
    known: Arc<Known>,
    waiting: Mutex<Waiting>,
    wake: Condvar,
}

/// Drops kernel caches; cheap to clone.
#[derive(Clone)]
pub struct Notifier {
    shared: Arc<Shared>,
}

impl Notifier {
    pub(super) fn new(known: Arc<Known>) -> Self {
        Self {
            shared: Arc::new(Shared {
                known,
                waiting: Mutex::default(),
                wake: Condvar::new(),
            }),
        }
    }

    /// Starts the thread; it ends with `end`.
    pub(super) fn start(&self, kernel: fuser::Notifier) -> std::io::Result<()> {
        let shared = self.shared.clone();
        std::thread::Builder::new()
            .name("ks-notify".into())
            .spawn(move || {
                while let Some(batch) = shared.next_batch() {
                    shared.drop_all_of(batch, &kernel);
                }
            })?;
        Ok(())
    }

    pub(super) fn end(&self) {
        self.shared.waiting.lock().unwrap().ended = true;
        self.shared.wake.notify_all();
    }
}

impl Watcher for Notifier {
    fn changed(&self, change: Change) {
        let known = |ino: &Ino| self.shared.known.knows(*ino);
        let worth_it = match &change {
            Change::Everything => true,
            Change::Attributes(ino) | Change::Contents(ino) => known(ino),
            Change::Name { parent, .. } => known(parent),
        };
        if worth_it {
            self.shared.waiting.lock().unwrap().add(change);
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    /// Waits for work; `None`: the end.
    fn next_batch(&self) -> Option<Waiting> {
        let waiting = self.waiting.lock().unwrap();
        let idle = |waiting: &mut Waiting| waiting.is_empty() && !waiting.ended;
        let mut waiting = self.wake.wait_while(waiting, idle).unwrap();
        match waiting.ended {
            true => None,
            false => Some(std::mem::take(&mut *waiting)),
        }
    }

    fn drop_all_of(&self, batch: Waiting, kernel: &fuser::Notifier) {
        let Waiting {
            inodes,
            names,
            everything,
            ..
        } = batch;
        if everything {
            self.drop_everything(kernel);
        }
        for (parent, name) in names {
            drop_name(kernel, parent, &name);
        }
        for (ino, part) in inodes {
            drop_inode(kernel, ino, part);
        }
    }

    fn drop_everything(&self, kernel: &fuser::Notifier) {
        for (ino, parent, name) in self.known.all() {
            drop_name(kernel, parent, &name);
            drop_inode(kernel, ino, Part::Contents);
        }
        drop_inode(kernel, ROOT, Part::Contents);
    }
}

fn drop_name(kernel: &fuser::Notifier, parent: Ino, name: &[u8]) {
    let dropped = kernel.inval_entry(INodeNo(parent), OsStr::from_bytes(name));
    // ENOTEMPTY and EBUSY cannot be helped (something is mounted on it); ENOTDIR and ENOENT: it is gone already.
    if let Err(error) = dropped {
        tracing::debug!(parent, %error, "the kernel keeps a name");
    }
}

fn drop_inode(kernel: &fuser::Notifier, ino: Ino, part: Part) {
    // A negative offset drops the attributes alone, a length of 0 all pages.
    let offset = match part {
        Part::Attributes => -1,
        Part::Contents => 0,
    };
    if let Err(error) = kernel.inval_inode(INodeNo(ino), offset, 0) {
        tracing::debug!(ino, %error, "the kernel keeps an inode");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_dropped_once_and_contents_include_attributes() {
        let mut waiting = Waiting::default();
        waiting.add(Change::Contents(5));
        waiting.add(Change::Attributes(5));
        waiting.add(Change::Attributes(6));
        waiting.add(Change::Contents(6));
        assert_eq!(waiting.inodes[&5], Part::Contents);
        assert_eq!(waiting.inodes[&6], Part::Contents);
    }

    #[test]
    fn too_much_becomes_everything() {
        let mut waiting = Waiting::default();
        for ino in 0..WAITING_MAX as Ino + 1 {
            waiting.add(Change::Attributes(ino));
        }
        assert!(waiting.everything && waiting.inodes.is_empty());
        waiting.add(Change::Attributes(1));
        assert!(waiting.inodes.is_empty());
    }
}
