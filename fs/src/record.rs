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
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// A regular file: the one kind that has versions, a home and holders.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A unix socket's name.
    Socket = 4,
    /// A character device.
    CharDevice = 5,
    /// A block device.
    BlockDevice = 6,
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::File,
        Kind::Directory,
        Kind::Symlink,
        Kind::Fifo,
        Kind::Socket,
        Kind::CharDevice,
        Kind::BlockDevice,
    ];
}

/// One inode as the catalog has it (`ks:i:<ino>`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// What it is; never changes.
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device, else 0.
    pub rdev: u32,
    /// Hard links. For a directory the catalog derives it (2 + subdirectories), this field is 2.
    pub nlink: u32,
    /// Bytes (files); length of the target (symlinks).
    pub size: u64,
    /// Last access, as far as it is kept.
    pub atime: Time,
    /// For a directory: at its making or last utimens; its entries' changes are kept beside the entries (`catalog::Node_::dir_time`).
    pub mtime: Time,
    /// Last change of anything of it.
    pub ctime: Time,
    /// The first link's directory and name: enough to find the path without a search.
    pub parent: Ino,
    /// The first link's name in `parent`.
    pub name: Vec<u8>,
    /// A symlink's target.
    pub target: Vec<u8>,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Counts published contents; 0: never written.
    pub version: u64,
    /// Counts the homes a file had; a higher one fences the lower.
    pub epoch: u32,
    /// The live node that holds all of the current version and takes its writes.
    pub home: NodeId,
    /// BLAKE3 of the current version, once it has been computed. All-empty files have the hash of nothing.
    pub blake3: Option<Hash>,
    /// MD5 of the current version, once somebody asked for it.
    pub md5: Option<Md5>,
}

/// An MD5.
pub type Md5 = [u8; 16];

/// One copy of a file on a node (`ks:h:<ino>`, field NodeId).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Which version of the file this is a copy of.
    pub version: u64,
    /// How many of its bytes are there; the file's size when it is whole.
    pub bytes: u64,
    /// Somebody put it into the node's data directory: it was not fetched. What is removed behind another node's back leaves it
    /// standing.
    pub is_put: bool,
}

impl Holding {
    /// The stored form; that of a fetched copy is as long as it ever was.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = encode(&(self.version, self.bytes));
        bytes.extend(self.is_put.then_some(1));
        bytes
    }

    /// Reads the stored form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedRecord> {
        let damaged = || DamagedRecord("holder".into());
        let rest = bytes.strip_prefix(&[FORMAT]).ok_or_else(damaged)?;
        let read = postcard::take_from_bytes::<(u64, u64)>(rest);
        let ((version, bytes), rest) = read.map_err(|_| damaged())?;
        let is_put = match rest {
            [] => false,
            [1] => true,
            _ => return Err(damaged()),
        };
        Ok(Self {
            version,
            bytes,
            is_put,
        })
    }
}

/// A directory entry (`ks:d:<ino>`, field name). Stored as text, `<ino> <kind>`: the scripts follow it to the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the name stands for.
    pub ino: Ino,
    /// Its kind.
    pub kind: Kind,
}

impl Entry {
    /// The stored form.
    pub fn to_bytes(self) -> Vec<u8> {
        format!("{} {}", self.ino, self.kind as u8).into_bytes()
    }
    /// Reads the stored form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedRecord> {
        let damaged = || DamagedRecord(format!("entry '{}'", String::from_utf8_lossy(bytes)));
        let text = std::str::from_utf8(bytes).map_err(|_| damaged())?;
        let (ino, kind) = text.split_once(' ').ok_or_else(damaged)?;
        let kind: usize = kind.parse().map_err(|_| damaged())?;
        Ok(Self {
            ino: ino.parse().map_err(|_| damaged())?,
            kind: *Kind::ALL.get(kind).ok_or_else(damaged)?,
        })
    }
}

/// A further hard link (`ks:l:<ino>`, member): a directory and a name in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The directory.
    pub parent: Ino,
    /// The name in it.
    pub name: Vec<u8>,
}

impl Link {
    /// The stored form, "`<parent>/<name>`".
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{}/", self.parent).into_bytes();
        bytes.extend_from_slice(&self.name);
        bytes
    }
    /// Reads the stored form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedRecord> {
        let damaged = || DamagedRecord(format!("link '{}'", String::from_utf8_lossy(bytes)));
        let slash = bytes.iter().position(|&b| b == b'/').ok_or_else(damaged)?;
        let parent = std::str::from_utf8(&bytes[..slash]).map_err(|_| damaged())?;
        Ok(Self {
            parent: parent.parse().map_err(|_| damaged())?,
            name: bytes[slash + 1..].to_vec(),
        })
    }
}

/// What the cluster knows of a node (`ks:nodes`, field NodeId).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name, one live node's alone.
    pub name: String,
    /// How others reach it: "host:port" (QUIC).
    pub address: String,
    /// Where it mounts the tree, and its data directory (as told to people).
    pub mountpoint: String,
    /// Its data directory's path on its host.
    pub datadir: String,
    /// Random per start of the daemon: tells a restart from a second daemon.
    pub incarnation: u64,
    /// Version of the program.
    pub version: String,
    /// How many Python workers it has.
    pub workers: u32,
    /// The queues it serves.
    pub queues: Vec<String>,
    /// Nothing new is stored there.
    pub read_only: bool,
    /// It carries Redis to those that join through it.
    pub carries_redis: bool,
    /// When this start of the daemon began.
    pub started: Time,
    /// Refreshed with the heart-beat: bytes free on the data directory's disk.
    pub free_bytes: u64,
    /// Size of the data directory's disk, bytes.
    pub total_bytes: u64,
}

/// A change of names that every node applies to its own data directory and its kernel's caches,
/// in the order of the event stream (`ks:events`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A name appeared (create, mkdir, symlink, link, found by a scan).
    Linked {
        /// The directory it appeared in.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// What it stands for.
        ino: Ino,
    },
    /// A name went.
    Unlinked {
        /// The directory it went from.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// What it stood for.
        ino: Ino,
        /// The tree path it had when it went: exact at this place of the stream.
        path: Vec<u8>,
        /// The inode went with it.
        gone: bool,
    },
    /// A name moved.
    Renamed {
        /// The directory it was in.
        from_parent: Ino,
        /// The name it had.
        from_name: Vec<u8>,
        /// The directory it is in.
        to_parent: Ino,
        /// The name it has.
        to_name: Vec<u8>,
        /// What moved.
        ino: Ino,
        /// The tree path it had: exact at this place of the stream.
        from_path: Vec<u8>,
        /// The tree path it has: exact at this place of the stream.
        to_path: Vec<u8>,
        /// What stood at `to_path` before and lost that name.
        replaced: Option<Ino>,
    },
    /// Two names changed places (RENAME_EXCHANGE).
    Exchanged {
        /// The directory of the first name.
        first_parent: Ino,
        /// The first name.
        first_name: Vec<u8>,
        /// The directory of the second name.
        second_parent: Ino,
        /// The second name.
        second_name: Vec<u8>,
        /// What stood at `first_path` before and stands at `second_path` now.
        first_ino: Ino,
        /// What stood at `second_path` before and stands at `first_path` now.
        second_ino: Ino,
        /// The first name's tree path: exact at this place of the stream.
        first_path: Vec<u8>,
        /// The second name's tree path: exact at this place of the stream.
        second_path: Vec<u8>,
    },
    /// Attributes that the plain files carry too changed (mode, owner, times, xattrs).
    Attributes {
        /// Whose.
        ino: Ino,
        /// Its first link's tree path: exact at this place of the stream.
        path: Vec<u8>,
    },
    /// A new version was published by `home`: other copies are old now.
    Published {
        /// Of which file.
        ino: Ino,
        /// Its first link's tree path when it was published: a hint, a rename may have come in between.
        path: Vec<u8>,
        /// The version that is current now.
        version: u64,
        /// Who published it and holds it.
        home: NodeId,
    },
    /// Files that a scan found stand in a directory now, each under its first name.
    Entered {
        /// The directory.
        parent: Ino,
        /// Those files, and perhaps some whose names were taken.
        inos: Vec<Ino>,
    },
}

impl Event {
    /// The inodes whose records it may have changed.
    pub fn inos(&self) -> Vec<Ino> {
        match self {
            Event::Linked { ino, .. }
            | Event::Unlinked { ino, .. }
            | Event::Attributes { ino, .. }
            | Event::Published { ino, .. } => vec![*ino],
            Event::Renamed { ino, replaced, .. } => {
                [Some(*ino), *replaced].into_iter().flatten().collect()
            }
            Event::Exchanged {
                first_ino,
                second_ino,
                ..
            } => vec![*first_ino, *second_ino],
            Event::Entered { inos, .. } => inos.clone(),
        }
    }
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
