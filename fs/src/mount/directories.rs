//! Open directories: each handle reads from the listing as it was when it began, so that offsets stay right while names change.
use crate::{catalog::Listing, record::Ino};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Open directories.
const DIRECTORIES_MAX: usize = 16_384;

/// A directory as one handle sees it.
pub(super) struct Snapshot {
    pub(super) ino: Ino,
    pub(super) parent: Ino,
    pub(super) listing: Arc<Listing>,
}

/// The table of handles.
#[derive(Default)]
pub(super) struct Directories {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Option<Arc<Snapshot>>>>,
}

impl Directories {
    /// A new handle; `None`: too many are open.
    pub(super) fn open(&self) -> Option<u64> {
        let mut open = self.open.lock().unwrap();
        if open.len() >= DIRECTORIES_MAX {
            return None;
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(handle, None);
        Some(handle)
    }

    pub(super) fn snapshot(&self, handle: u64) -> Option<Arc<Snapshot>> {
        self.open.lock().unwrap().get(&handle).cloned().flatten()
    }

    pub(super) fn set(&self, handle: u64, snapshot: Arc<Snapshot>) {
        if let Some(slot) = self.open.lock().unwrap().get_mut(&handle) {
            *slot = Some(snapshot);
        }
    }

    pub(super) fn close(&self, handle: u64) {
        self.open.lock().unwrap().remove(&handle);
    }
}
