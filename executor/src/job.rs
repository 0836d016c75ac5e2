//! The life of a call on the node that claimed it: waits for a worker, runs, and ends once.
//!
//! Pure: `handle(event, now)` says what is to be done, the service does it. What always holds: exactly one `Action::End`
//! whatever comes in whatever order; a call that is told to stop is killed `STOP_STEP_MS * 2` later at the latest.
//!
//! The record in Redis (`queue`) is what makes the end the only one across nodes; this is the end as seen here.

/// Between SIGINT and SIGTERM, and between SIGTERM and SIGKILL.
pub const STOP_STEP_MS: u64 = 2_000;
/// The same after SIGINT for a call that does not let its interpreter hear of it (it holds the GIL, or blocks in C code): it would
/// not clean up in more time either.
pub const DEAF_MS: u64 = 500;

/// Where a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed; no worker has it yet.
    Waiting,
    /// A worker runs it.
    Running {
        /// When its time is up (ms of the same clock as `now`).
        deadline_ms: Option<u64>,
    },
    /// Told to stop; the worker has not answered and lives.
    Stopping {
        /// Why.
        reason: StopReason,
        /// The last signal that was sent.
        sent: StopSignal,
        /// When the next is due; `None` after the last.
        next_ms: Option<u64>,
        /// Its interpreter has heard of SIGINT.
        heard: bool,
    },
    /// Over.
    Ended,
}

/// Why a running call is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its caller, or somebody with the right, said so.
    Cancelled,
    /// It ran longer than `_timeout`.
    TimedOut,
    /// Its worker grew beyond the limit.
    OverMemory,
    /// The claim went to another node (this one was thought dead).
    Withdrawn,
}

/// Signals to the worker's process group, the milder first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopSignal {
    /// SIGINT: KeyboardInterrupt in the call.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGKILL.
    Kill,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A worker was given it.
    Started,
    /// The worker answered: it returned or raised.
    Answered,
    /// The worker's process is gone.
    WorkerDied,
    /// Somebody cancels it.
    CancelAsked,
    /// Its worker takes more memory than it may.
    OverMemory,
    /// It is not this node's any more.
    Withdrawn,
    /// Time has passed.
    Tick,
    /// Time has passed, and the worker's interpreter has heard of SIGINT by now.
    TickHeard,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the worker's process group.
    Signal(StopSignal),
    /// Send `Event::Tick` at that time.
    WakeAt(u64),
    /// It is over, like this.
    End(Ending),
}

/// How a call is over on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As the worker answered.
    AsAnswered,
    /// Its worker died under it.
    Crashed,
    /// Stopped on request.
    Cancelled,
    /// Stopped by its time limit.
    TimedOut,
    /// Stopped as its worker grew beyond the limit.
    OverMemory,
    /// Not ours to end: nothing is told, nothing recorded.
    Withdrawn,
}

impl From<StopReason> for Ending {
    fn from(reason: StopReason) -> Self {
        match reason {
            StopReason::Cancelled => Ending::Cancelled,
            StopReason::TimedOut => Ending::TimedOut,
            StopReason::OverMemory => Ending::OverMemory,
            StopReason::Withdrawn => Ending::Withdrawn,
        }
    }
}

/// One call's life.
#[derive(Clone, Debug)]
pub struct Life {
    state: State,
    timeout_ms: Option<u64>,
}

impl Life {
    /// Of a call that was just claimed.
    pub fn new(timeout_ms: Option<u64>) -> Self {
        Self {
            state: State::Waiting,
            timeout_ms,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// What follows from an event. `now_ms`: any clock that only goes forward.
    pub fn handle(&mut self, event: Event, now_ms: u64) -> Vec<Action> {
        match (self.state, event) {
            (State::Ended, _) => Vec::new(),
            (State::Waiting, Event::Started) => self.start(now_ms),
            (State::Waiting, Event::CancelAsked) => self.end(Ending::Cancelled),
            (State::Waiting, Event::Withdrawn) => self.end(Ending::Withdrawn),
            (State::Waiting, _) => Vec::new(),
            (State::Running { .. }, Event::Answered) => self.end(Ending::AsAnswered),
            (State::Running { .. }, Event::WorkerDied) => self.end(Ending::Crashed),
            (State::Running { .. }, Event::CancelAsked) => {
                self.stop(StopReason::Cancelled, StopSignal::Interrupt, now_ms)
            }
            (State::Running { .. }, Event::OverMemory) => {
                self.stop(StopReason::OverMemory, StopSignal::Kill, now_ms)
            }
            (State::Running { .. } | State::Stopping { .. }, Event::Withdrawn) => {
                self.stop(StopReason::Withdrawn, StopSignal::Kill, now_ms)
            }
            (State::Running { deadline_ms }, Event::Tick | Event::TickHeard) => match deadline_ms {
                Some(deadline) if deadline <= now_ms => {
                    self.stop(StopReason::TimedOut, StopSignal::Interrupt, now_ms)
                }
                Some(deadline) => vec![Action::WakeAt(deadline)],
                None => Vec::new(),
            },
            (State::Stopping { reason, .. }, Event::Answered | Event::WorkerDied) => {
                self.end(reason.into())
            }
            (State::Stopping { .. }, Event::Tick) => self.insist(now_ms),
            (State::Stopping { .. }, Event::TickHeard) => self.wait_or_insist(now_ms),
            (State::Running { .. } | State::Stopping { .. }, _) => Vec::new(),
        }
    }

    fn start(&mut self, now_ms: u64) -> Vec<Action> {
        let deadline_ms = self
            .timeout_ms
            .map(|timeout| now_ms.saturating_add(timeout));
        self.state = State::Running { deadline_ms };
        deadline_ms.map(Action::WakeAt).into_iter().collect()
    }

    fn stop(&mut self, reason: StopReason, signal: StopSignal, now_ms: u64) -> Vec<Action> {
        let next_ms = match signal {
            StopSignal::Interrupt => Some(now_ms + DEAF_MS),
            StopSignal::Terminate => Some(now_ms + STOP_STEP_MS),
            StopSignal::Kill => None,
        };
        self.state = State::Stopping {
            reason,
            sent: signal,
            next_ms,
            heard: false,
        };
        let mut actions = vec![Action::Signal(signal)];
        actions.extend(next_ms.map(Action::WakeAt));
        actions
    }

    /// What heard of SIGINT has the whole step to clean up.
    fn wait_or_insist(&mut self, now_ms: u64) -> Vec<Action> {
        match &mut self.state {
            State::Stopping {
                sent: StopSignal::Interrupt,
                next_ms: Some(next),
                heard: heard @ false,
                ..
            } if now_ms >= *next => {
                *heard = true;
                *next = now_ms + STOP_STEP_MS - DEAF_MS;
                vec![Action::WakeAt(*next)]
            }
            _ => self.insist(now_ms),
        }
    }

    /// The next signal, when it is due.
    fn insist(&mut self, now_ms: u64) -> Vec<Action> {
        let State::Stopping {
            reason,
            sent,
            next_ms: Some(next),
            ..
        } = self.state
        else {
            return Vec::new();
        };
        if now_ms < next {
            return vec![Action::WakeAt(next)];
        }
        match sent {
            StopSignal::Interrupt => self.stop(reason, StopSignal::Terminate, now_ms),
            StopSignal::Terminate | StopSignal::Kill => self.stop(reason, StopSignal::Kill, now_ms),
        }
    }

    fn end(&mut self, ending: Ending) -> Vec<Action> {
        self.state = State::Ended;
        vec![Action::End(ending)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            Just(Event::Answered),
            Just(Event::WorkerDied),
            Just(Event::CancelAsked),
            Just(Event::OverMemory),
            Just(Event::Withdrawn),
            Just(Event::Tick),
            Just(Event::TickHeard),
        ]
    }

    proptest! {
        #[test]
        fn it_ends_at_most_once_and_signals_only_grow(
            timeout in proptest::option::of(0u64..5_000),
            events in proptest::collection::vec((event(), 0u64..3_000), 0..40),
        ) {
            let mut life = Life::new(timeout);
            let (mut now, mut ends, mut strongest) = (0, 0, None);
            for (event, passed) in events {
                now += passed;
                for action in life.handle(event, now) {
                    match action {
                        Action::End(_) => ends += 1,
                        Action::Signal(signal) => {
                            prop_assert_eq!(ends, 0, "signalled after its end");
                            prop_assert!(Some(signal) >= strongest);
                            strongest = Some(signal);
                        }
                        Action::WakeAt(at) => prop_assert!(at >= now),
                    }
                }
                prop_assert!(ends <= 1);
                prop_assert_eq!(ends == 1, life.state() == State::Ended);
            }
        }

        /// Whatever came before, a call whose cancelling was asked and whose wake-ups are kept is killed in time.
        #[test]
        fn a_cancelled_call_is_killed_in_time(
            timeout in proptest::option::of(0u64..10_000),
            before in 0u64..20_000,
            hears in any::<bool>(),
        ) {
            let tick = if hears { Event::TickHeard } else { Event::Tick };
            let mut life = Life::new(timeout);
            let mut wake = wake_of(&life.handle(Event::Started, 0));
            while let Some(at) = wake.filter(|&at| at <= before) {
                wake = wake_of(&life.handle(tick, at));
            }
            let asked = life.handle(Event::CancelAsked, before);
            wake = wake_of(&asked).or(wake);
            let mut signals = Vec::new();
            let mut now = before;
            while let Some(at) = wake {
                prop_assert!(at <= before + 2 * STOP_STEP_MS);
                now = now.max(at);
                let actions = life.handle(tick, now);
                signals.extend(actions.iter().copied().filter(|a| matches!(a, Action::Signal(_))));
                wake = wake_of(&actions);
            }
            let killed = matches!(life.state(), State::Stopping { sent: StopSignal::Kill, .. });
            prop_assert!(killed, "{:?} {signals:?}", life.state());
        }
    }

    fn wake_of(actions: &[Action]) -> Option<u64> {
        actions.iter().find_map(|action| match action {
            Action::WakeAt(at) => Some(*at),
            _ => None,
        })
    }

    #[test]
    fn a_waiting_call_is_cancelled_at_once() {
        let mut life = Life::new(None);
        assert_eq!(
            life.handle(Event::CancelAsked, 7),
            [Action::End(Ending::Cancelled)]
        );
        assert!(life.handle(Event::Started, 8).is_empty());
    }

    #[test]
    fn a_time_limit_ends_as_timed_out() {
        let mut life = Life::new(Some(100));
        assert_eq!(life.handle(Event::Started, 0), [Action::WakeAt(100)]);
        assert_eq!(life.handle(Event::Tick, 99), [Action::WakeAt(100)]);
        assert_eq!(
            life.handle(Event::Tick, 100)[0],
            Action::Signal(StopSignal::Interrupt)
        );
        assert_eq!(
            life.handle(Event::Answered, 101),
            [Action::End(Ending::TimedOut)]
        );
    }

    #[test]
    fn what_does_not_hear_is_terminated_soon_and_what_hears_has_time_to_clean_up() {
        let terminated_at = |tick: Event| {
            let mut life = Life::new(None);
            life.handle(Event::Started, 0);
            let mut wake = wake_of(&life.handle(Event::CancelAsked, 100)).unwrap();
            loop {
                let actions = life.handle(tick, wake);
                if actions.contains(&Action::Signal(StopSignal::Terminate)) {
                    return wake;
                }
                wake = wake_of(&actions).unwrap();
            }
        };
        assert_eq!(terminated_at(Event::Tick), 100 + DEAF_MS);
        assert_eq!(terminated_at(Event::TickHeard), 100 + STOP_STEP_MS);
    }
}
