//! Messages between the file systems of nodes (`StreamKind::FILES`): hash a version now; read and write a file at its home.
//!
//! Who takes part: a node that opens a file for writing whose home is elsewhere (`forward`), and that home (`server`). An open
//! keeps its stream for its life: requests are answered in their order, and the stream's end closes the handle (and
//! publishes). Only nodes may open such streams. Bulk reading is not for here: contents travel as verified blocks (`fetch`).
use crate::record::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub(crate) mod forward;
pub(crate) mod server;

/// The largest message: a write of the kernel (1 MiB) and what wraps it.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1024 * 1024 + 4096;
/// The most data that one request reads or writes.
pub(crate) const DATA_BYTES_MAX: usize = 1024 * 1024;
/// How long the home may take for one request.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long a holder lets a question wait for a hash that it is computing; then it says so.
pub(crate) const HASH_PATIENCE: Duration = Duration::from_secs(1);
/// How long a holder may take to say whether it has a version's hash.
pub(crate) const HASH_DEADLINE: Duration = Duration::from_secs(4);

/// One question per stream for the stateless ones; a forwarded open keeps its stream for its life (its end closes the handle).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileRequest {
    /// To a holder: the hash of this version; it is computed now if need be.
    Hash {
        /// Which file.
        ino: Ino,
        /// Which of its versions.
        version: u64,
    },
    /// To the home: open; then Read/Write/Truncate/Sync/Close on the same stream.
    Open {
        /// Which file.
        ino: Ino,
        /// For writing; else only to read what is there now.
        write: bool,
        /// Cut it to nothing (needs `write`).
        truncate: bool,
    },
    /// At most `len` bytes from `offset`; fewer at the end.
    Read {
        /// Byte offset.
        offset: u64,
        /// Bytes wanted, at most 1 MiB.
        len: u32,
    },
    /// Writes all of `data` at `offset`.
    Write {
        /// Byte offset.
        offset: u64,
        /// At most 1 MiB.
        data: bytes::Bytes,
        /// Also clear the set-user-id and set-group-id bits.
        clear_privileges: bool,
    },
    /// Writes all of `data` at the end, wherever that is.
    Append {
        /// At most 1 MiB.
        data: bytes::Bytes,
        /// Also clear the set-user-id and set-group-id bits.
        clear_privileges: bool,
    },
    /// Sets the size.
    Truncate {
        /// The new size in bytes.
        size: u64,
    },
    /// Size and times as they are now.
    Attributes,
    /// Reserves, punches or zeroes (`mode` as fallocate has it).
    Allocate {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
        /// FALLOC_FL_*.
        mode: i32,
    },
    /// Where the next data or hole is (`whence`: SEEK_DATA, SEEK_HOLE).
    Seek {
        /// Byte offset.
        offset: u64,
        /// Which.
        whence: i32,
    },
    /// To disk, and published.
    Sync,
    /// Publishes and answers when it is published (close-to-open). The handle stays open until the stream ends.
    Close,
}

/// What answers a `FileRequest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileReply {
    /// To `Hash`.
    Hash(Hash),
    /// To `Hash`: it is being computed, and takes longer.
    Hashing,
    /// To `Open`.
    Opened {
        /// Bytes.
        size: u64,
        /// Last change of the content.
        mtime: Time,
    },
    /// To `Read`.
    Data(bytes::Bytes),
    /// To `Seek`.
    Position(u64),
    /// To `Write` and `Append`.
    Written {
        /// Where it was written.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// To `Attributes`.
    Attributes {
        /// Bytes.
        size: u64,
        /// Last change of the content.
        mtime: Time,
        /// Last change of content or attributes.
        ctime: Time,
    },
    /// To `Truncate`, `Sync` and `Close`.
    Done,
    /// errno and text.
    Failed {
        /// What the caller's call ends with.
        errno: i32,
        /// For the log.
        message: String,
    },
}
