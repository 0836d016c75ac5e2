//! A whole node: store, catalog, file system, executor, mount, peers, put together and taken apart in order.
//! Nothing is decided here but the order: what was started is ended when a later step fails.
use crate::config::{MountArgs, Size, with_port};
use crate::service::{Executor, ExecutorOptions};
use crate::session::{ControlSocket, NodeFacts};
use anyhow::{Context, bail};
use ks_fs::catalog::{Catalog, journal::Journal, nodes::HEARTBEAT};
use ks_fs::copies::eviction::CacheLimit;
use ks_fs::filesystem::{FileSystem, FileSystemOptions, Keeping};
use ks_fs::mount::{self, Mount};
use ks_fs::record::NodeInfo;
use ks_fs::redis_client::RedisTarget;
use ks_fs::redis_server::RedisServer;
use ks_fs::store::{Space, Store};
use ks_transport::endpoint::{Endpoint, Handler, StreamKind};
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::PeerPool;
use ks_transport::tunnel::{Target, TunnelServer};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

mod calls_thread;
mod entrance;
mod facts;

use calls_thread::CallsThread;
use entrance::Access;

/// Calls that may wait for calls of their own, for each worker.
const NESTED_FOR_EACH_WORKER: usize = 4;
/// How long running calls may go on when the node ends in order.
const FINISH_SECONDS: f32 = 5.0;
/// The longest that any one step of ending in order may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The node's control socket, in its data directory's state directory, or (where that path is too long for a
/// socket) in the machine's runtime directory.
pub fn control_socket(state_dir: &Path) -> PathBuf {
    /// `sun_path` holds 108 bytes.
    const PATH_BYTES_MAX: usize = 100;
    let socket = state_dir.join("control.sock");
    if socket.as_os_str().len() <= PATH_BYTES_MAX {
        return socket;
    }
    use std::os::unix::ffi::OsStrExt;
    let (hash, _) = ks_transport::blocks::hash_bytes(socket.as_os_str().as_bytes());
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/run".into(), PathBuf::from);
    runtime.join(format!("ks-{}.sock", hex::encode(&hash[..8])))
}

/// A running node.
pub struct Node {
    name: String,
    options: MountArgs,
    started: Instant,
    endpoint: Endpoint,
    address: String,
    redis: Option<RedisServer>,
    /// What people call the Redis, and where it is.
    redis_described: String,
    catalog: Catalog,
    fs: Arc<FileSystem>,
    executor: Arc<Executor>,
    calls: CallsThread,
    mount: Mutex<Option<Mount>>,
    control: Mutex<Option<ControlSocket>>,
    heartbeat: tokio::task::JoinHandle<()>,
    ending: watch::Sender<bool>,
}

/// What `start` has so far: the parts that must be ended when a later one fails.
struct Foundation {
    name: String,
    store: Arc<Store>,
    endpoint: Endpoint,
    pool: PeerPool,
    redis: Option<RedisServer>,
    catalog: Catalog,
    access: Access,
    address: String,
    /// Who is told of changes in the catalog, once it is there.
    changes: Arc<OnceLock<Arc<FileSystem>>>,
}

impl Node {
    /// Starts everything; returns when the mount answers.
    pub async fn start(options: MountArgs) -> anyhow::Result<Arc<Self>> {
        options.check()?;
        mount::prepare(&options.mountpoint)?;
        let foundation = Foundation::lay(&options).await?;
        let redis_is_ours = foundation.redis.is_some();
        match Self::build(options, foundation).await {
            Ok(node) => Ok(node),
            Err((error, redis)) => {
                if let (true, Some(redis)) = (redis_is_ours, redis) {
                    redis.stop().await;
                }
                Err(error)
            }
        }
    }

    /// The upper floors. On failure the Redis child comes back, to be ended.
    async fn build(
        options: MountArgs,
        mut foundation: Foundation,
    ) -> Result<Arc<Self>, (anyhow::Error, Option<RedisServer>)> {
        let redis = foundation.redis.take();
        match Self::build_floors(options, &foundation).await {
            Ok(mut node) => {
                node.redis = redis;
                let node = Arc::new(node);
                match node.open_doors().await {
                    Ok(()) => Ok(node),
                    Err(error) => {
                        node.stop_parts().await;
                        let redis = Arc::into_inner(node).and_then(|node| node.redis);
                        Err((error, redis))
                    }
                }
            }
            Err(error) => {
                let _ = foundation.catalog.deregister().await;
                foundation.endpoint.close().await;
                Err((error, redis))
            }
        }
    }

    async fn build_floors(options: MountArgs, foundation: &Foundation) -> anyhow::Result<Self> {
        let store = foundation.store.clone();
        let space = store.space().context("the data directory's disk")?;
        open_memory(&store, options.memory_tier);
        let fs_options = FileSystemOptions {
            datadir: store.datadir().to_owned(),
            node_name: foundation.name.clone(),
            keep_free_bytes: options.keep_free.of(space.total),
            memory_limit_bytes: options.memory_limit.of(machine_memory_bytes()) as usize,
            read_only: options.read_only,
            passthrough: !options.no_passthrough,
            watch: !options.no_watch,
            keeping: Keeping {
                cache_limit: match options.cache_limit {
                    Size::Bytes(bytes) => CacheLimit::Bytes(bytes),
                    Size::Percent(percent) => CacheLimit::PercentOfFree(percent),
                },
                repair_after: options.repair_after.0,
                replicas: usize::from(options.replicas),
                scrub_every: options.scrub_days.0,
            },
        };
        let num_workers = options.num_workers.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            |n| n as usize,
        );
        let executor_options = ExecutorOptions {
            node_url: foundation.address.clone(),
            node_name: foundation.name.clone(),
            mountpoint: options.mountpoint.clone(),
            datadir: store.datadir().to_owned(),
            num_workers,
            queues: options.queues.clone(),
            pythons: interpreters(&options),
            modules: options.modules.clone(),
            registered_only: options.registered_only,
            data_threshold: options.data_threshold.of(space.total),
            result_ttl: options.result_ttl,
            worker_memory_limit: options.worker_memory_limit.of(machine_memory_bytes()),
            max_nested: options
                .max_nested
                .map_or(NESTED_FOR_EACH_WORKER * num_workers, |n| n as usize),
            max_queued: options.max_queued,
        };
        let info = foundation.info(&options, &executor_options, space)?;
        foundation.catalog.register(info).await?;
        let heartbeat = spawn_heartbeat(foundation.catalog.clone(), store.clone());
        let calls = CallsThread::start().context("a thread for calls")?;
        let parts = async {
            let fs = FileSystem::start(
                fs_options,
                store,
                foundation.catalog.clone(),
                foundation.pool.clone(),
            )
            .await?;
            let _ = foundation.changes.set(fs.clone());
            let starting = Executor::start(
                executor_options,
                fs.clone(),
                foundation.pool.clone(),
                foundation.access.target.clone(),
            );
            let executor = calls.run(starting).await??;
            anyhow::Ok((fs, executor))
        };
        let (fs, executor) = match parts.await {
            Ok(parts) => parts,
            Err(error) => {
                heartbeat.abort();
                return Err(error);
            }
        };
        let mut handlers = fs.handlers();
        handlers.extend(executor.handlers());
        handlers.extend(foundation.access.handlers());
        foundation.endpoint.serve(handlers);
        Ok(Self {
            name: foundation.name.clone(),
            options,
            started: Instant::now(),
            endpoint: foundation.endpoint.clone(),
            address: foundation.address.clone(),
            redis: None,
            redis_described: foundation.access.described(),
            catalog: foundation.catalog.clone(),
            fs,
            executor,
            calls,
            mount: Mutex::default(),
            control: Mutex::default(),
            heartbeat,
            ending: watch::Sender::new(false),
        })
    }

    /// The control socket and the mount, last: whoever finds them finds a node that works.
    async fn open_doors(self: &Arc<Self>) -> anyhow::Result<()> {
        let socket = control_socket(&self.fs.store().state_dir());
        let facts: Arc<dyn NodeFacts> = Arc::new(facts::Facts(Arc::downgrade(self)));
        let bound = {
            let _there = self.calls.handle().enter();
            ControlSocket::bind(&socket, self.executor.clone(), facts)
        };
        let control = bound.with_context(|| format!("the control socket {}", socket.display()))?;
        *self.control.lock().expect("not poisoned") = Some(control);
        let (fs, mountpoint) = (self.fs.clone(), self.options.mountpoint.clone());
        let runtime = tokio::runtime::Handle::current();
        let mounted =
            tokio::task::spawn_blocking(move || Mount::attach(fs, &mountpoint, &socket, runtime))
                .await
                .context("the mount")??;
        *self.mount.lock().expect("not poisoned") = Some(mounted);
        Ok(())
    }

    /// Asks the node to end in order.
    pub fn shutdown(&self) {
        self.ending.send_replace(true);
    }

    /// Waits until the node shall end: it was asked to, or its mount was taken away.
    pub async fn ended(&self) {
        let mut ending = self.ending.subscribe();
        let unmounted = {
            let mount = self.mount.lock().expect("not poisoned");
            mount.as_ref().map(Mount::until_ended)
        };
        let unmounted = async {
            match unmounted {
                Some(unmounted) => unmounted.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ending.wait_for(|ending| *ending) => {}
            () = unmounted => {
                tracing::info!("{} was unmounted: the node ends", self.options.mountpoint.display());
            }
        }
    }

    /// Ends the node in order: nothing that was acknowledged is lost.
    pub async fn stop(self: Arc<Self>) {
        self.stop_parts().await;
        // Sessions that are still closing may hold a reference for a moment.
        let mut node = self;
        for _ in 0..50 {
            match Arc::try_unwrap(node) {
                Ok(alone) => {
                    if let Some(redis) = alone.redis {
                        redis.stop().await;
                    }
                    return;
                }
                Err(shared) => node = shared,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tracing::warn!("a session outlives the node; the private Redis ends with the process");
    }

    async fn stop_parts(&self) {
        drop(self.control.lock().expect("not poisoned").take());
        step("the executor", self.executor.stop(FINISH_SECONDS)).await;
        let mount = self.mount.lock().expect("not poisoned").take();
        if let Some(mount) = mount {
            step("the mount", async {
                match tokio::task::spawn_blocking(|| mount.unmount()).await {
                    Ok(Err(error)) => tracing::warn!("unmounting: {error}"),
                    Err(error) => tracing::warn!("unmounting: {error}"),
                    Ok(Ok(())) => {}
                }
            })
            .await;
        }
        step("the file system", self.fs.stop()).await;
        self.heartbeat.abort();
        step("leaving the cluster", async {
            if let Err(error) = self.catalog.deregister().await {
                tracing::warn!("leaving the cluster: {error}");
            }
        })
        .await;
        step("the endpoint", self.endpoint.close()).await;
    }
}

/// One step of ending; it may take its time, but not for ever.
async fn step(what: &str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(STEP_TIMEOUT, work).await.is_err() {
        tracing::warn!("ending {what} takes longer than {STEP_TIMEOUT:?}; going on");
    }
}

/// The interpreter that workers run: `default` is the virtual environment that is active or lies beside the
/// program, else `python3`.
fn interpreters(options: &MountArgs) -> Vec<(String, PathBuf)> {
    let named = options
        .pythons
        .iter()
        .map(|python| (python.name.clone(), python.path.clone()));
    let mut interpreters: Vec<_> = named.collect();
    if !interpreters.iter().any(|(name, _)| name == "default") {
        interpreters.push(("default".into(), default_python()));
    }
    interpreters
}

/// See `interpreters`.
pub fn default_python() -> PathBuf {
    let active = std::env::var_os("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("bin/python"));
    let program = std::env::current_exe().ok();
    let beside = program
        .as_deref()
        .and_then(Path::parent)
        .map(|dir| dir.join("python3"));
    // A checkout: target/release/ks beside .venv/.
    let checkout = program
        .as_deref()
        .and_then(|program| program.ancestors().nth(3))
        .map(|top| top.join(".venv/bin/python"));
    [active, beside, checkout]
        .into_iter()
        .flatten()
        .find(|python| python.exists())
        .unwrap_or_else(|| "python3".into())
}

fn spawn_heartbeat(catalog: Catalog, store: Arc<Store>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(HEARTBEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut trouble = String::new();
        loop {
            tick.tick().await;
            let (free, total) = store
                .space()
                .map_or((0, 0), |space| (space.free, space.total));
            match catalog.heartbeat(free, total).await {
                Ok(()) => trouble.clear(),
                Err(error) => {
                    let error = error.to_string();
                    if error != trouble {
                        tracing::warn!("the heart-beat fails: {error}");
                    }
                    trouble = error;
                }
            }
        }
    })
}

/// The cluster's key; the first node makes it.
fn cluster_key(options: &MountArgs) -> anyhow::Result<ClusterKey> {
    let file = options.key_file()?;
    if let (Some(host), false) = (&options.join, file.exists()) {
        bail!(
            "{}: there is no cluster key on this machine; copy it from the node to join: mkdir -p ~/.config/ks && scp {}:.config/ks/cluster.key {}",
            file.display(),
            host.split(':').next().unwrap_or(host),
            file.display()
        );
    }
    let (key, new) = ClusterKey::load_or_create(&file)?;
    if new {
        tracing::info!("new cluster key {}", file.display());
    }
    Ok(key)
}

impl Foundation {
    /// Everything below the file system. What fails here leaves nothing behind.
    async fn lay(options: &MountArgs) -> anyhow::Result<Self> {
        let name = options.name()?;
        let key = cluster_key(options)?;
        let datadir = options.datadir.clone();
        let keep_free = options.keep_free;
        let store = tokio::task::spawn_blocking(move || open_store(&datadir, keep_free)).await??;
        let identity = Identity::node(&key, &name)?;
        let endpoint = Endpoint::bind(options.listen, &identity)
            .with_context(|| format!("--listen {}", options.listen))?;
        let pool = PeerPool::new(endpoint.clone());
        let address = options.advertised(endpoint.local_addr())?;
        let (redis, access) = Access::find(options, &store, &pool, &key).await?;
        let changes = Arc::new(OnceLock::<Arc<FileSystem>>::new());
        let listener = changes.clone();
        let on_change = Arc::new(move |ino| {
            if let Some(fs) = listener.get() {
                fs.changed(ino);
            }
        });
        let journal = Journal::open(&store.state_dir().join("journal"))
            .context("the journal in the data directory (.ks/journal)")?;
        let target = access.target.clone();
        let opening = Catalog::open_journaled(target, store.node_id(), on_change, journal);
        let catalog = match opening.await {
            Ok(catalog) => catalog,
            Err(error) => {
                if let Some(redis) = redis {
                    redis.stop().await;
                }
                return Err(error).with_context(|| access.described());
            }
        };
        Ok(Self {
            name,
            store: Arc::new(store),
            endpoint,
            pool,
            redis,
            catalog,
            access,
            address,
            changes,
        })
    }

    fn info(
        &self,
        options: &MountArgs,
        executor: &ExecutorOptions,
        space: Space,
    ) -> anyhow::Result<NodeInfo> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(NodeInfo {
            name: self.name.clone(),
            address: self.address.clone(),
            mountpoint: options.mountpoint.display().to_string(),
            datadir: self.store.datadir().display().to_string(),
            incarnation: now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(48),
            version: env!("CARGO_PKG_VERSION").into(),
            workers: executor.num_workers as u32,
            queues: executor.served(),
            read_only: options.read_only,
            carries_redis: self.access.carried_by_us(),
            started: now.as_nanos() as i64,
            free_bytes: space.free,
            total_bytes: space.total,
        })
    }
}

/// What processes of this node can have together: the machine's memory, or less where a control group bounds it.
fn machine_memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    let total = (machine.totalram as u64).saturating_mul(u64::from(machine.mem_unit));
    let bound = |text: String| text.trim().parse::<u64>().ok();
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    group
        .and_then(bound)
        .map_or(total, |bound| total.min(bound))
}

/// The memory tier; a node without one keeps values on its disk.
fn open_memory(store: &Store, limit: Size) {
    let machine = rustix::system::sysinfo();
    let machine_bytes = machine.totalram as u64 * u64::from(machine.mem_unit);
    let parent = Path::new(ks_fs::store::memory::PARENT);
    // In a container that file system may be much smaller than the machine's memory.
    let room_bytes = rustix::fs::statvfs(parent).map_or(0, |found| found.f_blocks * found.f_frsize);
    if let Err(error) = store.open_memory(parent, limit.of(machine_bytes).min(room_bytes)) {
        tracing::warn!(%error, "there is no memory tier: values are kept on the disk");
    }
}

/// The data directory, made where it is missing.
fn open_store(datadir: &Path, keep_free: crate::config::Size) -> anyhow::Result<Store> {
    std::fs::create_dir_all(datadir).with_context(|| datadir.display().to_string())?;
    if !datadir.is_dir() {
        bail!("{}: not a directory", datadir.display());
    }
    let disk = rustix::fs::statvfs(datadir).with_context(|| datadir.display().to_string())?;
    Ok(Store::open(
        datadir,
        keep_free.of(disk.f_blocks * disk.f_frsize),
    )?)
}
