//! Nodes for tests: a private Redis, and on it as many nodes as wanted, each with its data directory, endpoint and mount.
//! Everything ends and goes with the `Cluster`.
#![allow(dead_code)] // each test binary uses its part
use ks_fs::{
    catalog::{Catalog, journal::Journal},
    filesystem::{FileSystem, FileSystemOptions},
    mount::{Mount, prepare},
    record::NodeInfo,
    store::Store,
    testing::TestRedis,
};
use ks_transport::{endpoint::Endpoint, identity::Identity, key::ClusterKey, pool::PeerPool};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

/// One node.
pub struct TestNode {
    pub fs: Arc<FileSystem>,
    pub endpoint: Endpoint,
    pub mountpoint: PathBuf,
    pub datadir: PathBuf,
    pub info: NodeInfo,
    mount: Option<Mount>,
    heartbeat: tokio::task::JoinHandle<()>,
}

impl TestNode {
    /// A path in the mounted tree.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint.join(name)
    }

    /// The same file in the data directory.
    pub fn plain(&self, name: &str) -> PathBuf {
        self.datadir.join(name)
    }

    /// FUSE_READ requests that reached the daemon.
    pub fn reads(&self) -> u64 {
        self.fs.counters().reads
    }

    /// The kernel gives handles back after `close()` has returned.
    pub fn await_closed(&self) {
        eventually("all handles are given back", || {
            self.fs.counters().open_handles == 0
        });
    }

    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("mounted")
    }

    pub fn unmount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount().expect("unmounts");
        }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.heartbeat.abort();
        drop(self.mount.take());
    }
}

/// How a node is started.
#[derive(Clone, Copy)]
pub struct Options {
    pub passthrough: bool,
    pub mounted: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            passthrough: true,
            mounted: true,
        }
    }
}

/// A Redis, a key and a directory for the nodes' directories.
pub struct Cluster {
    // Nodes go before what they stand on.
    pub nodes: Vec<TestNode>,
    pub redis: TestRedis,
    key: ClusterKey,
    home: tempfile::TempDir,
}

impl Cluster {
    pub async fn new() -> Self {
        // What the parts log goes with the test's output (RUST_LOG chooses).
        let filter = tracing_subscriber::EnvFilter::try_from_default_env();
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter.unwrap_or_else(|_| "ks_fs=debug,ks_transport=info".into()))
            .with_test_writer()
            .try_init();
        Self {
            nodes: Vec::new(),
            redis: TestRedis::start().await,
            key: ClusterKey::generate(),
            home: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Whether this machine can mount; says so where it cannot.
    pub fn can_mount() -> bool {
        let can = Path::new("/dev/fuse").exists();
        if !can {
            eprintln!("NOT RUN: /dev/fuse is missing on this machine");
        }
        can
    }

    /// One mounted node.
    pub async fn one() -> Self {
        Self::of(1, Options::default()).await
    }

    pub async fn of(count: usize, options: Options) -> Self {
        let mut cluster = Self::new().await;
        for _ in 0..count {
            cluster.add(options).await;
        }
        cluster
    }

    /// Ends a node; its data directory stays, and its number.
    pub async fn end(&mut self, number: usize) -> Ended {
        let node = self.nodes.remove(number);
        let (name, datadir) = (node.info.name.clone(), node.datadir.clone());
        let mountpoint = node.mountpoint.clone();
        node.fs.stop().await;
        node.endpoint.close().await;
        let _ = node.fs.catalog().deregister().await;
        away(move || drop(node)).await;
        Ended {
            name,
            datadir,
            mountpoint,
        }
    }

    /// Starts a node again that was ended; it gets the last number.
    pub async fn start_again(&mut self, ended: Ended, options: Options) -> usize {
        let Ended {
            name,
            datadir,
            mountpoint,
        } = ended;
        let node = start(self, name, datadir, mountpoint, options).await;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Starts a further node.
    pub async fn add(&mut self, options: Options) -> usize {
        let number = self.nodes.len();
        let name = format!("node{number}");
        let datadir = self.home.path().join(format!("data{number}"));
        let mountpoint = self.home.path().join(format!("ks{number}"));
        std::fs::create_dir_all(&datadir).unwrap();
        let node = start(self, name, datadir, mountpoint, options).await;
        self.nodes.push(node);
        number
    }
}

/// What is left of a node that was ended.
pub struct Ended {
    pub name: String,
    pub datadir: PathBuf,
    pub mountpoint: PathBuf,
}

async fn start(
    cluster: &Cluster,
    name: String,
    datadir: PathBuf,
    mountpoint: PathBuf,
    options: Options,
) -> TestNode {
    let store = Arc::new(open_store(&datadir).await);
    let identity = Identity::node(&cluster.key, &name).expect("an identity");
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).expect("binds");
    let pool = PeerPool::new(endpoint.clone());
    let hook = Arc::new(OnceLock::<Weak<FileSystem>>::new());
    let listener = hook.clone();
    let on_change = Arc::new(move |ino| {
        if let Some(fs) = listener.get().and_then(Weak::upgrade) {
            fs.changed(ino);
        }
    });
    let journal = Journal::open(&store.state_dir().join("journal")).expect("the journal opens");
    let target = cluster.redis.target();
    let catalog = Catalog::open_journaled(target, store.node_id(), on_change, journal)
        .await
        .expect("the catalog opens");
    let info = node_info(&name, &endpoint, &mountpoint, &datadir);
    catalog.register(info.clone()).await.expect("registers");
    let heartbeat = beat(catalog.clone());
    let fs_options = FileSystemOptions {
        datadir: datadir.clone(),
        node_name: name,
        keep_free_bytes: 0,
        memory_limit_bytes: 64 * 1024 * 1024,
        read_only: false,
        passthrough: options.passthrough,
        keeping: Default::default(),
        watch: true,
    };
    let fs = FileSystem::start(fs_options, store, catalog, pool)
        .await
        .expect("the file system starts");
    hook.set(Arc::downgrade(&fs)).expect("set once");
    endpoint.serve(fs.handlers());
    let mount = options.mounted.then(|| {
        prepare(&mountpoint).expect("the mount point is prepared");
        let runtime = tokio::runtime::Handle::current();
        let socket = datadir.join(".ks/control");
        Mount::attach(fs.clone(), &mountpoint, &socket, runtime).expect("mounts")
    });
    TestNode {
        fs,
        endpoint,
        mountpoint,
        datadir,
        info,
        mount,
        heartbeat,
    }
}

/// The tasks of a node that has just ended may hold its directory for a moment.
async fn open_store(datadir: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(datadir, 0) {
            Ok(store) => return store,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn node_info(name: &str, endpoint: &Endpoint, mountpoint: &Path, datadir: &Path) -> NodeInfo {
    NodeInfo {
        name: name.to_owned(),
        address: endpoint.local_addr().to_string(),
        mountpoint: mountpoint.display().to_string(),
        datadir: datadir.display().to_string(),
        incarnation: u64::from(endpoint.local_addr().port()),
        version: "test".into(),
        workers: 0,
        queues: vec![],
        read_only: false,
        carries_redis: false,
        started: 0,
        free_bytes: 0,
        total_bytes: 0,
    }
}

fn beat(catalog: Catalog) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(ks_fs::catalog::nodes::HEARTBEAT).await;
            let _ = catalog.heartbeat(1, 2).await;
        }
    })
}

/// Runs what touches a mount away from the runtime that serves it.
pub async fn away<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Waits until something holds, at most 10 s.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes that differ from offset to offset and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
