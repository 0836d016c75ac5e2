//! Block requests over real connections.

use crate::nodes::*;
use ks_transport::BoxFuture;
use ks_transport::blocks::{
    BlockRequest, BlockServer, BlockSource, Content, FetchError, GROUP_BYTES, Outboard, Refusal,
    fetch, hash_bytes,
};
use ks_transport::endpoint::{Endpoint, StreamKind};
use ks_transport::identity::Identity;
use ks_transport::key::ClusterKey;
use ks_transport::pool::{Peer, PeerPool};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

struct Pair {
    server: Endpoint,
    blocks: Arc<BlockServer>,
    _pool: PeerPool,
    peer: Peer,
}

fn pair(source: impl BlockSource) -> Pair {
    let key = ClusterKey::generate();
    let blocks = Arc::new(BlockServer::new(Arc::new(source)));
    let server = node(&key, "holder", vec![(StreamKind::BLOCKS, blocks.clone())]);
    let (pool, peer) = peer_of(&server, &Identity::client(&key, "reader").unwrap());
    Pair {
        server,
        blocks,
        _pool: pool,
        peer,
    }
}

fn request(data: &[u8], ranges: &[(usize, usize)]) -> BlockRequest {
    BlockRequest {
        locator: b"any".to_vec(),
        hash: hash_bytes(data).0,
        size: data.len() as u64,
        ranges: ranges.iter().map(|&(a, b)| a as u64..b as u64).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_files_of_all_sizes() {
    for (size, in_file) in [
        (1, false),
        (16384, true),
        (16385, true),
        (3 << 20, false),
        ((5 << 20) + 77, true),
    ] {
        let data = sample(size);
        let pair = pair(OneContent::new(&data, in_file));
        let mut sink = MemorySink::default();
        let asked = request(&data, &[(0, size)]);
        let fetched = fetch(&pair.peer, &asked, LIMITS, &mut sink);
        let received = timeout(DEADLINE, fetched).await.unwrap().unwrap();
        assert!(sink.data == data, "{size} bytes");
        let (_, outboard) = hash_bytes(&data);
        assert_eq!(received, (data.len() + outboard.len()) as u64);
        let nodes: Vec<u8> = sink.nodes.iter().flat_map(|(_, node)| *node).collect();
        assert!(nodes == outboard, "pre-order, each node once");
        assert!(pair.blocks.bytes_sent() >= received);
        pair.server.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_read_moves_its_group_and_hashes() {
    let data = sample(8 << 20);
    let pair = pair(OneContent::new(&data, true));
    let mut sink = MemorySink::default();
    let asked = request(&data, &[(5_000_000, 5_000_001)]);
    let received = fetch(&pair.peer, &asked, LIMITS, &mut sink).await.unwrap();
    // 512 groups: nine levels of nodes.
    assert_eq!(received, GROUP_BYTES + 9 * 64);
    let start = 5_000_000 / GROUP_BYTES * GROUP_BYTES;
    assert_eq!(sink.extents, [(start, GROUP_BYTES as usize)]);
    assert!(sink.data[start as usize..] == data[start as usize..][..GROUP_BYTES as usize]);
    pair.server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_requests_at_once_on_several_lanes() {
    let data = sample(6 << 20);
    let pair = pair(OneContent::new(&data, false));
    let parts = (0..12usize).map(|part| {
        let (peer, data) = (pair.peer.clone(), data.clone());
        tokio::spawn(async move {
            let (start, end) = (part << 19, (part + 1) << 19);
            let limits = ks_transport::blocks::FetchLimits {
                lane: part,
                ..LIMITS
            };
            let mut sink = MemorySink::default();
            fetch(&peer, &request(&data, &[(start, end)]), limits, &mut sink)
                .await
                .unwrap();
            assert!(sink.data[start..end] == data[start..end]);
        })
    });
    for part in parts.collect::<Vec<_>>() {
        timeout(DEADLINE, part).await.unwrap().unwrap();
    }
    pair.server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_lies_is_found_out() {
    let data = sample(1 << 20);
    let content = OneContent::new(&data, false);
    content.file.write_all_at(b"x", 600_000).unwrap();
    let pair = pair(content);
    let mut sink = MemorySink::default();
    let result = fetch(
        &pair.peer,
        &request(&data, &[(0, 1 << 20)]),
        LIMITS,
        &mut sink,
    )
    .await;
    let error = result.unwrap_err();
    let group = 600_000 / GROUP_BYTES * GROUP_BYTES;
    assert!(
        matches!(&error, FetchError::Corrupt { peer, offset } if *offset == group && *peer == pair.peer.address()),
        "{error}"
    );
    assert!(sink.data.len() as u64 <= group && data.starts_with(&sink.data));
    // The connection is as good as before.
    let mut sink = MemorySink::default();
    fetch(&pair.peer, &request(&data, &[(0, 1000)]), LIMITS, &mut sink)
        .await
        .unwrap();
    pair.server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_shrank_is_unreadable() {
    let data = sample(4 << 20);
    let content = OneContent::new(&data, false);
    content.file.set_len(3 << 20).unwrap();
    let pair = pair(content);
    let mut sink = MemorySink::default();
    let result = fetch(
        &pair.peer,
        &request(&data, &[(0, 4 << 20)]),
        LIMITS,
        &mut sink,
    )
    .await;
    let error = result.unwrap_err();
    assert!(
        matches!(
            &error,
            FetchError::Refused {
                refusal: Refusal::Unreadable(_),
                ..
            }
        ),
        "{error}"
    );
    pair.server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_come_back() {
    let data = sample(100_000);
    let pair = pair(OneContent::new(&data, false));
    let mut sink = MemorySink::default();
    let mut other = request(&data, &[(0, 10)]);
    other.hash[0] ^= 1;
    let error = fetch(&pair.peer, &other, LIMITS, &mut sink)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        FetchError::Refused {
            refusal: Refusal::NotHere,
            ..
        }
    ));
    let nonsense = request(&data, &[(20, 10)]);
    let error = fetch(&pair.peer, &nonsense, LIMITS, &mut sink)
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        FetchError::Refused {
            refusal: Refusal::Nonsense(_),
            ..
        }
    ));
    // And the server does not rely on the asking side's check.
    let answer: Result<(), Refusal> = pair
        .peer
        .request(StreamKind::BLOCKS, &nonsense, 1000, DEADLINE)
        .await
        .unwrap();
    assert!(matches!(answer, Err(Refusal::Nonsense(_))), "{answer:?}");
    let mut failing = MemorySink {
        fail: true,
        ..Default::default()
    };
    let whole = request(&data, &[(0, 100_000)]);
    let error = fetch(&pair.peer, &whole, LIMITS, &mut failing)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Sink(_)));
    pair.server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_file_needs_nobody() {
    let pair = pair(OneContent::new(&[], false));
    let mut sink = MemorySink::default();
    assert_eq!(
        fetch(&pair.peer, &request(&[], &[(0, 1)]), LIMITS, &mut sink)
            .await
            .unwrap(),
        0
    );
    let mut wrong = request(&[], &[(0, 1)]);
    wrong.hash[3] ^= 4;
    let error = fetch(&pair.peer, &wrong, LIMITS, &mut sink)
        .await
        .unwrap_err();
    assert!(matches!(error, FetchError::Corrupt { .. }));
    pair.server.close().await;
}

struct Stuck;

impl BlockSource for Stuck {
    fn open<'a>(&'a self, _: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_stalls() {
    let pair = pair(Stuck);
    let limits = ks_transport::blocks::FetchLimits {
        stall: Duration::from_millis(300),
        lane: 0,
    };
    let mut sink = MemorySink::default();
    let asked = request(&sample(10), &[(0, 10)]);
    let error = timeout(DEADLINE, fetch(&pair.peer, &asked, limits, &mut sink))
        .await
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, FetchError::Stalled { .. }), "{error}");
    pair.server.close().await;
}

/// Opens late what the locator calls late.
struct Late(OneContent);

const LATE: &[u8] = b"late";

impl BlockSource for Late {
    fn open<'a>(&'a self, asked: &'a BlockRequest) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(async move {
            if asked.locator == LATE {
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            self.0.open(asked).await
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_another_answer_is_not_silent() {
    let data = sample(10);
    let pair = pair(Late(OneContent::new(&data, false)));
    let limits = ks_transport::blocks::FetchLimits {
        stall: Duration::from_millis(500),
        lane: 0,
    };
    let late = {
        let mut asked = request(&data, &[(0, 10)]);
        asked.locator = LATE.to_vec();
        let peer = pair.peer.clone();
        tokio::spawn(async move {
            let mut sink = MemorySink::default();
            fetch(&peer, &asked, limits, &mut sink).await
        })
    };
    while !late.is_finished() {
        let mut sink = MemorySink::default();
        let asked = request(&data, &[(0, 10)]);
        fetch(&pair.peer, &asked, LIMITS, &mut sink).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    late.await.unwrap().unwrap();
    pair.server.close().await;
}

#[test]
fn works_on_one_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let data = sample(2 << 20);
        let pair = pair(OneContent::new(&data, true));
        let mut sink = MemorySink::default();
        fetch(
            &pair.peer,
            &request(&data, &[(0, 2 << 20)]),
            LIMITS,
            &mut sink,
        )
        .await
        .unwrap();
        assert!(sink.data == data);
        assert!(matches!(
            OneContent::new(&data, true).outboard,
            Outboard::File(_)
        ));
        pair.server.close().await;
    });
}
