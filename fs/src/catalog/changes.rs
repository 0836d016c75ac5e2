//! Carries out changes: plans them with `namespace` on what is remembered or read, commits, and plans anew when what was
//! read had changed meanwhile.
//!
//! What always holds: a refusal (an errno), and that there is nothing to do, rests on what Redis said during this change, never on memory alone; a change
//! whose answer was lost with the connection is looked for in the event stream before it is tried again.
use super::journal::Stand;
use super::memory::Changing;
use super::namespace::{Known, Plan, Stop};
use super::transaction::{Otherwise, Outcome, Transaction};
use super::{Catalog, CatalogError, Committed, EventId};
use crate::record::Time;
use crate::redis_client::{RedisError, Script};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often a change is planned anew.
const ATTEMPTS_MAX: usize = 64;
/// Records that one change may need (paths are at most `DEPTH_MAX` deep, a rename has two).
const NEEDS_MAX: usize = 4096;
/// After so many failed attempts each further one waits a little.
const ATTEMPTS_AT_ONCE: usize = 4;
/// Longest wait between two attempts.
const WAIT_LONGEST: Duration = Duration::from_millis(20);
/// How long a change may take in all.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);
/// How far back a lost change is looked for in the event stream, events.
const LOOK_BACK: usize = 10_000;

pub(super) static COMMIT: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("commit.lua")));

/// How a commit ended.
pub(super) enum Ended {
    Done { event: EventId, previous: EventId },
    Errno(i32),
    Stale,
}

impl Catalog {
    /// Plans and commits until it succeeds, fails for good, or was tried often enough.
    pub(super) async fn change<T>(
        &self,
        label: &str,
        plan: impl Fn(&Known, Time) -> Result<Plan<T>, Stop>,
    ) -> Result<Committed<T>, CatalogError> {
        let attempts = self.attempts(&plan);
        match tokio::time::timeout(CHANGE_DEADLINE, attempts).await {
            Ok(Ok(Some(committed))) => Ok(committed),
            Ok(Err(error)) => Err(error),
            Ok(Ok(None)) | Err(_) => Err(CatalogError::Contention(label.to_owned())),
        }
    }

    /// `None`: tried often enough.
    async fn attempts<T>(
        &self,
        plan: &impl Fn(&Known, Time) -> Result<Plan<T>, Stop>,
    ) -> Result<Option<Committed<T>>, CatalogError> {
        for attempt in 0..ATTEMPTS_MAX {
            if attempt >= ATTEMPTS_AT_ONCE {
                tokio::time::sleep(self.wait_before(attempt)).await;
            }
            let cached = attempt == 0;
            let (plan, from_memory) = self.planned(plan, cached).await?;
            let plan = match plan {
                // Refusals, and that there is nothing to do, are not believed of memory.
                Ok(plan) if from_memory && plan.transaction.is_empty() => continue,
                Err(_) if from_memory => continue,
                Ok(plan) => plan,
                Err(errno) => return Err(CatalogError::Posix(errno)),
            };
            match self.commit(&plan.transaction).await? {
                Ended::Done { event, previous } => {
                    return Ok(Some(Committed {
                        event,
                        previous,
                        value: plan.value,
                        change: plan.transaction.event,
                    }));
                }
                Ended::Errno(_) if from_memory => {}
                Ended::Errno(errno) => return Err(CatalogError::Posix(errno)),
                Ended::Stale => {}
            }
        }
        Ok(None)
    }

    /// A little longer each time, different for each node and change.
    fn wait_before(&self, attempt: usize) -> Duration {
        let spread = self.nonce() % 8 + 1;
        let steps = attempt - ATTEMPTS_AT_ONCE + 1;
        let wait = Duration::from_micros(250 * spread) * u32::try_from(steps).unwrap_or(1);
        wait.min(WAIT_LONGEST)
    }

    /// Reads what the plan needs until it stands (or is refused). Also: whether any of it was from memory.
    async fn planned<T>(
        &self,
        plan: &impl Fn(&Known, Time) -> Result<Plan<T>, Stop>,
        cached: bool,
    ) -> Result<(Result<Plan<T>, i32>, bool), CatalogError> {
        let mut known = Known::default();
        let mut from_memory = false;
        for _ in 0..NEEDS_MAX {
            match plan(&known, super::now()) {
                Ok(plan) => return Ok((Ok(plan), from_memory)),
                Err(Stop::Posix(errno)) => return Ok((Err(errno), from_memory)),
                Err(Stop::Need(need)) => {
                    from_memory |= self.learn(&mut known, need, cached).await?;
                }
            }
        }
        Ok((Err(libc::ELOOP), from_memory))
    }

    pub(super) fn nonce(&self) -> u64 {
        self.shared.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// Commits one transaction; nothing to do is done.
    pub(super) async fn commit(&self, transaction: &Transaction) -> Result<Ended, CatalogError> {
        if transaction.is_empty() {
            return Ok(Ended::Done {
                event: EventId::default(),
                previous: EventId::default(),
            });
        }
        let nonce = self.nonce();
        let words = transaction.arguments(self.me(), nonce);
        let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
        let changing = self.shared.memory.changing(transaction, nonce);
        match self.fenced(&COMMIT, &args).await {
            Ok(reply) => {
                let outcome =
                    Outcome::from_reply(reply).ok_or_else(|| super::reads::damaged("commit"))?;
                Ok(self.ended(changing, transaction, outcome))
            }
            Err(RedisError::Lost(_)) => self.after_loss(transaction, nonce).await,
            Err(error) => Err(error.into()),
        }
    }

    fn ended(&self, changing: Changing<'_>, transaction: &Transaction, outcome: Outcome) -> Ended {
        match outcome {
            Outcome::Failed(index) => {
                changing.did_not_happen();
                match transaction.conditions.get(index) {
                    Some((_, Otherwise::Errno(errno))) => Ended::Errno(*errno),
                    _ => Ended::Stale,
                }
            }
            Outcome::Done {
                event,
                previous,
                counts,
            } => {
                changing.happened(transaction, &counts);
                let stand = Stand::of(event, previous);
                self.journal_committed(transaction, stand);
                Ended::Done { event, previous }
            }
        }
    }

    /// The connection went before the answer: was it carried out?
    async fn after_loss(
        &self,
        transaction: &Transaction,
        nonce: u64,
    ) -> Result<Ended, CatalogError> {
        if transaction.event.is_none() {
            // Not told apart; such a change sets values, and doing it again does no harm.
            return Ok(Ended::Stale);
        }
        let mut command = redis::cmd("XREVRANGE");
        command.arg(super::events::STREAM).arg("+").arg("-");
        command.arg("COUNT").arg(LOOK_BACK);
        let entries = super::events::entries(self.redis().run(&command).await?)?;
        let found = entries
            .iter()
            .position(|entry| entry.origin == self.me() && entry.nonce == nonce);
        match found {
            Some(at) => {
                let event = entries[at].id;
                let previous = entries.get(at + 1).map(|entry| entry.id);
                let previous = previous.unwrap_or_default();
                let stand = Stand::of(event, previous);
                self.journal_committed(transaction, stand);
                Ok(Ended::Done { event, previous })
            }
            None => Ok(Ended::Stale),
        }
    }
}
