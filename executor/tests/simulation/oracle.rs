//! What one who knows everything beforehand would do, nearly: each call in turn goes where it will be over first, with links that nobody
//! else uses. Not the very best there is, but no rule that works without knowledge beats it by much.
use super::{Job, Outcome, Setting};
use std::collections::{BTreeSet, HashMap};

/// Nodes that are looked at for a call beside those that have its file: those that are free first.
const LOOKED_AT: usize = 8;

/// How it would go.
pub fn run(setting: &Setting) -> Outcome {
    let mut free_ms: Vec<Vec<u64>> = vec![vec![0; setting.slots]; setting.nodes];
    let mut by_free: BTreeSet<(u64, usize)> = (0..setting.nodes).map(|node| (0, node)).collect();
    let mut there_ms: HashMap<(usize, usize), u64> = HashMap::new();
    let mut holders: Vec<Vec<usize>> = setting
        .files
        .iter()
        .map(|(_, holders)| holders.clone())
        .collect();
    for (file, holders) in holders.iter().enumerate() {
        there_ms.extend(holders.iter().map(|node| ((*node, file), 0)));
    }
    let mut outcome = Outcome::default();
    for Job {
        at_ms,
        file,
        run_ms,
    } in &setting.jobs
    {
        let fetch_ms = setting.files[*file].0.div_ceil(setting.link_bytes_per_ms);
        let ends = |node: usize| {
            let free = free_ms[node].iter().min().expect("it has workers");
            let begin_ms = (*free).max(*at_ms);
            let there = there_ms.get(&(node, *file)).copied();
            (
                there.unwrap_or(begin_ms + fetch_ms).max(begin_ms) + run_ms,
                begin_ms,
            )
        };
        let first_free = by_free.iter().take(LOOKED_AT).map(|(_, node)| *node);
        let candidates = holders[*file].iter().copied().chain(first_free);
        let node = candidates
            .min_by_key(|node| ends(*node))
            .expect("there are nodes");
        let (end_ms, begin_ms) = ends(node);
        match there_ms.get(&(node, *file)) {
            Some(at_ms) if *at_ms <= begin_ms => outcome.local += 1,
            Some(_) => {}
            None => {
                there_ms.insert((node, *file), begin_ms + fetch_ms);
                holders[*file].push(node);
                outcome.moved_bytes += setting.files[*file].0;
            }
        }
        let worker = (0..setting.slots)
            .min_by_key(|worker| free_ms[node][*worker])
            .expect("it has workers");
        let least = |free: &[u64]| *free.iter().min().expect("it has workers");
        by_free.remove(&(least(&free_ms[node]), node));
        free_ms[node][worker] = end_ms;
        by_free.insert((least(&free_ms[node]), node));
        outcome.makespan_ms = outcome.makespan_ms.max(end_ms);
        outcome.mean_ms += end_ms - at_ms;
        outcome.waits_ms.push(begin_ms - at_ms);
    }
    outcome.mean_ms /= setting.jobs.len().max(1) as u64;
    outcome
}
