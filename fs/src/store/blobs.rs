//! Payloads by hash, under `.ks/blobs/ab/<hash>`: arguments and results that are too large for a message.
//!
//! Always: what stands under a hash was whole when it got its name (temporary file, then rename). A blob is not synced to
//! disk: it may be lost with the machine's power, like the call it belongs to.
use super::{Store, StoreError, io_at, state};
use crate::record::Hash;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

impl Store {
    /// Keeps a payload that is given in parts; returns its hash and its size in bytes.
    pub fn put_blob(&self, data: &[&[u8]]) -> Result<(Hash, u64), StoreError> {
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        for part in data {
            hasher.update(part);
            size += part.len() as u64;
        }
        let hash: Hash = *hasher.finalize().as_bytes();
        if self.has_blob(&hash) {
            return Ok((hash, size));
        }
        self.ensure_room(size)?;
        let (mut file, temporary) = self.new_blob()?;
        for part in data {
            if let Err(error) = file.write_all(part) {
                let _ = std::fs::remove_file(&temporary);
                return Err(io_at(&temporary)(error));
            }
        }
        self.commit_blob(&temporary, &hash)?;
        Ok((hash, size))
    }

    /// A file to write a blob into that arrives from elsewhere (any order of offsets); then `commit_blob`, or remove it.
    pub fn new_blob(&self) -> Result<(File, PathBuf), StoreError> {
        let path = state::temporary_beside(&self.state_dir().join("blobs/new"));
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_at(&path))?;
        Ok((file, path))
    }

    /// Gives a whole blob (its content was checked against `hash` by the caller) its name.
    pub fn commit_blob(&self, temporary: &Path, hash: &Hash) -> Result<(), StoreError> {
        let path = by_hash(&self.state_dir().join("blobs"), hash);
        match std::fs::rename(temporary, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                state::make_private_directory(path.parent().unwrap_or(&path))?;
                std::fs::rename(temporary, &path).map_err(io_at(&path))
            }
            other => other.map_err(io_at(&path)),
        }
    }

    /// Where the blob (or kept value) of that hash stands, if it is here.
    pub fn blob_path(&self, hash: &Hash) -> PathBuf {
        let blob = by_hash(&self.state_dir().join("blobs"), hash);
        match blob.is_file() {
            true => blob,
            false => self.kept_path(hash).unwrap_or(blob),
        }
    }

    /// Whether the blob is here, whole.
    pub fn has_blob(&self, hash: &Hash) -> bool {
        self.blob_path(hash).is_file()
    }
}

/// `<directory>/ab/abcd...`.
pub(super) fn by_hash(directory: &Path, hash: &Hash) -> PathBuf {
    let name = hex::encode(hash);
    directory.join(&name[..2]).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_are_found_by_their_hash() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        let (hash, size) = store.put_blob(&[b"ab", b"", b"c"]).unwrap();
        assert_eq!(hash, *blake3::hash(b"abc").as_bytes());
        assert_eq!(size, 3);
        assert!(store.has_blob(&hash));
        assert_eq!(std::fs::read(store.blob_path(&hash)).unwrap(), b"abc");
        assert_eq!(store.put_blob(&[b"abc"]).unwrap(), (hash, 3));
        assert!(!store.has_blob(&[0; 32]));
        let left: Vec<_> = std::fs::read_dir(directory.path().join(".ks/blobs"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
    }

    #[test]
    fn a_full_disk_takes_no_blob() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), u64::MAX).unwrap();
        assert!(matches!(
            store.put_blob(&[b"abc"]),
            Err(StoreError::NoSpace { .. })
        ));
    }
}
