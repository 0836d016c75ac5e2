//! The thread that calls go through: sessions of the control socket, the queue's connection, the workers' sockets.
//!
//! One thread of their own, as a call is a chain of short steps: where the next step runs on the thread that made it ready,
//! nobody has to be woken for it. What takes long (disk, hashing) leaves it by `spawn_blocking` or `block_in_place`.
use std::future::Future;
use tokio::runtime::{Builder, Handle, Runtime};

/// The thread, as a runtime. It ends when this is dropped.
pub struct CallsThread(Option<Runtime>);

impl CallsThread {
    /// Starts it.
    pub fn start() -> std::io::Result<Self> {
        // Not a current-thread runtime: `block_in_place` has to work on it.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("ks-calls")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// What starts tasks on it.
    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("there until it is dropped").handle()
    }

    /// Runs something there, and waits for it.
    pub async fn run<F>(&self, work: F) -> anyhow::Result<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        Ok(self.handle().spawn(work).await?)
    }
}

impl Drop for CallsThread {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
