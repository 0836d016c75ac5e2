//! What a call writes, on its way to its caller: let through at a bounded rate with a note of what was left out, its end kept for
//! who asks later (`ks logs`).
//!
//! `Output` is pure. What always holds: what is let through is in order; every byte that is left out is counted and told.
use super::Executor;
use super::board::Run;
use super::flow::Next;
use crate::protocol::{NOTE_STREAM, Update};
use crate::queue::record::Wrote;
use ks_fs::record::NodeId;
use serde_bytes::ByteBuf;
use std::collections::VecDeque;
use std::sync::Arc;

/// Bytes that a call may write at once ...
pub const BURST_BYTES: u64 = 8 * 1024 * 1024;
/// ... and how many more each second.
pub const RATE_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of a call's output that are kept with its record: the last ones.
pub const KEPT_BYTES: usize = 16 * 1024;
/// Output is passed on in pieces of at most this.
const PIECE_BYTES: usize = 64 * 1024;

/// What one call has written.
#[derive(Debug, Default)]
pub struct Output {
    /// Of the burst, so much is used up.
    used_bytes: u64,
    at_ms: u64,
    dropped_bytes: u64,
    kept: VecDeque<(u8, Vec<u8>)>,
    kept_bytes: usize,
    omitted_bytes: u64,
}

/// What becomes of a piece of output.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// So many bytes before this were left out, and nobody was told yet.
    pub dropped_before: u64,
    /// So many of its bytes go on; the others are left out.
    pub bytes: usize,
}

impl Output {
    /// The call wrote `data`. `now_ms`: any clock that only goes forward.
    pub fn wrote(&mut self, stream: u8, data: &[u8], now_ms: u64) -> Passed {
        self.keep(stream, data);
        let passed_ms = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        self.used_bytes = self
            .used_bytes
            .saturating_sub(passed_ms.saturating_mul(RATE_BYTES) / 1000);
        let room = (BURST_BYTES - self.used_bytes) as usize;
        let bytes = data.len().min(room);
        self.used_bytes += bytes as u64;
        let dropped_before = match bytes {
            0 => 0,
            _ => std::mem::take(&mut self.dropped_bytes),
        };
        self.dropped_bytes += (data.len() - bytes) as u64;
        Passed {
            dropped_before,
            bytes,
        }
    }

    /// The call wrote `data`, which goes on whole however fast it comes.
    pub fn wrote_paced(&mut self, stream: u8, data: &[u8]) -> Passed {
        self.keep(stream, data);
        Passed {
            dropped_before: std::mem::take(&mut self.dropped_bytes),
            bytes: data.len(),
        }
    }

    /// The call wrote `data`, and nobody takes it.
    pub fn dropped(&mut self, stream: u8, data: &[u8]) {
        self.keep(stream, data);
        self.dropped_bytes += data.len() as u64;
    }

    /// Bytes that were left out and nobody was told of: to be said at the end.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped_bytes)
    }

    fn keep(&mut self, stream: u8, data: &[u8]) {
        let skipped = data.len().saturating_sub(KEPT_BYTES);
        self.omitted_bytes += skipped as u64;
        let data = &data[skipped..];
        match self.kept.back_mut() {
            Some((last, bytes)) if *last == stream => bytes.extend_from_slice(data),
            _ => self.kept.push_back((stream, data.to_vec())),
        }
        self.kept_bytes += data.len();
        while self.kept_bytes > KEPT_BYTES {
            let excess = self.kept_bytes - KEPT_BYTES;
            let Some((_, first)) = self.kept.front_mut() else {
                return;
            };
            let gone = excess.min(first.len());
            first.drain(..gone);
            self.kept_bytes -= gone;
            self.omitted_bytes += gone as u64;
            if first.is_empty() {
                self.kept.pop_front();
            }
        }
    }

    /// The end of what it has written so far.
    pub fn kept(&self) -> Wrote {
        let pieces = self.kept.iter();
        Wrote {
            pieces: pieces
                .map(|(stream, bytes)| (*stream, ByteBuf::from(bytes.clone())))
                .collect(),
            omitted_bytes: self.omitted_bytes,
        }
    }

    /// The end of what it wrote.
    pub fn into_kept(self) -> Wrote {
        let pieces = self.kept.into_iter();
        Wrote {
            pieces: pieces
                .map(|(stream, bytes)| (stream, ByteBuf::from(bytes)))
                .collect(),
            omitted_bytes: self.omitted_bytes,
        }
    }
}

/// What the caller reads where output is missing.
pub(super) fn note(dropped_bytes: u64) -> Vec<u8> {
    format!("[kitchensink: {dropped_bytes} bytes of output were left out, as the call wrote faster than they can be passed on or are read]\n").into_bytes()
}

impl Executor {
    /// A call wrote something.
    pub(super) fn pass_output(self: &Arc<Self>, job: &str, stream: u8, data: &[u8]) {
        let now_ms = self.now_ms();
        let (origin, passed) = {
            let mut board = self.board.lock().unwrap();
            let Some(run) = board.runs.get_mut(job) else {
                return;
            };
            if run.flow.is_stalled() && self.next_of(job, run) == Next::Drop {
                return run.output.dropped(stream, data);
            }
            let passed = match run.stored.call.paced {
                true => run.output.wrote_paced(stream, data),
                false => run.output.wrote(stream, data, now_ms),
            };
            if !run.stored.call.intermediate_results {
                return;
            }
            if run.origin != self.me().node {
                run.flow.sent(passed.bytes as u64);
            }
            (run.origin, passed)
        };
        if passed.dropped_before > 0 {
            self.tell(
                origin,
                job,
                self.output(NOTE_STREAM, &note(passed.dropped_before)),
            );
        }
        for piece in data[..passed.bytes].chunks(PIECE_BYTES) {
            self.tell(origin, job, self.output(stream, piece));
        }
    }

    /// Whether what a call writes next is to be read; else it stays in its pipe, and the call waits.
    pub(super) fn may_read(&self, job: &str) -> bool {
        let mut board = self.board.lock().unwrap();
        let Some(run) = board.runs.get_mut(job) else {
            return true;
        };
        !run.stored.call.intermediate_results || self.next_of(job, run) != Next::Wait
    }

    fn next_of(&self, job: &str, run: &mut Run) -> Next {
        let has_room = match run.origin == self.me().node {
            true => self.callers.has_room(job),
            false => self.links.has_room(run.origin),
        };
        let is_paced = run.stored.call.paced;
        if !is_paced && run.origin == self.me().node && self.callers.is_deaf(job) {
            return Next::Drop;
        }
        run.flow.next(has_room, is_paced, self.now_ms())
    }

    /// A caller's node has passed on so many bytes of a call's output in all.
    pub(super) fn credit(&self, job: &str, bytes_in_all: u64) {
        if let Some(run) = self.board.lock().unwrap().runs.get_mut(job) {
            run.flow.credit(bytes_in_all);
        }
    }

    /// Calls whose callers' nodes have died wait for nobody.
    pub(super) async fn free_stalled(&self) {
        let stalled: Vec<(String, NodeId)> = {
            let board = self.board.lock().unwrap();
            let runs = board.runs.iter().filter(|(_, run)| run.flow.is_stalled());
            runs.map(|(job, run)| (job.clone(), run.origin)).collect()
        };
        if stalled.is_empty() {
            return;
        }
        let Ok(nodes) = self.nodes.get(self.fs.catalog()).await else {
            return;
        };
        let mut board = self.board.lock().unwrap();
        for (job, origin) in stalled {
            let lives = nodes.iter().any(|node| node.id == origin && node.alive);
            if let Some(run) = board
                .runs
                .get_mut(&job)
                .filter(|run| !lives && run.origin == origin)
            {
                run.flow.open();
            }
        }
    }

    pub(super) fn output(&self, stream: u8, data: &[u8]) -> Update {
        Update::Output {
            node: self.options.node_name.clone(),
            stream,
            data: data.to_vec().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_goes_on_or_is_counted(
            writes in proptest::collection::vec((1u8..3, 0usize..3_000_000, 0u64..400), 0..40),
        ) {
            let mut output = Output::default();
            let (mut now, mut written, mut passed, mut dropped) = (0, 0, 0, 0);
            for (stream, size, later_ms) in writes {
                now += later_ms;
                let data = vec![b'x'; size];
                let answer = output.wrote(stream, &data, now);
                written += size as u64;
                passed += answer.bytes as u64;
                dropped += answer.dropped_before;
            }
            dropped += output.take_dropped();
            prop_assert_eq!(written, passed + dropped);
            prop_assert!(passed <= BURST_BYTES + RATE_BYTES * now / 1000 + 1);
            let kept = output.into_kept();
            let kept_bytes: usize = kept.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            prop_assert_eq!(kept_bytes as u64 + kept.omitted_bytes, written);
            prop_assert!(kept_bytes <= KEPT_BYTES);
        }
    }

    #[test]
    fn the_end_is_kept_in_order() {
        let mut output = Output::default();
        output.wrote(1, &vec![b'a'; KEPT_BYTES], 0);
        output.wrote(2, b"error\n", 0);
        output.wrote(1, b"last\n", 0);
        let kept = output.into_kept();
        assert_eq!(kept.omitted_bytes, 11);
        assert_eq!(kept.pieces[0].1.len(), KEPT_BYTES - 11);
        assert_eq!(kept.pieces[1], (2, ByteBuf::from(b"error\n".to_vec())));
        assert_eq!(kept.pieces[2], (1, ByteBuf::from(b"last\n".to_vec())));
    }
}
