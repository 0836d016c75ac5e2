//! Records for the store's tests.
use crate::record::*;

/// A file's record of that version and size.
pub(super) fn file_record(version: u64, size: u64) -> Inode {
    Inode {
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size,
        atime: 0,
        mtime: 0,
        ctime: 0,
        parent: ROOT,
        name: b"f".to_vec(),
        target: Vec::new(),
        xattrs: Default::default(),
        version,
        epoch: 1,
        home: NodeId(1),
        blake3: None,
        md5: None,
    }
}
