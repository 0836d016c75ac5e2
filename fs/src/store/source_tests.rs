use super::*;
use crate::store::LocalMeta;
use crate::store::partial::ContentKey;
use crate::testing::TestRedis;
use ks_transport::blocks::{GROUP_BYTES, hash_bytes};
use std::os::unix::fs::FileExt;

struct Served {
    _redis: TestRedis,
    directory: tempfile::TempDir,
    source: StoreSource,
}

impl Served {
    async fn start() -> Self {
        let redis = TestRedis::start().await;
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 0).unwrap());
        let catalog =
            crate::catalog::Catalog::open(redis.target(), store.node_id(), Arc::new(|_| ()));
        let source = StoreSource {
            store,
            catalog: catalog.await.unwrap(),
        };
        Self {
            _redis: redis,
            directory,
            source,
        }
    }

    /// A plain file in the tree, whose hash is known or not.
    async fn make(&self, name: &str, data: &[u8], is_hashed: bool) -> Ino {
        let hasher = crate::store::hasher::Hasher::start(
            self.source.store.clone(),
            self.source.catalog.clone(),
        );
        std::fs::write(self.directory.path().join(name), data).unwrap();
        let (store, catalog) = (&self.source.store, &self.source.catalog);
        let scanned = crate::store::scan::scan(store, catalog, &hasher, "node", None, None).await;
        scanned.unwrap();
        let path = TreePath::new(name.as_bytes()).unwrap();
        let node = catalog.resolve(&path).await.unwrap().unwrap();
        if is_hashed {
            let version = node.inode.version;
            hasher.hash_now(&path, node.ino, version).await.unwrap();
        }
        node.ino
    }

    async fn ask(&self, ino: Ino, path: &str, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let locator = Locator::File {
            ino,
            path: path.into(),
        };
        self.ask_for(&locator, data).await
    }

    async fn ask_for(&self, locator: &Locator, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let request = BlockRequest {
            locator: locator.encode(),
            hash: hash_bytes(data).0,
            size: data.len() as u64,
            ranges: vec![0..data.len() as u64],
        };
        let content = self.source.open(&request).await?;
        assert_eq!(content.size, request.size);
        let outboard = match content.outboard {
            Outboard::Memory(bytes) => bytes.to_vec(),
            Outboard::File(file) => {
                let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            }
        };
        assert_eq!(outboard, hash_bytes(data).1);
        let mut read = vec![0; data.len()];
        content.file.read_exact_at(&mut read, 0).unwrap();
        Ok(read)
    }
}

fn data(groups: u64) -> Vec<u8> {
    (0..groups * GROUP_BYTES + 9)
        .map(|i| (i % 249) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_served_hashed_before_or_now() {
    let served = Served::start().await;
    let (small, large) = (b"small".to_vec(), data(10));
    for (name, content, is_hashed) in [
        ("a", &small, true),
        ("b", &large, true),
        ("c", &small, false),
        ("d", &large, false),
    ] {
        let ino = served.make(name, content, is_hashed).await;
        for _ in 0..2 {
            assert_eq!(served.ask(ino, name, content).await.unwrap(), *content);
        }
        // Its tree was lost.
        served.source.store.remove_tree(&hash_bytes(content).0);
        served.source.store.contents.forget(ino);
        assert_eq!(served.ask(ino, name, content).await.unwrap(), *content);
        assert!(
            served
                .source
                .store
                .tree(&hash_bytes(content).0, content.len() as u64)
                .is_some()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_or_is_another_file_is_refused() {
    let served = Served::start().await;
    let content = data(4);
    let ino = served.make("file", &content, true).await;
    assert!(matches!(
        served.ask(ino, "../file", &content).await,
        Err(Refusal::NotHere)
    ));
    assert!(served.ask(ino, "file", &content).await.is_ok());
    let mut other = content.clone();
    other[0] ^= 1;
    assert!(matches!(
        served.ask(ino, "file", &other).await,
        Err(Refusal::Changed)
    ));
    assert!(matches!(
        served.ask(ino + 1, "file", &content).await,
        Err(Refusal::NotHere)
    ));
    let junk = BlockRequest {
        locator: vec![0xff; 30],
        hash: [0; 32],
        size: 1,
        ranges: vec![0..1],
    };
    assert!(matches!(
        served.source.open(&junk).await,
        Err(Refusal::NotHere)
    ));
    // Changed in place, while its content is kept open.
    let file = std::fs::File::options()
        .write(true)
        .open(served.directory.path().join("file"))
        .unwrap();
    file.write_all_at(b"x", 5).unwrap();
    assert!(matches!(
        served.ask(ino, "file", &content).await,
        Err(Refusal::Changed)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_renamed_is_asked_for_once() {
    let served = Served::start().await;
    let content = data(2);
    let ino = served.make("file", &content, true).await;
    let renamed = served.source.catalog.rename(1, b"file", 1, b"new", 0).await;
    renamed.unwrap();
    // Not applied here yet.
    assert!(served.ask(ino, "file", &content).await.is_ok());
    let at = |name: &str| served.directory.path().join(name);
    std::fs::rename(at("file"), at("new")).unwrap();
    served.source.store.contents.forget(ino);
    assert!(served.ask(ino, "file", &content).await.is_ok());
    assert!(matches!(
        served.ask(ino + 7, "file", &content).await,
        Err(Refusal::NotHere)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_served_by_their_hash() {
    let served = Served::start().await;
    let content = data(3);
    assert!(matches!(
        served.ask_for(&Locator::Blob, &content).await,
        Err(Refusal::NotHere)
    ));
    served.source.store.put_blob(&[&content]).unwrap();
    for _ in 0..2 {
        assert_eq!(
            served.ask_for(&Locator::Blob, &content).await.unwrap(),
            content
        );
    }
    // Damaged on the disk.
    let blob = served.source.store.blob_path(&hash_bytes(&content).0);
    served.source.store.remove_tree(&hash_bytes(&content).0);
    std::fs::write(blob, vec![1; content.len()]).unwrap();
    assert!(matches!(
        served.ask_for(&Locator::Blob, &content).await,
        Err(Refusal::Changed)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_are_here_are_served() {
    let served = Served::start().await;
    let content = data(4);
    let (hash, tree) = hash_bytes(&content);
    let key = ContentKey {
        ino: 77,
        version: 1,
        size: content.len() as u64,
        hash,
    };
    let partial = served.source.store.open_partial(&key).unwrap();
    partial.data_file().write_all_at(&content, 0).unwrap();
    partial.tree_file().write_all_at(&tree, 0).unwrap();
    partial.mark(0..2 * GROUP_BYTES);
    let request = |ranges| BlockRequest {
        locator: Locator::File {
            ino: 77,
            path: b"f".to_vec(),
        }
        .encode(),
        hash,
        size: key.size,
        ranges,
    };
    let whole = request(vec![0..key.size]);
    assert!(matches!(
        served.source.open(&whole).await,
        Err(Refusal::NotHere)
    ));
    let part = request(vec![10..20, GROUP_BYTES..2 * GROUP_BYTES]);
    assert!(served.source.open(&part).await.is_ok());
}

/// Nodes of the tree are written many at a time; whoever is sent a part gets those above it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn parts_whose_nodes_have_just_come_are_served_with_them() {
    let served = Served::start().await;
    let content = data(4);
    let (hash, tree) = hash_bytes(&content);
    let key = ContentKey {
        ino: 77,
        version: 1,
        size: content.len() as u64,
        hash,
    };
    let partial = served.source.store.open_partial(&key).unwrap();
    partial.data_file().write_all_at(&content, 0).unwrap();
    for (at, pair) in tree.chunks_exact(64).enumerate() {
        let pair = pair.try_into().unwrap();
        partial.add_node(64 * at as u64, pair).unwrap();
    }
    partial.mark(0..key.size);
    let request = BlockRequest {
        locator: Locator::File {
            ino: 77,
            path: b"f".to_vec(),
        }
        .encode(),
        hash,
        size: key.size,
        ranges: vec![GROUP_BYTES..2 * GROUP_BYTES],
    };
    let sent = served.source.open(&request).await.unwrap();
    let Outboard::File(file) = sent.outboard else {
        panic!("a tree of four groups is a file");
    };
    let mut found = vec![0; tree.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, tree);
}

#[test]
fn the_cache_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 0).unwrap();
    for number in 0..CONTENTS_MAX as u32 + 10 {
        let content = number.to_le_bytes();
        let (hash, size) = store.put_blob(&[&content]).unwrap();
        let request = BlockRequest {
            locator: Locator::Blob.encode(),
            hash,
            size,
            ranges: vec![0..size],
        };
        assert!(store.blob_content(&request).is_ok());
    }
    assert_eq!(lock(&store.contents.contents).len(), CONTENTS_MAX);
}

#[test]
fn a_meta_of_another_inode_is_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), 0).unwrap();
    let path = directory.path().join("f");
    std::fs::write(&path, "data").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    let meta = LocalMeta {
        ino: 5,
        version: 1,
        epoch: 1,
        home: crate::record::NodeId(1),
        size: 4,
        mtime: mtime_ns(&stat),
        blake3: Some(hash_bytes(b"data").0),
    };
    store.set_meta(&file, &meta).unwrap();
    let request = BlockRequest {
        locator: Vec::new(),
        hash: hash_bytes(b"data").0,
        size: 4,
        ranges: vec![0..4],
    };
    let tree_path = TreePath::new(b"f").unwrap();
    assert!(store.file_content(5, &tree_path, &request).is_ok());
    assert!(matches!(
        store.file_content(6, &tree_path, &request),
        Err(Refusal::NotHere)
    ));
}
