//! A file's table in Redis: read, decided on, and swapped for the new one in one step.
use super::{LEASE, Locks, errno};
use crate::{
    error::FsError,
    locks::table::{self, Changed, Lock, Owner, Session, Table},
    record::{Ino, decode, encode},
    redis_client::{RedisError, Script},
};
use redis::Value;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::time::Instant;

/// Channels on which a session is told that something may be free.
pub(super) const CHANNEL_PREFIX: &str = "ks:lock:";
/// How often an operation is decided anew on a table that others change.
const ATTEMPTS_MAX: usize = 256;
/// And for how long at most while Redis is lost again and again.
const LOST_AT_MOST: Duration = Duration::from_secs(10);
/// After each time that it was lost.
const LOST_PAUSE: Duration = Duration::from_millis(50);
/// How long a table may stand that nobody renews, ms: what is left of nodes that never came back.
pub(super) const TABLE_LIFE_MS: u64 = 3_600_000;
/// A Redis that just started does not know yet who lives, s.
const REDIS_GRACE_S: u64 = 10;
/// How long a note of who waits for whom stands without being renewed, ms.
const WAIT_LIFE_MS: u64 = 20_000;

static SWAP: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("swap.lua")));
static WAIT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("wait.lua")));

/// A session's name in keys and channels.
pub(super) fn session_text(session: Session) -> String {
    format!("{session:016x}")
}

fn owner_text(owner: &Owner) -> String {
    format!("{:016x}:{:016x}", owner.session, owner.number)
}

fn damaged() -> FsError {
    FsError::Catalog("a table of locks that cannot be read".into())
}

fn table_of(bytes: &[u8]) -> Result<Table, FsError> {
    match bytes.is_empty() {
        true => Ok(Table::default()),
        false => decode(bytes).map_err(|error| FsError::Catalog(error.to_string())),
    }
}

fn bytes_of(table: &Table) -> Vec<u8> {
    match table.is_empty() {
        true => Vec::new(),
        false => encode(table),
    }
}

/// What a swap came to.
enum Swapped {
    Done,
    Differs(Vec<u8>),
    Lives,
}

/// The words of a swap.
struct Swap<'a> {
    ino: Ino,
    expected: &'a [u8],
    new: &'a [u8],
    /// This session must have ended.
    ended: Option<Session>,
    tell: &'a [Session],
}

impl Locks {
    /// Decides on the table as it stands and swaps it; again where it changed meanwhile.
    pub(super) async fn attempt<T>(
        &self,
        ino: Ino,
        decide: impl Fn(&Table) -> Changed<T>,
    ) -> Result<T, FsError> {
        let mut expected = self.remembered(ino);
        let began = Instant::now();
        for _ in 0..ATTEMPTS_MAX {
            let changed = decide(&table_of(&expected)?);
            let new = bytes_of(&changed.table);
            let swap = Swap {
                ino,
                expected: &expected,
                new: &new,
                ended: None,
                tell: &changed.tell,
            };
            match self.swap(&swap).await {
                Ok(Swapped::Done) => {
                    self.remember(ino, new);
                    return Ok(changed.value);
                }
                Ok(Swapped::Differs(current)) => expected = current,
                Ok(Swapped::Lives) => return Err(damaged()),
                // Perhaps it was done: the next look tells, and all operations may be done twice.
                Err(RedisError::Lost(_)) if began.elapsed() < LOST_AT_MOST => {
                    tokio::time::sleep(LOST_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(errno(libc::ENOLCK))
    }

    async fn swap(&self, swap: &Swap<'_>) -> Result<Swapped, RedisError> {
        let (ino, life) = (swap.ino.to_string(), TABLE_LIFE_MS.to_string());
        let (lease, lease_ms) = (session_text(self.session), LEASE.as_millis().to_string());
        let ended = swap.ended.map(session_text).unwrap_or_default();
        let grace = REDIS_GRACE_S.to_string();
        let tell: Vec<String> = swap.tell.iter().copied().map(session_text).collect();
        let mut args: Vec<&[u8]> = vec![
            ino.as_bytes(),
            swap.expected,
            swap.new,
            life.as_bytes(),
            lease.as_bytes(),
            lease_ms.as_bytes(),
            ended.as_bytes(),
            grace.as_bytes(),
        ];
        args.extend(tell.iter().map(|session| session.as_bytes()));
        let reply = self.catalog.redis().script(&SWAP, &[], &args).await?;
        let nonsense = || RedisError::Refused("the script of locks answered nonsense".into());
        let Value::Array(parts) = reply else {
            return Err(nonsense());
        };
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next()) {
            (Some(Value::Int(1)), stood) => {
                if stood == Some(Value::Int(0)) {
                    self.lease_had_ended();
                }
                Ok(Swapped::Done)
            }
            (Some(Value::Int(2)), _) => Ok(Swapped::Lives),
            (Some(Value::Int(0)), Some(Value::BulkString(table))) => Ok(Swapped::Differs(table)),
            _ => Err(nonsense()),
        }
    }

    /// Whether the one that holds `blocker` has ended; its locks on this file are gone then.
    pub(super) async fn has_ended(&self, ino: Ino, blocker: &Lock) -> Result<bool, FsError> {
        let session = blocker.owner.session;
        if session == self.session {
            return Ok(false);
        }
        // Of this very node: its daemon before this one, which is gone for sure.
        let lease = (blocker.node != self.catalog.me()).then_some(session);
        let mut expected = self.remembered(ino);
        for _ in 0..ATTEMPTS_MAX {
            let changed = table::end_session(&table_of(&expected)?, session);
            let new = bytes_of(&changed.table);
            let swap = Swap {
                ino,
                expected: &expected,
                new: &new,
                ended: lease,
                tell: &changed.tell,
            };
            match self.swap(&swap).await? {
                Swapped::Done => {
                    tracing::info!(
                        ino,
                        "locks of a node that has ended or is cut off are free now"
                    );
                    self.remember(ino, new);
                    return Ok(true);
                }
                Swapped::Lives => return Ok(false),
                Swapped::Differs(current) => expected = current,
            }
        }
        Ok(false)
    }

    /// Notes who waits for whom. True: they would wait for each other.
    pub(super) async fn is_deadlock(&self, lock: &Lock, blocker: &Lock) -> Result<bool, FsError> {
        let (me, other) = (owner_text(&lock.owner), owner_text(&blocker.owner));
        let life = WAIT_LIFE_MS.to_string();
        let args = [me.as_bytes(), other.as_bytes(), life.as_bytes()];
        let reply = self.catalog.redis().script(&WAIT, &[], &args).await?;
        Ok(reply == Value::Int(1))
    }

    pub(super) async fn waits_no_more(&self, owner: &Owner) {
        let mut command = redis::cmd("DEL");
        command.arg(format!("ks:kw:{}", owner_text(owner)));
        if let Err(error) = self.catalog.redis().run(&command).await {
            tracing::debug!(%error, "a note of who waits ends by itself");
        }
    }

    /// From now on this session is told when something is free.
    pub(super) async fn listen(&self) -> Result<(), FsError> {
        let channel = format!("{CHANNEL_PREFIX}{}", session_text(self.session));
        let subscribe = || async {
            let redis = self.catalog.redis();
            redis.subscribe(channel.as_bytes()).await
        };
        self.subscribed.get_or_try_init(subscribe).await?;
        Ok(())
    }

    fn remembered(&self, ino: Ino) -> Vec<u8> {
        let local = self.local.lock().unwrap();
        let mine = local.files.get(&ino);
        mine.map(|mine| mine.bytes.clone()).unwrap_or_default()
    }

    fn remember(&self, ino: Ino, bytes: Vec<u8>) {
        if let Some(mine) = self.local.lock().unwrap().files.get_mut(&ino) {
            mine.bytes = bytes;
        }
    }
}
