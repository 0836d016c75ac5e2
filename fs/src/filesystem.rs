//! The file system without a kernel: every operation as an async function, testable without a mount.
//!
//! Who takes part: the catalog (names, attributes, versions), the store and its applier (plain files), the fetcher (contents
//! from peers), other nodes' file systems (`crate::peer`). The parts: `open_plan` decides how an open is served, `handles` keeps
//! what is open, `opening` opens (`ahead`: small remote files), `data` reads and writes, `writing` publishes (`unpublished`: what could not be), `names` and `attributes` change the tree,
//! `behind` takes in what happens in the data directory behind the daemon's back, `remote` serves other nodes' handles, `locking` locks, `location` answers who holds what, `changes` hears of what others changed, `scrub` re-reads what is here.
//!
//! What always holds: a file is written at its home and nowhere else; what `flush` acknowledged is in the catalog; every
//! wait on another node or on the catalog has a deadline.
use crate::{
    catalog::{Catalog, Committed, nodes::NodeState},
    error::FsError,
    fetch::Fetcher,
    locks::Locks,
    path::TreePath,
    record::*,
    store::{
        Store,
        apply::Applier,
        hasher::Hasher,
        source::StoreSource,
        watch::{Listener, Watches},
    },
    usage::Usage,
};
use ks_transport::{
    blocks::BlockServer,
    endpoint::{Handler, StreamKind},
    pool::PeerPool,
};
use std::{
    fs::File,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Semaphore;

mod ahead;
mod attributes;
mod behind;
mod changes;
mod checking;
pub(crate) mod copies;
mod data;
mod eviction;
pub(crate) mod handles;
mod location;
mod locking;
mod mapped;
mod md5;
mod names;
mod neighbours;
mod open_plan;
mod opening;
mod pushing;
mod recovered;
mod remote;
mod replicas;
mod scrub;
mod unpublished;
mod writing;
mod xattrs;

pub use changes::{Change, Watcher};
pub use checking::{CheckedCopy, Verified};
pub use data::WriteManner;
pub use location::{Copy_, Where};
pub use locking::Locking;
pub use names::NAME_BYTES_MAX;
pub use pushing::{PushProgress, Pushed};
pub(crate) use remote::Remote;
pub(crate) use writing::Stamp;

/// An open file's handle number.
pub type Handle = u64;

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Thread that asks; 0: not known.
    pub pid: u32,
}

/// How an opened inode is served. One inode is open in one mode at a time: the kernel refuses passthrough beside cached.
#[derive(Debug)]
pub enum Opened {
    /// Hand this file to the kernel; reads never come back.
    Passthrough {
        /// The handle.
        handle: Handle,
        /// The plain file.
        file: Arc<File>,
    },
    /// Reads come to us through the page cache.
    Cached {
        /// The handle.
        handle: Handle,
        /// The kernel's pages are of this version.
        keep_cache: bool,
    },
    /// Reads and writes come to us, uncached.
    Direct {
        /// The handle.
        handle: Handle,
    },
}

impl Opened {
    /// The handle's number.
    pub fn handle(&self) -> Handle {
        match self {
            Opened::Passthrough { handle, .. }
            | Opened::Cached { handle, .. }
            | Opened::Direct { handle } => *handle,
        }
    }
}

/// What is kept here of other nodes' files, and of this node's on others.
#[derive(Clone, Copy, Debug)]
pub struct Keeping {
    /// How much fetched data is kept.
    pub cache_limit: crate::copies::eviction::CacheLimit,
    /// A node that has not been heard of for so long: copies it had are made again elsewhere.
    pub repair_after: std::time::Duration,
    /// How many copies are kept of the files whose home this node is, where neither they nor a directory above have a number of their own.
    pub replicas: usize,
    /// Every file here is re-read once in that time; zero: never.
    pub scrub_every: std::time::Duration,
}

impl Default for Keeping {
    fn default() -> Self {
        Self {
            cache_limit: Default::default(),
            repair_after: std::time::Duration::from_secs(600),
            replicas: 1,
            scrub_every: std::time::Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// What a node is started with (the file system's part).
pub struct FileSystemOptions {
    /// The data directory.
    pub datadir: std::path::PathBuf,
    /// The node's name.
    pub node_name: String,
    /// Bytes of the disk that are left free.
    pub keep_free_bytes: u64,
    /// What the daemon's buffers may take.
    pub memory_limit_bytes: usize,
    /// Nothing new is stored on this node.
    pub read_only: bool,
    /// Whether whole local files may be handed to the kernel.
    pub passthrough: bool,
    /// How much is kept.
    pub keeping: Keeping,
    /// Whether what others do in the data directory is followed while the node runs.
    pub watch: bool,
}

/// The whole file system of a node.
pub struct FileSystem {
    options: FileSystemOptions,
    store: Arc<Store>,
    catalog: Catalog,
    pool: PeerPool,
    fetcher: Arc<Fetcher>,
    applier: Arc<Applier>,
    hasher: Arc<Hasher>,
    usage: Usage,
    blocks: Arc<BlockServer>,
    table: handles::Table,
    mapped: mapped::Mapped,
    /// What was written here and is not published.
    unpublished: unpublished::Unpublished,
    clock: writing::Clock,
    locks: Arc<Locks>,
    others_space: Mutex<Space>,
    looking_at_space: Arc<Semaphore>,
    /// Who goes through which directory.
    neighbours: Mutex<neighbours::Neighbours>,
    /// Turns of fetches of what they open next.
    fetching_ahead: Arc<Semaphore>,
    watcher: RwLock<Option<Arc<dyn Watcher>>>,
    passthrough: AtomicBool,
    counts: Counts,
    /// One MD5 is computed at a time.
    md5_turn: tokio::sync::Mutex<()>,
    /// Files of this node that may lack copies.
    owed: replicas::Owed,
    /// How far the scrub is.
    scrubbed: Mutex<Option<crate::copies::scrub::Progress>>,
    /// Ends the scrub with the file system.
    scrub: Mutex<Option<scrub::Guard>>,
    /// Where writers ask for the room of fetched copies.
    room: Arc<eviction::Room>,
    /// What is being made, and may not stand in the data directory yet.
    making: behind::Making,
    /// Hears of what happens in the data directory; `None`: the system does not tell.
    watches: Option<Arc<Watches>>,
    /// Ends the hearing with the file system.
    listener: Mutex<Option<Listener>>,
}

/// How long the mount waits for the scan of a data directory that was in the tree before.
const SCAN_WAIT: std::time::Duration = std::time::Duration::from_secs(4);

/// How long `statfs` waits for what the catalog knows of the other nodes' space.
const SPACE_WAIT: std::time::Duration = std::time::Duration::from_millis(100);

/// What `statfs` tells, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// The disks of all live nodes.
    pub total_bytes: u64,
    /// What is free on them.
    pub free_bytes: u64,
    /// What is free on this node's, where this node's new files go.
    pub free_here_bytes: u64,
}

/// Counters for `ks status`, the bench and tests; all since the start.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counters {
    /// FUSE_READ requests that reached the daemon (a passthrough read does not).
    pub reads: u64,
    /// Bytes they returned.
    pub read_bytes: u64,
    /// Writes that reached the daemon.
    pub writes: u64,
    /// Opens and creates.
    pub opens: u64,
    /// Those that the kernel serves by itself.
    pub opens_passthrough: u64,
    /// From peers, hashes included.
    pub bytes_fetched: u64,
    /// To peers, hashes included.
    pub bytes_sent: u64,
    /// Open now.
    pub open_handles: u64,
    /// Whether whole local files are handed to the kernel.
    pub passthrough: bool,
}

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    opens: AtomicU64,
    opens_passthrough: AtomicU64,
}

impl FileSystem {
    /// Puts the parts together; catches up with events, scans the data directory. Returns when the tree is complete, or, where most of it
    /// was in the tree before, after `SCAN_WAIT` at the latest: the rest is compared in the background.
    pub async fn start(
        options: FileSystemOptions,
        store: Arc<Store>,
        catalog: Catalog,
        pool: PeerPool,
    ) -> Result<Arc<Self>, FsError> {
        let events = changes::Events::default();
        store.set_node_name(&options.node_name);
        let applier = Applier::start(store.clone(), catalog.clone(), events.on_event()).await?;
        let hasher = Hasher::start(store.clone(), catalog.clone());
        let is_behind = catalog.is_behind();
        if is_behind {
            recovered::tell(&store, &catalog, &hasher).await?;
        }
        let (watches, listener) = match options.watch {
            true => behind::listen(&store),
            false => (None, None),
        };
        let name = &options.node_name;
        // What the tree knows of it already need not be waited for; a first scan, and one of a tree that was rebuilt, must.
        let may_be_cut = watches.is_some() && !is_behind;
        let until = may_be_cut.then(|| tokio::time::Instant::now() + SCAN_WAIT);
        let watched = watches.as_ref();
        let scanned =
            crate::store::scan::scan(&store, &catalog, &hasher, name, watched, until).await;
        let report = scanned?;
        if is_behind {
            catalog.has_caught_up().await?;
        }
        tracing::info!(
            files = report.files,
            new = report.new,
            changed = report.changed,
            conflicts = report.conflicts.len(),
            "{}",
            match report.is_cut_short {
                true =>
                    "the data directory is being compared with the tree; the mount does not wait for the rest",
                false => "the data directory is in the tree",
            }
        );
        let fetcher = Fetcher::new(
            store.clone(),
            catalog.clone(),
            applier.clone(),
            pool.clone(),
            options.memory_limit_bytes,
            options.read_only,
        );
        let source = StoreSource {
            store: store.clone(),
            catalog: catalog.clone(),
        };
        let owed = replicas::Owed::of(options.keeping.replicas);
        let clock = writing::Clock::probe(&store.state_dir())?;
        let file_system = Arc::new(Self {
            passthrough: AtomicBool::new(options.passthrough),
            locks: Locks::new(catalog.clone()),
            others_space: Mutex::default(),
            looking_at_space: Arc::new(Semaphore::new(1)),
            neighbours: Mutex::default(),
            fetching_ahead: Arc::new(Semaphore::new(ahead::FETCHES_MAX)),
            options,
            store,
            catalog,
            pool,
            fetcher,
            applier,
            hasher,
            usage: Usage::default(),
            blocks: Arc::new(BlockServer::new(Arc::new(source))),
            table: handles::Table::default(),
            mapped: mapped::Mapped::default(),
            unpublished: Default::default(),
            clock,
            watcher: RwLock::new(None),
            counts: Counts::default(),
            md5_turn: Default::default(),
            owed,
            scrubbed: Mutex::default(),
            scrub: Mutex::default(),
            room: Default::default(),
            making: Default::default(),
            watches,
            listener: Mutex::new(listener),
        });
        events.attach(&file_system);
        behind::spawn(&file_system, report.is_cut_short);
        eviction::spawn(&file_system);
        replicas::spawn(&file_system);
        recovered::spawn(&file_system);
        unpublished::spawn(&file_system);
        let every = file_system.options.keeping.scrub_every;
        *file_system.scrub.lock().unwrap() = scrub::spawn(&file_system, every);
        Ok(file_system)
    }

    /// The peers' side: handlers for the endpoint (BLOCKS, FILES).
    pub fn handlers(self: &Arc<Self>) -> Vec<(StreamKind, Arc<dyn Handler>)> {
        let files = crate::peer::server::FileServer::new(self);
        let copies = crate::copies::server::CopyServer::new(self);
        vec![
            (StreamKind::BLOCKS, self.blocks.clone()),
            (StreamKind::FILES, Arc::new(files)),
            (crate::copies::COPIES, Arc::new(copies)),
        ]
    }

    /// The catalog.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The data directory.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What brings contents from peers.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// What watched process groups used.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Counters, now.
    pub fn counters(&self) -> Counters {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            reads: count(&self.counts.reads),
            read_bytes: count(&self.counts.read_bytes),
            writes: count(&self.counts.writes),
            opens: count(&self.counts.opens),
            opens_passthrough: count(&self.counts.opens_passthrough),
            bytes_fetched: count(&self.fetcher.counters().bytes_fetched),
            bytes_sent: self.blocks.bytes_sent(),
            open_handles: self.table.len() as u64,
            passthrough: self.passthrough.load(Ordering::Relaxed),
        }
    }

    /// The kernel, its rights or the disk do not allow passthrough: decided once, for all files. `why` is logged.
    pub fn refuse_passthrough(&self, why: &str) {
        if self.passthrough.swap(false, Ordering::AcqRel) {
            tracing::warn!("local files are read through the daemon: {why}");
        }
    }

    /// A handle that was to be passed through, and that the kernel does not take so (it has not heard of it yet).
    pub fn without_passthrough(&self, handle: Handle) -> Result<Opened, FsError> {
        self.counts
            .opens_passthrough
            .fetch_sub(1, Ordering::Relaxed);
        self.table.without_passthrough(handle)
    }

    /// The kernel has dropped an inode, and its pages with it.
    pub fn forgotten(&self, ino: Ino) {
        self.table.pages_unknown(Some(ino));
    }

    /// The cluster's space, as far as it is known: no answer is waited for.
    pub async fn statfs(self: &Arc<Self>) -> Space {
        let (total, free) = match self.store.space() {
            Ok(space) => (space.total, space.free),
            Err(error) => {
                tracing::warn!(%error, "the data directory's disk does not say its space");
                (0, 0)
            }
        };
        if let Some(looking) = self.look_at_space()
            && self.catalog.is_answering()
        {
            // What was known before is told where the answer does not come at once.
            let _ = tokio::time::timeout(SPACE_WAIT, looking).await;
        }
        let others = *self.others_space.lock().unwrap();
        Space {
            total_bytes: total + others.total_bytes,
            free_bytes: free + others.free_bytes,
            free_here_bytes: free,
        }
    }

    /// Asks for the other nodes' space; one at a time, and whoever does not wait for it finds it the next time.
    fn look_at_space(self: &Arc<Self>) -> Option<tokio::task::JoinHandle<()>> {
        let running = self.looking_at_space.clone().try_acquire_owned().ok()?;
        let file_system = self.clone();
        Some(tokio::spawn(async move {
            match file_system.catalog.nodes().await {
                Ok(nodes) => {
                    *file_system.others_space.lock().unwrap() = file_system.of_others(&nodes)
                }
                Err(error) => tracing::debug!(%error, "the other nodes' space is not known now"),
            }
            drop(running);
        }))
    }

    fn of_others(&self, nodes: &[NodeState]) -> Space {
        let mut space = Space::default();
        for node in nodes
            .iter()
            .filter(|node| node.alive && node.id != self.me())
        {
            space.total_bytes += node.info.total_bytes;
            space.free_bytes += node.info.free_bytes;
        }
        space
    }

    /// Stops in order: publishes what is open for writing, saves partial maps, tells the catalog.
    pub async fn stop(&self) {
        drop(self.scrub.lock().unwrap().take());
        drop(self.listener.lock().unwrap().take());
        for writing in self.table.all_writing() {
            if let Err(error) = self.publish(&writing).await {
                tracing::warn!(ino = writing.ino, %error, "not published at the end; the next start finds it");
            }
        }
        self.locks.end().await;
        let store = self.store.clone();
        let stopped = tokio::task::spawn_blocking(move || store.stop()).await;
        match stopped {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the data directory was not closed in order"),
            Err(error) => tracing::warn!(%error, "the data directory was not closed in order"),
        }
    }

    fn me(&self) -> NodeId {
        self.catalog.me()
    }

    /// Applies a change of this node's to its data directory, in its place.
    async fn own<T>(&self, committed: &Committed<T>) {
        let Some(event) = &committed.change else {
            return;
        };
        let applied = self
            .applier
            .own(committed.event, committed.previous, event)
            .await;
        if let Err(error) = applied {
            tracing::warn!(%error, ?event, "the data directory is behind the tree; it follows when the next event is applied");
        }
    }

    /// The path of an inode's first link, or the root's where it has none.
    async fn path_of(&self, ino: Ino) -> TreePath {
        match self.catalog.path_of(ino).await {
            Ok(Some(path)) => path,
            Ok(None) => TreePath::root(),
            Err(error) => {
                tracing::debug!(ino, %error, "its path is not known now");
                TreePath::root()
            }
        }
    }

    /// The name of a node, for people.
    async fn node_name(&self, node: NodeId) -> String {
        let nodes = self.catalog.nodes().await.unwrap_or_default();
        let known = nodes.iter().find(|state| state.id == node);
        known.map_or_else(|| node.to_string(), |state| state.info.name.clone())
    }
}

/// Runs what may wait for the disk without holding up the other tasks of this thread.
fn on_disk<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let several_threads = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    match several_threads {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}
