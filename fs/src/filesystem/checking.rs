//! Re-reading copies and mending them: `ks verify`, and the requests it makes of other nodes.
//!
//! Always: a damaged copy is given up only while one that was found good in the same run is kept; none good: nothing is touched, and the file is named.
use super::FileSystem;
use crate::catalog::{Node_, copies::is_whole};
use crate::copies::{Condition, CopyError, CopyReply, CopyRequest};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use std::sync::Arc;

/// With the cure.
const CHANGED: &str = "changed in the data directory, and not taken into the tree yet: the node does so in a moment, with --no-watch when it starts again";

/// What `ks verify` found of one copy.
#[derive(Clone, Debug, serde::Serialize)]
pub struct CheckedCopy {
    /// The node's name.
    pub node: String,
    /// `good`, `damaged`, `being written`, `changed in the data directory…`, `absent`, `unreadable: …` or `not asked: …`.
    pub state: String,
    /// It was damaged, and is whole and good again.
    pub mended: bool,
}

/// What `ks verify` found of a file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verified {
    /// Its path in the tree.
    pub path: String,
    /// Every copy of the current version, by node name.
    pub copies: Vec<CheckedCopy>,
    /// Every copy that could be read is good now, and not all of them could not be looked at.
    pub good: bool,
    /// There is no good copy, and at least one that is damaged or cannot be read.
    pub lost: bool,
}

impl FileSystem {
    /// Re-reads this node's copy of a file.
    pub(crate) async fn check_copy(&self, ino: Ino) -> Result<Condition, FsError> {
        let located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        let inode = located.node.inode;
        if self.table.is_written(ino) {
            return Ok(Condition::BeingWritten);
        }
        let Some(expected) = inode.blake3 else {
            // Hashing it now is reading it for the first time: there is nothing yet that it could be compared with.
            return match self.hasher.hash_now(&path, ino, inode.version).await {
                Ok(_) => Ok(Condition::Good),
                Err(FsError::Stale) => Ok(Condition::BeingWritten),
                Err(error) => Ok(Condition::Unreadable(error.to_string())),
            };
        };
        let store = self.store.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let condition = store.check_copy(&path, ino, &inode, &expected);
            if matches!(condition, Condition::Good) {
                store.note_sound(&path);
            }
            condition
        });
        Ok(checked.await.map_err(std::io::Error::other)?)
    }

    /// This node's copy is damaged: gives it up while one of `good` keeps its own, and fetches it again. None is good: it is
    /// remembered here, and not read any more.
    pub(crate) async fn mend_copy(
        self: &Arc<Self>,
        ino: Ino,
        good: &[NodeId],
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<(), CopyError> {
        let node = self.catalog.node(ino).await?.ok_or(FsError::Stale)?;
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        match self.check_copy(ino).await? {
            Condition::Damaged if good.is_empty() => {
                self.store.note_damaged(&path, node.inode.version);
                return Ok(());
            }
            Condition::Damaged => self.give_up_while(&node, path.clone(), good, 1).await?,
            Condition::Absent => {}
            _ => return Ok(()),
        }
        tracing::warn!(%path, "a damaged copy was given up; it is fetched again");
        Ok(self.bring(ino, None, progress).await?)
    }

    /// Re-reads every copy of a file, on whatever node, and mends the damaged ones from a good one.
    pub async fn verify(self: &Arc<Self>, path: &TreePath) -> Result<Verified, CopyError> {
        let located = self
            .catalog
            .locate_path(path)
            .await?
            .ok_or(FsError::NotFound)?;
        let (ino, inode) = (located.node.ino, &located.node.inode);
        let holders = located
            .holders
            .iter()
            .filter(|(_, holding)| is_whole(inode, holding));
        let holders: Vec<NodeId> = holders.map(|(node, _)| *node).collect();
        let mut checks = tokio::task::JoinSet::new();
        for node in holders {
            let file_system = self.clone();
            checks.spawn(async move { (node, file_system.check_at(node, ino).await) });
        }
        let found = checks.join_all().await;
        let good: Vec<NodeId> = found
            .iter()
            .filter(|(_, state)| matches!(state, Ok(Condition::Good)))
            .map(|(node, _)| *node)
            .collect();
        let (mut copies, mut bad) = (Vec::new(), 0);
        for (node, state) in &found {
            let copy = self.mend_if_bad(*node, ino, state, &good).await;
            bad += usize::from(is_bad(state) && !copy.mended);
            copies.push(copy);
        }
        copies.sort_by(|a, b| a.node.cmp(&b.node));
        let lost = good.is_empty() && bad > 0;
        if lost {
            tracing::error!(%path, "no good copy of it can be found: restore it from elsewhere");
            self.note_lost(path, &located.node, &found).await;
        } else if !good.is_empty() {
            self.store.note_sound(path);
        }
        Ok(Verified {
            path: path.to_string(),
            copies,
            good: bad == 0 && (found.is_empty() || found.iter().any(|(_, state)| state.is_ok())),
            lost,
        })
    }

    /// Every node that has a damaged copy remembers it; where none can, this one does.
    async fn note_lost(
        self: &Arc<Self>,
        path: &TreePath,
        lost: &Node_,
        found: &[(NodeId, Result<Condition, CopyError>)],
    ) {
        let mut is_noted = false;
        for (node, state) in found {
            if matches!(state, Ok(Condition::Damaged)) {
                is_noted |= self.mend_at(*node, lost.ino, &[]).await.is_ok();
            }
        }
        let is_mine = found.iter().any(|(node, _)| *node == self.me());
        match is_noted {
            false => self.store.note_damaged(path, lost.inode.version),
            true if !is_mine => self.store.note_sound(path),
            true => {}
        }
    }

    async fn mend_if_bad(
        self: &Arc<Self>,
        node: NodeId,
        ino: Ino,
        state: &Result<Condition, CopyError>,
        good: &[NodeId],
    ) -> CheckedCopy {
        let mut copy = CheckedCopy {
            node: self.node_name(node).await,
            state: described(state),
            mended: false,
        };
        if matches!(state, Ok(Condition::Damaged | Condition::Absent)) && !good.is_empty() {
            match self.mend_at(node, ino, good).await {
                Ok(()) => copy.mended = true,
                Err(error) => copy.state = format!("{}, not mended: {error}", copy.state),
            }
        }
        copy
    }

    async fn check_at(&self, node: NodeId, ino: Ino) -> Result<Condition, CopyError> {
        if node == self.me() {
            return Ok(self.check_copy(ino).await?);
        }
        match self
            .ask_for_work(node, &CopyRequest::Check { ino }, &|_, _| {})
            .await?
        {
            CopyReply::Checked(condition) => Ok(condition),
            _ => Err(self.nonsense(node).await),
        }
    }

    async fn mend_at(
        self: &Arc<Self>,
        node: NodeId,
        ino: Ino,
        good: &[NodeId],
    ) -> Result<(), CopyError> {
        if node == self.me() {
            return self.mend_copy(ino, good, &|_, _| {}).await;
        }
        let good = good.to_vec();
        match self
            .ask_for_work(node, &CopyRequest::Mend { ino, good }, &|_, _| {})
            .await?
        {
            CopyReply::Done => Ok(()),
            _ => Err(self.nonsense(node).await),
        }
    }

    pub(super) async fn nonsense(&self, node: NodeId) -> CopyError {
        CopyError::AtNode {
            node: self.node_name(node).await,
            message: "it does not speak our protocol".into(),
        }
    }
}

fn is_bad(state: &Result<Condition, CopyError>) -> bool {
    matches!(
        state,
        Ok(Condition::Damaged | Condition::Absent | Condition::Unreadable(_))
    )
}

fn described(state: &Result<Condition, CopyError>) -> String {
    match state {
        Ok(Condition::Good) => "good".into(),
        Ok(Condition::Damaged) => "damaged".into(),
        Ok(Condition::BeingWritten) => "being written".into(),
        Ok(Condition::Changed) => CHANGED.into(),
        Ok(Condition::Absent) => "absent".into(),
        Ok(Condition::Unreadable(why)) => format!("unreadable: {why}"),
        Err(error) => format!("not asked: {error}"),
    }
}
