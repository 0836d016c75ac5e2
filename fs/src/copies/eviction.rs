//! Which fetched copies go when there are too many, and how much has to go. Pure.
//!
//! Always: what goes was not pinned and is not in use; the least recently used goes first; no more goes than is needed to come inside both bounds.
//! Memory is bounded: of any number of copies only the [`CANDIDATES_MAX`] least recently used are remembered.
//!
//! Not for whether a copy may go at all (others must keep theirs): that is decided in the catalog, one by one.
use crate::path::TreePath;
use crate::record::{Ino, Time};
use std::collections::BinaryHeap;

/// Copies that one look at the data directory remembers.
pub const CANDIDATES_MAX: usize = 4096;

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of fetched data (`--cache-limit`).
    pub cache_bytes: u64,
    /// Bytes of the disk that are left free (`--keep-free`), and what is wanted beyond them so that fetches go on.
    pub free_bytes: u64,
}

impl Bounds {
    /// With so much more of the disk left free: a writer waits for it.
    pub fn with(self, wanted_bytes: u64) -> Self {
        Self {
            free_bytes: self.free_bytes.saturating_add(wanted_bytes),
            ..self
        }
    }
}

/// How it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of fetched data.
    pub cached_bytes: u64,
    /// Bytes free on the disk.
    pub free_bytes: u64,
}

/// How much fetched data is kept, as people say it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheLimit {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of what would be free without fetched data.
    PercentOfFree(f64),
}

impl Default for CacheLimit {
    fn default() -> Self {
        CacheLimit::PercentOfFree(50.0)
    }
}

impl CacheLimit {
    /// In bytes.
    pub fn bytes(self, usage: Usage) -> u64 {
        let without = usage.free_bytes.saturating_add(usage.cached_bytes);
        match self {
            CacheLimit::Bytes(bytes) => bytes,
            CacheLimit::PercentOfFree(percent) => (without as f64 * percent / 100.0) as u64,
        }
    }
}

/// How many bytes have to go.
pub fn excess(bounds: Bounds, usage: Usage) -> u64 {
    let over_limit = usage.cached_bytes.saturating_sub(bounds.cache_bytes);
    let too_full = bounds.free_bytes.saturating_sub(usage.free_bytes);
    over_limit.max(too_full.min(usage.cached_bytes))
}

/// The order in which copies go, given the least recently used first: where the disk is too full, parts of files that nobody reads go before whole ones,
/// which serve others, too.
pub fn in_order(mut copies: Vec<Candidate>, bounds: Bounds, usage: Usage) -> Vec<Candidate> {
    if usage.free_bytes < bounds.free_bytes {
        copies.sort_by_key(|copy| !copy.is_partial);
    }
    copies
}

/// A fetched copy that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// When it was last used.
    pub used: Time,
    /// Which file.
    pub ino: Ino,
    /// Where it stands.
    pub path: TreePath,
    /// What its going gives back.
    pub bytes: u64,
    /// Of which version it is.
    pub version: u64,
    /// Only part of the file is here.
    pub is_partial: bool,
}

impl Candidate {
    fn order(&self) -> (Time, Ino, u64) {
        (self.used, self.ino, self.version)
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// The least recently used of all that were seen, and what all of them come to.
#[derive(Debug, Default)]
pub struct Census {
    oldest: BinaryHeap<Candidate>,
    cached_bytes: u64,
}

impl Census {
    /// A fetched copy was come by; `may_go`: it is neither pinned nor in use.
    pub fn count(&mut self, copy: Candidate, may_go: bool) {
        self.cached_bytes = self.cached_bytes.saturating_add(copy.bytes);
        if !may_go || copy.bytes == 0 {
            return;
        }
        self.oldest.push(copy);
        if self.oldest.len() > CANDIDATES_MAX {
            self.oldest.pop();
        }
    }

    /// Bytes of all fetched copies.
    pub fn cached_bytes(&self) -> u64 {
        self.cached_bytes
    }

    /// Those that may go, the least recently used first.
    pub fn into_candidates(self) -> Vec<Candidate> {
        self.oldest.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn copy(used: Time, ino: Ino, bytes: u64) -> Candidate {
        Candidate {
            used,
            ino,
            path: TreePath::root(),
            bytes,
            version: 1,
            is_partial: false,
        }
    }

    /// What the shell does: one after the other until enough has gone; `stays` says which the catalog does not let go.
    fn evict(
        bounds: Bounds,
        free: u64,
        copies: &[(Candidate, bool)],
        stays: &[Ino],
    ) -> (Vec<Candidate>, Usage) {
        let mut census = Census::default();
        copies
            .iter()
            .for_each(|(copy, may_go)| census.count(copy.clone(), *may_go));
        let mut usage = Usage {
            cached_bytes: census.cached_bytes(),
            free_bytes: free,
        };
        let mut gone = Vec::new();
        for candidate in census.into_candidates() {
            if excess(bounds, usage) == 0 {
                break;
            }
            if !stays.contains(&candidate.ino) {
                usage.cached_bytes -= candidate.bytes;
                usage.free_bytes += candidate.bytes;
                gone.push(candidate);
            }
        }
        (gone, usage)
    }

    proptest! {
        #[test]
        fn what_goes_may_go_is_the_oldest_and_no_more_than_needed(
            sizes in prop::collection::vec((0i64..50, 0u64..100, any::<bool>(), any::<bool>()), 0..60),
            cache_bytes in 0u64..3000, keep in 0u64..3000, free in 0u64..3000,
        ) {
            let copies: Vec<(Candidate, bool)> = sizes.iter().enumerate()
                .map(|(i, (used, bytes, may_go, _))| (copy(*used, i as Ino, *bytes), *may_go)).collect();
            let stays: Vec<Ino> = sizes.iter().enumerate().filter(|(_, s)| s.3).map(|(i, _)| i as Ino).collect();
            let bounds = Bounds { cache_bytes, free_bytes: keep };
            let (gone, usage) = evict(bounds, free, &copies, &stays);
            let is_gone = |ino: Ino| gone.iter().any(|copy| copy.ino == ino);
            for (copy, may_go) in &copies {
                let can_go = *may_go && copy.bytes > 0 && !stays.contains(&copy.ino);
                prop_assert!(can_go || !is_gone(copy.ino));
                // Nothing older that could go stays while something younger goes.
                if can_go && !is_gone(copy.ino) {
                    prop_assert!(gone.iter().all(|other| other.order() < copy.order()));
                    prop_assert_eq!(excess(bounds, usage), 0, "it stays though it should go");
                }
            }
            if let Some(last) = gone.last() {
                let before = Usage { cached_bytes: usage.cached_bytes + last.bytes, free_bytes: usage.free_bytes - last.bytes };
                prop_assert!(excess(bounds, before) > 0, "the last one went needlessly");
            }
        }
    }

    #[test]
    fn a_disk_filled_by_others_asks_for_no_more_than_there_is() {
        let bounds = Bounds {
            cache_bytes: 100,
            free_bytes: 1000,
        };
        let usage = |cached_bytes, free_bytes| Usage {
            cached_bytes,
            free_bytes,
        };
        assert_eq!(excess(bounds, usage(50, 0)), 50);
        assert_eq!(excess(bounds, usage(50, 990)), 10);
        assert_eq!(excess(bounds, usage(150, 2000)), 50);
        assert_eq!(excess(bounds, usage(100, 1000)), 0);
    }

    #[test]
    fn a_full_disk_gives_up_parts_before_whole_copies() {
        let mut copies = vec![copy(1, 1, 5), copy(2, 2, 5), copy(3, 3, 5)];
        copies[1].is_partial = true;
        copies[2].is_partial = true;
        let order = |free_bytes| {
            let usage = Usage {
                cached_bytes: 15,
                free_bytes,
            };
            let bounds = Bounds {
                cache_bytes: 10,
                free_bytes: 100,
            };
            let ordered = in_order(copies.clone(), bounds, usage);
            ordered.iter().map(|copy| copy.ino).collect::<Vec<Ino>>()
        };
        assert_eq!(order(99), [2, 3, 1]);
        assert_eq!(order(100), [1, 2, 3], "only the cache is too large");
    }

    #[test]
    fn only_the_oldest_are_remembered() {
        let mut census = Census::default();
        for number in 0..2 * CANDIDATES_MAX as u64 {
            census.count(copy(-(number as i64), number, 1), true);
        }
        assert_eq!(census.cached_bytes(), 2 * CANDIDATES_MAX as u64);
        let candidates = census.into_candidates();
        assert_eq!(candidates.len(), CANDIDATES_MAX);
        assert_eq!(candidates[0].used, -(2 * CANDIDATES_MAX as i64 - 1));
    }
}
