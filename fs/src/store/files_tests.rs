use super::*;
use crate::store::state::Durability;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn inode(kind: Kind, mode: u32) -> Inode {
    Inode {
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        nlink: 1,
        size: 0,
        atime: 1_500_000_000_123_456_789,
        mtime: 1_600_000_000_123_456_789,
        ctime: 0,
        parent: ROOT,
        name: Vec::new(),
        target: Vec::new(),
        xattrs: BTreeMap::new(),
        version: 1,
        epoch: 1,
        home: NodeId(7),
        blake3: None,
        md5: None,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 0).unwrap();
    (directory, store)
}

const WRITE: OpenLocal = OpenLocal {
    write: true,
    truncate: false,
};
const READ: OpenLocal = OpenLocal {
    write: false,
    truncate: false,
};

#[test]
fn a_data_directory_has_one_process() {
    let (directory, store) = store();
    let error = Store::open(directory.path(), 0).err().unwrap();
    assert!(matches!(error, StoreError::Locked(_)));
    assert!(
        error
            .to_string()
            .contains(directory.path().to_str().unwrap())
    );
    let node = store.node_id();
    drop(store);
    let store = Store::open(directory.path(), 0).unwrap();
    assert_eq!(store.node_id(), node);
    let mode = std::fs::metadata(store.state_dir())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn files_are_made_opened_and_removed_as_one_inode() {
    let (directory, store) = store();
    let at = path("a/b/file");
    let mut file = store.create(&at, 5, &inode(Kind::File, 0o640)).unwrap();
    let found = std::fs::metadata(directory.path().join("a/b/file")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o640);
    assert_eq!(found.mtime(), 1_600_000_000);
    assert_eq!(found.mtime_nsec(), 123_456_789);
    let record = inode(Kind::File, 0o640);
    assert_eq!(store.copy_state(&at, 5, &record), CopyState::Current);
    assert_eq!(store.copy_state(&at, 6, &record), CopyState::Absent);
    file.write_all(b"content").unwrap();
    assert_eq!(store.copy_state(&at, 5, &record), CopyState::Dirty);

    let (file, mut meta) = store.open_file(&at, 5, WRITE).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    meta.version = 2;
    meta.size = 7;
    meta.mtime = meta::mtime_ns(&stat);
    store.set_meta(&file, &meta).unwrap();
    let mut newer = inode(Kind::File, 0o640);
    newer.version = 2;
    newer.size = 7;
    assert_eq!(store.copy_state(&at, 5, &newer), CopyState::Current);
    newer.version = 3;
    assert_eq!(store.copy_state(&at, 5, &newer), CopyState::Old);
    assert!(matches!(
        store.open_file(&at, 6, READ),
        Err(StoreError::Mismatch { .. })
    ));

    store.remove(&at, 6).unwrap();
    assert!(directory.path().join("a/b/file").exists());
    store.remove(&at, 5).unwrap();
    assert!(!directory.path().join("a/b/file").exists());
    store.remove(&at, 5).unwrap();
}

#[test]
fn a_strangers_file_is_never_taken_for_ours() {
    let (directory, store) = store();
    std::fs::write(directory.path().join("theirs"), "theirs").unwrap();
    let at = path("theirs");
    let record = inode(Kind::File, 0o600);
    assert!(matches!(
        store.create(&at, 5, &record),
        Err(StoreError::Mismatch { .. })
    ));
    let truncate = OpenLocal {
        write: true,
        truncate: true,
    };
    assert!(store.open_file(&at, 5, truncate).is_err());
    store.remove(&at, 5).unwrap();
    store.set_attributes(&at, 5, &record).unwrap();
    let text = std::fs::read_to_string(directory.path().join("theirs")).unwrap();
    assert_eq!(text, "theirs");
    // Nor one of another catalog, whose numbers mean other files.
    store.create(&path("ours"), 9, &record).unwrap();
    store.set_cluster(77);
    assert!(store.open_file(&path("ours"), 9, READ).is_err());
    store.remove(&path("ours"), 9).unwrap();
    assert!(directory.path().join("ours").exists());
}

#[test]
fn no_path_of_the_tree_reaches_the_state_directory_or_follows_a_symlink() {
    let (directory, store) = store();
    let record = inode(Kind::File, 0o600);
    assert!(store.create(&path(".ks/node"), 5, &record).is_err());
    assert!(
        store
            .make_dir(&path(".ks/x"), 9, &inode(Kind::Directory, 0o755))
            .is_err()
    );
    assert!(
        store
            .make_symlink(&path(".ks/x"), &inode(Kind::Symlink, 0o777))
            .is_err()
    );
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), directory.path().join("way")).unwrap();
    assert!(store.create(&path("way/file"), 5, &record).is_err());
    assert!(
        store
            .make_dir(&path("way/d"), 9, &inode(Kind::Directory, 0o755))
            .is_err()
    );
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn attributes_of_files_directories_and_symlinks() {
    let (directory, store) = store();
    store
        .create(&path("f"), 5, &inode(Kind::File, 0o600))
        .unwrap();
    let mut changed = inode(Kind::File, 0o4750);
    changed.mtime = -1_500_000_000;
    store.set_attributes(&path("f"), 5, &changed).unwrap();
    let found = std::fs::metadata(directory.path().join("f")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o4750);
    assert_eq!((found.mtime(), found.mtime_nsec()), (-2, 500_000_000));
    assert_eq!(
        store.copy_state(&path("f"), 5, &changed),
        CopyState::Current
    );

    store
        .make_dir(&path("d/e"), 9, &inode(Kind::Directory, 0o1777))
        .unwrap();
    store
        .make_dir(&path("d/e"), 9, &inode(Kind::Directory, 0o1770))
        .unwrap();
    let found = std::fs::metadata(directory.path().join("d/e")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o1770);

    let mut link = inode(Kind::Symlink, 0o777);
    link.target = b"/else\xff".to_vec();
    store.make_symlink(&path("d/l"), &link).unwrap();
    store.make_symlink(&path("d/l"), &link).unwrap();
    assert_eq!(store.read_link(&path("d/l")).unwrap(), link.target);
    link.target = b"other".to_vec();
    store.make_symlink(&path("d/l"), &link).unwrap();
    assert_eq!(store.read_link(&path("d/l")).unwrap(), b"other");
    assert!(matches!(
        store.make_symlink(&path("f"), &link),
        Err(StoreError::Mismatch { .. })
    ));
    assert!(matches!(
        store.make_dir(&path("f"), 9, &inode(Kind::Directory, 0o755)),
        Err(StoreError::Mismatch { .. })
    ));
}

#[test]
fn times_of_a_file_that_is_being_written_stay() {
    let (directory, store) = store();
    let mut file = store
        .create(&path("f"), 5, &inode(Kind::File, 0o600))
        .unwrap();
    file.write_all(b"x").unwrap();
    let written = std::fs::metadata(directory.path().join("f"))
        .unwrap()
        .modified()
        .unwrap();
    store
        .set_attributes(&path("f"), 5, &inode(Kind::File, 0o644))
        .unwrap();
    let found = std::fs::metadata(directory.path().join("f")).unwrap();
    assert_eq!(found.modified().unwrap(), written);
    assert_eq!(found.permissions().mode() & 0o777, 0o644);
}

#[test]
fn what_is_set_aside_keeps_its_content_and_loses_its_inode() {
    let (directory, store) = store();
    store.set_node_name("no/de");
    for round in 1..=2 {
        let file = store
            .create(&path("d/f"), 5, &inode(Kind::File, 0o600))
            .unwrap();
        file.write_all_at(format!("{round}").as_bytes(), 0).unwrap();
        let aside = store.set_aside(&path("d/f")).unwrap();
        let name = ["d/f.conflict-no_de", "d/f.conflict-no_de-2"][round - 1];
        assert_eq!(aside, path(name));
        assert!(matches!(
            store.standing(&aside).unwrap(),
            Standing::File { tag: None, .. }
        ));
        let mut text = String::new();
        File::open(directory.path().join(name))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, format!("{round}"));
    }
    let long = conflict_name(&[b'n'; 255], &"x".repeat(300), 12);
    assert_eq!(long.len(), 255);
    assert!(long.ends_with(b"-12"));
}

#[test]
fn a_hash_is_added_only_to_the_version_it_is_of() {
    let (_directory, store) = store();
    let file = store
        .create(&path("f"), 5, &inode(Kind::File, 0o600))
        .unwrap();
    assert!(!store.add_hash_to_meta(&file, 5, 2, [1; 32]).unwrap());
    assert!(store.add_hash_to_meta(&file, 5, 1, [1; 32]).unwrap());
    assert_eq!(
        store.read_meta(&file).unwrap().unwrap().blake3,
        Some([1; 32])
    );
    file.write_all_at(b"x", 0).unwrap();
    assert!(!store.add_hash_to_meta(&file, 5, 1, [2; 32]).unwrap());
}

#[test]
fn the_mark_of_unsynced_data_stays_with_its_version() {
    let (directory, store) = store();
    let file = store
        .create(&path("f"), 5, &inode(Kind::File, 0o600))
        .unwrap();
    let mut tag = store.read_tag(&file).unwrap().unwrap();
    tag.stored = Some(9);
    meta::write(&file, &tag).unwrap();
    let mut meta = tag.meta.clone().unwrap();
    meta.blake3 = Some([3; 32]);
    store.set_meta(&file, &meta).unwrap();
    assert_eq!(store.read_tag(&file).unwrap().unwrap().stored, Some(9));
    meta.version = 2;
    store.set_meta(&file, &meta).unwrap();
    assert_eq!(store.read_tag(&file).unwrap().unwrap().stored, None);
    let durability = Durability::open(&directory.path().join(".ks")).unwrap();
    assert!(durability.is_doubtful(Some(9)), "never synced here before");
}

#[test]
fn a_copy_with_all_attributes_is_a_file_of_its_own() {
    let (directory, store) = store();
    let file = store
        .create(&path("f"), 5, &inode(Kind::File, 0o600))
        .unwrap();
    let mut bytes = vec![0; 512];
    let (length, copy) = (
        rustix::fs::fgetxattr(&file, meta::ATTRIBUTE, &mut bytes[..]).unwrap(),
        File::create(directory.path().join("copy")).unwrap(),
    );
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&copy, meta::ATTRIBUTE, &bytes[..length], flags).unwrap();
    assert!(store.open_file(&path("f"), 5, READ).is_ok());
    assert!(store.open_file(&path("copy"), 5, READ).is_err());
}

#[test]
fn pipes_and_directories_are_not_files() {
    let (directory, store) = store();
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("pipe"),
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    );
    fifo.unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    for name in ["pipe", "d", "absent", "pipe/below"] {
        assert!(
            matches!(
                store.open_file(&path(name), 5, READ),
                Err(StoreError::Mismatch { .. })
            ),
            "{name}"
        );
    }
}
