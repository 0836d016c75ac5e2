//! What the node says of itself: `ks status`.
use super::Node;
use crate::session::NodeFacts;
use ks_transport::BoxFuture;
use serde_json::{Value, json};
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
        let nodes = self.catalog.nodes().await.map(|nodes| {
            let alive = nodes.iter().filter(|node| node.alive).count();
            json!({"alive": alive, "known": nodes.len()})
        });
        let space = self.fs.store().space().ok();
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
            "disk": space.map(|space| json!({"free_bytes": space.free, "total_bytes": space.total})),
            "memory_bytes": resident_bytes(),
            "redis": {"connected": self.catalog.redis().is_connected(), "private": self.redis.is_some()},
            "nodes": nodes.unwrap_or_else(|error| json!({"error": error.to_string()})),
            "files": self.fs.counters(),
            "calls": self.executor.status().await,
        })
    }
}

/// The daemon's resident memory, bytes.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
