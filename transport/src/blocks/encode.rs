//! Lays out what is sent for a request: pure, but for the reading that a piece then asks for.
//!
//! Always holds: a piece is one contiguous run of the answer's bytes. Leaves are read from the file
//! straight into their places between the parents, with one system call for a run of them.
use super::hash::NODE_BYTES;
use super::{Content, Outboard};
use bao_tree::iter::{BaoChunk, ResponseIter};
use bao_tree::{BaoTree, ChunkRanges};
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

/// Buffers of one system call at most (the kernel takes 1024).
const VECTORS_MAX: usize = 256;

/// Bytes of the tree read at once where nodes are asked for one after another.
const NODES_READ_BYTES: usize = 16 << 10;

/// Bytes of the tree read at once otherwise.
const NODES_READ_BYTES_FIRST: usize = 2 << 10;

/// The answer's layout, cut into pieces.
pub(super) struct Layout {
    tree: BaoTree,
    items: ResponseIter,
}

/// One run of the answer.
#[derive(Default)]
pub(super) struct Piece {
    /// Bytes on the wire.
    pub len: usize,
    parents: Vec<Parent>,
    leaves: Vec<Leaf>,
}

struct Parent {
    at: usize,
    /// Where its 64 bytes are in the outboard.
    offset: u64,
}

struct Leaf {
    at: usize,
    offset: u64,
    len: usize,
}

impl Layout {
    pub(super) fn new(tree: BaoTree, groups: ChunkRanges) -> Self {
        Layout {
            tree,
            items: ResponseIter::new(tree, groups),
        }
    }

    /// The next run of about `len` bytes; `None` at the end.
    pub(super) fn next_piece(&mut self, len: usize) -> Option<Piece> {
        let mut piece = Piece::default();
        while piece.len < len {
            match self.items.next() {
                None => break,
                Some(BaoChunk::Parent { node, .. }) => {
                    let index = self
                        .tree
                        .pre_order_offset(node)
                        .expect("down to groups only");
                    piece.parents.push(Parent {
                        at: piece.len,
                        offset: index * NODE_BYTES as u64,
                    });
                    piece.len += NODE_BYTES;
                }
                Some(BaoChunk::Leaf {
                    start_chunk, size, ..
                }) => {
                    piece.leaves.push(Leaf {
                        at: piece.len,
                        offset: start_chunk.to_bytes(),
                        len: size,
                    });
                    piece.len += size;
                }
            }
        }
        (piece.len > 0).then_some(piece)
    }
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Patience {
    /// Only what the page cache has.
    Now,
    /// As long as it takes.
    Wait,
}

/// Reads pieces of one content.
pub(super) struct Reader {
    content: Content,
    nodes: Vec<u8>,
    nodes_start: u64,
}

impl Reader {
    pub(super) fn new(content: Content) -> Self {
        Reader {
            content,
            nodes: Vec::new(),
            nodes_start: 0,
        }
    }

    /// Fills `buffer` (of the piece's length); `false`: the disk must be waited for.
    pub(super) fn fill(
        &mut self,
        piece: &Piece,
        buffer: &mut [u8],
        patience: Patience,
    ) -> io::Result<bool> {
        for parent in &piece.parents {
            let Some(node) = self.node(parent.offset, patience)? else {
                return Ok(false);
            };
            buffer[parent.at..][..NODE_BYTES].copy_from_slice(node);
        }
        let mut rest = &piece.leaves[..];
        while !rest.is_empty() {
            let (run, after) = rest.split_at(run_len(rest));
            if !read_run(&self.content.file, run, buffer, patience)? {
                return Ok(false);
            }
            rest = after;
        }
        Ok(true)
    }

    /// The node at an offset of the outboard.
    fn node(&mut self, offset: u64, patience: Patience) -> io::Result<Option<&[u8]>> {
        let file = match &self.content.outboard {
            Outboard::Memory(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let node = bytes.get(start..).and_then(|rest| rest.get(..NODE_BYTES));
                return node
                    .map(Some)
                    .ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
            }
            Outboard::File(file) => file,
        };
        let end = self.nodes_start + self.nodes.len() as u64;
        if offset < self.nodes_start || offset + NODE_BYTES as u64 > end {
            let follows = offset == end && !self.nodes.is_empty();
            let len = if follows {
                NODES_READ_BYTES
            } else {
                NODES_READ_BYTES_FIRST
            };
            let outboard_len = super::outboard_len(self.content.size);
            let len = outboard_len.saturating_sub(offset).min(len as u64) as usize;
            let mut nodes = std::mem::take(&mut self.nodes);
            nodes.resize(len.max(NODE_BYTES), 0);
            if !read_at(file, &mut nodes, offset, patience)? {
                return Ok(None);
            }
            self.nodes = nodes;
            self.nodes_start = offset;
        }
        let start = (offset - self.nodes_start) as usize;
        Ok(Some(&self.nodes[start..][..NODE_BYTES]))
    }
}

/// How many leaves from the first on lie one after another in the file.
fn run_len(leaves: &[Leaf]) -> usize {
    let follows = |pair: &[Leaf]| pair[0].offset + pair[0].len as u64 == pair[1].offset;
    let run = leaves.windows(2).take_while(|pair| follows(pair)).count() + 1;
    run.min(VECTORS_MAX)
}

/// Reads leaves that lie one after another into their places.
fn read_run(file: &File, run: &[Leaf], buffer: &mut [u8], patience: Patience) -> io::Result<bool> {
    let wanted: usize = run.iter().map(|leaf| leaf.len).sum();
    let mut vectors = Vec::with_capacity(run.len());
    let mut rest = &mut *buffer;
    let mut position = 0;
    for leaf in run {
        let (_, from_leaf) = rest.split_at_mut(leaf.at - position);
        let (place, after) = from_leaf.split_at_mut(leaf.len);
        vectors.push(IoSliceMut::new(place));
        position = leaf.at + leaf.len;
        rest = after;
    }
    let read = read_vectored(file, &mut vectors, run[0].offset, patience)?;
    if read == Some(wanted) {
        return Ok(true);
    }
    if patience == Patience::Now {
        return Ok(false);
    }
    // A short read: leaf by leaf, which ends in an error if the file is shorter than it was.
    for leaf in run {
        file.read_exact_at(&mut buffer[leaf.at..][..leaf.len], leaf.offset)?;
    }
    Ok(true)
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64, patience: Patience) -> io::Result<bool> {
    let wanted = buffer.len();
    let read = read_vectored(file, &mut [IoSliceMut::new(buffer)], offset, patience)?;
    if read == Some(wanted) {
        return Ok(true);
    }
    match patience {
        Patience::Now => Ok(false),
        Patience::Wait => file.read_exact_at(buffer, offset).map(|()| true),
    }
}

/// One system call; `None`: it would have to wait (or the file system cannot tell).
fn read_vectored(
    file: &File,
    vectors: &mut [IoSliceMut<'_>],
    offset: u64,
    patience: Patience,
) -> io::Result<Option<usize>> {
    let read = match patience {
        Patience::Now => rustix::io::preadv2(file, vectors, offset, ReadWriteFlags::NOWAIT),
        Patience::Wait => rustix::io::preadv(file, vectors, offset),
    };
    match (read, patience) {
        (Ok(read), _) => Ok(Some(read)),
        (Err(_), Patience::Now) | (Err(rustix::io::Errno::INTR), Patience::Wait) => Ok(None),
        (Err(error), Patience::Wait) => Err(error.into()),
    }
}
