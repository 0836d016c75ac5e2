//! Read-ahead: which bytes will be read next, judged by the reads that came. Pure: no clock, no I/O.
//!
//! A file has a few tracked streams (bounded), because several programs or threads may read different parts of it in order. A stream
//! is *established* once two reads or more have followed each other over at least 64 KiB (or the first 128 KiB of the file are read at once); from then on it asks for bytes ahead of the reader,
//! and the window doubles each time the reader has come half-way through it. A read that continues no stream begins a new one
//! with nothing ahead: a lone random read moves the groups it touches and no more.
//!
//! The kernel sends its own read-ahead as requests of 128 KiB to 1 MiB, from several threads and slightly out of
//! order: an established stream takes reads a few requests before or after the place it expects.
use std::ops::Range;

/// Streams tracked in one file; the least recently used one is forgotten.
pub const STREAMS_MAX: usize = 8;
/// The first window of an established stream (twice a read's length where that is more).
pub const WINDOW_FIRST_BYTES: u64 = 128 * 1024;
/// A stream is established after so many bytes in sequence.
const RUN_BYTES_MIN: u64 = 64 * 1024;
/// How many requests early or late a read of an established stream may come.
const REORDER_REQUESTS: u64 = 4;

/// One sequence of reads.
#[derive(Clone, Debug)]
struct Stream {
    /// Where its first read began: what came just before it may still arrive out of order.
    start: u64,
    /// The end of what has been read in sequence.
    next: u64,
    /// How far ahead has been asked for.
    ahead_end: u64,
    /// How far ahead of `next` to ask.
    window: u64,
    /// Bytes read in sequence.
    run: u64,
    /// Reads in sequence.
    reads: u64,
    /// The longest read it has seen: the measure of how far out of order reads may come.
    read_len: u64,
    used: u64,
}

impl Stream {
    fn established(&self) -> bool {
        self.reads >= 2 && self.run >= RUN_BYTES_MIN
    }

    /// Whether a read belongs to this stream.
    fn takes(&self, read: &Range<u64>) -> bool {
        if read.start == self.next {
            return true;
        }
        if self.reads == 1 && read.end == self.start {
            return true;
        }
        let slack = self.read_len.max(read.end - read.start) * REORDER_REQUESTS;
        self.established() && read.start < self.next + slack && read.end + slack > self.next
    }
}

/// The streams of one file.
#[derive(Debug)]
pub struct Readahead {
    size: u64,
    window_max: u64,
    streams: Vec<Stream>,
    tick: u64,
}

impl Readahead {
    /// For a content of `size` bytes; no stream asks for more than `window_max` bytes ahead.
    pub fn new(size: u64, window_max: u64) -> Self {
        Self {
            size,
            window_max,
            streams: Vec::new(),
            tick: 0,
        }
    }

    /// A read came: what should be brought now beside what it asks for.
    pub fn read(&mut self, offset: u64, len: u64) -> Option<Range<u64>> {
        let read = offset.min(self.size)..offset.saturating_add(len).min(self.size);
        if read.is_empty() {
            return None;
        }
        self.tick += 1;
        let tick = self.tick;
        match self.streams.iter().position(|stream| stream.takes(&read)) {
            Some(index) => {
                let stream = &mut self.streams[index];
                stream.used = tick;
                advance(stream, &read);
                self.extend(index)
            }
            None => {
                self.begin(&read);
                self.extend(self.streams.len() - 1)
            }
        }
    }

    fn begin(&mut self, read: &Range<u64>) {
        if self.streams.len() == STREAMS_MAX {
            let oldest = (0..STREAMS_MAX).min_by_key(|&index| self.streams[index].used);
            self.streams.swap_remove(oldest.unwrap_or(0));
        }
        self.streams.push(Stream {
            start: read.start,
            next: read.end,
            ahead_end: read.end,
            window: WINDOW_FIRST_BYTES.min(self.window_max),
            run: read.end - read.start,
            reads: if is_from_the_start(read) { 2 } else { 1 },
            read_len: read.end - read.start,
            used: self.tick,
        });
    }

    /// Asks for more once half of the window has been read, and doubles it.
    fn extend(&mut self, index: usize) -> Option<Range<u64>> {
        let stream = &mut self.streams[index];
        if !stream.established() || stream.ahead_end >= self.size {
            return None;
        }
        stream.window = stream.window.max(2 * stream.read_len).min(self.window_max);
        if stream.ahead_end >= stream.next + stream.window / 2 {
            return None;
        }
        let start = stream.ahead_end.max(stream.next);
        let end = (stream.next + stream.window).min(self.size);
        stream.window = (stream.window * 2).min(self.window_max);
        stream.ahead_end = end;
        (start < end).then_some(start..end)
    }
}

/// Who reads so much of a file's beginning at once goes on.
fn is_from_the_start(read: &Range<u64>) -> bool {
    read.start == 0 && read.end >= WINDOW_FIRST_BYTES
}

fn advance(stream: &mut Stream, read: &Range<u64>) {
    stream.reads += 1;
    stream.read_len = stream.read_len.max(read.end - read.start);
    stream.start = stream.start.min(read.start);
    if read.end > stream.next {
        stream.run += read.end - read.start.max(stream.next);
        stream.next = read.end;
    } else if read.end <= stream.start + (read.end - read.start) {
        stream.run += read.end - read.start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1024;
    const MIB: u64 = 1024 * KIB;

    #[test]
    fn sequential_reads_double_the_window() {
        let mut readahead = Readahead::new(1 << 30, 8 * MIB);
        assert_eq!(readahead.read(0, 128 * KIB), Some(128 * KIB..384 * KIB));
        assert_eq!(
            readahead.read(128 * KIB, 128 * KIB),
            Some(384 * KIB..768 * KIB)
        );
        let mut offset = 256 * KIB;
        let mut longest = 0;
        while offset < 64 * MIB {
            if let Some(range) = readahead.read(offset, 128 * KIB) {
                assert!(range.end <= offset + 128 * KIB + 8 * MIB);
                longest = longest.max(range.end - offset);
            }
            offset += 128 * KIB;
        }
        assert!(longest >= 8 * MIB, "the window stopped at {longest}");
    }

    #[test]
    fn a_lone_random_read_asks_for_nothing_more() {
        let mut readahead = Readahead::new(1 << 30, 8 * MIB);
        for offset in [5 * MIB, 900 * MIB, 17 * MIB, 16 * MIB, 0, 512 * MIB] {
            assert_eq!(readahead.read(offset, 4 * KIB), None);
            assert_eq!(readahead.read(offset + 4 * KIB, 4 * KIB), None);
        }
    }

    #[test]
    fn reordered_requests_stay_one_stream() {
        let mut readahead = Readahead::new(1 << 30, 8 * MIB);
        let mut asked = 0;
        for pair in 0..64u64 {
            for index in [pair * 2 + 1, pair * 2] {
                if let Some(range) = readahead.read(index * 128 * KIB, 128 * KIB) {
                    asked += range.end - range.start;
                }
            }
        }
        assert!(asked >= 16 * MIB, "asked for {asked} bytes only");
        assert!(readahead.streams.len() <= 2);
    }

    #[test]
    fn several_streams_at_once_and_a_seek_begins_small() {
        let mut readahead = Readahead::new(1 << 30, 8 * MIB);
        let mut ahead = [0u64; 3];
        for step in 0..40u64 {
            for (stream, ahead) in ahead.iter_mut().enumerate() {
                let offset = stream as u64 * 300 * MIB + step * 128 * KIB;
                if let Some(range) = readahead.read(offset, 128 * KIB) {
                    *ahead = range.end - offset;
                }
            }
        }
        assert!(ahead.iter().all(|&bytes| bytes > MIB));
        assert_eq!(readahead.read(200 * MIB, 128 * KIB), None);
        let next = readahead.read(200 * MIB + 128 * KIB, 128 * KIB).unwrap();
        assert_eq!(next.end - next.start, 2 * WINDOW_FIRST_BYTES);
    }

    proptest! {
        #[test]
        fn what_is_asked_is_bounded_and_never_asked_twice(
            reads in prop::collection::vec((0u64..2048, 1u64..64), 1..200)
        ) {
            let size = 8 * MIB;
            let mut readahead = Readahead::new(size, MIB);
            for (page, pages) in reads {
                if let Some(range) = readahead.read(page * 4 * KIB, pages * 4 * KIB) {
                    prop_assert!(range.start < range.end && range.end <= size);
                    prop_assert!(range.end - range.start <= MIB);
                }
                prop_assert!(readahead.streams.len() <= STREAMS_MAX);
            }
        }

        #[test]
        fn a_sequential_reader_is_always_served_ahead(len in 1u64..256) {
            let size = 32 * MIB;
            let len = len * 4 * KIB;
            let mut readahead = Readahead::new(size, 4 * MIB);
            let (mut offset, mut ahead_end) = (0, 0);
            while offset < size {
                if let Some(range) = readahead.read(offset, len) {
                    prop_assert!(range.start >= ahead_end, "asked twice");
                    ahead_end = range.end;
                }
                offset += len;
                if offset > 2 * MIB {
                    prop_assert!(ahead_end >= size.min(offset + MIB));
                }
            }
        }
    }
}
