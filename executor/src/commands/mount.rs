//! `ks mount`: runs a node, as a daemon or in the foreground.
use anyhow::Context;
use ks_executor::config::{MountArgs, REDIS_VARIABLE, WrongUse};
use ks_executor::control::mounted_trees;
use ks_executor::daemon::{self, Ready};
use ks_executor::node::Node;
use ks_fs::store::Store;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Shown below the flags.
pub const EXAMPLES: &str = "\
Examples:
  ks mount /ks --datadir /data                  the first node: starts a private redis-server of its own
  ks mount /ks --datadir /data --join host1     each further node (with host1's cluster key file)
  ks umount /ks

Every flag is also an environment variable KS_… and a key of ks.toml (./, ~/.config/ks/ or /etc/ks/).
A daemon logs to DATADIR/.ks/ks.log; RUST_LOG=debug says more.";

/// Runs the node in this process, or as a daemon of its own.
pub fn run(args: MountArgs) -> anyhow::Result<ExitCode> {
    let args = absolute(args)?;
    if args.ready_fd.is_some() {
        return foreground(args);
    }
    args.check()?;
    outside_of_trees(&args.datadir)?;
    let state_dir = args.datadir.join(ks_fs::path::STATE_DIR);
    let made = Made::from_here_on(&[&args.mountpoint, &state_dir]);
    let outcome = match args.foreground {
        true => foreground(args),
        false => background(&args),
    };
    if outcome.is_err() {
        made.remove();
    }
    outcome
}

/// Runs the node as a daemon; returns when its mount answers.
fn background(args: &MountArgs) -> anyhow::Result<ExitCode> {
    ks_fs::mount::prepare(&args.mountpoint)?;
    let state_dir = args.datadir.join(ks_fs::path::STATE_DIR);
    std::fs::create_dir_all(&state_dir).with_context(|| state_dir.display().to_string())?;
    std::fs::set_permissions(
        &state_dir,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .with_context(|| state_dir.display().to_string())?;
    // A second daemon would say so in the log of the first one.
    if let Err(error) = Store::ensure_free(&args.datadir) {
        let running = mounted_trees()?.into_iter().find(|tree| {
            let of_tree = tree.socket.parent().and_then(Path::parent);
            of_tree == Some(&args.datadir)
        });
        return Err(error).with_context(|| match running {
            Some(tree) => format!(
                "its node runs already, mounted on {0} (ks umount {0} ends it)",
                tree.mountpoint.display()
            ),
            None => "a node has this data directory".to_owned(),
        });
    }
    let arguments = without_redis(std::env::args_os().skip(1));
    let redis = args.redis.as_deref().map(|url| (REDIS_VARIABLE, url));
    daemon::start(&arguments, redis, &state_dir.join("ks.log"))?;
    eprintln!(
        "{} is mounted; the log is {}",
        args.mountpoint.display(),
        state_dir.join("ks.log").display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The command line without Redis's URL: the daemon's own stands in the table of processes for everybody, and a URL may
/// have a password in it.
fn without_redis(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    // Long flags may be cut; shorter than this, it is another's, too.
    const SPELLED: [&[u8]; 3] = [b"--red", b"--redi", b"--redis"];
    let mut left = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut parts = argument.as_bytes().splitn(2, |&byte| byte == b'=');
        if !parts.next().is_some_and(|name| SPELLED.contains(&name)) {
            left.push(argument);
        } else if parts.next().is_none() {
            // Its value.
            arguments.next();
        }
    }
    left
}

/// Directories that are not there before a mount is tried. When it fails, those it made go again where nothing is in them.
struct Made {
    /// The deepest first.
    missing: Vec<PathBuf>,
}

/// What a node that did not come to anything leaves in its state directory.
const LEFT_BY_A_FAILED_START: [&str; 3] = ["ks.log", "lock", "node"];

impl Made {
    fn from_here_on(wanted: &[&Path]) -> Self {
        // A dead mount is there, though nothing can be asked of it.
        let is_missing = |path: &&Path| {
            std::fs::symlink_metadata(path)
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        let missing = wanted
            .iter()
            .flat_map(|path| path.ancestors().take_while(is_missing));
        Self {
            missing: missing.map(Path::to_owned).collect(),
        }
    }

    fn remove(&self) {
        for directory in &self.missing {
            if directory.ends_with(ks_fs::path::STATE_DIR) {
                clear_state(directory);
            }
            // One that is not empty stays.
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Empties a state directory of what every start leaves there, if there is nothing else: then no node has lived there.
fn clear_state(state_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(state_dir) else {
        return;
    };
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let is_nothing = |path: &PathBuf| match std::fs::read_dir(path) {
        Ok(mut below) => below.next().is_none(),
        Err(_) => LEFT_BY_A_FAILED_START
            .iter()
            .any(|left| path.ends_with(left)),
    };
    if paths.iter().all(is_nothing) {
        for path in paths {
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
    }
}

/// A data directory is on a file system of the machine's own: in a tree, ours or another node's, it would be a part of what it keeps.
fn outside_of_trees(datadir: &Path) -> anyhow::Result<()> {
    let table = ks_fs::mount::table::read().context("/proc/self/mountinfo")?;
    let trees = ks_fs::mount::table::reachable(&table)
        .into_iter()
        .filter(|line| line.control_socket().is_some());
    if let Some(tree) = trees
        .into_iter()
        .find(|line| datadir.starts_with(&line.mountpoint))
    {
        let message = format!(
            "the data directory {} lies in the tree that is mounted on {}: name one outside of it",
            datadir.display(),
            tree.mountpoint.display()
        );
        return Err(WrongUse(message).into());
    }
    Ok(())
}

/// The same with absolute paths.
fn absolute(mut args: MountArgs) -> anyhow::Result<MountArgs> {
    for path in [
        Some(&mut args.mountpoint),
        Some(&mut args.datadir),
        args.cluster_key.as_mut(),
    ]
    .into_iter()
    .flatten()
    {
        *path = ks_executor::control::absolute(path)?;
    }
    for python in &mut args.pythons {
        if python.path.components().count() > 1 {
            python.path = ks_executor::control::absolute(&python.path)?;
        }
    }
    Ok(args)
}

fn foreground(args: MountArgs) -> anyhow::Result<ExitCode> {
    let mut ready = Ready::from_parent(args.ready_fd)?;
    if args.ready_fd.is_some() {
        // A daemon keeps nobody's directory busy; every path is absolute by now.
        std::env::set_current_dir("/")?;
    }
    start_log();
    ks_transport::memory::keep_freed();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads())
        .enable_all()
        .thread_name("ks")
        .build()?;
    let outcome = runtime.block_on(live(args, &mut ready));
    if let Err(error) = &outcome {
        ready.failed(error);
    }
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Threads that run the node's tasks: half the cores, and two at least, as the disk may keep one. Work goes from task to task in short steps, and a thread that is woken for
/// one costs more than the step; the kernel's side of the mount, the disk and the Python workers have threads of their own.
fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(2)
}

/// A node's life: from its start to a signal, `ks umount` or the end of its mount.
async fn live(args: MountArgs, ready: &mut Ready) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let starting = Node::start(args);
    let node = tokio::select! {
        node = starting => node?,
        _ = terminate.recv() => anyhow::bail!("ended before the mount answered"),
        _ = interrupt.recv() => anyhow::bail!("ended before the mount answered"),
    };
    ready.ready();
    tokio::select! {
        () = node.ended() => {}
        _ = terminate.recv() => tracing::info!("SIGTERM: the node ends"),
        _ = interrupt.recv() => tracing::info!("SIGINT: the node ends"),
    }
    node.stop().await;
    Ok(())
}

fn start_log() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,fuser=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A log that cannot be written (a full disk, a closed pipe) is no reason to end: it would be told there, too.
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

#[cfg(test)]
mod tests {
    use super::without_redis;

    #[test]
    fn the_daemons_command_line_has_no_password() {
        for redis in [
            "--redis redis://:sesame@h",
            "--redis=redis://:sesame@h",
            "--red tcp://:sesame@h",
        ] {
            let line = format!("mount /ks {redis} --read-only --datadir /redis");
            let left = without_redis(line.split(' ').map(Into::into));
            assert_eq!(
                left.join(" ".as_ref()),
                "mount /ks --read-only --datadir /redis"
            );
        }
        let other = ["mount", "--no-redis", "--join", "h"].map(Into::into);
        assert_eq!(without_redis(other.clone()), other);
    }
}
