//! Calls that wait for calls of their own: while one does, its place is another's, or all workers could wait for calls that no
//! worker is left to run.
//!
//! Who takes part: the client in the worker says when its call begins to wait and when it goes on (`Ask::Nested`); `board` lends the
//! place. What always holds: no more than `--max-nested` places of a node are lent; the call after that is refused to wait, as an error
//! in its own code. Calls made by a call go before it (the client gives them a higher priority), and only such run in places that are lent.
//!
//! A call that is stopped (cancelled, out of time or memory), whose worker dies or whose node is lost takes the calls that it made, and that
//! have not ended, with it: they are cancelled. Those of a call that ended by itself, returning or raising, go on.
use super::Executor;
use super::board::TooManyNested;
use crate::job::Ending;
use crate::protocol::{Call, JobId};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A worker that was started for a lent place leaves when no call was started for so long.
const SPARE_FOR: Duration = Duration::from_secs(10);

/// Stopped calls that are remembered: what they sent last may arrive after their end.
const STOPPED_MAX: usize = 256;

/// Calls that were stopped of late, the oldest first.
#[derive(Default)]
pub(super) struct Stopped(VecDeque<JobId>);

impl Stopped {
    fn add(&mut self, job: &str) {
        if self.0.len() == STOPPED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(job.to_owned());
    }

    /// It runs (again): what it makes from now on is its own.
    pub(super) fn begins(&mut self, job: &str) {
        self.0.retain(|stopped| stopped != job);
    }
}

/// The calls that were made by calls: which, by which.
pub(super) fn inner_of(calls: &[Call]) -> Vec<(JobId, JobId)> {
    let pair = |call: &Call| Some((call.job.clone(), call.outer.clone()?));
    calls.iter().filter_map(pair).collect()
}

impl Executor {
    /// A call ends here: those that it made are cancelled where it did not end by itself.
    pub(super) fn stop_inner(self: &Arc<Self>, job: &str, ending: Ending) {
        match ending {
            // Whoever took the claim of a node that was thought dead has seen to them.
            Ending::AsAnswered | Ending::Withdrawn => {}
            Ending::Crashed | Ending::Cancelled | Ending::TimedOut | Ending::OverMemory => {
                self.stopped.lock().unwrap().add(job);
                self.cancel_inner(job.to_owned());
            }
        }
    }

    /// Cancels the calls that a call made, in the background.
    pub(super) fn cancel_inner(self: &Arc<Self>, job: JobId) {
        let this = self.clone();
        tokio::spawn(async move {
            let cancelled = match this.queue.inner(&job).await {
                Ok(inner) if inner.is_empty() => return,
                Ok(inner) => this.cancel(&inner).await,
                Err(error) => Err(error),
            };
            if let Err(error) = cancelled {
                tracing::warn!(%error, job, "the calls that a stopped call made cannot be cancelled: they go on");
            }
        });
    }

    /// Calls were recorded: those are cancelled whose outer call was stopped before that.
    pub(super) fn cancel_late(self: &Arc<Self>, mut inner: Vec<(JobId, JobId)>) {
        if inner.is_empty() {
            return;
        }
        let stopped = self.stopped.lock().unwrap();
        inner.retain(|(_, outer)| stopped.0.contains(outer));
        drop(stopped);
        if inner.is_empty() {
            return;
        }
        let late: Vec<JobId> = inner.into_iter().map(|(job, _)| job).collect();
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.cancel(&late).await {
                tracing::warn!(%error, "calls of a call that was stopped cannot be cancelled: they go on");
            }
        });
    }

    /// A call that runs here waits for calls of its own from now on, or goes on. Errors: `NestedTooDeep`, with the reason.
    pub(crate) fn nested(
        self: &Arc<Self>,
        job: &str,
        waits: bool,
    ) -> Result<(), (&'static str, String)> {
        if !waits {
            self.board.lock().unwrap().take_back(job);
            return Ok(());
        }
        let lent = self.board.lock().unwrap().lend(job);
        lent.map_err(|TooManyNested(most)| {
            let reason = format!(
                "this call waits for a call of its own, and so do {most} others on node {}: that is the most (--max-nested); \
                 make the inner calls from the client, or allow more",
                self.options.node_name
            );
            ("NestedTooDeep", reason)
        })?;
        self.start_calls();
        self.expect_more();
        Ok(())
    }

    /// Lets a worker leave that was started for a lent place, one at a time.
    pub(super) fn retire_spare(&self) {
        let spare = self.board.lock().unwrap().spare(SPARE_FOR);
        if let Some(worker) = spare {
            worker.retire();
        }
    }
}
