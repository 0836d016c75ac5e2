//! How much of Redis's memory jobs may take: how many may go on, and the bytes of their arguments and of the ends that are kept.
//!
//! What always holds: `submit.lua` records nothing that would exceed a limit, so however many nodes submit at once, the sum stays below
//! it. Arguments that do not fit any more go as files; jobs that do not fit wait at the node that accepts them.
//! Not for the queue's order: what is recorded stays recorded.

/// Bodies and ends up to this size are not counted: the number of records bounds them. (Redis keeps a hash with a larger value in
/// several pieces of memory: `hash-max-listpack-value`.)
pub const SMALL_BYTES: usize = 1024;
/// Parts of a payload above this size become files where bodies or ends take as much of Redis as they may.
pub const SPILLED_BYTES: usize = 256;
/// How much more calls that other calls make may take than the rest, in percent: where those wait for them, all would wait.
pub const INNER_PERCENT: u64 = 10;

/// All jobs that may go on are recorded in so many batches at least.
pub const BATCHES_MIN: u64 = 16;

/// What jobs may take of Redis in the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs that have not ended. About 1 KiB of Redis each.
    pub going_max: u64,
    /// Bytes of the bodies above `SMALL_BYTES` of jobs that have not ended.
    pub bodies_bytes_max: u64,
    /// Bytes of the ends above `SMALL_BYTES` whose records are kept, of those that were told and of the others; the oldest beyond
    /// it go before their time. From half of it on results go as files.
    pub ends_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            going_max: 1_000_000,
            bodies_bytes_max: 64 * 1024 * 1024,
            ends_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// What a batch that was not recorded would have exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// As many jobs go on as may.
    Jobs,
    /// Their bodies take as much as they may: smaller ones would still fit.
    Bodies,
    /// Redis's own limit (`maxmemory`).
    Memory,
}
