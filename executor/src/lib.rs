//! Calls: job, queue, placement, workers, and the node that puts it all together.

pub mod frames;
pub mod job;
pub mod outlet;
pub mod placement;
pub mod protocol;
pub mod queue;
pub mod service;
pub mod session;
pub mod worker;
