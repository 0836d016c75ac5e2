//! Rebuilding the tree because somebody asks for it (`ks recover`): what Redis has is noted in this node's journal, as far as it can be
//! read; then the tree is declared lost, and all nodes rebuild it as if Redis had been emptied.
//!
//! Always: nothing that Redis or any journal knows is lost by it; a node that is not there brings its part when it comes.
use super::{MERGED, MERGING, meta, scan_keys, text};
use crate::catalog::journal::{Entry, Stand, What};
use crate::catalog::reads::{array, bytes, damaged};
use crate::catalog::transaction::TIME_FIELD;
use crate::catalog::{Catalog, CatalogError, now};
use crate::record::*;
use crate::redis_client::Script;
use redis::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

static RECOVER: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../recover.lua")));
/// `ks:reports` (hash: node -> what its data directory told the tree, JSON).
const REPORTS: &str = "ks:reports";

/// How far a rebuilding is.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct RecoveryState {
    /// Names are given: the tree answers.
    pub whole: bool,
    /// Every node that lives has compared its data directory with it.
    pub done: bool,
    /// The nodes, by name.
    pub nodes: Vec<NodeRecovered>,
}

/// A node's part in a rebuilding.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct NodeRecovered {
    /// Its name.
    pub node: String,
    /// It is there.
    pub alive: bool,
    /// Its journal and its data directory are in the tree.
    pub done: bool,
    /// How many entries of its journal it has brought so far, or `done`; empty once the tree is whole.
    pub brought: String,
    /// What its data directory told: `copies`, `found`, `newer` (files), `conflicts` (paths); null before.
    pub told: Option<serde_json::Value>,
}

impl Catalog {
    /// Declares the tree lost. `false`: it is being rebuilt already.
    pub async fn recover(&self) -> Result<bool, CatalogError> {
        if self.shared.journal.is_none() {
            return Err(CatalogError::Journal("there is none here".into()));
        }
        if meta(self.redis()).await?.whole.as_deref() != Some(self.cluster()) {
            return Ok(false);
        }
        let noted = self.note_all().await?;
        tracing::warn!(
            entries = noted,
            "the tree is rebuilt from the data directories: it was asked for"
        );
        let unique = format!("{} {}", now(), self.me());
        let recovery = blake3::hash(unique.as_bytes()).to_hex()[..16].to_owned();
        let args = [self.cluster().as_bytes(), recovery.as_bytes()];
        let declared = self.redis().script(&RECOVER, &[], &args).await?;
        // Who asks first notices: it is not left to the next heart-beat.
        self.notice_loss();
        Ok(declared == Value::Int(1))
    }

    /// Notes what Redis has in this node's journal. What is changed meanwhile is noted by those who change it, as later than this.
    async fn note_all(&self) -> Result<usize, CatalogError> {
        let last = self.last_event().await?;
        let mut command = redis::cmd("HGET");
        command.arg("ks:meta").arg("untold");
        let untold = text(self.redis().run(&command).await?);
        let untold = untold.and_then(|number| number.parse().ok()).unwrap_or(0);
        let stand = Stand(last.0, last.1, untold);
        let mut noted = 0;
        let mut cursor = "0".to_owned();
        loop {
            let (next, keys) = scan_keys(self.redis(), "ks:i:*", &cursor).await?;
            let inos = keys.iter().filter_map(|key| {
                let text = std::str::from_utf8(key).ok()?;
                text.strip_prefix("ks:i:")?.parse::<Ino>().ok()
            });
            let inos: Vec<Ino> = inos.collect();
            let entries = self.entries_now(&inos, stand).await?;
            noted += entries.len();
            self.journal(&entries);
            cursor = next;
            if cursor == "0" {
                return Ok(noted);
            }
        }
    }

    async fn entries_now(&self, inos: &[Ino], stand: Stand) -> Result<Vec<Entry>, CatalogError> {
        if inos.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for ino in inos {
            pipeline.cmd("GET").arg(format!("ks:i:{ino}"));
            pipeline.cmd("SMEMBERS").arg(format!("ks:l:{ino}"));
            pipeline
                .cmd("HGET")
                .arg(format!("ks:d:{ino}"))
                .arg(TIME_FIELD);
        }
        let mut answers = self.redis().pipe(&pipeline).await?.into_iter();
        let mut entries = Vec::new();
        for ino in inos.iter().copied() {
            let mut next = || answers.next().unwrap_or(Value::Nil);
            let (record, links, time) = (next(), next(), next());
            let Some(record) = bytes(record) else {
                continue;
            };
            let mut add = |what| entries.push(Entry { ino, stand, what });
            match decode::<Inode>(&record) {
                Ok(_) => add(What::Record(record)),
                Err(error) => {
                    tracing::error!(ino, %error, "a record in redis cannot be read: rebuilt from the journals");
                    continue;
                }
            }
            if let Value::Set(members) | Value::Array(members) = links {
                let read = members.into_iter().filter_map(bytes);
                for link in read.filter_map(|member| Link::from_bytes(&member).ok()) {
                    add(What::Link(link.parent, link.name, true));
                }
            }
            if let Some(time) = text(time).and_then(|time| time.parse().ok()) {
                add(What::Time(time));
            }
        }
        Ok(entries)
    }

    /// Notes what this node's data directory told the tree.
    pub async fn report_recovered(&self, told: &serde_json::Value) -> Result<(), CatalogError> {
        let mut command = redis::cmd("HSET");
        command
            .arg(REPORTS)
            .arg(self.me().to_string())
            .arg(told.to_string());
        self.redis().run(&command).await?;
        Ok(())
    }

    /// How far the last rebuilding is.
    pub async fn recovery_state(&self) -> Result<RecoveryState, CatalogError> {
        let meta = meta(self.redis()).await?;
        let (merging, merged) = (self.texts(MERGING).await?, self.texts(MERGED).await?);
        let reports = self.texts(REPORTS).await?;
        let mut nodes = Vec::new();
        for state in self.nodes().await?.iter() {
            let key = state.id.to_string();
            let told = reports
                .get(&key)
                .and_then(|text| serde_json::from_str(text).ok());
            nodes.push(NodeRecovered {
                node: state.info.name.clone(),
                alive: state.alive,
                done: meta.whole.is_some() && merged.get(&key) == meta.recovery.as_ref(),
                brought: merging.get(&key).cloned().unwrap_or_default(),
                told,
            });
        }
        let whole = meta.whole.is_some();
        Ok(RecoveryState {
            done: whole && nodes.iter().all(|node| node.done || !node.alive),
            whole,
            nodes,
        })
    }

    async fn texts(&self, key: &str) -> Result<BTreeMap<String, String>, CatalogError> {
        let mut command = redis::cmd("HGETALL");
        command.arg(key);
        let values = array(self.redis().run(&command).await?).ok_or_else(|| damaged(key))?;
        let mut values = values.into_iter().filter_map(text);
        let mut all = BTreeMap::new();
        while let (Some(field), Some(value)) = (values.next(), values.next()) {
            all.insert(field, value);
        }
        Ok(all)
    }
}
