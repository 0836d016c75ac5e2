//! The rules that are compared: which calls a node with free workers takes.
use super::World;
use ks_executor::placement::{FileFact, NodeFact, THRESHOLD_BYTES, Wish, place};
use ks_executor::queue::Next;
use ks_executor::queue::durations::Durations;
use ks_executor::queue::model::{Model, Want};
use ks_fs::record::NodeId;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// Decides who runs what.
pub trait Rule {
    /// Calls have come; the nodes that hear of it.
    fn come(&mut self, world: &World, jobs: &[usize], now_ms: u64) -> Vec<usize>;
    /// A call has ended at a node, where one that had its file from the beginning after so long.
    fn end(&mut self, _node: usize, _call_ms: Option<u64>) {}
    /// What a node with free workers takes, and when it wants to look again by itself.
    fn take(&mut self, world: &World, node: usize, now_ms: u64) -> (Vec<usize>, Option<u64>);
}

/// Ours: `placement::place` says where a call may run, the queue's model who takes it when.
pub struct Ours {
    nodes: Vec<NodeFact>,
    queue: Model,
    durations: Vec<Durations>,
    places: HashMap<usize, HashSet<usize>>,
}

impl Ours {
    pub fn new(nodes: usize) -> Self {
        let node = |number: usize| NodeFact {
            id: NodeId(number as u64),
            name: format!("host{number}"),
            alive: true,
            read_only: false,
            serves: vec!["default".into()],
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            queue: Model::default(),
            durations: (0..nodes).map(|_| Durations::default()).collect(),
            places: HashMap::new(),
        }
    }
}

impl Rule for Ours {
    fn come(&mut self, world: &World, jobs: &[usize], now_ms: u64) -> Vec<usize> {
        let mut told = BTreeSet::new();
        for job in jobs {
            let file = world.setting.jobs[*job].file;
            let size_bytes = world.setting.files[file].0;
            let holders = world.holders[file]
                .iter()
                .map(|node| (NodeId(*node as u64), size_bytes));
            let fact = FileFact {
                size_bytes,
                holders: holders.collect(),
            };
            let wish = Wish {
                files: vec![&fact],
                queue: "default",
                python: None,
                node: None,
                near: Vec::new(),
                threshold_bytes: Some(THRESHOLD_BYTES),
                data: file as u64 + 1,
                function: 1,
                seed: *job as u64,
            };
            let placement = place(&wish, &self.nodes).expect("its holders may");
            self.queue.submit(*job as u64, 0, &placement, now_ms);
            let places: HashSet<usize> = placement
                .places
                .iter()
                .map(|place| place.node.0 as usize)
                .collect();
            for place in &placement.places {
                assert!(place.fetch_bytes <= THRESHOLD_BYTES);
            }
            told.extend(places.iter().copied());
            self.places.insert(*job, places);
        }
        told.into_iter().collect()
    }

    fn end(&mut self, node: usize, call_ms: Option<u64>) {
        self.queue.finish(NodeId(node as u64));
        if let Some(call_ms) = call_ms {
            self.durations[node].took(1, call_ms * 1_000, false);
        }
    }

    fn take(&mut self, world: &World, node: usize, now_ms: u64) -> (Vec<usize>, Option<u64>) {
        let slots = world.setting.slots as u64;
        let id = NodeId(node as u64);
        let free = world.free[node];
        let want = Want {
            jobs: free,
            of_others: free,
            slots,
        };
        self.queue.learn(&self.durations[node].say());
        let (jobs, next) = self.queue.claim(id, want, now_ms);
        let jobs: Vec<usize> = jobs.into_iter().map(|job| job as usize).collect();
        for job in &jobs {
            assert!(
                self.places[job].contains(&node),
                "call {job} runs where it may not"
            );
        }
        let look_ms = match next {
            Next::In(ms) => Some(now_ms + ms),
            Next::Now | Next::Nothing => None,
        };
        (jobs, look_ms)
    }
}

/// A line for each node; a call stands in one of them.
struct Lines(Vec<VecDeque<usize>>);

impl Lines {
    fn take(&mut self, world: &World, node: usize) -> (Vec<usize>, Option<u64>) {
        let count = world.free[node].min(self.0[node].len());
        (self.0[node].drain(..count).collect(), None)
    }
}

/// Any node, by chance.
pub struct Random {
    lines: Lines,
    chance: super::settings::Chance,
}

impl Random {
    pub fn new(nodes: usize, seed: u64) -> Self {
        let lines = Lines(vec![VecDeque::new(); nodes]);
        let chance = super::settings::Chance::new(seed);
        Self { lines, chance }
    }
}

impl Rule for Random {
    fn come(&mut self, world: &World, jobs: &[usize], _: u64) -> Vec<usize> {
        let nodes = jobs.iter().map(|job| {
            let node = self.chance.below(world.setting.nodes as u64) as usize;
            self.lines.0[node].push_back(*job);
            node
        });
        nodes.collect()
    }
    fn take(&mut self, world: &World, node: usize, _: u64) -> (Vec<usize>, Option<u64>) {
        self.lines.take(world, node)
    }
}

/// Always at a holder, the one with the shortest line.
pub struct AlwaysLocal(Lines);

impl AlwaysLocal {
    pub fn new(nodes: usize) -> Self {
        Self(Lines(vec![VecDeque::new(); nodes]))
    }
}

impl Rule for AlwaysLocal {
    fn come(&mut self, world: &World, jobs: &[usize], _: u64) -> Vec<usize> {
        let nodes = jobs.iter().map(|job| {
            let holders = world.holders[world.setting.jobs[*job].file].iter().copied();
            let node = holders
                .min_by_key(|node| self.0.0[*node].len())
                .expect("somebody has it");
            self.0.0[node].push_back(*job);
            node
        });
        nodes.collect()
    }
    fn take(&mut self, world: &World, node: usize, _: u64) -> (Vec<usize>, Option<u64>) {
        self.0.take(world, node)
    }
}

/// The seeds': each call stands in the lines of all nodes that may run it, all first choices (by bytes) before any second choice.
pub struct Seeds {
    first: Vec<VecDeque<usize>>,
    all: VecDeque<usize>,
    taken: HashSet<usize>,
}

impl Seeds {
    pub fn new(nodes: usize) -> Self {
        Self {
            first: vec![VecDeque::new(); nodes],
            all: VecDeque::new(),
            taken: HashSet::new(),
        }
    }
}

impl Rule for Seeds {
    fn come(&mut self, world: &World, jobs: &[usize], _: u64) -> Vec<usize> {
        for job in jobs {
            let file = world.setting.jobs[*job].file;
            for node in &world.holders[file] {
                self.first[*node].push_back(*job);
            }
            if world.setting.files[file].0 <= THRESHOLD_BYTES {
                self.all.push_back(*job);
            }
        }
        (0..world.setting.nodes)
            .filter(|node| world.free[*node] > 0)
            .collect()
    }

    fn take(&mut self, world: &World, node: usize, _: u64) -> (Vec<usize>, Option<u64>) {
        let mut jobs = Vec::new();
        let Self { first, all, taken } = self;
        for line in [&mut first[node], all] {
            while jobs.len() < world.free[node]
                && let Some(job) = line.pop_front()
            {
                if taken.insert(job) {
                    jobs.push(job);
                }
            }
        }
        (jobs, None)
    }
}
