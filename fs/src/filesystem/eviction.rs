//! Keeps fetched data inside `--cache-limit` and the disk from filling: looks how much there is, and gives up what was used least recently.
//!
//! `copies::eviction` decides, the catalog agrees for each copy or not. Costs one system call every [`LOOK`]; the data directory is walked only when a bound
//! may be passed. At most one walk in [`WALK_PAUSE`] where nothing could be given up.
use super::FileSystem;
use super::copies::Reason;
use crate::copies::eviction::{Bounds, Candidate, Census, Usage, excess, in_order};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
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
    tokio::spawn(run(weak));
}

async fn run(file_system: Weak<FileSystem>) {
    let mut keeper = Keeper::default();
    let mut fetched_before = 0;
    loop {
        let fetched = {
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            file_system.keep_within_bounds(&mut keeper).await;
            file_system
                .fetcher
                .counters()
                .bytes_fetched
                .load(Ordering::Relaxed)
        };
        let is_busy = fetched != fetched_before;
        fetched_before = fetched;
        tokio::time::sleep(if is_busy { LOOK_BUSY } else { LOOK }).await;
    }
}

impl FileSystem {
    fn bounds(&self, limit_bytes: u64, total_bytes: u64) -> Bounds {
        let headroom = (total_bytes / HEADROOM_PART).min(HEADROOM_BYTES_MAX);
        Bounds {
            cache_bytes: limit_bytes,
            free_bytes: self.options.keep_free_bytes.saturating_add(headroom),
        }
    }

    async fn keep_within_bounds(self: &Arc<Self>, keeper: &mut Keeper) {
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
            let is_within = excess(
                self.bounds(limit, total),
                Usage {
                    cached_bytes,
                    free_bytes,
                },
            ) == 0;
            if is_within || now < known.not_before {
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
        let bounds = self.bounds(limit, total);
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
