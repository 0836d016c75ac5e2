//! What is here that was fetched: whole copies of other nodes' files, and partial files. And when each was last used.
//!
//! A copy's last use is its access time, which [`Store::note_used`] keeps (the disk's own access times may be switched off).
//! Always: memory does not grow with the number of files.
use super::files::Standing;
use super::meta::{self, atime_ns, mtime_ns};
use super::walk::{Found, Walker};
use super::{Store, lock};
use crate::copies::eviction::Candidate;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// `st_blocks` counts these.
const BLOCK_BYTES: u64 = 512;
/// A last use is noted to this precision.
const USED_PRECISION_NS: Time = 10_000_000_000;

impl Store {
    /// Notes that a copy was used just now.
    pub fn note_used(&self, file: &File) {
        let Ok(stat) = rustix::fs::fstat(file) else {
            return;
        };
        if super::state::now_ns() - atime_ns(&stat) < USED_PRECISION_NS {
            return;
        }
        let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: at(UTIME_NOW),
            last_modification: at(UTIME_OMIT),
        };
        // Without it the copy only looks older than it is.
        let _ = rustix::fs::futimens(file, &times);
    }

    /// Shows every fetched copy here to `see`: whole ones of files whose home is elsewhere, and partial files that nobody has open.
    pub fn fetched(self: &Arc<Self>, mut see: impl FnMut(Candidate)) {
        for found in Walker::new(Arc::clone(self), TreePath::root()) {
            if let Found::Entry {
                path,
                kind: Kind::File,
                ..
            } = found
                && let Some(copy) = self.fetched_copy(path)
            {
                see(copy);
            }
        }
        self.idle_partials().into_iter().for_each(see);
    }

    fn fetched_copy(&self, path: TreePath) -> Option<Candidate> {
        let Ok(Standing::File { stat, tag, .. }) = self.standing(&path) else {
            return None;
        };
        let tag = tag?;
        let stored = tag.stored;
        let meta = tag
            .meta
            .filter(|meta| meta.home != self.node && meta::is_untouched(meta, &stat))?;
        Some(Candidate {
            used: atime_ns(&stat).max(stored.unwrap_or(0)),
            ino: meta.ino,
            path,
            bytes: stat.st_blocks as u64 * BLOCK_BYTES,
            version: meta.version,
            is_partial: false,
        })
    }

    /// Partial files that nobody has open.
    fn idle_partials(&self) -> Vec<Candidate> {
        let slots = lock(&self.partials).idle();
        let found = slots.into_iter().filter_map(|(ino, version)| {
            let metadata = std::fs::metadata(self.partial_path(ino, version)).ok()?;
            let used = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            Some(Candidate {
                used,
                ino,
                path: TreePath::root(),
                bytes: metadata.blocks() * BLOCK_BYTES,
                version,
                is_partial: true,
            })
        });
        found.collect()
    }

    /// Gives up a partial file, unless somebody has it open. `false`: somebody has.
    pub fn discard_idle_partial(&self, ino: Ino, version: u64) -> bool {
        if !lock(&self.partials).idle().contains(&(ino, version)) {
            return false;
        }
        self.discard(ino, version);
        true
    }

    /// Gives up all partial files of a file; who has one open keeps reading what it had.
    pub fn discard_partials(&self, ino: Ino) {
        self.discard_partials_before(ino, u64::MAX);
    }

    /// Removes the plain file of `ino`, if it is untouched and of that version. `false`: it is not, and stays.
    pub fn remove_copy(
        &self,
        path: &TreePath,
        ino: Ino,
        version: u64,
    ) -> Result<bool, super::StoreError> {
        let standing = self.standing(path).map_err(self.io(path))?;
        let is_that = standing
            .meta_of(ino)
            .is_some_and(|meta| meta.version == version);
        if !is_that || standing.is_dirty() {
            return Ok(matches!(standing, Standing::Nothing));
        }
        self.remove(path, ino).map(|()| true)
    }

    /// When a plain file was changed last, as its `user.ks` would have it.
    pub fn modified(file: &File) -> std::io::Result<Time> {
        Ok(mtime_ns(&rustix::fs::fstat(file)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalMeta;
    use std::collections::BTreeMap;

    fn put(store: &Store, name: &str, ino: Ino, home: NodeId) -> File {
        std::fs::write(store.datadir().join(name), vec![1; 10_000]).unwrap();
        let file = File::open(store.datadir().join(name)).unwrap();
        let meta = LocalMeta {
            ino,
            version: 4,
            epoch: 1,
            home,
            size: 10_000,
            mtime: Store::modified(&file).unwrap(),
            blake3: None,
        };
        store.set_meta(&file, &meta).unwrap();
        file
    }

    #[test]
    fn only_untouched_copies_of_others_files_count_and_use_is_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let other = NodeId(store.node_id().0 ^ 1);
        put(&store, "own", 2, store.node_id());
        let old = put(&store, "old", 3, other);
        put(&store, "new", 4, other);
        put(&store, "changed", 5, other);
        std::fs::write(directory.path().join("changed"), b"by somebody").unwrap();
        std::fs::write(directory.path().join("unknown"), b"to the tree").unwrap();
        let past = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        for (file, at) in [
            (&old, 100),
            (&File::open(directory.path().join("new")).unwrap(), 200),
        ] {
            let times = Timestamps {
                last_access: past(at),
                last_modification: Timespec {
                    tv_sec: 0,
                    tv_nsec: UTIME_OMIT,
                },
            };
            rustix::fs::futimens(file, &times).unwrap();
        }
        let seen = || {
            let mut seen = BTreeMap::new();
            store.fetched(|copy| {
                seen.insert(copy.ino, copy.used);
            });
            seen
        };
        let before = seen();
        assert_eq!(before.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert!(before[&3] < before[&4]);
        store.note_used(&old);
        let after = seen();
        assert!(after[&3] > after[&4]);
        assert!(
            !store
                .remove_copy(&TreePath::new(b"changed").unwrap(), 5, 4)
                .unwrap()
        );
        assert!(
            !store
                .remove_copy(&TreePath::new(b"old").unwrap(), 3, 5)
                .unwrap()
        );
        assert!(
            store
                .remove_copy(&TreePath::new(b"old").unwrap(), 3, 4)
                .unwrap()
        );
        assert!(
            !directory.path().join("old").exists() && directory.path().join("changed").exists()
        );
    }
}
