//! One client's connection: asks and tells (`protocol`). On the control socket (unix) and on QUIC streams alike.
use crate::service::Executor;
use std::{path::Path, sync::Arc};

/// What a session needs of the node beside the executor (implemented by `node`).
pub trait NodeFacts: Send + Sync + 'static {
    /// `ks status`.
    fn status(&self) -> ks_transport::BoxFuture<'_, serde_json::Value>;
    /// Ends the node in order.
    fn shutdown(&self);
}

/// Accepts sessions on the control socket (mode 0600; a stale one is replaced) until dropped.
pub struct ControlSocket {/* listener task; removes the socket file */}
impl ControlSocket {
    pub fn bind(
        path: &Path,
        executor: Arc<Executor>,
        facts: Arc<dyn NodeFacts>,
    ) -> std::io::Result<Self> {
        todo!()
    }
}
