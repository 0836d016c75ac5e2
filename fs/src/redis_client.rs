//! The connection to Redis: multiplexed, RESP3, made anew when it is lost, every command with a deadline.
//! Used by the catalog and by the executor.
//!
//! What always holds:
//! - A command that was sent is never sent a second time behind the caller's back: when the connection goes before the
//!   answer came, the error is [`RedisError::Lost`] and the caller decides (it may have been carried out).
//! - [`Push::Reset`] is told when the next connection stands (subscriptions and tracking included), before any command can
//!   use it, so that what was missed in between is read again. Until then what was read before stays the best there is.
//!
//! Tracking is Redis's broadcasting mode, for `TRACKED_PREFIXES` alone: it is how a FLUSHALL is heard of. Changes are told by
//! the scripts that make them (`catalog`), because up to Redis 7.0 tracking cannot tell our own from others'.
//!
//! Not for data: a payload over 64 KiB is a file.
use ks_transport::pool::Peer;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ErrorKind, PushInfo, PushKind, Value};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

mod absence;
mod patience;
mod target;

use patience::{Late, Patience};

/// How long a command may take, waiting for a connection included.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(5);
/// Without a connection for longer than this, commands wait `ASKED_WAIT` for the next one and no longer.
pub const BRIDGED: Duration = Duration::from_secs(5);
/// From this on Redis counts as away (`Redis::is_away`): a lost connection is usually back before.
pub const AWAY_AFTER: Duration = Duration::from_secs(1);
/// How long one attempt to connect may take.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The first wait between two attempts to connect; it doubles up to the next constant.
pub const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
/// The longest wait between two attempts to connect, where nobody asks for anything meanwhile.
pub const BACK_OFF_LONGEST: Duration = Duration::from_secs(2);
/// The wait between two attempts while somebody asks.
pub const BACK_OFF_ASKED: Duration = Duration::from_millis(200);
/// How long a command waits for the next attempt when Redis has been gone for `BRIDGED`: it may be back by now.
pub const ASKED_WAIT: Duration = Duration::from_millis(400);
/// Commands that wait to be written to the connection; more wait their turn.
const QUEUE_COMMANDS_MAX: usize = 1024;
/// Commands under way on the connection; more wait their turn.
const IN_FLIGHT_COMMANDS_MAX: usize = 4096;
/// How long a change is asked for again that Redis refuses because its disk is full: what is kept aside makes room
/// (`redis_server/ballast`), and Redis looks once a second whether there is some.
pub const FULL_DISK_WAIT: Duration = Duration::from_millis(2500);
/// Between two such attempts.
const FULL_DISK_PAUSE: Duration = Duration::from_millis(250);
/// The oldest Redis that has what the scripts need.
pub const VERSION_NEEDED: &str = "7.0";
/// Keys whose changes are pushed to a tracking connection.
pub const TRACKED_PREFIXES: [&str; 1] = ["ks:meta"];

/// Where Redis is.
#[derive(Clone)]
pub enum RedisTarget {
    /// `redis://`, `rediss://`, `unix://`, `redis+sentinel://[user:password@]host:port,host:port/master[/db]`,
    /// and the seeds' `tcp://host:port?db=9`.
    Url(String),
    /// A unix socket: this node's private Redis.
    Socket {
        /// The socket's path.
        path: std::path::PathBuf,
        /// What AUTH is given.
        password: Option<String>,
        /// The database's number.
        db: i64,
    },
    /// Carried by a peer through its QUIC connection (`--join`). Auth is the tunnel's (the serving node's Redis password comes as `password`).
    Through {
        /// The node that has (or reaches) Redis.
        peer: Peer,
        /// What AUTH is given.
        password: Option<String>,
        /// The database's number.
        db: i64,
    },
}

/// Whether a URL can be understood; nothing is connected.
pub fn check_url(url: &str) -> Result<(), RedisError> {
    target::Endpoint::new(RedisTarget::Url(url.to_owned())).map(drop)
}

/// Why a command was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisError {
    /// The URL makes no sense: the text says what is wrong.
    #[error("{0}")]
    BadUrl(String),
    /// There is no connection; the command was not sent.
    #[error("redis does not answer ({0})")]
    Unreachable(String),
    /// The connection went before the answer came: the command may have been carried out.
    #[error("the connection to redis was lost before the answer came ({0})")]
    Lost(String),
    /// Sent, and no answer in time: the command may have been carried out.
    #[error("redis did not answer within {0:?}")]
    Timeout(Duration),
    /// A script or command was refused; the text is Redis's.
    #[error("redis: {0}")]
    Refused(String),
    /// This Redis cannot be used.
    #[error("redis is too old: {found}, at least {needed} is needed")]
    TooOld {
        /// The version that answered.
        found: String,
        /// The version that would do.
        needed: &'static str,
    },
}

/// What Redis pushes to us.
#[derive(Clone, Debug)]
pub enum Push {
    /// Keys under `TRACKED_PREFIXES` that another client changed.
    Invalidated(Vec<Vec<u8>>),
    /// The connection was lost or made anew: nothing cached can be trusted.
    Reset,
    /// A message on a channel.
    Message {
        /// The channel that was subscribed to.
        channel: Vec<u8>,
        /// What was published.
        payload: Vec<u8>,
    },
}

/// Who is told of pushes. Called from the connection's own task: must not block.
pub type OnPush = Arc<dyn Fn(Push) + Send + Sync>;

/// Handle; cheap to clone. The connection ends with the last one.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    link: Arc<Link>,
    patience: Patience,
    keeper: tokio::task::JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What the handles and the task that keeps the connection have in common.
struct Link {
    target: target::Endpoint,
    tracking: bool,
    on_push: OnPush,
    channels: Mutex<BTreeSet<Vec<u8>>>,
    live: watch::Sender<Option<Live>>,
    /// How many connections stood before the present one.
    replaced: AtomicU64,
    /// Since when nothing has been heard of Redis, where there is no connection.
    silent_since: Arc<Mutex<Option<Instant>>>,
    /// Why there is no connection now.
    trouble: Mutex<String>,
    /// Somebody waits for a connection: the next attempt is due at once.
    asked: tokio::sync::Notify,
}

/// One connection of those made one after the other.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    /// Set when it is found dead; wakes the keeper.
    lost: Arc<watch::Sender<bool>>,
    silent_since: Arc<Mutex<Option<Instant>>>,
}

/// A Lua script kept as a `.lua` file: `Script::new(include_str!("x.lua"))`.
pub struct Script {
    source: &'static str,
    sha1: String,
}

impl Script {
    /// Hashes the source; nothing is sent.
    pub fn new(source: &'static str) -> Self {
        let sha1 = redis::Script::new(source).get_hash().to_owned();
        Self { source, sha1 }
    }
    /// The Lua text: for a pipeline, which loads it first (SCRIPT LOAD).
    pub fn source(&self) -> &'static str {
        self.source
    }
    /// What EVALSHA calls it by, hexadecimal.
    pub fn sha1(&self) -> &str {
        &self.sha1
    }
}

impl Redis {
    /// Connects; checks the version (7.0 and up); `tracking`: changes of the keys under `TRACKED_PREFIXES` by others are
    /// pushed. Pushes go to `on_push` (must not block).
    /// A lost connection is made anew in the background (back-off 50 ms to 2 s; whoever asks makes the next attempt due after
    /// `BACK_OFF_ASKED`); commands meanwhile wait up to their deadline, and `ASKED_WAIT` when it has been gone for `BRIDGED`.
    pub async fn connect(
        target: RedisTarget,
        tracking: bool,
        on_push: OnPush,
    ) -> Result<Self, RedisError> {
        let link = Arc::new(Link {
            target: target::Endpoint::new(target)?,
            tracking,
            on_push,
            channels: Mutex::new(BTreeSet::new()),
            live: watch::Sender::new(None),
            replaced: AtomicU64::new(0),
            silent_since: Arc::default(),
            trouble: Mutex::new(String::new()),
            asked: tokio::sync::Notify::new(),
        });
        let first = link.attempt().await?;
        link.live.send_replace(Some(first.clone()));
        let keeper = tokio::spawn(keep(link.clone(), first));
        Ok(Self {
            shared: Arc::new(Shared {
                link,
                patience: Patience::start(),
                keeper,
            }),
        })
    }

    /// One command, one answer.
    pub async fn run(&self, command: &redis::Cmd) -> Result<Value, RedisError> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        self.run_until(command, deadline).await
    }

    /// Several commands in one round trip; with `.atomic()`, as one transaction. Fails when any of them was refused.
    pub async fn pipe(&self, pipeline: &redis::Pipeline) -> Result<Vec<Value>, RedisError> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let live = self.live_until(deadline).await?;
        let mut connection = live.connection.clone();
        let sent = pipeline.query_async(&mut connection);
        let answer = self.shared.patience.within(deadline, sent).await;
        live.judge(answer)
    }

    /// EVALSHA, loading the script when Redis does not know it.
    pub async fn script(
        &self,
        script: &Script,
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> Result<Value, RedisError> {
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let by_hash = script_command("EVALSHA", &script.sha1, keys, args);
        match self.run_until(&by_hash, deadline).await {
            Err(RedisError::Refused(text)) if text.starts_with("NOSCRIPT") => {
                let whole = script_command("EVAL", script.source, keys, args);
                self.run_until(&whole, deadline).await
            }
            other => other,
        }
    }

    /// Subscribes; survives reconnects.
    pub async fn subscribe(&self, channel: &[u8]) -> Result<(), RedisError> {
        self.shared
            .link
            .channels
            .lock()
            .unwrap()
            .insert(channel.to_vec());
        let deadline = Instant::now() + COMMAND_DEADLINE;
        let live = self.live_until(deadline).await?;
        let mut connection = live.connection.clone();
        let sent = connection.subscribe(channel);
        let answer = self.shared.patience.within(deadline, sent).await;
        live.judge(answer)
    }

    /// Whether a connection stands, as far as is known.
    pub fn is_connected(&self) -> bool {
        let link = &self.shared.link;
        link.silent_since.lock().unwrap().is_none() && link.live.borrow().is_some()
    }

    /// Which of the connections that were made one after the other is used now: behind another number may be another Redis.
    pub fn connection_number(&self) -> u64 {
        self.shared.link.replaced.load(Ordering::Acquire)
    }

    /// Whether there is no connection, and has not been for `AWAY_AFTER`.
    pub fn is_away(&self) -> bool {
        let silent_since = *self.shared.link.silent_since.lock().unwrap();
        !self.is_connected() && silent_since.is_some_and(|since| since.elapsed() >= AWAY_AFTER)
    }

    /// Why Redis takes no changes now, in its words (a full disk, say); `None`: it takes them, or cannot be asked.
    pub async fn refuses_changes(&self) -> Option<String> {
        if !self.is_connected() {
            return None;
        }
        // A change by its kind, which changes nothing.
        let mut command = redis::cmd("SETRANGE");
        command.arg("ks:probe").arg(0).arg("");
        let deadline = Instant::now() + COMMAND_DEADLINE;
        match self.run_once(&command, deadline).await {
            Err(RedisError::Refused(text)) => Some(text),
            _ => None,
        }
    }

    /// A blocking command's own connection (XREAD BLOCK and the like): no deadline but the caller's, no tracking.
    pub async fn dedicated(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None);
        self.shared.link.target.connect(config).await
    }

    /// One command; again for a moment where the disk of Redis is full: what is refused so has not been begun.
    async fn run_until(
        &self,
        command: &redis::Cmd,
        deadline: Instant,
    ) -> Result<Value, RedisError> {
        let give_up = deadline.min(Instant::now() + FULL_DISK_WAIT);
        loop {
            match self.run_once(command, deadline).await {
                Err(RedisError::Refused(text))
                    if text.starts_with("MISCONF")
                        && Instant::now() + FULL_DISK_PAUSE < give_up =>
                {
                    tokio::time::sleep(FULL_DISK_PAUSE).await;
                }
                answered => return answered,
            }
        }
    }

    async fn run_once(&self, command: &redis::Cmd, deadline: Instant) -> Result<Value, RedisError> {
        let live = self.live_until(deadline).await?;
        let mut connection = live.connection.clone();
        let sent = connection.send_packed_command(command);
        let answer = self.shared.patience.within(deadline, sent).await;
        live.judge(answer.map(|answer| answer.and_then(Value::extract_error)))
    }

    /// The connection, or the next one when it comes before `deadline` and while the gap is bridged, or very soon.
    async fn live_until(&self, deadline: Instant) -> Result<Live, RedisError> {
        let link = &self.shared.link;
        if let Some(live) = &*link.live.borrow()
            && live.is_usable()
        {
            return Ok(live.clone());
        }
        let now = Instant::now();
        let silent_since = link.silent_since.lock().unwrap().unwrap_or(now);
        let patient_until = (silent_since + BRIDGED).max(now + ASKED_WAIT);
        let deadline = deadline.min(patient_until).max(now);
        link.asked.notify_one();
        let mut changes = link.live.subscribe();
        let waited = tokio::time::timeout_at(
            deadline,
            changes.wait_for(|live| live.as_ref().is_some_and(Live::is_usable)),
        )
        .await;
        match waited {
            Ok(Ok(live)) => Ok(live.clone().expect("waited for it")),
            _ => Err(RedisError::Unreachable(
                link.trouble.lock().unwrap().clone(),
            )),
        }
    }
}

fn script_command(verb: &str, body: &str, keys: &[&[u8]], args: &[&[u8]]) -> redis::Cmd {
    let mut command = redis::cmd(verb);
    command.arg(body).arg(keys.len());
    for part in keys.iter().chain(args) {
        command.arg(*part);
    }
    command
}

impl Live {
    /// Not found dead yet.
    fn is_usable(&self) -> bool {
        !*self.lost.borrow()
    }

    /// Turns an answer into ours; one that tells of a dead connection wakes the keeper.
    fn judge<T>(&self, answer: Result<redis::RedisResult<T>, Late>) -> Result<T, RedisError> {
        let error = match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => translate(error),
            Err(Late) => RedisError::Timeout(COMMAND_DEADLINE),
        };
        let unusable = match &error {
            // A replica after a fail-over, or a Redis that is still reading its file: another connection finds the right one.
            RedisError::Refused(text) => ["READONLY", "LOADING", "MASTERDOWN"]
                .iter()
                .any(|code| text.starts_with(code)),
            _ => true,
        };
        if unusable {
            let silent_for = match &error {
                RedisError::Timeout(waited) => *waited,
                _ => Duration::ZERO,
            };
            let since = Instant::now() - silent_for;
            self.lost.send_if_modified(|lost| {
                // Late answers of a connection that was replaced long ago say nothing of the present one.
                let first = !std::mem::replace(lost, true);
                if first {
                    self.silent_since.lock().unwrap().get_or_insert(since);
                }
                first
            });
        }
        Err(error)
    }
}

/// Redis's errors in our words.
fn translate(error: redis::RedisError) -> RedisError {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => RedisError::Refused(server_text(&error)),
        ErrorKind::AuthenticationFailed => RedisError::Refused(error.to_string()),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType | ErrorKind::Client => {
            RedisError::Refused(error.to_string())
        }
        _ => RedisError::Lost(error.to_string()),
    }
}

/// "CODE what Redis said".
fn server_text(error: &redis::RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// Holds a connection for as long as there are handles.
async fn keep(link: Arc<Link>, first: Live) {
    let mut live = first;
    loop {
        // Errors only when the sender is gone, and `live` holds it.
        let _ = live.lost.subscribe().wait_for(|lost| *lost).await;
        *link.trouble.lock().unwrap() = format!("{}: the connection was lost", link.target);
        link.live.send_replace(None);
        let now = Instant::now();
        link.silent_since.lock().unwrap().get_or_insert(now);
        drop(live);
        tracing::warn!(redis = %link.target, "the connection to redis was lost; connecting again");
        live = link.connect_again().await;
        link.replaced.fetch_add(1, Ordering::AcqRel);
        (link.on_push)(Push::Reset);
        *link.silent_since.lock().unwrap() = None;
        link.live.send_replace(Some(live.clone()));
        tracing::info!(redis = %link.target, "connected to redis again");
    }
}

impl Link {
    async fn connect_again(&self) -> Live {
        let mut wait = BACK_OFF_FIRST;
        loop {
            match self.attempt().await {
                Ok(live) => return live,
                Err(error) => {
                    tracing::debug!(redis = %self.target, %error, "no connection to redis");
                    *self.trouble.lock().unwrap() = match error {
                        RedisError::Unreachable(why) => why,
                        other => other.to_string(),
                    };
                }
            }
            let asked = async {
                tokio::time::sleep(BACK_OFF_ASKED).await;
                self.asked.notified().await;
            };
            // What was asked during the attempt counts: a permit is kept.
            let _ = tokio::time::timeout(wait, asked).await;
            wait = (wait * 2).min(BACK_OFF_LONGEST);
        }
    }

    async fn attempt(&self) -> Result<Live, RedisError> {
        match tokio::time::timeout(CONNECT_DEADLINE, self.make()).await {
            Ok(made) => made,
            Err(_) => Err(RedisError::Unreachable(format!(
                "{}: no answer within {CONNECT_DEADLINE:?}",
                self.target
            ))),
        }
    }

    /// A connection that is checked, tracks and has its subscriptions.
    async fn make(&self) -> Result<Live, RedisError> {
        let lost = Arc::new(watch::Sender::new(false));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE_COMMANDS_MAX)
            .set_concurrency_limit(IN_FLIGHT_COMMANDS_MAX)
            .set_push_sender(self.push_sender(lost.clone()));
        let mut connection = self.target.connect(config).await?;
        let run = check(&mut connection, &self.target).await?;
        absence::make_good(&mut connection, &run).await;
        if self.tracking {
            let command = tracking_command();
            connection
                .send_packed_command(&command)
                .await
                .and_then(Value::extract_error)
                .map_err(translate)?;
        }
        let channels: Vec<_> = self.channels.lock().unwrap().iter().cloned().collect();
        for channel in channels {
            connection
                .subscribe(&channel[..])
                .await
                .map_err(translate)?;
        }
        Ok(Live {
            connection,
            lost,
            silent_since: self.silent_since.clone(),
        })
    }

    fn push_sender(
        &self,
        lost: Arc<watch::Sender<bool>>,
    ) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> + use<> {
        let on_push = self.on_push.clone();
        move |info| {
            match info.kind {
                PushKind::Disconnection => {
                    lost.send_replace(true);
                }
                PushKind::Invalidate => on_push(invalidated(info.data)),
                PushKind::Message => {
                    if let Some(message) = message(info.data) {
                        on_push(message);
                    }
                }
                _ => {}
            }
            Ok(())
        }
    }
}

fn tracking_command() -> redis::Cmd {
    let mut command = redis::cmd("CLIENT");
    command.arg("TRACKING").arg("ON").arg("BCAST");
    for prefix in TRACKED_PREFIXES {
        command.arg("PREFIX").arg(prefix);
    }
    command.arg("NOLOOP");
    command
}

/// The keys of an invalidation; a null instead of a list (FLUSHALL) stands for all of them.
fn invalidated(data: Vec<Value>) -> Push {
    match data.into_iter().next() {
        Some(Value::Array(keys)) => Push::Invalidated(
            keys.into_iter()
                .filter_map(|key| match key {
                    Value::BulkString(key) => Some(key),
                    _ => None,
                })
                .collect(),
        ),
        _ => Push::Reset,
    }
}

fn message(data: Vec<Value>) -> Option<Push> {
    let mut parts = data.into_iter();
    match (parts.next()?, parts.next()?) {
        (Value::BulkString(channel), Value::BulkString(payload)) => {
            Some(Push::Message { channel, payload })
        }
        _ => None,
    }
}

/// New enough, and done with reading its file. Returns which run of Redis it is.
async fn check(
    connection: &mut MultiplexedConnection,
    target: &target::Endpoint,
) -> Result<String, RedisError> {
    let answer = connection
        .send_packed_command(redis::cmd("INFO").arg("server").arg("persistence"))
        .await
        .and_then(Value::extract_error)
        .map_err(translate)?;
    let text: String = redis::from_redis_value(answer)
        .map_err(|error| RedisError::Refused(format!("INFO: {error}")))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let found = field("redis_version").unwrap_or("unknown");
    if !at_least(found, VERSION_NEEDED) {
        return Err(RedisError::TooOld {
            found: found.to_owned(),
            needed: VERSION_NEEDED,
        });
    }
    if field("loading") == Some("1") {
        return Err(RedisError::Unreachable(format!(
            "{target} is still reading its file"
        )));
    }
    Ok(field("run_id").unwrap_or_default().to_owned())
}

/// Whether version `found` ("7.0.15") is `needed` ("7.0") or later.
pub fn at_least(found: &str, needed: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> {
        text.split('.')
            .map_while(|part| part.trim().parse().ok())
            .collect()
    };
    numbers(found) >= numbers(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(at_least("7.0.15", "7.0"));
        assert!(at_least("7.0", "7.0"));
        assert!(at_least("10.1", "7.0"));
        assert!(!at_least("6.2.14", "7.0"));
        assert!(!at_least("unknown", "7.0"));
    }

    #[test]
    fn a_flush_invalidates_everything() {
        assert!(matches!(invalidated(vec![Value::Nil]), Push::Reset));
        let one = Value::Array(vec![Value::BulkString(b"ks:i:1".to_vec())]);
        match invalidated(vec![one]) {
            Push::Invalidated(keys) => assert_eq!(keys, vec![b"ks:i:1".to_vec()]),
            other => panic!("{other:?}"),
        }
    }
}
