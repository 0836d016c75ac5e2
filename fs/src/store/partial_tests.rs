use super::*;
use crate::path::TreePath;
use crate::store::{CopyState, OpenLocal};
use ks_transport::blocks::{GROUP_BYTES, hash_bytes};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn content(size: usize, seed: u8) -> Vec<u8> {
    (0..size).map(|i| (i % 253) as u8 ^ seed).collect()
}

fn record(key: &ContentKey) -> Inode {
    Inode {
        kind: Kind::File,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        nlink: 1,
        size: key.size,
        atime: 1,
        mtime: 1_700_000_000_000_000_001,
        ctime: 0,
        parent: ROOT,
        name: Vec::new(),
        target: Vec::new(),
        xattrs: BTreeMap::new(),
        version: key.version,
        epoch: 1,
        home: NodeId(9),
        blake3: Some(key.hash),
        md5: None,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 0).unwrap();
    (directory, store)
}

fn key_of(data: &[u8], version: u64) -> ContentKey {
    ContentKey {
        ino: 5,
        version,
        size: data.len() as u64,
        hash: hash_bytes(data).0,
    }
}

/// A partial that has all of `data`.
fn whole(store: &Store, data: &[u8], version: u64) -> Arc<Partial> {
    let partial = store.open_partial(&key_of(data, version)).unwrap();
    partial.data_file().write_all_at(data, 0).unwrap();
    let tree = hash_bytes(data).1;
    if !tree.is_empty() {
        partial.tree_file().write_all_at(&tree, 0).unwrap();
    }
    partial.mark(0..data.len() as u64);
    partial
}

fn names(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(store.state_dir().join("partial"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_saved_is_found_again_and_what_was_not_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let data = content(10 * GROUP_BYTES as usize + 5, 0);
    let key = key_of(&data, 1);
    {
        let store = Store::open(directory.path(), 0).unwrap();
        let partial = store.open_partial(&key).unwrap();
        partial
            .data_file()
            .write_all_at(&data[..3 * GROUP_BYTES as usize], 0)
            .unwrap();
        partial.mark(0..3 * GROUP_BYTES);
        partial.save().unwrap();
        // Written and marked, but the process is killed before the map is saved.
        partial.mark(5 * GROUP_BYTES..7 * GROUP_BYTES);
        assert_eq!(partial.had_bytes(), 5 * GROUP_BYTES);
    }
    let store = Store::open(directory.path(), 0).unwrap();
    assert_eq!(store.partials(), [(key.clone(), 3 * GROUP_BYTES)]);
    let partial = store.open_partial(&key).unwrap();
    assert_eq!(partial.missing(0..u64::MAX), [3 * GROUP_BYTES..key.size]);
    let mut read = vec![0; 3 * GROUP_BYTES as usize];
    assert_eq!(partial.read_at(&mut read, 0).unwrap(), read.len());
    assert_eq!(read, data[..read.len()]);
    let again = store.open_partial(&key).unwrap();
    assert!(Arc::ptr_eq(&partial, &again), "one partial per content");
    let mut other = key.clone();
    other.hash = [0; 32];
    assert!(matches!(
        store.open_partial(&other),
        Err(StoreError::Mismatch { .. })
    ));
}

#[test]
fn a_map_that_does_not_belong_to_its_data_is_thrown_away() {
    let data = content(4 * GROUP_BYTES as usize, 0);
    let key = key_of(&data, 1);
    type Damage = fn(&Path);
    let damages: [Damage; 6] = [
        |base| std::fs::write(with_suffix(base, ".map"), b"junk").unwrap(),
        |base| {
            let mut map = std::fs::read(with_suffix(base, ".map")).unwrap();
            map[20] ^= 1;
            std::fs::write(with_suffix(base, ".map"), map).unwrap();
        },
        |base| {
            let map = std::fs::read(with_suffix(base, ".map")).unwrap();
            std::fs::write(with_suffix(base, ".map"), &map[..map.len() - 1]).unwrap();
        },
        |base| std::fs::remove_file(base).unwrap(),
        |base| {
            File::options()
                .write(true)
                .open(base)
                .unwrap()
                .set_len(7)
                .unwrap()
        },
        |base| std::fs::remove_file(with_suffix(base, ".tree")).unwrap(),
    ];
    for damage in damages {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        whole(&store, &data, 1).save().unwrap();
        drop(store);
        damage(&directory.path().join(".ks/partial/5-1"));
        let store = Store::open(directory.path(), 0).unwrap();
        let partial = store.open_partial(&key).unwrap();
        assert_eq!(partial.had_bytes(), 0);
        let mut read = vec![1; 10];
        partial.read_at(&mut read, 0).unwrap();
        assert_eq!(read, [0; 10], "old data is gone with its map");
    }
    // A map of another content under the same name.
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 0).unwrap();
    whole(&store, &data, 1).save().unwrap();
    let other = key_of(&content(4 * GROUP_BYTES as usize, 9), 1);
    assert_eq!(store.open_partial(&other).unwrap().had_bytes(), 0);
}

#[test]
fn a_whole_partial_becomes_a_plain_file() {
    for size in [0, 5, GROUP_BYTES as usize, 3 * GROUP_BYTES as usize + 1] {
        let (directory, store) = store();
        let data = content(size, 1);
        let key = key_of(&data, 3);
        let partial = whole(&store, &data, 3);
        partial.save().unwrap();
        store
            .promote(&partial, &path("a/b/file"), &record(&key))
            .unwrap();
        assert_eq!(
            std::fs::read(directory.path().join("a/b/file")).unwrap(),
            data
        );
        assert_eq!(
            store.copy_state(&path("a/b/file"), 5, &record(&key)),
            CopyState::Current
        );
        assert!(store.tree(&key.hash, key.size).is_some());
        assert_eq!(names(&store), Vec::<String>::new());
        partial.mark(0..1);
        partial.save().unwrap();
        assert_eq!(
            names(&store),
            Vec::<String>::new(),
            "a save after it writes nothing"
        );
        assert_eq!(store.partials(), []);
    }
}

#[test]
fn only_an_untouched_older_copy_is_replaced() {
    let (directory, store) = store();
    let at = path("file");
    let plain = directory.path().join("file");
    let old = content(100_000, 1);
    let new = content(50_000, 2);
    let promote = |data: &[u8], version| {
        let partial = whole(&store, data, version);
        store.promote(&partial, &at, &record(partial.key()))
    };
    // Somebody's own file.
    std::fs::write(&plain, "theirs").unwrap();
    assert!(matches!(promote(&old, 1), Err(StoreError::Mismatch { .. })));
    assert_eq!(std::fs::read(&plain).unwrap(), b"theirs");
    std::fs::remove_file(&plain).unwrap();
    // Nothing; then an older copy.
    promote(&old, 1).unwrap();
    promote(&new, 2).unwrap();
    assert_eq!(std::fs::read(&plain).unwrap(), new);
    assert!(
        store
            .tree(&key_of(&old, 1).hash, old.len() as u64)
            .is_none()
    );
    assert_eq!(names(&store), Vec::<String>::new());
    // An older version over a newer one.
    assert!(promote(&old, 1).is_err());
    // The same once more.
    promote(&new, 2).unwrap();
    assert_eq!(names(&store), ["5-1", "5-1.tree"]);
    // A copy that was changed behind our back.
    std::fs::write(&plain, "changed").unwrap();
    assert!(matches!(promote(&old, 4), Err(StoreError::Mismatch { .. })));
    assert_eq!(std::fs::read(&plain).unwrap(), b"changed");
    // A directory, and a symlink.
    std::fs::remove_file(&plain).unwrap();
    std::fs::create_dir(&plain).unwrap();
    assert!(promote(&old, 4).is_err());
    std::fs::remove_dir(&plain).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &plain).unwrap();
    assert!(promote(&old, 4).is_err());
    std::fs::remove_file(&plain).unwrap();
    promote(&old, 4).unwrap();
    assert_eq!(std::fs::read(&plain).unwrap(), old);
}

#[test]
fn one_that_lacks_a_group_is_not_promoted() {
    let (directory, store) = store();
    let data = content(3 * GROUP_BYTES as usize, 1);
    let key = key_of(&data, 1);
    let partial = store.open_partial(&key).unwrap();
    partial.mark(0..2 * GROUP_BYTES);
    assert!(
        store
            .promote(&partial, &path("file"), &record(&key))
            .is_err()
    );
    assert!(!directory.path().join("file").exists());
}

#[test]
fn old_versions_are_discarded_while_they_are_read() {
    let (_directory, store) = store();
    let data = content(2 * GROUP_BYTES as usize, 1);
    let old = whole(&store, &data, 1);
    old.save().unwrap();
    whole(&store, &data, 2).save().unwrap();
    store.discard_partials_before(5, 2);
    assert_eq!(names(&store), ["5-2", "5-2.map", "5-2.tree"]);
    old.mark(0..1);
    old.save().unwrap();
    assert_eq!(names(&store), ["5-2", "5-2.map", "5-2.tree"]);
    let mut read = vec![0; 10];
    old.read_at(&mut read, 3).unwrap();
    assert_eq!(read, data[3..13]);
    store.discard_partial(&key_of(&data, 2)).unwrap();
    assert_eq!(names(&store), Vec::<String>::new());
}

#[test]
fn what_stays_free_stays_free() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), u64::MAX / 2).unwrap();
    let error = store.open_partial(&key_of(b"data", 1)).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }));
    assert_eq!(names(&store), Vec::<String>::new());
}

#[test]
fn a_promoted_file_can_be_opened_by_its_inode() {
    let (_directory, store) = store();
    let data = content(10, 1);
    let partial = whole(&store, &data, 1);
    store
        .promote(&partial, &path("f"), &record(partial.key()))
        .unwrap();
    let how = OpenLocal {
        write: false,
        truncate: false,
    };
    let (_, meta) = store.open_file(&path("f"), 5, how).unwrap();
    assert_eq!(meta.blake3, Some(partial.key().hash));
    assert_eq!((meta.version, meta.home), (1, NodeId(9)));
}

proptest! {
    #[test]
    fn maps_are_read_as_they_were_written(groups in 0u64..300, marks in prop::collection::vec((0u64..300, 0u64..300), 0..8),
                                          cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
        let key = ContentKey { ino: 1, version: 2, size: groups * GROUP_BYTES / 3, hash: [4; 32] };
        let mut map = GroupMap::new(key.size);
        for (from, to) in marks {
            map.mark(from * GROUP_BYTES..to * GROUP_BYTES);
        }
        let bytes = encode_map(&key, &map);
        prop_assert_eq!(decode_map(&bytes), Some((key, map)));
        prop_assert_eq!(decode_map(&bytes[..cut.index(bytes.len())]), None);
        let mut flipped = bytes.clone();
        flipped[flip.index(bytes.len())] ^= 0x10;
        prop_assert_eq!(decode_map(&flipped), None);
    }
}

#[test]
fn a_small_content_is_kept_unless_something_is_there() {
    let (_directory, store) = store();
    let data = content(9_000, 1);
    let partial = whole(&store, &data, 3);
    let key = partial.key().clone();
    let (path, inode) = (path("small"), record(&key));
    assert!(
        !store.keep_small(&key, &data, &path, &inode).unwrap(),
        "there is a partial"
    );
    store.discard_partial(&key).unwrap();
    assert!(store.keep_small(&key, &data, &path, &inode).unwrap());
    assert_eq!(std::fs::read(store.datadir().join("small")).unwrap(), data);
    assert_eq!(store.copy_state(&path, key.ino, &inode), CopyState::Current);
    assert!(
        !store.keep_small(&key, &data, &path, &inode).unwrap(),
        "it stands there already"
    );
    assert_eq!(names(&store), Vec::<String>::new());
}
