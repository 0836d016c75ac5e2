//! Where a call may run, and from when on: decided by the bytes each node would have to fetch.
//!
//! Pure: files and nodes in, places out. What always holds: a node that would fetch nothing may run the call at once;
//! one that would fetch more than the threshold never; the others the later the more they would fetch; somebody at once, unless nobody may;
//! no call has more than `PLACES_MAX` places.
//! Not for load: which of the places takes a call, and when, is decided by who has a worker free and by how long the others would
//! take (`queue::model`).
use ks_fs::record::NodeId;
use std::fmt::Write;

pub mod habits;
pub mod pattern;
pub mod resolve;

/// How fast a node is assumed to fetch from a peer, bytes a millisecond (a gigabit link carries about this much).
pub const FETCH_BYTES_PER_MS: u64 = 110_000;
/// A node may not fetch more for a call, unless told otherwise: 200 MB.
pub const THRESHOLD_BYTES: u64 = 200_000_000;
/// Nodes among whose places a call is put: those that lack least; of many that lack as much, others for each call.
pub const PLACES_MAX: usize = 16;
/// Nodes of which it is noted what a call would cost there, those that lack least.
pub const COSTS_MAX: usize = 32;
/// A call that would rather run on some nodes is left to them, where they are not busy for longer than this.
pub const NEAR_MS: u64 = 1_000;
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
    /// Nodes that it would rather run on, whoever has its data.
    pub near: Vec<NodeId>,
    /// Most bytes that may be fetched for it; `None`: no limit.
    pub threshold_bytes: Option<u64>,
    /// Tells these files from others: the same for calls that need the same ones.
    pub data: u64,
    /// Tells its function from others.
    pub function: u64,
    /// Any number, another one for each call.
    pub seed: u64,
}

/// A node that may run a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub node: NodeId,
    /// What it would have to fetch.
    pub fetch_bytes: u64,
    /// How much longer it would fetch than the one that lacks least. 0: it may run it at once; the others where the call would wait longer
    /// for those than that.
    pub delay_ms: u64,
}

/// Where a call may run.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Placement {
    /// The nodes that may run it; empty: any that serves its queue, at once.
    pub places: Vec<Place>,
    /// As in `Wish`.
    pub data: u64,
    /// As in `Wish`.
    pub function: u64,
    /// What each live node would have to fetch, by name (also those that may not run it), the least first.
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

/// How long a node fetches so many bytes.
pub fn delay_ms(fetch_bytes: u64) -> u64 {
    fetch_bytes.div_ceil(FETCH_BYTES_PER_MS)
}

/// Decides where a call may run.
pub fn place(wish: &Wish<'_>, nodes: &[NodeFact]) -> Result<Placement, NotPlaceable> {
    let mut places = Vec::new();
    let mut costs = Vec::new();
    for node in nodes {
        let needed = fetch_bytes(&wish.files, node.id);
        if node.alive && !wish.files.is_empty() {
            costs.push((needed, &node.name));
        }
        if refusal(wish, node, needed).is_none() {
            places.push((needed, node.id));
        }
    }
    let Some(least) = places.iter().map(|(needed, _)| *needed).min() else {
        return Err(NotPlaceable(none_may(wish, nodes)));
    };
    keep_first(&mut places, PLACES_MAX, |(needed, node)| {
        let is_far = !wish.near.contains(node);
        (is_far, *needed, spread(wish.seed, *node))
    });
    keep_first(&mut costs, COSTS_MAX, |(needed, name)| (*needed, *name));
    let mut places: Vec<Place> = places
        .into_iter()
        .map(|(needed, node)| Place {
            node,
            fetch_bytes: needed,
            delay_ms: delay_ms(needed) - delay_ms(least),
        })
        .collect();
    let is_near = put_near_first(&mut places, &wish.near);
    let why = match is_near {
        true => explain_near(wish, nodes),
        false => explain(wish, &places, nodes),
    };
    if wish.files.is_empty() && wish.node.is_none() && !is_near {
        places.clear();
    }
    let name = |(needed, name): (u64, &String)| (name.clone(), needed);
    Ok(Placement {
        places,
        data: wish.data,
        function: wish.function,
        costs: costs.into_iter().map(name).collect(),
        why,
    })
}

/// The nodes that the call would rather run on may at once, the others later. `false`: none of them is among the places.
fn put_near_first(places: &mut [Place], near: &[NodeId]) -> bool {
    if !places.iter().any(|place| near.contains(&place.node)) {
        return false;
    }
    for place in places {
        place.delay_ms = match near.contains(&place.node) {
            true => 0,
            false => place.delay_ms + NEAR_MS,
        };
    }
    true
}

fn explain_near(wish: &Wish<'_>, nodes: &[NodeFact]) -> String {
    let near = nodes.iter().filter(|node| wish.near.contains(&node.id));
    let names: Vec<&str> = near.map(|node| node.name.as_str()).take(3).collect();
    format!("rather on {}", names.join(", "))
}

/// Keeps the first `count` in the order of `key`, in that order.
fn keep_first<T, K: Ord>(things: &mut Vec<T>, count: usize, key: impl Fn(&T) -> K) {
    if things.len() > count {
        things.select_nth_unstable_by_key(count, &key);
        things.truncate(count);
    }
    things.sort_by_key(key);
}

/// Orders nodes that lack as much, differently for each call.
fn spread(seed: u64, node: NodeId) -> u64 {
    let mixed = (seed ^ node.0.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
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

fn none_may(wish: &Wish<'_>, nodes: &[NodeFact]) -> String {
    let reason = |node: &NodeFact| {
        let reason = refusal(wish, node, fetch_bytes(&wish.files, node.id));
        format!("{}: {}", node.name, reason.unwrap_or_default())
    };
    let reasons: Vec<String> = nodes.iter().map(reason).collect();
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
    match lacks(costs, node) {
        Some(mine) => format!(
            "{placement_why}; {node} was free first and fetches {}",
            size_text(mine)
        ),
        None => placement_why.to_owned(),
    }
}

/// What a node has to fetch that lacks more than another.
pub fn lacks(costs: &[(String, u64)], node: &str) -> Option<u64> {
    let (_, mine) = costs.iter().find(|(name, _)| name == node)?;
    let least = costs.iter().map(|(_, bytes)| bytes).min()?;
    (mine > least).then_some(*mine)
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
