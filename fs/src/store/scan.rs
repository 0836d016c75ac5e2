//! Finds what is in the data directory at start and enters it in the catalog.
use super::{Store, StoreError, hasher::Hasher};
use crate::catalog::Catalog;
use std::sync::Arc;

/// What a scan did.
#[derive(Clone, Debug, Default)]
pub struct ScanReport {
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
    pub new: u64,
    pub changed: u64,
    /// Kept as `NAME.conflict-NODE`: tree paths.
    pub conflicts: Vec<String>,
    /// What could not be read: path and error.
    pub unreadable: Vec<(String, String)>,
}

/// Walks the data directory (not `.ks`), in batches. Known and unchanged (by `user.ks`): the holding is told again. Changed behind our back: published as a new version when this node is
/// the home, else kept as a conflict. New: entered, home here. Same path on another node: same size and hash, one file with two copies; other content: renamed to `NAME.conflict-<node name>` here. Nothing is overwritten or removed.
pub async fn scan(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    node_name: &str,
) -> Result<ScanReport, StoreError> {
    todo!()
}
