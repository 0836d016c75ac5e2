//! Serves block requests from the data directory (`ks_transport::blocks::BlockSource`).
//!
//! A request names a file (or a payload) and the hash that its content must have. Always: what is handed out was, when it was
//! looked at, the content of that hash (its `user.ks` says so, the file is untouched since, and its tree has that root); a file
//! that somebody changed since is refused. A file may be changed in place while it is being sent: the receiver checks every byte.
//!
//! Open contents are kept, at most [`CONTENTS_MAX`], so that a sequential fetch of many ranges opens its file once; each request
//! looks at the file's size and times again.
//!
//! Not for finding holders or hashing what nobody asked for.
use super::files::is_not_that_file;
use super::meta::{self, ctime_ns, mtime_ns};
use super::{OpenLocal, Store, StoreError, lock};
use crate::{
    path::TreePath,
    record::{Hash, Ino},
};
use ks_transport::{
    BoxFuture,
    blocks::{BlockRequest, BlockSource, Content, Outboard, Refusal},
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// At most so many contents are kept open for the next request.
pub const CONTENTS_MAX: usize = 256;
/// How long a request waits for what is being fetched here: less than who asks waits for a holder that sends nothing.
const UNDER_WAY_WAIT: Duration = Duration::from_secs(2);
/// A locator is a path and a number; longer ones are nonsense.
const LOCATOR_BYTES_MAX: usize = 64 * 1024;

/// What a block request's locator says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Locator {
    /// A file of the tree. The holder looks at `path` first; where events are still being applied it may stand elsewhere.
    File {
        /// The file.
        ino: Ino,
        /// Its tree path, as the asking node knows it.
        path: Vec<u8>,
    },
    /// A payload by its hash.
    Blob,
}

impl Locator {
    /// As `BlockRequest::locator` carries it.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }

    /// `None`: nonsense.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > LOCATOR_BYTES_MAX {
            return None;
        }
        postcard::from_bytes(bytes).ok()
    }
}

/// Opens what `Locator` names, checks that its `user.ks` says the wanted hash, finds or makes its tree.
pub struct StoreSource {
    /// Where the files are.
    pub store: Arc<Store>,
    /// Asked, once a request at most, where a file stands that is not at the path the peer knows.
    pub catalog: crate::catalog::Catalog,
}

impl BlockSource for StoreSource {
    fn open<'a>(&'a self, request: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(self.find(request))
    }
}

impl StoreSource {
    /// What is being fetched here right now is passed on as it comes: a request for what is still under way waits a little.
    async fn find(&self, request: &BlockRequest) -> Result<Content, Refusal> {
        let found = self.find_now(request).await;
        let Some(Locator::File { ino, .. }) = Locator::decode(&request.locator) else {
            return found;
        };
        let refusal = match found {
            Err(refusal @ (Refusal::NotHere | Refusal::Changed)) => refusal,
            found => return found,
        };
        match self.store.partial_under_way(ino, &request.hash) {
            Some(partial) if partial.has_soon(&request.ranges, UNDER_WAY_WAIT).await => {
                self.find_now(request).await
            }
            _ => Err(refusal),
        }
    }

    async fn find_now(&self, request: &BlockRequest) -> Result<Content, Refusal> {
        let locator = Locator::decode(&request.locator).ok_or(Refusal::NotHere)?;
        if let Some(content) = self.store.contents.get(&locator, request) {
            return Ok(content);
        }
        let Locator::File { ino, ref path } = locator else {
            return self.look(request, &locator, None).await;
        };
        let asked_path = TreePath::new(path).ok_or(Refusal::NotHere)?;
        match self.look(request, &locator, Some(asked_path.clone())).await {
            Err(Refusal::NotHere) => {}
            other => return other,
        }
        // It may have been renamed meanwhile, there or here.
        match self.catalog.path_of(ino).await {
            Ok(Some(path)) if path != asked_path => self.look(request, &locator, Some(path)).await,
            Ok(_) => Err(Refusal::NotHere),
            Err(error) => Err(Refusal::Unreadable(error.to_string())),
        }
    }

    /// Looks on the disk, off the reactor.
    async fn look(
        &self,
        request: &BlockRequest,
        locator: &Locator,
        path: Option<TreePath>,
    ) -> Result<Content, Refusal> {
        let store = Arc::clone(&self.store);
        let (request, locator) = (request.clone(), locator.clone());
        let looked = tokio::task::spawn_blocking(move || match (&locator, path) {
            (Locator::File { ino, .. }, Some(path)) => store.file_content(*ino, &path, &request),
            _ => store.blob_content(&request),
        });
        let looked = looked.await;
        looked.unwrap_or_else(|panic| Err(Refusal::Unreadable(panic.to_string())))
    }
}

impl Store {
    /// The content of a plain file, or of a partial that has all that is asked for.
    pub(super) fn file_content(
        &self,
        ino: Ino,
        path: &TreePath,
        request: &BlockRequest,
    ) -> Result<Content, Refusal> {
        let only_reading = OpenLocal {
            write: false,
            truncate: false,
        };
        let from_file = match self.open_file(path, ino, only_reading) {
            Ok((file, meta)) => self.checked_content(ino, file, &meta, request),
            Err(StoreError::Mismatch { .. }) => Err(Refusal::NotHere),
            Err(error) => Err(Refusal::Unreadable(error.to_string())),
        };
        from_file.or_else(|refusal| self.partial_content(ino, request).ok_or(refusal))
    }

    fn checked_content(
        &self,
        ino: Ino,
        file: File,
        meta: &super::LocalMeta,
        request: &BlockRequest,
    ) -> Result<Content, Refusal> {
        let unreadable = |error: std::io::Error| Refusal::Unreadable(error.to_string());
        let stat = rustix::fs::fstat(&file).map_err(|error| unreadable(error.into()))?;
        let is_other = meta.blake3.is_some_and(|hash| hash != request.hash);
        if !meta::is_untouched(meta, &stat) || meta.size != request.size || is_other {
            return Err(Refusal::Changed);
        }
        let seen = Seen::of(&file).map_err(unreadable)?;
        let known = meta.blake3.and_then(|hash| self.tree(&hash, meta.size));
        let outboard = match known {
            Some(outboard) => outboard,
            None => self.make_tree(ino, &file, meta, request)?,
        };
        let content = Cached {
            file: Arc::new(file),
            size: request.size,
            outboard,
            seen,
        };
        let content = self.contents.keep(ino, request.hash, content);
        Ok(content)
    }

    /// Hashes the file now: its hash or its tree is not known yet. One at a time: others wait and find it done.
    fn make_tree(
        &self,
        ino: Ino,
        file: &File,
        meta: &super::LocalMeta,
        request: &BlockRequest,
    ) -> Result<Outboard, Refusal> {
        let _one_at_a_time = lock(&self.contents.hashing);
        if let Some(outboard) = self.tree(&request.hash, request.size)
            && meta.blake3.is_some()
        {
            return Ok(outboard);
        }
        let unreadable = |error: std::io::Error| Refusal::Unreadable(error.to_string());
        let before = Seen::of(file).map_err(unreadable)?;
        let (hash, outboard) =
            ks_transport::blocks::hash_file(file, request.size).map_err(unreadable)?;
        let after = Seen::of(file).map_err(unreadable)?;
        if before != after || hash != request.hash {
            return Err(Refusal::Changed);
        }
        let kept = self.put_tree(&hash, &outboard).and_then(|()| {
            self.add_hash_to_meta(file, ino, meta.version, hash)
                .map_err(super::io_at(&self.datadir))
        });
        if let Err(error) = kept {
            // It can be served all the same; next time it is computed again.
            tracing::warn!(ino, %error, "the hash tree of a file could not be kept");
        }
        Ok(Outboard::Memory(outboard.into()))
    }

    fn partial_content(&self, ino: Ino, request: &BlockRequest) -> Option<Content> {
        let partial = self.partial_with(ino, &request.hash, &request.ranges)?;
        // What has come may have nodes that are not in the tree's file yet; who is sent others thinks that we lie.
        partial.flush_nodes().ok()?;
        let outboard = match ks_transport::blocks::outboard_len(request.size) {
            0 => Outboard::Memory(bytes::Bytes::new()),
            _ => Outboard::File(Arc::clone(partial.tree_file())),
        };
        (partial.key().size == request.size).then(|| Content {
            file: Arc::clone(partial.data_file()),
            size: request.size,
            outboard,
        })
    }

    pub(super) fn blob_content(&self, request: &BlockRequest) -> Result<Content, Refusal> {
        let unreadable = |error: std::io::Error| Refusal::Unreadable(error.to_string());
        let file = match File::open(self.blob_path(&request.hash)) {
            Ok(file) => file,
            Err(error) if is_not_that_file(&error) => return Err(Refusal::NotHere),
            Err(error) => return Err(unreadable(error)),
        };
        let seen = Seen::of(&file).map_err(unreadable)?;
        if seen.size != request.size {
            return Err(Refusal::Changed);
        }
        let outboard = match self.tree(&request.hash, request.size) {
            Some(outboard) => outboard,
            None => {
                let _one_at_a_time = lock(&self.contents.hashing);
                let (hash, outboard) =
                    ks_transport::blocks::hash_file(&file, request.size).map_err(unreadable)?;
                if hash != request.hash {
                    return Err(Refusal::Changed);
                }
                // Computed again next time if it cannot be kept.
                let _ = self.put_tree(&hash, &outboard);
                Outboard::Memory(outboard.into())
            }
        };
        let content = Cached {
            file: Arc::new(file),
            size: request.size,
            outboard,
            seen,
        };
        Ok(self.contents.keep(0, request.hash, content))
    }
}

/// What a file looked like when its content was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    size: u64,
    mtime: i64,
    ctime: i64,
}

impl Seen {
    fn of(file: &File) -> std::io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            size: stat.st_size as u64,
            mtime: mtime_ns(&stat),
            ctime: ctime_ns(&stat),
        })
    }
}

#[derive(Clone)]
struct Cached {
    file: Arc<File>,
    size: u64,
    outboard: Outboard,
    seen: Seen,
}

impl Cached {
    fn content(&self) -> Content {
        Content {
            file: Arc::clone(&self.file),
            size: self.size,
            outboard: self.outboard.clone(),
        }
    }
}

/// Contents that were asked for lately, open.
#[derive(Default)]
pub(super) struct ContentCache {
    /// By inode (0: a payload) and hash; with the time of its last use.
    contents: Mutex<HashMap<(Ino, Hash), (u64, Cached)>>,
    clock: AtomicU64,
    /// Held while a file is hashed because a peer waits for it.
    hashing: Mutex<()>,
}

impl ContentCache {
    fn get(&self, locator: &Locator, request: &BlockRequest) -> Option<Content> {
        let ino = match locator {
            Locator::File { ino, .. } => *ino,
            Locator::Blob => 0,
        };
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut contents = lock(&self.contents);
        let (used, cached) = contents.get_mut(&(ino, request.hash))?;
        let is_same = Seen::of(&cached.file).is_ok_and(|seen| seen == cached.seen);
        if is_same && cached.size == request.size {
            *used = now;
            return Some(cached.content());
        }
        contents.remove(&(ino, request.hash));
        None
    }

    /// The file is given up: its space is not to be held.
    pub(super) fn forget(&self, ino: Ino) {
        lock(&self.contents).retain(|(of, _), _| *of != ino);
    }

    fn keep(&self, ino: Ino, hash: Hash, content: Cached) -> Content {
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let given = content.content();
        let mut contents = lock(&self.contents);
        if contents.len() >= CONTENTS_MAX
            && let Some(oldest) = contents
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(key, _)| *key)
        {
            contents.remove(&oldest);
        }
        contents.insert((ino, hash), (now, content));
        given
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
#[allow(clippy::single_range_in_vec_init)] // one range is meant
mod tests;
