//! BLAKE3 outboards by hash, under `.ks/trees/ab/<hash>`.
//!
//! Always: a tree has its name only when it is whole, and is not used when its length or its root pair does not fit the hash,
//! nor, up to [`CHECKED_BYTES`], when any pair does not fit the one above it; then it is computed again from the file. Of a larger
//! tree that is damaged further down, who receives the blocks finds out, and `ks verify` and the scrub make it anew. Contents of
//! one 16 KiB group or less have no tree.
use super::blobs::by_hash;
use super::{Store, StoreError, io_at, state};
use crate::record::Hash;
use ks_transport::blocks::{Outboard, outboard_len};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Trees up to this length are given as memory, longer ones as open files.
const IN_MEMORY_BYTES: u64 = 64 * 1024;
/// Trees up to this length (of files up to 256 MiB) are checked whole when they are loaded, which takes a millisecond or two.
const CHECKED_BYTES: u64 = 1024 * 1024;
/// An inner node: the hashes of its two children.
const PAIR_BYTES: usize = 64;
/// What one leaf of a tree stands for.
const GROUP_BYTES: u64 = 16 * 1024;

impl Store {
    /// The tree of a content of `size` bytes; `None` when it is not here or damaged (its length or root is wrong).
    pub fn tree(&self, hash: &Hash, size: u64) -> Option<Outboard> {
        let length = outboard_len(size);
        if length == 0 {
            return Some(Outboard::Memory(bytes::Bytes::new()));
        }
        let file = File::open(self.tree_path(hash)).ok()?;
        if file.metadata().ok()?.len() != length {
            return None;
        }
        let is_checked = length <= CHECKED_BYTES;
        let mut looked_at = vec![
            0;
            if is_checked {
                length as usize
            } else {
                PAIR_BYTES
            }
        ];
        file.read_exact_at(&mut looked_at, 0).ok()?;
        let is_sound = match is_checked {
            true => is_sound(&looked_at, size.div_ceil(GROUP_BYTES), hash),
            false => merged(&looked_at, hash, true).is_some(),
        };
        if !is_sound {
            tracing::warn!(hash = %hex::encode(hash), "a hash tree is damaged; it is computed again");
            return None;
        }
        Some(match length > IN_MEMORY_BYTES {
            true => Outboard::File(Arc::new(file)),
            false => Outboard::Memory(looked_at.into()),
        })
    }

    /// Something stands where the tree should be, whatever it is worth.
    pub(super) fn has_tree_file(&self, hash: &Hash) -> bool {
        self.tree_path(hash).exists()
    }

    /// Keeps a tree (nothing to keep when it is empty). Not synced: a damaged one is computed again.
    pub fn put_tree(&self, hash: &Hash, outboard: &[u8]) -> Result<(), StoreError> {
        if outboard.is_empty() {
            return Ok(());
        }
        let path = self.tree_path(hash);
        let temporary = state::temporary_beside(&self.state_dir().join("trees/new"));
        std::fs::write(&temporary, outboard).map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            io_at(&temporary)(error)
        })?;
        in_its_directory(&path, || std::fs::rename(&temporary, &path)).map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            io_at(&path)(error)
        })
    }

    /// Keeps the tree that stands in the file `from` (which stays): a second name for it.
    pub(super) fn link_tree(&self, hash: &Hash, size: u64, from: &Path) -> Result<(), StoreError> {
        if self.tree(hash, size).is_some() {
            return Ok(());
        }
        let path = self.tree_path(hash);
        let temporary = state::temporary_beside(&self.state_dir().join("trees/new"));
        std::fs::hard_link(from, &temporary).map_err(io_at(from))?;
        in_its_directory(&path, || std::fs::rename(&temporary, &path)).map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            io_at(&path)(error)
        })
    }

    /// Forgets a tree; if another file has the same content, it is computed again when it is needed.
    pub(super) fn remove_tree(&self, hash: &Hash) {
        // Not there, or not to be removed: it is only space.
        let _ = std::fs::remove_file(self.tree_path(hash));
    }

    fn tree_path(&self, hash: &Hash) -> PathBuf {
        by_hash(&self.state_dir().join("trees"), hash)
    }
}

/// Whether a tree that is here has these bytes.
pub(super) fn is_same(known: &Outboard, outboard: &[u8]) -> bool {
    match known {
        Outboard::Memory(bytes) => bytes[..] == *outboard,
        Outboard::File(file) => {
            let mut bytes = vec![0; outboard.len()];
            file.read_exact_at(&mut bytes, 0).is_ok() && bytes == outboard
        }
    }
}

fn in_its_directory(path: &Path, act: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
    match act() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            act()
        }
        other => other,
    }
}

/// Whether every pair of a tree over `groups` leaves fits the one above it, and the first one the hash. A pair stands before
/// those of its left half, and they before those of its right half.
fn is_sound(outboard: &[u8], groups: u64, hash: &Hash) -> bool {
    let mut rest = outboard;
    let mut expected = vec![(groups, *hash)];
    while let Some((groups, hash)) = expected.pop() {
        if groups <= 1 {
            continue;
        }
        let is_root = rest.len() == outboard.len();
        let Some((pair, after)) = rest.split_at_checked(PAIR_BYTES) else {
            return false;
        };
        let Some((left, right)) = merged(pair, &hash, is_root) else {
            return false;
        };
        rest = after;
        // The largest power of two that leaves something for the right half.
        let left_groups = groups.next_power_of_two() / 2;
        expected.push((groups - left_groups, right));
        expected.push((left_groups, left));
    }
    rest.is_empty()
}

/// The two child hashes of a pair, where they make up `hash`.
fn merged(pair: &[u8], hash: &Hash, is_root: bool) -> Option<(Hash, Hash)> {
    use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
    let (left, right) = pair.split_at_checked(PAIR_BYTES / 2)?;
    let (left, right): (Hash, Hash) = (left.try_into().ok()?, right.try_into().ok()?);
    let found = match is_root {
        true => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        false => merge_subtrees_non_root(&left, &right, Mode::Hash),
    };
    (found == *hash).then_some((left, right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ks_transport::blocks::hash_bytes;

    fn content(outboard: Outboard) -> Vec<u8> {
        match outboard {
            Outboard::Memory(bytes) => bytes.to_vec(),
            Outboard::File(file) => {
                let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
        }
    }

    #[test]
    fn trees_come_back_and_damaged_ones_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        for size in [16 * 1024 + 1, 1_000_000, 40_000_000u64] {
            let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let (hash, outboard) = hash_bytes(&data);
            assert!(store.tree(&hash, size).is_none());
            store.put_tree(&hash, &outboard).unwrap();
            assert_eq!(content(store.tree(&hash, size).unwrap()), outboard);
            assert!(
                store.tree(&hash, size + 16 * 1024).is_none(),
                "wrong length"
            );
            let path = store.tree_path(&hash);
            let mut damaged = outboard.clone();
            damaged[3] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(store.tree(&hash, size).is_none(), "wrong root");
            for position in [outboard.len() / 2, outboard.len() - 1] {
                let mut damaged = outboard.clone();
                damaged[position] ^= 1;
                std::fs::write(&path, &damaged).unwrap();
                assert!(store.tree(&hash, size).is_none(), "wrong at {position}");
            }
            std::fs::write(&path, &outboard[..outboard.len() - 1]).unwrap();
            assert!(store.tree(&hash, size).is_none(), "cut off");
            store.put_tree(&hash, &outboard).unwrap();
            assert!(store.tree(&hash, size).is_some(), "mended");
        }
        let (hash, outboard) = hash_bytes(b"small");
        store.put_tree(&hash, &outboard).unwrap();
        assert!(content(store.tree(&hash, 5).unwrap()).is_empty());
    }
}
