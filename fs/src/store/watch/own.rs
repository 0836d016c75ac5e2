//! What the daemon itself takes from a name of the data directory, so that the event that tells of it is not taken for somebody else's doing.
//!
//! Who takes part: whatever removes or renames (`confine`) says so beforehand, and takes it back where it failed; the thread that listens asks.
//!
//! Always: as many removals are the daemon's own as were announced; an announcement that no event answers (its directory was not watched
//! yet, or the event was lost) counts for [`HEARD_WITHIN`] at most. Nothing is kept where nobody listens. Bounded by [`OWN_MAX`]: beyond, the
//! oldest are forgotten, and their events are looked at like others'.
use crate::path::TreePath;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names that wait for their events at once.
const OWN_MAX: usize = 100_000;
/// An event is read so long after what it tells of.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct OwnRemovals {
    is_listened_to: AtomicBool,
    names: Mutex<HashMap<TreePath, (u32, Instant)>>,
}

impl OwnRemovals {
    /// From now on events are read.
    pub(crate) fn listen(&self) {
        self.is_listened_to.store(true, Ordering::Release);
    }

    /// What stands at `path` is about to be taken from there.
    pub(crate) fn announce(&self, path: &TreePath) {
        self.announce_at(path, Instant::now());
    }

    fn announce_at(&self, path: &TreePath, now: Instant) {
        if !self.is_listened_to.load(Ordering::Acquire) {
            return;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= OWN_MAX {
            names.retain(|_, (_, since)| now - *since < HEARD_WITHIN);
        }
        if names.len() >= OWN_MAX {
            names.clear();
        }
        let (count, since) = names.entry(path.clone()).or_insert((0, now));
        (*count, *since) = (*count + 1, now);
    }

    /// It was not; or an event has told of it. `false`: it was not announced, so it was somebody else.
    pub(crate) fn take(&self, path: &TreePath) -> bool {
        self.take_at(path, Instant::now())
    }

    fn take_at(&self, path: &TreePath, now: Instant) -> bool {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((count, since)) = names.get_mut(path) else {
            return false;
        };
        let is_own = now - *since < HEARD_WITHIN;
        *count -= 1;
        if *count == 0 || !is_own {
            names.remove(path);
        }
        is_own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn as_many_are_own_as_were_announced() {
        let own = OwnRemovals::default();
        own.announce(&path("a"));
        assert!(!own.take(&path("a")), "nobody listens");
        own.listen();
        own.announce(&path("a"));
        own.announce(&path("a"));
        own.announce(&path("b"));
        assert!(own.take(&path("a")) && own.take(&path("a")) && !own.take(&path("a")));
        assert!(own.take(&path("b")) && !own.take(&path("b")));
    }

    #[test]
    fn what_no_event_answers_is_forgotten() {
        let own = OwnRemovals::default();
        own.listen();
        let then = Instant::now();
        own.announce_at(&path("a"), then);
        assert!(!own.take_at(&path("a"), then + HEARD_WITHIN));
        for number in 0..OWN_MAX + 1 {
            own.announce_at(&path(&number.to_string()), then);
        }
        assert!(own.names.lock().unwrap().len() <= OWN_MAX);
        assert!(own.take_at(&path(&OWN_MAX.to_string()), then));
    }
}
