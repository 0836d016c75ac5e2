//! What a fetch needs of the world around it: peers that send blocks, a catalog that knows the holders, a store that keeps what became whole.
//! `Node` is the real one; tests put doubles in its place that drop, delay, cut and lie.
use super::absence::{Absences, Sign};
use super::backing::WholeCopy;
use super::flight::lock;
use super::holdings::Holdings;
use crate::catalog::Catalog;
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::{Holding, Ino, Md5, NodeId};
use crate::store::apply::Applier;
use crate::store::partial::{ContentKey, Partial};
use crate::store::{Store, StoreError, md5_of, md5_of_file};
use ks_transport::BoxFuture;
use ks_transport::blocks::{self, BlockRequest, BlockSink, FetchError, FetchLimits};
use ks_transport::endpoint::ConnectError;
use ks_transport::pool::{Peer, PeerError, PeerPool, PeerState};
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long a node's address is believed without asking the catalog.
const ADDRESS_FRESH: Duration = Duration::from_secs(5);
/// How long the catalog may take to tell an address or who holds a file.
const CATALOG_WAIT: Duration = Duration::from_secs(1);

/// Who has a content now.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    /// These nodes have all of it.
    Holders(Vec<NodeId>),
    /// The file has another version now, or is gone.
    Changed,
    /// The catalog does not say.
    Unknown,
}

/// A whole content that becomes this node's copy.
pub struct Keep {
    /// Which.
    pub key: ContentKey,
    /// Its path when it was opened.
    pub path: TreePath,
    /// Its bytes.
    pub copy: WholeCopy,
}

/// The world around the fetches of a node.
pub trait Surroundings: Send + Sync + 'static {
    /// Asks `holder` for blocks; what arrives goes into `sink`, in order.
    fn fetch<'a>(
        &'a self,
        holder: NodeId,
        request: &'a BlockRequest,
        limits: FetchLimits,
        sink: &'a mut dyn BlockSink,
    ) -> BoxFuture<'a, Result<u64, FetchError>>;
    /// The node has been looked for in vain for a while: who reads does not wait for it. Quick.
    fn is_away(&self, node: NodeId) -> bool;
    /// Who holds the content now; at most about a second.
    fn locate<'a>(&'a self, key: &'a ContentKey) -> BoxFuture<'a, Whereabouts>;
    /// Makes a whole content a plain file here, and this node a holder.
    fn keep(&self, keep: Keep) -> BoxFuture<'_, Result<(), FsError>>;
    /// Saves the map of a partial file and tells the catalog how much is here.
    fn save(&self, partial: Arc<Partial>) -> BoxFuture<'_, ()>;
    /// Whether the data directory's disk has room for so many bytes more. Quick.
    fn has_room(&self, bytes: u64) -> bool;
    /// What people call the node.
    fn name(&self, node: NodeId) -> BoxFuture<'_, String>;
}

/// The real surroundings.
pub struct Node {
    store: Arc<Store>,
    catalog: Catalog,
    applier: Arc<Applier>,
    holdings: Holdings,
    pool: PeerPool,
    peers: Mutex<HashMap<NodeId, (Peer, Instant)>>,
    absences: Mutex<Absences>,
}

impl Node {
    /// Of the node that has `store`.
    pub fn new(store: Arc<Store>, catalog: Catalog, applier: Arc<Applier>, pool: PeerPool) -> Self {
        Self {
            holdings: Holdings::new(catalog.clone()),
            store,
            catalog,
            applier,
            pool,
            peers: Mutex::new(HashMap::new()),
            absences: Mutex::default(),
        }
    }

    /// The way to a node; its address is asked for at most every few seconds.
    async fn peer(&self, node: NodeId) -> Result<Peer, FetchError> {
        if let Some((peer, since)) = lock(&self.peers).get(&node)
            && since.elapsed() < ADDRESS_FRESH
        {
            return Ok(peer.clone());
        }
        let asked = timeout(CATALOG_WAIT, self.catalog.address_of(node)).await;
        match asked {
            Ok(Ok(Some(address))) => {
                let peer = self.pool.peer(&address);
                lock(&self.peers).insert(node, (peer.clone(), Instant::now()));
                lock(&self.absences).lives(node);
                Ok(peer)
            }
            // A connection that stands says more than a heart-beat that was missed.
            Ok(Ok(None)) => match lock(&self.peers).get(&node) {
                Some((peer, _)) if is_connected(peer) => Ok(peer.clone()),
                _ => {
                    let now = std::time::Instant::now();
                    lock(&self.absences).missed(node, Sign::Dead, now, now);
                    Err(gone(format!("node {node} is not alive")))
                }
            },
            // The catalog does not answer: an address that was good is better than none.
            Ok(Err(_)) | Err(_) => match lock(&self.peers).get(&node) {
                Some((peer, _)) => Ok(peer.clone()),
                None => Err(gone(format!("node {node}, whose address is not known"))),
            },
        }
    }

    /// A connection to `peer`; one that was looked for in vain just now is not waited for as long.
    async fn connected(&self, node: NodeId, peer: &Peer) -> Result<(), FetchError> {
        let patience = lock(&self.absences).patience(node, std::time::Instant::now());
        let Some(patience) = patience.filter(|_| !is_connected(peer)) else {
            return Ok(());
        };
        match timeout(patience, peer.identity()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(FetchError::Peer(error)),
            Err(_) => Err(gone(peer.address().to_owned())),
        }
    }

    /// A whole content is what its BLAKE3 says; an MD5 that says something else was computed wrongly, and is put right.
    async fn check_md5(&self, keep: &Keep, expected: Md5) -> Result<(), FsError> {
        let copy = match &keep.copy {
            WholeCopy::Partial(partial) => Ok(partial.data_file().clone()),
            WholeCopy::Bytes(data, _) => Err(md5_of(&data[..])?),
        };
        let found = match copy {
            Err(md5) => md5,
            Ok(file) => blocking(move || Ok(md5_of_file(&file)?)).await?,
        };
        if found == expected {
            return Ok(());
        }
        tracing::error!(path = %keep.path, "the MD5 that is known of it is not that of its verified bytes; it is put right");
        let (ino, version) = (keep.key.ino, keep.key.version);
        let set = self.catalog.set_md5(ino, version, found).await;
        set.map_err(catalog_error)
    }

    async fn ask(
        &self,
        holder: NodeId,
        request: &BlockRequest,
        limits: FetchLimits,
        sink: &mut dyn BlockSink,
    ) -> Result<u64, FetchError> {
        let peer = self.peer(holder).await?;
        let began = std::time::Instant::now();
        let result = match self.connected(holder, &peer).await {
            Ok(()) => blocks::fetch(&peer, request, limits, sink).await,
            Err(error) => Err(error),
        };
        match &result {
            Err(FetchError::Peer(_)) => {
                lock(&self.peers).remove(&holder);
                let now = std::time::Instant::now();
                lock(&self.absences).missed(holder, Sign::Silent, began, now);
            }
            // It says nothing of the node when our own disk failed, or when it is slow.
            Err(FetchError::Sink(_) | FetchError::Stalled { .. }) => {}
            _ => lock(&self.absences).answered(holder),
        }
        result
    }
}

fn is_connected(peer: &Peer) -> bool {
    matches!(peer.state(), PeerState::Ready | PeerState::Slow)
}

fn gone(who: String) -> FetchError {
    FetchError::Peer(PeerError::Connect(ConnectError::Gone(who)))
}

impl Surroundings for Node {
    fn fetch<'a>(
        &'a self,
        holder: NodeId,
        request: &'a BlockRequest,
        limits: FetchLimits,
        sink: &'a mut dyn BlockSink,
    ) -> BoxFuture<'a, Result<u64, FetchError>> {
        Box::pin(self.ask(holder, request, limits, sink))
    }

    fn is_away(&self, node: NodeId) -> bool {
        lock(&self.absences).is_away(node, std::time::Instant::now())
    }

    fn locate<'a>(&'a self, key: &'a ContentKey) -> BoxFuture<'a, Whereabouts> {
        Box::pin(async move {
            let Ok(Ok(found)) = timeout(CATALOG_WAIT, self.catalog.located(key.ino)).await else {
                return Whereabouts::Unknown;
            };
            match found {
                Some(located) if located.node.inode.version == key.version => {
                    let me = self.catalog.me();
                    let whole = |holding: &Holding| {
                        holding.version == key.version && holding.bytes >= key.size
                    };
                    let nodes = located.holders.iter();
                    let holders = nodes.filter(|(node, h)| *node != me && whole(h));
                    Whereabouts::Holders(holders.map(|(node, _)| *node).collect())
                }
                _ => Whereabouts::Changed,
            }
        })
    }

    fn keep(&self, keep: Keep) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(async move {
            let (ino, version, bytes) = (keep.key.ino, keep.key.version, keep.key.size);
            let holding = Holding {
                version,
                bytes,
                is_put: false,
            };
            let current = self.catalog.node(ino).await.map_err(catalog_error)?;
            let Some(current) = current.filter(|node| node.inode.version == version) else {
                tracing::debug!(path = %keep.path, "not kept: it has another version by now");
                discard(self.store.clone(), keep.key).await;
                return Err(FsError::Stale);
            };
            if let Some(expected) = current.inode.md5 {
                self.check_md5(&keep, expected).await?;
            }
            let store = &self.store;
            if let WholeCopy::Bytes(data, _) = &keep.copy {
                let kept = self.applier.at_path(ino, |path| {
                    store.keep_small(&keep.key, data, path, &current.inode)
                });
                if kept.await.map_err(store_error)? {
                    return self.holdings.tell(ino, holding).await;
                }
            }
            let partial = {
                let store = self.store.clone();
                blocking(move || whole(&store, &keep.key, keep.copy)).await?
            };
            let named = self
                .applier
                .at_path(ino, |path| store.promote(&partial, path, &current.inode));
            named.await.map_err(store_error)?;
            self.holdings.tell(ino, holding).await
        })
    }

    fn save(&self, partial: Arc<Partial>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let key = partial.key().clone();
            let saved = partial.clone();
            let result = blocking(move || saved.save().map_err(store_error)).await;
            if let Err(error) = result {
                tracing::warn!(ino = key.ino, %error, "the map of a partial file was not saved");
                return;
            }
            let holding = Holding {
                version: key.version,
                bytes: partial.had_bytes(),
                is_put: false,
            };
            if let Err(error) = self.holdings.tell(key.ino, holding).await {
                tracing::debug!(ino = key.ino, %error, "the catalog was not told of a partial file");
            }
        })
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.store.ensure_room(bytes).is_ok()
    }

    fn name(&self, node: NodeId) -> BoxFuture<'_, String> {
        Box::pin(async move {
            let nodes = timeout(CATALOG_WAIT, self.catalog.nodes()).await;
            let known = nodes.ok().and_then(Result::ok).and_then(|nodes| {
                let found = nodes.iter().find(|state| state.id == node);
                found.map(|state| state.info.name.clone())
            });
            known.unwrap_or_else(|| node.to_string())
        })
    }
}

/// A whole content as a file of the store's, ready to be given its name.
pub(super) fn whole(
    store: &Store,
    key: &ContentKey,
    copy: WholeCopy,
) -> Result<Arc<Partial>, FsError> {
    match copy {
        WholeCopy::Partial(partial) => Ok(partial),
        WholeCopy::Bytes(data, nodes) => {
            let partial = store.open_partial(key).map_err(store_error)?;
            partial.data_file().write_all_at(&data, 0)?;
            for (offset, pair) in nodes {
                partial.tree_file().write_all_at(&pair, offset)?;
            }
            partial.mark(0..key.size);
            Ok(partial)
        }
    }
}

async fn discard(store: Arc<Store>, key: ContentKey) {
    let ino = key.ino;
    let result = blocking(move || store.discard_partial(&key).map_err(store_error)).await;
    if let Err(error) = result {
        tracing::warn!(ino, %error, "a partial file of an old version was not removed");
    }
}

/// Runs disk work on a thread that may wait.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FsError> + Send + 'static,
) -> Result<T, FsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FsError::Io(std::io::Error::other(error))),
    }
}

/// The store's error as a file operation ends with it.
pub fn store_error(error: StoreError) -> FsError {
    match error {
        StoreError::NoSpace { .. } => FsError::NoSpace,
        StoreError::Io { path, source } => match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => FsError::NoSpace,
            _ => FsError::Io(std::io::Error::new(
                source.kind(),
                format!("{}: {source}", path.display()),
            )),
        },
        other => FsError::Io(std::io::Error::other(other.to_string())),
    }
}

fn catalog_error(error: crate::catalog::CatalogError) -> FsError {
    FsError::Catalog(error.to_string())
}

/// Where a file of the tree is named for its holders.
pub fn file_locator(ino: Ino, path: &TreePath) -> Vec<u8> {
    let locator = crate::store::source::Locator::File {
        ino,
        path: path.as_bytes().to_vec(),
    };
    encode_locator(&locator)
}

/// How holders are asked for a payload.
pub fn blob_locator() -> Vec<u8> {
    encode_locator(&crate::store::source::Locator::Blob)
}

fn encode_locator(locator: &crate::store::source::Locator) -> Vec<u8> {
    postcard::to_allocvec(locator).expect("locators always encode")
}
