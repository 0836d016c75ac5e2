//! Frames (`ks_transport::segments`) built and taken apart in memory: for sockets that are read when they are readable and
//! written without waiting, where nothing may be lost when a read is given up half-way.
use bytes::{Buf, Bytes, BytesMut};
use ks_transport::segments::{HEADER_BYTES_MAX, SEGMENTS_MAX};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of one frame from a client or a worker: they are held in memory.
pub const FRAME_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Taken at a time when a frame's size is not known yet.
const READ_BYTES: usize = 64 * 1024;
/// Most memory taken ahead of the data's arrival.
const RESERVE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A frame's bytes in the order in which they are sent: the first chunk has the head and the header.
pub fn frame<T: Serialize>(header: &T, segments: Vec<Bytes>) -> Vec<Bytes> {
    let count = segments.len() + 1;
    let head_bytes = 4 + 8 * count;
    let mut first = vec![0; head_bytes];
    rmp_serde::encode::write_named(&mut first, header).expect("messages always encode");
    let header_bytes = (first.len() - head_bytes) as u64;
    first[..4].copy_from_slice(&(count as u32).to_le_bytes());
    first[4..12].copy_from_slice(&header_bytes.to_le_bytes());
    for (index, segment) in segments.iter().enumerate() {
        let at = 12 + 8 * index;
        first[at..at + 8].copy_from_slice(&(segment.len() as u64).to_le_bytes());
    }
    let mut chunks = Vec::with_capacity(count);
    chunks.push(Bytes::from(first));
    chunks.extend(segments);
    chunks
}

/// Reads a frame's header.
pub fn header<T: DeserializeOwned>(segments: &[Bytes]) -> io::Result<T> {
    let first = segments.first().map_or(&[][..], |segment| &segment[..]);
    rmp_serde::from_slice(first)
        .map_err(|e| invalid(format!("not a message of this protocol: {e}")))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// Collects bytes until they are whole frames.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// The next whole frame, if it is there.
    pub fn take(&mut self) -> io::Result<Option<Vec<Bytes>>> {
        let Some(lengths) = self.lengths()? else {
            return Ok(None);
        };
        let head_bytes = 4 + 8 * lengths.len();
        let total = head_bytes + lengths.iter().sum::<usize>();
        if self.buffer.len() < total {
            let missing = total - self.buffer.len();
            self.buffer.reserve(missing.min(RESERVE_BYTES_MAX));
            return Ok(None);
        }
        let mut whole = self.buffer.split_to(total).freeze();
        whole.advance(head_bytes);
        Ok(Some(
            lengths
                .into_iter()
                .map(|length| whole.split_to(length))
                .collect(),
        ))
    }

    /// The lengths of the frame that begins the buffer, checked before anything is taken for them.
    fn lengths(&self) -> io::Result<Option<Vec<usize>>> {
        let Some(count) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let count = u32::from_le_bytes(*count) as usize;
        if count == 0 || count > SEGMENTS_MAX {
            return Err(invalid(format!(
                "a frame of {count} segments where 1 to {SEGMENTS_MAX} may come"
            )));
        }
        let Some(raw) = self.buffer.get(4..4 + 8 * count) else {
            return Ok(None);
        };
        let lengths: Vec<u64> = raw
            .chunks_exact(8)
            .map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes")))
            .collect();
        let total = lengths
            .iter()
            .try_fold(0u64, |sum, &length| sum.checked_add(length));
        if total.is_none_or(|total| total > FRAME_BYTES_MAX) || lengths[0] > HEADER_BYTES_MAX {
            return Err(invalid("a frame longer than its limit".into()));
        }
        Ok(Some(
            lengths.into_iter().map(|length| length as usize).collect(),
        ))
    }

    /// The next frame of a stream; `None` at its end between frames. Nothing is lost when this is given up.
    pub async fn read(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Vec<Bytes>>> {
        loop {
            if let Some(frame) = self.take()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_BYTES);
            if from.read_buf(&mut self.buffer).await? == 0 {
                return self.at_end();
            }
        }
    }

    fn at_end(&self) -> io::Result<Option<Vec<Bytes>>> {
        match self.buffer.is_empty() {
            true => Ok(None),
            false => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended inside a frame",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(frames: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let mut wire = Vec::new();
        for segments in frames {
            let slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
            ks_transport::segments::write(&mut wire, &slices).unwrap();
        }
        wire
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_they_arrive(
            frames in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5), 1..5),
            cuts in proptest::collection::vec(1usize..200, 1..20),
        ) {
            let wire = wire(&frames);
            let mut decoder = Decoder::default();
            let (mut got, mut rest, mut turn) = (Vec::new(), &wire[..], 0);
            while !rest.is_empty() {
                let length = cuts[turn % cuts.len()].min(rest.len());
                decoder.buffer.extend_from_slice(&rest[..length]);
                rest = &rest[length..];
                turn += 1;
                while let Some(frame) = decoder.take().unwrap() {
                    got.push(frame.iter().map(|segment| segment.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(decoder.at_end().unwrap().is_none());
        }

        #[test]
        fn nonsense_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            decoder.buffer.extend_from_slice(&bytes);
            while let Ok(Some(_)) = decoder.take() {}
        }
    }

    #[test]
    fn a_built_frame_is_read_by_the_transports_reader() {
        let chunks = frame(
            &("header", 7),
            vec![Bytes::from_static(b"payload"), Bytes::new()],
        );
        let wire = chunks.concat();
        let segments = ks_transport::segments::read(&mut &wire[..])
            .unwrap()
            .unwrap();
        assert_eq!(
            header::<(String, i32)>(&segments).unwrap(),
            ("header".into(), 7)
        );
        assert_eq!(&segments[1][..], b"payload");
        assert!(segments[2].is_empty());
    }
}
