//! Applies the catalog's events to the data directory, in their order, so that plain files stand at their tree paths.
use super::{Store, StoreError};
use crate::{
    catalog::{Catalog, EventId},
    record::*,
};
use std::sync::Arc;

/// The one place where names in the data directory change.
pub struct Applier {/* position (persisted in `.ks/events`), a lock */}

impl Applier {
    /// Reads the position; catches up before it returns. When the stream no longer reaches back: compares the whole directory (by ino in `user.ks`) with the catalog.
    pub async fn start(
        store: Arc<Store>,
        catalog: Catalog,
        on_event: Arc<dyn Fn(NodeId, &Event) + Send + Sync>,
    ) -> Result<Arc<Self>, StoreError> {
        todo!()
    }
    /// This node's own change: applied in its place. When nothing of others stands between (`previous` is our position) it is applied at once, without a round trip.
    pub async fn own(
        &self,
        event_id: EventId,
        previous: EventId,
        event: &Event,
    ) -> Result<(), StoreError> {
        todo!()
    }
    /// Waits (at most 2 s) until everything up to now is applied: for a local file that is not where the catalog says.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn position(&self) -> EventId {
        todo!()
    }
}
