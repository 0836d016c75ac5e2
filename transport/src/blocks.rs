//! Byte ranges of a file, verified against the file's BLAKE3 tree as they arrive (bao-tree, 16 KiB groups).
//!
//! Purpose: ask a peer for ranges of a content known by its hash, and believe nothing it sends.
//! Takes part: `blocks::serve` (sends; hashes nothing), `blocks::fetch` (asks), `blocks::decode`
//! (verifies; pure), `blocks::encode` (lays out what is sent; pure), `blocks::hash` (makes trees).
//! Always holds: a sink is given only bytes and nodes that lead to the root hash; a peer that
//! sends others is named; a request is within bounds on both sides before anything is read.
//! Not for: which ranges from which peer, and where bytes are kept (ks-fs).
//!
//! On the wire: the request in a frame, the answer's head in a frame (`Ok` or a `Refusal`), then
//! the parents and leaves of the ranges in bao-tree's order, and the end of the stream.
mod buffers;
mod decode;
mod encode;
mod fetch;
mod hash;
mod ranges;
mod serve;

pub use fetch::fetch;
pub use hash::{hash_bytes, hash_file, hash_pieces, outboard_len};
pub use serve::BlockServer;

use crate::{BoxFuture, pool::PeerError};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// The unit of verification and of random reads: 16 chunks of 1 KiB.
pub const GROUP_BYTES: u64 = 16 * 1024;

/// Ranges in one request at most.
pub const RANGES_MAX: usize = 4096;

/// Largest file that is addressed: what a signed offset can say.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// Longest locator of the upper layer.
const LOCATOR_BYTES_MAX: usize = 16 << 10;

/// Longest frame of a request: its ranges, its locator and the rest.
const REQUEST_BYTES_MAX: usize = RANGES_MAX * 20 + LOCATOR_BYTES_MAX + 256;

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A BLAKE3 root hash.
pub type Hash = [u8; 32];

/// The inner nodes of a file's BLAKE3 tree, as bao-tree's pre-order outboard lays them out,
/// without the size prefix: the node, then its left and its right subtree; 64 bytes each, down to
/// groups of 16 KiB. Empty for a file of one group or less.
#[derive(Clone)]
pub enum Outboard {
    /// In memory.
    Memory(bytes::Bytes),
    /// A file that holds nothing else.
    File(Arc<File>),
}

/// What a peer asks for. `locator` is the upper layer's own (which file); the hash says which content.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlockRequest {
    /// Which file, in the upper layer's words (16 KiB at most).
    pub locator: Vec<u8>,
    /// Which content.
    pub hash: Hash,
    /// The content's size in bytes.
    pub size: u64,
    /// Byte ranges, sorted, disjoint, not empty, 4096 at most; widened to whole groups.
    pub ranges: Vec<Range<u64>>,
}

/// An opened local content, ready to be sent.
pub struct Content {
    /// Its bytes.
    pub file: Arc<File>,
    /// Their number.
    pub size: u64,
    /// The tree above them.
    pub outboard: Outboard,
}

/// Why a holder does not send.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It never had it, or not all of it.
    #[error("does not hold that content")]
    NotHere,
    /// Its file is another by now.
    #[error("holds another version")]
    Changed,
    /// Its disk failed.
    #[error("cannot read it: {0}")]
    Unreadable(String),
    /// Too much to do; ask again later or elsewhere.
    #[error("busy")]
    Busy,
    /// The request is out of bounds.
    #[error("the request makes no sense: {0}")]
    Nonsense(String),
}

/// Finds contents for block requests (implemented by the store).
pub trait BlockSource: Send + Sync + 'static {
    /// Opens the content for the request, or says why not. All of the ranges must be here.
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>>;
}

/// Takes verified data as it arrives. Called in order of offset within a request; may write to disk (called off the reactor or for short writes only).
pub trait BlockSink: Send {
    /// `data` starts at byte `offset` of the file and has been verified. Extents are as large as what arrived at once.
    fn data(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()>;
    /// A verified inner node: write the 64 bytes at `offset` of the outboard.
    fn node(&mut self, offset: u64, pair: &[u8; 64]) -> std::io::Result<()>;
}

/// Why a fetch ended before its end. What the sink was given until then is good.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The peer is gone, or does not speak with us.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The peer does not send it.
    #[error("{peer}: {refusal}")]
    Refused {
        /// The peer's address.
        peer: String,
        /// Its reason.
        refusal: Refusal,
    },
    /// It sent bytes that do not match the hash: it lies or its disk does.
    #[error("{peer}: sent bytes that do not match the file's hash at offset {offset}")]
    Corrupt {
        /// The peer's address.
        peer: String,
        /// Where in the file.
        offset: u64,
    },
    /// The peer is connected and sends nothing.
    #[error("{peer}: sent nothing for {seconds} s")]
    Stalled {
        /// The peer's address.
        peer: String,
        /// How long we waited.
        seconds: f32,
    },
    /// Our own disk.
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
