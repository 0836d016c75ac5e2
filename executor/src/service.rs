//! The executor of a node: accepts calls, places them, claims and runs them, tells their callers.
//!
//! Who takes part: `session` hands in what clients ask; `queue` is the shared truth in Redis; `worker` runs Python; peers
//! bring updates to where callers wait (`links`). The rooms: `accept` (a client's calls), `board` (what is claimed here and
//! who is free), `run` (from claim to end), `callers` (who waits here), `tend` (the background), `kept`, `payload`, `functions`.
//! What always holds: a job ends exactly once (`queue`), and its caller hears of it: from the executing node at once, or
//! from the record, which is looked at when a message may have been lost.
//! Not for files: which nodes hold what is asked of ks-fs.
use crate::placement;
use crate::queue::{self, Claimant, Queue};
use crate::worker::Worker;
use ks_fs::filesystem::FileSystem;
use ks_fs::redis_client::{Redis, RedisTarget};
use ks_transport::{
    endpoint::{Handler, StreamKind},
    pool::PeerPool,
};
use serde_json::json;
use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

mod accept;
mod board;
pub mod callers;
mod flow;
mod functions;
mod kept;
mod learned;
mod links;
mod listing;
mod memory;
mod nested;
mod output;
pub mod payload;
mod recall;
mod recover;
mod room;
mod run;
mod tend;
mod workers;

pub use accept::SubmitError;

/// How long ending workers may take to leave by themselves.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
/// How long closing the last records may take.
const SETTLE_WAIT: Duration = Duration::from_secs(3);

/// What an executor is started with.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// As others reach it ("host:port"); calls see it in their settings.
    pub node_url: String,
    /// The node's name.
    pub node_name: String,
    /// Where the tree is mounted.
    pub mountpoint: PathBuf,
    /// The node's own files.
    pub datadir: PathBuf,
    /// How many calls run at once.
    pub num_workers: usize,
    /// Beside `default` and `data`.
    pub queues: Vec<String>,
    /// Interpreters by name; `default` is always there.
    pub pythons: Vec<(String, PathBuf)>,
    /// Modules whose registered functions this node serves.
    pub modules: Vec<String>,
    /// Functions that are not registered are refused.
    pub registered_only: bool,
    /// Bytes; a node that would have to fetch more may not run the call.
    pub data_threshold: u64,
    /// How long the record of a job that ended is kept.
    pub result_ttl: Duration,
    /// Bytes; a worker that grows beyond this is ended.
    pub worker_memory_limit: u64,
    /// How many calls may wait for calls of their own, with others in their places.
    pub max_nested: usize,
    /// How many jobs may go on in the cluster when this node accepts another.
    pub max_queued: u64,
}

impl ExecutorOptions {
    /// What belongs in this node's `NodeInfo::queues`: every queue served, and `python:NAME` for each interpreter beside `default`.
    pub fn served(&self) -> Vec<String> {
        let mut served = self.plain_queues();
        served.extend(self.further_pythons().map(|name| format!("python:{name}")));
        served
    }

    fn plain_queues(&self) -> Vec<String> {
        let mut queues = vec!["default".to_owned(), "data".to_owned()];
        for queue in &self.queues {
            if !queues.contains(queue) {
                queues.push(queue.clone());
            }
        }
        queues
    }

    fn further_pythons(&self) -> impl Iterator<Item = &str> {
        let names = self.pythons.iter().map(|(name, _)| name.as_str());
        names.filter(|name| *name != "default")
    }

    /// The queues' names in Redis: each queue, with and without each further interpreter.
    fn queue_keys(&self) -> Vec<String> {
        let mut keys = self.plain_queues();
        for queue in self.plain_queues() {
            keys.extend(
                self.further_pythons()
                    .map(|python| queue::queue_key(&queue, Some(python))),
            );
        }
        keys
    }
}

/// Why an executor cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// An interpreter does not run.
    #[error("{python}: cannot run workers: {reason}")]
    Python {
        /// The program.
        python: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The name of a queue or interpreter cannot be one.
    #[error(
        "'{0}' cannot be the name of a queue or an interpreter: up to 64 letters, digits, '_', '-' and '.' can"
    )]
    Name(String),
    /// The control socket.
    #[error("the control socket {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Redis.
    #[error(transparent)]
    Redis(#[from] ks_fs::redis_client::RedisError),
    /// The queue in Redis.
    #[error(transparent)]
    Queue(#[from] queue::QueueError),
}

/// The executor; one a node.
pub struct Executor {
    pub(crate) options: ExecutorOptions,
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) facts: OnceLock<Arc<dyn crate::session::NodeFacts>>,
    pub(crate) callers: callers::Callers,
    pool: PeerPool,
    queue: Queue,
    room: room::Room,
    /// Where workers are watched.
    runtime: tokio::runtime::Handle,
    /// The queues' names in Redis.
    queues: Vec<String>,
    mountpoint: Vec<u8>,
    board: Mutex<board::Board>,
    functions: functions::Functions,
    learned: learned::Learned,
    used: kept::Used,
    /// Held while values move into memory.
    preferring: tokio::sync::Mutex<()>,
    nodes: placement::resolve::Nodes,
    links: links::Links,
    closing: Arc<tend::Closings>,
    claim_soon: Arc<Notify>,
    /// A call was entered in the board.
    entered: Arc<Notify>,
    look_soon: Arc<Notify>,
    epoch: Instant,
    renewed_ms: AtomicU64,
    /// Until then no node is taken for dead.
    patient_until_ms: AtomicU64,
    /// An answer of Redis was lost: what is claimed in our name may not be what we know.
    unsure: AtomicBool,
    /// Claimed in our name without our knowing of it, when we last looked: given back if it is so at the next look, too.
    strays: Mutex<HashSet<String>>,
    stopping: AtomicBool,
    /// Calls that were stopped here of late.
    stopped: Mutex<nested::Stopped>,
    /// There may be calls to claim.
    more: AtomicBool,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl Executor {
    /// Starts workers in the background, so that the first call finds one. `redis`: the executor keeps a connection of its own,
    /// so that calls and the catalog do not wait for each other.
    pub async fn start(
        options: ExecutorOptions,
        fs: Arc<FileSystem>,
        pool: PeerPool,
        redis: RedisTarget,
    ) -> Result<Arc<Self>, ExecutorError> {
        let names = options
            .queues
            .iter()
            .map(String::as_str)
            .chain(options.further_pythons());
        if let Some(name) = names.into_iter().find(|name| !queue::name_is_valid(name)) {
            return Err(ExecutorError::Name(name.to_owned()));
        }
        let (on_push, heard, deaf) = tend::ears();
        let redis = Redis::connect(redis, false, on_push).await?;
        let me = Claimant {
            node: fs.catalog().me(),
            incarnation: random(),
        };
        let executor = Arc::new(Self {
            callers: callers::Callers::default(),
            facts: OnceLock::new(),
            queue: Queue::new(redis, me)
                .with_result_ttl(options.result_ttl)
                .with_limits(queue::Limits {
                    going_max: options.max_queued,
                    ..queue::Limits::default()
                }),
            room: room::Room::default(),
            runtime: tokio::runtime::Handle::current(),
            queues: options.queue_keys(),
            mountpoint: options.mountpoint.as_os_str().as_bytes().to_vec(),
            board: Mutex::new(board::Board::new(
                options.num_workers,
                options.max_nested,
                &options.pythons,
            )),
            functions: functions::Functions::default(),
            learned: learned::Learned::default(),
            used: kept::Used::default(),
            preferring: tokio::sync::Mutex::default(),
            nodes: placement::resolve::Nodes::default(),
            links: links::Links::default(),
            closing: Arc::default(),
            claim_soon: Arc::default(),
            entered: Arc::default(),
            look_soon: Arc::default(),
            epoch: Instant::now(),
            renewed_ms: AtomicU64::new(0),
            patient_until_ms: AtomicU64::new(0),
            unsure: AtomicBool::new(false),
            strays: Mutex::default(),
            stopping: AtomicBool::new(false),
            stopped: Mutex::default(),
            more: AtomicBool::new(true),
            tasks: Mutex::default(),
            options,
            fs,
            pool,
        });
        executor.queue.subscribe().await?;
        executor.queue.renew().await?;
        executor.adopt_kept().await?;
        executor.raise_workers();
        let weak = || Arc::downgrade(&executor);
        *executor.tasks.lock().unwrap() = vec![
            tokio::spawn(tend::hear(weak(), heard, deaf)),
            tokio::spawn(tend::claim(weak())),
            tokio::spawn(tend::close(weak())),
            tokio::spawn(tend::renew(weak())),
            tokio::spawn(memory::weigh(weak())),
        ];
        executor.expect_more();
        Ok(executor)
    }

    /// The peers' and clients' side for the endpoint: CALLS (nodes), SESSION (clients and nodes).
    pub fn handlers(self: &Arc<Self>) -> Vec<(StreamKind, Arc<dyn Handler>)> {
        vec![
            (
                StreamKind::CALLS,
                Arc::new(links::UpdatesHandler(Arc::downgrade(self))),
            ),
            (
                StreamKind::SESSION,
                Arc::new(crate::session::SessionHandler::new(self)),
            ),
        ]
    }

    /// For `ks status`: workers (pid, state, job), queue lengths, jobs run.
    pub async fn status(&self) -> serde_json::Value {
        let lengths = self.queue.lengths(&self.queues).await.unwrap_or_default();
        let queued: serde_json::Map<_, _> = lengths
            .into_iter()
            .map(|(queue, length)| (queue, json!(length)))
            .collect();
        let store = self.fs.store().clone();
        let kept = tokio::task::spawn_blocking(move || store.kept_usage()).await;
        let kept = kept.unwrap_or_default();
        let board = self.board.lock().unwrap();
        let workers: Vec<_> = board
            .pools
            .values()
            .flat_map(|pool| pool.workers.values())
            .map(|worker| {
                let state = format!("{:?}", worker.state()).to_lowercase();
                json!({"pid": worker.pid, "python": worker.python, "state": state, "job": worker.job()})
            })
            .collect();
        let troubles: serde_json::Map<_, _> = board
            .pools
            .iter()
            .filter_map(|(name, pool)| Some((name.clone(), json!(pool.restarts.hopeless()?))))
            .collect();
        json!({
            "slots": board.slots,
            "running": board.running,
            "nested": board.lent,
            "claimed": board.runs.len(),
            "ended": board.ended,
            "waited_for": self.callers.count(),
            "queued": queued,
            "workers": workers,
            "interpreters_that_fail": troubles,
            "kept": {
                "values": kept.values,
                "memory_bytes": kept.memory.used_bytes,
                "memory_limit_bytes": kept.memory.limit_bytes,
                "disk_bytes": kept.spilled_bytes,
            },
        })
    }

    /// Ends the workers in order: running calls get `seconds` to finish, then are lost.
    pub async fn stop(&self, seconds: f32) {
        self.stopping.store(true, Ordering::Relaxed);
        self.give_back_waiting().await;
        let until = Instant::now() + Duration::from_secs_f32(seconds.max(0.0));
        while self.board.lock().unwrap().running > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let workers = self.workers();
        for worker in &workers {
            match worker.job() {
                Some(_) => worker.kill(),
                None => worker.retire(),
            }
        }
        let until = Instant::now() + LEAVE_WAIT;
        while !self.workers().is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.workers().iter().for_each(|worker| worker.kill());
        self.settle(SETTLE_WAIT).await;
        self.leave_kept().await;
        if let Err(error) = self.queue.resign().await {
            tracing::debug!(%error, "the lease cannot be given up; it runs out by itself");
        }
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    /// As whom this node claims.
    pub(crate) fn me(&self) -> Claimant {
        self.queue.me()
    }

    /// Milliseconds on this executor's own clock.
    fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    fn workers(&self) -> Vec<Arc<Worker>> {
        let board = self.board.lock().unwrap();
        board
            .pools
            .values()
            .flat_map(|pool| pool.workers.values().cloned())
            .collect()
    }

    fn is_hopeless(&self) -> bool {
        self.hopeless_reason().is_some()
    }

    /// Why the default interpreter cannot run workers.
    fn hopeless_reason(&self) -> Option<String> {
        let board = self.board.lock().unwrap();
        let pool = board.pools.get("default")?;
        Some(pool.restarts.hopeless()?.to_owned())
    }
}

/// The default for `--data-threshold`.
pub const DATA_THRESHOLD: u64 = placement::THRESHOLD_BYTES;

/// 64 random bits, from the seeds that the standard library takes from the system.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}
