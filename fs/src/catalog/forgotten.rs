//! A node that will not come back is taken out of the catalog: its copies, the files whose home it was, its own record.
//!
//! Who takes part: [`forget`] decides for one file (pure), `commit.lua` checks and carries it out in one step.
//!
//! What always holds: a node that lives is not forgotten, nor is one that comes back meanwhile (each step rests on its heart-beat being
//! over). A file of which another node has all gets a home there. Nothing is forgotten of a node that has the only copy of a file
//! unless that was asked for; such a file stays in the tree without content, and has it again when the node comes back, which
//! offers its files as any node does at its start.
//! Not for nodes that are away for a while: those are waited for.
use super::changes::Ended;
use super::copies::{Decision, field, is_whole, with_home};
use super::transaction::{Check, Operation, Place, Transaction};
use super::{Catalog, CatalogError, Located};
use crate::path::TreePath;
use crate::record::*;
use std::collections::BTreeSet;

/// How often a decision is made anew because what it rests on had changed.
const ATTEMPTS_MAX: usize = 16;
/// Files that are told by name.
pub const LOST_TOLD_MAX: usize = 1000;
/// Hashes with a field for each node, beside the list of the nodes.
const BY_NODE: [&str; 5] = [
    "ks:troubles",
    "ks:replicas",
    "ks:merging",
    "ks:merged",
    "ks:reports",
];

/// What becomes of a file when a node is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgot {
    /// That node had nothing of it.
    NotHeld,
    /// There is a copy less.
    Copy,
    /// That node is its home now.
    Home(NodeId),
    /// Nobody has all of it.
    Lost,
}

/// Why a node is not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// There is none of that name.
    #[error("there is no node '{0}'; ks nodes lists them")]
    NoSuchNode(String),
    /// Several have that name.
    #[error("several nodes were called '{name}': give the id of one: {ids}")]
    SeveralNodes {
        /// Their name.
        name: String,
        /// Their ids.
        ids: String,
    },
    /// It is there.
    #[error(
        "node '{0}' is there: only a node that is gone for good is forgotten; end it first (ks umount)"
    )]
    Lives(String),
    /// The catalog did not answer.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Forgotten {
    /// The node's name.
    pub name: String,
    /// `false`: nothing was changed, as there are files with their only copy there.
    pub is_done: bool,
    /// Copies that are not counted any more.
    pub copies: u64,
    /// Files that have another home now.
    pub homes: u64,
    /// Files of which nobody else has all.
    pub lost: u64,
    /// The first of those.
    pub lost_paths: Vec<TreePath>,
}

/// Node `gone` is forgotten, as far as one file goes. Of an empty file `me` becomes the home where nobody else has it.
pub fn forget(
    gone: NodeId,
    me: NodeId,
    ino: Ino,
    located: &Located,
    lives: impl Fn(NodeId) -> bool,
) -> Decision<Forgot> {
    let inode = &located.node.inode;
    let mine = located.holders.iter().find(|(node, _)| *node == gone);
    let is_home = inode.home == gone;
    if inode.kind != Kind::File || (mine.is_none() && !is_home) {
        return Decision::Settled(Forgot::NotHeld);
    }
    let mut change = Transaction::default();
    change.expect(Check::Equals(Place::Inode(ino), encode(&**inode)));
    change.expect(Check::Absent(Place::Alive(gone)));
    if mine.is_some() {
        change.then(Operation::DeleteField(Place::Holdings(ino), field(gone)));
    }
    let others = located.holders.iter();
    let whole = others.filter(|(node, holding)| *node != gone && is_whole(inode, holding));
    let heir = whole.min_by_key(|(node, _)| (*node != inode.home, !lives(*node), *node));
    let heir = match heir {
        Some((node, holding)) => {
            let kept = Check::FieldEquals(Place::Holdings(ino), field(*node), holding.to_bytes());
            change.expect(kept);
            *node
        }
        // Nothing is all there is to know of it.
        None if inode.size == 0 => {
            let holding = Holding {
                version: inode.version,
                ..Holding::default()
            };
            let held = Operation::SetField(Place::Holdings(ino), field(me), holding.to_bytes());
            change.then(held);
            me
        }
        None if is_home || mine.is_some_and(|(_, holding)| is_whole(inode, holding)) => {
            return Decision::Commit(change, Forgot::Lost);
        }
        None => return Decision::Commit(change, Forgot::Copy),
    };
    if !is_home {
        return Decision::Commit(change, Forgot::Copy);
    }
    let record = encode(&with_home(inode, heir));
    change.then(Operation::Set(Place::Inode(ino), record));
    // Nobody has written: what that node's journal says later still counts when it comes back.
    change.quietly();
    Decision::Commit(change, Forgot::Home(heir))
}

impl Catalog {
    /// Takes a node, by name or id, out of the catalog. `even_if_lost`: also where it has the only copy of files. What was done
    /// when an error ends it stays; asked again, it goes on.
    pub async fn forget_node(
        &self,
        named: &str,
        even_if_lost: bool,
    ) -> Result<Forgotten, ForgetError> {
        let (gone, name) = self.node_to_forget(named).await?;
        let held = self.held_by(gone).await?;
        let mut found = Forgotten {
            name: name.clone(),
            ..Forgotten::default()
        };
        for ino in &held {
            if self.forgetting(gone, *ino).await? == Forgot::Lost {
                self.note_lost(*ino, &mut found).await?;
            }
        }
        if found.lost > 0 && !even_if_lost {
            return Ok(found);
        }
        for ino in held {
            match self.forget_file(gone, &name, ino).await? {
                Forgot::NotHeld => {}
                Forgot::Copy => found.copies += 1,
                Forgot::Home(_) => {
                    (found.copies, found.homes) = (found.copies + 1, found.homes + 1)
                }
                Forgot::Lost => found.copies += 1,
            }
        }
        self.forget_record(gone, &name).await?;
        found.is_done = true;
        Ok(found)
    }

    async fn node_to_forget(&self, named: &str) -> Result<(NodeId, String), ForgetError> {
        let nodes = self.nodes().await?;
        let is_meant = |id: NodeId, name: &str| name == named || id.to_string() == named;
        let meant: Vec<_> = (nodes.iter())
            .filter(|node| is_meant(node.id, &node.info.name))
            .collect();
        match &meant[..] {
            [] => Err(ForgetError::NoSuchNode(named.to_owned())),
            [one] if one.alive => Err(ForgetError::Lives(one.info.name.clone())),
            [one] => Ok((one.id, one.info.name.clone())),
            several => Err(ForgetError::SeveralNodes {
                name: named.to_owned(),
                ids: (several.iter().map(|node| node.id.to_string()))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// The files of which a node has something, or whose home it is.
    async fn held_by(&self, node: NodeId) -> Result<BTreeSet<Ino>, CatalogError> {
        let (mut held, mut cursor) = (BTreeSet::new(), b"0".to_vec());
        loop {
            let (next, keys) = self.scan("ks:i:*", &cursor).await?;
            held.extend(self.homes_among(node, &keys).await?);
            cursor = next;
            if cursor == b"0" {
                break;
            }
        }
        loop {
            let (next, keys) = self.scan("ks:h:*", &cursor).await?;
            held.extend(self.copies_among(node, &keys).await?);
            cursor = next;
            if cursor == b"0" {
                return Ok(held);
            }
        }
    }

    async fn homes_among(&self, node: NodeId, keys: &[Vec<u8>]) -> Result<Vec<Ino>, CatalogError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        command.arg(keys);
        let records = super::reads::array(self.redis().run(&command).await?).unwrap_or_default();
        let is_home = |record: redis::Value| {
            let inode = super::reads::bytes(record).and_then(|bytes| decode::<Inode>(&bytes).ok());
            inode.is_some_and(|inode| inode.kind == Kind::File && inode.home == node)
        };
        let homes = keys.iter().zip(records).filter_map(|(key, record)| {
            let ino = Place::from_tracked_key(key)?.ino()?;
            is_home(record).then_some(ino)
        });
        Ok(homes.collect())
    }

    async fn copies_among(&self, node: NodeId, keys: &[Vec<u8>]) -> Result<Vec<Ino>, CatalogError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked = redis::pipe();
        for key in keys {
            asked.cmd("HEXISTS").arg(key).arg(field(node));
        }
        let answers = self.redis().pipe(&asked).await?;
        let held = keys.iter().zip(answers).filter_map(|(key, answer)| {
            let ino = std::str::from_utf8(key).ok()?.strip_prefix("ks:h:")?;
            let is_held = answer == redis::Value::Int(1);
            is_held.then(|| ino.parse().ok()).flatten()
        });
        Ok(held.collect())
    }

    /// What would become of a file.
    async fn forgetting(&self, gone: NodeId, ino: Ino) -> Result<Forgot, CatalogError> {
        let Some(located) = self.located(ino).await? else {
            return Ok(Forgot::NotHeld);
        };
        match forget(gone, self.me(), ino, &located, |_| true) {
            Decision::Settled(forgot) | Decision::Commit(_, forgot) => Ok(forgot),
        }
    }

    async fn note_lost(&self, ino: Ino, found: &mut Forgotten) -> Result<(), CatalogError> {
        // One that has no name is not missed.
        let Some(path) = self.path_of(ino).await? else {
            return Ok(());
        };
        found.lost += 1;
        if found.lost_paths.len() < LOST_TOLD_MAX {
            found.lost_paths.push(path);
        }
        Ok(())
    }

    async fn forget_file(&self, gone: NodeId, name: &str, ino: Ino) -> Result<Forgot, ForgetError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(located) = self.located(ino).await? else {
                return Ok(Forgot::NotHeld);
            };
            let nodes = self.nodes().await?;
            let lives = |node| nodes.iter().any(|state| state.id == node && state.alive);
            if lives(gone) {
                return Err(ForgetError::Lives(name.to_owned()));
            }
            match forget(gone, self.me(), ino, &located, lives) {
                Decision::Settled(forgot) => return Ok(forgot),
                Decision::Commit(change, forgot) => {
                    if let Ended::Done { .. } = self.commit(&change).await? {
                        return Ok(forgot);
                    }
                }
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")).into())
    }

    /// The list of the nodes, and what else is kept by node.
    async fn forget_record(&self, gone: NodeId, name: &str) -> Result<(), ForgetError> {
        let mut change = Transaction::default();
        change.expect(Check::Absent(Place::Alive(gone)));
        change.then(Operation::DeleteField(Place::Nodes, field(gone)));
        let Ended::Done { .. } = self.commit(&change).await? else {
            return Err(ForgetError::Lives(name.to_owned()));
        };
        self.shared.nodes.forget();
        let mut others = redis::pipe();
        for key in BY_NODE {
            others.cmd("HDEL").arg(key).arg(field(gone));
        }
        let renewed = [format!("ks:alive:{gone}"), format!("ks:lease:{gone}")];
        others.cmd("HDEL").arg("ks:renewed").arg(&renewed);
        self.redis()
            .pipe(&others)
            .await
            .map_err(CatalogError::from)?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "forgotten_tests.rs"]
mod tests;
