//! How an open is served: from which source (`source`) and through which face of the kernel (`mode`). Pure decisions.
//!
//! Two rules carry the rest:
//! - Reads come from a whole current copy here, or from the live file where this node is its home, else from peers.
//! - Writes happen at the home and nowhere else.
//!
//! One inode cannot be open in the kernel's cached mode and in its passthrough mode at once, and all passthrough opens of an
//! inode must share one backing file; a new open therefore follows the mode of those that are there. Beside a passthrough
//! open, what may not be served by its backing file comes to the daemon uncached (`Mode::Direct`), which the kernel allows.
use crate::{
    record::{Holding, Inode, Kind, NodeId},
    store::CopyState,
};

/// What is known when a file is opened.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// The record as the catalog has it now.
    pub inode: &'a Inode,
    /// Who holds copies, of whatever version.
    pub holders: &'a [(NodeId, Holding)],
    /// This node.
    pub me: NodeId,
    /// What this node's own copy is worth.
    pub copy: CopyState,
    /// Opened for writing (O_WRONLY, O_RDWR or O_TRUNC).
    pub write: bool,
    /// O_TRUNC.
    pub truncate: bool,
}

/// Where the bytes come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The plain file here.
    Local,
    /// This node is the home and the plain file is gone, but nothing of it is needed: it is made anew, empty.
    Recreate,
    /// Nothing to read, nobody to ask.
    Empty,
    /// From peers, checked (where the catalog does not have the version's hash yet, by what one of them says it is).
    Remote {
        /// Who is asked, the best first; never this node.
        holders: Vec<NodeId>,
    },
    /// Every read and write goes to the home.
    Forward(NodeId),
    /// No node is known that could give it.
    Lost,
    /// Not a regular file.
    NotAFile,
}

/// Decides the source.
pub fn source(situation: &Situation) -> Source {
    let inode = situation.inode;
    if inode.kind != Kind::File {
        return Source::NotAFile;
    }
    match (situation.write, inode.home == situation.me) {
        (true, true) => at_home_for_writing(situation),
        (true, false) if inode.home == NodeId::NONE => Source::Lost,
        (true, false) => Source::Forward(inode.home),
        (false, home_here) => for_reading(situation, home_here),
    }
}

fn at_home_for_writing(situation: &Situation) -> Source {
    let nothing_needed = situation.truncate || situation.inode.size == 0;
    match situation.copy {
        CopyState::Absent if nothing_needed => Source::Recreate,
        CopyState::Absent => Source::Lost,
        _ => Source::Local,
    }
}

fn for_reading(situation: &Situation, home_here: bool) -> Source {
    match situation.copy {
        CopyState::Current => return Source::Local,
        CopyState::Damaged => return Source::Lost,
        // At the home the plain file is the truth, also while it is being written or was changed behind our back.
        CopyState::Dirty | CopyState::Old if home_here => return Source::Local,
        _ => {}
    }
    if situation.inode.size == 0 {
        return Source::Empty;
    }
    let holders = candidates(situation);
    match holders.is_empty() {
        true => Source::Lost,
        false => Source::Remote { holders },
    }
}

/// Those that hold all of the current version, the home first and in any case.
fn candidates(situation: &Situation) -> Vec<NodeId> {
    let inode = situation.inode;
    let whole = |holding: &Holding| holding.version == inode.version && holding.bytes == inode.size;
    let home = Some(inode.home).filter(|home| *home != NodeId::NONE);
    let others = situation
        .holders
        .iter()
        .filter(|(node, holding)| *node != inode.home && whole(holding))
        .map(|(node, _)| *node);
    let all = home.into_iter().chain(others);
    all.filter(|node| *node != situation.me).collect()
}

/// How an inode is open already, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct InUse {
    /// There are passthrough opens. `Some(true)`: their backing file is the one this open would use.
    pub passthrough_same_file: Option<bool>,
    /// There are cached or direct opens.
    pub through_daemon: bool,
    /// They read another version than this open is to.
    pub other_version: bool,
}

/// How the kernel serves an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By itself, from the plain file.
    Passthrough,
    /// From its page cache; misses come to the daemon.
    Cached,
    /// Every read and write comes to the daemon.
    Direct,
}

/// Decides the mode. `passthrough_allowed`: the kernel grants it and this file may have it.
pub fn mode(source: &Source, passthrough_allowed: bool, in_use: InUse) -> Mode {
    let local = matches!(source, Source::Local | Source::Recreate);
    match in_use.passthrough_same_file {
        _ if matches!(source, Source::Forward(_)) => Mode::Direct,
        // Their pages would be taken for this version's.
        None if in_use.other_version => Mode::Direct,
        Some(true) if local => Mode::Passthrough,
        Some(_) => Mode::Direct,
        None if local && passthrough_allowed && !in_use.through_daemon => Mode::Passthrough,
        None => Mode::Cached,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const ME: NodeId = NodeId(1);

    fn file(home: u64, version: u64, size: u64, hashed: bool) -> Inode {
        Inode {
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
            parent: 1,
            name: b"f".to_vec(),
            target: vec![],
            xattrs: BTreeMap::new(),
            version,
            epoch: 1,
            home: NodeId(home),
            blake3: hashed.then_some([7; 32]),
            md5: None,
        }
    }

    fn copies() -> impl Strategy<Value = CopyState> {
        prop_oneof![
            Just(CopyState::Current),
            Just(CopyState::Damaged),
            Just(CopyState::Old),
            Just(CopyState::Dirty),
            Just(CopyState::Absent),
        ]
    }

    fn holdings() -> impl Strategy<Value = Vec<(NodeId, Holding)>> {
        let one = (1u64..5, 0u64..4, 0u64..100).prop_map(|(node, version, bytes)| {
            (
                NodeId(node),
                Holding {
                    version,
                    bytes,
                    is_put: false,
                },
            )
        });
        proptest::collection::vec(one, 0..5)
    }

    proptest! {
        #[test]
        fn what_is_decided_keeps_the_rules(
            home in 0u64..4, version in 0u64..4, size in 0u64..100, hashed: bool,
            holders in holdings(), copy in copies(), write: bool, truncate: bool,
        ) {
            let inode = file(home, version, size, hashed);
            let situation = Situation { inode: &inode, holders: &holders, me: ME, copy, write, truncate: write && truncate };
            let decided = source(&situation);
            let home_here = inode.home == ME;
            match &decided {
                Source::Local if write => prop_assert!(home_here && copy != CopyState::Absent),
                Source::Local => prop_assert!(copy == CopyState::Current || (home_here && copy != CopyState::Absent && copy != CopyState::Damaged)),
                Source::Recreate => prop_assert!(write && home_here && (truncate || size == 0)),
                Source::Empty => prop_assert!(!write && size == 0),
                Source::Remote { holders: asked } => {
                    prop_assert!(!write && size > 0 && !asked.is_empty());
                    prop_assert!(!asked.contains(&ME));
                    for node in asked {
                        let whole = holders.iter().any(|(n, h)| n == node && h.version == version && h.bytes == size);
                        prop_assert!(whole || *node == inode.home);
                    }
                }
                Source::Forward(node) => prop_assert!(write && !home_here && *node == inode.home),
                Source::Lost => prop_assert!(copy != CopyState::Current || write),
                Source::NotAFile => prop_assert!(false),
            }
        }

        #[test]
        fn the_kernel_never_gets_what_it_refuses(
            local: bool, forward: bool, allowed: bool, through_daemon: bool, other_version: bool, passthrough in proptest::option::of(any::<bool>()),
        ) {
            let decided_source = match (local, forward) {
                (true, _) => Source::Local,
                (false, true) => Source::Forward(NodeId(9)),
                (false, false) => Source::Empty,
            };
            let in_use = InUse { passthrough_same_file: passthrough, through_daemon, other_version: through_daemon && other_version };
            match mode(&decided_source, allowed, in_use) {
                Mode::Passthrough => {
                    prop_assert!(local);
                    prop_assert!(passthrough != Some(false), "two backing files on one inode");
                    prop_assert!(passthrough.is_some() || !through_daemon, "passthrough beside cached");
                    prop_assert!(passthrough.is_some() || allowed);
                }
                Mode::Cached => {
                    prop_assert!(passthrough.is_none(), "cached beside passthrough");
                    prop_assert!(!in_use.other_version, "two versions in the same pages");
                }
                Mode::Direct => prop_assert!(passthrough.is_some() || !local || in_use.other_version),
            }
        }
    }

    #[test]
    fn whole_current_copies_are_asked_and_the_home_first() {
        let inode = file(3, 2, 100, true);
        let holders = [
            (
                NodeId(2),
                Holding {
                    version: 2,
                    bytes: 40,
                    is_put: false,
                },
            ),
            (
                NodeId(4),
                Holding {
                    version: 2,
                    bytes: 100,
                    is_put: false,
                },
            ),
            (
                NodeId(3),
                Holding {
                    version: 2,
                    bytes: 100,
                    is_put: false,
                },
            ),
            (
                NodeId(5),
                Holding {
                    version: 1,
                    bytes: 100,
                    is_put: false,
                },
            ),
        ];
        let situation = Situation {
            inode: &inode,
            holders: &holders,
            me: ME,
            copy: CopyState::Old,
            write: false,
            truncate: false,
        };
        assert_eq!(
            source(&situation),
            Source::Remote {
                holders: vec![NodeId(3), NodeId(4)]
            }
        );
    }
}
