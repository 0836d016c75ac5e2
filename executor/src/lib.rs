//! Calls: job, queue, placement, workers, and the node that puts it all together.

pub mod config;
pub mod control;
pub mod daemon;
pub mod frames;
pub mod job;
pub mod node;
pub mod outlet;
pub mod placement;
pub mod protocol;
pub mod queue;
pub mod service;
pub mod session;
pub mod worker;
