//! When the tree was rebuilt because Redis had lost it: this node's data directory is brought in line with it, and its copies are told.
//!
//! Always: until that is done it is tried again, and begun anew by the next start; what is local and unchanged is read meanwhile.
use super::FileSystem;
use crate::catalog::Catalog;
use crate::error::FsError;
use crate::store::hasher::Hasher;
use crate::store::{Store, scan};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

/// Tells the tree what stands in the data directory.
pub(super) async fn tell(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
) -> Result<(), FsError> {
    let report = scan::retell(store, catalog, hasher).await?;
    let told = serde_json::json!({
        "copies": report.copies, "found": report.found, "newer": report.newer, "conflicts": report.conflicts,
    });
    catalog.report_recovered(&told).await?;
    tracing::info!(
        copies = report.copies,
        found = report.found,
        newer = report.newer,
        conflicts = report.conflicts.len(),
        "the copies here are told to the tree that was rebuilt"
    );
    Ok(())
}

/// Waits for the tree to be rebuilt, for as long as the file system lives.
pub(super) fn spawn(file_system: &Arc<FileSystem>) {
    let catalog = file_system.catalog.clone();
    let file_system: Weak<FileSystem> = Arc::downgrade(file_system);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = catalog.until_behind() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            if !file_system.catalog.is_behind() {
                continue;
            }
            if let Err(error) = file_system.catch_up_with_rebuilt().await {
                tracing::warn!(%error, "the data directory cannot be compared with the rebuilt tree now; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
}

impl FileSystem {
    async fn catch_up_with_rebuilt(&self) -> Result<(), FsError> {
        self.applier.compare().await?;
        tell(&self.store, &self.catalog, &self.hasher).await?;
        self.catalog.has_caught_up().await?;
        // Replicas and what is kept here are looked at anew by those who do it anyway.
        self.changed(None);
        Ok(())
    }
}
