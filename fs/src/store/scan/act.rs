//! Doing what was decided: entering, publishing, marking, setting aside.
use super::compare::Pending;
use super::decide::{self, Local, Moved, There, Verdict, Way};
use super::entry::Entry;
use super::{LISTED_MAX, PENDING_MAX, QUESTIONS_MAX, Scan};
use crate::catalog::{Adopted, CatalogError, Node_, Publication};
use crate::path::TreePath;
use crate::record::*;
use crate::store::files::Standing;
use crate::store::{LocalMeta, StoreError, confine};
use rustix::fs::RenameFlags;
use tokio::task::JoinSet;

impl Scan<'_> {
    /// Enters what carries no meta; returns the directories that had to be set aside, with their old and new paths.
    pub(super) async fn adopt(
        &mut self,
        entries: Vec<Entry>,
    ) -> Result<Vec<(TreePath, TreePath)>, StoreError> {
        let mut asides = Vec::new();
        let mut entries = entries;
        // What is set aside is entered in the next round, under a name that is free.
        while !entries.is_empty() {
            let found = entries.iter().map(|e| (e.path.clone(), e.inode.clone()));
            let adopted = self.catalog.adopt(found.collect()).await?;
            let mut again = Vec::new();
            for (entry, adopted) in entries.into_iter().zip(adopted) {
                let set_aside = match adopted {
                    Adopted::New(node) => {
                        self.take_new(entry, &node)?;
                        None
                    }
                    Adopted::Occupied(node) => self.take_occupied(entry, node).await?,
                };
                match set_aside {
                    Some((was, entry)) if entry.inode.kind == Kind::Directory => {
                        asides.push((was, entry.path.clone()));
                        again.push(entry);
                    }
                    Some((_, entry)) => again.push(entry),
                    None => {}
                }
            }
            entries = again;
        }
        Ok(asides)
    }

    fn take_new(&mut self, entry: Entry, node: &Node_) -> Result<(), StoreError> {
        self.report.new += 1;
        match entry.inode.kind {
            Kind::File => self.mark(&entry, &entry.meta_as(node.ino, &node.inode))?,
            Kind::Directory => self.mark_directory(&entry, node),
            _ => {}
        }
        Ok(())
    }

    /// So that it is known again where it is moved. Failing costs no more than that.
    pub(super) fn mark_directory(&self, entry: &Entry, node: &Node_) {
        if entry.directory == node.ino {
            return;
        }
        let store = self.store;
        let mut marked = store.mark_directory(&entry.path, Some(entry.disk), node.ino);
        if entry.is_own_make {
            let attributes = store.root.open_directory(&entry.path);
            marked = marked.and(attributes.and_then(|it| store.attributes_of(&it, &node.inode)));
        }
        if let Err(error) = marked {
            tracing::debug!(path = %entry.path, %error, "a directory cannot be marked as part of the tree");
        }
    }

    /// `Some`: it was set aside (from that path) and is to be entered under its new one.
    async fn take_occupied(
        &mut self,
        entry: Entry,
        node: Node_,
    ) -> Result<Option<(TreePath, Entry)>, StoreError> {
        let verdict = decide::occupied(&entry.inode, &node.inode, self.store.node_id());
        if verdict != Verdict::Same && !self.is_at(&entry.path, &node).await? {
            if self.catalog.node(node.ino).await?.is_none() {
                // It was removed in the very moment: the name may be free.
                return Ok(Some((entry.path.clone(), entry)));
            }
            // It is what stands in the way above: another node put a file where here is a directory, just now.
            let text = "the tree has a file where this one's directory belongs; the next start tries again";
            self.unreadable(&entry.path, text.into());
            return Ok(None);
        }
        match verdict {
            Verdict::Same => {
                if entry.inode.kind == Kind::Directory {
                    self.mark_directory(&entry, &node);
                }
                Ok(None)
            }
            // Somebody has just put it there: what it holds is not taken for granted.
            Verdict::Mark if self.live.is_some() => self.publish(entry, &node).await,
            Verdict::Mark => {
                self.mark(&entry, &entry.meta_as(node.ino, &node.inode))?;
                Ok(None)
            }
            Verdict::Publish => self.publish(entry, &node).await,
            Verdict::Compare => {
                self.compare_later(Pending::new(entry, node.ino));
                Ok(None)
            }
            _ => self.conflict(entry).map(Some),
        }
    }

    async fn is_at(&self, path: &TreePath, node: &Node_) -> Result<bool, StoreError> {
        let there = self.catalog.resolve(path).await?;
        Ok(there.is_some_and(|there| there.ino == node.ino))
    }

    /// Stands where the catalog has it. `Some`: to be entered as new.
    pub(super) async fn take_known(
        &mut self,
        entry: Entry,
        meta: &LocalMeta,
        node: Node_,
    ) -> Result<Option<Entry>, StoreError> {
        let me = self.store.node_id();
        let local = Local {
            inode: &entry.inode,
            is_untouched: entry.is_untouched,
        };
        match decide::known(local, meta, &node.inode, me) {
            Verdict::Current => {
                self.tell_of_copy(&entry, meta, &node);
                if meta.blake3.is_none() || node.inode.blake3.is_none() {
                    self.hasher.queue(entry.path, meta.ino, meta.version);
                }
                Ok(None)
            }
            Verdict::Mark => {
                self.mark(&entry, &entry.meta_as(node.ino, &node.inode))?;
                Ok(None)
            }
            Verdict::Publish => Ok(self.publish(entry, &node).await?.map(|(_, entry)| entry)),
            Verdict::Conflict => {
                self.catalog.set_holding(node.ino, None).await?;
                self.conflict(entry).map(|(_, entry)| Some(entry))
            }
            _ => Ok(None),
        }
    }

    /// Stands elsewhere than the catalog has it. `Some`: to be entered as new.
    pub(super) async fn take_moved(
        &mut self,
        entry: Entry,
        meta: &LocalMeta,
        node: Node_,
        way: Way,
    ) -> Result<Option<Entry>, StoreError> {
        let Some(there) = self.catalog.path_of(node.ino).await? else {
            return Ok(Some(entry));
        };
        let standing = self.store.standing(&there);
        let standing = standing.map_err(self.store.io(&there))?;
        let local = Local {
            inode: &entry.inode,
            is_untouched: entry.is_untouched,
        };
        let what = match &standing {
            Standing::File { stat, .. } if (stat.st_dev, stat.st_ino) == entry.disk => {
                There::SameFile
            }
            _ if standing.meta_of(node.ino).is_some() => There::SameInode,
            _ => There::NotIt,
        };
        let me = self.store.node_id();
        match decide::elsewhere(local, meta, &node.inode, what, way, me) {
            Moved::New => Ok(Some(entry)),
            Moved::Link => self.link(entry, node.ino).await,
            Moved::Rename => {
                self.rename(entry, meta, node, &there, libc::RENAME_NOREPLACE)
                    .await
            }
            Moved::Replace => self.rename(entry, meta, node, &there, 0).await,
            Moved::MoveBack => self.move_back(entry, meta, node, &there).await,
        }
    }

    async fn link(&mut self, entry: Entry, ino: Ino) -> Result<Option<Entry>, StoreError> {
        let linked = match self.parent_of(&entry.path).await? {
            Some((parent, name)) => self.catalog.link(ino, parent, name).await.map(|_| ()),
            None => Err(CatalogError::Posix(libc::ENOENT)),
        };
        match linked {
            Ok(()) => self.report.new += 1,
            // The name was taken meanwhile, or it has too many: the next scan sees it again.
            Err(CatalogError::Posix(errno)) => {
                let error = std::io::Error::from_raw_os_error(errno);
                self.unreadable(
                    &entry.path,
                    format!("cannot be entered as a hard link: {error}"),
                );
            }
            Err(error) => return Err(error.into()),
        }
        Ok(None)
    }

    async fn rename(
        &mut self,
        entry: Entry,
        meta: &LocalMeta,
        node: Node_,
        there: &TreePath,
        flags: u32,
    ) -> Result<Option<Entry>, StoreError> {
        let (from, to) = (
            self.parent_of(there).await?,
            self.parent_of(&entry.path).await?,
        );
        let (Some((from, old)), Some((to, new))) = (from, to) else {
            return Ok(Some(entry));
        };
        let renamed = self.catalog.rename(from, old, to, new, flags);
        match renamed.await {
            Ok(_) => self.take_known(entry, meta, node).await,
            Err(CatalogError::Posix(_)) => Ok(Some(entry)),
            Err(error) => Err(error.into()),
        }
    }

    async fn move_back(
        &mut self,
        entry: Entry,
        meta: &LocalMeta,
        node: Node_,
        there: &TreePath,
    ) -> Result<Option<Entry>, StoreError> {
        let (store, from) = (self.store, &entry.path);
        let moved = store.with_parents(there, || {
            store.root.rename(from, there, RenameFlags::NOREPLACE)
        });
        match moved {
            Ok(()) => {
                self.tell_of_copy(&entry, meta, &node);
                Ok(None)
            }
            // Something stands there: this is a file of its own then.
            Err(_) => Ok(Some(entry)),
        }
    }

    /// The directory's inode in the catalog, and the name in it.
    async fn parent_of<'p>(
        &self,
        path: &'p TreePath,
    ) -> Result<Option<(Ino, &'p [u8])>, StoreError> {
        let Some((parent, name)) = confine::split(path) else {
            return Ok(None);
        };
        let node = self.catalog.resolve(&parent).await?;
        Ok(node.map(|node| (node.ino, name)))
    }

    /// The content here is a new version. `Some`: this node is the home no more, and it was set aside.
    async fn publish(
        &mut self,
        entry: Entry,
        node: &Node_,
    ) -> Result<Option<(TreePath, Entry)>, StoreError> {
        if let Some(live) = self.live {
            self.publish_live(live, entry, node).await?;
            return Ok(None);
        }
        let publication = Publication {
            size: entry.inode.size,
            mtime: entry.inode.mtime,
            ctime: entry.inode.ctime,
            blake3: entry.inode.blake3,
        };
        let published = self
            .catalog
            .publish(node.ino, node.inode.epoch, publication);
        match published.await {
            Ok(committed) => {
                self.report.changed += 1;
                self.catalog.tell_own(node.ino);
                self.mark(&entry, &entry.meta_as(node.ino, &committed.value.inode))?;
                Ok(None)
            }
            Err(CatalogError::Posix(_)) => self.conflict(entry).map(Some),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes `user.ks`, and has the file hashed.
    pub(super) fn mark(&mut self, entry: &Entry, meta: &LocalMeta) -> Result<(), StoreError> {
        match self.store.mark_entry(entry, meta) {
            Ok(true) if meta.blake3.is_none() => {
                let path = entry.path.clone();
                self.hasher.queue(path, meta.ino, meta.version);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error @ StoreError::Io { .. }) => {
                self.unreadable(
                    &entry.path,
                    format!("cannot be marked as part of the tree: {error}"),
                );
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Renames what was found to a conflict name; returns its old path and it as new.
    pub(super) fn conflict(&mut self, entry: Entry) -> Result<(TreePath, Entry), StoreError> {
        let aside = self.store.set_aside(&entry.path)?;
        tracing::warn!(path = %entry.path, kept_as = %aside, "other content than the tree's: kept under another name");
        if self.report.conflicts.len() < LISTED_MAX {
            let text = String::from_utf8_lossy(aside.as_bytes()).into_owned();
            self.report.conflicts.push(text);
        }
        let mut renamed = entry.clone();
        renamed.inode.name = aside.names().last().unwrap_or_default().to_vec();
        renamed.path = aside;
        renamed.meta = None;
        Ok((entry.path, renamed))
    }

    fn compare_later(&mut self, pending: Pending) {
        if self.pending.len() < PENDING_MAX {
            self.pending.push(pending);
        } else {
            self.report.undecided += 1;
        }
    }

    /// A whole copy of another node's file: the holding is told, with others.
    fn tell_of_copy(&mut self, entry: &Entry, meta: &LocalMeta, node: &Node_) {
        if node.inode.home == self.store.node_id() || node.inode.version != meta.version {
            return;
        }
        let holding = Holding {
            version: meta.version,
            bytes: meta.size,
            is_put: entry.is_put,
        };
        self.copies.push((node.ino, holding));
    }

    /// Tells of the copies that were found; most of them are known, which is asked for in one go.
    pub(super) async fn tell_copies(&mut self) -> Result<(), StoreError> {
        let copies = std::mem::take(&mut self.copies);
        for (ino, holding) in self.catalog.untold(copies).await? {
            let catalog = self.catalog.clone();
            let telling = async move {
                // Where it stands is remembered then, and journaled with it.
                catalog.path_of(ino).await?;
                catalog.set_holding(ino, Some(holding)).await
            };
            self.tell(telling).await?;
        }
        Ok(())
    }

    /// Several at once; errors come out later, at the latest at the end.
    async fn tell(
        &mut self,
        telling: impl Future<Output = Result<(), CatalogError>> + Send + 'static,
    ) -> Result<(), StoreError> {
        if self.telling.len() == QUESTIONS_MAX {
            Self::told(&mut self.telling).await?;
        }
        self.telling.spawn(telling);
        Ok(())
    }

    /// Waits for one.
    async fn told(telling: &mut JoinSet<Result<(), CatalogError>>) -> Result<bool, StoreError> {
        match telling.join_next().await {
            Some(told) => {
                told??;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Waits for all.
    pub(super) async fn all_told(&mut self) -> Result<(), StoreError> {
        while Self::told(&mut self.telling).await? {}
        Ok(())
    }

    pub(super) fn unreadable(&mut self, path: &TreePath, error: String) {
        tracing::warn!(%path, %error, "cannot be entered in the tree");
        if self.report.unreadable.len() < LISTED_MAX {
            let text = String::from_utf8_lossy(path.as_bytes()).into_owned();
            self.report.unreadable.push((text, error));
        }
    }
}
