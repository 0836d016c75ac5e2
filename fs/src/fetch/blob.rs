//! Brings payloads: contents that are named by their hash alone and belong to no file of the tree.
use super::backing::{Backing, SMALL_BYTES, WholeCopy};
use super::core::{Core, Opening, Shared};
use super::flight::{Claim, Claims};
use super::scratch::Scratch;
use super::surroundings::{blob_locator, blocking, store_error};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::{Hash, NodeId};
use crate::store::Store;
use crate::store::partial::ContentKey;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells the files of payloads under way apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Brings a payload into the store; those who want the same one wait for the first.
pub async fn fetch(
    store: &Arc<Store>,
    shared: &Shared,
    claims: &Claims<Hash>,
    hash: Hash,
    size: u64,
    holders: &[NodeId],
) -> Result<PathBuf, FsError> {
    loop {
        if store.has_blob(&hash) {
            return Ok(store.blob_path(&hash));
        }
        match claims.claim(hash) {
            Claim::Owner(_owner) => return bring(store, shared, hash, size, holders).await,
            Claim::InFlight(other) => other.ended().await,
        }
    }
}

async fn bring(
    store: &Arc<Store>,
    shared: &Shared,
    hash: Hash,
    size: u64,
    holders: &[NodeId],
) -> Result<PathBuf, FsError> {
    let place = store.blob_path(&hash);
    let under_way = (size > SMALL_BYTES)
        .then(|| UnderWay::create(&place))
        .transpose()?;
    let backing = match &under_way {
        None => Backing::small(size),
        Some(under_way) => {
            let file = under_way.file.try_clone()?;
            Backing::scratch(size, Scratch::new(file, size, u64::MAX))
        }
    };
    let core = Core::new(opening(hash, size, holders, backing), shared.clone());
    let _closes = Closes(core.clone());
    core.fetch_whole(|_| {}).await?;
    match under_way {
        Some(under_way) => blocking(move || under_way.finish(&place)).await,
        None => {
            let Some(WholeCopy::Bytes(data, _)) = core.backing().whole_copy()? else {
                return Err(FsError::Io(std::io::Error::other("a payload is not whole")));
            };
            let store = store.clone();
            blocking(move || {
                let (put, _) = store.put_blob(&[&data]).map_err(store_error)?;
                Ok(store.blob_path(&put))
            })
            .await
        }
    }
}

fn opening(hash: Hash, size: u64, holders: &[NodeId], backing: Backing) -> Opening {
    Opening {
        key: ContentKey {
            ino: 0,
            version: 0,
            size,
            hash,
        },
        path: TreePath::new(format!(".payload/{}", hex::encode(hash)).as_bytes())
            .unwrap_or_default(),
        inode: None,
        locator: blob_locator(),
        holders: holders.to_vec(),
        backing,
    }
}

/// Ends what is under way when the fetch ends or is cancelled.
struct Closes(Arc<Core>);

impl Drop for Closes {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A payload's file before it is whole; removed unless finished.
struct UnderWay {
    path: PathBuf,
    file: File,
}

impl UnderWay {
    fn create(place: &Path) -> Result<Self, FsError> {
        if let Some(directory) = place.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = place.with_extension(format!("fetch-{}-{number}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self { path, file })
    }

    /// It is whole: it gets its name.
    fn finish(self, place: &Path) -> Result<PathBuf, FsError> {
        self.file.sync_data()?;
        std::fs::rename(&self.path, place)?;
        Ok(place.to_owned())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove.
        let _ = std::fs::remove_file(&self.path);
    }
}
