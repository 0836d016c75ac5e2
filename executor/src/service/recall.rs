//! Calls that name no file, placed by what earlier calls opened.
//!
//! Before the catalog is asked, `remember` says which files such calls may need; afterwards `choose` takes those that are there as hints
//! (`locality`). What is learned is never a reason to refuse a call: one that cannot be placed by it is placed without.
use super::Executor;
use super::learned::Known;
use crate::placement::habits::Guess;
use crate::placement::resolve::{self, Files};
use crate::protocol::Call;
use ks_fs::path::TreePath;
use serde_bytes::ByteBuf;
use std::collections::HashMap;

/// What is known of calls that name no file, by job.
pub(super) type Remembered = HashMap<String, Known>;
impl Executor {
    /// What is known of these calls. What they open now is noted when they end.
    pub(super) fn remember(&self, calls: &mut [Call]) -> Remembered {
        let mut remembered = Remembered::new();
        for call in calls {
            let Some(lesson) = self.learned.lesson(call) else {
                continue;
            };
            call.texts = Vec::new();
            if let Some(known) = self.learned.recall(&lesson) {
                remembered.insert(call.job.clone(), known);
            }
            self.callers.learn_from(&call.job, lesson);
        }
        remembered
    }

    /// Gives a call the files as hints that it is known, or thought, to open; how it is known, for people. `None`: there are none.
    pub(super) fn choose(&self, call: &mut Call, known: &Known, files: &Files) -> Option<String> {
        let (chosen, how) = match known {
            Known::Opened(paths) => {
                let there = paths.iter().filter(|path| is_there(path, files));
                let how = "this call opened before";
                (there.cloned().collect(), how.to_owned())
            }
            Known::Guessed(guesses) => chosen(guesses, files),
        };
        if chosen.is_empty() {
            return None;
        }
        call.locality = chosen.iter().map(|path| self.absolute(path)).collect();
        call.mountpoint = Some(self.mountpoint.clone().into());
        Some(how)
    }

    fn absolute(&self, path: &[u8]) -> ByteBuf {
        ByteBuf::from([&self.mountpoint[..], b"/", path].concat())
    }
}

/// The paths to be looked up for what is known.
pub(super) fn paths(remembered: &Remembered) -> Vec<TreePath> {
    let of = |known: &Known| -> Vec<TreePath> {
        match known {
            Known::Opened(paths) => paths
                .iter()
                .filter_map(|path| TreePath::new(path))
                .collect(),
            Known::Guessed(guesses) => {
                let paths = guesses.iter().flat_map(|guess| guess.keys());
                paths.filter_map(|path| TreePath::new(path)).collect()
            }
        }
    };
    remembered
        .values()
        .flat_map(of)
        .take(resolve::PATHS_MAX)
        .collect()
}

/// Of each guess the one path that is there: where several are, it says nothing.
fn chosen(guesses: &[Guess], files: &Files) -> (Vec<ByteBuf>, String) {
    let mut chosen = Vec::new();
    let mut patterns = Vec::new();
    for guess in guesses {
        let mut there = guess.iter().filter(|(path, _)| is_there(path, files));
        if let (Some((path, pattern)), None) = (there.next(), there.next()) {
            chosen.push(ByteBuf::from(path.clone()));
            patterns.push(format!("/{pattern}"));
        }
    }
    let how = format!("that earlier calls make likely: {}", patterns.join(", "));
    (chosen, how)
}

fn is_there(path: &[u8], files: &Files) -> bool {
    let path = TreePath::new(path);
    path.is_some_and(|path| files.get(&path).is_some_and(|seen| !seen.files.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::{FileFact, resolve::Seen};
    use std::sync::Arc;

    #[test]
    fn a_guess_counts_where_one_of_its_paths_is_there() {
        let file = || {
            let fact = FileFact {
                size_bytes: 1,
                holders: Vec::new(),
            };
            Seen {
                is_there: true,
                files: vec![Arc::new(fact)],
            }
        };
        let path = |text: &str| TreePath::new(text.as_bytes()).unwrap();
        let files = Files::from([
            (path("1/2"), file()),
            (path("2/1"), Seen::default()),
            (path("3"), file()),
            (path("03"), file()),
        ]);
        let guess = |paths: &[&str]| -> Guess {
            let pairs = paths
                .iter()
                .map(|path| (path.as_bytes().to_vec(), "p".to_owned()));
            pairs.collect()
        };
        let (paths, how) = chosen(&[guess(&["1/2", "2/1"]), guess(&["3", "03"])], &files);
        assert_eq!(paths, [ByteBuf::from(b"1/2".to_vec())]);
        assert_eq!(how, "that earlier calls make likely: /p");
    }
}
