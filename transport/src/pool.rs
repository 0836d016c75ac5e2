//! Connections to peers: kept, reconnected with back-off, and told apart as gone, slow or refusing.
use crate::{
    endpoint::{ConnectError, Endpoint, StreamKind},
    frame::{FrameError, Stream},
    identity::PeerIdentity,
};
use serde::{Serialize, de::DeserializeOwned};
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    Unknown,
    Ready,
    Slow,
    Gone,
    Refusing,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{0}: the connection was lost")]
    Lost(String),
    #[error("{peer}: no answer within {seconds} s")]
    Timeout { peer: String, seconds: f32 },
    #[error("{peer}: {source}")]
    Frame { peer: String, source: FrameError },
}

/// All peers of this process, by address ("host:port").
#[derive(Clone)]
pub struct PeerPool {/* .. */}

/// One peer; cheap to clone.
#[derive(Clone)]
pub struct Peer {/* .. */}

impl PeerPool {
    pub fn new(endpoint: Endpoint) -> Self {
        todo!()
    }
    pub fn peer(&self, address: &str) -> Peer {
        todo!()
    }
    pub fn endpoint(&self) -> &Endpoint {
        todo!()
    }
}

impl Peer {
    pub fn address(&self) -> &str {
        todo!()
    }
    pub fn state(&self) -> PeerState {
        todo!()
    }
    /// Who it is; connects where necessary.
    pub async fn identity(&self) -> Result<Arc<PeerIdentity>, PeerError> {
        todo!()
    }
    /// Opens a stream; connects where necessary. While back-off lasts it fails at once with the last error.
    pub async fn open(&self, kind: StreamKind) -> Result<Stream, PeerError> {
        todo!()
    }
    /// Like `open`, on the `lane`-th of several connections (one connection is bound by one core's encryption).
    pub async fn open_lane(&self, kind: StreamKind, lane: usize) -> Result<Stream, PeerError> {
        todo!()
    }
    /// One question, one answer of at most `limit` bytes, on a stream of its own.
    pub async fn request<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        kind: StreamKind,
        question: &Q,
        limit: usize,
        deadline: Duration,
    ) -> Result<A, PeerError> {
        todo!()
    }
}
