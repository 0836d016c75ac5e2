//! For tests of this and other crates: a private redis-server in a directory of its own under the system's temporary
//! directory. Ends and removes everything when it is stopped or dropped.
use crate::redis_client::RedisTarget;
use crate::redis_server::{RedisServer, RedisServerError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A Redis for one test.
pub struct TestRedis {
    server: Option<RedisServer>,
    directory: PathBuf,
}

impl TestRedis {
    /// Starts it; panics when it cannot.
    pub async fn start() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ks-test-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let server = RedisServer::start(&directory)
            .await
            .expect("a private redis-server starts");
        Self {
            server: Some(server),
            directory,
        }
    }

    /// How to connect to it.
    pub fn target(&self) -> RedisTarget {
        self.server().target()
    }

    /// The server itself.
    pub fn server(&self) -> &RedisServer {
        self.server.as_ref().expect("it runs")
    }

    /// Where it keeps its state (as `.ks` does for a node).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Kills the redis-server process; its supervisor starts another.
    pub fn kill(&self) {
        let pid = self.server().pid().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Ends it in order; `restart` brings it back.
    pub async fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// Ends it in order, where it runs, then starts it again on the same data.
    pub async fn restart(&mut self) -> Result<(), RedisServerError> {
        self.end().await;
        self.server = Some(RedisServer::start(&self.directory).await?);
        Ok(())
    }
}

impl Drop for TestRedis {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.end_now();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
