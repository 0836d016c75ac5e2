//! Requests that take long, and freeing their callers.
//!
//! The kernel lets a caller whose request we hold go only when we answer, whatever signal it got: a killed process would stay
//! in D state. FUSE_INTERRUPT would tell us, but fuser answers that itself (ENOSYS) and the kernel never asks again. So one
//! thread, awake only while there are such requests, looks at the signals of those that wait for longer than a moment
//! (`/proc/<tid>/status`) and answers EINTR for them. It is also the last deadline: nothing is held longer than
//! `DEADLINE`, but for who waits for a lock.
//!
//! The work behind an answered request runs on to its own end; what it got (a handle) is given back.
use crate::{error::FsError, record::Ino};
use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

/// No request is held longer.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// What takes less is not looked at.
const A_MOMENT: Duration = Duration::from_millis(100);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The thread sleeps for good after so many looks that found nothing to look at.
const IDLE_LOOKS: u32 = 40;

/// How a request is answered before its work is done.
pub(super) type Cancel = Box<dyn FnOnce(FsError) + Send>;

/// A request that is held.
pub(super) struct Held {
    pub(super) operation: &'static str,
    pub(super) ino: Ino,
    /// The thread that waits; 0: none that we can see.
    pub(super) pid: u32,
    pub(super) since: Instant,
    /// It waits for a lock, for as long as its caller does.
    pub(super) patient: bool,
    pub(super) cancel: Cancel,
}

#[derive(Default)]
struct State {
    next: u64,
    held: HashMap<u64, Held>,
    asleep: bool,
    ended: bool,
}

/// All requests that are held. Their number is bounded by the kernel: one for each thread that waits, and `max_background`.
#[derive(Default)]
pub(super) struct Requests {
    state: Mutex<State>,
    wake: Condvar,
}

impl Requests {
    pub(super) fn start() -> std::io::Result<Arc<Self>> {
        let requests = Arc::new(Self::default());
        let watched = requests.clone();
        std::thread::Builder::new()
            .name("ks-interrupt".into())
            .spawn(move || watched.watch())?;
        Ok(requests)
    }

    pub(super) fn end(&self) {
        self.state.lock().unwrap().ended = true;
        self.wake.notify_all();
    }

    pub(super) fn hold(&self, held: Held) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let number = state.next;
        state.held.insert(number, held);
        if state.asleep {
            self.wake.notify_one();
        }
        number
    }

    pub(super) fn done(&self, number: u64) {
        self.state.lock().unwrap().held.remove(&number);
    }

    fn watch(&self) {
        let mut idle_looks = 0;
        loop {
            let mut state = self.state.lock().unwrap();
            if idle_looks >= IDLE_LOOKS {
                state.asleep = true;
                let idle = |state: &mut State| state.held.is_empty() && !state.ended;
                state = self.wake.wait_while(state, idle).unwrap();
                state.asleep = false;
            }
            if state.ended {
                return;
            }
            idle_looks = match state.held.is_empty() {
                true => idle_looks + 1,
                false => 0,
            };
            let freed = take_freed(&mut state, Instant::now());
            drop(state);
            for (held, error) in freed {
                (held.cancel)(error);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Those whose caller wants to go, and those over the deadline.
fn take_freed(state: &mut State, now: Instant) -> Vec<(Held, FsError)> {
    let mut freed = Vec::new();
    let numbers: Vec<u64> = state.held.keys().copied().collect();
    for number in numbers {
        let Some(held) = state.held.get(&number) else {
            continue;
        };
        let age = now.saturating_duration_since(held.since);
        let over = age >= DEADLINE && !held.patient;
        let interrupted = age >= A_MOMENT && held.pid != 0 && caller_wants_to_go(held.pid);
        if !over && !interrupted {
            continue;
        }
        let Some(held) = state.held.remove(&number) else {
            continue;
        };
        if over {
            tracing::warn!(
                operation = held.operation,
                ino = held.ino,
                "gave up after {DEADLINE:?}"
            );
        }
        let errno = if over { libc::ETIMEDOUT } else { libc::EINTR };
        freed.push((held, FsError::Io(std::io::Error::from_raw_os_error(errno))));
    }
    freed
}

fn caller_wants_to_go(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => is_leaving(&status),
        // Gone already (a reader of another thread's read-ahead).
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals that do nothing, or stop, by default: no reason to fail a read.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU);

/// Signals that mean "stop waiting" also when the program handles them. Others that are handled (timers, children, profilers)
/// do not interrupt: programs do not expect EINTR from files.
const ASKED_TO_STOP: u64 = bit(libc::SIGHUP)
    | bit(libc::SIGINT)
    | bit(libc::SIGQUIT)
    | bit(libc::SIGALRM)
    | bit(libc::SIGTERM);

/// Whether a task with this `/proc/<tid>/status` wants its system call to end.
fn is_leaving(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    if matches!(
        field("State:").and_then(|state| state.chars().next()),
        Some('Z' | 'X')
    ) {
        return true;
    }
    let mask = |name| field(name).and_then(|text| u64::from_str_radix(text, 16).ok());
    let (Some(own), Some(shared)) = (mask("SigPnd:"), mask("ShdPnd:")) else {
        return false;
    };
    let blocked = mask("SigBlk:").unwrap_or(0);
    let caught = mask("SigCgt:").unwrap_or(0);
    let pending = (own | shared) & !blocked;
    let deadly = pending & !caught & !HARMLESS;
    let asked = pending & caught & ASKED_TO_STOP;
    deadly | asked != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, caught: u64) -> String {
        format!(
            "Name:\tcat\nState:\tD (disk sleep)\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn a_task_leaves_for_deadly_signals_and_for_those_that_ask_it_to_stop() {
        let (kill, int, prof, child) = (
            bit(libc::SIGKILL),
            bit(libc::SIGINT),
            bit(libc::SIGPROF),
            bit(libc::SIGCHLD),
        );
        assert!(!is_leaving(&status(0, 0, 0, 0)));
        assert!(is_leaving(&status(kill, 0, 0, 0)));
        assert!(is_leaving(&status(0, int, 0, 0)));
        assert!(is_leaving(&status(0, int, 0, int)), "python handles SIGINT");
        assert!(!is_leaving(&status(0, int, int, 0)), "blocked");
        assert!(!is_leaving(&status(0, prof, 0, prof)), "a profiler's timer");
        assert!(is_leaving(&status(0, prof, 0, 0)));
        assert!(!is_leaving(&status(0, child, 0, 0)));
        assert!(!is_leaving(&status(0, bit(libc::SIGTSTP), 0, 0)));
        assert!(is_leaving("State:\tZ (zombie)\n"));
        assert!(!is_leaving("nonsense"));
    }

    #[test]
    fn the_deadline_frees_a_request_and_an_unfinished_young_one_stays() {
        let mut state = State::default();
        let now = Instant::now();
        for (number, age) in [(1, DEADLINE), (2, Duration::ZERO)] {
            let held = Held {
                operation: "read",
                ino: 7,
                pid: 0,
                since: now - age,
                patient: false,
                cancel: Box::new(|_| {}),
            };
            state.held.insert(number, held);
        }
        let freed = take_freed(&mut state, now);
        assert_eq!(freed.len(), 1);
        assert_eq!(freed[0].1.to_errno(), libc::ETIMEDOUT);
        assert!(state.held.contains_key(&2));
    }
}
