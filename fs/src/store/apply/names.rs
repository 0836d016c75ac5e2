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

    fn withdraw(&self, ino: Ino) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.set_holding(ino, None).await?) })
    }
}

/// Which catalog this is: a random number that it got when it was first used.
pub(super) async fn cluster(catalog: &Catalog) -> Result<u64, StoreError> {
    let failed = |error: crate::redis_client::RedisError| StoreError::Catalog(error.to_string());
    let mut propose = redis::cmd("HSETNX");
    propose.arg("ks:meta").arg("cluster").arg(random_number()?);
    let mut ask = redis::cmd("HGET");
    ask.arg("ks:meta").arg("cluster");
    catalog.redis().run(&propose).await.map_err(failed)?;
    let answer = catalog.redis().run(&ask).await.map_err(failed)?;
    let bytes: Vec<u8> = redis::from_redis_value(answer)
        .map_err(|error| StoreError::Catalog(format!("ks:meta: {error}")))?;
    let digest = blake3::hash(&bytes);
    let mut number = [0; 8];
    number.copy_from_slice(&digest.as_bytes()[..8]);
    Ok(u64::from_le_bytes(number))
}

fn random_number() -> Result<u64, StoreError> {
    let path = std::path::Path::new("/dev/urandom");
    super::super::state::random_number().map_err(super::super::io_at(path))
}
