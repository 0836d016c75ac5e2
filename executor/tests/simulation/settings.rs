//! Clusters and work to try rules on, made from a seed.
use super::{Job, Setting};

/// What a gigabit link carries.
const LINK_BYTES_PER_MS: u64 = 110_000;

/// Numbers by chance, the same for the same seed (SplitMix64).
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    /// 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
    /// From half of `mean` to one and a half of it.
    pub fn about(&mut self, mean: u64) -> u64 {
        mean / 2 + self.below(mean + 1)
    }
}

/// What a setting is made of.
pub struct Plan {
    pub name: &'static str,
    pub nodes: usize,
    pub slots: usize,
    pub files: usize,
    pub file_bytes: u64,
    pub copies: usize,
    /// Files are on the first so many nodes alone.
    pub holding_nodes: usize,
    pub jobs: usize,
    pub run_ms: u64,
    /// How much more often the first files are read: 0 all alike, 1 as words are used.
    pub skew: u32,
    /// Time over which they come; 0: all at once.
    pub over_ms: u64,
}

impl Plan {
    pub fn make(&self, seed: u64) -> Setting {
        let mut chance = Chance::new(seed);
        let holding = self.holding_nodes.min(self.nodes) as u64;
        let files: Vec<(u64, Vec<usize>)> = (0..self.files)
            .map(|_| {
                let first = chance.below(holding);
                let holders =
                    (0..self.copies as u64).map(|copy| ((first + copy * 7) % holding) as usize);
                let mut holders: Vec<usize> = holders.collect();
                holders.sort_unstable();
                holders.dedup();
                (chance.about(self.file_bytes), holders)
            })
            .collect();
        let mut jobs: Vec<Job> = (0..self.jobs)
            .map(|number| Job {
                at_ms: chance.below(self.over_ms + 1),
                file: self.file(&mut chance, number),
                run_ms: chance.about(self.run_ms),
            })
            .collect();
        jobs.sort_by_key(|job| job.at_ms);
        Setting {
            name: self.name,
            nodes: self.nodes,
            slots: self.slots,
            files,
            jobs,
            link_bytes_per_ms: LINK_BYTES_PER_MS,
        }
    }

    fn file(&self, chance: &mut Chance, number: usize) -> usize {
        match self.skew {
            0 => number % self.files,
            // The logarithm of the rank is what is drawn evenly.
            _ => {
                let draw = chance.below(1 << 20) as f64 / (1 << 20) as f64;
                ((self.files as f64).powf(draw) - 1.0) as usize % self.files
            }
        }
    }
}

/// A file that one node with one worker holds, and calls that all read it, at once.
pub fn hot_file(nodes: usize, jobs: usize, file_bytes: u64, run_ms: u64) -> Setting {
    Setting {
        name: "a hot file",
        nodes,
        slots: 1,
        files: vec![(file_bytes, vec![0])],
        jobs: vec![
            Job {
                at_ms: 0,
                file: 0,
                run_ms,
            };
            jobs
        ],
        link_bytes_per_ms: LINK_BYTES_PER_MS,
    }
}

const MB: u64 = 1_000_000;

/// The usual cases, `scale` times as large.
pub fn all(scale: usize) -> Vec<Plan> {
    let plan = |name| Plan {
        name,
        nodes: 20 * scale,
        slots: 2,
        files: 400 * scale,
        file_bytes: 64 * MB,
        copies: 1,
        holding_nodes: usize::MAX,
        jobs: 400 * scale,
        run_ms: 200,
        skew: 0,
        over_ms: 0,
    };
    vec![
        plan("one call a file"),
        Plan {
            copies: 3,
            ..plan("three copies")
        },
        Plan {
            run_ms: 5,
            file_bytes: MB,
            jobs: 2_000 * scale,
            ..plan("short calls, small files")
        },
        Plan {
            skew: 1,
            ..plan("a few files are read often")
        },
        Plan {
            skew: 1,
            file_bytes: 150 * MB,
            run_ms: 50,
            ..plan("large files, short calls, skewed")
        },
        Plan {
            holding_nodes: 2 * scale,
            ..plan("a tenth of the nodes hold all")
        },
        Plan {
            holding_nodes: 2 * scale,
            file_bytes: 150 * MB,
            run_ms: 50,
            ..plan("the same, large files, short calls")
        },
        Plan {
            file_bytes: 1_000 * MB,
            ..plan("files over the threshold")
        },
        Plan {
            over_ms: 3_000,
            jobs: 500 * scale,
            ..plan("calls that come by and by")
        },
        Plan {
            over_ms: 3_000,
            jobs: 500 * scale,
            skew: 1,
            ..plan("the same, skewed")
        },
        Plan {
            run_ms: 10_000,
            jobs: 80 * scale,
            ..plan("long calls")
        },
    ]
}
