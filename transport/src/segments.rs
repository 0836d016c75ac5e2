//! Frames of several raw segments, for clients and workers: u32 LE count, then that many u64 LE lengths, then the bytes.
//! Blocking and async, over anything that reads and writes (unix socket, socket pair, QUIC stream).
use bytes::Bytes;
use std::io::{self, Read, Write};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Segments in one frame.
pub const SEGMENTS_MAX: usize = 65_536;
/// Bytes of the first segment (the header).
pub const HEADER_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of one frame.
pub const FRAME_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// The frame's head: count and lengths.
pub fn head(segments: &[&[u8]]) -> Vec<u8> {
    let mut head = Vec::with_capacity(4 + 8 * segments.len());
    head.extend_from_slice(&(segments.len() as u32).to_le_bytes());
    for segment in segments {
        head.extend_from_slice(&(segment.len() as u64).to_le_bytes());
    }
    head
}

/// Checks a count before anything is allocated for it.
pub fn check_count(count: u32) -> io::Result<usize> {
    match count as usize {
        0 => Err(invalid("a frame of no segments".into())),
        count if count > SEGMENTS_MAX => Err(invalid(format!(
            "a frame of {count} segments where at most {SEGMENTS_MAX} may come"
        ))),
        count => Ok(count),
    }
}

/// Checks lengths (of the head, after the count) before anything is allocated for them.
pub fn check_lengths(raw: &[u8]) -> io::Result<Vec<usize>> {
    let lengths: Vec<u64> = raw
        .chunks_exact(8)
        .map(|c| u64::from_le_bytes(c.try_into().expect("8 bytes")))
        .collect();
    let total = lengths
        .iter()
        .try_fold(0u64, |sum, &length| sum.checked_add(length));
    match total {
        Some(total) if total <= FRAME_BYTES_MAX && lengths[0] <= HEADER_BYTES_MAX => {
            Ok(lengths.into_iter().map(|l| l as usize).collect())
        }
        _ => Err(invalid("a frame longer than its limit".into())),
    }
}

/// Bytes read per step: memory is taken as data arrives, not as a length claims.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// Reads one frame; `None` at a clean end between frames.
pub fn read(from: &mut impl Read) -> io::Result<Option<Vec<Bytes>>> {
    let mut count = [0; 4];
    match from.read(&mut count)? {
        0 => return Ok(None),
        n => from.read_exact(&mut count[n..])?,
    }
    let mut raw = vec![0; 8 * check_count(u32::from_le_bytes(count))?];
    from.read_exact(&mut raw)?;
    let mut segments = Vec::new();
    for length in check_lengths(&raw)? {
        let mut data = Vec::with_capacity(length.min(STEP_BYTES));
        while data.len() < length {
            let start = data.len();
            data.resize(length.min(start + STEP_BYTES), 0);
            from.read_exact(&mut data[start..])?;
        }
        segments.push(Bytes::from(data));
    }
    Ok(Some(segments))
}

/// Writes one frame.
pub fn write(to: &mut impl Write, segments: &[&[u8]]) -> io::Result<()> {
    let mut small = head(segments);
    let mut rest = segments;
    while let Some((first, others)) = rest.split_first() {
        if small.len() + first.len() > STEP_BYTES / 64 {
            break;
        }
        small.extend_from_slice(first);
        rest = others;
    }
    to.write_all(&small)?;
    for segment in rest {
        to.write_all(segment)?;
    }
    to.flush()
}

/// `read`, async. Not cancel-safe: a frame half read is lost.
pub async fn read_async(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<Bytes>>> {
    let mut count = [0; 4];
    match from.read(&mut count).await? {
        0 => return Ok(None),
        n => from.read_exact(&mut count[n..]).await.map(drop)?,
    }
    let mut raw = vec![0; 8 * check_count(u32::from_le_bytes(count))?];
    from.read_exact(&mut raw).await?;
    let mut segments = Vec::new();
    for length in check_lengths(&raw)? {
        let mut data = Vec::with_capacity(length.min(STEP_BYTES));
        while data.len() < length {
            let start = data.len();
            data.resize(length.min(start + STEP_BYTES), 0);
            from.read_exact(&mut data[start..]).await?;
        }
        segments.push(Bytes::from(data));
    }
    Ok(Some(segments))
}

/// `write`, async.
pub async fn write_async(to: &mut (impl AsyncWrite + Unpin), segments: &[&[u8]]) -> io::Result<()> {
    let mut small = head(segments);
    let mut rest = segments;
    while let Some((first, others)) = rest.split_first() {
        if small.len() + first.len() > STEP_BYTES / 64 {
            break;
        }
        small.extend_from_slice(first);
        rest = others;
    }
    to.write_all(&small).await?;
    for segment in rest {
        to.write_all(segment).await?;
    }
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(segments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5_000), 1..6)) {
            let slices: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
            let mut wire = Vec::new();
            write(&mut wire, &slices).unwrap();
            let back = read(&mut wire.as_slice()).unwrap().unwrap();
            prop_assert_eq!(back.iter().map(|b| b.to_vec()).collect::<Vec<_>>(), segments);
        }

        #[test]
        fn nonsense_is_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&mut bytes.as_slice());
        }
    }

    #[test]
    fn a_clean_end_is_none_and_a_cut_frame_an_error() {
        assert!(read(&mut [].as_slice()).unwrap().is_none());
        let mut wire = Vec::new();
        write(&mut wire, &[b"header", b"payload"]).unwrap();
        for cut in 1..wire.len() {
            assert!(read(&mut &wire[..cut]).is_err(), "cut at {cut}");
        }
    }
}
