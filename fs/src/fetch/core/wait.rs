//! How a task waits for bytes: it is rung for when they are there, and minds the clock of the plan meanwhile, so that no timer task is needed.
use super::Core;
use crate::fetch::flight::{Denied, Waiter};
use crate::fetch::plan::{BlockMap, Event};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a fetch of the whole tells its progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// A place among those who wait; left when dropped.
pub(super) struct Wait<'a> {
    core: &'a Arc<Core>,
    pub(super) waiter: Arc<Waiter>,
}

impl<'a> Wait<'a> {
    pub(super) fn enter(core: &'a Arc<Core>, range: Range<u64>, whole: bool) -> Self {
        let waiter = core.waiters.enter(range, whole);
        Self { core, waiter }
    }

    /// `None`: the bytes are here.
    pub(super) async fn until_here(&self) -> Option<Denied> {
        loop {
            self.bell_or_tick(None).await;
            if self
                .core
                .backing
                .missing(self.waiter.range.clone())
                .is_empty()
            {
                return None;
            }
            if let Some(denied) = self.waiter.denied() {
                return Some(denied);
            }
        }
    }

    pub(super) async fn until_whole(&self, progress: &impl Fn(u64)) -> Option<Denied> {
        loop {
            progress(self.core.backing.had_bytes());
            let more = Instant::now() + PROGRESS_EVERY;
            self.bell_or_tick(Some(more)).await;
            if self.core.backing.is_whole() || self.core.backing.is_disk_full() {
                return None;
            }
            if let Some(denied) = self.waiter.denied() {
                return Some(denied);
            }
        }
    }

    async fn bell_or_tick(&self, at_latest: Option<Instant>) {
        let tick = self.core.next_tick();
        let until = match (tick, at_latest) {
            (Some(tick), Some(latest)) => tick.min(latest),
            (Some(until), None) | (None, Some(until)) => until,
            // Not in the plan any more: the bell has been rung.
            (None, None) => Instant::now() + PROGRESS_EVERY,
        };
        tokio::select! {
            biased;
            () = self.waiter.bell.notified() => {}
            () = tokio::time::sleep_until(until) => {
                if tick.is_some_and(|tick| tick <= Instant::now()) {
                    self.core.tick();
                }
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.core.waiters.leave(self.waiter.id);
        self.core.step(Event::Dropped { id: self.waiter.id });
    }
}
