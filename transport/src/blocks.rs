//! Byte ranges of a file, verified against the file's BLAKE3 tree as they arrive (bao-tree, 16 KiB groups).
use crate::{
    BoxFuture,
    endpoint::Handler,
    pool::{Peer, PeerError},
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// The unit of verification and of random reads: 16 chunks of 1 KiB.
pub const GROUP_BYTES: u64 = 16 * 1024;

/// A BLAKE3 root hash.
pub type Hash = [u8; 32];

/// The inner nodes of a file's BLAKE3 tree, as bao-tree's pre-order outboard lays them out,
/// without the size prefix. Empty for a file of one group or less.
#[derive(Clone)]
pub enum Outboard {
    Memory(bytes::Bytes),
    File(Arc<File>),
}

/// Length in bytes of the outboard of a file of `size` bytes.
pub fn outboard_len(size: u64) -> u64 {
    todo!()
}
/// Hashes `size` bytes of `file` (several cores where the file is large); returns the root and the outboard.
pub fn hash_file(file: &File, size: u64) -> std::io::Result<(Hash, Vec<u8>)> {
    todo!()
}
/// Hashes bytes in memory.
pub fn hash_bytes(data: &[u8]) -> (Hash, Vec<u8>) {
    todo!()
}

/// What a peer asks for. `locator` is the upper layer's own (which file); the hash says which content.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlockRequest {
    pub locator: Vec<u8>,
    pub hash: Hash,
    pub size: u64,
    /// Byte ranges, sorted, disjoint; widened to whole groups.
    pub ranges: Vec<Range<u64>>,
}

/// An opened local content, ready to be sent.
pub struct Content {
    pub file: Arc<File>,
    pub size: u64,
    pub outboard: Outboard,
}

/// Why a holder does not send.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("does not hold that content")]
    NotHere,
    #[error("holds another version")]
    Changed,
    #[error("cannot read it: {0}")]
    Unreadable(String),
    #[error("busy")]
    Busy,
}

/// Finds contents for block requests (implemented by the store).
pub trait BlockSource: Send + Sync + 'static {
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>>;
}

/// Takes verified data as it arrives. Called in order of offset within a request; may write to disk (called off the reactor or for short writes only).
pub trait BlockSink: Send {
    /// `data` starts at byte `offset` of the file and has been verified. Extents are as large as what arrived at once.
    fn data(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()>;
    /// A verified inner node: write the 64 bytes at `offset` of the outboard.
    fn node(&mut self, offset: u64, pair: &[u8; 64]) -> std::io::Result<()>;
}

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{peer}: {refusal}")]
    Refused { peer: String, refusal: Refusal },
    /// It sent bytes that do not match the hash: it lies or its disk does.
    #[error("{peer}: sent bytes that do not match the file's hash at offset {offset}")]
    Corrupt { peer: String, offset: u64 },
    #[error("{peer}: sent nothing for {seconds} s")]
    Stalled { peer: String, seconds: f32 },
    #[error("writing what arrived: {0}")]
    Sink(std::io::Error),
}

/// Limits of one fetch from one peer.
#[derive(Clone, Copy, Debug)]
pub struct FetchLimits {
    /// How long the peer may send nothing.
    pub stall: std::time::Duration,
    /// Which connection of the peer's to use.
    pub lane: usize,
}

/// Serves `StreamKind::BLOCKS`.
pub struct BlockServer {/* source, counters */}
impl BlockServer {
    pub fn new(source: Arc<dyn BlockSource>) -> Self {
        todo!()
    }
    /// Bytes sent since the start.
    pub fn bytes_sent(&self) -> u64 {
        todo!()
    }
}
impl Handler for BlockServer {
    fn open_to_clients(&self) -> bool {
        true
    }
    fn handle(
        &self,
        peer: Arc<crate::identity::PeerIdentity>,
        stream: crate::frame::Stream,
    ) -> BoxFuture<'static, ()> {
        todo!()
    }
}

/// Fetches ranges from one peer into `sink`; returns the bytes received, hashes included.
pub async fn fetch(
    peer: &Peer,
    request: &BlockRequest,
    limits: FetchLimits,
    sink: &mut dyn BlockSink,
) -> Result<u64, FetchError> {
    todo!()
}
