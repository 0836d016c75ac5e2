//! Becoming a daemon: the program starts itself once more in a session of its own, and waits until that one says
//! over a pipe that its mount answers, or why it does not.
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A log larger than this is put aside (one old one is kept) when a daemon starts.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What the daemon says first when all is well; anything else is its error.
const READY: &str = "ready";

/// An error with its causes, each told once: many already name their cause.
pub fn described(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.contains(&cause) {
            continue;
        }
        if !told.is_empty() {
            told.push_str(": ");
        }
        told.push_str(&cause);
    }
    told
}

/// The daemon's end of the pipe.
pub struct Ready(Option<File>);

impl Ready {
    /// Takes over the descriptor that the parent passed.
    pub fn from_parent(descriptor: Option<i32>) -> anyhow::Result<Self> {
        let Some(descriptor) = descriptor else {
            return Ok(Self(None));
        };
        // SAFETY: the parent passed this descriptor to us alone, by number, and nothing else in this process knows it.
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)
            .context("--ready-fd is not an open descriptor")?;
        Ok(Self(Some(File::from(owned))))
    }

    /// Tells the parent that the mount answers.
    pub fn ready(&mut self) {
        self.say(READY);
    }

    /// Tells the parent why there is no mount.
    pub fn failed(&mut self, error: &anyhow::Error) {
        self.say(&described(error));
    }

    /// A parent that is gone does not matter.
    fn say(&mut self, text: &str) {
        if let Some(mut pipe) = self.0.take() {
            let _ = pipe.write_all(text.as_bytes());
        }
    }
}

/// Opens the daemon's log, putting aside one that has grown large.
fn open_log(path: &Path) -> std::io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("log.old"))?;
    }
    File::options().create(true).append(true).open(path)
}

/// Starts `arguments` of this program as a daemon that logs to `log`; returns when it is ready, or its error.
/// `secret`: a variable and its value that go into the daemon's environment, which its own user alone can read.
pub fn start(
    arguments: &[std::ffi::OsString],
    secret: Option<(&str, &str)>,
    log: &Path,
) -> anyhow::Result<()> {
    let (mut from_daemon, to_parent) = std::io::pipe().context("a pipe")?;
    let program = std::env::current_exe().context("this program's own path")?;
    let log_file = open_log(log).with_context(|| log.display().to_string())?;
    rustix::io::fcntl_setfd(&to_parent, rustix::io::FdFlags::empty()).context("a pipe")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(secret)
        .arg("--foreground")
        .arg(format!("--ready-fd={}", to_parent.as_raw_fd()))
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file);
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into)) };
    let mut daemon = command.spawn().context("the daemon")?;
    drop(to_parent);
    let mut said = String::new();
    from_daemon
        .read_to_string(&mut said)
        .context("the daemon's answer")?;
    match said.as_str() {
        READY => Ok(()),
        "" => {
            let status = daemon.wait().context("the daemon")?;
            bail!(
                "the daemon ended ({status}) before its mount answered; its log is {}",
                log.display()
            )
        }
        error => {
            let _ = daemon.wait();
            bail!("{error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::described;

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("file exists")
            .context("/a: file exists")
            .context("the mount");
        assert_eq!(described(&error), "the mount: /a: file exists");
    }
}
