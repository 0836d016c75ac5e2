//! Python workers: supervised processes that run one call at a time.
//!
//! Who takes part: the service gives calls (`Worker::run`) and is told what comes of them (`Supervisor`); one task a worker
//! reads its socket and pipes and waits for its end. What always holds: what a call wrote before it ended is told before
//! its end; an answer that was sent counts even if the process is dead by now; every worker that was started is told as
//! `exited` exactly once, its process reaped and its group killed by then.
//! Not for deciding what runs: that is `service`.
use crate::frames::{self, Decoder};
use crate::job::StopSignal;
use crate::outlet::Outlet;
use crate::protocol::{FromWorker, KeptFile, Outcome, ToWorker};
use bytes::Bytes;
use rustix::process::Signal;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub mod process;
pub mod state;
mod watch;

use state::{Event, Machine, State};

/// Functions that one worker is sent; then it is replaced, as it keeps them all.
pub const FUNCTIONS_MAX: usize = 4_096;
/// Bytes of a crashed worker's last words that are kept.
pub const STACK_BYTES_MAX: usize = 64 * 1024;
/// A process whose socket is closed and that does not end by itself is killed after this.
const EXIT_WAIT: Duration = Duration::from_millis(30);
/// What a worker exits with that finds its socket closed by the code that it runs (`kitchensink/worker.py`).
const CUT_OFF_EXIT: i32 = 117;
/// What the interpreter writes to the pipe of stacks when it hears of SIGINT (`kitchensink/worker.py`).
const HEARD: u8 = 6;
/// How long what a dead worker sent is still read.
const LAST_WORDS_WAIT: Duration = Duration::from_millis(100);

/// A worker; shared by the service and the task that watches it.
pub struct Worker {
    /// The interpreter's name.
    pub python: String,
    /// Its process, and process group.
    pub pid: u32,
    outlet: Outlet,
    /// Where faulthandler writes, and the interpreter that it has heard of SIGINT.
    fault: OwnedFd,
    inner: Mutex<Inner>,
}

struct Inner {
    machine: Machine,
    job: Option<String>,
    functions: HashSet<Vec<u8>>,
    /// The call it runs is its first of that function.
    is_new_to_it: bool,
}

/// What a worker said at the end of a call.
#[derive(Debug)]
pub struct Answered {
    /// Which call.
    pub job: String,
    /// What came of it; its segments are in `segments`.
    pub outcome: Outcome,
    /// How long it took.
    pub measured: Measured,
    /// The file of its result, where that is to be kept on this node.
    pub kept: Option<KeptFile>,
    /// The whole frame: `Part::Segment(n)` is `segments[n]`.
    pub segments: Vec<Bytes>,
}

/// What a worker measured of a call: microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// How long the function ran.
    pub run_us: u64,
    /// Processor time of it.
    pub cpu_us: u64,
    /// Before it ran.
    pub unpickling_us: u64,
    /// After it had run.
    pub pickling_us: u64,
}

impl Measured {
    /// How long the worker had the call.
    pub fn whole_us(&self) -> u64 {
        self.unpickling_us + self.run_us + self.pickling_us
    }
}

/// A worker's end.
#[derive(Clone, Debug, Default)]
pub struct Exit {
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Or what it exited with.
    pub exit_code: Option<i32>,
    /// The last Python stack (from faulthandler), or what it last wrote to stderr while it started.
    pub stack: Option<String>,
    /// The call that it took along.
    pub job: Option<String>,
    /// It was never ready.
    pub failed_to_start: bool,
    /// It lived on although its conversation with this node was over, and was killed for that: the signal is ours.
    pub was_ended: bool,
    /// Its socket to this node was closed while it lived: its end, however it came about, is ours or follows from that.
    pub was_cut_off: bool,
}

/// Who is told what workers do. Called from the worker's own task, in order: must not block.
pub trait Supervisor: Send + Sync + 'static {
    /// It may be given calls.
    fn ready(&self, worker: &Arc<Worker>);
    /// It wrote to descriptor 1 or 2; `job`: what it runs, if anything.
    fn wrote(&self, worker: &Arc<Worker>, job: Option<&str>, stream: u8, data: Vec<u8>);
    /// Whether what `job` writes next is to be read now; else it stays in the pipe, and this is asked again a moment later.
    fn may_read(&self, _job: &str) -> bool {
        true
    }
    /// A record of Python's logging, a `FromWorker::Log`.
    fn logged(&self, worker: &Arc<Worker>, record: FromWorker);
    /// Its call is over.
    fn answered(&self, worker: &Arc<Worker>, answer: Answered);
    /// Its process is gone.
    fn exited(&self, worker: &Arc<Worker>, exit: Exit);
}

impl Worker {
    /// Starts one; it is told as `ready`, or as `exited`.
    pub async fn start(
        python: String,
        launch: process::Launch,
        supervisor: Arc<dyn Supervisor>,
    ) -> std::io::Result<Arc<Self>> {
        let process = process::start(launch).await?;
        let process::Process {
            child,
            socket,
            output,
            fault,
        } = process;
        let pid = child.id();
        let (reader, writer) = ks_transport::quiet::halves(socket)?;
        rustix::io::ioctl_fionbio(&fault, true)?;
        let worker = Arc::new(Self {
            python,
            pid,
            fault,
            outlet: Outlet::unix(writer),
            inner: Mutex::new(Inner {
                machine: Machine::default(),
                job: None,
                functions: HashSet::new(),
                is_new_to_it: true,
            }),
        });
        let watcher = watch::Watcher::new(worker.clone(), child, output, reader, supervisor)?;
        tokio::spawn(watcher.run());
        Ok(worker)
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.inner.lock().unwrap().machine.state()
    }

    /// What it runs.
    pub fn job(&self) -> Option<String> {
        self.inner.lock().unwrap().job.clone()
    }

    /// Whether it has to be sent this function; from now on it has it.
    pub fn needs_function(&self, hash: &[u8]) -> bool {
        let mut inner = self.inner.lock().unwrap();
        if inner.functions.contains(hash) {
            return false;
        }
        inner.functions.insert(hash.to_vec());
        inner.is_new_to_it = true;
        if inner.functions.len() >= FUNCTIONS_MAX {
            inner.machine.handle(Event::Retire);
        }
        true
    }

    /// Whether the call that it has just answered was its first of that function: it may have imported much for it.
    pub fn was_new_to_it(&self) -> bool {
        std::mem::take(&mut self.inner.lock().unwrap().is_new_to_it)
    }

    /// Marks it as running `job`. `false`: it is not idle (any more).
    pub fn assign(&self, job: &str) -> bool {
        let mut inner = self.inner.lock().unwrap();
        if inner.machine.state() != State::Idle {
            return false;
        }
        inner.machine.handle(Event::Assigned);
        inner.job = Some(job.to_owned());
        true
    }

    /// Sends an assigned call (a frame of `ToWorker::Run`). A worker that cannot be written to is dying: its end is told soon.
    pub fn send(&self, frame: Vec<Bytes>) {
        self.outlet.send(frame);
    }

    /// Signals its process group, if it still runs `job`.
    pub fn signal(&self, job: &str, signal: Signal) {
        let inner = self.inner.lock().unwrap();
        if inner.machine.state() == State::Busy && inner.job.as_deref() == Some(job) {
            if signal == Signal::INT {
                // What is written there from now on is of this interrupt.
                read_now(&self.fault, STACK_BYTES_MAX);
            }
            process::signal_group(self.pid, signal);
        }
    }

    /// Whether its interpreter has heard of the last SIGINT: it says so in the pipe that is there for the stacks of crashes.
    pub fn has_heard(&self) -> bool {
        rustix::io::ioctl_fionread(&self.fault).is_ok_and(|bytes| bytes > 0)
    }

    /// Lets it leave once it is idle.
    pub fn retire(&self) {
        let outcome = self.inner.lock().unwrap().machine.handle(Event::Retire);
        if outcome == state::Outcome::MayLeave {
            self.outlet.send(frames::frame(&ToWorker::Exit, Vec::new()));
        }
    }

    /// Ends it now.
    pub fn kill(&self) {
        let inner = self.inner.lock().unwrap();
        if inner.machine.state() != State::Gone {
            process::signal_group(self.pid, Signal::KILL);
        }
    }

    fn handle(&self, event: Event) -> state::Outcome {
        self.inner.lock().unwrap().machine.handle(event)
    }
}

impl From<StopSignal> for Signal {
    fn from(signal: StopSignal) -> Self {
        match signal {
            StopSignal::Interrupt => Signal::INT,
            StopSignal::Terminate => Signal::TERM,
            StopSignal::Kill => Signal::KILL,
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Worker({} {})", self.python, self.pid)
    }
}

/// Reads what a pipe has now, without waiting, up to `limit` bytes.
fn read_now(pipe: &impl AsFd, limit: usize) -> Vec<u8> {
    const CHUNK_BYTES: usize = 64 * 1024;
    let mut data = Vec::new();
    let mut chunk = [0; 4096];
    while data.len() < limit {
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => break,
            Ok(count) => data.extend_from_slice(&chunk[..count]),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
        data.reserve(CHUNK_BYTES.min(limit.saturating_sub(data.len())));
    }
    data
}
