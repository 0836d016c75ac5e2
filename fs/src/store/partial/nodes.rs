//! Nodes of a hash tree that have come and are not in its file yet: written many at a time.
//!
//! Always: who flushes returns once every node that was added before is in the file, whoever writes it. Not for what they are worth:
//! they have been verified.
use crate::store::lock;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// So many are gathered before they are written.
const GATHERED_MAX: usize = 1024;

/// A node's offset in the outboard, and its two hashes.
pub(crate) type Node = (u64, [u8; 64]);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// Held while they are written: no one is to find it empty before they are there.
    gathered: Mutex<Vec<Node>>,
}

impl Nodes {
    /// Adds one.
    pub(crate) fn add(&self, node: Node, tree: &File) -> io::Result<()> {
        let mut gathered = lock(&self.gathered);
        gathered.push(node);
        match gathered.len() >= GATHERED_MAX {
            true => write_all(&mut gathered, tree),
            false => Ok(()),
        }
    }

    /// Writes those that have come. Where that fails they are kept.
    pub(crate) fn flush(&self, tree: &File) -> io::Result<()> {
        write_all(&mut lock(&self.gathered), tree)
    }
}

/// Neighbours together.
fn write_all(nodes: &mut Vec<Node>, tree: &File) -> io::Result<()> {
    nodes.sort_unstable_by_key(|node| node.0);
    nodes.dedup_by_key(|node| node.0);
    for run in nodes.chunk_by(|one, next| one.0 + 64 == next.0) {
        let bytes: Vec<u8> = run.iter().flat_map(|node| node.1).collect();
        tree.write_all_at(&bytes, run[0].0)?;
    }
    nodes.clear();
    Ok(())
}
