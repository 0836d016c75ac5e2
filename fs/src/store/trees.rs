//! BLAKE3 outboards by hash, under `.ks/trees/ab/<hash>`.
use super::{Store, StoreError};
use crate::record::Hash;
use ks_transport::blocks::Outboard;

impl Store {
    /// The tree of a content of `size` bytes; `None` when it is not here or damaged (its length or root is wrong).
    pub fn tree(&self, hash: &Hash, size: u64) -> Option<Outboard> {
        todo!()
    }
    pub fn put_tree(&self, hash: &Hash, outboard: &[u8]) -> Result<(), StoreError> {
        todo!()
    }
}
