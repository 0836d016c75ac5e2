//! The catalog in Redis: names, versions, holders, nodes. One shared truth; every change is one atomic script.
//!
//! Keys (all begin with `ks:`): `ks:meta` (hash: format, cluster, next_ino) · `ks:i:<ino>` (encoded Inode) · `ks:d:<ino>` (hash: name -> Entry;
//! the illegal names `/t` and `/n` keep the directory's change time and its number of subdirectories) · `ks:l:<ino>` (set of parent+name: further hard links) ·
//! `ks:h:<ino>` (hash: NodeId -> encoded Holding) · `ks:nodes` (hash: NodeId -> encoded NodeInfo) · `ks:alive:<node>` (expires with the heart-beat) · `ks:renewed` (when it was renewed last: `redis_client/absence`) · `ks:events` (stream of encoded Events) · `ks:troubles` (what needs a person: `troubles`).
//! Locks have keys of their own (`crate::locks`).
//!
//! Who takes part: `namespace` decides what a change is (pure), `transaction` is the change as a value (pure),
//! `commit.lua` carries it out and tells it, `feed` is what was told, `cache` remembers what was read (pure), `reads`, `changes`, `adopt`, `events` and
//! `nodes` are the shells around them.
//!
//! Every change is also told on the channel `ks:changes`, with who made it, the keys it touched and its event: what others
//! changed is dropped from memory, what this node changed itself stays as it left it. (Redis's own tracking cannot tell the two
//! apart: up to 7.0 it takes what a script of ours changed for another's.)
//!
//! What always holds: what is remembered is current as far as what is told has come; `located` and `locate_path` always ask,
//! and so does a `lookup` of a name that is not there, but for one case (`cache`). Data never goes through here.
//!
//! While Redis is away: what is remembered stays, and answers at once (nobody can change it meanwhile, but for what was under way
//! when the connection went); of directories the last known attributes do, too. The rest fails, at once when Redis has been away
//! for a while (`redis_client::BRIDGED`). With the next connection all of it is forgotten.
mod adopt;
pub mod cache;
mod changes;
pub mod copies;
mod events;
mod feed;
mod fence;
pub mod forgotten;
mod found;
pub mod journal;
mod memory;
pub mod namespace;
pub mod nodes;
mod numbers;
mod reads;
pub mod recovery;
mod rollback;
pub mod transaction;
pub mod troubles;

pub(crate) use rollback::Ground;

use crate::{
    path::TreePath,
    record::*,
    redis_client::{Push, Redis, RedisError, RedisTarget},
};
use memory::Memory;
use namespace::{ParentTime, attributes, rename};
use redis::Value;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use transaction::{Check, Operation, Place, Transaction};

/// The format of what is in Redis; another one is refused.
const FORMAT: &str = "1";

/// Why the catalog did not answer, or said no.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Redis did not answer or refused.
    #[error(transparent)]
    Redis(#[from] RedisError),
    /// Redis has something that this program cannot read.
    #[error(transparent)]
    Damaged(#[from] DamagedRecord),
    /// The Redis was filled by another version of the program.
    #[error(
        "the catalog in this redis has format {found}, this program has format {FORMAT}: use the program that made it, or another redis or database"
    )]
    Format {
        /// What it says.
        found: String,
    },
    /// The Redis has the tree of another cluster than the data directory belongs to.
    #[error(
        "this redis has the tree of another cluster ({found}): give the nodes their own redis again, or start this one anew to join that cluster"
    )]
    Foreign {
        /// That cluster.
        found: String,
    },
    /// The journal in the data directory cannot be read or written.
    #[error("the journal (.ks/journal in the data directory): {0}")]
    Journal(String),
    /// What POSIX says no to: ENOENT, EEXIST, ENOTDIR, EISDIR, ENOTEMPTY, EINVAL, ...
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Posix(i32),
    /// Changed under us more often than we retry.
    #[error("too much contention on {0}")]
    Contention(String),
}

/// An inode with the attributes the catalog derives.
#[derive(Clone, Debug)]
pub struct Node_ {
    /// Its number.
    pub ino: Ino,
    /// Its record.
    pub inode: Arc<Inode>,
    /// Directories: change time of their entries (or what utimens said since): the mtime to show. Others: their mtime.
    pub dir_time: Time,
    /// Directories: 2 + subdirectories. Others: hard links.
    pub nlink: u32,
}

/// A position in the event stream ("ms-seq" of Redis, comparable).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct EventId(pub u64, pub u64);

/// A whole directory.
#[derive(Debug)]
pub struct Listing {
    /// Names with what they stand for, by name.
    pub entries: Vec<(Vec<u8>, Node_)>,
}

/// A file's current record and who holds copies of it.
#[derive(Clone, Debug)]
pub struct Located {
    /// The file.
    pub node: Node_,
    /// Every copy, whole or not, current or not.
    pub holders: Vec<(NodeId, Holding)>,
}

/// What a committed change says: where it stands in the event stream and what stood before it (so that the
/// caller can tell whether its data directory is up to date), and what it made.
#[derive(Clone, Debug)]
pub struct Committed<T> {
    /// Its event's id; 0-0 when nothing had to be done.
    pub event: EventId,
    /// The id of the last event before it.
    pub previous: EventId,
    /// The operation's result.
    pub value: T,
    /// What all nodes are told; `None` when nothing had to be done (a rename of a name onto itself).
    pub change: Option<Event>,
}

/// Told which inodes' records or directories others changed; `None`: all of them. Must not block.
pub type OnChange = Arc<dyn Fn(Option<Ino>) + Send + Sync>;

/// Told of messages on the channels that users of the catalog's connection subscribed to (the channel's name), and
/// (`None`) when the connection was made anew. Must not block.
pub type OnNews = Arc<dyn Fn(Option<&[u8]>) + Send + Sync>;

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Catalog {
    shared: Arc<Shared>,
}

struct Shared {
    redis: Redis,
    me: NodeId,
    memory: Arc<Memory>,
    on_change: OnChange,
    on_news: Arc<OnceLock<OnNews>>,
    numbers: numbers::Numbers,
    nonce: AtomicU64,
    feed: Arc<feed::Feed>,
    nodes: nodes::NodesMemory,
    cluster: String,
    journal: Option<Arc<journal::Journal>>,
    fence: fence::Fence,
}

/// What changes attributes (setattr, chmod, chown, utimens).
#[derive(Clone, Debug, Default)]
pub struct AttributeChange {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
    /// Change time; now where it is not given.
    pub ctime: Option<Time>,
}

/// A content that became current.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Bytes.
    pub size: u64,
    /// When it was last written.
    pub mtime: Time,
    /// When anything of it last changed.
    pub ctime: Time,
    /// Its hash, where it is known already.
    pub blake3: Option<Hash>,
}

/// The time now, nanoseconds since 1970.
pub(crate) fn now() -> Time {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    Time::try_from(since.as_nanos()).unwrap_or(Time::MAX)
}

impl EventId {
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let (milliseconds, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(milliseconds.parse().ok()?, sequence.parse().ok()?))
    }
    pub(crate) fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::BulkString(text) => Self::parse(text),
            Value::SimpleString(text) => Self::parse(text.as_bytes()),
            _ => None,
        }
    }
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// How changes of this very handle are recognised among those that are told. (One that was given up may be carried out later; it
/// counts as another's, see `Memory`.)
#[derive(Clone, Copy)]
struct Own {
    me: NodeId,
    first_nonce: u64,
}

impl Own {
    /// More changes than one process makes.
    const NONCES: u64 = 1 << 48;

    fn made(&self, told: &feed::Told) -> bool {
        told.origin == self.me
            && (self.first_nonce..self.first_nonce + Self::NONCES).contains(&told.nonce)
    }
}

/// Hears what Redis pushes.
struct Listener {
    memory: Arc<Memory>,
    nodes: nodes::NodesMemory,
    feed: Arc<feed::Feed>,
    on_change: OnChange,
    on_news: Arc<OnceLock<OnNews>>,
    own: Own,
}

impl Listener {
    /// What a push means for what is remembered, and whom it is told.
    fn take(&self, push: Push) {
        match push {
            Push::Message { channel, payload } if channel == feed::CHANNEL => {
                match feed::Told::parse(&payload) {
                    Some(told) => self.told(&told),
                    None => tracing::error!(
                        "a message on ks:changes makes no sense; is another version of the program in this cluster?"
                    ),
                }
            }
            Push::Reset => {
                self.memory.locked().reset();
                self.nodes.forget();
                self.feed.reset();
                (self.on_change)(None);
                self.news(None);
            }
            Push::Message { channel, .. } => self.news(Some(&channel)),
            Push::Invalidated(_) => {}
        }
    }

    /// Tells who listens to messages of other parts.
    fn news(&self, channel: Option<&[u8]>) {
        if let Some(on_news) = self.on_news.get() {
            on_news(channel);
        }
    }

    fn told(&self, told: &feed::Told) {
        let own = self.own.made(told) && self.memory.trusts(told.nonce);
        if !own {
            let mut cache = self.memory.locked();
            told.touched
                .iter()
                .for_each(|place| cache.invalidate(*place));
            drop(cache);
            let mut inos: Vec<Ino> = told.touched.iter().filter_map(Place::ino).collect();
            inos.sort_unstable();
            inos.dedup();
            inos.into_iter().for_each(|ino| (self.on_change)(Some(ino)));
        }
        self.feed.put(told, !own);
    }
}

impl Catalog {
    /// Opens (and at first makes) the tree, without a journal: for what only looks, and tests. See `open_journaled`.
    pub async fn open(
        redis_target: RedisTarget,
        me: NodeId,
        on_change: OnChange,
    ) -> Result<Self, CatalogError> {
        Self::open_with(redis_target, me, on_change, None).await
    }

    /// Opens (and at first makes) the tree; where Redis has lost it, it is rebuilt. `on_change` is told which inodes' records or directories
    /// changed elsewhere; `None`: all of them. What this handle changes is noted in the journal.
    pub async fn open_journaled(
        redis_target: RedisTarget,
        me: NodeId,
        on_change: OnChange,
        journal: journal::Journal,
    ) -> Result<Self, CatalogError> {
        Self::open_with(redis_target, me, on_change, Some(Arc::new(journal))).await
    }

    async fn open_with(
        redis_target: RedisTarget,
        me: NodeId,
        on_change: OnChange,
        journal: Option<Arc<journal::Journal>>,
    ) -> Result<Self, CatalogError> {
        let memory = Arc::new(Memory::default());
        let nodes = nodes::NodesMemory::default();
        let feed = Arc::new(feed::Feed::default());
        let on_news: Arc<OnceLock<OnNews>> = Arc::default();
        let mut seed = [0u8; 8];
        let hash = blake3::hash(format!("{me} {} {}", std::process::id(), now()).as_bytes());
        seed.copy_from_slice(&hash.as_bytes()[..8]);
        // Half the range at most, so that it never wraps.
        let first_nonce = u64::from_le_bytes(seed) >> 1;
        let own = Own { me, first_nonce };
        let listener = Listener {
            memory: memory.clone(),
            nodes: nodes.clone(),
            feed: feed.clone(),
            on_change: on_change.clone(),
            on_news: on_news.clone(),
            own,
        };
        let redis = Redis::connect(
            redis_target,
            true,
            Arc::new(move |push| listener.take(push)),
        )
        .await?;
        redis.subscribe(feed::CHANNEL).await?;
        let opened = recovery::open_tree(&redis, journal.as_ref(), me).await?;
        let catalog = Self {
            shared: Arc::new(Shared {
                redis,
                me,
                memory,
                on_change,
                on_news,
                numbers: numbers::Numbers::default(),
                nonce: AtomicU64::new(own.first_nonce),
                feed,
                nodes,
                cluster: opened.cluster,
                journal,
                fence: fence::Fence::new(opened.is_behind),
            }),
        };
        if opened.is_behind {
            catalog.bring_late().await?;
        }
        // Known from the start: it is asked for whatever else Redis does.
        if let Err(error) = catalog.node(ROOT).await {
            tracing::warn!(%error, "the tree's root cannot be read; run: ks doctor");
        }
        Ok(catalog)
    }

    /// The connection, for others' keys.
    pub fn redis(&self) -> &Redis {
        &self.shared.redis
    }

    /// Who is told of messages on the connection; the first one is.
    pub fn on_news(&self, on_news: OnNews) {
        let _ = self.shared.on_news.set(on_news);
    }

    /// Whose handle this is.
    pub fn me(&self) -> NodeId {
        self.shared.me
    }

    /// This catalog's random name, made with its tree: event positions of another one mean nothing here.
    pub fn cluster(&self) -> &str {
        &self.shared.cluster
    }

    /// Tells `on_change` of an own change that the kernel did not ask for.
    pub(crate) fn tell_own(&self, ino: Ino) {
        (self.shared.on_change)(Some(ino));
    }

    // -- reads: cached while Redis tracks the keys for us, else one round trip

    /// An inode by number.
    pub async fn node(&self, ino: Ino) -> Result<Option<Node_>, CatalogError> {
        self.node_(ino).await
    }

    /// Always asks Redis: what `open` uses, so that close-to-open holds. One round trip.
    pub async fn located(&self, ino: Ino) -> Result<Option<Located>, CatalogError> {
        self.located_(ino).await
    }

    /// What is remembered of an inode, and its path: no round trip, and perhaps a moment older than the catalog.
    pub fn remembered(&self, ino: Ino) -> Option<(Node_, TreePath)> {
        self.remembered_(ino)
    }

    /// The inodes of a directory in the order of their names, where it is remembered whole and has at most `names_max`.
    pub fn remembered_order(&self, directory: Ino, names_max: usize) -> Option<Vec<Ino>> {
        let names = {
            let mut cache = self.shared.memory.locked();
            match cache.names_known(directory) {
                count if count > names_max => None,
                _ => cache.names(directory),
            }
        };
        let mut names = names?;
        names.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Some(names.into_iter().map(|(_, entry)| entry.ino).collect())
    }

    /// What is remembered of an inode, and only while Redis is known to be away: it was current when the connection went.
    pub fn remembered_while_away(&self, ino: Ino) -> Option<Node_> {
        self.remembered_while_away_(ino)
    }

    /// A name; one round trip unless it is remembered. That it is not there is asked for afresh, unless this node alone has just
    /// been changing that directory.
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Node_>, CatalogError> {
        self.lookup_(parent, name).await
    }

    /// A whole directory: one round trip a thousand names. ENOENT where there is no such directory.
    pub async fn list(&self, dir: Ino) -> Result<Arc<Listing>, CatalogError> {
        self.list_(dir).await
    }

    /// What stands at a path (symlinks are not followed): one round trip unless it is remembered.
    pub async fn resolve(&self, path: &TreePath) -> Result<Option<Node_>, CatalogError> {
        self.resolve_(path).await
    }

    /// As `resolve`, of what is remembered alone; `None`: it is not, or there is nothing. No round trip.
    pub(crate) fn remembered_at(&self, path: &TreePath) -> Option<Node_> {
        self.resolve_remembered(path)
    }

    /// The path of an inode's first link; `None` when it has none any more.
    pub async fn path_of(&self, ino: Ino) -> Result<Option<TreePath>, CatalogError> {
        self.path_of_(ino).await
    }

    /// `resolve` and `located` in one; always asks. One round trip.
    pub async fn locate_path(&self, path: &TreePath) -> Result<Option<Located>, CatalogError> {
        self.walk(path).await
    }

    // -- changes: each is one atomic script, with its event

    /// Enters a new inode; mkdir, symlink and mknod, too, go through it (by `inode.kind`). `parent`, `name`, `nlink` and a
    /// symlink's size are filled in. A file with version 0 becomes version 1: empty, with the hash of nothing, and held
    /// whole by `inode.home` (which the caller sets to this node). One round trip.
    pub async fn create(
        &self,
        parent: Ino,
        name: &[u8],
        inode: Inode,
    ) -> Result<Committed<Node_>, CatalogError> {
        let ino = self.shared.numbers.take(self).await?;
        let label = format!("'{}'", String::from_utf8_lossy(name));
        let committed = self
            .change(&label, |_, now| {
                let time = ParentTime::Changes(now);
                namespace::create(parent, name, ino, inode.clone(), time)
            })
            .await?;
        Ok(committed.map(|inode| fresh_node(ino, inode)))
    }

    /// A further hard link.
    pub async fn link(
        &self,
        ino: Ino,
        parent: Ino,
        name: &[u8],
    ) -> Result<Committed<Node_>, CatalogError> {
        let label = format!("'{}'", String::from_utf8_lossy(name));
        let committed = self
            .change(&label, |known, now| {
                namespace::link(known, ino, parent, name, now)
            })
            .await?;
        Ok(committed.map(|inode| reads::node_of(ino, Arc::new(inode), None)))
    }

    /// Removes a name. `Some(ino)`: the inode went with it.
    pub async fn unlink(
        &self,
        parent: Ino,
        name: &[u8],
    ) -> Result<Committed<Option<Ino>>, CatalogError> {
        let label = format!("'{}'", String::from_utf8_lossy(name));
        self.change(&label, |known, now| {
            namespace::unlink(known, parent, name, now)
        })
        .await
    }

    /// Removes a name, if it stands for what was looked at still, unchanged and with these holders (else ESTALE); a directory only where
    /// it is empty (ENOTEMPTY). `Some(ino)`: the inode went with it.
    pub async fn remove_seen(
        &self,
        parent: Ino,
        name: &[u8],
        seen: &Node_,
        holders: &[(NodeId, Holding)],
    ) -> Result<Committed<Option<Ino>>, CatalogError> {
        let label = format!("'{}'", String::from_utf8_lossy(name));
        self.change(&label, |known, now| {
            let seen = (seen.ino, &*seen.inode);
            namespace::remove_seen(known, parent, name, seen, holders, now)
        })
        .await
    }

    /// Removes an empty directory; the value is its inode's number.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<Committed<Ino>, CatalogError> {
        let label = format!("'{}'", String::from_utf8_lossy(name));
        self.change(&label, |known, now| {
            namespace::rmdir(known, parent, name, now)
        })
        .await
    }

    /// `flags`: RENAME_NOREPLACE (1), RENAME_EXCHANGE (2). Refuses to move a directory into itself (EINVAL).
    pub async fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<Committed<()>, CatalogError> {
        let label = format!("'{}'", String::from_utf8_lossy(name));
        self.change(&label, |known, now| {
            rename::rename(known, (parent, name), (new_parent, new_name), flags, now)
        })
        .await
    }

    /// chmod, chown, utimens.
    pub async fn set_attributes(
        &self,
        ino: Ino,
        change: AttributeChange,
    ) -> Result<Committed<Node_>, CatalogError> {
        let committed = self
            .change(&format!("inode {ino}"), |known, now| {
                attributes::set_attributes(known, ino, &change, now)
            })
            .await?;
        let mut meta = None;
        if committed.value.kind == Kind::Directory {
            // Its count of subdirectories is no part of the change.
            meta = self.node(ino).await?.map(|node| cache::DirectoryMeta {
                time: node.dir_time,
                subdirectories: node.nlink.saturating_sub(2),
            });
        }
        Ok(committed.map(|inode| reads::node_of(ino, Arc::new(inode), meta)))
    }

    /// Sets (`Some`) or removes an extended attribute; `flags`: XATTR_CREATE (1), XATTR_REPLACE (2).
    pub async fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<&[u8]>,
        flags: i32,
    ) -> Result<Committed<()>, CatalogError> {
        self.change(&format!("inode {ino}"), |known, now| {
            attributes::set_xattr(known, ino, name, value, flags, now)
        })
        .await
    }

    /// The home publishes a new version: `version` goes up by one, this node's holding is whole, others are old. Fails (ESTALE) when this node is not the home of `epoch` any more.
    pub async fn publish(
        &self,
        ino: Ino,
        epoch: u32,
        publication: Publication,
    ) -> Result<Committed<Node_>, CatalogError> {
        let me = self.me();
        let committed = self
            .change(&format!("inode {ino}"), |known, _| {
                attributes::publish(known, ino, me, epoch, &publication)
            })
            .await?;
        Ok(committed.map(|inode| reads::node_of(ino, Arc::new(inode), None)))
    }

    /// Adds the hash of a version computed later; no-op when the version is not current any more.
    pub async fn set_hash(&self, ino: Ino, version: u64, hash: Hash) -> Result<(), CatalogError> {
        self.change(&format!("inode {ino}"), |known, _| {
            attributes::set_hash(known, ino, version, hash)
        })
        .await?;
        Ok(())
    }

    /// Adds the MD5 of a version; no-op when the version is not current any more.
    pub async fn set_md5(&self, ino: Ino, version: u64, md5: Md5) -> Result<(), CatalogError> {
        self.change(&format!("inode {ino}"), |known, _| {
            attributes::set_md5(known, ino, version, md5)
        })
        .await?;
        Ok(())
    }

    /// What this node holds of a file now; no-op when the file is gone. One round trip.
    pub async fn set_holding(
        &self,
        ino: Ino,
        holding: Option<Holding>,
    ) -> Result<(), CatalogError> {
        if let Some(holding) = holding {
            return self.add_holding(ino, holding).await.map(|_| ());
        }
        let change = self.holding_change(ino, None);
        let label = format!("inode {ino}");
        let committed = self.change(&label, |_, _| {
            Ok(namespace::Plan {
                transaction: change.clone(),
                value: (),
            })
        });
        committed.await.map(|_| ())
    }

    /// As `set_holding`; `false`: the inode is gone.
    pub async fn add_holding(&self, ino: Ino, holding: Holding) -> Result<bool, CatalogError> {
        let change = self.holding_change(ino, Some(holding));
        let label = format!("inode {ino}");
        let committed = self.change(&label, |_, _| {
            Ok(namespace::Plan {
                transaction: change.clone(),
                value: (),
            })
        });
        match committed.await {
            Ok(_) => {
                self.journal_above(ino);
                Ok(true)
            }
            Err(CatalogError::Posix(libc::ENOENT)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `set_holding` of many files, in one round trip.
    pub async fn set_holdings(&self, held: &[(Ino, Holding)]) -> Result<(), CatalogError> {
        let mut pipeline = redis::pipe();
        for (ino, holding) in held {
            let change = self.holding_change(*ino, Some(*holding));
            pipeline.cmd("EVALSHA").arg(changes::COMMIT.sha1());
            pipeline.arg(1).arg(self.cluster());
            for word in change.arguments(self.me(), self.nonce()) {
                pipeline.arg(word);
            }
        }
        match self.redis().pipe(&pipeline).await {
            Ok(_) => {
                held.iter().for_each(|(ino, _)| self.journal_above(*ino));
                Ok(())
            }
            // Redis does not know the script yet: the calls one by one bring it along.
            Err(RedisError::Refused(_)) => {
                for (ino, holding) in held {
                    self.set_holding(*ino, Some(*holding)).await?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn holding_change(&self, ino: Ino, holding: Option<Holding>) -> Transaction {
        let field = self.me().to_string().into_bytes();
        let place = Place::Holdings(ino);
        let mut change = Transaction::default();
        match holding {
            Some(holding) => {
                change.require(Check::Present(Place::Inode(ino)), libc::ENOENT);
                change.then(Operation::SetField(place, field, holding.to_bytes()));
            }
            None => change.then(Operation::DeleteField(place, field)),
        }
        change
    }

    /// Enters files that a scan found, in batches; parents are made as needed. For each: what stands there now.
    pub async fn adopt(&self, found: Vec<(TreePath, Inode)>) -> Result<Vec<Adopted>, CatalogError> {
        self.adopt_(found).await
    }
}

impl<T> Committed<T> {
    /// The same change with another result.
    pub fn map<U>(self, into: impl FnOnce(T) -> U) -> Committed<U> {
        Committed {
            event: self.event,
            previous: self.previous,
            value: into(self.value),
            change: self.change,
        }
    }
}

/// A new inode as callers see it; a directory is empty.
fn fresh_node(ino: Ino, inode: Inode) -> Node_ {
    let meta = cache::DirectoryMeta {
        time: inode.mtime,
        subdirectories: 0,
    };
    reads::node_of(ino, Arc::new(inode), Some(meta))
}

/// A root directory that was made now.
fn new_root(now: Time) -> Inode {
    Inode {
        kind: Kind::Directory,
        mode: 0o755,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        nlink: 2,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        parent: ROOT,
        name: Vec::new(),
        target: Vec::new(),
        xattrs: Default::default(),
        version: 0,
        epoch: 0,
        home: NodeId::NONE,
        blake3: None,
        md5: None,
    }
}

/// Makes the root directory where there is none, and with it a tree that is whole. Returns what is to be journaled of it.
async fn make_tree(redis: &Redis) -> Result<Vec<journal::Entry>, CatalogError> {
    let now = now();
    let unique = format!("{now} {} {:p}", std::process::id(), &now);
    let cluster = blake3::hash(unique.as_bytes()).to_hex()[..32].to_owned();
    let mut change = Transaction::default();
    for absent in [
        Check::Absent(Place::Inode(ROOT)),
        Check::NoField(Place::Meta, b"cluster".to_vec()),
    ] {
        change.expect(absent);
    }
    change.then(Operation::Set(Place::Inode(ROOT), encode(&new_root(now))));
    namespace::new_directory(&mut change, ROOT, now);
    let first = numbers::first(now);
    for (field, value) in [
        ("format", FORMAT.to_owned()),
        ("cluster", cluster.clone()),
        ("whole", cluster),
        ("next_ino", first.to_string()),
    ] {
        let operation = Operation::SetField(Place::Meta, field.into(), value.into_bytes());
        change.then(operation);
    }
    let words = change.arguments(NodeId::NONE, 0);
    let args: Vec<&[u8]> = words.iter().map(|word| &word[..]).collect();
    let reply = redis.script(&changes::COMMIT, &[], &args).await?;
    Ok(match transaction::Outcome::from_reply(reply) {
        Some(transaction::Outcome::Done { .. }) => {
            journal::entries_of(&change, journal::Stand::default())
        }
        _ => Vec::new(),
    })
}

/// Where a file found by a scan came to stand.
#[derive(Clone, Debug)]
pub enum Adopted {
    /// Entered as new.
    New(Node_),
    /// The tree has something at that path already (decide by size and hash); or, where the path leads through
    /// something that is no directory, that.
    Occupied(Node_),
}

/// The event stream was trimmed: compare the whole data directory instead.
#[derive(Debug, Clone, Copy)]
pub struct EventsTrimmed;
