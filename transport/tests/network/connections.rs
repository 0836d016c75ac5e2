//! Who gets in, who does not, and what happens when a peer misbehaves or dies.

use crate::nodes::*;
use ks_transport::endpoint::{ConnectError, Endpoint, StreamKind, code};
use ks_transport::identity::{Identity, Role};
use ks_transport::key::{ClientKey, ClusterKey};
use ks_transport::pool::{PeerError, PeerPool, PeerState};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::time::timeout;

const FOR_ALL: StreamKind = StreamKind(100);
const FOR_NODES: StreamKind = StreamKind(101);

fn echo_node(key: &ClusterKey) -> Endpoint {
    let for_all = Echo {
        clients: true,
        ..Default::default()
    };
    let handlers: Vec<(StreamKind, Arc<dyn ks_transport::endpoint::Handler>)> = vec![
        (FOR_ALL, Arc::new(for_all)),
        (FOR_NODES, Arc::new(Echo::default())),
    ];
    node(key, "server", handlers)
}

async fn ask(
    peer: &ks_transport::pool::Peer,
    kind: StreamKind,
    text: &str,
) -> Result<String, PeerError> {
    let question = text.to_owned();
    let asked = peer.request(kind, &question, 1000, Duration::from_secs(10));
    timeout(DEADLINE, asked).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_clients_know_each_other() {
    let key = ClusterKey::generate();
    let server = echo_node(&key);
    let (_pool, peer) = peer_of(&server, &Identity::node(&key, "other").unwrap());
    assert_eq!(peer.state(), PeerState::Unknown);
    assert_eq!(ask(&peer, FOR_NODES, "hello").await.unwrap(), "hello");
    assert_eq!(peer.state(), PeerState::Ready);
    let identity = peer.identity().await.unwrap();
    assert_eq!(
        (identity.role, identity.name.as_str()),
        (Role::Node, "server")
    );
    assert_eq!(identity.address, server.local_addr());

    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("client.key");
    ClientKey::create(&key, "alice")
        .unwrap()
        .save(&path)
        .unwrap();
    let client = Identity::from_client_key(&ClientKey::load(&path).unwrap()).unwrap();
    let (_pool, peer) = peer_of(&server, &client);
    assert_eq!(ask(&peer, FOR_ALL, "hello").await.unwrap(), "hello");
    let error = ask(&peer, FOR_NODES, "hello").await.unwrap_err();
    assert!(error.to_string().contains("is for nodes"), "{error}");
    let error = ask(&peer, StreamKind(99), "hello").await.unwrap_err();
    assert!(error.to_string().contains("does not serve"), "{error}");
    assert_eq!(
        ask(&peer, FOR_ALL, "still here").await.unwrap(),
        "still here"
    );
    server.close().await;
}

/// What was logged, by all threads of this test program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    async fn wait_for(&self, needle: &str) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if text.contains(needle) {
                return text;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "{needle:?} is not in the log:\n{text}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() -> Log {
    static LOG: std::sync::OnceLock<Log> = std::sync::OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .init();
        log
    })
    .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_refused_and_logged() {
    let log = log();
    let server = echo_node(&ClusterKey::generate());
    for make in [Identity::node, Identity::client] {
        let stranger = make(&ClusterKey::generate(), "stranger").unwrap();
        let (pool, peer) = peer_of(&server, &stranger);
        let error = ask(&peer, FOR_ALL, "let me in").await.unwrap_err();
        let refused = matches!(&error, PeerError::Connect(ConnectError::Refused { .. }));
        assert!(refused, "{error}");
        assert!(
            error.to_string().contains("not the same cluster key"),
            "{error}"
        );
        assert_eq!(peer.state(), PeerState::Refusing);
        drop(pool);
    }
    let text = log.wait_for("refused a connection").await;
    assert!(text.contains("127.0.0.1"), "{text}");
    assert!(text.contains("not the same cluster key"), "{text}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_is_refused_and_logged() {
    let log = log();
    // Another loopback address, so that the log's limit of a line a peer and minute is its own.
    let key = ClusterKey::generate();
    let server = echo_node(&key);
    let stranger = quinn::Endpoint::client("127.0.0.77:0".parse().unwrap()).unwrap();
    let address = server.local_addr();
    let connecting = stranger
        .connect_with(without_certificate(), address, "node.ks")
        .unwrap();
    let ended = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let error = timeout(DEADLINE, ended).await.unwrap();
    let closed = matches!(&error, quinn::ConnectionError::ConnectionClosed(_));
    assert!(closed, "closed in the handshake: {error}");
    let text = log.wait_for("127.0.0.77").await;
    let line = text
        .lines()
        .find(|line| line.contains("127.0.0.77"))
        .unwrap();
    assert!(
        line.contains("WARN") && line.contains("no certificate"),
        "{line}"
    );
    server.close().await;
}

/// TLS of somebody who checks nothing and shows nothing.
fn without_certificate() -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"ks/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    quinn::ClientConfig::new(Arc::new(crypto))
}

#[derive(Debug)]
struct Careless(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_closes_that_connection_only() {
    let key = ClusterKey::generate();
    let server = echo_node(&key);
    let (_pool, good) = peer_of(&server, &Identity::node(&key, "good").unwrap());
    let (_pool, bad) = peer_of(&server, &Identity::node(&key, "bad").unwrap());
    let too_long = 5_000u32.to_le_bytes().to_vec();
    let nonsense = vec![3, 0, 0, 0, 200, 200, 200];
    let cut_off = vec![100, 0, 0, 0, 1];
    for (bytes, expected) in [
        (too_long, code::TOO_LONG),
        (nonsense, code::MALFORMED),
        (cut_off, code::CUT_OFF),
    ] {
        assert_eq!(ask(&good, FOR_ALL, "before").await.unwrap(), "before");
        let mut stream = bad.open(FOR_ALL).await.unwrap();
        stream.send.write_all(&bytes).await.unwrap();
        stream.send.finish().unwrap();
        let ended = timeout(DEADLINE, stream.recv.read_to_end(10))
            .await
            .unwrap();
        let Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(
            quinn::ConnectionError::ApplicationClosed(close),
        ))) = ended
        else {
            panic!("{ended:?}");
        };
        assert_eq!(close.error_code, expected);
        assert_eq!(ask(&good, FOR_ALL, "after").await.unwrap(), "after");
        // It broke off at once, so the first back-off passes before it may come again.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(ask(&bad, FOR_ALL, "again").await.unwrap(), "again");
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_gone_and_fails_fast_afterwards() {
    let key = ClusterKey::generate();
    let pool = PeerPool::new(Endpoint::outgoing(&Identity::node(&key, "one").unwrap()).unwrap());
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = pool.peer(&silent.local_addr().unwrap().to_string());
    let start = Instant::now();
    let error = ask(&peer, FOR_ALL, "anyone?").await.unwrap_err();
    assert!(
        matches!(error, PeerError::Connect(ConnectError::Gone(_))),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(peer.state(), PeerState::Gone);
    let again = Instant::now();
    assert!(ask(&peer, FOR_ALL, "anyone?").await.is_err());
    assert!(
        again.elapsed() < Duration::from_millis(50),
        "{:?}",
        again.elapsed()
    );
    let unknown = pool.peer("no-such-host.invalid:1");
    let error = ask(&unknown, FOR_ALL, "anyone?").await.unwrap_err();
    assert!(
        matches!(error, PeerError::Connect(ConnectError::Resolve(_))),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_attempt_for_many_waiters() {
    let key = ClusterKey::generate();
    let server = echo_node(&key);
    let (_pool, peer) = peer_of(&server, &Identity::node(&key, "many").unwrap());
    let asks: Vec<_> = (0..50)
        .map(|n| {
            let peer = peer.clone();
            tokio::spawn(async move { ask(&peer, FOR_ALL, &n.to_string()).await.unwrap() })
        })
        .collect();
    for (n, asked) in asks.into_iter().enumerate() {
        assert_eq!(asked.await.unwrap(), n.to_string());
    }
    assert_eq!(server.connections(), 1);
    server.close().await;
}

/// A node in a runtime of its own, which can be killed with no goodbye.
struct Killable {
    runtime: Option<tokio::runtime::Runtime>,
    endpoint: Option<Endpoint>,
}

impl Killable {
    fn start(key: &ClusterKey, listen: std::net::SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inside = runtime.enter();
        let identity = Identity::node(key, "mortal").unwrap();
        let endpoint = Endpoint::bind(listen, &identity).unwrap();
        let echo = Echo {
            clients: true,
            ..Default::default()
        };
        endpoint.serve(vec![(FOR_ALL, Arc::new(echo) as _)]);
        drop(inside);
        Killable {
            runtime: Some(runtime),
            endpoint: Some(endpoint),
        }
    }

    fn kill(&mut self) {
        let runtime = self.runtime.take().unwrap();
        runtime.shutdown_background();
        self.endpoint = None;
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_peer_is_noticed() {
    let key = ClusterKey::generate();
    let mut mortal = Killable::start(&key, "127.0.0.1:0".parse().unwrap());
    let address = mortal.endpoint.as_ref().unwrap().local_addr();
    let pool = PeerPool::new(Endpoint::outgoing(&Identity::node(&key, "one").unwrap()).unwrap());
    let peer = pool.peer(&address.to_string());
    assert_eq!(ask(&peer, FOR_ALL, "alive").await.unwrap(), "alive");
    let waiting = {
        let peer = peer.clone();
        tokio::spawn(async move {
            let question = "hang".to_owned();
            peer.request::<_, String>(FOR_ALL, &question, 100, DEADLINE)
                .await
        })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    mortal.kill();
    let start = Instant::now();
    let error = timeout(DEADLINE, waiting)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(&error, PeerError::Lost(peer) if *peer == address.to_string()),
        "{error}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(peer.state(), PeerState::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_is_used_again_at_once() {
    let key = ClusterKey::generate();
    let mut mortal = Killable::start(&key, "127.0.0.1:0".parse().unwrap());
    let address = mortal.endpoint.as_ref().unwrap().local_addr();
    let pool = PeerPool::new(Endpoint::outgoing(&Identity::node(&key, "one").unwrap()).unwrap());
    let peer = pool.peer(&address.to_string());
    assert_eq!(ask(&peer, FOR_ALL, "alive").await.unwrap(), "alive");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    mortal.kill();
    let start = Instant::now();
    let _reborn = loop {
        // The killed runtime lets go of the socket in its own time.
        let free = std::net::UdpSocket::bind(address).is_ok();
        if free {
            break Killable::start(&key, address);
        }
        assert!(start.elapsed() < DEADLINE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let start = Instant::now();
    while ask(&peer, FOR_ALL, "back?").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_during_an_attempt_is_found_soon() {
    let key = ClusterKey::generate();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let pool = PeerPool::new(Endpoint::outgoing(&Identity::node(&key, "one").unwrap()).unwrap());
    let peer = pool.peer(&address.to_string());
    let asking = {
        let peer = peer.clone();
        tokio::spawn(async move { ask(&peer, FOR_ALL, "at last").await })
    };
    // What QUIC repeats by itself was sent by now, and comes again a second later only.
    tokio::time::sleep(Duration::from_millis(1050)).await;
    drop(silent);
    let _late = Killable::start(&key, address);
    let start = Instant::now();
    assert_eq!(asking.await.unwrap().unwrap(), "at last");
    let took = start.elapsed();
    assert!(took < Duration::from_millis(800), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_connections_are_made_again() {
    let key = ClusterKey::generate();
    let server = echo_node(&key);
    let (_pool, peer) = peer_of(&server, &Identity::node(&key, "one").unwrap());
    for lane in 0..3 {
        assert!(peer.open_lane(FOR_ALL, lane).await.is_ok());
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    peer.disconnect();
    assert_eq!(peer.state(), PeerState::Unknown);
    assert_eq!(ask(&peer, FOR_ALL, "again").await.unwrap(), "again");
    server.close().await;
}
