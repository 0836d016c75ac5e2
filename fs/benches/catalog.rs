//! How fast the catalog is over a local unix socket: `cargo bench -p ks-fs --bench catalog`.
//! Compared in the same run with a bare PING on the same connection: what a round trip costs here.
use ks_fs::catalog::{Catalog, Publication};
use ks_fs::path::TreePath;
use ks_fs::record::*;
use ks_fs::testing::TestRedis;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FILES: usize = 10_000;
const TASKS: usize = 16;

fn file(home: NodeId) -> Inode {
    Inode {
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        size: 0,
        atime: 0,
        mtime: 1_700_000_000_000_000_000,
        ctime: 1_700_000_000_000_000_000,
        parent: 0,
        name: vec![],
        target: vec![],
        xattrs: Default::default(),
        version: 0,
        epoch: 0,
        home,
        blake3: None,
        md5: None,
    }
}

fn directory() -> Inode {
    Inode {
        kind: Kind::Directory,
        ..file(NodeId::NONE)
    }
}

fn report(what: &str, count: usize, took: Duration) {
    let each = took / u32::try_from(count.max(1)).unwrap();
    let rate = count as f64 / took.as_secs_f64();
    println!("{what:<52} {rate:>12.0}/s {each:>12.1?} each");
}

async fn open(redis: &TestRedis, node: u64) -> Catalog {
    let catalog = Catalog::open(redis.target(), NodeId(node), Arc::new(|_| {})).await;
    catalog.unwrap()
}

async fn made(catalog: &Catalog, name: &str) -> Ino {
    let made = catalog.create(ROOT, name.as_bytes(), directory()).await;
    made.unwrap().value.ino
}

async fn create_in_order(catalog: &Catalog) -> Vec<Ino> {
    let dir = made(catalog, "in-order").await;
    let mut inos = Vec::with_capacity(FILES);
    let started = Instant::now();
    for number in 0..FILES {
        let name = format!("file-{number:06}");
        let made = catalog
            .create(dir, name.as_bytes(), file(catalog.me()))
            .await;
        inos.push(made.unwrap().value.ino);
    }
    report("create, one after the other", FILES, started.elapsed());
    inos
}

async fn create_at_once(catalog: &Catalog) {
    let dir = made(catalog, "at-once").await;
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let catalog = catalog.clone();
        tasks.spawn(async move {
            for number in 0..FILES / TASKS {
                let name = format!("file-{task}-{number:06}");
                let new = file(catalog.me());
                catalog.create(dir, name.as_bytes(), new).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    report("create, 16 at once", FILES, started.elapsed());
}

async fn reads(redis: &TestRedis, inos: &[Ino]) {
    let other = open(redis, 2).await;
    let dir = other.lookup(ROOT, b"in-order").await.unwrap().unwrap().ino;
    let started = Instant::now();
    let listed = other.list(dir).await.unwrap().entries.len();
    report("list, cold: entries with inodes", listed, started.elapsed());
    let started = Instant::now();
    for _ in 0..10 {
        assert_eq!(other.list(dir).await.unwrap().entries.len(), listed);
    }
    report(
        "list, warm: entries with inodes",
        listed * 10,
        started.elapsed(),
    );
    let started = Instant::now();
    for ino in inos {
        other.node(*ino).await.unwrap().unwrap();
    }
    report("node, warm", inos.len(), started.elapsed());
    let started = Instant::now();
    for ino in inos {
        other.path_of(*ino).await.unwrap().unwrap();
    }
    report("path_of, warm", inos.len(), started.elapsed());
    let started = Instant::now();
    for ino in inos {
        other.located(*ino).await.unwrap().unwrap();
    }
    report("located", inos.len(), started.elapsed());
    let cold = open(redis, 3).await;
    let started = Instant::now();
    for number in 0..FILES {
        let name = format!("file-{number:06}");
        cold.lookup(dir, name.as_bytes()).await.unwrap().unwrap();
    }
    report("lookup, cold", FILES, started.elapsed());
}

async fn changes(catalog: &Catalog, inos: &[Ino]) {
    let started = Instant::now();
    for ino in inos {
        let publication = Publication {
            size: 16384,
            mtime: 1,
            ctime: 1,
            blake3: Some([7; 32]),
        };
        catalog.publish(*ino, 0, publication).await.unwrap();
    }
    report("publish", inos.len(), started.elapsed());
    let dir = catalog
        .lookup(ROOT, b"in-order")
        .await
        .unwrap()
        .unwrap()
        .ino;
    let started = Instant::now();
    for number in 0..FILES {
        let name = format!("file-{number:06}");
        catalog.unlink(dir, name.as_bytes()).await.unwrap();
    }
    report("unlink", FILES, started.elapsed());
    let found = (0..FILES).map(|number| {
        let path = TreePath::new(format!("found/d{}/f{number}", number / 100).as_bytes());
        (path.unwrap(), file(catalog.me()))
    });
    let found: Vec<_> = found.collect();
    let started = Instant::now();
    catalog.adopt(found).await.unwrap();
    report("adopt", FILES, started.elapsed());
}

async fn memory(catalog: &Catalog) {
    let info = catalog.redis().run(redis::cmd("INFO").arg("memory")).await;
    let text: String = redis::from_redis_value(info.unwrap()).unwrap();
    let used = text
        .lines()
        .find(|line| line.starts_with("used_memory_human"));
    println!("redis: {}", used.unwrap_or("?"));
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let redis = TestRedis::start().await;
        let catalog = open(&redis, 1).await;
        let started = Instant::now();
        for _ in 0..FILES {
            catalog.redis().run(&redis::cmd("PING")).await.unwrap();
        }
        report("bare PING, one after the other", FILES, started.elapsed());
        let inos = create_in_order(&catalog).await;
        create_at_once(&catalog).await;
        memory(&catalog).await;
        reads(&redis, &inos).await;
        changes(&catalog, &inos).await;
    });
}
