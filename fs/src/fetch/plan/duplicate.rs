//! Asks a second holder for what a slow one owes: for a reader whose holder sends nothing, and at the end of a long transfer when another holder
//! is idle and would be done much sooner. Pure.
use super::{Action, Allowance, BlockMap, Class, Moment, Plan};
use crate::fetch::ranges::{Ranges, clip, intersect, last, total};

/// A takeover must save at least this much, seconds.
const WORTH_SECONDS: f64 = 0.05;

impl Plan {
    pub(super) fn duplicate(
        &mut self,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
        actions: &mut Vec<Action>,
    ) {
        if self.holders.len() < 2 || self.demands.is_empty() {
            return;
        }
        for index in 0..self.requests.len() {
            if self.requests[index].doubled {
                continue;
            }
            let Some((holder, piece)) = self
                .hedge(index, now, map)
                .or_else(|| self.takeover(index, now, map))
            else {
                continue;
            };
            if piece.is_empty() || !allowance.take(Class::Waiting, total(&piece)) {
                continue;
            }
            self.requests[index].doubled = true;
            self.send(holder, Class::Waiting, piece, now, actions);
            if let Some(second) = self.requests.last_mut() {
                second.doubled = true;
            }
        }
    }

    /// A reader waits for a request that brings nothing: what it waits for is asked of the next holder.
    fn hedge(&mut self, index: usize, now: Moment, map: &dyn BlockMap) -> Option<(usize, Ranges)> {
        let request = &self.requests[index];
        let quiet = now - request.last_arrival;
        if quiet < self.limits.hedge_after {
            return None;
        }
        let left = request.left();
        let mut needed: Ranges = self
            .demands
            .iter()
            .filter(|demand| !demand.whole && now - demand.started >= self.limits.hedge_after)
            .flat_map(|demand| map.missing(demand.range.clone()))
            .collect();
        needed = intersect(&crate::fetch::ranges::union(needed), &left);
        if needed.is_empty() {
            return None;
        }
        let owes = request.holder;
        self.holders[owes].was_slow(quiet);
        let other = self.fastest_other(owes, now)?;
        Some((other, needed))
    }

    /// Nothing is left to give out and a holder is idle: it takes the tail of a request that would last much longer.
    fn takeover(&self, index: usize, now: Moment, map: &dyn BlockMap) -> Option<(usize, Ranges)> {
        let request = &self.requests[index];
        let waited_for = self
            .demands
            .iter()
            .any(|demand| !clip(&request.ranges, &demand.range).is_empty());
        if !waited_for || self.demands.iter().any(|d| !d.unassigned.is_empty()) {
            return None;
        }
        let other = self.fastest_other(request.holder, now)?;
        if self.holders[other].requests > 0 {
            return None;
        }
        let left: Ranges = request
            .left()
            .into_iter()
            .flat_map(|range| map.missing(range))
            .collect();
        let bytes = total(&left);
        let slow_rate = self.holders[request.holder].rate(now);
        let slow_seconds = self.holders[request.holder].time_for(0, now);
        let fast_seconds = self.holders[other].time_for(bytes, now);
        if slow_seconds < 2.0 * fast_seconds + WORTH_SECONDS {
            return None;
        }
        let fast_rate = self.holders[other].rate(now);
        let share = fast_rate / (fast_rate + slow_rate);
        Some((other, last(&left, (bytes as f64 * share) as u64)))
    }

    fn fastest_other(&self, not: usize, now: Moment) -> Option<usize> {
        (0..self.holders.len())
            .filter(|&index| index != not && self.has_room(index, Class::Waiting, now))
            .min_by(|&one, &other| {
                let time = |index: usize| self.holders[index].time_for(0, now);
                time(one).total_cmp(&time(other))
            })
    }
}
