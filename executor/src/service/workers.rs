//! The executor's workers: started as they are lacking, replaced when they die, and what they tell.
use super::Executor;
use crate::protocol::{FromWorker, Update};
use crate::worker::{Answered, Exit, Supervisor, Worker, process::Launch};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

impl Executor {
    /// Starts workers that are lacking: of the default interpreter always, of others as calls wait for them.
    pub(super) fn raise_workers(self: &Arc<Self>) {
        if self.stopping.load(Ordering::Relaxed) {
            return;
        }
        let now_ms = self.now_ms();
        let mut starts = Vec::new();
        {
            let mut board = self.board.lock().unwrap();
            let (slots, room) = (board.slots, board.room());
            for (name, pool) in &mut board.pools {
                let wait_ms = pool.restarts.wait_ms(now_ms);
                for _ in 0..pool.lacking(name == "default", slots, room) {
                    pool.starting += 1;
                    starts.push((name.clone(), pool.python.clone(), wait_ms));
                }
            }
        }
        for (name, python, wait_ms) in starts {
            self.runtime
                .spawn(self.clone().raise_one(name, python, wait_ms));
        }
    }

    async fn raise_one(self: Arc<Self>, name: String, python: PathBuf, wait_ms: u64) {
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        let launch = Launch {
            python: python.clone(),
            environment: self.worker_environment(),
        };
        let overseer = Arc::new(Overseer(Arc::downgrade(&self)));
        match Worker::start(name.clone(), launch, overseer).await {
            Ok(worker) => {
                let mut board = self.board.lock().unwrap();
                if let Some(pool) = board.pools.get_mut(&name) {
                    pool.starting -= 1;
                    if worker.state() != crate::worker::state::State::Gone {
                        pool.workers.insert(worker.pid, worker.clone());
                    }
                }
                drop(board);
                if self.stopping.load(Ordering::Relaxed) {
                    worker.kill();
                }
            }
            Err(error) => {
                let reason = format!("{}: {error}", python.display());
                tracing::error!(python = %python.display(), %error, "a worker cannot be started");
                let now_ms = self.now_ms();
                if let Some(pool) = self.board.lock().unwrap().pools.get_mut(&name) {
                    pool.starting -= 1;
                    pool.restarts.failed(reason, now_ms);
                }
                self.after_failed_start(&name);
            }
        }
    }

    /// What a worker finds in its environment (`kitchensink.settings`).
    fn worker_environment(&self) -> Vec<(String, String)> {
        let options = &self.options;
        let mut environment = vec![
            ("KS_WORKER".to_owned(), "1".to_owned()),
            ("KS_NODE_NAME".to_owned(), options.node_name.clone()),
            ("KS_NODE_URL".to_owned(), options.node_url.clone()),
            (
                "KS_MOUNTPOINT".to_owned(),
                options.mountpoint.display().to_string(),
            ),
            (
                "KS_DATADIR".to_owned(),
                options.datadir.display().to_string(),
            ),
            ("KS_MODULES".to_owned(), options.modules.join(",")),
        ];
        if let Some(memory) = self.memory_directory() {
            environment.push(("KS_MEMORY".to_owned(), memory.display().to_string()));
        }
        if options.registered_only {
            environment.push(("KS_REGISTERED_ONLY".to_owned(), "1".to_owned()));
        }
        environment
    }

    /// A worker is ready.
    pub(super) fn welcome_worker(&self, worker: &Arc<Worker>) {
        let mut board = self.board.lock().unwrap();
        if let Some(pool) = board.pools.get_mut(&worker.python) {
            pool.restarts.started();
            pool.workers.insert(worker.pid, worker.clone());
        }
        board.idle(worker);
    }

    /// A worker's process is gone.
    pub(super) fn bury_worker(self: &Arc<Self>, worker: &Arc<Worker>, exit: &Exit) {
        let now_ms = self.now_ms();
        {
            let mut board = self.board.lock().unwrap();
            let Some(pool) = board.pools.get_mut(&worker.python) else {
                return;
            };
            pool.workers.remove(&worker.pid);
            pool.idle.retain(|idle| !Arc::ptr_eq(idle, worker));
            if !exit.failed_to_start {
                return;
            }
            let reason =
                exit.stack
                    .clone()
                    .unwrap_or_else(|| match (exit.signal, exit.exit_code) {
                        (Some(signal), _) => {
                            format!("its worker was killed by signal {signal} as it started")
                        }
                        (_, code) => format!(
                            "its worker exited with status {} as it started",
                            code.unwrap_or(-1)
                        ),
                    });
            pool.restarts.failed(reason, now_ms);
        }
        if !self.stopping.load(Ordering::Relaxed) {
            tracing::error!(
                python = worker.python,
                stack = exit.stack,
                "a worker died as it started"
            );
            self.after_failed_start(&worker.python);
        }
    }

    /// Calls that wait for an interpreter that fails again and again are failed; else another worker is tried.
    fn after_failed_start(self: &Arc<Self>, python: &str) {
        let (jobs, reason) = {
            let mut board = self.board.lock().unwrap();
            let Some(pool) = board.pools.get_mut(python) else {
                return;
            };
            match pool.restarts.hopeless().map(str::to_owned) {
                Some(reason) => (pool.waiting.drain(..).collect::<Vec<_>>(), reason),
                None => (Vec::new(), String::new()),
            }
        };
        for job in jobs {
            let message = format!(
                "node {} cannot run workers: {reason}",
                self.options.node_name
            );
            self.fail_waiting(&job, "WorkerCrashed", message);
        }
        self.raise_workers();
        self.claim_soon.notify_one();
    }
}

/// Workers tell the executor, while there is one.
struct Overseer(Weak<Executor>);

impl Supervisor for Overseer {
    fn ready(&self, worker: &Arc<Worker>) {
        if let Some(executor) = self.0.upgrade() {
            executor.fs.usage().watch(worker.pid as i32);
            executor.welcome_worker(worker);
            executor.start_calls();
            executor.refill();
        }
    }

    fn wrote(&self, worker: &Arc<Worker>, job: Option<&str>, stream: u8, data: Vec<u8>) {
        let Some(executor) = self.0.upgrade() else {
            return;
        };
        let Some(job) = job else {
            let text = String::from_utf8_lossy(&data);
            return tracing::info!(
                pid = worker.pid,
                "a worker that runs nothing wrote: {}",
                text.trim_end()
            );
        };
        executor.pass_output(job, stream, &data);
    }

    fn may_read(&self, job: &str) -> bool {
        self.0
            .upgrade()
            .is_none_or(|executor| executor.may_read(job))
    }

    fn logged(&self, _worker: &Arc<Worker>, record: FromWorker) {
        let (
            Some(executor),
            FromWorker::Log {
                job,
                level,
                logger,
                message,
                time,
            },
        ) = (self.0.upgrade(), record)
        else {
            return;
        };
        if let Some((origin, true)) = executor.origin_of(&job) {
            let node = executor.options.node_name.clone();
            let log = Update::Log {
                node,
                level,
                logger,
                message,
                time,
            };
            executor.tell(origin, &job, log);
        }
    }

    fn answered(&self, worker: &Arc<Worker>, answer: Answered) {
        if let Some(executor) = self.0.upgrade() {
            executor.take_answer(worker, answer);
        }
    }

    fn exited(&self, worker: &Arc<Worker>, exit: Exit) {
        if let Some(executor) = self.0.upgrade() {
            executor.take_exit(worker, exit);
        }
    }
}
