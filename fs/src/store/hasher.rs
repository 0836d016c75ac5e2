//! Hashes whole files: small ones at once, large ones in the background at low priority, those somebody waits for first.
use super::Store;
use crate::{catalog::Catalog, path::TreePath, record::*};
use std::sync::Arc;

/// Files up to this size are hashed as they are published.
pub const INLINE_BYTES: u64 = 1024 * 1024;

/// The background hasher; one file at a time.
pub struct Hasher {/* .. */}
impl Hasher {
    pub fn start(store: Arc<Store>, catalog: Catalog) -> Arc<Self> {
        todo!()
    }
    /// Queues a file that this node holds whole.
    pub fn queue(&self, path: TreePath, ino: Ino, version: u64) {
        todo!()
    }
    /// Hashes it now (joins a hashing under way); stores tree, `user.ks` and catalog hash. Fails when the file changed meanwhile.
    pub async fn hash_now(
        &self,
        path: &TreePath,
        ino: Ino,
        version: u64,
    ) -> Result<Hash, crate::error::FsError> {
        todo!()
    }
}
