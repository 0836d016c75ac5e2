//! Bringing the tree in line with what was done in the data directory. See `behind` for what always holds.
use super::super::{Change, FileSystem};
use crate::catalog::copies::{GaveUp, is_whole};
use crate::catalog::{AttributeChange, Catalog, CatalogError, Ground, Node_};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use crate::store::UNKNOWN_DIRECTORY;
use crate::store::scan::look::{self, Glance, Seen};
use crate::store::scan::take_paths;
use crate::store::watch::Watches;
use crate::store::watch::due::{BelowMoved, Due, Hint, Look, Task};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// So often a path waits for the directory that it is in to be moved.
const WAITS_MAX: u32 = 40;
/// So often a directory that was moved waits for what stood in its place.
const MERGE_AFTER: u32 = 8;

/// One thing to be brought in line.
struct Item {
    task: Task,
    glance: Glance,
    node: Option<Node_>,
}

/// Directories that were asked for, so that each is asked for once.
#[derive(Default)]
struct Parents {
    known: HashMap<TreePath, Option<Ino>>,
}

impl Parents {
    /// The directory that `path` is in; `None`: the tree has none there.
    async fn of(
        &mut self,
        catalog: &Catalog,
        path: &TreePath,
    ) -> Result<Option<Ino>, CatalogError> {
        let Some((above, _)) = path.split_last() else {
            return Ok(None);
        };
        if let Some(known) = self.known.get(&above) {
            return Ok(*known);
        }
        let found = catalog.resolve(&above).await?.map(|node| node.ino);
        self.known.insert(above, found);
        Ok(found)
    }
}

/// What is left to do for what is there.
enum Prepared {
    /// Nothing.
    Done,
    /// Nothing: a directory was moved with all below.
    Moved,
    /// It is to be taken in.
    ToTake,
    /// A directory is to be taken in, and what came along in it looked at one by one.
    ToMerge,
    /// It is to be tried again.
    Later,
}

impl FileSystem {
    /// What differed at two looks is looked at once more, with all events applied, and then acted upon.
    pub(super) async fn take_in(&self, watches: &Arc<Watches>, tasks: Vec<Task>) {
        let Some(ground) = self.ground().await else {
            return tasks.iter().for_each(|task| again(watches, &task.path));
        };
        let mut items = Vec::new();
        let seen = look::look_all(&self.store, &self.catalog, self, &tasks).await;
        for (task, seen) in tasks.into_iter().zip(seen) {
            let Seen { look, glance, node } = seen;
            let look = match self.catalog.holds(ground) {
                true => look,
                false => Look::Failed,
            };
            if watches.due().looked(&task.path, look, watches.now_ms()) {
                items.push(Item { task, glance, node });
            }
        }
        let (items, later) = match self.stand_still(items).await {
            Ok(parted) => parted,
            Err((error, items)) => {
                tracing::debug!(%error, "what changed in the data directory is taken in later");
                (Vec::new(), items)
            }
        };
        for item in later {
            again(watches, &item.task.path);
        }
        self.act(watches, ground, items).await;
    }

    /// The events before the look are applied now: what is as it was then is not on its way. Those that changed, and those in whose directory
    /// something is being made, come later.
    #[allow(clippy::type_complexity)]
    async fn stand_still(
        &self,
        items: Vec<Item>,
    ) -> Result<(Vec<Item>, Vec<Item>), (FsError, Vec<Item>)> {
        if items.is_empty() {
            return Ok((items, Vec::new()));
        }
        if let Err(error) = self.applier.catch_up().await {
            return Err((error.into(), items));
        }
        let mut parents = Parents::default();
        let mut busy = Vec::with_capacity(items.len());
        for item in &items {
            let parent = parents.of(&self.catalog, &item.task.path).await;
            busy.push(match parent {
                Ok(parent) => parent.is_some_and(|parent| self.making.is_under_way(parent)),
                Err(_) => true,
            });
        }
        let held = self.applier.hold().await;
        let _held = match held {
            Ok(held) => held,
            Err(error) => return Err((error.into(), items)),
        };
        let mut parted = (Vec::new(), Vec::new());
        for (item, busy) in items.into_iter().zip(busy) {
            let glance = self.store.glance(&item.task.path);
            let is_same = glance.is_ok_and(|glance| glance.number() == item.glance.number());
            match is_same && !busy {
                true => parted.0.push(item),
                false => parted.1.push(item),
            }
        }
        Ok(parted)
    }

    async fn parent_of(&self, path: &TreePath) -> Result<Option<Node_>, CatalogError> {
        match path.split_last() {
            Some((above, _)) => self.catalog.resolve(&above).await,
            None => Ok(None),
        }
    }

    /// Moved directories first, then what is there, in the order of the events; then what is gone, from the leaves up. Each only while the tree
    /// is the one that was looked at.
    async fn act(&self, watches: &Arc<Watches>, ground: Ground, items: Vec<Item>) {
        let (gone, there): (Vec<Item>, Vec<Item>) =
            items.into_iter().partition(|item| item.glance.is_nothing());
        let (mut taken, mut merged) = (Vec::new(), Vec::new());
        // As it is before any of them is done: what the tree had for the others was looked at before, too.
        let below_moved = |items: Vec<Item>| -> Vec<(BelowMoved, Item)> {
            let due = watches.due();
            let of = |item: &Item| match item.task.tries < WAITS_MAX {
                true => due.is_below_moved(&item.task.path),
                false => BelowMoved::default(),
            };
            let with = |item: Item| (of(&item), item);
            items.into_iter().map(with).collect()
        };
        let (there, mut gone) = (below_moved(there), below_moved(gone));
        for (below, item) in there {
            if !self.catalog.holds(ground) {
                again(watches, &item.task.path);
                continue;
            }
            // The tree has another directory above it still, or none.
            if below.from || below.to {
                not_yet(watches, &item.task.path);
                continue;
            }
            match self.prepare(watches, &item).await {
                Ok(Prepared::Done) => self.settled(watches, &item).await,
                Ok(Prepared::Moved) => {
                    self.settled(watches, &item).await;
                    // What was made in it shortly before was heard of under its old name, and not found there.
                    self.mend(watches, item.task.path.clone()).await;
                }
                Ok(Prepared::ToTake) => taken.push(item),
                Ok(Prepared::ToMerge) => {
                    merged.push(item.task.path.clone());
                    taken.push(item);
                }
                Ok(Prepared::Later) => not_yet(watches, &item.task.path),
                Err(error) => self.failed(watches, &item, &error),
            }
        }
        if !self.catalog.holds(ground) {
            taken
                .drain(..)
                .for_each(|item| again(watches, &item.task.path));
        }
        self.take_there(watches, taken).await;
        for path in merged {
            self.mend(watches, path).await;
        }
        gone.sort_by_key(|(_, item)| std::cmp::Reverse(item.task.path.names().count()));
        self.take_all_away(watches, ground, gone).await;
    }

    async fn take_all_away(
        &self,
        watches: &Watches,
        ground: Ground,
        gone: Vec<(BelowMoved, Item)>,
    ) {
        let mut seen_before = HashSet::new();
        for (below, mut item) in gone {
            if !self.catalog.holds(ground) {
                again(watches, &item.task.path);
                continue;
            }
            if below.from {
                not_yet(watches, &item.task.path);
                continue;
            }
            if let Some(node) = &item.node
                && !seen_before.insert(node.ino)
                && self.see_fewer_names(&mut item).await.is_err()
            {
                again(watches, &item.task.path);
                continue;
            }
            match self.take_away(watches, &item).await {
                Ok(true) => self.settled(watches, &item).await,
                Ok(false) => not_yet(watches, &item.task.path),
                Err(error) => self.failed(watches, &item, &error),
            }
        }
    }

    /// Another name of the same file went just now, and its record says so: what was looked at is that file still, where its content is.
    async fn see_fewer_names(&self, item: &mut Item) -> Result<(), CatalogError> {
        let now = self.catalog.resolve(&item.task.path).await?;
        if let (Some(node), Some(now)) = (&mut item.node, now)
            && (node.ino, node.inode.version) == (now.ino, now.inode.version)
        {
            *node = now;
        }
        Ok(())
    }

    fn failed(&self, watches: &Watches, item: &Item, error: &FsError) {
        tracing::info!(path = %item.task.path, %error, "changed behind the daemon's back, and cannot be taken in now; tried again");
        again(watches, &item.task.path);
    }

    /// It is done; the kernel forgets what it knew of it. A name that is the same thing's as before stays: who works in a directory would find
    /// itself nowhere.
    async fn settled(&self, watches: &Watches, item: &Item) {
        let after = self.catalog.resolve(&item.task.path).await.ok().flatten();
        let after = after.map(|node| node.ino);
        self.settled_as(watches, item, after, &mut Parents::default())
            .await;
    }

    /// The same, where it is known what the tree has there now.
    async fn settled_as(
        &self,
        watches: &Watches,
        item: &Item,
        after: Option<Ino>,
        parents: &mut Parents,
    ) {
        let path = &item.task.path;
        let before = item.node.as_ref().map(|node| node.ino);
        if (before.is_none() || before != after)
            && let Some((_, name)) = path.split_last()
            && let Ok(Some(parent)) = parents.of(&self.catalog, path).await
        {
            let name = name.to_vec();
            self.tell(Change::Name { parent, name });
            self.tell(Change::Contents(parent));
        }
        if let Some(ino) = before {
            self.tell(Change::Attributes(ino));
        }
        watches.due().done(path, watches.now_ms());
    }

    /// What stands where something else stood by the tree's word.
    async fn prepare(&self, watches: &Watches, item: &Item) -> Result<Prepared, FsError> {
        if item.glance.kind() == Some(Kind::Directory)
            && let Some(prepared) = self.follow_directory(watches, item).await?
        {
            return Ok(prepared);
        }
        if let Some(node) = &item.node
            && is_displaced(item, node, self.me(), self.table.inode(node.ino).is_some())
        {
            return self.replace(watches, item, node).await;
        }
        Ok(Prepared::ToTake)
    }

    /// A directory that says which it is, or was heard to come from elsewhere: its name in the tree follows, with all below. `None`: it is to be
    /// taken in as any other.
    async fn follow_directory(
        &self,
        watches: &Watches,
        item: &Item,
    ) -> Result<Option<Prepared>, FsError> {
        let (to, says) = (&item.task.path, item.glance.directory());
        let from = match says {
            0 => item.task.moved_from.clone(),
            ino => self.catalog.path_of(ino).await?,
        };
        let Some(from) = from.filter(|from| from != to) else {
            // A new one in the place of one that was moved: the other comes first.
            let stood_there = says == 0 && item.node.is_some();
            let is_awaited = stood_there && watches.due().is_awaited_elsewhere(to);
            return Ok(is_awaited.then_some(Prepared::Later));
        };
        let standing = self.store.glance(&from)?;
        if says != 0 && standing.directory() == says || says == 0 && !standing.is_nothing() {
            return Ok(None);
        }
        let flags = match &item.node {
            None => libc::RENAME_NOREPLACE,
            // The one that the tree has here was moved too: where it is now, it is put right in its turn.
            Some(node) if is_directory(node) && watches.due().is_awaited_elsewhere(to) => {
                libc::RENAME_EXCHANGE
            }
            Some(node) if is_directory(node) => 0,
            Some(_) => return Ok(None),
        };
        let moved = self.move_directory(&from, to, says, flags).await?;
        Ok(Some(match moved {
            true => Prepared::Moved,
            // What stood there was removed, which is dealt with first.
            false if item.task.tries < MERGE_AFTER && watches.due().has_below(to) => {
                Prepared::Later
            }
            false => Prepared::ToMerge,
        }))
    }

    /// A directory was moved, with all below it. `false`: the tree cannot follow in one step.
    async fn move_directory(
        &self,
        from: &TreePath,
        to: &TreePath,
        says: Ino,
        flags: u32,
    ) -> Result<bool, FsError> {
        let node = self.catalog.resolve(from).await?;
        if node.is_none_or(|node| !is_directory(&node) || says != 0 && node.ino != says) {
            return Ok(false);
        }
        let standing = self.store.glance(from)?;
        if standing.kind() == Some(Kind::Directory) && standing.directory() == 0 {
            // Another one by now, which is not to be moved when the event comes by.
            self.store.mark_directory(from, None, UNKNOWN_DIRECTORY)?;
        }
        let (old, new) = (self.parent_of(from).await?, self.parent_of(to).await?);
        let (Some(old), Some(new), Some((_, old_name)), Some((_, new_name))) =
            (old, new, from.split_last(), to.split_last())
        else {
            return Ok(false);
        };
        let renamed = self
            .catalog
            .rename(old.ino, old_name, new.ino, new_name, flags);
        match renamed.await {
            Ok(committed) => {
                self.own(&committed).await;
                let name = old_name.to_vec();
                let parent = old.ino;
                self.tell(Change::Name { parent, name });
                self.tell(Change::Contents(parent));
                Ok(true)
            }
            Err(CatalogError::Posix(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the name off what stood there and gives it to what stands there now, with no event applied in between: the applier would remove
    /// or remake what it does not find in the tree.
    async fn replace(
        &self,
        watches: &Watches,
        item: &Item,
        node: &Node_,
    ) -> Result<Prepared, FsError> {
        let path = &item.task.path;
        let (Some(parent), Some((_, name))) = (self.parent_of(path).await?, path.split_last())
        else {
            return Ok(Prepared::ToTake);
        };
        let held = self.applier.hold().await?;
        let (holders, heirs) = self.other_keepers(node).await?;
        if !heirs.is_empty() {
            // Somebody's own copy of it on another node keeps the name.
            return Ok(Prepared::ToTake);
        }
        let removed = self
            .catalog
            .remove_seen(parent.ino, name, node, &holders)
            .await;
        let removed = match removed {
            Ok(committed) => committed,
            // What was in the directory is still to go.
            Err(CatalogError::Posix(libc::ENOTEMPTY)) if watches.due().has_below(path) => {
                return Ok(Prepared::Later);
            }
            // It is not (or no more) to be replaced: as any other that is in the way.
            Err(CatalogError::Posix(_)) => return Ok(Prepared::ToTake),
            Err(error) => return Err(error.into()),
        };
        let paths = std::slice::from_ref(path);
        let taken = take_paths(&self.store, &self.catalog, &self.hasher, self, paths).await;
        drop(held);
        self.own(&removed).await;
        taken?;
        Ok(Prepared::Done)
    }

    /// Takes in what is there, in one go; where that fails, one by one.
    async fn take_there(&self, watches: &Watches, items: Vec<Item>) {
        let paths: Vec<TreePath> = items.iter().map(|item| item.task.path.clone()).collect();
        let all = take_paths(&self.store, &self.catalog, &self.hasher, self, &paths).await;
        let nodes = match &all {
            Ok(_) => self.catalog.found(&paths).await.ok(),
            Err(_) => None,
        };
        let mut parents = Parents::default();
        for (index, item) in items.into_iter().enumerate() {
            let known = nodes.as_ref().map(|nodes| nodes[index].clone());
            match self.taken_there(&item, all.is_ok(), known).await {
                Ok(node) => {
                    let after = node.map(|node| node.ino);
                    self.settled_as(watches, &item, after, &mut parents).await;
                }
                Err(error) => self.failed(watches, &item, &error),
            }
        }
    }

    /// One of those that were taken in, or that is to be taken in by itself. What the tree has there then.
    async fn taken_there(
        &self,
        item: &Item,
        is_taken: bool,
        known: Option<Option<Node_>>,
    ) -> Result<Option<Node_>, FsError> {
        let paths = std::slice::from_ref(&item.task.path);
        if !is_taken {
            take_paths(&self.store, &self.catalog, &self.hasher, self, paths).await?;
        }
        let node = match known {
            Some(node) => node,
            None => self.catalog.resolve(&item.task.path).await?,
        };
        self.take_attributes(item, node.as_ref()).await?;
        Ok(node)
    }

    /// Mode and owner, where they were changed; `node` is what the tree has there now.
    async fn take_attributes(&self, item: &Item, node: Option<&Node_>) -> Result<(), FsError> {
        let path = &item.task.path;
        // Taking a directory in has marked it: whether the daemon had made it was seen before.
        let glance = match item.glance.kind() {
            Some(Kind::Directory) => &item.glance,
            _ => &self.store.glance(path)?,
        };
        let Some(node) = node else {
            return Ok(());
        };
        let is_superuser = self.store.sets_owners();
        let is_heard = item.task.has_attributes;
        let changed = look::attributes(glance, node, self.me(), is_superuser, is_heard);
        let Some((mode, uid, gid)) = changed else {
            return Ok(());
        };
        let change = AttributeChange {
            mode: Some(mode),
            uid: Some(uid),
            gid: Some(gid),
            ..Default::default()
        };
        let committed = self.catalog.set_attributes(node.ino, change).await?;
        self.own(&committed).await;
        self.tell(Change::Attributes(node.ino));
        Ok(())
    }

    /// What is not there any more. `false`: to be tried again.
    async fn take_away(&self, watches: &Watches, item: &Item) -> Result<bool, FsError> {
        let path = &item.task.path;
        let Some(node) = &item.node else {
            return Ok(true);
        };
        let (Some(parent), Some((_, name))) = (self.parent_of(path).await?, path.split_last())
        else {
            return Ok(true);
        };
        if self.store.is_parked(node.ino) || !self.store.is_in_place() {
            return Ok(false);
        }
        if node.inode.kind == Kind::File && node.inode.home != self.me() {
            // A copy: the file stays, this node has it no more.
            self.catalog.set_holding(node.ino, None).await?;
            return Ok(true);
        }
        let (holders, heirs) = self.other_keepers(node).await?;
        if !heirs.is_empty() {
            return self.pass_on(node, &heirs).await;
        }
        let removed = self
            .catalog
            .remove_seen(parent.ino, name, node, &holders)
            .await;
        match removed {
            Ok(committed) => {
                tracing::debug!(%path, "removed behind the daemon's back");
                self.own(&committed).await;
                Ok(true)
            }
            Err(CatalogError::Posix(libc::ENOTEMPTY)) => {
                let waits = |due: &Due| due.has_below(path) || due.is_awaited_elsewhere(path);
                if waits(&watches.due()) {
                    return Ok(false);
                }
                // What other nodes have in it stays, and so does it.
                if item.task.is_with_all || !item.task.was_moved_away {
                    return Ok(true);
                }
                self.all_below_is_gone(watches, path, node.ino).await?;
                Ok(false)
            }
            Err(CatalogError::Posix(libc::ESTALE)) => Ok(false),
            Err(CatalogError::Posix(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// A directory was moved out of sight: of what the tree has below it, all that stood here went along.
    async fn all_below_is_gone(
        &self,
        watches: &Watches,
        path: &TreePath,
        ino: Ino,
    ) -> Result<(), FsError> {
        let mut directories = vec![(path.clone(), ino)];
        while let Some((above, ino)) = directories.pop() {
            let listing = match self.catalog.list(ino).await {
                Err(CatalogError::Posix(_)) => continue,
                listing => listing?,
            };
            for (name, node) in listing.entries.iter() {
                let below = above.join(name);
                match node.inode.kind {
                    Kind::Directory => directories.push((below.clone(), node.ino)),
                    Kind::File if !self.stood_here(node).await? => continue,
                    _ => {}
                }
                let now_ms = watches.now_ms();
                watches.due().event(below, Hint::GoneWithAll, now_ms);
            }
        }
        let now_ms = watches.now_ms();
        watches.due().event(path.clone(), Hint::GoneWithAll, now_ms);
        Ok(())
    }

    /// Whether this node had a file, by the tree's word.
    async fn stood_here(&self, node: &Node_) -> Result<bool, FsError> {
        if node.inode.home == self.me() {
            return Ok(true);
        }
        let located = self.catalog.located(node.ino).await?;
        let is_me = |(holder, _): &(NodeId, Holding)| *holder == self.me();
        Ok(located.is_some_and(|located| located.holders.iter().any(is_me)))
    }

    /// Who holds a file, as `remove_seen` wants it; and who of them has whole copies that somebody put there. Those stay when it is removed
    /// here: who moves a file from one data directory to another's does not want it gone.
    async fn other_keepers(
        &self,
        node: &Node_,
    ) -> Result<(Vec<(NodeId, Holding)>, Vec<NodeId>), FsError> {
        if node.inode.kind != Kind::File {
            return Ok((Vec::new(), Vec::new()));
        }
        let located = self.catalog.located(node.ino).await?;
        let holders = located.map_or(Vec::new(), |located| located.holders);
        let is_keeper = |(holder, holding): &&(NodeId, Holding)| {
            *holder != self.me() && holding.is_put && is_whole(&node.inode, holding)
        };
        let heirs = holders.iter().filter(is_keeper).map(|(holder, _)| *holder);
        let heirs = match node.inode.nlink {
            // Another of its names goes, and no copy with it.
            2.. => Vec::new(),
            _ => heirs.collect(),
        };
        Ok((holders, heirs))
    }

    /// A file that is gone here has its home at another node from now on. `false`: to be tried again.
    async fn pass_on(&self, node: &Node_, heirs: &[NodeId]) -> Result<bool, FsError> {
        let version = node.inode.version;
        let given = self.catalog.give_up(node.ino, version, heirs, 1).await?;
        tracing::debug!(
            ino = node.ino,
            ?given,
            "removed behind the daemon's back; another node's own copy stays"
        );
        Ok(!matches!(given, GaveUp::TooFew(_) | GaveUp::Changed))
    }
}

fn is_directory(node: &Node_) -> bool {
    node.inode.kind == Kind::Directory
}

fn not_yet(watches: &Watches, path: &TreePath) {
    let now_ms = watches.now_ms();
    watches.due().looked(path, Look::NotYet, now_ms);
}

fn again(watches: &Watches, path: &TreePath) {
    let now_ms = watches.now_ms();
    watches.due().looked(path, Look::Failed, now_ms);
}

/// Whether what the tree has at a path was replaced by what stands there: a thing of another kind, another symlink, or another file while the old
/// one is open here (who has it open keeps it). Of files this node must be the home: their plain file stood there. Symlinks and directories may stand
/// on other nodes alone; what took their place must have been put there in one step, or after they were removed.
fn is_displaced(item: &Item, node: &Node_, me: NodeId, is_open: bool) -> bool {
    let Some(kind) = item.glance.kind() else {
        return false;
    };
    let record = &node.inode;
    let was_replaced = item.task.was_put || item.task.was_removed || item.task.moved_from.is_some();
    match record.kind {
        Kind::File if record.home != me => false,
        Kind::File if kind == Kind::File => is_open && item.glance.meta().is_none(),
        Kind::File => true,
        Kind::Symlink if kind == Kind::Symlink => {
            was_replaced && item.glance.target() != record.target
        }
        Kind::Symlink => was_replaced,
        Kind::Directory => kind != Kind::Directory && was_replaced,
        _ => false,
    }
}

#[cfg(test)]
#[path = "taking_tests.rs"]
mod tests;
