//! The cluster's secret.
use std::path::{Path, PathBuf};

/// The secret that all nodes of a cluster share; certificates derive from it.
#[derive(Clone)]
pub struct ClusterKey(pub(crate) [u8; 32]);

/// Why a cluster key could not be had. Every message names the file and the cure.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}: not a cluster key")]
    Malformed(PathBuf),
    #[error("{0}: readable by others; run: chmod 600 {0}")]
    TooOpen(PathBuf),
}

impl ClusterKey {
    /// A new random key.
    pub fn generate() -> Self {
        todo!()
    }
    /// Reads the key file (which must be 0600).
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        todo!()
    }
    /// Reads the key file, or makes one (0600, its directory 0700). `true`: it was made now.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), KeyError> {
        todo!()
    }
    /// A short public name for the key, safe to print and log.
    pub fn fingerprint(&self) -> String {
        todo!()
    }
}
