//! Values that stay on this node (`scatter`, `_keep`, keys of a pool): files named by their hash, in the memory tier while there
//! is room, else on the disk under `.ks/kept/`. A new one has memory before those that were used longest ago: they move to the disk.
//!
//! Always: what stands under a hash was whole when it got its name; a value that moves stands at its new place before it goes from its
//! old one, and who has it mapped keeps it. Not for knowing which values are needed: that is the catalog
//! of kept values (ks-executor); what it does not know is removed (`kept_before`).
use super::blobs::by_hash;
use super::memory::{MemoryTier, Usage, files_below};
use super::{Store, StoreError, io_at, lock, state};
use crate::record::Hash;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Where there is no room for a value, one part in so many of the tier is made free at once: looking at all its files is not for one.
const ROOM_SHARE: u64 = 16;

/// What this node keeps for others to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptUsage {
    /// In memory.
    pub memory: Usage,
    /// Bytes on the disk, as there was no room.
    pub spilled_bytes: u64,
    /// Values in both.
    pub values: u64,
}

impl Store {
    /// Opens the memory tier below `parent` (a tmpfs); `limit_bytes` of 0: there is none. Once, at the start.
    pub fn open_memory(&self, parent: &Path, limit_bytes: u64) -> Result<(), StoreError> {
        if limit_bytes > 0 {
            let tier = MemoryTier::open(parent, self.node_id(), self.datadir(), limit_bytes)?;
            let _ = self.memory.set(tier);
        }
        Ok(())
    }

    /// Where values in memory stand, if there is such a place.
    pub fn memory_directory(&self) -> Option<&Path> {
        self.memory.get().map(MemoryTier::directory)
    }

    /// Where values stand for which there is no room in memory.
    pub fn kept_directory(&self) -> PathBuf {
        self.state_dir().join("kept")
    }

    /// Where a kept value stands, if it is here.
    pub fn kept_path(&self, hash: &Hash) -> Option<PathBuf> {
        let in_memory = self.memory_directory().map(|tier| by_hash(tier, hash));
        let on_disk = by_hash(&self.kept_directory(), hash);
        // Memory once more: it may have moved there between the two looks.
        let places = in_memory.clone().into_iter().chain([on_disk]);
        places.chain(in_memory).find(|path| path.is_file())
    }

    /// The same, for somebody who uses it now: it is the last to leave memory.
    pub fn use_kept(&self, hash: &Hash) -> Option<PathBuf> {
        let path = self.kept_path(hash)?;
        if self
            .memory_directory()
            .is_some_and(|tier| path.starts_with(tier))
        {
            let now = rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            };
            let as_it_is = rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            };
            let times = rustix::fs::Timestamps {
                last_access: now,
                last_modification: as_it_is,
            };
            // One that has just moved to the disk needs none.
            let _ =
                rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty());
        }
        Some(path)
    }

    /// Moves values into memory for which there was no room, in place of those that were used longest ago.
    pub fn prefer(&self, hashes: &[Hash]) -> Result<(), StoreError> {
        let _one_at_a_time = lock(&self.keeping);
        let Some(tier) = self.memory.get() else {
            return Ok(());
        };
        for hash in hashes {
            let path = by_hash(&self.kept_directory(), hash);
            let Ok(found) = path.metadata() else {
                continue;
            };
            if !self.make_room(tier, found.len(), hashes)? {
                continue;
            }
            if let Err(error) = copy_whole(&path, tier.directory(), hash) {
                tier.release(found.len());
                return Err(error);
            }
            self.contents.forget(0);
            std::fs::remove_file(&path).map_err(io_at(&path))?;
            self.kept_moved.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether values have moved since this was asked last: whoever has such mapped holds its memory.
    pub fn take_kept_moved(&self) -> bool {
        self.kept_moved.swap(false, Ordering::Relaxed)
    }

    /// Takes room in memory, if need be that of values which were used longest ago, but of none of `but`. `false`: there is not so much.
    fn make_room(
        &self,
        tier: &MemoryTier,
        size_bytes: u64,
        but: &[Hash],
    ) -> Result<bool, StoreError> {
        let limit_bytes = tier.usage().limit_bytes;
        if size_bytes > limit_bytes || tier.reserve(size_bytes) {
            return Ok(size_bytes <= limit_bytes);
        }
        let wanted_bytes = size_bytes.max(limit_bytes / ROOM_SHARE);
        for hash in tier.least_used()? {
            let usage = tier.usage();
            if usage.limit_bytes.saturating_sub(usage.used_bytes) >= wanted_bytes {
                break;
            }
            if !but.contains(&hash) {
                self.spill(&hash)?;
            }
        }
        Ok(tier.reserve(size_bytes))
    }

    /// Makes a payload that was brought here a kept value: in memory where there is room.
    pub fn keep_blob(&self, hash: &Hash) -> Result<PathBuf, StoreError> {
        let _one_at_a_time = lock(&self.keeping);
        if let Some(path) = self.kept_path(hash) {
            return Ok(path);
        }
        let blob = by_hash(&self.state_dir().join("blobs"), hash);
        let size = blob.metadata().map_err(io_at(&blob))?.len();
        if let Some(tier) = self.memory.get()
            && self.make_room(tier, size, &[*hash]).unwrap_or(false)
        {
            match copy_whole(&blob, tier.directory(), hash) {
                Ok(path) => {
                    let _ = std::fs::remove_file(&blob);
                    return Ok(path);
                }
                Err(error) => {
                    tier.release(size);
                    tracing::debug!(%error, "a value does not go into memory: it stays on the disk");
                }
            }
        }
        self.ensure_kept_directory(hash)?;
        let path = by_hash(&self.kept_directory(), hash);
        std::fs::rename(&blob, &path).map_err(io_at(&path))?;
        Ok(path)
    }

    /// Moves a value out of memory, so that it outlives the tier.
    pub fn spill(&self, hash: &Hash) -> Result<(), StoreError> {
        let Some(tier) = self.memory.get() else {
            return Ok(());
        };
        let path = by_hash(tier.directory(), hash);
        let Ok(found) = path.metadata() else {
            return Ok(());
        };
        self.ensure_room(found.len())?;
        copy_whole(&path, &self.kept_directory(), hash)?;
        // Payloads (inode 0) that peers are given: one that is open holds its memory.
        self.contents.forget(0);
        if std::fs::remove_file(&path).is_ok() {
            tier.release(found.len());
        }
        self.kept_moved.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes a kept value; one that is not here is as good.
    pub fn remove_kept(&self, hash: &Hash) -> Result<(), StoreError> {
        let Some(path) = self.kept_path(hash) else {
            return Ok(());
        };
        let size = path.metadata().map_or(0, |found| found.len());
        self.remove_tree(hash);
        // Payloads (inode 0) that peers are given: one that is open holds its memory.
        self.contents.forget(0);
        match std::fs::remove_file(&path) {
            Ok(()) => {
                if let Some(tier) = self.memory.get()
                    && path.starts_with(tier.directory())
                {
                    tier.release(size);
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_at(&path)(error)),
        }
    }

    /// The values that have stood here for at least `age`.
    pub fn kept_before(&self, age: Duration) -> Vec<Hash> {
        let mut found = Vec::new();
        for directory in self.kept_directories() {
            for file in files_below(&directory).unwrap_or_default() {
                let modified = file.metadata().and_then(|found| found.modified());
                let is_old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|old| old >= age));
                let name = file.file_name();
                if is_old && let Some(hash) = name.to_str().and_then(parse_hash) {
                    found.push(hash);
                }
            }
        }
        found
    }

    /// How much is kept. Looks at every value's file.
    pub fn kept_usage(&self) -> KeptUsage {
        let mut usage = KeptUsage::default();
        for directory in self.kept_directories() {
            let on_disk = directory == self.kept_directory();
            for file in files_below(&directory).unwrap_or_default() {
                usage.values += u64::from(file.file_name().to_str().and_then(parse_hash).is_some());
                if on_disk {
                    usage.spilled_bytes += file.metadata().map_or(0, |found| found.len());
                }
            }
        }
        usage.memory = self.memory.get().map(MemoryTier::usage).unwrap_or_default();
        usage
    }

    /// Counts anew what is in memory: processes that died may have left room taken.
    pub fn recount_memory(&self) {
        if let Some(tier) = self.memory.get()
            && let Err(error) = tier.recount()
        {
            tracing::warn!(%error, "what is in memory cannot be counted");
        }
    }

    /// Removes everything that is in memory: the node ends.
    pub fn clear_memory(&self) {
        if let Some(tier) = self.memory.get() {
            tier.clear();
        }
    }

    fn kept_directories(&self) -> Vec<PathBuf> {
        let in_memory = self.memory_directory().map(Path::to_owned);
        in_memory
            .into_iter()
            .chain([self.kept_directory()])
            .collect()
    }

    fn ensure_kept_directory(&self, hash: &Hash) -> Result<(), StoreError> {
        let path = by_hash(&self.kept_directory(), hash);
        state::make_private_directory(path.parent().unwrap_or(&path))
    }
}

/// Copies a value's file to where it belongs in `directory`.
fn copy_whole(from: &Path, directory: &Path, hash: &Hash) -> Result<PathBuf, StoreError> {
    let path = by_hash(directory, hash);
    state::make_private_directory(path.parent().unwrap_or(&path))?;
    let temporary = state::temporary_beside(&directory.join("new"));
    let copied = std::fs::copy(from, &temporary)
        .and_then(|_| std::fs::rename(&temporary, &path))
        .map_err(io_at(&path));
    if copied.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    copied.map(|()| path)
}

pub(super) fn parse_hash(name: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    hex::decode_to_slice(name, &mut hash).ok()?;
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(directory: &Path, limit_bytes: u64) -> Store {
        let store = Store::open(&directory.join("data"), 0).unwrap();
        store.open_memory(directory, limit_bytes).unwrap();
        store
    }

    fn keep(store: &Store, value: &[u8]) -> Hash {
        let (hash, _) = store.put_blob(&[value]).unwrap();
        store.keep_blob(&hash).unwrap();
        hash
    }

    /// The access times of files are as fine as the kernel's tick.
    fn later() {
        std::thread::sleep(Duration::from_millis(20));
    }

    #[test]
    fn of_a_full_memory_those_leave_that_were_used_longest_ago() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 130);
        let memory = store.memory_directory().unwrap().to_owned();
        let in_memory = |hash: &Hash| store.kept_path(hash).unwrap().starts_with(&memory);
        let old = keep(&store, &[1; 60]);
        later();
        let middle = keep(&store, &[2; 60]);
        later();
        let mut mapped = std::fs::File::open(store.kept_path(&middle).unwrap()).unwrap();
        store.use_kept(&old).unwrap();
        let new = keep(&store, &[3; 60]);
        assert_eq!(
            [in_memory(&old), in_memory(&middle), in_memory(&new)],
            [true, false, true]
        );
        // Who has it open reads on, and everybody else finds it where it is now.
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut mapped, &mut read).unwrap();
        assert_eq!(read, [2; 60]);
        for (hash, value) in [(&old, [1u8; 60]), (&middle, [2; 60]), (&new, [3; 60])] {
            assert_eq!(std::fs::read(store.blob_path(hash)).unwrap(), value);
        }
        let counts =
            |usage: KeptUsage| (usage.memory.used_bytes, usage.spilled_bytes, usage.values);
        assert_eq!(counts(store.kept_usage()), (120, 60, 3));
        // One that is larger than all of it moves nobody.
        let large = keep(&store, &[4; 131]);
        assert!(!in_memory(&large) && in_memory(&old) && in_memory(&new));
        assert!(store.take_kept_moved());
        store.prefer(&[large]).unwrap();
        assert!(!store.take_kept_moved());
        // One that had to go to the disk is preferred once it is known.
        later();
        store.prefer(&[middle]).unwrap();
        assert!(store.take_kept_moved());
        assert_eq!(
            [in_memory(&old), in_memory(&middle), in_memory(&new)],
            [false, true, true]
        );
        assert_eq!(counts(store.kept_usage()), (120, 191, 4));
        assert_eq!(store.kept_before(Duration::ZERO).len(), 4);
        for hash in [old, middle, new, large] {
            store.remove_kept(&hash).unwrap();
            store.remove_kept(&hash).unwrap();
        }
        assert_eq!(counts(store.kept_usage()), (0, 0, 0));
        assert!(!store.has_blob(&old));
    }

    #[test]
    fn what_is_spilled_outlives_the_tier() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path(), 100);
        let (hash, _) = store.put_blob(&[b"value"]).unwrap();
        store.keep_blob(&hash).unwrap();
        store.spill(&hash).unwrap();
        store.spill(&hash).unwrap();
        assert_eq!(store.kept_usage().memory.used_bytes, 0);
        store.clear_memory();
        let path = store.kept_path(&hash).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"value");
    }
}
