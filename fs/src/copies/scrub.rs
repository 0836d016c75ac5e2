//! When the scrub reads on: each file of the data directory about once in an interval, evenly, and never faster than a bound. Pure.
//!
//! A *pass* goes over all files in the order of their paths. It begins with the interval and is as far through the bytes as the interval is through its time; a node
//! that was down catches up at the bound. Where it is, is kept on disk: a restart goes on.
//!
//! Not for reading or comparing (`store::check`), nor for mending (`filesystem::checking`).
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bytes read in a second at most.
pub const BYTES_PER_SECOND_MAX: u64 = 32 << 20;
/// What a file costs beside its bytes.
const FILE_BYTES: u64 = 64 << 10;
/// The longest time between two looks at the clock.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// The shortest, where the interval is long: what is due meanwhile is read in one go.
const WAIT_MIN: Duration = Duration::from_secs(60);
/// The shortest of all.
const WAIT_LEAST: Duration = Duration::from_millis(100);

/// How far the scrub is. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// When this pass began; 0: none has.
    pub began_ms: u64,
    /// The path of the last file that was looked at, from the tree's root; empty: none in this pass.
    pub position: Vec<u8>,
    /// What was read in this pass, bytes, with something for each file.
    pub read_bytes: u64,
    /// Files looked at in this pass.
    pub files: u64,
    /// All files of this pass have been looked at.
    pub is_over: bool,
    /// When the last whole pass ended; 0: there was none.
    pub ended_ms: u64,
    /// What that one read.
    pub last_read_bytes: u64,
    /// And how many files it looked at.
    pub last_files: u64,
    /// Damaged copies that were found since the first start here.
    pub damaged: u64,
    /// Those of them that were mended.
    pub mended: u64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Look at the next file.
    Look,
    /// Ask again after that time.
    Wait(Duration),
}

impl Progress {
    /// Each file once in `interval`; `used_bytes` of the disk are used, which is what a first pass expects to read at most.
    pub fn next(&mut self, interval: Duration, now_ms: u64, used_bytes: u64) -> Next {
        let interval_ms = u64::try_from(interval.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        if self.began_ms == 0 || now_ms < self.began_ms {
            // The first one, or the clock was set back.
            self.began_ms = now_ms.max(1);
        }
        let elapsed_ms = now_ms.saturating_sub(self.began_ms);
        if self.is_over {
            if elapsed_ms < interval_ms {
                return wait(interval, interval_ms - elapsed_ms);
            }
            self.begin(now_ms);
            return Next::Look;
        }
        let expected = match self.last_read_bytes {
            0 => used_bytes,
            last => last,
        };
        let due = u128::from(expected) * u128::from(elapsed_ms) / u128::from(interval_ms);
        let ahead = u128::from(self.read_bytes).saturating_sub(due);
        if ahead == 0 || expected == 0 || elapsed_ms >= interval_ms {
            return Next::Look;
        }
        let ahead_ms = ahead * u128::from(interval_ms) / u128::from(expected);
        wait(interval, u64::try_from(ahead_ms).unwrap_or(u64::MAX))
    }

    fn begin(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
        self.position.clear();
        (self.read_bytes, self.files, self.is_over) = (0, 0, false);
    }

    /// The file at `path` was looked at, and so many bytes of it read.
    pub fn looked(&mut self, path: &[u8], bytes: u64) {
        self.position.clear();
        self.position.extend_from_slice(path);
        self.read_bytes = self.read_bytes.saturating_add(cost(bytes));
        self.files += 1;
    }

    /// There is no file behind the last one.
    pub fn passed(&mut self, now_ms: u64) {
        self.is_over = true;
        self.ended_ms = now_ms;
        (self.last_read_bytes, self.last_files) = (self.read_bytes, self.files);
    }
}

/// What a file of so many bytes counts for.
fn cost(bytes: u64) -> u64 {
    bytes.saturating_add(FILE_BYTES)
}

fn wait(interval: Duration, milliseconds: u64) -> Next {
    let least = (interval / 1000).clamp(WAIT_LEAST, WAIT_MIN);
    Next::Wait(Duration::from_millis(milliseconds).clamp(least, WAIT_MAX))
}

/// How long the reading of so many bytes takes at least.
pub fn least_time(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND_MAX as f64)
}

/// How long to rest after a file of so many bytes, beside what its reading took.
pub fn rest_after_file() -> Duration {
    least_time(FILE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    /// A node with these files, run from `now_ms` until `passes` are over; returns how often each was read and when each pass ended.
    fn run(
        files: &[u64],
        interval: Duration,
        passes: usize,
        restarts: &[u64],
    ) -> (Vec<u32>, Vec<u64>) {
        let mut progress = Progress::default();
        let (mut read, mut ends) = (vec![0; files.len()], Vec::new());
        let mut now_ms = 1_000_000;
        let used: u64 = files.iter().sum();
        let mut steps = 0u64;
        while ends.len() < passes {
            steps += 1;
            if restarts.contains(&steps) {
                // What is on disk is what goes on; the node was away for a day.
                progress =
                    postcard::from_bytes(&postcard::to_allocvec(&progress).unwrap()).unwrap();
                now_ms += DAY_MS;
            }
            match progress.next(interval, now_ms, used) {
                Next::Wait(time) => now_ms += time.as_millis() as u64,
                Next::Look => {
                    let next = match progress.position[..] {
                        [] => 0,
                        ref bytes => usize::from_le_bytes(bytes.try_into().unwrap()) + 1,
                    };
                    let Some(size) = files.get(next) else {
                        progress.passed(now_ms);
                        ends.push(now_ms);
                        continue;
                    };
                    read[next] += 1;
                    progress.looked(&next.to_le_bytes(), *size);
                    now_ms += least_time(cost(*size)).as_millis() as u64;
                }
            }
            assert!(steps < 1_000_000, "it does not come to an end");
        }
        (read, ends)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Every file once a pass, also over restarts; a pass takes about its interval and the next does not begin before.
        #[test]
        fn each_file_once_in_the_interval(
            files in prop::collection::vec(0u64..1 << 32, 0..60),
            restarts in prop::collection::vec(1u64..500, 0..3),
        ) {
            let interval = Duration::from_millis(30 * DAY_MS);
            let (read, ends) = run(&files, interval, 3, &restarts);
            prop_assert!(read.iter().all(|times| *times == 3));
            for pair in ends.windows(2) {
                let took = pair[1] - pair[0];
                prop_assert!(took <= (34 + 30) * DAY_MS, "took {} days", took / DAY_MS);
            }
            prop_assert!(ends[2] - ends[0] >= 29 * DAY_MS);
        }
    }

    #[test]
    fn what_takes_longer_than_the_interval_is_read_at_the_bound() {
        let files = [1 << 30; 50];
        let interval = Duration::from_secs(1);
        let (read, ends) = run(&files, interval, 2, &[]);
        assert!(read.iter().all(|times| *times == 2));
        let least_ms = 50 * (1u64 << 30) / BYTES_PER_SECOND_MAX * 1000;
        assert!(ends[1] - ends[0] >= least_ms);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_it() {
        let mut progress = Progress::default();
        let interval = Duration::from_millis(30 * DAY_MS);
        assert_eq!(progress.next(interval, 400 * DAY_MS, 1000), Next::Look);
        progress.looked(b"a", 10);
        progress.passed(400 * DAY_MS);
        assert!(matches!(
            progress.next(interval, 2 * DAY_MS, 1000),
            Next::Wait(_)
        ));
        assert_eq!(progress.next(interval, 33 * DAY_MS, 1000), Next::Look);
    }
}
