//! Serves `StreamKind::FILES`: the home's side of forwarded handles, and hashes on demand.
//!
//! A handle lives as long as its stream, which ends with its connection, however long it is idle. A stream that asks for nothing, or takes no answer, ends within
//! [`REQUEST_DEADLINE`] or [`ANSWER_DEADLINE`]. However the stream ends, what was written through it is published.
use super::{DATA_BYTES_MAX, FileReply, FileRequest, HASH_PATIENCE, MESSAGE_BYTES_MAX};
use crate::{
    error::FsError,
    filesystem::{FileSystem, Remote},
    record::Ino,
};
use ks_transport::frame::FrameError;
use ks_transport::{BoxFuture, endpoint::Handler, frame::Stream, identity::PeerIdentity};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Streams that are served at once, one for each file that another node has open here for writing; more are refused.
const STREAMS_MAX: usize = 4096;
/// Who opens a stream says what it wants within this time.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Who asked takes the answer within this time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The handler; the endpoint keeps it, so it does not keep the file system.
pub(crate) struct FileServer {
    file_system: Weak<FileSystem>,
    places: Arc<Semaphore>,
}

impl FileServer {
    pub(crate) fn new(file_system: &Arc<FileSystem>) -> Self {
        Self {
            file_system: Arc::downgrade(file_system),
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

impl Handler for FileServer {
    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (file_system, places) = (self.file_system.clone(), self.places.clone());
        Box::pin(async move {
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            let Ok(_place) = places.try_acquire_owned() else {
                let busy = failed(&FsError::TooManyOpen(STREAMS_MAX));
                let _ = say(&mut stream, &busy).await;
                return;
            };
            let Ok(request) = timeout(REQUEST_DEADLINE, stream.read(MESSAGE_BYTES_MAX)).await
            else {
                tracing::warn!(peer = %peer.name, address = %peer.address, "a file stream that asks for nothing was ended");
                return;
            };
            match request {
                Ok(Some(FileRequest::Hash { ino, version })) => {
                    let reply = hash(&file_system, ino, version).await;
                    let _ = say(&mut stream, &reply).await;
                }
                Ok(Some(FileRequest::Open {
                    ino,
                    write,
                    truncate,
                })) => serve_open(&file_system, &peer, stream, ino, write, truncate).await,
                Ok(Some(_)) | Ok(None) => {}
                Err(error) => {
                    tracing::warn!(peer = %peer.name, address = %peer.address, %error, "a file request that cannot be read");
                }
            }
        })
    }
}

/// One answer; an error also where nobody takes it.
async fn say(stream: &mut Stream, reply: &FileReply) -> Result<(), FrameError> {
    let written = timeout(ANSWER_DEADLINE, stream.write(reply)).await;
    written.unwrap_or_else(|_| {
        let why = format!("the answer was not taken within {ANSWER_DEADLINE:?}");
        Err(FrameError::Connection(why))
    })
}

async fn hash(file_system: &FileSystem, ino: Ino, version: u64) -> FileReply {
    // The computing goes on when nobody waits any more.
    match tokio::time::timeout(HASH_PATIENCE, file_system.hash_for_peer(ino, version)).await {
        Ok(Ok(hash)) => FileReply::Hash(hash),
        Ok(Err(error)) => failed(&error),
        Err(_) => FileReply::Hashing,
    }
}

async fn serve_open(
    file_system: &Arc<FileSystem>,
    peer: &PeerIdentity,
    mut stream: Stream,
    ino: Ino,
    write: bool,
    truncate: bool,
) {
    let opened = file_system.open_for_peer(ino, write, truncate).await;
    let remote = match opened {
        Ok(remote) => remote,
        Err(error) => {
            let _ = say(&mut stream, &failed(&error)).await;
            return;
        }
    };
    let served = serve_requests(file_system, &remote, &mut stream).await;
    if let Err(error) = served {
        tracing::warn!(peer = %peer.name, address = %peer.address, ino, %error, "a forwarded file ended early");
    }
    file_system.close_for_peer(remote).await;
}

async fn serve_requests(
    file_system: &Arc<FileSystem>,
    remote: &Remote,
    stream: &mut Stream,
) -> Result<(), FrameError> {
    let stamp = remote.stamp();
    let opened = match stamp {
        Ok(stamp) => FileReply::Opened {
            size: stamp.size,
            mtime: stamp.mtime,
        },
        Err(error) => failed(&error),
    };
    say(stream, &opened).await?;
    while let Some(request) = stream.read(MESSAGE_BYTES_MAX).await? {
        let reply = match answer(file_system, remote, request).await {
            Ok(reply) => reply,
            Err(error) => failed(&error),
        };
        say(stream, &reply).await?;
    }
    Ok(())
}

async fn answer(
    file_system: &Arc<FileSystem>,
    remote: &Remote,
    request: FileRequest,
) -> Result<FileReply, FsError> {
    Ok(match request {
        FileRequest::Read { offset, len } => FileReply::Data(
            remote
                .read(offset, (len as usize).min(DATA_BYTES_MAX))
                .await?,
        ),
        FileRequest::Write {
            offset,
            data,
            clear_privileges,
        } => {
            let len = data.len() as u32;
            let offset = file_system
                .write_for_peer(remote, Some(offset), data, clear_privileges)
                .await?;
            FileReply::Written { offset, len }
        }
        FileRequest::Append {
            data,
            clear_privileges,
        } => {
            let len = data.len() as u32;
            let offset = file_system
                .write_for_peer(remote, None, data, clear_privileges)
                .await?;
            FileReply::Written { offset, len }
        }
        FileRequest::Truncate { size } => {
            file_system.truncate_for_peer(remote, size).await?;
            FileReply::Done
        }
        FileRequest::Attributes => {
            let stamp = remote.stamp()?;
            FileReply::Attributes {
                size: stamp.size,
                mtime: stamp.mtime,
                ctime: stamp.ctime,
            }
        }
        FileRequest::Allocate { offset, len, mode } => {
            file_system
                .allocate_for_peer(remote, offset, len, mode)
                .await?;
            FileReply::Done
        }
        FileRequest::Seek { offset, whence } => FileReply::Position(remote.seek(offset, whence)?),
        FileRequest::Sync => {
            file_system.publish_for_peer(remote, true).await?;
            FileReply::Done
        }
        FileRequest::Close => {
            file_system.publish_for_peer(remote, false).await?;
            FileReply::Done
        }
        FileRequest::Hash { .. } | FileRequest::Open { .. } => {
            return Err(FsError::Invalid("not on an open handle"));
        }
    })
}

fn failed(error: &FsError) -> FileReply {
    FileReply::Failed {
        errno: error.to_errno(),
        message: error.to_string(),
    }
}
