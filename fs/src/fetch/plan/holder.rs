//! What the plan knows of one holder: how fast it is, how often it failed in a row, until when it is left alone. Pure.
use super::Moment;
use crate::record::NodeId;
use std::time::Duration;

/// Failures in a row after which a holder counts as gone for those who wait now.
pub const FAILURES_GIVE_UP: u32 = 5;
/// First pause after a failure; doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
/// Longest pause after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A holder that is known to be away is left alone for so long.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// What is assumed of a holder that has not been measured, bytes a second: enough that everyone is tried.
const RATE_ASSUMED: f64 = 400e6;
/// What is assumed of the time to the first byte before it was measured.
const LATENCY_ASSUMED: Duration = Duration::from_millis(1);
/// Throughput is measured over stretches of at least this time.
const MEASURE: Duration = Duration::from_millis(20);

/// How a request to a holder ended badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Not reachable, or the connection was lost.
    Gone(String),
    /// Known to be away: nobody counts on it, until it is asked again and answers.
    Away(String),
    /// Sent nothing for too long.
    Stalled(String),
    /// Has no time now.
    Busy(String),
    /// Does not hold the content, or cannot read it.
    Refused(String),
    /// Holds another version.
    Changed(String),
    /// Sent bytes that do not match the hash. Never asked again.
    Corrupt(String),
    /// Our own disk or memory: not the holder's fault.
    Local(String),
}

impl Failure {
    /// The text for people.
    pub fn text(&self) -> &str {
        match self {
            Failure::Gone(text)
            | Failure::Away(text)
            | Failure::Stalled(text)
            | Failure::Busy(text)
            | Failure::Refused(text)
            | Failure::Changed(text)
            | Failure::Corrupt(text)
            | Failure::Local(text) => text,
        }
    }
}

/// One holder.
#[derive(Debug)]
pub struct Holder {
    /// Which node it is.
    pub node: NodeId,
    /// Bytes asked for and not yet arrived.
    pub in_flight_bytes: u64,
    /// Requests under way.
    pub requests: usize,
    /// Those of them that no reader waits for.
    pub bulk_requests: usize,
    /// Bytes that came from it so far.
    pub received: u64,
    /// Asked no more for this content: it lies, has another version, or nothing.
    pub out: bool,
    /// The last thing that went wrong.
    pub last_failure: Option<Failure>,
    consecutive_failures: u32,
    suspended_until: Moment,
    latency: Duration,
    rate: Option<f64>,
    measured_from: Moment,
    measured_bytes: u64,
}

impl Holder {
    /// A holder nothing is known of.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            in_flight_bytes: 0,
            requests: 0,
            bulk_requests: 0,
            received: 0,
            out: false,
            last_failure: None,
            consecutive_failures: 0,
            suspended_until: Moment::ZERO,
            latency: LATENCY_ASSUMED,
            rate: None,
            measured_from: Moment::ZERO,
            measured_bytes: 0,
        }
    }

    /// Whether it may be asked now.
    pub fn is_ready(&self, now: Moment) -> bool {
        !self.out && self.suspended_until <= now
    }

    /// Whether those who wait now should not count on it.
    pub fn is_hopeless(&self, now: Moment) -> bool {
        self.out || (self.consecutive_failures >= FAILURES_GIVE_UP && self.suspended_until > now)
    }

    /// When it may be asked again, if it is only suspended.
    pub fn ready_at(&self, now: Moment) -> Option<Moment> {
        (!self.out && self.suspended_until > now).then_some(self.suspended_until)
    }

    /// A request leaves for it.
    pub fn asked(&mut self, bytes: u64, bulk: bool, now: Moment) {
        if self.requests == 0 {
            self.measured_from = now;
            self.measured_bytes = 0;
        }
        self.requests += 1;
        self.bulk_requests += usize::from(bulk);
        self.in_flight_bytes += bytes;
    }

    /// A request is over, with `left` bytes of it not arrived.
    pub fn over(&mut self, left: u64, bulk: bool) {
        self.requests -= 1;
        self.bulk_requests -= usize::from(bulk);
        self.in_flight_bytes -= left;
    }

    /// Bytes came; `waited` is the time to the first byte where nothing else was under way.
    pub fn arrived(&mut self, bytes: u64, waited: Option<Duration>, now: Moment) {
        self.in_flight_bytes -= bytes;
        self.received += bytes;
        self.consecutive_failures = 0;
        if let Some(waited) = waited {
            self.latency = (self.latency * 3 + waited) / 4;
        }
        self.measured_bytes += bytes;
        let elapsed = now.saturating_sub(self.measured_from);
        if elapsed >= MEASURE {
            let rate = self.measured_bytes as f64 / elapsed.as_secs_f64();
            self.rate = Some(self.rate.map_or(rate, |old| old * 0.5 + rate * 0.5));
            self.measured_from = now;
            self.measured_bytes = 0;
        }
    }

    /// It failed: left alone for a while, or for good. `true`: it became `out` just now.
    pub fn failed(&mut self, failure: Failure, now: Moment) -> bool {
        let was_out = self.out;
        match failure {
            Failure::Local(_) => return false,
            Failure::Corrupt(_) | Failure::Changed(_) | Failure::Refused(_) => self.out = true,
            Failure::Busy(_) => self.suspend(now),
            Failure::Away(_) => {
                self.consecutive_failures = self.consecutive_failures.max(FAILURES_GIVE_UP);
                self.suspended_until = self.suspended_until.max(now + AWAY_PAUSE);
            }
            Failure::Gone(_) | Failure::Stalled(_) => {
                // Requests that fail together are one failure.
                if self.suspended_until <= now {
                    self.consecutive_failures += 1;
                    self.suspend(now);
                }
            }
        }
        self.last_failure = Some(failure);
        self.out && !was_out
    }

    fn suspend(&mut self, now: Moment) {
        let doublings = self.consecutive_failures.saturating_sub(1).min(8);
        let pause = (BACKOFF_FIRST * 2u32.pow(doublings)).min(BACKOFF_MAX);
        self.suspended_until = now + pause;
    }

    /// It lets a reader wait: others are preferred until it shows otherwise.
    pub fn was_slow(&mut self, waited: Duration) {
        self.latency = self.latency.max(waited);
    }

    /// Bytes a second, as far as is known; a holder that owes bytes and sends none gets slower as time goes.
    pub fn rate(&self, now: Moment) -> f64 {
        let known = self.rate.unwrap_or(RATE_ASSUMED);
        let elapsed = now.saturating_sub(self.measured_from);
        if self.in_flight_bytes == 0 || elapsed < 5 * MEASURE {
            return known;
        }
        let current = (self.measured_bytes + 1) as f64 / elapsed.as_secs_f64();
        known.min(current)
    }

    /// When `bytes` more would have come from it.
    pub fn time_for(&self, bytes: u64, now: Moment) -> f64 {
        self.latency.as_secs_f64() + (self.in_flight_bytes + bytes) as f64 / self.rate(now)
    }
}
