//! Which 16 KiB groups of a file are here: one bit a group. Pure.
//!
//! Always: a group counts as had only when all of its bytes were marked at once; the last group ends at the file's size.
//! Memory: `size / 131,072` bytes (8 MiB for a file of 1 TiB).
use ks_transport::blocks::GROUP_BYTES;
use std::ops::Range;

const WORD_BITS: u64 = u64::BITS as u64;

/// The map of a file's groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupMap {
    size: u64,
    words: Vec<u64>,
    had_groups: u64,
}

impl GroupMap {
    /// Of a file of `size` bytes of which nothing is here.
    pub(crate) fn new(size: u64) -> Self {
        let words = groups_of(size).div_ceil(WORD_BITS);
        Self {
            size,
            words: vec![0; words as usize],
            had_groups: 0,
        }
    }

    /// Marks the groups that lie wholly in `range` (bytes). `true`: some were new.
    pub(crate) fn mark(&mut self, range: Range<u64>) -> bool {
        let before = self.had_groups;
        let first = range.start.div_ceil(GROUP_BYTES);
        let end = if range.end >= self.size {
            groups_of(self.size)
        } else {
            range.end / GROUP_BYTES
        };
        let mut group = first;
        while group < end {
            let bit = group % WORD_BITS;
            let count = (WORD_BITS - bit).min(end - group);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            let word = &mut self.words[(group / WORD_BITS) as usize];
            self.had_groups += u64::from((mask & !*word).count_ones());
            *word |= mask;
            group += count;
        }
        self.had_groups != before
    }

    /// What of `range` (bytes) is missing, as ranges of whole groups, sorted, no two of them touching.
    pub(crate) fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        if range.start >= range.end.min(self.size) {
            return found;
        }
        let mut group = range.start / GROUP_BYTES;
        let end = range.end.min(self.size).div_ceil(GROUP_BYTES);
        while group < end {
            let bit = group % WORD_BITS;
            let rest = self.words[(group / WORD_BITS) as usize] >> bit;
            let had = u64::from(rest.trailing_ones());
            if had > 0 {
                group += had;
                continue;
            }
            let lacking = u64::from(rest.trailing_zeros())
                .min(WORD_BITS - bit)
                .min(end - group);
            let bytes = group * GROUP_BYTES..((group + lacking) * GROUP_BYTES).min(self.size);
            match found.last_mut() {
                Some(last) if last.end == bytes.start => last.end = bytes.end,
                _ => found.push(bytes),
            }
            group += lacking;
        }
        found
    }

    /// How many bytes are here.
    pub(crate) fn had_bytes(&self) -> u64 {
        let groups = groups_of(self.size);
        let is_last_had = groups > 0 && self.has(groups - 1);
        let short = if is_last_had {
            groups * GROUP_BYTES - self.size
        } else {
            0
        };
        self.had_groups * GROUP_BYTES - short
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.had_groups == groups_of(self.size)
    }

    /// The bits, lowest group first.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    /// What `to_bytes` made of the map of a file of `size` bytes; `None` when it cannot be that.
    pub(crate) fn from_bytes(size: u64, bytes: &[u8]) -> Option<Self> {
        let groups = groups_of(size);
        if bytes.len() as u64 != groups.div_ceil(WORD_BITS) * 8 {
            return None;
        }
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        let had_groups = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let beyond = match (words.last(), groups % WORD_BITS) {
            (Some(last), used) if used > 0 => last >> used,
            _ => 0,
        };
        (beyond == 0).then_some(Self {
            size,
            words,
            had_groups,
        })
    }

    fn has(&self, group: u64) -> bool {
        self.words[(group / WORD_BITS) as usize] >> (group % WORD_BITS) & 1 == 1
    }
}

fn groups_of(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same, a group at a time.
    fn model_missing(had: &[bool], size: u64, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for (group, _) in had.iter().enumerate().filter(|(_, had)| !**had) {
            let start = group as u64 * GROUP_BYTES;
            let end = (start + GROUP_BYTES).min(size);
            if start < range.end && range.start < end && range.start < range.end {
                match found.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => found.push(start..end),
                }
            }
        }
        found
    }

    fn any_range(size: u64) -> impl Strategy<Value = Range<u64>> {
        (0..=size + GROUP_BYTES, 0..=size + GROUP_BYTES).prop_map(|(a, b)| a..b)
    }

    fn case() -> impl Strategy<Value = (u64, Vec<Range<u64>>, Range<u64>)> {
        (0..200 * GROUP_BYTES).prop_flat_map(|size| {
            (
                Just(size),
                prop::collection::vec(any_range(size), 0..12),
                any_range(size),
            )
        })
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_groups((size, marks, asked) in case()) {
            let mut map = GroupMap::new(size);
            let mut had = vec![false; groups_of(size) as usize];
            for mark in marks {
                let before = had.clone();
                for (group, had) in had.iter_mut().enumerate() {
                    let start = group as u64 * GROUP_BYTES;
                    let end = (start + GROUP_BYTES).min(size);
                    *had |= mark.start <= start && end <= mark.end;
                }
                prop_assert_eq!(map.mark(mark), before != had);
            }
            prop_assert_eq!(map.missing(asked.clone()), model_missing(&had, size, asked));
            prop_assert_eq!(map.is_whole(), had.iter().all(|had| *had));
            let missing: u64 = map.missing(0..size).iter().map(|r| r.end - r.start).sum();
            prop_assert_eq!(map.had_bytes(), size - missing);
            prop_assert_eq!(GroupMap::from_bytes(size, &map.to_bytes()), Some(map));
        }

        #[test]
        fn nonsense_is_refused_or_a_map(size in 0..100 * GROUP_BYTES, bytes: Vec<u8>) {
            if let Some(map) = GroupMap::from_bytes(size, &bytes) {
                prop_assert!(map.had_bytes() <= size);
                prop_assert_eq!(map.to_bytes(), bytes);
            }
        }
    }
}
