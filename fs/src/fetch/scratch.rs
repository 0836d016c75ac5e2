//! A bounded place for bytes that are not kept: an unlinked file or anonymous memory, discarded when it is dropped. At its bound the oldest bytes go first.
//!
//! Used on read-only nodes, when the data directory's disk is full, and (without a bound) for payloads under way.
use super::group_map::GroupMap;
use super::ranges::{Ranges, total};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of one content, at their own offsets.
pub struct Scratch {
    file: File,
    capacity_bytes: u64,
    kept: RwLock<Kept>,
}

/// What is there. Readers hold the lock while they read, so that nothing is discarded under them.
struct Kept {
    map: GroupMap,
    /// In order of arrival.
    order: VecDeque<Range<u64>>,
}

impl Scratch {
    /// In `file`, which nobody else writes.
    pub fn new(file: File, size: u64, capacity_bytes: u64) -> Self {
        Self {
            file,
            capacity_bytes,
            kept: RwLock::new(Kept {
                map: GroupMap::new(size),
                order: VecDeque::new(),
            }),
        }
    }

    /// In anonymous memory.
    pub fn in_memory(size: u64, capacity_bytes: u64) -> io::Result<Self> {
        let file = rustix::fs::memfd_create("ks-scratch", MemfdFlags::CLOEXEC)?;
        Ok(Self::new(File::from(file), size, capacity_bytes))
    }

    /// In a file in `directory` that has no name.
    pub fn unlinked(directory: &Path, size: u64, capacity_bytes: u64) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self::new(File::from(file), size, capacity_bytes))
    }

    /// What of `range` is not there.
    pub fn missing(&self, range: Range<u64>) -> Ranges {
        self.shared().map.missing(range)
    }

    /// Bytes that are there.
    pub fn had_bytes(&self) -> u64 {
        self.shared().map.had_bytes()
    }

    /// Whether all is there.
    pub fn is_whole(&self) -> bool {
        self.shared().map.is_whole()
    }

    /// Writes bytes; `mark` says when whole groups are there.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Whole groups are there now; the oldest ones beyond the bound go.
    pub fn mark(&self, range: Range<u64>) {
        let mut kept = self.exclusive();
        kept.map.set(range.clone(), true);
        if self.capacity_bytes == u64::MAX {
            return;
        }
        kept.order.push_back(range);
        while kept.map.had_bytes() > self.capacity_bytes && kept.order.len() > 1 {
            let Some(oldest) = kept.order.pop_front() else {
                break;
            };
            kept.map.set(oldest.clone(), false);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let len = oldest.end - oldest.start;
            // Where holes cannot be made the file only gets larger, up to the content's size.
            let _ = rustix::fs::fallocate(&self.file, flags, oldest.start, len);
        }
    }

    /// Fills `buffer` from `offset` if all of it is there.
    pub fn read_into(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let kept = self.shared();
        let range = offset..offset + buffer.len() as u64;
        if total(&kept.map.missing(range)) > 0 {
            return Ok(false);
        }
        self.file.read_exact_at(buffer, offset)?;
        Ok(true)
    }

    fn shared(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Kept> {
        self.kept.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ks_transport::blocks::GROUP_BYTES;

    #[test]
    fn the_oldest_goes_and_is_said_to_be_missing() {
        let group = vec![7u8; GROUP_BYTES as usize];
        let scratch = Scratch::in_memory(10 * GROUP_BYTES, 3 * GROUP_BYTES).unwrap();
        for index in 0..5u64 {
            scratch.write(index * GROUP_BYTES, &group).unwrap();
            scratch.mark(index * GROUP_BYTES..(index + 1) * GROUP_BYTES);
        }
        assert_eq!(scratch.had_bytes(), 3 * GROUP_BYTES);
        let mut buffer = vec![0u8; GROUP_BYTES as usize];
        assert!(!scratch.read_into(0, &mut buffer).unwrap());
        assert!(scratch.read_into(2 * GROUP_BYTES, &mut buffer).unwrap());
        assert_eq!(buffer, group);
    }
}
