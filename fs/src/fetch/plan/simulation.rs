//! Runs the plan against holders that are slow, die, stall, lie and come back, in virtual time, from a seed.
use super::*;
use crate::fetch::group_map::GroupMap;
use crate::fetch::ranges::total;
use ks_transport::blocks::GROUP_BYTES;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const MS: Duration = Duration::from_millis(1);
/// What a holder sends at once.
const EXTENT_BYTES: u64 = 64 * 1024;

impl BlockMap for GroupMap {
    fn missing(&self, range: Range<u64>) -> Ranges {
        GroupMap::missing(self, range)
    }
}

struct Memory {
    free: u64,
    all: u64,
}
impl Allowance for Memory {
    fn take(&mut self, _class: Class, bytes: u64) -> bool {
        let fits = bytes <= self.free;
        if fits {
            self.free -= bytes;
        }
        fits
    }
    fn give_back(&mut self, bytes: u64) {
        self.free += bytes;
        assert!(self.free <= self.all, "gave back more than was taken");
    }
}

/// How a holder behaves.
#[derive(Clone, Debug)]
struct Peer {
    bytes_per_ms: u64,
    /// From when to when requests fail with "gone".
    gone: Option<(u64, u64)>,
    /// From when to when requests fail, as it is known to be away.
    away: Option<(u64, u64)>,
    /// From when on it sends nothing.
    stalls_at: Option<u64>,
    /// The offset whose bytes it sends wrong.
    lies_at: Option<u64>,
    refuses: Option<Failure>,
}

impl Peer {
    fn good(bytes_per_ms: u64) -> Self {
        Self {
            bytes_per_ms,
            gone: None,
            away: None,
            stalls_at: None,
            lies_at: None,
            refuses: None,
        }
    }
}

struct Sent {
    holder: usize,
    left: Ranges,
    quiet_ms: u64,
}

struct World {
    plan: Plan,
    map: GroupMap,
    memory: Memory,
    peers: Vec<Peer>,
    sent: BTreeMap<RequestId, Sent>,
    now_ms: u64,
    failed: BTreeSet<DemandId>,
    waiting: BTreeMap<DemandId, (Range<u64>, u64)>,
    liars: BTreeSet<usize>,
    fetched: u64,
}

impl World {
    fn new(size: u64, peers: Vec<Peer>, memory: u64) -> Self {
        let nodes = (1..=peers.len() as u64).map(NodeId).collect();
        Self {
            plan: Plan::new(size, nodes, Limits::default()),
            map: GroupMap::new(size),
            memory: Memory {
                free: memory,
                all: memory,
            },
            peers,
            sent: BTreeMap::new(),
            now_ms: 0,
            failed: BTreeSet::new(),
            waiting: BTreeMap::new(),
            liars: BTreeSet::new(),
            fetched: 0,
        }
    }

    fn handle(&mut self, event: Event) {
        let now = MS * self.now_ms as u32;
        let actions = self.plan.handle(event, now, &self.map, &mut self.memory);
        for action in actions {
            match action {
                Action::Send {
                    request,
                    holder,
                    ranges,
                    ..
                } => {
                    let holder = holder.0 as usize - 1;
                    assert!(!self.liars.contains(&holder), "a liar was asked again");
                    assert!(total(&ranges) > 0);
                    let sent = Sent {
                        holder,
                        left: ranges,
                        quiet_ms: 0,
                    };
                    self.sent.insert(request, sent);
                }
                Action::Cancel { request } => {
                    self.sent.remove(&request);
                }
                Action::Fail { demand, .. } => {
                    self.failed.insert(demand);
                    self.waiting.remove(&demand);
                }
            }
        }
        self.check();
    }

    /// The invariants of the module's head.
    fn check(&self) {
        assert_eq!(
            self.plan.bytes_under_way(),
            self.memory.all - self.memory.free
        );
        let mut times: BTreeMap<u64, (u32, bool)> = BTreeMap::new();
        for (left, doubled) in self.plan.under_way() {
            for range in left {
                for group in range.start / GROUP_BYTES..range.end.div_ceil(GROUP_BYTES) {
                    let entry = times.entry(group).or_insert((0, true));
                    entry.0 += 1;
                    entry.1 &= doubled;
                }
            }
        }
        for (group, (count, doubled)) in times {
            assert!(count <= 2, "group {group} is under way {count} times");
            assert!(count < 2 || doubled, "group {group} was asked twice");
        }
    }

    fn demand(&mut self, id: DemandId, range: Range<u64>) {
        self.waiting.insert(id, (range.clone(), self.now_ms));
        self.handle(Event::Demand { id, range });
        self.settle();
    }

    /// Demands whose bytes are here go.
    fn settle(&mut self) {
        let done: Vec<DemandId> = self
            .waiting
            .iter()
            .filter(|(_, (range, _))| self.map.missing(range.clone()).is_empty())
            .map(|(&id, _)| id)
            .collect();
        for id in done {
            self.waiting.remove(&id);
            self.handle(Event::Dropped { id });
        }
    }

    fn fail(&mut self, request: RequestId, failure: Failure) {
        if let Some(sent) = self.sent.remove(&request)
            && matches!(failure, Failure::Corrupt(_))
        {
            self.liars.insert(sent.holder);
        }
        self.handle(Event::Failed { request, failure });
    }

    /// One millisecond of everybody's work.
    fn step(&mut self) {
        self.now_ms += 1;
        for holder in 0..self.peers.len() {
            self.serve(holder);
        }
        self.settle();
        let now = MS * self.now_ms as u32;
        if self
            .plan
            .next_time(now - MS)
            .is_some_and(|next| next <= now)
        {
            self.handle(Event::Tick);
        }
    }

    fn serve(&mut self, holder: usize) {
        let peer = self.peers[holder].clone();
        let mut budget = peer.bytes_per_ms;
        let requests: Vec<RequestId> = self
            .sent
            .iter()
            .filter(|(_, sent)| sent.holder == holder)
            .map(|(&id, _)| id)
            .collect();
        let during = |time: Option<(u64, u64)>| {
            time.is_some_and(|(from, to)| (from..to).contains(&self.now_ms))
        };
        let (gone, away) = (during(peer.gone), during(peer.away));
        let stalled = peer.stalls_at.is_some_and(|at| self.now_ms >= at);
        for request in requests {
            if gone {
                self.fail(request, Failure::Gone("gone".into()));
            } else if away {
                self.fail(request, Failure::Away("away".into()));
            } else if let Some(failure) = &peer.refuses {
                self.fail(request, failure.clone());
            } else if stalled || budget == 0 {
                let Some(sent) = self.sent.get_mut(&request) else {
                    continue;
                };
                sent.quiet_ms += 1;
                if sent.quiet_ms >= 2500 {
                    self.fail(request, Failure::Stalled("stalled".into()));
                }
            } else {
                self.send(request, &peer, &mut budget);
            }
        }
    }

    fn send(&mut self, request: RequestId, peer: &Peer, budget: &mut u64) {
        while *budget > 0 {
            let Some(sent) = self.sent.get_mut(&request) else {
                return;
            };
            let Some(range) = sent.left.first().cloned() else {
                self.sent.remove(&request);
                self.handle(Event::Finished { request });
                return;
            };
            let end = range.end.min(range.start + EXTENT_BYTES);
            let extent = range.start..end;
            if peer.lies_at.is_some_and(|at| extent.contains(&at)) {
                self.fail(request, Failure::Corrupt("wrong bytes".into()));
                return;
            }
            subtract(&mut sent.left, &extent);
            sent.quiet_ms = 0;
            self.map.set(extent.clone(), true);
            self.fetched += end - range.start;
            *budget = budget.saturating_sub(end - range.start);
            self.handle(Event::Arrived {
                request,
                range: extent,
            });
        }
    }

    fn run_until_idle(&mut self, at_most_ms: u64) {
        let end = self.now_ms + at_most_ms;
        while !self.waiting.is_empty() && self.now_ms < end {
            self.step();
        }
        assert!(self.waiting.is_empty(), "somebody waits for ever");
    }

    /// With nobody waiting, what is under way ends and the memory is whole again.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            if self.sent.is_empty() {
                break;
            }
            self.step();
        }
        assert_eq!(self.memory.free, self.memory.all, "memory leaked");
    }
}

const MIB: u64 = 1024 * 1024;

#[test]
fn a_lone_read_moves_its_groups_only() {
    let mut world = World::new(64 * MIB, vec![Peer::good(1000)], MIB);
    world.demand(1, 5 * MIB + 100..5 * MIB + 4196);
    world.run_until_idle(100);
    assert_eq!(world.fetched, GROUP_BYTES);
}

#[test]
fn two_holders_share_a_transfer_and_end_together() {
    let peers = vec![Peer::good(100_000), Peer::good(300_000)];
    let mut world = World::new(256 * MIB, peers, 64 * MIB);
    world.waiting.insert(1, (0..256 * MIB, 0));
    world.handle(Event::DemandWhole { id: 1 });
    world.run_until_idle(10_000);
    let ideal_ms = 256 * MIB / 400_000;
    assert!(
        world.now_ms < ideal_ms * 115 / 100,
        "took {} ms where {ideal_ms} were enough",
        world.now_ms
    );
    assert!(world.fetched < 256 * MIB * 105 / 100);
}

#[test]
fn the_only_holder_dies_and_the_reader_hears_in_time() {
    let mut peer = Peer::good(1000);
    peer.stalls_at = Some(5);
    let mut world = World::new(64 * MIB, vec![peer], 64 * MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(9_000);
    assert!(world.failed.contains(&1));
    assert!((7_900..8_200).contains(&world.now_ms));
}

#[test]
fn a_holder_that_is_gone_for_a_second_is_waited_for() {
    let mut peer = Peer::good(100_000);
    peer.gone = Some((2, 1000));
    let mut world = World::new(64 * MIB, vec![peer], 64 * MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(9_000);
    assert!(world.failed.is_empty());
    assert!(world.now_ms < 1600);
}

#[test]
fn a_holder_that_is_away_is_left_at_once_and_serves_again_when_it_is_back() {
    let mut peer = Peer::good(100_000);
    peer.away = Some((0, 3_000));
    let mut world = World::new(64 * MIB, vec![peer.clone()], 64 * MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(100);
    assert!(world.failed.contains(&1) && world.now_ms < 10);
    while world.now_ms < 4_100 {
        world.step();
    }
    world.demand(2, 0..MIB);
    world.run_until_idle(100);
    assert!(!world.failed.contains(&2), "it is back");

    let mut world = World::new(64 * MIB, vec![peer, Peer::good(100_000)], 64 * MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(1_000);
    assert!(world.failed.is_empty() && world.now_ms < 50);
}

#[test]
fn a_stalled_holder_is_left_for_the_next() {
    let mut stalled = Peer::good(100_000);
    stalled.stalls_at = Some(1);
    let peers = vec![stalled, Peer::good(100_000)];
    let mut world = World::new(64 * MIB, peers, 64 * MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(1_000);
    assert!(world.failed.is_empty());
    assert!(world.now_ms < 600, "took {} ms", world.now_ms);
}

#[test]
fn a_slow_holder_is_no_error() {
    let mut world = World::new(MIB, vec![Peer::good(64)], MIB);
    world.demand(1, 0..MIB);
    world.run_until_idle(20_000);
    assert!(world.failed.is_empty());
    assert!(world.now_ms > 10, "the test's holder is not slow");
}

#[test]
fn all_changed_is_stale() {
    let mut peer = Peer::good(1000);
    peer.refuses = Some(Failure::Changed("another version".into()));
    let mut world = World::new(MIB, vec![peer.clone(), peer], MIB);
    world.handle(Event::Demand {
        id: 7,
        range: 0..MIB,
    });
    for _ in 0..5 {
        world.step();
    }
    assert!(world.failed.contains(&7));
    assert!(world.plan.is_stale());
}

#[test]
fn nobody_holds_it() {
    let mut world = World::new(MIB, vec![], MIB);
    world.demand(1, 0..100);
    assert!(world.failed.contains(&1));
}

fn peer() -> impl Strategy<Value = Peer> {
    let rate = prop::sample::select(vec![2_000u64, 20_000, 200_000]);
    let gone = prop::option::weighted(0.3, (0u64..300, 1u64..4_000));
    let away = prop::option::weighted(0.2, (0u64..300, 1u64..4_000));
    let stalls = prop::option::weighted(0.2, 0u64..300);
    let lies = prop::option::weighted(0.2, 0u64..16 * MIB);
    let refuses = prop::option::weighted(
        0.15,
        prop::sample::select(vec![
            Failure::Changed("changed".into()),
            Failure::Refused("not here".into()),
            Failure::Busy("busy".into()),
        ]),
    );
    (rate, gone, away, stalls, lies, refuses).prop_map(
        |(bytes_per_ms, gone, away, stalls_at, lies_at, refuses)| Peer {
            bytes_per_ms,
            gone: gone.map(|(from, long)| (from, from + long)),
            away: away.map(|(from, long)| (from, from + long)),
            stalls_at,
            lies_at,
            refuses,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, max_shrink_time: 20_000, ..ProptestConfig::default() })]

    /// Whatever the holders do: every read ends in time, invariants hold at every step, memory comes back.
    #[test]
    fn every_demand_ends(
        peers in prop::collection::vec(peer(), 1..4),
        reads in prop::collection::vec((0u64..400, 0u64..16 * MIB, 1u64..MIB, any::<bool>()), 1..20),
        memory in prop::sample::select(vec![MIB, 4 * MIB, 64 * MIB]),
        whole in any::<bool>(),
    ) {
        let size = 16 * MIB + 12_345;
        let honest = peers.iter().any(|p| {
            p.gone.is_none() && p.away.is_none() && p.stalls_at.is_none() && p.lies_at.is_none() && p.refuses.is_none()
        });
        let mut world = World::new(size, peers, memory);
        let mut reads = reads;
        reads.sort_by_key(|read| read.0);
        if whole {
            world.waiting.insert(1000, (0..size, 0));
            world.handle(Event::DemandWhole { id: 1000 });
        }
        for (id, (at, offset, len, ahead)) in reads.into_iter().enumerate() {
            while world.now_ms < at {
                world.step();
            }
            let end = (offset + len).min(size);
            world.demand(id as u64, offset..end);
            if ahead {
                world.handle(Event::Ahead(end..(end + 2 * MIB).min(size)));
            }
        }
        world.run_until_idle(60_000);
        prop_assert!(!honest || world.failed.is_empty(), "failed though one holder was good");
        world.drain();
    }
}
