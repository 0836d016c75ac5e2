//! A file that is here in part: a sparse file, the map of the 16 KiB groups it has, and the tree nodes seen so far.
//! Under `.ks/partial/<ino>-<version>{,.map,.tree}`. The map is written after the data it speaks of; a damaged one is thrown away.
use super::{Store, StoreError};
use crate::{path::TreePath, record::*};
use std::{fs::File, ops::Range, sync::Arc};

/// Which content: a version of a file, by its hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContentKey {
    pub ino: Ino,
    pub version: u64,
    pub size: u64,
    pub hash: Hash,
}

/// An open partial file. Methods are thread-safe; marking a range happens after its data has been written.
pub struct Partial {/* .. */}

impl Partial {
    pub fn key(&self) -> &ContentKey {
        todo!()
    }
    pub fn data_file(&self) -> &Arc<File> {
        todo!()
    }
    pub fn tree_file(&self) -> &Arc<File> {
        todo!()
    }
    /// Which of `range`'s bytes are missing, as group-aligned ranges (the last one ends at the size).
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        todo!()
    }
    /// Marks whole groups as had.
    pub fn mark(&self, range: Range<u64>) {
        todo!()
    }
    pub fn had_bytes(&self) -> u64 {
        todo!()
    }
    pub fn is_whole(&self) -> bool {
        todo!()
    }
    /// Writes the map to disk (data is synced first).
    pub fn save(&self) -> Result<(), StoreError> {
        todo!()
    }
}

impl Store {
    /// Opens the partial of `key`, or makes it (sparse, `NoSpace` when the disk has not the room).
    pub fn open_partial(&self, key: &ContentKey) -> Result<Arc<Partial>, StoreError> {
        todo!()
    }
    /// A whole partial becomes the plain file at `path`: attributes, `user.ks` and tree in place first, then one rename. Replaces an old copy of the same inode only; any other file there: `Mismatch`.
    pub fn promote(
        &self,
        partial: &Partial,
        path: &TreePath,
        inode: &Inode,
    ) -> Result<(), StoreError> {
        todo!()
    }
    pub fn discard_partial(&self, key: &ContentKey) -> Result<(), StoreError> {
        todo!()
    }
    /// Partials found at start (for the catalog's holdings).
    pub fn partials(&self) -> Vec<(ContentKey, u64)> {
        todo!()
    }
}
