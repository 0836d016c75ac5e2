//! Files that were written here and whose last version could not be published, mostly because Redis was away: they are published
//! as soon as the catalog answers, whether anybody opens them or not.
//!
//! Who takes part: `writing` notes a file when its publication failed and takes it off when one succeeded; one task looks at the
//! list and publishes. `ks status` counts it.
//!
//! What always holds: the plain file of a listed inode says itself that it is being written (`user.ks`), so that the next start finds
//! it should this node die before. The list is bounded; what does not fit is found by the next open or start here.
//! Not for files that others change behind our back (`behind`).
use super::FileSystem;
use crate::{
    error::FsError,
    path::TreePath,
    record::{Ino, Inode},
    store::{
        CopyState,
        troubles::{Listed, TOLD_MAX},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::sync::Notify;

/// Between two looks at the list.
const LOOK: Duration = Duration::from_millis(500);
/// The longest wait after a round in which something could not be published.
const BACK_OFF_LONGEST: Duration = Duration::from_secs(30);
/// Files on the list.
const FILES_MAX: usize = 65_536;
/// How long a path may take to be found, for people.
const PATH_WAIT: Duration = Duration::from_millis(500);

/// The list.
#[derive(Debug, Default)]
pub(super) struct Unpublished {
    /// And where each stood when it was written.
    files: Mutex<BTreeMap<Ino, TreePath>>,
    /// Told when there is a file on it; nothing wakes while there is none.
    noted: Arc<Notify>,
}

impl Drop for Unpublished {
    /// The task that looks at the list sees that it is gone.
    fn drop(&mut self) {
        self.noted.notify_one();
    }
}

impl Unpublished {
    /// What was written to it is not published. `false`: the list is full.
    pub(super) fn note(&self, ino: Ino, path: TreePath) -> bool {
        let mut files = self.files.lock().unwrap();
        if files.len() >= FILES_MAX && !files.contains_key(&ino) {
            return false;
        }
        files.insert(ino, path);
        self.noted.notify_one();
        true
    }

    /// It is published, or there is nothing to publish any more.
    pub(super) fn settle(&self, ino: Ino) {
        self.files.lock().unwrap().remove(&ino);
    }

    fn listed(&self) -> Vec<Ino> {
        self.files.lock().unwrap().keys().copied().collect()
    }

    fn told(&self) -> Listed {
        let files = self.files.lock().unwrap();
        let shown = |path: &TreePath| String::from_utf8_lossy(path.as_bytes()).into_owned();
        Listed {
            count: files.len() as u64,
            first: files.values().take(TOLD_MAX).map(shown).collect(),
        }
    }

    fn count(&self) -> usize {
        self.files.lock().unwrap().len()
    }
}

/// The wait after a round: none where all went well, else twice the one before.
fn next_wait(before: Duration, all_went_well: bool) -> Duration {
    match all_went_well {
        true => LOOK,
        false => (before * 2).clamp(LOOK, BACK_OFF_LONGEST),
    }
}

/// Runs until the file system is gone.
pub(super) fn spawn(file_system: &Arc<FileSystem>) {
    let noted = file_system.unpublished.noted.clone();
    let file_system: Weak<FileSystem> = Arc::downgrade(file_system);
    tokio::spawn(async move {
        let mut wait = LOOK;
        let mut is_empty = true;
        loop {
            if is_empty {
                noted.notified().await;
            }
            tokio::time::sleep(wait).await;
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            // Without the catalog nothing is tried, so that its return is seen within one look.
            wait = match file_system.unpublished.count() > 0 && file_system.catalog.is_answering() {
                true => next_wait(wait, file_system.publish_listed().await),
                false => LOOK,
            };
            is_empty = file_system.unpublished.count() == 0;
        }
    });
}

impl FileSystem {
    /// What is written here and not published: how many files, and the first few, below the root.
    pub fn unpublished(&self) -> Listed {
        self.unpublished.told()
    }

    /// What was written to a file could not be published.
    pub(super) async fn note_unpublished(&self, ino: Ino) {
        let path = self.known_path(ino).await;
        if !self.unpublished.note(ino, path.clone()) {
            tracing::warn!(%path, "too many files wait to be published: this one is published at the next open or start here");
        }
    }

    /// Where a file stands, also while the catalog is away, for people.
    pub(super) async fn known_path(&self, ino: Ino) -> TreePath {
        let Some(open) = self.table.inode(ino).map(|inode| inode.node()) else {
            return self.path_of(ino).await;
        };
        let parent = self.catalog.path_of(open.inode.parent);
        match tokio::time::timeout(PATH_WAIT, parent).await {
            Ok(Ok(Some(parent))) => parent.join(&open.inode.name),
            _ => TreePath::root().join(&open.inode.name),
        }
    }

    /// One round. `true`: nothing failed.
    async fn publish_listed(&self) -> bool {
        let mut all_went_well = true;
        for ino in self.unpublished.listed() {
            match self.publish_left(ino).await {
                Ok(()) => {
                    let path = self.path_of(ino).await;
                    tracing::info!(%path, "what was written is published now");
                }
                // Unlinked, or another node is its home by now: the start keeps this node's bytes under a name of their own.
                Err(FsError::NotFound | FsError::Stale) => self.unpublished.settle(ino),
                Err(error) => {
                    tracing::debug!(ino, %error, "what was written is still not published");
                    all_went_well = false;
                    if !self.catalog.is_answering() {
                        return false;
                    }
                }
            }
        }
        all_went_well
    }

    /// Publishes what was written to a file here and is not published, where there is such a thing.
    pub(super) async fn publish_left(&self, ino: Ino) -> Result<(), FsError> {
        if let Some(writing) = self.table.inode(ino).and_then(|inode| inode.writing()) {
            return self.publish(&writing).await;
        }
        let located = self.catalog.located(ino).await?.ok_or(FsError::Stale)?;
        if located.node.inode.home != self.me() {
            return Err(FsError::Stale);
        }
        // What is mapped still is published when it is not any more.
        if self.mapped.has(ino) || !self.has_changed(ino, &located.node.inode).await? {
            self.unpublished.settle(ino);
            return Ok(());
        }
        self.publish_changed(ino).await?;
        self.tell_contents(ino);
        Ok(())
    }

    /// Whether the plain file of an inode whose home this node is holds more than was published.
    pub(super) async fn has_changed(&self, ino: Ino, inode: &Inode) -> Result<bool, FsError> {
        let path = self.catalog.path_of(ino).await?.ok_or(FsError::Stale)?;
        let copy = super::on_disk(|| self.store.copy_state(&path, ino, inode));
        Ok(copy == CopyState::Dirty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_forgets_what_is_settled() {
        let list = Unpublished::default();
        for ino in 0..FILES_MAX as Ino {
            assert!(list.note(ino, TreePath::root()));
        }
        assert!(!list.note(FILES_MAX as Ino, TreePath::root()));
        assert!(
            list.note(7, TreePath::root()),
            "what is on it may be noted again"
        );
        list.settle(7);
        assert!(list.note(FILES_MAX as Ino, TreePath::root()));
        assert_eq!(list.count(), FILES_MAX);
    }

    #[test]
    fn failures_are_tried_again_ever_more_rarely() {
        let mut wait = LOOK;
        for _ in 0..20 {
            let next = next_wait(wait, false);
            assert!(next >= wait && next <= BACK_OFF_LONGEST);
            wait = next;
        }
        assert_eq!(wait, BACK_OFF_LONGEST);
        assert_eq!(next_wait(wait, true), LOOK);
    }
}
