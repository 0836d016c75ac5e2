//! The executor of a node: accepts calls, places them, claims and runs them, tells their callers.
use ks_fs::filesystem::FileSystem;
use ks_fs::redis_client::RedisTarget;
use ks_transport::{
    endpoint::{Handler, StreamKind},
    pool::PeerPool,
};
use std::{path::PathBuf, sync::Arc};

/// What an executor is started with.
#[derive(Clone, Debug)]
pub struct ExecutorOptions {
    /// As others reach it ("host:port"); calls see it in their settings.
    pub node_url: String,
    pub node_name: String,
    pub mountpoint: PathBuf,
    pub datadir: PathBuf,
    pub num_workers: usize,
    /// Beside `default` and `data`.
    pub queues: Vec<String>,
    /// Interpreters by name; `default` is always there.
    pub pythons: Vec<(String, PathBuf)>,
    pub modules: Vec<String>,
    pub registered_only: bool,
    /// Bytes; a node that would have to fetch more may not run the call.
    pub data_threshold: u64,
}

impl ExecutorOptions {
    /// What belongs in this node's `NodeInfo::queues`: every queue served, and `python:NAME` for each interpreter beside `default`.
    pub fn served(&self) -> Vec<String> {
        let mut served = vec!["default".to_owned(), "data".to_owned()];
        served.extend(self.queues.iter().cloned());
        served.extend(
            self.pythons
                .iter()
                .filter(|(name, _)| name != "default")
                .map(|(name, _)| format!("python:{name}")),
        );
        let mut seen = std::collections::HashSet::new();
        served.retain(|name| seen.insert(name.clone()));
        served
    }
}

/// The executor; one a node.
pub struct Executor {/* .. */}

#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    #[error("{python}: cannot run workers: {reason}")]
    Python { python: PathBuf, reason: String },
    #[error("the control socket {path}: {source}")]
    Socket {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Redis(#[from] ks_fs::redis_client::RedisError),
}

impl Executor {
    /// Starts workers (`redis`: the executor keeps a connection of its own, so that calls and the catalog do not wait for each other) (in the background; the first is awaited when a call needs it).
    pub async fn start(
        options: ExecutorOptions,
        fs: Arc<FileSystem>,
        pool: PeerPool,
        redis: RedisTarget,
    ) -> Result<Arc<Self>, ExecutorError> {
        todo!()
    }
    /// The peers' and clients' side for the endpoint: CALLS (nodes), SESSION (clients and nodes).
    pub fn handlers(self: &Arc<Self>) -> Vec<(StreamKind, Arc<dyn Handler>)> {
        todo!()
    }
    /// For `ks status`: workers (pid, state, job), queue lengths, jobs run.
    pub async fn status(&self) -> serde_json::Value {
        todo!()
    }
    /// Ends the workers in order: running calls get `seconds` to finish, then are lost.
    pub async fn stop(&self, seconds: f32) {
        todo!()
    }
}
