//! What a function opens, as far as its calls have shown: patterns of paths, each with how often it was right.
//!
//! Pure. A path that a call opened may be read in several ways; the next calls show which of them are right. A guess is given
//! where the ways left are few; one that was wrong is forgotten, and a function whose guesses are mostly wrong is not guessed at until
//! a pattern has been confirmed. What always holds: at most `HABITS_MAX` patterns are kept, and a wrong guess is no more than a worse place.
//! Not for calls with the very same arguments: what those opened is known, not guessed.
use super::pattern::{Pattern, READINGS_MAX, Texts, readings};
use serde_bytes::ByteBuf;
use std::collections::{BTreeMap, HashSet};

/// Files of one function that are remembered.
pub const HABITS_MAX: usize = 16;
/// Files of one call that are looked at.
pub const FILES_MAX: usize = 64;
/// Paths that one file's ways of reading may make for it to be guessed at.
pub const ALTERNATIVES_MAX: usize = 4;
/// Counts are halved here: what is over long ago counts less.
const COUNT_MAX: u8 = 16;

/// A file that a function opens.
#[derive(Debug)]
struct Habit {
    /// Ways to make its path, none of them refuted.
    patterns: Vec<Pattern>,
    hits: u8,
    misses: u8,
}

/// What a function opens.
#[derive(Debug, Default)]
pub struct Habits {
    habits: Vec<Habit>,
    /// Calls for which a guess was right, and for which none was.
    right: u8,
    wrong: u8,
}

/// One file that a call may open: the paths it may have, and how each is made, for people.
pub type Guess = BTreeMap<Vec<u8>, String>;

impl Habits {
    /// What a call with these arguments is thought to open.
    pub fn guesses(&self, texts: &Texts) -> Vec<Guess> {
        let guessed = self.habits.iter().filter(|habit| self.trusts(habit));
        guessed
            .map(|habit| habit.makes(texts))
            .filter(|guess| (1..=ALTERNATIVES_MAX).contains(&guess.len()))
            .collect()
    }

    /// A call with these arguments opened these files (one at least).
    pub fn observe(&mut self, texts: &Texts, files: &[ByteBuf]) {
        let files = &files[..files.len().min(FILES_MAX)];
        let opened: HashSet<&[u8]> = files.iter().map(|file| &file[..]).collect();
        self.judge(texts, &opened);
        let mut explained = HashSet::new();
        for habit in &mut self.habits {
            explained.extend(habit.learn(texts, &opened));
        }
        self.habits.retain(|habit| habit.misses <= habit.hits);
        for file in files.iter().filter(|file| !explained.contains(&file[..])) {
            let patterns = readings(file, texts);
            if !patterns.is_empty() {
                self.habits.push(Habit {
                    patterns,
                    hits: 0,
                    misses: 0,
                });
            }
        }
        while self.habits.len() > HABITS_MAX {
            let worth = |at: &usize| (self.habits[*at].hits, *at);
            let worst = (0..self.habits.len()).min_by_key(worth);
            self.habits.remove(worst.expect("there are some"));
        }
    }

    /// About what it takes in memory.
    pub fn size_bytes(&self) -> usize {
        let patterns = self.habits.iter().flat_map(|habit| &habit.patterns);
        128 + patterns
            .map(|pattern| 32 + pattern.size_bytes())
            .sum::<usize>()
    }

    fn trusts(&self, habit: &Habit) -> bool {
        habit.hits > 0 || self.right >= self.wrong
    }

    fn judge(&mut self, texts: &Texts, opened: &HashSet<&[u8]>) {
        let guesses = self.guesses(texts);
        if guesses.is_empty() {
            return;
        }
        let is_right = |guess: &Guess| guess.keys().any(|path| opened.contains(&path[..]));
        match guesses.iter().any(is_right) {
            true => self.right += 1,
            false => self.wrong += 1,
        }
        if self.right.max(self.wrong) >= COUNT_MAX {
            self.right /= 2;
            self.wrong /= 2;
        }
    }
}

impl Habit {
    fn makes(&self, texts: &Texts) -> Guess {
        let made = self
            .patterns
            .iter()
            .filter_map(|pattern| Some((pattern.make(texts)?, pattern)));
        made.map(|(path, pattern)| (path, pattern.to_string()))
            .collect()
    }

    /// Keeps the ways of reading that made what was opened; which files those are.
    fn learn<'a>(&mut self, texts: &Texts, opened: &HashSet<&'a [u8]>) -> Vec<&'a [u8]> {
        debug_assert!(self.patterns.len() <= READINGS_MAX);
        let made: Vec<_> = self
            .patterns
            .iter()
            .map(|pattern| pattern.make(texts))
            .collect();
        if made.iter().all(Option::is_none) {
            return Vec::new();
        }
        let found = |path: &Option<Vec<u8>>| opened.get(path.as_deref()?).copied();
        let hits: Vec<_> = made.iter().filter_map(found).collect();
        if hits.is_empty() {
            self.misses += 1;
        } else {
            let mut confirmed = made.iter().map(|path| found(path).is_some());
            self.patterns
                .retain(|_| confirmed.next().expect("one for each"));
            self.hits += 1;
        }
        if self.hits.max(self.misses) >= COUNT_MAX {
            self.hits /= 2;
            self.misses /= 2;
        }
        hits
    }
}

#[cfg(test)]
mod tests;
