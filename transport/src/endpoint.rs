//! The QUIC endpoint: always mutual TLS 1.3, one certificate authority per cluster key.
//!
//! Purpose: one UDP socket that accepts connections of the cluster's members and makes them.
//! Takes part: `identity` (who we are), `pool` (which keeps the connections made here), the
//! handlers of the layers above.
//! Always holds: no stream is served before both certificates are verified; a client never
//! reaches a handler that is for nodes; every wait has a deadline and every count a bound.
//! Not for: reconnecting (`pool`), messages (`frame`).
mod accept;
mod batch;
pub mod code;
mod connect;
mod refusals;
mod route;
mod socket;
mod tuning;

use crate::{
    BoxFuture,
    frame::Stream,
    identity::{Identity, PeerIdentity, canonical, certificate::NameKey},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// How long `close` waits for its goodbye to leave.
const GOODBYE: Duration = Duration::from_millis(300);

/// What a bidirectional stream is for: its first byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKind(pub u8);

impl StreamKind {
    /// Verified block ranges (`blocks`).
    pub const BLOCKS: StreamKind = StreamKind(1);
    /// A byte tunnel to the Redis this node uses (`tunnel`).
    pub const TUNNEL: StreamKind = StreamKind(2);
    /// Messages of the file system (ks-fs).
    pub const FILES: StreamKind = StreamKind(16);
    /// Messages between executors (ks-executor).
    pub const CALLS: StreamKind = StreamKind(32);
    /// A client's session (ks-executor).
    pub const SESSION: StreamKind = StreamKind(33);
}

/// What answers accepted streams of one kind.
pub trait Handler: Send + Sync + 'static {
    /// Whether clients, too, may open such streams (nodes always may).
    fn open_to_clients(&self) -> bool {
        false
    }
    /// Serves one stream to its end.
    fn handle(&self, peer: Arc<PeerIdentity>, stream: Stream) -> BoxFuture<'static, ()>;
}

/// A bound UDP socket that accepts and makes connections.
#[derive(Clone)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    client: quinn::ClientConfig,
    names: NameKey,
    local: SocketAddr,
    server: Option<quinn::ServerConfig>,
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address cannot be had (in use, not ours).
    #[error("{address}: {source}; {}", bind_cure(source))]
    Bind {
        /// The address wanted.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The identity cannot be used.
    #[error("{0}")]
    Tls(String),
}

fn bind_cure(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "stop what uses that port, or choose another with --listen"
        }
        std::io::ErrorKind::AddrNotAvailable => "give --listen an address of this machine",
        _ => "choose another address or port with --listen",
    }
}

/// Why a connection could not be made or ended: keeps who and why.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("{0}: cannot be resolved")]
    Resolve(String),
    /// Nobody answers there.
    #[error("{0}: no answer")]
    Gone(String),
    /// It answered and does not want us (wrong key), or we do not trust it.
    #[error("{address}: refused: {reason}")]
    Refused {
        /// Where it is.
        address: String,
        /// What it, or our own check, said.
        reason: String,
    },
}

impl Endpoint {
    /// Binds and, once `serve` is called, accepts. A refused handshake is logged with the peer's address.
    ///
    /// `[::]` takes IPv4 as well, and where the machine has no IPv6 it is `0.0.0.0`. Must be
    /// called in a tokio runtime.
    pub fn bind(listen: SocketAddr, identity: &Identity) -> Result<Self, BindError> {
        Self::make(
            listen,
            identity,
            identity.role() == crate::identity::Role::Node,
        )
    }

    /// The address that means all addresses of this machine.
    pub fn all_addresses(port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
    }

    /// An endpoint that only connects.
    pub fn outgoing(identity: &Identity) -> Result<Self, BindError> {
        Self::make(Self::all_addresses(0), identity, false)
    }

    fn make(listen: SocketAddr, identity: &Identity, serves: bool) -> Result<Self, BindError> {
        let tls =
            |error: quinn::crypto::rustls::NoInitialCipherSuite| BindError::Tls(error.to_string());
        let server = if serves {
            Some(tuning::server_config(identity).map_err(tls)?)
        } else {
            None
        };
        let client = tuning::client_config(identity).map_err(tls)?;
        let bind = |source| BindError::Bind {
            address: listen,
            source,
        };
        let socket = socket::bind(listen).map_err(bind)?;
        let inner = quinn::Endpoint::new_with_abstract_socket(
            tuning::endpoint_config(identity),
            server.clone(),
            socket,
            Arc::new(quinn::TokioRuntime),
        )
        .map_err(bind)?;
        let local = inner.local_addr().map_err(bind)?;
        Ok(Endpoint {
            inner,
            client,
            names: identity.names,
            local: canonical(local),
            server,
        })
    }

    /// Starts accepting; streams go to the handler of their kind. Unknown kinds and kinds a peer's role may not use are reset.
    pub fn serve(&self, handlers: Vec<(StreamKind, Arc<dyn Handler>)>) {
        let config = self.server.clone();
        let config = config.expect("only a node's bound endpoint serves");
        let acceptor = accept::Acceptor::new(config, self.names, handlers);
        tokio::spawn(acceptor.run(self.inner.clone()));
    }

    /// Connects to a node at "host:port".
    pub(crate) async fn connect(&self, address: &str) -> Result<quinn::Connection, ConnectError> {
        connect::connect(&self.inner, &self.client, self.local.is_ipv6(), address).await
    }

    /// Who is at the other end of a connection made here.
    pub(crate) fn peer_identity(&self, connection: &quinn::Connection) -> Option<PeerIdentity> {
        PeerIdentity::of(connection, &self.names)
    }

    /// Where it is bound, with the port that the system chose where none was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// An address of this machine at which this endpoint can be reached from it (for tests and
    /// local tools): the bound one, or loopback where it is bound to all.
    pub fn loopback_addr(&self) -> SocketAddr {
        if self.local.ip().is_unspecified() {
            SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.local.port())
        } else {
            self.local
        }
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.inner.open_connections()
    }

    /// Closes all connections, waits briefly for the goodbye to leave.
    pub async fn close(&self) {
        self.inner.close(code::GOODBYE, b"the node stops");
        let _ = tokio::time::timeout(GOODBYE, self.inner.wait_idle()).await;
    }
}
