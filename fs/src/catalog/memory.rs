//! The cache as the catalog's tasks share it: one lock, never held while anything is awaited, and guards that give a
//! ticket back however a task ends.
use super::cache::{Cache, DirectoryMeta, Ticket};
use super::namespace::Record;
use super::transaction::{Operation, Place, SUBDIRECTORIES_FIELD, TIME_FIELD, Transaction};
use crate::record::{Entry, Ino, Time};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// The shared cache.
#[derive(Default)]
pub(super) struct Memory {
    cache: Mutex<Cache>,
    /// Changes by earlier numbers than this may still be carried out although nobody waits for their outcome any more: what is told
    /// of them is taken as another's.
    doubtful_below: AtomicU64,
}

impl Memory {
    pub(super) fn locked(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// Before a question to Redis.
    pub(super) fn reading(&self) -> Reading<'_> {
        let ticket = self.locked().ticket();
        Reading {
            memory: self,
            ticket,
        }
    }

    /// Before a change is sent to Redis.
    pub(super) fn changing(&self, transaction: &Transaction, nonce: u64) -> Changing<'_> {
        self.changing_places(transaction.touched(), nonce)
    }

    /// Whether somebody waits (or has waited) for the outcome of the own change `nonce`.
    pub(super) fn trusts(&self, nonce: u64) -> bool {
        nonce >= self.doubtful_below.load(Ordering::SeqCst)
    }

    /// Before changes of these keys are sent to Redis.
    pub(super) fn changing_places(&self, places: Vec<Place>, nonce: u64) -> Changing<'_> {
        let ticket = self.locked().ticket();
        Changing {
            memory: self,
            ticket,
            places,
            nonce,
        }
    }
}

/// A question under way.
pub(super) struct Reading<'m> {
    memory: &'m Memory,
    ticket: Ticket,
}

impl Reading<'_> {
    /// Puts parts of the answer in.
    pub(super) fn keep(&self, put: impl FnOnce(&mut Cache, Ticket)) {
        put(&mut self.memory.locked(), self.ticket);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.memory.locked().release(self.ticket);
    }
}

/// A change under way. Dropped before its outcome is known (an error, a caller that gave up), it drops what the change
/// may have touched: what is told of our own changes is not heeded.
pub(super) struct Changing<'m> {
    memory: &'m Memory,
    ticket: Ticket,
    places: Vec<Place>,
    /// Its number; of several, the last one's.
    nonce: u64,
}

impl Changing<'_> {
    /// It did not happen: what is remembered stays.
    pub(super) fn did_not_happen(mut self) {
        self.places.clear();
    }

    /// It happened: what it wrote is remembered, where no one else wrote meanwhile.
    pub(super) fn happened(mut self, transaction: &Transaction, counts: &[i64]) {
        let mut cache = self.memory.locked();
        let mut own = cache.own_change(self.ticket, &std::mem::take(&mut self.places));
        let mut counts = counts.iter();
        let mut directories: BTreeMap<Ino, Written> = BTreeMap::new();
        for operation in &transaction.operations {
            match operation {
                Operation::Set(Place::Inode(ino), bytes) => {
                    if let Ok(record) = Record::from_bytes(bytes.clone()) {
                        own.put_inode(&mut cache, *ino, record);
                    }
                }
                Operation::SetField(Place::Directory(ino), field, value) => {
                    let written = directories.entry(*ino).or_default();
                    match &field[..] {
                        TIME_FIELD => written.time = parse(value),
                        SUBDIRECTORIES_FIELD => {
                            (written.count, written.is_new) = (parse(value), true)
                        }
                        name => written.set(name, Entry::from_bytes(value).ok()),
                    }
                }
                Operation::DeleteField(Place::Directory(ino), name) => {
                    directories.entry(*ino).or_default().set(name, None);
                }
                Operation::Increase(place, field, _) => {
                    let count = counts.next().copied().unwrap_or(0);
                    if let (Place::Directory(ino), SUBDIRECTORIES_FIELD) = (place, &field[..]) {
                        let written = directories.entry(*ino).or_default();
                        written.count = u32::try_from(count).ok();
                    }
                }
                Operation::Delete(Place::Directory(ino)) => {
                    directories.remove(ino);
                }
                _ => {}
            }
        }
        for (ino, written) in directories {
            let meta = match (written.time, written.count) {
                (Some(time), Some(subdirectories)) => Some(DirectoryMeta {
                    time,
                    subdirectories,
                }),
                _ => None,
            };
            match (written.is_new, meta) {
                (true, Some(meta)) => own.put_new_directory(&mut cache, ino, meta),
                _ => own.put_directory(&mut cache, ino, meta, &written.names),
            }
        }
    }
}

/// What a change wrote to one directory.
#[derive(Default)]
struct Written {
    time: Option<Time>,
    count: Option<u32>,
    is_new: bool,
    /// In the order of the operations; `None`: the name went.
    names: Vec<(Vec<u8>, Option<Entry>)>,
}

impl Written {
    fn set(&mut self, name: &[u8], entry: Option<Entry>) {
        self.names.push((name.to_vec(), entry));
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if !self.places.is_empty() {
            let doubtful = &self.memory.doubtful_below;
            doubtful.fetch_max(self.nonce + 1, Ordering::SeqCst);
        }
        let mut cache = self.memory.locked();
        for place in &self.places {
            cache.invalidate(*place);
        }
        cache.release(self.ticket);
    }
}

/// A decimal number as Redis keeps it.
pub(super) fn parse<N: std::str::FromStr>(bytes: &[u8]) -> Option<N> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}
