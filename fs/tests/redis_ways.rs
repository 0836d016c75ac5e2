//! The ways to Redis beside the unix socket: through a peer's QUIC connection, by URL, through Sentinel.
use ks_fs::catalog::{Catalog, EventId};
use ks_fs::record::*;
use ks_fs::redis_client::{Redis, RedisError, RedisTarget};
use ks_fs::testing::TestRedis;
use ks_transport::endpoint::{Endpoint, StreamKind};
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::PeerPool;
use ks_transport::tunnel::{Target, TunnelServer};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

fn directory() -> Inode {
    Inode {
        kind: Kind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 2,
        size: 0,
        atime: 0,
        mtime: 0,
        ctime: 0,
        parent: 0,
        name: vec![],
        target: vec![],
        xattrs: Default::default(),
        version: 0,
        epoch: 0,
        home: NodeId::NONE,
        blake3: None,
        md5: None,
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a joined node does: its catalog works through the first node, pushes included, and comes back after a cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_carries_redis() {
    let redis = TestRedis::start().await;
    let key = ClusterKey::generate();
    let listen = "127.0.0.1:0".parse().unwrap();
    let first = Endpoint::bind(listen, &Identity::node(&key, "first").unwrap()).unwrap();
    let server = TunnelServer {
        target: Target::Unix(redis.server().socket()),
    };
    first.serve(vec![(StreamKind::TUNNEL, Arc::new(server))]);
    let joining = Endpoint::outgoing(&Identity::node(&key, "second").unwrap()).unwrap();
    let pool = PeerPool::new(joining.clone());
    let peer = pool.peer(&first.loopback_addr().to_string());
    let through = RedisTarget::Through {
        peer: peer.clone(),
        password: Some(redis.server().password()),
        db: 0,
    };
    let changes: Arc<Mutex<Vec<Option<Ino>>>> = Arc::default();
    let sink = changes.clone();
    let on_change = Arc::new(move |ino| sink.lock().unwrap().push(ino));
    let joined = Catalog::open(through, NodeId(2), on_change).await.unwrap();
    let local = Catalog::open(redis.target(), NodeId(1), Arc::new(|_| {}));
    let local = local.await.unwrap();

    joined.create(ROOT, b"theirs", directory()).await.unwrap();
    assert_eq!(local.list(ROOT).await.unwrap().entries.len(), 1);
    assert_eq!(joined.list(ROOT).await.unwrap().entries.len(), 1);
    local.create(ROOT, b"ours", directory()).await.unwrap();
    until("the push", async || {
        joined.list(ROOT).await.unwrap().entries.len() == 2
    })
    .await;
    let events = joined.events(EventId::default(), 10).await.unwrap();
    assert_eq!(events.unwrap().len(), 2);

    peer.disconnect();
    until("the loss to be told", async || {
        changes.lock().unwrap().contains(&None)
    })
    .await;
    joined.create(ROOT, b"again", directory()).await.unwrap();
    assert_eq!(joined.list(ROOT).await.unwrap().entries.len(), 3);
    joining.close().await;
    first.close().await;
}

/// A child that ends with the test.
struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(arguments: &[&str]) -> Running {
    let child = Command::new("redis-server")
        .args(arguments)
        .stdout(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

async fn connect(url: &str) -> Result<Redis, RedisError> {
    Redis::connect(RedisTarget::Url(url.into()), true, Arc::new(|_| {})).await
}

#[tokio::test]
async fn urls_and_sentinels_lead_to_redis() {
    let directory = tempfile::tempdir().unwrap();
    let (port, sentinel_port) = (free_port(), free_port());
    let here = directory.path().to_str().unwrap();
    let port_text = port.to_string();
    let _redis = run(&[
        "--port",
        &port_text,
        "--save",
        "",
        "--dir",
        here,
        "--bind",
        "127.0.0.1",
    ]);
    let seeds = format!("tcp://127.0.0.1:{port}?db=9");
    until("redis", async || connect(&seeds).await.is_ok()).await;
    let redis = connect(&seeds).await.unwrap();
    let set = redis::cmd("SET").arg("where").arg("nine").to_owned();
    redis.run(&set).await.unwrap();

    let configuration = directory.path().join("sentinel.conf");
    let text = format!(
        "port {sentinel_port}\nbind 127.0.0.1\ndir {here}\nsentinel monitor main 127.0.0.1 {port} 1\n"
    );
    std::fs::write(&configuration, text).unwrap();
    let _sentinel = run(&[configuration.to_str().unwrap(), "--sentinel"]);
    let url = format!("redis+sentinel://127.0.0.1:{sentinel_port}/main/9");
    until("the sentinel", async || connect(&url).await.is_ok()).await;
    let redis = connect(&url).await.unwrap();
    let get = redis::cmd("GET").arg("where").to_owned();
    let found: String = redis::from_redis_value(redis.run(&get).await.unwrap()).unwrap();
    assert_eq!(found, "nine");

    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let error = connect(&nobody).await.err().unwrap().to_string();
    assert!(error.starts_with("redis does not answer"), "{error}");
    assert!(error.contains("127.0.0.1"), "{error}");
}
