//! The whole applier, on a real catalog.
use super::*;
use crate::catalog::Committed;
use crate::testing::TestRedis;
use std::sync::Mutex as StdMutex;
use std::time::Instant;

const LIMIT: Duration = Duration::from_secs(30);

struct Live {
    directory: tempfile::TempDir,
    store: Arc<Store>,
    catalog: Catalog,
    applier: Arc<Applier>,
    heard: Arc<StdMutex<Vec<(NodeId, Event)>>>,
}

async fn applier(
    store: &Arc<Store>,
    catalog: &Catalog,
) -> (Arc<Applier>, Arc<StdMutex<Vec<(NodeId, Event)>>>) {
    let heard: Arc<StdMutex<Vec<(NodeId, Event)>>> = Arc::default();
    let on_event: OnEvent = {
        let heard = heard.clone();
        Arc::new(move |node, event| heard.lock().unwrap().push((node, event.clone())))
    };
    let started = Applier::start(store.clone(), catalog.clone(), on_event);
    (started.await.unwrap(), heard)
}

async fn live(redis: &TestRedis) -> Live {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path(), 0).unwrap());
    let catalog = Catalog::open(redis.target(), store.node_id(), Arc::new(|_| ()));
    let catalog = catalog.await.unwrap();
    let (applier, heard) = applier(&store, &catalog).await;
    Live {
        directory,
        store,
        catalog,
        applier,
        heard,
    }
}

impl Live {
    async fn own<T>(&self, committed: &Committed<T>) {
        if let Some(event) = &committed.change {
            let own = self.applier.own(committed.event, committed.previous, event);
            own.await.unwrap();
        }
    }

    async fn make_dir(&self, name: &[u8]) -> Ino {
        let made = self
            .catalog
            .create(ROOT, name, record(Kind::Directory))
            .await
            .unwrap();
        self.own(&made).await;
        made.value.ino
    }

    /// As the file system creates a file.
    async fn make_file(&self, parent: Ino, name: &[u8]) -> Ino {
        let mut inode = record(Kind::File);
        inode.version = 0;
        inode.home = self.store.node_id();
        let made = self.catalog.create(parent, name, inode).await.unwrap();
        self.own(&made).await;
        let (ino, inode) = (made.value.ino, made.value.inode.clone());
        let create = |path: &TreePath| self.store.create(path, ino, &inode);
        let file = self
            .applier
            .at_new_path(made.event, (parent, name), ino, create)
            .await
            .unwrap();
        file.write_all_at(&ino.to_le_bytes(), 0).unwrap();
        settle(&self.store, &file);
        ino
    }

    async fn stands(&self, name: &str, ino: Ino) -> bool {
        let content = std::fs::read(self.directory.path().join(name));
        content.is_ok_and(|bytes| bytes == ino.to_le_bytes())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_each_other() {
    let redis = TestRedis::start().await;
    let (one, two) = (live(&redis).await, live(&redis).await);
    let directory = one.make_dir(b"d").await;
    let ours = one.make_file(directory, b"ours").await;
    two.applier.catch_up().await.unwrap();
    let theirs = two.make_file(directory, b"theirs").await;
    let renamed = two.catalog.rename(ROOT, b"d", ROOT, b"e", 0).await.unwrap();
    two.own(&renamed).await;
    assert!(two.stands("e/theirs", theirs).await);
    one.applier.catch_up().await.unwrap();
    assert!(one.stands("e/ours", ours).await);
    assert!(!one.directory.path().join("d").exists());
    let gone = one.catalog.unlink(directory, b"theirs").await.unwrap();
    one.own(&gone).await;
    two.applier.catch_up().await.unwrap();
    assert!(!two.directory.path().join("e/theirs").exists());
    assert_eq!(one.applier.position(), two.applier.position());
    let heard = |live: &Live| live.heard.lock().unwrap().clone();
    assert_eq!(heard(&one), heard(&two));
    assert_eq!(heard(&one).len(), 5);
    assert_eq!(heard(&one)[3].0, two.store.node_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_stopped_catches_up_before_it_starts() {
    let redis = TestRedis::start().await;
    let (one, mut two) = (live(&redis).await, live(&redis).await);
    let file = two.make_file(ROOT, b"file").await;
    let other = two.make_file(ROOT, b"other").await;
    // Killed: what it had in memory is gone.
    let ended = std::mem::replace(&mut two.applier, one.applier.clone());
    drop(ended);
    one.applier.catch_up().await.unwrap();
    for (from, to) in [(&b"file"[..], &b"a"[..]), (b"a", b"b"), (b"other", b"file")] {
        let renamed = one.catalog.rename(ROOT, from, ROOT, to, 0).await.unwrap();
        one.own(&renamed).await;
    }
    let (again, heard) = applier(&two.store, &two.catalog).await;
    assert!(two.stands("b", file).await);
    assert!(two.stands("file", other).await);
    assert_eq!(heard.lock().unwrap().len(), 3);
    assert_eq!(again.position(), one.applier.position());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_stream_compares_the_whole_directory() {
    let redis = TestRedis::start().await;
    let (one, mut two) = (live(&redis).await, live(&redis).await);
    let file = two.make_file(ROOT, b"file").await;
    two.make_file(ROOT, b"gone").await;
    let ended = std::mem::replace(&mut two.applier, one.applier.clone());
    drop(ended);
    let renamed = one
        .catalog
        .rename(ROOT, b"file", ROOT, b"new", 0)
        .await
        .unwrap();
    one.own(&renamed).await;
    let gone = one.catalog.unlink(ROOT, b"gone").await.unwrap();
    one.own(&gone).await;
    one.make_dir(b"d").await;
    let mut trim = redis::cmd("XTRIM");
    trim.arg("ks:events").arg("MAXLEN").arg(1);
    one.catalog.redis().run(&trim).await.unwrap();
    std::fs::write(two.directory.path().join("stranger"), "s").unwrap();
    let _again = applier(&two.store, &two.catalog).await;
    assert!(two.stands("new", file).await);
    assert!(!two.directory.path().join("gone").exists());
    assert!(two.directory.path().join("stranger").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_on_two_nodes_end_the_same() {
    let redis = TestRedis::start().await;
    let (one, two) = (Arc::new(live(&redis).await), Arc::new(live(&redis).await));
    let directory = one.make_dir(b"d").await;
    let mut working = tokio::task::JoinSet::new();
    for (live, side) in [(&one, "one"), (&two, "two")] {
        for task in 0..4 {
            let live = live.clone();
            working.spawn(async move {
                for round in 0..20 {
                    let name = format!("{side}-{task}-{round}");
                    live.make_file(directory, name.as_bytes()).await;
                    let moved = format!("{name}-moved");
                    let (name, moved) = (name.as_bytes(), moved.as_bytes());
                    let renamed = live.catalog.rename(directory, name, directory, moved, 0);
                    live.own(&renamed.await.unwrap()).await;
                }
            });
        }
    }
    // Meanwhile the directory they are in goes from name to name.
    let shaking = one.clone();
    working.spawn(async move {
        for round in 0..10 {
            let (from, to) = if round % 2 == 0 {
                (b"d", b"e")
            } else {
                (b"e", b"d")
            };
            let renamed = shaking
                .catalog
                .rename(ROOT, from, ROOT, to, 0)
                .await
                .unwrap();
            shaking.own(&renamed).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let deadline = Instant::now() + LIMIT;
    while let Some(worked) = working.join_next().await {
        worked.unwrap();
        assert!(Instant::now() < deadline);
    }
    for live in [&one, &two] {
        live.applier.catch_up().await.unwrap();
    }
    assert_eq!(one.applier.position(), two.applier.position());
    let listing = one.catalog.list(directory).await.unwrap();
    assert_eq!(listing.entries.len(), 160);
    for (name, node) in &listing.entries {
        let name = format!("d/{}", String::from_utf8_lossy(name));
        let home = if name.starts_with("d/one") {
            &one
        } else {
            &two
        };
        assert!(home.stands(&name, node.ino).await, "{name}");
    }
    for live in [&one, &two] {
        let files = std::fs::read_dir(live.directory.path().join("d"))
            .unwrap()
            .count();
        assert_eq!(files, 80, "nothing is left elsewhere");
        assert!(!live.directory.path().join("e").exists());
    }
}

/// Whenever the turn of one who makes a file comes, another event has been applied since it was asked for.
#[tokio::test]
async fn a_file_is_made_however_many_events_are_applied_meanwhile() {
    let redis = TestRedis::start().await;
    let one = live(&redis).await;
    let directory = one.make_dir(b"d").await;
    let file = one.make_file(directory, b"file").await;
    let others = [(); 3].map(|()| {
        let shared = one.applier.shared.clone();
        tokio::spawn(async move {
            loop {
                let mut order = shared.order.lock().await;
                // The others, and who makes a file, queue up behind us.
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
                let EventId(milliseconds, sequence) = shared.position();
                let next = EventId(milliseconds, sequence + 1);
                shared.advance(&mut order, next, None).unwrap();
            }
        })
    });
    tokio::task::yield_now().await;
    let before = one.applier.position();
    for _ in 0..20 {
        let made = one.applier.at_path(file, |path| Ok(path.clone()));
        assert_eq!(made.await.unwrap(), path("d/file"));
    }
    assert!(one.applier.position() > before);
    others.iter().for_each(|other| other.abort());
}

/// A file of two names, both elsewhere than the tree has them; and two copies of one file, of which the older comes by first.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_misplaced_twice_loses_nothing() {
    let redis = TestRedis::start().await;
    let (one, mut two) = (live(&redis).await, live(&redis).await);
    let linked = two.make_file(ROOT, b"linked").await;
    let link = two.catalog.link(linked, ROOT, b"other").await.unwrap();
    two.own(&link).await;
    let copied = two.make_file(ROOT, b"copied").await;
    let at = |name: &str| two.directory.path().join(name);
    std::fs::rename(at("linked"), at("x")).unwrap();
    std::fs::hard_link(at("x"), at("y")).unwrap();
    // The same inode, an older version: a left-over under another name.
    let stale = std::fs::File::create_new(at("a-copy")).unwrap();
    stale.write_all_at(b"an older version", 0).unwrap();
    let (file, mut meta) = two
        .store
        .open_file(
            &path("copied"),
            copied,
            OpenLocal {
                write: true,
                truncate: false,
            },
        )
        .unwrap();
    meta.version = 3;
    two.store.set_meta(&file, &meta).unwrap();
    let (stale_size, modified) = (16, Store::modified(&stale).unwrap());
    let old = LocalMeta {
        version: 1,
        size: stale_size,
        mtime: modified,
        ..meta.clone()
    };
    two.store.set_meta(&stale, &old).unwrap();
    std::fs::rename(at("copied"), at("z-copy")).unwrap();
    drop(std::mem::replace(&mut two.applier, one.applier.clone()));
    let (again, _) = applier(&two.store, &two.catalog).await;
    again.compare().await.unwrap();
    assert!(two.stands("linked", linked).await || two.stands("other", linked).await);
    let names: Vec<_> = std::fs::read_dir(two.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    let is_kept = |path: &std::path::PathBuf| std::fs::read(path).unwrap() == copied.to_le_bytes();
    assert!(names.iter().any(is_kept), "the newer copy: {names:?}");
}
