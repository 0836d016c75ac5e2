//! Nodes and their heart-beats.
use super::{Catalog, CatalogError};
use crate::record::{NodeId, NodeInfo};
use std::time::Duration;

/// A node is gone when it has not been heard of for so long.
pub const LIVENESS: Duration = Duration::from_secs(6);
/// Time between heart-beats.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

/// A node as the cluster sees it.
#[derive(Clone, Debug)]
pub struct NodeState {
    pub id: NodeId,
    pub info: NodeInfo,
    pub alive: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error(
        "the node name '{name}' is taken by a live node at {address}; choose another with --node-name"
    )]
    NameTaken { name: String, address: String },
    #[error("the data directory is in use by a live node '{name}' at {address}")]
    DatadirInUse { name: String, address: String },
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Catalog {
    /// Enters this node, atomically with the checks above.
    pub async fn register(&self, info: NodeInfo) -> Result<(), RegisterError> {
        todo!()
    }
    /// One heart-beat; call every `HEARTBEAT`.
    pub async fn heartbeat(&self, free_bytes: u64, total_bytes: u64) -> Result<(), CatalogError> {
        todo!()
    }
    /// This node leaves in order: it is gone for the others at once.
    pub async fn deregister(&self) -> Result<(), CatalogError> {
        todo!()
    }
    /// All nodes; from a cache that is at most one heart-beat old.
    pub async fn nodes(&self) -> Result<std::sync::Arc<Vec<NodeState>>, CatalogError> {
        todo!()
    }
    /// The address of a live node.
    pub async fn address_of(&self, node: NodeId) -> Result<Option<String>, CatalogError> {
        todo!()
    }
}
