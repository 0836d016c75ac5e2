//! Copies of files on this node and others: holding, giving up, bringing, taking over as the home.
//!
//! Who takes part: the catalog decides atomically (`catalog::copies`), other nodes are asked over streams of their own (`copies::server`), the fetcher brings
//! contents, the store removes plain files.
//!
//! Always: the catalog first, the plain file after it: a node that dies in between has a file that its next start tells the catalog of again. A plain file that was changed meanwhile
//! is never removed.
use super::{FileSystem, open_plan::Source, opening::Want};
use crate::catalog::copies::{GaveUp, TookOver, is_whole};
use crate::catalog::{Located, Node_};
use crate::copies::{
    COPIES, CopyError, CopyReply, CopyRequest, MESSAGE_BYTES_MAX, PROGRESS_DEADLINE,
    QUESTION_DEADLINE,
};
use crate::error::FsError;
use crate::fetch::Progress;
use crate::path::TreePath;
use crate::record::*;
use crate::store::CopyState;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::handles::{Content, Served};

/// Extended attribute of the program's own: how many copies are kept of a file, or of the files below a directory.
pub(crate) const REPLICAS: &[u8] = b"ks.replicas";

/// Why a copy is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody asked for it.
    Asked,
    /// There is no room for it.
    Evicted,
}

impl FileSystem {
    /// Gives up this node's copy of a file. Never a pinned one, and never the last one: another live node has to say that it has
    /// all of it.
    pub async fn drop_copy(&self, path: &TreePath) -> Result<(), CopyError> {
        let node = self.catalog.resolve(path).await?.ok_or(FsError::NotFound)?;
        if node.inode.kind == Kind::Directory {
            return Err(FsError::IsADirectory.into());
        }
        if self.store.is_pinned(node.ino) {
            return Err(CopyError::Pinned(path.clone()));
        }
        self.give_up(node.ino, Reason::Asked).await
    }

    /// See `drop_copy`.
    pub(crate) async fn give_up(&self, ino: Ino, reason: Reason) -> Result<(), CopyError> {
        let mut located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        if self.table.is_written(ino) || self.mapped.has(ino) {
            return Err(CopyError::BeingWritten(path));
        }
        let is_home = located.node.inode.home == self.me();
        if is_home && self.has_changed(ino, &located.node.inode).await? {
            // The new home would have other bytes than those that were written last.
            self.publish_left(ino).await?;
            located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
            if self.has_changed(ino, &located.node.inode).await? {
                return Err(CopyError::Changed(path));
            }
        }
        let inode = &located.node.inode;
        let least = match reason {
            Reason::Asked => 1,
            Reason::Evicted if inode.home == self.me() => {
                let what = "this node is its home".into();
                return Err(CopyError::TooFew { path, what });
            }
            Reason::Evicted => self.replicas_of(&located.node).await?.max(1),
        };
        let stays = self.confirmed_holders(&located, least).await?;
        self.give_up_while(&located.node, path, &stays, least).await
    }

    /// The catalog lets it go while `least` of `stays` keep theirs; then the plain file goes.
    pub(super) async fn give_up_while(
        &self,
        node: &Node_,
        path: TreePath,
        stays: &[NodeId],
        least: usize,
    ) -> Result<(), CopyError> {
        let (ino, version) = (node.ino, node.inode.version);
        match self.catalog.give_up(ino, version, stays, least).await? {
            GaveUp::TooFew(others) => {
                let what = match least {
                    1 => format!(
                        "this is the last whole copy that can be reached now; on another node, run: ks fetch {path}"
                    ),
                    _ => format!(
                        "{others} other copies can be reached now, and {least} have to stay"
                    ),
                };
                return Err(CopyError::TooFew { path, what });
            }
            GaveUp::Changed => return Err(CopyError::Changed(path)),
            GaveUp::Copy | GaveUp::Home(_) | GaveUp::NotHeld => {}
        }
        if self.table.is_written(ino) {
            // Opened for writing in the very moment: what is written stays here, and is found as a conflict.
            return Err(CopyError::BeingWritten(path));
        }
        self.store.discard_partials(ino);
        let store = &self.store;
        let removed = self.applier.at_path(ino, |path| {
            super::on_disk(|| store.remove_copy(path, ino, version))
        });
        match removed.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::warn!(%path, "given up, but the plain file was changed: it stays, and the next start keeps it under another name");
                Err(CopyError::Changed(path))
            }
            Err(error) => Err(FsError::from(error).into()),
        }
    }

    /// Live nodes that hold all of the current version and say so themselves; at most `enough` of them, if that many are found.
    pub(super) async fn confirmed_holders(
        &self,
        located: &Located,
        enough: usize,
    ) -> Result<Vec<NodeId>, FsError> {
        let inode = &located.node.inode;
        let mut confirmed = Vec::new();
        // The home first: it is the one least likely to give its copy up.
        let mut candidates: Vec<NodeId> = located
            .holders
            .iter()
            .filter(|(_, holding)| is_whole(inode, holding))
            .map(|(node, _)| *node)
            .collect();
        candidates.sort_by_key(|node| *node != inode.home);
        for node in candidates.into_iter().filter(|node| *node != self.me()) {
            if confirmed.len() == enough {
                break;
            }
            let question = CopyRequest::Holds {
                ino: located.node.ino,
                version: inode.version,
            };
            match self.ask_about_copy(node, &question).await {
                Ok(CopyReply::Holds(true)) => confirmed.push(node),
                Ok(_) => {}
                Err(error) => tracing::debug!(%node, %error, "does not say what it holds"),
            }
        }
        Ok(confirmed)
    }

    /// Whether this node has all of that version, untouched.
    pub(crate) async fn holds_whole(&self, ino: Ino, version: u64) -> bool {
        let Ok(Some(node)) = self.catalog.node(ino).await else {
            return false;
        };
        let Ok(Some(path)) = self.catalog.path_of(ino).await else {
            return false;
        };
        let state = super::on_disk(|| self.store.copy_state(&path, ino, &node.inode));
        node.inode.version == version && state == CopyState::Current && !self.table.is_written(ino)
    }

    /// Brings all of a file here, once its hash is known; `from` is asked first: it has it, or is fetching it right now.
    pub(crate) async fn bring(
        self: &Arc<Self>,
        ino: Ino,
        from: Option<NodeId>,
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<(), FsError> {
        let mut found = self.find(ino, Want::READ).await?;
        let size = found.located.node.inode.size;
        let is_hashed = found.located.node.inode.blake3.is_some();
        if let Source::Remote { holders } = &mut found.source {
            if !is_hashed {
                self.await_hash(&found.located.node, holders, progress)
                    .await;
            } else if let Some(from) = from.filter(|from| *from != self.catalog.me()) {
                *holders = vec![from];
            }
        }
        match self.serve(&found, Want::READ).await? {
            Served::Own(Content::Remote(remote)) => {
                progress(remote.progress().have_bytes, size);
                remote
                    .fetch_whole(|at: Progress| progress(at.have_bytes, at.size))
                    .await
            }
            Served::Own(Content::Live(_)) => Err(FsError::NoHolder {
                path: found.path.clone(),
                tried: "its home is writing it now: no version of it can be fetched".into(),
            }),
            _ => {
                progress(size, size);
                Ok(())
            }
        }
    }

    /// A hash that a holder is still computing is waited for, however long that takes: whoever asks can give up.
    async fn await_hash(
        &self,
        node: &Node_,
        holders: &[NodeId],
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) {
        while let Err(unhashed) = self.ask_holders(node, holders).await {
            if !unhashed.is_computing {
                return;
            }
            progress(0, node.inode.size);
        }
    }

    /// This node becomes the home of a file whose home is gone.
    pub(crate) async fn become_home(&self, ino: Ino) -> Result<(), CopyError> {
        let node = self.catalog.node(ino).await?.ok_or(FsError::Stale)?;
        let path = self.path_of(ino).await;
        if node.inode.size > 0 && !self.holds_whole(ino, node.inode.version).await {
            let what = "this node has no whole current copy of it".into();
            return Err(CopyError::TooFew { path, what });
        }
        match self.catalog.take_over(ino).await? {
            TookOver::Epoch(epoch) => {
                tracing::info!(%path, epoch, "this node is its home now: the one before is gone");
                Ok(())
            }
            TookOver::HomeLives(_) => Ok(()),
            TookOver::NotWhole => Err(CopyError::TooFew {
                path,
                what: "this node has no whole current copy of it".into(),
            }),
            TookOver::Gone => Err(FsError::Stale.into()),
        }
    }

    /// The home of a file is not there: this node takes over, or another that has all of it. `false`: nobody can, or the home is there after all.
    pub(super) async fn find_new_home(&self, located: &Located) -> Result<bool, FsError> {
        let (ino, inode) = (located.node.ino, &located.node.inode);
        if inode.home == NodeId::NONE || self.catalog.address_of(inode.home).await?.is_some() {
            return Ok(false);
        }
        if self.become_home(ino).await.is_ok() {
            return Ok(true);
        }
        for (node, _) in located
            .holders
            .iter()
            .filter(|(node, holding)| *node != self.me() && is_whole(inode, holding))
        {
            match self
                .ask_about_copy(*node, &CopyRequest::TakeOver { ino })
                .await
            {
                Ok(CopyReply::Done) => return Ok(true),
                Ok(other) => tracing::debug!(ino, %node, ?other, "does not become the home"),
                Err(error) => tracing::debug!(ino, %node, %error, "does not become the home"),
            }
        }
        Ok(false)
    }

    /// One question that is answered at once.
    async fn ask_about_copy(
        &self,
        node: NodeId,
        question: &CopyRequest,
    ) -> Result<CopyReply, CopyError> {
        let answer = tokio::time::timeout(
            QUESTION_DEADLINE,
            self.ask_for_work(node, question, &|_, _| {}),
        )
        .await;
        answer.unwrap_or_else(|_| Err(CopyError::NoSuchNode(node.to_string())))
    }

    /// Asks another node to do something; hears how far it is.
    pub(super) async fn ask_for_work(
        &self,
        node: NodeId,
        question: &CopyRequest,
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<CopyReply, CopyError> {
        let name = self.node_name(node).await;
        let at_node = |message: String| CopyError::AtNode {
            node: name.clone(),
            message,
        };
        let Some(address) = self.catalog.address_of(node).await? else {
            return Err(CopyError::NoSuchNode(name));
        };
        let peer = self.pool.peer(&address);
        let opened = tokio::time::timeout(QUESTION_DEADLINE, peer.open(COPIES)).await;
        let mut stream = opened
            .map_err(|_| at_node("no answer".into()))?
            .map_err(|e| at_node(e.to_string()))?;
        stream
            .write(question)
            .await
            .map_err(|e| at_node(e.to_string()))?;
        loop {
            let next =
                tokio::time::timeout(PROGRESS_DEADLINE, stream.read(MESSAGE_BYTES_MAX)).await;
            let reply =
                next.map_err(|_| at_node(format!("nothing heard for {PROGRESS_DEADLINE:?}")))?;
            match reply.map_err(|e| at_node(e.to_string()))? {
                Some(CopyReply::Progress { have, size }) => progress(have, size),
                Some(CopyReply::Failed { message, .. }) => return Err(at_node(message)),
                Some(reply) => return Ok(reply),
                None => return Err(at_node("it went away".into())),
            }
        }
    }

    /// How many copies are to be kept of a file: its own count, or that of the nearest directory above that has one; where none has, what
    /// its home was started with.
    pub(crate) async fn replicas_of(&self, node: &Node_) -> Result<usize, FsError> {
        let mut inode = node.inode.clone();
        let mut seen = BTreeSet::from([node.ino]);
        loop {
            if let Some(count) = inode.xattrs.get(REPLICAS) {
                return Ok(std::str::from_utf8(count)
                    .ok()
                    .and_then(|count| count.parse().ok())
                    .unwrap_or(1));
            }
            // The root is its own parent.
            if !seen.insert(inode.parent) {
                return self.replicas_at(node.inode.home).await;
            }
            match self.catalog.node(inode.parent).await? {
                Some(parent) => inode = parent.inode,
                None => return self.replicas_at(node.inode.home).await,
            }
        }
    }

    /// Pins files (directories: the files below them) or takes their pins off; returns how many files.
    pub async fn pin(&self, inos: Vec<Ino>, pinned: bool) -> Result<usize, FsError> {
        let count = inos.len();
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.pin(&inos, pinned))
            .await
            .map_err(std::io::Error::other)??;
        Ok(count)
    }
}
