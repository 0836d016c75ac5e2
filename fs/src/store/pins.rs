//! `.ks/pins`: files whose copies here are kept whatever else must go, by inode number.
//!
//! Always: a pin is on disk before it is acknowledged. A pin says nothing of whether the file is here now.
use super::{Store, StoreError, lock, state};
use crate::record::Ino;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

/// More pins than this are refused: pin a directory's files on fewer nodes, or raise the cache limit.
pub const PINS_MAX: usize = 1_000_000;

#[derive(Default)]
pub(super) struct Pins(Mutex<BTreeSet<Ino>>);

impl Pins {
    /// What was pinned before; lines that are no numbers are passed over.
    pub(super) fn open(state_dir: &Path) -> Self {
        let text = std::fs::read_to_string(state_dir.join("pins")).unwrap_or_default();
        Self(Mutex::new(
            text.lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect(),
        ))
    }
}

impl Store {
    /// Pins (or unpins) files.
    pub fn pin(&self, inos: &[Ino], pinned: bool) -> Result<(), StoreError> {
        let mut pins = lock(&self.pins.0);
        let mut next = pins.clone();
        for ino in inos {
            match pinned {
                true => next.insert(*ino),
                false => next.remove(ino),
            };
        }
        let path = self.state_dir().join("pins");
        if next.len() > PINS_MAX {
            let source =
                std::io::Error::other(format!("more than {PINS_MAX} files are pinned; unpin some"));
            return Err(StoreError::Io { path, source });
        }
        let text: String = next.iter().map(|ino| format!("{ino}\n")).collect();
        state::write_whole(&path, text.as_bytes())?;
        *pins = next;
        Ok(())
    }

    /// Whether a file is pinned here.
    pub fn is_pinned(&self, ino: Ino) -> bool {
        lock(&self.pins.0).contains(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_outlive_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        store.pin(&[3, 9], true).unwrap();
        store.pin(&[9, 10], false).unwrap();
        drop(store);
        let store = Store::open(directory.path(), 0).unwrap();
        assert!(store.is_pinned(3) && !store.is_pinned(9) && !store.is_pinned(10));
    }
}
