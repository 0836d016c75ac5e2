//! One fetch in flight, however many wait.
//!
//! Within a file the plan sees to it that a group is asked for once; readers wait here (`Waiters`) and are woken as soon as *their* groups are in
//! the map, not at the end of a request. Whoever is woken looks at the map again. Between tasks that want the same payload, `Claims` makes one the
//! owner; when the owner goes, done or cancelled, the others look again and one of them may become the owner.
//! A waiter that is dropped disturbs nobody.
use super::plan::{BlockMap, DemandId};
use super::ranges::overlap;
use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// Why a wait ended without the bytes.
#[derive(Clone, Debug)]
pub enum Denied {
    /// No holder gives them; `stale`: because all have another version.
    NoHolder { stale: bool },
    /// Our own disk failed: errno.
    Local(i32),
}

/// One who waits for a range.
#[derive(Debug)]
pub struct Waiter {
    /// Its name in the plan.
    pub id: DemandId,
    /// What it waits for.
    pub range: Range<u64>,
    whole: bool,
    /// Rung when its bytes are here, it is denied, or the plan's next time may be another.
    pub bell: Notify,
    denied: Mutex<Option<Denied>>,
}

impl Waiter {
    /// Why it will not get its bytes, if that is so. Asked once.
    pub fn denied(&self) -> Option<Denied> {
        lock(&self.denied).take()
    }
}

/// Those who wait for bytes of one content.
#[derive(Default, Debug)]
pub struct Waiters {
    next: AtomicU64,
    count: AtomicUsize,
    list: Mutex<Vec<Arc<Waiter>>>,
}

impl Waiters {
    /// Enters one; look at the map after this and before waiting, so that no wake-up is missed. `whole`: not woken by each arrival.
    pub fn enter(&self, range: Range<u64>, whole: bool) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            range,
            whole,
            bell: Notify::new(),
            denied: Mutex::new(None),
        });
        let mut list = lock(&self.list);
        list.push(waiter.clone());
        self.count.store(list.len(), Ordering::SeqCst);
        waiter
    }

    /// It waits no more.
    pub fn leave(&self, id: DemandId) {
        let mut list = lock(&self.list);
        list.retain(|waiter| waiter.id != id);
        self.count.store(list.len(), Ordering::SeqCst);
    }

    /// Bytes came into the map: rings for those who have all they wait for.
    pub fn arrived(&self, range: &Range<u64>, map: &dyn BlockMap) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        for waiter in lock(&self.list).iter() {
            if !waiter.whole
                && overlap(&waiter.range, range)
                && map.missing(waiter.range.clone()).is_empty()
            {
                waiter.bell.notify_one();
            }
        }
    }

    /// The content is whole, or a request failed: all of them look again, also when the plan wants to hear of the time.
    pub fn ring(&self) {
        for waiter in lock(&self.list).iter() {
            waiter.bell.notify_one();
        }
    }

    /// One of them will not get its bytes.
    pub fn deny(&self, id: DemandId, why: Denied) {
        for waiter in lock(&self.list).iter().filter(|waiter| waiter.id == id) {
            *lock(&waiter.denied) = Some(why.clone());
            waiter.bell.notify_one();
        }
    }

    /// None of them will.
    pub fn deny_all(&self, why: &Denied) {
        for waiter in lock(&self.list).iter() {
            *lock(&waiter.denied) = Some(why.clone());
            waiter.bell.notify_one();
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.list).len()
    }
}

/// Locks; what a panicked thread left is still consistent here, because no critical section of this crate part can panic half-way.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose work something is.
pub enum Claim<K: Eq + Hash + Clone> {
    /// The caller's: it does the work, and drops this when done.
    Owner(Owner<K>),
    /// Somebody else's: wait for its end, then look again.
    InFlight(InFlight),
}

/// Works under way, by key.
#[derive(Debug)]
pub struct Claims<K> {
    owned: Arc<Mutex<HashMap<K, watch::Receiver<()>>>>,
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self {
            owned: Arc::default(),
        }
    }
}

impl<K: Eq + Hash + Clone> Claims<K> {
    /// Takes the work, or joins those who wait for it.
    pub fn claim(&self, key: K) -> Claim<K> {
        let mut owned = lock(&self.owned);
        if let Some(end) = owned.get(&key) {
            return Claim::InFlight(InFlight(end.clone()));
        }
        let (ends, end) = watch::channel(());
        owned.insert(key.clone(), end);
        Claim::Owner(Owner {
            key,
            owned: self.owned.clone(),
            _ends: ends,
        })
    }
}

/// The right to do a work; undone by dropping it, which wakes those who wait.
pub struct Owner<K: Eq + Hash + Clone> {
    key: K,
    owned: Arc<Mutex<HashMap<K, watch::Receiver<()>>>>,
    _ends: watch::Sender<()>,
}

impl<K: Eq + Hash + Clone> Drop for Owner<K> {
    fn drop(&mut self) {
        lock(&self.owned).remove(&self.key);
    }
}

/// A work of somebody else's.
pub struct InFlight(watch::Receiver<()>);

impl InFlight {
    /// Returns when its owner is done or gone; bounded by the owner's own deadline.
    pub async fn ended(mut self) {
        // The owner never sends: `changed` ends when it is dropped.
        while self.0.changed().await.is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::group_map::GroupMap;
    use super::*;
    use ks_transport::blocks::GROUP_BYTES;
    use std::time::Duration;

    #[tokio::test]
    async fn a_waiter_is_woken_by_its_own_groups() {
        let waiters = Waiters::default();
        let mut map = GroupMap::new(8 * GROUP_BYTES);
        let first = waiters.enter(0..GROUP_BYTES, false);
        let second = waiters.enter(GROUP_BYTES..3 * GROUP_BYTES, false);
        map.set(0..2 * GROUP_BYTES, true);
        waiters.arrived(&(0..2 * GROUP_BYTES), &map);
        first.bell.notified().await;
        let early = tokio::time::timeout(Duration::from_millis(10), second.bell.notified()).await;
        assert!(early.is_err());
        waiters.leave(first.id);
        map.set(2 * GROUP_BYTES..3 * GROUP_BYTES, true);
        waiters.arrived(&(2 * GROUP_BYTES..3 * GROUP_BYTES), &map);
        second.bell.notified().await;
        waiters.leave(second.id);
        assert_eq!(waiters.count(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_owner_at_a_time_and_a_cancelled_owner_is_replaced() {
        let claims: Arc<Claims<u32>> = Arc::default();
        let done = Arc::new(AtomicUsize::new(0));
        let owners = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for number in 0..50 {
            let (claims, done, owners) = (claims.clone(), done.clone(), owners.clone());
            let task = tokio::spawn(async move {
                loop {
                    if done.load(Ordering::SeqCst) == 1 {
                        return;
                    }
                    match claims.claim(7) {
                        Claim::Owner(_owner) => {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                            let _here = Decrement(owners.clone());
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            if number % 5 == 4 {
                                done.store(1, Ordering::SeqCst);
                                return;
                            }
                            // This owner is cancelled in the middle of its work.
                            return;
                        }
                        Claim::InFlight(other) => other.ended().await,
                    }
                }
            });
            tasks.push(task);
        }
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(5), task)
                .await
                .expect("nobody waits for ever")
                .expect("no task panics");
        }
        assert!(lock(&claims.owned).is_empty());
    }

    struct Decrement(Arc<AtomicUsize>);
    impl Drop for Decrement {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
