//! When to connect, wait or give up: pure. One for each lane.
use std::time::{Duration, Instant};

/// Back-off after the first failure; it doubles with each further one.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// The longest back-off.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A connection that is lost sooner than this counts as a failure.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Somebody wants the connection.
    Wanted,
    /// Somebody who paces his attempts himself is about to want it: back-off ends here.
    Urged,
    /// The attempt succeeded.
    Connected,
    /// The attempt failed.
    Failed,
    /// The connection ended.
    Lost,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Use the connection.
    Use,
    /// Start an attempt, and wait for it.
    Connect,
    /// Wait for the attempt under way.
    Wait,
    /// Fail with the last error: too soon to try again.
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Connecting,
    Ready { since: Instant },
    Backoff { until: Instant },
}

/// The state of one lane.
#[derive(Debug)]
pub(super) struct Link {
    phase: Phase,
    failures: u32,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            phase: Phase::Idle,
            failures: 0,
        }
    }
}

impl Link {
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Wanted => self.wanted(now),
            Event::Urged => {
                if let Phase::Backoff { .. } = self.phase {
                    self.phase = Phase::Idle;
                }
                Action::None
            }
            Event::Connected => {
                self.phase = Phase::Ready { since: now };
                Action::Use
            }
            Event::Failed => {
                self.back_off(now);
                Action::Fail
            }
            Event::Lost => {
                match self.phase {
                    Phase::Ready { since } if now.duration_since(since) >= STABLE_AFTER => {
                        self.failures = 0;
                        self.phase = Phase::Idle;
                    }
                    Phase::Ready { .. } => self.back_off(now),
                    Phase::Idle | Phase::Connecting | Phase::Backoff { .. } => {}
                }
                Action::None
            }
        }
    }

    fn wanted(&mut self, now: Instant) -> Action {
        match self.phase {
            Phase::Ready { .. } => Action::Use,
            Phase::Connecting => Action::Wait,
            Phase::Backoff { until } if now < until => Action::Fail,
            Phase::Idle | Phase::Backoff { .. } => {
                self.phase = Phase::Connecting;
                Action::Connect
            }
        }
    }

    fn back_off(&mut self, now: Instant) {
        let delay = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Backoff { until: now + delay };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn doubles_up_to_the_bound_and_starts_over() {
        let mut link = Link::default();
        let mut now = Instant::now();
        let mut delay = BACKOFF_MIN;
        for _ in 0..20 {
            assert_eq!(link.handle(Event::Wanted, now), Action::Connect);
            assert_eq!(link.handle(Event::Wanted, now), Action::Wait);
            assert_eq!(link.handle(Event::Failed, now), Action::Fail);
            let just_before = now + delay - Duration::from_millis(1);
            assert_eq!(link.handle(Event::Wanted, just_before), Action::Fail);
            now += delay;
            delay = (delay * 2).min(BACKOFF_MAX);
        }
        assert_eq!(link.handle(Event::Wanted, now), Action::Connect);
        assert_eq!(link.handle(Event::Connected, now), Action::Use);
        now += STABLE_AFTER;
        link.handle(Event::Lost, now);
        assert_eq!(link.handle(Event::Wanted, now), Action::Connect, "at once");
        link.handle(Event::Failed, now);
        now += BACKOFF_MIN;
        assert_eq!(
            link.handle(Event::Wanted, now),
            Action::Connect,
            "from the start"
        );
    }

    #[test]
    fn a_connection_that_ends_at_once_is_a_failure() {
        let mut link = Link::default();
        let now = Instant::now();
        link.handle(Event::Wanted, now);
        link.handle(Event::Connected, now);
        link.handle(Event::Lost, now);
        assert_eq!(link.handle(Event::Wanted, now), Action::Fail);
    }

    #[test]
    fn who_urges_does_not_wait_for_the_back_off() {
        let mut link = Link::default();
        let now = Instant::now();
        for _ in 0..5 {
            assert_eq!(link.handle(Event::Wanted, now), Action::Connect);
            link.handle(Event::Urged, now);
            assert_eq!(link.handle(Event::Wanted, now), Action::Wait, "still one");
            link.handle(Event::Failed, now);
            assert_eq!(link.handle(Event::Wanted, now), Action::Fail);
            link.handle(Event::Urged, now);
        }
        link.handle(Event::Wanted, now);
        link.handle(Event::Connected, now);
        link.handle(Event::Urged, now);
        assert_eq!(link.handle(Event::Wanted, now), Action::Use);
    }

    proptest! {
        /// Whatever happens in whatever order: never two attempts at once, and no wait beyond the bound.
        #[test]
        fn one_attempt_at_a_time(events in proptest::collection::vec((0u8..5, 0u64..3000), 0..200)) {
            let mut link = Link::default();
            let mut now = Instant::now();
            let mut connecting = false;
            for (event, pause_ms) in events {
                now += Duration::from_millis(pause_ms);
                let event = match event {
                    0 => Event::Wanted,
                    1 if connecting => Event::Connected,
                    2 if connecting => Event::Failed,
                    3 if !connecting => Event::Lost,
                    4 => Event::Urged,
                    _ => continue,
                };
                let action = link.handle(event, now);
                if action == Action::Connect {
                    prop_assert!(!connecting);
                    connecting = true;
                } else if matches!(event, Event::Connected | Event::Failed) {
                    connecting = false;
                }
                prop_assert_eq!(action == Action::Wait, connecting && matches!(event, Event::Wanted) && action != Action::Connect);
            }
            if !connecting {
                let action = link.handle(Event::Wanted, now + BACKOFF_MAX);
                prop_assert!(matches!(action, Action::Use | Action::Connect));
            }
        }
    }
}
