//! Jobs and queues in Redis: every change is one atomic script (`queue/*.lua`; the keys are listed in `common.lua`).
//!
//! Who takes part: the accepting node submits, any node with free slots claims, the claiming node finishes or releases,
//! any node reaps what dead nodes held. What always holds: a job is claimed by one incarnation of one node at a time, and
//! ends once; a record is there from acceptance to `RECORD_KEEP` after the end. Nothing polls: what is to be done is
//! published on `ks:wake:<node>` or `ks:wake`; a lost message is made up for by the heart-beat (`renew`, `reap`).
//! Not for data: bodies are small, payloads over 64 KiB are blobs, and beyond a sum (`limits`) smaller ones too.
use ks_fs::record::{DamagedRecord, NodeId};
use ks_fs::redis_client::{Redis, RedisError, Script};
use redis::Value;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

mod answer;
pub mod durations;
pub mod kept;
pub mod limits;
pub mod model;
pub mod record;

pub use limits::{Full, Limits};
pub use model::{Took, Want};

use answer::{
    bytes, fields, integer, list, parse_claims, parse_finished, parse_listed, parse_portion,
    parse_submitted, text,
};

/// An executor that has not renewed its lease for so long is dead: its claims go to others.
pub const LEASE: Duration = Duration::from_secs(6);
/// Time between two renewals.
pub const RENEWAL: Duration = Duration::from_secs(2);
/// How long the record of a job that ended is kept.
pub const RECORD_KEEP: Duration = Duration::from_secs(24 * 3600);
/// Records of jobs whose callers have heard of the end; the oldest beyond this go before their time.
pub const TOLD_RECORDS_MAX: usize = 50_000;
/// Records of ended jobs whose callers may not have heard of it.
pub const UNTOLD_RECORDS_MAX: usize = 1_000_000;
/// How long a function's code is kept after it was last sent.
pub const FUNCTION_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Jobs in one script call: bounds how long Redis is busy with it.
pub const BATCH_JOBS_MAX: usize = 256;
/// Bytes of the bodies in one submission; Redis holds a whole command in memory.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Jobs in one portion of a long list.
const PORTION_JOBS: usize = 4096;
/// Jobs taken over from dead nodes at a time.
pub const REAPED_MAX: usize = 256;
/// Priorities go from minus this to this; others are cut to it.
pub const PRIORITY_MAX: i32 = 31;

/// What can go wrong with the queue.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// Redis did not do it, or may have done it (`RedisError::Lost`, `Timeout`).
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// A record that cannot be read.
    #[error(transparent)]
    Damaged(#[from] DamagedRecord),
    /// A script answered something that is not its answer.
    #[error("the queue's script '{0}' gave an answer that makes no sense")]
    Answer(&'static str),
}

impl QueueError {
    /// Redis has reached its own limit (`maxmemory`): nothing was done.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, QueueError::Redis(RedisError::Refused(text)) if text.starts_with("OOM"))
    }
}

/// Who claims: a node, and which start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The node.
    pub node: NodeId,
    /// Random per start.
    pub incarnation: u64,
}

/// A job to be recorded.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Its name: 32 hex digits.
    pub job: String,
    /// The encoded `StoredCall`.
    pub body: Vec<u8>,
    /// As `queue_key` makes it.
    pub queue: String,
    /// Higher first.
    pub priority: i32,
    /// How often it may be run again.
    pub retries: u32,
    /// As `places_text` makes it.
    pub places: String,
    /// Whether this node may claim it at once.
    pub here: bool,
    /// The call that makes it.
    pub outer: Option<String>,
}

/// What became of a batch.
#[derive(Clone, Debug, Default)]
pub struct Submitted {
    /// Redis's clock.
    pub now_ms: u64,
    /// Jobs claimed for this node.
    pub claimed: Vec<String>,
    /// Jobs that had been submitted before.
    pub known: Vec<String>,
    /// Nothing was recorded: it would have exceeded this limit.
    pub full: Option<Full>,
}

/// A job that this node has claimed.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Which.
    pub job: String,
    /// The encoded `StoredCall`.
    pub body: Vec<u8>,
    /// How often it may still be run again.
    pub retries: u32,
    /// When it was accepted, by Redis's clock.
    pub accepted_ms: u64,
    /// Who is told.
    pub origin: NodeId,
}

/// A job that has not ended, as it is listed for people.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Which.
    pub job: String,
    /// `q` queued, `c` claimed.
    pub state: String,
    /// The encoded `StoredCall`.
    pub body: Vec<u8>,
    /// As `queue_key` makes it.
    pub queue: String,
    /// Higher first.
    pub priority: i32,
    /// How often it may still be run again.
    pub retries: u32,
    /// Who has claimed it: `node:incarnation`; empty: nobody.
    pub token: String,
    /// When it was accepted, by Redis's clock.
    pub accepted_ms: u64,
}

/// When there is more to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// More may run here now.
    Now,
    /// In so many milliseconds something becomes eligible.
    In(u64),
    /// Nothing waits for this node.
    Nothing,
}

/// The answer to a claim.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Redis's clock.
    pub now_ms: u64,
    /// When to come again.
    pub next: Next,
    /// What was claimed.
    pub jobs: Vec<Claimed>,
}

/// A job's end, to be recorded.
#[derive(Clone, Debug)]
pub struct Finish {
    /// Which.
    pub job: String,
    /// `done`, `failed`, `cancelled` or `lost`.
    pub kind: &'static str,
    /// The encoded `StoredEnd`.
    pub ended: Vec<u8>,
    /// Run it again where retries are left.
    pub retry: bool,
    /// Its origin is to be told through Redis.
    pub notify: bool,
}

/// What became of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// This is how it ended.
    Ended,
    /// It is queued again.
    Again,
    /// It was not ours: it ended otherwise, or runs elsewhere.
    Refused,
}

/// A job taken over from a dead node.
#[derive(Clone, Debug)]
pub struct Reaped {
    /// Which.
    pub job: String,
    /// The encoded `StoredCall`.
    pub body: Vec<u8>,
    /// The node that had claimed it; `None`: it only waited for a node that is gone, and needs another place.
    pub lost_by: Option<NodeId>,
}

/// What became of a wish to cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelAnswer {
    /// It waited; it is ours now, to be ended.
    Taken,
    /// It runs; its node was told.
    Told,
    /// It had ended.
    Over,
    /// There is no such job.
    Unknown,
}

/// How a job stands for one who attaches to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The encoded `StoredEnd`.
    Ended(Vec<u8>),
    /// Its updates come to this node.
    Going,
    /// There is no such job.
    Unknown,
}

/// The queue's name in Redis for calls of a queue that need an interpreter.
pub fn queue_key(queue: &str, python: Option<&str>) -> String {
    match python {
        None | Some("default") => queue.to_owned(),
        Some(python) => format!("{queue}@{python}"),
    }
}

/// Whether a name can stand for a queue or an interpreter.
pub fn name_is_valid(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

/// Whether a job's name is one: 32 hex digits.
pub fn job_is_valid(job: &str) -> bool {
    job.len() == 32 && job.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Places as the scripts read them ("node=delay,node=delay;data;function"); empty: every node that serves the queue, at once.
pub fn places_text(placement: &crate::placement::Placement) -> String {
    if placement.places.is_empty() {
        return String::new();
    }
    let text = |place: &crate::placement::Place| format!("{}={}", place.node, place.delay_ms);
    let places: Vec<_> = placement.places.iter().map(text).collect();
    let (data, function) = (placement.data, placement.function);
    format!("{};{data:016x};{function:016x}", places.join(","))
}

struct Scripts {
    submit: Script,
    claim: Script,
    finish: Script,
    release: Script,
    renew: Script,
    reap: Script,
    cancel: Script,
    attach: Script,
    kept: kept::KeptScripts,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("queue/common.lua"),
            include_str!($file)
        ))
    };
    // What runs also where Redis has no memory left (`maxmemory`): calls must end for there to be some again.
    (always $file:literal) => {
        Script::new(concat!(
            "#!lua flags=allow-oom\n",
            include_str!("queue/common.lua"),
            include_str!($file)
        ))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            submit: script!("queue/submit.lua"),
            claim: script!(always "queue/claim.lua"),
            finish: script!(always "queue/finish.lua"),
            release: script!(always "queue/release.lua"),
            renew: script!(always "queue/renew.lua"),
            reap: script!(always "queue/reap.lua"),
            cancel: script!(always "queue/cancel.lua"),
            attach: script!(always "queue/attach.lua"),
            kept: kept::KeptScripts::new(),
        }
    }
}

/// The queue, as one node uses it.
pub struct Queue {
    redis: Redis,
    me: Claimant,
    node: String,
    incarnation: String,
    scripts: Scripts,
    result_ttl: Duration,
    limits: Limits,
    /// Bytes that the ends in Redis took when some were added last.
    ends_bytes: AtomicU64,
}

impl Queue {
    /// Over a connection that is this executor's own.
    pub fn new(redis: Redis, me: Claimant) -> Self {
        Self {
            redis,
            me,
            node: me.node.to_string(),
            incarnation: format!("{:016x}", me.incarnation),
            scripts: Scripts::new(),
            result_ttl: RECORD_KEEP,
            limits: Limits::default(),
            ends_bytes: AtomicU64::new(0),
        }
    }

    /// With other limits than the usual ones.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// What jobs may take of Redis.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How many jobs are recorded at a time: not so many that there is seldom room for all of them.
    pub fn batch_jobs_max(&self) -> usize {
        let part = self.limits.going_max / limits::BATCHES_MIN;
        part.clamp(1, BATCH_JOBS_MAX as u64) as usize
    }

    /// Whether ends take so much of Redis that further results are to be files.
    pub fn ends_are_many(&self) -> bool {
        self.ends_bytes.load(Ordering::Relaxed) >= self.limits.ends_bytes_max / 2
    }

    /// With records kept for so long after the end, in place of `RECORD_KEEP`.
    pub fn with_result_ttl(self, result_ttl: Duration) -> Self {
        Self { result_ttl, ..self }
    }

    /// How long the record of a job that ended is kept.
    pub fn result_ttl(&self) -> Duration {
        self.result_ttl
    }

    /// As whom this claims.
    pub fn me(&self) -> Claimant {
        self.me
    }

    /// The connection.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Asks to be woken (the messages come to the connection's `on_push`).
    pub async fn subscribe(&self) -> Result<(), QueueError> {
        self.redis.subscribe(b"ks:wake").await?;
        let mine = format!("ks:wake:{}", self.node);
        Ok(self.redis.subscribe(mine.as_bytes()).await?)
    }

    /// Records and enqueues at most `BATCH_JOBS_MAX` jobs, in this order; up to `want` that may run here are claimed at once.
    /// `functions`: (hash, encoded `StoredFunction`) that others may need. Idempotent: a job that is there is not touched.
    /// All or nothing: where a limit would be exceeded, `full` says which, and nothing is recorded.
    pub async fn submit(
        &self,
        functions: &[(Vec<u8>, Vec<u8>)],
        jobs: &[Submission],
        want: impl Into<Want>,
    ) -> Result<Submitted, QueueError> {
        let want = want.into();
        let mut args = Arguments::of(self);
        args.number(LEASE.as_millis()).number(want.jobs);
        args.number(want.slots);
        args.number(self.result_ttl.as_millis().max(1));
        args.number(FUNCTION_KEEP.as_secs());
        args.number(self.limits.going_max)
            .number(self.limits.bodies_bytes_max);
        args.number(limits::INNER_PERCENT).number(functions.len());
        for (hash, code) in functions {
            args.bytes(hash).bytes(code);
        }
        for job in jobs {
            let priority = job.priority.clamp(-PRIORITY_MAX, PRIORITY_MAX);
            args.bytes(job.job.as_bytes()).bytes(&job.body);
            args.bytes(job.queue.as_bytes())
                .number(priority)
                .number(job.retries);
            args.bytes(job.places.as_bytes()).number(u8::from(job.here));
            args.bytes(job.outer.as_deref().unwrap_or_default().as_bytes());
        }
        match args.run(self, &self.scripts.submit).await {
            Err(error) if error.is_out_of_memory() => Ok(Submitted {
                full: Some(Full::Memory),
                ..Submitted::default()
            }),
            Err(error) => Err(error),
            Ok(answer) => parse_submitted(answer).ok_or(QueueError::Answer("submit")),
        }
    }

    /// Takes up to `want` jobs of these queues that may run here now; `took`: how long calls take here, as far as the others do not know.
    pub async fn claim(
        &self,
        queues: &[String],
        want: impl Into<Want>,
        took: &[Took],
    ) -> Result<Claims, QueueError> {
        let want = want.into();
        let mut args = Arguments::of(self);
        args.number(LEASE.as_millis()).number(want.jobs);
        args.number(want.of_others)
            .number(want.slots)
            .number(took.len());
        for one in took {
            args.bytes(format!("{:016x}", one.function).as_bytes());
            args.number(one.call_ms).number(one.longest_ms);
        }
        for queue in queues {
            args.bytes(queue.as_bytes());
        }
        let answer = args.run(self, &self.scripts.claim).await?;
        parse_claims(answer).ok_or(QueueError::Answer("claim"))
    }

    /// Closes records, in this order.
    pub async fn finish(&self, ends: &[Finish]) -> Result<Vec<Finished>, QueueError> {
        let mut args = Arguments::of(self);
        args.number(self.result_ttl.as_millis().max(1));
        args.number(TOLD_RECORDS_MAX).number(UNTOLD_RECORDS_MAX);
        args.number(self.limits.ends_bytes_max);
        for end in ends {
            args.bytes(end.job.as_bytes())
                .bytes(end.kind.as_bytes())
                .bytes(&end.ended);
            args.number(u8::from(end.retry))
                .number(u8::from(end.notify));
        }
        let answer = args.run(self, &self.scripts.finish).await?;
        let (ends_bytes, answers) = parse_finished(answer).ok_or(QueueError::Answer("finish"))?;
        self.ends_bytes.store(ends_bytes, Ordering::Relaxed);
        Ok(answers)
    }

    /// Gives jobs back that have not begun; `Some(places)`: to other places than before. Returns how many were still ours.
    pub async fn release(&self, jobs: &[(String, Option<String>)]) -> Result<u64, QueueError> {
        let mut args = Arguments::of(self);
        for (job, places) in jobs {
            args.bytes(job.as_bytes());
            args.bytes(places.as_deref().unwrap_or("*").as_bytes());
        }
        let answer = args.run(self, &self.scripts.release).await?;
        integer(&answer).ok_or(QueueError::Answer("release"))
    }

    /// One heart-beat. `false`: the lease had run out, and others may have taken what was claimed here.
    pub async fn renew(&self) -> Result<bool, QueueError> {
        let mut args = Arguments::of(self);
        args.number(LEASE.as_millis());
        let answer = args.run(self, &self.scripts.renew).await?;
        Ok(integer(&answer).ok_or(QueueError::Answer("renew"))? == 1)
    }

    /// Gives the lease up: this node claims nothing any more.
    pub async fn resign(&self) -> Result<(), QueueError> {
        let lease = format!("ks:lease:{}", self.node);
        let mut pipeline = redis::pipe();
        pipeline.cmd("DEL").arg(&lease);
        pipeline.cmd("HDEL").arg("ks:renewed").arg(&lease);
        self.redis.pipe(&pipeline).await?;
        Ok(())
    }

    /// Takes over what dead nodes held; `own_only`: what this node held before it died itself.
    pub async fn reap(&self, own_only: bool) -> Result<Vec<Reaped>, QueueError> {
        let mut args = Arguments::of(self);
        args.number(LEASE.as_millis())
            .number(REAPED_MAX)
            .number(u8::from(own_only));
        let answer = args.run(self, &self.scripts.reap).await?;
        let parse = |value: Value| {
            let [job, body, node] = fields(value)?;
            let node = text(node)?;
            Some(Reaped {
                job: text(job)?,
                body: bytes(body)?,
                lost_by: if node.is_empty() {
                    None
                } else {
                    Some(node.parse().ok()?)
                },
            })
        };
        list(answer)
            .and_then(|values| values.into_iter().map(parse).collect())
            .ok_or(QueueError::Answer("reap"))
    }

    /// Cancels jobs.
    pub async fn cancel(&self, jobs: &[String]) -> Result<Vec<CancelAnswer>, QueueError> {
        let mut args = Arguments::of(self);
        args.number(LEASE.as_millis());
        for job in jobs {
            args.bytes(job.as_bytes());
        }
        let answer = args.run(self, &self.scripts.cancel).await?;
        let parse = |value: Value| match text(value)?.as_str() {
            "taken" => Some(CancelAnswer::Taken),
            "told" => Some(CancelAnswer::Told),
            "over" => Some(CancelAnswer::Over),
            _ => Some(CancelAnswer::Unknown),
        };
        list(answer)
            .and_then(|values| values.into_iter().map(parse).collect())
            .ok_or(QueueError::Answer("cancel"))
    }

    /// The jobs that this one made (of one that ended as `done`: none). Some may have ended.
    pub async fn inner(&self, job: &str) -> Result<Vec<String>, QueueError> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(format!("ks:n:{job}"));
        self.texts(&command).await
    }

    /// From now on this node is told of these jobs.
    pub async fn attach(&self, jobs: &[String]) -> Result<Vec<Standing>, QueueError> {
        let mut args = Arguments(vec![self.node.clone().into_bytes()]);
        for job in jobs {
            args.bytes(job.as_bytes());
        }
        let answer = args.run(self, &self.scripts.attach).await?;
        let parse = |value: Value| {
            let mut parts = list(value)?.into_iter();
            match text(parts.next()?)?.as_str() {
                "ended" => Some(Standing::Ended(bytes(parts.next()?)?)),
                "going" => Some(Standing::Going),
                _ => Some(Standing::Unknown),
            }
        };
        list(answer)
            .and_then(|values| values.into_iter().map(parse).collect())
            .ok_or(QueueError::Answer("attach"))
    }

    /// How jobs stand, nothing changed.
    pub async fn standing(&self, jobs: &[String]) -> Result<Vec<Standing>, QueueError> {
        let mut pipeline = redis::pipe();
        for job in jobs {
            pipeline
                .cmd("HMGET")
                .arg(format!("ks:j:{job}"))
                .arg("s")
                .arg("e");
        }
        let answers = self.redis.pipe(&pipeline).await?;
        let parse = |value: Value| {
            let [state, ended] = fields(value)?;
            Some(match (bytes(state).as_deref(), bytes(ended)) {
                (Some(b"e"), Some(ended)) => Standing::Ended(ended),
                (Some(_), _) => Standing::Going,
                (None, _) => Standing::Unknown,
            })
        };
        let standings: Option<Vec<_>> = answers.into_iter().map(parse).collect();
        standings.ok_or(QueueError::Answer("standing"))
    }

    /// Jobs that have not ended: how many, and the oldest `limit` of them.
    pub async fn list(&self, limit: usize) -> Result<(u64, Vec<Listed>), QueueError> {
        let mut count = redis::cmd("ZCARD");
        count.arg("ks:jobs");
        let total = integer(&self.redis.run(&count).await?).ok_or(QueueError::Answer("list"))?;
        let jobs = self.going(limit).await?;
        let mut listed = Vec::with_capacity(jobs.len());
        for batch in jobs.chunks(BATCH_JOBS_MAX) {
            let mut pipeline = redis::pipe();
            for job in batch {
                pipeline.cmd("HMGET").arg(format!("ks:j:{job}"));
                pipeline.arg(&["s", "b", "q", "p", "r", "t", "a"]);
            }
            let answers = self.redis.pipe(&pipeline).await?;
            let parsed = batch
                .iter()
                .zip(answers)
                .filter_map(|(job, answer)| parse_listed(job, answer));
            listed.extend(parsed);
        }
        Ok((total, listed))
    }

    /// Jobs that have not ended, oldest first, at most `limit`.
    pub async fn going(&self, limit: usize) -> Result<Vec<String>, QueueError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg("ks:jobs").arg(0).arg(limit as i64 - 1);
        self.texts(&command).await
    }

    /// All jobs that have not ended, in no order, asked for in portions: Redis closes a connection for which much more than 8 MiB waits.
    pub async fn all_going(&self) -> Result<HashSet<String>, QueueError> {
        let mut found = HashSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut command = redis::cmd("ZSCAN");
            command.arg("ks:jobs").arg(&cursor);
            command.arg("COUNT").arg(PORTION_JOBS);
            let (next, jobs) = parse_portion(self.redis.run(&command).await?)
                .ok_or(QueueError::Answer("a portion of the jobs"))?;
            found.extend(jobs);
            if next == "0" {
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// Jobs that are claimed in this node's name.
    pub async fn claimed(&self) -> Result<Vec<String>, QueueError> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(format!("ks:c:{}:{}", self.node, self.incarnation));
        self.texts(&command).await
    }

    /// How many jobs wait in these queues (for any node, and for this one).
    pub async fn lengths(&self, queues: &[String]) -> Result<Vec<(String, u64)>, QueueError> {
        let mut pipeline = redis::pipe();
        for queue in queues {
            pipeline.cmd("ZCARD").arg(format!("ks:q:{queue}"));
            pipeline
                .cmd("ZCARD")
                .arg(format!("ks:q:{queue}:{}", self.node));
            pipeline
                .cmd("ZCARD")
                .arg(format!("ks:w:{queue}:{}", self.node));
        }
        let answers = self.redis.pipe(&pipeline).await?;
        let sums = answers
            .chunks(3)
            .map(|three| three.iter().filter_map(integer).sum());
        Ok(queues.iter().cloned().zip(sums).collect())
    }

    /// A function's code, as another node recorded it.
    pub async fn function(
        &self,
        hash: &[u8],
    ) -> Result<Option<record::StoredFunction>, QueueError> {
        let mut command = redis::cmd("GET");
        command.arg([b"ks:f:", hash].concat());
        match bytes(self.redis.run(&command).await?) {
            Some(found) => Ok(Some(record::decode(&found)?)),
            None => Ok(None),
        }
    }

    /// Notes until when a blob on this node is needed (ms since 1970).
    pub async fn keep_blobs(&self, hashes: &[[u8; 32]], until_ms: u64) -> Result<(), QueueError> {
        let mut command = redis::cmd("ZADD");
        command.arg(format!("ks:b:{}", self.node)).arg("GT");
        for hash in hashes {
            command.arg(until_ms).arg(&hash[..]);
        }
        self.redis.run(&command).await?;
        Ok(())
    }

    /// Takes up to `limit` blobs of this node that nobody needs any more.
    pub async fn spent_blobs(
        &self,
        now_ms: u64,
        limit: usize,
    ) -> Result<Vec<[u8; 32]>, QueueError> {
        let key = format!("ks:b:{}", self.node);
        let mut command = redis::cmd("ZRANGEBYSCORE");
        command
            .arg(&key)
            .arg("-inf")
            .arg(now_ms)
            .arg("LIMIT")
            .arg(0)
            .arg(limit);
        let found = list(self.redis.run(&command).await?).ok_or(QueueError::Answer("blobs"))?;
        let hashes: Vec<[u8; 32]> = found
            .into_iter()
            .filter_map(|value| bytes(value)?.try_into().ok())
            .collect();
        if !hashes.is_empty() {
            let mut remove = redis::cmd("ZREM");
            remove.arg(&key);
            for hash in &hashes {
                remove.arg(&hash[..]);
            }
            self.redis.run(&remove).await?;
        }
        Ok(hashes)
    }

    async fn texts(&self, command: &redis::Cmd) -> Result<Vec<String>, QueueError> {
        let answer = self.redis.run(command).await?;
        list(answer)
            .and_then(|values| values.into_iter().map(text).collect())
            .ok_or(QueueError::Answer("a list of jobs"))
    }
}

/// The arguments of a script.
struct Arguments(Vec<Vec<u8>>);

impl Arguments {
    fn of(queue: &Queue) -> Self {
        Self(vec![
            queue.node.clone().into_bytes(),
            queue.incarnation.clone().into_bytes(),
        ])
    }
    fn bytes(&mut self, argument: &[u8]) -> &mut Self {
        self.0.push(argument.to_vec());
        self
    }
    fn number(&mut self, argument: impl ToString) -> &mut Self {
        self.0.push(argument.to_string().into_bytes());
        self
    }
    async fn run(&self, queue: &Queue, script: &Script) -> Result<Value, QueueError> {
        let args: Vec<&[u8]> = self.0.iter().map(Vec::as_slice).collect();
        Ok(queue.redis.script(script, &[], &args).await?)
    }
}
