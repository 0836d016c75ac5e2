//! Where a request's bytes arrive: written, marked in whole groups, told to the plan and to those who wait.
use super::Core;
use crate::fetch::backing::Place;
use crate::fetch::plan::RequestId;
use ks_transport::blocks::{BlockSink, GROUP_BYTES};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Takes what arrives of one request.
pub(super) struct Sink<'a> {
    core: &'a Arc<Core>,
    request: RequestId,
    /// Told to readers as fetched for them.
    counts: bool,
    place: Place,
    /// Bytes that were written and whose groups are not all marked.
    run: Range<u64>,
}

impl<'a> Sink<'a> {
    /// For a request that begins at `first`.
    pub(super) fn new(core: &'a Arc<Core>, request: RequestId, counts: bool, first: u64) -> Self {
        Self {
            core,
            request,
            counts,
            place: Place::Base,
            run: first..first,
        }
    }

    /// Marks the whole groups of the run.
    fn mark(&mut self) {
        let size = self.core.key.size;
        let end = if self.run.end == size {
            size
        } else {
            self.run.end - self.run.end % GROUP_BYTES
        };
        let start = self.run.start.next_multiple_of(GROUP_BYTES);
        if start < end {
            self.core.backing.mark(start..end, self.place);
            self.core.arrived(self.request, start..end);
            self.run.start = end;
        }
    }
}

impl BlockSink for Sink<'_> {
    fn data(&mut self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let place = self.core.backing.write(offset, data)?;
        if offset != self.run.end || place != self.place {
            self.run = offset..offset;
            self.place = place;
        }
        self.run.end = offset + data.len() as u64;
        let bytes = data.len() as u64;
        let counters = &self.core.shared.counters;
        counters.bytes_fetched.fetch_add(bytes, Ordering::Relaxed);
        if self.counts {
            self.core.untold_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        self.core.unsaved.store(true, Ordering::Relaxed);
        self.mark();
        Ok(())
    }

    fn node(&mut self, offset: u64, pair: &[u8; 64]) -> std::io::Result<()> {
        self.core.backing.node(offset, pair)
    }
}
