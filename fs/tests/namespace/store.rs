//! `commit.lua` in memory: strings, hashes and sets, and a transaction's checks and operations on them.
use ks_fs::catalog::namespace::{Known, Need, Plan, Record, Stop};
use ks_fs::catalog::transaction::{Check, Operation, Otherwise, Place, Transaction};
use ks_fs::record::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub struct Store {
    pub strings: BTreeMap<Place, Vec<u8>>,
    pub hashes: BTreeMap<Place, BTreeMap<Vec<u8>, Vec<u8>>>,
    pub sets: BTreeMap<Place, BTreeSet<Vec<u8>>>,
}

impl Store {
    fn exists(&self, place: &Place) -> bool {
        self.strings.contains_key(place)
            || self.hashes.contains_key(place)
            || self.sets.contains_key(place)
    }
    pub fn field(&self, place: &Place, field: &[u8]) -> Option<&Vec<u8>> {
        self.hashes.get(place)?.get(field)
    }
    fn holds(&self, check: &Check) -> bool {
        match check {
            Check::Absent(place) => !self.exists(place),
            Check::Present(place) => self.exists(place),
            Check::Equals(place, value) => self.strings.get(place) == Some(value),
            Check::NoField(place, field) => self.field(place, field).is_none(),
            Check::Field(place, field) => self.field(place, field).is_some(),
            Check::FieldEquals(place, field, value) => self.field(place, field) == Some(value),
            Check::Fields(place, count) => {
                self.hashes.get(place).map_or(0, BTreeMap::len) == *count
            }
            Check::Member(place, member) => {
                self.sets.get(place).is_some_and(|set| set.contains(member))
            }
        }
    }
    fn act(&mut self, operation: &Operation) {
        match operation.clone() {
            Operation::Set(place, value) | Operation::SetExpiring(place, value, _) => {
                self.strings.insert(place, value);
            }
            Operation::Delete(place) => {
                self.strings.remove(&place);
                self.hashes.remove(&place);
                self.sets.remove(&place);
            }
            Operation::SetField(place, field, value) => {
                self.hashes.entry(place).or_default().insert(field, value);
            }
            Operation::DeleteField(place, field) => {
                self.hashes.entry(place).or_default().remove(&field);
            }
            Operation::Increase(place, field, by) => {
                let hash = self.hashes.entry(place).or_default();
                let old: i64 = hash.get(&field).map_or(0, |text| {
                    std::str::from_utf8(text).unwrap().parse().unwrap()
                });
                hash.insert(field, (old + by).to_string().into_bytes());
            }
            Operation::AddMember(place, member) => {
                self.sets.entry(place).or_default().insert(member);
            }
            Operation::RemoveMember(place, member) => {
                let set = self.sets.entry(place).or_default();
                set.remove(&member);
                if set.is_empty() {
                    self.sets.remove(&place);
                }
            }
            // Only what rebuilding keeps is another then.
            Operation::Quietly => {}
        }
    }
    /// All or nothing.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), Otherwise> {
        for (check, otherwise) in &transaction.conditions {
            if !self.holds(check) {
                return Err(*otherwise);
            }
        }
        transaction
            .operations
            .iter()
            .for_each(|operation| self.act(operation));
        Ok(())
    }

    fn learn(&self, known: &mut Known, need: Need) {
        match need {
            Need::Inode(ino) => {
                let bytes = self.strings.get(&Place::Inode(ino)).cloned();
                let record = bytes.map(|bytes| Record::from_bytes(bytes).unwrap());
                known.learn_inode(ino, record);
            }
            Need::Entry(parent, name) => {
                let entry = self.field(&Place::Directory(parent), &name);
                let entry = entry.map(|bytes| Entry::from_bytes(bytes).unwrap());
                known.learn_entry(parent, &name, entry);
            }
            Need::Links(ino) => {
                let members = self
                    .sets
                    .get(&Place::Links(ino))
                    .cloned()
                    .unwrap_or_default();
                let links = members
                    .iter()
                    .map(|member| Link::from_bytes(member).unwrap());
                known.learn_links(ino, links.collect());
            }
        }
    }

    /// Reads what the plan needs, from this store.
    pub fn plan<T>(&self, plan: impl Fn(&Known) -> Result<Plan<T>, Stop>) -> Result<Plan<T>, i32> {
        let mut known = Known::default();
        for _ in 0..1000 {
            match plan(&known) {
                Ok(plan) => return Ok(plan),
                Err(Stop::Posix(errno)) => return Err(errno),
                Err(Stop::Need(need)) => self.learn(&mut known, need),
            }
        }
        panic!("the plan never has enough");
    }

    /// Plans and commits with nobody in between: what is planned always holds.
    pub fn change<T>(
        &mut self,
        plan: impl Fn(&Known) -> Result<Plan<T>, Stop>,
    ) -> Result<Plan<T>, i32> {
        let plan = self.plan(plan)?;
        match self.commit(&plan.transaction) {
            Ok(()) => Ok(plan),
            Err(Otherwise::Errno(errno)) => Err(errno),
            Err(Otherwise::Stale) => panic!("stale with nobody else there"),
        }
    }
}
