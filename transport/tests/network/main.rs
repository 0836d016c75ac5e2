//! The crate's tests over real sockets, on loopback.
mod blocks;
mod connections;
mod nodes;
mod tunnel;
