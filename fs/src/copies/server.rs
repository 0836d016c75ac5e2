//! Answers other nodes about copies: says what is held, fetches, takes over, re-reads and mends on request.
//!
//! A stream carries one request, which has to come within [`REQUEST_DEADLINE`]. What is being done ends when the asking node's stream does, or takes nothing for
//! [`PROGRESS_DEADLINE`]. Nodes only.
use super::{CopyError, CopyReply, CopyRequest, MESSAGE_BYTES_MAX};
use super::{PROGRESS_DEADLINE, PROGRESS_INTERVAL};
use crate::error::FsError;
use crate::filesystem::FileSystem;
use ks_transport::{BoxFuture, endpoint::Handler, frame::Stream, identity::PeerIdentity};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// Requests that are served at once; more are refused as busy.
const STREAMS_MAX: usize = 64;
/// Who opens a stream says what it wants within this time.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// The handler; the endpoint keeps it, so it does not keep the file system.
pub(crate) struct CopyServer {
    file_system: Weak<FileSystem>,
    places: Arc<Semaphore>,
}

impl CopyServer {
    pub(crate) fn new(file_system: &Arc<FileSystem>) -> Self {
        Self {
            file_system: Arc::downgrade(file_system),
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }
}

impl Handler for CopyServer {
    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let (file_system, places) = (self.file_system.clone(), self.places.clone());
        Box::pin(async move {
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            let Ok(_place) = places.try_acquire_owned() else {
                let busy = failed(&FsError::TooManyOpen(STREAMS_MAX).into());
                let _ = timeout(REQUEST_DEADLINE, stream.write(&busy)).await;
                return;
            };
            let Ok(request) = timeout(REQUEST_DEADLINE, stream.read(MESSAGE_BYTES_MAX)).await
            else {
                tracing::warn!(peer = %peer.name, address = %peer.address, "a stream about copies that asks for nothing was ended");
                return;
            };
            match request {
                Ok(Some(request)) => serve(&file_system, &mut stream, request).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(peer = %peer.name, address = %peer.address, %error, "a request about copies that cannot be read");
                }
            }
        })
    }
}

/// Does what is asked; tells how far it is meanwhile, and stops when nobody listens any more.
async fn serve(file_system: &Arc<FileSystem>, stream: &mut Stream, request: CopyRequest) {
    let (told, mut far) = watch::channel((0, 0));
    let progress = |have: u64, size: u64| {
        told.send_replace((have, size));
    };
    let work = answer(file_system, request, &progress);
    tokio::pin!(work);
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let reply = loop {
        tokio::select! {
            reply = &mut work => break reply,
            _ = tick.tick() => {
                let (have, size) = *far.borrow_and_update();
                let told = CopyReply::Progress { have, size };
                match timeout(PROGRESS_DEADLINE, stream.write(&told)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        }
    };
    // Who asked may be gone; what was done stays.
    let _ = timeout(PROGRESS_DEADLINE, stream.write(&reply)).await;
}

async fn answer(
    file_system: &Arc<FileSystem>,
    request: CopyRequest,
    progress: &(impl Fn(u64, u64) + Send + Sync),
) -> CopyReply {
    let done = match request {
        CopyRequest::Holds { ino, version } => {
            return CopyReply::Holds(file_system.holds_whole(ino, version).await);
        }
        CopyRequest::Bring { ino, from } => file_system
            .bring(ino, from, progress)
            .await
            .map_err(CopyError::from),
        CopyRequest::TakeOver { ino } => file_system.become_home(ino).await,
        CopyRequest::Check { ino } => match file_system.check_copy(ino).await {
            Ok(condition) => return CopyReply::Checked(condition),
            Err(error) => Err(error.into()),
        },
        CopyRequest::Md5 { ino, version } => match file_system.md5_here(ino, version).await {
            Ok(md5) => return CopyReply::Md5(md5),
            Err(error) => Err(error.into()),
        },
        CopyRequest::Mend { ino, good } => file_system.mend_copy(ino, &good, progress).await,
    };
    match done {
        Ok(()) => CopyReply::Done,
        Err(error) => failed(&error),
    }
}

fn failed(error: &CopyError) -> CopyReply {
    let errno = match error {
        CopyError::Fs(error) => error.to_errno(),
        CopyError::BeingWritten(_) | CopyError::Pinned(_) | CopyError::TooFew { .. } => libc::EBUSY,
        CopyError::Changed(_) => libc::ESTALE,
        CopyError::NoSuchNode(_) | CopyError::AtNode { .. } => libc::EHOSTUNREACH,
    };
    CopyReply::Failed {
        errno,
        message: error.to_string(),
    }
}
