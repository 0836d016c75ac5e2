//! Changes that journals tell of: each keeps or raises what `ks:recovered` says of all that it touches.
//!
//! Always: what is told late stands as late as it happened, not as of now: so another node that comes still later and knows better is
//! heard. Such a change rests on what `ks:recovered` said when it was decided: of two nodes that bring news of one thing the later
//! news stays, and what somebody does meanwhile counts more than both. Nothing of it is journaled: the journals know it.
use super::super::claim::{Claim, NOW, inode_field, link_field};
use super::super::{RECOVERED, text};
use crate::catalog::journal::Stand;
use crate::catalog::namespace::{Known, Plan, Stop};
use crate::catalog::reads::{array, damaged};
use crate::catalog::transaction::{Check, Operation, Place, Transaction};
use crate::catalog::{Catalog, CatalogError};
use crate::record::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// How often a change is tried anew because what it rests on has changed.
const ATTEMPTS_MAX: usize = 64;
/// Stands for: what `ks:recovered` says of something has not been read.
const NOT_READ: i32 = libc::EREMCHG;
/// Stands for: `ks:recovered` says something else by now.
const CHANGED: i32 = libc::EBADMSG;
/// Stands for: something later is known.
const NOT_NEWS: i32 = libc::EREMOTEIO;

/// What `ks:recovered` says, by field; `None`: nothing.
pub(super) type Kept = BTreeMap<Vec<u8>, Option<String>>;
/// What it is to say.
pub(super) type Raised = BTreeMap<Vec<u8>, Stand>;
/// Nothing of what it says was read yet.
pub(super) const UNREAD: &Kept = &Kept::new();
/// It stays as it is.
pub(super) const NOTHING: &Raised = &Raised::new();

/// Whether a change is one that journals tell of.
pub(in crate::catalog) fn is_told(transaction: &Transaction) -> bool {
    let rests_on = |check: &Check| {
        matches!(
            check,
            Check::NoField(Place::Recovered, _) | Check::FieldEquals(Place::Recovered, ..)
        )
    };
    let mut conditions = transaction.conditions.iter();
    conditions.any(|(check, _)| rests_on(check))
}

/// What of `ks:recovered` speaks of what a change touches.
fn fields_of(transaction: &Transaction) -> BTreeSet<Vec<u8>> {
    let fields = transaction
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Set(Place::Inode(ino), _) | Operation::Delete(Place::Inode(ino)) => {
                Some(inode_field(*ino))
            }
            Operation::AddMember(Place::Links(ino), member)
            | Operation::RemoveMember(Place::Links(ino), member) => {
                Some(link_field(*ino, &Link::from_bytes(member).ok()?))
            }
            _ => None,
        });
    fields.collect()
}

/// Lets a change rest on `kept` and say `raised`; the error: one of the above.
fn rest_on(transaction: &mut Transaction, kept: &Kept, raised: &Raised) -> Result<(), i32> {
    let touched = fields_of(transaction);
    transaction.quietly();
    for field in touched.iter().chain(raised.keys()).collect::<BTreeSet<_>>() {
        let known = kept.get(field).ok_or(NOT_READ)?;
        let place = Place::Recovered;
        let check = match known {
            Some(known) => Check::FieldEquals(place, field.clone(), known.clone().into_bytes()),
            None => Check::NoField(place, field.clone()),
        };
        transaction.require(check, CHANGED);
        if let Some(stand) = raised.get(field) {
            let stand = stand.to_text();
            if known.as_ref().is_some_and(|known| *known > stand) {
                return Err(NOT_NEWS);
            }
            let said = Operation::SetField(place, field.clone(), stand.into_bytes());
            transaction.then(said);
        }
    }
    Ok(())
}

impl Catalog {
    /// Carries out what a journal tells. `guess`: what `ks:recovered` seems to say. `None`: something later is known of what is raised.
    pub(super) async fn told<T>(
        &self,
        label: &str,
        guess: &Kept,
        raised: &Raised,
        plan: impl Fn(&Known, Time) -> Result<Plan<T>, Stop>,
    ) -> Result<Option<T>, CatalogError> {
        let mut kept = guess.clone();
        for _ in 0..ATTEMPTS_MAX {
            let touched = Mutex::new(BTreeSet::new());
            let changed = self.change(label, |known, now| {
                let mut plan = plan(known, now)?;
                *touched.lock().unwrap() = fields_of(&plan.transaction);
                rest_on(&mut plan.transaction, &kept, raised).map_err(Stop::Posix)?;
                Ok(plan)
            });
            match changed.await {
                Ok(committed) => return Ok(Some(committed.value)),
                Err(CatalogError::Posix(NOT_READ | CHANGED)) => {
                    let mut fields = touched.into_inner().unwrap();
                    fields.extend(raised.keys().cloned());
                    kept = self.recovered_of(fields).await?;
                }
                Err(CatalogError::Posix(NOT_NEWS)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(CatalogError::Contention(label.to_owned()))
    }

    /// Notes that something is known up to `stand`, where nothing later is.
    pub(super) async fn note(&self, field: Vec<u8>, stand: Stand) -> Result<(), CatalogError> {
        let raised = Raised::from([(field, stand)]);
        let nothing = |_: &Known, _| {
            Ok(Plan {
                transaction: Transaction::default(),
                value: (),
            })
        };
        let noted = self.told("what a journal tells", UNREAD, &raised, nothing);
        noted.await.map(drop)
    }

    /// What `ks:recovered` says now.
    pub(super) async fn recovered_of(
        &self,
        fields: impl IntoIterator<Item = Vec<u8>>,
    ) -> Result<Kept, CatalogError> {
        let fields: Vec<Vec<u8>> = fields.into_iter().collect();
        if fields.is_empty() {
            return Ok(Kept::new());
        }
        let mut command = redis::cmd("HMGET");
        command.arg(RECOVERED).arg(&fields);
        let known = array(self.redis().run(&command).await?);
        let known = known.ok_or_else(|| damaged(RECOVERED))?;
        Ok(fields
            .into_iter()
            .zip(known.into_iter().map(text))
            .collect())
    }

    /// Whether an inode was changed since the tree was whole.
    pub(super) async fn is_of_now(&self, ino: Ino) -> Result<bool, CatalogError> {
        let known = self.recovered_of([inode_field(ino)]).await?;
        Ok(known.values().any(|known| known.as_deref() == Some(NOW)))
    }

    /// The claim to a name of what stands there.
    pub(super) async fn claim_of(
        &self,
        ino: Ino,
        inode: &Inode,
        link: &Link,
    ) -> Result<Claim, CatalogError> {
        let is_own = (inode.parent, &inode.name) == (link.parent, &link.name);
        let field = match is_own {
            true => inode_field(ino),
            false => link_field(ino, link),
        };
        let known = self.recovered_of([field]).await?;
        let known = known.values().next().cloned().flatten();
        Ok(match is_own {
            true => Claim::of_inode(known.as_deref(), inode),
            false => Claim::of_link(known.as_deref()),
        })
    }
}
