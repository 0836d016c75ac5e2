//! `ks umount`: unmounts a tree and waits until its node has ended, saying for what where that takes time. Works on a dead node's mount, too.
use anyhow::{Context, bail};
use clap::Args;
use ks_executor::control::{self, MountedTree, mounted_trees};
use ks_fs::store::memory;
use rustix::mount::{UnmountFlags, unmount};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a node may take to end in order.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// After this time it is said what is waited for.
const SAY_AFTER: Duration = Duration::from_secs(2);
/// With `--force`, a node that has not ended after this time is killed.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// `ks umount`.
#[derive(Args, Debug)]
pub struct UmountArgs {
    /// Where the tree is mounted [default: the only one]
    mountpoint: Option<PathBuf>,
    /// Unmount although files are open (their readers and writers get errors), and kill the node where it does not end
    #[arg(short, long)]
    force: bool,
}

impl UmountArgs {
    /// Returns when the node has ended.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let tree = self.tree()?;
        detach(&tree.mountpoint, self.force)?;
        let began = Instant::now();
        let mut has_said = false;
        // A stopped daemon's socket takes a few connections and then makes one wait: the lock alone tells.
        while node_holds_lock(&tree) {
            let waited = began.elapsed();
            if waited > END_TIMEOUT {
                bail!(
                    "{} is unmounted, but its node has not ended after {END_TIMEOUT:?}; see its log, or use --force",
                    tree.mountpoint.display()
                );
            }
            if waited > SAY_AFTER && !has_said {
                has_said = true;
                eprintln!("ks umount: {}", waiting_for(&tree, self.force));
            }
            if self.force && waited > KILL_AFTER {
                kill(&tree)?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ks_fs::mount::clear_beneath(&tree.mountpoint);
        if let Some(state_dir) = tree.socket.parent() {
            // A node that was killed has not done it itself.
            memory::remove_left_over(Path::new(memory::PARENT), state_dir);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn tree(&self) -> anyhow::Result<MountedTree> {
        let trees = mounted_trees()?;
        match &self.mountpoint {
            Some(path) => {
                let wanted = control::absolute(path)?;
                trees
                    .into_iter()
                    .rfind(|tree| tree.mountpoint == wanted)
                    .with_context(|| format!("{}: no tree is mounted there", wanted.display()))
            }
            None if trees.len() > 1 => {
                let names: Vec<_> = trees
                    .iter()
                    .map(|tree| tree.mountpoint.display().to_string())
                    .collect();
                bail!(
                    "several trees are mounted here: say which of {}",
                    names.join(", ")
                )
            }
            None => trees
                .into_iter()
                .next()
                .context("no tree is mounted on this machine"),
        }
    }
}

/// The node's data directory lock tells whether its daemon still lives: the socket goes before the last work is done.
fn node_holds_lock(tree: &MountedTree) -> bool {
    let Some(state_dir) = tree.socket.parent() else {
        return false;
    };
    let Ok(lock) = std::fs::File::open(state_dir.join("lock")) else {
        return false;
    };
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}

/// The processes that hold the node's lock, by what the kernel says.
fn holders_of_lock(tree: &MountedTree) -> Vec<i32> {
    let lock = tree.socket.parent().map(|state| state.join("lock"));
    let Some(inode) = lock.and_then(|lock| std::fs::metadata(lock).ok()) else {
        return Vec::new();
    };
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let held = locks.lines().filter_map(|line| {
        // "1: FLOCK ADVISORY WRITE 1234 fe:01:5678 0 EOF"
        let words: Vec<&str> = line.split_whitespace().collect();
        let (pid, place) = (words.get(4)?, words.get(5)?);
        let number: u64 = place.rsplit(':').next()?.parse().ok()?;
        (words.get(1) == Some(&"FLOCK") && number == inode.ino()).then(|| pid.parse().ok())?
    });
    // Files of other disks may have the same number: it must have the very file open.
    let has_open = |pid: &i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"));
        let open = descriptors.into_iter().flatten().flatten();
        let mut found = open.filter_map(|link| std::fs::metadata(link.path()).ok());
        found.any(|file| (file.dev(), file.ino()) == (inode.dev(), inode.ino()))
    };
    held.filter(has_open).collect()
}

/// What a long wait is for, and the cure.
fn waiting_for(tree: &MountedTree, force: bool) -> String {
    let mountpoint = tree.mountpoint.display();
    let then = match force {
        true => "it is killed if it does not end soon",
        false => "'--force' kills it if it does not end",
    };
    let Some(pid) = holders_of_lock(tree).first().copied() else {
        return format!("{mountpoint} is unmounted; waiting for its node to end; {then}");
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_stopped = stat
        .rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with(['T', 't']));
    match is_stopped {
        true => format!(
            "{mountpoint} is unmounted, but its node, process {pid}, is stopped: kill -CONT {pid} lets it go on; {then}"
        ),
        false => {
            format!(
                "{mountpoint} is unmounted; waiting for its node, process {pid}, to end; {then}"
            )
        }
    }
}

/// Nothing that was acknowledged is lost by it.
fn kill(tree: &MountedTree) -> anyhow::Result<()> {
    for pid in holders_of_lock(tree) {
        let Some(process) = rustix::process::Pid::from_raw(pid) else {
            continue;
        };
        match rustix::process::kill_process(process, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("killing process {pid}")),
        }
    }
    Ok(())
}

fn detach(mountpoint: &Path, force: bool) -> anyhow::Result<()> {
    let flags = if force {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => with_helper(mountpoint, force),
        Err(rustix::io::Errno::BUSY) => bail!("{}", busy(mountpoint)),
        Err(error) => Err(error).with_context(|| mountpoint.display().to_string()),
    }
}

/// A plain user's way.
fn with_helper(mountpoint: &Path, force: bool) -> anyhow::Result<()> {
    let mut helper = std::process::Command::new("fusermount3");
    helper.arg(if force { "-uz" } else { "-u" }).arg(mountpoint);
    let output = helper
        .output()
        .context("fusermount3 (run: apt-get install fuse3)")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    if let Some(owner) = owner_of(mountpoint).filter(|owner| *owner != user()) {
        let (name, mountpoint) = (name_of(owner), mountpoint.display());
        let others = if owner == 0 { "" } else { " or root" };
        bail!(
            "{mountpoint}: it was mounted by {name}; {name}{others} may unmount it (sudo ks umount {mountpoint})"
        );
    }
    if said.contains("busy") {
        bail!("{}", busy(mountpoint));
    }
    bail!("{}: {said}", mountpoint.display())
}

fn user() -> u32 {
    rustix::process::getuid().as_raw()
}

/// The user whose daemon mounted it, by the mount table.
fn owner_of(mountpoint: &Path) -> Option<u32> {
    let mut lines = ks_fs::mount::table::read().ok()?.into_iter();
    lines.rfind(|line| line.mountpoint == mountpoint)?.owner
}

/// A user's name, as this machine's own list has it.
fn name_of(user: u32) -> String {
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(user)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| format!("user {user}"))
}

/// Who keeps the mount busy, as far as this user may see.
fn busy(mountpoint: &Path) -> String {
    let users: Vec<String> = users_of(mountpoint);
    let who = if users.is_empty() {
        "a process".to_owned()
    } else {
        users.join(", ")
    };
    format!(
        "{}: in use by {who}; end it, or use --force",
        mountpoint.display()
    )
}

/// Processes with a descriptor or working directory below `mountpoint`, by their links in `/proc` alone. Those in other mount
/// namespaces mean another place by that path.
fn users_of(mountpoint: &Path) -> Vec<String> {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let ours = namespace(Path::new("/proc/self"));
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let uses = |process: &Path| {
        let descriptors = std::fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        descriptors
            .map(|descriptor| descriptor.path())
            .chain([process.join("cwd"), process.join("exe")])
            .filter_map(|link| std::fs::read_link(link).ok())
            .any(|target| target.starts_with(mountpoint))
    };
    processes
        .flatten()
        .filter_map(|process| {
            let pid: u32 = process.file_name().to_str()?.parse().ok()?;
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            let is_near = namespace(&process.path()) == ours;
            (is_near && uses(&process.path())).then(|| format!("{} ({pid})", name.trim()))
        })
        .take(10)
        .collect()
}
