//! What rebuilding decides, by simulation: nodes change the tree and come and go, Redis loses it, some nodes rebuild it and work on, and
//! the others come late, each with what it alone knows. Catalogs and journals only, so that a seed is quick; `recovery.rs` has whole nodes.
use ks_fs::catalog::journal::Journal;
use ks_fs::catalog::{AttributeChange, Catalog, CatalogError};
use ks_fs::record::*;
use ks_fs::redis_client::Redis;
use ks_fs::testing::TestRedis;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const NODES: usize = 3;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// A node that is asked for what Redis has lost answers again within so long.
const REBUILT_WITHIN: Duration = Duration::from_secs(40);
const SEEDS: u64 = 24;

/// One name of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    ino: Ino,
    parent: Ino,
    name: Vec<u8>,
    is_directory: bool,
    mode: u32,
    nlink: u32,
}

type Tree = BTreeMap<String, Item>;

fn inode(kind: Kind, home: NodeId) -> Inode {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap().as_nanos() as Time;
    Inode {
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        rdev: 0,
        nlink: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        parent: 0,
        name: vec![],
        target: vec![],
        xattrs: Default::default(),
        version: 0,
        epoch: 1,
        home,
        blake3: None,
        md5: None,
    }
}

fn info(node: usize) -> NodeInfo {
    NodeInfo {
        name: format!("node{node}"),
        address: format!("127.0.0.1:{node}"),
        mountpoint: "/ks".into(),
        datadir: "/data".into(),
        incarnation: 1,
        version: "test".into(),
        workers: 0,
        queues: vec![],
        read_only: false,
        carries_redis: false,
        started: 0,
        free_bytes: 0,
        total_bytes: 0,
    }
}

async fn walk(catalog: &Catalog) -> Result<Tree, CatalogError> {
    let mut tree = Tree::new();
    let mut waiting = vec![(String::new(), ROOT)];
    while let Some((above, directory)) = waiting.pop() {
        for (name, node) in &catalog.list(directory).await?.entries {
            let path = format!("{above}/{}", String::from_utf8_lossy(name));
            let is_directory = node.inode.kind == Kind::Directory;
            let item = Item {
                ino: node.ino,
                parent: directory,
                name: name.clone(),
                is_directory,
                mode: node.inode.mode,
                nlink: if is_directory { 0 } else { node.nlink },
            };
            if is_directory {
                waiting.push((path.clone(), node.ino));
            }
            tree.insert(path, item);
        }
    }
    Ok(tree)
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end
    }

    fn chance(&mut self, chance: f64) -> bool {
        (self.below(1_000_000) as f64) < chance * 1e6
    }
}

struct Simulation {
    redis: TestRedis,
    journals: tempfile::TempDir,
    nodes: Vec<Option<Catalog>>,
    random: Random,
    /// What was made while not all nodes were there: path and number.
    made: Vec<(String, Ino)>,
    story: Vec<String>,
    /// Changes that failed as none should.
    broken: Vec<String>,
}

impl Simulation {
    async fn new(seed: u64) -> Self {
        let mut simulation = Self {
            redis: TestRedis::start().await,
            journals: tempfile::tempdir().unwrap(),
            nodes: vec![None; NODES],
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            made: Vec::new(),
            story: Vec::new(),
            broken: Vec::new(),
        };
        for node in 0..NODES {
            simulation.start(node).await;
        }
        simulation
    }

    async fn start(&mut self, node: usize) {
        self.story.push(format!("{node} comes"));
        let journal = Journal::open(&self.journals.path().join(node.to_string())).unwrap();
        let me = NodeId(node as u64 + 1);
        let opened =
            Catalog::open_journaled(self.redis.target(), me, Arc::new(|_| ()), journal).await;
        let catalog = opened.unwrap();
        catalog.register(info(node)).await.unwrap();
        if catalog.is_behind() {
            catalog.has_caught_up().await.unwrap();
        }
        self.nodes[node] = Some(catalog);
    }

    fn living(&self) -> Vec<usize> {
        (0..NODES)
            .filter(|node| self.nodes[*node].is_some())
            .collect()
    }

    fn any_living(&mut self) -> Catalog {
        let living = self.living();
        let node = living[self.random.below(living.len())];
        self.nodes[node].clone().unwrap()
    }

    /// The tree as Redis has it.
    async fn tree(&self) -> Tree {
        let me = NodeId(99);
        let catalog = Catalog::open(self.redis.target(), me, Arc::new(|_| ())).await;
        walk(&catalog.unwrap()).await.unwrap()
    }

    fn pick<'t>(
        &mut self,
        tree: &'t Tree,
        wanted: impl Fn(&Item) -> bool,
    ) -> Option<(&'t String, &'t Item)> {
        let items: Vec<_> = tree.iter().filter(|(_, item)| wanted(item)).collect();
        (!items.is_empty()).then(|| items[self.random.below(items.len())])
    }

    /// The root or a directory.
    fn directory(&mut self, tree: &Tree) -> (String, Ino) {
        if self.random.chance(0.3) {
            return (String::new(), ROOT);
        }
        let found = self.pick(tree, |item| item.is_directory);
        found.map_or((String::new(), ROOT), |(path, item)| {
            (path.clone(), item.ino)
        })
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.random.below(NAMES.len())]
    }

    /// A random change; one that is refused is none.
    async fn change(&mut self) {
        let node = self.any_living();
        let tree = self.tree().await;
        let (above, parent) = self.directory(&tree);
        let name = self.name();
        let what = self.random.below(100);
        let me = node.me();
        let mut said = format!("{me}: ");
        let done = match what {
            0..20 => {
                said += &format!("mkdir {above}/{name}");
                let made = node.create(
                    parent,
                    name.as_bytes(),
                    inode(Kind::Directory, NodeId::NONE),
                );
                made.await
                    .map(|made| said += &format!(" = {}", made.value.ino))
            }
            20..40 => {
                said += &format!("create {above}/{name}");
                let made = node.create(parent, name.as_bytes(), inode(Kind::File, me));
                made.await
                    .map(|made| said += &format!(" = {}", made.value.ino))
            }
            40..52 => {
                let Some((path, file)) = self.pick(&tree, |item| !item.is_directory) else {
                    return;
                };
                said += &format!("link {path} {above}/{name}");
                node.link(file.ino, parent, name.as_bytes()).await.map(drop)
            }
            52..70 => {
                let Some((path, item)) = self.pick(&tree, |_| true) else {
                    return;
                };
                let flags = [0, 0, 1, 2][self.random.below(4)];
                said += &format!("rename {path} {above}/{name} {flags}");
                let renamed = node.rename(item.parent, &item.name, parent, name.as_bytes(), flags);
                renamed.await.map(drop)
            }
            70..80 => {
                let Some((path, item)) = self.pick(&tree, |item| !item.is_directory) else {
                    return;
                };
                said += &format!("unlink {path}");
                node.unlink(item.parent, &item.name).await.map(drop)
            }
            80..90 => {
                let Some((path, item)) = self.pick(&tree, |item| item.is_directory) else {
                    return;
                };
                said += &format!("rm -r {path}");
                let below = format!("{path}/");
                let inside = tree
                    .iter()
                    .rev()
                    .filter(|(path, _)| path.starts_with(&below));
                for (_, inside) in inside {
                    let gone = match inside.is_directory {
                        true => node.rmdir(inside.parent, &inside.name).await.map(drop),
                        false => node.unlink(inside.parent, &inside.name).await.map(drop),
                    };
                    gone.unwrap();
                }
                let gone = node.rmdir(item.parent, &item.name).await.map(drop);
                if self.random.chance(0.6) {
                    said += " and made again";
                    let (parent, name) = (item.parent, &item.name);
                    let made = node.create(parent, name, inode(Kind::Directory, NodeId::NONE));
                    said += &format!(" = {}", made.await.unwrap().value.ino);
                }
                gone
            }
            _ => {
                let Some((path, item)) = self.pick(&tree, |_| true) else {
                    return;
                };
                let mode = self.random.below(0o1000) as u32;
                said += &format!("chmod {path} {mode:o}");
                let change = AttributeChange {
                    mode: Some(mode),
                    ..Default::default()
                };
                node.set_attributes(item.ino, change).await.map(drop)
            }
        };
        match done {
            Ok(()) => self.story.push(said),
            Err(CatalogError::Posix(_)) => {}
            Err(error) => self.broken.push(format!("{said}: {error}")),
        }
    }

    /// A node comes that was away, perhaps forgotten, while the tree stood: it changes nothing of it.
    async fn return_of(&mut self, node: usize) -> Vec<String> {
        if self.random.chance(0.5) {
            self.story.push(format!("{node} is forgotten"));
            let by = self.any_living();
            // One that was forgotten already is not known any more.
            let _ = by.forget_node(&format!("node{node}"), true).await;
        }
        let before = self.tree().await;
        self.start(node).await;
        let after = self.tree().await;
        match before == after {
            true => Vec::new(),
            false => vec![format!("{node} came: {after:#?}, was {before:#?}")],
        }
    }

    async fn end_some(&mut self, chance: f64) {
        for node in 0..NODES {
            if self.living().len() > 1 && self.nodes[node].is_some() && self.random.chance(chance) {
                self.story.push(format!("{node} goes"));
                if let Some(catalog) = self.nodes[node].take() {
                    catalog.deregister().await.unwrap();
                }
            }
        }
    }

    fn away(&mut self) -> Vec<usize> {
        let mut away: Vec<usize> = (0..NODES)
            .filter(|node| self.nodes[*node].is_none())
            .collect();
        for at in (1..away.len()).rev() {
            away.swap(at, self.random.below(at + 1));
        }
        away
    }

    async fn lose(&mut self) {
        self.story.push("redis is emptied".into());
        let redis = Redis::connect(self.redis.target(), false, Arc::new(|_| ())).await;
        redis.unwrap().run(&redis::cmd("FLUSHALL")).await.unwrap();
    }

    /// Those that run notice the loss and rebuild.
    async fn rebuild(&mut self) {
        let mut waiting = tokio::task::JoinSet::new();
        for catalog in self.nodes.iter().flatten() {
            let catalog = catalog.clone();
            waiting.spawn(async move {
                let _ = catalog.located(ROOT).await;
                catalog.until_behind().await;
                catalog.has_caught_up().await.unwrap();
            });
        }
        let all = tokio::time::timeout(REBUILT_WITHIN, waiting.join_all()).await;
        all.expect("the tree is rebuilt");
    }

    /// Somebody works on in the tree as it is now: makes a file, and the directories above it where they are not there.
    async fn work_on(&mut self, truth: &Tree) {
        let node = self.any_living();
        let tree = self.tree().await;
        let from = if self.random.chance(0.5) {
            truth
        } else {
            &tree
        };
        let (path, _) = self.directory(&from.clone());
        let mut at = ROOT;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = match node.lookup(at, name.as_bytes()).await.unwrap() {
                Some(found) if found.inode.kind == Kind::Directory => found.ino,
                Some(_) => return,
                None => {
                    let made = inode(Kind::Directory, NodeId::NONE);
                    node.create(at, name.as_bytes(), made)
                        .await
                        .unwrap()
                        .value
                        .ino
                }
            };
        }
        let name = format!("new{}", self.story.len());
        let made = node
            .create(at, name.as_bytes(), inode(Kind::File, node.me()))
            .await;
        let ino = made.unwrap().value.ino;
        self.story
            .push(format!("{}: works on: {path}/{name} = {ino}", node.me()));
        self.made.push((format!("{path}/{name}"), ino));
    }

    /// All that is wrong with the tree, where it was `truth` when Redis lost it and things were made since.
    fn faults(&self, truth: &Tree, found: &Tree) -> Vec<String> {
        let mut faults = Vec::new();
        let worked_on = !self.made.is_empty();
        for (path, item) in truth {
            match found.get(path) {
                // Of a directory that was made again meanwhile the number may be another.
                Some(it) if it == item || (worked_on && it.is_directory && item.is_directory) => {}
                Some(it)
                    if worked_on
                        && (it.ino, it.mode, it.nlink) == (item.ino, item.mode, item.nlink) => {}
                other => faults.push(format!("{path}: is {other:?}, was {item:?}")),
            }
        }
        let places: BTreeMap<Ino, &String> =
            found.iter().map(|(path, item)| (item.ino, path)).collect();
        let known: BTreeSet<&String> = self.made.iter().map(|(path, _)| path).collect();
        for (path, ino) in &self.made {
            let above = path.rsplit_once('/').unwrap().0;
            let is_there = found.get(path).is_some_and(|item| item.ino == *ino);
            let must = above.is_empty() || truth.get(above).is_some_and(|item| item.is_directory);
            if !(is_there || !must && places.contains_key(ino)) {
                faults.push(format!("{path} = {ino}: is at {:?}", places.get(ino)));
            }
        }
        for (path, item) in found {
            let is_above = self
                .made
                .iter()
                .any(|(made, _)| made.starts_with(&format!("{path}/")));
            let is_odd = !truth.contains_key(path) && !known.contains(path);
            // A directory in which something was made stays, wherever it had to.
            let holds_some = item.is_directory
                && found
                    .keys()
                    .any(|inside| inside.starts_with(&format!("{path}/")));
            if is_odd
                && !(worked_on
                    && (is_above
                        || holds_some
                        || self.made.iter().any(|(_, ino)| *ino == item.ino)))
            {
                faults.push(format!("{path} is not to be there: {item:?}"));
            }
        }
        faults
    }

    fn told(&self, seed: u64, faults: &[String]) -> String {
        let (faults, story) = (faults.join("\n  "), self.story.join("\n  "));
        format!("seed {seed}:\n  {faults}\nafter:\n  {story}")
    }

    /// Some rebuild the tree, the others come; all that is wrong then.
    async fn loss(&mut self, works_on: bool) -> Vec<String> {
        let truth = self.tree().await;
        self.made.clear();
        let alone = self.random.chance(0.5);
        self.end_some(if alone { 1.0 } else { 0.4 }).await;
        self.lose().await;
        self.rebuild().await;
        for node in self.away() {
            if works_on {
                for _ in 0..self.random.below(4) {
                    self.work_on(&truth).await;
                }
            }
            self.start(node).await;
        }
        let found = self.tree().await;
        self.faults(&truth, &found)
    }
}

/// `None`: all was right.
async fn run(seed: u64) -> Option<String> {
    let mut simulation = Simulation::new(seed).await;
    for _ in 0..1 + simulation.random.below(2) {
        for _ in 0..2 + simulation.random.below(3) {
            for node in simulation.away() {
                if simulation.random.chance(0.6) {
                    let faults = simulation.return_of(node).await;
                    if !faults.is_empty() {
                        return Some(simulation.told(seed, &faults));
                    }
                }
            }
            simulation.end_some(0.4).await;
            for _ in 0..3 + simulation.random.below(11) {
                simulation.change().await;
                if !simulation.broken.is_empty() {
                    return Some(simulation.told(seed, &simulation.broken));
                }
            }
        }
        let works_on = seed % 2 == 1;
        let faults = simulation.loss(works_on).await;
        if !faults.is_empty() {
            return Some(simulation.told(seed, &faults));
        }
    }
    None
}

/// `KS_SEED` runs one seed, `KS_SEEDS` so many.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_late_the_tree_is_as_it_was() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("KS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KS_SEEDS").unwrap_or(SEEDS),
    };
    let turns = Arc::new(tokio::sync::Semaphore::new(12));
    let mut runs = tokio::task::JoinSet::new();
    for seed in seeds {
        let turns = turns.clone();
        runs.spawn(async move {
            let _turn = turns.acquire_owned().await.unwrap();
            run(seed).await
        });
    }
    let failed: Vec<String> = runs.join_all().await.into_iter().flatten().collect();
    let first = failed.first().cloned().unwrap_or_default();
    assert!(
        failed.is_empty(),
        "{} seeds fail; the first:\n{first}",
        failed.len()
    );
}
