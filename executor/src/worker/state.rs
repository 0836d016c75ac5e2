//! The states of a worker process, and when one that died is replaced.
//!
//! Pure. What always holds: a worker has at most one call; a call is given only to a worker that said it is ready; after
//! it died, or was told to leave, it is never given another.

/// Workers that die before they were ready, one after the other, until calls are refused with the reason.
pub const START_FAILURES_MAX: u32 = 3;
/// The wait after a start that failed; it doubles up to the next constant.
pub const RESTART_WAIT_FIRST_MS: u64 = 200;
/// The longest wait between two starts.
pub const RESTART_WAIT_MAX_MS: u64 = 30_000;

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Started; has not said that it is ready.
    Starting,
    /// Waits for a call.
    Idle,
    /// Runs one.
    Busy,
    /// Told to leave; runs nothing any more.
    Leaving,
    /// Its process has been reaped.
    Gone,
}

/// What happens to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It said that it is ready.
    Ready,
    /// It is given a call.
    Assigned,
    /// It answered its call.
    Answered,
    /// It shall leave once it is idle (now, if it is).
    Retire,
    /// Its process is gone.
    Exited,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Fine,
    /// It died before it was ready.
    FailedToStart,
    /// It died under its call.
    LostItsCall,
    /// It may be told to leave.
    MayLeave,
    /// It does not fit its state: what a confused process says. It is to be killed.
    Nonsense,
}

/// One worker's state.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    state: State,
    retiring: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            state: State::Starting,
            retiring: false,
        }
    }
}

impl Machine {
    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What follows from an event.
    pub fn handle(&mut self, event: Event) -> Outcome {
        let (next, outcome) = match (self.state, event) {
            (State::Gone, _) => (State::Gone, Outcome::Fine),
            (State::Starting, Event::Exited) => (State::Gone, Outcome::FailedToStart),
            (State::Busy, Event::Exited) => (State::Gone, Outcome::LostItsCall),
            (_, Event::Exited) => (State::Gone, Outcome::Fine),
            (State::Idle, Event::Retire) => (State::Leaving, Outcome::MayLeave),
            (State::Leaving, Event::Retire) => (State::Leaving, Outcome::Fine),
            (State::Starting | State::Busy, Event::Retire) => {
                self.retiring = true;
                (self.state, Outcome::Fine)
            }
            (State::Starting, Event::Ready) | (State::Busy, Event::Answered) if self.retiring => {
                (State::Leaving, Outcome::MayLeave)
            }
            (State::Starting, Event::Ready) | (State::Busy, Event::Answered) => {
                (State::Idle, Outcome::Fine)
            }
            (State::Idle, Event::Assigned) => (State::Busy, Outcome::Fine),
            (state, Event::Ready | Event::Answered | Event::Assigned) => (state, Outcome::Nonsense),
        };
        self.state = next;
        outcome
    }
}

/// When an interpreter whose workers die at start is tried again.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    failures: u32,
    not_before_ms: u64,
    reason: String,
}

impl Restarts {
    /// A worker became ready.
    pub fn started(&mut self) {
        *self = Self::default();
    }

    /// One died before it was ready.
    pub fn failed(&mut self, reason: String, now_ms: u64) {
        let wait = RESTART_WAIT_FIRST_MS << self.failures.min(10);
        self.failures += 1;
        self.not_before_ms = now_ms + wait.min(RESTART_WAIT_MAX_MS);
        self.reason = reason;
    }

    /// How long to wait before the next start.
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        self.not_before_ms.saturating_sub(now_ms)
    }

    /// Whether the last start failed.
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Why calls cannot be run, when it failed too often.
    pub fn hopeless(&self) -> Option<&str> {
        (self.failures >= START_FAILURES_MAX).then_some(&self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Ready),
            Just(Event::Assigned),
            Just(Event::Answered),
            Just(Event::Retire),
            Just(Event::Exited),
        ]
    }

    proptest! {
        #[test]
        fn calls_given_are_answered_or_lost(events in proptest::collection::vec(event(), 0..60)) {
            let mut machine = Machine::default();
            let (mut calls, mut left) = (0, 0);
            for event in events {
                let before = machine.state();
                let outcome = machine.handle(event);
                if outcome == Outcome::Nonsense {
                    prop_assert_eq!(machine.state(), before);
                    continue;
                }
                match event {
                    Event::Assigned if before != State::Gone => {
                        prop_assert_eq!(before, State::Idle);
                        calls += 1;
                    }
                    Event::Answered if before != State::Gone => calls -= 1,
                    Event::Exited if outcome == Outcome::LostItsCall => calls -= 1,
                    _ => {}
                }
                if outcome == Outcome::MayLeave {
                    left += 1;
                }
                prop_assert!(left <= 1);
                prop_assert_eq!(calls == 1, machine.state() == State::Busy);
            }
        }
    }

    #[test]
    fn starts_that_fail_back_off_and_give_a_reason() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.wait_ms(0), 0);
        let mut now = 0;
        for _ in 0..START_FAILURES_MAX {
            assert!(restarts.hopeless().is_none());
            restarts.failed("no module".into(), now);
            now += restarts.wait_ms(now);
        }
        assert_eq!(now, 200 + 400 + 800);
        assert_eq!(restarts.hopeless(), Some("no module"));
        for _ in 0..40 {
            restarts.failed("no module".into(), now);
        }
        assert_eq!(restarts.wait_ms(now), RESTART_WAIT_MAX_MS);
        restarts.started();
        assert!(restarts.hopeless().is_none());
    }
}
