//! Compares how calls are placed with other rules, in a simulated cluster: `cargo run --release --example placement [SCALE [SEED]]`
//! (20 nodes for each unit of scale). Prints makespan, bytes moved and waits of each rule in each setting.
#[path = "../tests/simulation/mod.rs"]
mod simulation;

use simulation::rules::{AlwaysLocal, Ours, Random, Rule, Seeds};
use simulation::{Outcome, Setting, oracle, run, settings};

fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .map(|text| text.parse().expect("SCALE and SEED are numbers"));
    let scale: usize = numbers.next().unwrap_or(10);
    let seed: usize = numbers.next().unwrap_or(1);
    println!(
        "{} nodes, seed {seed}; times in seconds, x: makespan as a multiple of the oracle's\n",
        20 * scale
    );
    println!(
        "{:<36} {:<12} {:>9} {:>6} {:>10} {:>7} {:>10} {:>9}",
        "setting", "rule", "makespan", "x", "GB moved", "local", "mean wait", "max wait"
    );
    let hot = settings::hot_file(3, 30, 64_000_000, 200);
    let wide = settings::hot_file(20 * scale, 300 * scale, 64_000_000, 200);
    let plans = settings::all(scale);
    let plans = plans.iter().map(|plan| plan.make(seed as u64));
    for setting in [hot, wide].into_iter().chain(plans) {
        compare(&setting, seed as u64);
    }
}

fn compare(setting: &Setting, seed: u64) {
    let nodes = setting.nodes;
    let best = oracle::run(setting);
    show(setting, "oracle", &best, best.makespan_ms);
    let rules: [(&str, Box<dyn Rule>); 4] = [
        ("ours", Box::new(Ours::new(nodes))),
        ("the seeds'", Box::new(Seeds::new(nodes))),
        ("always local", Box::new(AlwaysLocal::new(nodes))),
        ("random", Box::new(Random::new(nodes, seed))),
    ];
    for (name, mut rule) in rules {
        show(setting, name, &run(setting, &mut *rule), best.makespan_ms);
    }
    println!();
}

fn show(setting: &Setting, rule: &str, outcome: &Outcome, best_ms: u64) {
    let count = outcome.waits_ms.len().max(1) as u64;
    println!(
        "{:<36} {:<12} {:>9.2} {:>6.2} {:>10.2} {:>6.1}% {:>10.2} {:>9.2}",
        setting.name,
        rule,
        outcome.makespan_ms as f64 / 1e3,
        outcome.makespan_ms as f64 / best_ms as f64,
        outcome.moved_bytes as f64 / 1e9,
        outcome.local as f64 * 100.0 / count as f64,
        outcome.waits_ms.iter().sum::<u64>() as f64 / count as f64 / 1e3,
        outcome.waits_ms.iter().max().copied().unwrap_or(0) as f64 / 1e3,
    );
}
