//! A plain file that is open for writing at its home, and when what was written becomes a version that others see.
//!
//! One `Writing` per inode, shared by all who write it here: handles of the kernel and handles of other nodes.
//! While it is open the file's `user.ks` says a size no file has, so that the copy counts as dirty and its blocks are not
//! served under the old hash. Passthrough writes never come to us; what changed is seen from size and mtime.
use super::{FileSystem, Time};
use crate::{
    catalog::CatalogError,
    error::FsError,
    record::{Hash, Ino},
    store::{DIRTY_SIZE, LocalMeta, Store, hasher},
};
use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Kernels before 6.13 stamp files with a clock that ticks every 1 to 10 ms: there, a stamp younger than this when it was
/// taken may hide a later change.
const COARSE_CLOCK: Duration = Duration::from_millis(20);
/// How often a content that changes under the hashing is tried again before it is published without its hash.
const HASH_TRIES_MAX: usize = 2;

/// A plain file's size and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

impl Stamp {
    pub(crate) fn of(file: &File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            size: metadata.size(),
            mtime: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
            ctime: metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
        })
    }
}

/// Nanoseconds since 1970, now.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |duration| duration.as_nanos() as Time)
}

/// What was published last.
#[derive(Clone, Debug)]
struct Published {
    meta: LocalMeta,
    /// The mtime was so young that a change right after it need not show.
    coarse: bool,
    /// `user.ks` says dirty now.
    marked: bool,
}

impl Published {
    /// Whether the file may differ from what was published.
    fn differs(&self, stamp: Stamp) -> bool {
        self.coarse || stamp.size != self.meta.size || stamp.mtime != self.meta.mtime
    }
}

/// See the module.
pub(crate) struct Writing {
    pub(crate) ino: Ino,
    pub(crate) file: Arc<File>,
    /// Something was certainly changed since the last publication, whatever size and mtime say.
    written: AtomicBool,
    published: tokio::sync::Mutex<Published>,
}

impl Writing {
    /// Starts writing on an opened plain file (`meta`: its `user.ks` as it was).
    pub(crate) fn start(
        store: &Store,
        file: File,
        meta: LocalMeta,
        truncated: bool,
    ) -> Result<Self, FsError> {
        mark_dirty(store, &file, &meta)?;
        Ok(Self::marked(file, meta, truncated))
    }

    /// As `start`, on a file whose `user.ks` says already that it is written.
    pub(crate) fn marked(file: File, meta: LocalMeta, truncated: bool) -> Self {
        Self {
            ino: meta.ino,
            file: Arc::new(file),
            written: AtomicBool::new(truncated),
            published: tokio::sync::Mutex::new(Published {
                meta,
                coarse: false,
                marked: true,
            }),
        }
    }

    /// Another open for writing: the file counts as dirty again.
    pub(crate) async fn opened_again(&self, store: &Store, truncate: bool) -> Result<(), FsError> {
        let mut published = self.published.lock().await;
        if !published.marked {
            mark_dirty(store, &self.file, &published.meta)?;
            published.marked = true;
        }
        if truncate {
            self.file.set_len(0)?;
            self.touch();
        }
        Ok(())
    }

    /// Something was changed by the daemon itself.
    pub(crate) fn touch(&self) {
        self.written.store(true, Ordering::Release);
    }

    pub(crate) fn stamp(&self) -> Result<Stamp, FsError> {
        Ok(Stamp::of(&self.file)?)
    }
}

/// Says in the file itself that it is being written.
pub(super) fn mark_dirty(store: &Store, file: &File, meta: &LocalMeta) -> Result<(), FsError> {
    let dirty = LocalMeta {
        size: DIRTY_SIZE,
        ..meta.clone()
    };
    Ok(store.set_meta(file, &dirty)?)
}

/// A content, measured and (where it is small) hashed.
struct Measured {
    stamp: Stamp,
    hash: Option<Hash>,
    outboard: Vec<u8>,
}

fn measure(file: &File) -> std::io::Result<Measured> {
    let mut stamp = Stamp::of(file)?;
    for _ in 0..HASH_TRIES_MAX {
        if stamp.size > hasher::INLINE_BYTES {
            break;
        }
        let hashed = ks_transport::blocks::hash_file(file, stamp.size);
        let after = Stamp::of(file)?;
        if let (Ok((hash, outboard)), true) = (hashed, after == stamp) {
            return Ok(Measured {
                stamp,
                hash: Some(hash),
                outboard,
            });
        }
        stamp = after;
    }
    Ok(Measured {
        stamp,
        hash: None,
        outboard: Vec::new(),
    })
}

impl FileSystem {
    /// Makes what was written a version that others see; returns when they can. Nothing happens when nothing changed.
    pub(crate) async fn publish(&self, writing: &Writing) -> Result<(), FsError> {
        let mut published = writing.published.lock().await;
        let written = writing.written.swap(false, Ordering::AcqRel);
        let outcome = self.publish_locked(writing, &mut published, written).await;
        if outcome.is_err() && written {
            writing.touch();
        }
        match &outcome {
            Ok(()) | Err(FsError::Stale) => self.unpublished.settle(writing.ino),
            Err(_) => self.note_unpublished(writing.ino).await,
        }
        outcome
    }

    async fn publish_locked(
        &self,
        writing: &Writing,
        published: &mut Published,
        written: bool,
    ) -> Result<(), FsError> {
        let stamp = writing.stamp()?;
        if !written && !published.differs(stamp) {
            return self.clean(writing, published);
        }
        if stamp.size > hasher::INLINE_BYTES && self.clock.may_hide_changes(stamp) {
            tokio::time::sleep(COARSE_CLOCK).await;
        }
        let measured = measure(&writing.file)?;
        if !written && same_content(published, &measured) {
            published.coarse = self.clock.may_hide_changes(measured.stamp);
            return self.clean(writing, published);
        }
        if let (Some(hash), false) = (&measured.hash, measured.outboard.is_empty()) {
            self.store.put_tree(hash, &measured.outboard)?;
        }
        let Measured { stamp, hash, .. } = measured;
        let publication = crate::catalog::Publication {
            size: stamp.size,
            mtime: stamp.mtime,
            ctime: stamp.ctime,
            blake3: hash,
        };
        let epoch = published.meta.epoch;
        let committed = match self.catalog.publish(writing.ino, epoch, publication).await {
            Ok(committed) => committed,
            Err(CatalogError::Posix(libc::ESTALE)) => {
                return self.nothing_to_publish(writing).await;
            }
            Err(error) => return Err(error.into()),
        };
        let inode = &committed.value.inode;
        published.meta = LocalMeta {
            ino: writing.ino,
            version: inode.version,
            epoch: inode.epoch,
            home: inode.home,
            size: stamp.size,
            mtime: stamp.mtime,
            blake3: hash,
        };
        published.coarse = self.clock.may_hide_changes(stamp);
        published.marked = true;
        self.clean(writing, published)?;
        self.table.written_through(writing.ino, inode.version);
        self.own(&committed).await;
        if hash.is_none() {
            self.queue_hash(writing.ino, inode.version).await;
        }
        Ok(())
    }

    /// Unlinked while it was open: nobody can see it any more, and all is well. Else another node is its home by now.
    async fn nothing_to_publish(&self, writing: &Writing) -> Result<(), FsError> {
        match self.catalog.located(writing.ino).await? {
            None => Ok(()),
            Some(_) => Err(FsError::Stale),
        }
    }

    /// The plain file is what was published: its blocks may be served (until size or mtime differ again).
    fn clean(&self, writing: &Writing, published: &mut Published) -> Result<(), FsError> {
        if published.marked && published.meta.size != DIRTY_SIZE {
            self.store.set_meta(&writing.file, &published.meta)?;
            published.marked = false;
        }
        Ok(())
    }

    async fn queue_hash(&self, ino: Ino, version: u64) {
        if let Ok(Some(path)) = self.catalog.path_of(ino).await {
            self.hasher.queue(path, ino, version);
        }
    }
}

/// Only the clock was too coarse to tell: the bytes are those that were published.
fn same_content(published: &Published, measured: &Measured) -> bool {
    measured.hash.is_some()
        && measured.hash == published.meta.blake3
        && measured.stamp.mtime == published.meta.mtime
}

/// How the data directory's file system stamps files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// A change after a look at the stamp always shows.
    Fine,
    /// Changes within one tick share a stamp.
    Coarse,
}

impl Clock {
    /// Finds out with a file of its own in `directory`.
    pub(crate) fn probe(directory: &Path) -> std::io::Result<Self> {
        let path = directory.join(format!("clock-{}", std::process::id()));
        let outcome = Self::probe_with(&path);
        std::fs::remove_file(&path)?;
        outcome
    }

    fn probe_with(path: &Path) -> std::io::Result<Self> {
        let file = File::create(path)?;
        let mut stamps = Vec::new();
        for byte in 0..4 {
            file.write_all_at(&[byte], 0)?;
            stamps.push(Stamp::of(&file)?.mtime);
        }
        let all_differ = stamps.windows(2).all(|pair| pair[0] != pair[1]);
        Ok(if all_differ {
            Clock::Fine
        } else {
            Clock::Coarse
        })
    }

    fn may_hide_changes(self, stamp: Stamp) -> bool {
        self == Clock::Coarse && now() - stamp.mtime < COARSE_CLOCK.as_nanos() as Time
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::NodeId;

    fn published(size: u64, mtime: Time, coarse: bool) -> Published {
        Published {
            meta: LocalMeta {
                ino: 5,
                version: 1,
                epoch: 1,
                home: NodeId(1),
                size,
                mtime,
                blake3: None,
            },
            coarse,
            marked: false,
        }
    }

    #[test]
    fn a_change_is_seen_from_size_or_mtime_and_a_coarse_clock_is_not_trusted() {
        let stamp = Stamp {
            size: 10,
            mtime: 100,
            ctime: 7,
        };
        assert!(!published(10, 100, false).differs(stamp));
        assert!(published(11, 100, false).differs(stamp));
        assert!(published(10, 101, false).differs(stamp));
        assert!(published(10, 100, true).differs(stamp));
        assert!(published(DIRTY_SIZE, 100, false).differs(stamp));
    }

    #[test]
    fn a_young_stamp_of_a_coarse_clock_may_hide_changes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let young = Stamp::of(&file).unwrap();
        assert_eq!(young.size, 3);
        assert!(Clock::Coarse.may_hide_changes(young));
        assert!(!Clock::Fine.may_hide_changes(young));
        let old = Stamp {
            mtime: young.mtime - COARSE_CLOCK.as_nanos() as Time,
            ..young
        };
        assert!(!Clock::Coarse.may_hide_changes(old));
    }
}
