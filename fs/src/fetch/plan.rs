//! Fetch scheduling of one content: which range to ask of whom, and what to do when that goes wrong. Pure: events and the time
//! go in, actions come out.
//!
//! Who takes part: *demands* (readers that wait; a fetch of the whole content), ranges wanted *ahead* of readers, the *holders*, and the
//! map of what is here (`BlockMap`, the truth that readers look at too).
//!
//! What always holds: a group is under way at most once, except that a second holder may be asked for what a slow one owes
//! (`duplicate`), never more than two at once; bytes under way never exceed what `Allowance` gave; nobody is asked again after it sent wrong bytes; every
//! demand ends: its bytes come, or it fails within `Limits::no_progress` of the last byte that came.
//!
//! Not for: waking readers (the map and `flight` do that), the I/O itself (`super::core`).
mod assign;
mod duplicate;
pub mod holder;
#[cfg(test)]
mod simulation;

use super::ranges::{self, Ranges, clip, overlap, subtract};
use crate::record::NodeId;
pub use holder::Failure;
use holder::Holder;
use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

/// Time since the content was opened.
pub type Moment = Duration;
/// Names a request under way.
pub type RequestId = u64;
/// Names a demand.
pub type DemandId = u64;

/// Ranges wanted ahead that are kept; the oldest is forgotten.
const AHEAD_MAX: usize = 32;

/// How often those who found no memory look again, beside being told.
const STARVED_LOOK: Duration = Duration::from_millis(20);

/// What is here of the content.
pub trait BlockMap {
    /// What of `range` is missing, in whole groups (the last one ends at the size).
    fn missing(&self, range: Range<u64>) -> Ranges;
}

/// Whose need a request serves, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A reader waits.
    Waiting,
    /// A reader will come there soon.
    Ahead,
    /// The whole content is wanted.
    Whole,
}

/// The node's memory for bytes under way.
pub trait Allowance {
    /// Takes `bytes`, or says that there is no room now.
    fn take(&mut self, class: Class, bytes: u64) -> bool;
    /// Gives back what was taken.
    fn give_back(&mut self, bytes: u64);
}

/// Bounds of the schedule.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests to one holder that nobody waits for.
    pub bulk_requests_per_holder: usize,
    /// All requests to one holder.
    pub requests_per_holder: usize,
    /// A request is not split below this.
    pub request_bytes_min: u64,
    /// No request is longer.
    pub request_bytes_max: u64,
    /// Ranges in one request.
    pub ranges_per_request: usize,
    /// A reader waits so long for a holder that sends nothing before the next holder is asked too.
    pub hedge_after: Duration,
    /// A demand fails when nothing has arrived for so long.
    pub no_progress: Duration,
    /// A reader's demand fails after so long, whatever arrives.
    pub read_at_most: Duration,
    /// Connections to use to one holder.
    pub lanes: usize,
    /// Further connections are used once a holder has sent so much.
    pub lanes_after_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bulk_requests_per_holder: 4,
            requests_per_holder: 32,
            request_bytes_min: 512 * 1024,
            request_bytes_max: 4 * 1024 * 1024,
            ranges_per_request: 128,
            hedge_after: Duration::from_millis(300),
            no_progress: Duration::from_secs(8),
            read_at_most: Duration::from_secs(25),
            lanes: 1,
            lanes_after_bytes: 16 * 1024 * 1024,
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A reader waits for these bytes.
    Demand { id: DemandId, range: Range<u64> },
    /// Somebody waits for all of it.
    DemandWhole { id: DemandId },
    /// A demand is over: satisfied, failed or given up.
    Dropped { id: DemandId },
    /// These bytes will be read soon.
    Ahead(Range<u64>),
    /// Verified bytes of a request have been written and are in the map.
    Arrived {
        request: RequestId,
        range: Range<u64>,
    },
    /// A request ended well.
    Finished { request: RequestId },
    /// A request ended badly.
    Failed {
        request: RequestId,
        failure: Failure,
    },
    /// Who holds the content now: those not known yet are added.
    Holders(Vec<NodeId>),
    /// Time went by.
    Tick,
    /// Nobody has it open any more: everything under way ends.
    Closed,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask `holder` for these ranges.
    Send {
        request: RequestId,
        holder: NodeId,
        lane: usize,
        ranges: Ranges,
        class: Class,
    },
    /// Nobody needs the rest of this request.
    Cancel { request: RequestId },
    /// No holder can give what the demand waits for.
    Fail { demand: DemandId, stale: bool },
}

/// A request under way.
#[derive(Debug)]
struct Request {
    id: RequestId,
    holder: usize,
    class: Class,
    ranges: Ranges,
    bytes: u64,
    received: u64,
    /// Everything before it has arrived.
    position: u64,
    sent: Moment,
    last_arrival: Moment,
    /// Nothing else was under way to the holder: it tells the holder's latency.
    alone: bool,
    /// Some of it was asked of another holder, too.
    doubled: bool,
}

impl Request {
    fn left(&self) -> Ranges {
        clip(&self.ranges, &(self.position..u64::MAX))
    }
}

/// Somebody who waits.
#[derive(Debug)]
struct Demand {
    id: DemandId,
    range: Range<u64>,
    whole: bool,
    started: Moment,
    /// What of it is neither here nor under way (readers' demands only).
    unassigned: Ranges,
}

/// The schedule of one content.
#[derive(Debug)]
pub struct Plan {
    size: u64,
    limits: Limits,
    holders: Vec<Holder>,
    requests: Vec<Request>,
    demands: Vec<Demand>,
    ahead: VecDeque<Range<u64>>,
    /// Everything before it is here or under way, for the fetch of the whole.
    whole_from: u64,
    next_request: RequestId,
    last_arrival: Moment,
    starved: bool,
    last_tick: Moment,
}

impl Plan {
    /// A schedule for `size` bytes that `holders` have; the first is asked first while nothing is known of their speed.
    pub fn new(size: u64, holders: Vec<NodeId>, limits: Limits) -> Self {
        Self {
            size,
            limits,
            holders: holders.into_iter().map(Holder::new).collect(),
            requests: Vec::new(),
            demands: Vec::new(),
            ahead: VecDeque::new(),
            whole_from: 0,
            next_request: 1,
            last_arrival: Moment::ZERO,
            starved: false,
            last_tick: Moment::ZERO,
        }
    }

    /// One event in, what to do out.
    pub fn handle(
        &mut self,
        event: Event,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Arrived { request, range } => {
                self.arrived(request, range, now, map, allowance, &mut actions);
                return actions;
            }
            Event::Demand { id, range } => self.enter(id, range, now, map),
            Event::DemandWhole { id } => self.enter_whole(id, now),
            Event::Dropped { id } => self.demands.retain(|demand| demand.id != id),
            Event::Ahead(range) => self.want_ahead(range),
            Event::Finished { request } => self.finished(request, now, map, allowance),
            Event::Failed { request, failure } => {
                self.failed(request, failure, now, map, allowance, &mut actions);
            }
            Event::Holders(nodes) => self.add_holders(nodes),
            Event::Tick => {}
            Event::Closed => {
                self.close(allowance, &mut actions);
                return actions;
            }
        }
        self.starved = false;
        self.last_tick = now;
        self.assign(now, map, allowance, &mut actions);
        self.duplicate(now, map, allowance, &mut actions);
        self.give_up(now, map, &mut actions);
        actions
    }

    fn enter(&mut self, id: DemandId, range: Range<u64>, now: Moment, map: &dyn BlockMap) {
        let unassigned = self.not_under_way(map.missing(range.clone()));
        self.demands.push(Demand {
            id,
            range,
            whole: false,
            started: now,
            unassigned,
        });
    }

    fn enter_whole(&mut self, id: DemandId, now: Moment) {
        self.whole_from = 0;
        self.demands.push(Demand {
            id,
            range: 0..self.size,
            whole: true,
            started: now,
            unassigned: Vec::new(),
        });
    }

    fn want_ahead(&mut self, range: Range<u64>) {
        if let Some(last) = self.ahead.back_mut()
            && last.end == range.start
        {
            last.end = range.end;
            return;
        }
        if self.ahead.len() == AHEAD_MAX {
            self.ahead.pop_front();
        }
        self.ahead.push_back(range);
    }

    fn add_holders(&mut self, nodes: Vec<NodeId>) {
        for node in nodes {
            if !self.holders.iter().any(|holder| holder.node == node) {
                self.holders.push(Holder::new(node));
            }
        }
    }

    fn arrived(
        &mut self,
        request: RequestId,
        range: Range<u64>,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.requests.iter().position(|r| r.id == request) else {
            return;
        };
        let request = &mut self.requests[index];
        let bytes = (range.end - range.start).min(request.bytes - request.received);
        let waited = (request.alone && request.received == 0).then(|| now - request.sent);
        request.received += bytes;
        request.position = request.position.max(range.end);
        request.last_arrival = now;
        self.last_arrival = now;
        self.holders[request.holder].arrived(bytes, waited, now);
        if !self.requests[index].doubled {
            return;
        }
        self.cancel_needless(map, allowance, actions);
        if !actions.is_empty() {
            self.assign(now, map, allowance, actions);
        }
    }

    /// Doubled requests whose rest has come by the other way are ended.
    fn cancel_needless(
        &mut self,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
        actions: &mut Vec<Action>,
    ) {
        let needless: Vec<usize> = (0..self.requests.len())
            .rev()
            .filter(|&index| {
                let request = &self.requests[index];
                request.doubled
                    && request
                        .left()
                        .iter()
                        .all(|r| map.missing(r.clone()).is_empty())
                    && request.received < request.bytes
            })
            .collect();
        for index in needless {
            let request = self.remove(index, allowance);
            actions.push(Action::Cancel {
                request: request.id,
            });
        }
    }

    fn remove(&mut self, index: usize, allowance: &mut dyn Allowance) -> Request {
        let request = self.requests.swap_remove(index);
        allowance.give_back(request.bytes);
        if request.doubled {
            // Its twin stands alone again, and may be doubled anew.
            for other in &mut self.requests {
                if request
                    .ranges
                    .iter()
                    .any(|r| ranges::any_overlap(&other.ranges, r))
                {
                    other.doubled = false;
                }
            }
        }
        self.holders[request.holder].over(
            request.bytes - request.received,
            request.class != Class::Waiting,
        );
        request
    }

    fn close(&mut self, allowance: &mut dyn Allowance, actions: &mut Vec<Action>) {
        self.demands.clear();
        self.ahead.clear();
        while !self.requests.is_empty() {
            let request = self.remove(self.requests.len() - 1, allowance).id;
            actions.push(Action::Cancel { request });
        }
    }

    fn finished(
        &mut self,
        request: RequestId,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
    ) {
        let Some(index) = self.requests.iter().position(|r| r.id == request) else {
            return;
        };
        let request = self.remove(index, allowance);
        if request.received < request.bytes {
            let failure = Failure::Stalled("ended before all of it was sent".into());
            self.holders[request.holder].failed(failure, now);
        }
        self.reassign(&request.ranges, map);
    }

    fn failed(
        &mut self,
        request: RequestId,
        failure: Failure,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.requests.iter().position(|r| r.id == request) else {
            return;
        };
        let request = self.remove(index, allowance);
        // Nothing is brought ahead while it goes badly; who reads on says so.
        self.ahead.clear();
        let mut freed = request.ranges;
        if self.holders[request.holder].failed(failure, now) {
            // It is asked no more: what else it was asked for goes to others at once.
            for index in (0..self.requests.len()).rev() {
                if self.requests[index].holder == request.holder {
                    let other = self.remove(index, allowance);
                    actions.push(Action::Cancel { request: other.id });
                    freed.extend(other.ranges);
                }
            }
        }
        self.reassign(&ranges::union(freed), map);
    }

    /// Ranges that are not under way any more: whoever waits for what is missing of them gets it assigned anew.
    fn reassign(&mut self, freed: &[Range<u64>], map: &dyn BlockMap) {
        let Some(first) = freed.first() else { return };
        for index in 0..self.demands.len() {
            let demand = &self.demands[index];
            if demand.whole || !ranges::any_overlap(freed, &demand.range) {
                continue;
            }
            let missing = self.not_under_way(map.missing(demand.range.clone()));
            self.demands[index].unassigned = missing;
        }
        if freed.iter().any(|r| !map.missing(r.clone()).is_empty()) {
            self.whole_from = self.whole_from.min(first.start);
        }
    }

    fn not_under_way(&self, mut wanted: Ranges) -> Ranges {
        if wanted.is_empty() {
            return wanted;
        }
        for request in &self.requests {
            for range in &request.ranges {
                subtract(&mut wanted, range);
            }
        }
        wanted
    }

    fn give_up(&mut self, now: Moment, map: &dyn BlockMap, actions: &mut Vec<Action>) {
        if self.demands.is_empty() {
            return;
        }
        let hopeless = self.holders.iter().all(|holder| holder.is_hopeless(now));
        let stale = self.is_stale();
        // Who waits for memory that other contents hold is slow, not lost.
        let patient = self.starved && self.requests.is_empty();
        let failing: Vec<DemandId> = self
            .demands
            .iter()
            .filter(|demand| {
                let waits = now - demand.started.max(self.last_arrival).min(now);
                let late = (waits >= self.limits.no_progress && !patient)
                    || (!demand.whole && now - demand.started >= self.limits.read_at_most);
                (late || (hopeless && !self.is_under_way(&demand.range)))
                    && !map.missing(demand.range.clone()).is_empty()
            })
            .map(|demand| demand.id)
            .collect();
        for demand in failing {
            self.demands.retain(|d| d.id != demand);
            actions.push(Action::Fail { demand, stale });
        }
    }

    fn is_under_way(&self, range: &Range<u64>) -> bool {
        self.requests
            .iter()
            .any(|request| request.ranges.iter().any(|r| overlap(r, range)))
    }

    /// Nobody has this version any more, and somebody said so.
    fn is_stale(&self) -> bool {
        let gone = |holder: &Holder| {
            matches!(
                holder.last_failure,
                Some(Failure::Changed(_) | Failure::Refused(_))
            )
        };
        !self.holders.is_empty() && self.holders.iter().all(|holder| holder.out && gone(holder))
    }

    /// When time alone changes something for those who wait: call with `Tick` then. `None`: nobody waits.
    pub fn next_time(&self, now: Moment) -> Option<Moment> {
        let deadline = |demand: &Demand| {
            let quiet = demand.started.max(self.last_arrival) + self.limits.no_progress;
            if demand.whole {
                quiet
            } else {
                quiet.min(demand.started + self.limits.read_at_most)
            }
        };
        let mut next = self.demands.iter().map(deadline).min()?;
        for ready in self.holders.iter().filter_map(|h| h.ready_at(now)) {
            next = next.min(ready);
        }
        if self.holders.len() > 1 {
            next = next.min(self.last_tick + self.limits.hedge_after / 3);
        }
        if self.starved {
            next = next.min(self.last_tick + STARVED_LOOK);
        }
        Some(next.max(now + Duration::from_millis(1)))
    }

    /// Whether some request could not be sent for want of memory.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// What each holder said last.
    pub fn report(&self) -> Vec<(NodeId, String)> {
        self.holders
            .iter()
            .map(|holder| {
                let said = holder.last_failure.as_ref().map(Failure::text);
                (holder.node, said.unwrap_or("no answer").to_owned())
            })
            .collect()
    }

    /// Bytes asked for by requests under way.
    #[cfg(test)]
    pub fn bytes_under_way(&self) -> u64 {
        self.requests.iter().map(|request| request.bytes).sum()
    }
}
