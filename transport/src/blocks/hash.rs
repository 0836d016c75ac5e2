//! BLAKE3 trees of local files: the root, and the inner nodes as bao-tree's pre-order outboard.
use super::{GROUP_BYTES, Hash};
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

/// Bytes of an inner node: the hashes of its two children.
pub(super) const NODE_BYTES: usize = 64;

/// A subtree that one thread hashes with one read; a power of two of groups.
const UNIT_BYTES: u64 = 1 << 20;

/// Files smaller than this are hashed by the calling thread alone.
const PARALLEL_BYTES_MIN: u64 = 4 << 20;

/// Threads that hash one file at most.
const THREADS_MAX: usize = 4;

/// Length in bytes of the outboard of a file of `size` bytes.
pub fn outboard_len(size: u64) -> u64 {
    (size.div_ceil(GROUP_BYTES).max(1) - 1) * NODE_BYTES as u64
}

/// Hashes `size` bytes of `file` (several cores where the file is large); returns the root and the outboard.
///
/// Blocks; a file that is shorter is an error. Takes memory for the outboard (1/256 of the size).
pub fn hash_file(file: &File, size: u64) -> io::Result<(Hash, Vec<u8>)> {
    let threads = if size < PARALLEL_BYTES_MIN {
        1
    } else {
        std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
    };
    hash_with(size, threads, |offset, buffer| {
        file.read_exact_at(buffer, offset)
    })
}

/// The same of `size` bytes that `read` gives, one piece after the other (offset, room), at its own pace.
///
/// Ends with `read`'s first error. Pieces are at most 1 MiB, and begin at multiples of 16 KiB.
pub fn hash_pieces(
    size: u64,
    read: impl FnMut(u64, &mut [u8]) -> io::Result<()> + Send,
) -> io::Result<(Hash, Vec<u8>)> {
    let read = Mutex::new(read);
    hash_with(size, 1, |offset, buffer| {
        let mut read = read
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        (*read)(offset, buffer)
    })
}

/// Hashes bytes in memory.
pub fn hash_bytes(data: &[u8]) -> (Hash, Vec<u8>) {
    let read = |offset: u64, buffer: &mut [u8]| {
        buffer.copy_from_slice(&data[offset as usize..][..buffer.len()]);
        Ok(())
    };
    hash_with(data.len() as u64, 1, read).expect("memory can be read")
}

type Read<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync + 'a;

/// A part of the tree: `len` bytes at `offset`.
#[derive(Clone, Copy)]
struct Part {
    offset: u64,
    len: u64,
}

/// A subtree with the room for its nodes.
struct Unit<'a> {
    part: Part,
    nodes: &'a mut [u8],
}

fn hash_with(
    size: u64,
    threads: usize,
    read: impl Fn(u64, &mut [u8]) -> io::Result<()> + Sync,
) -> io::Result<(Hash, Vec<u8>)> {
    let mut outboard = vec![0; outboard_len(size) as usize];
    let whole = Part {
        offset: 0,
        len: size,
    };
    if size <= GROUP_BYTES {
        let mut data = vec![0; size as usize];
        read(0, &mut data)?;
        return Ok((*blake3::hash(&data).as_bytes(), outboard));
    }
    let mut units = Vec::new();
    let (top, nodes) = outboard.split_at_mut(NODE_BYTES);
    let [left, right] = halves(whole, nodes);
    split(left, &mut units);
    split(right, &mut units);
    let mut hashes = hash_units(units, threads, &read)?.into_iter();
    let [left, right] = halves(whole, nodes);
    let (left, right) = (join(left, &mut hashes), join(right, &mut hashes));
    store_node(top, &left, &right);
    let root = merge_subtrees_root(&left, &right, Mode::Hash);
    Ok((*root.as_bytes(), outboard))
}

/// The two children of a part; `nodes` is the room for what is below the part's own node.
fn halves(part: Part, nodes: &mut [u8]) -> [Unit<'_>; 2] {
    let left = Part {
        offset: part.offset,
        len: left_subtree_len(part.len),
    };
    let right = Part {
        offset: part.offset + left.len,
        len: part.len - left.len,
    };
    let (left_nodes, right_nodes) = nodes.split_at_mut(outboard_len(left.len) as usize);
    [
        Unit {
            part: left,
            nodes: left_nodes,
        },
        Unit {
            part: right,
            nodes: right_nodes,
        },
    ]
}

fn store_node(node: &mut [u8], left: &ChainingValue, right: &ChainingValue) {
    node[..32].copy_from_slice(left);
    node[32..].copy_from_slice(right);
}

/// Cuts a subtree into units that one thread hashes at once, in order.
fn split<'a>(subtree: Unit<'a>, units: &mut Vec<Unit<'a>>) {
    if subtree.part.len <= UNIT_BYTES {
        return units.push(subtree);
    }
    let (_, below) = subtree.nodes.split_at_mut(NODE_BYTES);
    for half in halves(subtree.part, below) {
        split(half, units);
    }
}

/// The hash of a subtree from those of its units, which come in `split`'s order.
fn join(subtree: Unit<'_>, units: &mut impl Iterator<Item = ChainingValue>) -> ChainingValue {
    if subtree.part.len <= UNIT_BYTES {
        return units.next().expect("as many as split made");
    }
    let (own, below) = subtree.nodes.split_at_mut(NODE_BYTES);
    let [left, right] = halves(subtree.part, below);
    let (left, right) = (join(left, units), join(right, units));
    store_node(own, &left, &right);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The hashes of all units, in their order; the work is shared among threads.
fn hash_units(
    units: Vec<Unit<'_>>,
    threads: usize,
    read: &Read<'_>,
) -> io::Result<Vec<ChainingValue>> {
    let mut hashes = vec![[0; 32]; units.len()];
    let work = Mutex::new(units.into_iter().zip(hashes.iter_mut()));
    let run = || -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let next = work.lock().expect("no panic while held").next();
            let Some((unit, hash)) = next else {
                return Ok(());
            };
            buffer.resize(unit.part.len as usize, 0);
            read(unit.part.offset, &mut buffer)?;
            *hash = hash_unit(unit, &buffer);
        }
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mine = run();
        helpers.into_iter().fold(mine, |result, helper| {
            result.and(helper.join().expect("hashing does not panic"))
        })
    })?;
    drop(work);
    Ok(hashes)
}

fn hash_unit(unit: Unit<'_>, data: &[u8]) -> ChainingValue {
    if unit.part.len <= GROUP_BYTES {
        return hash_group(unit.part.offset, data);
    }
    let (own, below) = unit.nodes.split_at_mut(NODE_BYTES);
    let [left, right] = halves(unit.part, below);
    let (left_data, right_data) = data.split_at(left.part.len as usize);
    let (left, right) = (hash_unit(left, left_data), hash_unit(right, right_data));
    store_node(own, &left, &right);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

/// The hash of one group that is not the whole content.
pub(super) fn hash_group(offset: u64, data: &[u8]) -> ChainingValue {
    blake3::Hasher::new()
        .set_input_offset(offset)
        .update(data)
        .finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::super::ranges::BLOCK_SIZE;
    use super::*;
    use bao_tree::io::outboard::PreOrderMemOutboard;
    use proptest::prelude::*;

    fn sample(size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        blake3::Hasher::new()
            .update(&size.to_le_bytes())
            .finalize_xof()
            .fill(&mut data);
        data
    }

    fn check(data: &[u8]) {
        let expected = PreOrderMemOutboard::create(data, BLOCK_SIZE);
        let (root, outboard) = hash_bytes(data);
        assert_eq!(root, *blake3::hash(data).as_bytes(), "{} bytes", data.len());
        assert_eq!(root, *expected.root.as_bytes());
        assert!(
            outboard == expected.data,
            "outboard of {} bytes",
            data.len()
        );
        assert_eq!(outboard.len() as u64, outboard_len(data.len() as u64));
    }

    #[test]
    fn same_as_bao_tree_at_the_edges() {
        for size in [
            0,
            1,
            1023,
            1024,
            16383,
            16384,
            16385,
            32768,
            32769,
            49153,
            1 << 20,
        ] {
            check(&sample(size));
        }
        for size in [(1 << 20) + 1, (3 << 20) - 1, (5 << 20) + 12345] {
            check(&sample(size));
        }
    }

    #[test]
    fn files_on_all_cores() {
        let data = sample((9 << 20) + 77);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&data, 0).unwrap();
        let (root, outboard) = hash_file(&file, data.len() as u64).unwrap();
        assert_eq!((root, outboard), hash_bytes(&data));
        let error = hash_file(&file, data.len() as u64 + 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn same_as_bao_tree(size in 0usize..3_000_000) {
            check(&sample(size));
        }
    }
}
