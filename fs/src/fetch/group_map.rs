//! A map of which 16 KiB groups of a content are here, in memory: for contents that are not kept as partial files
//! (read-only nodes, full disks, small files, payloads under way).
use super::ranges::{Ranges, to_groups};
use ks_transport::blocks::GROUP_BYTES;
use std::ops::Range;

/// One bit a group.
pub struct GroupMap {
    size: u64,
    words: Vec<u64>,
    had_bytes: u64,
}

impl GroupMap {
    /// The map of a content of `size` bytes of which nothing is here.
    pub fn new(size: u64) -> Self {
        let groups = size.div_ceil(GROUP_BYTES);
        Self {
            size,
            words: vec![0; groups.div_ceil(64) as usize],
            had_bytes: 0,
        }
    }

    fn has(&self, group: u64) -> bool {
        self.words[(group / 64) as usize] >> (group % 64) & 1 == 1
    }

    fn group_len(&self, group: u64) -> u64 {
        GROUP_BYTES.min(self.size - group * GROUP_BYTES)
    }

    /// Sets or clears the whole groups of `range`; one that it only touches is left as it is.
    pub fn set(&mut self, range: Range<u64>, here: bool) {
        let end = range.end.min(self.size);
        let last = if end == self.size {
            end.div_ceil(GROUP_BYTES)
        } else {
            end / GROUP_BYTES
        };
        for group in range.start.div_ceil(GROUP_BYTES)..last {
            if self.has(group) != here {
                self.words[(group / 64) as usize] ^= 1 << (group % 64);
                let len = self.group_len(group);
                self.had_bytes = if here {
                    self.had_bytes + len
                } else {
                    self.had_bytes - len
                };
            }
        }
    }

    /// What of `range` is missing, widened to whole groups.
    pub fn missing(&self, range: Range<u64>) -> Ranges {
        let wide = to_groups(&range, self.size);
        let mut missing: Ranges = Vec::new();
        for group in wide.start / GROUP_BYTES..wide.end.div_ceil(GROUP_BYTES) {
            if self.has(group) {
                continue;
            }
            let start = group * GROUP_BYTES;
            let end = start + self.group_len(group);
            match missing.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => missing.push(start..end),
            }
        }
        missing
    }

    /// Bytes that are here.
    pub fn had_bytes(&self) -> u64 {
        self.had_bytes
    }

    /// Whether all of it is here.
    pub fn is_whole(&self) -> bool {
        self.had_bytes == self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_whole_groups_and_the_short_last_one() {
        let mut map = GroupMap::new(3 * GROUP_BYTES + 5);
        assert_eq!(map.missing(0..1), vec![0..GROUP_BYTES]);
        map.set(1..2 * GROUP_BYTES, true);
        assert_eq!(map.had_bytes(), GROUP_BYTES);
        map.set(3 * GROUP_BYTES..3 * GROUP_BYTES + 5, true);
        assert_eq!(map.had_bytes(), GROUP_BYTES + 5);
        assert_eq!(
            map.missing(0..u64::MAX),
            vec![0..GROUP_BYTES, 2 * GROUP_BYTES..3 * GROUP_BYTES]
        );
        map.set(0..u64::MAX, true);
        assert!(map.is_whole());
        map.set(0..GROUP_BYTES, false);
        assert_eq!(map.missing(0..u64::MAX), vec![0..GROUP_BYTES]);
    }

    #[test]
    fn an_empty_content_is_whole() {
        assert!(GroupMap::new(0).is_whole());
        assert!(GroupMap::new(0).missing(0..10).is_empty());
    }
}
