use super::*;
use crate::store::Store;
use std::collections::BTreeMap;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

fn node(kind: Kind, home: NodeId) -> Node_ {
    let inode = Inode {
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size: 1,
        atime: 0,
        mtime: 0,
        ctime: 0,
        parent: ROOT,
        name: b"n".to_vec(),
        target: b"there".to_vec(),
        xattrs: BTreeMap::new(),
        version: 1,
        epoch: 1,
        home,
        blake3: None,
        md5: None,
    };
    Node_ {
        ino: 7,
        inode: Arc::new(inode),
        dir_time: 0,
        nlink: 1,
    }
}

/// What stands at `n` after `make`.
fn item(make: impl Fn(&std::path::Path), was_put: bool) -> Item {
    let directory = tempfile::tempdir().unwrap();
    make(&directory.path().join("n"));
    let store = Store::open(directory.path(), 0).unwrap();
    let path = TreePath::new(b"n").unwrap();
    Item {
        glance: store.glance(&path).unwrap(),
        task: Task {
            was_put,
            ..Task::unheard(path)
        },
        node: None,
    }
}

#[test]
fn only_what_stood_here_is_replaced() {
    let file = |put| item(|path| std::fs::write(path, "x").unwrap(), put);
    let link = |put| item(|path| std::os::unix::fs::symlink("t", path).unwrap(), put);
    let directory = |put| item(|path| std::fs::create_dir(path).unwrap(), put);
    let displaced =
        |item: Item, record: Kind, home| is_displaced(&item, &node(record, home), ME, false);
    // A file of this home must stand where the tree has it.
    assert!(displaced(link(false), Kind::File, ME));
    assert!(displaced(directory(false), Kind::File, ME));
    // Its content alone was replaced: a new version.
    assert!(!displaced(file(true), Kind::File, ME));
    assert!(
        is_displaced(&file(true), &node(Kind::File, ME), ME, true),
        "who reads it keeps it"
    );
    for (found, record) in [
        (link(true), Kind::File),
        (directory(true), Kind::File),
        (file(true), Kind::File),
    ] {
        assert!(
            !displaced(found, record, OTHER),
            "another's file is never given up"
        );
    }
    // These may be of other nodes alone.
    for record in [Kind::Symlink, Kind::Directory] {
        assert!(!displaced(file(false), record, NodeId::NONE));
        assert!(displaced(file(true), record, NodeId::NONE));
    }
    assert!(displaced(link(true), Kind::Symlink, NodeId::NONE));
    assert!(!displaced(link(false), Kind::Symlink, NodeId::NONE));
    assert!(!displaced(directory(true), Kind::Directory, NodeId::NONE));
}
