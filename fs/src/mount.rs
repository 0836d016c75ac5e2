//! The thin FUSE face: unpack, call `FileSystem`, map the error, reply. Kernel caches and their invalidation; freeing interrupted callers.
//!
//! Who takes part: `face` (the requests), `bridge` (answering from memory or from the runtime), `known` (what the kernel has
//! from us), `notifier` (tells it what to drop), `interrupt` (frees callers), `backing` (files the kernel serves itself),
//! `directories` (open directories), `prepare` (the mount point), `place` (where the mount goes).
//!
//! What always holds: every request is answered once, within 30 s; the daemon never touches its own mount; a thread that
//! answers requests never waits for a notification.
use crate::filesystem::FileSystem;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::{io::Errno, mount::UnmountFlags};
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

mod backing;
mod bridge;
mod directories;
mod face;
mod interrupt;
mod known;
mod notifier;
mod place;
mod prepare;
pub mod table;

pub use notifier::Notifier;
pub use prepare::{clear_beneath, prepare};

/// Threads that read requests.
const THREADS: usize = 3;
/// What the kernel reads ahead, KiB.
const READ_AHEAD_KIB: u32 = 1024;
/// How long the end of the session is waited for after the mount is gone.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// Why the tree is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel module or the device is missing.
    #[error(
        "/dev/fuse is missing; run: modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
    )]
    NoFuse,
    /// A file, a symlink or the like.
    #[error("{0}: not a directory")]
    NotADirectory(PathBuf),
    /// Only root mounts without a helper.
    #[error("{0}: mounting as an ordinary user needs fusermount3; run: apt-get install fuse3")]
    NoHelper(PathBuf),
    /// There is something that the mount would hide.
    #[error(
        "{path}: not an empty directory: {found} would be hidden by the tree. Move it to another place and mount; what belongs into the tree can be copied there then"
    )]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
        /// What is there: the first names, and how many more.
        found: String,
    },
    /// By a node that lives.
    #[error("{0}: already mounted; run: ks umount {0}")]
    AlreadyMounted(PathBuf),
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What the mount table says of ours: `fuse.ks`, source `ks:<control socket>`.
pub const FS_SUBTYPE: &str = "ks";

/// A live mount; dropping it unmounts.
pub struct Mount {
    mountpoint: PathBuf,
    fs: Arc<FileSystem>,
    session: Mutex<Option<BackgroundSession>>,
    notifier: Notifier,
    requests: Arc<interrupt::Requests>,
    runtime: tokio::runtime::Handle,
    ended: Arc<Notify>,
}

impl Mount {
    /// Mounts; `control_socket` goes into the mount table so that every process can find its node.
    pub fn attach(
        fs: Arc<FileSystem>,
        mountpoint: &Path,
        control_socket: &Path,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, MountError> {
        let io = |source| MountError::Io {
            path: mountpoint.to_owned(),
            source,
        };
        let mountpoint = &prepare::resolved(mountpoint).map_err(io)?;
        let is_stale = prepare::is_stale(mountpoint, Some(control_socket))?;
        let known = Arc::new(known::Known::default());
        let requests = interrupt::Requests::start().map_err(io)?;
        let bridge = Arc::new(bridge::Bridge {
            fs: fs.clone(),
            runtime: runtime.clone(),
            known: known.clone(),
            directories: directories::Directories::default(),
            backings: backing::Backings::default(),
            requests: requests.clone(),
        });
        let ended = Arc::new(Notify::new());
        let face = face::Face {
            bridge,
            ended: ended.clone(),
        };
        let source = format!("ks:{}", control_socket.display());
        let opened = open_session(face, mountpoint, &source, is_stale).and_then(Session::spawn);
        let session = match opened {
            Ok(session) => session,
            Err(error) => {
                requests.end();
                let no_helper = error.kind() == std::io::ErrorKind::NotFound
                    && !rustix::process::geteuid().is_root();
                return Err(match no_helper {
                    true => MountError::NoHelper(mountpoint.clone()),
                    false => io(error),
                });
            }
        };
        let notifier = Notifier::new(known);
        let mount = Self {
            mountpoint: mountpoint.clone(),
            fs: fs.clone(),
            notifier: notifier.clone(),
            requests,
            runtime,
            ended,
            session: Mutex::new(None),
        };
        let started = notifier.start(session.notifier());
        *mount.session.lock().unwrap() = Some(session);
        started.map_err(io)?;
        fs.set_watcher(Some(Arc::new(notifier)));
        raise_read_ahead(mountpoint);
        Ok(mount)
    }

    /// The kernel is told what changed elsewhere (never from a thread that answers a request).
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Whether the kernel still has it (false after `umount` by someone else).
    pub fn is_mounted(&self) -> bool {
        let session = self.session.lock().unwrap();
        session
            .as_ref()
            .is_some_and(|session| !session.guard.is_finished())
    }

    /// Waits until the kernel has given it up, by whomever it was unmounted; for one who waits.
    pub fn until_ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let ended = self.ended.clone();
        async move { ended.notified().await }
    }

    /// Takes it out of the tree; processes that still have files open in it lose them.
    pub fn unmount(self) -> Result<(), MountError> {
        self.end().map_err(|source| MountError::Io {
            path: self.mountpoint.clone(),
            source,
        })
    }

    fn end(&self) -> std::io::Result<()> {
        let Some(session) = self.session.lock().unwrap().take() else {
            return Ok(());
        };
        self.fs.set_watcher(None);
        self.notifier.end();
        let outcome = match session.guard.is_finished() {
            true => Ok(()),
            false => self.take_out(),
        };
        if outcome.is_ok() {
            self.await_end(session);
            prepare::clear_beneath(&self.mountpoint);
        }
        self.requests.end();
        outcome
    }

    /// Unmounts; where it is in use, lazily, and then its users are cut off.
    fn take_out(&self) -> std::io::Result<()> {
        let connection = connection_of(&self.mountpoint);
        match rustix::mount::unmount(&self.mountpoint, UnmountFlags::empty()) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(mountpoint = %self.mountpoint.display(), %error, "in use: cutting its users off");
                prepare::unmount_lazily(&self.mountpoint)?;
                // Only root may abort; without it the users keep their files until they close them.
                if let Some(connection) = connection {
                    let _ = std::fs::write(connection.join("abort"), "1");
                }
                Ok(())
            }
        }
    }

    fn await_end(&self, session: BackgroundSession) {
        let deadline = Instant::now() + END_DEADLINE;
        while !session.guard.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !session.guard.is_finished() {
            tracing::warn!(mountpoint = %self.mountpoint.display(), "still in use after it was unmounted");
            return;
        }
        let ended = session.join();
        if let Err(error) = ended {
            tracing::warn!(%error, "the mount's session ended with an error");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _runtime = self.runtime.enter();
        if let Err(error) = self.end() {
            tracing::warn!(mountpoint = %self.mountpoint.display(), %error, "not unmounted");
        }
    }
}

/// Mounts as root, or through the setuid helper; `is_stale`: in the place of a mount whose daemon is gone.
fn open_session(
    face: face::Face,
    mountpoint: &Path,
    source: &str,
    is_stale: bool,
) -> std::io::Result<Session<face::Face>> {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config.acl = match rustix::process::geteuid().is_root() || users_may_allow_others() {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    if is_stale {
        tracing::warn!(mountpoint = %mountpoint.display(), "clearing the mount of a node that is gone");
    }
    if let Some(device) = mount_directly(mountpoint, source, is_stale)? {
        config.acl = SessionACL::All;
        let acl = config.acl;
        let session = Session::from_fd(face, device.into(), acl, config);
        if session.is_err() {
            let _ = prepare::unmount_lazily(mountpoint);
        }
        return session;
    }
    config.mount_options = vec![
        MountOption::FSName(source.to_owned()),
        MountOption::Subtype(FS_SUBTYPE.to_owned()),
        MountOption::DefaultPermissions,
    ];
    if !is_stale {
        return Session::new(face, mountpoint, &config);
    }
    let bare = prepare::clear(mountpoint)?;
    let session = Session::new(face, mountpoint, &config)?;
    prepare::tell_of_hidden(mountpoint, &bare);
    Ok(session)
}

/// `None`: this user may not mount.
fn mount_directly(
    mountpoint: &Path,
    source: &str,
    is_stale: bool,
) -> std::io::Result<Option<File>> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .map_err(device_trouble)?;
    let placed = match is_stale {
        true => match place::for_stale(&device, mountpoint, source) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSYS) => {
                let bare = prepare::clear(mountpoint)?;
                let placed = place::onto_directory(&device, mountpoint, source);
                prepare::tell_of_hidden(mountpoint, &bare);
                placed
            }
            placed => placed,
        },
        false => place::onto_directory(&device, mountpoint, source),
    };
    match placed {
        Ok(()) => Ok(Some(device)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Ok(None),
        Err(error) => Err(error),
    }
}

fn device_trouble(error: std::io::Error) -> std::io::Error {
    let cure = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; for other users than root, run: chmod 0666 /dev/fuse"
        }
        _ => "",
    };
    std::io::Error::new(error.kind(), format!("/dev/fuse: {error}{cure}"))
}

fn users_may_allow_others() -> bool {
    let allows = |text: String| text.lines().any(|line| line.trim() == "user_allow_other");
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(allows)
}

/// The kernel's own default (128 KiB) is short for a network; only root may set it.
fn raise_read_ahead(mountpoint: &Path) {
    let Ok(Some(line)) = table::mounted_at(mountpoint) else {
        return;
    };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", line.device);
    if let Err(error) = std::fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(setting, %error, "read-ahead stays as it is");
    }
}

/// Where the kernel lets root abort this mount's connection.
fn connection_of(mountpoint: &Path) -> Option<PathBuf> {
    let line = table::mounted_at(mountpoint).ok()??;
    let (_, minor) = line.device.split_once(':')?;
    let path = Path::new("/sys/fs/fuse/connections").join(minor);
    path.exists().then_some(path)
}
