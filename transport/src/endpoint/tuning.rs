//! What QUIC is told about this kind of network: fast, near, and peers that may die.
//!
//! The numbers were measured between two network namespaces (`examples/throughput.rs`).
use super::route;
use crate::identity::{Identity, canonical};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A peer that is silent this long is gone.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
/// How often a quiet connection says that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Bytes that may be on their way in one stream.
const STREAM_WINDOW_BYTES: u32 = 12 << 20;
/// Bytes that may be on their way in one connection.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
/// Bytes a connection keeps until they are acknowledged: on a near path few, so that what is sent
/// is still in the processor's cache when it is encrypted.
const SEND_WINDOW_BYTES: u64 = 4 << 20;
/// The same on the longest path.
const SEND_WINDOW_BYTES_MAX: u64 = 32 << 20;
/// What one connection may fill of a long path, in bytes a second.
const PATH_BYTES_PER_SECOND: f64 = 1.25e9;
/// Streams a peer may have open at once in one connection. More than any service takes: a service that is full says
/// so, while here a peer waits in silence until its deadline.
const STREAMS_MAX: u32 = 8192;
/// What every path carries.
const MTU_MIN: u16 = 1200;
/// The largest UDP payload there is, less a little for headers: jumbo links and loopback use it.
const MTU_MAX: u16 = 65_400;
/// The largest payload to try where the kernel does not know the interface: Ethernet's.
const MTU_UNKNOWN: u32 = 1452;
/// The largest UDP payload that is received.
const RECEIVE_PAYLOAD_BYTES_MAX: u16 = 65_527;
/// Round trip time until it is measured: a lost first packet is repeated after three of these.
const RTT_INITIAL: Duration = Duration::from_millis(100);
/// Bytes that may be sent before the path is known: on a near network slow start is only slow.
const WINDOW_INITIAL_BYTES: u64 = 1 << 20;
/// Packets that a receiver takes before it says so. (Left alone it says so for every second packet or every turn, and each
/// such word is a system call and a wake-up on both sides.)
const ACK_AFTER_PACKETS: u32 = 64;
/// How long it may keep it to itself when fewer come.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Packets that may overtake another before it is taken for lost (quinn's own measure).
const REORDERED_PACKETS: u32 = 3;
/// Connections that wait for our attention at most, before any is looked at.
const INCOMING_MAX: usize = 256;

pub(super) fn server_config(
    identity: &Identity,
) -> Result<quinn::ServerConfig, NoInitialCipherSuite> {
    let crypto = QuicServerConfig::try_from(identity.server.clone())?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport(STREAMS_MAX, 0, None)));
    config.max_incoming(INCOMING_MAX);
    Ok(config)
}

pub(super) fn client_config(
    identity: &Identity,
) -> Result<quinn::ClientConfig, NoInitialCipherSuite> {
    let crypto = QuicClientConfig::try_from(identity.client.clone())?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(connecting(None)));
    Ok(config)
}

/// The same for one connection that comes from `peer`.
pub(super) fn server_config_for(
    general: &quinn::ServerConfig,
    peer: SocketAddr,
) -> Arc<quinn::ServerConfig> {
    let mut config = general.clone();
    config.transport_config(Arc::new(transport(STREAMS_MAX, 0, Some(peer))));
    Arc::new(config)
}

/// The same for one connection that goes to `peer`.
pub(super) fn client_config_for(
    general: &quinn::ClientConfig,
    peer: SocketAddr,
) -> quinn::ClientConfig {
    let mut config = general.clone();
    config.transport_config(Arc::new(connecting(Some(peer))));
    config
}

/// Of the side that connects: it opens the streams, the other its welcome. It alone says now and then that it lives: the
/// answer says the same of the other.
fn connecting(peer: Option<SocketAddr>) -> TransportConfig {
    let mut config = transport(0, 1, peer);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config
}

pub(super) fn endpoint_config(identity: &Identity) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(identity.reset_key)));
    // Random connection ids, and a reset key that outlives the process: a node that was killed and
    // started again answers its old peers with a reset, and they need not wait for the idle timeout.
    config.cid_generator(|| Box::new(RandomIds));
    config
        .max_udp_payload_size(RECEIVE_PAYLOAD_BYTES_MAX)
        .expect("a constant within QUIC's bounds");
    config
}

/// Lets a connection over a long path have more under way; call it once the handshake is done.
pub(super) fn fit_to_path(connection: &quinn::Connection) {
    let round_trip = connection.min_rtt().as_secs_f64();
    let under_way = (round_trip * PATH_BYTES_PER_SECOND) as u64;
    connection.set_send_window(under_way.clamp(SEND_WINDOW_BYTES, SEND_WINDOW_BYTES_MAX));
}

/// The largest payload to try with a peer.
fn mtu_bound(peer: Option<SocketAddr>) -> u16 {
    let interface = peer.and_then(|peer| route::payload_bytes_max(canonical(peer)));
    let bound = interface.unwrap_or(MTU_UNKNOWN).min(u32::from(MTU_MAX));
    u16::try_from(bound).unwrap_or(MTU_MAX).max(MTU_MIN)
}

fn transport(
    bidirectional_max: u32,
    unidirectional_max: u32,
    peer: Option<SocketAddr>,
) -> TransportConfig {
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(mtu_bound(peer));
    let mut cubic = quinn::congestion::CubicConfig::default();
    cubic.initial_window(WINDOW_INITIAL_BYTES);
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_AFTER_PACKETS))
        .max_ack_delay(Some(ACK_DELAY))
        .reordering_threshold(VarInt::from_u32(REORDERED_PACKETS));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(VarInt::from_u32(bidirectional_max))
        .max_concurrent_uni_streams(VarInt::from_u32(unidirectional_max))
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("seconds fit")))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .initial_mtu(MTU_MIN)
        .min_mtu(MTU_MIN)
        .mtu_discovery_config(Some(mtu_discovery))
        .initial_rtt(RTT_INITIAL)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(cubic));
    config
}

/// Connection ids without a meaning.
struct RandomIds;

/// Bytes of a connection id.
const CONNECTION_ID_BYTES: usize = 8;

impl quinn::ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bytes)
            .expect("the system's random generator works");
        quinn::ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Signs stateless resets (keyed BLAKE3).
struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        let expected = blake3::keyed_hash(&self.0, data);
        let signature =
            blake3::Hash::from_slice(signature).map_err(|_| quinn::crypto::CryptoError)?;
        // Hash compares in constant time.
        if expected == signature {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}
