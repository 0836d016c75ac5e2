//! The shell over real connections, into a real data directory.
use super::backing::Backing;
use super::budget::Budget;
use super::core::{ContentKind, Core, Opening, Shared};
use super::plan::Limits;
use super::surroundings::{Keep, Surroundings, Whereabouts, store_error, whole};
use super::{FetchCounters, Fetcher, RemoteFile};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::{Hash, Inode, Kind, NodeId};
use crate::store::Store;
use crate::store::partial::{ContentKey, Partial};
use ks_transport::BoxFuture;
use ks_transport::blocks::{
    self, BlockRequest, BlockServer, BlockSink, BlockSource, Content, FetchError, FetchLimits,
    Outboard, Refusal, hash_file,
};
use ks_transport::endpoint::{Endpoint, StreamKind};
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::PeerPool;
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use tokio::time::timeout;

const MIB: u64 = 1024 * 1024;
/// No test waits longer than this for anything.
const DEADLINE: Duration = Duration::from_secs(30);

/// One file, as a holder has it.
#[derive(Clone)]
struct Original {
    file: Arc<File>,
    size: u64,
    hash: Hash,
    outboard: Arc<File>,
}

impl Original {
    fn new(size: u64) -> Self {
        let mut file = tempfile::tempfile().expect("a file");
        let mut stream = blake3::Hasher::new().update(b"original").finalize_xof();
        let mut chunk = vec![0; MIB as usize];
        let mut left = size;
        while left > 0 {
            let len = left.min(MIB) as usize;
            stream.fill(&mut chunk[..len]);
            file.write_all(&chunk[..len]).expect("written");
            left -= len as u64;
        }
        let (hash, nodes) = hash_file(&file, size).expect("hashed");
        let mut outboard = tempfile::tempfile().expect("a file");
        outboard.write_all(&nodes).expect("written");
        Self {
            file: Arc::new(file),
            size,
            hash,
            outboard: Arc::new(outboard),
        }
    }

    fn slice(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min((self.size - offset) as usize)];
        self.file.read_exact_at(&mut bytes, offset).expect("read");
        bytes
    }
}

impl BlockSource for Original {
    fn open<'a>(&'a self, _request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        let content = Content {
            file: self.file.clone(),
            size: self.size,
            outboard: Outboard::File(self.outboard.clone()),
        };
        Box::pin(async move { Ok(content) })
    }
}

/// A holder in a runtime of its own, so that it can be ended as by SIGKILL: without a word.
struct Holder {
    runtime: Option<Runtime>,
    address: String,
}

impl Holder {
    fn start(key: &ClusterKey, name: &str, original: &Original) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let source = Arc::new(original.clone());
        let identity = Identity::node(key, name).expect("an identity");
        let inside = runtime.enter();
        let any = "127.0.0.1:0".parse().expect("an address");
        let endpoint = Endpoint::bind(any, &identity).expect("bound");
        let server = Arc::new(BlockServer::new(source));
        endpoint.serve(vec![(StreamKind::BLOCKS, server)]);
        drop(inside);
        Self {
            address: endpoint.local_addr().to_string(),
            runtime: Some(runtime),
        }
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Real peers and a real store; the catalog knows nothing more.
struct Wire {
    pool: PeerPool,
    addresses: HashMap<NodeId, String>,
    store: Arc<Store>,
    inode: Inode,
}

impl Surroundings for Wire {
    fn fetch<'a>(
        &'a self,
        holder: NodeId,
        request: &'a BlockRequest,
        limits: FetchLimits,
        sink: &'a mut dyn BlockSink,
    ) -> BoxFuture<'a, Result<u64, FetchError>> {
        Box::pin(async move {
            let peer = self.pool.peer(&self.addresses[&holder]);
            blocks::fetch(&peer, request, limits, sink).await
        })
    }
    fn is_away(&self, _node: NodeId) -> bool {
        false
    }
    fn locate<'a>(&'a self, _key: &'a ContentKey) -> BoxFuture<'a, Whereabouts> {
        Box::pin(async { Whereabouts::Unknown })
    }
    fn keep(&self, keep: Keep) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(async move {
            let partial = whole(&self.store, &keep.key, keep.copy)?;
            let named = self.store.promote(&partial, &keep.path, &self.inode);
            named.map_err(store_error)
        })
    }
    fn save(&self, partial: Arc<Partial>) -> BoxFuture<'_, ()> {
        Box::pin(async move { partial.save().expect("saved") })
    }
    fn has_room(&self, bytes: u64) -> bool {
        self.store.ensure_room(bytes).is_ok()
    }
    fn name(&self, node: NodeId) -> BoxFuture<'_, String> {
        Box::pin(async move { format!("host{}", node.0) })
    }
}

/// A reading node and its holders.
struct Cluster {
    original: Original,
    holders: Vec<Holder>,
    wire: Arc<Wire>,
    directory: tempfile::TempDir,
}

impl Cluster {
    fn new(size: u64, holders: usize) -> Self {
        let key = ClusterKey::generate();
        let original = Original::new(size);
        let holders: Vec<Holder> = (0..holders)
            .map(|index| Holder::start(&key, &format!("host{index}"), &original))
            .collect();
        let nodes = (1..).map(NodeId);
        let addresses = holders.iter().map(|holder| holder.address.clone());
        let directory = tempfile::tempdir().expect("a directory");
        let identity = Identity::node(&key, "reader").expect("an identity");
        let endpoint = Endpoint::outgoing(&identity).expect("an endpoint");
        let wire = Wire {
            pool: PeerPool::new(endpoint),
            addresses: nodes.zip(addresses).collect(),
            store: Arc::new(Store::open(directory.path(), 0).expect("a store")),
            inode: inode(&original),
        };
        Self {
            original,
            holders,
            wire: Arc::new(wire),
            directory,
        }
    }

    fn open(&self) -> Arc<Core> {
        let key = self.key();
        let backing = if key.size <= super::backing::SMALL_BYTES {
            Backing::small(key.size, None)
        } else {
            Backing::partial(self.wire.store.open_partial(&key).expect("a partial"))
        };
        let mut holders: Vec<NodeId> = self.wire.addresses.keys().copied().collect();
        holders.sort();
        let opening = Opening {
            key,
            path: TreePath::new(b"big.bin").expect("a path"),
            kind: ContentKind::File,
            locator: vec![1],
            holders,
            backing,
        };
        let shared = Shared {
            around: self.wire.clone(),
            budget: Budget::new(256 * MIB),
            counters: Arc::new(FetchCounters::default()),
            runtime: Handle::current(),
            limits: Limits::default(),
        };
        Core::new(opening, shared)
    }

    fn fetcher(&self, read_only: bool) -> Arc<Fetcher> {
        let store = self.wire.store.clone();
        Fetcher::within(self.wire.clone(), store, 64 << 20, read_only)
    }

    fn key(&self) -> ContentKey {
        ContentKey {
            ino: 12,
            version: 1,
            size: self.original.size,
            hash: self.original.hash,
        }
    }

    fn open_file(&self, fetcher: &Arc<Fetcher>) -> Arc<RemoteFile> {
        let path = TreePath::new(b"big.bin").expect("a path");
        let inode = Arc::new(self.wire.inode.clone());
        let holders = self.wire.addresses.keys().copied().collect();
        fetcher
            .open(self.key(), path, inode, holders)
            .expect("opened")
    }

    async fn read_range(&self, core: &Arc<Core>, from: u64, to: u64) {
        let mut offset = from;
        while offset < to {
            let read = timeout(DEADLINE, core.read(offset, 128 * 1024)).await;
            let (data, _) = read.expect("in time").expect("a read");
            assert!(
                data == self.original.slice(offset, data.len()),
                "at {offset}"
            );
            offset += data.len() as u64;
        }
    }

    /// The plain file that the whole content became.
    async fn kept(&self) -> Vec<u8> {
        let path = self.directory.path().join("big.bin");
        let begin = Instant::now();
        while !path.exists() {
            assert!(begin.elapsed() < DEADLINE, "the file was not kept");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::read(path).expect("read")
    }
}

fn inode(original: &Original) -> Inode {
    Inode {
        kind: Kind::File,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        nlink: 1,
        size: original.size,
        atime: 0,
        mtime: 1_600_000_000_000_000_000,
        ctime: 0,
        parent: 1,
        name: b"big.bin".to_vec(),
        target: Vec::new(),
        xattrs: Default::default(),
        version: 1,
        epoch: 1,
        home: NodeId(1),
        blake3: Some(original.hash),
        md5: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_read_makes_a_copy() {
    let cluster = Cluster::new(64 * MIB + 4321, 1);
    let core = cluster.open();
    cluster.read_range(&core, 0, cluster.original.size).await;
    let kept = cluster.kept().await;
    assert!(kept == cluster.original.slice(0, kept.len()));
    assert_eq!(kept.len() as u64, cluster.original.size);
    // Its tree came along: this node can serve it.
    let tree = cluster
        .wire
        .store
        .tree(&cluster.original.hash, cluster.original.size);
    assert!(tree.is_some(), "the tree is missing or damaged");
    // Readers go on with their descriptor.
    cluster.read_range(&core, 5 * MIB, 6 * MIB).await;
    core.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_reads_move_little() {
    let cluster = Cluster::new(64 * MIB, 2);
    let core = cluster.open();
    for index in 0..200u64 {
        let offset = index * 7_919_777 % (64 * MIB - 4096);
        let read = timeout(DEADLINE, core.read(offset, 4096)).await;
        let (data, _) = read.expect("in time").expect("a read");
        assert!(data == cluster.original.slice(offset, 4096));
    }
    assert!(core.backing().had_bytes() <= 400 * blocks::GROUP_BYTES);
    core.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_is_there_at_once_and_kept_behind() {
    let cluster = Cluster::new(16 * 1024, 1);
    let core = cluster.open();
    cluster.read_range(&core, 0, 16 * 1024).await;
    let kept = cluster.kept().await;
    assert!(kept == cluster.original.slice(0, 16 * 1024));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_is_killed_in_the_middle_and_the_read_ends() {
    let mut cluster = Cluster::new(64 * MIB, 2);
    let core = cluster.open();
    cluster.read_range(&core, 0, 16 * MIB).await;
    cluster.holders[0].kill();
    let begin = Instant::now();
    cluster.read_range(&core, 16 * MIB, 64 * MIB).await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    let kept = cluster.kept().await;
    assert!(kept == cluster.original.slice(0, 64 * MIB as usize));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_holder_is_killed_and_the_reader_hears() {
    let mut cluster = Cluster::new(64 * MIB, 1);
    let core = cluster.open();
    cluster.read_range(&core, 0, MIB).await;
    cluster.holders[0].kill();
    let begin = Instant::now();
    let read = timeout(DEADLINE, core.read(50 * MIB, 4096)).await;
    let error = read.expect("in time").expect_err("nobody has it");
    assert_eq!(error.to_errno(), libc::EIO, "{error}");
    assert!(
        begin.elapsed() < Duration::from_secs(10),
        "{:?}",
        begin.elapsed()
    );
    core.close();
}

async fn closed(fetcher: &Arc<Fetcher>) {
    let begin = Instant::now();
    while !fetcher.open.lock().expect("no panic").is_empty() {
        assert!(begin.elapsed() < DEADLINE, "a file was not closed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(fetcher.bytes_under_way(), 0, "memory was not given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_fetched_is_found_again_after_a_restart() {
    let cluster = Cluster::new(8 * MIB, 1);
    let fetcher = cluster.fetcher(false);
    let file = cluster.open_file(&fetcher);
    assert!(Arc::ptr_eq(&file, &cluster.open_file(&fetcher)));
    let (data, fetched) = file.read(3 * MIB, 64 * 1024).await.expect("a read");
    assert!(data == cluster.original.slice(3 * MIB, 64 * 1024));
    assert_eq!(fetched, 64 * 1024);
    drop(file);
    closed(&fetcher).await;
    let file = cluster.open_file(&cluster.fetcher(false));
    assert_eq!(file.progress().have_bytes, 64 * 1024);
    let (data, fetched) = file.read(3 * MIB + 5, 1000).await.expect("a read");
    assert!(data == cluster.original.slice(3 * MIB + 5, 1000));
    assert_eq!(fetched, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_closed_and_opened_in_turn() {
    let cluster = Cluster::new(4 * MIB, 2);
    let fetcher = cluster.fetcher(false);
    for step in 0..64u64 {
        let file = cluster.open_file(&fetcher);
        let offset = step * 64 * 1024;
        let read = timeout(DEADLINE, file.read(offset, 64 * 1024)).await;
        let (data, _) = read.expect("in time").expect("a read");
        assert!(data == cluster.original.slice(offset, data.len()));
        if step % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    closed(&fetcher).await;
    assert!(cluster.kept().await == cluster.original.slice(0, 4 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_is_fetched_from_two_holders() {
    let cluster = Cluster::new(48 * MIB + 99, 2);
    let fetcher = cluster.fetcher(false);
    let file = cluster.open_file(&fetcher);
    let fetching = file.fetch_whole(|progress| assert!(progress.have_bytes <= progress.size));
    let fetched = timeout(DEADLINE, fetching).await;
    fetched.expect("in time").expect("fetched");
    assert!(cluster.directory.path().join("big.bin").exists());
    assert!(cluster.kept().await == cluster.original.slice(0, (48 << 20) + 99));
    drop(file);
    closed(&fetcher).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_node_keeps_nothing() {
    let cluster = Cluster::new(4 * MIB, 1);
    let fetcher = cluster.fetcher(true);
    let file = cluster.open_file(&fetcher);
    let mut offset = 0;
    while offset < 4 * MIB {
        let (data, _) = file.read(offset, 256 * 1024).await.expect("a read");
        assert!(data == cluster.original.slice(offset, 256 * 1024));
        offset += data.len() as u64;
    }
    let refused = file.fetch_whole(|_| {}).await;
    assert!(matches!(refused, Err(FsError::ReadOnly(_))));
    drop(file);
    closed(&fetcher).await;
    assert!(!cluster.directory.path().join("big.bin").exists());
    assert!(cluster.wire.store.partials().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_is_fetched_once_for_all_who_want_it() {
    for size in [40_000, 3 * MIB + 7] {
        let cluster = Cluster::new(size, 2);
        let fetcher = cluster.fetcher(false);
        let hash = cluster.original.hash;
        let mut tasks = Vec::new();
        for number in 0..12 {
            let fetcher = fetcher.clone();
            let task = tokio::spawn(async move {
                let blob = fetcher.blob(hash, size, &[NodeId(1), NodeId(2)]);
                // Some are cancelled at once.
                let patience = if number % 4 == 1 {
                    Duration::from_micros(300)
                } else {
                    DEADLINE
                };
                timeout(patience, blob)
                    .await
                    .ok()
                    .map(|path| path.expect("fetched"))
            });
            tasks.push(task);
        }
        for task in tasks {
            if let Some(path) = task.await.expect("no panic") {
                let bytes = std::fs::read(path).expect("read");
                assert!(bytes == cluster.original.slice(0, size as usize));
            }
        }
        assert!(cluster.wire.store.has_blob(&hash));
        let fetched = fetcher.counters().bytes_fetched.load(Ordering::Relaxed);
        assert!(
            fetched < 4 * size,
            "{fetched} bytes for one payload of {size}"
        );
        assert_eq!(fetcher.bytes_under_way(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_read_through_and_nothing_is_kept() {
    let cluster = Cluster::new(40 * MIB, 1);
    let full = tempfile::tempdir().expect("a directory");
    // A disk of which more has to stay free than it has.
    let store = Arc::new(Store::open(full.path(), u64::MAX / 4).expect("a store"));
    let fetcher = Fetcher::within(cluster.wire.clone(), store.clone(), 64 << 20, false);
    let file = cluster.open_file(&fetcher);
    let mut offset = 0;
    while offset < 40 * MIB {
        let read = timeout(DEADLINE, file.read(offset, 256 * 1024)).await;
        let (data, _) = read.expect("in time").expect("a read");
        assert!(data == cluster.original.slice(offset, 256 * 1024));
        offset += data.len() as u64;
    }
    assert!(file.progress().have_bytes <= super::OVERFLOW_BYTES);
    let whole = file.fetch_whole(|_| {}).await;
    assert!(matches!(whole, Err(FsError::NoSpace)), "{whole:?}");
    drop(file);
    closed(&fetcher).await;
    assert!(store.partials().is_empty());
}
