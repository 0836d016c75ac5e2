//! The one connection to Redis: multiplexed, RESP3, reconnecting, every command with a deadline.
//! Used by the catalog and by the executor.
use ks_transport::pool::Peer;
use std::sync::Arc;
use std::time::Duration;

/// Where Redis is.
#[derive(Clone)]
pub enum RedisTarget {
    /// `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, and the seeds' `tcp://host:port?db=9`.
    Url(String),
    /// Carried by a peer through its QUIC connection (`--join`). Auth is the tunnel's (the serving node's Redis password comes as `password`).
    Through {
        peer: Peer,
        password: Option<String>,
        db: i64,
    },
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    #[error("redis does not answer ({0})")]
    Unreachable(String),
    #[error("redis did not answer within {0:?}")]
    Timeout(Duration),
    /// A script or command was refused; the text is Redis's.
    #[error("redis: {0}")]
    Refused(String),
    #[error("redis is too old: {found}, at least {needed} is needed")]
    TooOld { found: String, needed: &'static str },
}

/// What Redis pushes to us.
#[derive(Clone, Debug)]
pub enum Push {
    /// Keys that we read have changed.
    Invalidated(Vec<Vec<u8>>),
    /// The connection was lost or made anew: nothing cached can be trusted.
    Reset,
    /// A message on a channel.
    Message { channel: Vec<u8>, payload: Vec<u8> },
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Redis {/* .. */}

/// A Lua script kept as a `.lua` file: `Script::new(include_str!("x.lua"))`.
pub struct Script {/* source, sha1 */}
impl Script {
    pub fn new(source: &'static str) -> Self {
        todo!()
    }
}

impl Redis {
    /// Connects; checks the version (7.0 and up); `tracking`: CLIENT TRACKING ON NOLOOP. Pushes go to `on_push` (must not block).
    /// A lost connection is made anew in the background (back-off 50 ms to 2 s); commands meanwhile wait up to their deadline.
    pub async fn connect(
        target: RedisTarget,
        tracking: bool,
        on_push: Arc<dyn Fn(Push) + Send + Sync>,
    ) -> Result<Self, RedisError> {
        todo!()
    }
    pub async fn run(&self, command: &redis::Cmd) -> Result<redis::Value, RedisError> {
        todo!()
    }
    pub async fn pipe(&self, pipeline: &redis::Pipeline) -> Result<Vec<redis::Value>, RedisError> {
        todo!()
    }
    /// EVALSHA, loading the script when Redis does not know it.
    pub async fn script(
        &self,
        script: &Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> Result<redis::Value, RedisError> {
        todo!()
    }
    /// Subscribes; survives reconnects.
    pub async fn subscribe(&self, channel: &[u8]) -> Result<(), RedisError> {
        todo!()
    }
    pub fn is_connected(&self) -> bool {
        todo!()
    }
    /// A blocking command's own connection (XREAD BLOCK and the like).
    pub async fn dedicated(&self) -> Result<redis::aio::MultiplexedConnection, RedisError> {
        todo!()
    }
}
