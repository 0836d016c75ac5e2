//! Deadlines for commands without a timer for each: one task looks every now and then whether any of those that wait has
//! waited too long. (A timer would be set and taken back for every command, and wake a sleeping thread to be set.)
//!
//! What always holds: whoever waits is freed at most `TICK` after its deadline; the task sleeps when nobody waits.
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Time between two looks.
const TICK: Duration = Duration::from_millis(100);
/// The task sleeps for good after so many looks in vain.
const IDLE_TICKS_MAX: u32 = 2;

/// The deadline is over.
#[derive(Debug)]
pub(super) struct Late;

/// Those who wait, and the task that looks after them.
pub(super) struct Patience {
    shared: Arc<Shared>,
    ticker: JoinHandle<()>,
}

struct Shared {
    waiting: AtomicUsize,
    asleep: AtomicBool,
    wake: Notify,
    tick: watch::Sender<()>,
}

impl Patience {
    pub(super) fn start() -> Self {
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            wake: Notify::new(),
            tick: watch::Sender::new(()),
        });
        let ticker = tokio::spawn(tick(shared.clone()));
        Self { shared, ticker }
    }

    /// What `work` comes to, if it does before `deadline`.
    pub(super) async fn within<F: Future>(
        &self,
        deadline: Instant,
        work: F,
    ) -> Result<F::Output, Late> {
        let mut ticks = self.shared.tick.subscribe();
        let _waits = self.shared.enter();
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                outcome = &mut work => return Ok(outcome),
                _ = ticks.changed() => {
                    if Instant::now() >= deadline {
                        return Err(Late);
                    }
                }
            }
        }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

struct Waits<'s>(&'s Shared);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    fn enter(&self) -> Waits<'_> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
        Waits(self)
    }
}

async fn tick(shared: Arc<Shared>) {
    let mut idle = 0;
    loop {
        if idle >= IDLE_TICKS_MAX {
            shared.asleep.store(true, Ordering::SeqCst);
            // Somebody may have come before it was said.
            if shared.waiting.load(Ordering::SeqCst) == 0 {
                shared.wake.notified().await;
            }
            shared.asleep.store(false, Ordering::SeqCst);
        }
        tokio::time::sleep(TICK).await;
        idle = match shared.waiting.load(Ordering::SeqCst) {
            0 => idle + 1,
            _ => 0,
        };
        shared.tick.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_also_after_a_long_sleep() {
        let patience = Patience::start();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let deadline = Instant::now() + Duration::from_secs(1);
            let never = std::future::pending::<()>();
            assert!(patience.within(deadline, never).await.is_err());
            let late = Instant::now() - deadline;
            assert!(late <= TICK, "{late:?}");
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        let soon = tokio::time::sleep(Duration::from_millis(500));
        assert!(patience.within(deadline, soon).await.is_ok());
    }
}
