//! Re-reads a plain file and compares it with its hash: what `ks verify` and the scrub do.
//!
//! Always: the bytes are read from the disk (what the page cache has of them is let go first); a file that is being written or was changed is not judged; a hash
//! tree that does not belong to the file is written anew.
use super::files::Standing;
use super::{Store, trees};
use crate::copies::Condition;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::Advice;
use std::fs::File;

impl Store {
    /// What the plain file at `path` is worth as a copy of `inode`'s version, whose hash is `expected`.
    pub fn check_copy(
        &self,
        path: &TreePath,
        ino: Ino,
        inode: &Inode,
        expected: &Hash,
    ) -> Condition {
        let before = match self.standing(path) {
            Ok(standing) => standing,
            Err(error) => return Condition::Unreadable(error.to_string()),
        };
        let Some(meta) = before.meta_of(ino) else {
            return Condition::Absent;
        };
        if before.is_dirty() || meta.version > inode.version {
            return Condition::BeingWritten;
        }
        if meta.version < inode.version {
            return Condition::Absent;
        }
        let Standing::File { file, stat, .. } = &before else {
            return Condition::Absent;
        };
        let size = stat.st_size as u64;
        let hashed = from_disk(file).and_then(|()| ks_transport::blocks::hash_file(file, size));
        let (hash, outboard) = match hashed {
            Ok(hashed) => hashed,
            Err(error) => return Condition::Unreadable(error.to_string()),
        };
        if hash == *expected && size == inode.size {
            self.mend_tree(path, &hash, size, &outboard);
            return Condition::Good;
        }
        match self.standing(path) {
            Ok(after) if after.is_dirty() || !self.is_still(path, &before) => {
                Condition::BeingWritten
            }
            _ => Condition::Damaged,
        }
    }

    fn mend_tree(&self, path: &TreePath, hash: &Hash, size: u64, outboard: &[u8]) {
        let known = self.tree(hash, size);
        if known.is_some_and(|known| trees::is_same(&known, outboard)) {
            return;
        }
        match self.put_tree(hash, outboard) {
            Ok(()) => {
                tracing::info!(%path, "its hash tree was missing or damaged, and is written anew")
            }
            Err(error) => tracing::warn!(%path, %error, "its hash tree cannot be written"),
        }
    }
}

/// Lets the page cache forget the file, so that what is read next comes from the disk. What is not written out yet stays.
fn from_disk(file: &File) -> std::io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalMeta;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_flipped_bit_is_told_from_a_change_and_a_damaged_tree_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        let plain = directory.path().join("f");
        let content = vec![7u8; 100_000];
        std::fs::write(&plain, &content).unwrap();
        let file = File::options().read(true).write(true).open(&plain).unwrap();
        let (hash, outboard) = ks_transport::blocks::hash_bytes(&content);
        let mtime = std::fs::metadata(&plain).unwrap().modified().unwrap();
        let meta = LocalMeta {
            ino: 5,
            version: 2,
            epoch: 1,
            home: store.node_id(),
            size: content.len() as u64,
            mtime: Store::modified(&file).unwrap(),
            blake3: Some(hash),
        };
        store.set_meta(&file, &meta).unwrap();
        let path = TreePath::new(b"f").unwrap();
        let inode = super::super::testing::file_record(2, content.len() as u64);
        let check = || store.check_copy(&path, 5, &inode, &hash);
        assert_eq!(check(), Condition::Good);
        let mut damaged = outboard.clone();
        damaged[70] ^= 1;
        store.put_tree(&hash, &damaged).unwrap();
        assert_eq!(check(), Condition::Good);
        assert!(trees::is_same(
            &store.tree(&hash, inode.size).unwrap(),
            &outboard
        ));
        assert_eq!(store.check_copy(&path, 6, &inode, &hash), Condition::Absent);
        file.write_all_at(&[6], 50_000).unwrap();
        assert_eq!(
            check(),
            Condition::BeingWritten,
            "its time says that it was changed"
        );
        file.set_modified(mtime).unwrap();
        assert_eq!(check(), Condition::Damaged);
    }
}
