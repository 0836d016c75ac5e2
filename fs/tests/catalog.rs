//! The catalog against a real private Redis.
use ks_fs::catalog::nodes::RegisterError;
use ks_fs::catalog::{Adopted, AttributeChange, Catalog, CatalogError, EventId, Publication};
use ks_fs::path::TreePath;
use ks_fs::record::*;
use ks_fs::testing::TestRedis;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

type Changes = Arc<Mutex<Vec<Option<Ino>>>>;

async fn open(redis: &TestRedis, node: u64) -> (Catalog, Changes) {
    let changes: Changes = Arc::default();
    let sink = changes.clone();
    let on_change = Arc::new(move |ino| sink.lock().unwrap().push(ino));
    let catalog = Catalog::open(redis.target(), NodeId(node), on_change).await;
    (catalog.unwrap(), changes)
}

fn inode(kind: Kind, home: NodeId) -> Inode {
    Inode {
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        rdev: 0,
        nlink: 0,
        size: 0,
        atime: 10,
        mtime: 10,
        ctime: 10,
        parent: 0,
        name: vec![],
        target: vec![],
        xattrs: Default::default(),
        version: 0,
        epoch: 1,
        home,
        blake3: None,
        md5: None,
    }
}

fn file(catalog: &Catalog) -> Inode {
    inode(Kind::File, catalog.me())
}

fn directory() -> Inode {
    inode(Kind::Directory, NodeId::NONE)
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn errno<T: std::fmt::Debug>(answer: Result<T, CatalogError>) -> i32 {
    match answer {
        Err(CatalogError::Posix(errno)) => errno,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_created_is_found_by_all() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    assert_eq!(a.cluster(), b.cluster());
    let dir = a.create(ROOT, b"d", directory()).await.unwrap().value;
    let made = a.create(dir.ino, b"f", file(&a)).await.unwrap();
    assert_eq!(made.value.inode.version, 1);
    assert!(matches!(made.change, Some(Event::Linked { .. })));

    let seen = b.lookup(dir.ino, b"f").await.unwrap().unwrap();
    assert_eq!(seen.ino, made.value.ino);
    assert_eq!(seen.inode, made.value.inode);
    let path = TreePath::new(b"d/f").unwrap();
    assert_eq!(b.resolve(&path).await.unwrap().unwrap().ino, seen.ino);
    assert_eq!(b.path_of(seen.ino).await.unwrap(), Some(path.clone()));
    let located = b.locate_path(&path).await.unwrap().unwrap();
    let whole = Holding {
        version: 1,
        bytes: 0,
        is_put: false,
    };
    assert_eq!(located.holders, vec![(NodeId(1), whole)]);
    let root = b.node(ROOT).await.unwrap().unwrap();
    assert_eq!(root.nlink, 3);
    assert!(root.dir_time >= made.value.inode.mtime);

    assert_eq!(errno(b.create(dir.ino, b"f", file(&b)).await), libc::EEXIST);
    assert_eq!(errno(b.create(99, b"f", file(&b)).await), libc::ENOENT);
    assert_eq!(errno(b.create(ROOT, b".ks", file(&b)).await), libc::EPERM);
    assert_eq!(errno(b.rmdir(ROOT, b"d").await), libc::ENOTEMPTY);
    assert!(b.lookup(ROOT, b"none").await.unwrap().is_none());
    assert!(b.node(12345).await.unwrap().is_none());
    assert_eq!(errno(b.list(12345).await), libc::ENOENT);
}

#[tokio::test]
async fn changes_reach_the_other_node() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, b_changes) = open(&redis, 2).await;
    let made = a.create(ROOT, b"f", file(&a)).await.unwrap().value;
    assert_eq!(b.list(ROOT).await.unwrap().entries.len(), 1);
    b_changes.lock().unwrap().clear();

    let mode = AttributeChange {
        mode: Some(0o600),
        ..AttributeChange::default()
    };
    a.set_attributes(made.ino, mode).await.unwrap();
    until("the new mode", async || {
        b.node(made.ino).await.unwrap().unwrap().inode.mode == 0o600
    })
    .await;
    until("to be told", async || {
        b_changes.lock().unwrap().contains(&Some(made.ino))
    })
    .await;
    a.create(ROOT, b"g", file(&a)).await.unwrap();
    until("the new name", async || {
        b.list(ROOT).await.unwrap().entries.len() == 2
    })
    .await;
    assert!(b_changes.lock().unwrap().contains(&Some(ROOT)));
}

/// How many commands Redis has carried out.
async fn commands(catalog: &Catalog) -> u64 {
    let answer = catalog
        .redis()
        .run(redis::cmd("INFO").arg("commandstats"))
        .await
        .unwrap();
    let text: String = redis::from_redis_value(answer).unwrap();
    let calls = text
        .lines()
        .filter(|line| line.starts_with("cmdstat_evalsha"));
    calls
        .filter_map(|line| {
            line.split("calls=")
                .nth(1)?
                .split(',')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[tokio::test]
async fn round_trips_are_as_few_as_promised() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let dir = a.create(ROOT, b"d", directory()).await.unwrap().value;
    let made = a.create(dir.ino, b"f", file(&a)).await.unwrap().value;
    a.list(dir.ino).await.unwrap();
    a.list(ROOT).await.unwrap();
    a.lookup(dir.ino, b"f").await.unwrap();
    let path = TreePath::new(b"d/f").unwrap();

    let before = commands(&a).await;
    for _ in 0..3 {
        a.node(made.ino).await.unwrap().unwrap();
        a.lookup(dir.ino, b"f").await.unwrap().unwrap();
        a.list(dir.ino).await.unwrap();
        a.list(ROOT).await.unwrap();
        a.path_of(made.ino).await.unwrap().unwrap();
        a.resolve(&path).await.unwrap().unwrap();
    }
    assert_eq!(commands(&a).await, before, "all of it is remembered");

    a.create(dir.ino, b"g", file(&a)).await.unwrap();
    assert_eq!(commands(&a).await, before + 1, "create");
    let publication = Publication {
        size: 3,
        mtime: 1,
        ctime: 1,
        blake3: None,
    };
    a.publish(made.ino, 1, publication).await.unwrap();
    assert_eq!(commands(&a).await, before + 2, "publish");
    a.located(made.ino).await.unwrap().unwrap();
    assert_eq!(commands(&a).await, before + 3, "located");
    a.unlink(dir.ino, b"f").await.unwrap();
    assert_eq!(commands(&a).await, before + 4, "unlink");
}

#[tokio::test]
async fn a_name_that_is_not_there_is_asked_for_unless_this_node_alone_fills_the_directory() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    let dir = a.create(ROOT, b"d", directory()).await.unwrap().value.ino;
    a.create(dir, b"first", file(&a)).await.unwrap();
    for name in [b"x", b"y"] {
        let before = commands(&a).await;
        assert!(a.lookup(dir, name).await.unwrap().is_none());
        assert_eq!(commands(&a).await, before, "just made here");
        a.create(dir, name, file(&a)).await.unwrap();
        assert!(a.lookup(dir, name).await.unwrap().is_some());
        assert_eq!(commands(&a).await, before + 1);
    }
    b.create(dir, b"theirs", file(&b)).await.unwrap();
    until("the other node's name", async || {
        a.lookup(dir, b"theirs").await.unwrap().is_some()
    })
    .await;
    a.create(dir, b"z", file(&a)).await.unwrap();
    let before = commands(&a).await;
    assert!(a.lookup(dir, b"none").await.unwrap().is_none());
    assert_eq!(commands(&a).await, before + 1, "not alone");

    let other = a.create(ROOT, b"e", directory()).await.unwrap().value.ino;
    a.create(other, b"first", file(&a)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = commands(&a).await;
    assert!(a.lookup(other, b"none").await.unwrap().is_none());
    assert_eq!(commands(&a).await, before + 1, "a while ago");
}

#[tokio::test]
async fn creations_in_one_directory_do_not_conflict() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200 {
        let catalog = if number % 2 == 0 {
            a.clone()
        } else {
            b.clone()
        };
        tasks.spawn(async move {
            let new = match number % 10 {
                0 => directory(),
                _ => file(&catalog),
            };
            let name = format!("n{number}");
            catalog.create(ROOT, name.as_bytes(), new).await.unwrap()
        });
    }
    let made = tasks.join_all().await;
    let inos: BTreeSet<Ino> = made.iter().map(|made| made.value.ino).collect();
    assert_eq!(inos.len(), 200);
    until("both to see all", async || {
        let (x, y) = (a.list(ROOT).await.unwrap(), b.list(ROOT).await.unwrap());
        x.entries.len() == 200 && y.entries.len() == 200
    })
    .await;
    assert_eq!(a.node(ROOT).await.unwrap().unwrap().nlink, 2 + 20);
    assert_eq!(b.node(ROOT).await.unwrap().unwrap().nlink, 2 + 20);
    // One after the other in the stream, each with the one before it.
    let mut ids: Vec<(EventId, EventId)> = made
        .iter()
        .map(|made| (made.event, made.previous))
        .collect();
    ids.sort();
    assert!(ids.windows(2).all(|pair| pair[0].0 == pair[1].1));
}

#[tokio::test]
async fn one_name_is_given_once() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    for round in 0..20 {
        let name = format!("n{round}");
        let (x, y) = tokio::join!(
            a.create(ROOT, name.as_bytes(), file(&a)),
            b.create(ROOT, name.as_bytes(), file(&b))
        );
        assert_eq!(x.is_ok() as u8 + y.is_ok() as u8, 1);
    }
}

#[tokio::test]
async fn conflicting_changes_are_tried_again() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    let made = a.create(ROOT, b"f", file(&a)).await.unwrap().value;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40u32 {
        let catalog = if number % 2 == 0 {
            a.clone()
        } else {
            b.clone()
        };
        tasks.spawn(async move {
            let name = format!("user.{number}");
            catalog
                .set_xattr(made.ino, name.as_bytes(), Some(b"v"), 0)
                .await
                .unwrap()
        });
    }
    tasks.join_all().await;
    let now = a.located(made.ino).await.unwrap().unwrap();
    assert_eq!(now.node.inode.xattrs.len(), 40, "none was lost");
}

#[tokio::test]
async fn renames_that_would_make_a_circle_never_both_happen() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    for round in 0..20 {
        let (x, y) = (format!("x{round}"), format!("y{round}"));
        let (x, y) = (x.as_bytes(), y.as_bytes());
        let first = a.create(ROOT, x, directory()).await.unwrap().value.ino;
        let second = a.create(ROOT, y, directory()).await.unwrap().value.ino;
        // Both remember where the two are before either moves.
        for catalog in [&a, &b] {
            catalog.list(ROOT).await.unwrap();
        }
        let (one, other) = tokio::join!(
            a.rename(ROOT, x, second, b"in", 0),
            b.rename(ROOT, y, first, b"in", 0)
        );
        assert_eq!(one.is_ok() as u8 + other.is_ok() as u8, 1);
        for ino in [first, second] {
            until("its path", async || {
                matches!(a.path_of(ino).await, Ok(Some(_)))
            })
            .await;
        }
    }
}

#[tokio::test]
async fn publishing_is_fenced_by_home_and_epoch() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    let made = a.create(ROOT, b"f", file(&a)).await.unwrap().value;
    let publication = |size| Publication {
        size,
        mtime: 20,
        ctime: 21,
        blake3: None,
    };
    assert_eq!(
        errno(b.publish(made.ino, 1, publication(5)).await),
        libc::ESTALE
    );
    assert_eq!(
        errno(a.publish(made.ino, 0, publication(5)).await),
        libc::ESTALE
    );
    let published = a.publish(made.ino, 1, publication(5)).await.unwrap();
    assert_eq!(published.value.inode.version, 2);
    b.set_holding(
        made.ino,
        Some(Holding {
            version: 2,
            bytes: 3,
            is_put: false,
        }),
    )
    .await
    .unwrap();
    a.set_hash(made.ino, 1, [1; 32]).await.unwrap();
    let now = b.located(made.ino).await.unwrap().unwrap();
    assert_eq!(now.node.inode.blake3, None, "a hash of an old version");
    a.set_hash(made.ino, 2, [2; 32]).await.unwrap();
    let now = b.located(made.ino).await.unwrap().unwrap();
    assert_eq!(now.node.inode.blake3, Some([2; 32]));
    let mut held = now.holders.clone();
    held.sort_by_key(|(node, _)| *node);
    let (whole, part) = (
        Holding {
            version: 2,
            bytes: 5,
            is_put: false,
        },
        Holding {
            version: 2,
            bytes: 3,
            is_put: false,
        },
    );
    assert_eq!(held, vec![(NodeId(1), whole), (NodeId(2), part)]);

    assert_eq!(b.unlink(ROOT, b"f").await.unwrap().value, Some(made.ino));
    assert_eq!(
        errno(a.publish(made.ino, 1, publication(6)).await),
        libc::ESTALE
    );
    b.set_holding(made.ino, Some(whole)).await.unwrap();
    let left = a.redis().run(redis::cmd("KEYS").arg("ks:[hil]:*")).await;
    let left: Vec<String> = redis::from_redis_value(left.unwrap()).unwrap();
    assert_eq!(left, ["ks:i:1"], "nothing of it is left");
}

#[tokio::test]
async fn events_come_in_order_and_a_trimmed_stream_is_told() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    assert_eq!(a.last_event().await.unwrap(), EventId::default());
    let first = a.create(ROOT, b"f", file(&a)).await.unwrap();
    let second = b.rename(ROOT, b"f", ROOT, b"g", 0).await.unwrap();
    assert_eq!(second.previous, first.event);
    let read = a.events(EventId::default(), 10).await.unwrap().unwrap();
    let ids: Vec<EventId> = read.iter().map(|(id, _, _)| *id).collect();
    assert_eq!(ids, [first.event, second.event]);
    assert_eq!(read[1].1, NodeId(2));
    assert!(matches!(
        &read[1].2,
        Event::Renamed { from_path, to_path, .. } if from_path == b"f" && to_path == b"g"
    ));
    assert_eq!(a.last_event().await.unwrap(), second.event);

    // Waits for the next one.
    let waiting = tokio::spawn({
        let a = a.clone();
        async move { a.events(second.event, 10).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let third = b.unlink(ROOT, b"g").await.unwrap();
    let read = waiting.await.unwrap().unwrap().unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].0, third.event);

    let trim = redis::cmd("XTRIM")
        .arg("ks:events")
        .arg("MAXLEN")
        .arg(1)
        .to_owned();
    a.redis().run(&trim).await.unwrap();
    assert!(a.events(EventId::default(), 10).await.unwrap().is_err());
    assert!(a.events(first.event, 10).await.unwrap().is_err());
    b.create(ROOT, b"h", file(&b)).await.unwrap();
    let read = a.events(third.event, 10).await.unwrap().unwrap();
    assert_eq!(read.len(), 1, "the last one seen is still there");
}

#[tokio::test]
async fn a_killed_redis_costs_a_pause_and_nothing_acknowledged() {
    let redis = TestRedis::start().await;
    let (a, changes) = open(&redis, 1).await;
    let mut made = 0;
    let killer = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        redis.kill();
    };
    let creator = async {
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(600) {
            let name = format!("f{made}");
            // Lost answers are looked for: every create succeeds, exactly once.
            a.create(ROOT, name.as_bytes(), file(&a)).await.unwrap();
            made += 1;
        }
    };
    tokio::join!(killer, creator);
    assert!(changes.lock().unwrap().contains(&None));
    let listed = a.list(ROOT).await.unwrap();
    assert_eq!(listed.entries.len(), made);
    let events = a
        .events(EventId::default(), 100_000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(events.len(), made.min(10_000));
}

#[tokio::test]
async fn found_files_are_entered_and_taken_names_are_told() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    a.create(ROOT, b"plain", file(&a)).await.unwrap();
    let mut found: Vec<(TreePath, Inode)> = vec![];
    let path = |text: &str| TreePath::new(text.as_bytes()).unwrap();
    found.push((path("d"), directory()));
    for number in 0..1200 {
        found.push((path(&format!("d/e/f{number}")), file(&b)));
    }
    found.push((path("plain"), file(&b)));
    found.push((path("plain/below"), file(&b)));
    found.push((path("d/e/f7"), file(&b)));
    let adopted = b.adopt(found).await.unwrap();
    let new = |adopted: &Adopted| matches!(adopted, Adopted::New(_));
    assert_eq!(adopted.len(), 1204);
    assert!(adopted[..1201].iter().all(new));
    for occupied in &adopted[1201..] {
        assert!(!new(occupied));
    }
    let Adopted::Occupied(in_the_way) = &adopted[1202] else {
        panic!("{:?}", adopted[1202]);
    };
    assert_eq!(in_the_way.inode.name, b"plain");
    let e = a.resolve(&path("d/e")).await.unwrap().unwrap();
    assert_eq!(a.list(e.ino).await.unwrap().entries.len(), 1200);
    let d = a.resolve(&path("d")).await.unwrap().unwrap();
    assert_eq!((d.nlink, d.dir_time), (3, 10), "its time stays");
    let again = b.adopt(vec![(path("d"), directory())]).await.unwrap();
    assert!(!new(&again[0]));
}

#[tokio::test]
async fn a_cancelled_change_leaves_nothing_stale() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let made = a.create(ROOT, b"f", file(&a)).await.unwrap().value;
    for round in 0..200u32 {
        a.node(made.ino).await.unwrap();
        let change = AttributeChange {
            mode: Some(round),
            ..AttributeChange::default()
        };
        let set = a.set_attributes(made.ino, change);
        let _ = tokio::time::timeout(Duration::from_micros(u64::from(round)), set).await;
        let remembered = a.node(made.ino).await.unwrap().unwrap();
        let asked = a.located(made.ino).await.unwrap().unwrap().node;
        assert_eq!(remembered.inode.mode, asked.inode.mode, "round {round}");
    }
}

fn info(name: &str, address: &str, incarnation: u64) -> NodeInfo {
    NodeInfo {
        name: name.into(),
        address: address.into(),
        mountpoint: "/ks".into(),
        datadir: "/data".into(),
        incarnation,
        version: "0".into(),
        workers: 1,
        queues: vec![],
        read_only: false,
        carries_redis: false,
        started: 0,
        free_bytes: 0,
        total_bytes: 0,
    }
}

#[tokio::test]
async fn nodes_register_beat_and_leave() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    a.register(info("a", "h1:1", 1)).await.unwrap();
    b.register(info("b", "h2:1", 1)).await.unwrap();
    a.heartbeat(5, 10).await.unwrap();
    let nodes = b.nodes().await.unwrap();
    let seen: Vec<_> = nodes
        .iter()
        .map(|n| (n.info.name.as_str(), n.alive, n.info.free_bytes))
        .collect();
    assert_eq!(seen, [("a", true, 5), ("b", true, 0)]);
    let address = b.address_of(NodeId(1)).await.unwrap();
    assert_eq!(address.as_deref(), Some("h1:1"));
    b.deregister().await.unwrap();
    assert_eq!(b.address_of(NodeId(2)).await.unwrap(), None);
    assert_eq!(errno(b.heartbeat(0, 0).await), libc::ENOENT);
}

#[tokio::test]
async fn a_restart_of_redis_ends_no_node_and_brings_none_back() {
    let mut redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    let (b, _) = open(&redis, 2).await;
    a.register(info("a", "h1:1", 1)).await.unwrap();
    b.register(info("b", "h2:1", 1)).await.unwrap();
    b.deregister().await.unwrap();
    // As if its time had run out while Redis was away.
    let mut expire = redis::cmd("DEL");
    expire.arg("ks:alive:0000000000000001");
    assert_eq!(a.redis().run(&expire).await.unwrap(), redis::Value::Int(1));
    drop((a, b));
    redis.restart().await.unwrap();
    let (third, _) = open(&redis, 3).await;
    let nodes = third.nodes().await.unwrap();
    let seen: Vec<_> = nodes
        .iter()
        .map(|node| (node.info.name.as_str(), node.alive))
        .collect();
    assert_eq!(seen, [("a", true), ("b", false)]);
}

#[tokio::test]
async fn beats_whose_answers_are_lost_do_not_end_the_beating() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    a.register(info("a", "h1:1", 1)).await.unwrap();
    for round in 0..100u64 {
        let beat = a.heartbeat(round, 1000);
        let _ = tokio::time::timeout(Duration::from_micros(round * 10), beat).await;
    }
    a.heartbeat(500, 1000).await.unwrap();
    let nodes = a.nodes().await.unwrap();
    assert!(nodes[0].alive);
    assert_eq!(nodes[0].info.free_bytes, 500);
}

#[tokio::test]
async fn a_name_and_a_data_directory_are_one_live_nodes() {
    let redis = TestRedis::start().await;
    let (a, _) = open(&redis, 1).await;
    a.register(info("a", "h1:1", 1)).await.unwrap();
    let beating = tokio::spawn({
        let a = a.clone();
        async move {
            loop {
                a.heartbeat(1, 2).await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let (other, _) = open(&redis, 2).await;
    let error = other.register(info("a", "h2:1", 1)).await.unwrap_err();
    assert!(matches!(&error, RegisterError::NameTaken { .. }));
    assert!(error.to_string().contains("h1:1"), "{error}");
    let (copy, _) = open(&redis, 1).await;
    let error = copy.register(info("c", "h3:1", 9)).await.unwrap_err();
    assert!(matches!(&error, RegisterError::DatadirInUse { .. }));
    beating.abort();
    // Killed and started again at the same address: at once.
    let started = Instant::now();
    let (again, _) = open(&redis, 1).await;
    again.register(info("a", "h1:1", 2)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    // The old daemon, should it still run, learns that it has been replaced.
    assert_eq!(errno(a.heartbeat(0, 0).await), libc::ESTALE);
}

#[tokio::test]
async fn what_is_remembered_answers_while_redis_is_away() {
    let mut redis = Some(TestRedis::start().await);
    let server = redis.as_ref().unwrap();
    let (a, _) = open(server, 1).await;
    let (b, _) = open(server, 2).await;
    let dir = a.create(ROOT, b"d", directory()).await.unwrap().value.ino;
    let made = a.create(dir, b"f", file(&a)).await.unwrap().value.ino;
    let path = TreePath::new(b"d/f").unwrap();
    assert!(a.remembered_while_away(made).is_none(), "it is not away");
    // The root's own numbers are forgotten here.
    a.node(ROOT).await.unwrap();
    let theirs = b.create(ROOT, b"theirs", file(&b)).await.unwrap().value.ino;
    until("the telling", async || {
        a.lookup(ROOT, b"theirs").await.unwrap().is_some()
    })
    .await;
    drop(redis.take());
    until("the loss to be known", async || a.redis().is_away()).await;
    let began = Instant::now();
    assert_eq!(a.node(ROOT).await.unwrap().unwrap().ino, ROOT);
    assert_eq!(a.lookup(dir, b"f").await.unwrap().unwrap().ino, made);
    assert_eq!(a.list(dir).await.unwrap().entries.len(), 1);
    assert_eq!(a.path_of(made).await.unwrap(), Some(path));
    assert_eq!(a.remembered_while_away(made).unwrap().ino, made);
    assert_eq!(a.node(theirs).await.unwrap().unwrap().ino, theirs);
    assert!(began.elapsed() < Duration::from_millis(500), "at once");
    assert!(a.located(made).await.is_err(), "versions are asked for");
    let began = Instant::now();
    assert!(a.lookup(dir, b"unknown").await.is_err());
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "it is known by now"
    );
}

#[tokio::test]
async fn records_that_cannot_be_read_are_named_and_troubles_are_told() {
    use ks_fs::store::troubles::{Listed, Troubles};
    let redis = TestRedis::start().await;
    let (one, _) = open(&redis, 1).await;
    let (two, _) = open(&redis, 2).await;
    let parent = one.create(ROOT, b"d", directory()).await.unwrap();
    let mut damaged = 0;
    for number in 0..1500 {
        let name = format!("f{number}");
        let made = one.create(parent.value.ino, name.as_bytes(), file(&one));
        damaged = made.await.unwrap().value.ino;
    }
    let good = one.look_at_records().await.unwrap();
    assert!(good.damaged.is_empty() && !good.is_part, "{good:?}");
    assert!(good.records >= 3000, "inodes and entries: {}", good.records);
    let mut set = redis::cmd("SET");
    set.arg(format!("ks:i:{damaged}")).arg(&b"\xff\xff\xff"[..]);
    one.redis().run(&set).await.unwrap();
    let mut set = redis::cmd("HSET");
    set.arg(format!("ks:d:{ROOT}")).arg("odd").arg("nonsense");
    one.redis().run(&set).await.unwrap();
    let mut found = two.look_at_records().await.unwrap().damaged;
    found.sort();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("/d/f1499: ") && found[1].starts_with("/odd: "),
        "{found:?}"
    );

    let troubles = Troubles {
        damaged: Listed {
            count: 9,
            first: vec!["a/b".into()],
        },
        ..Troubles::default()
    };
    one.tell_troubles(&troubles).await.unwrap();
    assert_eq!(two.troubles().await.unwrap(), [(NodeId(1), troubles)]);
    one.tell_troubles(&Troubles::default()).await.unwrap();
    assert!(two.troubles().await.unwrap().is_empty());
}
