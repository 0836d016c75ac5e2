//! Payloads on their way: what came as segments of a frame is kept inline or as blobs; blobs are brought here for those who read them.
use super::Executor;
use crate::protocol::{INLINE_BYTES, Outcome, Part, Payload};
use crate::queue::limits::SPILLED_BYTES;
use bytes::Bytes;
use ks_fs::error::FsError;
use ks_fs::record::{Hash, NodeId};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a payload's file is kept after it was last needed: as long as a job may wait, and its record is kept.
const BLOB_KEEP: Duration = Duration::from_secs(2 * 24 * 3600);

/// Why a payload cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// A part refers to a segment that did not come.
    #[error("a part of the payload refers to segment {0}, which is not in the frame")]
    NoSegment(u32),
    /// A part refers to a blob by what is no hash.
    #[error("a part of the payload refers to a blob by {0} bytes where a hash has 32")]
    NoHash(usize),
    /// The disk does not take it.
    #[error("a payload of {size} bytes cannot be kept: {reason}")]
    Store {
        /// Bytes.
        size: usize,
        /// What the store says.
        reason: String,
    },
    /// The disk of the node that is to read it does not take it.
    #[error("a payload of {size} bytes cannot be brought to node {node}: {reason}")]
    NoRoom {
        /// Bytes.
        size: u64,
        /// The node that is to read it: its name.
        node: String,
        /// What the store says.
        reason: String,
    },
    /// No node gives it.
    #[error("a payload of {size} bytes cannot be had from node {keeper}: {reason}")]
    Fetch {
        /// Bytes.
        size: u64,
        /// The node that should have it.
        keeper: NodeId,
        /// What went wrong.
        reason: String,
    },
}

impl PayloadError {
    /// The Python exception's name.
    pub fn kind(&self) -> &'static str {
        match self {
            PayloadError::Fetch { .. } => "NodeLost",
            _ => "PayloadError",
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_millis() as u64
}

/// The bytes of a part that came in a frame.
pub(super) fn part_bytes(part: &Part, segments: &[Bytes]) -> Result<Option<Bytes>, PayloadError> {
    match part {
        Part::Inline(bytes) => Ok(Some(Bytes::copy_from_slice(bytes))),
        Part::Segment(index) => match segments.get(*index as usize) {
            Some(segment) if *index > 0 => Ok(Some(segment.clone())),
            _ => Err(PayloadError::NoSegment(*index)),
        },
        Part::Blob { .. } => Ok(None),
    }
}

pub(super) fn hash_of(bytes: &[u8]) -> Result<Hash, PayloadError> {
    bytes
        .try_into()
        .map_err(|_| PayloadError::NoHash(bytes.len()))
}

/// Whether a payload's parts are inline as they should be: the common case, for which nothing is to be done.
pub(super) fn is_plain(payload: &Payload) -> bool {
    payload
        .parts
        .iter()
        .all(|part| matches!(part, Part::Inline(bytes) if bytes.len() <= INLINE_BYTES))
}

/// The payload of an outcome.
pub(super) fn payload_of(outcome: &mut Outcome) -> Option<&mut Payload> {
    match outcome {
        Outcome::Returned(payload) => Some(payload),
        Outcome::Raised { exception, .. } => exception.as_mut(),
        Outcome::Failed { .. } => None,
    }
}

impl Executor {
    /// Makes parts that came in a frame ones that can be kept: inline, or blobs of this node.
    pub(super) async fn keep_payload(
        &self,
        payload: &mut Payload,
        segments: &[Bytes],
    ) -> Result<(), PayloadError> {
        if is_plain(payload) {
            return Ok(());
        }
        let mut blobs = Vec::new();
        for part in &mut payload.parts {
            let Some(bytes) = part_bytes(part, segments)? else {
                if let Part::Blob { hash, path, .. } = part {
                    blobs.push(hash_of(hash)?);
                    *path = None;
                }
                continue;
            };
            *part = if bytes.len() <= INLINE_BYTES {
                Part::Inline(bytes.to_vec().into())
            } else {
                let (hash, blob) = self.blob_part(bytes).await?;
                blobs.push(hash);
                blob
            };
        }
        self.need_blobs(&blobs).await;
        Ok(())
    }

    /// Makes blobs of parts that are kept inline but for the smallest: Redis has no room for them. Returns those it made: to be noted
    /// as needed (`need_blobs`).
    pub(super) async fn spill_payload(
        &self,
        payload: &mut Payload,
    ) -> Result<Vec<Hash>, PayloadError> {
        let mut made = Vec::new();
        for part in &mut payload.parts {
            if let Part::Inline(bytes) = part
                && bytes.len() > SPILLED_BYTES
            {
                let bytes = Bytes::from(std::mem::take(bytes).into_vec());
                let (hash, blob) = self.blob_part(bytes).await?;
                *part = blob;
                made.push(hash);
            }
        }
        Ok(made)
    }

    /// A part whose bytes are a blob of this node.
    async fn blob_part(&self, bytes: Bytes) -> Result<(Hash, Part), PayloadError> {
        let (hash, size) = self.put_blob(bytes).await?;
        let part = Part::Blob {
            hash: hash.to_vec().into(),
            size,
            path: None,
        };
        Ok((hash, part))
    }

    /// Writes a blob.
    pub(super) async fn put_blob(&self, bytes: Bytes) -> Result<(Hash, u64), PayloadError> {
        let store = self.fs.store().clone();
        let size = bytes.len();
        let failed = |reason: String| PayloadError::Store { size, reason };
        let written = tokio::task::spawn_blocking(move || store.put_blob(&[&bytes])).await;
        written
            .map_err(|e| failed(e.to_string()))?
            .map_err(|e| failed(e.to_string()))
    }

    /// Brings a blob here, from the node that keeps it.
    pub(super) async fn bring_blob(
        &self,
        hash: Hash,
        size: u64,
        keeper: NodeId,
    ) -> Result<PathBuf, PayloadError> {
        let store = self.fs.store();
        if store.has_blob(&hash) {
            return Ok(store.blob_path(&hash));
        }
        let failed = |reason: String| PayloadError::Fetch {
            size,
            keeper,
            reason,
        };
        if keeper == self.me().node {
            return Err(failed("it is not there any more".into()));
        }
        let fetched = self.fs.fetcher().blob(hash, size, &[keeper]).await;
        let path = fetched.map_err(|error| match error {
            FsError::NoSpace => PayloadError::NoRoom {
                size,
                node: self.options.node_name.clone(),
                reason: error.to_string(),
            },
            error => failed(error.to_string()),
        })?;
        self.need_blobs(&[hash]).await;
        Ok(path)
    }

    /// Brings a payload's blobs here and says in each part where it is.
    pub(super) async fn bring_payload(
        &self,
        payload: &mut Payload,
        keeper: NodeId,
    ) -> Result<(), PayloadError> {
        for part in &mut payload.parts {
            if let Part::Blob { hash, size, path } = part {
                let file = self.bring_blob(hash_of(hash)?, *size, keeper).await?;
                *path = Some(file.as_os_str().as_bytes().to_vec().into());
            }
        }
        Ok(())
    }

    /// Whether all of a payload's blobs are here already; then each part says where.
    pub(super) fn find_payload(&self, payload: &mut Payload) -> bool {
        let store = self.fs.store();
        let mut all = true;
        for part in &mut payload.parts {
            if let Part::Blob { hash, path, .. } = part {
                match hash_of(hash) {
                    Ok(hash) if store.has_blob(&hash) => {
                        *path = Some(
                            store
                                .blob_path(&hash)
                                .as_os_str()
                                .as_bytes()
                                .to_vec()
                                .into(),
                        );
                    }
                    _ => all = false,
                }
            }
        }
        all
    }

    /// Reads a payload's blobs (which are here) into segments, for one who cannot open them.
    pub(super) async fn read_payload(
        &self,
        payload: &mut Payload,
    ) -> Result<Vec<Bytes>, PayloadError> {
        let mut segments = Vec::new();
        for part in &mut payload.parts {
            if let Part::Blob { hash, size, .. } = part {
                let path = self.fs.store().blob_path(&hash_of(hash)?);
                let size = *size as usize;
                let failed = |reason: String| PayloadError::Store { size, reason };
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
                let bytes = read
                    .map_err(|e| failed(e.to_string()))?
                    .map_err(|e| failed(e.to_string()))?;
                segments.push(Bytes::from(bytes));
                *part = Part::Segment(segments.len() as u32);
            }
        }
        Ok(segments)
    }

    /// Notes that blobs of this node are needed for a while. One that is not noted is not removed: so an error costs disk only.
    pub(super) async fn need_blobs(&self, hashes: &[Hash]) {
        if hashes.is_empty() {
            return;
        }
        let until = now_ms() + BLOB_KEEP.as_millis() as u64;
        if let Err(error) = self.queue.keep_blobs(hashes, until).await {
            tracing::warn!(%error, "payload files are kept for longer than needed, as it cannot be noted until when");
        }
    }

    /// Removes payload files that nobody needs any more; returns how many.
    pub(super) async fn sweep_blobs(&self) -> usize {
        const SWEPT_MAX: usize = 1_000;
        let spent = match self.queue.spent_blobs(now_ms(), SWEPT_MAX).await {
            Ok(spent) => spent,
            Err(error) => {
                tracing::debug!(%error, "payload files that are not needed any more cannot be listed");
                return 0;
            }
        };
        let store = self.fs.store().clone();
        let count = spent.len();
        let remove = move || {
            for hash in spent {
                let path = store.blob_path(&hash);
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(path = %path.display(), %error, "a payload file cannot be removed");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(remove).await;
        count
    }
}
