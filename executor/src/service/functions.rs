//! The code of functions by hash: kept in memory (bounded), from Redis or another node where it is not.
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Mutex;

/// Bytes of code kept in memory; the least recently used goes first.
pub const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The cache.
#[derive(Default)]
pub struct Functions {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    code: HashMap<Vec<u8>, (Bytes, u64)>,
    bytes: usize,
    clock: u64,
}

impl Functions {
    /// The code, if it is here.
    pub fn get(&self, hash: &[u8]) -> Option<Bytes> {
        let mut kept = self.kept.lock().unwrap();
        kept.clock += 1;
        let clock = kept.clock;
        let (code, used) = kept.code.get_mut(hash)?;
        *used = clock;
        Some(code.clone())
    }

    /// Keeps code whose hash has been checked.
    pub fn put(&self, hash: &[u8], code: Bytes) {
        let mut kept = self.kept.lock().unwrap();
        kept.clock += 1;
        let clock = kept.clock;
        kept.bytes += code.len();
        if let Some((old, _)) = kept.code.insert(hash.to_vec(), (code, clock)) {
            kept.bytes -= old.len();
        }
        while kept.bytes > KEPT_BYTES_MAX && kept.code.len() > 1 {
            let oldest = kept.code.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest
                .map(|(hash, _)| hash.clone())
                .expect("it is not empty");
            if let Some((code, _)) = kept.code.remove(&oldest) {
                kept.bytes -= code.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let functions = Functions::default();
        let code = Bytes::from(vec![0; KEPT_BYTES_MAX / 4]);
        for name in [b"a", b"b", b"c", b"d"] {
            functions.put(name, code.clone());
        }
        assert!(functions.get(b"a").is_some());
        functions.put(b"e", code.clone());
        functions.put(b"e", code);
        assert!(functions.get(b"b").is_none());
        for name in [b"a", b"c", b"d", b"e"] {
            assert!(functions.get(name).is_some());
        }
    }
}
