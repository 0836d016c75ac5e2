//! What applying an event has to know of the catalog as it is now.
use super::super::StoreError;
use crate::catalog::Catalog;
use crate::path::TreePath;
use crate::record::{Ino, Inode};
use ks_transport::BoxFuture;
use std::sync::Arc;

/// The catalog's answer, or that there is none now.
pub(super) type Answer<'a, T> = BoxFuture<'a, Result<Option<T>, StoreError>>;

/// The tree as it is now: at or after the event that is being applied.
pub(super) trait Names: Send + Sync {
    /// The record; `None`: the inode is gone.
    fn inode(&self, ino: Ino) -> Answer<'_, Arc<Inode>>;
    /// Where its first link stands; `None`: gone.
    fn path_of(&self, ino: Ino) -> Answer<'_, TreePath>;
    /// What stands at a path.
    fn at<'a>(&'a self, path: &'a TreePath) -> Answer<'a, (Ino, Arc<Inode>)>;
    /// Whether an inode that is gone was removed; `false`: the tree was rebuilt, and nobody has told of it (yet).
    fn was_removed(&self, ino: Ino) -> BoxFuture<'_, Result<bool, StoreError>>;
    /// Tells that this node holds nothing of it any more.
    fn withdraw(&self, ino: Ino) -> BoxFuture<'_, Result<(), StoreError>>;
}

impl Names for Catalog {
    fn inode(&self, ino: Ino) -> Answer<'_, Arc<Inode>> {
        Box::pin(async move { Ok(self.node(ino).await?.map(|node| node.inode)) })
    }

    fn path_of(&self, ino: Ino) -> Answer<'_, TreePath> {
        Box::pin(async move { Ok(Catalog::path_of(self, ino).await?) })
    }

    fn at<'a>(&'a self, path: &'a TreePath) -> Answer<'a, (Ino, Arc<Inode>)> {
        Box::pin(async move {
            let node = self.resolve(path).await?;
            Ok(node.map(|node| (node.ino, node.inode)))
        })
    }

    fn was_removed(&self, ino: Ino) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move { Ok(Catalog::was_removed(self, ino).await?) })
    }

    fn withdraw(&self, ino: Ino) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.set_holding(ino, None).await?) })
    }
}

/// Which catalog this is, as a number for `user.ks`.
pub(super) fn cluster(catalog: &Catalog) -> u64 {
    let digest = blake3::hash(catalog.cluster().as_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(number)
}
