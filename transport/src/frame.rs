//! Framed, versioned messages: u32 little-endian length, then postcard. Limits on everything.
//!
//! Purpose: one message out, one message in, on a bidirectional QUIC stream.
//! Takes part: every protocol above (block requests, the file system's and the calls' messages).
//! Always holds: a length is checked before a byte is stored; what is too long, cut off or nonsense
//! ends the connection it came in on (our own stream only, where we were the one who asked), with a
//! code that says why, and nothing else.
//! Not for: bulk data, which follows its head frame as raw bytes (`blocks`, `tunnel`).
use crate::endpoint::code;
use serde::{Serialize, de::DeserializeOwned};

/// The wire protocol's version; the first thing both sides of a connection say (in the ALPN name).
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of the length in front of each message.
const HEADER_BYTES: usize = 4;

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// More than the reader allows here.
    #[error("a frame of {len} bytes where at most {limit} may come")]
    TooLong {
        /// Bytes announced.
        len: u64,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream ended before the frame did.
    #[error("the stream ended inside a frame")]
    CutOff,
    /// The bytes are not the message expected.
    #[error("not a message of this protocol: {0}")]
    Malformed(postcard::Error),
    /// The peer gave up this stream; the code is one of `endpoint::code`.
    #[error("the peer ended the stream: {}", code::describe(*.0))]
    Reset(u64),
    /// The connection under the stream is gone.
    #[error("{0}")]
    Connection(String),
}

/// The whole frame of a message.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, FrameError> {
    encode_after(Vec::new(), message)
}

/// Appends the frame of a message to `buffer`.
pub(crate) fn encode_after<T: Serialize + ?Sized>(
    mut buffer: Vec<u8>,
    message: &T,
) -> Result<Vec<u8>, FrameError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    let mut buffer = postcard::to_extend(message, buffer).map_err(FrameError::Malformed)?;
    let len = buffer.len() - start - HEADER_BYTES;
    let header = u32::try_from(len).map_err(|_| FrameError::TooLong {
        len: len as u64,
        limit: u32::MAX as usize,
    })?;
    buffer[start..start + HEADER_BYTES].copy_from_slice(&header.to_le_bytes());
    Ok(buffer)
}

/// The length a header announces, if it is within the limit.
pub fn frame_len(header: [u8; HEADER_BYTES], limit: usize) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(header);
    match usize::try_from(len) {
        Ok(bytes) if bytes <= limit => Ok(bytes),
        _ => Err(FrameError::TooLong {
            len: u64::from(len),
            limit,
        }),
    }
}

/// The message in a frame's body; all of the body must belong to it.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        )),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}

/// A bidirectional stream to or from a peer.
pub struct Stream {
    /// To the peer.
    pub send: quinn::SendStream,
    /// From the peer.
    pub recv: quinn::RecvStream,
    /// The connection to close when the peer breaks the protocol: set on streams that it opened.
    breach: Option<quinn::Connection>,
}

impl Stream {
    /// A stream that we opened: a peer that breaks the protocol on it loses this stream.
    pub(crate) fn opened((send, recv): (quinn::SendStream, quinn::RecvStream)) -> Self {
        Stream {
            send,
            recv,
            breach: None,
        }
    }

    /// A stream that the peer opened: if it breaks the protocol on it, it loses the connection.
    pub(crate) fn accepted(
        (send, recv): (quinn::SendStream, quinn::RecvStream),
        connection: quinn::Connection,
    ) -> Self {
        Stream {
            send,
            recv,
            breach: Some(connection),
        }
    }

    /// Writes one message.
    pub async fn write<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<(), FrameError> {
        let frame = encode(message)?;
        self.write_raw(frame.into()).await
    }

    /// Writes bytes as they are.
    pub(crate) async fn write_raw(&mut self, bytes: bytes::Bytes) -> Result<(), FrameError> {
        self.send.write_chunk(bytes).await.map_err(write_error)
    }

    /// Reads one message of at most `limit` bytes; `None` at a clean end.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<Option<T>, FrameError> {
        let read = read_body(&mut self.recv, limit).await;
        let decoded = match read {
            Ok(None) => return Ok(None),
            Ok(Some(body)) => decode(&body),
            Err(error) => Err(error),
        };
        decoded.map(Some).inspect_err(|error| self.break_off(error))
    }

    /// Ends what must end after a breach of the protocol.
    fn break_off(&mut self, error: &FrameError) {
        let code = match error {
            FrameError::TooLong { .. } => code::TOO_LONG,
            FrameError::CutOff => code::CUT_OFF,
            FrameError::Malformed(_) => code::MALFORMED,
            FrameError::Reset(_) | FrameError::Connection(_) => return,
        };
        match &self.breach {
            Some(connection) => {
                let peer = crate::identity::canonical(connection.remote_address());
                tracing::warn!(%peer, %error, "closed a connection: the peer broke the protocol");
                connection.close(code, error.to_string().as_bytes());
            }
            None => self.abandon(code),
        }
    }

    /// Gives up the stream, both ways, with a code that tells the peer why.
    pub fn abandon(&mut self, code: quinn::VarInt) {
        // An error here says that the stream has ended already.
        let _ = self.send.reset(code);
        let _ = self.recv.stop(code);
    }
}

async fn read_body(
    recv: &mut quinn::RecvStream,
    limit: usize,
) -> Result<Option<Vec<u8>>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    match recv.read_exact(&mut header).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(read_exact_error(error)),
    }
    let mut body = vec![0; frame_len(header, limit)?];
    recv.read_exact(&mut body).await.map_err(read_exact_error)?;
    Ok(Some(body))
}

fn read_exact_error(error: quinn::ReadExactError) -> FrameError {
    match error {
        quinn::ReadExactError::FinishedEarly(_) => FrameError::CutOff,
        quinn::ReadExactError::ReadError(error) => read_error(error),
    }
}

/// What a failed read says about the peer.
pub(crate) fn read_error(error: quinn::ReadError) -> FrameError {
    match error {
        quinn::ReadError::Reset(code) => FrameError::Reset(code.into_inner()),
        other => FrameError::Connection(other.to_string()),
    }
}

/// What a failed write says about the peer.
pub(crate) fn write_error(error: quinn::WriteError) -> FrameError {
    match error {
        quinn::WriteError::Stopped(code) => FrameError::Reset(code.into_inner()),
        other => FrameError::Connection(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{BlockRequest, Refusal};
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Message {
        Empty,
        Number(u64),
        Text(String),
        Nested {
            list: Vec<Option<String>>,
            raw: Vec<u8>,
        },
    }

    fn any_message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::Empty),
            any::<u64>().prop_map(Message::Number),
            ".*".prop_map(Message::Text),
            (
                proptest::collection::vec(proptest::option::of(".*"), 0..5),
                proptest::collection::vec(any::<u8>(), 0..50)
            )
                .prop_map(|(list, raw)| Message::Nested { list, raw }),
        ]
    }

    /// Reads a frame out of bytes the way `Stream::read` reads it out of a stream.
    fn read_from(bytes: &[u8], limit: usize) -> Result<Option<Message>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return if bytes.is_empty() {
                Ok(None)
            } else {
                Err(FrameError::CutOff)
            };
        };
        let len = frame_len(*header, limit)?;
        decode(rest.get(..len).ok_or(FrameError::CutOff)?).map(Some)
    }

    #[test]
    fn seed_corpus() {
        let frame = encode(&Message::Text("hello".into())).unwrap();
        assert_eq!(
            read_from(&frame, 100).unwrap(),
            Some(Message::Text("hello".into()))
        );
        assert!(read_from(&[], 100).unwrap().is_none());
        let corpus: [(&[u8], &str); 7] = [
            (&[1], "inside a frame"),
            (&frame[..frame.len() - 1], "inside a frame"),
            (&[255, 255, 255, 255], "4294967295 bytes"),
            (&[101, 0, 0, 0], "101 bytes where at most 100"),
            (&[0, 0, 0, 0], "not a message"),
            (&[1, 0, 0, 0, 9], "not a message"),
            // An announced length that would take all memory.
            (
                &[7, 0, 0, 0, 2, 255, 255, 255, 255, 255, 1],
                "not a message",
            ),
        ];
        for (bytes, expected) in corpus {
            let error = read_from(bytes, 100).unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
        let mut trailing = frame.clone();
        trailing[0] += 1;
        trailing.push(0);
        assert!(matches!(
            read_from(&trailing, 100),
            Err(FrameError::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn messages_come_back(message in any_message()) {
            let frame = encode(&message).unwrap();
            prop_assert_eq!(read_from(&frame, frame.len()).unwrap(), Some(message));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read_from(&bytes, 200);
            let _ = decode::<BlockRequest>(&bytes);
            let _ = decode::<Result<(), Refusal>>(&bytes);
            let _ = decode::<Vec<Vec<String>>>(&bytes);
        }

        #[test]
        fn damaged_frames_are_decoded_without_panic(message in any_message(), at in 0usize..64, flip in 1u8..) {
            let mut frame = encode(&message).unwrap();
            let at = at % frame.len();
            frame[at] ^= flip;
            let _ = read_from(&frame, 1000);
            let _ = read_from(&frame[..at], 1000);
        }
    }
}
