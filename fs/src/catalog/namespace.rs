//! What each change of the tree means, as pure functions: from the records that were read to a `Transaction`.
//!
//! A function that needs a record it was not given stops with `Stop::Need`; the caller reads it and calls again. What it
//! decided by is among the transaction's conditions, so a decision on an old record is never carried out.
//!
//! What always holds:
//! - Changes in one directory do not conflict with each other: its time and its count of subdirectories are fields that
//!   are written without a condition. It exists as long as its time field does.
//! - An event's paths are exact: the directories on the way (their parents and names) are conditions.
//! - A directory never becomes its own descendant: all directories above the new place are conditions.
//! - An inode goes with its last name; when the first of several goes, another becomes its `parent` and `name`.
//!
//! Not here: permissions (the kernel's), what stands in data directories (the store's).
use super::transaction::{
    Check, EMPTY_DIRECTORY_FIELDS, Operation, Place, SUBDIRECTORIES_FIELD, TIME_FIELD, Transaction,
};
use crate::path::{STATE_DIR, TreePath, check_name};
use crate::record::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

pub mod attributes;
pub mod rename;
pub mod told;

/// Deepest directory.
pub const DEPTH_MAX: usize = 1024;
/// Most hard links of one file.
pub const LINKS_MAX: u32 = 65_000;

/// An inode's record as it was read: decoded, and its very bytes for conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub inode: Arc<Inode>,
    /// What Redis has.
    pub bytes: Arc<[u8]>,
}

impl Record {
    /// Reads what Redis has.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, DamagedRecord> {
        Ok(Self {
            inode: Arc::new(decode(&bytes)?),
            bytes: bytes.into(),
        })
    }
    /// The record of a new inode.
    pub fn new(inode: Inode) -> Self {
        Self {
            bytes: encode(&inode).into(),
            inode: Arc::new(inode),
        }
    }
}

/// A record that a decision needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// An inode's record.
    Inode(Ino),
    /// What a name in a directory stands for.
    Entry(Ino, Vec<u8>),
    /// An inode's further links.
    Links(Ino),
}

/// Why there is no transaction (yet).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// POSIX says no.
    Posix(i32),
    /// This must be read first.
    Need(Need),
}

/// A transaction and what its success means to the caller.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    /// To be committed; empty: there is nothing to do.
    pub transaction: Transaction,
    /// The operation's result.
    pub value: T,
}

/// The records that were read for one change.
#[derive(Clone, Debug, Default)]
pub struct Known {
    inodes: HashMap<Ino, Option<Record>>,
    entries: HashMap<(Ino, Vec<u8>), Option<Entry>>,
    links: HashMap<Ino, BTreeSet<Link>>,
}

impl Known {
    /// Adds an inode's record; `None`: there is none.
    pub fn learn_inode(&mut self, ino: Ino, record: Option<Record>) {
        self.inodes.insert(ino, record);
    }
    /// Adds what a name stands for; `None`: nothing.
    pub fn learn_entry(&mut self, parent: Ino, name: &[u8], entry: Option<Entry>) {
        self.entries.insert((parent, name.to_vec()), entry);
    }
    /// Adds an inode's further links.
    pub fn learn_links(&mut self, ino: Ino, links: BTreeSet<Link>) {
        self.links.insert(ino, links);
    }

    fn record(&self, ino: Ino) -> Result<Option<&Record>, Stop> {
        match self.inodes.get(&ino) {
            Some(record) => Ok(record.as_ref()),
            None => Err(Stop::Need(Need::Inode(ino))),
        }
    }
    /// The record, or this errno where there is none.
    pub(super) fn inode(&self, ino: Ino, errno: i32) -> Result<&Record, Stop> {
        self.record(ino)?.ok_or(Stop::Posix(errno))
    }
    fn entry(&self, parent: Ino, name: &[u8]) -> Result<Option<Entry>, Stop> {
        match self.entries.get(&(parent, name.to_vec())) {
            Some(entry) => Ok(*entry),
            None => Err(Stop::Need(Need::Entry(parent, name.to_vec()))),
        }
    }
    fn links(&self, ino: Ino) -> Result<&BTreeSet<Link>, Stop> {
        self.links.get(&ino).ok_or(Stop::Need(Need::Links(ino)))
    }
}

/// The directories from the root (left out) down to one (included).
pub(super) struct Ancestors<'k>(Vec<(Ino, &'k Record)>);

impl<'k> Ancestors<'k> {
    pub(super) fn of(known: &'k Known, directory: Ino) -> Result<Self, Stop> {
        let mut chain = Vec::new();
        let mut at = directory;
        while at != ROOT {
            if chain.len() == DEPTH_MAX {
                return Err(Stop::Posix(libc::ELOOP));
            }
            let record = known.inode(at, libc::ENOENT)?;
            chain.push((at, record));
            at = record.inode.parent;
        }
        chain.reverse();
        Ok(Self(chain))
    }
    pub(super) fn path(&self) -> TreePath {
        let names = self.0.iter();
        names.fold(TreePath::root(), |path, (_, record)| {
            path.join(&record.inode.name)
        })
    }
    fn contains(&self, ino: Ino) -> bool {
        self.0.iter().any(|(above, _)| *above == ino)
    }
    /// Makes them conditions.
    fn expect(&self, transaction: &mut Transaction) {
        for (ino, record) in &self.0 {
            expect_record(transaction, *ino, record);
        }
    }
}

fn expect_record(transaction: &mut Transaction, ino: Ino, record: &Record) {
    transaction.expect(Check::Equals(Place::Inode(ino), record.bytes.to_vec()));
}

/// The entry must still stand for the same.
fn expect_entry(transaction: &mut Transaction, parent: Ino, name: &[u8], entry: Entry) {
    transaction.expect(Check::FieldEquals(
        Place::Directory(parent),
        name.to_vec(),
        entry.to_bytes(),
    ));
}

fn set_inode(transaction: &mut Transaction, ino: Ino, inode: &Inode) {
    transaction.then(Operation::Set(Place::Inode(ino), encode(inode)));
}

fn set_entry(transaction: &mut Transaction, parent: Ino, name: &[u8], entry: Entry) {
    transaction.then(Operation::SetField(
        Place::Directory(parent),
        name.to_vec(),
        entry.to_bytes(),
    ));
}

fn delete_entry(transaction: &mut Transaction, parent: Ino, name: &[u8]) {
    transaction.then(Operation::DeleteField(
        Place::Directory(parent),
        name.to_vec(),
    ));
}

/// A directory's entries changed now; `subdirectories`: by how many there are more. One `Increase` each, always: its
/// reply tells the caller the count.
fn touch_directory(transaction: &mut Transaction, directory: Ino, time: Time, subdirectories: i64) {
    let place = Place::Directory(directory);
    transaction.then(Operation::SetField(
        place,
        TIME_FIELD.to_vec(),
        time.to_string().into_bytes(),
    ));
    transaction.then(Operation::Increase(
        place,
        SUBDIRECTORIES_FIELD.to_vec(),
        subdirectories,
    ));
}

/// Whether a name may be given in this directory; else the errno.
pub fn check_new_name(parent: Ino, name: &[u8]) -> Result<(), i32> {
    check_name(name)?;
    if parent == ROOT && name == STATE_DIR.as_bytes() {
        return Err(libc::EPERM);
    }
    Ok(())
}

fn is_directory(kind: Kind) -> i64 {
    i64::from(kind == Kind::Directory)
}

/// An inode as it stands in the tree once `create` has entered it. A file that was never written becomes version 1: the
/// empty content, whole at its home, so that any node can open it at once.
pub fn as_created(mut inode: Inode, parent: Ino, name: &[u8]) -> Inode {
    inode.parent = parent;
    inode.name = name.to_vec();
    inode.nlink = if inode.kind == Kind::Directory { 2 } else { 1 };
    if inode.kind == Kind::Symlink {
        inode.size = inode.target.len() as u64;
    }
    if inode.kind == Kind::File && inode.version == 0 {
        inode.version = 1;
        inode.size = 0;
        inode.blake3 = Some(*blake3::hash(b"").as_bytes());
    }
    inode
}

/// Whether a new entry changes its directory's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentTime {
    /// As a creation does.
    Changes(Time),
    /// Stays: what is entered stood there before the catalog knew of it (`adopt`).
    Stays,
}

/// Enters a new inode of any kind. Needs no record: the conditions say all.
pub fn create(
    parent: Ino,
    name: &[u8],
    ino: Ino,
    inode: Inode,
    parent_time: ParentTime,
) -> Result<Plan<Inode>, Stop> {
    check_new_name(parent, name).map_err(Stop::Posix)?;
    let inode = as_created(inode, parent, name);
    let mut change = Transaction::default();
    let directory = Place::Directory(parent);
    change.require(Check::Field(directory, TIME_FIELD.to_vec()), libc::ENOENT);
    change.require(Check::NoField(directory, name.to_vec()), libc::EEXIST);
    set_inode(&mut change, ino, &inode);
    let kind = inode.kind;
    set_entry(&mut change, parent, name, Entry { ino, kind });
    match parent_time {
        ParentTime::Changes(time) => {
            touch_directory(&mut change, parent, time, is_directory(kind));
        }
        ParentTime::Stays => change.then(Operation::Increase(
            directory,
            SUBDIRECTORIES_FIELD.to_vec(),
            is_directory(kind),
        )),
    }
    if kind == Kind::Directory {
        new_directory(&mut change, ino, inode.mtime);
    }
    if kind == Kind::File && inode.home != NodeId::NONE {
        set_holding(&mut change, ino, &inode);
    }
    change.event = Some(Event::Linked {
        parent,
        name: name.to_vec(),
        ino,
    });
    Ok(Plan {
        transaction: change,
        value: inode,
    })
}

/// The two fields of an empty directory.
pub fn new_directory(change: &mut Transaction, ino: Ino, time: Time) {
    let place = Place::Directory(ino);
    let time = time.to_string().into_bytes();
    change.then(Operation::SetField(place, TIME_FIELD.to_vec(), time));
    change.then(Operation::SetField(
        place,
        SUBDIRECTORIES_FIELD.to_vec(),
        b"0".to_vec(),
    ));
}

/// The home holds all of the current version.
pub(super) fn set_holding(change: &mut Transaction, ino: Ino, inode: &Inode) {
    let holding = Holding {
        version: inode.version,
        bytes: inode.size,
        is_put: false,
    };
    change.then(Operation::SetField(
        Place::Holdings(ino),
        inode.home.to_string().into_bytes(),
        holding.to_bytes(),
    ));
}

/// A further hard link.
pub fn link(
    known: &Known,
    ino: Ino,
    parent: Ino,
    name: &[u8],
    now: Time,
) -> Result<Plan<Inode>, Stop> {
    check_new_name(parent, name).map_err(Stop::Posix)?;
    let record = known.inode(ino, libc::ENOENT)?;
    if record.inode.kind == Kind::Directory {
        return Err(Stop::Posix(libc::EPERM));
    }
    if record.inode.nlink >= LINKS_MAX {
        return Err(Stop::Posix(libc::EMLINK));
    }
    let mut inode = (*record.inode).clone();
    inode.nlink += 1;
    inode.ctime = now;
    let mut change = Transaction::default();
    let directory = Place::Directory(parent);
    change.require(Check::Field(directory, TIME_FIELD.to_vec()), libc::ENOENT);
    change.require(Check::NoField(directory, name.to_vec()), libc::EEXIST);
    expect_record(&mut change, ino, record);
    set_inode(&mut change, ino, &inode);
    let kind = inode.kind;
    set_entry(&mut change, parent, name, Entry { ino, kind });
    touch_directory(&mut change, parent, now, 0);
    let name = name.to_vec();
    let further = Link {
        parent,
        name: name.clone(),
    };
    change.then(Operation::AddMember(Place::Links(ino), further.to_bytes()));
    change.event = Some(Event::Linked { parent, name, ino });
    Ok(Plan {
        transaction: change,
        value: inode,
    })
}

/// Takes a name off an inode that is no directory: the record without that link, or all of it gone. True: gone.
fn drop_link(
    known: &Known,
    change: &mut Transaction,
    ino: Ino,
    record: &Record,
    link: &Link,
    now: Time,
) -> Result<bool, Stop> {
    expect_record(change, ino, record);
    if record.inode.nlink <= 1 {
        for place in [Place::Inode(ino), Place::Holdings(ino), Place::Links(ino)] {
            change.then(Operation::Delete(place));
        }
        return Ok(true);
    }
    let mut inode = (*record.inode).clone();
    inode.nlink -= 1;
    inode.ctime = now;
    let mut member = link.clone();
    if inode.parent == link.parent && inode.name == link.name {
        member = match known.links(ino)?.first() {
            Some(next) => next.clone(),
            // The record and the links were read at different times.
            None => return Err(Stop::Need(Need::Links(ino))),
        };
        inode.parent = member.parent;
        inode.name = member.name.clone();
    }
    change.expect(Check::Member(Place::Links(ino), member.to_bytes()));
    change.then(Operation::RemoveMember(
        Place::Links(ino),
        member.to_bytes(),
    ));
    set_inode(change, ino, &inode);
    Ok(false)
}

/// Removes a name that is not a directory's. The value: the inode, where it went with the name.
pub fn unlink(
    known: &Known,
    parent: Ino,
    name: &[u8],
    now: Time,
) -> Result<Plan<Option<Ino>>, Stop> {
    check_name(name).map_err(Stop::Posix)?;
    let entry = known
        .entry(parent, name)?
        .ok_or(Stop::Posix(libc::ENOENT))?;
    if entry.kind == Kind::Directory {
        return Err(Stop::Posix(libc::EISDIR));
    }
    let record = known.inode(entry.ino, libc::ENOENT)?;
    let above = Ancestors::of(known, parent)?;
    let mut change = Transaction::default();
    expect_entry(&mut change, parent, name, entry);
    above.expect(&mut change);
    delete_entry(&mut change, parent, name);
    touch_directory(&mut change, parent, now, 0);
    let link = Link {
        parent,
        name: name.to_vec(),
    };
    let gone = drop_link(known, &mut change, entry.ino, record, &link, now)?;
    change.event = Some(Event::Unlinked {
        parent,
        name: name.to_vec(),
        ino: entry.ino,
        path: above.path().join(name).as_bytes().to_vec(),
        gone,
    });
    Ok(Plan {
        transaction: change,
        value: gone.then_some(entry.ino),
    })
}

/// Removes the name `name` of what was looked at: `seen` as it was then, with these holders of a file, or nothing is changed (ESTALE). A
/// directory must be empty. The value: the inode, where it went with the name.
pub fn remove_seen(
    known: &Known,
    parent: Ino,
    name: &[u8],
    (ino, seen): (Ino, &Inode),
    holders: &[(NodeId, Holding)],
    now: Time,
) -> Result<Plan<Option<Ino>>, Stop> {
    let entry = known.entry(parent, name)?;
    if entry.is_none_or(|entry| entry.ino != ino) {
        return Err(Stop::Posix(libc::ESTALE));
    }
    if seen.kind == Kind::Directory {
        let plan = rmdir(known, parent, name, now)?;
        return Ok(Plan {
            transaction: plan.transaction,
            value: Some(plan.value),
        });
    }
    if *known.inode(ino, libc::ESTALE)?.inode != *seen {
        return Err(Stop::Posix(libc::ESTALE));
    }
    let mut plan = unlink(known, parent, name, now)?;
    if seen.kind == Kind::File {
        let place = Place::Holdings(ino);
        let change = &mut plan.transaction;
        change.require(Check::Fields(place, holders.len()), libc::ESTALE);
        for (node, holding) in holders {
            let check =
                Check::FieldEquals(place, node.to_string().into_bytes(), holding.to_bytes());
            change.require(check, libc::ESTALE);
        }
    }
    Ok(plan)
}

/// Takes an empty directory out of the tree.
fn drop_directory(change: &mut Transaction, ino: Ino) {
    change.require(
        Check::Fields(Place::Directory(ino), EMPTY_DIRECTORY_FIELDS),
        libc::ENOTEMPTY,
    );
    change.then(Operation::Delete(Place::Directory(ino)));
    change.then(Operation::Delete(Place::Inode(ino)));
}

/// Removes an empty directory. The value: its inode.
pub fn rmdir(known: &Known, parent: Ino, name: &[u8], now: Time) -> Result<Plan<Ino>, Stop> {
    check_name(name).map_err(Stop::Posix)?;
    let entry = known
        .entry(parent, name)?
        .ok_or(Stop::Posix(libc::ENOENT))?;
    if entry.kind != Kind::Directory {
        return Err(Stop::Posix(libc::ENOTDIR));
    }
    let above = Ancestors::of(known, parent)?;
    let mut change = Transaction::default();
    expect_entry(&mut change, parent, name, entry);
    above.expect(&mut change);
    drop_directory(&mut change, entry.ino);
    delete_entry(&mut change, parent, name);
    touch_directory(&mut change, parent, now, -1);
    change.event = Some(Event::Unlinked {
        parent,
        name: name.to_vec(),
        ino: entry.ino,
        path: above.path().join(name).as_bytes().to_vec(),
        gone: true,
    });
    Ok(Plan {
        transaction: change,
        value: entry.ino,
    })
}
