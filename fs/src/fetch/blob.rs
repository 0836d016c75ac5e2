//! Brings payloads: contents that are named by their hash alone and belong to no file of the tree.
use super::backing::{Backing, SMALL_BYTES, WholeCopy};
use super::core::{ContentKind, Core, Opening, Shared};
use super::flight::{Claim, Claims};
use super::scratch::Scratch;
use super::surroundings::{blob_locator, blocking, store_error};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::{Hash, NodeId};
use crate::store::Store;
use crate::store::partial::ContentKey;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

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
    let under_way = (size > SMALL_BYTES)
        .then(|| UnderWay::create(store, size))
        .transpose()?;
    let backing = match &under_way {
        None => Backing::small(size, None),
        Some(under_way) => {
            let file = under_way.file.try_clone()?;
            Backing::scratch(size, Scratch::new(file, size, u64::MAX))
        }
    };
    let core = Core::new(opening(hash, size, holders, backing), shared.clone());
    let _closes = Closes(core.clone());
    core.fetch_whole(|_| {}).await?;
    let store = store.clone();
    match under_way {
        Some(under_way) => blocking(move || under_way.finish(&store, hash)).await,
        None => {
            let Some(WholeCopy::Bytes(data, _)) = core.backing().whole_copy()? else {
                return Err(FsError::Io(std::io::Error::other("a payload is not whole")));
            };
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
        kind: ContentKind::Payload,
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
    fn create(store: &Store, size: u64) -> Result<Self, FsError> {
        store.ensure_room(size).map_err(store_error)?;
        let (file, path) = store.new_blob().map_err(store_error)?;
        Ok(Self { path, file })
    }

    /// It is whole: it gets its name.
    fn finish(self, store: &Store, hash: Hash) -> Result<PathBuf, FsError> {
        store.commit_blob(&self.path, &hash).map_err(store_error)?;
        Ok(store.blob_path(&hash))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // After `finish` there is nothing to remove.
        let _ = std::fs::remove_file(&self.path);
    }
}
