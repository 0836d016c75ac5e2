//! The locks of one file: who holds which bytes how, and who is to be told when some of them are free. Pure.
//!
//! What always holds: the rows of one owner never overlap, and touch only where their kinds differ; two owners' rows of one
//! space overlap only where both are shared. Locks of different spaces (`flock`, `fcntl`) never meet, as on a local disk.
use crate::record::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One start of one node's daemon: random, never used again.
pub type Session = u64;

/// Rows of one file; more are refused (ENOLCK).
pub const ROWS_MAX: usize = 4096;

/// Which system call's locks: they do not see each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Space {
    /// `flock`: the open file owns them.
    File,
    /// `fcntl`: the process owns them (or, F_OFD_SETLK, the open file).
    Process,
}

/// Who owns locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The daemon they came through.
    pub session: Session,
    /// Its kernel's number for the owner.
    pub number: u64,
    /// Which locks.
    pub space: Space,
}

/// What a lock allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Others may share it.
    Shared,
    /// The owner alone.
    Exclusive,
}

/// Bytes `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first byte.
    pub first: u64,
    /// The last byte; not below `first`.
    pub last: u64,
}

impl Range {
    /// All bytes that a file can have.
    pub const WHOLE: Range = Range {
        first: 0,
        last: i64::MAX as u64,
    };

    fn overlaps(&self, other: &Range) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn touches(&self, other: &Range) -> bool {
        self.first <= other.last.saturating_add(1) && other.first <= self.last.saturating_add(1)
    }

    /// What is left of it on both sides of `hole`, which overlaps it.
    fn without(&self, hole: &Range) -> [Option<Range>; 2] {
        let before = (self.first < hole.first).then(|| Range {
            first: self.first,
            last: hole.first - 1,
        });
        let after = (self.last > hole.last).then(|| Range {
            first: hole.last + 1,
            last: self.last,
        });
        [before, after]
    }
}

/// A lock that is held, or wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Whose.
    pub owner: Owner,
    /// How.
    pub kind: Kind,
    /// Which bytes.
    pub range: Range,
    /// The owner's process, for F_GETLK on its own node.
    pub pid: u32,
    /// The owner's node.
    pub node: NodeId,
}

impl Lock {
    fn conflicts(&self, other: &Lock) -> bool {
        self.owner.space == other.owner.space
            && self.owner != other.owner
            && self.range.overlaps(&other.range)
            && (self.kind == Kind::Exclusive || other.kind == Kind::Exclusive)
    }
}

/// All locks of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// What is held.
    pub held: Vec<Lock>,
    /// Who is told when something becomes free; told once.
    pub waiting: BTreeSet<Session>,
}

/// How an attempt to lock ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is held now.
    Granted,
    /// This one is in the way.
    Blocked(Lock),
    /// Too many rows.
    Full,
}

/// A table after an operation, and who is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed<T> {
    /// The new table.
    pub table: Table,
    /// Sessions whose waiting locks are tried again.
    pub tell: Vec<Session>,
    /// The operation's result.
    pub value: T,
}

impl Table {
    /// Nobody holds or waits.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    /// The first lock that is in the way of `want`.
    pub fn conflict(&self, want: &Lock) -> Option<&Lock> {
        self.held.iter().find(|held| held.conflicts(want))
    }

    /// Takes `range` from the owner's locks. True: there was something to take.
    fn cut(&mut self, owner: &Owner, range: &Range) -> bool {
        let mut kept = Vec::with_capacity(self.held.len() + 1);
        let mut any = false;
        for lock in self.held.drain(..) {
            if lock.owner != *owner || !lock.range.overlaps(range) {
                kept.push(lock);
                continue;
            }
            any = true;
            let rest = lock.range.without(range).into_iter().flatten();
            kept.extend(rest.map(|range| Lock {
                range,
                ..lock.clone()
            }));
        }
        self.held = kept;
        any
    }

    /// Adds a lock that nothing is in the way of and whose range the owner does not hold; joins it to the owner's neighbours.
    fn add(&mut self, mut new: Lock) {
        self.held.retain(|lock| {
            let joins =
                lock.owner == new.owner && lock.kind == new.kind && lock.range.touches(&new.range);
            if joins {
                new.range.first = new.range.first.min(lock.range.first);
                new.range.last = new.range.last.max(lock.range.last);
            }
            !joins
        });
        self.held.push(new);
    }

    /// Enters a lock that was granted, in place of what its owner had there.
    pub fn put(&mut self, lock: Lock) {
        let Lock { owner, range, .. } = lock;
        self.cut(&owner, &range);
        self.add(lock);
    }

    fn told<T>(mut self, freed: bool, value: T) -> Changed<T> {
        let tell = match freed {
            true => std::mem::take(&mut self.waiting).into_iter().collect(),
            false => Vec::new(),
        };
        Changed {
            table: self,
            tell,
            value,
        }
    }
}

/// Locks `want` (in place of what its owner held there). `wait`: where it is blocked, its session is told when to try again.
pub fn lock(table: &Table, want: &Lock, wait: bool) -> Changed<Step> {
    let mut next = table.clone();
    if let Some(blocker) = table.conflict(want).cloned() {
        // A flock that is to become another kind is given up first, as Linux does: two who want that would else wait for each other.
        let gave_up = want.owner.space == Space::File && next.cut(&want.owner, &want.range);
        let mut changed = next.told(gave_up, Step::Blocked(blocker));
        if wait {
            changed.table.waiting.insert(want.owner.session);
        }
        return changed;
    }
    let weaker = want.kind == Kind::Shared
        && table.held.iter().any(|lock| {
            lock.owner == want.owner
                && lock.kind == Kind::Exclusive
                && lock.range.overlaps(&want.range)
        });
    next.put(want.clone());
    match next.held.len() > ROWS_MAX {
        true => table.clone().told(false, Step::Full),
        false => next.told(weaker, Step::Granted),
    }
}

/// Gives back what the owner holds of a range. The value: there was something.
pub fn unlock(table: &Table, owner: &Owner, range: &Range) -> Changed<bool> {
    let mut next = table.clone();
    let freed = next.cut(owner, range);
    next.told(freed, freed)
}

/// Everything of a session that has ended goes.
pub fn end_session(table: &Table, session: Session) -> Changed<bool> {
    let mut next = table.clone();
    next.held.retain(|lock| lock.owner.session != session);
    next.waiting.remove(&session);
    let freed = next.held.len() != table.held.len();
    next.told(freed, freed)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
