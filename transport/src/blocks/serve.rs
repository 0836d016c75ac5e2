//! The sending side: finds the content, says yes or no, sends.
use super::buffers::Buffers;
use super::encode::{Layout, Patience, Piece, Reader};
use super::ranges::{groups_of, tree};
use super::{BlockRequest, BlockSource, Content, REQUEST_BYTES_MAX, Refusal};
use crate::{
    BoxFuture,
    endpoint::{Handler, code},
    frame::{self, FrameError, Stream},
    identity::PeerIdentity,
};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a peer may take to send its request, or to take what is sent.
const PEER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the store may take to open a content.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Requests served at once; further ones wait a little, then hear "busy".
const REQUESTS_MAX: usize = 128;
/// How long a request waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(1);
/// The first piece of an answer is small: its first byte is waited for.
const PIECE_BYTES_FIRST: usize = 64 << 10;
/// Answers up to this length take turns with all else that the connection has to send: somebody may wait for them.
const SHORT_BYTES: u64 = 1 << 20;
/// Further pieces.
const PIECE_BYTES: usize = 256 << 10;
/// Room for a piece: it ends with a whole group and its parents.
const BUFFER_BYTES: usize = PIECE_BYTES + (32 << 10);

/// Serves `StreamKind::BLOCKS`.
pub struct BlockServer {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn BlockSource>,
    turns: Semaphore,
    buffers: Arc<Buffers>,
    bytes_sent: AtomicU64,
    long_answers: AtomicI32,
}

impl BlockServer {
    /// A server of what `source` finds.
    pub fn new(source: Arc<dyn BlockSource>) -> Self {
        BlockServer {
            shared: Arc::new(Shared {
                source,
                turns: Semaphore::new(REQUESTS_MAX),
                buffers: Buffers::new(BUFFER_BYTES),
                bytes_sent: AtomicU64::new(0),
                long_answers: AtomicI32::new(0),
            }),
        }
    }

    /// Bytes sent since the start.
    pub fn bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::Relaxed)
    }
}

impl Handler for BlockServer {
    fn open_to_clients(&self) -> bool {
        true
    }

    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let shared = self.shared.clone();
        Box::pin(async move {
            if let Err(ended) = shared.answer(&mut stream).await {
                tracing::debug!(peer = %peer.name, %ended, "a block request ended early");
                stream.abandon(ended.code());
            }
        })
    }
}

/// Why an answer was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no request came")]
    NoRequest,
    #[error("the peer took nothing for too long")]
    TooSlow,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("reading: {0}")]
    Read(#[from] io::Error),
}

impl Ended {
    fn code(&self) -> quinn::VarInt {
        match self {
            Ended::NoRequest => code::CUT_OFF,
            Ended::TooSlow => code::TOO_SLOW,
            Ended::Frame(_) => code::CANCELLED,
            Ended::Read(_) => code::UNREADABLE,
        }
    }
}

impl Shared {
    async fn answer(&self, stream: &mut Stream) -> Result<(), Ended> {
        let request = tokio::time::timeout(PEER_DEADLINE, stream.read(REQUEST_BYTES_MAX))
            .await
            .map_err(|_| Ended::TooSlow)??
            .ok_or(Ended::NoRequest)?;
        let turn = tokio::time::timeout(TURN_DEADLINE, self.turns.acquire()).await;
        let opened = match &turn {
            Ok(_turn) => self.open(&request).await,
            Err(_) => Err(Refusal::Busy),
        };
        match opened {
            Ok((layout, content)) => {
                let asked = request.ranges.iter().map(|range| range.end - range.start);
                if asked.sum::<u64>() > SHORT_BYTES {
                    self.stand_behind(stream);
                }
                self.send(stream, layout, content).await
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "refused a block request");
                let head: Result<(), Refusal> = Err(refusal);
                self.write(stream, frame::encode(&head)?.into()).await?;
                // An error says that the peer has left.
                let _ = stream.send.finish();
                Ok(())
            }
        }
    }

    async fn open(&self, request: &BlockRequest) -> Result<(Layout, Content), Refusal> {
        let groups = groups_of(request).map_err(Refusal::Nonsense)?;
        let content = tokio::time::timeout(OPEN_DEADLINE, self.source.open(request))
            .await
            .map_err(|_| Refusal::Busy)??;
        if content.size != request.size {
            return Err(Refusal::Changed);
        }
        Ok((Layout::new(tree(content.size), groups), content))
    }

    /// Sends the head and all pieces; the first goes out together with the head.
    async fn send(
        &self,
        stream: &mut Stream,
        mut layout: Layout,
        content: Content,
    ) -> Result<(), Ended> {
        let head: Result<(), Refusal> = Ok(());
        let mut first = frame::encode(&head)?;
        let mut reader = Reader::new(content);
        if let Some(piece) = layout.next_piece(PIECE_BYTES_FIRST) {
            let start = first.len();
            first.resize(start + piece.len, 0);
            (reader, first) = read_piece(reader, piece, first, start).await?;
        }
        self.write(stream, first.into()).await?;
        let user = self.buffers.user();
        let mut is_long = false;
        while let Some(piece) = layout.next_piece(PIECE_BYTES) {
            is_long = true;
            let (len, buffer) = (piece.len, user.lend());
            let filled = read_piece(reader, piece, buffer, 0).await?;
            reader = filled.0;
            self.write(stream, filled.1.freeze(len)).await?;
        }
        // An error says that the peer has left.
        let _ = stream.send.finish();
        if is_long {
            crate::memory::release_at_rest();
        }
        Ok(())
    }

    /// A long answer comes after all else that the connection has to send, and after the long answers that were asked for
    /// before it. Side by side they would be read in small portions, and what is waited for first would come last.
    fn stand_behind(&self, stream: &mut Stream) {
        let turn = self.long_answers.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        // An error says that the peer has left.
        let _ = stream.send.set_priority(-1 - turn);
    }

    async fn write(&self, stream: &mut Stream, bytes: Bytes) -> Result<(), Ended> {
        let len = bytes.len() as u64;
        tokio::time::timeout(PEER_DEADLINE, stream.write_raw(bytes))
            .await
            .map_err(|_| Ended::TooSlow)??;
        self.bytes_sent.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads a piece to `start` in the buffer: here if the page cache has it, else on a thread that may
/// wait.
async fn read_piece<B: AsMut<[u8]> + Send + 'static>(
    mut reader: Reader,
    piece: Piece,
    mut buffer: B,
    start: usize,
) -> io::Result<(Reader, B)> {
    let place = start..start + piece.len;
    if reader.fill(&piece, &mut buffer.as_mut()[place.clone()], Patience::Now)? {
        return Ok((reader, buffer));
    }
    let read = tokio::task::spawn_blocking(move || {
        let filled = reader.fill(&piece, &mut buffer.as_mut()[place], Patience::Wait);
        filled.map(|_| (reader, buffer))
    });
    read.await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
