//! Locks on files that hold across the cluster: `flock` and `fcntl` byte ranges.
//!
//! Who takes part: `table` decides (pure: conflicts, splitting, joining, whom to tell), `shared` keeps each file's table in
//! Redis and changes it in one atomic step, `keeper` keeps this node's lease alive and settles what could not be settled at
//! once, `caller` finds out which system call asks. Keys: `ks:k:<ino>` (a file's table), `ks:kl:<session>` (a daemon's
//! lease), `ks:kw:<owner>` (whom an owner waits for); channel `ks:lock:<session>`.
//!
//! What always holds: a lock is granted only by the swap of the very table that the decision was made on. A daemon's locks
//! last as long as its lease; somebody else takes them away only after it has ended. Who waits is told when something
//! becomes free; besides, it looks every `LOOK_EVERY` whether the one in its way still lives. Where nobody locks,
//! nothing is asked of Redis.
//!
//! Not here: what a lock means for reads and writes (nothing, they are advisory).
use crate::{catalog::Catalog, error::FsError, filesystem::Handle, record::Ino};
use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use table::{Changed, Lock, Session, Step, Table};
use tokio::sync::{Notify, watch};

pub(crate) mod caller;
mod keeper;
mod shared;
pub mod table;

pub use table::{Kind, Owner, Range, Space};

/// How long locks outlive the last word of the daemon they came through.
pub const LEASE: Duration = Duration::from_secs(15);
/// Who waits looks so often whether the one in its way still lives; a lease is renewed as often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Redis does not answer for so long: who waits gives up.
const TROUBLE_DEADLINE: Duration = Duration::from_secs(25);
/// After a loss of the connection, how long nothing new is granted: those who held locks enter them again first, where
/// Redis came back without them.
const QUIET_AFTER_RESET: Duration = Duration::from_secs(3);
/// Files that one node may hold locks on.
const LOCKED_FILES_MAX: usize = 65_536;

/// What is asked for a file.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// The kernel's number of the owner.
    pub owner: u64,
    /// How; `None`: give back.
    pub kind: Option<Kind>,
    /// Which bytes.
    pub range: Range,
    /// The owner's process.
    pub pid: u32,
}

/// Ends a wait from outside.
#[derive(Clone, Default)]
pub struct Waiter(Arc<Ended>);

#[derive(Default)]
struct Ended {
    flag: AtomicBool,
    notify: Notify,
}

impl Waiter {
    /// The one who waits does not want it any more.
    pub fn end(&self) {
        self.0.flag.store(true, Ordering::Release);
        self.0.notify.notify_one();
    }

    fn has_ended(&self) -> bool {
        self.0.flag.load(Ordering::Acquire)
    }
}

/// What this node holds of a file.
#[derive(Default)]
struct Mine {
    /// Its own rows.
    table: Table,
    /// The handles that owners locked through.
    handles: HashMap<Owner, HashSet<Handle>>,
    /// The whole table as it was last known.
    bytes: Vec<u8>,
}

/// What could not be given back when it was to be.
#[derive(Clone, Debug)]
struct Owed {
    ino: Ino,
    owner: Owner,
    range: Range,
}

#[derive(Default)]
struct Local {
    files: HashMap<Ino, Mine>,
    owed: Vec<Owed>,
    /// Locks that others took while this node was cut off, and the handles that they were taken through: the owner is told
    /// until it gives back, or closes the last of them.
    lost: HashMap<(Ino, Owner), HashSet<Handle>>,
    keeper_runs: bool,
}

/// All locks of this node.
pub struct Locks {
    catalog: Catalog,
    session: Session,
    local: Mutex<Local>,
    /// Files and debts in `local`: nearly always none, so that closing a file needs no look.
    busy: AtomicUsize,
    /// Something may be free.
    news: watch::Sender<u64>,
    subscribed: tokio::sync::OnceCell<()>,
    last_reset: Mutex<Option<std::time::Instant>>,
    /// The lease had ended unseen; the keeper looks at once.
    doubted: AtomicBool,
    look: Arc<Notify>,
}

fn errno(code: i32) -> FsError {
    FsError::Io(std::io::Error::from_raw_os_error(code))
}

impl Locks {
    /// Nothing is locked; this start gets a number of its own.
    pub fn new(catalog: Catalog) -> Arc<Self> {
        let session = RandomState::new().hash_one(catalog.me());
        let locks = Arc::new(Self {
            catalog,
            session,
            local: Mutex::default(),
            busy: AtomicUsize::new(0),
            news: watch::Sender::new(0),
            subscribed: tokio::sync::OnceCell::new(),
            last_reset: Mutex::new(None),
            doubted: AtomicBool::new(false),
            look: Arc::default(),
        });
        let weak = Arc::downgrade(&locks);
        locks.catalog.on_news(Arc::new(move |channel| {
            if let Some(locks) = weak.upgrade() {
                locks.heard(channel);
            }
        }));
        locks
    }

    /// A message, or (`None`) a connection made anew. Called from the connection's task.
    fn heard(self: &Arc<Self>, channel: Option<&[u8]>) {
        match channel {
            None => {
                *self.last_reset.lock().unwrap() = Some(std::time::Instant::now());
                self.look_after_reset();
            }
            Some(channel) if channel.starts_with(shared::CHANNEL_PREFIX.as_bytes()) => {}
            Some(_) => return,
        }
        self.news.send_modify(|count| *count += 1);
    }

    fn owner(&self, number: u64, space: Space) -> Owner {
        Owner {
            session: self.session,
            number,
            space,
        }
    }

    fn wanted(&self, want: &Want, kind: Kind, space: Space) -> Lock {
        Lock {
            owner: self.owner(want.owner, space),
            kind,
            range: want.range,
            pid: want.pid,
            node: self.catalog.me(),
        }
    }

    /// Locks or gives back. `waiter`: until it is granted; else EAGAIN where another is in the way. EDEADLK where two would
    /// wait for each other, EINTR where the waiter ended, ENOLCK after a lock of this owner was lost, and where there are too many.
    pub async fn change(
        self: &Arc<Self>,
        ino: Ino,
        handle: Handle,
        want: &Want,
        spaces: &[Space],
        waiter: Option<&Waiter>,
    ) -> Result<(), FsError> {
        let Some(kind) = want.kind else {
            for space in spaces {
                self.give_back(ino, self.owner(want.owner, *space), want.range)
                    .await;
            }
            return Ok(());
        };
        for (at, space) in spaces.iter().enumerate() {
            let lock = self.wanted(want, kind, *space);
            if let Err(error) = self.take(ino, handle, &lock, waiter).await {
                for space in &spaces[..at] {
                    self.give_back(ino, self.owner(want.owner, *space), want.range)
                        .await;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// What would be in the way of an `fcntl` lock.
    pub async fn test(&self, ino: Ino, want: &Want) -> Result<Option<Lock>, FsError> {
        let Some(kind) = want.kind else {
            return Ok(None);
        };
        let lock = self.wanted(want, kind, Space::Process);
        let look = |table: &Table| Changed {
            table: table.clone(),
            tell: Vec::new(),
            value: table.conflict(&lock).cloned(),
        };
        loop {
            match self.attempt(ino, look).await? {
                Some(blocker) if self.has_ended(ino, &blocker).await? => {}
                found => return Ok(found),
            }
        }
    }

    /// Whether a lock came through this daemon.
    pub fn is_mine(&self, lock: &Lock) -> bool {
        lock.owner.session == self.session
    }

    async fn take(
        self: &Arc<Self>,
        ino: Ino,
        handle: Handle,
        lock: &Lock,
        waiter: Option<&Waiter>,
    ) -> Result<(), FsError> {
        {
            let local = self.local.lock().unwrap();
            if local.lost.contains_key(&(ino, lock.owner)) || local.files.len() >= LOCKED_FILES_MAX
            {
                return Err(errno(libc::ENOLCK));
            }
        }
        let mut noted = false;
        let outcome = self
            .take_or_wait(ino, handle, lock, waiter, &mut noted)
            .await;
        if noted {
            self.waits_no_more(&lock.owner).await;
        }
        outcome
    }

    async fn take_or_wait(
        self: &Arc<Self>,
        ino: Ino,
        handle: Handle,
        lock: &Lock,
        waiter: Option<&Waiter>,
        noted: &mut bool,
    ) -> Result<(), FsError> {
        let mut trouble_since = None;
        if waiter.is_some() {
            self.listen().await?;
        }
        loop {
            let mut news = self.news.subscribe();
            self.quiet().await;
            let step = self
                .attempt(ino, |table| table::lock(table, lock, waiter.is_some()))
                .await;
            let blocker = match step {
                Ok(Step::Granted) => {
                    self.note_granted(ino, handle, lock);
                    return Ok(());
                }
                Ok(Step::Full) => return Err(errno(libc::ENOLCK)),
                Ok(Step::Blocked(blocker)) => {
                    trouble_since = None;
                    self.note_blocked(ino, lock);
                    Some(blocker)
                }
                Err(error) => {
                    let since = *trouble_since.get_or_insert_with(std::time::Instant::now);
                    if waiter.is_none() || since.elapsed() > TROUBLE_DEADLINE {
                        return Err(error);
                    }
                    None
                }
            };
            let Some(waiter) = waiter else {
                match blocker {
                    Some(blocker) if self.has_ended(ino, &blocker).await? => continue,
                    _ => return Err(errno(libc::EAGAIN)),
                }
            };
            if let Some(blocker) = blocker {
                match self.may_wait(ino, lock, &blocker).await {
                    Ok(true) => *noted |= lock.owner.space == Space::Process,
                    Ok(false) => continue,
                    Err(error) if error.to_errno() == libc::EDEADLK => return Err(error),
                    Err(error) => tracing::debug!(ino, %error, "waiting for a lock goes on"),
                }
            }
            let ended = waiter.0.notify.notified();
            if waiter.has_ended() {
                return Err(errno(libc::EINTR));
            }
            tokio::select! {
                _ = news.changed() => {}
                () = ended => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if waiter.has_ended() {
                return Err(errno(libc::EINTR));
            }
        }
    }

    /// Just after Redis was away, those who held locks come first.
    async fn quiet(&self) {
        let reset = *self.last_reset.lock().unwrap();
        let passed = reset.map(|at| at.elapsed());
        if let Some(left) = passed.and_then(|passed| QUIET_AFTER_RESET.checked_sub(passed)) {
            tokio::time::sleep(left).await;
        }
    }

    /// `false`: what was in the way has gone. EDEADLK: each would wait for the other.
    async fn may_wait(&self, ino: Ino, lock: &Lock, blocker: &Lock) -> Result<bool, FsError> {
        if self.has_ended(ino, blocker).await? {
            return Ok(false);
        }
        if lock.owner.space == Space::Process && self.is_deadlock(lock, blocker).await? {
            return Err(errno(libc::EDEADLK));
        }
        Ok(true)
    }

    /// Gives back, at once or (where Redis does not answer) as soon as it can be done.
    async fn give_back(self: &Arc<Self>, ino: Ino, owner: Owner, range: Range) {
        let known = {
            let mut local = self.local.lock().unwrap();
            if range == Range::WHOLE {
                local.lost.remove(&(ino, owner));
            }
            let mine = local.files.get(&ino);
            mine.is_some_and(|mine| mine.table.held.iter().any(|lock| lock.owner == owner))
        };
        if !known {
            return;
        }
        let outcome = self
            .attempt(ino, |table| table::unlock(table, &owner, &range))
            .await;
        self.note_gone(ino, &owner, &range);
        if let Err(error) = outcome {
            tracing::warn!(ino, %error, "a lock is given back later");
            let mut local = self.local.lock().unwrap();
            local.owed.push(Owed { ino, owner, range });
            self.count(&local);
            self.keep(&mut local);
        }
    }

    /// A process closed a descriptor of the file: its `fcntl` locks on it are gone.
    pub async fn closed(self: &Arc<Self>, ino: Ino, owner: u64) {
        if self.busy.load(Ordering::Acquire) > 0 {
            let owner = self.owner(owner, Space::Process);
            self.give_back(ino, owner, Range::WHOLE).await;
        }
    }

    /// An open file is gone: what was locked through it is free.
    pub async fn released(self: &Arc<Self>, ino: Ino, handle: Handle) {
        if self.busy.load(Ordering::Acquire) == 0 {
            return;
        }
        let owners: Vec<Owner> = {
            let mut local = self.local.lock().unwrap();
            // The kernel's numbers of owners are used again: what was lost must not meet the next one.
            local.lost.retain(|(lost, _), handles| {
                *lost != ino || !handles.remove(&handle) || !handles.is_empty()
            });
            self.count(&local);
            let handles = local.files.get(&ino).map(|mine| &mine.handles);
            let through = handles.into_iter().flatten();
            through
                .filter(|(_, handles)| handles.contains(&handle))
                .map(|(owner, _)| *owner)
                .collect()
        };
        for owner in owners {
            self.give_back(ino, owner, Range::WHOLE).await;
        }
    }

    fn note_granted(self: &Arc<Self>, ino: Ino, handle: Handle, lock: &Lock) {
        let mut local = self.local.lock().unwrap();
        let mine = local.files.entry(ino).or_default();
        // Another owner here may have given its lock back a moment ago, which is not noted yet: no conflict.
        mine.table.put(lock.clone());
        mine.handles.entry(lock.owner).or_default().insert(handle);
        self.count(&local);
        self.keep(&mut local);
    }

    /// A blocked flock has given up what it had.
    fn note_blocked(&self, ino: Ino, lock: &Lock) {
        if lock.owner.space == Space::File {
            self.note_gone(ino, &lock.owner, &lock.range);
        }
    }

    fn note_gone(&self, ino: Ino, owner: &Owner, range: &Range) {
        let mut local = self.local.lock().unwrap();
        let Some(mine) = local.files.get_mut(&ino) else {
            return;
        };
        mine.table = table::unlock(&mine.table, owner, range).table;
        if !mine.table.held.iter().any(|lock| lock.owner == *owner) {
            mine.handles.remove(owner);
        }
        if mine.table.held.is_empty() {
            local.files.remove(&ino);
        }
        self.count(&local);
    }

    fn count(&self, local: &Local) {
        let busy = local.files.len() + local.owed.len() + local.lost.len();
        self.busy.store(busy, Ordering::Release);
    }
}
