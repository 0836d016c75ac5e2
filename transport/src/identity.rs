//! Certificates that derive from the cluster key, and what a verified one says.
//!
//! Purpose: turn a key into the two TLS configurations of a process, and a peer's certificate into
//! a name and a role.
//! Takes part: `key` (the secrets), `endpoint` (which uses the configurations).
//! Always holds: TLS 1.3 only, both sides show a certificate that the cluster's authority signed,
//! and only a node's certificate is valid for a server. Names in certificates are sealed: a
//! stranger who starts a handshake reads none.
//! Not for: what a role may do (`endpoint::Handler`).
pub(crate) mod certificate;

use crate::key::{ClientKey, ClusterKey};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The protocol's name in the handshake; a peer of another version is refused there.
const ALPN: &[u8] = b"ks/1";

/// The name in every node's certificate that makes it a server.
pub(crate) const NODE_HOST: &str = "node.ks";

/// The name in every client's certificate.
pub(crate) const CLIENT_HOST: &str = "client.ks";

/// Sessions that are remembered for a shorter handshake.
const SESSIONS_MAX: usize = 256;

/// What the holder of a certificate may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A node: everything.
    Node,
    /// A client: may call and read, can never act as a node.
    Client,
}

/// This process's certificate, its private key and the cluster's authority.
#[derive(Clone)]
pub struct Identity {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) names: certificate::NameKey,
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) client: Arc<rustls::ClientConfig>,
    /// Signs the "I do not know that connection" of a restarted process; the same after a restart.
    pub(crate) reset_key: [u8; 32],
}

/// Why certificates cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("certificates cannot be made: {0}")]
pub struct IdentityError(pub String);

impl From<rustls::Error> for IdentityError {
    fn from(error: rustls::Error) -> Self {
        IdentityError(error.to_string())
    }
}

impl Identity {
    /// A node of the cluster, named `name` (1 to 64 bytes).
    pub fn node(key: &ClusterKey, name: &str) -> Result<Self, IdentityError> {
        let leaf = certificate::issue(key, name, Role::Node)?;
        let reset_key = blake3::keyed_hash(
            &key.derive("kitchensink 2026 stateless reset v1"),
            name.as_bytes(),
        );
        Self::from_leaf(&leaf, Role::Node, *reset_key.as_bytes())
    }

    /// A client of the cluster that has the cluster key (a node's own tools).
    pub fn client(key: &ClusterKey, name: &str) -> Result<Self, IdentityError> {
        Self::from_client_key(&ClientKey::create(key, name)?)
    }

    /// A client of the cluster that has a client key only.
    pub fn from_client_key(key: &ClientKey) -> Result<Self, IdentityError> {
        let secret = blake3::derive_key(
            "kitchensink 2026 client stateless reset v1",
            &key.leaf.private_key,
        );
        Self::from_leaf(&key.leaf, Role::Client, secret)
    }

    /// What this process may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// This process's name, as its peers see it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn from_leaf(
        leaf: &certificate::Leaf,
        role: Role,
        reset_key: [u8; 32],
    ) -> Result<Self, IdentityError> {
        let provider = Arc::new(provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(leaf.authority.to_vec()))?;
        let roots = Arc::new(roots);
        Ok(Identity {
            role,
            name: leaf.name.clone(),
            names: leaf.names,
            server: Arc::new(server_config(leaf, &provider, &roots)?),
            client: Arc::new(client_config(leaf, &provider, &roots)?),
            reset_key,
        })
    }
}

fn server_config(
    leaf: &certificate::Leaf,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<rustls::ServerConfig, IdentityError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| IdentityError(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(leaf), private_key(leaf))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS_MAX);
    Ok(config)
}

fn client_config(
    leaf: &certificate::Leaf,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<rustls::ClientConfig, IdentityError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain(leaf), private_key(leaf))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(config)
}

fn chain(leaf: &certificate::Leaf) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from(leaf.certificate.to_vec())]
}

fn private_key(leaf: &certificate::Leaf) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(leaf.private_key.to_vec()).into()
}

/// ring, with the cheapest cipher of this machine first: AES-128 where the processor has AES.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let fast_aes = has_aes();
    provider
        .cipher_suites
        .sort_by_key(|suite| match suite.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => u8::from(!fast_aes),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => u8::from(fast_aes),
            _ => 2,
        });
    provider
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// Who is at the other end of a connection, as its verified certificate says.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// What it may do.
    pub role: Role,
    /// Its name.
    pub name: String,
    /// Where it is, IPv4 written as IPv4.
    pub address: std::net::SocketAddr,
}

impl PeerIdentity {
    /// Reads role and name from the certificate of a connection whose handshake is done;
    /// `None`: it is not one of ours (which the handshake rules out).
    pub(crate) fn of(connection: &quinn::Connection, names: &certificate::NameKey) -> Option<Self> {
        let chain = connection
            .peer_identity()?
            .downcast::<Vec<CertificateDer<'static>>>()
            .ok()?;
        let leaf = chain.first()?;
        Some(PeerIdentity {
            role: role_of(leaf)?,
            name: names.open(&certificate::common_name(leaf)?)?,
            address: canonical(connection.remote_address()),
        })
    }
}

fn role_of(leaf: &CertificateDer<'_>) -> Option<Role> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let valid_for = |host: &'static str| {
        let name = ServerName::try_from(host).expect("a constant host name");
        verify_server_name(&parsed, &name).is_ok()
    };
    if valid_for(NODE_HOST) {
        Some(Role::Node)
    } else if valid_for(CLIENT_HOST) {
        Some(Role::Client)
    } else {
        None
    }
}

/// IPv4 addresses that came through an IPv6 socket, written as IPv4.
pub(crate) fn canonical(address: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_and_names_are_read_back() {
        let key = ClusterKey::generate();
        for (role, name) in [(Role::Node, "host-1"), (Role::Client, "älice")] {
            let leaf = certificate::issue(&key, name, role).unwrap();
            let der = CertificateDer::from(leaf.certificate.to_vec());
            assert_eq!(role_of(&der), Some(role));
            let sealed = certificate::common_name(&der).unwrap();
            assert_eq!(leaf.names.open(&sealed).as_deref(), Some(name));
            assert!(
                !sealed.contains(name),
                "names are not readable to strangers"
            );
        }
    }

    #[test]
    fn the_fast_cipher_comes_first() {
        let first = provider().cipher_suites[0].suite();
        let expected = if has_aes() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
        } else {
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        };
        assert_eq!(first, expected);
    }

    #[test]
    fn client_key_makes_an_identity() {
        let key = ClusterKey::generate();
        let client = ClientKey::create(&key, "alice").unwrap();
        let identity = Identity::from_client_key(&client).unwrap();
        assert_eq!(identity.role(), Role::Client);
        assert_eq!(identity.name(), "alice");
        assert!(Identity::node(&key, "").is_err());
        assert!(Identity::node(&key, &"x".repeat(65)).is_err());
        assert!(Identity::node(&key, "two\nlines").is_err());
    }
}
