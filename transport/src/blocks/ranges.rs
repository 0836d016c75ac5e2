//! What a request asks for, checked and widened to whole groups: pure.
use super::{BlockRequest, GROUP_BYTES, LOCATOR_BYTES_MAX, RANGES_MAX, SIZE_BYTES_MAX};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};

/// bao-tree's word for groups of 16 KiB: 2^4 chunks of 1 KiB.
pub(super) const BLOCK_SIZE: BlockSize = BlockSize::from_chunk_log(4);

/// Bytes of a chunk, bao-tree's unit of addressing.
const CHUNK_BYTES: u64 = 1024;

/// The tree over a content of `size` bytes.
pub(super) fn tree(size: u64) -> BaoTree {
    BaoTree::new(size, BLOCK_SIZE)
}

/// The groups asked for, or what is wrong with the request.
pub(super) fn groups_of(request: &BlockRequest) -> Result<ChunkRanges, String> {
    if request.size > SIZE_BYTES_MAX {
        return Err(format!("a file of {} bytes", request.size));
    }
    if request.locator.len() > LOCATOR_BYTES_MAX {
        return Err(format!("a locator of {} bytes", request.locator.len()));
    }
    if request.ranges.len() > RANGES_MAX {
        return Err(format!("{} ranges", request.ranges.len()));
    }
    let mut previous_end = 0;
    // An empty file has one group, which is empty.
    let size = request.size.max(1);
    let end_max = size.next_multiple_of(GROUP_BYTES);
    let mut groups = ChunkRanges::empty();
    for range in &request.ranges {
        if range.start >= range.end || range.start < previous_end {
            return Err(format!("ranges out of order at {}", range.start));
        }
        if range.start >= size || range.end > end_max {
            let (start, end, size) = (range.start, range.end, request.size);
            return Err(format!("bytes {start}..{end} of a file of {size}"));
        }
        previous_end = range.end;
        groups |= widen(range.start, range.end, size);
    }
    Ok(groups)
}

fn widen(start: u64, end: u64, size: u64) -> ChunkRanges {
    let first = ChunkNum(start / GROUP_BYTES * GROUP_BYTES / CHUNK_BYTES);
    let end = end.next_multiple_of(GROUP_BYTES);
    if end >= size {
        // bao-tree's way to say "to the end", whatever the last group's length.
        ChunkRanges::from(first..)
    } else {
        ChunkRanges::from(first..ChunkNum(end / CHUNK_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(size: u64, ranges: &[(u64, u64)]) -> BlockRequest {
        BlockRequest {
            locator: Vec::new(),
            hash: [0; 32],
            size,
            ranges: ranges.iter().map(|&(start, end)| start..end).collect(),
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let many: Vec<_> = (0..5000).map(|n| (n * 2, n * 2 + 1)).collect();
        let cases: [(u64, &[(u64, u64)]); 8] = [
            (u64::MAX, &[]),
            (100, &[(5, 5)]),
            (100, &[(9, 3)]),
            (100, &[(100, 101)]),
            (100, &[(0, 16385)]),
            (100_000, &[(10, 20), (15, 30)]),
            (100_000, &[(50, 60), (10, 20)]),
            (100_000, &many),
        ];
        for (size, ranges) in cases {
            assert!(
                groups_of(&request(size, ranges)).is_err(),
                "{size} {:?}",
                ranges.first()
            );
        }
        let mut long = request(1, &[]);
        long.locator = vec![0; LOCATOR_BYTES_MAX + 1];
        assert!(groups_of(&long).is_err());
    }

    #[test]
    fn ranges_are_widened() {
        let groups = |size, ranges: &[(u64, u64)]| groups_of(&request(size, ranges)).unwrap();
        assert!(groups(0, &[]).is_empty());
        assert_eq!(groups(0, &[(0, 1)]), ChunkRanges::all());
        assert_eq!(groups(10, &[(3, 4)]), ChunkRanges::all());
        assert_eq!(
            groups(100_000, &[(20_000, 20_001)]),
            ChunkRanges::from(ChunkNum(16)..ChunkNum(32))
        );
        assert_eq!(
            groups(100_000, &[(99_999, 100_000)]),
            ChunkRanges::from(ChunkNum(96)..)
        );
        assert_eq!(
            groups(100_000, &[(0, 1), (16_384, 16_385)]),
            ChunkRanges::from(ChunkNum(0)..ChunkNum(32))
        );
    }
}
