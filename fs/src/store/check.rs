//! Re-reads a plain file and compares it with its hash: what `ks verify` and the scrub do.
//!
//! Always: the bytes are read from the disk (what the page cache has of them is let go first; the scrub reads past the page cache where the disk allows it); a file that is being written or was changed is not judged; a hash
//! tree that does not belong to the file is written anew.
use super::files::Standing;
use super::{DIRTY_SIZE, Store, state, trees};
use crate::copies::Condition;
use crate::copies::scrub::Progress;
use crate::path::TreePath;
use crate::record::*;
use rustix::fs::{Advice, OFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What the scrub found of a file.
#[derive(Debug)]
pub(crate) enum Scrubbed {
    /// Its bytes are those of its hash.
    Good,
    /// There is nothing to compare it with: no hash yet, being written, changed, gone, or not a file of the tree.
    Passed,
    /// Its bytes are not those of its hash, or cannot be read: look closer.
    Suspect,
    /// `rest` said that it is to end.
    Ended,
}

impl Store {
    /// Compares the plain file at `path` with its own hash, slowly: `rest` is called with the bytes of each piece that was read, and ends
    /// it with an error. Returns what was found, and how many bytes were read.
    pub(crate) fn scrub_copy(
        &self,
        path: &TreePath,
        mut rest: impl FnMut(u64) -> std::io::Result<()> + Send,
    ) -> (Scrubbed, u64) {
        let Ok(before) = self.standing(path) else {
            return (Scrubbed::Passed, 0);
        };
        let expected = before.meta().and_then(|meta| meta.blake3);
        let (Some(expected), false, Standing::File { file, stat, .. }) =
            (expected, before.is_dirty(), &before)
        else {
            return (Scrubbed::Passed, 0);
        };
        let size = stat.st_size as u64;
        let mut disk = FromDisk::new(file);
        let (mut has_ended, mut read_bytes) = (false, 0);
        let hashed = ks_transport::blocks::hash_pieces(size, |offset, piece| {
            disk.read(offset, piece)?;
            read_bytes += piece.len() as u64;
            rest(piece.len() as u64).inspect_err(|_| has_ended = true)
        });
        let found = match hashed {
            _ if has_ended => Scrubbed::Ended,
            Ok((hash, outboard)) if hash == expected => {
                self.mend_tree(path, &hash, size, &outboard);
                Scrubbed::Good
            }
            _ => match self.standing(path) {
                Ok(after) if !after.is_dirty() && self.is_still(path, &before) => Scrubbed::Suspect,
                _ => Scrubbed::Passed,
            },
        };
        (found, read_bytes)
    }

    /// How far the scrub was when that was last written down; from the beginning where it is not known.
    pub(crate) fn scrub_progress(&self) -> Progress {
        let written = std::fs::read(self.state_dir().join("scrub")).unwrap_or_default();
        postcard::from_bytes(&written).unwrap_or_default()
    }

    /// Writes down how far the scrub is.
    pub(crate) fn save_scrub_progress(&self, progress: &Progress) {
        let path = self.state_dir().join("scrub");
        let bytes = postcard::to_allocvec(progress).expect("it always encodes");
        if let Err(error) = state::write_whole(&path, &bytes) {
            tracing::warn!(%error, "how far the scrub is was not written down");
        }
    }

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
        if before.is_dirty() && meta.size != DIRTY_SIZE {
            return Condition::Changed;
        }
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
        if self.has_tree_file(hash) {
            self.note_thrown_away(format!("the hash tree of {path}"));
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

/// What `O_DIRECT` asks of offsets, lengths and memory, on any disk.
const DIRECT_BYTES: usize = 4096;

/// Reads a file past the page cache, which is left as it is; where the disk cannot do that, through it, and what was read is let go.
struct FromDisk<'a> {
    file: &'a File,
    is_direct: bool,
    room: Vec<u8>,
}

impl<'a> FromDisk<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            file,
            is_direct: set_direct(file, true),
            room: Vec::new(),
        }
    }

    /// Fills `piece`; its offset is a multiple of the group size.
    fn read(&mut self, offset: u64, piece: &mut [u8]) -> std::io::Result<()> {
        if self.is_direct {
            match self.read_direct(offset, piece) {
                Ok(()) => return Ok(()),
                // The file got shorter, or the disk does not do it.
                Err(_) => self.is_direct = !set_direct(self.file, false),
            }
        }
        let length = std::num::NonZeroU64::new(piece.len() as u64);
        rustix::fs::fadvise(self.file, offset, length, Advice::DontNeed)?;
        self.file.read_exact_at(piece, offset)?;
        Ok(rustix::fs::fadvise(
            self.file,
            offset,
            length,
            Advice::DontNeed,
        )?)
    }

    fn read_direct(&mut self, offset: u64, piece: &mut [u8]) -> std::io::Result<()> {
        let length = piece.len().next_multiple_of(DIRECT_BYTES);
        self.room.resize(length + DIRECT_BYTES, 0);
        let start = self.room.as_ptr().align_offset(DIRECT_BYTES);
        let room = &mut self.room[start..start + length];
        let mut have = 0;
        while have < piece.len() {
            // Less comes only at the end of the file, or where a signal got in the way: from a round place on again.
            have -= have % DIRECT_BYTES;
            let more = self.file.read_at(&mut room[have..], offset + have as u64)?;
            if more == 0 || (have + more < piece.len() && more < DIRECT_BYTES) {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            have += more;
        }
        piece.copy_from_slice(&room[..piece.len()]);
        Ok(())
    }
}

/// `false`: it cannot be done.
fn set_direct(file: &File, direct: bool) -> bool {
    let set = rustix::fs::fcntl_getfl(file).and_then(|mut flags| {
        flags.set(OFlags::DIRECT, direct);
        rustix::fs::fcntl_setfl(file, flags)
    });
    set.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalMeta;

    #[test]
    fn the_scrub_reads_what_the_disk_has_at_its_own_pace() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        for size in [0usize, 1, 5000, 16 << 10, 100_001, (3 << 20) + 77] {
            let content: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
            let plain = directory.path().join("f");
            std::fs::write(&plain, &content).unwrap();
            let file = File::options().read(true).write(true).open(&plain).unwrap();
            let (hash, outboard) = ks_transport::blocks::hash_bytes(&content);
            let mut meta = LocalMeta {
                ino: 5,
                version: 2,
                epoch: 1,
                home: store.node_id(),
                size: size as u64,
                mtime: Store::modified(&file).unwrap(),
                blake3: None,
            };
            let path = TreePath::new(b"f").unwrap();
            let scrub = || store.scrub_copy(&path, |_| Ok(()));
            assert!(
                matches!(scrub(), (Scrubbed::Passed, 0)),
                "nothing is known of it"
            );
            store.set_meta(&file, &meta).unwrap();
            assert!(
                matches!(scrub(), (Scrubbed::Passed, 0)),
                "it has no hash yet"
            );
            meta.blake3 = Some(hash);
            store.set_meta(&file, &meta).unwrap();
            let (found, read) = scrub();
            assert!(
                matches!(found, Scrubbed::Good) && read == size as u64,
                "{size}: {found:?}"
            );
            let tree = store.tree(&hash, size as u64).unwrap();
            assert!(trees::is_same(&tree, &outboard), "its tree was missing");
            let ends = |_| Err(std::io::ErrorKind::Interrupted.into());
            assert!(matches!(store.scrub_copy(&path, ends).0, Scrubbed::Ended) || size == 0);
            if size == 0 {
                continue;
            }
            let mtime = std::fs::metadata(&plain).unwrap().modified().unwrap();
            file.write_all_at(&[content[size / 2] ^ 1], size as u64 / 2)
                .unwrap();
            assert!(
                matches!(scrub().0, Scrubbed::Passed),
                "somebody wrote to it"
            );
            file.set_modified(mtime).unwrap();
            file.sync_all().unwrap();
            assert!(
                matches!(scrub().0, Scrubbed::Suspect),
                "a flipped bit of {size}"
            );
        }
    }

    #[test]
    fn how_far_the_scrub_is_outlives_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        assert_eq!(store.scrub_progress(), Progress::default());
        let mut progress = Progress::default();
        progress.looked(b"a/b", 100);
        store.save_scrub_progress(&progress);
        drop(store);
        let store = Store::open(directory.path(), 0).unwrap();
        assert_eq!(store.scrub_progress(), progress);
        std::fs::write(store.state_dir().join("scrub"), [255; 3]).unwrap();
        assert_eq!(store.scrub_progress(), Progress::default());
    }

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
            Condition::Changed,
            "its time says that it was changed"
        );
        let written = LocalMeta {
            size: DIRTY_SIZE,
            ..meta.clone()
        };
        store.set_meta(&file, &written).unwrap();
        assert_eq!(check(), Condition::BeingWritten);
        store.set_meta(&file, &meta).unwrap();
        file.set_modified(mtime).unwrap();
        assert_eq!(check(), Condition::Damaged);
    }
}
