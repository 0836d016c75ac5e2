use super::*;
use crate::catalog::Publication;
use crate::store::{CopyState, LocalMeta};
use crate::testing::TestRedis;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const LIMIT: Duration = Duration::from_secs(30);

struct Node {
    _redis: TestRedis,
    directory: tempfile::TempDir,
    store: Arc<Store>,
    catalog: Catalog,
}

async fn node() -> Node {
    let redis = TestRedis::start().await;
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path(), 0).unwrap());
    let catalog = Catalog::open(redis.target(), store.node_id(), Arc::new(|_| ()));
    let catalog = catalog.await.unwrap();
    Node {
        _redis: redis,
        directory,
        store,
        catalog,
    }
}

fn path(name: &str) -> TreePath {
    TreePath::new(name.as_bytes()).unwrap()
}

impl Node {
    /// A published file without a hash.
    async fn make(&self, name: &str, content: &[u8]) -> (Ino, u64) {
        let inode = Inode {
            kind: Kind::File,
            mode: 0o644,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            nlink: 1,
            size: 0,
            atime: 0,
            mtime: 0,
            ctime: 0,
            parent: ROOT,
            name: Vec::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            version: 0,
            epoch: 1,
            home: self.store.node_id(),
            blake3: None,
            md5: None,
        };
        let made = self
            .catalog
            .create(ROOT, name.as_bytes(), inode)
            .await
            .unwrap()
            .value;
        self.store
            .create(&path(name), made.ino, &made.inode)
            .unwrap();
        let version = self.write(name, made.ino, content).await;
        (made.ino, version)
    }

    /// Writes and publishes; the new version.
    async fn write(&self, name: &str, ino: Ino, content: &[u8]) -> u64 {
        let how = OpenLocal {
            write: true,
            truncate: false,
        };
        let (file, _) = self.store.open_file(&path(name), ino, how).unwrap();
        file.write_all_at(content, 0).unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let publication = Publication {
            size: stat.st_size as u64,
            mtime: meta::mtime_ns(&stat),
            ctime: 0,
            blake3: None,
        };
        let published = self
            .catalog
            .publish(ino, 1, publication.clone())
            .await
            .unwrap();
        let meta = LocalMeta {
            ino,
            version: published.value.inode.version,
            epoch: 1,
            home: self.store.node_id(),
            size: publication.size,
            mtime: publication.mtime,
            blake3: None,
        };
        self.store.set_meta(&file, &meta).unwrap();
        meta.version
    }

    async fn recorded(&self, ino: Ino) -> Option<Hash> {
        self.catalog.node(ino).await.unwrap().unwrap().inode.blake3
    }

    async fn wait_for(&self, ino: Ino, hash: Hash) {
        let deadline = Instant::now() + LIMIT;
        while self.recorded(ino).await != Some(hash) {
            assert!(Instant::now() < deadline, "hashed in the background");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn hash(content: &[u8]) -> Hash {
    *blake3::hash(content).as_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_files_are_hashed_and_told() {
    let node = node().await;
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut made = Vec::new();
    for (name, content) in [("small", &b"small"[..]), ("big", &big)] {
        let (ino, version) = node.make(name, content).await;
        hasher.queue(path(name), ino, version);
        made.push((name, ino, content));
    }
    for (name, ino, content) in made {
        node.wait_for(ino, hash(content)).await;
        assert!(
            node.store
                .tree(&hash(content), content.len() as u64)
                .is_some()
        );
        let record = node.catalog.node(ino).await.unwrap().unwrap().inode;
        assert_eq!(
            node.store.copy_state(&path(name), ino, &record),
            CopyState::Current
        );
    }
    assert_eq!(hasher.queued(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_wait_get_one_hashing() {
    let node = node().await;
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let content = vec![7u8; 5_000_000];
    let (ino, version) = node.make("file", &content).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let hasher = hasher.clone();
        waiting.spawn(async move { hasher.hash_now(&path("file"), ino, version).await });
    }
    hasher.queue(path("file"), ino, version);
    while let Some(hashed) = tokio::time::timeout(LIMIT, waiting.join_next())
        .await
        .unwrap()
    {
        assert_eq!(hashed.unwrap().unwrap(), hash(&content));
    }
    assert_eq!(node.recorded(ino).await, Some(hash(&content)));
    assert!(lock(&hasher.shared.flights).len() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_gets_no_wrong_hash() {
    let node = node().await;
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let (ino, version) = node.make("file", b"first").await;
    // Changed and not published yet.
    std::fs::write(node.directory.path().join("file"), "changed").unwrap();
    let error = hasher
        .hash_now(&path("file"), ino, version)
        .await
        .unwrap_err();
    assert!(matches!(error, FsError::Stale), "{error}");
    assert_eq!(node.recorded(ino).await, None);
    // Another version was published since it was asked for.
    let newer = node.write("file", ino, b"another").await;
    assert!(hasher.hash_now(&path("file"), ino, version).await.is_err());
    assert_eq!(
        hasher.hash_now(&path("file"), ino, newer).await.unwrap(),
        hash(b"another")
    );
    assert_eq!(node.recorded(ino).await, Some(hash(b"another")));
    assert!(hasher.hash_now(&path("absent"), 99, 1).await.is_err());
}

/// A writer changes the file all the time: whatever hash is recorded is that of the version it is recorded for.
#[tokio::test(flavor = "multi_thread")]
async fn hashing_races_with_writing() {
    let node = Arc::new(node().await);
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let content = |round: u8| vec![round; 2_000_000];
    let (ino, mut version) = node.make("file", &content(0)).await;
    for round in 1..20u8 {
        let hashing = tokio::spawn({
            let hasher = hasher.clone();
            async move { hasher.hash_now(&path("file"), ino, version).await }
        });
        tokio::time::sleep(Duration::from_micros(u64::from(round) * 150)).await;
        let newer = node.write("file", ino, &content(round)).await;
        if let Ok(hashed) = tokio::time::timeout(LIMIT, hashing).await.unwrap().unwrap() {
            assert_eq!(hashed, hash(&content(round - 1)));
        }
        let record = node.catalog.node(ino).await.unwrap().unwrap().inode;
        assert_eq!(record.version, newer);
        assert!(
            record
                .blake3
                .is_none_or(|found| found == hash(&content(round)))
        );
        version = newer;
    }
    let last = hasher.hash_now(&path("file"), ino, version).await.unwrap();
    assert_eq!(last, hash(&content(19)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_file_is_found() {
    let node = node().await;
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let (ino, version) = node.make("old", b"content").await;
    node.catalog
        .rename(ROOT, b"old", ROOT, b"new", 0)
        .await
        .unwrap();
    let at = |name: &str| node.directory.path().join(name);
    std::fs::rename(at("old"), at("new")).unwrap();
    let hashed = hasher.hash_now(&path("old"), ino, version).await.unwrap();
    assert_eq!(hashed, hash(b"content"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_fit_in_the_queue_is_found_again() {
    let node = node().await;
    let hasher = Hasher::start(node.store.clone(), node.catalog.clone());
    let mut made = Vec::new();
    for number in 0..10u8 {
        let (ino, _) = node.make(&format!("{number}"), &[number]).await;
        made.push((ino, number));
    }
    lock(&hasher.shared.queue).set_overflow();
    let (ino, version) = node.make("last", b"last").await;
    hasher.queue(path("last"), ino, version);
    for (ino, number) in made {
        node.wait_for(ino, hash(&[number])).await;
    }
}
