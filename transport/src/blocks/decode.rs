//! Verifies an answer as it arrives: pure, fed with bytes in whatever portions they come.
//!
//! Always holds: the sink sees a byte only after its group's hash led to the root, and in order.
//! Arriving bytes are copied once, to where whole groups lie one after another, so that groups are
//! hashed whole (that is when BLAKE3 is fast) and extents handed on are large.
use super::BlockSink;
use super::hash::{NODE_BYTES, hash_group};
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, ChunkRanges};
use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};
use std::io;

/// The largest extent handed to the sink at once (plus a group).
pub(super) const EXTENT_BYTES_MAX: usize = 256 << 10;

/// Why an answer is not taken.
#[derive(Debug)]
pub(super) enum DecodeError {
    /// It does not match the hash, from this byte of the file on.
    Corrupt { offset: u64 },
    /// The sink failed.
    Sink(io::Error),
}

/// The state of one answer.
pub(super) struct Decoder {
    tree: BaoTree,
    items: ResponseIter,
    current: Option<BaoChunk>,
    /// Hashes that the next items must have, the nearest last.
    expected: Vec<ChainingValue>,
    parent: [u8; NODE_BYTES],
    /// Bytes of the current item that are there.
    filled: usize,
    /// Verified data that waits for the sink, then the current leaf.
    extent: Vec<u8>,
    extent_offset: u64,
    verified: usize,
    /// Verified bytes at which the sink is called: small at first, so that the first reader is
    /// served at once, then larger.
    extent_goal: usize,
}

impl Decoder {
    /// For the groups of a content with this hash. Verifies at once what needs no bytes.
    pub(super) fn new(
        hash: &[u8; 32],
        tree: BaoTree,
        groups: ChunkRanges,
    ) -> Result<Self, DecodeError> {
        let mut decoder = Decoder {
            tree,
            items: ResponseIter::new(tree, groups),
            current: None,
            expected: vec![*hash],
            parent: [0; NODE_BYTES],
            filled: 0,
            extent: Vec::new(),
            extent_offset: 0,
            verified: 0,
            extent_goal: super::GROUP_BYTES as usize,
        };
        decoder.current = decoder.items.next();
        if let Some(BaoChunk::Leaf { size: 0, .. }) = decoder.current {
            // The empty content: its one group is there already.
            decoder.finish_leaf(0, 0, true)?;
        }
        Ok(decoder)
    }

    /// Makes room at once for as much as will lie here of `bytes` that are to come: growing would copy it again and again.
    pub(super) fn make_room(&mut self, bytes: u64) {
        let room = (EXTENT_BYTES_MAX as u64 + super::GROUP_BYTES).min(bytes);
        self.extent.reserve(room as usize);
    }

    /// Whether all has come and been verified. (The sink may still wait for `flush`.)
    pub(super) fn is_done(&self) -> bool {
        self.current.is_none()
    }

    /// Verified bytes that the sink has not seen.
    pub(super) fn pending(&self) -> usize {
        self.verified
    }

    /// Where in the file the next item belongs (for messages).
    fn offset(&self) -> u64 {
        match &self.current {
            Some(BaoChunk::Parent { node, .. }) => node.chunk_range().start.to_bytes(),
            Some(BaoChunk::Leaf { start_chunk, .. }) => start_chunk.to_bytes(),
            None => self.tree.size(),
        }
    }

    /// Takes the next bytes of the answer.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn BlockSink,
    ) -> Result<(), DecodeError> {
        while !bytes.is_empty() {
            bytes = match self.current {
                None => {
                    return Err(DecodeError::Corrupt {
                        offset: self.offset(),
                    });
                }
                Some(BaoChunk::Parent { .. }) => self.feed_parent(bytes, sink)?,
                Some(BaoChunk::Leaf {
                    start_chunk,
                    size,
                    is_root,
                    ..
                }) => self.feed_leaf(bytes, start_chunk.to_bytes(), size, is_root, sink)?,
            };
        }
        Ok(())
    }

    fn feed_parent<'a>(
        &mut self,
        bytes: &'a [u8],
        sink: &mut dyn BlockSink,
    ) -> Result<&'a [u8], DecodeError> {
        let take = bytes.len().min(NODE_BYTES - self.filled);
        let (taken, rest) = bytes.split_at(take);
        self.parent[self.filled..][..take].copy_from_slice(taken);
        self.filled += take;
        if self.filled == NODE_BYTES {
            self.finish_parent(sink)?;
        }
        Ok(rest)
    }

    fn finish_parent(&mut self, sink: &mut dyn BlockSink) -> Result<(), DecodeError> {
        let Some(BaoChunk::Parent {
            node,
            is_root,
            left,
            right,
            ..
        }) = self.current
        else {
            unreachable!("called at a parent");
        };
        let (left_hash, right_hash) = halves(&self.parent);
        let actual = if is_root {
            *merge_subtrees_root(&left_hash, &right_hash, Mode::Hash).as_bytes()
        } else {
            merge_subtrees_non_root(&left_hash, &right_hash, Mode::Hash)
        };
        self.expect(&actual)?;
        if right {
            self.expected.push(right_hash);
        }
        if left {
            self.expected.push(left_hash);
        }
        let index = self
            .tree
            .pre_order_offset(node)
            .expect("down to groups only");
        sink.node(index * NODE_BYTES as u64, &self.parent)
            .map_err(DecodeError::Sink)?;
        self.advance();
        Ok(())
    }

    fn feed_leaf<'a>(
        &mut self,
        bytes: &'a [u8],
        offset: u64,
        size: usize,
        is_root: bool,
        sink: &mut dyn BlockSink,
    ) -> Result<&'a [u8], DecodeError> {
        if self.filled == 0
            && self.verified > 0
            && self.extent_offset + self.verified as u64 != offset
        {
            self.flush(sink)?;
        }
        if self.filled == 0 && self.verified == 0 {
            self.extent_offset = offset;
        }
        let take = bytes.len().min(size - self.filled);
        let (taken, rest) = bytes.split_at(take);
        // What lies behind the verified bytes is this leaf's beginning, and nothing else.
        debug_assert_eq!(self.extent.len(), self.verified + self.filled);
        self.extent.extend_from_slice(taken);
        self.filled += take;
        if self.filled == size {
            self.finish_leaf(offset, size, is_root)?;
            if self.verified >= self.extent_goal {
                self.extent_goal = (self.extent_goal * 2).min(EXTENT_BYTES_MAX);
                self.flush(sink)?;
            }
        }
        Ok(rest)
    }

    fn finish_leaf(&mut self, offset: u64, size: usize, is_root: bool) -> Result<(), DecodeError> {
        let data = &self.extent[self.verified..][..size];
        let actual = if is_root {
            *blake3::hash(data).as_bytes()
        } else {
            hash_group(offset, data)
        };
        self.expect(&actual)?;
        self.verified += size;
        self.advance();
        Ok(())
    }

    fn expect(&mut self, actual: &ChainingValue) -> Result<(), DecodeError> {
        if self.expected.pop().as_ref() == Some(actual) {
            Ok(())
        } else {
            Err(DecodeError::Corrupt {
                offset: self.offset(),
            })
        }
    }

    fn advance(&mut self) {
        self.filled = 0;
        self.current = self.items.next();
    }

    /// Hands the sink what is verified.
    pub(super) fn flush(&mut self, sink: &mut dyn BlockSink) -> Result<(), DecodeError> {
        if self.verified > 0 {
            sink.data(self.extent_offset, &self.extent[..self.verified])
                .map_err(DecodeError::Sink)?;
            self.extent.drain(..self.verified);
            self.extent_offset += self.verified as u64;
            self.verified = 0;
        }
        Ok(())
    }
}

fn halves(pair: &[u8; NODE_BYTES]) -> (ChainingValue, ChainingValue) {
    let (left, right) = pair.split_at(32);
    let half = |bytes: &[u8]| bytes.try_into().expect("half of 64 bytes");
    (half(left), half(right))
}

#[cfg(test)]
mod tests;
