//! What other nodes changed, on its way to those who cache it here: the open files and the kernel.
//!
//! They come from two sides: the catalog says which records and directories changed (`FileSystem::changed`), the applier says
//! which names did (its events).
use super::FileSystem;
use crate::record::{Event, Ino, NodeId};
use crate::store::apply::OnEvent;
use std::sync::{Arc, OnceLock, Weak};

/// Something that others changed and that may be cached here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that is cached can be trusted.
    Everything,
    /// An inode's attributes.
    Attributes(Ino),
    /// An inode's attributes and contents; of a directory, its list of names.
    Contents(Ino),
    /// What a name stands for.
    Name {
        /// The directory.
        parent: Ino,
        /// The name in it.
        name: Vec<u8>,
    },
}

/// Who caches. Called from threads that must not be held up: it may not block, and may not call back.
pub trait Watcher: Send + Sync {
    /// Told of every change by others.
    fn changed(&self, change: Change);
}

/// The applier's way to the file system, which is made after it; what comes before `attach` is dropped.
#[derive(Clone, Default)]
pub(super) struct Events {
    target: Arc<OnceLock<Weak<FileSystem>>>,
}

impl Events {
    pub(super) fn attach(&self, file_system: &Arc<FileSystem>) {
        let first = self.target.set(Arc::downgrade(file_system));
        debug_assert!(first.is_ok(), "attached once");
    }

    /// What `Applier::start` is given.
    pub(super) fn on_event(&self) -> OnEvent {
        let target = self.target.clone();
        Arc::new(move |node, event| {
            if let Some(file_system) = target.get().and_then(Weak::upgrade) {
                file_system.event_seen(node, event);
            }
        })
    }
}

impl FileSystem {
    /// Who is told of changes by others from now on: the mount.
    pub fn set_watcher(&self, watcher: Option<Arc<dyn Watcher>>) {
        *self.watcher.write().unwrap() = watcher;
    }

    /// The catalog's news: an inode's record or directory changed elsewhere; `None`: anything may have. For `Catalog::open`'s `on_change`.
    pub fn changed(&self, ino: Option<Ino>) {
        match ino {
            // With a new size, the old version's last page would show zeros behind its end.
            Some(ino) if self.table.inode(ino).is_some() => self.tell(Change::Contents(ino)),
            Some(ino) => self.tell(Change::Attributes(ino)),
            None => {
                self.table.mark_stale(None);
                self.table.pages_unknown(None);
                self.tell(Change::Everything);
                if let Some(watches) = &self.watches {
                    watches.try_again_soon();
                }
            }
        }
    }

    pub(crate) fn tell(&self, change: Change) {
        if let Some(watcher) = &*self.watcher.read().unwrap() {
            watcher.changed(change);
        }
    }

    /// Contents of an inode changed and not through this kernel.
    pub(crate) fn tell_contents(&self, ino: Ino) {
        self.table.pages_unknown(Some(ino));
        self.tell(Change::Contents(ino));
    }

    fn event_seen(&self, node: NodeId, event: &Event) {
        if node == self.me() {
            return self.owed.note(event);
        }
        if let Event::Published { ino, .. } = event {
            self.table.mark_stale(Some(*ino));
        }
        for change in stale_after(event) {
            self.tell(change);
        }
    }
}

/// What an event of another node makes stale here.
pub(super) fn stale_after(event: &Event) -> Vec<Change> {
    let name = |parent: &Ino, name: &[u8]| Change::Name {
        parent: *parent,
        name: name.to_vec(),
    };
    match event {
        Event::Linked { parent, ino, .. } => {
            vec![Change::Contents(*parent), Change::Attributes(*ino)]
        }
        Event::Unlinked {
            parent,
            name: gone,
            ino,
            ..
        } => vec![
            name(parent, gone),
            Change::Contents(*parent),
            Change::Attributes(*ino),
        ],
        Event::Renamed {
            from_parent,
            from_name,
            to_parent,
            to_name,
            ino,
            replaced,
            ..
        } => {
            let mut stale = vec![
                name(from_parent, from_name),
                name(to_parent, to_name),
                Change::Contents(*from_parent),
                Change::Contents(*to_parent),
                Change::Attributes(*ino),
            ];
            stale.extend(replaced.map(Change::Attributes));
            stale
        }
        Event::Exchanged {
            first_parent,
            first_name,
            second_parent,
            second_name,
            first_ino,
            second_ino,
            ..
        } => vec![
            name(first_parent, first_name),
            name(second_parent, second_name),
            Change::Contents(*first_parent),
            Change::Contents(*second_parent),
            Change::Attributes(*first_ino),
            Change::Attributes(*second_ino),
        ],
        Event::Entered { parent, .. } => vec![Change::Contents(*parent)],
        Event::Attributes { ino, .. } => vec![Change::Attributes(*ino)],
        Event::Published { ino, .. } => vec![Change::Contents(*ino)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rename_makes_both_names_and_both_directories_stale() {
        let stale = stale_after(&Event::Renamed {
            from_parent: 2,
            from_name: b"a".to_vec(),
            to_parent: 3,
            to_name: b"b".to_vec(),
            ino: 9,
            from_path: b"x/a".to_vec(),
            to_path: b"y/b".to_vec(),
            replaced: Some(8),
        });
        let name = |parent, name: &[u8]| Change::Name {
            parent,
            name: name.to_vec(),
        };
        for wanted in [
            name(2, b"a"),
            name(3, b"b"),
            Change::Contents(2),
            Change::Contents(3),
            Change::Attributes(9),
            Change::Attributes(8),
        ] {
            assert!(stale.contains(&wanted), "{wanted:?} missing in {stale:?}");
        }
    }
}
