//! Keeps fetched data inside `--cache-limit` and the disk from filling: looks how much there is, and gives up what was used least recently.
//!
//! `copies::eviction` decides, the catalog agrees for each copy or not. Costs one system call every [`LOOK`]; the data directory is walked only when a bound
//! may be passed. At most one walk in [`WALK_PAUSE`] where nothing could be given up.
//!
//! What is written here goes before what was fetched: a write, create or allocation that finds the disk full asks for room ([`Room`]), waits until copies
//! have been given up, and is tried again. The kernel does not ask; so where less than [`TIGHT_BYTES`] are free (half of a small disk) and there are
//! copies to give up, files are opened for writing through the daemon, not passed through.
use super::FileSystem;
use super::copies::Reason;
use crate::copies::eviction::{Bounds, Candidate, Census, Usage, excess, in_order};
use crate::error::FsError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Between two looks at the disk.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks while something is being fetched.
const LOOK_BUSY: Duration = Duration::from_millis(200);
/// After a walk that could not free enough.
const WALK_PAUSE: Duration = Duration::from_secs(10);
/// Beside what `--keep-free` says, this part of the disk is kept free for what is being fetched.
const HEADROOM_PART: u64 = 64;
/// But no more than this.
const HEADROOM_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How long a writer waits for room.
const ROOM_WAIT: Duration = Duration::from_secs(8);
/// Who finds the disk full gets so much more than is needed, so that a stream of writes does not ask for each.
const ROOM_BYTES: u64 = 16 * 1024 * 1024;
/// After nothing could be given up, writers are told at once that the disk is full.
const ROOM_PAUSE: Duration = Duration::from_secs(2);
/// With less free than that (or half of the disk, where that is less), writes come to the daemon.
const TIGHT_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// Where writers ask for room.
pub(super) struct Room {
    wanted_bytes: AtomicU64,
    asked: AtomicU64,
    answered: watch::Sender<u64>,
    ask: Notify,
    /// Fetched bytes here, when they were last counted.
    cached_bytes: AtomicU64,
    /// Nothing can be given up before that.
    in_vain_until: Mutex<Option<Instant>>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            wanted_bytes: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            answered: watch::Sender::new(0),
            ask: Notify::new(),
            cached_bytes: AtomicU64::new(0),
            in_vain_until: Mutex::new(None),
        }
    }
}

/// What is known between two looks.
#[derive(Default)]
struct Keeper {
    /// The limit in bytes: a share of the free space goes by what was free and what was fetched at the first walk.
    limit_bytes: Option<u64>,
    known: Option<Known>,
}

/// What is known between two walks.
struct Known {
    /// Fetched bytes here at the last walk.
    cached_bytes: u64,
    /// The fetcher's counter then: what came since may all be here.
    fetched_then: u64,
    /// No walk before that.
    not_before: Instant,
}

/// Runs until the file system is gone.
pub(super) fn spawn(file_system: &Arc<FileSystem>) {
    let weak = Arc::downgrade(file_system);
    tokio::spawn(run(weak, file_system.room.clone()));
}

async fn run(file_system: Weak<FileSystem>, room: Arc<Room>) {
    let mut keeper = Keeper::default();
    let mut fetched_before = 0;
    loop {
        let fetched = {
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            let asked = room.asked.load(Ordering::Acquire);
            let wanted_bytes = room.wanted_bytes.swap(0, Ordering::AcqRel);
            file_system
                .keep_within_bounds(&mut keeper, wanted_bytes)
                .await;
            room.answered.send_replace(asked);
            file_system
                .fetcher
                .counters()
                .bytes_fetched
                .load(Ordering::Relaxed)
        };
        let is_busy = fetched != fetched_before;
        fetched_before = fetched;
        tokio::select! {
            () = tokio::time::sleep(if is_busy { LOOK_BUSY } else { LOOK }) => {}
            () = room.ask.notified() => {}
        }
    }
}

impl FileSystem {
    /// Does `act`; where the disk is full, once more after fetched copies have made room for `bytes`.
    pub(super) async fn making_room<T>(
        &self,
        bytes: u64,
        mut act: impl FnMut() -> Result<T, FsError>,
    ) -> Result<T, FsError> {
        match act() {
            Err(error) if is_full(&error) && self.make_room(bytes).await => act(),
            done => done,
        }
    }

    /// Gives up fetched copies until there is room for so much more. `false`: there is not.
    pub(super) async fn make_room(&self, bytes: u64) -> bool {
        let room = &self.room;
        let is_in_vain = |until: &Option<Instant>| until.is_some_and(|at| Instant::now() < at);
        if is_in_vain(&room.in_vain_until.lock().unwrap()) {
            return false;
        }
        let wanted = bytes.saturating_add(ROOM_BYTES.min(self.total_bytes() / 16));
        room.wanted_bytes.fetch_max(wanted, Ordering::AcqRel);
        let ticket = room.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut answered = room.answered.subscribe();
        room.ask.notify_one();
        let answer = answered.wait_for(|answered| *answered >= ticket);
        let is_answered = tokio::time::timeout(ROOM_WAIT, answer).await.is_ok();
        let free_bytes = self.store.space().map_or(0, |space| space.free);
        let is_enough = is_answered && free_bytes >= bytes;
        if !is_enough {
            *room.in_vain_until.lock().unwrap() = Some(Instant::now() + ROOM_PAUSE);
        }
        is_enough
    }

    /// Whether what is written may need the room of fetched copies soon.
    pub(super) fn is_tight(&self) -> bool {
        let Ok(space) = self.store.space() else {
            return false;
        };
        space.free < TIGHT_BYTES.min(space.total / 2)
    }

    fn total_bytes(&self) -> u64 {
        self.store.space().map_or(0, |space| space.total)
    }

    fn bounds(&self, limit_bytes: u64, total_bytes: u64) -> Bounds {
        let headroom = (total_bytes / HEADROOM_PART).min(HEADROOM_BYTES_MAX);
        Bounds {
            cache_bytes: limit_bytes,
            free_bytes: self.options.keep_free_bytes.saturating_add(headroom),
        }
    }

    /// `wanted_bytes`: so much a writer lacks, beyond what is kept free.
    async fn keep_within_bounds(self: &Arc<Self>, keeper: &mut Keeper, wanted_bytes: u64) {
        let Ok(space) = self.store.space() else {
            return;
        };
        let (total, free_bytes) = (space.total, space.free);
        let fetched = self
            .fetcher
            .counters()
            .bytes_fetched
            .load(Ordering::Relaxed);
        let now = Instant::now();
        if let (Some(known), Some(limit)) = (&keeper.known, keeper.limit_bytes) {
            let cached_bytes = known
                .cached_bytes
                .saturating_add(fetched - known.fetched_then);
            self.room
                .cached_bytes
                .store(cached_bytes, Ordering::Relaxed);
            let is_within = excess(
                self.bounds(limit, total).with(wanted_bytes),
                Usage {
                    cached_bytes,
                    free_bytes,
                },
            ) == 0;
            if is_within || wanted_bytes == 0 && now < known.not_before {
                return;
            }
        }
        let census = self.census().await;
        let mut usage = Usage {
            cached_bytes: census.cached_bytes(),
            free_bytes,
        };
        let limit = *keeper
            .limit_bytes
            .get_or_insert_with(|| self.options.keeping.cache_limit.bytes(usage));
        let bounds = self.bounds(limit, total).with(wanted_bytes);
        for candidate in in_order(census.into_candidates(), bounds, usage) {
            if excess(bounds, usage) == 0 {
                break;
            }
            if self.evict(&candidate).await {
                usage.cached_bytes = usage.cached_bytes.saturating_sub(candidate.bytes);
                usage.free_bytes = usage.free_bytes.saturating_add(candidate.bytes);
            }
        }
        let is_enough = excess(bounds, usage) == 0;
        self.room
            .cached_bytes
            .store(usage.cached_bytes, Ordering::Relaxed);
        keeper.known = Some(Known {
            cached_bytes: usage.cached_bytes,
            fetched_then: fetched,
            not_before: if is_enough { now } else { now + WALK_PAUSE },
        });
    }

    /// All fetched copies here.
    async fn census(self: &Arc<Self>) -> Census {
        let file_system = self.clone();
        let counted = tokio::task::spawn_blocking(move || {
            let mut census = Census::default();
            let store = &file_system.store;
            store.fetched(|copy| {
                let may_go =
                    !store.is_pinned(copy.ino) && file_system.table.inode(copy.ino).is_none();
                census.count(copy, may_go);
            });
            census
        });
        counted.await.unwrap_or_else(|error| {
            tracing::error!(%error, "counting what was fetched ended early; it is tried again");
            Census::default()
        })
    }

    /// `true`: its bytes are free.
    async fn evict(&self, candidate: &Candidate) -> bool {
        if candidate.is_partial {
            return self.evict_partial(candidate).await;
        }
        match self.give_up(candidate.ino, Reason::Evicted).await {
            Ok(()) => {
                tracing::info!(path = %candidate.path, bytes = candidate.bytes, "given up to make room");
                true
            }
            Err(error) => {
                tracing::debug!(path = %candidate.path, %error, "stays");
                false
            }
        }
    }

    /// A part of a file is nobody's only copy of it: some holder had all of it, and has.
    async fn evict_partial(&self, candidate: &Candidate) -> bool {
        let located = match self.catalog.located(candidate.ino).await {
            Ok(Some(located)) if located.node.inode.version == candidate.version => located,
            Ok(_) => {
                return self
                    .store
                    .discard_idle_partial(candidate.ino, candidate.version);
            }
            Err(_) => return false,
        };
        let is_elsewhere = self.confirmed_holders(&located, 1).await;
        if !is_elsewhere.is_ok_and(|holders| !holders.is_empty()) {
            return false;
        }
        let gone = self
            .store
            .discard_idle_partial(candidate.ino, candidate.version);
        if gone && let Err(error) = self.catalog.set_holding(candidate.ino, None).await {
            tracing::debug!(ino = candidate.ino, %error, "the catalog was not told that a partial file is gone");
        }
        gone
    }
}

/// The disk (or the user's part of it) is full.
pub(super) fn is_full(error: &FsError) -> bool {
    [libc::ENOSPC, libc::EDQUOT].contains(&error.to_errno())
}
