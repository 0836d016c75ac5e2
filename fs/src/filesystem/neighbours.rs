//! Who opens the small files of a directory one after the other: which of them come next. Pure.
//!
//! Evidence is opens of neighbours in the order of the directory's names, as `cp -r`, `tar`, `grep -r` and most loops make them: from
//! the third on, those that come next are asked for, twice as many each time, in batches.
//!
//! What always holds: nothing is given out twice in one run, nor more than [`AHEAD_MAX`] files ahead of the last open; an open out of
//! order begins anew. Bounded: [`WINDOWS_MAX`] directories, the ones used last, of at most [`NAMES_MAX`] names each.
use crate::record::Ino;
use std::collections::VecDeque;
use std::ops::Range;

/// Files asked for ahead of the last open.
pub(super) const AHEAD_MAX: usize = 32;
/// A larger directory has no windows.
pub(super) const NAMES_MAX: usize = 16_384;
/// Directories that are watched at a time.
const WINDOWS_MAX: usize = 8;
/// Opens of neighbours after which the next are asked for.
const RUN_MIN: u32 = 2;
/// Names between two opens that still count as neighbours: directories, and files that are not small.
const SKIPPED_MAX: usize = 4;

/// The directories that were used last.
#[derive(Default)]
pub(super) struct Neighbours {
    /// The one used last at the front.
    windows: VecDeque<Window>,
}

struct Window {
    directory: Ino,
    /// The file that was opened last.
    last: Ino,
    order: Option<Order>,
}

/// A directory's files in the order of their names, and how far somebody has come in it.
struct Order {
    inos: Vec<Ino>,
    last: usize,
    run: u32,
    asked_until: usize,
}

impl Neighbours {
    /// A small file of `directory` is opened; returns which are to be asked for. `order`: the directory's inodes by name, where that
    /// is known; called at most once, and not for a directory's first open.
    pub(super) fn opened(
        &mut self,
        directory: Ino,
        ino: Ino,
        order: impl FnOnce() -> Option<Vec<Ino>>,
    ) -> Vec<Ino> {
        let known = self.windows.iter().position(|w| w.directory == directory);
        let Some(mut window) = known.and_then(|at| self.windows.remove(at)) else {
            self.windows.truncate(WINDOWS_MAX - 1);
            self.windows.push_front(Window {
                directory,
                last: ino,
                order: None,
            });
            return Vec::new();
        };
        if window.last == ino {
            self.windows.push_front(window);
            return Vec::new();
        }
        if window.order.is_none() {
            window.order = order().and_then(|inos| Order::from(inos, window.last));
        }
        let next = window.order.as_mut().and_then(|order| order.opened(ino));
        if next.is_none() {
            // Not among the names that were known: they are looked at again.
            window.order = None;
        }
        window.last = ino;
        self.windows.push_front(window);
        next.unwrap_or_default()
    }
}

impl Order {
    /// `None`: `last` is not among them.
    fn from(inos: Vec<Ino>, last: Ino) -> Option<Self> {
        let last = inos.iter().position(|ino| *ino == last)?;
        Some(Self {
            inos,
            last,
            run: 0,
            asked_until: last + 1,
        })
    }

    /// `None`: it is not among them.
    fn opened(&mut self, ino: Ino) -> Option<Vec<Ino>> {
        let near = self.last + 1..(self.last + 2 + SKIPPED_MAX).min(self.inos.len());
        let next = near.clone().find(|at| self.inos[*at] == ino);
        match next {
            Some(at) => (self.last, self.run) = (at, self.run.saturating_add(1)),
            None => {
                let at = self.inos.iter().position(|there| *there == ino)?;
                (self.last, self.run, self.asked_until) = (at, 0, at + 1);
            }
        }
        let wanted = self.wanted();
        Some(self.inos[wanted].to_vec())
    }

    fn wanted(&mut self) -> Range<usize> {
        if self.run < RUN_MIN {
            return 0..0;
        }
        let count = AHEAD_MAX.min(1 << self.run.min(16));
        let first = self.asked_until.max(self.last + 1);
        let end = (self.last + 1 + count).min(self.inos.len());
        let is_batch = end >= first + count / 2 || end == self.inos.len();
        if first >= end || !is_batch {
            return 0..0;
        }
        self.asked_until = end;
        first..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const DIRECTORY: Ino = 7;

    fn order(count: u64) -> Vec<Ino> {
        (100..100 + count).collect()
    }

    #[test]
    fn who_goes_through_a_directory_finds_every_file_asked_for_once_and_in_time() {
        let mut neighbours = Neighbours::default();
        let mut asked = BTreeSet::new();
        for ino in order(200) {
            if ino >= 103 {
                assert!(asked.contains(&ino), "{ino} was not asked for");
            }
            for next in neighbours.opened(DIRECTORY, ino, || Some(order(200))) {
                assert!(next > ino && next <= ino + AHEAD_MAX as Ino);
                assert!(asked.insert(next), "{next} was asked for twice");
            }
            // Opened again by the same program.
            let again = neighbours.opened(DIRECTORY, ino, || unreachable!("known"));
            assert!(again.is_empty());
        }
        assert_eq!(asked.last(), Some(&299));
    }

    #[test]
    fn a_single_open_costs_nothing_and_an_order_that_is_not_known_asks_for_nothing() {
        let mut neighbours = Neighbours::default();
        let first = neighbours.opened(DIRECTORY, 100, || unreachable!("the first open"));
        assert!(first.is_empty());
        for ino in 101..120 {
            assert!(neighbours.opened(DIRECTORY, ino, || None).is_empty());
        }
    }

    #[test]
    fn a_file_that_came_later_is_found_when_the_names_are_looked_at_again() {
        let mut neighbours = Neighbours::default();
        let mut asked = Vec::new();
        for ino in 100..103 {
            asked = neighbours.opened(DIRECTORY, ino, || Some(order(5)));
        }
        assert_eq!(asked, [103, 104]);
        for ino in 105..110 {
            asked.extend(neighbours.opened(DIRECTORY, ino, || Some(order(50))));
        }
        assert!(asked.contains(&110));
    }

    proptest! {
        #[test]
        fn out_of_order_little_is_asked_for(opens in proptest::collection::vec(0u64..40, 0..200)) {
            let mut neighbours = Neighbours::default();
            for open in opens {
                let asked = neighbours.opened(open % 10, 100 + open, || Some(order(40)));
                prop_assert!(asked.len() <= AHEAD_MAX);
                prop_assert!(asked.iter().all(|next| *next > 100 + open));
                prop_assert!(neighbours.windows.len() <= WINDOWS_MAX);
            }
        }
    }
}
