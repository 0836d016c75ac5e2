//! What earlier calls opened: a call that names no file is placed by the files that the same function opened before, with the
//! same arguments, or, with others, by what `placement::habits` makes of them.
//!
//! Each node remembers what the calls that it accepted have reported. Bounded, in number and in bytes; the oldest goes first. A memory
//! that is wrong by now (the file is gone, the function reads another) costs a worse place, nothing else.
use crate::placement::habits::{Guess, Habits};
use crate::protocol::{Call, FunctionRef, Part};
use serde_bytes::ByteBuf;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

/// Functions with arguments that are remembered.
pub const CALLS_MAX: usize = 50_000;
/// Files that are remembered of each.
pub const FILES_MAX: usize = 64;
/// Bytes that their paths take.
pub const CALLS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Functions of which it is remembered what they open.
pub const FUNCTIONS_MAX: usize = 2_000;
/// Bytes that this takes.
pub const FUNCTIONS_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Calls under way that something will be learned from.
pub const LESSONS_MAX: usize = 20_000;
/// Arguments of a call that are looked at, and bytes of the text of each.
const TEXTS_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 256;

/// A function, or a function and its arguments: BLAKE3.
type Key = [u8; 32];

/// What a call is remembered by.
#[derive(Debug)]
pub struct Lesson {
    function: Key,
    /// With its arguments; `None`: they are large.
    call: Option<Key>,
    texts: Vec<(String, ByteBuf)>,
    /// Counts those that are there.
    _alive: Arc<()>,
}

/// What is known of a call before it has begun.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// The files (paths in the tree) that it opened the last time.
    Opened(Vec<ByteBuf>),
    /// Files that it may open.
    Guessed(Vec<Guess>),
}

/// The memory.
#[derive(Default)]
pub struct Learned {
    calls: Mutex<Bounded<Vec<ByteBuf>>>,
    functions: Mutex<Bounded<Habits>>,
    alive: Arc<()>,
}

impl Learned {
    /// What a call will be remembered by. `None`: it says itself where its data is, wants to run anywhere, or many are being learned from.
    pub fn lesson(&self, call: &Call) -> Option<Lesson> {
        let says = !call.paths.is_empty() || !call.locality.is_empty();
        if says
            || call.no_route_data
            || call.node.is_some()
            || Arc::strong_count(&self.alive) > LESSONS_MAX
        {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        match &call.function {
            FunctionRef::Hash(hash) => hasher.update(b"h").update(hash),
            FunctionRef::Name(name) => hasher.update(b"n").update(name.as_bytes()),
        };
        let fits = |(name, text): &&(String, ByteBuf)| name.len().max(text.len()) <= TEXT_BYTES_MAX;
        Some(Lesson {
            function: *hasher.finalize().as_bytes(),
            call: with_arguments(hasher, call),
            texts: call
                .texts
                .iter()
                .filter(fits)
                .take(TEXTS_MAX)
                .cloned()
                .collect(),
            _alive: self.alive.clone(),
        })
    }

    /// What such a call opened the last time, or is thought to open.
    pub fn recall(&self, lesson: &Lesson) -> Option<Known> {
        if let Some(call) = &lesson.call
            && let Some(files) = self.calls.lock().unwrap().get(call)
        {
            return Some(Known::Opened(files.clone()));
        }
        let functions = self.functions.lock().unwrap();
        let guesses = functions.get(&lesson.function)?.guesses(&lesson.texts);
        (!guesses.is_empty()).then_some(Known::Guessed(guesses))
    }

    /// Such a call opened these files.
    pub fn note(&self, lesson: &Lesson, files: &[ByteBuf]) {
        let files = &files[..files.len().min(FILES_MAX)];
        if files.is_empty() {
            return;
        }
        if let Some(call) = lesson.call {
            let mut calls = self.calls.lock().unwrap();
            if calls.get(&call).is_some_and(|known| known == files) {
                return;
            }
            let size = files.iter().map(|file| file.len() + 32).sum();
            calls.put(call, files.to_vec(), size);
            calls.shrink(CALLS_MAX, CALLS_BYTES_MAX);
        }
        let mut functions = self.functions.lock().unwrap();
        let mut habits = functions.remove(&lesson.function).unwrap_or_default();
        habits.observe(&lesson.texts, files);
        let size = habits.size_bytes();
        functions.put(lesson.function, habits, size);
        functions.shrink(FUNCTIONS_MAX, FUNCTIONS_BYTES_MAX);
    }
}

/// Of a function and its arguments.
fn with_arguments(mut hasher: blake3::Hasher, call: &Call) -> Option<Key> {
    for part in &call.args.parts {
        let Part::Inline(bytes) = part else {
            return None;
        };
        hasher
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    }
    Some(*hasher.finalize().as_bytes())
}

/// Things by key, the one that was put in longest ago first to go.
struct Bounded<T> {
    /// Each with its number and its size.
    things: HashMap<Key, (u64, usize, T)>,
    /// Numbers and keys in the order they came, also of things that were taken out since.
    order: VecDeque<(u64, Key)>,
    bytes: usize,
    next: u64,
}

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self {
            things: HashMap::new(),
            order: VecDeque::new(),
            bytes: 0,
            next: 0,
        }
    }
}

impl<T> Bounded<T> {
    fn get(&self, key: &Key) -> Option<&T> {
        self.things.get(key).map(|(_, _, thing)| thing)
    }

    fn remove(&mut self, key: &Key) -> Option<T> {
        let (_, size, thing) = self.things.remove(key)?;
        self.bytes -= size;
        Some(thing)
    }

    fn put(&mut self, key: Key, thing: T, size: usize) {
        self.remove(&key);
        self.things.insert(key, (self.next, size, thing));
        self.order.push_back((self.next, key));
        self.bytes += size;
        self.next += 1;
        if self.order.len() > 2 * self.things.len() + 16 {
            let things = &self.things;
            self.order
                .retain(|(number, key)| things.get(key).is_some_and(|(now, _, _)| now == number));
        }
    }

    fn shrink(&mut self, count_max: usize, bytes_max: usize) {
        while self.things.len() > count_max || self.bytes > bytes_max {
            let Some((number, key)) = self.order.pop_front() else {
                return;
            };
            if self
                .things
                .get(&key)
                .is_some_and(|(now, _, _)| *now == number)
            {
                self.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &[u8]) -> Call {
        let args = crate::protocol::Payload {
            parts: vec![Part::Inline(args.to_vec().into())],
        };
        let value = serde_json::json!({
            "job": "", "name": "f", "function": {"Name": "m:f"}, "format": "pickle", "args": {"parts": []}, "mountpoint": null,
        });
        Call {
            args,
            ..serde_json::from_value(value).unwrap()
        }
    }

    fn of_day(day: &str) -> Call {
        Call {
            texts: vec![("day".into(), ByteBuf::from(day.as_bytes().to_vec()))],
            ..call(day.as_bytes())
        }
    }

    fn file(path: &str) -> ByteBuf {
        ByteBuf::from(path.as_bytes().to_vec())
    }

    #[test]
    fn calls_are_told_apart_by_function_and_arguments() {
        let learned = Learned::default();
        let key = |call: &Call| learned.lesson(call).unwrap().call;
        let (one, other) = (key(&call(b"one")), key(&call(b"other")));
        assert!(one.is_some() && one != other);
        assert_eq!(one, key(&call(b"one")));
        let mut renamed = call(b"one");
        renamed.function = FunctionRef::Name("m:g".into());
        assert_ne!(one, key(&renamed));
        let mut placed = call(b"one");
        placed.locality = vec![file("/ks/a")];
        assert!(learned.lesson(&placed).is_none());
    }

    #[test]
    fn the_same_call_is_known_and_another_guessed() {
        let learned = Learned::default();
        let lesson = |day| learned.lesson(&of_day(day)).unwrap();
        assert_eq!(learned.recall(&lesson("2013-01")), None);
        learned.note(&lesson("2013-01"), &[file("f/2013-01.csv")]);
        let opened = Known::Opened(vec![file("f/2013-01.csv")]);
        assert_eq!(learned.recall(&lesson("2013-01")), Some(opened));
        let guess = Guess::from([(b"f/2014-12.csv".to_vec(), "f/{day}.csv".to_owned())]);
        assert_eq!(
            learned.recall(&lesson("2014-12")),
            Some(Known::Guessed(vec![guess]))
        );
        let mut large = of_day("2014-12");
        large.args.parts = vec![Part::Segment(1)];
        let lesson = learned.lesson(&large).unwrap();
        assert!(matches!(learned.recall(&lesson), Some(Known::Guessed(_))));
    }

    #[test]
    fn no_more_calls_are_learned_from_than_there_is_room_for() {
        let learned = Learned::default();
        let lessons: Vec<_> = (0..LESSONS_MAX + 10)
            .filter_map(|_| learned.lesson(&call(b"one")))
            .collect();
        assert_eq!(lessons.len(), LESSONS_MAX);
        drop(lessons);
        assert!(learned.lesson(&call(b"one")).is_some());
    }

    #[test]
    fn the_oldest_goes_first() {
        let mut bounded = Bounded::default();
        let key = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
        for n in 0..1_000 {
            bounded.put(key(n % 60), n, 10);
            bounded.shrink(50, 300);
            assert!(
                bounded.things.len() <= 30 && bounded.order.len() <= 2 * bounded.things.len() + 16
            );
            assert_eq!(bounded.bytes, 10 * bounded.things.len());
        }
        assert_eq!(bounded.get(&key(999 % 60)), Some(&999));
        assert_eq!(bounded.get(&key(969 % 60)), None);
    }
}
