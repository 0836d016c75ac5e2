//! The QUIC endpoint: always mutual TLS 1.3, one certificate authority per cluster key.
use crate::{
    BoxFuture,
    frame::Stream,
    identity::{Identity, PeerIdentity},
};
use std::net::SocketAddr;
use std::sync::Arc;

/// What a bidirectional stream is for: its first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKind(pub u8);

impl StreamKind {
    /// Verified block ranges (`blocks`).
    pub const BLOCKS: StreamKind = StreamKind(1);
    /// A byte tunnel to the Redis this node uses (`tunnel`).
    pub const TUNNEL: StreamKind = StreamKind(2);
    /// Messages of the file system (ks-fs).
    pub const FILES: StreamKind = StreamKind(16);
    /// Messages between executors (ks-executor).
    pub const CALLS: StreamKind = StreamKind(32);
    /// A client's session (ks-executor).
    pub const SESSION: StreamKind = StreamKind(33);
}

/// What answers accepted streams of one kind.
pub trait Handler: Send + Sync + 'static {
    /// Whether clients, too, may open such streams (nodes always may).
    fn open_to_clients(&self) -> bool {
        false
    }
    /// Serves one stream to its end.
    fn handle(&self, peer: Arc<PeerIdentity>, stream: Stream) -> BoxFuture<'static, ()>;
}

/// A bound UDP socket that accepts and makes connections.
#[derive(Clone)]
pub struct Endpoint {/* quinn::Endpoint, .. */}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{address}: {source}")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("{0}")]
    Tls(String),
}

/// Why a connection could not be made or ended: keeps who and why.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("{0}: cannot be resolved")]
    Resolve(String),
    /// Nobody answers there.
    #[error("{0}: no answer")]
    Gone(String),
    /// It answered and does not want us (wrong key), or we do not trust it.
    #[error("{address}: refused: {reason}")]
    Refused { address: String, reason: String },
}

impl Endpoint {
    /// Binds and, once `serve` is called, accepts. A refused handshake is logged with the peer's address.
    pub fn bind(listen: SocketAddr, identity: &Identity) -> Result<Self, BindError> {
        todo!()
    }
    /// An endpoint that only connects.
    pub fn outgoing(identity: &Identity) -> Result<Self, BindError> {
        todo!()
    }
    /// Starts accepting; streams go to the handler of their kind. Unknown kinds and kinds a peer's role may not use are reset.
    pub fn serve(&self, handlers: Vec<(StreamKind, Arc<dyn Handler>)>) {
        todo!()
    }
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }
    /// Closes all connections, waits briefly for the goodbye to leave.
    pub async fn close(&self) {
        todo!()
    }
}
