//! What this node changed in the catalog, kept in its data directory (`.ks/journal/`): all nodes' journals together are the tree.
//!
//! Who takes part: every commit of this node's is appended as soon as Redis has carried it out and before anybody hears of it;
//! `recovery` reads the journals when Redis has lost what it had.
//!
//! One entry is what a change left of one inode: its record, that it is gone, a further link, a directory's time. Entries are ordered by
//! the event after which they stand; of two of the same thing the later one counts, on whatever node it was written. Names need no
//! entries: a record says where it stands.
//!
//! Always: a process that is killed loses nothing that was appended (a write of the system each); a torn or damaged entry is passed over; a
//! part is folded (`FOLD_AT_BYTES`) into what still counts, so that the journal grows with the files and not with the changes. What is
//! gone is remembered for `GONE_KEPT_MS`, at most `GONE_MAX` inodes a part: so long a node may stay away and not bring them back.
//!
//! Not for contents: those are the plain files.
use super::EventId;
use super::transaction::{Operation, Place, TIME_FIELD, Transaction};
use crate::record::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// Files that the journal is divided into, by inode number: one at a time is in memory.
pub const PARTS: usize = 64;
/// A part is folded when it is larger than this and three times what it was after the last folding.
const FOLD_AT_BYTES: u64 = 1 << 20;
/// How long it is remembered that an inode is gone, milliseconds.
const GONE_KEPT_MS: u64 = 90 * 24 * 3600 * 1000;
/// Inodes of a part that are remembered as gone; the oldest are forgotten first.
const GONE_MAX: usize = 65_536;
/// No entry is longer: a record with all its extended attributes.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Before each entry: its length and a check of its bytes, 32-bit little-endian each.
const HEAD_BYTES: usize = 8;
/// Events whose journaling is remembered, so that the stream need not tell of them again.
const RECENT_MAX: usize = 8_192;
/// The file that names the cluster.
const CLUSTER: &str = "cluster";

/// After which change something stands: an event's place in the stream, and what tells changes without an event after it apart.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stand(pub u64, pub u64, pub u64);

impl Stand {
    /// Before all that anybody has done: of what a node has only read.
    pub const HEARSAY: Self = Self(0, 0, 0);

    /// Of a commit whose reply told these two.
    pub fn of(event: EventId, previous: EventId) -> Self {
        match event {
            EventId(0, number) => Self(previous.0, previous.1, number),
            EventId(ms, sequence) => Self(ms, sequence, 0),
        }
    }

    /// As text whose order is the same; before the `~` of what was changed since.
    pub fn to_text(self) -> String {
        format!("{:012x}{:08x}{:08x}", self.0, self.1, self.2)
    }

    /// Reads `to_text`; `None`: a `~`, or nonsense.
    pub fn from_text(text: &str) -> Option<Self> {
        let part = |range| u64::from_str_radix(text.get(range)?, 16).ok();
        Some(Self(part(0..12)?, part(12..20)?, part(20..28)?))
    }
}

/// What a change left of one inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Its record, as Redis has it.
    Record(Vec<u8>),
    /// It went with its last name.
    Gone,
    /// A further hard link came (`true`) or went.
    Link(Ino, Vec<u8>, bool),
    /// A directory's entries changed.
    Time(Time),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whose.
    pub ino: Ino,
    /// The event with which it happened, or the last one before.
    pub stand: Stand,
    /// What.
    pub what: What,
}

/// What a journal says of one inode, all entries taken together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// The record, or that it is gone.
    pub record: Option<(Stand, Option<Vec<u8>>)>,
    /// Further links that came and went.
    pub links: BTreeMap<Link, (Stand, bool)>,
    /// A directory's time.
    pub time: Option<(Stand, Time)>,
}

impl Folded {
    fn add(&mut self, entry: Entry) {
        let stand = entry.stand;
        match entry.what {
            What::Record(bytes) => self.put_record(stand, Some(bytes)),
            What::Gone => self.put_record(stand, None),
            What::Link(parent, name, is_there) => {
                let slot = self.links.entry(Link { parent, name });
                let known = slot.or_insert((stand, is_there));
                if known.0 <= stand {
                    *known = (stand, is_there);
                }
            }
            What::Time(time) => {
                if self.time.is_none_or(|(known, _)| known <= stand) {
                    self.time = Some((stand, time));
                }
            }
        }
    }

    fn put_record(&mut self, stand: Stand, record: Option<Vec<u8>>) {
        if self
            .record
            .as_ref()
            .is_none_or(|(known, _)| *known <= stand)
        {
            self.record = Some((stand, record));
        }
    }

    fn is_gone(&self) -> Option<Stand> {
        match self.record {
            Some((stand, None)) => Some(stand),
            _ => None,
        }
    }

    fn entries(&self, ino: Ino) -> Vec<Entry> {
        let entry = |stand, what| Entry { ino, stand, what };
        let mut entries = Vec::new();
        match &self.record {
            Some((stand, Some(bytes))) => entries.push(entry(*stand, What::Record(bytes.clone()))),
            // Nothing else of it counts.
            Some((stand, None)) => return vec![entry(*stand, What::Gone)],
            None => {}
        }
        for (link, (stand, is_there)) in &self.links {
            let what = What::Link(link.parent, link.name.clone(), *is_there);
            entries.push(entry(*stand, what));
        }
        entries.extend(
            self.time
                .map(|(stand, time)| entry(stand, What::Time(time))),
        );
        entries
    }
}

/// What a committed transaction leaves of each inode that it touched.
pub fn entries_of(transaction: &Transaction, stand: Stand) -> Vec<Entry> {
    let mut entries = Vec::new();
    for operation in &transaction.operations {
        let (ino, what) = match operation {
            Operation::Set(Place::Inode(ino), bytes) => (*ino, What::Record(bytes.clone())),
            Operation::Delete(Place::Inode(ino)) => (*ino, What::Gone),
            Operation::AddMember(Place::Links(ino), member)
            | Operation::RemoveMember(Place::Links(ino), member) => {
                let Ok(link) = Link::from_bytes(member) else {
                    continue;
                };
                let is_there = matches!(operation, Operation::AddMember(..));
                (*ino, What::Link(link.parent, link.name, is_there))
            }
            Operation::SetField(Place::Directory(ino), field, value) if field == TIME_FIELD => {
                match super::memory::parse(value) {
                    Some(time) => (*ino, What::Time(time)),
                    None => continue,
                }
            }
            _ => continue,
        };
        entries.push(Entry { ino, stand, what });
    }
    entries
}

fn check_of(bytes: &[u8]) -> [u8; 4] {
    let mut check = [0; 4];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..4]);
    check
}

fn write_entry(into: &mut Vec<u8>, entry: &Entry) {
    let bytes = postcard::to_stdvec(entry).expect("plain data always encodes");
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&check_of(&bytes));
    into.extend_from_slice(&bytes);
}

/// The entry at the beginning of `bytes`, and how many bytes it has.
fn read_entry(bytes: &[u8]) -> Option<(Entry, usize)> {
    let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length > ENTRY_BYTES_MAX {
        return None;
    }
    let body = bytes.get(HEAD_BYTES..HEAD_BYTES + length)?;
    if check_of(body) != bytes[4..HEAD_BYTES] {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, HEAD_BYTES + length))
}

/// All that counts in the bytes of a part; what is damaged is passed over.
fn fold(bytes: &[u8]) -> BTreeMap<Ino, Folded> {
    let mut folded: BTreeMap<Ino, Folded> = BTreeMap::new();
    let mut at = 0;
    while at < bytes.len() {
        match read_entry(&bytes[at..]) {
            Some((entry, length)) => {
                folded.entry(entry.ino).or_default().add(entry);
                at += length;
            }
            None => at += 1,
        }
    }
    folded
}

/// Forgets what has been gone for long enough.
fn forget_gone(folded: &mut BTreeMap<Ino, Folded>, now_ms: u64) {
    let gone = folded
        .iter()
        .filter_map(|(ino, of)| Some((of.is_gone()?, *ino)));
    let mut gone: Vec<(Stand, Ino)> = gone.collect();
    gone.sort_unstable();
    let too_many = gone.len().saturating_sub(GONE_MAX);
    for (at, (stand, ino)) in gone.into_iter().enumerate() {
        if at < too_many || stand.0.saturating_add(GONE_KEPT_MS) < now_ms {
            folded.remove(&ino);
        }
    }
}

/// A part as it is open.
struct Part {
    file: File,
    bytes: u64,
    folded_bytes: u64,
}

/// Events that this process journaled.
#[derive(Default)]
struct Recent {
    set: HashSet<Stand>,
    order: VecDeque<Stand>,
}

/// The journal; share it in an `Arc`.
pub struct Journal {
    directory: PathBuf,
    parts: Vec<Mutex<Option<Part>>>,
    recent: Mutex<Recent>,
    /// What was noted from hearsay, by a check of the record.
    noted: Mutex<HashMap<Ino, [u8; 4]>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|held| held.into_inner())
}

impl Journal {
    /// Opens (at first makes) the journal in `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            recent: Mutex::default(),
            noted: Mutex::default(),
        })
    }

    /// Whose changes these are; `None`: nobody's yet.
    pub fn cluster(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.join(CLUSTER)).ok()?;
        let name = text.trim().to_owned();
        (!name.is_empty()).then_some(name)
    }

    /// From now on these are changes of that cluster's tree. What there is of another one's is kept beside, and not read any more.
    pub fn belongs_to(&self, cluster: &str) -> io::Result<()> {
        match self.cluster() {
            Some(known) if known == cluster => return Ok(()),
            Some(other) => self.put_aside(&other)?,
            None => {}
        }
        let (name, fresh) = (
            self.directory.join(CLUSTER),
            self.directory.join("cluster.tmp"),
        );
        std::fs::write(&fresh, format!("{cluster}\n"))?;
        File::open(&fresh)?.sync_all()?;
        std::fs::rename(fresh, name)
    }

    fn put_aside(&self, other: &str) -> io::Result<()> {
        let mut aside = self.directory.clone().into_os_string();
        aside.push(format!(".{other}"));
        for part in &self.parts {
            *locked(part) = None;
        }
        std::fs::rename(&self.directory, &aside)?;
        std::fs::create_dir_all(&self.directory)
    }

    fn path(&self, part: usize) -> PathBuf {
        self.directory.join(format!("{part:02}"))
    }

    fn open_part(&self, part: usize) -> io::Result<Part> {
        let mut options = File::options();
        let file = options.create(true).append(true).mode(0o600);
        let file = file.open(self.path(part))?;
        let bytes = file.metadata()?.len();
        Ok(Part {
            file,
            bytes,
            folded_bytes: bytes / 2,
        })
    }

    /// Adds what a committed change left, all of it in one write a part.
    pub fn append(&self, entries: &[Entry]) -> io::Result<()> {
        let mut by_part: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for entry in entries {
            let part = (entry.ino % PARTS as u64) as usize;
            write_entry(by_part.entry(part).or_default(), entry);
        }
        for (part, bytes) in by_part {
            let mut held = locked(&self.parts[part]);
            let open = match held.take() {
                Some(open) => held.insert(open),
                None => held.insert(self.open_part(part)?),
            };
            open.file.write_all(&bytes)?;
            open.bytes += bytes.len() as u64;
            if open.bytes > FOLD_AT_BYTES.max(3 * open.folded_bytes) {
                *held = Some(self.fold_part(part)?);
            }
        }
        let mut last = None;
        for entry in entries {
            if last.replace(entry.stand) != Some(entry.stand) {
                self.remember(entry.stand);
            }
        }
        Ok(())
    }

    /// Writes the part anew with what still counts; its lock is held.
    fn fold_part(&self, part: usize) -> io::Result<Part> {
        let path = self.path(part);
        let mut folded = fold(&std::fs::read(&path)?);
        forget_gone(
            &mut folded,
            u64::try_from(super::now() / 1_000_000).unwrap_or(0),
        );
        let mut bytes = Vec::new();
        for (ino, of) in &folded {
            of.entries(*ino)
                .iter()
                .for_each(|entry| write_entry(&mut bytes, entry));
        }
        let fresh = path.with_extension("tmp");
        std::fs::write(&fresh, &bytes)?;
        File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        let mut part = self.open_part(part)?;
        part.folded_bytes = part.bytes;
        Ok(part)
    }

    /// What a part says, by inode. Blocks on the disk.
    pub fn read(&self, part: usize) -> io::Result<BTreeMap<Ino, Folded>> {
        match std::fs::read(self.path(part)) {
            Ok(bytes) => Ok(fold(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// A change of this node's after which nothing is to be journaled: the journals know it already.
    pub fn has_nothing_of(&self, stand: Stand) {
        self.remember(stand);
    }

    fn remember(&self, stand: Stand) {
        let mut recent = locked(&self.recent);
        if recent.set.insert(stand) {
            recent.order.push_back(stand);
        }
        if recent.order.len() > RECENT_MAX
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.set.remove(&oldest);
        }
    }

    /// Whether a record has not been noted from hearsay yet; from now on it has.
    pub fn is_news(&self, ino: Ino, record: &[u8]) -> bool {
        let mut noted = locked(&self.noted);
        if noted.len() >= RECENT_MAX {
            noted.clear();
        }
        let check = check_of(record);
        noted.insert(ino, check) != Some(check)
    }

    /// Whether this process has journaled the change of that event.
    pub fn has(&self, event: EventId) -> bool {
        locked(&self.recent)
            .set
            .contains(&Stand(event.0, event.1, 0))
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
