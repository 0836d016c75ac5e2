//! The tree: catalog (Redis), store (a node's data directory), fetch (which block from whom),
//! and the thin FUSE face (mount). Knows no Python and no jobs.

pub mod catalog;
pub mod copies;
pub mod error;
pub mod fetch;
pub mod filesystem;
pub mod locks;
pub mod mount;
pub mod path;
pub mod peer;
pub mod record;
pub mod redis_client;
pub mod redis_server;
pub mod store;
#[doc(hidden)]
pub mod testing;
pub mod usage;
