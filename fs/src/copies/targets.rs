//! Which nodes get further copies of a file that has too few. Pure.
//!
//! Always: nobody who has the file, is gone, or keeps nothing gets it; no more copies are made than lack. A holder that has not been heard of counts for as long as it may come
//! back (`--repair-after`).
//!
//! Not for bringing them there (`filesystem::pushing`).
use crate::catalog::copies::is_whole;
use crate::record::*;
use std::cmp::Reverse;

/// A node, as far as copies go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub node: NodeId,
    /// It is heard of.
    pub alive: bool,
    /// It is heard of, or not for long enough to be given up.
    pub counts: bool,
    /// It keeps fetched files.
    pub keeps: bool,
    /// Bytes free on its disk.
    pub free_bytes: u64,
}

/// Where further copies of `inode` are to be made so that `wanted` count: those with the most room first.
pub fn lacking(
    inode: &Inode,
    holders: &[(NodeId, Holding)],
    places: &[Place],
    wanted: usize,
) -> Vec<NodeId> {
    let has = |node: NodeId| {
        let mut held = holders.iter();
        held.any(|(holder, holding)| *holder == node && is_whole(inode, holding))
    };
    let counted = places
        .iter()
        .filter(|place| place.counts && has(place.node))
        .count();
    let may_get = |place: &&Place| {
        let has_room = place.free_bytes > inode.size;
        place.alive && place.keeps && has_room && !has(place.node)
    };
    let mut free: Vec<&Place> = places.iter().filter(may_get).collect();
    free.sort_by_key(|place| (Reverse(place.free_bytes), place.node));
    let lack = wanted.saturating_sub(counted);
    free.iter().take(lack).map(|place| place.node).collect()
}

/// Who sees to it that there are enough copies: the home, or (where it is gone) the first live node that has the file.
pub fn responsible(
    inode: &Inode,
    holders: &[(NodeId, Holding)],
    places: &[Place],
) -> Option<NodeId> {
    let lives = |node: NodeId| places.iter().any(|place| place.node == node && place.alive);
    if lives(inode.home) {
        return Some(inode.home);
    }
    let whole = holders
        .iter()
        .filter(|(_, holding)| is_whole(inode, holding));
    whole
        .map(|(node, _)| *node)
        .filter(|node| lives(*node))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inode(home: u64) -> Inode {
        Inode {
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            size: 10,
            atime: 0,
            mtime: 0,
            ctime: 0,
            parent: ROOT,
            name: b"f".to_vec(),
            target: vec![],
            xattrs: Default::default(),
            version: 2,
            epoch: 1,
            home: NodeId(home),
            blake3: None,
            md5: None,
        }
    }

    proptest! {
        #[test]
        fn copies_go_where_they_may_and_no_more_than_lack(
            nodes in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u64..40), 1..8),
            held in prop::collection::vec((0u64..8, 1u64..4, 5u64..12), 0..8),
            home in 0u64..8, wanted in 0usize..5,
        ) {
            let places: Vec<Place> = nodes.iter().enumerate().map(|(node, (alive, counts, keeps, free_bytes))| Place {
                node: NodeId(node as u64), alive: *alive, counts: *alive || *counts, keeps: *keeps, free_bytes: *free_bytes,
            }).collect();
            let mut holders: Vec<(NodeId, Holding)> = held.iter().map(|(n, version, bytes)| (NodeId(*n), Holding { version: *version, bytes: *bytes, is_put: false })).collect();
            holders.sort_by_key(|(node, _)| *node);
            holders.dedup_by_key(|(node, _)| *node);
            let inode = inode(home);
            let has = |node: NodeId| holders.iter().any(|(n, h)| *n == node && is_whole(&inode, h));
            let chosen = lacking(&inode, &holders, &places, wanted);
            let counted = places.iter().filter(|p| p.counts && has(p.node)).count();
            let able = places.iter().filter(|p| p.alive && p.keeps && p.free_bytes > 10 && !has(p.node)).count();
            prop_assert_eq!(chosen.len(), wanted.saturating_sub(counted).min(able));
            for node in &chosen {
                let place = places.iter().find(|place| place.node == *node).unwrap();
                prop_assert!(place.alive && place.keeps && !has(*node));
                prop_assert_eq!(chosen.iter().filter(|other| *other == node).count(), 1);
            }
            if let Some(node) = responsible(&inode, &holders, &places) {
                prop_assert!(places.iter().any(|place| place.node == node && place.alive));
                prop_assert!(node == inode.home || has(node));
            }
        }
    }
}
