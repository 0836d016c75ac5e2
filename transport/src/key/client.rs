//! What a client is given instead of the cluster key: a certificate of the client's role.
//!
//! Always holds: no certificate authority key is in it, so it can neither act as a node nor make
//! further keys; nodes tell it from a node by its certificate.
use super::{ClusterKey, KeyError, file};
use crate::identity::{IdentityError, certificate};
use std::path::Path;

/// First line of a client key file.
const HEADER: &str = "kitchensink-client-key 1";

/// Longest client key file that is read.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// A key that may only call and read (`ks key client`).
#[derive(Clone)]
pub struct ClientKey {
    pub(crate) leaf: certificate::Leaf,
}

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ClientKey({})", self.leaf.name)
    }
}

impl ClientKey {
    /// Makes a key for the client `name` of the cluster.
    pub fn create(key: &ClusterKey, name: &str) -> Result<Self, IdentityError> {
        let leaf = certificate::issue(key, name, crate::identity::Role::Client)?;
        Ok(ClientKey { leaf })
    }

    /// The client's name, as nodes will see it.
    pub fn name(&self) -> &str {
        &self.leaf.name
    }

    /// Reads a client key file (which must be 0600).
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = file::read_private(path, FILE_BYTES_MAX)?;
        Self::parse(&text).ok_or_else(|| KeyError::Malformed(path.to_owned()))
    }

    /// Writes the file (0600, its directory 0700), over an older one if there is one.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        file::replace_private(path, &self.text())
    }

    fn text(&self) -> String {
        let leaf = &self.leaf;
        format!(
            "{HEADER}\nname {}\ncertificate {}\nprivate-key {}\nauthority {}\nnames {}\n",
            leaf.name,
            hex::encode(&leaf.certificate),
            hex::encode(&leaf.private_key),
            hex::encode(&leaf.authority),
            hex::encode(leaf.names.0),
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()?.trim_end() != HEADER {
            return None;
        }
        let mut field = |name: &str| {
            let (key, value) = lines.next()?.trim_end().split_once(' ')?;
            (key == name).then(|| value.to_owned())
        };
        let leaf = certificate::Leaf {
            name: field("name")?,
            certificate: hex::decode(field("certificate")?).ok()?.into(),
            private_key: hex::decode(field("private-key")?).ok()?.into(),
            authority: hex::decode(field("authority")?).ok()?.into(),
            names: certificate::NameKey(hex::decode(field("names")?).ok()?.try_into().ok()?),
        };
        Some(ClientKey { leaf })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_and_loaded() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("keys/alice.key");
        let cluster = ClusterKey::generate();
        let key = ClientKey::create(&cluster, "alice").unwrap();
        key.save(&path).unwrap();
        key.save(&path).unwrap();
        let loaded = ClientKey::load(&path).unwrap();
        assert_eq!(loaded.name(), "alice");
        assert_eq!(loaded.text(), key.text());
        assert!(
            !key.text().contains(&hex::encode(cluster.0)),
            "the cluster key is not in it"
        );
        assert!(matches!(
            ClusterKey::load(&path),
            Err(KeyError::OfClient(_))
        ));
    }
}
