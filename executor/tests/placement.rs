//! How calls are placed, in simulated clusters: against other rules, and against one who knows everything beforehand.
//! `cargo run --release --example placement` prints the whole comparison.
mod simulation;

use proptest::prelude::*;
use simulation::rules::{AlwaysLocal, Ours, Random, Seeds};
use simulation::settings::{self, Plan};
use simulation::{Outcome, Setting, oracle, run};

const MB: u64 = 1_000_000;

fn ours(setting: &Setting) -> Outcome {
    run(setting, &mut Ours::new(setting.nodes))
}

fn seeds(setting: &Setting) -> Outcome {
    run(setting, &mut Seeds::new(setting.nodes))
}

fn times(outcome: &Outcome, other: &Outcome) -> f64 {
    outcome.makespan_ms as f64 / other.makespan_ms.max(1) as f64
}

#[test]
fn a_hot_file_is_read_nearly_as_fast_as_can_be() {
    for (nodes, file_mb, run_ms) in [
        (3, 64, 200),
        (3, 8, 200),
        (3, 8, 50),
        (4, 150, 1_000),
        (2, 16, 100),
    ] {
        let setting = settings::hot_file(nodes, 30, file_mb * MB, run_ms);
        let (outcome, best) = (ours(&setting), oracle::run(&setting));
        let ratio = times(&outcome, &best);
        assert!(
            ratio <= 1.15,
            "{nodes} nodes, {file_mb} MB, {run_ms} ms: {ratio:.2} of the oracle"
        );
        let alone = run(&setting, &mut AlwaysLocal::new(nodes));
        assert!(outcome.makespan_ms < alone.makespan_ms);
    }
}

/// What many nodes want at once spreads from node to node; they do not all fetch it from its one holder.
#[test]
fn a_hot_file_spreads_over_many_nodes() {
    let setting = settings::hot_file(200, 3_000, 64 * MB, 200);
    let (outcome, best) = (ours(&setting), oracle::run(&setting));
    assert!(
        times(&outcome, &best) <= 2.5,
        "{:.2} of the oracle",
        times(&outcome, &best)
    );
    assert!(times(&outcome, &seeds(&setting)) <= 0.2);
}

#[test]
fn never_much_worse_than_the_seeds_rule_nor_than_staying_at_home() {
    for seed in 0..3 {
        for plan in settings::all(2) {
            let setting = plan.make(seed);
            let outcome = ours(&setting);
            let theirs = times(&outcome, &seeds(&setting));
            assert!(
                theirs <= 1.1,
                "{}, seed {seed}: {theirs:.2} of the seeds' rule",
                plan.name
            );
            let home = times(
                &outcome,
                &run(&setting, &mut AlwaysLocal::new(setting.nodes)),
            );
            assert!(
                home <= 1.8,
                "{}, seed {seed}: {home:.2} of always local",
                plan.name
            );
            let chance = run(&setting, &mut Random::new(setting.nodes, seed));
            assert!(outcome.moved_bytes <= chance.moved_bytes);
        }
    }
}

#[test]
fn one_call_a_file_runs_where_its_file_is() {
    for seed in 0..5 {
        let plan = Plan {
            name: "100 files on 3 nodes",
            nodes: 3,
            slots: 2,
            files: 100,
            file_bytes: 32 * MB,
            copies: 1,
            holding_nodes: 3,
            jobs: 100,
            run_ms: 200,
            skew: 0,
            over_ms: 0,
        };
        let mut setting = plan.make(seed);
        for (number, (_, holders)) in setting.files.iter_mut().enumerate() {
            *holders = vec![number % 3];
        }
        let outcome = ours(&setting);
        assert!(outcome.local >= 95, "seed {seed}: {} of 100", outcome.local);
    }
}

#[test]
fn thousands_of_nodes() {
    let plan = Plan {
        name: "thousands of nodes",
        nodes: 3_000,
        slots: 4,
        files: 1_000,
        file_bytes: 64 * MB,
        copies: 2,
        holding_nodes: 3_000,
        jobs: 1_000,
        run_ms: 500,
        skew: 1,
        over_ms: 1_000,
    };
    let setting = plan.make(7);
    let outcome = ours(&setting);
    assert!(times(&outcome, &seeds(&setting)) <= 1.1);
    assert!(
        outcome.waits_ms.iter().all(|wait| *wait < 10_000),
        "nothing starves"
    );
}

#[test]
fn the_same_seed_gives_the_same_course() {
    let setting = settings::all(1)[3].make(11);
    let (one, two) = (ours(&setting), ours(&setting));
    assert_eq!(one.waits_ms, two.waits_ms);
    assert_eq!(
        (one.makespan_ms, one.moved_bytes),
        (two.makespan_ms, two.moved_bytes)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever the cluster: every call ends once (`run` checks it), and none waits longer than all work would take at its holder.
    #[test]
    fn nothing_starves(
        seed in any::<u64>(), nodes in 1usize..12, slots in 1usize..4, files in 1usize..20, file_mb in 1u64..400,
        copies in 1usize..3, jobs in 1usize..80, run_ms in 1u64..500, skew in 0u32..2, over_ms in 0u64..2_000,
    ) {
        let plan = Plan {
            name: "any", nodes, slots, files, file_bytes: file_mb * MB, copies, holding_nodes: nodes, jobs, run_ms, skew, over_ms,
        };
        let setting = plan.make(seed);
        let outcome = ours(&setting);
        prop_assert_eq!(outcome.waits_ms.len(), jobs);
        let work_ms: u64 = setting.jobs.iter().map(|job| job.run_ms).sum();
        let fetch_ms: u64 = setting.files.iter().map(|(size, _)| size / setting.link_bytes_per_ms).max().unwrap_or(0);
        let most = work_ms + nodes as u64 * slots as u64 * (fetch_ms + 100) + over_ms;
        prop_assert!(outcome.waits_ms.iter().all(|wait| *wait <= most));
    }
}
