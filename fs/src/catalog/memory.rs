//! The cache as the catalog's tasks share it: one lock, never held while anything is awaited, and guards that give a
//! ticket back however a task ends.
use super::cache::{Cache, DirectoryMeta, Ticket};
use super::namespace::Record;
use super::transaction::{Operation, Place, SUBDIRECTORIES_FIELD, TIME_FIELD, Transaction};
use crate::record::{Ino, Time};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// The shared cache.
#[derive(Default)]
pub(super) struct Memory(Mutex<Cache>);

impl Memory {
    pub(super) fn locked(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().unwrap_or_else(|held| held.into_inner())
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
    pub(super) fn changing(&self, transaction: &Transaction) -> Changing<'_> {
        let mut places: Vec<Place> = transaction
            .operations
            .iter()
            .map(Operation::place)
            .filter(|place| matches!(place, Place::Inode(_) | Place::Directory(_)))
            .collect();
        places.sort();
        places.dedup();
        self.changing_places(places)
    }

    /// Before changes of these keys are sent to Redis.
    pub(super) fn changing_places(&self, places: Vec<Place>) -> Changing<'_> {
        let ticket = self.locked().ticket();
        Changing {
            memory: self,
            ticket,
            places,
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
/// may have touched: Redis tells us nothing of our own changes.
pub(super) struct Changing<'m> {
    memory: &'m Memory,
    ticket: Ticket,
    places: Vec<Place>,
}

impl Changing<'_> {
    /// It did not happen: what is remembered stays.
    pub(super) fn did_not_happen(mut self) {
        self.places.clear();
    }

    /// It happened: what it wrote is remembered, where no one else wrote meanwhile.
    pub(super) fn happened(mut self, transaction: &Transaction, counts: &[i64]) {
        let mut cache = self.memory.locked();
        let own = cache.own_change(self.ticket, &std::mem::take(&mut self.places));
        let mut counts = counts.iter();
        let mut times: BTreeMap<Ino, Time> = BTreeMap::new();
        let mut numbers: BTreeMap<Ino, u32> = BTreeMap::new();
        let mut made = Vec::new();
        for operation in &transaction.operations {
            match operation {
                Operation::Set(Place::Inode(ino), bytes) => {
                    if let Ok(record) = Record::from_bytes(bytes.clone()) {
                        own.put_inode(&mut cache, *ino, record);
                    }
                }
                Operation::SetField(Place::Directory(ino), field, value) => {
                    if field == TIME_FIELD
                        && let Some(time) = parse(value)
                    {
                        times.insert(*ino, time);
                    } else if field == SUBDIRECTORIES_FIELD {
                        made.push(*ino);
                    }
                }
                Operation::Increase(place, field, _) => {
                    let count = counts.next().copied().unwrap_or(0);
                    if let (Place::Directory(ino), SUBDIRECTORIES_FIELD) = (place, &field[..]) {
                        numbers.insert(*ino, u32::try_from(count).unwrap_or(0));
                    }
                }
                _ => {}
            }
        }
        for (ino, time) in times {
            if made.contains(&ino) {
                let subdirectories = 0;
                let meta = DirectoryMeta {
                    time,
                    subdirectories,
                };
                own.put_new_directory(&mut cache, ino, meta);
            } else if let Some(&subdirectories) = numbers.get(&ino) {
                let meta = DirectoryMeta {
                    time,
                    subdirectories,
                };
                own.put_meta(&mut cache, ino, meta);
            }
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
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
