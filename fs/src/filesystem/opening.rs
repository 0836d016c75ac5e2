//! Opening and creating: from a number to a handle.
//!
//! Every open asks the catalog, so that close-to-open holds, with one exception: while Redis is known to be away (no connection,
//! and nothing heard of it for `redis_client::AWAY_AFTER`) a file is opened for reading as it is remembered, where its whole
//! current copy is here by both the remembered record and its own `user.ks`. Versions can still be published then by nodes
//! that reach Redis while this one does not: what is read may be older than those, and is never a mix. Writing waits or fails.
use super::{
    Caller, FileSystem, Handle, Opened,
    handles::{Content, NewHandle, Served},
    open_plan::{self, Mode, Situation, Source},
    writing::{Stamp, Writing},
};
use crate::{
    catalog::{Located, Node_},
    error::FsError,
    path::TreePath,
    peer::forward::{self, Forwarded},
    record::*,
    store::{CopyState, LocalMeta, OpenLocal, StoreError, partial::ContentKey},
};
use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// How long an open waits for a hash without which nothing can be read.
const HASH_WAIT: Duration = Duration::from_secs(20);
/// Set-user-id and set-group-id.
pub(super) const PRIVILEGE_BITS: u32 = 0o6000;

/// What the kernel adds to the flags of an open that executes the file (`__FMODE_EXEC`, include/linux/fs.h).
const OPENED_TO_EXECUTE: i32 = 0x20;

/// How often an open that waits for the catalog looks whether Redis is away.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What open flags ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want {
    pub(super) write: bool,
    pub(super) truncate: bool,
    pub(super) append: bool,
    /// Open for reading and writing: it can be mapped for writing.
    pub(super) maps: bool,
    /// Open to run it as a program, as long as that runs.
    pub(super) executes: bool,
}

impl Want {
    pub(super) const READ: Want = Want {
        write: false,
        truncate: false,
        append: false,
        maps: false,
        executes: false,
    };

    pub(super) fn of(flags: i32) -> Self {
        let truncate = flags & libc::O_TRUNC != 0;
        Self {
            write: flags & libc::O_ACCMODE != libc::O_RDONLY || truncate,
            truncate,
            append: flags & libc::O_APPEND != 0,
            maps: flags & libc::O_ACCMODE == libc::O_RDWR,
            executes: flags & OPENED_TO_EXECUTE != 0,
        }
    }
}

/// No holder could tell a version's hash (yet).
pub(super) struct Unhashed {
    /// What each said, for people.
    pub(super) tried: String,
    /// One of them is computing it.
    pub(super) is_computing: bool,
}

/// A file as it was found, and what serves it.
pub(super) struct Found {
    pub(super) located: Located,
    pub(super) path: TreePath,
    pub(super) source: Source,
    /// The plain file that was looked at, open for reading.
    pub(super) file: Option<Arc<File>>,
}

impl Found {
    fn node(&self) -> &Node_ {
        &self.located.node
    }
}

impl FileSystem {
    /// Opens an inode; one question to the catalog, so that close-to-open holds.
    pub async fn open(
        self: &Arc<Self>,
        ino: Ino,
        flags: i32,
        who: Caller,
    ) -> Result<Opened, FsError> {
        let want = Want::of(flags);
        // The kernel refuses this by itself where the open is also for writing; O_RDONLY with O_TRUNC it asks of us first,
        // and refuses when the program is truncated already.
        let asked_first = want.truncate && flags & libc::O_ACCMODE == libc::O_RDONLY;
        if asked_first && self.table.is_executed(ino) {
            return Err(FsError::TextBusy);
        }
        let ahead = self.fetch_ahead(ino, want, who.pid);
        let found = self.find(ino, want).await?;
        let served = self.serve(&found, want).await?;
        drop(ahead);
        let privileged = found.node().inode.mode & PRIVILEGE_BITS != 0 && who.uid != 0;
        if want.truncate && privileged {
            self.clear_privileges(ino).await?;
        }
        let group = self.note_open(&found, &served, who);
        let fixed = !want.write && found.node().inode.home != self.me();
        let opened = self.register(NewHandle {
            fixed,
            node: found.located.node,
            source: found.source,
            served: served.clone(),
            passthrough_allowed: !(want.write && privileged),
            append: want.append,
            maps: want.maps,
            executes: want.executes,
            group,
        });
        if opened.is_err() {
            self.unserve(ino, &served).await;
        }
        opened
    }

    fn register(&self, mut new: NewHandle) -> Result<Opened, FsError> {
        new.passthrough_allowed &= self.passthrough.load(Ordering::Acquire);
        // The kernel would tell its writers that the disk is full where fetched copies can still make room.
        if matches!(new.served, Served::Writing(_)) && new.passthrough_allowed {
            new.passthrough_allowed = !self.is_tight();
        }
        let opened = self.table.register(new)?;
        self.counts.opens.fetch_add(1, Ordering::Relaxed);
        if matches!(opened, Opened::Passthrough { .. }) {
            self.counts
                .opens_passthrough
                .fetch_add(1, Ordering::Relaxed);
        }
        Ok(opened)
    }

    /// Makes a file whose home is this node, and opens it.
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        mode: u32,
        flags: i32,
        who: Caller,
    ) -> Result<(Node_, Opened), FsError> {
        let want = Want::of(flags);
        let _making = self.making.begin(parent);
        match self.create_file(parent, name, mode, who, true).await {
            Ok((node, file)) => {
                let opened = self.open_created(node.clone(), file, want, who).await?;
                Ok((node, opened))
            }
            // Somebody was faster; without O_EXCL it is simply opened.
            Err(FsError::Exists) if flags & libc::O_EXCL == 0 => {
                let node = self.lookup(parent, name).await?;
                let opened = self.open(node.ino, flags, who).await?;
                Ok((self.attributes(node.ino).await?, opened))
            }
            Err(error) => Err(error),
        }
    }

    async fn open_created(
        &self,
        node: Node_,
        file: File,
        want: Want,
        who: Caller,
    ) -> Result<Opened, FsError> {
        let ino = node.ino;
        let writing = self.start_writing(&node, file, false)?;
        let group = self.usage.group_of(who.pid);
        let opened = self.register(NewHandle {
            fixed: false,
            node,
            source: Source::Local,
            served: Served::Writing(writing.clone()),
            passthrough_allowed: true,
            append: want.append,
            maps: want.maps,
            executes: want.executes,
            group,
        });
        if opened.is_err() {
            self.release_writer(ino, &writing).await;
        }
        opened
    }

    /// The plain file of a file that has no content yet, made by `create_for_writing`.
    fn start_writing(
        &self,
        node: &Node_,
        file: File,
        truncated: bool,
    ) -> Result<Arc<Writing>, FsError> {
        let inode = &node.inode;
        let stamp = Stamp::of(&file)?;
        let meta = LocalMeta {
            ino: node.ino,
            version: inode.version,
            epoch: inode.epoch,
            home: inode.home,
            size: stamp.size,
            mtime: stamp.mtime,
            blake3: None,
        };
        let fresh = Writing::marked(file, meta, truncated);
        let joined = self.table.join_writing(node, Some(Arc::new(fresh)));
        Ok(joined.expect("a fresh one was given"))
    }

    /// Where a file is and what serves it; waits for the data directory to follow the catalog where it is behind.
    pub(super) async fn find(&self, ino: Ino, want: Want) -> Result<Found, FsError> {
        let found = self.find_once(ino, want).await?;
        if !self.seems_behind(&found) {
            return Ok(found);
        }
        self.applier.catch_up().await?;
        let found = self.find_once(ino, want).await?;
        let is_home = found.node().inode.home == self.me();
        match is_home && self.seems_behind(&found) && self.was_removed_here(&found.path).await {
            // It would come back from another node's copy, and the removal would be forgotten.
            true => Err(FsError::NotFound),
            false => Ok(found),
        }
    }

    /// The catalog says that this node has it whole, and it is not there.
    fn seems_behind(&self, found: &Found) -> bool {
        let inode = &found.node().inode;
        let mine = |(node, holding): &(NodeId, Holding)| {
            *node == self.me() && holding.version == inode.version && holding.bytes == inode.size
        };
        let should_be_local =
            inode.size > 0 && (inode.home == self.me() || found.located.holders.iter().any(mine));
        should_be_local
            && !matches!(
                found.source,
                Source::Local | Source::Recreate | Source::Forward(_)
            )
    }

    async fn find_once(&self, ino: Ino, want: Want) -> Result<Found, FsError> {
        if let Some(found) = self.find_while_away(ino, want).await {
            return Ok(found);
        }
        let asked = self.catalog.located(ino);
        tokio::pin!(asked);
        let answer = loop {
            match tokio::time::timeout(LOOK_AGAIN, &mut asked).await {
                Ok(answer) => break answer,
                Err(_) => {
                    if let Some(found) = self.find_while_away(ino, want).await {
                        return Ok(found);
                    }
                }
            }
        };
        match answer {
            Ok(located) => self.find_at(located.ok_or(FsError::Stale)?, want).await,
            // It was not known before that Redis is away.
            Err(error) => match self.find_while_away(ino, want).await {
                Some(found) => Ok(found),
                None => Err(error.into()),
            },
        }
    }

    /// What needs nobody's word while Redis is away: a whole current copy here (see the module).
    async fn find_while_away(&self, ino: Ino, want: Want) -> Option<Found> {
        if want.write {
            return None;
        }
        let node = self.catalog.remembered_while_away(ino)?;
        let holders = Vec::new();
        let found = self.find_at(Located { node, holders }, want).await.ok()?;
        matches!(found.source, Source::Local | Source::Empty).then_some(found)
    }

    async fn find_at(&self, located: Located, want: Want) -> Result<Found, FsError> {
        let inode = &located.node.inode;
        let ino = located.node.ino;
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        let held = |(node, _): &(NodeId, Holding)| *node == self.me();
        let may_be_here = located.holders.is_empty() || located.holders.iter().any(held);
        let (copy, file) = match inode.home == self.me() || may_be_here {
            true => self.store.copy_and_file(&path, ino, inode),
            false => (CopyState::Absent, None),
        };
        let source = open_plan::source(&Situation {
            inode,
            holders: &located.holders,
            me: self.me(),
            copy,
            write: want.write,
            truncate: want.truncate,
        });
        Ok(Found {
            path,
            source,
            located,
            file: file.map(Arc::new),
        })
    }

    /// Gets hold of what serves it.
    pub(super) async fn serve(&self, found: &Found, want: Want) -> Result<Served, FsError> {
        match &found.source {
            Source::Local if want.write => self.join_local(found, want).await.map(Served::Writing),
            Source::Local => {
                let file = match &found.file {
                    Some(file) => file.clone(),
                    None => Arc::new(self.open_plain(found, false, false).await?.0),
                };
                if found.node().inode.home != self.me() {
                    super::on_disk(|| self.store.note_used(&file));
                }
                Ok(Served::Own(Content::Local(file)))
            }
            Source::Recreate => {
                let node = found.node();
                let make =
                    |path: &TreePath| self.store.create_for_writing(path, node.ino, &node.inode);
                let file = self.applier.at_path(node.ino, make).await?;
                let truncated = node.inode.size > 0;
                self.start_writing(node, file, truncated)
                    .map(Served::Writing)
            }
            Source::Empty => Ok(Served::Own(Content::Empty)),
            Source::Remote { holders } => self.serve_remote(found, holders).await,
            Source::Forward(_) if self.find_new_home(&found.located).await? => {
                let found = self.find(found.node().ino, want).await?;
                match &found.source {
                    // It died, too, while we looked: the next open tries again.
                    Source::Forward(home) => {
                        let forwarded = self.forward(&found, *home, true, want.truncate).await?;
                        Ok(Served::Forwarded(Arc::new(forwarded)))
                    }
                    _ => Box::pin(self.serve(&found, want)).await,
                }
            }
            Source::Forward(home) => {
                let forwarded = self.forward(found, *home, true, want.truncate).await?;
                Ok(Served::Forwarded(Arc::new(forwarded)))
            }
            Source::Lost => Err(self.lost(found).await),
            Source::NotAFile if found.node().inode.kind == Kind::Directory => {
                Err(FsError::IsADirectory)
            }
            Source::NotAFile => Err(FsError::Unsupported),
        }
    }

    async fn join_local(&self, found: &Found, want: Want) -> Result<Arc<Writing>, FsError> {
        if let Some(writing) = self.table.join_writing(found.node(), None) {
            return match writing.opened_again(&self.store, want.truncate).await {
                Ok(()) => Ok(writing),
                Err(error) => {
                    self.release_writer(writing.ino, &writing).await;
                    Err(error)
                }
            };
        }
        let (file, mut meta) = self.open_plain(found, true, want.truncate).await?;
        // The catalog's numbers, whatever the file remembers of a version before the last crash.
        let inode = &found.node().inode;
        (meta.epoch, meta.home) = (inode.epoch, inode.home);
        let fresh = Writing::start(&self.store, file, meta, want.truncate)?;
        let joined = self.table.join_writing(found.node(), Some(Arc::new(fresh)));
        Ok(joined.expect("a fresh one was given"))
    }

    /// The plain file; where it does not stand where it should, once more after the data directory has caught up.
    async fn open_plain(
        &self,
        found: &Found,
        write: bool,
        truncate: bool,
    ) -> Result<(File, LocalMeta), FsError> {
        let how = OpenLocal { write, truncate };
        let ino = found.node().ino;
        match self.store.open_file(&found.path, ino, how) {
            Err(StoreError::Mismatch { .. }) => {}
            other => return Ok(other?),
        }
        self.applier.catch_up().await?;
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        Ok(self.store.open_file(&path, ino, how)?)
    }

    /// Checked by the version's hash. While a holder is still computing that, the file is read at its home; where the home
    /// cannot be had, the hash is waited for.
    async fn serve_remote(&self, found: &Found, holders: &[NodeId]) -> Result<Served, FsError> {
        let node = found.node();
        if let Some(hash) = node.inode.blake3 {
            return self.serve_checked(found, holders, hash);
        }
        let deadline = Instant::now() + HASH_WAIT;
        loop {
            let unhashed = match self.ask_holders(node, holders).await {
                Ok(hash) => return self.serve_checked(found, holders, hash),
                Err(unhashed) => unhashed,
            };
            match self.serve_live(found, unhashed.tried).await {
                // Each question waits a while at the holder.
                Err(_) if unhashed.is_computing && Instant::now() < deadline => {}
                served => return served,
            }
        }
    }

    fn serve_checked(
        &self,
        found: &Found,
        holders: &[NodeId],
        hash: Hash,
    ) -> Result<Served, FsError> {
        let node = found.node();
        let key = ContentKey {
            ino: node.ino,
            version: node.inode.version,
            size: node.inode.size,
            hash,
        };
        let remote = self.fetcher.open(
            key,
            found.path.clone(),
            node.inode.clone(),
            holders.to_vec(),
        )?;
        Ok(Served::Own(Content::Remote(remote)))
    }

    /// The version's hash from the first holder that has it.
    pub(super) async fn ask_holders(
        &self,
        node: &Node_,
        holders: &[NodeId],
    ) -> Result<Hash, Unhashed> {
        let mut tried = Vec::new();
        let mut is_computing = false;
        for holder in holders {
            let name = self.node_name(*holder).await;
            let answer = match self.catalog.address_of(*holder).await {
                Ok(Some(address)) => {
                    let peer = self.pool.peer(&address);
                    forward::ask_hash(&peer, node.ino, node.inode.version).await
                }
                Ok(None) => Err("not alive".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match answer {
                Ok(Some(hash)) => return Ok(hash),
                Ok(None) => {
                    is_computing = true;
                    tried.push(format!("{name}: it is hashing it"));
                }
                Err(why) => tried.push(format!("{name}: {why}")),
            }
        }
        Err(Unhashed {
            tried: tried.join("; "),
            is_computing,
        })
    }

    /// No version can be had whole and checked (it is being written): what is at the home now is read there.
    pub(super) async fn serve_live(&self, found: &Found, tried: String) -> Result<Served, FsError> {
        let home = found.node().inode.home;
        if home == self.me() || home == NodeId::NONE {
            return Err(FsError::NoHolder {
                path: found.path.clone(),
                tried,
            });
        }
        let forwarded = self.forward(found, home, false, false).await;
        let forwarded = forwarded.map_err(|error| match error {
            FsError::NoHolder { path, tried: live } => FsError::NoHolder {
                path,
                tried: format!("{tried}; {live}"),
            },
            other => other,
        })?;
        Ok(Served::Own(Content::Live(Arc::new(forwarded))))
    }

    async fn forward(
        &self,
        found: &Found,
        home: NodeId,
        write: bool,
        truncate: bool,
    ) -> Result<Forwarded, FsError> {
        let (name, path) = (self.node_name(home).await, found.path.clone());
        let Some(address) = self.catalog.address_of(home).await? else {
            return Err(FsError::NoHolder {
                path,
                tried: format!("{name} (its home): not alive"),
            });
        };
        let peer = self.pool.peer(&address);
        Forwarded::open(&peer, name, path, found.node().ino, write, truncate).await
    }

    async fn lost(&self, found: &Found) -> FsError {
        let home = found.node().inode.home;
        let tried = match home {
            NodeId::NONE => "no node holds it".to_owned(),
            _ if self
                .store
                .is_damaged(&found.path, found.node().inode.version) =>
            {
                "the bytes in this node's data directory are damaged, and no good copy was found: restore the file from a backup or remove it; ks verify looks again".to_owned()
            }
            home if home == self.me() => {
                "its home is this node, and the file is gone from the data directory".to_owned()
            }
            home => format!("{} (its home): nothing held", self.node_name(home).await),
        };
        FsError::NoHolder {
            path: found.path.clone(),
            tried,
        }
    }

    /// What was got for an open that then failed.
    async fn unserve(&self, ino: Ino, served: &Served) {
        if let Served::Writing(writing) = served {
            self.release_writer(ino, writing).await;
        }
    }

    /// Forgets a handle; the last writer publishes what is not published.
    pub async fn release(self: &Arc<Self>, handle: Handle) {
        let Some(gone) = self.table.remove(handle) else {
            return;
        };
        self.unserve(gone.ino, &gone.served).await;
        self.locks.released(gone.ino, handle).await;
        let may_be_mapped = gone.maps && gone.mode == Mode::Passthrough;
        let ino = gone.ino;
        // Our own descriptor would count as a writer.
        drop(gone);
        if may_be_mapped && self.table.inode(ino).is_none() {
            self.watch_mapping(ino).await;
        }
    }

    pub(super) async fn release_writer(&self, ino: Ino, writing: &Writing) {
        if self.table.is_last_writer(ino)
            && let Err(error) = self.publish(writing).await
        {
            let path = self.known_path(ino).await;
            tracing::warn!(%path, %error, "what was written is not published yet; that is done when the catalog answers again");
        }
        self.table.writer_gone(ino);
    }

    fn note_open(&self, found: &Found, served: &Served, who: Caller) -> Option<i32> {
        let group = self.usage.group_of(who.pid)?;
        let node = found.node();
        let local_bytes = match served {
            Served::Own(Content::Local(_)) | Served::Writing(_) => node.inode.size,
            Served::Own(Content::Remote(remote)) => remote.progress().have_bytes,
            _ => 0,
        };
        let (ino, size) = (node.ino, node.inode.size);
        self.usage
            .note_open(group, ino, &found.path, size, local_bytes);
        Some(group)
    }

    /// Clears set-user-id and set-group-id, as a write by an ordinary user does.
    pub(crate) async fn clear_privileges(&self, ino: Ino) -> Result<(), FsError> {
        let node = self.attributes(ino).await?;
        let mode = without_privileges(node.inode.mode);
        if mode == node.inode.mode {
            return Ok(());
        }
        let change = crate::catalog::AttributeChange {
            mode: Some(mode),
            ..Default::default()
        };
        self.set_attributes(ino, None, None, change).await?;
        Ok(())
    }
}

/// What a write or chown leaves of a mode: no set-user-id, and no set-group-id where the group may execute.
pub(super) fn without_privileges(mode: u32) -> u32 {
    let without_user = mode & !libc::S_ISUID;
    match without_user & libc::S_IXGRP {
        0 => without_user,
        _ => without_user & !libc::S_ISGID,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_flags_are_understood() {
        let read = Want::of(libc::O_RDONLY);
        assert!(!read.write && !read.truncate && !read.append);
        assert!(Want::of(libc::O_RDONLY | libc::O_TRUNC).write);
        assert!(Want::of(libc::O_RDWR | libc::O_APPEND).append);
        assert!(Want::of(libc::O_WRONLY | libc::O_TRUNC).truncate);
        assert!(Want::of(libc::O_RDONLY | OPENED_TO_EXECUTE).executes && !read.executes);
    }

    #[test]
    fn privileges_go_as_on_ext4() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o4644), 0o644);
        assert_eq!(
            without_privileges(0o2644),
            0o2644,
            "mandatory locking, not a privilege"
        );
    }
}
