//! Random sequences of operations: the pure namespace functions, and two catalogs on one real Redis, against a model.
mod model;
mod store;

use ks_fs::catalog::namespace::{self, ParentTime, rename};
use ks_fs::catalog::transaction::{Otherwise, Place, SUBDIRECTORIES_FIELD, Transaction};
use ks_fs::catalog::{Catalog, CatalogError, EventId};
use ks_fs::record::*;
use ks_fs::testing::TestRedis;
use model::{Id, Model, Shape, Step, name, step, steps};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use store::Store;

const NOW: Time = 77;
const HOME: NodeId = NodeId(1);

fn inode(directory: bool) -> Inode {
    Inode {
        kind: if directory {
            Kind::Directory
        } else {
            Kind::File
        },
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 0,
        size: 0,
        atime: 1,
        mtime: 1,
        ctime: 1,
        parent: 0,
        name: vec![],
        target: vec![],
        xattrs: Default::default(),
        version: 0,
        epoch: 0,
        home: if directory { NodeId::NONE } else { HOME },
        blake3: None,
        md5: None,
    }
}

/// An empty tree.
fn tree() -> Store {
    let mut change = Transaction::default();
    let mut root = inode(true);
    root.parent = ROOT;
    let bytes = encode(&root);
    change.then(ks_fs::catalog::transaction::Operation::Set(
        Place::Inode(ROOT),
        bytes,
    ));
    namespace::new_directory(&mut change, ROOT, 1);
    let mut store = Store::default();
    store.commit(&change).unwrap();
    store
}

/// The inode number of a model's thing (the root's is 1).
fn ino(id: Id) -> Ino {
    id as Ino + 1
}

/// One step on the store; its event.
fn on_store(store: &mut Store, model: &Model, step: &Step) -> Result<Option<Event>, i32> {
    let dir = |number: usize| ino(model.directory(number));
    match *step {
        Step::Create(d, n, directory) => {
            let new = ino(model.next());
            let plan = store.change(|_| {
                let time = ParentTime::Changes(NOW);
                namespace::create(dir(d), &name(n), new, inode(directory), time)
            })?;
            Ok(plan.transaction.event)
        }
        Step::Link(f, d, n) => {
            let file = model.file(f).map_or(999, ino);
            let plan = store.change(|known| namespace::link(known, file, dir(d), &name(n), NOW))?;
            Ok(plan.transaction.event)
        }
        Step::Unlink(d, n) => {
            let plan = store.change(|known| namespace::unlink(known, dir(d), &name(n), NOW))?;
            Ok(plan.transaction.event)
        }
        Step::Rmdir(d, n) => {
            let plan = store.change(|known| namespace::rmdir(known, dir(d), &name(n), NOW))?;
            Ok(plan.transaction.event)
        }
        Step::Rename(d, n, e, m, flags) => {
            let plan = store.change(|known| {
                rename::rename(known, (dir(d), &name(n)), (dir(e), &name(m)), flags, NOW)
            })?;
            Ok(plan.transaction.event)
        }
    }
}

/// The same step on the model.
fn on_model(model: &mut Model, step: &Step) -> Result<(), i32> {
    match *step {
        Step::Create(d, n, directory) => model
            .create(model.directory(d), &name(n), directory)
            .map(|_| ()),
        Step::Link(f, d, n) => match model.file(f) {
            Some(file) => model.link(file, model.directory(d), &name(n)),
            None => Err(libc::ENOENT),
        },
        Step::Unlink(d, n) => model.unlink(model.directory(d), &name(n)),
        Step::Rmdir(d, n) => model.rmdir(model.directory(d), &name(n)),
        Step::Rename(d, n, e, m, flags) => {
            let (from, to) = (model.directory(d), model.directory(e));
            model.rename(from, &name(n), to, &name(m), flags)
        }
    }
}

proptest! {
    /// What was looked at is removed where it is as it was; else nothing is changed, and ESTALE says so.
    #[test]
    fn only_what_was_seen_is_removed(steps in steps(40), d in 0..8usize, n in 0..6u8, other_ino: bool, other_time: bool,
                                     other_holders: bool) {
        let (mut store, mut model) = (tree(), Model::default());
        for step in &steps {
            if on_store(&mut store, &model, step).is_ok() {
                on_model(&mut model, step).unwrap();
            }
        }
        let parent = ino(model.directory(d));
        let Some(bytes) = store.field(&Place::Directory(parent), &name(n)).cloned() else {
            return Ok(());
        };
        let entry = Entry::from_bytes(&bytes).unwrap();
        let mut seen: Inode = decode(&store.strings[&Place::Inode(entry.ino)]).unwrap();
        let is_directory = seen.kind == Kind::Directory;
        seen.ctime += Time::from(other_time);
        let seen_ino = entry.ino + Ino::from(other_ino) * 1000;
        let held = store.hashes.get(&Place::Holdings(entry.ino)).cloned().unwrap_or_default();
        let mut holders: Vec<(NodeId, Holding)> = held
            .values()
            .map(|holding| (seen.home, Holding::from_bytes(holding).unwrap()))
            .collect();
        if other_holders {
            holders.push((NodeId(77), Holding { version: 1, bytes: 1, is_put: true }));
        }
        let before = shape(&store);
        let removed = store.change(|known| {
            namespace::remove_seen(known, parent, &name(n), (seen_ino, &seen), &holders, NOW)
        });
        match removed {
            Err(libc::ESTALE) => prop_assert!(other_ino || (other_time || other_holders) && !is_directory),
            Err(errno) => prop_assert!(is_directory && errno == libc::ENOTEMPTY),
            Ok(_) => {
                prop_assert!(!other_ino && (is_directory || !other_time && !other_holders));
                prop_assert!(store.field(&Place::Directory(parent), &name(n)).is_none());
                return Ok(());
            }
        }
        prop_assert_eq!(shape(&store), before);
    }
}

/// What can be reached in the store, by path; checks that nothing else is left.
fn shape(store: &Store) -> Shape {
    let mut shape = Shape::new();
    let mut reached: BTreeSet<Ino> = [ROOT].into();
    visit(store, ROOT, &[], &mut shape, &mut reached);
    let inodes: BTreeSet<Ino> = store.strings.keys().filter_map(Place::ino).collect();
    assert_eq!(
        inodes, reached,
        "inodes without a name, or names without an inode"
    );
    for place in store.hashes.keys().chain(store.sets.keys()) {
        let ino = place.ino().unwrap();
        assert!(reached.contains(&ino), "{place:?} was left behind");
    }
    shape
}

fn visit(store: &Store, dir: Ino, path: &[u8], shape: &mut Shape, reached: &mut BTreeSet<Ino>) {
    for (name, bytes) in &store.hashes[&Place::Directory(dir)] {
        if name.contains(&b'/') {
            continue;
        }
        let entry = Entry::from_bytes(bytes).unwrap();
        let below = [path, b"/", name].concat();
        let record: Inode = decode(&store.strings[&Place::Inode(entry.ino)]).unwrap();
        assert_eq!(record.kind, entry.kind);
        reached.insert(entry.ino);
        let directory = entry.kind == Kind::Directory;
        let nlink = match directory {
            true => {
                let count = store.field(&Place::Directory(entry.ino), SUBDIRECTORIES_FIELD);
                let count = std::str::from_utf8(count.unwrap()).unwrap();
                assert_eq!((record.parent, &record.name), (dir, name));
                2 + count.parse::<u32>().unwrap()
            }
            false => record.nlink,
        };
        shape.insert(below.clone(), (entry.ino as Id - 1, directory, nlink));
        if directory {
            visit(store, entry.ino, &below, shape, reached);
        }
    }
}

/// Every file's first link is one of its names.
fn check_first_links(store: &Store, shape: &Shape) {
    for (place, bytes) in &store.strings {
        let Place::Inode(ino) = *place else { continue };
        let mut path = Vec::new();
        let (mut at, mut record) = (ino, decode::<Inode>(bytes).unwrap());
        while at != ROOT {
            path = [b"/", &record.name[..], &path].concat();
            at = record.parent;
            record = decode(&store.strings[&Place::Inode(at)]).unwrap();
        }
        if ino != ROOT {
            assert_eq!(shape[&path].0, ino as Id - 1);
        }
    }
}

/// An event's paths are those that things had before and have after it.
fn check_paths(event: &Event, before: &Shape, after: &Shape) {
    let at =
        |shape: &Shape, path: &[u8]| shape.get(&[b"/", path].concat()).map(|(id, _, _)| ino(*id));
    match event {
        Event::Unlinked {
            path, ino, gone, ..
        } => {
            assert_eq!(at(before, path), Some(*ino));
            assert_eq!(at(after, path), None);
            let still = after.values().any(|(id, _, _)| *id + 1 == *ino as Id);
            assert_eq!(*gone, !still);
        }
        Event::Renamed {
            from_path,
            to_path,
            ino,
            replaced,
            ..
        } => {
            assert_eq!(at(before, from_path), Some(*ino));
            assert_eq!(at(before, to_path), *replaced);
            assert_eq!(at(after, to_path), Some(*ino));
            assert_eq!(at(after, from_path), None);
        }
        Event::Exchanged {
            first_path,
            second_path,
            first_ino,
            second_ino,
            ..
        } => {
            assert_eq!(at(before, first_path), Some(*first_ino));
            assert_eq!(at(before, second_path), Some(*second_ino));
            assert_eq!(at(after, first_path), Some(*second_ino));
            assert_eq!(at(after, second_path), Some(*first_ino));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_sequence_leaves_the_models_tree(steps in steps(60)) {
        let (mut store, mut model) = (tree(), Model::default());
        for step in &steps {
            let before = model.shape();
            let answer = on_store(&mut store, &model, step);
            let expected = on_model(&mut model, step);
            prop_assert_eq!(answer.as_ref().map(|_| ()).map_err(|e| *e), expected, "{:?}", step);
            let after = model.shape();
            let shape = shape(&store);
            prop_assert_eq!(&shape, &after, "{:?}", step);
            check_first_links(&store, &shape);
            if let Ok(Some(event)) = answer {
                check_paths(&event, &before, &after);
            }
        }
    }

    /// Planned on an old state, committed on a newer one: it does what it would have done there, or nothing.
    #[test]
    fn what_was_planned_on_old_records_never_does_harm(
        steps in prop::collection::vec((step(), step(), 1usize..6), 1..60)
    ) {
        let (mut store, mut model) = (tree(), Model::default());
        let mut history = vec![store.clone()];
        for (step, late, age) in &steps {
            let old = &history[history.len().saturating_sub(*age)];
            // Nothing to do is not committed: the catalog asks again before it believes that.
            if let Some(planned) = planned(old, &model, late).ok().filter(|plan| !plan.is_empty())
            {
                let (mut store, mut model) = (store.clone(), model.clone());
                let committed = store.commit(&planned);
                let expected = on_model(&mut model, late);
                match committed {
                    Ok(()) => {
                        prop_assert_eq!(expected, Ok(()), "{:?}", late);
                        prop_assert_eq!(shape(&store), model.shape(), "{:?}", late);
                    }
                    // Where two things are wrong, either errno will do.
                    Err(Otherwise::Errno(_)) => prop_assert!(expected.is_err(), "{:?}", late),
                    Err(Otherwise::Stale) => {}
                }
            }
            let _ = on_store(&mut store, &model, step);
            let _ = on_model(&mut model, step);
            history.push(store.clone());
        }
    }
}

fn planned(store: &Store, model: &Model, step: &Step) -> Result<Transaction, i32> {
    let dir = |number: usize| ino(model.directory(number));
    match *step {
        Step::Link(f, d, n) => {
            let file = model.file(f).map_or(999, ino);
            let plan = store.plan(|known| namespace::link(known, file, dir(d), &name(n), NOW))?;
            Ok(plan.transaction)
        }
        Step::Unlink(d, n) => {
            let plan = store.plan(|known| namespace::unlink(known, dir(d), &name(n), NOW))?;
            Ok(plan.transaction)
        }
        Step::Rmdir(d, n) => {
            let plan = store.plan(|known| namespace::rmdir(known, dir(d), &name(n), NOW))?;
            Ok(plan.transaction)
        }
        Step::Rename(d, n, e, m, flags) => {
            let plan = store.plan(|known| {
                rename::rename(known, (dir(d), &name(n)), (dir(e), &name(m)), flags, NOW)
            })?;
            Ok(plan.transaction)
        }
        Step::Create(..) => Err(libc::EINVAL),
    }
}

/// Two nodes on one Redis, used in turn.
struct Nodes {
    catalogs: [Catalog; 2],
    inos: BTreeMap<Id, Ino>,
}

impl Nodes {
    async fn open(redis: &TestRedis) -> Self {
        let one = |node| Catalog::open(redis.target(), NodeId(node), Arc::new(|_| {}));
        Self {
            catalogs: [one(1).await.unwrap(), one(2).await.unwrap()],
            inos: [(0, ROOT)].into(),
        }
    }

    /// All that was pushed to this node so far has arrived.
    async fn barrier(&self, node: usize) {
        let ping = redis::cmd("PING");
        self.catalogs[node].redis().run(&ping).await.unwrap();
    }

    async fn step(&mut self, node: usize, model: &Model, step: &Step) -> Result<(), i32> {
        self.barrier(node).await;
        let catalog = self.catalogs[node].clone();
        let dir = |number: usize| self.inos[&model.directory(number)];
        let answer = match *step {
            Step::Create(d, n, directory) => {
                let made = catalog.create(dir(d), &name(n), inode(directory)).await;
                made.map(|made| {
                    self.inos.insert(model.next(), made.value.ino);
                })
            }
            Step::Link(f, d, n) => {
                let file = model.file(f).map_or(999, |file| self.inos[&file]);
                catalog.link(file, dir(d), &name(n)).await.map(|_| ())
            }
            Step::Unlink(d, n) => catalog.unlink(dir(d), &name(n)).await.map(|_| ()),
            Step::Rmdir(d, n) => catalog.rmdir(dir(d), &name(n)).await.map(|_| ()),
            Step::Rename(d, n, e, m, flags) => {
                let (from, to) = (dir(d), dir(e));
                let renamed = catalog.rename(from, &name(n), to, &name(m), flags).await;
                renamed.map(|_| ())
            }
        };
        answer.map_err(|error| match error {
            CatalogError::Posix(errno) => errno,
            other => panic!("{other}"),
        })
    }

    /// The tree as a node sees it (remembered or asked).
    async fn shape(&self, node: usize) -> Shape {
        self.barrier(node).await;
        let ids: BTreeMap<Ino, Id> = self.inos.iter().map(|(id, ino)| (*ino, *id)).collect();
        let mut shape = Shape::new();
        let mut directories = vec![(ROOT, Vec::new())];
        while let Some((dir, path)) = directories.pop() {
            let listing = self.catalogs[node].list(dir).await.unwrap();
            for (name, child) in &listing.entries {
                let below = [&path[..], b"/", name].concat();
                let directory = child.inode.kind == Kind::Directory;
                let looked_up = self.catalogs[node].lookup(dir, name).await.unwrap();
                assert_eq!(looked_up.unwrap().ino, child.ino);
                shape.insert(below.clone(), (ids[&child.ino], directory, child.nlink));
                if directory {
                    directories.push((child.ino, below));
                }
            }
        }
        shape
    }
}

#[test]
fn two_nodes_on_one_redis_see_the_models_tree() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let redis = runtime.block_on(TestRedis::start());
    let mut runner = TestRunner::new(Config::with_cases(25));
    let sequences = prop::collection::vec((0usize..2, prop::bool::ANY), 50);
    let ran = runner.run(&(steps(50), sequences), |(steps, how)| {
        runtime.block_on(async {
            let clean = Catalog::open(redis.target(), NodeId(9), Arc::new(|_| {}))
                .await
                .unwrap();
            clean.redis().run(&redis::cmd("FLUSHALL")).await.unwrap();
            let (mut nodes, mut model) = (Nodes::open(&redis).await, Model::default());
            for (step, (node, look)) in steps.iter().zip(how) {
                let answer = nodes.step(node, &model, step).await;
                let expected = on_model(&mut model, step);
                prop_assert_eq!(answer, expected, "{:?} on node {}", step, node);
                if look {
                    prop_assert_eq!(nodes.shape(1 - node).await, model.shape(), "{:?}", step);
                }
            }
            for node in 0..2 {
                prop_assert_eq!(nodes.shape(node).await, model.shape());
            }
            let events = nodes.catalogs[0]
                .events(EventId::default(), 1)
                .await
                .unwrap();
            prop_assert!(events.is_ok());
            Ok(())
        })
    });
    ran.unwrap();
}

/// Two nodes move each of two directories into the other: both see them side by side, one of them only may go on.
#[test]
fn the_second_of_two_moves_that_make_a_circle_is_planned_anew() {
    let mut store = tree();
    for (ino, name) in [(2, b"x"), (3, b"y")] {
        let time = ParentTime::Changes(NOW);
        store
            .change(|_| namespace::create(ROOT, name, ino, inode(true), time))
            .unwrap();
    }
    let plan = |from: &'static [u8], to: Ino| {
        let plan = store.plan(|known| rename::rename(known, (ROOT, from), (to, b"in"), 0, NOW));
        plan.unwrap().transaction
    };
    let (first, second) = (plan(b"x", 3), plan(b"y", 2));
    assert_eq!(store.commit(&first), Ok(()));
    assert_eq!(store.commit(&second), Err(Otherwise::Stale));
}
