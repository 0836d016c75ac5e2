//! The accepting side: handshakes, then one task a connection and one a stream.
use super::{Handler, StreamKind, code, connect, refusals::Refusals, tuning};
use crate::frame::Stream;
use crate::identity::{PeerIdentity, Role, canonical, certificate::NameKey};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long an opened stream may keep its kind to itself.
const KIND_DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes under way at once; further ones are refused.
const HALF_OPEN_MAX: usize = 256;
/// Handshakes under way from which on a peer must first prove its address.
const HALF_OPEN_TRUSTING: usize = 64;
/// Connections at once; further ones are refused.
const CONNECTIONS_MAX: usize = 4096;

/// Accepts for one endpoint.
pub(super) struct Acceptor {
    shared: Arc<Shared>,
    half_open: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

struct Shared {
    handlers: HashMap<StreamKind, Arc<dyn Handler>>,
    config: quinn::ServerConfig,
    names: NameKey,
    refusals: Refusals,
}

impl Acceptor {
    pub(super) fn new(
        config: quinn::ServerConfig,
        names: NameKey,
        handlers: Vec<(StreamKind, Arc<dyn Handler>)>,
    ) -> Self {
        Acceptor {
            shared: Arc::new(Shared {
                handlers: handlers.into_iter().collect(),
                config,
                names,
                refusals: Refusals::default(),
            }),
            half_open: Arc::new(Semaphore::new(HALF_OPEN_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Accepts until the endpoint is closed.
    pub(super) async fn run(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            self.admit(incoming);
        }
    }

    fn admit(&self, incoming: quinn::Incoming) {
        let under_way = HALF_OPEN_MAX - self.half_open.available_permits();
        if under_way >= HALF_OPEN_TRUSTING && incoming.may_retry() {
            // An error says that it cannot be asked again, which was checked.
            let _ = incoming.retry();
            return;
        }
        let permits = self
            .half_open
            .clone()
            .try_acquire_owned()
            .and_then(|half| Ok((half, self.connections.clone().try_acquire_owned()?)));
        match permits {
            Ok((half_open, whole)) => {
                tokio::spawn(serve(self.shared.clone(), incoming, half_open, whole));
            }
            Err(_) => {
                let peer = canonical(incoming.remote_address());
                self.shared
                    .refusals
                    .log(peer, "too many connections at once");
                incoming.refuse();
            }
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    half_open: OwnedSemaphorePermit,
    _connection: OwnedSemaphorePermit,
) {
    let address = canonical(incoming.remote_address());
    let connection = match shake_hands(&shared.config, incoming).await {
        Ok(connection) => connection,
        Err(reason) => return shared.refusals.log(address, &reason),
    };
    drop(half_open);
    let Some(peer) = PeerIdentity::of(&connection, &shared.names) else {
        let reason = code::describe(code::NOT_A_MEMBER.into_inner());
        shared.refusals.log(address, &reason);
        return connection.close(code::NOT_A_MEMBER, reason.as_bytes());
    };
    tracing::debug!(peer = %peer.name, role = ?peer.role, %address, "connected");
    accept_streams(&shared, &connection, Arc::new(peer)).await;
}

/// The connection, once both certificates are verified and the peer has been told so.
async fn shake_hands(
    config: &quinn::ServerConfig,
    incoming: quinn::Incoming,
) -> Result<quinn::Connection, String> {
    let handshake = async {
        let config = tuning::server_config_for(config, incoming.remote_address());
        let connecting = incoming
            .accept_with(config)
            .map_err(|error| reason(&error))?;
        let connection = connecting.await.map_err(|error| reason(&error))?;
        tuning::fit_to_path(&connection);
        let mut welcome = connection
            .open_uni()
            .await
            .map_err(|error| reason(&error))?;
        // The peer waits for this empty stream: it says that its certificate was good.
        let _ = welcome.finish();
        Ok(connection)
    };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(done) => done,
        Err(_) => Err("the handshake took too long".to_owned()),
    }
}

fn reason(error: &quinn::ConnectionError) -> String {
    let description = connect::describe(error);
    match error {
        quinn::ConnectionError::ConnectionClosed(_) => format!("it refused us: {description}"),
        _ => description,
    }
}

async fn accept_streams(
    shared: &Arc<Shared>,
    connection: &quinn::Connection,
    peer: Arc<PeerIdentity>,
) {
    // Their number is bounded by what the transport lets the peer open.
    loop {
        match connection.accept_bi().await {
            Ok(halves) => {
                let stream = Stream::accepted(halves, connection.clone());
                tokio::spawn(dispatch(shared.clone(), peer.clone(), stream));
            }
            Err(error) => {
                tracing::debug!(peer = %peer.name, address = %peer.address, %error, "disconnected");
                return;
            }
        }
    }
}

/// Reads the kind and hands the stream to its handler.
async fn dispatch(shared: Arc<Shared>, peer: Arc<PeerIdentity>, mut stream: Stream) {
    let mut kind = [0];
    let read = tokio::time::timeout(KIND_DEADLINE, stream.recv.read_exact(&mut kind)).await;
    match read {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return stream.abandon(code::CUT_OFF),
        Err(_) => return stream.abandon(code::TOO_SLOW),
    }
    match shared.handlers.get(&StreamKind(kind[0])) {
        None => {
            tracing::debug!(peer = %peer.name, kind = kind[0], "asked for an unknown kind of stream");
            stream.abandon(code::UNKNOWN_KIND);
        }
        Some(handler) if peer.role == Role::Client && !handler.open_to_clients() => {
            tracing::warn!(
                peer = %peer.name,
                address = %peer.address,
                kind = kind[0],
                "a client asked for what is for nodes; refused"
            );
            stream.abandon(code::NOT_ALLOWED);
        }
        Some(handler) => handler.handle(peer, stream).await,
    }
}
