//! The asking side: one request to one peer, verified into a sink.
use super::decode::{DecodeError, Decoder, EXTENT_BYTES_MAX};
use super::ranges::{groups_of, tree};
use super::{
    BlockRequest, BlockSink, FetchError, FetchLimits, GROUP_BYTES, HEAD_BYTES_MAX, Refusal,
};
use crate::endpoint::{StreamKind, code};
use crate::frame::{self, FrameError, Stream};
use crate::pool::Peer;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::{Instant, Sleep};

/// Chunks taken from the connection at once.
const CHUNKS_MAX: usize = 64;

/// Verified bytes that are worth a call of the sink when no more are there at once.
const WORTH_BYTES: usize = 64 << 10;

/// How long fewer may wait for more before the sink gets them.
const LINGER: Duration = Duration::from_millis(1);

/// A disk that takes so long for one extent is slow: the next extent is written where nobody waits behind it.
const SLOW: Duration = Duration::from_millis(4);

/// Fetches ranges from one peer into `sink`; returns the bytes received, hashes included.
pub async fn fetch(
    peer: &Peer,
    request: &BlockRequest,
    limits: FetchLimits,
    sink: &mut dyn BlockSink,
) -> Result<u64, FetchError> {
    let refused = |refusal| FetchError::Refused {
        peer: peer.address().to_owned(),
        refusal,
    };
    let groups = groups_of(request).map_err(|reason| refused(Refusal::Nonsense(reason)))?;
    let first = frame::encode_after(vec![StreamKind::BLOCKS.0], request)
        .map_err(|error| FetchError::Peer(peer.frame_error(error)))?;
    let decoder = Decoder::new(&request.hash, tree(request.size), groups);
    let mut decoder = decoder.map_err(|error| decode_error(peer, error))?;
    if decoder.is_done() {
        return Ok(0);
    }
    let mut stream = peer.open_with(limits.lane, first).await?;
    // Nothing more follows; an error shows when the answer is read.
    let _ = stream.send.finish();
    let mut silence = Silence::new(limits);
    let head = {
        let coming = std::pin::pin!(stream.read(HEAD_BYTES_MAX));
        silence.ends_with(peer, coming).await
    };
    let head = head.ok_or_else(|| stalled(peer, limits))?;
    let head: Result<(), Refusal> = head
        .and_then(|head| head.ok_or(FrameError::CutOff))
        .map_err(|error| ended(peer, error))?;
    head.map_err(refused)?;
    let asked: u64 = (request.ranges.iter().map(|range| range.end - range.start)).sum();
    decoder.make_room(asked.next_multiple_of(GROUP_BYTES));
    let mut receiver = Receiver {
        peer,
        silence,
        decoder,
        received: 0,
        disk_is_slow: false,
    };
    let result = receiver.run(&mut stream, sink).await;
    if let Err(error) = &result {
        let code = match error {
            FetchError::Corrupt { .. } => code::CORRUPT,
            _ => code::CANCELLED,
        };
        stream.abandon(code);
    }
    result.map(|()| receiver.received)
}

struct Receiver<'a> {
    peer: &'a Peer,
    silence: Silence,
    decoder: Decoder,
    received: u64,
    disk_is_slow: bool,
}

impl Receiver<'_> {
    async fn run(
        &mut self,
        stream: &mut Stream,
        sink: &mut dyn BlockSink,
    ) -> Result<(), FetchError> {
        let mut chunks: [Bytes; CHUNKS_MAX] = std::array::from_fn(|_| Bytes::new());
        while !self.decoder.is_done() {
            let count = self.read(stream, &mut chunks, sink).await?;
            self.take(&mut chunks[..count], sink)?;
        }
        self.on_disk(sink, |decoder, sink| decoder.flush(sink))
    }

    /// The next chunks; while none come, the sink gets what is verified.
    async fn read(
        &mut self,
        stream: &mut Stream,
        chunks: &mut [Bytes],
        sink: &mut dyn BlockSink,
    ) -> Result<usize, FetchError> {
        let mut reading = std::pin::pin!(stream.recv.read_chunks(chunks));
        let mut read = at_once(reading.as_mut()).await;
        let pending = self.decoder.pending();
        if read.is_none() && pending > 0 {
            if pending < WORTH_BYTES {
                read = tokio::time::timeout(LINGER, &mut reading).await.ok();
            }
            if read.is_none() {
                self.on_disk(sink, |decoder, sink| decoder.flush(sink))?;
            }
        }
        let read = match read {
            Some(read) => read,
            None => (self.silence.ends_with(self.peer, reading).await)
                .ok_or_else(|| stalled(self.peer, self.silence.limits))?,
        };
        match read {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(ended(self.peer, FrameError::CutOff)),
            Err(error) => Err(ended(self.peer, frame::read_error(error))),
        }
    }

    fn take(&mut self, chunks: &mut [Bytes], sink: &mut dyn BlockSink) -> Result<(), FetchError> {
        let came: usize = chunks.iter().map(Bytes::len).sum();
        self.peer.note_answered(came as u64);
        for chunk in chunks {
            let chunk = std::mem::take(chunk);
            self.received += chunk.len() as u64;
            let reaches_disk = self.decoder.pending() + chunk.len() >= EXTENT_BYTES_MAX;
            if reaches_disk {
                self.on_disk(sink, |decoder, sink| decoder.feed(&chunk, sink))?;
            } else {
                self.checked(|decoder| decoder.feed(&chunk, sink))?;
            }
        }
        Ok(())
    }

    /// Work that may write a lot. Into the page cache that is quick, and handing this thread's other tasks to another thread
    /// costs more; where the disk makes us wait, not on a thread that others wait for.
    fn on_disk(
        &mut self,
        sink: &mut dyn BlockSink,
        work: impl FnOnce(&mut Decoder, &mut dyn BlockSink) -> Result<(), DecodeError>,
    ) -> Result<(), FetchError> {
        let start = Instant::now();
        let threads = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
        let done = if threads && self.disk_is_slow {
            self.checked(|decoder| tokio::task::block_in_place(|| work(decoder, sink)))
        } else {
            self.checked(|decoder| work(decoder, sink))
        };
        self.disk_is_slow = start.elapsed() >= SLOW;
        done
    }

    fn checked(
        &mut self,
        work: impl FnOnce(&mut Decoder) -> Result<(), DecodeError>,
    ) -> Result<(), FetchError> {
        work(&mut self.decoder).map_err(|error| decode_error(self.peer, error))
    }
}

/// Measures how long the peer has sent nothing, with one timer for all of its silences. A peer that sends another of our
/// answers is not silent: long answers come one after another.
struct Silence {
    limits: FetchLimits,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    fn new(limits: FetchLimits) -> Self {
        Silence {
            limits,
            timer: Box::pin(tokio::time::sleep(limits.stall)),
        }
    }

    /// What comes; `None`: nothing for too long.
    async fn ends_with<F: Future>(
        &mut self,
        peer: &Peer,
        mut coming: Pin<&mut F>,
    ) -> Option<F::Output> {
        let mut until = Instant::now() + self.limits.stall;
        let mut answered_bytes = peer.answered_bytes();
        std::future::poll_fn(|context| {
            if let Poll::Ready(came) = coming.as_mut().poll(context) {
                return Poll::Ready(Some(came));
            }
            // The timer runs since an earlier silence, so it may ring early.
            while self.timer.as_mut().poll(context).is_ready() {
                let now = Instant::now();
                if now >= until {
                    let answered_before = answered_bytes;
                    answered_bytes = peer.answered_bytes();
                    if answered_bytes == answered_before {
                        return Poll::Ready(None);
                    }
                    until = now + self.limits.stall;
                }
                self.timer.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

/// What is ready now; else the task is woken when it is.
async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

/// Why no more comes.
fn ended(peer: &Peer, error: FrameError) -> FetchError {
    match error {
        FrameError::Reset(reason) if reason == code::UNREADABLE.into_inner() => {
            FetchError::Refused {
                peer: peer.address().to_owned(),
                refusal: Refusal::Unreadable(code::describe(reason)),
            }
        }
        error => FetchError::Peer(peer.frame_error(error)),
    }
}

fn stalled(peer: &Peer, limits: FetchLimits) -> FetchError {
    FetchError::Stalled {
        peer: peer.address().to_owned(),
        seconds: limits.stall.as_secs_f32(),
    }
}

fn decode_error(peer: &Peer, error: DecodeError) -> FetchError {
    match error {
        DecodeError::Corrupt { offset } => FetchError::Corrupt {
            peer: peer.address().to_owned(),
            offset,
        },
        DecodeError::Sink(error) => FetchError::Sink(error),
    }
}
