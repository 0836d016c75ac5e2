//! Rebuilding the tree from the nodes' journals, when Redis has lost it.
//!
//! Who takes part: every node that finds no tree in Redis (`fence`, or at its start) brings what its own journal says (`merge.lua`: the
//! latest counts, in whatever order it is brought); when all that are there have, one of them gives the names (`naming`, `enter.lua`) and
//! declares the tree whole. A node that comes later brings what is news of its journal as ordinary changes (`late`).
//! Afterwards each node compares its data directory with the tree (`store::reconcile`, `store::retell`).
//!
//! Always: every step can be done again, by the same node or another one; a tree that is not whole answers nobody. What was changed
//! after the tree was whole is later than anything a journal says (`ks:recovered` holds `~` for it). Numbers are the old ones, and none
//! that any journal knows is given out again.
//!
//! In Redis meanwhile: `ks:merging` (hash: node -> how much it has brought, or `done`), `ks:lead` (who gives the names; expires); for as
//! long as the tree lives: `ks:recovered` (hash: what of whom -> stand), `ks:merged` (hash: node -> the rebuilding that it has caught up with).
mod claim;
mod demand;
mod late;
mod naming;

pub use demand::{NodeRecovered, RecoveryState};

use super::journal::{Entry, Folded, Journal, PARTS, Stand};
use super::namespace::Record;
use super::reads::{array, bytes, damaged};
use super::{Catalog, CatalogError, FORMAT, numbers};
use crate::record::*;
use crate::redis_client::{Redis, Script};
use redis::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::time::Instant;

/// `ks:merged`.
pub(super) const MERGED: &str = "ks:merged";
/// `ks:recovered`.
pub(super) const RECOVERED: &str = "ks:recovered";
const MERGING: &str = "ks:merging";
const LEAD: &str = "ks:lead";
/// So long after the first node began, the others may come: each looks at every heart-beat.
const GATHERING: Duration = Duration::from_secs(4);
/// A node that has begun and brings nothing for so long is not waited for.
const STALLED: Duration = Duration::from_secs(5);
/// Who gives the names says so at least so often, milliseconds; else another one does.
const LEAD_MS: u64 = 10_000;
/// Between two looks at how far the others are.
const LOOK: Duration = Duration::from_millis(100);
/// How long a node that knows nothing of the tree waits for others to rebuild it.
const JOIN_WAIT: Duration = Duration::from_secs(30);
/// Entries in one call of a script.
const BATCH: usize = 500;

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("begin.lua")));
static MERGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("merge.lua")));

/// Some keys of a kind, and where to go on (`0`: those were the last).
async fn scan_keys(
    redis: &Redis,
    kind: &str,
    cursor: &str,
) -> Result<(String, Vec<Vec<u8>>), CatalogError> {
    let mut command = redis::cmd("SCAN");
    command
        .arg(cursor)
        .arg("MATCH")
        .arg(kind)
        .arg("COUNT")
        .arg(1000);
    let answer = array(redis.run(&command).await?).ok_or_else(|| damaged("keys"))?;
    let [next, keys]: [Value; 2] = answer.try_into().map_err(|_| damaged("keys"))?;
    let keys = array(keys).ok_or_else(|| damaged("keys"))?;
    let next = text(next).ok_or_else(|| damaged("keys"))?;
    Ok((next, keys.into_iter().filter_map(bytes).collect()))
}

/// What `ks:meta` says.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) format: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) whole: Option<String>,
    pub(super) recovery: Option<String>,
    /// Numbers below were given before the tree was rebuilt.
    pub(super) floor: Option<Ino>,
}

pub(super) async fn meta(redis: &Redis) -> Result<Meta, CatalogError> {
    let mut command = redis::cmd("HMGET");
    command.arg("ks:meta");
    command.arg(&["format", "cluster", "whole", "recovery", "floor"]);
    let values = array(redis.run(&command).await?).ok_or_else(|| damaged("ks:meta"))?;
    let mut texts = values.into_iter().map(text);
    let mut next = || texts.next().flatten();
    Ok(Meta {
        format: next(),
        cluster: next(),
        whole: next(),
        recovery: next(),
        floor: next().and_then(|floor| floor.parse().ok()),
    })
}

fn text(value: Value) -> Option<String> {
    let text = String::from_utf8(bytes(value)?).ok()?;
    (!text.is_empty()).then_some(text)
}

/// The tree as a node finds it at its start.
pub(super) struct Opened {
    pub(super) cluster: String,
    /// It was rebuilt since this node last compared its data directory with it.
    pub(super) is_behind: bool,
}

/// The tree that stands in Redis, made where there is none, or rebuilt where the journal says that there was one.
pub(super) async fn open_tree(
    redis: &Redis,
    journal: Option<&Arc<Journal>>,
    me: NodeId,
) -> Result<Opened, CatalogError> {
    check_format(redis).await?;
    let known = journal.and_then(|journal| Some((journal, journal.cluster()?)));
    if let Some((journal, cluster)) = &known {
        let rebuilding = Rebuilding {
            redis,
            journal,
            me,
            cluster,
        };
        match rebuilding.run().await? {
            Rebuilt::Whole(recovery) => {
                return Ok(Opened {
                    cluster: cluster.clone(),
                    is_behind: is_behind(redis, recovery, me).await?,
                });
            }
            Rebuilt::Foreign(other) => {
                tracing::warn!(ours = %cluster, redis = %other, "this redis has another cluster's tree: the files here join it as new ones");
            }
        }
    }
    let (meta, made) = join_tree(redis).await?;
    let cluster = meta.whole.ok_or_else(|| damaged("ks:meta"))?;
    if let Some(journal) = journal {
        let noted = journal.belongs_to(&cluster);
        let noted = noted.and_then(|()| journal.append(&made));
        noted.map_err(|error| CatalogError::Journal(error.to_string()))?;
    }
    Ok(Opened {
        is_behind: is_behind(redis, meta.recovery, me).await? && journal.is_some(),
        cluster,
    })
}

async fn check_format(redis: &Redis) -> Result<(), CatalogError> {
    match meta(redis).await?.format {
        Some(found) if found != FORMAT => Err(CatalogError::Format { found }),
        _ => Ok(()),
    }
}

/// The tree of whoever has one here, waited for while it is being rebuilt; made where there is none.
async fn join_tree(redis: &Redis) -> Result<(Meta, Vec<Entry>), CatalogError> {
    let mut made = Vec::new();
    let deadline = Instant::now() + JOIN_WAIT;
    loop {
        let found = meta(redis).await?;
        match (&found.cluster, &found.whole, &found.recovery) {
            (Some(_), Some(_), _) => return Ok((found, made)),
            (None, _, _) => made = super::make_tree(redis).await?,
            // Of a program that did not say so yet.
            (Some(cluster), None, None) => {
                let mut command = redis::cmd("HSETNX");
                command.arg("ks:meta").arg("whole").arg(cluster);
                redis.run(&command).await?;
            }
            (Some(_), None, Some(_)) => tokio::time::sleep(LOOK).await,
        }
        if Instant::now() > deadline {
            return Err(super::fence::being_rebuilt().into());
        }
    }
}

pub(super) async fn is_behind(
    redis: &Redis,
    recovery: Option<String>,
    me: NodeId,
) -> Result<bool, CatalogError> {
    let Some(recovery) = recovery else {
        return Ok(false);
    };
    let mut command = redis::cmd("HGET");
    command.arg(MERGED).arg(me.to_string());
    Ok(text(redis.run(&command).await?) != Some(recovery))
}

/// How a rebuilding ended for this node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rebuilt {
    /// The tree stands, or stands again; with the name of its last rebuilding, if there was one.
    Whole(Option<String>),
    /// This Redis has another cluster's tree.
    Foreign(String),
}

/// One node's part in a rebuilding.
pub(super) struct Rebuilding<'r> {
    pub(super) redis: &'r Redis,
    pub(super) journal: &'r Arc<Journal>,
    pub(super) me: NodeId,
    /// What the journal says.
    pub(super) cluster: &'r str,
}

impl Rebuilding<'_> {
    /// Returns when the tree is whole.
    pub(super) async fn run(&self) -> Result<Rebuilt, CatalogError> {
        let mut has_brought = false;
        let mut seen: (BTreeMap<String, String>, Instant) = (BTreeMap::new(), Instant::now());
        loop {
            let begun = self.begin().await?;
            if begun.cluster != self.cluster {
                return Ok(Rebuilt::Foreign(begun.cluster));
            }
            if begun.whole {
                return Ok(Rebuilt::Whole(begun.recovery));
            }
            if !has_brought {
                self.bring().await?;
                has_brought = true;
            }
            let merging = self.merging().await?;
            if merging != seen.0 {
                seen = (merging, Instant::now());
            }
            let all = seen.0.values().all(|state| state == "done");
            let gathered = begun.age >= GATHERING && (all || seen.1.elapsed() >= STALLED);
            if gathered && self.leads().await? {
                naming::Naming::new(self).run().await?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn begin(&self) -> Result<Begun, CatalogError> {
        let now = super::now();
        let unique = format!("{now} {} {}", std::process::id(), self.me);
        let recovery = blake3::hash(unique.as_bytes()).to_hex()[..16].to_owned();
        let root = encode(&super::new_root(now));
        let first = numbers::first(now).to_string();
        let me = self.me.to_string();
        let args: [&[u8]; 6] = [
            self.cluster.as_bytes(),
            FORMAT.as_bytes(),
            first.as_bytes(),
            &root,
            recovery.as_bytes(),
            me.as_bytes(),
        ];
        let reply = self.redis.script(&BEGIN, &[], &args).await?;
        let parts = array(reply).ok_or_else(|| damaged("begin"))?;
        let [cluster, whole, recovery, age]: [Value; 4] =
            parts.try_into().map_err(|_| damaged("begin"))?;
        let age_ms: u64 = text(age).and_then(|age| age.parse().ok()).unwrap_or(0);
        Ok(Begun {
            cluster: text(cluster).ok_or_else(|| damaged("begin"))?,
            whole: text(whole).is_some(),
            recovery: text(recovery),
            age: Duration::from_millis(age_ms),
        })
    }

    /// Merges this node's journal.
    async fn bring(&self) -> Result<(), CatalogError> {
        let mut count = 0;
        for part in 0..PARTS {
            let folded = read_part(self.journal, part).await?;
            let mut words = Vec::new();
            let mut ino_max = 0;
            for (ino, of) in &folded {
                words.extend(merge_words(*ino, of));
                ino_max = ino_max.max(*ino);
                if words.len() >= 4 * BATCH {
                    count += words.len() / 4;
                    self.merge(std::mem::take(&mut words), count, ino_max)
                        .await?;
                }
            }
            if !words.is_empty() {
                count += words.len() / 4;
                self.merge(words, count, ino_max).await?;
            }
        }
        tracing::info!(
            entries = count,
            "this node's journal is merged into the tree that is rebuilt"
        );
        let mut done = redis::cmd("HSET");
        done.arg(MERGING).arg(self.me.to_string()).arg("done");
        self.redis.run(&done).await?;
        Ok(())
    }

    async fn merge(
        &self,
        entries: Vec<Vec<u8>>,
        count: usize,
        ino_max: Ino,
    ) -> Result<(), CatalogError> {
        let head = [
            self.cluster.to_owned(),
            self.me.to_string(),
            count.to_string(),
            ino_max.to_string(),
        ];
        let head = head.iter().map(|word| word.as_bytes());
        let args: Vec<&[u8]> = head.chain(entries.iter().map(|word| &word[..])).collect();
        // Refused (-1) when names are being given already: then it is brought later.
        self.redis.script(&MERGE, &[], &args).await?;
        Ok(())
    }

    async fn merging(&self) -> Result<BTreeMap<String, String>, CatalogError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(MERGING);
        let values = array(self.redis.run(&command).await?).ok_or_else(|| damaged("ks:merging"))?;
        let mut texts = values.into_iter().filter_map(text);
        let mut all = BTreeMap::new();
        while let (Some(node), Some(state)) = (texts.next(), texts.next()) {
            all.insert(node, state);
        }
        Ok(all)
    }

    /// Whether this node is to give the names now.
    async fn leads(&self) -> Result<bool, CatalogError> {
        let mut command = redis::cmd("SET");
        command.arg(LEAD).arg(self.me.to_string());
        command.arg("NX").arg("PX").arg(LEAD_MS);
        Ok(self.redis.run(&command).await? != Value::Nil)
    }

    async fn goes_on_leading(&self) -> Result<(), CatalogError> {
        let mut command = redis::cmd("SET");
        command.arg(LEAD).arg(self.me.to_string());
        command.arg("PX").arg(LEAD_MS);
        self.redis.run(&command).await?;
        Ok(())
    }
}

struct Begun {
    cluster: String,
    whole: bool,
    recovery: Option<String>,
    age: Duration,
}

pub(super) async fn read_part(
    journal: &Arc<Journal>,
    part: usize,
) -> Result<BTreeMap<Ino, Folded>, CatalogError> {
    let journal = journal.clone();
    let read = tokio::task::spawn_blocking(move || journal.read(part));
    let read = read
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| CatalogError::Journal(error.to_string()))
}

/// The words of `merge.lua` for one inode.
fn merge_words(ino: Ino, of: &Folded) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut add = |kind: &str, stand: Stand, value: Vec<u8>| {
        let head = [kind.to_owned(), ino.to_string(), stand.to_text()];
        words.extend(head.map(String::into_bytes));
        words.push(value);
    };
    if let Some((stand, record)) = &of.record {
        add("i", *stand, record.clone().unwrap_or_default());
    }
    for (link, (stand, is_there)) in &of.links {
        let sign = if *is_there { b'+' } else { b'-' };
        add("l", *stand, [&[sign][..], &link.to_bytes()].concat());
    }
    if let Some((stand, time)) = of.time {
        add("t", stand, time.to_string().into_bytes());
    }
    words
}

impl Catalog {
    /// Rebuilds the tree while this node runs.
    pub(super) async fn rebuild_running(&self) -> Result<(), CatalogError> {
        let Some(journal) = &self.shared.journal else {
            return Err(super::fence::being_rebuilt().into());
        };
        let rebuilding = Rebuilding {
            redis: self.redis(),
            journal,
            me: self.me(),
            cluster: &self.shared.cluster,
        };
        match rebuilding.run().await? {
            Rebuilt::Whole(_) => {
                self.shared.numbers.forget();
                self.enter_again().await?;
                // Before its files are compared with the tree: what is in the journal comes under its own numbers.
                self.forget_tree();
                self.bring_late().await?;
                self.tree_is_back();
                Ok(())
            }
            Rebuilt::Foreign(other) => Err(CatalogError::Foreign { found: other }),
        }
    }

    /// Whether an inode that the tree does not have was removed (and not only forgotten): so that a copy of it here may go.
    pub async fn was_removed(&self, ino: Ino) -> Result<bool, CatalogError> {
        let meta = meta(self.redis()).await?;
        if meta.whole.as_deref() != Some(self.cluster()) {
            return Err(super::fence::being_rebuilt().into());
        }
        // In one step: it may be entered again just now.
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("EXISTS").arg(format!("ks:i:{ino}"));
        pipeline.cmd("HEXISTS").arg(RECOVERED).arg(ino.to_string());
        let answers = self.redis().pipe(&pipeline).await?;
        // A transaction's answer is one array.
        let answers = match &answers[..] {
            [Value::Array(inner)] => inner.clone(),
            _ => answers,
        };
        let (stands, was_known) = match &answers[..] {
            [Value::Int(stands), Value::Int(known)] => (*stands != 0, *known != 0),
            _ => return Err(damaged("an inode")),
        };
        Ok(!stands && meta.floor.is_none_or(|floor| ino > floor || was_known))
    }

    /// Notes the directories above `at` and itself, as what anybody else knows better: whoever has a copy can tell where it stands.
    pub(super) fn journal_above(&self, at: Ino) {
        let Some(journal) = &self.shared.journal else {
            return;
        };
        let mut entries = Vec::new();
        let mut at = at;
        let mut cache = self.shared.memory.locked();
        while at != ROOT && entries.len() < super::namespace::DEPTH_MAX {
            let Some(record) = cache.inode(at) else { break };
            if !journal.is_news(at, &record.bytes) {
                break;
            }
            entries.push(Entry {
                ino: at,
                stand: Stand::HEARSAY,
                what: super::journal::What::Record(record.bytes.to_vec()),
            });
            at = record.inode.parent;
        }
        drop(cache);
        self.journal(&entries);
    }

    /// Journals what a commit left, and where that stands.
    pub(super) fn journal_committed(
        &self,
        transaction: &super::transaction::Transaction,
        stand: Stand,
    ) {
        use super::transaction::{Operation, Place};
        let Some(journal) = &self.shared.journal else {
            return;
        };
        let untold = &self.shared.fence.untold;
        untold.fetch_max(stand.2, std::sync::atomic::Ordering::AcqRel);
        if late::is_told(transaction) {
            return journal.has_nothing_of(stand);
        }
        self.journal(&super::journal::entries_of(transaction, stand));
        for operation in &transaction.operations {
            match operation {
                Operation::Set(Place::Inode(ino), _) => {
                    let record = self.shared.memory.locked().inode(*ino);
                    if let Some(record) = record {
                        self.journal_above(record.inode.parent);
                    }
                }
                Operation::SetField(Place::Directory(ino), _, _) => self.journal_above(*ino),
                _ => {}
            }
        }
    }

    /// Appends what a commit left to this node's journal.
    pub(super) fn journal(&self, entries: &[super::journal::Entry]) {
        let Some(journal) = &self.shared.journal else {
            return;
        };
        if let Err(error) = journal.append(entries) {
            tracing::error!(%error, "the journal in the data directory cannot be written: a change would be lost with redis");
        }
    }

    /// Changes of this node's that came by in the stream, and whose maker may have been killed before they were journaled.
    pub(crate) async fn journal_again(
        &self,
        events: &[(super::EventId, Event)],
    ) -> Result<(), CatalogError> {
        let Some(journal) = &self.shared.journal else {
            return Ok(());
        };
        let missing: Vec<_> = events.iter().filter(|(id, _)| !journal.has(*id)).collect();
        let inos = missing.iter().flat_map(|(_, event)| event.inos());
        let inos: BTreeSet<Ino> = inos.collect();
        if inos.is_empty() {
            return Ok(());
        }
        let inos: Vec<Ino> = inos.into_iter().collect();
        let records = self.records(&inos).await?;
        let mut entries = Vec::new();
        for (id, event) in missing {
            let stand = Stand(id.0, id.1, 0);
            for ino in event.inos() {
                let record = records.get(&ino);
                entries.extend(further_link(event, record, stand));
                let what = match record {
                    Some(record) => super::journal::What::Record(record.bytes.to_vec()),
                    None => super::journal::What::Gone,
                };
                entries.push(Entry { ino, stand, what });
            }
        }
        self.journal(&entries);
        Ok(())
    }
}

/// What an event says of a further hard link.
fn further_link(event: &Event, record: Option<&Record>, stand: Stand) -> Option<Entry> {
    let (Event::Linked { parent, name, ino }
    | Event::Unlinked {
        parent, name, ino, ..
    }) = event
    else {
        return None;
    };
    let is_there = matches!(event, Event::Linked { .. });
    let inode = &record?.inode;
    let is_first = (inode.parent, &inode.name) == (*parent, name);
    (!is_first).then(|| Entry {
        ino: *ino,
        stand,
        what: super::journal::What::Link(*parent, name.clone(), is_there),
    })
}

/// A directory that something stands in and that nobody knows: in the root, under its old number.
fn found_directory(ino: Ino) -> Inode {
    Inode {
        name: format!("recovered-{ino}").into_bytes(),
        ..super::new_root(0)
    }
}
