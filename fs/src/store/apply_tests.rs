use super::local::Local;
use super::names::{Answer, Names};
use super::*;
use crate::store::files::Standing;
use crate::store::{CopyState, LocalMeta, OpenLocal, meta};
use ks_transport::BoxFuture;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

fn record(kind: Kind) -> Inode {
    Inode {
        kind,
        mode: 0o644,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        nlink: 1,
        size: 0,
        atime: 0,
        mtime: 1_000_000_000,
        ctime: 0,
        parent: ROOT,
        name: Vec::new(),
        target: b"t".to_vec(),
        xattrs: BTreeMap::new(),
        version: 1,
        epoch: 1,
        home: OTHER,
        blake3: None,
        md5: None,
    }
}

/// A tree of the catalog: what stands at each path.
#[derive(Clone, Debug, Default)]
struct Model {
    names: BTreeMap<Vec<u8>, Ino>,
    kinds: BTreeMap<Ino, Kind>,
    versions: BTreeMap<Ino, u64>,
    withdrawn: std::sync::Arc<std::sync::Mutex<BTreeSet<Ino>>>,
}

impl Model {
    fn kind_at(&self, path: &[u8]) -> Option<Kind> {
        match path.is_empty() {
            true => Some(Kind::Directory),
            false => self.names.get(path).map(|ino| self.kinds[ino]),
        }
    }

    fn parent(path: &[u8]) -> &[u8] {
        let slash = path.iter().rposition(|&b| b == b'/');
        &path[..slash.unwrap_or(0)]
    }

    fn is_below(path: &[u8], above: &[u8]) -> bool {
        path.len() > above.len() && path.starts_with(above) && path[above.len()] == b'/'
    }

    fn is_empty_directory(&self, path: &[u8]) -> bool {
        !self.names.keys().any(|below| Self::is_below(below, path))
    }

    fn move_names(&mut self, from: &[u8], to: &[u8]) {
        let moved: Vec<Vec<u8>> = self
            .names
            .keys()
            .filter(|name| *name == from || Self::is_below(name, from))
            .cloned()
            .collect();
        for name in moved {
            let ino = self.names.remove(&name).unwrap();
            self.names.insert([to, &name[from.len()..]].concat(), ino);
        }
    }

    fn inode_of(&self, ino: Ino) -> Inode {
        let mut inode = record(self.kinds[&ino]);
        inode.version = self.versions.get(&ino).copied().unwrap_or(1);
        inode
    }
}

impl Names for Model {
    fn inode(&self, ino: Ino) -> Answer<'_, Arc<Inode>> {
        let stands = self.names.values().any(|there| *there == ino);
        Box::pin(async move { Ok(stands.then(|| Arc::new(self.inode_of(ino)))) })
    }
    fn path_of(&self, ino: Ino) -> Answer<'_, TreePath> {
        let found = self.names.iter().find(|(_, there)| **there == ino);
        Box::pin(async move { Ok(found.and_then(|(path, _)| TreePath::new(path))) })
    }
    fn at<'a>(&'a self, path: &'a TreePath) -> Answer<'a, (Ino, Arc<Inode>)> {
        let found = self.names.get(path.as_bytes());
        Box::pin(async move { Ok(found.map(|ino| (*ino, Arc::new(self.inode_of(*ino))))) })
    }
    fn was_removed(&self, _: Ino) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async { Ok(true) })
    }

    fn withdraw(&self, ino: Ino) -> BoxFuture<'_, Result<(), StoreError>> {
        self.withdrawn.lock().unwrap().insert(ino);
        Box::pin(async { Ok(()) })
    }
}

/// A random wish; refused where POSIX would refuse it.
#[derive(Clone, Debug)]
enum Wish {
    File(u8, bool),
    Directory(u8),
    Unlink(u8),
    Rename(u8, u8),
    Exchange(u8, u8),
}

/// Few paths, so that they meet.
fn spot(number: u8) -> Vec<u8> {
    let names = [b'a', b'b', b'c'];
    let (first, second, third) = (number % 3, number / 3 % 4, number / 12 % 4);
    let mut path = vec![names[first as usize]];
    for next in [second, third] {
        match next {
            0 => break,
            next => path.extend([b'/', names[next as usize - 1]]),
        }
    }
    path
}

/// Carries a wish out in the model; `Some`: with its event.
fn carry_out(model: &mut Model, next_ino: &mut Ino, wish: &Wish) -> Option<Event> {
    let may_stand =
        |model: &Model, path: &[u8]| model.kind_at(Model::parent(path)) == Some(Kind::Directory);
    match wish {
        Wish::File(at, _) | Wish::Directory(at) => {
            let path = spot(*at);
            if model.names.contains_key(&path) || !may_stand(model, &path) {
                return None;
            }
            let kind = match wish {
                Wish::File(..) => Kind::File,
                _ => Kind::Directory,
            };
            let ino = *next_ino;
            *next_ino += 1;
            model.kinds.insert(ino, kind);
            model.names.insert(path, ino);
            Some(Event::Linked {
                parent: 0,
                name: Vec::new(),
                ino,
            })
        }
        Wish::Unlink(at) => {
            let path = spot(*at);
            let ino = *model.names.get(&path)?;
            if !model.is_empty_directory(&path) {
                return None;
            }
            model.names.remove(&path);
            Some(Event::Unlinked {
                parent: 0,
                name: Vec::new(),
                ino,
                path,
                gone: true,
            })
        }
        Wish::Rename(from, to) => {
            let (from, to) = (spot(*from), spot(*to));
            let ino = *model.names.get(&from)?;
            if from == to || Model::is_below(&to, &from) || !may_stand(model, &to) {
                return None;
            }
            let replaced = model.names.get(&to).copied();
            if let Some(replaced) = replaced {
                if model.kinds[&replaced] != model.kinds[&ino] || !model.is_empty_directory(&to) {
                    return None;
                }
                model.names.remove(&to);
            }
            model.move_names(&from, &to);
            Some(Event::Renamed {
                from_parent: 0,
                from_name: Vec::new(),
                to_parent: 0,
                to_name: Vec::new(),
                ino,
                from_path: from,
                to_path: to,
                replaced,
            })
        }
        Wish::Exchange(first, second) => {
            let (first, second) = (spot(*first), spot(*second));
            let (first_ino, second_ino) = (*model.names.get(&first)?, *model.names.get(&second)?);
            if first == second
                || Model::is_below(&first, &second)
                || Model::is_below(&second, &first)
            {
                return None;
            }
            model.move_names(&first, b"?");
            model.move_names(&second, &first);
            model.move_names(b"?", &second);
            Some(Event::Exchanged {
                first_parent: 0,
                first_name: Vec::new(),
                second_parent: 0,
                second_name: Vec::new(),
                first_ino,
                second_ino,
                first_path: first,
                second_path: second,
            })
        }
    }
}

/// A data directory that applies events.
struct Node {
    directory: tempfile::TempDir,
    store: Arc<Store>,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        Self { directory, store }
    }

    fn apply(&self, names: &dyn Names, id: EventId, event: &Event) {
        let local = Local {
            store: &self.store,
            names,
            me: ME,
        };
        block_on(local.apply(id, event)).unwrap();
        self.store.stamp_position(id);
    }

    fn make(&self, at: &[u8], ino: Ino, version: u64) {
        let mut inode = record(Kind::File);
        inode.version = version;
        let path = TreePath::new(at).unwrap();
        let file = self.store.create(&path, ino, &inode).unwrap();
        file.write_all_at(&ino.to_le_bytes(), 0).unwrap();
        settle(&self.store, &file);
    }

    /// Tree path -> what the file's content says it is.
    fn files(&self) -> BTreeMap<Vec<u8>, Ino> {
        let mut files = BTreeMap::new();
        for found in crate::store::walk::Walker::new(self.store.clone(), TreePath::root()) {
            if let crate::store::walk::Found::Entry {
                path,
                kind: Kind::File,
                ..
            } = found
            {
                let bytes = std::fs::read(path.under(self.directory.path())).unwrap();
                let ino = Ino::from_le_bytes(bytes.try_into().unwrap_or_default());
                files.insert(path.as_bytes().to_vec(), ino);
            }
        }
        files
    }
}

/// The file is as it was published.
fn settle(store: &Store, file: &std::fs::File) {
    let old = store.read_meta(file).unwrap().unwrap();
    let stat = rustix::fs::fstat(file).unwrap();
    let published = LocalMeta {
        size: stat.st_size as u64,
        mtime: meta::mtime_ns(&stat),
        ..old
    };
    store.set_meta(file, &published).unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let at = 0u8..48;
    prop_oneof![
        4 => (at.clone(), any::<bool>()).prop_map(|(at, here)| Wish::File(at, here)),
        4 => at.clone().prop_map(Wish::Directory),
        2 => at.clone().prop_map(Wish::Unlink),
        6 => (at.clone(), at.clone()).prop_map(|(from, to)| Wish::Rename(from, to)),
        2 => (at.clone(), at).prop_map(|(one, other)| Wish::Exchange(one, other)),
    ]
}

/// What happened: the events, the tree after each, and which files this node made.
struct History {
    events: Vec<(EventId, Event)>,
    after: Vec<Model>,
    made: BTreeSet<Ino>,
}

fn history(wishes: &[Wish]) -> History {
    let mut model = Model::default();
    let mut history = History {
        events: Vec::new(),
        after: Vec::new(),
        made: BTreeSet::new(),
    };
    let mut next_ino = 2;
    for wish in wishes {
        if let Some(event) = carry_out(&mut model, &mut next_ino, wish) {
            if let (Wish::File(_, true), Event::Linked { ino, .. }) = (wish, &event) {
                history.made.insert(*ino);
            }
            let id = EventId(7, history.events.len() as u64 + 1);
            history.events.push((id, event));
            history.after.push(model.clone());
        }
    }
    history
}

/// Which of this node's files stand where.
fn expected(history: &History, model: &Model) -> BTreeMap<Vec<u8>, Ino> {
    let names = model.names.iter();
    names
        .filter(|(_, ino)| history.made.contains(ino))
        .map(|(path, ino)| (path.clone(), *ino))
        .collect()
}

/// Applies event `index`, and makes the file if it is one that this node makes.
fn step(node: &Node, history: &History, index: usize, names: &dyn Names, is_first: bool) {
    let (id, event) = &history.events[index];
    node.apply(names, *id, event);
    if let Event::Linked { ino, .. } = event
        && is_first
        && history.made.contains(ino)
    {
        let at = history.after[index]
            .names
            .iter()
            .find(|(_, there)| *there == ino);
        node.make(at.unwrap().0, *ino, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Applied once, each event with the catalog as it was then.
    #[test]
    fn files_follow_the_tree(wishes in prop::collection::vec(any_wish(), 1..40)) {
        let history = history(&wishes);
        let node = Node::new();
        for index in 0..history.events.len() {
            step(&node, &history, index, &history.after[index], true);
            prop_assert_eq!(node.files(), expected(&history, &history.after[index]));
        }
    }

    /// Applied again from any earlier event on, with the catalog as it is at last: nothing changes.
    #[test]
    fn applying_again_is_harmless(wishes in prop::collection::vec(any_wish(), 1..40),
                                  restarts in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..5)) {
        let history = history(&wishes);
        if history.events.is_empty() {
            return Ok(());
        }
        let node = Node::new();
        let mut done = 0;
        for (up_to, back_to) in restarts {
            let up_to = up_to.index(history.events.len()) + 1;
            for index in done..up_to {
                step(&node, &history, index, &history.after[index], true);
            }
            done = done.max(up_to);
            // Killed: the position on disk was an earlier one. Meanwhile the catalog went no further.
            for index in back_to.index(done)..done {
                step(&node, &history, index, &history.after[done - 1], false);
            }
            prop_assert_eq!(node.files(), expected(&history, &history.after[done - 1]));
        }
    }

    /// A node that was away: many events at once, the catalog being at the last already.
    #[test]
    fn a_node_that_was_away_catches_up(wishes in prop::collection::vec(any_wish(), 1..40), left in any::<prop::sample::Index>()) {
        let history = history(&wishes);
        if history.events.is_empty() {
            return Ok(());
        }
        let node = Node::new();
        let left = left.index(history.events.len());
        for index in 0..=left {
            step(&node, &history, index, &history.after[index], true);
        }
        let last = history.after.last().unwrap();
        for index in left + 1..history.events.len() {
            step(&node, &history, index, last, false);
        }
        let here: BTreeSet<Ino> = expected(&history, &history.after[left]).into_values().collect();
        let mut expected = expected(&history, last);
        expected.retain(|_, ino| here.contains(ino));
        prop_assert_eq!(node.files(), expected);
    }

    /// As above, but the stream was trimmed: the whole directory is compared.
    #[test]
    fn comparing_all_puts_all_right(wishes in prop::collection::vec(any_wish(), 1..40), left in any::<prop::sample::Index>()) {
        let history = history(&wishes);
        if history.events.is_empty() {
            return Ok(());
        }
        let node = Node::new();
        let left = left.index(history.events.len());
        for index in 0..=left {
            step(&node, &history, index, &history.after[index], true);
        }
        let last = history.after.last().unwrap();
        let local = Local { store: &node.store, names: last, me: ME };
        let id = EventId(8, 0);
        block_on(super::reconcile::reconcile(&local, id, &|_| false)).unwrap();
        let here: BTreeSet<Ino> = expected(&history, &history.after[left]).into_values().collect();
        let mut expected = expected(&history, last);
        expected.retain(|_, ino| here.contains(ino));
        prop_assert_eq!(node.files(), expected);
    }
}

fn renamed(from: &str, to: &str, ino: Ino) -> Event {
    Event::Renamed {
        from_parent: 0,
        from_name: Vec::new(),
        to_parent: 0,
        to_name: Vec::new(),
        ino,
        from_path: from.into(),
        to_path: to.into(),
        replaced: None,
    }
}

fn model_with(names: &[(&str, Ino, Kind)]) -> Model {
    let mut model = Model::default();
    for (path, ino, kind) in names {
        model.names.insert(path.as_bytes().to_vec(), *ino);
        model.kinds.insert(*ino, *kind);
    }
    model
}

#[test]
fn a_strangers_file_in_the_way_is_kept() {
    let node = Node::new();
    node.make(b"a", 5, 1);
    std::fs::write(node.directory.path().join("b"), 99u64.to_le_bytes()).unwrap();
    let model = model_with(&[("b", 5, Kind::File)]);
    node.apply(&model, EventId(1, 0), &renamed("a", "b", 5));
    let files = node.files();
    assert_eq!(files.get(&b"b"[..]), Some(&5));
    assert_eq!(files.len(), 2);
    let aside = files.iter().find(|(_, content)| **content == 99).unwrap().0;
    assert!(aside.starts_with(b"b.conflict-"));
}

#[test]
fn what_was_fetched_to_its_new_place_early_is_joined_by_the_rest() {
    let node = Node::new();
    node.make(b"d/one", 5, 1);
    node.make(b"d/sub/two", 6, 1);
    node.make(b"d/three", 7, 1);
    // The directory is `e` already for others; these were fetched there, one of them newer than the copy at the old place.
    node.make(b"e/four", 8, 1);
    node.make(b"e/sub/five", 9, 1);
    node.make(b"e/three", 7, 2);
    let model = model_with(&[
        ("e", 2, Kind::Directory),
        ("e/one", 5, Kind::File),
        ("e/sub", 3, Kind::Directory),
        ("e/sub/two", 6, Kind::File),
        ("e/three", 7, Kind::File),
        ("e/four", 8, Kind::File),
        ("e/sub/five", 9, Kind::File),
    ]);
    node.apply(&model, EventId(1, 0), &renamed("d", "e", 2));
    let expected: BTreeMap<Vec<u8>, Ino> = model
        .names
        .iter()
        .filter(|(_, ino)| **ino > 3)
        .map(|(path, ino)| (path.clone(), *ino))
        .collect();
    assert_eq!(node.files(), expected);
    assert!(!node.directory.path().join("d").exists());
    let mut newer = record(Kind::File);
    newer.version = 2;
    newer.size = 8;
    assert_eq!(
        node.store.copy_state(&path("e/three"), 7, &newer),
        CopyState::Current
    );
}

#[test]
fn a_strangers_file_keeps_its_directory() {
    let node = Node::new();
    node.make(b"d/ours", 5, 1);
    std::fs::write(node.directory.path().join("d/theirs"), 99u64.to_le_bytes()).unwrap();
    let gone = |path: &str, ino| Event::Unlinked {
        parent: 0,
        name: Vec::new(),
        ino,
        path: path.into(),
        gone: true,
    };
    let model = Model::default();
    node.apply(&model, EventId(1, 0), &gone("d/ours", 5));
    node.apply(&model, EventId(2, 0), &gone("d", 2));
    assert_eq!(node.files(), [(b"d/theirs".to_vec(), 99)].into());
    // Nor is a stranger at the name of one that was unlinked.
    node.apply(&model, EventId(3, 0), &gone("d/theirs", 8));
    assert_eq!(node.files().len(), 1);
}

#[test]
fn old_copies_go_and_changed_ones_are_kept_as_conflicts() {
    let node = Node::new();
    let published = |ino, path: &str, version, home| Event::Published {
        ino,
        path: path.into(),
        version,
        home,
    };
    for (name, ino) in [("old", 5), ("changed", 6), ("mine", 7), ("newer", 8)] {
        node.make(name.as_bytes(), ino, if ino == 8 { 3 } else { 1 });
    }
    std::fs::write(node.directory.path().join("changed"), 66u64.to_le_bytes()).unwrap();
    let how = OpenLocal {
        write: true,
        truncate: false,
    };
    let (file, _) = node.store.open_file(&path("changed"), 6, how).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    let model = Model::default();
    node.apply(&model, EventId(1, 0), &published(5, "old", 2, OTHER));
    node.apply(&model, EventId(2, 0), &published(6, "changed", 2, OTHER));
    node.apply(&model, EventId(3, 0), &published(7, "mine", 2, ME));
    node.apply(&model, EventId(4, 0), &published(8, "newer", 2, OTHER));
    let files = node.files();
    let conflict = files.iter().find(|(_, content)| **content == 66).unwrap().0;
    assert!(conflict.starts_with(b"changed.conflict-"));
    let standing = node
        .store
        .standing(&TreePath::new(conflict).unwrap())
        .unwrap();
    assert!(matches!(standing, Standing::File { tag: None, .. }));
    assert_eq!(files.len(), 3, "{files:?}");
    assert_eq!(files.get(&b"mine"[..]), Some(&7));
    assert_eq!(files.get(&b"newer"[..]), Some(&8));
    assert_eq!(*model.withdrawn.lock().unwrap(), [5, 6].into());
}

#[test]
fn the_first_of_several_links_goes() {
    let node = Node::new();
    node.make(b"d/first", 5, 1);
    let event = Event::Unlinked {
        parent: 0,
        name: Vec::new(),
        ino: 5,
        path: b"d/first".to_vec(),
        gone: false,
    };
    let model = model_with(&[("second", 5, Kind::File)]);
    node.apply(&model, EventId(1, 0), &event);
    assert_eq!(node.files(), [(b"second".to_vec(), 5)].into());
    // The other link went as well before this was applied.
    let node = Node::new();
    node.make(b"d/first", 5, 1);
    node.apply(&Model::default(), EventId(1, 0), &event);
    assert_eq!(node.files(), BTreeMap::new());
}

#[test]
fn symlinks_are_as_the_catalog_has_them() {
    let node = Node::new();
    let link = record(Kind::Symlink);
    node.store.make_symlink(&path("a"), &link).unwrap();
    let model = model_with(&[("b", 5, Kind::Symlink)]);
    node.apply(&model, EventId(1, 0), &renamed("a", "b", 5));
    let there = |name: &str| node.directory.path().join(name).symlink_metadata().is_ok();
    assert!(!there("a"));
    assert!(there("b"));
    node.apply(&model, EventId(1, 0), &renamed("a", "b", 5));
    assert!(there("b"));
}

#[test]
fn attributes_are_set_on_the_copy_here() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    node.make(b"f", 5, 1);
    let model = model_with(&[("f", 5, Kind::File)]);
    let event = Event::Attributes {
        ino: 5,
        path: b"f".to_vec(),
    };
    let file = node.directory.path().join("f");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    node.apply(&model, EventId(1, 0), &event);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o644
    );
    let mut inode = record(Kind::File);
    inode.size = 8;
    assert_eq!(
        node.store.copy_state(&path("f"), 5, &inode),
        CopyState::Current
    );
}

#[path = "apply_live_tests.rs"]
mod with_catalog;
