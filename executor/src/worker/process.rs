//! A worker's process: how it is started, what it is connected to, and how it is ended.
//!
//! It leads a session and process group of its own, has no terminal, dies with the daemon (PR_SET_PDEATHSIG), and has one
//! end of a socket pair (frames), two pipes (its standard output and error) and a third (where faulthandler writes the
//! last Python stack of a crash).
use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use tokio::sync::oneshot;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The interpreter's program.
    pub python: PathBuf,
    /// What its environment has beside the daemon's.
    pub environment: Vec<(String, String)>,
}

/// A started process and our ends of what connects it.
pub struct Process {
    /// To be reaped.
    pub child: Child,
    /// Frames.
    pub socket: UnixStream,
    /// What it writes to descriptors 1 and 2.
    pub output: [OwnedFd; 2],
    /// What faulthandler writes, and a byte for each SIGINT that the interpreter has heard of.
    pub fault: OwnedFd,
}

/// A piece of work for the thread that starts processes.
type Errand = Box<dyn FnOnce() + Send>;

/// PR_SET_PDEATHSIG fires when the thread that started the child ends: so one that never does starts them all.
fn starter() -> &'static mpsc::Sender<Errand> {
    static STARTER: OnceLock<mpsc::Sender<Errand>> = OnceLock::new();
    STARTER.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Errand>();
        std::thread::Builder::new()
            .name("worker-starter".into())
            .spawn(move || receive.iter().for_each(|errand| errand()))
            .expect("a thread can be started");
        send
    })
}

/// Starts a worker.
pub async fn start(launch: Launch) -> io::Result<Process> {
    let (done, started) = oneshot::channel();
    let errand = Box::new(move || drop(done.send(start_here(&launch))));
    let gone = || io::Error::other("the thread that starts workers is gone");
    starter().send(errand).map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

fn start_here(launch: &Launch) -> io::Result<Process> {
    let (socket, its_socket) = UnixStream::pair()?;
    let (stdout, its_stdout) = io::pipe()?;
    let (stderr, its_stderr) = io::pipe()?;
    let (fault, its_fault) = io::pipe()?;
    let inherited = [its_socket.as_raw_fd(), its_fault.as_raw_fd()];
    let mut command = Command::new(&launch.python);
    command
        .args(["-m", "kitchensink.worker"])
        .args(["--fd", &inherited[0].to_string()])
        .args(["--fault-fd", &inherited[1].to_string()])
        // It may have a password in it.
        .env_remove(crate::config::REDIS_VARIABLE)
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(its_stdout)
        .stderr(its_stderr);
    let daemon = std::process::id();
    // SAFETY: between fork and exec only system calls are made (no allocation, no lock): setsid, prctl, getppid, fcntl,
    // setrlimit, signal; the descriptors are open, as `its_socket` and `its_fault` outlive `spawn`.
    unsafe {
        command.pre_exec(move || prepare_child(daemon, &inherited));
    }
    let child = command.spawn()?;
    // When the machine's memory ends, what a call holds goes, not the node. Where the kernel has no such file, it chooses.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), FIRST_TO_GO);
    drop((its_socket, its_fault));
    socket.set_nonblocking(true)?;
    Ok(Process {
        child,
        socket,
        output: [stdout.into(), stderr.into()],
        fault: fault.into(),
    })
}

/// Of -1000 (never ended by the kernel when memory ends) to 1000 (first).
const FIRST_TO_GO: &str = "500";

/// In the child, before it becomes Python.
fn prepare_child(daemon: u32, inherited: &[i32]) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit};
    rustix::process::setsid()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The daemon may have died before that.
    if rustix::process::getppid().map(|pid| pid.as_raw_pid() as u32) != Some(daemon) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // Writing a core keeps a dead worker's caller waiting.
    let limit = rustix::process::getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    for &descriptor in inherited {
        // SAFETY: plain system calls on a descriptor that is open in this process; SIG_DFL is a valid disposition.
        unsafe {
            if libc::fcntl(descriptor, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            libc::signal(libc::SIGINT, libc::SIG_DFL);
        }
    }
    Ok(())
}

/// Sends a signal to a worker's process group. The caller knows that the worker has not been reaped.
pub fn signal_group(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32)
        && let Err(error) = rustix::process::kill_process_group(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = pid.as_raw_pid(), %error, "a worker's process group cannot be signalled");
    }
}
