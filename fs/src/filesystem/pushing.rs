//! Spreading a file over nodes: each fetches it from the one before, while that one is still fetching.
//!
//! So the first holder sends the file once, every node passes on what it has, and all have it in about the time of one copy. A node that falls out of the chain
//! is replaced, for the next one, by the nodes that have all of it.
use super::FileSystem;
use crate::catalog::copies::is_whole;
use crate::copies::{CopyError, CopyReply, CopyRequest};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a node waits for the one before it to begin.
const BEGIN_WAIT: Duration = Duration::from_secs(5);

/// Told of each node (by name): bytes it has, and bytes in all.
pub type PushProgress = Arc<dyn Fn(&str, u64, u64) + Send + Sync>;

/// How bringing a file to one node ended.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Pushed {
    /// The node's name.
    pub node: String,
    /// Why it has no copy; absent: it has one.
    pub error: Option<String>,
}

impl FileSystem {
    /// The live nodes of these names; none given: all that keep files.
    pub async fn nodes_named(&self, names: &[String]) -> Result<Vec<NodeId>, CopyError> {
        let nodes = self.catalog.nodes().await?;
        let live = || nodes.iter().filter(|node| node.alive);
        if names.is_empty() {
            return Ok(live()
                .filter(|node| !node.info.read_only)
                .map(|node| node.id)
                .collect());
        }
        let find = |name: &String| {
            let found = live().find(|node| node.info.name == *name);
            found
                .map(|node| node.id)
                .ok_or_else(|| CopyError::NoSuchNode(name.clone()))
        };
        names.iter().map(find).collect()
    }

    /// Brings all of a file to each of `targets`; how it went at each, by name.
    pub async fn push(
        self: &Arc<Self>,
        path: &TreePath,
        targets: &[NodeId],
        progress: PushProgress,
    ) -> Result<Vec<Pushed>, CopyError> {
        let located = self
            .catalog
            .locate_path(path)
            .await?
            .ok_or(FsError::NotFound)?;
        let (ino, inode) = (located.node.ino, &located.node.inode);
        if inode.kind == Kind::Directory {
            return Err(FsError::IsADirectory.into());
        }
        let has = |target: &NodeId| {
            located
                .holders
                .iter()
                .any(|(node, holding)| node == target && is_whole(inode, holding))
        };
        let (have, lack): (Vec<NodeId>, Vec<NodeId>) =
            targets.iter().partition(|target| has(target));
        let mut pushed = Vec::new();
        for node in have {
            let node = self.node_name(node).await;
            progress(&node, inode.size, inode.size);
            pushed.push(Pushed { node, error: None });
        }
        pushed.extend(self.chain(ino, lack, progress).await);
        pushed.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(pushed)
    }

    async fn chain(
        self: &Arc<Self>,
        ino: Ino,
        targets: Vec<NodeId>,
        progress: PushProgress,
    ) -> Vec<Pushed> {
        let mut links = JoinSet::new();
        let mut before: Option<(NodeId, watch::Receiver<bool>)> = None;
        for target in targets {
            let (began, has_begun) = watch::channel(false);
            let from = before.replace((target, has_begun));
            let (file_system, progress) = (self.clone(), progress.clone());
            links.spawn(async move {
                let name = file_system.node_name(target).await;
                let source = match from {
                    Some((source, mut has_begun)) => {
                        // Not begun in time, or failed: the nodes that have all of it are asked in its place.
                        let _ =
                            tokio::time::timeout(BEGIN_WAIT, has_begun.wait_for(|begun| *begun))
                                .await;
                        Some(source)
                    }
                    None => None,
                };
                let told = |have: u64, size: u64| {
                    if have > 0 {
                        began.send_replace(true);
                    }
                    if size > 0 {
                        progress(&name, have, size);
                    }
                };
                let error = file_system.bring_to(target, ino, source, &told).await.err();
                Pushed {
                    error: error.map(|error| error.to_string()),
                    node: name,
                }
            });
        }
        links.join_all().await
    }

    async fn bring_to(
        self: &Arc<Self>,
        target: NodeId,
        ino: Ino,
        from: Option<NodeId>,
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<(), CopyError> {
        if target == self.me() {
            return Ok(self.bring(ino, from, progress).await?);
        }
        match self
            .ask_for_work(target, &CopyRequest::Bring { ino, from }, progress)
            .await?
        {
            CopyReply::Done => Ok(()),
            _ => Err(self.nonsense(target).await),
        }
    }
}
