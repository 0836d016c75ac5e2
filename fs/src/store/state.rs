//! What stands under `.ks/`: the lock, the node's identity, and what is known to be safely on disk.
//!
//! Always: small files are written whole (temporary file, fsync, rename, fsync of the directory), and are 0600 in a 0700 directory.
//! Not for partials, trees and blobs, which have their own rooms.
use super::{StoreError, io_at, lock};
use crate::record::{NodeId, Time};
use rustix::fs::{FlockOperation, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often, at most, the disk is asked to write everything out because of fetched files.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// Makes a directory that is its owner's alone.
pub(super) fn make_private_directory(path: &Path) -> Result<(), StoreError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(path).map_err(io_at(path))?;
            if !found.is_dir() {
                return Err(io_at(path)(Errno::NOTDIR.into()));
            }
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o700)).map_err(io_at(path))
        }
        Err(error) => Err(io_at(path)(error)),
    }
}

/// How often the lock is tried, and the time between: two seconds in all.
const LOCK_TRIES: u32 = 40;
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_millis(50);

/// Takes the data directory for this process, until the returned file is closed.
pub(super) fn take_lock(datadir: &Path, state_dir: &Path) -> Result<File, StoreError> {
    let path = state_dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_at(&path))?;
    // One that was killed a moment ago may still be on its way out.
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_WAIT),
            Err(error) => return Err(io_at(&path)(error.into())),
        }
    }
    Err(StoreError::Locked(datadir.to_owned()))
}

/// Tries to set an attribute.
pub(super) fn check_xattrs(datadir: &Path, state_dir: &Path) -> Result<(), StoreError> {
    let name = "user.ks.probe";
    match rustix::fs::setxattr(state_dir, name, b"1", XattrFlags::empty()) {
        Ok(()) => {
            // What is left of a probe harms nobody.
            let _ = rustix::fs::removexattr(state_dir, name);
            Ok(())
        }
        Err(Errno::OPNOTSUPP) => Err(StoreError::NoXattrs(datadir.to_owned())),
        Err(error) => Err(io_at(state_dir)(error.into())),
    }
}

/// Reads the node's identity, or makes one.
pub(super) fn node_identity(state_dir: &Path) -> Result<NodeId, StoreError> {
    let path = state_dir.join("node");
    match std::fs::read(&path) {
        Ok(text) => match String::from_utf8_lossy(&text).trim().parse::<NodeId>() {
            Ok(node) if node != NodeId::NONE => Ok(node),
            _ => Err(io_at(&path)(std::io::Error::new(
                ErrorKind::InvalidData,
                "not a node's identity; restore it, or remove it to start as a new node",
            ))),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let node = NodeId(random_number().map_err(io_at(&path))?.max(1));
            write_whole(&path, format!("{node}\n").as_bytes())?;
            Ok(node)
        }
        Err(error) => Err(io_at(&path)(error)),
    }
}

fn random_number() -> std::io::Result<u64> {
    let mut bytes = [0u8; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Replaces a small file under `.ks/` in one step that survives a crash at any moment.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = write_beside(path, bytes)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::rename(&temporary, path)
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(io_at(path))
}

/// Writes a temporary file beside `path`, synced, that is to be renamed to it.
pub(super) fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, StoreError> {
    let temporary = temporary_beside(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(temporary),
        Err(source) => {
            let _ = std::fs::remove_file(&temporary);
            Err(io_at(path)(source))
        }
    }
}

/// A name in the same directory that nobody else uses.
pub(super) fn temporary_beside(path: &Path) -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{number}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// The wall clock, nanoseconds since 1970.
pub(super) fn now_ns() -> Time {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as Time)
}

/// `.ks/synced`: in which run of the machine, and when, everything was last written out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Synced {
    boot: String,
    at: Time,
}

/// Which fetched files may have lost data in a crash of the machine.
///
/// A fetched file becomes a plain file without waiting for the disk (that would cost a few milliseconds for each of
/// thousands of small ones); its attribute says when. Every [`SYNC_INTERVAL`] in which that happened the disk is asked to
/// write everything out, and that is noted. After a crash of the machine the files stored later than noted are checked by
/// the scan against their hash before anybody can read them.
pub(super) struct Durability {
    path: PathBuf,
    boot: String,
    /// What was noted when this process started, if the machine was started anew since.
    before_crash: Option<Time>,
    /// Whether the scan has been through all files since then.
    is_checked: AtomicBool,
    last: Mutex<Instant>,
}

impl Durability {
    pub(super) fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join("synced");
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let noted: Synced = std::fs::read(&path)
            .ok()
            .and_then(|bytes| postcard::from_bytes(&bytes).ok())
            .unwrap_or_default();
        Ok(Self {
            before_crash: (noted.boot != boot).then_some(noted.at),
            is_checked: AtomicBool::new(noted.boot == boot),
            path,
            boot,
            last: Mutex::new(Instant::now()),
        })
    }

    /// Whether a file stored at `stored` must be checked before it is trusted.
    pub(super) fn is_doubtful(&self, stored: Option<Time>) -> bool {
        match (stored, self.before_crash) {
            (Some(stored), Some(synced)) => stored > synced,
            _ => false,
        }
    }

    /// Whether any file may have to be checked: the machine was started anew since, or no scan has been through all files yet.
    pub(super) fn has_doubts(&self) -> bool {
        self.before_crash.is_some()
    }

    /// Whether it is time to write everything out; `true` once in each interval.
    pub(super) fn is_due(&self) -> bool {
        let mut last = lock(&self.last);
        let is_due = last.elapsed() >= SYNC_INTERVAL;
        if is_due {
            *last = Instant::now();
        }
        is_due
    }

    /// The scan is over: nothing is doubtful any more.
    pub(super) fn set_checked(&self) {
        self.is_checked.store(true, Ordering::Release);
    }

    /// Writes the whole disk's data out and notes when; nothing is noted while there are doubtful files.
    pub(super) fn sync(&self, directory: BorrowedFd<'_>) -> Result<(), StoreError> {
        let at = now_ns();
        rustix::fs::syncfs(directory).map_err(|error| io_at(&self.path)(error.into()))?;
        if !self.is_checked.load(Ordering::Acquire) {
            return Ok(());
        }
        let noted = Synced {
            boot: self.boot.clone(),
            at,
        };
        let bytes = postcard::to_stdvec(&noted).expect("plain data always encodes");
        write_whole(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let first = node_identity(directory.path()).unwrap();
        assert_ne!(first, NodeId::NONE);
        assert_eq!(node_identity(directory.path()).unwrap(), first);
        std::fs::write(directory.path().join("node"), "junk").unwrap();
        let error = node_identity(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("node") && error.contains("remove it"),
            "{error}"
        );
    }

    #[test]
    fn only_what_was_stored_after_the_last_sync_before_a_crash_is_doubtful() {
        let directory = tempfile::tempdir().unwrap();
        let same = Durability::open(directory.path()).unwrap();
        let descriptor = File::open(directory.path()).unwrap();
        same.set_checked();
        same.sync(std::os::fd::AsFd::as_fd(&descriptor)).unwrap();
        let again = Durability::open(directory.path()).unwrap();
        assert!(
            !again.is_doubtful(Some(Time::MAX)),
            "same run of the machine"
        );
        assert!(same.has_doubts() && !again.has_doubts());
        let noted = Synced {
            boot: "another".into(),
            at: 1_000,
        };
        let bytes = postcard::to_stdvec(&noted).unwrap();
        write_whole(&directory.path().join("synced"), &bytes).unwrap();
        let crashed = Durability::open(directory.path()).unwrap();
        assert!(crashed.is_doubtful(Some(1_001)));
        assert!(!crashed.is_doubtful(Some(1_000)));
        assert!(!crashed.is_doubtful(None));
        crashed.sync(std::os::fd::AsFd::as_fd(&descriptor)).unwrap();
        let crashed_again = Durability::open(directory.path()).unwrap();
        assert!(crashed_again.is_doubtful(Some(1_001)), "not checked yet");
    }
}
