//! Kept values on their way: what a call uses is found or brought here before it runs, what it is to leave here is recorded before
//! its end is told, and what nobody needs any more goes.
//!
//! Who takes part: workers and clients on this machine write the files (`kitchensink/kept.py`), `queue::kept` is the shared truth
//! of who holds what, `ks_fs::store::kept` has the files. What always holds: a file that the catalog does not know is removed; a value that
//! nobody has any more is told as `KeyLost`, with the node that had it last.
use super::Executor;
use super::payload::{hash_of, now_ms};
use crate::placement::{FileFact, NodeFact};
use crate::protocol::{Call, KeepAs, KeptFile, KeptValue, ToWorker};
use crate::queue::QueueError;
use crate::queue::kept::{Kept, NewKept};
use ks_fs::record::Hash;
use std::collections::{HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A value's file has been recorded after this, or nobody will: its writer died, or its call failed.
const ORPHAN_AGE: Duration = Duration::from_secs(600);
/// Values that one call may use.
pub const USED_MAX: usize = 10_000;

/// The values that were used since the last sweep: they stay longer.
#[derive(Default)]
pub(super) struct Used(Mutex<HashSet<String>>);

/// Why a value is not had: the Python exception's name, and the text.
pub(crate) type Refusal = (&'static str, String);

fn away(error: impl std::fmt::Display) -> Refusal {
    ("CatalogUnavailable", error.to_string())
}

/// What placement knows of a value, or why it cannot be had.
pub(super) type KnownKept = HashMap<String, Result<FileFact, String>>;

/// Why a value is not there, for people.
fn lost(id: &str, kept: Option<&Kept>) -> String {
    match kept {
        Some(kept) => {
            let name = if kept.name.is_empty() { id } else { &kept.name };
            let last = kept.lost_with.as_deref().unwrap_or("an unknown node");
            format!(
                "{name}: no node has its value any more; it was last in the memory of node {last} (which ended, or it was not used for long)"
            )
        }
        None => format!("{id}: no node has its value any more: it was deleted, or never made"),
    }
}

/// A value that only dead nodes hold.
fn out_of_reach(id: &str, kept: &Kept, nodes: &[NodeFact]) -> String {
    let name = if kept.name.is_empty() { id } else { &kept.name };
    let holders: Vec<&str> = nodes
        .iter()
        .filter(|node| kept.holders.contains(&node.id))
        .map(|node| node.name.as_str())
        .collect();
    format!(
        "{name}: no node has its value any more: it is in the memory of node {}, which is gone",
        holders.join(", ")
    )
}

fn fact(id: &str, kept: Option<&Kept>, nodes: &[NodeFact]) -> Result<FileFact, String> {
    let Some(found) = kept.filter(|kept| !kept.holders.is_empty()) else {
        return Err(lost(id, kept));
    };
    let lives = |holder| nodes.iter().any(|node| node.id == holder && node.alive);
    let alive = found.holders.iter().filter(|holder| lives(**holder));
    let holders: Vec<_> = alive.map(|holder| (*holder, found.size_bytes)).collect();
    match holders.is_empty() {
        true => Err(out_of_reach(id, found, nodes)),
        false => Ok(FileFact {
            size_bytes: found.size_bytes,
            holders,
        }),
    }
}

impl Executor {
    /// Finds out where the values are that these calls use, and notes in the calls which files they are.
    pub(super) async fn know_kept(
        &self,
        calls: &mut [Call],
        nodes: &[NodeFact],
    ) -> Result<KnownKept, QueueError> {
        let used = calls.iter().flat_map(|call| &call.kept);
        let ids: HashSet<String> = used.map(|value| value.id.clone()).collect();
        if ids.is_empty() {
            return Ok(KnownKept::new());
        }
        let ids: Vec<String> = ids.into_iter().collect();
        let known = self.queue.kept(&ids).await?;
        let known: HashMap<&String, Option<Kept>> = ids.iter().zip(known).collect();
        for value in calls.iter_mut().flat_map(|call| &mut call.kept) {
            if let Some(Some(kept)) = known.get(&value.id) {
                value.hash = kept.hash.to_vec().into();
                value.size = kept.size_bytes;
            }
        }
        let facts = known
            .into_iter()
            .map(|(id, kept)| (id.clone(), fact(id, kept.as_ref(), nodes)));
        Ok(facts.collect())
    }

    /// Says where the values are that stand here; whether all do.
    pub(super) fn find_kept(&self, values: &mut [KeptValue]) -> bool {
        let mut all = true;
        for value in values {
            let path = hash_of(&value.hash)
                .ok()
                .and_then(|hash| self.fs.store().use_kept(&hash));
            all &= path.is_some();
            value.path = path.map(|path| path.as_os_str().as_bytes().to_vec().into());
            if value.path.is_some() {
                self.used.0.lock().unwrap().insert(value.id.clone());
            }
        }
        all
    }

    /// Brings values here that are not; how many bytes that were.
    pub(super) async fn bring_kept(&self, values: &mut [KeptValue]) -> Result<u64, Refusal> {
        let mut brought = 0;
        if self.find_kept(values) {
            return Ok(brought);
        }
        let missing = values.iter_mut().filter(|value| value.path.is_none());
        for value in missing {
            self.bring_one(value).await?;
            brought += value.size;
        }
        Ok(brought)
    }

    async fn bring_one(&self, value: &mut KeptValue) -> Result<(), Refusal> {
        let key_lost = |reason| ("KeyLost", reason);
        let id = value.id.clone();
        let known = self.queue.kept(std::slice::from_ref(&id)).await;
        let known = known.map_err(away)?.pop().flatten();
        let nodes = self.nodes.get(self.fs.catalog()).await.map_err(away)?;
        fact(&id, known.as_ref(), &nodes).map_err(key_lost)?;
        let kept = known.ok_or_else(|| key_lost(lost(&id, None)))?;
        let me = self.me().node;
        let others: Vec<_> = kept.holders.iter().copied().filter(|n| *n != me).collect();
        let names: Vec<&str> = nodes
            .iter()
            .filter(|node| others.contains(&node.id))
            .map(|node| node.name.as_str())
            .collect();
        let failed = |reason: String| {
            let from = names.join(", ");
            key_lost(format!(
                "{id}: no node has its value any more: it cannot be had from {from}: {reason}"
            ))
        };
        let fetched = self
            .fs
            .fetcher()
            .blob(kept.hash, kept.size_bytes, &others)
            .await;
        fetched.map_err(|e| failed(e.to_string()))?;
        let (store, hash) = (self.fs.store().clone(), kept.hash);
        let stored = tokio::task::spawn_blocking(move || store.keep_blob(&hash)).await;
        let path = stored
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))?;
        self.say_moved();
        let mine = [(id.clone(), hash)];
        let held = self.queue.hold(&mine, self.keep_until());
        if held.await.map_err(away)? == 0 {
            self.drop_kept(hash).await;
            return Err(key_lost(lost(&id, None)));
        }
        value.hash = hash.to_vec().into();
        value.size = kept.size_bytes;
        value.path = Some(path.as_os_str().as_bytes().to_vec().into());
        Ok(())
    }

    fn keep_until(&self) -> u64 {
        now_ms() + self.queue.result_ttl().as_millis() as u64
    }

    /// Records values whose files were written here. The error: the Python exception's name, and the text.
    pub(crate) async fn record_kept(
        self: &Arc<Self>,
        values: Vec<(KeepAs, KeptFile)>,
    ) -> Result<(), Refusal> {
        let refused = |reason: String| ("PayloadError", reason);
        let mut spilled = Vec::new();
        let mut passing = Vec::new();
        let mut lasting = Vec::new();
        for (keep, file) in values {
            let hash = hash_of(&file.hash).map_err(|e| refused(e.to_string()))?;
            if !crate::queue::job_is_valid(&keep.id) {
                return Err(refused(format!(
                    "'{}' is no kept value's id: 32 hex digits are",
                    keep.id
                )));
            }
            let path = self.fs.store().kept_path(&hash);
            if let Some(memory) = self.memory_directory()
                && path.as_ref().is_some_and(|path| !path.starts_with(memory))
            {
                spilled.push(hash);
            }
            if path.is_none() {
                let name = if keep.name.is_empty() {
                    &keep.id
                } else {
                    &keep.name
                };
                let node = &self.options.node_name;
                let reason = format!("{name}: its value does not stand on node {node}");
                return Err(refused(reason));
            }
            let value = NewKept {
                id: keep.id,
                hash,
                size_bytes: file.size,
                group: keep.group,
                name: keep.name,
            };
            match keep.forever {
                true => lasting.push(value),
                false => passing.push(value),
            }
        }
        let (until, queue) = (self.keep_until(), &self.queue);
        queue.keep(&passing, Some(until)).await.map_err(away)?;
        queue.keep(&lasting, None).await.map_err(away)?;
        self.prefer(spilled);
        Ok(())
    }

    /// New values for which there was no room in memory get that of the least used ones, in the background.
    fn prefer(self: &Arc<Self>, hashes: Vec<Hash>) {
        if hashes.is_empty() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let _one_at_a_time = this.preferring.lock().await;
            let store = this.fs.store().clone();
            match tokio::task::spawn_blocking(move || store.prefer(&hashes)).await {
                Ok(Ok(())) => this.say_moved(),
                Ok(Err(error)) => tracing::warn!(%error, "a value stays on the disk"),
                Err(error) => tracing::warn!(%error, "a value stays on the disk"),
            }
        });
    }

    /// Workers let go of values that are not where they were.
    fn say_moved(&self) {
        if self.fs.store().take_kept_moved() {
            self.say_forget();
        }
    }

    /// Workers let go of what they have mapped of values whose files are gone.
    fn say_forget(&self) {
        for worker in self.workers() {
            worker.send(crate::frames::frame(&ToWorker::Forget, Vec::new()));
        }
    }

    /// Brings values here for a client on this machine.
    pub(crate) async fn kept_values(&self, ids: Vec<String>) -> Result<Vec<KeptValue>, Refusal> {
        let known = self.queue.kept(&ids).await.map_err(away)?;
        let mut values = Vec::with_capacity(ids.len());
        for (id, kept) in ids.into_iter().zip(known) {
            let kept = kept.ok_or_else(|| ("KeyLost", lost(&id, None)))?;
            values.push(KeptValue {
                id,
                hash: kept.hash.to_vec().into(),
                size: kept.size_bytes,
                path: None,
            });
        }
        self.bring_kept(&mut values).await?;
        Ok(values)
    }

    /// The values of a group: a map each, with id, name, size and nodes.
    pub(crate) async fn kept_group(&self, group: &str) -> Result<Vec<serde_json::Value>, Refusal> {
        let found = self.queue.kept_group(group).await.map_err(away)?;
        let nodes = self.nodes.get(self.fs.catalog()).await.map_err(away)?;
        let describe = |(id, kept): (String, Kept)| {
            let holds = |node: &&NodeFact| node.alive && kept.holders.contains(&node.id);
            let names: Vec<&str> = nodes
                .iter()
                .filter(holds)
                .map(|node| node.name.as_str())
                .collect();
            serde_json::json!({"id": id, "name": kept.name, "size": kept.size_bytes, "nodes": names})
        };
        Ok(found.into_iter().map(describe).collect())
    }

    /// Values are not needed any more, and those of these groups; how many there were.
    pub(crate) async fn forget_kept(
        &self,
        mut ids: Vec<String>,
        groups: &[String],
    ) -> Result<u64, QueueError> {
        for group in groups {
            let members = self.queue.kept_group(group).await?;
            ids.extend(members.into_iter().map(|(id, _)| id));
        }
        self.queue.forget_kept(&ids).await
    }

    /// A value is not kept any more: its file goes, and what workers have of it.
    pub(super) async fn drop_kept(&self, hash: Hash) {
        let store = self.fs.store().clone();
        match tokio::task::spawn_blocking(move || store.remove_kept(&hash)).await {
            Ok(Err(error)) => {
                tracing::warn!(%error, "a value that is not needed cannot be removed")
            }
            Err(error) => tracing::warn!(%error, "a value that is not needed cannot be removed"),
            Ok(Ok(())) => {}
        }
        self.say_forget();
    }

    /// A holder is told that it may let a value go.
    pub(super) fn heed_forgotten(self: &Arc<Self>, hash: &str) {
        let mut parsed = Hash::default();
        if hex::decode_to_slice(hash, &mut parsed).is_ok() {
            let this = self.clone();
            tokio::spawn(async move { this.drop_kept(parsed).await });
        }
    }

    /// At the start: what the catalog says that this node has, and what really stands here, are brought in line.
    pub(super) async fn adopt_kept(&self) -> Result<(), QueueError> {
        let ids = self.queue.kept_here(None).await?;
        let known = self.queue.kept(&ids).await?;
        let stands = |kept: &Kept| self.fs.store().kept_path(&kept.hash).is_some();
        let gone: Vec<String> = ids
            .into_iter()
            .zip(known)
            .filter(|(_, kept)| !kept.as_ref().is_some_and(stands))
            .map(|(id, _)| id)
            .collect();
        if !gone.is_empty() {
            let lost = self
                .queue
                .leave_kept(&gone, &self.options.node_name)
                .await?;
            tracing::info!(
                lost,
                "values that were kept in this node's memory ended with it"
            );
        }
        Ok(())
    }

    /// Now and then: what expired goes, what nobody knows goes, and the tier is counted anew.
    pub(super) async fn sweep_kept(&self) {
        if let Err(error) = self.sweep_kept_once().await {
            tracing::debug!(%error, "kept values cannot be swept now");
        }
        self.fs.store().recount_memory();
    }

    async fn sweep_kept_once(&self) -> Result<(), QueueError> {
        let used: Vec<String> = self.used.0.lock().unwrap().drain().collect();
        self.queue.prolong_kept(&used, self.keep_until()).await?;
        let expired = self.queue.kept_here(Some(now_ms())).await?;
        let known = self.queue.kept(&expired).await?;
        self.queue
            .leave_kept(&expired, &self.options.node_name)
            .await?;
        for kept in known.into_iter().flatten() {
            self.drop_kept(kept.hash).await;
        }
        let ids = self.queue.kept_here(None).await?;
        let known = self.queue.kept(&ids).await?;
        let known: HashSet<Hash> = known.into_iter().flatten().map(|kept| kept.hash).collect();
        for hash in self.fs.store().kept_before(ORPHAN_AGE) {
            if !known.contains(&hash) {
                self.drop_kept(hash).await;
            }
        }
        Ok(())
    }

    /// The node ends: what is to be kept for ever moves to the disk, the rest goes.
    pub(super) async fn leave_kept(&self) {
        if let Err(error) = self.leave_kept_once().await {
            tracing::warn!(%error, "values in memory end with this node; the next start records it");
        }
        self.fs.store().clear_memory();
    }

    async fn leave_kept_once(&self) -> Result<(), QueueError> {
        let lasting = self.queue.kept_for_ever().await?;
        let known = self.queue.kept(&lasting).await?;
        let store = self.fs.store();
        let mut staying = HashSet::new();
        for (id, kept) in lasting.into_iter().zip(known) {
            let Some(Kept { hash, .. }) = kept else {
                continue;
            };
            let store = store.clone();
            match tokio::task::spawn_blocking(move || store.spill(&hash)).await {
                Ok(Ok(())) => drop(staying.insert(id)),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a value that is kept for ever cannot be moved to the disk")
                }
                Err(error) => {
                    tracing::warn!(%error, "a value that is kept for ever cannot be moved to the disk")
                }
            }
        }
        let ids = self.queue.kept_here(None).await?;
        let going: Vec<String> = ids.into_iter().filter(|id| !staying.contains(id)).collect();
        let known = self.queue.kept(&going).await?;
        self.queue
            .leave_kept(&going, &self.options.node_name)
            .await?;
        for kept in known.into_iter().flatten() {
            if let Err(error) = store.remove_kept(&kept.hash) {
                tracing::debug!(%error, "a value is removed at the next start");
            }
        }
        Ok(())
    }

    /// Where workers and clients on this machine write values, if there is a memory tier.
    pub(crate) fn memory_directory(&self) -> Option<&Path> {
        self.fs.store().memory_directory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ks_fs::record::NodeId;

    fn node(id: u64, alive: bool) -> NodeFact {
        NodeFact {
            id: NodeId(id),
            name: format!("host{id}"),
            alive,
            read_only: false,
            serves: Vec::new(),
        }
    }

    fn kept(holders: &[u64], lost_with: Option<&str>) -> Kept {
        Kept {
            hash: [1; 32],
            size_bytes: 7,
            name: "frames".into(),
            holders: holders.iter().map(|id| NodeId(*id)).collect(),
            lost_with: lost_with.map(str::to_owned),
        }
    }

    #[test]
    fn a_value_is_where_its_live_holders_are() {
        let nodes = [node(1, true), node(2, false)];
        let found = fact("id", Some(&kept(&[1, 2], None)), &nodes).unwrap();
        assert_eq!(found.size_bytes, 7);
        assert_eq!(found.holders, [(NodeId(1), 7)]);
    }

    #[test]
    fn what_nobody_has_names_who_had_it() {
        let nodes = [node(1, true), node(2, false)];
        let reason = fact("id", Some(&kept(&[2], None)), &nodes).unwrap_err();
        assert!(
            reason.starts_with("frames: no node has its value any more"),
            "{reason}"
        );
        assert!(reason.contains("host2"), "{reason}");
        let reason = fact("id", Some(&kept(&[], Some("host3"))), &nodes).unwrap_err();
        assert!(reason.contains("host3"), "{reason}");
        assert!(fact("id", None, &nodes).unwrap_err().contains("deleted"));
    }
}
