//! The thread that syncs redis-server's append-only file to the disk once a second, as long as it grows.
//!
//! Redis writes to that file before it answers and leaves the syncing to us; at its orderly end it syncs by itself.
use super::{Files, supervisor::Supervisor};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks: what a power failure can take.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// Where Redis keeps the parts of its append-only file.
const DIRECTORY: &str = "appendonlydir";

/// What was synced: the part that grows, and how long it was.
#[derive(Default, PartialEq)]
struct Synced {
    part: PathBuf,
    size_bytes: u64,
}

/// Starts the thread; it ends with the supervisor.
pub(super) fn start(supervisor: Arc<Supervisor>, files: &Files) {
    let directory = files.directory.join(DIRECTORY);
    let spawned = std::thread::Builder::new()
        .name("redis-sync".into())
        .spawn(move || {
            let mut synced = Synced::default();
            while !supervisor.pause(SYNC_EVERY) {
                if let Err(error) = sync(&directory, &mut synced) {
                    tracing::warn!(%error, directory = %directory.display(), "redis-server's append-only file is not synced to the disk");
                }
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for syncing redis-server's append-only file");
    }
}

/// Syncs the part that grows, where it has grown.
fn sync(directory: &Path, synced: &mut Synced) -> std::io::Result<()> {
    let Some(part) = growing_part(directory)? else {
        return Ok(());
    };
    let file = match File::open(&part) {
        Ok(file) => file,
        // A rewrite has replaced it just now.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let size_bytes = file.metadata()?.len();
    let now = Synced { part, size_bytes };
    if now != *synced {
        file.sync_data()?;
        *synced = now;
    }
    Ok(())
}

/// The newest of the parts that changes are appended to: `NAME.<sequence>.incr.aof`.
fn growing_part(directory: &Path) -> std::io::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        // Redis has not made it yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest = None;
    for entry in entries {
        let path = entry?.path();
        if let Some(sequence) = sequence_of(&path) {
            newest = newest.max(Some((sequence, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

fn sequence_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".incr.aof")?;
    name.rsplit_once('.')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_part_is_synced_when_it_has_grown() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let mut synced = Synced::default();
        sync(&directory.join("none"), &mut synced).unwrap();
        assert!(synced == Synced::default());
        for name in [
            "appendonly.aof.9.incr.aof",
            "appendonly.aof.10.incr.aof",
            "appendonly.aof.10.base.rdb",
            "appendonly.aof.manifest",
        ] {
            std::fs::write(directory.join(name), name).unwrap();
        }
        sync(directory, &mut synced).unwrap();
        assert_eq!(synced.part, directory.join("appendonly.aof.10.incr.aof"));
        assert_eq!(synced.size_bytes, 26);
        std::fs::write(directory.join("appendonly.aof.10.incr.aof"), "more").unwrap();
        sync(directory, &mut synced).unwrap();
        assert_eq!(synced.size_bytes, 4);
    }
}
