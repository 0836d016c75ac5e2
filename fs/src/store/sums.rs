//! MD5 of plain files: see `filesystem::md5`.
use super::{OpenLocal, Store, StoreError, meta};
use crate::path::TreePath;
use crate::record::{Hash, Ino, Md5};
use md5::{Digest, Md5 as Hasher};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;

/// The MD5 of all that a reader gives.
pub(crate) fn md5_of(mut reader: impl Read) -> std::io::Result<Md5> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(count) => hasher.update(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The same of a file, wherever its cursor stands.
pub(crate) fn md5_of_file(file: &File) -> std::io::Result<Md5> {
    md5_of(FromStart { file, offset: 0 })
}

struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read_at(room, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// What was read is hashed by the way: a damaged copy has no MD5 to tell.
struct Checked<'a> {
    reader: FromStart<'a>,
    blake3: blake3::Hasher,
}

impl Read for Checked<'_> {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(room)?;
        self.blake3.update(&room[..count]);
        Ok(count)
    }
}

impl Store {
    /// The MD5 of the plain file at `path`, which must be that version, untouched before and after.
    pub(crate) fn md5(&self, path: &TreePath, ino: Ino, version: u64) -> Result<Md5, StoreError> {
        let only_reading = OpenLocal {
            write: false,
            truncate: false,
        };
        let (file, known) = self.open_file(path, ino, only_reading)?;
        let is_that = || -> Result<bool, StoreError> {
            let stat = rustix::fs::fstat(&file).map_err(|error| self.io(path)(error.into()))?;
            Ok(known.version == version && meta::is_untouched(&known, &stat))
        };
        if !is_that()? {
            return Err(self.mismatch(path));
        }
        let mut check = Checked {
            reader: FromStart {
                file: &file,
                offset: 0,
            },
            blake3: blake3::Hasher::new(),
        };
        let md5 = md5_of(&mut check).map_err(self.io(path))?;
        let is_good = |hash: &Hash| check.blake3.finalize().as_bytes() == hash;
        if !known.blake3.as_ref().is_none_or(is_good) {
            let damaged = "its bytes are not those of its hash; ks verify mends it";
            return Err(self.io(path)(std::io::Error::other(damaged)));
        }
        match is_that()? {
            true => Ok(md5),
            false => Err(self.mismatch(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::md5_of;

    #[test]
    fn sums_as_others_compute_them() {
        let sum = |bytes: &[u8]| hex::encode(md5_of(bytes).unwrap());
        assert_eq!(sum(b""), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(sum(b"abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(sum(&[b'a'; 3_000_000]), sum(&vec![b'a'; 3_000_000]));
    }
}
