//! Redis loses the tree: it is rebuilt from the data directories, whole.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, TestNode, away, pattern};
use ks_fs::path::TreePath;
use ks_fs::redis_client::Redis;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// The longest that a rebuilding of these small trees may take.
const REBUILT_WITHIN: Duration = Duration::from_secs(40);

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// The users' extended attributes.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names.truncate(length);
    let names = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8(name.to_vec()).unwrap());
    let own = names.filter(|name| name.starts_with("user.") && !name.starts_with("user.ks."));
    own.map(|name| {
        let mut value = vec![0u8; 65536];
        let length = rustix::fs::lgetxattr(path, &*name, &mut value[..]).unwrap();
        value.truncate(length);
        (name, value)
    })
    .collect()
}

/// All that a program can see of one name.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Seen {
    number: u64,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    modified: (i64, i64),
    device: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    target: Option<PathBuf>,
    content: Option<blake3::Hash>,
}

fn see(path: &Path) -> std::io::Result<Seen> {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    Ok(Seen {
        number: meta.ino(),
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        links: meta.nlink(),
        size: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        device: meta.rdev(),
        xattrs: match kind.is_symlink() {
            true => BTreeMap::new(),
            false => xattrs(path),
        },
        target: kind.is_symlink().then(|| fs::read_link(path)).transpose()?,
        content: match kind.is_file() {
            true => Some(blake3::hash(&fs::read(path)?)),
            false => None,
        },
    })
}

/// The whole tree, by path.
fn tree(root: &Path) -> std::io::Result<BTreeMap<PathBuf, Seen>> {
    let mut seen = BTreeMap::new();
    let mut waiting = vec![root.to_path_buf()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                waiting.push(path.clone());
            }
            seen.insert(path.strip_prefix(root).unwrap().to_owned(), see(&path)?);
        }
    }
    seen.insert(PathBuf::new(), see(root)?);
    Ok(seen)
}

/// Waits until the node shows this tree; what it says meanwhile is right or an error, never another tree.
fn await_tree(node: &TestNode, expected: &BTreeMap<PathBuf, Seen>) {
    let deadline = Instant::now() + REBUILT_WITHIN;
    loop {
        let found = tree(&node.mountpoint);
        match &found {
            Ok(found) if found == expected => return,
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            Ok(found) => {
                let lacks = expected.keys().filter(|path| !found.contains_key(*path));
                let lacks: Vec<_> = lacks.collect();
                let more: Vec<_> = found
                    .keys()
                    .filter(|p| !expected.contains_key(*p))
                    .collect();
                let other = found.iter().filter_map(|(path, seen)| {
                    let wanted = expected.get(path)?;
                    (wanted != seen).then(|| format!("{path:?}: {seen:?}, expected {wanted:?}"))
                });
                let other: Vec<_> = other.collect();
                panic!(
                    "{}: lacks {lacks:?}, has {more:?}, other {other:#?}",
                    node.info.name
                );
            }
            Err(error) => panic!("{}: {error}", node.info.name),
        }
    }
}

/// A tree with something of everything, made by both nodes.
fn make_tree(a: &TestNode, b: &TestNode) {
    fs::create_dir_all(a.path("d/deep/deeper")).unwrap();
    fs::create_dir(b.path("empty")).unwrap();
    fs::set_permissions(b.path("empty"), fs::Permissions::from_mode(0o1770)).unwrap();
    fs::write(a.path("d/large"), pattern(1, 3_000_000)).unwrap();
    for version in 0..3u8 {
        fs::write(
            b.path("d/small"),
            vec![version; 1000 + usize::from(version)],
        )
        .unwrap();
    }
    fs::write(a.path("d/deep/nothing"), "").unwrap();
    fs::write(b.path("d/deep/\u{fc}\n"), "odd name").unwrap();
    // A copy on the other node, kept in line.
    assert_eq!(fs::read(b.path("d/large")).unwrap().len(), 3_000_000);
    fs::set_permissions(b.path("d/large"), fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(a.path("d/large"), Some(1234), Some(77)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    let file = File::options()
        .write(true)
        .open(a.path("d/deep/nothing"))
        .unwrap();
    file.set_modified(then).unwrap();
    drop(file);
    set_xattr(&a.path("d/large"), "user.colour", b"blue");
    set_xattr(&b.path("d/large"), "user.long", &[7; 5000]);
    set_xattr(&b.path("empty"), "user.of", b"a directory");
    fs::hard_link(a.path("d/small"), a.path("d/deep/second")).unwrap();
    fs::hard_link(b.path("d/small"), b.path("third")).unwrap();
    fs::hard_link(a.path("d/large"), a.path("gone link")).unwrap();
    fs::remove_file(b.path("gone link")).unwrap();
    symlink("d/small", b.path("link")).unwrap();
    let fifo = c_path(&a.path("fifo"));
    // SAFETY: a valid path that ends with NUL.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o640) }, 0);
    fs::write(a.path("removed"), "by the other").unwrap();
    fs::read(b.path("removed")).unwrap();
    fs::remove_file(b.path("removed")).unwrap();
    fs::create_dir(a.path("old name")).unwrap();
    fs::write(a.path("old name/inside"), "moved with its directory").unwrap();
    fs::rename(b.path("old name"), b.path("d/new name")).unwrap();
    fs::write(b.path("d/new name/replaced"), "before").unwrap();
    fs::write(a.path("over"), "after").unwrap();
    fs::rename(a.path("over"), a.path("d/new name/replaced")).unwrap();
    fs::set_permissions(&a.mountpoint, fs::Permissions::from_mode(0o711)).unwrap();
    let mut appended = OpenOptions::new()
        .append(true)
        .open(b.path("d/large"))
        .unwrap();
    appended.write_all(b"the end").unwrap();
}

async fn flush(cluster: &Cluster) {
    let on_push = std::sync::Arc::new(|_| ());
    let redis = ks_fs::redis_client::Redis::connect(cluster.redis.target(), false, on_push).await;
    redis.unwrap().run(&redis::cmd("FLUSHALL")).await.unwrap();
}

/// Both trees once the nodes agree.
fn agreed(a: &TestNode, b: &TestNode) -> BTreeMap<PathBuf, Seen> {
    a.await_closed();
    b.await_closed();
    let expected = tree(&a.mountpoint).unwrap();
    await_tree(b, &expected);
    expected
}

async fn holders(node: &TestNode, path: &str) -> BTreeSet<String> {
    let path = TreePath::new(path.as_bytes()).unwrap();
    let found = node.fs.where_is(&path).await.unwrap();
    let whole = found.copies.iter().filter(|copy| copy.current);
    whole.map(|copy| copy.node.to_string()).collect()
}

async fn await_holders(node: &TestNode, path: &str, expected: &BTreeSet<String>) {
    let deadline = Instant::now() + REBUILT_WITHIN;
    loop {
        let found = holders(node, path).await;
        if expected.is_subset(&found) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{path}: {found:?}, expected {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs what touches the mounts, with all nodes.
async fn with_nodes<T: Send + 'static>(
    cluster: &mut Cluster,
    work: impl FnOnce(&[TestNode]) -> T + Send + 'static,
) -> T {
    let nodes = std::mem::take(&mut cluster.nodes);
    let (nodes, result) = away(move || {
        let result = work(&nodes);
        (nodes, result)
    })
    .await;
    cluster.nodes = nodes;
    result
}

async fn end(mut cluster: Cluster) {
    let nodes = std::mem::take(&mut cluster.nodes);
    away(move || drop(nodes)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_filled_again_while_the_nodes_run() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::of(2, Options::default()).await;
    let expected = with_nodes(&mut cluster, |nodes| {
        make_tree(&nodes[0], &nodes[1]);
        agreed(&nodes[0], &nodes[1])
    })
    .await;
    let before = holders(&cluster.nodes[0], "d/large").await;
    assert!(!before.is_empty());
    let mut open = File::open(cluster.nodes[0].path("d/new name/inside")).unwrap();
    for _ in 0..2 {
        flush(&cluster).await;
        let wanted = expected.clone();
        with_nodes(&mut cluster, move |nodes| {
            for node in nodes {
                await_tree(node, &wanted);
            }
        })
        .await;
        await_holders(&cluster.nodes[0], "d/large", &before).await;
        let both = ["node0", "node1"].map(str::to_owned);
        await_holders(&cluster.nodes[1], "d/small", &BTreeSet::from(both)).await;
    }
    let known: BTreeSet<u64> = expected.values().map(|seen| seen.number).collect();
    with_nodes(&mut cluster, move |nodes| {
        // What was open still is, and it is a tree like any other: it can be changed, and its new numbers are new.
        let mut text = String::new();
        std::io::Read::read_to_string(&mut open, &mut text).unwrap();
        assert_eq!(text, "moved with its directory");
        drop(open);
        let name = nodes[1].path("fresh");
        fs::write(&name, "fresh").unwrap();
        assert!(!known.contains(&fs::metadata(&name).unwrap().ino()));
        assert_eq!(fs::read(nodes[0].path("fresh")).unwrap(), b"fresh");
        fs::write(nodes[0].path("d/small"), "again").unwrap();
        assert_eq!(fs::read(nodes[1].path("third")).unwrap(), b"again");
    })
    .await;
    end(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_start_on_an_empty_redis_one_after_the_other() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::of(2, Options::default()).await;
    let expected = with_nodes(&mut cluster, |nodes| {
        make_tree(&nodes[0], &nodes[1]);
        agreed(&nodes[0], &nodes[1])
    })
    .await;
    let before = holders(&cluster.nodes[0], "d/large").await;
    let second = cluster.end(1).await;
    let first = cluster.end(0).await;
    flush(&cluster).await;
    cluster.start_again(second, Options::default()).await;
    // It comes when the tree is whole without it.
    cluster.start_again(first, Options::default()).await;
    with_nodes(&mut cluster, move |nodes| {
        for node in nodes {
            await_tree(node, &expected);
        }
    })
    .await;
    await_holders(&cluster.nodes[0], "d/large", &before).await;
    end(cluster).await;
}

/// Names of one file that came and went on a node which comes when the tree is whole without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_late_brings_which_of_several_names_are_left() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::of(2, Options::default()).await;
    let left = |node: &TestNode| {
        let names = fs::read_dir(node.path("")).unwrap();
        let read = |name: String| fs::read_to_string(node.path(&name)).map(|text| (name, text));
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(read).collect::<Result<BTreeMap<_, _>, _>>().ok()
    };
    let expected: BTreeMap<String, String> = [("hard", "one"), ("second", "two"), ("own", "three")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into();
    let wanted = expected.clone();
    with_nodes(&mut cluster, move |nodes| {
        let (a, b) = (&nodes[0], &nodes[1]);
        for (name, text) in [("first", "one"), ("old", "two"), ("own", "three")] {
            fs::write(a.path(name), text).unwrap();
        }
        fs::hard_link(a.path("old"), a.path("second")).unwrap();
        fs::hard_link(a.path("own"), a.path("other")).unwrap();
        fs::hard_link(b.path("first"), b.path("hard")).unwrap();
        for name in ["first", "old", "other"] {
            fs::remove_file(b.path(name)).unwrap();
        }
        for node in [a, b] {
            cluster::eventually("what is left", || left(node).as_ref() == Some(&wanted));
        }
        cluster::eventually("the file has its new name", || a.plain("hard").exists());
    })
    .await;
    let second = cluster.end(1).await;
    let first = cluster.end(0).await;
    flush(&cluster).await;
    cluster.start_again(first, Options::default()).await;
    cluster.start_again(second, Options::default()).await;
    with_nodes(&mut cluster, move |nodes| {
        for node in nodes {
            cluster::eventually("what is left", || left(node).as_ref() == Some(&expected));
        }
    })
    .await;
    end(cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_while_redis_was_lost_comes_into_line() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::of(2, Options::default()).await;
    with_nodes(&mut cluster, |nodes| {
        let (a, b) = (&nodes[0], &nodes[1]);
        for name in ["stays", "goes", "moves", "written on both", "only b"] {
            fs::write(b.path(name), format!("{name}, by b")).unwrap();
        }
        for name in ["stays", "goes", "moves", "written on both"] {
            fs::read(a.path(name)).unwrap();
        }
        fs::write(a.path("of a"), "first").unwrap();
        fs::read(b.path("of a")).unwrap();
        cluster::eventually("a has copies", || a.plain("written on both").exists());
        agreed(a, b);
    })
    .await;
    let b = cluster.end(1).await;
    with_nodes(&mut cluster, |nodes| {
        let a = &nodes[0];
        fs::remove_file(a.path("goes")).unwrap();
        fs::create_dir(a.path("elsewhere")).unwrap();
        fs::rename(a.path("moves"), a.path("elsewhere/moved")).unwrap();
        fs::write(a.path("of a"), "second").unwrap();
    })
    .await;
    // Behind the back of b, which is not there, and by a, which takes over.
    fs::write(
        b.datadir.join("written on both"),
        "b's own, never published",
    )
    .unwrap();
    fs::write(b.datadir.join("new on b"), "found").unwrap();
    with_nodes(&mut cluster, |nodes| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = fs::write(nodes[0].path("written on both"), "a's") {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(200));
        }
    })
    .await;
    flush(&cluster).await;
    with_nodes(&mut cluster, |nodes| {
        let deadline = Instant::now() + REBUILT_WITHIN;
        while fs::read(nodes[0].path("of a")).ok().as_deref() != Some(b"second") {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(!nodes[0].path("goes").exists());
    })
    .await;
    cluster.start_again(b, Options::default()).await;
    with_nodes(&mut cluster, |nodes| {
        for node in nodes {
            let text = |name: &str| fs::read_to_string(node.path(name));
            cluster::eventually("the trees are the same", || {
                node.path("only b").exists() && node.path("new on b").exists()
            });
            assert_eq!(text("stays").unwrap(), "stays, by b");
            assert_eq!(text("only b").unwrap(), "only b, by b");
            assert_eq!(text("new on b").unwrap(), "found");
            assert_eq!(text("elsewhere/moved").unwrap(), "moves, by b");
            assert_eq!(text("of a").unwrap(), "second");
            assert_eq!(text("written on both").unwrap(), "a's");
            let conflict = text("written on both.conflict-node1").unwrap();
            assert_eq!(conflict, "b's own, never published");
            assert!(!node.path("goes").exists() && !node.path("moves").exists());
        }
        let b = &nodes[1];
        assert!(!b.plain("goes").exists() && !b.plain("moves").exists());
    })
    .await;
    end(cluster).await;
}

/// All that stands in Redis, as it can be put back.
async fn snapshot(redis: &Redis) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut command = redis::cmd("KEYS");
    command.arg("*");
    let keys: Vec<Vec<u8>> = redis::from_redis_value(redis.run(&command).await.unwrap()).unwrap();
    let mut all = Vec::new();
    for key in keys {
        let mut command = redis::cmd("DUMP");
        command.arg(&key);
        let value = redis.run(&command).await.unwrap();
        all.push((key, redis::from_redis_value(value).unwrap()));
    }
    all
}

/// Puts it back in one step: no node hears of it, the connections stay.
async fn put_back(redis: &Redis, snapshot: &[(Vec<u8>, Vec<u8>)]) {
    let mut command = redis::cmd("KEYS");
    command.arg("*");
    let keys: Vec<Vec<u8>> = redis::from_redis_value(redis.run(&command).await.unwrap()).unwrap();
    let mut pipeline = redis::pipe();
    pipeline.atomic();
    for key in keys {
        pipeline.cmd("DEL").arg(key);
    }
    for (key, value) in snapshot {
        pipeline.cmd("RESTORE").arg(key).arg(0).arg(value);
    }
    redis.pipe(&pipeline).await.unwrap();
}

/// What an older Redis lacks is not new: a file that is moved behind the back of such a one keeps what it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_behind_the_back_of_an_older_redis_waits_for_the_tree() {
    if !Cluster::can_mount() {
        return;
    }
    let mut cluster = Cluster::one().await;
    let redis = cluster.nodes[0].fs.catalog().redis().clone();
    let write = |name: &'static str| {
        move |nodes: &[TestNode]| {
            fs::write(nodes[0].path(name), name).unwrap();
            nodes[0].await_closed();
            fs::metadata(nodes[0].path(name)).unwrap().ino()
        }
    };
    with_nodes(&mut cluster, write("kept")).await;
    let earlier = snapshot(&redis).await;
    let number = with_nodes(&mut cluster, write("made")).await;
    // What is heard of the node's own doing is dealt with.
    tokio::time::sleep(Duration::from_secs(2)).await;
    put_back(&redis, &earlier).await;
    with_nodes(&mut cluster, move |nodes| {
        let node = &nodes[0];
        fs::rename(node.plain("made"), node.plain("moved")).unwrap();
        let deadline = Instant::now() + REBUILT_WITHIN;
        let names = || {
            let names = fs::read_dir(&node.mountpoint).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name());
            names.collect::<BTreeSet<_>>()
        };
        let expected = BTreeSet::from(["kept".into(), "moved".into()]);
        while fs::metadata(node.path("moved")).map(|meta| meta.ino()).ok() != Some(number)
            || names() != expected
        {
            assert!(Instant::now() < deadline, "{:?}", names());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(fs::read(node.path("moved")).unwrap(), b"made");
    })
    .await;
    drop(redis);
    end(cluster).await;
}
