//! Certificates that derive from the cluster key.
use crate::key::ClusterKey;
use serde::{Deserialize, Serialize};

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
pub struct Identity {/* rustls configs */}

#[derive(Debug, thiserror::Error)]
#[error("certificates cannot be made: {0}")]
pub struct IdentityError(pub String);

impl Identity {
    pub fn node(key: &ClusterKey, name: &str) -> Result<Self, IdentityError> {
        todo!()
    }
    pub fn client(key: &ClusterKey, name: &str) -> Result<Self, IdentityError> {
        todo!()
    }
}

/// Who is at the other end of a connection, as its verified certificate says.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    pub role: Role,
    pub name: String,
    pub address: std::net::SocketAddr,
}
