//! The private redis-server of a first node: a child on a unix socket, with a password and an append-only file under `.ks/redis/`.
use crate::redis_client::RedisTarget;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum RedisServerError {
    #[error(
        "redis-server is not installed; run: apt-get install redis-server (or give --redis URL)"
    )]
    NotInstalled,
    #[error("redis-server {found} is too old, 7.0 is needed")]
    TooOld { found: String },
    #[error("redis-server did not start: {0}")]
    DidNotStart(String),
}

/// The supervised child: restarted when it dies, ended with the node (PR_SET_PDEATHSIG too).
pub struct RedisServer {/* .. */}

impl RedisServer {
    pub async fn start(state_dir: &Path) -> Result<Self, RedisServerError> {
        todo!()
    }
    pub fn target(&self) -> RedisTarget {
        todo!()
    }
    pub fn socket(&self) -> PathBuf {
        todo!()
    }
    pub fn password(&self) -> String {
        todo!()
    }
    /// Ends it in order (SHUTDOWN, so that the append-only file is whole).
    pub async fn stop(self) {
        todo!()
    }
}
