//! Keeps as many copies as were asked for: `ks replicate`, and making lost copies again when a node stays away.
//!
//! A count stands on a file, or on a directory for the files below it. The inodes that have one are listed in Redis (`ks:replicated`, a set of numbers), so that a
//! cluster without replicas costs nothing. Every node looks every [`LOOK`], at the files that are its business (`copies::targets`), and only where anything changed since it
//! last looked. A node may be started with a count for all files whose home it is (`--replicas`; others read it in `ks:replicas`, a hash by node): it looks at
//! those that have changed, and at all of them when nodes come or stay away.
use super::FileSystem;
use super::copies::REPLICAS;
use crate::catalog::EventId;
use crate::catalog::copies::is_whole;
use crate::copies::CopyError;
use crate::copies::targets::{self, Place};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::*;
use crate::store::ordered::Ordered;
use redis::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// The set of inodes that have a count.
const LISTED: &str = "ks:replicated";
/// Names that are walked at once.
const WALKED_AT_ONCE: usize = 256;
/// More copies than this are refused.
pub const REPLICAS_MAX: usize = 1024;

/// A hash: node, what it was started with, where that is more than 1.
const STARTED_WITH: &str = "ks:replicas";
/// Files of this node that wait to be looked at; more, and all of them are.
const OWED_MAX: usize = 65_536;

/// Files of this node that may lack copies, where it was started with a count.
#[derive(Debug)]
pub(super) struct Owed {
    /// What it was started with.
    count: usize,
    files: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    inos: BTreeSet<Ino>,
    is_cut: bool,
}

impl Owed {
    pub(super) fn of(count: usize) -> Self {
        let files = Mutex::default();
        Self { count, files }
    }

    /// An event of this node.
    pub(super) fn note(&self, event: &Event) {
        if let Event::Published { .. } | Event::Linked { .. } | Event::Entered { .. } = event
            && self.count > 1
        {
            let mut files = self.files.lock().unwrap();
            event.inos().into_iter().for_each(|ino| files.note(ino));
        }
    }
}

impl Waiting {
    fn note(&mut self, ino: Ino) {
        match self.inos.len() < OWED_MAX {
            true => drop(self.inos.insert(ino)),
            false => self.is_cut = true,
        }
    }
}

/// What a look rests on: the last event, the listed files, who is heard of.
type Seen = (EventId, BTreeSet<Ino>, Vec<(NodeId, bool)>);

/// What is known between two looks.
#[derive(Default)]
struct Watch {
    /// Since when nodes have not been heard of.
    away: HashMap<NodeId, Instant>,
    /// What the last look rested on; the same: nothing is to be done. `None`: something failed, look again.
    seen: Option<Seen>,
    /// The others know what this node was started with.
    is_said: bool,
    /// Who was heard of when all files of this node were looked at. `None`: that is to be done.
    own_seen: Option<Vec<(NodeId, bool)>>,
}

/// Runs until the file system is gone.
pub(super) fn spawn(file_system: &Arc<FileSystem>) {
    let weak = Arc::downgrade(file_system);
    tokio::spawn(run(weak));
}

async fn run(file_system: Weak<FileSystem>) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(file_system) = file_system.upgrade() else {
            return;
        };
        if let Err(error) = file_system.look_after_replicas(&mut watch).await {
            tracing::debug!(%error, "copies are not looked after now");
            watch.seen = None;
        }
        if let Err(error) = file_system.look_after_own(&mut watch).await {
            tracing::debug!(%error, "copies of this node's files are not looked after now");
            watch.own_seen = None;
        }
    }
}

impl FileSystem {
    /// Keeps `count` copies of a file, or of the files below a directory, from now on.
    pub async fn set_replicas(&self, path: &TreePath, count: usize) -> Result<(), CopyError> {
        let node = self.catalog.resolve(path).await?.ok_or(FsError::NotFound)?;
        if !matches!(node.inode.kind, Kind::File | Kind::Directory) {
            return Err(FsError::Invalid("only files and directories have copies").into());
        }
        if count == 0 || count > REPLICAS_MAX {
            return Err(FsError::Invalid("between 1 and 1024 copies can be kept").into());
        }
        let mut list = redis::cmd("SADD");
        list.arg(LISTED).arg(node.ino);
        let listed = self.catalog.redis().run(&list).await;
        listed.map_err(|error| FsError::Catalog(error.to_string()))?;
        let text = count.to_string();
        let set = self
            .catalog
            .set_xattr(node.ino, REPLICAS, Some(text.as_bytes()), 0);
        let committed = set.await?;
        self.own(&committed).await;
        Ok(())
    }

    /// Makes the copies that a file lacks now; how many it has then.
    pub async fn replicate(self: &Arc<Self>, path: &TreePath) -> Result<usize, CopyError> {
        let places = self.places(&HashMap::new()).await?;
        let located = self
            .catalog
            .locate_path(path)
            .await?
            .ok_or(FsError::NotFound)?;
        let wanted = self.replicas_of(&located.node).await?;
        let lives = |node: NodeId| places.iter().any(|place| place.node == node && place.alive);
        let holders = located.holders.iter();
        let whole = holders
            .filter(|(node, holding)| is_whole(&located.node.inode, holding) && lives(*node));
        let before = whole.count();
        let targets = targets::lacking(&located.node.inode, &located.holders, &places, wanted);
        let pushed = self
            .push(path, &targets, Arc::new(|_: &str, _, _| {}))
            .await?;
        let failed = pushed
            .iter()
            .find_map(|at| Some((&at.node, at.error.as_ref()?)));
        if let Some((node, message)) = failed {
            let (node, message) = (node.clone(), message.clone());
            return Err(CopyError::AtNode { node, message });
        }
        let count = before + pushed.len();
        if count < wanted && located.node.inode.size > 0 {
            let keeping = places.iter().filter(|place| place.alive && place.keeps);
            let possible = keeping.count().max(count);
            let what = match possible > count {
                true => {
                    format!("{count} copies, {wanted} are wanted: no further node has room")
                }
                false => format!(
                    "{count} copies, {wanted} are wanted: {possible} is all that is possible on the nodes that are there and keep files; more are made by themselves when nodes come (for fewer: ks replicate -n {possible})"
                ),
            };
            return Err(CopyError::TooFew {
                path: path.clone(),
                what,
            });
        }
        Ok(count)
    }

    async fn look_after_replicas(self: &Arc<Self>, watch: &mut Watch) -> Result<(), CopyError> {
        let listed = self.listed().await?;
        if listed.is_empty() {
            return Ok(());
        }
        let places = self.places_now(watch).await?;
        let event = self.catalog.last_event().await?;
        let seen = (
            event,
            listed,
            places
                .iter()
                .map(|place| (place.node, place.alive || place.counts))
                .collect(),
        );
        if watch.seen.as_ref() == Some(&seen) {
            return Ok(());
        }
        let mut is_done = true;
        for ino in &seen.1 {
            is_done &= self.look_below(*ino, &places).await?;
        }
        watch.seen = is_done.then_some(seen);
        Ok(())
    }

    /// The files whose home this node is, where it was started with a count.
    async fn look_after_own(self: &Arc<Self>, watch: &mut Watch) -> Result<(), CopyError> {
        self.say_replicas(watch).await?;
        if self.owed.count <= 1 {
            return Ok(());
        }
        let places = self.places_now(watch).await?;
        let heard_of = places
            .iter()
            .map(|place| (place.node, place.alive || place.counts));
        let heard_of: Vec<_> = heard_of.collect();
        let waiting = std::mem::take(&mut *self.owed.files.lock().unwrap());
        if waiting.is_cut || watch.own_seen.as_ref() != Some(&heard_of) {
            watch.own_seen = Some(heard_of);
            return self.look_at_all_own(&places).await;
        }
        for ino in waiting.inos {
            self.look_at_own(ino, &places).await;
        }
        Ok(())
    }

    /// A file that cannot be looked at now is looked at again.
    async fn look_at_own(self: &Arc<Self>, ino: Ino, places: &[Place]) {
        if let Err(error) = self.mend_count(ino, places).await {
            let path = self.path_of(ino).await;
            tracing::warn!(%path, %error, "a file has too few copies; trying again");
            self.owed.files.lock().unwrap().note(ino);
        }
    }

    async fn look_at_all_own(self: &Arc<Self>, places: &[Place]) -> Result<(), CopyError> {
        let (store, me) = (self.store.clone(), self.me());
        let mut walk = Ordered::after(store, &TreePath::default());
        loop {
            let step = tokio::task::spawn_blocking(move || {
                let paths: Vec<TreePath> = walk.by_ref().take(WALKED_AT_ONCE).collect();
                (walk, paths)
            });
            let (back, paths) = step
                .await
                .map_err(|error| FsError::Io(std::io::Error::other(error)))?;
            walk = back;
            if paths.is_empty() {
                return Ok(());
            }
            for path in paths {
                let located = self.catalog.locate_path(&path).await?;
                if let Some(located) = located.filter(|located| located.node.inode.home == me) {
                    self.look_at_own(located.node.ino, places).await;
                }
            }
        }
    }

    /// Tells the others what this node was started with; again and again where that is more than 1, since Redis may have lost it.
    async fn say_replicas(&self, watch: &mut Watch) -> Result<(), CopyError> {
        let (count, me) = (self.owed.count, self.me().to_string());
        if watch.is_said && count <= 1 {
            return Ok(());
        }
        let command = match count {
            0 | 1 => redis::cmd("HDEL").arg(STARTED_WITH).arg(me).to_owned(),
            more => redis::cmd("HSET")
                .arg(STARTED_WITH)
                .arg(me)
                .arg(more)
                .to_owned(),
        };
        let said = self.catalog.redis().run(&command).await;
        said.map_err(|error| FsError::Catalog(error.to_string()))?;
        watch.is_said = true;
        Ok(())
    }

    /// How many copies a node keeps of the files whose home it is.
    pub(super) async fn replicas_at(&self, home: NodeId) -> Result<usize, FsError> {
        if home == self.me() {
            return Ok(self.owed.count);
        }
        let command = redis::cmd("HGET")
            .arg(STARTED_WITH)
            .arg(home.to_string())
            .to_owned();
        let answer = self.catalog.redis().run(&command).await;
        match answer.map_err(|error| FsError::Catalog(error.to_string()))? {
            Value::BulkString(text) => Ok(std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.parse().ok())
                .unwrap_or(1)),
            _ => Ok(1),
        }
    }

    /// The files at or below an inode that has a count. `false`: some copy could not be made.
    async fn look_below(self: &Arc<Self>, ino: Ino, places: &[Place]) -> Result<bool, CopyError> {
        let mut is_done = true;
        let mut waiting = vec![ino];
        while let Some(ino) = waiting.pop() {
            let Some(node) = self.catalog.node(ino).await? else {
                continue;
            };
            match node.inode.kind {
                Kind::File if node.inode.size > 0 => {
                    if let Err(error) = self.mend_count(ino, places).await {
                        let path = self.path_of(ino).await;
                        tracing::warn!(%path, %error, "a file has too few copies; trying again");
                        is_done = false;
                    }
                }
                Kind::Directory => {
                    let listing = self.catalog.list(ino).await?;
                    waiting.extend(listing.entries.iter().map(|(_, node)| node.ino));
                }
                _ => {}
            }
        }
        Ok(is_done)
    }

    async fn mend_count(self: &Arc<Self>, ino: Ino, places: &[Place]) -> Result<(), CopyError> {
        let Some(located) = self.catalog.located(ino).await? else {
            return Ok(());
        };
        let (inode, holders) = (&located.node.inode, &located.holders);
        if targets::responsible(inode, holders, places) != Some(self.me()) {
            return Ok(());
        }
        let wanted = self.replicas_of(&located.node).await?;
        let targets = targets::lacking(inode, holders, places, wanted);
        let Some(path) = self
            .catalog
            .path_of(ino)
            .await?
            .filter(|_| !targets.is_empty())
        else {
            return Ok(());
        };
        let pushed = self
            .push(&path, &targets, Arc::new(|_: &str, _, _| {}))
            .await?;
        match pushed.into_iter().find_map(|at| Some((at.node, at.error?))) {
            Some((node, message)) => Err(CopyError::AtNode { node, message }),
            None => {
                tracing::info!(%path, copies = targets.len(), "made the copies that were lacking");
                Ok(())
            }
        }
    }

    /// The nodes; since when those that are not heard of have not been is noted.
    async fn places_now(&self, watch: &mut Watch) -> Result<Vec<Place>, CopyError> {
        let places = self.places(&watch.away).await?;
        let now = Instant::now();
        watch.away.retain(|node, _| {
            places
                .iter()
                .any(|place| place.node == *node && !place.alive)
        });
        for place in places.iter().filter(|place| !place.alive) {
            watch.away.entry(place.node).or_insert(now);
        }
        Ok(places)
    }

    /// The nodes; those `away` for long enough do not count.
    async fn places(&self, away: &HashMap<NodeId, Instant>) -> Result<Vec<Place>, CopyError> {
        let nodes = self.catalog.nodes().await?;
        let repair_after = self.options.keeping.repair_after;
        let place = |state: &crate::catalog::nodes::NodeState| Place {
            node: state.id,
            alive: state.alive,
            counts: state.alive
                || away
                    .get(&state.id)
                    .is_none_or(|since| since.elapsed() < repair_after),
            keeps: !state.info.read_only,
            free_bytes: state.info.free_bytes,
        };
        Ok(nodes.iter().map(place).collect())
    }

    async fn listed(&self) -> Result<BTreeSet<Ino>, CopyError> {
        let mut command = redis::cmd("SMEMBERS");
        command.arg(LISTED);
        let answer = self.catalog.redis().run(&command).await;
        let members = match answer.map_err(|error| FsError::Catalog(error.to_string()))? {
            Value::Set(members) | Value::Array(members) => members,
            _ => return Ok(BTreeSet::new()),
        };
        let number = |value: Value| match value {
            Value::BulkString(text) => std::str::from_utf8(&text).ok()?.parse().ok(),
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        };
        Ok(members.into_iter().filter_map(number).collect())
    }
}
