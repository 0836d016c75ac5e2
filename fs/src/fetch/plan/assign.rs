//! Gives out what is wanted and not under way: to whom, and how much at once. Pure.
//!
//! With several holders, pieces get smaller as less is left, and smaller still for slower holders, so that all are done at about the same time.
use super::{Action, Allowance, BlockMap, Class, Moment, Plan, Request};
use crate::fetch::ranges::{Ranges, first, subtract, total, union};
use ks_transport::blocks::GROUP_BYTES;
use std::ops::Range;

/// How far the fetch of the whole looks for missing ranges in one step, bytes.
const WHOLE_LOOK_BYTES: u64 = 64 * 1024 * 1024;
/// With this few free requests left to a holder, several readers' ranges share one.
const SHARE_BELOW: usize = 4;
/// A slow holder still gets at least this share of the fastest one's pieces.
const SHARE_MIN: f64 = 0.125;

impl Plan {
    pub(super) fn assign(
        &mut self,
        now: Moment,
        map: &dyn BlockMap,
        allowance: &mut dyn Allowance,
        actions: &mut Vec<Action>,
    ) {
        for class in [Class::Waiting, Class::Ahead, Class::Whole] {
            while (0..self.holders.len()).any(|index| self.has_room(index, class, now)) {
                let wanted = self.wanted(class, map);
                if wanted.is_empty() {
                    break;
                }
                let Some(holder) = self.pick(class, &wanted, now) else {
                    break;
                };
                let wanted = self.shared(class, wanted, holder);
                let bytes = self.piece(class, total(&wanted), holder, now);
                let Some(piece) = self.afford(class, &wanted, bytes, allowance) else {
                    self.starved = true;
                    return;
                };
                if class == Class::Ahead {
                    self.ahead_given_out(&piece);
                }
                self.send(holder, class, piece, now, actions);
            }
        }
    }

    /// As much of the piece as there is memory for now.
    fn afford(
        &self,
        class: Class,
        wanted: &[Range<u64>],
        bytes: u64,
        allowance: &mut dyn Allowance,
    ) -> Option<Ranges> {
        let mut bytes = bytes;
        loop {
            let piece = first(wanted, bytes, self.limits.ranges_per_request);
            if allowance.take(class, total(&piece)) {
                return Some(piece);
            }
            if bytes <= GROUP_BYTES {
                return None;
            }
            bytes /= 4;
        }
    }

    /// What is wanted ahead is asked for once: where that fails, the reader will say so itself.
    fn ahead_given_out(&mut self, piece: &[Range<u64>]) {
        if let (Some(front), Some(last)) = (self.ahead.front_mut(), piece.last()) {
            front.start = last.end;
            if front.is_empty() {
                self.ahead.pop_front();
            }
        }
    }

    /// The next ranges of a class to be given out.
    fn wanted(&mut self, class: Class, map: &dyn BlockMap) -> Ranges {
        match class {
            Class::Waiting => self
                .demands
                .iter()
                .find(|demand| !demand.unassigned.is_empty())
                .map(|demand| demand.unassigned.clone())
                .unwrap_or_default(),
            Class::Ahead => self.wanted_ahead(map),
            Class::Whole => self.wanted_whole(map),
        }
    }

    fn wanted_ahead(&mut self, map: &dyn BlockMap) -> Ranges {
        while let Some(range) = self.ahead.front() {
            let wanted = self.not_under_way(map.missing(range.clone()));
            if !wanted.is_empty() {
                return wanted;
            }
            self.ahead.pop_front();
        }
        Vec::new()
    }

    fn wanted_whole(&mut self, map: &dyn BlockMap) -> Ranges {
        if !self.demands.iter().any(|demand| demand.whole) {
            return Vec::new();
        }
        while self.whole_from < self.size {
            let look = self.whole_from..(self.whole_from + WHOLE_LOOK_BYTES).min(self.size);
            let wanted = self.not_under_way(map.missing(look.clone()));
            if !wanted.is_empty() {
                return wanted;
            }
            self.whole_from = look.end;
        }
        Vec::new()
    }

    /// Where few requests are left to a holder, the ranges of all who wait go into one.
    fn shared(&self, class: Class, wanted: Ranges, holder: usize) -> Ranges {
        let free = self.limits.requests_per_holder - self.holders[holder].requests;
        if class != Class::Waiting || free > SHARE_BELOW {
            return wanted;
        }
        let all = self.demands.iter().flat_map(|d| d.unassigned.clone());
        union(all.collect())
    }

    /// The holder that would be done first.
    fn pick(&self, class: Class, wanted: &[Range<u64>], now: Moment) -> Option<usize> {
        let bytes = total(wanted).min(self.limits.request_bytes_max);
        (0..self.holders.len())
            .filter(|&index| self.has_room(index, class, now))
            .min_by(|&one, &other| {
                let time = |index: usize| self.holders[index].time_for(bytes, now);
                time(one).total_cmp(&time(other))
            })
    }

    pub(super) fn has_room(&self, index: usize, class: Class, now: Moment) -> bool {
        let holder = &self.holders[index];
        holder.is_ready(now)
            && holder.requests < self.limits.requests_per_holder
            && (class == Class::Waiting
                || holder.bulk_requests < self.limits.bulk_requests_per_holder)
    }

    /// How much of `wanted` bytes the holder gets at once.
    fn piece(&self, class: Class, wanted: u64, holder: usize, now: Moment) -> u64 {
        let ready = self.holders.iter().filter(|h| h.is_ready(now)).count() as u64;
        let limits = &self.limits;
        if ready <= 1 {
            return match class {
                Class::Waiting | Class::Whole => limits.request_bytes_max,
                // Two under way hide the time between a request and its answer.
                Class::Ahead => limits.request_bytes_max / 2,
            };
        }
        let parts = if class == Class::Waiting {
            ready
        } else {
            2 * ready
        };
        let even = wanted.div_ceil(parts.max(1));
        let fastest = self
            .holders
            .iter()
            .filter(|h| h.is_ready(now))
            .map(|h| h.rate(now))
            .fold(1.0, f64::max);
        let share = (self.holders[holder].rate(now) / fastest).clamp(SHARE_MIN, 1.0);
        ((even as f64 * share) as u64).clamp(
            (limits.request_bytes_min as f64 * share) as u64,
            limits.request_bytes_max,
        )
    }

    pub(super) fn send(
        &mut self,
        holder: usize,
        class: Class,
        piece: Ranges,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        for demand in &mut self.demands {
            for range in &piece {
                subtract(&mut demand.unassigned, range);
            }
        }
        let id = self.next_request;
        self.next_request += 1;
        let bytes = total(&piece);
        let lane = self.lane(holder, class, id);
        let to = &mut self.holders[holder];
        let alone = to.requests == 0;
        to.asked(bytes, class != Class::Waiting, now);
        actions.push(Action::Send {
            request: id,
            holder: to.node,
            lane,
            ranges: piece.clone(),
            class,
        });
        self.requests.push(Request {
            id,
            holder,
            class,
            position: piece.first().map_or(0, |range| range.start),
            ranges: piece,
            bytes,
            received: 0,
            sent: now,
            last_arrival: now,
            alone,
            doubled: false,
        });
    }

    /// Readers' requests and short transfers use one connection; a long transfer spreads.
    fn lane(&self, holder: usize, class: Class, id: u64) -> usize {
        let long = self.holders[holder].received >= self.limits.lanes_after_bytes;
        if long && class != Class::Waiting {
            (id % self.limits.lanes as u64) as usize
        } else {
            0
        }
    }

    /// Ranges that several requests have under way (tests look at it).
    #[cfg(test)]
    pub(super) fn under_way(&self) -> Vec<(Ranges, bool)> {
        self.requests
            .iter()
            .map(|request| (union(request.left()), request.doubled))
            .collect()
    }
}
