//! What earlier calls opened: a call that names no file is placed by the files that the same function, with the same
//! arguments, opened the last time.
//!
//! Each node remembers what the calls that it accepted have reported. Bounded; the oldest goes first. A memory that is wrong
//! by now (the file is gone, the function reads another) costs a worse place, nothing else.
use crate::protocol::{Call, FunctionRef, Part};
use serde_bytes::ByteBuf;
use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

/// Functions with arguments that are remembered.
pub const CALLS_MAX: usize = 50_000;
/// Files that are remembered of each.
pub const FILES_MAX: usize = 64;

/// A function and its arguments: BLAKE3 of both.
pub type Key = [u8; 32];

/// The memory.
#[derive(Default)]
pub struct Learned {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    files: HashMap<Key, Vec<ByteBuf>>,
    order: VecDeque<Key>,
}

/// What a call is remembered by. `None`: it says itself where its data is, wants to run anywhere, or its arguments are large.
pub fn key(call: &Call) -> Option<Key> {
    let says = !call.paths.is_empty() || !call.locality.is_empty();
    if says || call.no_route_data || call.node.is_some() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    match &call.function {
        FunctionRef::Hash(hash) => hasher.update(b"h").update(hash),
        FunctionRef::Name(name) => hasher.update(b"n").update(name.as_bytes()),
    };
    for part in &call.args.parts {
        match part {
            Part::Inline(bytes) => hasher
                .update(&(bytes.len() as u64).to_le_bytes())
                .update(bytes),
            _ => return None,
        };
    }
    Some(*hasher.finalize().as_bytes())
}

impl Learned {
    /// The files (paths in the tree) that such a call opened the last time.
    pub fn files(&self, key: &Key) -> Option<Vec<ByteBuf>> {
        self.known.lock().unwrap().files.get(key).cloned()
    }

    /// Such a call opened these files.
    pub fn note(&self, key: Key, files: &[ByteBuf]) {
        let files = files[..files.len().min(FILES_MAX)].to_vec();
        let mut known = self.known.lock().unwrap();
        if known.files.insert(key, files).is_none() {
            known.order.push_back(key);
        }
        while known.files.len() > CALLS_MAX {
            let Some(oldest) = known.order.pop_front() else {
                return;
            };
            known.files.remove(&oldest);
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

    #[test]
    fn calls_are_told_apart_by_function_and_arguments() {
        let (one, other) = (key(&call(b"one")), key(&call(b"other")));
        assert!(one.is_some() && one != other);
        assert_eq!(one, key(&call(b"one")));
        let mut renamed = call(b"one");
        renamed.function = FunctionRef::Name("m:g".into());
        assert_ne!(one, key(&renamed));
        let mut placed = call(b"one");
        placed.locality = vec![ByteBuf::from(b"/ks/a".to_vec())];
        assert_eq!(key(&placed), None);
    }

    #[test]
    fn the_oldest_goes_first() {
        let learned = Learned::default();
        let files = vec![ByteBuf::from(b"a".to_vec()); FILES_MAX + 1];
        let number = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes();
        for n in 0..CALLS_MAX + 10 {
            learned.note(number(n), &files);
        }
        assert_eq!(learned.files(&number(9)), None);
        assert_eq!(learned.files(&number(10)).unwrap().len(), FILES_MAX);
    }
}
