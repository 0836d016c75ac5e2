//! Room for jobs in Redis: what does not fit goes as files, or waits here.
//!
//! Who takes part: the accepting node's submissions (`accept`), and the records of ends (`tend`). What always holds: nothing is
//! recorded beyond `queue::limits`; a submission waits `ROOM_WAIT` for room at the most, counted from when there was none for
//! any, and is refused then. What is sent faster waits at the client, as its connection is read no further meanwhile.
use super::Executor;
use super::accept::SubmitError;
use super::payload::{PayloadError, payload_of};
use super::tend::Closing;
use crate::protocol::Update;
use crate::queue::limits::SMALL_BYTES;
use crate::queue::record::{StoredCall, StoredEnd, decode, encode};
use crate::queue::{Full, QueueError, Submission, Submitted};
use ks_fs::record::Hash;
use ks_fs::redis_client::RedisError;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long submissions wait for room: less than clients wait for the answer (`ACCEPT_SECONDS`).
pub const ROOM_WAIT: Duration = Duration::from_secs(20);
/// Between the first two looks whether there is room; it doubles up to the next constant.
const LOOK_FIRST: Duration = Duration::from_millis(20);
/// Between two looks whether there is room, at the most.
const LOOK_LONGEST: Duration = Duration::from_millis(500);

/// Since when there has been none.
#[derive(Default)]
pub struct Room {
    full_since: Mutex<Option<Instant>>,
}

impl Room {
    /// Something was recorded.
    fn found(&self) {
        *self.full_since.lock().unwrap() = None;
    }

    /// There was no room. Returns for how long there has been none.
    fn lacked(&self, now: Instant) -> Duration {
        let mut full_since = self.full_since.lock().unwrap();
        now.saturating_duration_since(*full_since.get_or_insert(now))
    }
}

/// Placed calls and what is recorded of each, in the same order.
pub(super) struct Batch {
    pub(super) calls: Vec<Arc<StoredCall>>,
    pub(super) submissions: Vec<Submission>,
}

/// A batch that was recorded, and when that was asked for.
pub(super) struct Recorded {
    pub(super) submitted: Submitted,
    pub(super) asked: Instant,
}

impl Executor {
    /// Records a batch as soon as there is room for it.
    pub(super) async fn record_in_room(
        &self,
        functions: &[(Vec<u8>, Vec<u8>)],
        batch: &mut Batch,
    ) -> Result<Recorded, SubmitError> {
        let (mut pause, mut may_spill) = (LOOK_FIRST, true);
        loop {
            let asked = Instant::now();
            let submitted = self.record_now(functions, &batch.submissions).await?;
            let Some(full) = submitted.full else {
                self.room.found();
                return Ok(Recorded { submitted, asked });
            };
            if full != Full::Jobs && std::mem::take(&mut may_spill) && self.spill(batch).await? {
                continue;
            }
            let stopping = self.stopping.load(Ordering::Relaxed);
            if stopping || self.room.lacked(Instant::now()) >= ROOM_WAIT {
                return Err(SubmitError::Full(full, self.queue.limits()));
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LOOK_LONGEST);
        }
    }

    async fn record_now(
        &self,
        functions: &[(Vec<u8>, Vec<u8>)],
        submissions: &[Submission],
    ) -> Result<Submitted, QueueError> {
        let want = self.claimable();
        match self.queue.submit(functions, submissions, want).await {
            // It may have been carried out: sent again, what is known is not touched. What it claimed for us comes back (`reconcile`).
            Err(QueueError::Redis(RedisError::Lost(_) | RedisError::Timeout(_))) => {
                self.unsure.store(true, Ordering::Relaxed);
                self.queue.submit(functions, submissions, 0usize).await
            }
            other => other,
        }
    }

    /// Makes files of the batch's arguments, but for the smallest. `false`: there were none.
    async fn spill(&self, batch: &mut Batch) -> Result<bool, PayloadError> {
        let mut blobs: Vec<Hash> = Vec::new();
        for (call, submission) in batch.calls.iter_mut().zip(&mut batch.submissions) {
            if submission.body.len() <= SMALL_BYTES {
                continue;
            }
            let call = Arc::make_mut(call);
            let made = self.spill_payload(&mut call.call.args).await?;
            if !made.is_empty() {
                submission.body = encode(call);
                blobs.extend(made);
            }
        }
        self.need_blobs(&blobs).await;
        Ok(!blobs.is_empty())
    }

    /// Makes files of the results among ends to be recorded where Redis keeps many. One for which that fails is recorded as it is.
    pub(super) async fn spill_ends(&self, closings: &mut [Closing]) {
        if !self.queue.ends_are_many() {
            return;
        }
        let mut blobs: Vec<Hash> = Vec::new();
        for closing in closings {
            if closing.finish.ended.len() <= SMALL_BYTES {
                continue;
            }
            match self.spilled_end(&closing.finish.ended).await {
                Ok((ended, made)) if !made.is_empty() => {
                    closing.finish.ended = ended;
                    blobs.extend(made);
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(job = closing.finish.job, %error, "a result cannot be kept as a file");
                }
            }
        }
        self.need_blobs(&blobs).await;
    }

    async fn spilled_end(&self, ended: &[u8]) -> Result<(Vec<u8>, Vec<Hash>), PayloadError> {
        let Ok(mut end) = decode::<StoredEnd>(ended) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let Update::Ended { outcome, .. } = &mut end.update else {
            return Ok((Vec::new(), Vec::new()));
        };
        let made = match payload_of(outcome) {
            Some(payload) => self.spill_payload(payload).await?,
            None => Vec::new(),
        };
        Ok((encode(&end), made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_room_counts_from_when_there_was_none() {
        let room = Room::default();
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(room.lacked(begun), Duration::ZERO);
        assert_eq!(room.lacked(after(7)), Duration::from_secs(7));
        room.found();
        assert_eq!(room.lacked(after(30)), Duration::ZERO);
    }
}
