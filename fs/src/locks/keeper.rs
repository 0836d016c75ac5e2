//! Keeps this node's lease alive while it holds locks, settles debts, and enters its locks again where Redis has lost them.
use super::{LEASE, LOOK_EVERY, Local, Locks, Owed, shared};
use crate::{
    error::FsError,
    locks::table::{self, Lock, Step, Table},
    record::Ino,
};
use redis::Value;
use std::{
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

/// Rounds after which the tables of files that stay locked are renewed.
const RENEW_TABLES_EVERY: u64 = 120;
/// After a new connection, how long until the locks are looked at: its subscriptions come first.
const AFTER_RESET: Duration = Duration::from_millis(50);

impl Locks {
    /// Starts the keeper where it does not run.
    pub(super) fn keep(self: &Arc<Self>, local: &mut Local) {
        if !local.keeper_runs {
            local.keeper_runs = true;
            tokio::spawn(run(Arc::downgrade(self)));
        }
    }

    /// The connection is new: what is held must be there, whatever happened to Redis.
    pub(super) fn look_after_reset(self: &Arc<Self>) {
        let (locks, runtime) = (self.clone(), tokio::runtime::Handle::try_current());
        let (Ok(runtime), false) = (runtime, self.held().is_empty()) else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(AFTER_RESET).await;
            if let Err(error) = locks.look_at_all().await {
                tracing::debug!(%error, "locks are looked at again later");
            }
        });
    }

    /// A lease was made anew, not renewed: what was held before may be another's.
    pub(super) fn lease_had_ended(&self) {
        if !self.local.lock().unwrap().files.is_empty() {
            self.doubted.store(true, Ordering::Release);
            self.look.notify_one();
        }
    }

    /// `false`: nothing is held or owed.
    async fn round(self: &Arc<Self>, number: u64) -> bool {
        {
            let mut local = self.local.lock().unwrap();
            if local.files.is_empty() && local.owed.is_empty() {
                local.keeper_runs = false;
                return false;
            }
        }
        let doubted = self.doubted.swap(false, Ordering::AcqRel);
        let renewed = match self.renew().await {
            Ok(true) if !doubted => Ok(()),
            // It had run out: others may have taken what was held.
            Ok(_) => self.look_at_all().await,
            Err(error) => Err(error),
        };
        let settled = match renewed {
            Ok(()) => self.settle().await,
            Err(error) => Err(error),
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "the lease of this node's locks is not renewed");
        }
        if number.is_multiple_of(RENEW_TABLES_EVERY) {
            self.renew_tables().await;
        }
        true
    }

    /// True: the lease had not run out.
    async fn renew(&self) -> Result<bool, FsError> {
        let mut command = redis::cmd("SET");
        let key = format!("ks:kl:{}", shared::session_text(self.session));
        let life = u64::try_from(LEASE.as_millis()).unwrap_or(u64::MAX);
        command.arg(key).arg("1").arg("PX").arg(life).arg("GET");
        let before = self.catalog.redis().run(&command).await?;
        Ok(before != Value::Nil)
    }

    async fn renew_tables(&self) {
        let mut pipeline = redis::pipe();
        for (ino, _) in self.held() {
            let key = format!("ks:k:{ino}");
            pipeline.cmd("PEXPIRE").arg(key).arg(shared::TABLE_LIFE_MS);
        }
        if let Err(error) = self.catalog.redis().pipe(&pipeline).await {
            tracing::debug!(%error, "tables of locks are renewed later");
        }
    }

    fn held(&self) -> Vec<(Ino, Vec<Lock>)> {
        let local = self.local.lock().unwrap();
        let files = local.files.iter();
        files
            .map(|(ino, mine)| (*ino, mine.table.held.clone()))
            .collect()
    }

    /// Enters again what is missing; what others have by now is lost.
    async fn look_at_all(self: &Arc<Self>) -> Result<(), FsError> {
        self.renew().await?;
        for (ino, rows) in self.held() {
            for lock in rows {
                if let Step::Granted = self.enter_again(ino, &lock).await? {
                    continue;
                }
                tracing::warn!(
                    ino,
                    pid = lock.pid,
                    "a lock was lost: this node was cut off for longer than its lease, and another took it"
                );
                self.note_lost(ino, &lock);
            }
        }
        Ok(())
    }

    fn note_lost(&self, ino: Ino, lock: &Lock) {
        let handles = {
            let local = self.local.lock().unwrap();
            let mine = local.files.get(&ino);
            mine.and_then(|mine| mine.handles.get(&lock.owner).cloned())
        };
        self.note_gone(ino, &lock.owner, &lock.range);
        let mut local = self.local.lock().unwrap();
        let lost = local.lost.entry((ino, lock.owner)).or_default();
        lost.extend(handles.unwrap_or_default());
        self.count(&local);
    }

    async fn enter_again(&self, ino: Ino, lock: &Lock) -> Result<Step, FsError> {
        // Given back meanwhile: it stays so.
        let still = |table: &Table| table.held.contains(lock);
        let wanted = {
            let local = self.local.lock().unwrap();
            local.files.get(&ino).is_some_and(|mine| still(&mine.table))
        };
        match wanted {
            true => {
                self.attempt(ino, |table| table::lock(table, lock, false))
                    .await
            }
            false => Ok(Step::Granted),
        }
    }

    async fn settle(&self) -> Result<(), FsError> {
        let owed: Vec<Owed> = self.local.lock().unwrap().owed.clone();
        for (settled, debt) in owed.iter().enumerate() {
            let paid = self
                .attempt(debt.ino, |table| {
                    table::unlock(table, &debt.owner, &debt.range)
                })
                .await;
            if let Err(error) = paid {
                self.forget_debts(settled);
                return Err(error);
            }
        }
        self.forget_debts(owed.len());
        Ok(())
    }

    fn forget_debts(&self, first: usize) {
        let mut local = self.local.lock().unwrap();
        local.owed.drain(..first);
        self.count(&local);
    }

    /// This node ends in order: all that it holds is free.
    pub async fn end(&self) {
        for (ino, _) in self.held() {
            let session = self.session;
            let ended = self
                .attempt(ino, |table| table::end_session(table, session))
                .await;
            if let Err(error) = ended {
                tracing::debug!(ino, %error, "its locks end with the lease");
            }
        }
    }
}

async fn run(locks: Weak<Locks>) {
    for number in 1.. {
        let Some(look) = locks.upgrade().map(|locks| locks.look.clone()) else {
            return;
        };
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = look.notified() => {}
        }
        match locks.upgrade() {
            Some(locks) if locks.round(number).await => {}
            _ => return,
        }
    }
}
