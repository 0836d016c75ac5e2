//! Any order of nodes that give up, take over and publish, against a model of what Redis does: the last copy stays.
use super::*;
use crate::catalog::Node_;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const INO: Ino = 7;
const SIZE: u64 = 10;

/// Redis, as far as one file goes.
#[derive(Clone, Debug)]
struct Model {
    inode: Inode,
    holders: BTreeMap<NodeId, Holding>,
    alive: BTreeMap<NodeId, bool>,
}

impl Model {
    fn located(&self) -> Located {
        Located {
            node: Node_ {
                ino: INO,
                inode: Arc::new(self.inode.clone()),
                dir_time: 0,
                nlink: 1,
            },
            holders: self.holders.iter().map(|(n, h)| (*n, *h)).collect(),
        }
    }

    fn holds(&self, check: &Check) -> bool {
        match check {
            Check::Equals(Place::Inode(INO), bytes) => encode(&self.inode) == *bytes,
            Check::FieldEquals(Place::Holdings(INO), field, bytes) => {
                let node: NodeId = std::str::from_utf8(field).unwrap().parse().unwrap();
                self.holders
                    .get(&node)
                    .is_some_and(|holding| holding.to_bytes() == *bytes)
            }
            Check::Absent(Place::Alive(node)) => !self.alive[node],
            other => panic!("{other:?}"),
        }
    }

    /// As `commit.lua` does it.
    fn commit(&mut self, change: &Transaction) -> bool {
        if !change.conditions.iter().all(|(check, _)| self.holds(check)) {
            return false;
        }
        for operation in &change.operations {
            match operation {
                Operation::Set(Place::Inode(INO), bytes) => self.inode = decode(bytes).unwrap(),
                Operation::DeleteField(Place::Holdings(INO), field) => {
                    self.holders
                        .remove(&std::str::from_utf8(field).unwrap().parse().unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
        true
    }

    fn whole(&self) -> usize {
        self.holders
            .values()
            .filter(|holding| is_whole(&self.inode, holding))
            .count()
    }
}

fn model(home: u64, holders: &[(u64, u64, u64)], dead: &[u64]) -> Model {
    let nodes = 1..=4u64;
    Model {
        inode: Inode {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            size: SIZE,
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
        },
        holders: holders
            .iter()
            .map(|&(node, version, bytes)| {
                (
                    NodeId(node),
                    Holding {
                        version,
                        bytes,
                        is_put: false,
                    },
                )
            })
            .collect(),
        alive: nodes
            .map(|node| (NodeId(node), !dead.contains(&node)))
            .collect(),
    }
}

/// A node that decided on what it saw earlier.
#[derive(Clone, Debug)]
enum Step {
    /// Looks, and decides to give up while so many of the others stay.
    GiveUp {
        node: u64,
        least: usize,
    },
    TakeOver {
        node: u64,
    },
    /// The decision made so many steps ago is committed.
    Commit {
        which: usize,
    },
    Dies {
        node: u64,
    },
    Fetches {
        node: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1u64..=4, 0usize..3).prop_map(|(node, least)| Step::GiveUp { node, least }),
        1 => (1u64..=4).prop_map(|node| Step::TakeOver { node }),
        4 => (0usize..8).prop_map(|which| Step::Commit { which }),
        1 => (1u64..=4).prop_map(|node| Step::Dies { node }),
        1 => (1u64..=4).prop_map(|node| Step::Fetches { node }),
    ]
}

proptest! {
    #[test]
    fn the_last_whole_copy_stays_and_epochs_only_grow(steps in prop::collection::vec(step(), 1..40)) {
        let mut redis = model(1, &[(1, 3, SIZE), (2, 3, SIZE), (3, 3, 4), (4, 2, SIZE)], &[]);
        let mut pending: Vec<Transaction> = Vec::new();
        let everybody: Vec<NodeId> = (1..=4).map(NodeId).collect();
        for step in steps {
            let before = redis.clone();
            match step {
                Step::GiveUp { node, least } => {
                    if let Decision::Commit(change, _) = give_up(NodeId(node), INO, &redis.located(), &everybody, least) {
                        pending.push(change);
                    }
                }
                Step::TakeOver { node } => {
                    let lives = redis.alive[&redis.inode.home];
                    if let Decision::Commit(change, _) = take_over(NodeId(node), INO, &redis.located(), lives) {
                        pending.push(change);
                    }
                }
                Step::Commit { which } if !pending.is_empty() => {
                    let change = pending.remove(which % pending.len());
                    redis.commit(&change);
                }
                Step::Commit { .. } => {}
                Step::Dies { node } => {
                    redis.alive.insert(NodeId(node), false);
                }
                Step::Fetches { node } => {
                    redis.holders.insert(NodeId(node), Holding { version: 3, bytes: SIZE, is_put: false });
                }
            }
            prop_assert!(redis.whole() >= 1, "the last copy is gone");
            prop_assert!(redis.holders.get(&redis.inode.home).is_some_and(|h| is_whole(&redis.inode, h)), "a home without the file");
            if redis.inode.home != before.inode.home {
                prop_assert!(redis.inode.epoch > before.inode.epoch);
            }
        }
    }
}

fn gives_up(redis: &Model, node: u64, stays: &[u64], least: usize) -> Decision<GaveUp> {
    let stays: Vec<NodeId> = stays.iter().map(|node| NodeId(*node)).collect();
    give_up(NodeId(node), INO, &redis.located(), &stays, least)
}

#[test]
fn only_whole_current_copies_of_those_who_may_be_counted_on_count() {
    let redis = model(
        1,
        &[(1, 3, SIZE), (2, 3, SIZE), (3, 3, 4), (4, 2, SIZE)],
        &[],
    );
    let refused = |n| Decision::Settled(GaveUp::TooFew(n));
    assert_eq!(gives_up(&redis, 1, &[3, 4, 1], 1), refused(0));
    assert_eq!(gives_up(&redis, 1, &[2, 2], 2), refused(1));
    assert_eq!(gives_up(&redis, 1, &[], 0), refused(0));
    assert!(matches!(
        gives_up(&redis, 1, &[3, 2], 1),
        Decision::Commit(_, GaveUp::Home(NodeId(2)))
    ));
    assert!(matches!(
        gives_up(&redis, 2, &[1], 1),
        Decision::Commit(_, GaveUp::Copy)
    ));
    let redis = model(1, &[(1, 3, SIZE)], &[]);
    assert_eq!(
        gives_up(&redis, 2, &[1], 1),
        Decision::Settled(GaveUp::NotHeld)
    );
}

#[test]
fn only_a_dead_home_is_replaced_and_only_by_a_whole_copy() {
    let redis = model(1, &[(1, 3, SIZE), (2, 3, SIZE), (3, 3, 4)], &[1]);
    let over = |node, lives| take_over(NodeId(node), INO, &redis.located(), lives);
    assert_eq!(
        over(2, true),
        Decision::Settled(TookOver::HomeLives(NodeId(1)))
    );
    assert_eq!(over(3, false), Decision::Settled(TookOver::NotWhole));
    assert_eq!(over(1, false), Decision::Settled(TookOver::Epoch(1)));
    let Decision::Commit(change, TookOver::Epoch(2)) = over(2, false) else {
        panic!("it may");
    };
    let mut lives_again = redis.clone();
    lives_again.alive.insert(NodeId(1), true);
    assert!(!lives_again.commit(&change), "it came back in between");
    let mut redis = redis;
    assert!(redis.commit(&change));
    assert_eq!((redis.inode.home, redis.inode.epoch), (NodeId(2), 2));
}
