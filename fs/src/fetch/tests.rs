//! The shell with doubles of its surroundings: peers that drop, delay, cut and lie, a catalog that knows more, a store that counts.
use super::FetchCounters;
use super::backing::{Backing, WholeCopy};
use super::budget::Budget;
use super::core::{ContentKind, Core, Opening, Shared};
use super::flight::lock;
use super::plan::{BlockMap, Limits};
use super::scratch::Scratch;
use super::surroundings::{Keep, Surroundings, Whereabouts};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::NodeId;
use crate::store::partial::{ContentKey, Partial};
use ks_transport::BoxFuture;
use ks_transport::blocks::{
    BlockRequest, BlockSink, FetchError, FetchLimits, GROUP_BYTES, Refusal,
};
use ks_transport::pool::PeerError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
/// What a double sends at once.
const EXTENT_BYTES: u64 = 256 * KIB;

/// How a peer behaves.
#[derive(Clone)]
enum Manner {
    Good,
    /// Takes so long for each extent.
    Slow(Duration),
    /// Sends so many bytes in all, then every connection to it is lost.
    DiesAfter(u64),
    /// Sends so many bytes in all, then nothing more.
    StallsAfter(u64),
    /// Its bytes do not match the hash from this offset on.
    LiesAt(u64),
    Refuses(Refusal),
    /// Nobody answers there, and that is known.
    Away,
    /// Nobody answers there until then.
    GoneUntil(Instant),
}

struct Peer {
    manner: Manner,
    sent: AtomicU64,
    asked: AtomicUsize,
}

/// A double of the world.
struct World {
    content: Vec<u8>,
    peers: HashMap<NodeId, Peer>,
    whereabouts: Mutex<Whereabouts>,
    kept: AtomicUsize,
    /// Every range that was sent, for single flight.
    sent_groups: Mutex<HashMap<u64, u32>>,
}

impl World {
    fn new(size: u64, manners: &[Manner]) -> Arc<Self> {
        let mut content = vec![0u8; size as usize];
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for chunk in content.chunks_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bytes = state.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        let peer = |manner: &Manner| Peer {
            manner: manner.clone(),
            sent: AtomicU64::new(0),
            asked: AtomicUsize::new(0),
        };
        let nodes = (1..).map(NodeId);
        Arc::new(Self {
            content,
            peers: nodes.zip(manners.iter().map(peer)).collect(),
            whereabouts: Mutex::new(Whereabouts::Unknown),
            kept: AtomicUsize::new(0),
            sent_groups: Mutex::default(),
        })
    }

    fn asked(&self, node: u64) -> usize {
        self.peers[&NodeId(node)].asked.load(Ordering::SeqCst)
    }

    fn fetched(&self) -> u64 {
        let sent = |peer: &Peer| peer.sent.load(Ordering::SeqCst);
        self.peers.values().map(sent).sum()
    }

    fn slice(&self, offset: u64, len: u64) -> &[u8] {
        let end = (offset + len).min(self.content.len() as u64);
        &self.content[offset as usize..end as usize]
    }

    async fn send(
        &self,
        node: NodeId,
        request: &BlockRequest,
        limits: FetchLimits,
        sink: &mut dyn BlockSink,
    ) -> Result<u64, FetchError> {
        let peer = &self.peers[&node];
        peer.asked.fetch_add(1, Ordering::SeqCst);
        let name = format!("peer-{}", node.0);
        let is_gone = match peer.manner {
            Manner::Away => true,
            Manner::GoneUntil(time) => Instant::now() < time,
            _ => false,
        };
        if is_gone {
            return Err(FetchError::Peer(PeerError::Lost(name)));
        }
        if let Manner::Refuses(refusal) = &peer.manner {
            let refusal = refusal.clone();
            return Err(FetchError::Refused {
                peer: name,
                refusal,
            });
        }
        let mut all = 0;
        for range in &request.ranges {
            let mut offset = range.start;
            while offset < range.end {
                let end = range.end.min(offset + EXTENT_BYTES);
                self.before_extent(peer, &name, limits, offset..end).await?;
                let sent = end - offset;
                peer.sent.fetch_add(sent, Ordering::SeqCst);
                for group in offset / GROUP_BYTES..end.div_ceil(GROUP_BYTES) {
                    *lock(&self.sent_groups).entry(group).or_default() += 1;
                }
                let data = &self.content[offset as usize..end as usize];
                sink.data(offset, data).map_err(FetchError::Sink)?;
                all += sent;
                offset = end;
            }
        }
        Ok(all)
    }

    async fn before_extent(
        &self,
        peer: &Peer,
        name: &str,
        limits: FetchLimits,
        extent: std::ops::Range<u64>,
    ) -> Result<(), FetchError> {
        let sent = peer.sent.load(Ordering::SeqCst);
        match peer.manner {
            Manner::Slow(delay) => sleep(delay).await,
            Manner::DiesAfter(bytes) if sent >= bytes => {
                return Err(FetchError::Peer(PeerError::Lost(name.into())));
            }
            Manner::StallsAfter(bytes) if sent >= bytes => {
                sleep(limits.stall).await;
                let seconds = limits.stall.as_secs_f32();
                let peer = name.into();
                return Err(FetchError::Stalled { peer, seconds });
            }
            Manner::LiesAt(at) if extent.contains(&at) => {
                let (peer, offset) = (name.into(), at);
                return Err(FetchError::Corrupt { peer, offset });
            }
            _ => tokio::task::yield_now().await,
        }
        Ok(())
    }
}

impl Surroundings for World {
    fn fetch<'a>(
        &'a self,
        holder: NodeId,
        request: &'a BlockRequest,
        limits: FetchLimits,
        sink: &'a mut dyn BlockSink,
    ) -> BoxFuture<'a, Result<u64, FetchError>> {
        Box::pin(self.send(holder, request, limits, sink))
    }
    fn is_away(&self, node: NodeId) -> bool {
        let peer = self.peers.get(&node);
        peer.is_some_and(|peer| matches!(peer.manner, Manner::Away))
    }
    fn locate<'a>(&'a self, _key: &'a ContentKey) -> BoxFuture<'a, Whereabouts> {
        Box::pin(async move { lock(&self.whereabouts).clone() })
    }
    fn keep(&self, keep: Keep) -> BoxFuture<'_, Result<(), FsError>> {
        Box::pin(async move {
            sleep(Duration::from_millis(3)).await;
            if let WholeCopy::Bytes(data, _) = &keep.copy {
                assert_eq!(data, &self.content);
            }
            self.kept.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
    fn save(&self, _partial: Arc<Partial>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn has_room(&self, _bytes: u64) -> bool {
        true
    }
    fn name(&self, node: NodeId) -> BoxFuture<'_, String> {
        Box::pin(async move { format!("host{}", node.0) })
    }
}

/// A content that `world`'s peers have, here in anonymous memory of `capacity` bytes.
fn open(world: &Arc<World>, capacity: u64, memory_limit: u64) -> (Arc<Core>, Arc<Budget>) {
    let size = world.content.len() as u64;
    let scratch = Scratch::in_memory(size, capacity).expect("memory");
    open_on(world, Backing::scratch(size, scratch), memory_limit)
}

fn open_on(world: &Arc<World>, backing: Backing, memory: u64) -> (Arc<Core>, Arc<Budget>) {
    let size = world.content.len() as u64;
    let budget = Budget::new(memory);
    let mut holders: Vec<NodeId> = world.peers.keys().copied().collect();
    holders.sort();
    let shared = Shared {
        around: world.clone(),
        budget: budget.clone(),
        counters: Arc::new(FetchCounters::default()),
        runtime: Handle::current(),
        limits: Limits::default(),
    };
    let opening = Opening {
        key: ContentKey {
            ino: 9,
            version: 3,
            size,
            hash: [1; 32],
        },
        path: TreePath::new(b"a/x.bin").expect("a path"),
        kind: ContentKind::File,
        locator: Vec::new(),
        holders,
        backing,
    };
    (Core::new(opening, shared), budget)
}

async fn settled(core: &Arc<Core>, budget: &Budget) {
    core.close();
    for _ in 0..1000 {
        if budget.used_bytes() == 0 {
            break;
        }
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(budget.used_bytes(), 0, "memory was not given back");
    assert_eq!(core.waiting(), 0, "somebody is still entered as waiting");
}

/// Reads all of it; returns how many bytes were said to have been fetched.
async fn read_through(core: &Arc<Core>, world: &World, step: usize) -> u64 {
    let mut offset = 0;
    let mut told = 0;
    while offset < world.content.len() as u64 {
        let (data, fetched) = core.read(offset, step).await.expect("a read");
        assert_eq!(data, world.slice(offset, step as u64), "at {offset}");
        offset += data.len() as u64;
        told += fetched;
    }
    assert!(told <= world.fetched());
    assert_eq!(core.read(offset, 10).await.expect("at the end").0.len(), 0);
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequential_read_takes_few_requests_and_fetches_each_byte_once() {
    let world = World::new(64 * MIB + 777, &[Manner::Good]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let told = read_through(&core, &world, 128 * 1024).await;
    assert_eq!((world.fetched(), told), (64 * MIB + 777, 64 * MIB + 777));
    assert!(world.asked(1) < 64, "{} requests", world.asked(1));
    settled(&core, &budget).await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_known_to_be_away_costs_nothing() {
    let world = World::new(MIB, &[Manner::Away, Manner::Good]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    core.read(0, 4096).await.expect("a read");
    assert_eq!(world.asked(1), 0, "the other one is asked first");
    settled(&core, &budget).await;
    let world = World::new(MIB, &[Manner::Away, Manner::Away]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let began = Instant::now();
    for _ in 0..3 {
        let error = core.read(0, 4096).await.expect_err("nobody is there");
        assert_eq!(error.to_errno(), libc::EIO);
    }
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(world.asked(1), 1, "it is left alone for a while");
    sleep(Duration::from_millis(1100)).await;
    core.read(0, 4096).await.expect_err("nobody is there");
    assert_eq!(world.asked(1), 2, "and then asked again");
    settled(&core, &budget).await;
}

#[tokio::test(start_paused = true)]
async fn the_only_holder_is_asked_again_as_soon_as_it_may_be_back() {
    let back = Instant::now() + Duration::from_millis(500);
    let world = World::new(MIB, &[Manner::GoneUntil(back)]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let began = Instant::now();
    let (data, _) = core.read(0, 4096).await.expect("a read");
    assert_eq!(data, world.slice(0, 4096));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    settled(&core, &budget).await;

    // One that never comes back is given up when it has been asked often enough, long before nothing has come for `no_progress`.
    let never = Instant::now() + Duration::from_secs(3600);
    let world = World::new(MIB, &[Manner::GoneUntil(never)]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let began = Instant::now();
    core.read(0, 4096).await.expect_err("nobody is there");
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    settled(&core, &budget).await;
}

#[tokio::test]
async fn random_reads_fetch_their_groups_only() {
    let world = World::new(64 * MIB, &[Manner::Good]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let offsets = [5 * MIB + 1, 60 * MIB, 20 * MIB + 16_383, 33 * MIB, 21 * MIB];
    for offset in offsets {
        let (data, _) = core.read(offset, 4096).await.expect("a read");
        assert_eq!(data, world.slice(offset, 4096));
    }
    // One of them touches two groups.
    assert_eq!(world.fetched(), 6 * GROUP_BYTES);
    settled(&core, &budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_fetch_in_flight_per_group_whoever_waits_or_goes() {
    let world = World::new(8 * MIB, &[Manner::Slow(Duration::from_millis(2))]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let mut tasks = Vec::new();
    for number in 0..300u64 {
        let (core, world) = (core.clone(), world.clone());
        let task = tokio::spawn(async move {
            let offset = number * 7919 * 13 % (8 * MIB - 200_000);
            let read = core.read(offset, 200_000);
            if number % 3 == 0 {
                // This reader is interrupted.
                let _ = timeout(Duration::from_micros(number * 20), read).await;
            } else {
                let (data, _) = read.await.expect("a read");
                assert_eq!(data, world.slice(offset, 200_000));
            }
        });
        tasks.push(task);
    }
    for task in tasks {
        let ended = timeout(Duration::from_secs(20), task).await;
        ended.expect("nobody waits for ever").expect("no panic");
    }
    for (group, times) in lock(&world.sent_groups).iter() {
        assert_eq!(*times, 1, "group {group} was fetched {times} times");
    }
    settled(&core, &budget).await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_is_woken_by_its_own_bytes() {
    let world = World::new(8 * MIB, &[Manner::Slow(Duration::from_millis(100))]);
    let (core, _budget) = open(&world, u64::MAX, 64 * MIB);
    let whole = core.clone();
    let whole = tokio::spawn(async move { whole.read(0, 4 * 1024 * 1024).await });
    sleep(Duration::from_millis(1)).await;
    let begin = Instant::now();
    core.read(0, 4096).await.expect("a read");
    assert!(begin.elapsed() < Duration::from_millis(150));
    assert!(!whole.is_finished());
    whole.await.expect("no panic").expect("a read");
}

#[tokio::test(start_paused = true)]
async fn one_of_two_holders_dies_and_the_read_goes_on() {
    for manner in [Manner::DiesAfter(5 * MIB), Manner::StallsAfter(5 * MIB)] {
        let world = World::new(32 * MIB, &[manner, Manner::Slow(Duration::from_millis(1))]);
        let (core, budget) = open(&world, u64::MAX, 64 * MIB);
        let begin = Instant::now();
        read_through(&core, &world, 128 * 1024).await;
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "{:?}",
            begin.elapsed()
        );
        settled(&core, &budget).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_holder_dies_and_the_error_names_file_and_node() {
    for manner in [Manner::DiesAfter(MIB), Manner::StallsAfter(MIB)] {
        let world = World::new(32 * MIB, &[manner]);
        let (core, budget) = open(&world, u64::MAX, 64 * MIB);
        core.read(0, 128 * 1024).await.expect("it lives yet");
        let begin = Instant::now();
        let error = core
            .read(20 * MIB, 2 * 1024 * 1024)
            .await
            .expect_err("dead");
        assert!(
            begin.elapsed() < Duration::from_secs(9),
            "{:?}",
            begin.elapsed()
        );
        let text = error.to_string();
        assert!(matches!(error, FsError::NoHolder { .. }), "{text}");
        assert!(
            text.contains("/a/x.bin") && text.contains("host1"),
            "{text}"
        );
        settled(&core, &budget).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_liar_is_not_asked_again() {
    let world = World::new(8 * MIB, &[Manner::LiesAt(0), Manner::Good]);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    read_through(&core, &world, 64 * 1024).await;
    let asked = world.asked(1);
    assert_eq!(asked, 1);
    settled(&core, &budget).await;
}

#[tokio::test(start_paused = true)]
async fn only_liars_is_an_error_at_once() {
    let world = World::new(8 * MIB, &[Manner::LiesAt(0)]);
    let (core, _budget) = open(&world, u64::MAX, 64 * MIB);
    let begin = Instant::now();
    let error = core.read(0, 4096).await.expect_err("wrong bytes");
    assert!(error.to_string().contains("do not match"), "{error}");
    assert_eq!(error.to_errno(), libc::EIO);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn another_version_everywhere_is_stale() {
    let world = World::new(
        MIB,
        &[
            Manner::Refuses(Refusal::Changed),
            Manner::Refuses(Refusal::NotHere),
        ],
    );
    let (core, _budget) = open(&world, u64::MAX, 64 * MIB);
    let error = core.read(0, 4096).await.expect_err("stale");
    assert!(matches!(error, FsError::Stale), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_the_catalog_has_found_meanwhile_is_asked() {
    let world = World::new(MIB, &[Manner::LiesAt(0), Manner::Good]);
    let (core, _budget) = open(&world, u64::MAX, 64 * MIB);
    // The file was opened when only the first was known.
    let opening = Opening {
        key: ContentKey {
            ino: 9,
            version: 3,
            size: MIB,
            hash: [1; 32],
        },
        path: TreePath::root(),
        kind: ContentKind::File,
        locator: Vec::new(),
        holders: vec![NodeId(1)],
        backing: Backing::scratch(MIB, Scratch::in_memory(MIB, u64::MAX).expect("memory")),
    };
    let core = Core::new(opening, core.shared().clone());
    *lock(&world.whereabouts) = Whereabouts::Holders(vec![NodeId(1), NodeId(2)]);
    let (data, _) = core.read(0, 4096).await.expect("the second has it");
    assert_eq!(data, world.slice(0, 4096));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_becomes_whole_is_kept_once() {
    let world = World::new(50_000, &[Manner::Good]);
    let (core, budget) = open_on(&world, Backing::small(50_000, None), 64 * MIB);
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let core = core.clone();
        tasks.push(tokio::spawn(async move { core.fetch_whole(|_| {}).await }));
    }
    read_through(&core, &world, 4096).await;
    for task in tasks {
        let ended = timeout(Duration::from_secs(5), task).await;
        ended.expect("in time").expect("no panic").expect("fetched");
    }
    assert_eq!(world.kept.load(Ordering::SeqCst), 1);
    settled(&core, &budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_of_the_whole_shares_its_bytes_with_readers() {
    let manners = [Manner::Good, Manner::Slow(Duration::from_millis(1))];
    let world = World::new(48 * MIB, &manners);
    let (core, budget) = open(&world, u64::MAX, 64 * MIB);
    let fetching = core.clone();
    let highest = Arc::new(AtomicU64::new(0));
    let seen = highest.clone();
    let whole = tokio::spawn(async move {
        let told = |bytes| {
            seen.fetch_max(bytes, Ordering::SeqCst);
        };
        fetching.fetch_whole(told).await
    });
    for offset in [40 * MIB, 3 * MIB, 20 * MIB] {
        let (data, _) = core.read(offset, 4096).await.expect("a read");
        assert_eq!(data, world.slice(offset, 4096));
    }
    let ended = timeout(Duration::from_secs(20), whole).await;
    ended.expect("in time").expect("no panic").expect("fetched");
    assert_eq!(highest.load(Ordering::SeqCst), 48 * MIB);
    assert!(world.fetched() < 50 * MIB);
    assert!(core.backing().missing(0..48 * MIB).is_empty());
    settled(&core, &budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_backing_still_reads_everything() {
    let world = World::new(64 * MIB, &[Manner::Good]);
    let (core, budget) = open(&world, 32 * MIB, 64 * MIB);
    for _ in 0..2 {
        read_through(&core, &world, 256 * 1024).await;
    }
    assert!(core.backing().had_bytes() <= 32 * MIB);
    assert_eq!(world.kept.load(Ordering::SeqCst), 0);
    settled(&core, &budget).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_memory_makes_it_slower_only() {
    let world = World::new(16 * MIB, &[Manner::Good]);
    let (core, budget) = open(&world, u64::MAX, MIB);
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let (core, world) = (core.clone(), world.clone());
        tasks.push(tokio::spawn(async move {
            for offset in (0..16 * MIB).step_by(512 * 1024) {
                let (data, _) = core.read(offset, 512 * 1024).await.expect("a read");
                assert_eq!(data, world.slice(offset, 512 * KIB));
            }
        }));
    }
    for task in tasks {
        let ended = timeout(Duration::from_secs(20), task).await;
        ended.expect("in time").expect("no panic");
    }
    settled(&core, &budget).await;
}
