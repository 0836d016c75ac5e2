//! Finds what is in the data directory at start and enters it in the catalog.
//!
//! Who takes part: a thread that walks ([`entry`]), this task that asks the catalog and acts, [`decide`] (what becomes of each
//! thing found), [`compare`] (files that may be copies of another node's, by their hashes), `survey` (what the start did not wait for).
//!
//! Always:
//! - Nothing is overwritten, and nothing removed, but a fetched file that a crash of the machine left damaged (its hash says so).
//! - What is here and in the tree under other content is renamed to `NAME.conflict-NODE` and entered as new.
//! - Memory does not grow with the number of files: [`BATCH_MAX`] at a time, lists in the report are cut.
//! - A file is marked (`user.ks`) as it was when it was looked at, so that a change meanwhile is seen the next time.
//!
//! Moved behind our back: a file whose `user.ks` names an inode that the catalog has elsewhere, where it does not stand any more,
//! is renamed in the catalog when this node is its home (over another file whose home it is, if that stood there), and put back when it
//! is a copy.
//!
//! The other's hash is not known yet: files of the same size wait for it, the scan for [`compare::SETTLE_WAIT`], then a task in the
//! background for [`compare::SETTLE_LONGEST`]; meanwhile they stand untouched and are no copies. What is undecided then is a conflict.
mod act;
mod compare;
mod decide;
mod entry;
pub(crate) mod live;
pub(crate) mod look;
mod retell;
mod survey;

use super::walk::Walker;
use super::watch::Watches;
use super::{Store, StoreError, hasher::Hasher};
use crate::catalog::{Catalog, CatalogError, Node_};
use crate::path::TreePath;
use crate::record::*;
pub use live::{Live, take_paths};
pub use retell::{RetoldReport, retell};
pub(crate) use survey::survey;

use compare::Pending;
use decide::{Verdict, Way};
use entry::Entry;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Things that are entered in one go.
pub const BATCH_MAX: usize = 500;
/// Batches that the walk may be ahead.
const BATCHES_AHEAD: usize = 2;
/// Questions to the catalog under way at once.
const QUESTIONS_MAX: usize = 64;
/// Conflicts, and unreadable files, that a report lists; more are only logged.
pub const LISTED_MAX: usize = 10_000;
/// A scan that found more than one new thing in so many is not cut short: entering them in batches is many times quicker.
const NEW_SHARE_MAX: u64 = 20;
/// Files that can wait for the hash of another node's; more stand untouched until the next start.
const PENDING_MAX: usize = 10_000;

/// What a scan did.
#[derive(Clone, Debug, Default)]
pub struct ScanReport {
    /// Files found.
    pub files: u64,
    /// Directories found.
    pub directories: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Entered as new.
    pub new: u64,
    /// Changed behind our back, published as a new version.
    pub changed: u64,
    /// Kept as `NAME.conflict-NODE`: tree paths.
    pub conflicts: Vec<String>,
    /// What could not be read: path and error.
    pub unreadable: Vec<(String, String)>,
    /// Files that may be copies of another node's, whose hash is not known yet.
    pub undecided: u64,
    /// It ended before it was through.
    pub is_cut_short: bool,
}

/// Walks the data directory (not `.ks`), in batches; `watches` is told of each directory before it is listed. Known and unchanged (by `user.ks`): the holding is told again. Changed behind our back: published as a new version when this node is
/// the home, else kept as a conflict. New: entered, home here. Same path on another node: same size and hash, one file with two copies; other content: renamed to `NAME.conflict-<node name>` here. Nothing is overwritten or removed.
/// With `until` it is cut short then, where no file can be damaged: a `survey` is to follow.
pub async fn scan(
    store: &Arc<Store>,
    catalog: &Catalog,
    hasher: &Hasher,
    node_name: &str,
    watches: Option<&Arc<Watches>>,
    until: Option<Instant>,
) -> Result<ScanReport, StoreError> {
    store.set_node_name(node_name);
    let mut scan = Scan::new(store, catalog, hasher);
    scan.watches = watches;
    scan.until = until.filter(|_| !store.durability.has_doubts());
    let hold = hasher.hold();
    let mut starts = vec![TreePath::root()];
    while let Some(start) = starts.pop() {
        if scan.report.is_cut_short {
            break;
        }
        scan.walk(start).await?;
        // A directory that was set aside is walked anew under its new name.
        starts.append(&mut scan.aside);
    }
    scan.all_told().await?;
    // Others may wait for hashes of ours as we do for theirs.
    drop(hold);
    let pending = std::mem::take(&mut scan.pending);
    let undecided = scan.settle(pending, compare::SETTLE_WAIT).await?;
    scan.report.undecided += undecided.len() as u64;
    let report = scan.report;
    compare::settle_in_background(store, catalog, hasher, undecided);
    let store = Arc::clone(store);
    let synced = tokio::task::spawn_blocking(move || {
        store.durability.set_checked();
        store.durability.sync(store.root.descriptor())
    });
    synced.await.map_err(StoreError::from)??;
    Ok(report)
}

impl From<tokio::task::JoinError> for StoreError {
    fn from(error: tokio::task::JoinError) -> Self {
        StoreError::Io {
            path: std::path::PathBuf::from("a thread of the store"),
            source: std::io::Error::other(error.to_string()),
        }
    }
}

type Batch = Vec<Result<Entry, (TreePath, std::io::Error)>>;

/// A scan under way.
struct Scan<'s> {
    store: &'s Arc<Store>,
    catalog: &'s Catalog,
    hasher: &'s Hasher,
    report: ScanReport,
    pending: Vec<Pending>,
    /// Directories that were set aside, still to be walked.
    aside: Vec<TreePath>,
    /// Whole copies of other nodes' files, to be told with the others of their batch.
    copies: Vec<(Ino, Holding)>,
    /// What is being told to the catalog.
    telling: JoinSet<Result<(), CatalogError>>,
    /// Told of each directory before it is listed.
    watches: Option<&'s Arc<Watches>>,
    /// The node runs: single paths are taken in.
    live: Option<&'s dyn Live>,
    /// It is cut short then.
    until: Option<Instant>,
}

/// What the catalog says of a found file that carries a meta.
enum Known {
    Here(Node_),
    /// At another path; with what the catalog has where it was found.
    Elsewhere(Node_, Way),
    Unknown,
}

impl<'s> Scan<'s> {
    /// One that has found nothing yet: of a node that starts, and that tells nobody which directories it lists.
    fn new(store: &'s Arc<Store>, catalog: &'s Catalog, hasher: &'s Hasher) -> Self {
        Self {
            store,
            catalog,
            hasher,
            report: ScanReport::default(),
            pending: Vec::new(),
            aside: Vec::new(),
            copies: Vec::new(),
            telling: JoinSet::new(),
            watches: None,
            live: None,
            until: None,
        }
    }
}

impl Scan<'_> {
    async fn walk(&mut self, start: TreePath) -> Result<(), StoreError> {
        let (send, mut batches) = mpsc::channel::<Batch>(BATCHES_AHEAD);
        let store = Arc::clone(self.store);
        let watches = self.watches.cloned();
        let walking =
            tokio::task::spawn_blocking(move || read_all(&store, start, watches.as_ref(), &send));
        // Directories that have been renamed under the walk: what it still says of them is out of date.
        let mut stale: Vec<TreePath> = Vec::new();
        while let Some(batch) = batches.recv().await {
            self.take_batch(batch, &mut stale).await?;
            let is_mostly_known = self.report.new * NEW_SHARE_MAX <= self.report.files;
            if is_mostly_known && self.until.is_some_and(|until| Instant::now() >= until) {
                self.report.is_cut_short = true;
                break;
            }
        }
        drop(batches);
        walking.await?;
        Ok(())
    }

    async fn take_batch(
        &mut self,
        batch: Batch,
        stale: &mut Vec<TreePath>,
    ) -> Result<(), StoreError> {
        let (mut directories, mut others, mut marked) = (Vec::new(), Vec::new(), Vec::new());
        let mut symlinks = Vec::new();
        for found in batch {
            match found {
                Ok(entry) if is_stale(&entry.path, stale) => {}
                Err((path, _)) if is_stale(&path, stale) => {}
                Err((path, error)) => self.unreadable(&path, error.to_string()),
                Ok(entry) => match (entry.inode.kind, &entry.meta) {
                    (Kind::Directory, _) => directories.push(entry),
                    (Kind::Symlink, _) => symlinks.push(entry),
                    (_, Some(_)) => marked.push(entry),
                    (_, None) => others.push(entry),
                },
            }
        }
        self.report.directories += directories.len() as u64;
        for entry in others.iter().chain(&marked) {
            self.report.files += u64::from(entry.inode.kind == Kind::File);
            self.report.bytes += entry.inode.size;
        }
        let directories = self.not_in_tree(directories).await?;
        // Directories come before what is in them, here as in the walk.
        let asides = self.adopt(directories).await?;
        stale.extend(asides.iter().map(|(was, _)| was.clone()));
        self.aside.extend(asides.into_iter().map(|(_, now)| now));
        others.extend(self.not_in_tree(symlinks).await?);
        others.retain(|entry| !is_stale(&entry.path, stale));
        marked.retain(|entry| !is_stale(&entry.path, stale));
        for (entry, known) in self.ask(marked).await? {
            if let Some(entry) = self.take_marked(entry, known).await? {
                others.push(entry);
            }
        }
        let is_linked = |entry: &Entry| entry.inode.kind == Kind::File && entry.links > 1;
        let (linked, others): (Vec<Entry>, Vec<Entry>) = others.into_iter().partition(is_linked);
        self.adopt(others).await?;
        for entry in linked {
            self.take_linked(entry).await?;
        }
        self.tell_copies().await
    }

    /// A file of several names is entered by the first of them, and then carries a meta: so each is looked at once more when its turn
    /// comes. Two records for one file would each think that its bytes are its own.
    async fn take_linked(&mut self, entry: Entry) -> Result<(), StoreError> {
        let again = match self.read(&entry.path) {
            Some(Ok(again)) => again,
            Some(Err((path, error))) => {
                self.unreadable(&path, error.to_string());
                return Ok(());
            }
            None => return Ok(()),
        };
        if again.meta.is_none() {
            self.adopt(vec![again]).await?;
            return Ok(());
        }
        for (entry, known) in self.ask(vec![again]).await? {
            if let Some(entry) = self.take_marked(entry, known).await? {
                self.adopt(vec![entry]).await?;
            }
        }
        Ok(())
    }

    /// Directories and symlinks that the tree does not have so: they carry nothing that says that it does.
    async fn not_in_tree(&self, entries: Vec<Entry>) -> Result<Vec<Entry>, StoreError> {
        let found = self.catalog.found(&paths_of(&entries)).await?;
        let me = self.store.node_id();
        let all = entries.into_iter().zip(found);
        let missing = all.filter(|(entry, node)| {
            let verdict = node
                .as_ref()
                .map(|node| decide::occupied(&entry.inode, &node.inode, me));
            if let (Some(Verdict::Same), Some(node)) = (verdict, node)
                && entry.inode.kind == Kind::Directory
            {
                self.mark_directory(entry, node);
            }
            verdict != Some(Verdict::Same)
        });
        Ok(missing.map(|(entry, _)| entry).collect())
    }

    /// What the catalog says of files that carry a meta: all of them are asked for at once, and those that are not where they stand one
    /// by one.
    async fn ask(&self, entries: Vec<Entry>) -> Result<Vec<(Entry, Known)>, StoreError> {
        let found = self.catalog.found(&paths_of(&entries)).await?;
        let mut answers = Vec::with_capacity(entries.len());
        let mut asking: JoinSet<Result<(Entry, Known), CatalogError>> = JoinSet::new();
        for (entry, here) in entries.into_iter().zip(found) {
            let ino = entry.meta.as_ref().map_or(0, |meta| meta.ino);
            let here = match here {
                Some(node) if node.ino == ino => {
                    answers.push((entry, Known::Here(node)));
                    continue;
                }
                here => here,
            };
            if asking.len() == QUESTIONS_MAX
                && let Some(answer) = asking.join_next().await
            {
                answers.push(answer??);
            }
            let catalog = self.catalog.clone();
            asking.spawn(async move {
                let known = match catalog.node(ino).await? {
                    Some(node) if node.inode.kind == Kind::File => {
                        let here = here.as_ref().map(|here| &*here.inode);
                        Known::Elsewhere(node, decide::way(here, catalog.me()))
                    }
                    _ => Known::Unknown,
                };
                Ok((entry, known))
            });
        }
        while let Some(answer) = asking.join_next().await {
            answers.push(answer??);
        }
        Ok(answers)
    }

    /// A file that carries a meta. `Some`: to be entered as new.
    async fn take_marked(
        &mut self,
        entry: Entry,
        known: Known,
    ) -> Result<Option<Entry>, StoreError> {
        let Some(meta) = entry.meta.clone() else {
            return Ok(Some(entry));
        };
        let entry = match self.doubt(entry, &meta).await? {
            Some(entry) => entry,
            None => return Ok(None),
        };
        match known {
            Known::Here(node) => self.take_known(entry, &meta, node).await,
            Known::Elsewhere(node, way) => self.take_moved(entry, &meta, node, way).await,
            Known::Unknown => Ok(Some(entry)),
        }
    }

    /// A file fetched shortly before a crash of the machine is read again. `None`: it was damaged, and is removed.
    async fn doubt(
        &mut self,
        entry: Entry,
        meta: &super::LocalMeta,
    ) -> Result<Option<Entry>, StoreError> {
        if !entry.is_doubtful || !entry.is_untouched {
            return Ok(Some(entry));
        }
        let ino = meta.ino;
        let (store, meta) = (Arc::clone(self.store), meta.clone());
        let checked = tokio::task::spawn_blocking(move || -> Result<_, StoreError> {
            let hash = store.hash_entry(&entry)?;
            if hash.is_some() && hash != meta.blake3 {
                tracing::warn!(path = %entry.path, "a fetched copy was damaged when the machine went down: removed, it is fetched again when it is read");
                store.remove(&entry.path, meta.ino)?;
                return Ok(None);
            }
            Ok(Some(entry))
        });
        let entry = checked.await??;
        if entry.is_none() {
            self.catalog.set_holding(ino, None).await?;
        }
        Ok(entry)
    }
}

/// The walk's thread: reads and sends batches until there is nothing more, or nobody takes them.
fn read_all(
    store: &Arc<Store>,
    start: TreePath,
    watches: Option<&Arc<Watches>>,
    send: &mpsc::Sender<Batch>,
) {
    let mut batch = Batch::with_capacity(BATCH_MAX);
    let walker = match watches {
        Some(watches) => Walker::watched(Arc::clone(store), start, watches),
        None => Walker::new(Arc::clone(store), start),
    };
    for found in walker.reading_marks() {
        match Entry::read(store, found) {
            Ok(Some(entry)) => batch.push(Ok(entry)),
            Ok(None) => {}
            Err(unreadable) => batch.push(Err(unreadable)),
        }
        if batch.len() == BATCH_MAX && send.blocking_send(std::mem::take(&mut batch)).is_err() {
            return;
        }
    }
    // Nobody takes it: the scan has failed already.
    let _ = send.blocking_send(batch);
}

fn paths_of(entries: &[Entry]) -> Vec<TreePath> {
    entries.iter().map(|entry| entry.path.clone()).collect()
}

/// Whether it is one of these directories or below one.
fn is_stale(path: &TreePath, stale: &[TreePath]) -> bool {
    stale.iter().any(|above| {
        let rest = path.as_bytes().strip_prefix(above.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    })
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
