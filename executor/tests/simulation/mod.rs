//! A cluster in virtual time, from a seed: calls come, wait, are placed by one of several rules, fetch what they lack and run.
//!
//! Ours is the real thing (`placement::place`, `queue::model`); the others are what it is compared with. What always holds, and is
//! checked while it runs: each call runs exactly once, no node runs more calls than it has workers, nobody fetches more than the threshold.
//! A fetch takes its share of the link of the holder that is least busy; a node that has fetched a file is a holder.
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};

pub mod oracle;
pub mod rules;
pub mod settings;

use rules::Rule;

/// A call.
#[derive(Clone, Debug)]
pub struct Job {
    /// When it comes.
    pub at_ms: u64,
    /// The file that it reads; calls that read none are not what this is about.
    pub file: usize,
    /// How long it takes once its file is there.
    pub run_ms: u64,
}

/// What is there, and what is to be done.
#[derive(Clone, Debug)]
pub struct Setting {
    pub name: &'static str,
    pub nodes: usize,
    /// Workers of each node.
    pub slots: usize,
    /// Size in bytes, and who holds it.
    pub files: Vec<(u64, Vec<usize>)>,
    /// In the order in which they come.
    pub jobs: Vec<Job>,
    /// What a node's link carries.
    pub link_bytes_per_ms: u64,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub makespan_ms: u64,
    pub moved_bytes: u64,
    /// Calls that ran where their file was when they began.
    pub local: usize,
    /// From coming to beginning, of each call.
    pub waits_ms: Vec<u64>,
    /// From coming to ending, the mean.
    pub mean_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fetched {
        node: usize,
        from: usize,
        file: usize,
    },
    Ended {
        node: usize,
        job: usize,
    },
    Come {
        first: usize,
        end: usize,
    },
    Look {
        node: usize,
    },
}

/// The state of the nodes.
pub struct World<'a> {
    pub setting: &'a Setting,
    /// Who holds each file now.
    pub holders: Vec<BTreeSet<usize>>,
    /// Free workers of each node.
    pub free: Vec<usize>,
    uploads: Vec<u64>,
    fetching: HashMap<(usize, usize), u64>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next: u64,
    began: Vec<Option<u64>>,
    looks: HashSet<(u64, usize)>,
    outcome: Outcome,
}

/// Runs a setting by a rule to its end.
pub fn run(setting: &Setting, rule: &mut dyn Rule) -> Outcome {
    let mut world = World::new(setting);
    let mut ended = 0;
    while let Some(Reverse((now_ms, _, event))) = world.events.pop() {
        match event {
            Event::Come { first, end } => {
                let jobs: Vec<usize> = (first..end).collect();
                for node in rule.come(&world, &jobs, now_ms) {
                    world.offer(rule, node, now_ms);
                }
            }
            Event::Look { node } => {
                world.looks.remove(&(now_ms, node));
                world.offer(rule, node, now_ms);
            }
            Event::Fetched { node, from, file } => {
                world.uploads[from] -= 1;
                world.fetching.remove(&(node, file));
                world.holders[file].insert(node);
            }
            Event::Ended { node, job } => {
                let began_ms = world.began[job].expect("it began");
                let call_ms = now_ms - began_ms;
                world.free[node] += 1;
                let has_it = setting.files[setting.jobs[job].file].1.contains(&node);
                rule.end(node, has_it.then_some(call_ms));
                ended += 1;
                world.outcome.makespan_ms = now_ms;
                world.outcome.mean_ms += now_ms - setting.jobs[job].at_ms;
                world.offer(rule, node, now_ms);
            }
        }
    }
    assert_eq!(
        ended,
        setting.jobs.len(),
        "{}: every call ends",
        setting.name
    );
    world.outcome.mean_ms /= ended.max(1) as u64;
    world.outcome
}

impl<'a> World<'a> {
    fn new(setting: &'a Setting) -> Self {
        let mut world = Self {
            setting,
            holders: setting
                .files
                .iter()
                .map(|(_, holders)| holders.iter().copied().collect())
                .collect(),
            free: vec![setting.slots; setting.nodes],
            uploads: vec![0; setting.nodes],
            fetching: HashMap::new(),
            events: BinaryHeap::new(),
            next: 0,
            began: vec![None; setting.jobs.len()],
            looks: HashSet::new(),
            outcome: Outcome::default(),
        };
        let mut first = 0;
        while first < setting.jobs.len() {
            let at_ms = setting.jobs[first].at_ms;
            let same = setting.jobs[first..]
                .iter()
                .take_while(|job| job.at_ms == at_ms);
            let end = first + same.count();
            world.push(at_ms, Event::Come { first, end });
            first = end;
        }
        world
    }

    fn push(&mut self, at_ms: u64, event: Event) {
        self.next += 1;
        self.events.push(Reverse((at_ms, self.next, event)));
    }

    /// A node with free workers takes what the rule gives it.
    fn offer(&mut self, rule: &mut dyn Rule, node: usize, now_ms: u64) {
        if self.free[node] == 0 {
            return;
        }
        let (jobs, look_ms) = rule.take(self, node, now_ms);
        for job in jobs {
            self.start(node, job, now_ms);
        }
        if let Some(at_ms) = look_ms
            && self.free[node] > 0
            && self.looks.insert((at_ms.max(now_ms + 1), node))
        {
            self.push(at_ms.max(now_ms + 1), Event::Look { node });
        }
    }

    fn start(&mut self, node: usize, job: usize, now_ms: u64) {
        let Job {
            at_ms,
            file,
            run_ms,
        } = self.setting.jobs[job];
        assert!(
            self.began[job].replace(now_ms).is_none(),
            "call {job} runs twice"
        );
        assert!(at_ms <= now_ms && self.free[node] > 0);
        self.free[node] -= 1;
        self.outcome.waits_ms.push(now_ms - at_ms);
        let there_ms = self.bring(node, file, now_ms);
        self.push(there_ms + run_ms, Event::Ended { node, job });
    }

    /// When the node will have the file.
    fn bring(&mut self, node: usize, file: usize, now_ms: u64) -> u64 {
        if self.holders[file].contains(&node) {
            self.outcome.local += 1;
            return now_ms;
        }
        if let Some(there_ms) = self.fetching.get(&(node, file)) {
            return *there_ms;
        }
        let size_bytes = self.setting.files[file].0;
        let holders = self.holders[file].iter().copied();
        let from = holders
            .min_by_key(|holder| self.uploads[*holder])
            .expect("somebody has it");
        self.uploads[from] += 1;
        let rate = (self.setting.link_bytes_per_ms / self.uploads[from]).max(1);
        let there_ms = now_ms + size_bytes.div_ceil(rate);
        self.outcome.moved_bytes += size_bytes;
        self.fetching.insert((node, file), there_ms);
        self.push(there_ms, Event::Fetched { node, from, file });
        there_ms
    }
}
