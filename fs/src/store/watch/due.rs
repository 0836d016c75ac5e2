//! Which paths of the data directory are to be looked at, and when: a pure state machine, no disk and no clock inside.
//!
//! Events come in as [`Hint`]s; [`Due::take`] gives the paths whose time has come, in the order of their last events; what a look
//! showed comes back by [`Due::looked`].
//!
//! Always:
//! - Nothing is acted upon that was seen once only: what differs from the tree must be the same at two looks, [`CONFIRM_MS`] apart
//!   ([`CONFIRM_OPEN_MS`] for a file that its writer has not closed as far as is known), with no event between them. What the
//!   daemon itself is in the middle of is over by then, or looks different.
//! - An event during a look is not lost: the path is looked at again.
//! - Where a directory is moved, what waits below it goes along; one that is moved twice came from where it was first.
//! - Bounded: beyond [`PATHS_MAX`] paths nothing more is taken in, and [`Due::has_overflowed`] says so until it is asked.
//! - Where nothing waits there is no next time: whoever runs it sleeps.
use crate::path::TreePath;
use std::collections::{BTreeMap, BTreeSet};

/// Paths that wait at once.
pub const PATHS_MAX: usize = 100_000;
/// From an event to the first look.
pub const SETTLE_MS: u64 = 100;
/// However often events come, a path is looked at so long after its first.
pub const SETTLE_LONGEST_MS: u64 = 500;
/// Between two looks that must agree.
pub const CONFIRM_MS: u64 = 200;
/// The same, for a file that may be in the middle of being written.
pub const CONFIRM_OPEN_MS: u64 = 1_000;
/// Between two looks at what never stays the same.
pub const CONFIRM_LONGEST_MS: u64 = 8_000;
/// After a look that failed (the catalog does not answer).
pub const RETRY_MS: u64 = 500;
/// The same, after many.
pub const RETRY_LONGEST_MS: u64 = 30_000;

/// So often a path is looked at soon again that waits for another one.
const QUICK_TRIES: u32 = 20;

/// What an event says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// It was made; who made it may still be writing.
    Made,
    /// It stands as it is to be: its writer has closed it.
    Settled,
    /// Its attributes changed (also the daemon's own).
    Attributes,
    /// It was moved here, from out of sight or as a single file.
    Put,
    /// A directory was moved here from that path.
    MovedFrom(TreePath),
    /// It was removed, or moved away.
    Gone,
    /// The same, by the daemon itself.
    TakenByUs,
    /// A directory was moved away, with all below it.
    MovedAway,
    /// The directory that it was in was moved away with all that was below.
    GoneWithAll,
}

/// What is known of a path when it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The path.
    pub path: TreePath,
    /// Something that stood there was removed or moved away.
    pub was_removed: bool,
    /// Something was put there in one step (a rename over what stood there is not told otherwise).
    pub was_put: bool,
    /// Where what stands there came from.
    pub moved_from: Option<TreePath>,
    /// Attributes of what stands there were changed.
    pub has_attributes: bool,
    /// A directory that stood there was moved away, not emptied and removed.
    pub was_moved_away: bool,
    /// All that was below it waits by itself, or was dealt with.
    pub is_with_all: bool,
    /// How often it was looked at in vain.
    pub tries: u32,
}

impl Task {
    /// A path that is looked at though nothing was heard of it.
    pub fn unheard(path: TreePath) -> Self {
        Self {
            path,
            was_removed: false,
            was_put: false,
            moved_from: None,
            has_attributes: false,
            was_moved_away: false,
            is_with_all: false,
            tries: 0,
        }
    }
}

/// What a look showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Disk and tree agree, or it is the daemon's own business.
    Agrees,
    /// They do not; the number stands for all that was seen.
    Differs(u64),
    /// It cannot be told now.
    Failed,
    /// Something else comes first.
    NotYet,
}

/// What waits above a path; see [`Due::is_below_moved`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BelowMoved {
    /// A directory above it stood there and was moved away.
    pub from: bool,
    /// A directory above it was moved there.
    pub to: bool,
}

#[derive(Clone, Debug, Default)]
struct Waiting {
    /// When it is looked at; `None`: it is being looked at.
    at_ms: Option<u64>,
    first_ms: u64,
    /// The place of its last event among all.
    order: u64,
    is_open: bool,
    was_removed: bool,
    was_put: bool,
    moved_from: Option<TreePath>,
    has_attributes: bool,
    was_moved_away: bool,
    is_with_all: bool,
    /// What the last look showed, and when.
    seen: Option<(u64, u64)>,
    /// Looks in a row that showed something new, or failed.
    tries: u32,
    /// An event came during the look.
    has_news: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Due {
    paths: BTreeMap<TreePath, Waiting>,
    /// By time, then by order.
    queue: BTreeSet<(u64, u64, TreePath)>,
    /// Of those that wait, the directories that were moved: where each came from.
    moved_to: BTreeMap<TreePath, TreePath>,
    /// Where they came from, and how many of them from there.
    moved_from: BTreeMap<TreePath, usize>,
    next_order: u64,
    has_overflowed: bool,
}

impl Due {
    /// An event.
    pub fn event(&mut self, path: TreePath, hint: Hint, now_ms: u64) {
        let hint = match hint {
            Hint::MovedFrom(from) => {
                self.take_along(&from, &path, now_ms);
                let first = self.paths.get(&from).and_then(|at| at.moved_from.clone());
                Hint::MovedFrom(first.unwrap_or(from))
            }
            // Nothing to be looked at, but what was seen there before counts no more.
            Hint::TakenByUs if !self.paths.contains_key(&path) => return,
            hint => hint,
        };
        self.note(path, hint, now_ms);
    }

    /// What waits below `from` waits below `to`: its directory was moved.
    fn take_along(&mut self, from: &TreePath, to: &TreePath, now_ms: u64) {
        for path in self.below(from) {
            let Some(waiting) = self.paths.get(&path).cloned() else {
                continue;
            };
            let below = &path.as_bytes()[from.as_bytes().len() + 1..];
            let Some(moved) = TreePath::new(&[to.as_bytes(), b"/", below].concat()) else {
                continue;
            };
            if let Some(at_ms) = waiting.at_ms {
                self.queue.remove(&(at_ms, waiting.order, path.clone()));
                self.forget(&path);
            }
            let hints = [
                (waiting.was_removed, Hint::Gone),
                (waiting.was_moved_away, Hint::MovedAway),
                (waiting.was_put, Hint::Put),
                (waiting.has_attributes, Hint::Attributes),
                (waiting.is_open, Hint::Made),
            ];
            let mut hints: Vec<Hint> = hints
                .into_iter()
                .filter_map(|(is, hint)| is.then_some(hint))
                .collect();
            hints.extend(waiting.moved_from.map(Hint::MovedFrom));
            if hints.is_empty() {
                hints.push(Hint::Settled);
            }
            for hint in hints {
                self.note(moved.clone(), hint, now_ms);
            }
        }
    }

    fn note(&mut self, path: TreePath, hint: Hint, now_ms: u64) {
        if self.paths.len() >= PATHS_MAX && !self.paths.contains_key(&path) {
            self.has_overflowed = true;
            return;
        }
        if let Hint::MovedFrom(from) = &hint {
            self.moved(path.clone(), from.clone());
        }
        self.next_order += 1;
        let waiting = self.paths.entry(path.clone()).or_insert_with(|| Waiting {
            at_ms: Some(now_ms),
            first_ms: now_ms,
            ..Waiting::default()
        });
        let was = (waiting.at_ms, waiting.order);
        waiting.order = self.next_order;
        match hint {
            Hint::Made => waiting.is_open = true,
            Hint::Settled => waiting.is_open = false,
            Hint::Attributes => waiting.has_attributes = true,
            Hint::Put => (waiting.is_open, waiting.was_put) = (false, true),
            Hint::MovedFrom(from) => {
                (waiting.is_open, waiting.was_put) = (false, true);
                waiting.moved_from = Some(from);
            }
            Hint::Gone => waiting.was_removed = true,
            Hint::TakenByUs => waiting.is_open = false,
            Hint::MovedAway => (waiting.was_removed, waiting.was_moved_away) = (true, true),
            Hint::GoneWithAll => (waiting.was_removed, waiting.is_with_all) = (true, true),
        }
        (waiting.seen, waiting.tries) = (None, 0);
        let Some(at_ms) = was.0 else {
            waiting.has_news = true;
            return;
        };
        let latest = waiting.first_ms + SETTLE_LONGEST_MS;
        let next = (now_ms + SETTLE_MS).min(latest.max(now_ms));
        waiting.at_ms = Some(next);
        let order = waiting.order;
        self.queue.remove(&(at_ms, was.1, path.clone()));
        self.queue.insert((next, order, path));
    }

    fn moved(&mut self, to: TreePath, from: TreePath) {
        *self.moved_from.entry(from.clone()).or_default() += 1;
        if let Some(before) = self.moved_to.insert(to, from) {
            self.no_more_from(&before);
        }
    }

    fn no_more_from(&mut self, from: &TreePath) {
        if let Some(count) = self.moved_from.get_mut(from) {
            *count -= 1;
            if *count == 0 {
                self.moved_from.remove(from);
            }
        }
    }

    fn forget(&mut self, path: &TreePath) {
        self.paths.remove(path);
        if let Some(from) = self.moved_to.remove(path) {
            self.no_more_from(&from);
        }
    }

    /// The paths whose time has come, `most` at once, in the order of their last events. Each must come back by `looked`.
    pub fn take(&mut self, now_ms: u64, most: usize) -> Vec<Task> {
        let mut taken: Vec<(u64, Task)> = Vec::new();
        while taken.len() < most
            && let Some((at_ms, ..)) = self.queue.first()
            && *at_ms <= now_ms
            && let Some((_, order, path)) = self.queue.pop_first()
        {
            let Some(waiting) = self.paths.get_mut(&path) else {
                continue;
            };
            (waiting.at_ms, waiting.has_news) = (None, false);
            let task = Task {
                was_removed: waiting.was_removed,
                was_put: waiting.was_put,
                moved_from: waiting.moved_from.clone(),
                has_attributes: waiting.has_attributes,
                was_moved_away: waiting.was_moved_away,
                is_with_all: waiting.is_with_all,
                tries: waiting.tries,
                path,
            };
            taken.push((order, task));
        }
        taken.sort_by_key(|(order, _)| *order);
        taken.into_iter().map(|(_, task)| task).collect()
    }

    /// What the look at a taken path showed. `true`: it is to be acted upon now; `done` or `looked` with `Failed` comes after that.
    pub fn looked(&mut self, path: &TreePath, look: Look, now_ms: u64) -> bool {
        let Some(waiting) = self.paths.get_mut(path) else {
            return false;
        };
        let after = if waiting.has_news {
            waiting.first_ms = now_ms;
            SETTLE_MS
        } else {
            match look {
                Look::Agrees => {
                    self.forget(path);
                    return false;
                }
                Look::Failed => {
                    waiting.tries += 1;
                    longer(RETRY_MS, waiting.tries, RETRY_LONGEST_MS)
                }
                Look::NotYet => {
                    waiting.tries += 1;
                    let tries = waiting.tries.saturating_sub(QUICK_TRIES);
                    longer(RETRY_MS / 2, tries, RETRY_LONGEST_MS)
                }
                Look::Differs(what) => match waiting.seen {
                    Some((before, since_ms)) if before == what => {
                        let still = (since_ms + waiting.confirm_ms()).saturating_sub(now_ms);
                        if still == 0 {
                            return true;
                        }
                        still
                    }
                    _ => {
                        waiting.seen = Some((what, now_ms));
                        waiting.tries += 1;
                        longer(waiting.confirm_ms(), waiting.tries, CONFIRM_LONGEST_MS)
                    }
                },
            }
        };
        let at_ms = now_ms + after;
        waiting.at_ms = Some(at_ms);
        self.queue.insert((at_ms, waiting.order, path.clone()));
        false
    }

    /// What waits long because it was looked at in vain is looked at soon. `true`: there is such.
    pub fn hurry(&mut self, now_ms: u64) -> bool {
        let soon = now_ms + RETRY_MS;
        let late = self.queue.split_off(&(soon + 1, 0, TreePath::root()));
        let any = !late.is_empty();
        for (_, order, path) in late {
            if let Some(waiting) = self.paths.get_mut(&path) {
                (waiting.at_ms, waiting.tries) = (Some(soon), 0);
                self.queue.insert((soon, order, path));
            }
        }
        any
    }

    /// What was to be done for a path has been done.
    pub fn done(&mut self, path: &TreePath, now_ms: u64) {
        self.looked(path, Look::Agrees, now_ms);
    }

    /// Whether what stood at a path was removed, as far as is heard, and that is not dealt with yet.
    pub fn was_removed(&self, path: &TreePath) -> bool {
        self.paths
            .get(path)
            .is_some_and(|waiting| waiting.was_removed)
    }

    /// Whether something below a path waits.
    pub fn has_below(&self, path: &TreePath) -> bool {
        self.range_below(path).next().is_some()
    }

    fn below(&self, path: &TreePath) -> Vec<TreePath> {
        self.range_below(path).cloned().collect()
    }

    fn range_below<'d>(&'d self, path: &TreePath) -> impl Iterator<Item = &'d TreePath> {
        let below = [path.as_bytes(), b"/"].concat();
        let first = TreePath::new(&[&below[..], b"\x01"].concat());
        let after = first.map(|first| self.paths.range(first..));
        let after = after.into_iter().flatten().map(|(next, _)| next);
        after.take_while(move |next| next.as_bytes().starts_with(&below))
    }

    /// Whether a directory above `path` was moved away from where it was, or to where it is, and that waits.
    pub fn is_below_moved(&self, path: &TreePath) -> BelowMoved {
        let mut below = BelowMoved::default();
        let mut at = path.split_last().map(|(above, _)| above);
        while let Some(here) = at.filter(|_| !self.moved_to.is_empty()) {
            below.from |= self.moved_from.contains_key(&here);
            below.to |= self.moved_to.contains_key(&here);
            at = here.split_last().map(|(above, _)| above);
        }
        below
    }

    /// Whether a directory that stood at `path` waits where it was moved to.
    pub fn is_awaited_elsewhere(&self, path: &TreePath) -> bool {
        self.moved_from.contains_key(path)
    }

    /// Whether a path, or a directory that it is in, was heard to be moved, linked or removed, and that is not dealt with yet. That something was
    /// written there alone is not: the daemon itself writes.
    pub fn is_news_at_or_above(&self, path: &TreePath) -> bool {
        let mut at = Some(path.clone());
        while let Some(here) = at.filter(|here| !here.is_root()) {
            if self.paths.get(&here).is_some_and(Waiting::is_news) {
                return true;
            }
            at = here.split_last().map(|(above, _)| above);
        }
        false
    }

    /// When the next path is due; `None`: nothing waits.
    pub fn next_ms(&self) -> Option<u64> {
        self.queue.first().map(|(at_ms, ..)| *at_ms)
    }

    /// Whether events were dropped since it was asked last.
    pub fn has_overflowed(&mut self) -> bool {
        std::mem::take(&mut self.has_overflowed)
    }

    /// Events were lost before they came here.
    pub fn overflow(&mut self) {
        self.has_overflowed = true;
    }
}

impl Waiting {
    /// A link is made and never closed.
    fn is_news(&self) -> bool {
        self.is_open || self.was_put || self.was_removed || self.moved_from.is_some()
    }

    fn confirm_ms(&self) -> u64 {
        if self.is_open {
            CONFIRM_OPEN_MS
        } else {
            CONFIRM_MS
        }
    }
}

/// Doubled with each try after the first, up to `longest`.
fn longer(first: u64, tries: u32, longest: u64) -> u64 {
    let times = 1u64 << tries.saturating_sub(1).min(16);
    first.saturating_mul(times).min(longest.max(first))
}

#[cfg(test)]
#[path = "due_tests.rs"]
mod tests;
