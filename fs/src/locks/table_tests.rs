//! The table against a naive model: one kind for each byte and owner.
use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BYTES: u64 = 12;

fn owner(session: u64, number: u64, space: Space) -> Owner {
    Owner {
        session,
        number,
        space,
    }
}

fn want(owner: Owner, kind: Kind, first: u64, last: u64) -> Lock {
    Lock {
        owner,
        kind,
        range: Range { first, last },
        pid: 1,
        node: NodeId(owner.session),
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Lock(Lock, bool),
    Unlock(Owner, Range),
    EndSession(u64),
}

fn spaces() -> impl Strategy<Value = Space> {
    prop_oneof![Just(Space::File), Just(Space::Process)]
}

fn owners() -> impl Strategy<Value = Owner> {
    (1u64..4, 1u64..3, spaces()).prop_map(|(session, number, space)| owner(session, number, space))
}

fn ranges() -> impl Strategy<Value = Range> {
    (0..BYTES, 0..BYTES).prop_map(|(a, b)| Range {
        first: a.min(b),
        last: a.max(b),
    })
}

fn operations() -> impl Strategy<Value = Operation> {
    let kinds = prop_oneof![Just(Kind::Shared), Just(Kind::Exclusive)];
    prop_oneof![
        6 => (owners(), kinds, ranges(), any::<bool>())
            .prop_map(|(owner, kind, range, wait)| Operation::Lock(want(owner, kind, range.first, range.last), wait)),
        4 => (owners(), ranges()).prop_map(|(owner, range)| Operation::Unlock(owner, range)),
        1 => (1u64..4).prop_map(Operation::EndSession),
    ]
}

/// Each byte's holders.
#[derive(Default)]
struct Model {
    bytes: BTreeMap<(u64, Owner), Kind>,
}

impl Model {
    fn blocked(&self, want: &Lock) -> bool {
        self.bytes.iter().any(|((byte, holder), kind)| {
            (want.range.first..=want.range.last).contains(byte)
                && *holder != want.owner
                && holder.space == want.owner.space
                && (*kind == Kind::Exclusive || want.kind == Kind::Exclusive)
        })
    }

    fn clear(&mut self, owner: &Owner, range: &Range) {
        for byte in range.first..=range.last {
            self.bytes.remove(&(byte, *owner));
        }
    }

    fn set(&mut self, lock: &Lock) {
        for byte in lock.range.first..=lock.range.last {
            self.bytes.insert((byte, lock.owner), lock.kind);
        }
    }
}

fn as_bytes(table: &Table) -> BTreeMap<(u64, Owner), Kind> {
    let mut model = Model::default();
    table.held.iter().for_each(|lock| model.set(lock));
    model.bytes
}

/// Rows of one owner neither overlap nor could be one.
fn is_tidy(table: &Table) -> bool {
    let rows = &table.held;
    rows.iter().enumerate().all(|(at, a)| {
        rows[at + 1..].iter().all(|b| {
            a.owner != b.owner
                || !a.range.overlaps(&b.range) && (a.kind != b.kind || !a.range.touches(&b.range))
        })
    })
}

proptest! {
    #[test]
    fn it_does_what_the_naive_model_does(operations in proptest::collection::vec(operations(), 1..60)) {
        let (mut table, mut model) = (Table::default(), Model::default());
        for operation in operations {
            let before = as_bytes(&table);
            let waiting = table.waiting.clone();
            let (next, tell) = match &operation {
                Operation::Lock(want, wait) => {
                    let changed = lock(&table, want, *wait);
                    match changed.value {
                        Step::Granted => {
                            prop_assert!(!model.blocked(want));
                            model.set(want);
                        }
                        Step::Blocked(ref blocker) => {
                            prop_assert!(model.blocked(want));
                            prop_assert!(blocker.conflicts(want));
                            if want.owner.space == Space::File {
                                model.clear(&want.owner, &want.range);
                            }
                            prop_assert_eq!(changed.table.waiting.contains(&want.owner.session), *wait || (waiting.contains(&want.owner.session) && changed.tell.is_empty()));
                        }
                        Step::Full => prop_assert!(false),
                    }
                    (changed.table, changed.tell)
                }
                Operation::Unlock(owner, range) => {
                    let changed = unlock(&table, owner, range);
                    model.clear(owner, range);
                    (changed.table, changed.tell)
                }
                Operation::EndSession(session) => {
                    let changed = end_session(&table, *session);
                    model.bytes.retain(|(_, owner), _| owner.session != *session);
                    (changed.table, changed.tell)
                }
            };
            let after = as_bytes(&next);
            prop_assert_eq!(&after, &model.bytes);
            prop_assert!(is_tidy(&next));
            let freed = before.iter().any(|(key, kind)| {
                after.get(key).is_none_or(|now| *kind == Kind::Exclusive && *now == Kind::Shared)
            });
            if freed {
                let ended = match operation { Operation::EndSession(session) => Some(session), _ => None };
                for session in waiting.iter().filter(|session| Some(**session) != ended) {
                    prop_assert!(tell.contains(session), "{} was not told", session);
                }
            } else {
                prop_assert!(tell.is_empty());
            }
            table = next;
        }
    }
}

#[test]
fn a_whole_range_is_joined_to_its_neighbours_and_split_again() {
    let me = owner(1, 1, Space::Process);
    let table = lock(&Table::default(), &want(me, Kind::Shared, 0, 4), false).table;
    let table = lock(&table, &want(me, Kind::Shared, 5, 9), false).table;
    assert_eq!(table.held, vec![want(me, Kind::Shared, 0, 9)]);
    let table = lock(&table, &want(me, Kind::Exclusive, 3, 5), false).table;
    assert_eq!(table.held.len(), 3);
    let last = Range::WHOLE;
    let table = unlock(&table, &me, &last).table;
    assert!(table.is_empty());
}

#[test]
fn flock_and_fcntl_do_not_see_each_other() {
    let held = want(owner(1, 1, Space::File), Kind::Exclusive, 0, 9);
    let table = lock(&Table::default(), &held, false).table;
    let other = want(owner(2, 1, Space::Process), Kind::Exclusive, 0, 9);
    assert_eq!(lock(&table, &other, false).value, Step::Granted);
    let same = want(owner(2, 1, Space::File), Kind::Shared, 0, 9);
    assert_eq!(lock(&table, &same, true).value, Step::Blocked(held));
}

#[test]
fn two_shared_flocks_that_both_want_to_be_exclusive_do_not_wait_for_each_other() {
    let (a, b) = (owner(1, 1, Space::File), owner(2, 1, Space::File));
    let table = lock(&Table::default(), &want(a, Kind::Shared, 0, 9), true).table;
    let table = lock(&table, &want(b, Kind::Shared, 0, 9), true).table;
    let first = lock(&table, &want(a, Kind::Exclusive, 0, 9), true);
    assert!(matches!(first.value, Step::Blocked(_)));
    let second = lock(&first.table, &want(b, Kind::Exclusive, 0, 9), true);
    assert_eq!(second.value, Step::Granted);
}
