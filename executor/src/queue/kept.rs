//! The catalog of kept values: which there are, how large, who holds them. Names and numbers only: the values are files of their
//! holders (`ks_fs::store::kept`).
//!
//! Always: an id stands for one value at a time; a holder of what is not kept any more is told (`k<hash>` on its channel), and what
//! a lost message left is found by its sweep.
use super::{BATCH_JOBS_MAX, Queue, QueueError, list, text};
use ks_fs::record::{Hash, NodeId};
use ks_fs::redis_client::Script;
use redis::Value;
use std::collections::HashMap;
use std::time::Duration;

/// How long it is remembered who had a value that nobody has any more.
const LOST_KEEP: Duration = Duration::from_secs(24 * 3600);

pub(super) struct KeptScripts {
    keep: Script,
    hold: Script,
    forget: Script,
    leave: Script,
}

impl KeptScripts {
    pub(super) fn new() -> Self {
        Self {
            keep: Script::new(include_str!("keep.lua")),
            hold: Script::new(include_str!("hold.lua")),
            forget: Script::new(include_str!("forget.lua")),
            leave: Script::new(include_str!("leave.lua")),
        }
    }
}

/// A value that a node begins to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKept {
    /// 32 hex digits.
    pub id: String,
    /// BLAKE3 of its file.
    pub hash: Hash,
    /// Bytes of its file.
    pub size_bytes: u64,
    /// What it belongs to: a pool; may be empty.
    pub group: String,
    /// For people: its key.
    pub name: String,
}

/// What is known of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// BLAKE3 of its file.
    pub hash: Hash,
    /// Bytes of its file.
    pub size_bytes: u64,
    /// For people: its key.
    pub name: String,
    /// Nodes that have it.
    pub holders: Vec<NodeId>,
    /// The name of the node that had it last, where nobody has it any more.
    pub lost_with: Option<String>,
}

fn parse(fields: Vec<Value>) -> Option<Kept> {
    let texts: Vec<String> = fields.into_iter().map(text).collect::<Option<_>>()?;
    let fields: HashMap<&str, &str> = texts
        .chunks_exact(2)
        .map(|pair| (pair[0].as_str(), pair[1].as_str()))
        .collect();
    let mut hash = Hash::default();
    hex::decode_to_slice(fields.get("h")?, &mut hash).ok()?;
    let mut holders: Vec<NodeId> = fields
        .keys()
        .filter_map(|field| field.strip_prefix('@')?.parse().ok())
        .collect();
    holders.sort_unstable();
    Some(Kept {
        hash,
        size_bytes: fields.get("s")?.parse().ok()?,
        name: fields.get("n")?.to_string(),
        holders,
        lost_with: fields.get("x").map(|name| name.to_string()),
    })
}

fn pairs(answer: Value) -> Option<Vec<Value>> {
    match answer {
        Value::Map(pairs) => Some(pairs.into_iter().flat_map(|(a, b)| [a, b]).collect()),
        other => list(other),
    }
}

impl Queue {
    async fn run_kept(&self, script: &Script, args: &[Vec<u8>]) -> Result<u64, QueueError> {
        let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
        match self.redis.script(script, &[], &args).await? {
            Value::Int(count) => Ok(count.max(0) as u64),
            _ => Err(QueueError::Answer("kept values")),
        }
    }

    fn head(&self, second: String) -> Vec<Vec<u8>> {
        vec![self.node.clone().into_bytes(), second.into_bytes()]
    }

    /// This node keeps these values from now on. `until_ms`: since 1970; `None`: for ever.
    pub async fn keep(&self, values: &[NewKept], until_ms: Option<u64>) -> Result<(), QueueError> {
        for batch in values.chunks(BATCH_JOBS_MAX) {
            let mut args = self.head(until_ms.map_or("inf".into(), |until| until.to_string()));
            for value in batch {
                args.push(value.id.clone().into_bytes());
                args.push(hex::encode(value.hash).into_bytes());
                args.push(value.size_bytes.to_string().into_bytes());
                args.push(value.group.clone().into_bytes());
                args.push(value.name.clone().into_bytes());
            }
            self.run_kept(&self.scripts.kept.keep, &args).await?;
        }
        Ok(())
    }

    /// This node has brought these values to itself. Returns how many are kept still.
    pub async fn hold(&self, values: &[(String, Hash)], until_ms: u64) -> Result<u64, QueueError> {
        let mut args = self.head(until_ms.to_string());
        for (id, hash) in values {
            args.push(id.clone().into_bytes());
            args.push(hex::encode(hash).into_bytes());
        }
        self.run_kept(&self.scripts.kept.hold, &args).await
    }

    /// These values are not needed any more; how many there were.
    pub async fn forget_kept(&self, ids: &[String]) -> Result<u64, QueueError> {
        let mut count = 0;
        for batch in ids.chunks(BATCH_JOBS_MAX) {
            let args: Vec<_> = batch.iter().map(|id| id.clone().into_bytes()).collect();
            count += self.run_kept(&self.scripts.kept.forget, &args).await?;
        }
        Ok(count)
    }

    /// This node (of this name) does not have these values any more; how many nobody has now.
    pub async fn leave_kept(&self, ids: &[String], name: &str) -> Result<u64, QueueError> {
        let mut count = 0;
        for batch in ids.chunks(BATCH_JOBS_MAX) {
            let mut args = self.head(name.to_owned());
            args.push(LOST_KEEP.as_millis().to_string().into_bytes());
            args.extend(batch.iter().map(|id| id.clone().into_bytes()));
            count += self.run_kept(&self.scripts.kept.leave, &args).await?;
        }
        Ok(count)
    }

    /// What is known of these values, in this order; `None`: nothing.
    pub async fn kept(&self, ids: &[String]) -> Result<Vec<Option<Kept>>, QueueError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for id in ids {
            pipeline.cmd("HGETALL").arg(format!("ks:k:{id}"));
        }
        let answers = self.redis.pipe(&pipeline).await?;
        let fields = |answer| pairs(answer).ok_or(QueueError::Answer("kept values"));
        answers
            .into_iter()
            .map(|answer| Ok(parse(fields(answer)?)))
            .collect()
    }

    /// The values of a group, by id.
    pub async fn kept_group(&self, group: &str) -> Result<Vec<(String, Kept)>, QueueError> {
        let members = redis::cmd("SMEMBERS")
            .arg(format!("ks:kg:{group}"))
            .to_owned();
        let ids = self.texts(&members).await?;
        let known = self.kept(&ids).await?;
        let found = ids.into_iter().zip(known);
        Ok(found.filter_map(|(id, kept)| Some((id, kept?))).collect())
    }

    /// The ids of the values that this node holds; `before_ms`: those that are to go by then.
    pub async fn kept_here(&self, before_ms: Option<u64>) -> Result<Vec<String>, QueueError> {
        let before = before_ms.map_or("+inf".into(), |ms| ms.to_string());
        let command = redis::cmd("ZRANGEBYSCORE")
            .arg(format!("ks:kn:{}", self.node))
            .arg("-inf")
            .arg(before)
            .to_owned();
        self.texts(&command).await
    }

    /// The ids of those that this node keeps for ever.
    pub async fn kept_for_ever(&self) -> Result<Vec<String>, QueueError> {
        let command = redis::cmd("ZRANGEBYSCORE")
            .arg(format!("ks:kn:{}", self.node))
            .arg("+inf")
            .arg("+inf")
            .to_owned();
        self.texts(&command).await
    }

    /// They were used of late: they stay longer.
    pub async fn prolong_kept(&self, ids: &[String], until_ms: u64) -> Result<(), QueueError> {
        let mut command = redis::cmd("ZADD");
        command
            .arg(format!("ks:kn:{}", self.node))
            .arg("XX")
            .arg("GT");
        for id in ids {
            command.arg(until_ms).arg(id);
        }
        if !ids.is_empty() {
            self.redis.run(&command).await?;
        }
        Ok(())
    }
}
