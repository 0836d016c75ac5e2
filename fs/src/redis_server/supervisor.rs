//! The thread that starts redis-server, waits for its end and starts it again.
//!
//! It lives as long as the `RedisServer`: the kernel's parent-death signal goes by the thread that made the child, so
//! that thread must not end before the daemon does.
use super::{Files, PROGRAM};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The first wait before a restart; it doubles up to the next constant.
const RESTART_FIRST: Duration = Duration::from_millis(100);
/// The longest wait before a restart.
const RESTART_LONGEST: Duration = Duration::from_secs(5);
/// A child that lived so long starts over with the first wait.
const LIVED_LONG: Duration = Duration::from_secs(3);

/// What the thread and its owner share.
pub(super) struct Supervisor {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ending: bool,
    ended: bool,
    /// Refers to this very process, whatever becomes of its number.
    child: Option<(Pid, OwnedFd)>,
    deaths: u64,
}

/// Starts the first child in the thread that supervises it; fails when it cannot be started at all.
pub(super) fn start(files: Files) -> std::io::Result<Arc<Supervisor>> {
    let supervisor = Arc::new(Supervisor {
        state: Mutex::new(State::default()),
        changed: Condvar::new(),
    });
    let (started, first) = std::sync::mpsc::sync_channel(1);
    let shared = supervisor.clone();
    std::thread::Builder::new()
        .name("redis-supervisor".into())
        .spawn(move || {
            match shared.spawn(&files) {
                Ok(child) => {
                    super::syncing::start(shared.clone(), &files);
                    let _ = started.send(Ok(()));
                    shared.supervise(child, &files);
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
            shared.locked().ended = true;
            shared.changed.notify_all();
        })?;
    first
        .recv()
        .unwrap_or_else(|_| Err(std::io::Error::other("the supervising thread ended")))?;
    Ok(supervisor)
}

impl Supervisor {
    pub(super) fn pid(&self) -> Option<i32> {
        let state = self.locked();
        state
            .child
            .as_ref()
            .map(|(pid, _)| pid.as_raw_nonzero().get())
    }

    /// How often it has died without being asked to.
    pub(super) fn deaths(&self) -> u64 {
        self.locked().deaths
    }

    /// Asks the child to end and starts no other.
    pub(super) fn end(&self) {
        let mut state = self.locked();
        state.ending = true;
        signal(&state, Signal::TERM);
        self.changed.notify_all();
    }

    pub(super) fn kill(&self) {
        signal(&self.locked(), Signal::KILL);
    }

    /// Whether it ended within `deadline`.
    pub(super) fn wait_until_ended(&self, deadline: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.locked(), deadline, |state| !state.ended);
        waited.map(|(state, _)| state.ended).unwrap_or(false)
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|held| held.into_inner())
    }

    fn supervise(&self, first: Child, files: &Files) {
        let mut child = Some(first);
        let mut wait = RESTART_FIRST;
        loop {
            if let Some(running) = child.take() {
                let born = Instant::now();
                let status = self.wait_for(running);
                if self.locked().ending {
                    return;
                }
                if born.elapsed() >= LIVED_LONG {
                    wait = RESTART_FIRST;
                }
                tracing::error!(%status, directory = %files.directory.display(), "redis-server died; starting it again");
            }
            if self.pause(wait) {
                return;
            }
            wait = (wait * 2).min(RESTART_LONGEST);
            match self.spawn(files) {
                Ok(next) => child = Some(next),
                Err(error) => tracing::error!(%error, "redis-server cannot be started"),
            }
        }
    }

    /// Sleeps; true when it is time to end.
    pub(super) fn pause(&self, wait: Duration) -> bool {
        let waited = self
            .changed
            .wait_timeout_while(self.locked(), wait, |state| !state.ending);
        waited.map(|(state, _)| state.ending).unwrap_or(true)
    }

    fn wait_for(&self, mut child: Child) -> String {
        let status = child.wait();
        let mut state = self.locked();
        state.child = None;
        if !state.ending {
            state.deaths += 1;
        }
        status.map_or_else(|error| error.to_string(), |s: ExitStatus| s.to_string())
    }

    fn spawn(&self, files: &Files) -> std::io::Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(files.log())?;
        let mut command = Command::new(PROGRAM);
        command
            .arg(files.configuration())
            .current_dir(&files.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for the daemon, which then ends Redis in order.
            .process_group(0);
        die_with_parent(&mut command);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        std::fs::write(files.pid(), child.id().to_string())?;
        let mut state = self.locked();
        state.child = Some((pid, handle));
        if state.ending {
            signal(&state, Signal::TERM);
        }
        Ok(child)
    }
}

fn signal(state: &State, signal: Signal) {
    if let Some((_, handle)) = &state.child {
        // It may have ended by itself just now.
        let _ = pidfd_send_signal(handle, signal);
    }
}

/// The child gets SIGTERM when the thread that made it ends, however the daemon ends.
fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: between fork and exec the closure makes two system calls and touches no memory but its own stack:
    // no allocation, no lock, nothing of the parent's other threads.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // The parent may have ended before the signal was set.
            if rustix::process::getppid() != Some(parent) {
                return Err(std::io::ErrorKind::NotFound.into());
            }
            Ok(())
        });
    }
}
