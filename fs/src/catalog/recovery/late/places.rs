//! Names for what comes late: whoever claims one later has it; what stood there goes beside it, until whoever knows where it is comes.
//!
//! Always: what somebody has made since the tree was whole keeps its name, but for directories: a directory of the tree takes the place
//! of one that was made anew under its name, and what was put there meanwhile goes into it. So does what was put into a directory that had
//! been removed, or moved away, by somebody who has not come yet.
use super::super::claim::{Claim, inode_field};
use super::told::{Kept, NOTHING, Raised, UNREAD};
use super::{NAMES_TRIED, untimed};
use crate::catalog::journal::Stand;
use crate::catalog::namespace::{self, ParentTime, rename, told};
use crate::catalog::transaction::{Check, Place};
use crate::catalog::{Catalog, CatalogError};
use crate::path::conflict_name;
use crate::record::*;

/// A directory that stood in the way, and stands beside its old name now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evicted {
    ino: Ino,
    /// It was made since the tree was whole: all that is in it goes into the one that took its place.
    is_of_now: bool,
}

impl Catalog {
    /// Enters an inode under its number; `is_beside`: where its name is taken under one beside it, else EEXIST.
    pub(super) async fn enter_numbered(
        &self,
        ino: Ino,
        inode: &Inode,
        stand: Stand,
        guess: &Kept,
        is_beside: bool,
    ) -> Result<(), CatalogError> {
        let raised = Raised::from([(inode_field(ino), stand)]);
        let tried = if is_beside { NAMES_TRIED } else { 0 };
        let label = format!("inode {ino}");
        for attempt in 0..=tried {
            let name = self.name_beside(inode, attempt);
            let entered = self.told(&label, guess, &raised, |_, _| {
                let time = ParentTime::Stays;
                let mut plan = namespace::create(inode.parent, &name, ino, inode.clone(), time)?;
                let absent = Check::Absent(Place::Inode(ino));
                plan.transaction.require(absent, libc::EALREADY);
                Ok(plan)
            });
            match entered.await {
                Ok(_) | Err(CatalogError::Posix(libc::EALREADY)) => {
                    self.tell_own(inode.parent);
                    return Ok(());
                }
                Err(CatalogError::Posix(libc::EEXIST)) if attempt < tried => {}
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Contention(label))
    }

    fn name_beside(&self, inode: &Inode, attempt: usize) -> Vec<u8> {
        let home = match inode.home {
            NodeId::NONE => self.me(),
            home => home,
        };
        match attempt {
            0 => inode.name.clone(),
            _ => conflict_name(&inode.name, &home.to_string(), attempt),
        }
    }

    /// The inode gets the name that `wanted` says; `is_beside` as above.
    pub(super) async fn move_own(
        &self,
        ino: Ino,
        wanted: &Inode,
        is_beside: bool,
    ) -> Result<(), CatalogError> {
        let tried = if is_beside { NAMES_TRIED } else { 0 };
        for attempt in 0..=tried {
            let name = self.name_beside(wanted, attempt);
            let moved = self.told("a name", UNREAD, NOTHING, |known, now| {
                told::own_name(known, ino, (wanted.parent, &name), now).map(untimed)
            });
            match moved.await {
                Ok(_) => {
                    self.tell_own(wanted.parent);
                    return Ok(());
                }
                Err(CatalogError::Posix(libc::EEXIST)) if attempt < tried => {}
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")))
    }

    /// Makes a name free for whoever has this claim; EEXIST: what stands there has the better one.
    pub(super) async fn make_way(
        &self,
        link: &Link,
        claim: &Claim,
        kind: Kind,
    ) -> Result<Option<Evicted>, CatalogError> {
        let Some(node) = self.lookup(link.parent, &link.name).await? else {
            return Ok(None);
        };
        let (ino, inode) = (node.ino, &*node.inode);
        let theirs = self.claim_of(ino, inode, link).await?;
        let both = kind == Kind::Directory && inode.kind == Kind::Directory;
        if theirs >= *claim && !(both && theirs.is_now()) {
            return Err(CatalogError::Posix(libc::EEXIST));
        }
        if (inode.parent, &inode.name) != (link.parent, &link.name) {
            self.unlink_told(link, NOTHING).await?;
            return Ok(None);
        }
        for attempt in 1..=NAMES_TRIED {
            let name = self.name_beside(inode, attempt);
            let (from, to) = ((link.parent, &link.name[..]), (link.parent, &name[..]));
            let moved = self.told("a name", UNREAD, NOTHING, |known, now| {
                rename::rename(known, from, to, rename::NO_REPLACE, now).map(untimed)
            });
            match moved.await {
                Ok(_) => {
                    tracing::warn!(
                        ino, name = %String::from_utf8_lossy(&name),
                        "something of this name was made later: this is kept under another name"
                    );
                    self.tell_own(link.parent);
                    return Ok(both.then_some(Evicted {
                        ino,
                        is_of_now: theirs.is_now(),
                    }));
                }
                Err(CatalogError::Posix(libc::EEXIST)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Contention(format!("inode {ino}")))
    }

    /// Takes a name away that is not a directory's.
    pub(super) async fn unlink_told(
        &self,
        link: &Link,
        raised: &Raised,
    ) -> Result<(), CatalogError> {
        let unlinked = self.told("a name", UNREAD, raised, |known, now| {
            namespace::unlink(known, link.parent, &link.name, now).map(untimed)
        });
        unlinked.await?;
        self.tell_own(link.parent);
        Ok(())
    }

    /// What was put into a directory that has lost its place goes into the one that has it.
    pub(super) async fn empty_into(&self, from: Evicted, to: Ino) -> Result<(), CatalogError> {
        let mut waiting = vec![(from, to)];
        let mut emptied = Vec::new();
        while let Some((from, to)) = waiting.pop() {
            emptied.push(from);
            for (name, node) in &self.list(from.ino).await?.entries {
                let is_directory = node.inode.kind == Kind::Directory;
                let is_of_now = self.is_of_now(node.ino).await?;
                let there = self.lookup(to, name).await?;
                let there = there.filter(|there| there.inode.kind == Kind::Directory);
                let inside = Evicted {
                    ino: node.ino,
                    is_of_now: is_of_now || from.is_of_now,
                };
                match there {
                    Some(there) if is_directory => waiting.push((inside, there.ino)),
                    _ if inside.is_of_now || (is_directory && self.holds_now(node.ino).await?) => {
                        self.move_into(from.ino, name, &node.inode, to).await?;
                    }
                    _ => {}
                }
            }
        }
        for directory in emptied.iter().rev().filter(|from| from.is_of_now) {
            if let Some(record) = self.record(directory.ino, false).await? {
                let removed = self.rmdir(record.inode.parent, &record.inode.name).await;
                self.tell_own(record.inode.parent);
                match removed {
                    Ok(_) | Err(CatalogError::Posix(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Moves a name as somebody would: it is journaled, and nobody who comes later knows better.
    async fn move_into(
        &self,
        from: Ino,
        name: &[u8],
        inode: &Inode,
        to: Ino,
    ) -> Result<(), CatalogError> {
        for attempt in 0..=NAMES_TRIED {
            let named = Inode {
                name: name.to_vec(),
                ..inode.clone()
            };
            let beside = self.name_beside(&named, attempt);
            let moved = self.rename(from, name, to, &beside, rename::NO_REPLACE);
            match moved.await {
                Ok(_) => break,
                Err(CatalogError::Posix(libc::EEXIST)) => {}
                // Gone meanwhile.
                Err(CatalogError::Posix(libc::ENOENT)) => break,
                Err(error) => return Err(error),
            }
        }
        self.tell_own(from);
        self.tell_own(to);
        Ok(())
    }

    /// Whether something below a directory was made or changed since the tree was whole.
    async fn holds_now(&self, directory: Ino) -> Result<bool, CatalogError> {
        let mut waiting = vec![directory];
        while let Some(directory) = waiting.pop() {
            for (_, node) in &self.list(directory).await?.entries {
                if self.is_of_now(node.ino).await? {
                    return Ok(true);
                }
                if node.inode.kind == Kind::Directory {
                    waiting.push(node.ino);
                }
            }
        }
        Ok(false)
    }
}
