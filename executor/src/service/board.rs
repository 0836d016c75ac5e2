//! What this node has claimed and which of its workers are free: the executor's state in memory.
//!
//! No I/O: the service asks what may be started and does it. What always holds: no more calls run than there are slots; a
//! call is on the board from its claim to its end; a worker is idle here or has a call, never both.
use super::flow::Flow;
use super::output::Output;
use crate::job::{Life, State};
use crate::queue::{Took, Want, durations::Durations, record::StoredCall};
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
    /// It waits for calls of its own: its place is lent.
    pub waits: bool,
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
    /// How many workers to start: of the default interpreter there is always one for each slot, of others, and for places that
    /// are lent (`room`: the slots and those), as calls wait for them; one at a time while they fail.
    pub fn lacking(&self, is_default: bool, slots: usize, room: usize) -> usize {
        let has = self.workers.len() + self.starting;
        if self.restarts.is_failing() {
            return usize::from(has == 0 && slots > 0);
        }
        self.wanted(is_default, slots, room).saturating_sub(has)
    }

    fn wanted(&self, is_default: bool, slots: usize, room: usize) -> usize {
        let busy = self.workers.len().saturating_sub(self.idle.len());
        let wanted = (busy + self.waiting.len()).min(room);
        match is_default {
            true => wanted.max(slots),
            false => wanted,
        }
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
    /// How many of these wait for calls of their own: so many more may be claimed.
    pub lent: usize,
    /// The most.
    max_nested: usize,
    /// How long calls take, the later ones counting more; a long one for no longer than `CALL_US_MAX`.
    average_us: u64,
    /// How long those of each function take.
    durations: Durations,
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
    pub fn new(slots: usize, max_nested: usize, pythons: &[(String, PathBuf)]) -> Self {
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
            lent: 0,
            max_nested,
            average_us: CALL_US_MAX,
            durations: Durations::default(),
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
            of_others: self.room().saturating_sub(self.runs.len()),
            slots: self.slots as u64,
        }
    }

    /// Whether so little is left that it is time to claim again: not for each call that ends, where they are short.
    pub fn is_low(&self) -> bool {
        self.runs.len() < self.room() || self.runs.len() * 2 <= self.full()
    }

    /// How many calls may run now.
    pub fn room(&self) -> usize {
        self.slots + self.lent
    }

    /// The least priority of a call that may run now; `None`: none may. A place that is lent is for calls that were made by a call: those
    /// go before it.
    fn least_admitted(&self) -> Option<i32> {
        if self.running < self.slots {
            return Some(i32::MIN);
        }
        let waiting = self.runs.values().filter(|run| run.waits);
        let floor = waiting.map(|run| run.stored.call.priority).min();
        floor
            .filter(|_| self.running < self.room())
            .and_then(|floor| floor.checked_add(1))
    }

    /// How many calls are claimed at most.
    fn full(&self) -> usize {
        match self.is_stuck {
            true => self.room(),
            false => self.room() + ahead(self.slots, self.average_us),
        }
    }

    /// What the others have not been told yet of how long calls take.
    pub fn say_durations(&mut self) -> Vec<Took> {
        self.durations.say()
    }

    /// A call of `function` took so long; `is_first`: its worker had run nothing of that function before; `is_typical`: it did not
    /// have to fetch what others have.
    pub fn took(&mut self, function: u64, run_us: u64, is_first: bool, is_typical: bool) {
        self.is_stuck = false;
        self.average_us = (self.average_us + run_us.clamp(CALL_US_MIN, CALL_US_MAX)) / 2;
        if is_typical {
            self.durations.took(function, run_us, is_first);
        }
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
                let priority = run.stored.call.priority;
                let is_behind = |other: &String| {
                    let other = self.runs.get(other);
                    other.is_none_or(|other| other.stored.call.priority >= priority)
                };
                let behind = pool.waiting.iter().rev().position(is_behind);
                let at = behind.map_or(0, |passed| pool.waiting.len() - passed);
                pool.waiting.insert(at, job.to_owned());
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
        let least = self.least_admitted()?;
        for pool in self.pools.values_mut() {
            while let (Some(job), Some(worker)) = (pool.waiting.front(), pool.idle.last()) {
                let run = self.runs.get(job);
                let run = run.filter(|run| run.life.state() == State::Waiting);
                let Some(run) = run else {
                    pool.waiting.pop_front();
                    continue;
                };
                if run.stored.call.priority < least {
                    break;
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
        if run.waits {
            self.lent -= 1;
        }
        self.ended += 1;
        Some(run)
    }

    /// A call that runs here waits for calls of its own from now on. Nothing, where it does not run here.
    pub fn lend(&mut self, job: &str) -> Result<(), TooManyNested> {
        let Some(run) = self.runs.get_mut(job) else {
            return Ok(());
        };
        if run.waits || run.began.is_none() {
            return Ok(());
        }
        if self.lent >= self.max_nested {
            return Err(TooManyNested(self.max_nested));
        }
        run.waits = true;
        self.lent += 1;
        Ok(())
    }

    /// It goes on. Until one of the others ends, more run than there are slots.
    pub fn take_back(&mut self, job: &str) {
        if let Some(run) = self.runs.get_mut(job)
            && std::mem::take(&mut run.waits)
        {
            self.lent -= 1;
        }
    }

    /// A worker that was started for a place that was lent, and has not been needed for `patience`: it is not idle any more.
    pub fn spare(&mut self, patience: Duration) -> Option<Arc<Worker>> {
        if self.lent > 0 || self.last_start.elapsed() < patience {
            return None;
        }
        let pool = self.pools.get_mut("default")?;
        let has = pool.workers.len() + pool.starting;
        let is_spare = has > pool.wanted(true, self.slots, self.slots) && !pool.idle.is_empty();
        is_spare.then(|| pool.idle.remove(0))
    }

    /// A worker may be given calls.
    pub fn idle(&mut self, worker: &Arc<Worker>) {
        if let Some(pool) = self.pools.get_mut(&worker.python) {
            pool.idle.push(worker.clone());
        }
    }

    /// Calls that wait though every slot has been taken for `patience`: claimed ahead in vain, another node may have them.
    pub fn stuck(&mut self, patience: Duration) -> Vec<String> {
        let may_start = |least: i32| {
            let mut waiting = self.pools.values().flat_map(|pool| &pool.waiting);
            waiting.any(|job| {
                let run = self.runs.get(job);
                run.is_some_and(|run| run.stored.call.priority >= least)
            })
        };
        if self.running < self.slots
            || self.last_start.elapsed() < patience
            || self.least_admitted().is_some_and(may_start)
        {
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

/// As many calls as may (this many) wait for calls of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyNested(pub usize);

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

    fn run(priority: i32) -> Run {
        let call = serde_json::json!({
            "job": "", "name": "f", "function": {"Name": "m:f"}, "format": "pickle", "args": {"parts": []}, "mountpoint": null,
            "priority": priority,
        });
        let origin = "0000000000000001".parse().unwrap();
        let stored = StoredCall {
            call: serde_json::from_value(call).unwrap(),
            keeper: origin,
            why: String::new(),
            costs: Vec::new(),
            is_learned: false,
        };
        Run {
            stored: Arc::new(stored),
            origin,
            retries: 0,
            since: Instant::now(),
            waited_before: Duration::ZERO,
            life: Life::new(None),
            worker: None,
            began: None,
            grown_to_bytes: 0,
            brought_bytes: 0,
            bringing: Duration::ZERO,
            claiming: Duration::ZERO,
            waits: false,
            output: Output::default(),
            flow: Flow::default(),
        }
    }

    #[test]
    fn places_are_lent_to_a_bound_and_come_back_once() {
        let mut board = Board::new(1, 2, &[]);
        for job in ["a", "b", "c", "waits"] {
            board.enter(job, run(0));
            board.runs.get_mut(job).unwrap().began = (job != "waits").then(Instant::now);
        }
        assert_eq!(
            (board.lend("waits"), board.lend("unknown")),
            (Ok(()), Ok(()))
        );
        assert_eq!(board.room(), 1);
        assert_eq!((board.lend("a"), board.lend("a")), (Ok(()), Ok(())));
        assert_eq!(board.room(), 2);
        assert_eq!(
            (board.lend("b"), board.lend("c")),
            (Ok(()), Err(TooManyNested(2)))
        );
        assert_eq!(board.room(), 3);
        board.take_back("a");
        board.take_back("a");
        board.take_back("c");
        assert_eq!(board.room(), 2);
        assert_eq!(board.lend("c"), Ok(()));
        board.remove("b");
        board.remove("c");
        assert_eq!((board.room(), board.lent), (1, 0));
    }

    #[test]
    fn a_place_that_is_lent_is_for_calls_that_go_before_the_one_that_waits() {
        let mut board = Board::new(1, 2, &[]);
        board.enter("a", run(3));
        board.runs.get_mut("a").unwrap().began = Some(Instant::now());
        assert_eq!(board.least_admitted(), Some(i32::MIN));
        board.running = 1;
        assert_eq!(board.least_admitted(), None);
        board.lend("a").unwrap();
        assert_eq!(board.least_admitted(), Some(4));
        board.running = 2;
        assert_eq!(board.least_admitted(), None);
        board.take_back("a");
        board.running = 0;
        assert_eq!(board.least_admitted(), Some(i32::MIN));
    }

    #[test]
    fn calls_of_higher_priority_stand_before_others_that_wait_here() {
        let mut board = Board::new(1, 2, &[("default".into(), "python3".into())]);
        for (job, priority) in [
            ("a", 0),
            ("b", 0),
            ("c", 1),
            ("d", 2),
            ("e", 1),
            ("f", 0),
            ("g", -1),
        ] {
            board.enter(job, run(priority));
            assert!(board.make_ready(job));
        }
        let waiting: Vec<_> = board.pools["default"].waiting.iter().cloned().collect();
        assert_eq!(waiting.concat(), "dceabfg");
    }

    #[test]
    fn workers_are_started_for_places_that_are_lent_as_calls_wait() {
        let mut board = Board::new(1, 2, &[("default".into(), "python3".into())]);
        let pool = board.pools.get_mut("default").unwrap();
        assert_eq!(pool.lacking(true, 1, 1), 1);
        pool.starting = 1;
        assert_eq!(pool.lacking(true, 1, 3), 0);
        pool.waiting.push_back("a".into());
        assert_eq!(
            (pool.lacking(true, 1, 1), pool.lacking(false, 1, 1)),
            (0, 0)
        );
    }

    #[test]
    fn only_short_calls_are_claimed_ahead() {
        let mut board = Board::new(2, 8, &[]);
        assert_eq!(board.want().jobs, 2);
        for _ in 0..20 {
            board.took(1, 10, false, true);
        }
        assert_eq!(board.want().jobs, 2 + AHEAD_MAX);
        board.took(1, 60_000_000, false, true);
        assert_eq!(board.want().jobs, 2);
        board.took(1, 500, false, true);
        board.took(1, 500, false, true);
        board.took(1, 500, false, true);
        assert!((4..100).contains(&board.want().jobs), "{:?}", board.want());
        assert_eq!(Board::new(0, 0, &[]).want().jobs, 0);
    }
}
