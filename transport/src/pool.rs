//! Connections to peers: kept, reconnected with back-off, and told apart as gone, slow or refusing.
//!
//! Purpose: hand out streams to a peer by its address, whatever happened to the last connection.
//! Takes part: `endpoint` (makes connections), `pool::link` (decides when to), `pool::lane` (one
//! connection each).
//! Always holds: one connection attempt under way per lane, however many wait for it; while
//! back-off lasts a caller fails at once with the last error; errors name the peer.
//! Not for: choosing among peers (the layers above).
mod lane;
mod link;

use crate::{
    endpoint::{ConnectError, Endpoint, StreamKind},
    frame::{self, FrameError, Stream},
    identity::PeerIdentity,
};
use lane::Lane;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Connections to one peer at most: each is bound by one core's encryption.
pub const LANES_MAX: usize = 4;
/// How long a stream may take to open once connected (the peer bounds how many are open at once).
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// What is known of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Not tried yet, or not since it was last lost.
    Unknown,
    /// Connected.
    Ready,
    /// Connected, and its last answer did not come in time.
    Slow,
    /// It does not answer.
    Gone,
    /// It does not want us, or we do not trust it.
    Refusing,
}

/// Why a peer did not do what was asked: always with its address.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// There is no connection to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There was one, and it ended while we waited.
    #[error("{0}: the connection was lost")]
    Lost(String),
    /// It is connected and did not answer in time.
    #[error("{peer}: no answer within {seconds} s")]
    Timeout {
        /// Its address.
        peer: String,
        /// How long we waited.
        seconds: f32,
    },
    /// It answered with something else than a message.
    #[error("{peer}: {source}")]
    Frame {
        /// Its address.
        peer: String,
        /// What was wrong.
        source: FrameError,
    },
}

/// All peers of this process, by address ("host:port").
#[derive(Clone)]
pub struct PeerPool {
    endpoint: Endpoint,
    peers: Arc<Mutex<HashMap<String, Peer>>>,
}

/// One peer; cheap to clone.
#[derive(Clone)]
pub struct Peer(Arc<Inner>);

struct Inner {
    address: Arc<str>,
    endpoint: Endpoint,
    lanes: [Lane; LANES_MAX],
    slow: AtomicBool,
    answered_bytes: AtomicU64,
}

impl PeerPool {
    /// A pool that connects through `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        PeerPool {
            endpoint,
            peers: Arc::default(),
        }
    }

    /// The peer at "host:port"; nothing is connected yet.
    pub fn peer(&self, address: &str) -> Peer {
        let mut peers = self.peers.lock().expect("no panic while held");
        if let Some(peer) = peers.get(address) {
            return peer.clone();
        }
        let peer = Peer(Arc::new(Inner {
            address: address.into(),
            endpoint: self.endpoint.clone(),
            lanes: std::array::from_fn(|lane| Lane::new(lane == 0)),
            slow: AtomicBool::new(false),
            answered_bytes: AtomicU64::new(0),
        }));
        peers.insert(address.to_owned(), peer.clone());
        peer
    }

    /// The endpoint that the connections are made through.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Peer {
    /// Its "host:port".
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// What is known of it; asks nobody.
    pub fn state(&self) -> PeerState {
        let states = self.0.lanes.iter().map(Lane::state);
        let found = states.max_by_key(|state| match state {
            PeerState::Unknown => 0,
            PeerState::Gone => 1,
            PeerState::Refusing => 2,
            PeerState::Slow | PeerState::Ready => 3,
        });
        match found {
            Some(PeerState::Ready) if self.0.slow.load(Ordering::Relaxed) => PeerState::Slow,
            Some(state) => state,
            None => PeerState::Unknown,
        }
    }

    /// Who it is; connects where necessary.
    pub async fn identity(&self) -> Result<Arc<PeerIdentity>, PeerError> {
        let ready = self.0.lanes[0]
            .ready(&self.0.endpoint, &self.0.address)
            .await?;
        Ok(ready.identity)
    }

    /// Lets the next attempt be made at once, whatever the back-off: for who paces his attempts himself.
    pub(crate) fn urge(&self) {
        self.0.lanes[0].urge();
    }

    /// Opens a stream; connects where necessary. While back-off lasts it fails at once with the last error.
    pub async fn open(&self, kind: StreamKind) -> Result<Stream, PeerError> {
        self.open_lane(kind, 0).await
    }

    /// Like `open`, on the `lane`-th of several connections (one connection is bound by one core's encryption).
    ///
    /// Lanes beyond the last begin anew at the first.
    pub async fn open_lane(&self, kind: StreamKind, lane: usize) -> Result<Stream, PeerError> {
        self.open_with(lane, vec![kind.0]).await
    }

    /// Opens a stream and writes `first` (which begins with the kind), in one packet where it fits.
    pub(crate) async fn open_with(&self, lane: usize, first: Vec<u8>) -> Result<Stream, PeerError> {
        let lane = &self.0.lanes[lane % LANES_MAX];
        let ready = lane.ready(&self.0.endpoint, &self.0.address).await?;
        let halves = tokio::time::timeout(OPEN_DEADLINE, ready.connection.open_bi())
            .await
            .map_err(|_| self.timeout(OPEN_DEADLINE))?
            .map_err(|_| self.lost())?;
        let mut stream = Stream::opened(halves);
        stream
            .write_raw(first.into())
            .await
            .map_err(|error| self.frame_error(error))?;
        Ok(stream)
    }

    /// One question, one answer of at most `limit` bytes, on a stream of its own.
    pub async fn request<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        kind: StreamKind,
        question: &Q,
        limit: usize,
        deadline: Duration,
    ) -> Result<A, PeerError> {
        let first =
            frame::encode_after(vec![kind.0], question).map_err(|error| self.frame_error(error))?;
        let exchange = async {
            let mut stream = self.open_with(0, first).await?;
            // Nothing more follows; the answer is what we wait for.
            let _ = stream.send.finish();
            let answer = stream
                .read(limit)
                .await
                .and_then(|answer| answer.ok_or(FrameError::CutOff));
            answer.map_err(|error| self.frame_error(error))
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => {
                self.0.slow.store(false, Ordering::Relaxed);
                answer
            }
            Err(_) => {
                self.0.slow.store(true, Ordering::Relaxed);
                Err(self.timeout(deadline))
            }
        }
    }

    /// Notes that the peer has sent so much of the answers to block requests.
    pub(crate) fn note_answered(&self, bytes: u64) {
        self.0.answered_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How much it has sent of them so far.
    pub(crate) fn answered_bytes(&self) -> u64 {
        self.0.answered_bytes.load(Ordering::Relaxed)
    }

    /// Gives up all connections to the peer; they are made again when wanted.
    pub fn disconnect(&self) {
        for lane in &self.0.lanes {
            lane.close();
        }
    }

    pub(crate) fn lost(&self) -> PeerError {
        PeerError::Lost(self.address().to_owned())
    }

    pub(crate) fn timeout(&self, waited: Duration) -> PeerError {
        PeerError::Timeout {
            peer: self.address().to_owned(),
            seconds: waited.as_secs_f32(),
        }
    }

    pub(crate) fn frame_error(&self, error: FrameError) -> PeerError {
        match error {
            FrameError::Connection(_) => self.lost(),
            source => PeerError::Frame {
                peer: self.address().to_owned(),
                source,
            },
        }
    }
}
