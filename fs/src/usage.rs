//! Which files a process group opened, and what had to be fetched for it: what placement learns from.
use crate::path::TreePath;
use crate::record::Ino;

/// One file that a watched process group opened.
#[derive(Clone, Debug)]
pub struct FileUse {
    pub ino: Ino,
    pub path: TreePath,
    pub size: u64,
    /// Bytes of it that were on this node when it was opened.
    pub local_bytes: u64,
    /// Bytes of it that were fetched from peers for this group.
    pub fetched_bytes: u64,
}

/// Watches process groups (each worker is one). Cheap when nothing is watched.
#[derive(Default)]
pub struct Usage {/* .. */}
impl Usage {
    pub fn watch(&self, process_group: i32) {
        todo!()
    }
    /// What the group used since `watch` or the last `take`.
    pub fn take(&self, process_group: i32) -> Vec<FileUse> {
        todo!()
    }
    pub fn unwatch(&self, process_group: i32) {
        todo!()
    }
}
