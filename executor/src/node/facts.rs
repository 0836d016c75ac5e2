//! What the node says of itself: `ks status`.
use super::Node;
use crate::session::NodeFacts;
use ks_fs::store::troubles::{Listed, Troubles};
use ks_transport::BoxFuture;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Weak;

/// The node, as its sessions see it; it may be ending.
pub(super) struct Facts(pub(super) Weak<Node>);

impl NodeFacts for Facts {
    fn status(&self) -> BoxFuture<'_, Value> {
        Box::pin(async {
            match self.0.upgrade() {
                Some(node) => node.status().await,
                None => json!({"state": "ending"}),
            }
        })
    }

    fn shutdown(&self) {
        if let Some(node) = self.0.upgrade() {
            node.shutdown();
        }
    }
}

impl Node {
    /// Everything `ks status --json` prints.
    async fn status(&self) -> Value {
        let redis = self.catalog.redis();
        let (nodes, refuses) = tokio::join!(self.catalog.nodes(), redis.refuses_changes());
        // Who carried it last is who is missed.
        let remembered = self.catalog.remembered_nodes();
        let carrier = remembered.iter().find(|node| node.info.carries_redis);
        let carrier = carrier.map(|carrier| carrier.info.name.clone());
        let nodes = nodes.map(|nodes| {
            let alive = nodes.iter().filter(|node| node.alive).count();
            json!({"alive": alive, "known": nodes.len()})
        });
        let space = self.fs.store().space().ok();
        let troubles = self.fs.troubles().await;
        let mountpoint = &self.options.mountpoint;
        let unpublished = self.fs.unpublished();
        let unpublished = std::iter::once((self.name.as_str(), &unpublished));
        json!({
            "state": "running",
            "node": self.name,
            "id": self.catalog.me().to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "address": self.address,
            "mountpoint": self.options.mountpoint,
            "datadir": self.options.datadir,
            "read_only": self.options.read_only,
            "disk": space.map(|space| json!({
                "free_bytes": space.free, "total_bytes": space.total,
                "keep_free_bytes": self.options.keep_free.of(space.total),
            })),
            "memory_bytes": resident_bytes(),
            "redis": {
                "connected": redis.is_connected(), "private": self.redis.is_some(),
                "refuses": refuses, "carrier": carrier, "at": self.redis_described,
            },
            "nodes": nodes.unwrap_or_else(|error| json!({"error": error.to_string()})),
            "files": self.fs.counters(),
            "watched": self.fs.is_watched(),
            "conflicts": listed(&troubles, mountpoint, |troubles| &troubles.conflicts),
            "damaged": listed(&troubles, mountpoint, |troubles| &troubles.damaged),
            "thrown_away": listed(&troubles, Path::new(""), |troubles| &troubles.thrown_away),
            "unpublished": told(unpublished, mountpoint),
            "scrub": self.fs.scrub_progress().map(|progress| json!({
                "files": progress.files, "read_bytes": progress.read_bytes,
                "last_files": progress.last_files, "last_read_bytes": progress.last_read_bytes,
                "ended_s": progress.ended_ms / 1000, "damaged": progress.damaged, "mended": progress.mended,
            })),
            "calls": self.executor.status().await,
        })
    }
}

/// One kind of trouble on all nodes: how many, and the first paths.
fn listed(
    troubles: &[(String, Troubles)],
    mountpoint: &Path,
    kind: impl Fn(&Troubles) -> &Listed,
) -> Value {
    let of_nodes = troubles.iter();
    told(
        of_nodes.map(|(node, troubles)| (node.as_str(), kind(troubles))),
        mountpoint,
    )
}

/// How many on these nodes, and the first paths.
fn told<'a>(
    of_nodes: impl Iterator<Item = (&'a str, &'a Listed)> + Clone,
    mountpoint: &Path,
) -> Value {
    let count: u64 = of_nodes.clone().map(|(_, listed)| listed.count).sum();
    let first = of_nodes.flat_map(|(node, listed)| {
        let paths = listed.first.iter();
        paths.map(move |path| json!({"path": mountpoint.join(path), "node": node}))
    });
    json!({"count": count, "first": first.collect::<Vec<Value>>()})
}

/// The daemon's resident memory, bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
