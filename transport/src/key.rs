//! The cluster's secret, in one file.
//!
//! Purpose: make, read and guard the file whose bytes let a machine join the cluster.
//! Takes part: `identity` derives the certificate authority from the key; `key::client` holds what a
//! client gets instead of it.
//! Always holds: the file is 0600 in a directory of 0700, appears whole or not at all, and two
//! processes that make it at once agree on one key. The key itself never crosses the network.
//! Not for: certificates (`identity`).
mod client;
mod file;

pub use client::ClientKey;

use std::path::{Path, PathBuf};

/// First line of a cluster key file: what the file is, and its version.
const HEADER: &str = "kitchensink-cluster-key 1";

/// Longest key file that is read; a longer one is some other file.
const FILE_BYTES_MAX: u64 = 4096;

/// The secret that all nodes of a cluster share; certificates derive from it.
#[derive(Clone)]
pub struct ClusterKey(pub(crate) [u8; 32]);

/// Why a cluster key could not be had. Every message names the file and the cure.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file or its directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{0}: not a cluster key; copy the key file of a node of the cluster, or name another")]
    Malformed(PathBuf),
    /// The file is a client's key.
    #[error(
        "{0}: a client key: with it one calls and reads, but neither runs a node nor makes keys; this needs the cluster's key: copy the key file of a node (~/.config/ks/cluster.key there)"
    )]
    OfClient(PathBuf),
    /// The file's mode lets others read the secret.
    #[error("{0}: readable by others; run: chmod 600 {0}")]
    TooOpen(PathBuf),
}

impl std::fmt::Debug for ClusterKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ClusterKey({})", self.fingerprint())
    }
}

impl ClusterKey {
    /// A new random key.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        file::random(&mut bytes);
        ClusterKey(bytes)
    }

    /// Reads the key file (which must be 0600).
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read = file::read_private(path, FILE_BYTES_MAX);
        let parse =
            |text: String| Self::parse(&text).ok_or_else(|| KeyError::Malformed(path.to_owned()));
        match read.and_then(parse) {
            Err(KeyError::Malformed(_)) if ClientKey::load(path).is_ok() => {
                Err(KeyError::OfClient(path.to_owned()))
            }
            loaded => loaded,
        }
    }

    /// Reads the key file, or makes one (0600, its directory 0700). `true`: it was made now.
    pub fn load_or_create(path: &Path) -> Result<(Self, bool), KeyError> {
        match Self::load(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            found => return found.map(|key| (key, false)),
        }
        let key = Self::generate();
        if file::create_private(path, &key.text())? {
            Ok((key, true))
        } else {
            // Another process was first: its key is the cluster's.
            Self::load(path).map(|key| (key, false))
        }
    }

    /// A short public name for the key, safe to print and log.
    pub fn fingerprint(&self) -> String {
        hex::encode(&self.derive("kitchensink 2026 cluster key fingerprint v1")[..8])
    }

    /// What the private Redis of a cluster's first node is asked for: the same again when its data is lost, so that the nodes
    /// that have joined get in.
    pub fn redis_password(&self) -> String {
        hex::encode(self.derive("kitchensink 2026 redis password v1"))
    }

    /// A secret of its own for each use; `context` must differ from use to use.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    fn text(&self) -> String {
        format!("{HEADER}\n{}\n", hex::encode(self.0))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()?.trim_end() != HEADER {
            return None;
        }
        let mut key = [0; 32];
        hex::decode_to_slice(lines.next()?.trim(), &mut key).ok()?;
        lines
            .all(|line| line.trim().is_empty())
            .then_some(ClusterKey(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn made_once_and_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/ks/cluster.key");
        let (first, made) = ClusterKey::load_or_create(&path).unwrap();
        assert!(made);
        let (second, made) = ClusterKey::load_or_create(&path).unwrap();
        assert!(!made);
        assert_eq!(first.0, second.0);
        assert_eq!(first.fingerprint(), second.fingerprint());
        assert_ne!(
            first.fingerprint(),
            ClusterKey::generate().fingerprint(),
            "other key, other name"
        );
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(entries, 1, "no temporary file stays behind");
    }

    #[test]
    fn starts_at_once_agree() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cluster.key");
        let made: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..16)
                .map(|_| scope.spawn(|| ClusterKey::load_or_create(&path).unwrap()))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap())
                .collect()
        });
        assert!(made.iter().all(|(key, _)| key.0 == made[0].0.0));
        assert_eq!(made.iter().filter(|(_, made)| *made).count(), 1);
    }

    #[test]
    fn wrong_files_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("cluster.key");
        let private = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        let good = ClusterKey::generate().text();
        for wrong in [
            "",
            "-----BEGIN",
            &good[..good.len() - 3],
            &format!("{good}more"),
        ] {
            private(wrong);
            let error = ClusterKey::load_or_create(&path).unwrap_err();
            assert!(
                matches!(error, KeyError::Malformed(_)),
                "{wrong:?}: {error}"
            );
            assert!(error.to_string().contains("cluster.key"));
        }
        private(&good);
        assert!(ClusterKey::load(&path).is_ok());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = ClusterKey::load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}
