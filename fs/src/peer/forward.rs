//! A file that is open at its home, on another node: the asking side.
//!
//! Requests go one after the other. After an error of the stream, or an answer that did not come in time, the handle is
//! broken and every later request fails: what the home did with the last one is not known.
use super::{
    DATA_BYTES_MAX, FileReply, FileRequest, HASH_DEADLINE, MESSAGE_BYTES_MAX, REQUEST_DEADLINE,
};
use crate::{error::FsError, filesystem::Stamp, path::TreePath, record::*};
use bytes::{Bytes, BytesMut};
use ks_transport::{endpoint::StreamKind, frame::Stream, pool::Peer};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// An open that failed sooner than this is tried once more: longer than a peer that could not be connected to is left alone.
const AGAIN_WITHIN: Duration = Duration::from_millis(2200);
/// The pause before the second try; it doubles with each further one.
const AGAIN_FIRST: Duration = Duration::from_millis(20);

/// An open file at its home.
pub(crate) struct Forwarded {
    path: TreePath,
    home: String,
    stream: Mutex<Option<Stream>>,
}

impl Forwarded {
    /// Opens `ino` at `peer`, its home, called `home`.
    ///
    /// A home that was started again is heard of by the first thing that is sent on its old connection, and while it was away
    /// connecting to it may have failed, which is not tried again for a while: so this tries for a moment.
    pub(crate) async fn open(
        peer: &Peer,
        home: String,
        path: TreePath,
        ino: Ino,
        write: bool,
        truncate: bool,
    ) -> Result<Self, FsError> {
        let begun = Instant::now();
        let mut pause = AGAIN_FIRST;
        loop {
            match Self::open_once(peer, &home, &path, ino, write, truncate).await {
                Err(FsError::NoHolder { .. }) if begun.elapsed() < AGAIN_WITHIN => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                opened => return opened,
            }
        }
    }

    async fn open_once(
        peer: &Peer,
        home: &str,
        path: &TreePath,
        ino: Ino,
        write: bool,
        truncate: bool,
    ) -> Result<Self, FsError> {
        let opening = tokio::time::timeout(REQUEST_DEADLINE, peer.open(StreamKind::FILES));
        let stream = match opening.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(unreachable(path, home, error.to_string())),
            Err(_) => return Err(unreachable(path, home, "no answer".into())),
        };
        let forwarded = Self {
            path: path.clone(),
            home: home.to_owned(),
            stream: Mutex::new(Some(stream)),
        };
        let open = FileRequest::Open {
            ino,
            write,
            truncate,
        };
        match forwarded.ask(&open).await? {
            FileReply::Opened { .. } => Ok(forwarded),
            other => Err(forwarded.nonsense(&other)),
        }
    }

    /// Up to `len` bytes at `offset`; fewer only at the end.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Bytes, FsError> {
        let mut whole = BytesMut::new();
        while whole.len() < len {
            let wanted = (len - whole.len()).min(DATA_BYTES_MAX);
            let request = FileRequest::Read {
                offset: offset + whole.len() as u64,
                len: wanted as u32,
            };
            match self.ask(&request).await? {
                FileReply::Data(data) if data.is_empty() => break,
                FileReply::Data(data) if data.len() == len => return Ok(data),
                FileReply::Data(data) => whole.extend_from_slice(&data),
                other => return Err(self.nonsense(&other)),
            }
        }
        Ok(whole.freeze())
    }

    /// Writes all of `data`, at `offset` or (`None`) at the end.
    pub(crate) async fn write(
        &self,
        offset: Option<u64>,
        data: Bytes,
        clear_privileges: bool,
    ) -> Result<u32, FsError> {
        let mut written = 0;
        while written < data.len() {
            let part = data.slice(written..data.len().min(written + DATA_BYTES_MAX));
            let request = match offset {
                Some(offset) => FileRequest::Write {
                    offset: offset + written as u64,
                    data: part,
                    clear_privileges,
                },
                None => FileRequest::Append {
                    data: part,
                    clear_privileges,
                },
            };
            match self.ask(&request).await? {
                FileReply::Written { len, .. } if len > 0 => written += len as usize,
                other => return Err(self.nonsense(&other)),
            }
        }
        Ok(written as u32)
    }

    pub(crate) async fn truncate(&self, size: u64) -> Result<(), FsError> {
        self.done(FileRequest::Truncate { size }).await
    }

    /// To disk, and published.
    pub(crate) async fn sync(&self) -> Result<(), FsError> {
        self.done(FileRequest::Sync).await
    }

    /// Published; the handle stays open.
    pub(crate) async fn publish(&self) -> Result<(), FsError> {
        self.done(FileRequest::Close).await
    }

    pub(crate) async fn attributes(&self) -> Result<Stamp, FsError> {
        match self.ask(&FileRequest::Attributes).await? {
            FileReply::Attributes { size, mtime, ctime } => Ok(Stamp { size, mtime, ctime }),
            other => Err(self.nonsense(&other)),
        }
    }

    /// As fallocate, there.
    pub(crate) async fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), FsError> {
        self.done(FileRequest::Allocate { offset, len, mode }).await
    }

    /// Where the next data or hole is, there.
    pub(crate) async fn seek(&self, offset: u64, whence: i32) -> Result<u64, FsError> {
        match self.ask(&FileRequest::Seek { offset, whence }).await? {
            FileReply::Position(position) => Ok(position),
            other => Err(self.nonsense(&other)),
        }
    }

    async fn done(&self, request: FileRequest) -> Result<(), FsError> {
        match self.ask(&request).await? {
            FileReply::Done => Ok(()),
            other => Err(self.nonsense(&other)),
        }
    }

    async fn ask(&self, request: &FileRequest) -> Result<FileReply, FsError> {
        let mut held = self.stream.lock().await;
        // Taken out for the exchange: what ends early leaves the handle broken, not out of step.
        let Some(mut stream) = held.take() else {
            return Err(unreachable(
                &self.path,
                &self.home,
                "the handle is broken".into(),
            ));
        };
        let exchange = async {
            stream.write(request).await?;
            let reply: Option<FileReply> = stream.read(MESSAGE_BYTES_MAX).await?;
            Ok::<_, ks_transport::frame::FrameError>((stream, reply))
        };
        let why = match tokio::time::timeout(REQUEST_DEADLINE, exchange).await {
            Ok(Ok((_, Some(FileReply::Failed { errno, message })))) if is_open(request) => {
                tracing::debug!(path = %self.path, home = %self.home, %message, "not opened at its home");
                return Err(FsError::Io(std::io::Error::from_raw_os_error(errno)));
            }
            Ok(Ok((stream, Some(reply)))) => {
                *held = Some(stream);
                return self.checked(reply);
            }
            Ok(Ok((_, None))) => "it closed the handle".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {REQUEST_DEADLINE:?}"),
        };
        Err(unreachable(&self.path, &self.home, why))
    }

    fn checked(&self, reply: FileReply) -> Result<FileReply, FsError> {
        match reply {
            FileReply::Failed { errno, message } => {
                tracing::debug!(path = %self.path, home = %self.home, %message, "refused at its home");
                Err(FsError::Io(std::io::Error::from_raw_os_error(errno)))
            }
            reply => Ok(reply),
        }
    }

    fn nonsense(&self, reply: &FileReply) -> FsError {
        tracing::debug!(?reply, "an answer that does not belong to the question");
        unreachable(
            &self.path,
            &self.home,
            "it does not speak our protocol".into(),
        )
    }
}

fn is_open(request: &FileRequest) -> bool {
    matches!(request, FileRequest::Open { .. })
}

fn unreachable(path: &TreePath, home: &str, why: String) -> FsError {
    FsError::NoHolder {
        path: path.clone(),
        tried: format!("{home} (its home): {why}"),
    }
}

/// Asks a holder for the hash of a version; `None`: it is computing it. The error is a reason for people.
pub(crate) async fn ask_hash(peer: &Peer, ino: Ino, version: u64) -> Result<Option<Hash>, String> {
    let question = FileRequest::Hash { ino, version };
    let answer = peer
        .request(
            StreamKind::FILES,
            &question,
            MESSAGE_BYTES_MAX,
            HASH_DEADLINE,
        )
        .await;
    match answer {
        Ok(FileReply::Hash(hash)) => Ok(Some(hash)),
        Ok(FileReply::Hashing) => Ok(None),
        Ok(FileReply::Failed { message, .. }) => Err(message),
        Ok(_) => Err("it does not speak our protocol".into()),
        Err(error) => Err(error.to_string()),
    }
}
