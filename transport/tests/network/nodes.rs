//! What the tests of this crate share: nodes on loopback, sources and sinks in memory.

use ks_transport::BoxFuture;
use ks_transport::blocks::{
    BlockRequest, BlockSink, BlockSource, Content, FetchLimits, Hash, Outboard, Refusal, hash_bytes,
};
use ks_transport::endpoint::{Endpoint, Handler, StreamKind};
use ks_transport::frame::Stream;
use ks_transport::identity::{Identity, PeerIdentity};
use ks_transport::key::ClusterKey;
use ks_transport::pool::{Peer, PeerPool};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// No test waits longer than this for anything.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A node that serves the given kinds on loopback.
pub fn node(
    key: &ClusterKey,
    name: &str,
    handlers: Vec<(StreamKind, Arc<dyn Handler>)>,
) -> Endpoint {
    let identity = Identity::node(key, name).unwrap();
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
    endpoint.serve(handlers);
    endpoint
}

/// A pool of its own and, in it, the node behind `endpoint`.
pub fn peer_of(endpoint: &Endpoint, identity: &Identity) -> (PeerPool, Peer) {
    let pool = PeerPool::new(Endpoint::outgoing(identity).unwrap());
    let peer = pool.peer(&endpoint.local_addr().to_string());
    (pool, peer)
}

/// Answers each message with itself; remembers who asked.
#[derive(Default)]
pub struct Echo {
    pub clients: bool,
    pub callers: Arc<Mutex<Vec<String>>>,
}

/// Longest message that `Echo` takes.
pub const ECHO_BYTES_MAX: usize = 1000;

impl Handler for Echo {
    fn open_to_clients(&self) -> bool {
        self.clients
    }

    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        self.callers.lock().unwrap().push(peer.name.clone());
        Box::pin(async move {
            while let Ok(Some(message)) = stream.read::<String>(ECHO_BYTES_MAX).await {
                if message == "hang" {
                    std::future::pending::<()>().await;
                }
                if stream.write(&message).await.is_err() {
                    return;
                }
            }
            let _ = stream.send.finish();
        })
    }
}

/// Bytes that look random and are the same for the same size.
pub fn sample(size: usize) -> Vec<u8> {
    let mut data = vec![0; size];
    blake3::Hasher::new()
        .update(&size.to_le_bytes())
        .finalize_xof()
        .fill(&mut data);
    data
}

/// One content.
pub struct OneContent {
    pub file: Arc<std::fs::File>,
    pub size: u64,
    pub hash: Hash,
    pub outboard: Outboard,
}

impl OneContent {
    pub fn new(data: &[u8], outboard_in_file: bool) -> Self {
        let (hash, nodes) = hash_bytes(data);
        let outboard = if outboard_in_file {
            Outboard::File(Arc::new(file_of(&nodes)))
        } else {
            Outboard::Memory(nodes.into())
        };
        OneContent {
            file: Arc::new(file_of(data)),
            size: data.len() as u64,
            hash,
            outboard,
        }
    }
}

pub fn file_of(data: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file
}

impl BlockSource for OneContent {
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(async move {
            if request.hash != self.hash {
                return Err(Refusal::NotHere);
            }
            Ok(Content {
                file: self.file.clone(),
                size: self.size,
                outboard: self.outboard.clone(),
            })
        })
    }
}

/// Keeps what it is given, and how.
#[derive(Default)]
pub struct MemorySink {
    pub data: Vec<u8>,
    pub extents: Vec<(u64, usize)>,
    pub nodes: Vec<(u64, [u8; 64])>,
    pub fail: bool,
}

impl BlockSink for MemorySink {
    fn data(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        if self.fail {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let (start, end) = (offset as usize, offset as usize + data.len());
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.data[start..end].copy_from_slice(data);
        self.extents.push((offset, data.len()));
        Ok(())
    }

    fn node(&mut self, offset: u64, pair: &[u8; 64]) -> std::io::Result<()> {
        self.nodes.push((offset, *pair));
        Ok(())
    }
}

pub const LIMITS: FetchLimits = FetchLimits {
    stall: Duration::from_secs(5),
    lane: 0,
};
