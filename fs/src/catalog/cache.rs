//! What this node remembers of the catalog: inodes and directories, valid until Redis pushes that they changed.
//!
//! Pure: no Redis, no clock, no lock inside. Who takes part: reads take a `Ticket` before they ask and put their answer
//! in with it; what others change is told by key and invalidates; own changes (whose telling is not heeded) drop or renew
//! what they touched.
//!
//! What always holds:
//! - An answer that raced with a change of its key is not kept: the change came after the ticket was taken.
//! - Everything is bounded (`INODES_MAX`, `NAMES_MAX`, `RECENT_MAX`); what is evicted is asked for again.
//! - That a name is not there is remembered by a directory that is here whole, and by nothing else. It is told (`absent`)
//!   only where this node made the last change of that directory, and a moment ago: a program that makes one new file
//!   after the other. Else the answer would be older than what others did by the time their telling takes to arrive.
mod clock;

use super::namespace::Record;
use super::transaction::Place;
use crate::record::{Entry, Ino, Kind, ROOT, Time};
use clock::Clock;
use std::collections::{BTreeMap, HashMap};

/// Inode records kept (about 400 bytes each).
pub const INODES_MAX: usize = 65_536;
/// Names kept over all directories (about 80 bytes each); a larger directory is never kept whole.
pub const NAMES_MAX: usize = 131_072;
/// Directories whose last known attributes are kept (about 400 bytes each).
pub const LAST_KNOWN_MAX: usize = 4096;
/// Changed keys remembered for reads under way; beyond it, those reads are not kept.
const RECENT_MAX: usize = 16_384;

/// Taken before asking Redis; says what the answer may be older than. Give it back with `release`.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Ticket(u64);

/// A directory's own numbers, which stand beside its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryMeta {
    /// When its entries last changed (or utimens said so).
    pub time: Time,
    /// How many of them are directories.
    pub subdirectories: u32,
}

/// A directory's record and numbers, the latest that were seen.
#[derive(Default, Clone)]
struct LastKnown {
    record: Option<Record>,
    meta: Option<DirectoryMeta>,
}

#[derive(Default, Clone)]
struct Directory {
    meta: Option<DirectoryMeta>,
    names: HashMap<Box<[u8]>, Entry>,
    whole: bool,
    /// This node made the last change, at `meta`'s time.
    is_ours: bool,
}

/// The cache.
pub struct Cache {
    inodes: Clock<Ino, Record>,
    directories: Clock<Ino, Directory>,
    /// What directories were like when they were forgotten: better than nothing while Redis is away.
    last_known: Clock<Ino, LastKnown>,
    /// Counts invalidations.
    sequence: u64,
    /// Answers to tickets below it are not kept.
    floor: u64,
    /// When each key last changed, as far as a ticket under way may need it.
    recent: HashMap<Place, u64>,
    /// Tickets under way: how many of each.
    tickets: BTreeMap<u64, usize>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::with_bounds(INODES_MAX, NAMES_MAX)
    }
}

impl Cache {
    /// An empty cache of at most so many inodes and names.
    pub fn with_bounds(inodes_max: usize, names_max: usize) -> Self {
        Self {
            inodes: Clock::new(inodes_max),
            directories: Clock::new(names_max),
            last_known: Clock::new(LAST_KNOWN_MAX),
            sequence: 0,
            floor: 0,
            recent: HashMap::new(),
            tickets: BTreeMap::new(),
        }
    }

    // -- reads under way

    /// Before a question to Redis.
    pub fn ticket(&mut self) -> Ticket {
        *self.tickets.entry(self.sequence).or_default() += 1;
        Ticket(self.sequence)
    }

    /// The question was answered (or given up), and what was to be kept has been put in.
    pub fn release(&mut self, ticket: Ticket) {
        if let Some(count) = self.tickets.get_mut(&ticket.0) {
            *count -= 1;
            if *count == 0 {
                self.tickets.remove(&ticket.0);
            }
        }
        if self.tickets.is_empty() {
            self.recent.clear();
        }
    }

    fn is_fresh(&self, ticket: Ticket, place: Place) -> bool {
        ticket.0 >= self.floor && self.recent.get(&place).is_none_or(|&at| at <= ticket.0)
    }

    // -- changes

    /// Another client changed this key.
    pub fn invalidate(&mut self, place: Place) {
        match place {
            Place::Inode(ino) => {
                if let Some(record) = self.inodes.remove(&ino)
                    && record.inode.kind == Kind::Directory
                {
                    let meta = self.directories.get(&ino).and_then(|found| found.meta);
                    self.note_last(ino, Some(record), meta);
                }
            }
            Place::Directory(ino) => {
                if let Some(directory) = self.directories.remove(&ino)
                    && directory.meta.is_some()
                {
                    let record = self.inodes.get(&ino).cloned();
                    self.note_last(ino, record, directory.meta);
                }
            }
            _ => return,
        }
        self.sequence += 1;
        if self.tickets.is_empty() {
            return;
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.clear();
            self.floor = self.sequence;
        }
        self.recent.insert(place, self.sequence);
    }

    fn note_last(&mut self, ino: Ino, record: Option<Record>, meta: Option<DirectoryMeta>) {
        let before = self.last_known.remove(&ino).unwrap_or_default();
        let last = LastKnown {
            record: record.or(before.record),
            meta: meta.or(before.meta),
        };
        self.last_known.insert(ino, last, 1);
    }

    /// A directory as it was when it was last known: for the time when Redis is away. Its names are not part of it.
    pub fn last_known(&mut self, ino: Ino) -> Option<(Record, DirectoryMeta)> {
        let (record, meta) = (self.inode(ino), self.meta(ino));
        let last = self.last_known.get(&ino).cloned().unwrap_or_default();
        Some((record.or(last.record)?, meta.or(last.meta)?))
    }

    /// Nothing can be trusted any more.
    pub fn reset(&mut self) {
        // The root is asked for whatever happens; other directories only when somebody is in them.
        let (record, meta) = (self.inode(ROOT), self.meta(ROOT));
        self.note_last(ROOT, record, meta);
        self.inodes.clear();
        self.directories.clear();
        self.recent.clear();
        self.sequence += 1;
        self.floor = self.sequence;
    }

    /// This node's own change of these keys was committed; `ticket` was taken before it was sent. What was known of
    /// them is taken out; what nobody else changed meanwhile can be put back by the result, as the change left it.
    /// (The caller still releases the ticket.)
    pub fn own_change(&mut self, ticket: Ticket, places: &[Place]) -> OwnChange {
        let mut own = OwnChange::default();
        for place in places {
            if self.is_fresh(ticket, *place) {
                own.fresh.push(*place);
                if let Place::Directory(ino) = place
                    && let Some(directory) = self.directories.remove(ino)
                {
                    own.directories.insert(*ino, directory);
                }
            }
        }
        for place in places {
            self.invalidate(*place);
        }
        own
    }

    // -- what is remembered

    /// An inode's record.
    pub fn inode(&mut self, ino: Ino) -> Option<Record> {
        self.inodes.get(&ino).cloned()
    }

    /// A directory's own numbers.
    pub fn meta(&mut self, ino: Ino) -> Option<DirectoryMeta> {
        self.directories.get(&ino)?.meta
    }

    /// What a name stands for, where that is remembered.
    pub fn entry(&mut self, parent: Ino, name: &[u8]) -> Option<Entry> {
        self.directories.get(&parent)?.names.get(name).copied()
    }

    /// Whether a name is certainly not there: see the module. `now`, `within`: nanoseconds.
    pub fn absent(&mut self, parent: Ino, name: &[u8], now: Time, within: Time) -> bool {
        let Some(directory) = self.directories.get(&parent) else {
            return false;
        };
        let changed = directory.meta.map_or(Time::MIN, |meta| meta.time);
        let is_hot = directory.is_ours && (0..within).contains(&now.saturating_sub(changed));
        directory.whole && is_hot && !directory.names.contains_key(name)
    }

    /// All names, where the whole directory is remembered.
    pub fn names(&mut self, ino: Ino) -> Option<Vec<(Vec<u8>, Entry)>> {
        let directory = self.directories.get(&ino)?;
        directory.whole.then(|| {
            let names = directory.names.iter();
            names.map(|(name, entry)| (name.to_vec(), *entry)).collect()
        })
    }

    /// How many names of a directory are remembered.
    pub fn names_known(&mut self, ino: Ino) -> usize {
        self.directories
            .get(&ino)
            .map_or(0, |directory| directory.names.len())
    }

    // -- answers

    /// Keeps an inode's record.
    pub fn put_inode(&mut self, ticket: Ticket, ino: Ino, record: Record) {
        if self.is_fresh(ticket, Place::Inode(ino)) {
            self.inodes.insert(ino, record, 1);
        }
    }

    /// Keeps a directory's own numbers.
    pub fn put_meta(&mut self, ticket: Ticket, ino: Ino, meta: DirectoryMeta) {
        if self.is_fresh(ticket, Place::Directory(ino)) {
            self.change_directory(ino, |directory| directory.meta = Some(meta));
        }
    }

    /// Keeps what one name stands for.
    pub fn put_entry(&mut self, ticket: Ticket, parent: Ino, name: &[u8], entry: Entry) {
        if self.is_fresh(ticket, Place::Directory(parent)) {
            self.change_directory(parent, |directory| {
                directory.names.insert(name.into(), entry);
            });
        }
    }

    /// Keeps what several names stand for.
    pub fn put_entries(
        &mut self,
        ticket: Ticket,
        parent: Ino,
        entries: Vec<(&[u8], Entry, Record)>,
    ) {
        if self.is_fresh(ticket, Place::Directory(parent)) {
            self.change_directory(parent, |directory| {
                let names = entries.iter();
                let names = names.map(|(name, entry, _)| ((*name).into(), *entry));
                directory.names.extend(names);
            });
        }
        for (_, entry, record) in entries {
            self.put_inode(ticket, entry.ino, record);
        }
    }

    /// Keeps a whole directory.
    pub fn put_names<'n>(
        &mut self,
        ticket: Ticket,
        ino: Ino,
        meta: DirectoryMeta,
        names: impl Iterator<Item = (&'n [u8], Entry)>,
    ) {
        if self.is_fresh(ticket, Place::Directory(ino)) {
            let directory = Directory {
                meta: Some(meta),
                names: names.map(|(name, entry)| (name.into(), entry)).collect(),
                whole: true,
                is_ours: false,
            };
            let weight = 1 + directory.names.len();
            self.directories.insert(ino, directory, weight);
        }
    }

    fn change_directory(&mut self, ino: Ino, change: impl FnOnce(&mut Directory)) {
        let mut directory = self.directories.remove(&ino).unwrap_or_default();
        change(&mut directory);
        let weight = 1 + directory.names.len();
        self.directories.insert(ino, directory, weight);
    }
}

/// Which keys of an own change no one else touched meanwhile: what was written to them may be kept.
#[derive(Default)]
pub struct OwnChange {
    fresh: Vec<Place>,
    /// What was remembered of them.
    directories: HashMap<Ino, Directory>,
}

impl OwnChange {
    /// Keeps a record that was written.
    pub fn put_inode(&self, cache: &mut Cache, ino: Ino, record: Record) {
        if self.fresh.contains(&Place::Inode(ino)) {
            cache.inodes.insert(ino, record, 1);
        }
    }

    /// Keeps a directory as the change left it: its own numbers where they are known, and its names.
    pub fn put_directory(
        &mut self,
        cache: &mut Cache,
        ino: Ino,
        meta: Option<DirectoryMeta>,
        names: &[(Vec<u8>, Option<Entry>)],
    ) {
        if !self.fresh.contains(&Place::Directory(ino)) {
            return;
        }
        let mut directory = self.directories.remove(&ino).unwrap_or_default();
        directory.meta = meta;
        directory.is_ours = meta.is_some();
        for (name, entry) in names {
            match entry {
                Some(entry) => drop(directory.names.insert(name[..].into(), *entry)),
                None => drop(directory.names.remove(&name[..])),
            }
        }
        let weight = 1 + directory.names.len();
        cache.directories.insert(ino, directory, weight);
    }

    /// A directory that was made just now: nothing is in it.
    pub fn put_new_directory(&self, cache: &mut Cache, ino: Ino, meta: DirectoryMeta) {
        if self.fresh.contains(&Place::Directory(ino)) {
            let directory = Directory {
                meta: Some(meta),
                names: HashMap::new(),
                whole: true,
                is_ours: true,
            };
            cache.directories.insert(ino, directory, 1);
        }
    }
}

#[cfg(test)]
mod tests;
