//! Which inodes and names the kernel has from us: counted up with each answer that names one, down with each FORGET.
//!
//! Two uses: only what the kernel knows is worth a notification, and when nothing that is cached can be trusted any more,
//! this is the list of what to drop. It is bounded: what does not fit is given to the kernel for a moment only.
use crate::record::{Ino, ROOT};
use std::{collections::HashMap, sync::Mutex, time::Duration};

/// Inodes that are remembered.
const INODES_MAX: usize = 200_000;
/// How long the kernel may keep what is remembered here: changes are pushed, this is for what gets lost.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);
/// How long it may keep what did not fit.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(1);

struct KnownInode {
    lookups: u64,
    parent: Ino,
    name: Box<[u8]>,
}

/// The table.
#[derive(Default)]
pub(super) struct Known {
    inodes: Mutex<HashMap<Ino, KnownInode>>,
}

impl Known {
    /// The kernel is about to be told of `ino` as `name` in `parent`; says how long it may keep that.
    pub(super) fn told(&self, ino: Ino, parent: Ino, name: &[u8]) -> Duration {
        let mut inodes = self.inodes.lock().unwrap();
        if let Some(known) = inodes.get_mut(&ino) {
            known.lookups += 1;
            if known.parent != parent || *known.name != *name {
                (known.parent, known.name) = (parent, name.into());
            }
            return REMEMBERED_FOR;
        }
        if inodes.len() >= INODES_MAX {
            return FORGOTTEN_AFTER;
        }
        let known = KnownInode {
            lookups: 1,
            parent,
            name: name.into(),
        };
        inodes.insert(ino, known);
        REMEMBERED_FOR
    }

    /// How long the kernel may keep an inode's attributes.
    pub(super) fn keeps(&self, ino: Ino) -> Duration {
        match self.knows(ino) {
            true => REMEMBERED_FOR,
            false => FORGOTTEN_AFTER,
        }
    }

    /// The kernel gives back `lookups`; `true`: it has dropped the inode.
    pub(super) fn forget(&self, ino: Ino, lookups: u64) -> bool {
        let mut inodes = self.inodes.lock().unwrap();
        let Some(known) = inodes.get_mut(&ino) else {
            return true;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return false;
        }
        inodes.remove(&ino);
        true
    }

    pub(super) fn knows(&self, ino: Ino) -> bool {
        ino == ROOT || self.inodes.lock().unwrap().contains_key(&ino)
    }

    /// Everything: inode, and the name it was given with last.
    pub(super) fn all(&self) -> Vec<(Ino, Ino, Vec<u8>)> {
        let inodes = self.inodes.lock().unwrap();
        inodes
            .iter()
            .map(|(ino, known)| (*ino, known.parent, known.name.to_vec()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_known_until_all_lookups_are_given_back() {
        let known = Known::default();
        assert_eq!(known.told(5, 1, b"a"), REMEMBERED_FOR);
        known.told(5, 1, b"b");
        assert_eq!(known.all(), vec![(5, 1, b"b".to_vec())]);
        assert!(!known.forget(5, 1));
        assert!(known.knows(5));
        assert!(known.forget(5, 1));
        assert!(!known.knows(5));
        assert!(known.knows(ROOT));
    }

    #[test]
    fn what_does_not_fit_is_kept_for_a_moment_only() {
        let known = Known::default();
        for ino in 2..INODES_MAX as Ino + 2 {
            known.told(ino, 1, b"n");
        }
        assert_eq!(known.told(Ino::MAX, 1, b"n"), FORGOTTEN_AFTER);
        assert_eq!(known.keeps(Ino::MAX), FORGOTTEN_AFTER);
        assert_eq!(known.told(2, 1, b"n"), REMEMBERED_FOR);
    }
}
