//! The kernel's references to plain files that it serves by itself: one for each inode, shared by its open handles, and kept
//! as long as any of them (the kernel refuses a second backing file on one inode).
use crate::{filesystem::Handle, record::Ino};
use fuser::BackingId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

#[derive(Default)]
struct Tables {
    by_handle: HashMap<Handle, (Ino, Arc<BackingId>)>,
    by_inode: HashMap<Ino, Weak<BackingId>>,
}

/// The table; its size is bounded by the open handles.
#[derive(Default)]
pub(super) struct Backings {
    tables: Mutex<Tables>,
}

impl Backings {
    /// The inode's reference for this handle; `make` gets one where there is none.
    pub(super) fn for_handle(
        &self,
        ino: Ino,
        handle: Handle,
        make: impl FnOnce() -> std::io::Result<BackingId>,
    ) -> std::io::Result<Arc<BackingId>> {
        let mut tables = self.tables.lock().unwrap();
        let there = tables.by_inode.get(&ino).and_then(Weak::upgrade);
        let backing = match there {
            Some(backing) => backing,
            None => {
                let made = Arc::new(make()?);
                tables.by_inode.insert(ino, Arc::downgrade(&made));
                made
            }
        };
        tables.by_handle.insert(handle, (ino, backing.clone()));
        Ok(backing)
    }

    /// The inode's reference, where handles are open that need it.
    pub(super) fn join(&self, ino: Ino, handle: Handle) -> Option<Arc<BackingId>> {
        let mut tables = self.tables.lock().unwrap();
        let backing = tables.by_inode.get(&ino)?.upgrade()?;
        tables.by_handle.insert(handle, (ino, backing.clone()));
        Some(backing)
    }

    /// The handle is gone.
    pub(super) fn release(&self, handle: Handle) {
        let mut tables = self.tables.lock().unwrap();
        let Some((ino, backing)) = tables.by_handle.remove(&handle) else {
            return;
        };
        if Arc::strong_count(&backing) == 1 {
            tables.by_inode.remove(&ino);
        }
        drop(tables);
        drop(backing);
    }
}
