//! Messages between the file systems of nodes (`StreamKind::FILES`): hash a version now; write to a file at its home.
use crate::record::*;
use serde::{Deserialize, Serialize};

/// One question per stream for the stateless ones; a forwarded open keeps its stream for its life (its end closes the handle).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileRequest {
    /// To a holder: the hash of this version, computed now if need be.
    Hash {
        ino: Ino,
        version: u64,
    },
    /// To the home: open for writing; then Read/Write/Truncate/Sync/Close on the same stream.
    Open {
        ino: Ino,
        truncate: bool,
    },
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        data: bytes::Bytes,
    },
    Append {
        data: bytes::Bytes,
    },
    Truncate {
        size: u64,
    },
    Attributes,
    Sync,
    /// Publishes and answers when it is published (close-to-open).
    Close,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileReply {
    Hash(Hash),
    Opened {
        size: u64,
        mtime: Time,
    },
    Data(bytes::Bytes),
    Written {
        offset: u64,
        len: u32,
    },
    Attributes {
        size: u64,
        mtime: Time,
        ctime: Time,
    },
    Done,
    /// errno and text.
    Failed {
        errno: i32,
        message: String,
    },
}
