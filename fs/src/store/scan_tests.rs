use super::*;
use crate::store::{CopyState, OpenLocal};
use crate::testing::TestRedis;
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn path(text: &str) -> TreePath {
    TreePath::new(text.as_bytes()).unwrap()
}

/// The threads of the one before may hold the lock for a moment longer.
async fn open_when_free(directory: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(directory, 0) {
            Err(StoreError::Locked(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened.unwrap(),
        }
    }
}

/// A node on a Redis that several share.
struct Node {
    directory: PathBuf,
    store: Arc<Store>,
    catalog: Catalog,
    hasher: Arc<Hasher>,
    name: &'static str,
}

impl Node {
    async fn start(redis: &TestRedis, directory: &Path, name: &'static str) -> Self {
        let store = Arc::new(open_when_free(directory).await);
        let on_change = Arc::new(|_| ());
        let catalog = Catalog::open(redis.target(), store.node_id(), on_change);
        let catalog = catalog.await.unwrap();
        let hasher = Hasher::start(store.clone(), catalog.clone());
        Self {
            directory: directory.to_owned(),
            store,
            catalog,
            hasher,
            name,
        }
    }

    async fn scan(&self) -> ScanReport {
        let scan = scan(
            &self.store,
            &self.catalog,
            &self.hasher,
            self.name,
            None,
            None,
        );
        tokio::time::timeout(Duration::from_secs(60), scan)
            .await
            .expect("a scan ends")
            .unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.directory.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.join(name)).unwrap()
    }

    async fn at(&self, name: &str) -> Node_ {
        let found = self.catalog.resolve(&path(name)).await.unwrap();
        found.unwrap_or_else(|| panic!("{name} is in the tree"))
    }

    async fn is_in_tree(&self, name: &str) -> bool {
        self.catalog.resolve(&path(name)).await.unwrap().is_some()
    }

    async fn holders(&self, name: &str) -> BTreeMap<NodeId, Holding> {
        let located = self.catalog.locate_path(&path(name)).await.unwrap();
        located.unwrap().holders.into_iter().collect()
    }

    async fn hashed(&self, name: &str) -> Hash {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(hash) = self.at(name).await.inode.blake3 {
                return hash;
            }
            assert!(
                Instant::now() < deadline,
                "{name} is hashed in the background"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn state(&self, name: &str) -> CopyState {
        let node = self.at(name).await;
        self.store.copy_state(&path(name), node.ino, &node.inode)
    }
}

async fn one_node() -> (TestRedis, tempfile::TempDir, Node) {
    let redis = TestRedis::start().await;
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(&redis, directory.path(), "one").await;
    (redis, directory, node)
}

async fn two_nodes() -> (TestRedis, [tempfile::TempDir; 2], Node, Node) {
    let (redis, directory, one) = one_node().await;
    let other = tempfile::tempdir().unwrap();
    let two = Node::start(&redis, other.path(), "two").await;
    (redis, [directory, other], one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_entered_and_known_again() {
    let (_redis, _directory, node) = one_node().await;
    for number in 0..BATCH_MAX + 20 {
        node.write(&format!("many/{number}"), &format!("{number}"));
    }
    node.write("a/b/c", "text");
    node.write("a/empty", "");
    std::fs::create_dir_all(node.directory.join("a/nothing")).unwrap();
    symlink("b/c", node.directory.join("a/link")).unwrap();
    let report = node.scan().await;
    assert_eq!(report.files as usize, BATCH_MAX + 22);
    assert_eq!(report.directories, 4);
    assert_eq!(report.new, report.files + report.directories + 1);
    assert!(report.conflicts.is_empty() && report.unreadable.is_empty());
    let entered = node.at("a/b/c").await;
    assert_eq!(entered.inode.home, node.store.node_id());
    assert_eq!(entered.inode.size, 4);
    assert_eq!(node.at("a/link").await.inode.target, b"b/c");
    assert_eq!(node.at("a/nothing").await.inode.kind, Kind::Directory);
    assert_eq!(
        node.hashed("a/b/c").await,
        *blake3::hash(b"text").as_bytes()
    );
    assert_eq!(node.hashed("a/empty").await, *blake3::hash(b"").as_bytes());
    assert_eq!(node.hashed("many/7").await, *blake3::hash(b"7").as_bytes());
    assert_eq!(node.state("a/b/c").await, CopyState::Current);
    assert_eq!(node.holders("a/b/c").await[&node.store.node_id()].bytes, 4);
    let again = node.scan().await;
    assert_eq!((again.new, again.changed), (0, 0));
    assert_eq!(again.files, report.files);
    assert_eq!(node.at("a/b/c").await.ino, entered.ino);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let (_redis, _directory, node) = one_node().await;
    let name = std::ffi::OsStr::from_bytes(b"\xff\n .txt");
    std::fs::write(node.directory.join(name), "x").unwrap();
    node.scan().await;
    let found = TreePath::new(name.as_bytes()).unwrap();
    assert!(node.catalog.resolve(&found).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_behind_our_back_is_a_new_version() {
    let (_redis, _directory, node) = one_node().await;
    node.write("written", "before");
    node.write("replaced", "before");
    node.write("same", "before");
    node.scan().await;
    let before = node.at("written").await;
    node.write("written", "after it");
    // As editors and rsync do it: another file, by rename.
    node.write("new", "after it, longer");
    std::fs::rename(node.directory.join("new"), node.directory.join("replaced")).unwrap();
    let report = node.scan().await;
    assert_eq!((report.new, report.changed), (0, 2));
    let after = node.at("written").await;
    assert_eq!(after.ino, before.ino);
    assert_eq!(after.inode.version, before.inode.version + 1);
    for name in ["written", "replaced", "same"] {
        assert_eq!(node.state(name).await, CopyState::Current, "{name}");
        let text = node.read(name);
        assert_eq!(
            node.hashed(name).await,
            *blake3::hash(text.as_bytes()).as_bytes()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_moved_behind_our_back_is_renamed_and_linked() {
    let (_redis, _directory, node) = one_node().await;
    node.write("old", "moved");
    node.write("d/rotated", "yesterday");
    node.write("twice", "linked");
    node.scan().await;
    let (moved, linked) = (node.at("old").await.ino, node.at("twice").await.ino);
    std::fs::create_dir(node.directory.join("there")).unwrap();
    let at = |name: &str| node.directory.join(name);
    std::fs::rename(at("old"), at("there/new")).unwrap();
    std::fs::rename(at("d/rotated"), at("d/rotated.1")).unwrap();
    node.write("d/rotated", "today");
    std::fs::hard_link(at("twice"), at("there/thrice")).unwrap();
    node.scan().await;
    assert_eq!(node.at("there/new").await.ino, moved);
    assert!(!node.is_in_tree("old").await);
    assert_eq!(node.at("there/thrice").await.ino, linked);
    assert_eq!(node.at("there/thrice").await.nlink, 2);
    for (name, text) in [("d/rotated", "today"), ("d/rotated.1", "yesterday")] {
        assert_eq!(node.read(name), text);
        assert_eq!(
            node.hashed(name).await,
            *blake3::hash(text.as_bytes()).as_bytes()
        );
        assert_eq!(node.state(name).await, CopyState::Current, "{name}");
    }
    let again = node.scan().await;
    assert_eq!((again.new, again.changed, again.conflicts.len()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_file_on_two_nodes_is_one_with_two_copies() {
    let (_redis, _directories, one, two) = two_nodes().await;
    one.write("d/same", "content");
    two.write("d/same", "content");
    one.scan().await;
    let report = two.scan().await;
    assert_eq!(
        (report.new, report.conflicts.len(), report.undecided),
        (0, 0, 0)
    );
    let holders = two.holders("d/same").await;
    assert_eq!(holders.len(), 2);
    assert_eq!(two.at("d/same").await.inode.home, one.store.node_id());
    assert_eq!(two.state("d/same").await, CopyState::Current);
    let again = two.scan().await;
    assert_eq!((again.new, again.changed), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_content_is_kept_as_a_conflict() {
    let (_redis, _directories, one, two) = two_nodes().await;
    for (node, same_size, other_size) in [(&one, "1234", "x"), (&two, "abcd", "xyz")] {
        node.write("same-size", same_size);
        node.write("other-size", other_size);
    }
    one.write("kind", "file here");
    two.write("kind/deep/file", "directory there");
    symlink("a", one.directory.join("link")).unwrap();
    symlink("b", two.directory.join("link")).unwrap();
    one.scan().await;
    let mut report = two.scan().await;
    report.conflicts.sort();
    let expected = ["kind", "link", "other-size", "same-size"];
    let expected: Vec<String> = expected
        .iter()
        .map(|n| format!("{n}.conflict-two"))
        .collect();
    assert_eq!(report.conflicts, expected);
    assert_eq!(two.read("same-size.conflict-two"), "abcd");
    assert_eq!(two.read("other-size.conflict-two"), "xyz");
    assert_eq!(two.read("kind.conflict-two/deep/file"), "directory there");
    for name in ["same-size", "other-size", "kind"] {
        assert_eq!(two.at(name).await.inode.home, one.store.node_id(), "{name}");
        assert!(!two.directory.join(name).exists());
    }
    for name in ["same-size.conflict-two", "kind.conflict-two/deep/file"] {
        assert_eq!(two.at(name).await.inode.home, two.store.node_id());
        assert_eq!(two.state(name).await, CopyState::Current);
    }
    assert_eq!(two.at("link.conflict-two").await.inode.target, b"b");
    let again = two.scan().await;
    assert_eq!((again.new, again.conflicts.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_changed_is_kept_as_a_conflict_and_one_that_was_moved_goes_back() {
    let (_redis, _directories, one, two) = two_nodes().await;
    for node in [&one, &two] {
        node.write("changed", "content");
        node.write("moved", "content too");
    }
    one.scan().await;
    two.scan().await;
    two.write("changed", "changed here");
    let at = |name: &str| two.directory.join(name);
    std::fs::rename(at("moved"), at("elsewhere")).unwrap();
    let report = two.scan().await;
    assert_eq!(report.conflicts, ["changed.conflict-two"]);
    assert_eq!(two.read("changed.conflict-two"), "changed here");
    assert_eq!(two.holders("changed").await.len(), 1);
    assert_eq!(two.holders("moved").await.len(), 2);
    assert_eq!(two.read("moved"), "content too");
    assert!(!two.is_in_tree("elsewhere").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_catalog_learns_all_again() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let redis = TestRedis::start().await;
        let node = Node::start(&redis, directory.path(), "one").await;
        // In the second catalog these numbers are other files.
        if round == 1 {
            let decoy = tempfile::tempdir().unwrap();
            let other = Node::start(&redis, decoy.path(), "decoy").await;
            other.write("decoy", "d");
            other.scan().await;
        }
        node.store.set_cluster(round);
        node.write("a/file", "content");
        let report = node.scan().await;
        assert_eq!(report.new, 2);
        assert_eq!(node.state("a/file").await, CopyState::Current);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_crash_damaged_is_removed_and_an_undamaged_one_kept() {
    use std::os::unix::fs::FileExt;
    let (redis, _directories, one, two) = two_nodes().await;
    for node in [&one, &two] {
        node.write("good", "content");
        node.write("bad", "content");
    }
    one.scan().await;
    two.scan().await;
    let directory = two.directory.clone();
    for name in ["good", "bad"] {
        let file = std::fs::File::open(directory.join(name)).unwrap();
        let mut tag = two.store.read_tag(&file).unwrap().unwrap();
        tag.stored = Some(Time::MAX);
        super::super::meta::write(&file, &tag).unwrap();
    }
    // The machine went down before the data was written out: zeros, with the right size and time.
    let bad = std::fs::File::options()
        .write(true)
        .open(directory.join("bad"))
        .unwrap();
    let modified = bad.metadata().unwrap().modified().unwrap();
    bad.write_all_at(&[0; 7], 0).unwrap();
    bad.set_modified(modified).unwrap();
    drop(two);
    std::fs::write(directory.join(".ks/synced"), b"").unwrap();
    let two = Node::start(&redis, &directory, "two").await;
    two.scan().await;
    assert!(!directory.join("bad").exists());
    assert_eq!(two.holders("bad").await.len(), 1);
    assert_eq!(two.read("good"), "content");
    assert_eq!(two.holders("good").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn scanned_files_can_be_opened_by_their_inode() {
    let (_redis, _directory, node) = one_node().await;
    node.write("file", "content");
    node.scan().await;
    let ino = node.at("file").await.ino;
    let how = OpenLocal {
        write: false,
        truncate: false,
    };
    let (_, meta) = node.store.open_file(&path("file"), ino, how).unwrap();
    assert_eq!((meta.ino, meta.version), (ino, 1));
}

/// How many scripts Redis has been asked to run.
async fn scripts_run(redis: &crate::redis_client::Redis) -> u64 {
    let mut command = redis::cmd("INFO");
    command.arg("commandstats");
    let text = match redis.run(&command).await.unwrap() {
        redis::Value::BulkString(bytes) => String::from_utf8(bytes).unwrap(),
        redis::Value::VerbatimString { text, .. } => text,
        other => panic!("{other:?}"),
    };
    let line = text
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:calls="));
    let calls = line.and_then(|line| line.split(['=', ',']).nth(1));
    calls.map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_files_take_few_questions() {
    const DIRECTORIES: usize = 50;
    const FILES: u64 = 10_000;
    // Five directories of two hundred: each is made or asked for, and its files, in two batches at most.
    const ENTERED_EACH_THOUSAND: u64 = 25;
    const SEEN_EACH_THOUSAND: u64 = 25;
    let (redis, directory, node) = one_node().await;
    for number in 0..FILES as usize {
        let above = directory.path().join(format!("{}", number % DIRECTORIES));
        if number < DIRECTORIES {
            std::fs::create_dir(&above).unwrap();
        }
        // Empty: nobody hashes them beside the scan.
        std::fs::File::create(above.join(format!("{number}"))).unwrap();
    }
    let counted = node.catalog.redis().clone();
    let before = scripts_run(&counted).await;
    let report = node.scan().await;
    assert_eq!(
        (report.files, report.new),
        (FILES, FILES + DIRECTORIES as u64)
    );
    let entered = scripts_run(&counted).await - before;
    assert!(
        entered <= ENTERED_EACH_THOUSAND * FILES / 1000,
        "{entered} scripts to enter {FILES} files"
    );
    let (name, path) = (node.name, node.directory.clone());
    drop((counted, node));
    let node = Node::start(&redis, &path, name).await;
    let counted = node.catalog.redis().clone();
    let before = scripts_run(&counted).await;
    let report = node.scan().await;
    assert_eq!((report.files, report.new, report.changed), (FILES, 0, 0));
    let seen = scripts_run(&counted).await - before;
    assert!(
        seen <= SEEN_EACH_THOUSAND * FILES / 1000,
        "{seen} scripts to see that {FILES} files are as they were"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_start_did_not_wait_for_is_compared_later() {
    let (redis, directory, node) = one_node().await;
    let count = 3 * BATCH_MAX;
    for number in 0..count {
        node.write(&format!("d{}/{number:04}", number % 7), "x");
    }
    let at_once = || Some(tokio::time::Instant::now());
    let scan_until = |node: &Node, until| {
        let (store, catalog, hasher) = (
            node.store.clone(),
            node.catalog.clone(),
            node.hasher.clone(),
        );
        async move {
            scan(&store, &catalog, &hasher, "one", None, until)
                .await
                .unwrap()
        }
    };
    let first = scan_until(&node, at_once()).await;
    assert!(!first.is_cut_short, "nothing is known of it: {first:?}");
    assert_eq!(first.new, count as u64 + 7);
    drop(node);
    let node = Node::start(&redis, directory.path(), "one").await;
    let again = scan_until(&node, at_once()).await;
    assert!(
        again.is_cut_short && again.files < count as u64,
        "{again:?}"
    );

    node.write("d3/new", "y");
    node.write("d5/0005", "other bytes");
    std::fs::rename(
        directory.path().join("d6/0006"),
        directory.path().join("moved"),
    )
    .unwrap();
    let watches = Arc::new(Watches::new().unwrap());
    let surveyed = survey(&node.store, &node.catalog, &node.hasher, &watches).await;
    assert_eq!(surveyed.unwrap(), (count as u64 + 8, 3));
    assert!(
        !node.is_in_tree("d3/new").await,
        "nothing is done by itself"
    );
    let due = watches.due().take(u64::MAX, usize::MAX);
    let due: std::collections::BTreeSet<_> = due.iter().map(|task| task.path.to_string()).collect();
    assert_eq!(
        due.into_iter().collect::<Vec<_>>(),
        ["/d3/new", "/d5/0005", "/moved"]
    );
}
