//! What happens in the data directory behind the daemon's back: `rsync`, `cp`, `mv` and `rm` there are in the tree moments later.
//!
//! Who takes part: `store::watch` hears and says what is due, `scan::look` compares, `scan::live` takes in what is there, `taking` here does
//! the rest: what was removed, moved with all below it, or given other attributes.
//!
//! Always:
//! - Own changes are told from others' by what they left, not by who made them: what agrees with the tree is nothing.
//! - Nothing is removed from the tree but what an event said was removed from here, that stood here by the tree's word (files: this node is
//!   their home), that is missing at two looks with nothing between, with all events applied, with nothing being made in its directory, and that the tree
//!   has unchanged at the very step that removes it. What was missing when the daemon came stays in the tree.
//! - While the catalog does not answer, or was rebuilt and has not heard of this node's part, everything waits; so it does while Redis has gone back
//!   to an older state than this node has seen (`catalog::rollback::Ground`): what such a tree lacks is not new, and what it has is not to be removed.
//! - At rest nothing wakes up, but for the scan that mends what was missed ([`MEND_EVERY`]; more often where not all can be watched).
mod taking;

use super::FileSystem;
use crate::catalog::Ground;
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::Ino;
use crate::store::scan::{self, Live, look};
use crate::store::watch::due::{Hint, Look, Task};
use crate::store::watch::{Listener, Watches};
use crate::store::{Store, walk_found};
use ks_transport::BoxFuture;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Paths that are looked at in one go.
const ROUND_MAX: usize = 500;
/// Between two scans that mend what no event told of.
const MEND_EVERY: Duration = Duration::from_secs(3_600);
/// The same, where not all directories can be watched.
const MEND_OFTEN: Duration = Duration::from_secs(30);
/// A scan takes at most this part of the time.
const MEND_PART: u32 = 50;
/// After the catalog did not answer a survey.
const SURVEY_AGAIN: Duration = Duration::from_secs(2);
/// After events were lost.
const MEND_SOON: Duration = Duration::from_secs(1);
/// An event is heard of so long after what it tells of, and some looks at whether it has been.
const HEARD_WITHIN: Duration = Duration::from_millis(100);
const HEARD_LOOKS: u32 = 5;
/// Paths that a mending walk may be ahead.
const WALK_AHEAD: usize = 1_000;

/// Directories in which something is being made: it is in the tree, and may not stand in the data directory yet.
#[derive(Default)]
pub(super) struct Making {
    parents: Mutex<HashMap<Ino, usize>>,
}

/// Something is being made until this is dropped.
pub(super) struct MakingOne<'m> {
    making: &'m Making,
    parent: Ino,
}

impl Making {
    pub(super) fn begin(&self, parent: Ino) -> MakingOne<'_> {
        *self.parents.lock().unwrap().entry(parent).or_default() += 1;
        MakingOne {
            making: self,
            parent,
        }
    }

    fn is_under_way(&self, parent: Ino) -> bool {
        self.parents.lock().unwrap().contains_key(&parent)
    }
}

impl Drop for MakingOne<'_> {
    fn drop(&mut self) {
        let mut parents = self.making.parents.lock().unwrap();
        if let Some(count) = parents.get_mut(&self.parent) {
            *count -= 1;
            if *count == 0 {
                parents.remove(&self.parent);
            }
        }
    }
}

/// Begins to listen, before the first scan.
pub(super) fn listen(store: &Arc<Store>) -> (Option<Arc<Watches>>, Option<Listener>) {
    let begun = Watches::new().and_then(|watches| {
        let watches = Arc::new(watches);
        let listener = Listener::start(store, &watches)?;
        Ok((watches, listener))
    });
    match begun {
        Ok((watches, listener)) => (Some(watches), Some(listener)),
        Err(error) => {
            tracing::warn!(%error, "the data directory cannot be watched (inotify; fs.inotify.max_user_instances may be too low): what is changed there behind the daemon's back is found at the next start");
            (None, None)
        }
    }
}

/// Runs until the file system is gone; with `surveys`, what the start did not wait for is compared first.
pub(super) fn spawn(file_system: &Arc<FileSystem>, surveys: bool) {
    let Some(watches) = file_system.watches.clone() else {
        return;
    };
    watches.has_started();
    if surveys {
        tokio::spawn(survey(Arc::downgrade(file_system), watches.clone()));
    }
    let heard = watches.clone();
    let is_news = move |path: &TreePath| heard.due().is_news_at_or_above(path);
    file_system.applier.leave_news(Arc::new(is_news));
    tokio::spawn(run(Arc::downgrade(file_system), watches));
}

/// Again from the beginning, until it is through once.
async fn survey(file_system: Weak<FileSystem>, watches: Arc<Watches>) {
    let began = Instant::now();
    loop {
        let Some(parts) = file_system.upgrade().map(|file_system| {
            let FileSystem {
                store,
                catalog,
                hasher,
                ..
            } = &*file_system;
            (store.clone(), catalog.clone(), hasher.clone())
        }) else {
            return;
        };
        let (store, catalog, hasher) = &parts;
        match scan::survey(store, catalog, hasher, &watches).await {
            Ok((things, differing)) => {
                let seconds = began.elapsed().as_secs();
                tracing::info!(
                    things,
                    differing,
                    seconds,
                    "all of the data directory is compared with the tree"
                );
                return;
            }
            Err(error) => {
                tracing::info!(%error, "the data directory cannot be compared with the tree now; tried again");
                tokio::time::sleep(SURVEY_AGAIN).await;
            }
        }
    }
}

async fn run(file_system: Weak<FileSystem>, watches: Arc<Watches>) {
    let mut mend_at = Instant::now() + pause(&watches, Duration::ZERO);
    loop {
        if file_system.strong_count() == 0 {
            return;
        }
        let next_ms = watches.due().next_ms();
        let due_in = next_ms.map(|at| Duration::from_millis(at.saturating_sub(watches.now_ms())));
        let due_at = due_in.map_or(mend_at, |wait| mend_at.min(Instant::now() + wait));
        tokio::select! {
            () = watches.news() => {}
            () = tokio::time::sleep_until(due_at) => {}
        }
        let Some(file_system) = file_system.upgrade() else {
            return;
        };
        file_system.look_at_due(&watches).await;
        let now = Instant::now();
        if watches.due().has_overflowed() {
            tracing::info!(
                "more happened in the data directory than could be followed: it is scanned"
            );
            mend_at = mend_at.min(now + MEND_SOON);
        }
        if now >= mend_at {
            file_system.mend(&watches, TreePath::root()).await;
            mend_at = Instant::now() + pause(&watches, now.elapsed());
        }
    }
}

/// Until the next mending, after one that took `took`.
fn pause(watches: &Watches, took: Duration) -> Duration {
    let least = match watches.is_exhausted() {
        true => MEND_OFTEN,
        false => MEND_EVERY,
    };
    least.max(took * MEND_PART)
}

impl Live for FileSystem {
    fn is_written(&self, ino: Ino) -> bool {
        self.table.is_written(ino) || self.mapped.has(ino)
    }

    fn publish(&self, ino: Ino) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(async move {
            self.publish_changed(ino).await?;
            self.tell_contents(ino);
            Ok(())
        })
    }
}

impl FileSystem {
    /// Whether changes behind the daemon's back are heard of everywhere in the data directory; `None`: they are not to be.
    pub fn is_watched(&self) -> Option<bool> {
        let watches = self.watches.as_ref();
        let is_heard = || watches.is_some_and(|watches| !watches.is_exhausted());
        self.options.watch.then(is_heard)
    }

    /// Whether a path was removed behind the daemon's back, which the tree does not know yet; an event that is on its way is waited for.
    pub(super) async fn was_removed_here(&self, path: &TreePath) -> bool {
        let Some(watches) = &self.watches else {
            return false;
        };
        for _ in 0..HEARD_LOOKS {
            if watches.due().was_removed(path) {
                return true;
            }
            tokio::time::sleep(HEARD_WITHIN / HEARD_LOOKS).await;
        }
        watches.due().was_removed(path)
    }

    /// Looks at all that is due now.
    async fn look_at_due(&self, watches: &Arc<Watches>) {
        loop {
            let now_ms = watches.now_ms();
            let tasks = watches.due().take(now_ms, ROUND_MAX);
            if tasks.is_empty() {
                return;
            }
            let mut different = Vec::new();
            let seen = look::look_all(&self.store, &self.catalog, self, &tasks).await;
            for (task, seen) in tasks.into_iter().zip(seen) {
                let look = self.unless_behind(seen.look);
                if watches.due().looked(&task.path, look, watches.now_ms()) {
                    different.push(task);
                }
            }
            if !different.is_empty() {
                self.take_in(watches, different).await;
            }
        }
    }

    /// A tree that was rebuilt does not know yet what this node has: nothing is compared with it.
    fn unless_behind(&self, look: Look) -> Look {
        match look {
            Look::Differs(_) if self.catalog.is_behind() => Look::Failed,
            look => look,
        }
    }

    /// The tree, where it may be compared with the data directory now; `None`: all waits.
    async fn ground(&self) -> Option<Ground> {
        match self.catalog.ground(self.applier.position()).await {
            Ok(ground) => ground,
            Err(error) => {
                tracing::debug!(%error, "what changed in the data directory is taken in later");
                None
            }
        }
    }

    /// Walks a directory of the data directory; what differs from the tree is looked at as after an event.
    async fn mend(&self, watches: &Arc<Watches>, start: TreePath) {
        let (send, mut found) = mpsc::channel::<TreePath>(WALK_AHEAD);
        let (store, watched) = (Arc::clone(&self.store), Arc::clone(watches));
        let walking = tokio::task::spawn_blocking(move || {
            for path in walk_found(&store, start, &watched) {
                if send.blocking_send(path).is_err() {
                    return;
                }
            }
        });
        let mut paths = Vec::new();
        while found.recv_many(&mut paths, ROUND_MAX).await > 0 {
            let tasks: Vec<Task> = paths.drain(..).map(Task::unheard).collect();
            let seen = look::look_all(&self.store, &self.catalog, self, &tasks).await;
            for (task, seen) in tasks.into_iter().zip(seen) {
                if matches!(seen.look, Look::Differs(_)) {
                    let now_ms = watches.now_ms();
                    watches.due().event(task.path, Hint::Made, now_ms);
                }
            }
        }
        if let Err(error) = walking.await {
            tracing::error!(%error, "the scan of the data directory ended early");
        }
    }
}
