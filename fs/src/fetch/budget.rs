//! The node's memory for bytes under way, shared by all contents that are fetched. Those who find no room are told when some is given back.
use super::core::Core;
use super::flight::lock;
use super::plan::{Allowance, Class};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Bytes under way in the whole node.
pub struct Budget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    /// Contents that found no room.
    starved: Mutex<Vec<Weak<Core>>>,
}

impl Budget {
    /// At most `limit_bytes` under way.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            starved: Mutex::new(Vec::new()),
        })
    }

    /// Bytes under way now.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The most there may be.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// This content has to be told when there is room.
    pub fn starves(&self, core: &Arc<Core>) {
        lock(&self.starved).push(Arc::downgrade(core));
    }

    /// Tells those who found no room. Call without any lock held.
    pub fn gave_back(&self) {
        let starved = std::mem::take(&mut *lock(&self.starved));
        for core in starved.iter().filter_map(Weak::upgrade) {
            core.tick();
        }
    }
}

/// One step's hand in the budget.
pub struct Purse<'a> {
    budget: &'a Budget,
    /// Whether something was given back: then others are to be told.
    pub gave_back: bool,
}

impl<'a> Purse<'a> {
    /// For one step of one plan.
    pub fn new(budget: &'a Budget) -> Self {
        Self {
            budget,
            gave_back: false,
        }
    }
}

impl Allowance for Purse<'_> {
    fn take(&mut self, class: Class, bytes: u64) -> bool {
        // A quarter stays for those who wait.
        let limit = match class {
            Class::Waiting => self.budget.limit_bytes,
            Class::Ahead | Class::Whole => self.budget.limit_bytes / 4 * 3,
        };
        let taken =
            self.budget
                .used_bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    (used + bytes <= limit).then_some(used + bytes)
                });
        taken.is_ok()
    }

    fn give_back(&mut self, bytes: u64) {
        self.budget.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.gave_back = true;
    }
}

/// Memory for small files that are gathered whole in memory, as long as they are open.
pub struct SmallRoom {
    limit_bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl SmallRoom {
    /// At most so many bytes at once.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            used_bytes: Arc::default(),
        }
    }

    /// Takes `bytes` until the result is dropped; `None`: no room.
    pub fn take(&self, bytes: u64) -> Option<SmallTaken> {
        let used = self.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let taken = SmallTaken {
            bytes,
            used_bytes: self.used_bytes.clone(),
        };
        (used <= self.limit_bytes).then_some(taken)
    }
}

/// Memory taken for one small file; given back when dropped.
pub struct SmallTaken {
    bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl Drop for SmallTaken {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_stays_for_those_who_wait() {
        let budget = Budget::new(1000);
        let mut purse = Purse::new(&budget);
        assert!(purse.take(Class::Whole, 700));
        assert!(!purse.take(Class::Ahead, 100));
        assert!(purse.take(Class::Waiting, 300));
        assert!(!purse.take(Class::Waiting, 1));
        purse.give_back(1000);
        assert!(purse.gave_back);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn small_room_is_given_back() {
        let room = SmallRoom::new(100);
        let first = room.take(60);
        assert!(first.is_some());
        assert!(room.take(60).is_none());
        drop(first);
        assert!(room.take(60).is_some());
    }
}
