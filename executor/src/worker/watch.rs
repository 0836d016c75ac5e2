//! The task that watches one worker: its socket, its pipes, its process.
use super::process::signal_group;
use super::state::{self, Event};
use super::*;
use ks_transport::quiet::QuietReader;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

/// Bytes of output that are passed on as one piece.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// What a worker wrote to stderr while it started, kept to explain why it did not.
const START_WORDS_BYTES_MAX: usize = 8 * 1024;
/// How much output is taken at the end of a call; a process of its that goes on writing must not hold it up.
const LAST_OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Time between two looks whether a call that is held up may go on writing.
const ROOM_LOOK: std::time::Duration = std::time::Duration::from_millis(5);

pub(super) struct Watcher {
    worker: Arc<Worker>,
    supervisor: Arc<dyn Supervisor>,
    child: Child,
    ended: AsyncFd<OwnedFd>,
    socket: QuietReader,
    decoder: Decoder,
    /// Descriptors 1 and 2, until they are closed.
    output: [Option<pipe::Receiver>; 2],
    start_words: Vec<u8>,
    /// What the call writes stays in its pipes for now.
    is_held_up: bool,
}

/// What woke the task.
enum Woken {
    Frame(io::Result<Option<Vec<Bytes>>>),
    Output(usize),
    Room,
    Ended,
}

impl Watcher {
    pub(super) fn new(
        worker: Arc<Worker>,
        child: Child,
        output: [OwnedFd; 2],
        socket: QuietReader,
        supervisor: Arc<dyn Supervisor>,
    ) -> io::Result<Self> {
        let [stdout, stderr] = output;
        let pid = rustix::process::Pid::from_child(&child);
        let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let readable = tokio::io::Interest::READABLE;
        // SAFETY: an `OwnedFd` is open for as long as it lives, always the same, and the `AsyncFd` owns it.
        let ended = unsafe { AsyncFd::register_with_interest(ended, readable) }?;
        Ok(Self {
            worker,
            supervisor,
            child,
            ended,
            socket,
            decoder: Decoder::default(),
            output: [
                Some(pipe::Receiver::from_owned_fd(stdout)?),
                Some(pipe::Receiver::from_owned_fd(stderr)?),
            ],
            start_words: Vec::new(),
            is_held_up: false,
        })
    }

    pub(super) async fn run(mut self) {
        let mut was_closed = false;
        loop {
            let woken = {
                let [stdout, stderr] = &self.output;
                let is_held_up = self.is_held_up;
                tokio::select! {
                    biased;
                    frame = self.decoder.read(&mut self.socket) => Woken::Frame(frame),
                    () = readable(stdout), if !is_held_up => Woken::Output(0),
                    () = readable(stderr), if !is_held_up => Woken::Output(1),
                    () = tokio::time::sleep(ROOM_LOOK), if is_held_up => Woken::Room,
                    _ = self.ended.readable() => Woken::Ended,
                }
            };
            match woken {
                Woken::Frame(Ok(Some(frame))) => {
                    if let Err(error) = self.frame(frame) {
                        tracing::warn!(pid = self.worker.pid, %error, "a worker does not keep to the protocol");
                        break;
                    }
                }
                Woken::Ended => break,
                Woken::Frame(Ok(None)) => {
                    was_closed = true;
                    break;
                }
                Woken::Frame(Err(error)) => {
                    tracing::debug!(pid = self.worker.pid, %error, "a worker's socket");
                    break;
                }
                Woken::Output(index) => {
                    self.output(index);
                    self.look_for_room();
                }
                Woken::Room => self.look_for_room(),
            }
        }
        self.bury(was_closed).await;
    }

    fn frame(&mut self, segments: Vec<Bytes>) -> io::Result<()> {
        match frames::header(&segments)? {
            FromWorker::Ready {
                pid,
                python,
                package,
            } => {
                tracing::debug!(pid, python, package, "a worker is ready");
                self.start_words = Vec::new();
                self.follow(Event::Ready)?;
                if self.worker.state() == state::State::Idle {
                    self.supervisor.ready(&self.worker);
                }
            }
            record @ FromWorker::Log { .. } => self.supervisor.logged(&self.worker, record),
            FromWorker::Ended {
                job,
                outcome,
                run_us,
                cpu_us,
                unpickling_us,
                pickling_us,
                kept,
            } => {
                if self.worker.job().as_deref() != Some(&job) {
                    return Err(nonsense("the end of a call that it does not run"));
                }
                self.drain();
                self.worker.inner.lock().unwrap().job = None;
                self.is_held_up = false;
                self.follow(Event::Answered)?;
                let answer = Answered {
                    job,
                    outcome,
                    measured: Measured {
                        run_us,
                        cpu_us,
                        unpickling_us,
                        pickling_us,
                    },
                    kept,
                    segments,
                };
                self.supervisor.answered(&self.worker, answer);
            }
        }
        Ok(())
    }

    fn follow(&self, event: Event) -> io::Result<()> {
        match self.worker.handle(event) {
            state::Outcome::Nonsense => Err(nonsense("a message at the wrong time")),
            state::Outcome::MayLeave => {
                let farewell = frames::frame(&ToWorker::Exit, Vec::new());
                self.worker.outlet.send(farewell);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the call may go on writing.
    fn look_for_room(&mut self) {
        let job = self.worker.job();
        self.is_held_up = job.is_some_and(|job| !self.supervisor.may_read(&job));
    }

    /// Passes on what a pipe has.
    fn output(&mut self, index: usize) {
        let Some(pipe) = &self.output[index] else {
            return;
        };
        let mut chunk = vec![0; OUTPUT_BYTES_MAX];
        match pipe.try_read(&mut chunk) {
            Ok(0) => self.output[index] = None,
            Ok(count) => {
                chunk.truncate(count);
                self.pass_on(index, chunk);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.output[index] = None,
        }
    }

    /// Passes on all that was written so far.
    fn drain(&mut self) {
        for index in 0..2 {
            if let Some(pipe) = &self.output[index] {
                let data = read_now(pipe, LAST_OUTPUT_BYTES_MAX);
                if !data.is_empty() {
                    self.pass_on(index, data);
                }
            }
        }
    }

    fn pass_on(&mut self, index: usize, data: Vec<u8>) {
        if index == 1 && self.worker.state() == state::State::Starting {
            let room = START_WORDS_BYTES_MAX.saturating_sub(self.start_words.len());
            self.start_words
                .extend_from_slice(&data[..data.len().min(room)]);
        }
        let job = self.worker.job();
        self.supervisor
            .wrote(&self.worker, job.as_deref(), index as u8 + 1, data);
    }

    /// After its end, or to bring it about.
    ///
    /// `was_closed`: its socket is, by the process or by its end.
    async fn bury(mut self, was_closed: bool) {
        let lives_on = tokio::time::timeout(EXIT_WAIT, self.ended.readable())
            .await
            .is_err();
        if lives_on {
            signal_group(self.worker.pid, Signal::KILL);
            let _ = self.ended.readable().await;
        }
        // The group first: so nothing holds the socket open but what left the group.
        signal_group(self.worker.pid, Signal::KILL);
        // What it sent before it died counts.
        let last_words = async {
            while let Ok(Some(frame)) = self.decoder.read(&mut self.socket).await {
                if self.frame(frame).is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS_WAIT, last_words).await;
        self.drain();
        let (status, job, outcome) = {
            // Under the lock: nobody signals a process that has been reaped.
            let mut inner = self.worker.inner.lock().unwrap();
            let status = self.child.wait();
            (
                status,
                inner.job.take(),
                inner.machine.handle(Event::Exited),
            )
        };
        let exit_code = status.as_ref().ok().and_then(|status| status.code());
        let exit = Exit {
            signal: status.as_ref().ok().and_then(|status| status.signal()),
            exit_code,
            stack: self.stack(),
            job,
            failed_to_start: outcome == state::Outcome::FailedToStart,
            was_ended: lives_on,
            was_cut_off: was_closed && (lives_on || exit_code == Some(CUT_OFF_EXIT)),
        };
        self.supervisor.exited(&self.worker, exit);
    }

    fn stack(&self) -> Option<String> {
        let mut words = read_now(&self.worker.fault, STACK_BYTES_MAX);
        words.retain(|byte| *byte != HEARD);
        if words.is_empty() {
            words = self.start_words.clone();
        }
        let text = String::from_utf8_lossy(&words).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }
}

async fn readable(pipe: &Option<pipe::Receiver>) {
    match pipe {
        Some(pipe) => drop(pipe.readable().await),
        None => std::future::pending().await,
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
