//! The tunnel that carries Redis.

use crate::nodes::*;
use ks_transport::endpoint::{Endpoint, StreamKind};
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::tunnel::{self, Target, TunnelServer};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn tunnel_node(key: &ClusterKey, target: Target) -> Endpoint {
    node(
        key,
        "host1",
        vec![(StreamKind::TUNNEL, Arc::new(TunnelServer { target }))],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn carries_both_ways_and_ends() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("socket");
    let unix = tokio::net::UnixListener::bind(&path).unwrap();
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp_target = Target::Tcp(tcp.local_addr().unwrap().to_string());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Ok((end, _)) = unix.accept() => { tokio::spawn(serve(end)); }
                Ok((end, _)) = tcp.accept() => { tokio::spawn(serve(end)); }
            }
        }
    });
    let key = ClusterKey::generate();
    for target in [Target::Unix(path.clone()), tcp_target] {
        let server = tunnel_node(&key, target);
        let (_pool, peer) = peer_of(&server, &Identity::node(&key, "host2").unwrap());
        let talk = async {
            let mut tunnel = tunnel::open(&peer).await.unwrap();
            let mut answer = [0; 4];
            for _ in 0..100 {
                tunnel.write_all(b"ping").await.unwrap();
                tunnel.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"ping");
            }
            let large = sample(3 << 20);
            let (mut read, mut write) = tokio::io::split(tunnel);
            let sent = large.clone();
            let sending = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut echoed = Vec::new();
            // The end comes only because our own end was passed on.
            read.read_to_end(&mut echoed).await.unwrap();
            sending.await.unwrap();
            assert!(echoed == large);
        };
        timeout(DEADLINE, talk).await.unwrap();
        server.close().await;
    }
}

async fn serve(end: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(end);
    tokio::io::copy(&mut read, &mut write).await.unwrap();
    write.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_target_and_no_right_end_the_stream() {
    let key = ClusterKey::generate();
    let server = tunnel_node(&key, Target::Unix("/nonexistent/redis.sock".into()));
    for identity in [
        Identity::node(&key, "host2").unwrap(),
        Identity::client(&key, "alice").unwrap(),
    ] {
        let (_pool, peer) = peer_of(&server, &identity);
        let mut tunnel = tunnel::open(&peer).await.unwrap();
        let mut answer = Vec::new();
        let read = timeout(DEADLINE, tunnel.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(read.is_err());
    }
    server.close().await;
}
