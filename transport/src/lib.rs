//! Who a node is (cluster key, certificates) and how bytes move between nodes: a QUIC endpoint,
//! a pool of peer connections, framed messages, and block streams verified against BLAKE3 trees.
//!
//! This crate knows no paths and no jobs.

pub mod blocks;
pub mod endpoint;
pub mod frame;
pub mod identity;
pub mod key;
pub mod memory;
pub mod pool;
pub mod quiet;
pub mod segments;
pub mod tunnel;

use std::future::Future;
use std::pin::Pin;

/// A boxed future, as the object-safe traits of this crate return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
