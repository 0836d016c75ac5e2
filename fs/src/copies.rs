//! Copies of files on several nodes: given up, spread, kept, checked and mended. Messages between nodes, and what can go wrong.
//!
//! Who takes part: `eviction` decides which fetched copies go (pure), `scrub` when they are re-read (pure), `targets` who gets new ones (pure), `server` answers the other nodes; the operations
//! themselves are the file system's (`filesystem::copies`), the atomic changes of who holds what the catalog's (`catalog::copies`).
//!
//! Always: no copy leaves before others are known, by name, to keep theirs in that very step; what a copy is worth is what its bytes say, not its size.
//!
//! Not for moving bytes: contents travel as verified blocks (`fetch`).
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use ks_transport::endpoint::StreamKind;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub mod eviction;
pub mod scrub;
pub(crate) mod server;
pub mod targets;

/// Streams between nodes that are about copies.
pub const COPIES: StreamKind = StreamKind(17);
/// The largest message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// How long a node may take to say what it holds.
pub(crate) const QUESTION_DEADLINE: Duration = Duration::from_secs(5);
/// A node that fetches or re-reads a file on request says how far it is at least this often.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// A node that has said nothing for so long while it fetches or re-reads is given up.
pub(crate) const PROGRESS_DEADLINE: Duration = Duration::from_secs(30);

/// What a node asks another about a copy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum CopyRequest {
    /// Does it have all of that version, untouched?
    Holds {
        /// Which file.
        ino: Ino,
        /// Which of its versions.
        version: u64,
    },
    /// Fetch it whole; `Progress`, then `Done`.
    Bring {
        /// Which file.
        ino: Ino,
        /// Ask that node first: it has it, or is fetching it right now.
        from: Option<NodeId>,
    },
    /// The home is gone: become it.
    TakeOver {
        /// Which file.
        ino: Ino,
    },
    /// Re-read the copy and compare it with its hash; `Progress`, then `Checked`.
    Check {
        /// Which file.
        ino: Ino,
    },
    /// The copy is damaged: give it up and fetch it again, while `good` keep theirs; `Progress`, then `Done`.
    Mend {
        /// Which file.
        ino: Ino,
        /// Nodes whose copies were found good.
        good: Vec<NodeId>,
    },
    /// Compute its MD5; `Progress`, then `Md5`.
    Md5 {
        /// Which file.
        ino: Ino,
        /// Which of its versions.
        version: u64,
    },
}

/// What answers a `CopyRequest`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum CopyReply {
    /// To `Holds`.
    Holds(bool),
    /// How far it is.
    Progress {
        /// Bytes that are there, or re-read.
        have: u64,
        /// Bytes in all.
        size: u64,
    },
    /// To `Bring`, `TakeOver` and `Mend`.
    Done,
    /// To `Check`.
    Checked(Condition),
    /// errno and text.
    Failed {
        /// As of a file operation.
        errno: i32,
        /// For people.
        message: String,
    },
    /// To `Md5`.
    Md5(Md5),
}

/// What a copy turned out to be worth when it was re-read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Its bytes are those of its hash.
    Good,
    /// They are not, and nobody has written to it.
    Damaged,
    /// It is being written: there is nothing to compare it with.
    BeingWritten,
    /// Not there.
    Absent,
    /// The disk does not give it; what it said.
    Unreadable(String),
    /// Somebody changed it in the data directory, and the tree does not know yet: there is nothing to compare it with.
    Changed,
}

/// Why a copy was not given up, spread or mended.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It would be the last one, or too few would stay.
    #[error("{path}: {what}")]
    TooFew {
        /// The file.
        path: TreePath,
        /// How many others there are, and the cure.
        what: String,
    },
    /// Programs have it open for writing here.
    #[error("{0}: it is open for writing on this node; close it first")]
    BeingWritten(TreePath),
    /// Somebody wants it kept here.
    #[error("{0}: it is pinned on this node; first run: ks pin --unpin {0}")]
    Pinned(TreePath),
    /// It was changed again and again meanwhile.
    #[error("{0}: it changed meanwhile; try again")]
    Changed(TreePath),
    /// No such node, or it is not there now.
    #[error("no node '{0}' is there now; see: ks nodes")]
    NoSuchNode(String),
    /// The other node could not do it.
    #[error("{node}: {message}")]
    AtNode {
        /// Its name.
        node: String,
        /// What it said.
        message: String,
    },
    /// From the file system.
    #[error(transparent)]
    Fs(#[from] FsError),
}

impl From<crate::catalog::CatalogError> for CopyError {
    fn from(error: crate::catalog::CatalogError) -> Self {
        CopyError::Fs(error.into())
    }
}
