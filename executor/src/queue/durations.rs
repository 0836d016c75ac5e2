//! How long the calls of each function take here: what the queue's rule has to know to leave a call to a busy node or not.
//!
//! Pure, and bounded. A worker's first call of a function says little about the next one: it imports what the function needs. So
//! where others have ended since, they are what counts.
use super::Took;
use crate::protocol::FunctionRef;
use std::collections::{BTreeSet, HashMap};

/// Functions of which it is remembered; one more, and all are forgotten.
const FUNCTIONS_MAX: usize = 1_024;
/// Functions that are told of at once.
const SAID_MAX: usize = 32;
/// Shorter than this, in ms, is nothing: over before anybody else comes.
const SHORT_MS: u64 = 10;
/// Each further call takes this part of the longest one's time from it.
const FADES: u64 = 16;

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    call_us: u64,
    longest_us: u64,
    /// What others were told, ms.
    said: (u64, u64),
}

impl Known {
    fn ms(&self) -> (u64, u64) {
        (
            rounded(self.call_us / 1_000),
            rounded(self.longest_us / 1_000),
        )
    }
}

/// The memory.
#[derive(Debug, Default)]
pub struct Durations {
    functions: HashMap<u64, Known>,
    unsaid: BTreeSet<u64>,
}

impl Durations {
    /// A call took so long; `is_first`: its worker had run nothing of that function before.
    pub fn took(&mut self, function: u64, run_us: u64, is_first: bool) {
        if self.functions.len() >= FUNCTIONS_MAX && !self.functions.contains_key(&function) {
            self.functions.clear();
            self.unsaid.clear();
        }
        let known = self.functions.entry(function).or_default();
        known.longest_us = run_us.max(known.longest_us - known.longest_us / FADES);
        if !is_first {
            known.call_us = match known.call_us {
                0 => run_us,
                before => before / 2 + run_us / 2,
            };
        }
        if known.ms() != known.said {
            self.unsaid.insert(function);
        }
    }

    /// What is new since the others were told last, so many functions at most.
    pub fn say(&mut self) -> Vec<Took> {
        let mut news = Vec::new();
        while news.len() < SAID_MAX
            && let Some(function) = self.unsaid.pop_first()
        {
            let known = self
                .functions
                .get_mut(&function)
                .expect("both are cleared at once");
            known.said = known.ms();
            let (call_ms, longest_ms) = known.said;
            news.push(Took {
                function,
                call_ms,
                longest_ms,
            });
        }
        news
    }
}

/// Tells functions from each other.
pub fn function_key(function: &FunctionRef) -> u64 {
    let hash = match function {
        FunctionRef::Hash(hash) if hash.len() == 32 => return first_8(hash),
        FunctionRef::Hash(hash) => blake3::hash(hash),
        FunctionRef::Name(name) => blake3::hash(name.as_bytes()),
    };
    first_8(hash.as_bytes())
}

fn first_8(hash: &[u8]) -> u64 {
    u64::from_le_bytes(hash[..8].try_into().expect("8 of 32 bytes"))
}

/// Two figures are enough, and the same for calls that take about as long.
fn rounded(ms: u64) -> u64 {
    if ms < SHORT_MS {
        return 0;
    }
    let unit = 10u64.pow(ms.ilog10().saturating_sub(1));
    ms / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_said_once() {
        let mut durations = Durations::default();
        durations.took(7, 3_000_000, true);
        let first = Took {
            function: 7,
            call_ms: 0,
            longest_ms: 3_000,
        };
        assert_eq!(durations.say(), [first]);
        assert!(durations.say().is_empty());
        durations.took(7, 100_000, false);
        let [then] = durations.say()[..] else {
            panic!("it took 100 ms without its imports")
        };
        assert_eq!((then.call_ms, then.longest_ms), (100, 2_800));
        durations.took(9, 500, true);
        assert!(
            durations.say().is_empty(),
            "short ones are nothing to speak of"
        );
    }

    #[test]
    fn it_does_not_grow() {
        let mut durations = Durations::default();
        for function in 0..3_000 {
            durations.took(function, 50_000, false);
        }
        assert!(
            durations.functions.len() <= FUNCTIONS_MAX && durations.unsaid.len() <= FUNCTIONS_MAX
        );
        assert_eq!(durations.say().len(), SAID_MAX);
    }
}
