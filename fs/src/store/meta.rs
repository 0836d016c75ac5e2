//! The `user.ks` extended attribute: what a plain file is in the tree, carried by the file itself.
//!
//! The store writes it on every file that the catalog knows, and on directories that the store makes (there without
//! [`LocalMeta`], only for `seen`). Besides the meta it says which catalog its inode numbers belong to (one that is of
//! another catalog counts as absent, so that a fresh Redis never takes an old number for a new file), on which file of the disk
//! it was written (on another, a copy with all attributes, it counts as absent too), which node wrote it (a file that was moved here
//! from another node's data directory is a file of its own here), and the event up to which the place where the file stands is known
//! to be right (what makes applying an event twice harmless).
//!
//! Not for what the catalog knows better: mode, owner and times are the plain file's own.
use super::LocalMeta;
use crate::catalog::EventId;
use crate::record::{Ino, NodeId, Time};
use rustix::fs::{Stat, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

/// The attribute's name.
pub const ATTRIBUTE: &str = "user.ks";
/// First byte of the attribute: the format's version.
const FORMAT: u8 = 2;
/// The format before: it does not say which node wrote it, nor which directory it is on.
const FORMAT_UNSIGNED: u8 = 1;
/// What a directory says that is none of the tree's yet.
pub(crate) const UNKNOWN_DIRECTORY: Ino = Ino::MAX;
/// No attribute of ours is longer.
pub(crate) const ATTRIBUTE_BYTES_MAX: usize = 512;

/// The attribute's whole content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    /// Which catalog the numbers belong to (`Store::set_cluster`).
    pub(crate) cluster: u64,
    /// The number of the file on its disk: a copy made with its attributes (`cp -a`) has another, and is a file of its own.
    pub(crate) disk_ino: u64,
    /// The node that wrote it; `NodeId::NONE`: not told.
    pub(crate) node: NodeId,
    /// All events up to this one are reflected in where the file or directory stands.
    pub(crate) seen: (u64, u64),
    /// When fetched data became this file without being synced to disk: after a crash of the machine it must be checked.
    pub(crate) stored: Option<Time>,
    /// A copy of another node's file that was put here by somebody, not fetched.
    pub(crate) is_put: bool,
    /// Directories only: which inode it is; 0: not told.
    pub(crate) directory: Ino,
    /// Files only.
    pub(crate) meta: Option<LocalMeta>,
}

/// As it was written before nodes signed it.
#[derive(Serialize, Deserialize)]
struct UnsignedTag {
    cluster: u64,
    disk_ino: u64,
    seen: (u64, u64),
    stored: Option<Time>,
    meta: Option<LocalMeta>,
}

impl From<UnsignedTag> for Tag {
    fn from(old: UnsignedTag) -> Self {
        Tag {
            cluster: old.cluster,
            disk_ino: old.disk_ino,
            seen: old.seen,
            stored: old.stored,
            meta: old.meta,
            ..Tag::default()
        }
    }
}

impl Tag {
    pub(crate) fn seen(&self) -> EventId {
        EventId(self.seen.0, self.seen.1)
    }
}

pub(crate) fn encode(tag: &Tag) -> Vec<u8> {
    postcard::to_extend(tag, vec![FORMAT]).expect("plain data always encodes")
}

/// `None`: of another format, or damaged; then the file counts as one that the catalog does not know.
pub(crate) fn decode(bytes: &[u8]) -> Option<Tag> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).ok(),
        Some((&FORMAT_UNSIGNED, rest)) => {
            let old: UnsignedTag = postcard::from_bytes(rest).ok()?;
            Some(old.into())
        }
        _ => None,
    }
}

/// Reads the attribute of an open file or directory; `None` when it has none that is its own.
pub(crate) fn read(file: impl AsFd) -> io::Result<Option<Tag>> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); ATTRIBUTE_BYTES_MAX];
    match rustix::fs::fgetxattr(&file, ATTRIBUTE, &mut buffer) {
        Ok((bytes, _)) => {
            let disk_ino = rustix::fs::fstat(&file)?.st_ino;
            Ok(decode(bytes).filter(|tag| tag.disk_ino == disk_ino))
        }
        Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the attribute of an open file or directory; `disk_ino` is filled in.
pub(crate) fn write(file: impl AsFd, tag: &Tag) -> io::Result<()> {
    let disk_ino = rustix::fs::fstat(&file)?.st_ino;
    write_on(file, disk_ino, tag.clone())
}

/// As `write`, on the file that has this number on its disk.
pub(crate) fn write_on(file: impl AsFd, disk_ino: u64, tag: Tag) -> io::Result<()> {
    let bytes = encode(&Tag { disk_ino, ..tag });
    Ok(rustix::fs::fsetxattr(
        file,
        ATTRIBUTE,
        &bytes,
        XattrFlags::empty(),
    )?)
}

/// Takes the attribute off: the file is not the catalog's any more.
pub(crate) fn clear(file: impl AsFd) -> io::Result<()> {
    match rustix::fs::fremovexattr(file, ATTRIBUTE) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A file's modification time, nanoseconds since 1970.
#[allow(clippy::unnecessary_cast)] // the fields' widths differ between architectures
pub(crate) fn mtime_ns(stat: &Stat) -> Time {
    stat.st_mtime as i64 * 1_000_000_000 + stat.st_mtime_nsec as i64
}

/// A file's change time, nanoseconds since 1970.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn ctime_ns(stat: &Stat) -> Time {
    stat.st_ctime as i64 * 1_000_000_000 + stat.st_ctime_nsec as i64
}

/// A file's access time, nanoseconds since 1970.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn atime_ns(stat: &Stat) -> Time {
    stat.st_atime as i64 * 1_000_000_000 + stat.st_atime_nsec as i64
}

/// Whether the file is still what it was when `meta` was written.
pub(crate) fn is_untouched(meta: &LocalMeta, stat: &Stat) -> bool {
    meta.size == stat.st_size as u64 && meta.mtime == mtime_ns(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::NodeId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(ino: u64, version: u64, epoch: u32, home: u64, size: u64, mtime: i64,
                                   hash: Option<[u8; 32]>, cluster: u64, disk_ino: u64, seen: (u64, u64), stored: Option<i64>,
                                   node: u64, is_put: bool, directory: u64) {
            let meta = LocalMeta { ino, version, epoch, home: NodeId(home), size, mtime, blake3: hash };
            let tag = Tag { cluster, disk_ino, node: NodeId(node), seen, stored, is_put, directory, meta: Some(meta) };
            let bytes = encode(&tag);
            prop_assert!(bytes.len() <= ATTRIBUTE_BYTES_MAX);
            prop_assert_eq!(decode(&bytes), Some(tag));
        }

        #[test]
        fn nonsense_is_none_or_a_tag_but_no_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn another_format_is_absent() {
        let mut bytes = encode(&Tag::default());
        bytes[0] = 3;
        assert_eq!(decode(&bytes), None);
        assert_eq!(decode(b""), None);
    }

    #[test]
    fn one_that_is_not_signed_is_read() {
        let old = UnsignedTag {
            cluster: 1,
            disk_ino: 2,
            seen: (3, 4),
            stored: Some(5),
            meta: None,
        };
        let bytes = postcard::to_extend(&old, vec![FORMAT_UNSIGNED]).unwrap();
        let tag = decode(&bytes).unwrap();
        assert_eq!((tag.disk_ino, tag.seen, tag.stored), (2, (3, 4), Some(5)));
        assert_eq!(
            (tag.node, tag.is_put, tag.directory),
            (NodeId::NONE, false, 0)
        );
    }
}
