//! What this node has claimed and which of its workers are free: the executor's state in memory.
//!
//! No I/O: the service asks what may be started and does it. What always holds: no more calls run than there are slots; a
//! call is on the board from its claim to its end; a worker is idle here or has a call, never both.
use super::flow::Flow;
use super::output::Output;
use crate::job::{Life, State};
use crate::queue::{Want, record::StoredCall};
use crate::worker::{Worker, state::Restarts};
use ks_fs::record::NodeId;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Short calls are claimed ahead, so many microseconds' worth for each slot ...
const AHEAD_US: u64 = 20_000;
/// ... and never more than this ...
pub const AHEAD_MAX: usize = 256;
/// ... while they take less than this on the average.
const SHORT_CALL_US: u64 = 2_000;
/// What one call costs however short it is.
const CALL_US_MIN: u64 = 40;
/// A single long call counts as this long in the average: it takes a few short ones to forget it.
const CALL_US_MAX: u64 = 10_000;
/// Cancelled before their claim was heard of here: so many are remembered.
const EARLY_CANCELS_MAX: usize = 1_024;

/// A call that this node has claimed.
pub struct Run {
    /// As it was accepted; its blobs are here once `is_ready`.
    pub stored: Arc<StoredCall>,
    /// Who is told of what happens to it.
    pub origin: NodeId,
    /// How often it may still be run again.
    pub retries: u32,
    /// When it was claimed, or accepted, where that was here.
    pub since: Instant,
    /// How long it had waited by then.
    pub waited_before: Duration,
    /// How it stands.
    pub life: Life,
    /// Who runs it.
    pub worker: Option<Arc<Worker>>,
    /// When it began.
    pub began: Option<Instant>,
    /// Bytes that its worker had when it was ended for that.
    pub grown_to_bytes: u64,
    /// Bytes of kept values that were brought here for it.
    pub brought_bytes: u64,
    /// How long this node waited for what it needs, and before for having it.
    pub bringing: Duration,
    /// From asking for it to having it.
    pub claiming: Duration,
    /// What it wrote.
    pub output: Output,
    /// How much of that is under way.
    pub flow: Flow,
}

/// The workers of one interpreter.
pub struct Pool {
    /// The interpreter's program.
    pub python: PathBuf,
    /// All, by process id.
    pub workers: HashMap<u32, Arc<Worker>>,
    /// Those without a call; the last one used is the first to be used again.
    pub idle: Vec<Arc<Worker>>,
    /// Being started.
    pub starting: usize,
    /// Calls that wait for one.
    pub waiting: VecDeque<String>,
    /// When to try again after starts that failed.
    pub restarts: Restarts,
}

impl Pool {
    /// How many workers to start: of the default interpreter there is always one for each slot, of others as calls wait for
    /// them; one at a time while they fail.
    pub fn lacking(&self, is_default: bool, slots: usize) -> usize {
        let has = self.workers.len() + self.starting;
        if self.restarts.is_failing() {
            return usize::from(has == 0 && slots > 0);
        }
        let wanted = match is_default {
            true => slots,
            false => {
                let busy = self.workers.len().saturating_sub(self.idle.len());
                (busy + self.waiting.len()).min(slots)
            }
        };
        wanted.saturating_sub(has)
    }
}

/// The state.
pub struct Board {
    /// How many calls run at once.
    pub slots: usize,
    /// Every call claimed here.
    pub runs: HashMap<String, Run>,
    /// By the interpreter's name.
    pub pools: HashMap<String, Pool>,
    /// How many run.
    pub running: usize,
    /// How long calls take, the later ones counting more; a long one for no longer than `CALL_US_MAX`.
    average_us: u64,
    /// The same, as long as they are; 0: none has ended yet.
    call_us: u64,
    early_cancels: VecDeque<String>,
    /// Claiming ahead was in vain: not again until a call has ended.
    is_stuck: bool,
    /// When a call was last given to a worker.
    pub last_start: Instant,
    /// How many ended here.
    pub ended: u64,
}

impl Board {
    /// With these interpreters; nothing is started.
    pub fn new(slots: usize, pythons: &[(String, PathBuf)]) -> Self {
        let pool = |python: &PathBuf| Pool {
            python: python.clone(),
            workers: HashMap::new(),
            idle: Vec::new(),
            starting: 0,
            waiting: VecDeque::new(),
            restarts: Restarts::default(),
        };
        Self {
            slots,
            runs: HashMap::new(),
            pools: pythons
                .iter()
                .map(|(name, python)| (name.clone(), pool(python)))
                .collect(),
            running: 0,
            average_us: CALL_US_MAX,
            call_us: 0,
            early_cancels: VecDeque::new(),
            is_stuck: false,
            last_start: Instant::now(),
            ended: 0,
        }
    }

    /// How many calls to claim. Such whose data is elsewhere for free slots alone: none of them is claimed ahead.
    pub fn want(&self) -> Want {
        Want {
            jobs: self.full().saturating_sub(self.runs.len()),
            of_others: self.slots.saturating_sub(self.runs.len()),
            slots: self.slots as u64,
            call_ms: rounded(self.call_us / 1_000),
        }
    }

    /// Whether so little is left that it is time to claim again: not for each call that ends, where they are short.
    pub fn is_low(&self) -> bool {
        self.runs.len() < self.slots || self.runs.len() * 2 <= self.full()
    }

    /// How many calls are claimed at most.
    fn full(&self) -> usize {
        match self.is_stuck {
            true => self.slots,
            false => self.slots + ahead(self.slots, self.average_us),
        }
    }

    /// A call took so long.
    pub fn took(&mut self, run_us: u64) {
        self.is_stuck = false;
        self.average_us = (self.average_us + run_us.clamp(CALL_US_MIN, CALL_US_MAX)) / 2;
        self.call_us = match self.call_us {
            0 => run_us,
            before => before / 2 + run_us / 2,
        };
    }

    /// Enters a claimed call. `false`: it is here already, or was cancelled before it came.
    pub fn enter(&mut self, job: &str, run: Run) -> Entered {
        if self.runs.contains_key(job) {
            return Entered::Known;
        }
        self.runs.insert(job.to_owned(), run);
        match self.early_cancels.iter().position(|early| early == job) {
            Some(at) => {
                self.early_cancels.remove(at);
                Entered::Cancelled
            }
            None => Entered::New,
        }
    }

    /// Lets an entered call wait for a worker of its interpreter. `false`: there is no such interpreter.
    pub fn make_ready(&mut self, job: &str) -> bool {
        let Some(run) = self.runs.get(job) else {
            return true;
        };
        let name = run.stored.call.python.as_deref().unwrap_or("default");
        match self.pools.get_mut(name) {
            Some(pool) => {
                pool.waiting.push_back(job.to_owned());
                true
            }
            None => false,
        }
    }

    /// A call that is cancelled may be claimed by us without our knowing it yet.
    pub fn cancel_early(&mut self, job: String) {
        if self.early_cancels.len() >= EARLY_CANCELS_MAX {
            self.early_cancels.pop_front();
        }
        self.early_cancels.push_back(job);
    }

    /// The next call that can be given to a worker, and the worker, which is marked.
    pub fn next_start(&mut self) -> Option<(String, Arc<Worker>)> {
        if self.running >= self.slots {
            return None;
        }
        for pool in self.pools.values_mut() {
            while let (Some(job), Some(worker)) = (pool.waiting.front(), pool.idle.last()) {
                let waits = self
                    .runs
                    .get(job)
                    .is_some_and(|run| run.life.state() == State::Waiting);
                if !waits {
                    pool.waiting.pop_front();
                    continue;
                }
                let worker = worker.clone();
                pool.idle.pop();
                if !worker.assign(job) {
                    continue;
                }
                let job = pool.waiting.pop_front().expect("it is the first");
                self.running += 1;
                self.last_start = Instant::now();
                return Some((job, worker));
            }
        }
        None
    }

    /// Takes a call off the board.
    pub fn remove(&mut self, job: &str) -> Option<Run> {
        let run = self.runs.remove(job)?;
        if run.worker.is_some() {
            self.running -= 1;
        }
        self.ended += 1;
        Some(run)
    }

    /// A worker may be given calls.
    pub fn idle(&mut self, worker: &Arc<Worker>) {
        if let Some(pool) = self.pools.get_mut(&worker.python) {
            pool.idle.push(worker.clone());
        }
    }

    /// Calls that wait though every slot has been taken for `patience`: claimed ahead in vain, another node may have them.
    pub fn stuck(&mut self, patience: Duration) -> Vec<String> {
        if self.running < self.slots || self.last_start.elapsed() < patience {
            return Vec::new();
        }
        let waiting: Vec<String> = self
            .pools
            .values_mut()
            .flat_map(|pool| pool.waiting.drain(..))
            .collect();
        self.is_stuck = true;
        for job in &waiting {
            self.runs.remove(job);
        }
        waiting
    }

    /// Whether calls wait here.
    pub fn has_waiting(&self) -> bool {
        self.pools.values().any(|pool| !pool.waiting.is_empty())
    }
}

/// What became of a call that was to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is on the board.
    New,
    /// It is on the board, and to be ended as cancelled.
    Cancelled,
    /// It was there.
    Known,
}

/// To its first two digits: what is said changes only when something has changed.
fn rounded(number: u64) -> u64 {
    let unit = 10u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number / unit * unit
}

/// How many calls are claimed ahead of free slots.
fn ahead(slots: usize, average_us: u64) -> usize {
    match average_us {
        long if long > SHORT_CALL_US => 0,
        short => ((AHEAD_US / short.max(CALL_US_MIN)) as usize * slots).min(AHEAD_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_calls_are_claimed_ahead() {
        let mut board = Board::new(2, &[]);
        assert_eq!(board.want().jobs, 2);
        for _ in 0..20 {
            board.took(10);
        }
        assert_eq!(board.want().jobs, 2 + AHEAD_MAX);
        board.took(60_000_000);
        assert_eq!(board.want().jobs, 2);
        board.took(500);
        board.took(500);
        board.took(500);
        assert!((4..100).contains(&board.want().jobs), "{:?}", board.want());
        assert_eq!(Board::new(0, &[]).want().jobs, 0);
    }
}
