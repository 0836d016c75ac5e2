//! Framed, versioned messages: u32 little-endian length, then postcard. Limits on everything.
use serde::{Serialize, de::DeserializeOwned};

/// The wire protocol's version; the first thing both sides of a connection say (in the ALPN name).
pub const PROTOCOL_VERSION: u16 = 1;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {len} bytes where at most {limit} may come")]
    TooLong { len: u64, limit: usize },
    #[error("the stream ended inside a frame")]
    CutOff,
    #[error("not a message of this protocol: {0}")]
    Malformed(postcard::Error),
    #[error("{0}")]
    Connection(String),
}

/// A bidirectional stream to or from a peer.
pub struct Stream {
    pub send: quinn::SendStream,
    pub recv: quinn::RecvStream,
}

impl Stream {
    /// Writes one message.
    pub async fn write<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        todo!()
    }
    /// Reads one message of at most `limit` bytes; `None` at a clean end.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<Option<T>, FrameError> {
        todo!()
    }
}
