//! Sender's layout and receiver's check against bao-tree's own encoder, and against damage.
use super::super::encode::{Layout, Patience, Reader};
use super::super::ranges::{BLOCK_SIZE, groups_of, tree};
use super::super::{BlockRequest, Content, GROUP_BYTES, Outboard, hash_bytes};
use super::*;
use bao_tree::io::outboard::PreOrderMemOutboard;
use proptest::prelude::*;
use std::io::Write;
use std::sync::Arc;

fn sample(size: usize) -> Vec<u8> {
    let mut data = vec![0; size];
    blake3::Hasher::new()
        .update(b"decode")
        .finalize_xof()
        .fill(&mut data);
    data
}

fn request(data: &[u8], cuts: &[(usize, usize)]) -> BlockRequest {
    let mut bounds: Vec<u64> = cuts
        .iter()
        .flat_map(|&(a, b)| [a, b])
        .map(|at| (at % (data.len() + 1)) as u64)
        .collect();
    bounds.sort();
    bounds.dedup();
    let ranges = bounds.chunks_exact(2).map(|pair| pair[0]..pair[1]);
    BlockRequest {
        locator: Vec::new(),
        hash: hash_bytes(data).0,
        size: data.len() as u64,
        ranges: ranges.collect(),
    }
}

/// What our sender sends.
fn sent(data: &[u8], request: &BlockRequest, outboard_in_file: bool, piece_len: usize) -> Vec<u8> {
    let file_of = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    };
    let nodes = hash_bytes(data).1;
    let mut reader = Reader::new(Content {
        file: file_of(data),
        size: request.size,
        outboard: if outboard_in_file {
            Outboard::File(file_of(&nodes))
        } else {
            Outboard::Memory(nodes.into())
        },
    });
    let mut layout = Layout::new(tree(request.size), groups_of(request).unwrap());
    let mut encoded = Vec::new();
    while let Some(piece) = layout.next_piece(piece_len) {
        let start = encoded.len();
        encoded.resize(start + piece.len, 0);
        let place = &mut encoded[start..];
        assert!(reader.fill(&piece, place, Patience::Wait).unwrap());
    }
    encoded
}

/// What bao-tree would send.
fn expected(data: &[u8], request: &BlockRequest) -> Vec<u8> {
    let outboard = PreOrderMemOutboard::create(data, BLOCK_SIZE);
    let groups = groups_of(request).unwrap();
    let mut encoded = Vec::new();
    bao_tree::io::sync::encode_ranges_validated(data, &outboard, &groups, &mut encoded).unwrap();
    encoded
}

#[derive(Default)]
struct Sink {
    extents: Vec<(u64, Vec<u8>)>,
    nodes: Vec<(u64, [u8; 64])>,
}

impl BlockSink for Sink {
    fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.extents.push((offset, data.to_vec()));
        Ok(())
    }
    fn node(&mut self, offset: u64, pair: &[u8; 64]) -> io::Result<()> {
        self.nodes.push((offset, *pair));
        Ok(())
    }
}

impl Sink {
    /// Nothing wrong was delivered, and in order.
    fn check(&self, data: &[u8]) {
        let outboard = hash_bytes(data).1;
        let mut end = 0;
        for (offset, bytes) in &self.extents {
            assert!(*offset >= end, "in order");
            assert!(!bytes.is_empty());
            assert_eq!(offset % GROUP_BYTES, 0);
            assert!(
                data[*offset as usize..][..bytes.len()] == bytes[..],
                "at {offset}"
            );
            end = offset + bytes.len() as u64;
        }
        for (offset, node) in &self.nodes {
            assert!(outboard[*offset as usize..][..64] == node[..]);
        }
    }

    fn holds(&self, range: &std::ops::Range<u64>) -> bool {
        let covers = |at: u64| {
            self.extents
                .iter()
                .any(|(offset, bytes)| (*offset..offset + bytes.len() as u64).contains(&at))
        };
        covers(range.start) && covers(range.end - 1)
    }
}

/// Feeds the bytes in portions and flushes now and then, as the network would have it.
fn receive(
    request: &BlockRequest,
    encoded: &[u8],
    portions: &[usize],
) -> (Sink, Result<bool, DecodeError>) {
    let mut sink = Sink::default();
    let groups = groups_of(request).unwrap();
    let result = (|| {
        let mut decoder = Decoder::new(&request.hash, tree(request.size), groups)?;
        let mut rest = encoded;
        for &portion in portions.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(portion.min(rest.len()));
            decoder.feed(now, &mut sink)?;
            if portion % 3 == 0 {
                decoder.flush(&mut sink)?;
            }
            rest = later;
        }
        decoder.flush(&mut sink)?;
        Ok(decoder.is_done())
    })();
    (sink, result)
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0usize),
        Just(1),
        Just(16383),
        Just(16384),
        Just(16385),
        0usize..100_000,
        0usize..3_000_000,
    ]
}

fn cuts() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::collection::vec((0usize..3_000_000, 0usize..3_000_000), 0..6)
}

fn portions() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1usize..2000, 1usize..300_000], 1..8)
}

#[test]
fn the_empty_content_is_verified() {
    let mut request = request(&[], &[]);
    request.ranges = std::iter::once(0..1).collect();
    assert!(matches!(receive(&request, &[], &[1]).1, Ok(true)));
    request.hash[0] ^= 1;
    assert!(matches!(
        receive(&request, &[], &[1]).1,
        Err(DecodeError::Corrupt { .. })
    ));
}

#[test]
fn what_follows_the_end_is_refused() {
    let data = sample(50_000);
    let request = request(&data, &[(0, 50_000)]);
    let mut encoded = expected(&data, &request);
    encoded.push(0);
    let (sink, result) = receive(&request, &encoded, &[7000]);
    assert!(matches!(result, Err(DecodeError::Corrupt { .. })));
    sink.check(&data);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn arrives_whole(
        size in sizes(), cuts in cuts(), portions in portions(), in_file: bool, piece_len in 1usize..600_000
    ) {
        let data = sample(size);
        let request = request(&data, &cuts);
        let encoded = expected(&data, &request);
        prop_assert!(sent(&data, &request, in_file, piece_len) == encoded);
        let (sink, result) = receive(&request, &encoded, &portions);
        prop_assert!(matches!(result, Ok(true)), "{:?}", result);
        sink.check(&data);
        for range in &request.ranges {
            prop_assert!(sink.holds(range));
        }
    }

    #[test]
    fn a_flipped_bit_is_found(
        size in 1usize..300_000, cuts in cuts(), portions in portions(), at in any::<prop::sample::Index>(), bit in 0u8..8
    ) {
        let data = sample(size);
        let request = request(&data, &cuts);
        let mut encoded = expected(&data, &request);
        prop_assume!(!encoded.is_empty());
        let at = at.index(encoded.len());
        encoded[at] ^= 1 << bit;
        let (sink, result) = receive(&request, &encoded, &portions);
        prop_assert!(matches!(result, Err(DecodeError::Corrupt { .. })), "{:?}", result);
        sink.check(&data);
    }

    #[test]
    fn a_cut_stream_is_not_done(
        size in 1usize..300_000, cuts in cuts(), portions in portions(), at in any::<prop::sample::Index>()
    ) {
        let data = sample(size);
        let request = request(&data, &cuts);
        let encoded = expected(&data, &request);
        prop_assume!(!encoded.is_empty());
        let (sink, result) = receive(&request, &encoded[..at.index(encoded.len())], &portions);
        prop_assert!(matches!(result, Ok(false)), "{:?}", result);
        sink.check(&data);
    }

    #[test]
    fn any_bytes_are_refused(size in 1usize..100_000, noise in proptest::collection::vec(any::<u8>(), 64..400)) {
        let data = sample(size);
        let request = request(&data, &[(0, size)]);
        let (sink, _) = receive(&request, &noise, &[50]);
        prop_assert!(sink.extents.is_empty() && sink.nodes.is_empty());
    }
}
