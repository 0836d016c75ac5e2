//! Nodes without a mount, in this process: real Redis, real QUIC, real workers' processes; and a client that speaks the protocol.
use super::fake_worker;
use bytes::Bytes;
use ks_executor::frames::{self, Decoder};
use ks_executor::protocol::*;
use ks_executor::service::{DATA_THRESHOLD, Executor, ExecutorOptions};
use ks_executor::session::{ControlSocket, NodeFacts};
use ks_fs::catalog::Catalog;
use ks_fs::filesystem::{Caller, FileSystem, FileSystemOptions};
use ks_fs::record::{NodeId, NodeInfo, ROOT};
use ks_fs::redis_client::RedisTarget;
use ks_fs::store::Store;
use ks_transport::endpoint::Endpoint;
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::PeerPool;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// Every wait in these tests ends by then.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A node.
pub struct TestNode {
    pub name: String,
    pub id: NodeId,
    pub fs: Arc<FileSystem>,
    pub catalog: Catalog,
    pub executor: Arc<Executor>,
    pub endpoint: Endpoint,
    pub socket: PathBuf,
    control: Option<ControlSocket>,
    heartbeat: tokio::task::JoinHandle<()>,
    directory: tempfile::TempDir,
}

struct NoFacts;

impl NodeFacts for NoFacts {
    fn status(&self) -> ks_transport::BoxFuture<'_, serde_json::Value> {
        Box::pin(async { serde_json::json!({"state": "tested"}) })
    }
    fn shutdown(&self) {}
}

/// What is special about a node.
#[derive(Clone)]
pub struct Special {
    pub workers: usize,
    pub registered_only: bool,
    pub python: PathBuf,
    pub queues: Vec<String>,
}

impl Default for Special {
    fn default() -> Self {
        Self {
            workers: 2,
            registered_only: false,
            python: fake_worker(),
            queues: Vec::new(),
        }
    }
}

impl TestNode {
    pub async fn start(key: &ClusterKey, redis: RedisTarget, name: &str, special: Special) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let identity = Identity::node(key, name).unwrap();
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), &identity).unwrap();
        let pool = PeerPool::new(endpoint.clone());
        let changes: Arc<OnceLock<Arc<FileSystem>>> = Arc::default();
        let told = changes.clone();
        let on_change = Arc::new(move |ino| {
            if let Some(fs) = told.get() {
                fs.changed(ino);
            }
        });
        let catalog = Catalog::open(redis.clone(), store.node_id(), on_change)
            .await
            .unwrap();
        let options = ExecutorOptions {
            node_url: endpoint.local_addr().to_string(),
            node_name: name.into(),
            mountpoint: "/ks".into(),
            datadir: directory.path().to_owned(),
            num_workers: special.workers,
            queues: special.queues,
            pythons: vec![("default".into(), special.python)],
            modules: vec!["served".into()],
            registered_only: special.registered_only,
            data_threshold: DATA_THRESHOLD,
            result_ttl: ks_executor::queue::RECORD_KEEP,
            worker_memory_limit: u64::MAX,
            max_nested: 4,
            max_queued: 1_000_000,
        };
        catalog.register(info(&options)).await.unwrap();
        let beating = catalog.clone();
        let heartbeat = tokio::spawn(async move {
            loop {
                let _ = beating.heartbeat(1, 2).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let fs_options = FileSystemOptions {
            datadir: directory.path().to_owned(),
            node_name: name.into(),
            keep_free_bytes: 0,
            memory_limit_bytes: 64 << 20,
            read_only: false,
            passthrough: false,
            keeping: Default::default(),
            watch: false,
        };
        let fs = FileSystem::start(fs_options, store.clone(), catalog.clone(), pool.clone())
            .await
            .unwrap();
        let _ = changes.set(fs.clone());
        let executor = Executor::start(options, fs.clone(), pool, redis)
            .await
            .unwrap();
        let mut handlers = fs.handlers();
        handlers.extend(executor.handlers());
        endpoint.serve(handlers);
        let socket = directory.path().join(".ks/control.sock");
        let control = ControlSocket::bind(&socket, executor.clone(), Arc::new(NoFacts)).unwrap();
        Self {
            name: name.into(),
            id: store.node_id(),
            fs,
            catalog,
            executor,
            endpoint,
            socket,
            control: Some(control),
            heartbeat,
            directory,
        }
    }

    /// Makes a file in the tree's root, held by this node.
    pub async fn write_file(&self, name: &str, data: &[u8]) {
        let who = Caller::default();
        let flags = libc::O_WRONLY;
        let (_, opened) = self
            .fs
            .create(ROOT, name.as_bytes(), 0o644, flags, who)
            .await
            .unwrap();
        let handle = opened.handle();
        if let ks_fs::filesystem::Opened::Passthrough { file, .. } = &opened {
            std::os::unix::fs::FileExt::write_all_at(&**file, data, 0).unwrap();
        } else {
            for (index, piece) in data.chunks(1 << 20).enumerate() {
                let offset = (index as u64) << 20;
                self.fs
                    .write(handle, offset, Bytes::copy_from_slice(piece))
                    .await
                    .unwrap();
            }
        }
        self.fs.flush(handle).await.unwrap();
        self.fs.release(handle).await;
    }

    pub async fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let mut client = Client {
            stream,
            decoder: Decoder::default(),
            requests: 0,
            unread: Vec::new(),
        };
        let hello = Ask::Hello {
            version: VERSION,
            program: "test".into(),
        };
        assert!(matches!(client.ask(hello).await, Answer::Hello { .. }));
        client
    }

    /// Where its files are.
    pub fn executor_datadir(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Waits until its workers are ready.
    pub async fn ready(&self) {
        let ready = async {
            loop {
                let status = self.executor.status().await;
                let workers = status["workers"].as_array().unwrap().clone();
                let idle = workers
                    .iter()
                    .filter(|worker| worker["state"] == "idle")
                    .count();
                if idle as u64 == status["slots"].as_u64().unwrap() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, ready)
            .await
            .expect("workers get ready");
    }

    pub async fn stop(mut self) {
        drop(self.control.take());
        self.executor.stop(1.0).await;
        self.heartbeat.abort();
        self.fs.stop().await;
        let _ = self.catalog.deregister().await;
        self.endpoint.close().await;
        drop(self.directory);
    }
}

fn info(options: &ExecutorOptions) -> NodeInfo {
    NodeInfo {
        name: options.node_name.clone(),
        address: options.node_url.clone(),
        mountpoint: "/ks".into(),
        datadir: options.datadir.display().to_string(),
        incarnation: 1,
        version: "test".into(),
        workers: options.num_workers as u32,
        queues: options.served(),
        read_only: false,
        carries_redis: false,
        started: 0,
        free_bytes: 1,
        total_bytes: 2,
    }
}

/// A client of a node.
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    requests: u64,
    unread: Vec<(Tell, Vec<Bytes>)>,
}

impl Client {
    pub async fn send(&mut self, body: Ask, segments: Vec<Bytes>) -> u64 {
        self.requests += 1;
        let request = Request {
            request: self.requests,
            body,
        };
        for chunk in frames::frame(&request, segments) {
            self.stream.write_all(&chunk).await.unwrap();
        }
        self.requests
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None`: the node ended the connection.
    pub async fn next(&mut self) -> Option<(Tell, Vec<Bytes>)> {
        let read = tokio::time::timeout(DEADLINE, self.decoder.read(&mut self.stream)).await;
        let frame = read.expect("a frame in time").ok()??;
        Some((frames::header(&frame).unwrap(), frame))
    }

    pub async fn ask(&mut self, body: Ask) -> Answer {
        self.ask_with(body, Vec::new()).await
    }

    pub async fn ask_with(&mut self, body: Ask, segments: Vec<Bytes>) -> Answer {
        let asked = self.send(body, segments).await;
        loop {
            let (tell, frame) = self.next().await.expect("the connection stands");
            match tell {
                Tell::Reply { request, answer } if request == asked => return answer,
                other => self.unread.push((other, frame)),
            }
        }
    }

    pub async fn submit(&mut self, calls: Vec<Call>) {
        let answer = self
            .ask(Ask::Submit {
                functions: Vec::new(),
                calls,
            })
            .await;
        assert!(matches!(answer, Answer::Accepted), "{answer:?}");
    }

    /// The next update of any job.
    pub async fn update(&mut self) -> (String, Update, Vec<Bytes>) {
        loop {
            let (tell, frame) = match self.unread.is_empty() {
                true => self.next().await.expect("the connection stands"),
                false => self.unread.remove(0),
            };
            if let Tell::Update { job, update } = tell {
                return (job, update, frame);
            }
        }
    }

    /// All updates of a job until its end; those of others are lost.
    pub async fn follow(&mut self, wanted: &str) -> (Vec<Update>, Outcome, Report) {
        let mut before = Vec::new();
        loop {
            let (job, update, _) = self.update().await;
            if job != wanted {
                continue;
            }
            match update {
                Update::Ended { outcome, report } => return (before, outcome, report),
                other => before.push(other),
            }
        }
    }

    /// Runs one call to its end.
    pub async fn run(&mut self, call: Call) -> (Outcome, Report) {
        let job = call.job.clone();
        self.submit(vec![call]).await;
        let (_, outcome, report) = self.follow(&job).await;
        (outcome, report)
    }
}

/// A job's name.
pub fn job(number: usize) -> String {
    format!("{number:032x}")
}

/// A call of the fake worker's function `name`.
pub fn call(number: usize, name: &str) -> Call {
    Call {
        job: job(number),
        name: name.into(),
        function: FunctionRef::Name("served:f".into()),
        format: "raw".into(),
        args: Payload {
            parts: vec![Part::Inline(format!("args {number}").into_bytes().into())],
        },
        paths: Vec::new(),
        locality: Vec::new(),
        mountpoint: Some(b"/ks".to_vec().into()),
        queue: "default".into(),
        node: None,
        timeout_ms: None,
        retries: 0,
        priority: 0,
        data_threshold: None,
        no_route_data: false,
        intermediate_results: true,
        paced: false,
        kept: Vec::new(),
        keep: None,
        outer: None,
        python: None,
        texts: Vec::new(),
    }
}

/// What an outcome says, short.
pub fn text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Returned(payload) => match &payload.parts[..] {
            [Part::Inline(bytes)] => String::from_utf8_lossy(bytes).into_owned(),
            parts => format!("{parts:?}"),
        },
        Outcome::Raised { type_name, .. } => format!("raised {type_name}"),
        Outcome::Failed { kind, message, .. } => format!("{kind}: {message}"),
    }
}
