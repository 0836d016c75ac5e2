//! A redis-server that an earlier daemon left when it was killed: found by its pid file and its working directory, and
//! ended before a new one starts on the same append-only file. (It has SIGTERM from the kernel already; this waits for it.)
use super::{Files, STOP_DEADLINE};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::path::Path;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Ends it, if there is one. Its append-only file stays.
pub(super) fn end_left_over(files: &Files) -> std::io::Result<()> {
    let text = match std::fs::read_to_string(files.pid()) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
        return Ok(());
    };
    for signal in [Signal::TERM, Signal::KILL] {
        if !is_ours(pid, &files.directory) {
            return Ok(());
        }
        tracing::warn!(
            pid = pid.as_raw_nonzero().get(),
            "ending the redis-server that an earlier daemon left"
        );
        let _ = pidfd_send_signal(&handle, signal);
        let deadline = Instant::now() + STOP_DEADLINE;
        while is_ours(pid, &files.directory) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// A live redis-server that works in this directory; another process with that number does not.
fn is_ours(pid: Pid, directory: &Path) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().get().to_string());
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    let works_here = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == directory);
    name.trim() == super::PROGRAM && works_here
}
