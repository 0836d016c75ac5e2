//! What the queue's scripts do, as plain Rust: which job a node with free slots takes, and when it looks again.
//!
//! Pure. The scripts decide; this is for what cannot ask Redis: the simulator, and the test that holds the scripts to it step by step.
//! The rule: a node takes the jobs that may run there at once, in their order. With slots left it looks at the first
//! `LOOKED_AT_MAX` jobs whose data it lacks, and takes one where the nodes that have the data would take longer to come to it than the fetch
//! takes, by a margin that is worth it. How long they would take is known from how many jobs wait there, how many run at once and how long
//! that function's calls take; a node that has taken nothing for twice as long as the longest of them took is thought to go on so. A
//! worker's first call of a function says little about the next: it imports what the function needs. So once others have ended, it is
//! their time that counts. A fetch waits its turn at the node it comes from, and where that would be
//! longer than the fetch itself it does not begin: who comes later may fetch from who fetched before. What always holds: a job is taken
//! once, by a node among its places.
use crate::placement::{Place, Placement};
use crate::queue::Next;
use ks_fs::record::NodeId;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Jobs of others that a node with free slots looks at.
pub const LOOKED_AT_MAX: usize = 32;
/// A job is left to those who have its data where it would wait so much longer there at most: less is not worth a fetch.
pub const MARGIN_MS: u64 = 1_000;
/// A job is left to them so long in any case: who is free has to wake, and what has ended there to be noted.
pub const WAKE_MS: u64 = 50;
/// What is said anew takes this part of the longest call's time from it, where it says less.
const LONGEST_FADES: u64 = 16;
/// Time between two looks at least.
pub const LOOK_AGAIN_MS: u64 = 50;

/// What a node that claims can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// How many jobs it takes at most.
    pub jobs: usize,
    /// How many of them may be such whose data it lacks.
    pub of_others: usize,
    /// How many calls run there at once.
    pub slots: u64,
}

/// How long the calls of a function take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// Which.
    pub function: u64,
    /// About so long, but for a worker's first; 0: not known.
    pub call_ms: u64,
    /// So long the longest of late, the first ones too.
    pub longest_ms: u64,
}

impl Took {
    /// What is to be expected of the next one.
    fn next_ms(&self) -> u64 {
        match self.call_ms {
            0 => self.longest_ms,
            known => known,
        }
    }
}

impl From<usize> for Want {
    /// Of a node with so many free slots.
    fn from(jobs: usize) -> Self {
        Self {
            jobs,
            of_others: jobs,
            slots: jobs as u64,
        }
    }
}

/// How fast a node works, as it says when it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Calls that run there at once.
    pub slots: u64,
    /// When it took some last.
    pub claimed_ms: u64,
}

impl Pace {
    /// From when on it takes none though it should.
    fn stands_from_ms(&self, took: &Took) -> u64 {
        self.claimed_ms + 2 * took.longest_ms
    }

    /// How long a job waits there that comes after the others of `backlog`, `running` being under way. One that takes none though it could
    /// is thought to go on so.
    fn wait_ms(&self, backlog: u64, running: u64, took: &Took, now_ms: u64) -> u64 {
        let stands_ms = now_ms.saturating_sub(self.stands_from_ms(took));
        let free = self.slots.saturating_sub(running);
        let works_ms = backlog.saturating_sub(free) * took.next_ms();
        works_ms.max(backlog * stands_ms) / self.slots.max(1)
    }

    /// When `wait_ms` of so many will be `wanted_ms`, if it takes none until then.
    fn reaches_ms(&self, backlog: u64, took: &Took, wanted_ms: u64) -> u64 {
        self.stands_from_ms(took) + (wanted_ms * self.slots.max(1)).div_ceil(backlog.max(1))
    }
}

/// A job's place in a line: higher priority first, then as they came.
type Rank = (i32, u64, u64);

#[derive(Clone, Debug)]
struct Waiting {
    rank: Rank,
    since_ms: u64,
    places: Vec<Place>,
    data: u64,
    function: u64,
}

impl Waiting {
    fn first_choices(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.delay_ms == 0)
    }

    fn lack_ms(&self, node: NodeId) -> u64 {
        let place = self.places.iter().find(|place| place.node == node);
        place.map_or(0, |place| place.delay_ms)
    }
}

/// The queue of one name.
#[derive(Clone, Debug, Default)]
pub struct Model {
    jobs: HashMap<u64, Waiting>,
    /// Jobs that any node may take.
    anywhere: BTreeSet<(Rank, u64)>,
    /// Jobs that a node may take at once.
    ready: HashMap<NodeId, BTreeSet<(Rank, u64)>>,
    /// Jobs whose data a node lacks.
    lacking: HashMap<NodeId, BTreeSet<(Rank, u64)>>,
    paces: HashMap<NodeId, Pace>,
    took: HashMap<u64, Took>,
    /// How many jobs each node has taken that have not ended.
    running: HashMap<NodeId, u64>,
    /// When the fetches from a node that are thought to be under way are over.
    busy: HashMap<NodeId, u64>,
    /// Nodes that have fetched data for jobs of others, and when they have it.
    copies: HashMap<u64, BTreeMap<NodeId, u64>>,
    next: u64,
}

impl Model {
    /// A job comes.
    pub fn submit(&mut self, job: u64, priority: i32, placement: &Placement, now_ms: u64) {
        let rank = (-priority, now_ms, self.next);
        self.next += 1;
        for place in &placement.places {
            let lines = match place.delay_ms {
                0 => &mut self.ready,
                _ => &mut self.lacking,
            };
            lines.entry(place.node).or_default().insert((rank, job));
        }
        if placement.places.is_empty() {
            self.anywhere.insert((rank, job));
        }
        let waiting = Waiting {
            rank,
            since_ms: now_ms,
            places: placement.places.clone(),
            data: placement.data,
            function: placement.function,
        };
        self.jobs.insert(job, waiting);
    }

    /// A node says how long calls take there.
    pub fn learn(&mut self, news: &[Took]) {
        for new in news {
            let known = self.took.entry(new.function).or_default();
            known.function = new.function;
            if new.call_ms > 0 {
                known.call_ms = new.call_ms;
            }
            let faded_ms = known.longest_ms - known.longest_ms / LONGEST_FADES;
            known.longest_ms = new.longest_ms.max(faded_ms);
        }
    }

    /// A node takes what it may.
    pub fn claim(&mut self, node: NodeId, want: Want, now_ms: u64) -> (Vec<u64>, Next) {
        let mut taken = Vec::new();
        while taken.len() < want.jobs {
            let mine = self.ready.get(&node).and_then(BTreeSet::first);
            let Some((_, job)) = mine.into_iter().chain(self.anywhere.first()).min().copied()
            else {
                break;
            };
            self.take(job);
            taken.push(job);
        }
        let others = want.of_others.min(want.jobs - taken.len());
        let (more, look_ms) = self.take_of_others(node, others, now_ms);
        taken.extend(more);
        if !taken.is_empty() {
            let pace = Pace {
                slots: want.slots,
                claimed_ms: now_ms,
            };
            self.paces.insert(node, pace);
            *self.running.entry(node).or_default() += taken.len() as u64;
        }
        let is_left =
            !self.anywhere.is_empty() || self.ready.get(&node).is_some_and(|line| !line.is_empty());
        let next = match look_ms {
            _ if is_left => Next::Now,
            Some(at_ms) => Next::In(at_ms.saturating_sub(now_ms)),
            None => Next::Nothing,
        };
        (taken, next)
    }

    /// A job that the node took has ended.
    pub fn finish(&mut self, node: NodeId) {
        if let Some(running) = self.running.get_mut(&node) {
            *running = running.saturating_sub(1);
        }
    }

    fn take_of_others(
        &mut self,
        node: NodeId,
        want: usize,
        now_ms: u64,
    ) -> (Vec<u64>, Option<u64>) {
        let line = self.lacking.get(&node).into_iter().flatten();
        let looked_at: Vec<u64> = line.take(LOOKED_AT_MAX).map(|(_, job)| *job).collect();
        let mut taken = Vec::new();
        let mut look_ms: Option<u64> = None;
        for job in looked_at {
            if taken.len() == want {
                return (taken, Some(now_ms + LOOK_AGAIN_MS));
            }
            let from_ms = self.eligible_ms(node, job, now_ms);
            if from_ms > now_ms {
                let at_ms = from_ms.max(now_ms + LOOK_AGAIN_MS);
                look_ms = Some(look_ms.map_or(at_ms, |known| known.min(at_ms)));
                continue;
            }
            self.fetch(node, job, now_ms);
            self.take(job);
            taken.push(job);
        }
        (taken, look_ms)
    }

    /// From when on a node may take a job whose data it lacks, as things stand now.
    fn eligible_ms(&self, node: NodeId, job: u64, now_ms: u64) -> u64 {
        let waiting = &self.jobs[&job];
        let mut wanted_ms = 1;
        if !self.has(node, waiting.data) {
            let lack_ms = waiting.lack_ms(node);
            let turn_ms = self.source(waiting, now_ms).1 - now_ms;
            if turn_ms > lack_ms {
                return now_ms + turn_ms - lack_ms;
            }
            wanted_ms = turn_ms + lack_ms + MARGIN_MS;
        }
        let mut from_ms = now_ms.max(waiting.since_ms + WAKE_MS);
        let took = self
            .took
            .get(&waiting.function)
            .copied()
            .unwrap_or_default();
        for place in waiting.first_choices() {
            let backlog = self.ready.get(&place.node).map_or(0, BTreeSet::len) as u64;
            let mut pace = self.paces.get(&place.node).copied().unwrap_or(Pace {
                slots: 1,
                claimed_ms: 0,
            });
            pace.claimed_ms = pace.claimed_ms.max(waiting.since_ms);
            let running = self.running.get(&place.node).copied().unwrap_or(0);
            if pace.wait_ms(backlog, running, &took, now_ms) < wanted_ms {
                from_ms = from_ms.max(pace.reaches_ms(backlog, &took, wanted_ms));
            }
        }
        from_ms
    }

    fn has(&self, node: NodeId, data: u64) -> bool {
        self.copies
            .get(&data)
            .is_some_and(|copies| copies.contains_key(&node))
    }

    /// From which node data is fetched, and when its turn comes there.
    fn source(&self, waiting: &Waiting, now_ms: u64) -> (NodeId, u64) {
        let copies = self.copies.get(&waiting.data).into_iter().flatten();
        let copies = copies
            .filter(|(_, there_ms)| **there_ms <= now_ms)
            .map(|(node, _)| *node);
        let nodes = waiting
            .first_choices()
            .map(|place| place.node)
            .chain(copies);
        let turn = |node: NodeId| {
            (
                self.busy
                    .get(&node)
                    .map_or(now_ms, |until_ms| now_ms.max(*until_ms)),
                node,
            )
        };
        let (turn_ms, node) = nodes.map(turn).min().unwrap_or((now_ms, NodeId::NONE));
        (node, turn_ms)
    }

    fn fetch(&mut self, node: NodeId, job: u64, now_ms: u64) {
        let waiting = &self.jobs[&job];
        if self.has(node, waiting.data) {
            return;
        }
        let (source, turn_ms) = self.source(waiting, now_ms);
        let (there_ms, data) = (turn_ms + waiting.lack_ms(node), waiting.data);
        self.busy.insert(source, there_ms);
        self.copies.entry(data).or_default().insert(node, there_ms);
    }

    fn take(&mut self, job: u64) {
        let Some(waiting) = self.jobs.remove(&job) else {
            return;
        };
        self.anywhere.remove(&(waiting.rank, job));
        for place in &waiting.places {
            let lines = match place.delay_ms {
                0 => &mut self.ready,
                _ => &mut self.lacking,
            };
            if let Some(line) = lines.get_mut(&place.node) {
                line.remove(&(waiting.rank, job));
            }
        }
    }
}
