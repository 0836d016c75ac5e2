//! Calls that wait for calls of their own: while one does, its place is another's, or all workers could wait for calls that no
//! worker is left to run.
//!
//! Who takes part: the client in the worker says when its call begins to wait and when it goes on (`Ask::Nested`); `board` lends the
//! place. What always holds: no more than `--max-nested` places of a node are lent; the call after that is refused to wait, as an error
//! in its own code. Calls made by a call go before it (the client gives them a higher priority), and only such run in places that are lent.
use super::Executor;
use super::board::TooManyNested;
use std::sync::Arc;
use std::time::Duration;

/// A worker that was started for a lent place leaves when no call was started for so long.
const SPARE_FOR: Duration = Duration::from_secs(10);

impl Executor {
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
