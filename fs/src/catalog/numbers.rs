//! Inode numbers: each node reserves a block, so that a create needs no round trip for its number.
//!
//! What always holds: a number is never given twice, not even by a catalog that was made anew after its Redis was lost
//! (the first number goes by the time of its making, also within a second), so numbers kept in data directories never mean another file.
use super::{Catalog, CatalogError};
use crate::record::{Ino, Time};
use crate::redis_client::Script;
use redis::Value;
use std::ops::Range;
use std::sync::{LazyLock, Mutex};

static NUMBERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("numbers.lua")));

/// Numbers reserved at once.
const BLOCK: u64 = 1000;
/// 2026-01-01, seconds since 1970.
const ORIGIN_SECONDS: i64 = 1_767_225_600;
/// Numbers set apart for each second: more than anyone creates in it.
const PER_SECOND_BITS: u32 = 20;
/// Of a second.
const NANOSECONDS: i128 = 1_000_000_000;

/// The last number that a catalog made at `now` counts as given.
pub(super) fn first(now: Time) -> Ino {
    let since = i128::from(now) - i128::from(ORIGIN_SECONDS) * NANOSECONDS;
    let since = since.max(NANOSECONDS);
    u64::try_from((since << PER_SECOND_BITS) / NANOSECONDS).unwrap_or(1 << PER_SECOND_BITS)
}

/// This node's reserve.
#[derive(Default)]
pub(super) struct Numbers(Mutex<Range<Ino>>);

impl Numbers {
    /// The next number; one round trip for every `BLOCK`.
    pub(super) async fn take(&self, catalog: &Catalog) -> Result<Ino, CatalogError> {
        loop {
            if let Some(number) = self.next() {
                return Ok(number);
            }
            let block = BLOCK.to_string();
            let Value::Int(last) = catalog.fenced(&NUMBERS, &[block.as_bytes()]).await? else {
                return Err(super::reads::damaged("next_ino"));
            };
            let last = u64::try_from(last).map_err(|_| super::reads::damaged("next_ino"))?;
            // Two tasks may have come here at once: the later block is used, the other one lies idle.
            *self.0.lock().unwrap() = last - BLOCK + 1..last + 1;
        }
    }

    /// What is in reserve is of a tree that was lost: it may be given again by the one that was rebuilt.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap() = 0..0;
    }

    fn next(&self) -> Option<Ino> {
        self.0.lock().unwrap().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_catalog_starts_beyond_an_earlier_one() {
        let second = 1_000_000_000;
        let then = (ORIGIN_SECONDS + 1000) * second;
        assert!(first(then + second) - first(then) > 100_000);
        // A clock that is far off still gives numbers beyond the root's.
        assert!(first(0) > crate::record::ROOT);
    }
}
