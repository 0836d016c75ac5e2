//! Finds out what placement needs to know of the paths in calls: which files they are, how large, and who holds how much.
//! What is no data is no error: a path outside the tree, one that is not there (yet), what is neither file nor directory.
use super::{FileFact, NodeFact};
use crate::protocol::Call;
use ks_fs::catalog::nodes::NodeState;
use ks_fs::catalog::{Catalog, CatalogError, Located};
use ks_fs::path::TreePath;
use ks_fs::record::Kind;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Questions to the catalog under way at once.
const LOOKUPS_MAX: usize = 64;
/// Files looked at in a directory that is an argument or a hint.
pub const DIRECTORY_FILES_MAX: usize = 256;
/// Paths looked at in one call.
pub const PATHS_MAX: usize = 4_096;

/// The path inside the tree of a path under the mount point; `None`: it is not under it.
pub fn tree_path(path: &[u8], mountpoint: &[u8]) -> Option<TreePath> {
    let mountpoint = mountpoint.strip_suffix(b"/").unwrap_or(mountpoint);
    let below = path.strip_prefix(mountpoint)?;
    match below.first() {
        None | Some(b'/') => TreePath::new(below),
        Some(_) => None,
    }
}

/// The tree paths of a call's arguments and hints, each once.
pub fn tree_paths(call: &Call) -> Vec<TreePath> {
    let Some(mountpoint) = &call.mountpoint else {
        return Vec::new();
    };
    let mut seen = HashSet::new();
    let paths = call.paths.iter().chain(&call.locality);
    paths
        .filter_map(|path| tree_path(path, mountpoint))
        .filter(|path| seen.insert(path.clone()))
        .take(PATHS_MAX)
        .collect()
}

/// What a path stands for.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// There is something of that name.
    pub is_there: bool,
    /// The file, or the files directly in the directory.
    pub files: Vec<Arc<FileFact>>,
}

/// What paths stand for.
pub type Files = HashMap<TreePath, Seen>;

/// What each of the paths stands for. Asked for once, however often it is named.
pub async fn files(
    catalog: &Catalog,
    paths: impl IntoIterator<Item = TreePath>,
) -> Result<Files, CatalogError> {
    let mut wanted: HashSet<TreePath> = paths.into_iter().collect();
    let mut queue: Vec<TreePath> = wanted.drain().collect();
    let mut under_way = JoinSet::new();
    let mut found = HashMap::new();
    loop {
        while under_way.len() < LOOKUPS_MAX
            && let Some(path) = queue.pop()
        {
            let catalog = catalog.clone();
            under_way.spawn(async move {
                let facts = look(&catalog, &path).await;
                (path, facts)
            });
        }
        let Some(done) = under_way.join_next().await else {
            return Ok(found);
        };
        let (path, facts) = done.expect("looking does not panic");
        found.insert(path, facts?);
    }
}

async fn look(catalog: &Catalog, path: &TreePath) -> Result<Seen, CatalogError> {
    let located = match catalog.locate_path(path).await {
        Ok(Some(located)) => located,
        Ok(None) | Err(CatalogError::Posix(_)) => return Ok(Seen::default()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    match located.node.inode.kind {
        Kind::File => files.push(Arc::new(fact(&located))),
        Kind::Directory => {
            let listing = catalog.list(located.node.ino).await?;
            let entries = listing
                .entries
                .iter()
                .filter(|(_, node)| node.inode.kind == Kind::File);
            for (_, node) in entries.take(DIRECTORY_FILES_MAX) {
                if let Some(located) = catalog.located(node.ino).await? {
                    files.push(Arc::new(fact(&located)));
                }
            }
        }
        _ => {}
    }
    Ok(Seen {
        is_there: true,
        files,
    })
}

fn fact(located: &Located) -> FileFact {
    let inode = &located.node.inode;
    let current = located
        .holders
        .iter()
        .filter(|(_, holding)| holding.version == inode.version);
    FileFact {
        size_bytes: inode.size,
        holders: current
            .map(|(node, holding)| (*node, holding.bytes))
            .collect(),
    }
}

/// The nodes, as placement sees them; made anew only when the catalog has other news of them.
#[derive(Default)]
pub struct Nodes {
    last: Mutex<Option<Known>>,
}

struct Known {
    states: Arc<Vec<NodeState>>,
    facts: Arc<Vec<NodeFact>>,
}

impl Nodes {
    /// As they are known now.
    pub async fn get(&self, catalog: &Catalog) -> Result<Arc<Vec<NodeFact>>, CatalogError> {
        let states = catalog.nodes().await?;
        let mut last = self.last.lock().unwrap();
        if let Some(known) = last
            .as_ref()
            .filter(|known| Arc::ptr_eq(&known.states, &states))
        {
            return Ok(known.facts.clone());
        }
        let facts = Arc::new(states.iter().map(node_fact).collect::<Vec<_>>());
        *last = Some(Known {
            states,
            facts: facts.clone(),
        });
        Ok(facts)
    }
}

fn node_fact(node: &NodeState) -> NodeFact {
    NodeFact {
        id: node.id,
        name: node.info.name.clone(),
        alive: node.alive,
        read_only: node.info.read_only,
        serves: node.info.queues.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_under_the_mount_point_is_in_the_tree() {
        let of = |path: &str, mountpoint: &str| {
            tree_path(path.as_bytes(), mountpoint.as_bytes()).map(|path| path.to_string())
        };
        assert_eq!(of("/ks/a/b.h5", "/ks").as_deref(), Some("/a/b.h5"));
        assert_eq!(of("/ks/a//./b", "/ks/").as_deref(), Some("/a/b"));
        assert_eq!(of("/ks", "/ks").as_deref(), Some("/"));
        assert_eq!(of("/ksx/a", "/ks"), None);
        assert_eq!(of("/tmp/a", "/ks"), None);
        assert_eq!(of("/ks/../etc/passwd", "/ks"), None);
        assert_eq!(of("ks/a", "/ks"), None);
    }
}
