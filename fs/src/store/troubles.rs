//! What a person must look at: files that were set aside as conflicts, files without a good copy, damaged state that was thrown away.
//!
//! Always: bounded; kept in `.ks/troubles` over restarts; what is settled (a conflict that was renamed or removed, a file that is good again) leaves by itself.
//! The cluster hears of it through the catalog (`catalog::troubles`). Not for mending (`filesystem::checking`).
use super::{Store, lock, state};
use crate::path::TreePath;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

/// Conflicts and damaged files that are remembered, each.
const LISTED_MAX: usize = 10_000;
/// Paths that others are told.
pub const TOLD_MAX: usize = 8;
/// What was thrown away, remembered.
const THROWN_AWAY_MAX: usize = 16;

/// Some things of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// How many there are.
    pub count: u64,
    /// The first [`TOLD_MAX`], for people.
    pub first: Vec<String>,
}

/// One node's troubles, as the cluster is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Troubles {
    /// Kept as `NAME.conflict-NODE`.
    pub conflicts: Listed,
    /// Files without a good copy.
    pub damaged: Listed,
    /// Damaged state that was thrown away and made anew.
    pub thrown_away: Listed,
}

impl Troubles {
    /// Nothing needs to be looked at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What this node remembers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    conflicts: BTreeSet<Vec<u8>>,
    /// Path, and the version whose every copy is damaged.
    damaged: BTreeMap<Vec<u8>, u64>,
    thrown_away: VecDeque<String>,
    thrown_away_in_all: u64,
    #[serde(skip)]
    is_changed: bool,
}

impl Book {
    /// What was written before; an unreadable one is begun anew.
    pub(super) fn open(state_dir: &Path) -> Self {
        let written = std::fs::read(state_dir.join("troubles")).unwrap_or_default();
        postcard::from_bytes(&written).unwrap_or_default()
    }

    fn told(&self) -> Troubles {
        let first = |paths: &mut dyn Iterator<Item = &Vec<u8>>| -> Vec<String> {
            let paths = paths.take(TOLD_MAX);
            paths
                .map(|path| String::from_utf8_lossy(path).into_owned())
                .collect()
        };
        Troubles {
            conflicts: Listed {
                count: self.conflicts.len() as u64,
                first: first(&mut self.conflicts.iter()),
            },
            damaged: Listed {
                count: self.damaged.len() as u64,
                first: first(&mut self.damaged.keys()),
            },
            thrown_away: Listed {
                count: self.thrown_away_in_all,
                first: self.thrown_away.iter().take(TOLD_MAX).cloned().collect(),
            },
        }
    }
}

impl Store {
    /// Something was set aside under a conflict's name.
    pub(super) fn note_conflict(&self, path: &TreePath) {
        tracing::warn!(%path, "kept as a conflict: two nodes had this name with other content; compare them, then remove or rename one");
        let mut book = lock(&self.troubles);
        if book.conflicts.len() < LISTED_MAX {
            book.is_changed |= book.conflicts.insert(path.as_bytes().to_vec());
        }
    }

    /// A file was come by: one that bears a conflict's name of this node is one, also where that was forgotten.
    pub(crate) fn note_if_conflict(&self, path: &TreePath) {
        let is_one = |name: &[u8]| {
            let node = self.node_name.get().map_or(String::new(), Clone::clone);
            let mark = format!(".conflict-{node}").into_bytes();
            let at = name
                .windows(mark.len())
                .rposition(|window| window == mark)?;
            let rest = &name[at + mark.len()..];
            let numbered = rest.first().is_none_or(|first| *first == b'-')
                && rest.iter().skip(1).all(u8::is_ascii_digit);
            (at > 0 && numbered).then_some(())
        };
        if path
            .split_last()
            .is_some_and(|(_, name)| is_one(name).is_some())
        {
            let mut book = lock(&self.troubles);
            if book.conflicts.len() < LISTED_MAX {
                let is_new = book.conflicts.insert(path.as_bytes().to_vec());
                book.is_changed |= is_new;
            }
        }
    }

    /// No good copy of that version can be found.
    pub(crate) fn note_damaged(&self, path: &TreePath, version: u64) {
        let mut book = lock(&self.troubles);
        if book.damaged.len() < LISTED_MAX {
            let before = book.damaged.insert(path.as_bytes().to_vec(), version);
            book.is_changed |= before != Some(version);
        }
    }

    /// Whether that version was found without a good copy.
    pub(crate) fn is_damaged(&self, path: &TreePath, version: u64) -> bool {
        let book = lock(&self.troubles);
        book.damaged.get(path.as_bytes()) == Some(&version)
    }

    /// The file is good, has another version, or is gone.
    pub(crate) fn note_sound(&self, path: &TreePath) {
        let mut book = lock(&self.troubles);
        let before = book.damaged.remove(path.as_bytes());
        book.is_changed |= before.is_some();
    }

    /// Damaged state was thrown away; it is made anew by itself.
    pub(crate) fn note_thrown_away(&self, what: String) {
        tracing::warn!("{what} was damaged: it was thrown away and is made anew");
        let mut book = lock(&self.troubles);
        book.thrown_away.truncate(THROWN_AWAY_MAX - 1);
        book.thrown_away.push_front(what);
        book.thrown_away_in_all += 1;
        book.is_changed = true;
    }

    /// The files that were found without a good copy, and the version that was looked at.
    pub(crate) fn damaged_files(&self) -> Vec<(TreePath, u64)> {
        let book = lock(&self.troubles);
        let damaged = book.damaged.iter();
        damaged
            .filter_map(|(path, version)| Some((TreePath::new(path)?, *version)))
            .collect()
    }

    /// What is to be told now: conflicts that were renamed or removed are gone. Written down where it changed.
    pub fn troubles(&self) -> Troubles {
        let mut book = lock(&self.troubles);
        let before = book.conflicts.len();
        book.conflicts
            .retain(|path| TreePath::new(path).is_some_and(|path| self.root.stat(&path).is_ok()));
        if book.is_changed || book.conflicts.len() != before {
            let path = self.state_dir().join("troubles");
            let bytes = postcard::to_allocvec(&*book).expect("it always encodes");
            match state::write_whole(&path, &bytes) {
                Ok(()) => book.is_changed = false,
                Err(error) => tracing::debug!(%error, "the list of troubles was not written down"),
            }
        }
        book.told()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> TreePath {
        TreePath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_settled_leaves_and_the_rest_outlives_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        store.set_node_name("two");
        assert!(store.troubles().is_empty());
        for number in 0..20 {
            let name = format!("f{number}.conflict-two");
            std::fs::write(directory.path().join(&name), "x").unwrap();
            store.note_conflict(&path(&name));
        }
        store.note_damaged(&path("d/lost"), 3);
        store.note_damaged(&path("d/other"), 3);
        store.note_sound(&path("d/other"));
        store.note_thrown_away("a block map".into());
        let told = store.troubles();
        assert_eq!(
            (told.conflicts.count, told.conflicts.first.len()),
            (20, TOLD_MAX)
        );
        assert_eq!(told.damaged.first, ["d/lost"]);
        assert_eq!(told.thrown_away.count, 1);
        drop(store);
        std::fs::remove_file(directory.path().join("f7.conflict-two")).unwrap();
        std::fs::rename(
            directory.path().join("f8.conflict-two"),
            directory.path().join("f8"),
        )
        .unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        let again = store.troubles();
        assert_eq!(again.conflicts.count, 18);
        assert_eq!(
            (again.damaged, again.thrown_away),
            (told.damaged, told.thrown_away)
        );
        assert_eq!(store.damaged_files(), [(path("d/lost"), 3)]);
    }

    #[test]
    fn conflicts_are_known_by_their_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), 0).unwrap();
        store.set_node_name("two");
        for (name, is_one) in [
            ("a.conflict-two", true),
            ("a.conflict-two-12", true),
            ("a.conflict-two-x", false),
            ("a.conflict-twoo", false),
            (".conflict-two", false),
            ("a", false),
        ] {
            std::fs::write(directory.path().join(name), "x").unwrap();
            let before = store.troubles().conflicts.count;
            store.note_if_conflict(&path(name));
            assert_eq!(
                store.troubles().conflicts.count,
                before + u64::from(is_one),
                "{name}"
            );
        }
    }
}
