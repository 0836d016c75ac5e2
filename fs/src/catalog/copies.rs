//! Who holds copies, changed with care: a node gives its copy up only while others keep theirs, a node takes over from a home that is gone.
//!
//! Who takes part: [`give_up`] and [`take_over`] decide what must hold and what changes (pure), `commit.lua` checks and carries it out in one step.
//!
//! Always: when a copy leaves the list of holders, so many whole current ones as were asked for (one at least) are on it in that very step: of two nodes
//! that give up the last two copies at once, one is refused. A new home has a higher epoch than any before it, so what the old one still publishes is refused.
//!
//! Not for the plain files: whoever gave up removes its own afterwards.
use super::changes::Ended;
use super::transaction::{Check, Operation, Place, Transaction};
use super::{Catalog, CatalogError, Located};
use crate::record::*;

/// How often a decision is made anew because what it rests on had changed.
const ATTEMPTS_MAX: usize = 16;

/// How giving up a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// This node is no holder any more.
    Copy,
    /// Nor is it the home any more: that node is.
    Home(NodeId),
    /// It held nothing.
    NotHeld,
    /// Too few whole current copies would stay: so many that may be counted on are there.
    TooFew(usize),
    /// The file is gone, or has another version by now.
    Changed,
}

/// How taking over as the home ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TookOver {
    /// This node is the home, of this epoch.
    Epoch(u32),
    /// Another node is: it lives, or was faster.
    HomeLives(NodeId),
    /// This node has no whole current copy.
    NotWhole,
    /// The file is gone.
    Gone,
}

/// A decision: what is to be committed, or why nothing is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<T> {
    /// Commit this; then it is so.
    Commit(Transaction, T),
    /// It is so already, or refused.
    Settled(T),
}

/// Whether a copy is all of the record's version.
pub fn is_whole(inode: &Inode, holding: &Holding) -> bool {
    holding.version == inode.version && holding.bytes >= inode.size
}

/// Node `me` gives up its copy of `ino`, on the condition that `least` of `stays` (nodes that may be counted on, the preferred first) go on holding all of
/// the version that `located` speaks of. `least` 0 counts as 1.
pub fn give_up(
    me: NodeId,
    ino: Ino,
    located: &Located,
    stays: &[NodeId],
    least: usize,
) -> Decision<GaveUp> {
    let inode = &located.node.inode;
    let held = located.holders.iter().any(|(node, _)| *node == me);
    if !held && inode.home != me {
        return Decision::Settled(GaveUp::NotHeld);
    }
    let holding_of = |wanted: &NodeId| {
        let found = located
            .holders
            .iter()
            .find(|(node, holding)| node == wanted && is_whole(inode, holding));
        found.copied()
    };
    let mut keepers: Vec<(NodeId, Holding)> = Vec::new();
    for (node, holding) in stays
        .iter()
        .filter(|node| **node != me)
        .filter_map(holding_of)
    {
        if !keepers.iter().any(|(known, _)| *known == node) {
            keepers.push((node, holding));
        }
    }
    let least = least.max(1);
    if keepers.len() < least {
        return Decision::Settled(GaveUp::TooFew(keepers.len()));
    }
    let mut change = Transaction::default();
    change.expect(Check::Equals(Place::Inode(ino), encode(&**inode)));
    for (node, holding) in &keepers[..least] {
        change.expect(Check::FieldEquals(
            Place::Holdings(ino),
            field(*node),
            holding.to_bytes(),
        ));
    }
    change.then(Operation::DeleteField(Place::Holdings(ino), field(me)));
    if inode.home != me {
        return Decision::Commit(change, GaveUp::Copy);
    }
    let heir = keepers[0].0;
    change.then(Operation::Set(
        Place::Inode(ino),
        encode(&with_home(inode, heir)),
    ));
    Decision::Commit(change, GaveUp::Home(heir))
}

/// Node `me`, which holds all of the current version, becomes the home in place of one that is gone: on the condition that its heart-beat is over, and that
/// neither record nor copy changed.
pub fn take_over(me: NodeId, ino: Ino, located: &Located, home_lives: bool) -> Decision<TookOver> {
    let inode = &located.node.inode;
    if inode.home == me {
        return Decision::Settled(TookOver::Epoch(inode.epoch));
    }
    if home_lives {
        return Decision::Settled(TookOver::HomeLives(inode.home));
    }
    let mine = located.holders.iter().find(|(node, _)| *node == me);
    let mut change = Transaction::default();
    change.expect(Check::Equals(Place::Inode(ino), encode(&**inode)));
    change.expect(Check::Absent(Place::Alive(inode.home)));
    match mine {
        Some((_, holding)) if is_whole(inode, holding) => {
            change.expect(Check::FieldEquals(
                Place::Holdings(ino),
                field(me),
                holding.to_bytes(),
            ));
        }
        // Nothing is all there is to know of it.
        _ if inode.size == 0 => {
            let (version, bytes) = (inode.version, 0);
            let is_put = false;
            let holding = Holding {
                version,
                bytes,
                is_put,
            }
            .to_bytes();
            change.then(Operation::SetField(
                Place::Holdings(ino),
                field(me),
                holding,
            ));
        }
        _ => return Decision::Settled(TookOver::NotWhole),
    }
    let record = with_home(inode, me);
    change.then(Operation::Set(Place::Inode(ino), encode(&record)));
    Decision::Commit(change, TookOver::Epoch(record.epoch))
}

pub(super) fn with_home(inode: &Inode, home: NodeId) -> Inode {
    Inode {
        home,
        epoch: inode.epoch.saturating_add(1),
        ..inode.clone()
    }
}

pub(super) fn field(node: NodeId) -> Vec<u8> {
    node.to_string().into_bytes()
}

impl Catalog {
    /// This node gives up its copy of `version`, while `least` of `stays` keep theirs. Atomic. See [`give_up`].
    pub async fn give_up(
        &self,
        ino: Ino,
        version: u64,
        stays: &[NodeId],
        least: usize,
    ) -> Result<GaveUp, CatalogError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(located) = self.located(ino).await? else {
                return Ok(GaveUp::Changed);
            };
            if located.node.inode.version != version {
                return Ok(GaveUp::Changed);
            }
            match give_up(self.me(), ino, &located, stays, least) {
                Decision::Settled(settled) => return Ok(settled),
                Decision::Commit(change, then) => {
                    if let Ended::Done { .. } = self.commit(&change).await? {
                        return Ok(then);
                    }
                }
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")))
    }

    /// This node becomes the home of a file whose home is gone. Atomic. See [`take_over`].
    pub async fn take_over(&self, ino: Ino) -> Result<TookOver, CatalogError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(located) = self.located(ino).await? else {
                return Ok(TookOver::Gone);
            };
            let home = located.node.inode.home;
            let home_lives = self.address_of(home).await?.is_some();
            match take_over(self.me(), ino, &located, home_lives) {
                Decision::Settled(settled) => return Ok(settled),
                Decision::Commit(change, then) => {
                    if let Ended::Done { .. } = self.commit(&change).await? {
                        return Ok(then);
                    }
                }
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")))
    }
}

#[cfg(test)]
#[path = "copies_tests.rs"]
mod tests;
