//! The file system without a kernel: how opens are served, what is published when, what peers may do.
#[path = "support/cluster.rs"]
mod cluster;
use cluster::{Cluster, Options, pattern};
use ks_fs::{
    catalog::AttributeChange,
    error::FsError,
    filesystem::{Caller, FileSystem, Opened},
    path::TreePath,
    record::{Ino, Kind, ROOT},
};
use std::{sync::Arc, time::Duration};

const READ: i32 = libc::O_RDONLY;
const WRITE: i32 = libc::O_WRONLY;
const BOTH: i32 = libc::O_RDWR;

async fn nodes(count: usize) -> Cluster {
    let options = Options {
        passthrough: true,
        mounted: false,
    };
    Cluster::of(count, options).await
}

fn root() -> Caller {
    Caller::default()
}

/// Makes a file with this content; its number.
async fn make(fs: &Arc<FileSystem>, name: &[u8], data: &[u8]) -> Ino {
    let (node, opened) = fs.create(ROOT, name, 0o644, WRITE, root()).await.unwrap();
    let handle = opened.handle();
    fs.write(handle, 0, data.to_vec().into()).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle).await;
    node.ino
}

async fn read_all(fs: &Arc<FileSystem>, ino: Ino) -> Vec<u8> {
    let handle = fs.open(ino, READ, root()).await.unwrap().handle();
    let size = fs.attributes(ino).await.unwrap().inode.size as usize;
    let data = fs.read(handle, 0, size + 1).await.unwrap();
    fs.release(handle).await;
    data.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_published_at_flush_once() {
    let cluster = nodes(1).await;
    let fs = &cluster.nodes[0].fs;
    let ino = make(fs, b"f", b"hello").await;
    let node = fs.lookup(ROOT, b"f").await.unwrap();
    assert_eq!((node.ino, node.inode.size), (ino, 5));
    assert_eq!(node.inode.blake3, Some(*blake3::hash(b"hello").as_bytes()));
    let version = node.inode.version;
    let handle = fs.open(ino, BOTH, root()).await.unwrap().handle();
    fs.flush(handle).await.unwrap();
    fs.fsync(handle, false).await.unwrap();
    fs.release(handle).await;
    let after = fs.attributes(ino).await.unwrap();
    assert_eq!(after.inode.version, version, "nothing was written");
    let handle = fs.open(ino, BOTH, root()).await.unwrap().handle();
    fs.write(handle, 5, "!".into()).await.unwrap();
    assert_eq!(
        fs.attributes(ino).await.unwrap().inode.size,
        6,
        "live attributes"
    );
    fs.flush(handle).await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle).await;
    assert_eq!(fs.attributes(ino).await.unwrap().inode.version, version + 1);
    assert_eq!(read_all(fs, ino).await, b"hello!");
    assert_eq!(fs.counters().open_handles, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_of_an_inode_is_followed_by_later_opens() {
    let cluster = nodes(1).await;
    let fs = &cluster.nodes[0].fs;
    let ino = make(fs, b"f", b"hello").await;
    let first = fs.open(ino, READ, root()).await.unwrap();
    let second = fs.open(ino, WRITE, root()).await.unwrap();
    assert!(matches!(first, Opened::Passthrough { .. }), "{first:?}");
    assert!(matches!(second, Opened::Passthrough { .. }), "{second:?}");
    fs.release(first.handle()).await;
    fs.release(second.handle()).await;
    let first = fs.open(ino, READ, root()).await.unwrap();
    let first = fs.without_passthrough(first.handle()).unwrap();
    let second = fs.open(ino, BOTH, root()).await.unwrap();
    assert!(matches!(first, Opened::Cached { .. }), "{first:?}");
    assert!(matches!(second, Opened::Cached { .. }), "{second:?}");
    fs.write(second.handle(), 0, "J".into()).await.unwrap();
    assert_eq!(fs.read(first.handle(), 0, 9).await.unwrap(), "Jello");
    fs.release(first.handle()).await;
    fs.release(second.handle()).await;
    let again = fs.open(ino, READ, root()).await.unwrap();
    assert!(matches!(again, Opened::Passthrough { .. }), "{again:?}");
    fs.release(again.handle()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_elsewhere_is_stale() {
    let cluster = nodes(2).await;
    let (a, b) = (&cluster.nodes[0].fs, &cluster.nodes[1].fs);
    let old = make(a, b"f", b"old").await;
    make(a, b"g", b"new").await;
    assert_eq!(b.lookup(ROOT, b"f").await.unwrap().ino, old);
    a.rename(ROOT, b"g", ROOT, b"f", 0).await.unwrap();
    let opened = b.open(old, READ, root()).await;
    assert_eq!(opened.unwrap_err().to_errno(), libc::ESTALE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_handle_writes_at_the_home_and_ends_with_its_node() {
    let cluster = nodes(2).await;
    let (a, b) = (&cluster.nodes[0].fs, &cluster.nodes[1].fs);
    let ino = make(a, b"f", &pattern(1, 100_000)).await;
    let opened = b.open(ino, BOTH, root()).await.unwrap();
    assert!(matches!(opened, Opened::Direct { .. }), "{opened:?}");
    let handle = opened.handle();
    b.write(handle, 10, "forwarded".into()).await.unwrap();
    assert_eq!(b.read(handle, 10, 9).await.unwrap(), "forwarded");
    b.set_attributes(ino, Some(handle), Some(50_000), AttributeChange::default())
        .await
        .unwrap();
    assert_eq!(b.attributes(ino).await.unwrap().inode.size, 50_000);
    b.flush(handle).await.unwrap();
    let published = a.attributes(ino).await.unwrap().inode;
    assert_eq!(published.size, 50_000);
    // Written and never closed: the stream's end publishes.
    b.write(handle, 0, "last".into()).await.unwrap();
    b.release(handle).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while a.attributes(ino).await.unwrap().inode.version == published.version {
        assert!(tokio::time::Instant::now() < deadline, "not published");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(&read_all(b, ino).await[..4], b"last");
    let truncating = b.open(ino, WRITE | libc::O_TRUNC, root()).await.unwrap();
    b.flush(truncating.handle()).await.unwrap();
    b.release(truncating.handle()).await;
    assert_eq!(read_all(a, ino).await, b"");
    b.set_attributes(ino, None, Some(7), AttributeChange::default())
        .await
        .unwrap();
    assert_eq!(read_all(a, ino).await, [0; 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_files_are_brought_and_told_of() {
    let cluster = nodes(2).await;
    let (a, b) = (&cluster.nodes[0].fs, &cluster.nodes[1].fs);
    let dir = a
        .make(ROOT, b"d", Kind::Directory, 0o755, 0, b"", root())
        .await
        .unwrap();
    let data = pattern(2, 2_500_000);
    let (_, opened) = a.create(dir.ino, b"f", 0o644, WRITE, root()).await.unwrap();
    a.write(opened.handle(), 0, data.clone().into())
        .await
        .unwrap();
    a.flush(opened.handle()).await.unwrap();
    a.release(opened.handle()).await;
    let path = TreePath::new(b"d/f").unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    let progress = |have, size| seen.lock().unwrap().push((have, size));
    b.fetch_whole(&path, progress).await.unwrap();
    assert_eq!(seen.lock().unwrap().last(), Some(&(2_500_000, 2_500_000)));
    assert_eq!(std::fs::read(cluster.nodes[1].plain("d/f")).unwrap(), data);
    let told = a.where_is(&path).await.unwrap();
    assert_eq!((told.kind.as_str(), told.size), ("file", 2_500_000));
    let holders: Vec<_> = told
        .copies
        .iter()
        .map(|c| (c.node.as_str(), c.home))
        .collect();
    assert_eq!(holders, [("node0", true), ("node1", false)]);
    let directory = TreePath::new(b"d").unwrap();
    let refused = b.fetch_whole(&directory, |_, _| {}).await;
    assert!(matches!(refused, Err(FsError::IsADirectory)));
    let missing = b.where_is(&TreePath::new(b"none").unwrap()).await;
    assert!(matches!(missing, Err(FsError::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_for_writing_at_the_end_is_published() {
    let cluster = nodes(1).await;
    let fs = &cluster.nodes[0].fs;
    let (node, opened) = fs.create(ROOT, b"f", 0o644, WRITE, root()).await.unwrap();
    fs.write(opened.handle(), 0, "unclosed".into())
        .await
        .unwrap();
    fs.stop().await;
    let record = fs.catalog().located(node.ino).await.unwrap().unwrap();
    assert_eq!(record.node.inode.size, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_process_groups_are_told_what_they_used() {
    let cluster = nodes(2).await;
    let (a, b) = (&cluster.nodes[0].fs, &cluster.nodes[1].fs);
    let ino = make(a, b"f", &pattern(3, 200_000)).await;
    let group = rustix::process::getpgrp().as_raw_nonzero().get();
    b.usage().watch(group);
    let me = Caller {
        pid: std::process::id(),
        ..root()
    };
    let handle = b.open(ino, READ, me).await.unwrap().handle();
    b.read(handle, 0, 200_000).await.unwrap();
    b.release(handle).await;
    let used = b.usage().take(group);
    assert_eq!(used.len(), 1);
    assert_eq!(
        (used[0].ino, used[0].size, used[0].local_bytes),
        (ino, 200_000, 0)
    );
    assert!(used[0].fetched_bytes >= 200_000, "{used:?}");
    b.usage().unwatch(group);
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_that_are_not_open_are_refused() {
    let cluster = nodes(1).await;
    let fs = &cluster.nodes[0].fs;
    assert_eq!(fs.read(99, 0, 1).await.unwrap_err().to_errno(), libc::EBADF);
    let ino = make(fs, b"f", b"x").await;
    let handle = fs.open(ino, READ, root()).await.unwrap().handle();
    let written = fs.write(handle, 0, "y".into()).await;
    assert_eq!(written.unwrap_err().to_errno(), libc::EBADF);
    fs.release(handle).await;
    assert!(fs.flush(handle).await.is_err());
    let directory = fs.open(ROOT, READ, root()).await;
    assert!(matches!(directory, Err(FsError::IsADirectory)));
}
