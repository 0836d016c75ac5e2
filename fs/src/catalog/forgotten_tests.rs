//! What becomes of a file when a node is forgotten: the decision alone.
use super::*;
use crate::catalog::Node_;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const INO: Ino = 7;
const GONE: NodeId = NodeId(1);
const ME: NodeId = NodeId(9);

/// A file of version 3; holders: node, version, bytes.
fn located(home: u64, size: u64, holders: &[(u64, u64, u64)]) -> Located {
    let inode = Inode {
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
        target: vec![],
        xattrs: BTreeMap::new(),
        version: 3,
        epoch: 1,
        home: NodeId(home),
        blake3: None,
        md5: None,
    };
    let holding = |&(node, version, bytes): &(u64, u64, u64)| {
        let is_put = false;
        let holding = Holding {
            version,
            bytes,
            is_put,
        };
        (NodeId(node), holding)
    };
    Located {
        node: Node_ {
            ino: INO,
            inode: Arc::new(inode),
            dir_time: 0,
            nlink: 1,
        },
        holders: holders.iter().map(holding).collect(),
    }
}

fn became(located: &Located, living: &[u64]) -> Forgot {
    match forget(GONE, ME, INO, located, |node| living.contains(&node.0)) {
        Decision::Settled(forgot) | Decision::Commit(_, forgot) => forgot,
    }
}

#[test]
fn a_file_goes_on_where_it_is_whole() {
    let both = located(1, 10, &[(1, 3, 10), (2, 3, 10), (3, 3, 10)]);
    assert_eq!(
        became(&both, &[3]),
        Forgot::Home(NodeId(3)),
        "one who lives first"
    );
    assert_eq!(became(&both, &[]), Forgot::Home(NodeId(2)));
    let copy = located(2, 10, &[(1, 3, 10), (2, 3, 10)]);
    assert_eq!(
        became(&copy, &[]),
        Forgot::Copy,
        "the home keeps it, away or not"
    );
    assert_eq!(
        became(&located(2, 10, &[(2, 3, 10)]), &[2]),
        Forgot::NotHeld
    );
}

#[test]
fn what_nobody_else_has_is_lost_but_for_nothing() {
    let part = located(1, 10, &[(1, 3, 10), (2, 3, 9), (3, 2, 10)]);
    assert_eq!(became(&part, &[2, 3]), Forgot::Lost);
    assert_eq!(became(&located(1, 0, &[(1, 3, 0)]), &[]), Forgot::Home(ME));
    assert_eq!(
        became(&located(1, 0, &[(2, 3, 0)]), &[]),
        Forgot::Home(NodeId(2))
    );
}

proptest! {
    /// Whoever holds what: the home is moved only to who has all of it, and no whole copy but that node's goes.
    #[test]
    fn no_copy_of_others_goes(
        home in 1u64..4, size in 0u64..2,
        holders in proptest::collection::btree_map(1u64..5, (2u64..4, 0u64..2), 0..5),
    ) {
        let holders: Vec<_> = holders.iter().map(|(node, held)| (*node, held.0, held.1)).collect();
        let located = located(home, size, &holders);
        let Decision::Commit(change, forgot) = forget(GONE, ME, INO, &located, |_| true) else {
            return Ok(());
        };
        prop_assert!(change.conditions.iter().any(|(check, _)| *check == Check::Absent(Place::Alive(GONE))));
        let whole = |node: NodeId| located.holders.iter().any(|(other, held)| *other == node && is_whole(&located.node.inode, held));
        for operation in &change.operations {
            if let Operation::DeleteField(place, whose) = operation {
                prop_assert_eq!((place, whose), (&Place::Holdings(INO), &field(GONE)));
            }
        }
        let others_have_it = holders.iter().any(|held| held.0 != GONE.0 && whole(NodeId(held.0)));
        match forgot {
            Forgot::Home(heir) => prop_assert!(home == GONE.0 && (whole(heir) && heir != GONE || size == 0 && heir == ME)),
            Forgot::Lost => prop_assert!(!others_have_it && size > 0),
            Forgot::Copy => prop_assert!(home != GONE.0),
            Forgot::NotHeld => prop_assert!(false),
        }
    }
}
