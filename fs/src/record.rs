//! What the catalog keeps of a file, a directory, a node: plain data and its encoding.
//! Redis stores these as opaque bytes; only this module knows what is inside.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An inode number, unique in the cluster, never used again. The root directory is 1.
pub type Ino = u64;
/// The root directory's inode number.
pub const ROOT: Ino = 1;
/// Nanoseconds since 1970.
pub type Time = i64;
/// A BLAKE3 root hash.
pub type Hash = ks_transport::blocks::Hash;

/// A node's identity: random, made at the first start on a data directory and kept there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// No node: a directory's or a symlink's home.
    pub const NONE: NodeId = NodeId(0);
}
impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl std::fmt::Debug for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeId({self})")
    }
}
impl std::str::FromStr for NodeId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(NodeId(u64::from_str_radix(text, 16)?))
    }
}

/// What kind of thing a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    File = 0,
    Directory = 1,
    Symlink = 2,
    Fifo = 3,
    Socket = 4,
    CharDevice = 5,
    BlockDevice = 6,
}

/// One inode as the catalog has it (`ks:i:<ino>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky (07777).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Hard links. For a directory the catalog derives it (2 + subdirectories), this field is 2.
    pub nlink: u32,
    /// Bytes (files); length of the target (symlinks).
    pub size: u64,
    pub atime: Time,
    /// For a directory: at its making or last utimens; its entries' changes are kept beside the entries (`catalog::DirectoryTimes`).
    pub mtime: Time,
    pub ctime: Time,
    /// The first link's directory and name: enough to find the path without a search.
    pub parent: Ino,
    pub name: Vec<u8>,
    /// A symlink's target.
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Counts published contents; 0: never written.
    pub version: u64,
    /// Counts the homes a file had; a higher one fences the lower.
    pub epoch: u32,
    /// The live node that holds all of the current version and takes its writes.
    pub home: NodeId,
    /// BLAKE3 of the current version, once it has been computed. All-empty files have the hash of nothing.
    pub blake3: Option<Hash>,
    pub md5: Option<[u8; 16]>,
}

/// One copy of a file on a node (`ks:h:<ino>`, field NodeId).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Which version of the file this is a copy of.
    pub version: u64,
    /// How many of its bytes are there; the file's size when it is whole.
    pub bytes: u64,
}

/// A directory entry (`ks:d:<ino>`, field name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub ino: Ino,
    pub kind: Kind,
}

/// What the cluster knows of a node (`ks:nodes`, field NodeId).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub name: String,
    /// How others reach it: "host:port" (QUIC).
    pub address: String,
    /// Where it mounts the tree, and its data directory (as told to people).
    pub mountpoint: String,
    pub datadir: String,
    /// Random per start of the daemon: tells a restart from a second daemon.
    pub incarnation: u64,
    /// Version of the program.
    pub version: String,
    pub workers: u32,
    pub queues: Vec<String>,
    pub read_only: bool,
    /// It carries Redis to those that join through it.
    pub carries_redis: bool,
    pub started: Time,
    /// Refreshed with the heart-beat: bytes free and total on the data directory's disk.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// A change of names that every node applies to its own data directory and its kernel's caches,
/// in the order of the event stream (`ks:events`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A name appeared (create, mkdir, symlink, link, found by a scan).
    Linked {
        parent: Ino,
        name: Vec<u8>,
        ino: Ino,
    },
    /// A name went; `path` is the tree path it had. `gone`: the inode went with it.
    Unlinked {
        parent: Ino,
        name: Vec<u8>,
        ino: Ino,
        path: Vec<u8>,
        gone: bool,
    },
    /// A name moved; `replaced` is what stood there before.
    Renamed {
        from_parent: Ino,
        from_name: Vec<u8>,
        to_parent: Ino,
        to_name: Vec<u8>,
        ino: Ino,
        from_path: Vec<u8>,
        to_path: Vec<u8>,
        replaced: Option<Ino>,
    },
    /// Attributes that the plain files carry too changed (mode, owner, times, xattrs).
    Attributes { ino: Ino, path: Vec<u8> },
    /// A new version was published by `home`: other copies are old now.
    Published {
        ino: Ino,
        path: Vec<u8>,
        version: u64,
        home: NodeId,
    },
}

/// First byte of every encoded record: the format's version.
const FORMAT: u8 = 1;

/// A record that cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("damaged catalog record: {0}")]
pub struct DamagedRecord(pub String);

/// Encodes a record for Redis.
pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    postcard::to_extend(record, vec![FORMAT]).expect("records always encode")
}

/// Decodes what `encode` made.
pub fn decode<T: for<'d> Deserialize<'d>>(bytes: &[u8]) -> Result<T, DamagedRecord> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => {
            postcard::from_bytes(rest).map_err(|e| DamagedRecord(e.to_string()))
        }
        Some((other, _)) => Err(DamagedRecord(format!(
            "format {other}, this program reads {FORMAT}"
        ))),
        None => Err(DamagedRecord("empty".into())),
    }
}
