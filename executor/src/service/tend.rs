//! What the executor does in the background: claims, closes records, renews its lease, takes over from the dead, hears what it is told.
use super::{Executor, run};
use crate::queue::{self, Finish, Finished, LEASE, Next, RENEWAL, Want};
use ks_fs::redis_client::Push;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Messages from Redis that were not looked at yet; when there are more, everything is looked at.
pub const HEARD_MAX: usize = 16_384;
/// Calls claimed ahead are given back when no worker was free for so long.
const STUCK: Duration = Duration::from_millis(100);
/// An interpreter that cannot start: others have this long to take the calls first.
const HOPELESS_WAIT: Duration = Duration::from_secs(3);
/// Records of calls whose callers have been told are closed a moment later, several at once: not between a caller's calls.
const GATHER: Duration = Duration::from_millis(2);
/// So many are closed without waiting for more.
const GATHERED_MAX: usize = 128;
/// After Redis did not answer.
const RETRY_WAIT: Duration = Duration::from_millis(300);
/// Ends that are looked for at each renewal, in case no message came of them.
const LOOKED_AT_MAX: usize = 1_000;
/// How often payload files that nobody needs are removed.
const SWEEP: Duration = Duration::from_secs(600);

/// A record to be closed.
pub struct Closing {
    /// How.
    pub finish: Finish,
    /// The caller has been told.
    pub was_told: bool,
}

/// Records to be closed, and who waits for there to be some.
#[derive(Default)]
pub struct Closings {
    waiting: Mutex<Vec<Closing>>,
    /// Those of the batch that Redis is asked to close.
    under_way: Mutex<Vec<String>>,
    some: Notify,
    /// There is one that must not wait, or there are many.
    urgent: Notify,
}

impl Closings {
    /// Adds one. There are never more than calls were claimed.
    pub fn add(&self, closing: Closing) {
        let is_urgent = !closing.was_told;
        let count = {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.push(closing);
            waiting.len()
        };
        if count == 1 {
            self.some.notify_one();
        }
        if is_urgent || count >= GATHERED_MAX {
            self.urgent.notify_one();
        }
    }

    /// Waits until there are some to be closed, and for more to come with them.
    async fn gather(&self) {
        if self.waiting.lock().unwrap().is_empty() {
            self.some.notified().await;
        }
        let _ = tokio::time::timeout(GATHER, self.urgent.notified()).await;
    }

    fn take(&self) -> Vec<Closing> {
        let mut waiting = self.waiting.lock().unwrap();
        let count = waiting.len().min(queue::BATCH_JOBS_MAX);
        let batch: Vec<_> = waiting.drain(..count).collect();
        let jobs = batch.iter().map(|closing| closing.finish.job.clone());
        *self.under_way.lock().unwrap() = jobs.collect();
        batch
    }

    /// How many are not closed yet.
    pub fn count(&self) -> usize {
        self.waiting.lock().unwrap().len() + self.under_way.lock().unwrap().len()
    }

    /// Which are not closed yet.
    pub fn jobs(&self) -> HashSet<String> {
        let waiting = self.waiting.lock().unwrap();
        let mut jobs: HashSet<String> = waiting
            .iter()
            .map(|closing| closing.finish.job.clone())
            .collect();
        jobs.extend(self.under_way.lock().unwrap().iter().cloned());
        jobs
    }
}

/// Where Redis's pushes go in, where they are heard, and who is told when some were lost.
type Ears = (
    Arc<dyn Fn(Push) + Send + Sync>,
    mpsc::Receiver<Push>,
    Arc<Notify>,
);

/// Passes what Redis pushes to `hear`; never blocks.
pub(super) fn ears() -> Ears {
    let (send, receive) = mpsc::channel(HEARD_MAX);
    let deaf = Arc::new(Notify::new());
    let overflow = deaf.clone();
    let on_push = Arc::new(move |push| {
        if send.try_send(push).is_err() {
            overflow.notify_one();
        }
    });
    (on_push, receive, deaf)
}

/// Hears what other nodes say.
pub(super) async fn hear(
    executor: Weak<Executor>,
    mut heard: mpsc::Receiver<Push>,
    deaf: Arc<Notify>,
) {
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = heard.recv_many(&mut batch, 512) => if count == 0 { return },
            () = deaf.notified() => batch.push(Push::Reset),
        }
        let Some(executor) = executor.upgrade() else {
            return;
        };
        let mut ended = Vec::new();
        for push in batch.drain(..) {
            match push {
                Push::Message { payload, .. } => executor.heed(&payload, &mut ended),
                Push::Reset => {
                    executor.expect_more();
                    executor.look_soon.notify_one();
                }
                Push::Invalidated(_) => {}
            }
        }
        if !ended.is_empty() {
            tokio::spawn(async move { executor.look_after(&ended).await });
        }
    }
}

impl Executor {
    /// One message on `ks:wake` or `ks:wake:<node>`.
    fn heed(self: &Arc<Self>, payload: &[u8], ended: &mut Vec<String>) {
        let Ok(text) = std::str::from_utf8(payload) else {
            return;
        };
        let Some(kind) = text.get(..1) else { return };
        let rest = &text[1..];
        match kind {
            "q" => self.expect_more(),
            "e" => ended.push(rest.to_owned()),
            "c" if !self.cancel_here(rest) => {
                self.board.lock().unwrap().cancel_early(rest.to_owned());
            }
            "o" => {
                if let Some((node, job)) = rest.split_at_checked(16)
                    && let Ok(node) = node.parse()
                {
                    self.redirect(job, node);
                }
            }
            "k" => self.heed_forgotten(rest),
            _ => {}
        }
    }

    /// There may be something to claim.
    pub(super) fn expect_more(&self) {
        self.more.store(true, Ordering::Relaxed);
        self.claim_soon.notify_one();
    }

    /// A call ended: others are claimed, where there may be some, and not for each that ends where they are short.
    pub(super) fn refill(&self) {
        if self.more.load(Ordering::Relaxed) && self.board.lock().unwrap().is_low() {
            self.claim_soon.notify_one();
        }
    }

    /// How many calls may be claimed now.
    pub(super) fn claimable(&self) -> Want {
        if self.stopping.load(Ordering::Relaxed) || self.is_hopeless() {
            return Want::from(0);
        }
        let mut want = self.board.lock().unwrap().want();
        want.jobs = want.jobs.min(queue::BATCH_JOBS_MAX);
        want
    }
}

/// Claims calls whenever there may be some and a slot is free.
pub(super) async fn claim(executor: Weak<Executor>) {
    let mut wait: Option<Duration> = None;
    let Some(wake) = executor
        .upgrade()
        .map(|executor| executor.claim_soon.clone())
    else {
        return;
    };
    loop {
        match wait {
            Some(wait) => drop(tokio::time::timeout(wait, wake.notified()).await),
            None => wake.notified().await,
        }
        let Some(executor) = executor.upgrade() else {
            return;
        };
        wait = executor.claim_once().await;
    }
}

impl Executor {
    /// Claims what can be; returns when to come again by itself.
    async fn claim_once(self: &Arc<Self>) -> Option<Duration> {
        self.give_back_stuck().await;
        if self.is_hopeless() && !self.stopping.load(Ordering::Relaxed) {
            return self.fail_hopeless().await;
        }
        let mut next = Next::Now;
        while next == Next::Now {
            // Said before the look: whoever ends a call after it wakes us.
            self.more.store(true, Ordering::Relaxed);
            let want = self.claimable();
            if want.jobs == 0 {
                return self.board.lock().unwrap().has_waiting().then_some(STUCK);
            }
            self.more.store(false, Ordering::Relaxed);
            let asked = Instant::now();
            let took = self.board.lock().unwrap().say_durations();
            match self.queue.claim(&self.queues, want, &took).await {
                Ok(claims) => {
                    next = claims.next;
                    self.enter_claims(asked, claims.now_ms, claims.jobs);
                }
                Err(error) => {
                    tracing::debug!(%error, "calls cannot be claimed now");
                    self.unsure.store(true, Ordering::Relaxed);
                    self.more.store(true, Ordering::Relaxed);
                    return Some(RETRY_WAIT);
                }
            }
        }
        match next {
            Next::In(ms) => Some(Duration::from_millis(ms.max(1))),
            Next::Now | Next::Nothing => self.board.lock().unwrap().has_waiting().then_some(STUCK),
        }
    }

    async fn give_back_stuck(&self) {
        let stuck = self.board.lock().unwrap().stuck(STUCK);
        if stuck.is_empty() {
            return;
        }
        let jobs: Vec<_> = stuck.into_iter().map(|job| (job, None)).collect();
        if let Err(error) = self.queue.release(&jobs).await {
            tracing::warn!(%error, "calls cannot be given back now");
            self.unsure.store(true, Ordering::Relaxed);
        }
    }

    /// No worker can be started: after a while in which others may take the calls, they fail with the reason.
    async fn fail_hopeless(self: &Arc<Self>) -> Option<Duration> {
        tokio::time::sleep(HOPELESS_WAIT).await;
        self.raise_workers();
        let reason = self.hopeless_reason()?;
        let want = Want {
            of_others: 0,
            ..Want::from(queue::BATCH_JOBS_MAX)
        };
        match self.queue.claim(&self.queues, want, &[]).await {
            Ok(claims) => {
                for claimed in claims.jobs {
                    let message = format!(
                        "node {} cannot run workers: {reason}",
                        self.options.node_name
                    );
                    let update = self.failure("WorkerCrashed", message);
                    self.close_taken(&claimed.job, "failed", update, false);
                }
            }
            Err(error) => tracing::debug!(%error, "calls cannot be claimed now"),
        }
        Some(HOPELESS_WAIT)
    }
}

/// Closes the records of calls that ended, many at a time.
pub(super) async fn close(executor: Weak<Executor>) {
    loop {
        let Some(this) = executor.upgrade() else {
            return;
        };
        let mut batch = this.closing.take();
        if batch.is_empty() {
            let closing = this.closing.clone();
            drop(this);
            closing.gather().await;
            continue;
        }
        this.spill_ends(&mut batch).await;
        let ends: Vec<Finish> = batch.iter().map(|closing| closing.finish.clone()).collect();
        match this.queue.finish(&ends).await {
            Ok(answers) => {
                for (closing, answer) in batch.drain(..).zip(answers) {
                    if answer == Finished::Refused && closing.was_told {
                        // Sent twice because the first answer was lost, or taken from us while we ended it.
                        tracing::debug!(
                            job = closing.finish.job,
                            "the record of a job had been closed"
                        );
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, count = batch.len(), "records of calls that ended cannot be closed now");
                this.closing.waiting.lock().unwrap().splice(0..0, batch);
                drop(this);
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
}

/// Heart-beats, and what is done with them.
pub(super) async fn renew(executor: Weak<Executor>) {
    let mut swept = Instant::now();
    let mut beat = tokio::time::interval(RENEWAL);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let Some(look) = executor
        .upgrade()
        .map(|executor| executor.look_soon.clone())
    else {
        return;
    };
    loop {
        let asked = tokio::select! {
            _ = beat.tick() => false,
            () = look.notified() => true,
        };
        let Some(executor) = executor.upgrade() else {
            return;
        };
        if !asked {
            executor.beat().await;
        }
        let (age, limit) = match asked {
            true => (Duration::ZERO, usize::MAX),
            false => (RENEWAL, LOOKED_AT_MAX),
        };
        let jobs = executor.callers.older_than(age, limit);
        executor.look_after(&jobs).await;
        if swept.elapsed() >= SWEEP {
            swept = Instant::now();
            executor.sweep_blobs().await;
            executor.sweep_kept().await;
        }
    }
}

impl Executor {
    /// Whether nobody can have taken our claims.
    pub(super) fn lease_is_fresh(&self) -> bool {
        let age_ms = self
            .now_ms()
            .saturating_sub(self.renewed_ms.load(Ordering::Relaxed));
        age_ms < LEASE.as_millis() as u64 / 2
    }

    async fn beat(self: &Arc<Self>) {
        if self.stopping.load(Ordering::Relaxed) && self.board.lock().unwrap().runs.is_empty() {
            return;
        }
        let before = self.now_ms();
        let renewed = self.queue.renew().await;
        // Redis may be back a moment later: whoever could not say that he lives has not let the others say it.
        let may_reap = renewed.is_ok();
        match renewed {
            Ok(kept) => {
                let silence_ms =
                    before.saturating_sub(self.renewed_ms.swap(before, Ordering::Relaxed));
                if !kept || silence_ms > 2 * RENEWAL.as_millis() as u64 {
                    // Redis may have been away: nobody's lease could be renewed, and all who live renew theirs now.
                    let until = before + LEASE.as_millis() as u64;
                    self.patient_until_ms.store(until, Ordering::Relaxed);
                }
                if !kept || self.unsure.swap(false, Ordering::Relaxed) {
                    self.reconcile().await;
                }
            }
            Err(error) => tracing::debug!(%error, "the lease cannot be renewed now"),
        }
        self.retire_spare();
        self.free_stalled().await;
        if !may_reap {
            return;
        }
        let is_patient = before < self.patient_until_ms.load(Ordering::Relaxed);
        match self.queue.reap(is_patient).await {
            Ok(reaped) if !reaped.is_empty() => self.take_from_the_dead(reaped).await,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "dead nodes cannot be looked for now"),
        }
    }

    /// Cancels jobs, wherever they are; returns those that were still going.
    pub async fn cancel(
        self: &Arc<Self>,
        jobs: &[String],
    ) -> Result<Vec<String>, queue::QueueError> {
        let mut going = Vec::new();
        for batch in jobs.chunks(queue::BATCH_JOBS_MAX) {
            let answers = self.queue.cancel(batch).await?;
            let mut taken = Vec::new();
            for (job, answer) in batch.iter().zip(answers) {
                match answer {
                    queue::CancelAnswer::Taken => taken.push(job.clone()),
                    queue::CancelAnswer::Told => {}
                    queue::CancelAnswer::Over | queue::CancelAnswer::Unknown => continue,
                }
                going.push(job.clone());
            }
            self.end_cancelled(taken).await;
        }
        Ok(going)
    }

    /// Ends jobs that were cancelled before they began. Recorded before the answer: who asks again does not find them going.
    async fn end_cancelled(self: &Arc<Self>, taken: Vec<String>) {
        if taken.is_empty() {
            return;
        }
        let mut closings = Vec::with_capacity(taken.len());
        for job in &taken {
            let reason = format!("job {job} was cancelled before it began");
            let update = self.failure("JobCancelled", reason);
            self.update_caller(job, update.clone(), self.me().node);
            let wrote = queue::record::Wrote::default();
            closings.push(self.closing_of(job, "cancelled", update, wrote, false, true));
        }
        let ends: Vec<Finish> = closings.iter().map(|one| one.finish.clone()).collect();
        if let Err(error) = self.queue.finish(&ends).await {
            tracing::debug!(%error, "cancelled jobs are closed later");
            closings.into_iter().for_each(|one| self.closing.add(one));
        }
    }

    /// Cancels all jobs of the cluster.
    pub async fn cancel_all(self: &Arc<Self>) -> Result<Vec<String>, queue::QueueError> {
        let jobs: Vec<String> = self.queue.all_going().await?.into_iter().collect();
        self.cancel(&jobs).await
    }

    /// Waits until every record is closed, but not for long.
    pub(super) async fn settle(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while self.closing.count() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Gives calls that no worker has back to the others.
    pub(super) async fn give_back_waiting(&self) {
        let waiting: Vec<(String, Option<String>)> = {
            let mut board = self.board.lock().unwrap();
            let jobs: Vec<String> = board
                .runs
                .iter()
                .filter(|(_, run)| run::is_waiting(run))
                .map(|(job, _)| job.clone())
                .collect();
            jobs.iter().for_each(|job| drop(board.remove(job)));
            jobs.into_iter().map(|job| (job, None)).collect()
        };
        for batch in waiting.chunks(queue::BATCH_JOBS_MAX) {
            if let Err(error) = self.queue.release(batch).await {
                tracing::warn!(%error, "calls that wait here cannot be given back; others take them over");
            }
        }
    }
}
