//! What is told on `ks:changes` as the catalog's tasks share it: which keys others changed, and the events in their order.
//!
//! The connection's own task puts in what arrives (`put`); the one that follows the events takes them out (`take`). Each event names
//! the one before it, so whatever is missing here (not connected yet, more than fits) shows, and is read from the stream.
//!
//! What always holds: events are given out in the stream's order and without a gap; when `Taken::Nothing` is said, no later
//! event had been told.
use super::EventId;
use super::memory::parse;
use super::transaction::Place;
use crate::record::NodeId;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The channel on which changes are told.
pub(super) const CHANNEL: &[u8] = b"ks:changes";
/// Events that wait to be taken; beyond it they are read from the stream.
const WAITING_MAX: usize = 4096;

/// What `commit.lua` tells of one change.
pub(super) struct Told<'m> {
    /// The event's id and that of the one before it.
    pub(super) event: Option<(EventId, EventId)>,
    pub(super) origin: NodeId,
    pub(super) nonce: u64,
    pub(super) touched: Vec<Place>,
    pub(super) encoded: &'m [u8],
}

impl<'m> Told<'m> {
    /// `None`: not what the script tells.
    pub(super) fn parse(message: &'m [u8]) -> Option<Self> {
        let mut parts = message.splitn(6, |byte| *byte == b' ');
        let (last, previous) = (parts.next()?, parts.next()?);
        let event = match (last, previous) {
            (b"-", _) => None,
            _ => Some((EventId::parse(last)?, EventId::parse(previous)?)),
        };
        let origin = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let nonce = parse(parts.next()?)?;
        let keys = parts.next()?.split(|byte| *byte == b',');
        Some(Self {
            event,
            origin,
            nonce,
            touched: keys.filter_map(Place::from_tracked_key).collect(),
            encoded: parts.next()?,
        })
    }
}

/// An event that waits.
pub(super) struct Waiting {
    pub(super) id: EventId,
    previous: EventId,
    pub(super) origin: NodeId,
    pub(super) encoded: Vec<u8>,
}

/// What there is after a position.
pub(super) enum Taken {
    /// These, one after the other.
    Events(Vec<Waiting>),
    /// Something that is not here: read the stream.
    Gap,
    /// Nothing, as far as has been told.
    Nothing,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// The last event that was told, or after which the stream was seen to end; `None`: not known.
    last: Option<EventId>,
}

/// The feed.
#[derive(Default)]
pub(super) struct Feed {
    state: Mutex<State>,
    news: Notify,
}

impl Feed {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|held| held.into_inner())
    }

    /// An event was told. `wake`: somebody waits for it; own events are applied by those who made them.
    pub(super) fn put(&self, told: &Told, wake: bool) {
        let Some((id, previous)) = told.event else {
            return;
        };
        let mut state = self.locked();
        state.last = Some(id);
        if state.waiting.len() == WAITING_MAX {
            state.waiting.clear();
        }
        state.waiting.push_back(Waiting {
            id,
            previous,
            origin: told.origin,
            encoded: told.encoded.to_vec(),
        });
        drop(state);
        if wake {
            self.news.notify_one();
        }
    }

    /// What was told in between is not known: look at the stream.
    pub(super) fn reset(&self) {
        *self.locked() = State::default();
        self.news.notify_one();
    }

    /// Whoever waits looks again.
    pub(super) fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for `wake`, `reset`, or an event to wake for.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Nothing has been told for a while: the stream is looked at, in case that was not heard.
    pub(super) fn doubt(&self) {
        self.locked().last = None;
    }

    /// The stream was asked, and had nothing after `after` when it answered.
    pub(super) fn ends_at(&self, after: EventId) {
        let mut state = self.locked();
        state.last.get_or_insert(after);
    }

    /// The events after `after`, at most `max`.
    pub(super) fn take(&self, after: EventId, max: usize) -> Taken {
        let mut state = self.locked();
        while state.waiting.front().is_some_and(|first| first.id <= after) {
            state.waiting.pop_front();
        }
        let Some(first) = state.waiting.front() else {
            return match state.last {
                Some(last) if last <= after => Taken::Nothing,
                _ => Taken::Gap,
            };
        };
        if first.previous != after {
            return Taken::Gap;
        }
        let mut taken: Vec<Waiting> = Vec::new();
        while taken.len() < max.max(1)
            && let Some(next) = state.waiting.front()
            && taken.last().is_none_or(|before| before.id == next.previous)
        {
            taken.extend(state.waiting.pop_front());
        }
        Taken::Events(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: u64, previous: u64) -> Vec<u8> {
        let origin = NodeId(7);
        format!("{id}-0 {previous}-0 {origin} 5 ks:i:3,ks:d:1 a b").into_bytes()
    }

    fn put(feed: &Feed, id: u64, previous: u64) {
        feed.put(&Told::parse(&told(id, previous)).unwrap(), true);
    }

    fn ids(taken: Taken) -> Option<Vec<u64>> {
        match taken {
            Taken::Events(events) => Some(events.iter().map(|event| event.id.0).collect()),
            Taken::Nothing => Some(Vec::new()),
            Taken::Gap => None,
        }
    }

    #[test]
    fn what_the_script_tells_is_understood() {
        let message = told(9, 8);
        let told = Told::parse(&message).unwrap();
        assert_eq!(told.event, Some((EventId(9, 0), EventId(8, 0))));
        assert_eq!((told.origin, told.nonce), (NodeId(7), 5));
        assert_eq!(told.touched, [Place::Inode(3), Place::Directory(1)]);
        assert_eq!(told.encoded, b"a b");
        let without = Told::parse(b"- - 0000000000000007 5 ks:i:3 ").unwrap();
        assert!(without.event.is_none() && without.encoded.is_empty());
        assert!(Told::parse(b"nonsense").is_none());
    }

    #[test]
    fn a_gap_is_seen_and_nothing_is_said_only_when_it_is_known() {
        let feed = Feed::default();
        assert_eq!(ids(feed.take(EventId(1, 0), 10)), None, "the beginning");
        feed.ends_at(EventId(1, 0));
        assert_eq!(ids(feed.take(EventId(1, 0), 10)), Some(vec![]));
        put(&feed, 2, 1);
        put(&feed, 3, 2);
        put(&feed, 5, 4);
        assert_eq!(ids(feed.take(EventId(1, 0), 10)), Some(vec![2, 3]));
        assert_eq!(ids(feed.take(EventId(3, 0), 10)), None);
        assert_eq!(ids(feed.take(EventId(5, 0), 10)), Some(vec![]));
        assert_eq!(ids(feed.take(EventId(4, 0), 10)), None, "taken already");
        feed.reset();
        assert_eq!(ids(feed.take(EventId(5, 0), 10)), None);
    }

    #[test]
    fn more_than_fits_is_a_gap() {
        let feed = Feed::default();
        for id in 1..=WAITING_MAX as u64 + 1 {
            put(&feed, id, id - 1);
        }
        assert_eq!(ids(feed.take(EventId(0, 0), 10)), None);
        let last = WAITING_MAX as u64;
        assert_eq!(ids(feed.take(EventId(last, 0), 10)), Some(vec![last + 1]));
    }
}
