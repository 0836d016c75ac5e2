//! The asking side: one request to one peer, verified into a sink.
use super::decode::{DecodeError, Decoder, EXTENT_BYTES_MAX};
use super::ranges::{groups_of, tree};
use super::{BlockRequest, BlockSink, FetchError, FetchLimits, HEAD_BYTES_MAX, Refusal};
use crate::endpoint::{StreamKind, code};
use crate::frame::{self, FrameError, Stream};
use crate::pool::Peer;
use bytes::Bytes;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Chunks taken from the connection at once.
const CHUNKS_MAX: usize = 64;

/// How long verified bytes may wait for more before the sink gets them.
const LINGER: Duration = Duration::from_micros(500);

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
    let decoder = decoder.map_err(|error| decode_error(peer, error))?;
    if decoder.is_done() {
        return Ok(0);
    }
    let mut stream = peer.open_with(limits.lane, first).await?;
    // Nothing more follows; an error shows when the answer is read.
    let _ = stream.send.finish();
    let head = tokio::time::timeout(limits.stall, stream.read(HEAD_BYTES_MAX))
        .await
        .map_err(|_| stalled(peer, limits))?;
    let head: Result<(), Refusal> = head
        .and_then(|head| head.ok_or(FrameError::CutOff))
        .map_err(|error| ended(peer, error))?;
    head.map_err(refused)?;
    let mut receiver = Receiver {
        peer,
        limits,
        decoder,
        received: 0,
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
    limits: FetchLimits,
    decoder: Decoder,
    received: u64,
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
        let mut waited = None;
        if self.decoder.pending() > 0 {
            waited = tokio::time::timeout(LINGER, &mut reading).await.ok();
            if waited.is_none() {
                self.on_disk(sink, |decoder, sink| decoder.flush(sink))?;
            }
        }
        let read = match waited {
            Some(read) => read,
            None => tokio::time::timeout(self.limits.stall, reading)
                .await
                .map_err(|_| stalled(self.peer, self.limits))?,
        };
        match read {
            Ok(Some(count)) => Ok(count),
            Ok(None) => Err(ended(self.peer, FrameError::CutOff)),
            Err(error) => Err(ended(self.peer, frame::read_error(error))),
        }
    }

    fn take(&mut self, chunks: &mut [Bytes], sink: &mut dyn BlockSink) -> Result<(), FetchError> {
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

    /// Work that may write a lot: not on a thread that others wait for.
    fn on_disk(
        &mut self,
        sink: &mut dyn BlockSink,
        work: impl FnOnce(&mut Decoder, &mut dyn BlockSink) -> Result<(), DecodeError>,
    ) -> Result<(), FetchError> {
        let threads = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
        if threads && self.decoder.pending() >= EXTENT_BYTES_MAX / 2 {
            self.checked(|decoder| tokio::task::block_in_place(|| work(decoder, sink)))
        } else {
            self.checked(|decoder| work(decoder, sink))
        }
    }

    fn checked(
        &mut self,
        work: impl FnOnce(&mut Decoder) -> Result<(), DecodeError>,
    ) -> Result<(), FetchError> {
        work(&mut self.decoder).map_err(|error| decode_error(self.peer, error))
    }
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
