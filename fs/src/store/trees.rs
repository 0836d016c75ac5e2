//! BLAKE3 outboards by hash, under `.ks/trees/ab/<hash>`.
//!
//! Always: a tree has its name only when it is whole, and is not used when its length or its root pair does not fit the hash;
//! then it is computed again from the file. Contents of one 16 KiB group or less have no tree.
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
/// An inner node: the hashes of its two children.
const PAIR_BYTES: usize = 64;

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
        let mut root = [0; PAIR_BYTES];
        file.read_exact_at(&mut root, 0).ok()?;
        if !is_root_of(&root, hash) {
            return None;
        }
        if length > IN_MEMORY_BYTES {
            return Some(Outboard::File(Arc::new(file)));
        }
        let mut whole = vec![0; length as usize];
        file.read_exact_at(&mut whole, 0).ok()?;
        Some(Outboard::Memory(whole.into()))
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

/// Whether the two child hashes make up the root hash.
fn is_root_of(pair: &[u8; PAIR_BYTES], hash: &Hash) -> bool {
    let (left, right) = pair.split_at(PAIR_BYTES / 2);
    let (Ok(left), Ok(right)) = (left.try_into(), right.try_into()) else {
        return false;
    };
    blake3::hazmat::merge_subtrees_root(&left, &right, blake3::hazmat::Mode::Hash).as_bytes()
        == hash
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
