//! Serves block requests from the data directory (`ks_transport::blocks::BlockSource`).
use super::Store;
use crate::{path::TreePath, record::Ino};
use ks_transport::{
    BoxFuture,
    blocks::{BlockRequest, BlockSource, Content, Refusal},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a block request's locator says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Locator {
    /// A file of the tree. The holder looks at `path` first; where events are still being applied it may stand elsewhere.
    File { ino: Ino, path: Vec<u8> },
    /// A payload by its hash.
    Blob,
}

/// Opens what `Locator` names, checks that its `user.ks` says the wanted hash, finds or makes its tree.
pub struct StoreSource {
    pub store: Arc<Store>,
    pub catalog: crate::catalog::Catalog,
}
impl BlockSource for StoreSource {
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        todo!()
    }
}
