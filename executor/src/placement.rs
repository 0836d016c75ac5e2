//! Where a call may run, and from when on: decided by the bytes each node would have to fetch.
//!
//! Pure: files and nodes in, places out. What always holds: a node that would fetch nothing may run the call at once;
//! one that would fetch more than the threshold never; the others the later the more they would fetch; somebody at once, unless nobody may.
//! Not for load: which of the eligible nodes takes a call is decided by who has a worker free (`queue`).
use ks_fs::record::NodeId;
use std::fmt::Write;

pub mod habits;
pub mod pattern;
pub mod resolve;

/// How fast a node is assumed to fetch from a peer, bytes a millisecond (a gigabit link carries about this much).
pub const FETCH_BYTES_PER_MS: u64 = 110_000;
/// What moving data costs the others beside time: a call waits for a node that has its data somewhat longer than the bare fetch would take,
/// one millisecond for so many bytes ...
pub const PATIENCE_BYTES_PER_MS: u64 = 512;
/// ... and never longer than this. (Without it, calls of a few milliseconds over small files would wander off as soon as one node is done first.)
pub const PATIENCE_MS_MAX: u64 = 5_000;
/// A node may not fetch more for a call, unless told otherwise: 200 MB.
pub const THRESHOLD_BYTES: u64 = 200_000_000;
/// Reasons listed in one message; the rest are counted.
const REASONS_MAX: usize = 12;

/// A file that a call needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFact {
    /// Bytes of its current version.
    pub size_bytes: u64,
    /// Bytes of the current version that each of these nodes has.
    pub holders: Vec<(NodeId, u64)>,
}

/// A node, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFact {
    /// Which.
    pub id: NodeId,
    /// Its name, for people and for `_node`.
    pub name: String,
    /// Whether it is heard of.
    pub alive: bool,
    /// Whether it stores nothing new.
    pub read_only: bool,
    /// Queues, and `python:NAME` for its further interpreters.
    pub serves: Vec<String>,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub struct Wish<'a> {
    /// The files it needs, each once.
    pub files: Vec<&'a FileFact>,
    /// The queue it goes through.
    pub queue: &'a str,
    /// The interpreter it needs, where not the default.
    pub python: Option<&'a str>,
    /// It must run on the node of this name.
    pub node: Option<&'a str>,
    /// Most bytes that may be fetched for it; `None`: no limit.
    pub threshold_bytes: Option<u64>,
}

/// A node that may run a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub node: NodeId,
    /// What it would have to fetch.
    pub fetch_bytes: u64,
    /// How long the call must have waited first.
    pub delay_ms: u64,
}

/// Where a call may run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// The nodes that may run it; empty: any that serves its queue, at once.
    pub places: Vec<Place>,
    /// What each live node would have to fetch, by name (also those that may not run it).
    pub costs: Vec<(String, u64)>,
    /// For people.
    pub why: String,
}

/// No node may run it; the text gives the reason of each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotPlaceable(pub String);

/// Bytes of `files` that are not on `node`.
pub fn fetch_bytes(files: &[&FileFact], node: NodeId) -> u64 {
    let missing = |file: &&FileFact| {
        let held = file.holders.iter().find(|(holder, _)| *holder == node);
        file.size_bytes
            .saturating_sub(held.map_or(0, |(_, bytes)| *bytes))
    };
    files.iter().map(missing).fold(0, u64::saturating_add)
}

/// How long a call must have waited before a node that lacks so many bytes may take it.
pub fn delay_ms(fetch_bytes: u64) -> u64 {
    let patience = fetch_bytes
        .div_ceil(PATIENCE_BYTES_PER_MS)
        .min(PATIENCE_MS_MAX);
    fetch_bytes.div_ceil(FETCH_BYTES_PER_MS) + patience
}

/// Decides where a call may run.
pub fn place(wish: &Wish<'_>, nodes: &[NodeFact]) -> Result<Placement, NotPlaceable> {
    let mut reasons = Vec::new();
    let mut places = Vec::new();
    let mut costs = Vec::new();
    for node in nodes {
        let needed = fetch_bytes(&wish.files, node.id);
        if node.alive && !wish.files.is_empty() {
            costs.push((node.name.clone(), needed));
        }
        match refusal(wish, node, needed) {
            Some(reason) => reasons.push(format!("{}: {reason}", node.name)),
            None => places.push(Place {
                node: node.id,
                fetch_bytes: needed,
                delay_ms: delay_ms(needed),
            }),
        }
    }
    let Some(least) = places.iter().map(|place| place.delay_ms).min() else {
        return Err(NotPlaceable(none_may(wish, &reasons)));
    };
    for place in &mut places {
        place.delay_ms -= least;
    }
    let why = explain(wish, &places, nodes);
    if wish.files.is_empty() && wish.node.is_none() {
        places.clear();
    }
    Ok(Placement { places, costs, why })
}

/// Why a node may not run a call.
fn refusal(wish: &Wish<'_>, node: &NodeFact, needed: u64) -> Option<String> {
    let serves = |what: &str| node.serves.iter().any(|served| served == what);
    if wish.node.is_some_and(|name| name != node.name) {
        return Some("not the node asked for".into());
    }
    if !node.alive {
        return Some("is gone".into());
    }
    if !serves(wish.queue) {
        return Some(format!("does not serve the queue '{}'", wish.queue));
    }
    if let Some(python) = wish.python.filter(|p| *p != "default")
        && !serves(&format!("python:{python}"))
    {
        return Some(format!("has no interpreter '{python}'"));
    }
    if needed > 0 && node.read_only {
        return Some(format!(
            "would have to fetch {}, and is read-only",
            size_text(needed)
        ));
    }
    match wish.threshold_bytes {
        Some(threshold) if needed > threshold => Some(format!(
            "would have to fetch {}, over the threshold of {}",
            size_text(needed),
            size_text(threshold)
        )),
        _ => None,
    }
}

fn none_may(wish: &Wish<'_>, reasons: &[String]) -> String {
    let mut text = String::from("no node may run it: ");
    match wish.node {
        Some(name) => {
            let prefix = format!("{name}: ");
            match reasons.iter().find(|reason| reason.starts_with(&prefix)) {
                Some(reason) => text.push_str(reason),
                None => write!(text, "there is no node '{name}'").expect("to a string"),
            }
        }
        None if reasons.is_empty() => text.push_str("no node is known"),
        None => {
            text.push_str(&reasons[..reasons.len().min(REASONS_MAX)].join("; "));
            if reasons.len() > REASONS_MAX {
                let more = reasons.len() - REASONS_MAX;
                write!(text, "; and {more} more").expect("to a string");
            }
        }
    }
    text
}

fn explain(wish: &Wish<'_>, places: &[Place], nodes: &[NodeFact]) -> String {
    if let Some(name) = wish.node {
        return format!("asked for {name}");
    }
    if wish.files.is_empty() {
        return "needs no data".into();
    }
    let size = wish.files.iter().map(|file| file.size_bytes).sum();
    let files = match wish.files.len() {
        1 => "1 file".to_owned(),
        count => format!("{count} files"),
    };
    let best: Vec<&Place> = places.iter().filter(|place| place.delay_ms == 0).collect();
    let names: Vec<&str> = best
        .iter()
        .filter_map(|place| nodes.iter().find(|node| node.id == place.node))
        .map(|node| node.name.as_str())
        .take(3)
        .collect();
    let more = if best.len() > 3 { " and others" } else { "" };
    match best[0].fetch_bytes {
        0 => format!(
            "{}{more} has all of {files}, {}",
            names.join(", "),
            size_text(size)
        ),
        missing => format!(
            "{}{more} lacks least of {files}: {} of {}",
            names.join(", "),
            size_text(missing),
            size_text(size)
        ),
    }
}

/// Why it ran on this node after all, as its report says.
pub fn why_here(placement_why: &str, costs: &[(String, u64)], node: &str) -> String {
    let mine = costs
        .iter()
        .find(|(name, _)| name == node)
        .map(|(_, bytes)| *bytes);
    let least = costs.iter().map(|(_, bytes)| *bytes).min();
    match (mine, least) {
        (Some(mine), Some(least)) if mine > least => format!(
            "{placement_why}; {node} was free first and fetches {}",
            size_text(mine)
        ),
        _ => placement_why.to_owned(),
    }
}

/// 1234567 -> "1.2 MB".
fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1_000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests;
