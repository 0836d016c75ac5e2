//! Watches how large the workers are (`--worker-memory-limit`): one that runs a call and is over it is ended, and its call with a
//! reason; one that runs nothing is replaced by a fresh one. Looks often while calls run, and now and then while none does.
use super::Executor;
use crate::job::Event;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The same while no call runs: what a call left behind may go on in a worker.
const LOOK_AT_REST: Duration = Duration::from_secs(2);

/// Looks for as long as the executor is there.
pub(super) async fn weigh(executor: Weak<Executor>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let Some(entered) = executor.upgrade().map(|it| Arc::clone(&it.entered)) else {
        return;
    };
    loop {
        looks.tick().await;
        let runs = match executor.upgrade() {
            Some(executor) => {
                executor.weigh_workers(executor.options.worker_memory_limit);
                !executor.board.lock().unwrap().runs.is_empty()
            }
            None => return,
        };
        if !runs {
            // A call, or the time for another look.
            let _ = tokio::time::timeout(LOOK_AT_REST, entered.notified()).await;
        }
    }
}

impl Executor {
    fn weigh_workers(self: &std::sync::Arc<Self>, limit_bytes: u64) {
        for worker in self.workers() {
            let Some(bytes) = resident_bytes(worker.pid).filter(|&bytes| bytes > limit_bytes)
            else {
                continue;
            };
            match worker.job() {
                Some(job) => {
                    if let Some(run) = self.board.lock().unwrap().runs.get_mut(&job) {
                        run.grown_to_bytes = run.grown_to_bytes.max(bytes);
                    }
                    tracing::warn!(
                        pid = worker.pid,
                        bytes,
                        job,
                        "a worker is over its memory limit: it is ended"
                    );
                    self.happen(&job, Event::OverMemory);
                }
                None => {
                    tracing::info!(
                        pid = worker.pid,
                        bytes,
                        "a worker that runs nothing is over its memory limit: it is replaced"
                    );
                    worker.retire();
                }
            }
        }
    }
}

/// Memory that a process has of its own and shares, as the kernel counts it. `None`: it is gone.
fn resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = text.split_ascii_whitespace().skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    // Files that are mapped (arguments of calls, libraries) are not the worker's.
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_size_and_none_has_none() {
        let before = resident_bytes(std::process::id()).unwrap();
        let large = vec![1u8; 64 << 20];
        let after = resident_bytes(std::process::id()).unwrap();
        assert!(
            after >= before + (large.len() as u64) / 2,
            "{before} {after}"
        );
        assert_eq!(resident_bytes(u32::MAX - 1), None);
    }
}
