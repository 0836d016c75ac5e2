//! What a scan does with what it found: plain functions, no disk and no catalog.
use super::super::LocalMeta;
use crate::record::*;

/// What stands in the data directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local<'a> {
    pub(super) inode: &'a Inode,
    /// Size and mtime are what the meta says.
    pub(super) is_untouched: bool,
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The current version: a copy, as before.
    Current,
    /// It is what the catalog's record says, but its `user.ks` does not say so (yet).
    Mark,
    /// This node is the home, and the file was changed behind our back: a new version.
    Publish,
    /// An older version than another node's: not a copy that counts; it is replaced when the file is fetched.
    Old,
    /// Same size as on another node: their hashes decide.
    Compare,
    /// The same directory, or the same symlink.
    Same,
    /// Other content than the tree's: kept under another name.
    Conflict,
}

/// A file that stands where the catalog has its inode.
pub(super) fn known(local: Local<'_>, meta: &LocalMeta, record: &Inode, me: NodeId) -> Verdict {
    let is_home = record.home == me;
    let is_current = meta.version == record.version && meta.size == record.size;
    match (local.is_untouched, is_home) {
        (true, _) if is_current => Verdict::Current,
        (false, true) if is_as_recorded(local.inode, record) => Verdict::Mark,
        (_, true) => Verdict::Publish,
        (true, false) => Verdict::Old,
        (false, false) => Verdict::Conflict,
    }
}

/// Something without `user.ks` that stands where the tree has something already.
pub(super) fn occupied(found: &Inode, record: &Inode, me: NodeId) -> Verdict {
    match (found.kind, record.kind) {
        (Kind::Directory, Kind::Directory) => Verdict::Same,
        (Kind::Symlink, Kind::Symlink) if found.target == record.target => Verdict::Same,
        (Kind::File, Kind::File) if record.home == me => {
            if is_as_recorded(found, record) {
                Verdict::Mark
            } else {
                Verdict::Publish
            }
        }
        (Kind::File, Kind::File) if found.size == record.size => Verdict::Compare,
        _ => Verdict::Conflict,
    }
}

/// What is done with a file whose inode the catalog has at another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Another name of the very file that stands there: a hard link.
    Link,
    /// It was moved behind our back, and this node is its home: renamed in the catalog.
    Rename,
    /// As `Rename`, over a file whose home this node is too, and that stood there.
    Replace,
    /// A copy of another node's file: back to where the tree has it.
    MoveBack,
    /// A file of its own.
    New,
}

/// What stands, in the data directory, where the catalog has the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    /// The same file of the disk.
    SameFile,
    /// Another file that is that inode too.
    SameInode,
    /// Nothing, or something else.
    NotIt,
}

/// What the catalog has at the path where a file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing.
    Free,
    /// A file whose home is this node: its plain file stood there.
    Ours,
    /// Something else.
    Theirs,
}

/// See [`Way`].
pub(super) fn way(there: Option<&Inode>, me: NodeId) -> Way {
    match there {
        None => Way::Free,
        Some(inode) if inode.kind == Kind::File && inode.home == me => Way::Ours,
        Some(_) => Way::Theirs,
    }
}

/// `way`: what the catalog has where it was found.
pub(super) fn elsewhere(
    local: Local<'_>,
    meta: &LocalMeta,
    record: &Inode,
    there: There,
    way: Way,
    me: NodeId,
) -> Moved {
    match there {
        There::SameFile if way == Way::Free => Moved::Link,
        There::NotIt if way == Way::Free && record.home == me => Moved::Rename,
        There::NotIt if way == Way::Ours && record.home == me => Moved::Replace,
        There::NotIt if local.is_untouched && meta.version == record.version => Moved::MoveBack,
        _ => Moved::New,
    }
}

/// What an untouched file of the data directory is worth in a tree that was rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retold {
    /// A copy of the current version.
    Copy,
    /// A later version than the tree knows.
    Newer,
    /// The same version, and other bytes.
    Conflict,
    /// An older version, or not known to be the same.
    Nothing,
}

/// See `Retold`. Without both hashes only the home that wrote it knows that it is the same.
pub(super) fn retold(meta: &LocalMeta, record: &Inode, me: NodeId) -> Retold {
    use std::cmp::Ordering;
    if record.kind != Kind::File {
        return Retold::Nothing;
    }
    match meta.version.cmp(&record.version) {
        Ordering::Less => return Retold::Nothing,
        Ordering::Greater => return Retold::Newer,
        Ordering::Equal => {}
    }
    let is_of_this_home = (meta.home, meta.epoch) == (record.home, record.epoch);
    match (meta.blake3, record.blake3) {
        (Some(ours), Some(theirs)) if ours == theirs => Retold::Copy,
        (Some(_), Some(_)) => Retold::Conflict,
        _ if meta.size != record.size => Retold::Conflict,
        _ if is_of_this_home || record.home == me => Retold::Copy,
        _ => Retold::Nothing,
    }
}

fn is_as_recorded(found: &Inode, record: &Inode) -> bool {
    found.size == record.size && found.mtime == record.mtime
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn inode(kind: Kind, size: u64, mtime: Time, version: u64, home: NodeId) -> Inode {
        Inode {
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            size,
            atime: 0,
            mtime,
            ctime: 0,
            parent: ROOT,
            name: Vec::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            version,
            epoch: 1,
            home,
            blake3: None,
            md5: None,
        }
    }

    fn meta(size: u64, mtime: Time, version: u64) -> LocalMeta {
        LocalMeta {
            ino: 5,
            version,
            epoch: 1,
            home: OTHER,
            size,
            mtime,
            blake3: None,
        }
    }

    proptest! {
        /// A changed file is never taken for a current or an old copy, whoever is the home.
        #[test]
        fn what_was_changed_is_never_dropped(size in 0u64..3, mtime in 0i64..3, meta_size in 0u64..3, meta_mtime in 0i64..3,
                                             meta_version in 0u64..3, record_size in 0u64..3, record_mtime in 0i64..3,
                                             version in 0u64..3, is_home: bool) {
            let found = inode(Kind::File, size, mtime, 1, ME);
            let record = inode(Kind::File, record_size, record_mtime, version, if is_home { ME } else { OTHER });
            let meta = meta(meta_size, meta_mtime, meta_version);
            let is_untouched = size == meta_size && mtime == meta_mtime;
            let verdict = known(Local { inode: &found, is_untouched }, &meta, &record, ME);
            match verdict {
                Verdict::Current => prop_assert!(is_untouched && meta_version == version && size == record_size),
                Verdict::Old => prop_assert!(is_untouched && !is_home),
                Verdict::Mark => prop_assert!(is_home && size == record_size && mtime == record_mtime),
                Verdict::Publish => prop_assert!(is_home),
                Verdict::Conflict => prop_assert!(!is_untouched && !is_home),
                other => prop_assert!(false, "{:?}", other),
            }
            // Without its mark, it is never a copy before the hashes were compared.
            match occupied(&found, &record, ME) {
                Verdict::Mark => prop_assert!(is_home && size == record_size && mtime == record_mtime),
                Verdict::Publish => prop_assert!(is_home),
                Verdict::Compare => prop_assert!(!is_home && size == record_size),
                Verdict::Conflict => prop_assert!(!is_home && size != record_size),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn kinds_that_differ_are_conflicts() {
        let kinds = [Kind::File, Kind::Directory, Kind::Symlink];
        for found in kinds {
            for record in kinds {
                let verdict = occupied(&inode(found, 0, 0, 1, ME), &inode(record, 0, 0, 1, ME), ME);
                assert_eq!(verdict == Verdict::Conflict, found != record);
            }
        }
        let mut other = inode(Kind::Symlink, 0, 0, 1, ME);
        other.target = b"x".to_vec();
        let link = inode(Kind::Symlink, 0, 0, 1, ME);
        assert_eq!(occupied(&other, &link, ME), Verdict::Conflict);
    }

    proptest! {
        /// Only the same bytes count as a copy, and what is newer is never passed over.
        #[test]
        fn only_the_same_is_a_copy(size in 0u64..3, record_size in 0u64..3, version in 0u64..3, record_version in 0u64..3,
                                   hash in proptest::option::of(0u8..3), record_hash in proptest::option::of(0u8..3), is_home: bool) {
            let home = if is_home { ME } else { OTHER };
            let mut record = inode(Kind::File, record_size, 1, record_version, home);
            record.blake3 = record_hash.map(|byte| [byte; 32]);
            let mut meta = meta(size, 1, version);
            meta.blake3 = hash.map(|byte| [byte; 32]);
            let both = hash.is_some() && record_hash.is_some();
            match retold(&meta, &record, ME) {
                Retold::Copy => {
                    prop_assert_eq!(version, record_version);
                    let is_same = if both { hash == record_hash } else { size == record_size };
                    prop_assert!(is_same);
                }
                Retold::Newer => prop_assert!(version > record_version),
                Retold::Conflict => prop_assert!(version == record_version && (size != record_size || hash != record_hash)),
                Retold::Nothing => prop_assert!(version <= record_version),
            }
        }
    }

    #[test]
    fn files_found_elsewhere() {
        let found = inode(Kind::File, 1, 1, 1, ME);
        let clean = Local {
            inode: &found,
            is_untouched: true,
        };
        let dirty = Local {
            inode: &found,
            is_untouched: false,
        };
        let (mine, theirs) = (
            inode(Kind::File, 1, 1, 1, ME),
            inode(Kind::File, 1, 1, 1, OTHER),
        );
        let meta = meta(1, 1, 1);
        let case = |local, record, there, way| elsewhere(local, &meta, record, there, way, ME);
        let (free, ours, others) = (Way::Free, Way::Ours, Way::Theirs);
        assert_eq!(case(clean, &mine, There::SameFile, free), Moved::Link);
        assert_eq!(case(dirty, &mine, There::NotIt, free), Moved::Rename);
        assert_eq!(case(dirty, &mine, There::NotIt, ours), Moved::Replace);
        assert_eq!(case(clean, &mine, There::NotIt, others), Moved::MoveBack);
        assert_eq!(case(clean, &mine, There::SameInode, free), Moved::New);
        assert_eq!(case(clean, &theirs, There::NotIt, free), Moved::MoveBack);
        assert_eq!(case(clean, &theirs, There::NotIt, ours), Moved::MoveBack);
        assert_eq!(case(dirty, &theirs, There::NotIt, free), Moved::New);
        assert_eq!(case(clean, &theirs, There::SameInode, others), Moved::New);
    }
}
