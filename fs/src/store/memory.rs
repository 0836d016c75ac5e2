//! The memory tier: a directory of this node's own on a tmpfs, of a bounded size, where kept values stand.
//!
//! Who takes part: the daemon opens, counts and clears it; workers and clients on this machine write into it themselves, each taking
//! room from the *ledger* first: a file of two numbers (bytes used, bytes there are; little endian), changed under its `flock`.
//! Always: what is used is never more than the limit, but for what is counted anew (`recount`) while it is being written.
//! Not for what must survive the machine's power.
use super::{StoreError, io_at, state};
use crate::record::{Hash, NodeId};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where memory tiers stand: the machine's tmpfs for shared memory.
pub const PARENT: &str = "/dev/shm";
/// A ledger that somebody holds for longer than this is taken for full; `recount` mends what was not noted.
const LEDGER_WAIT: Duration = Duration::from_millis(50);
/// A value that is being written has its name after this, or never.
const UNFINISHED_KEEP: Duration = Duration::from_secs(600);

/// An open memory tier.
#[derive(Debug)]
pub(super) struct MemoryTier {
    directory: PathBuf,
    ledger: File,
    /// Held while the daemon lives.
    _lock: File,
}

/// Bytes in use, and how many there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used_bytes: u64,
    /// The limit.
    pub limit_bytes: u64,
}

impl MemoryTier {
    /// Opens this node's, with what stands in it since before. What nodes left behind whose data directories are gone is removed.
    pub(super) fn open(
        parent: &Path,
        node: NodeId,
        datadir: &Path,
        limit_bytes: u64,
    ) -> Result<Self, StoreError> {
        sweep_strangers(parent);
        let directory = parent.join(format!("ks-{node}"));
        state::make_private_directory(&directory)?;
        let owner = std::fs::symlink_metadata(&directory).map_err(io_at(&directory))?;
        if owner.uid() != rustix::process::geteuid().as_raw() {
            return Err(io_at(&directory)(
                std::io::ErrorKind::PermissionDenied.into(),
            ));
        }
        let lock = open_private(&directory.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| io_at(&directory)(errno.into()))?;
        let owner = directory.join("datadir");
        std::fs::write(&owner, datadir.as_os_str().as_encoded_bytes()).map_err(io_at(&owner))?;
        let ledger = open_private(&directory.join("ledger"))?;
        let tier = Self {
            directory,
            ledger,
            _lock: lock,
        };
        let mut first = [0; 16];
        first[8..].copy_from_slice(&limit_bytes.to_le_bytes());
        tier.ledger
            .write_all_at(&first, 0)
            .map_err(io_at(&tier.directory))?;
        tier.recount()?;
        Ok(tier)
    }

    /// Where values stand.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is in use.
    pub(super) fn usage(&self) -> Usage {
        let mut numbers = [0; 16];
        if self.ledger.read_exact_at(&mut numbers, 0).is_err() {
            return Usage::default();
        }
        Usage {
            used_bytes: u64::from_le_bytes(numbers[..8].try_into().expect("8 bytes")),
            limit_bytes: u64::from_le_bytes(numbers[8..].try_into().expect("8 bytes")),
        }
    }

    /// Takes room for so many bytes. `false`: there is not so much.
    pub(super) fn reserve(&self, size_bytes: u64) -> bool {
        self.change(|usage| {
            let after = usage.used_bytes.checked_add(size_bytes)?;
            (after <= usage.limit_bytes).then_some(after)
        })
    }

    /// Gives room back.
    pub(super) fn release(&self, size_bytes: u64) {
        self.change(|usage| Some(usage.used_bytes.saturating_sub(size_bytes)));
    }

    /// Counts what stands there; removes what was never finished.
    pub(super) fn recount(&self) -> Result<(), StoreError> {
        let mut used_bytes = 0;
        for file in files_below(&self.directory)? {
            let Ok(found) = file.metadata() else { continue };
            let is_unfinished = file.file_name().as_encoded_bytes().ends_with(b".tmp");
            if is_unfinished && age(&found) > UNFINISHED_KEEP {
                // Gone already is as good.
                let _ = std::fs::remove_file(file.path());
            } else {
                used_bytes += found.len();
            }
        }
        self.change(|_| Some(used_bytes));
        Ok(())
    }

    /// The values that stand there, those that were used longest ago first.
    pub(super) fn least_used(&self) -> Result<Vec<Hash>, StoreError> {
        let used = |file: std::fs::DirEntry| {
            let hash = super::kept::parse_hash(file.file_name().to_str()?)?;
            Some((file.metadata().ok()?.accessed().ok()?, hash))
        };
        let mut values: Vec<_> = files_below(&self.directory)?
            .into_iter()
            .filter_map(used)
            .collect();
        values.sort_unstable();
        Ok(values.into_iter().map(|(_, hash)| hash).collect())
    }

    /// Removes all of it.
    pub(super) fn clear(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.directory.display(), %error, "the memory tier cannot be removed");
        }
    }

    /// Changes the ledger, unless `decide` has no answer or somebody holds it.
    fn change(&self, decide: impl FnOnce(Usage) -> Option<u64>) -> bool {
        if !self.hold_ledger() {
            return false;
        }
        let written = decide(self.usage()).is_some_and(|used_bytes| {
            self.ledger
                .write_all_at(&used_bytes.to_le_bytes(), 0)
                .is_ok()
        });
        let _ = rustix::fs::flock(&self.ledger, FlockOperation::Unlock);
        written
    }

    fn hold_ledger(&self) -> bool {
        let until = std::time::Instant::now() + LEDGER_WAIT;
        loop {
            match rustix::fs::flock(&self.ledger, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return true,
                Err(_) if std::time::Instant::now() >= until => return false,
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

fn open_private(path: &Path) -> Result<File, StoreError> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io_at(path))
}

fn age(found: &std::fs::Metadata) -> Duration {
    let modified = found.modified().unwrap_or_else(|_| SystemTime::now());
    modified.elapsed().unwrap_or_default()
}

/// The values' files in a directory of them: `ab/abcd…`, and `new….tmp` beside.
pub(super) fn files_below(directory: &Path) -> Result<Vec<std::fs::DirEntry>, StoreError> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory).map_err(io_at(directory))?;
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            let inner = std::fs::read_dir(entry.path());
            files.extend(inner.into_iter().flatten().flatten());
        } else if entry.file_name().as_encoded_bytes().ends_with(b".tmp") {
            files.push(entry);
        }
    }
    Ok(files)
}

/// Removes the tiers of nodes of this user that do not run and whose data directories are gone: nobody will come for them.
/// Removes what a node that was killed left in `parent`; nothing while a node with this state directory lives.
pub fn remove_left_over(parent: &Path, state_dir: &Path) {
    let identity = std::fs::read_to_string(state_dir.join("node")).unwrap_or_default();
    let Ok(node) = identity.trim().parse::<NodeId>() else {
        return;
    };
    let directory = parent.join(format!("ks-{node}"));
    let Ok(lock) = File::open(directory.join("lock")) else {
        return;
    };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
        // What is another user's stays, and is not ours to tell of.
        let _ = std::fs::remove_dir_all(&directory);
    }
}

fn sweep_strangers(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let ours = |entry: &std::fs::DirEntry| {
        let found = entry.metadata().ok();
        let is_tier = entry.file_name().as_encoded_bytes().starts_with(b"ks-");
        is_tier
            && found.is_some_and(|found| {
                found.is_dir() && found.uid() == rustix::process::geteuid().as_raw()
            })
    };
    for entry in entries.flatten().filter(ours) {
        let directory = entry.path();
        let Ok(datadir) = std::fs::read_to_string(directory.join("datadir")) else {
            continue;
        };
        let Ok(lock) = File::open(directory.join("lock")) else {
            continue;
        };
        let is_free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        if is_free && !Path::new(&datadir).exists() {
            tracing::info!(path = %directory.display(), datadir, "a memory tier that a node left behind is removed");
            let _ = std::fs::remove_dir_all(&directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(parent: &Path, datadir: &Path, limit_bytes: u64) -> MemoryTier {
        MemoryTier::open(parent, NodeId(7), datadir, limit_bytes).unwrap()
    }

    #[test]
    fn room_is_counted_and_never_more_than_there_is() {
        let parent = tempfile::tempdir().unwrap();
        let tier = tier(parent.path(), parent.path(), 100);
        assert!(tier.reserve(60) && !tier.reserve(41) && tier.reserve(40));
        assert!(!tier.reserve(u64::MAX));
        tier.release(50);
        let (used_bytes, limit_bytes) = (50, 100);
        assert_eq!(
            tier.usage(),
            Usage {
                used_bytes,
                limit_bytes
            }
        );
        tier.recount().unwrap();
        assert_eq!(tier.usage().used_bytes, 0);
    }

    #[test]
    fn what_stands_there_is_found_again_and_counted() {
        let parent = tempfile::tempdir().unwrap();
        let first = tier(parent.path(), parent.path(), 100);
        let inner = first.directory().join("ab");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("abcd"), [1; 30]).unwrap();
        drop(first);
        let again = tier(parent.path(), parent.path(), 40);
        assert_eq!(again.usage().used_bytes, 30);
        assert!(!again.reserve(11) && again.reserve(10));
        again.clear();
        assert!(!again.directory().exists());
    }

    #[test]
    fn a_dead_nodes_tier_goes_with_its_data_directory_and_not_before() {
        let parent = tempfile::tempdir().unwrap();
        let gone = tempfile::tempdir().unwrap();
        let left = parent.path().join("ks-0000000000000007");
        drop(tier(parent.path(), gone.path(), 100));
        let other = || {
            MemoryTier::open(parent.path(), NodeId(8), parent.path(), 100).unwrap();
        };
        other();
        assert!(left.exists(), "its node may come back");
        let running = tier(parent.path(), gone.path(), 100);
        gone.close().unwrap();
        other();
        assert!(left.exists(), "its node runs");
        drop(running);
        other();
        assert!(!left.exists());
    }
}
