//! Hashes whole files: small ones at once, large ones in the background at low priority, those somebody waits for first.
//!
//! Who takes part: one thread that hashes at the lowest priority, a task that feeds it from the queue, and tasks for those
//! that somebody waits for. Always: a file is hashed once at a time however many ask; a hash is kept only for a file that was
//! untouched before and after; the order is tree, `user.ks`, catalog. The queue is bounded: what does not fit is found again by
//! walking the data directory for files without a hash when the queue has run empty.
mod queue;

use super::files::is_not_that_file;
use super::meta;
use super::walk::{Found, Walker};
use super::{OpenLocal, Store, StoreError, lock};
use crate::error::FsError;
use crate::{catalog::Catalog, path::TreePath, record::*};
use queue::Queue;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

/// Files up to this size are hashed as they are published.
pub const INLINE_BYTES: u64 = 1024 * 1024;
/// Files that wait to be hashed in the background.
pub const QUEUE_MAX: usize = 16_384;
/// Files that are hashed at once because somebody waits.
const WAITED_FOR_MAX: usize = 2;
/// How often a hash is told to a catalog that does not answer (each time has the catalog's own deadline).
const TELL_ATTEMPTS: usize = 5;
/// Between two such attempts.
const TELL_PAUSE: Duration = Duration::from_secs(2);

/// A file that is to be hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) path: TreePath,
    pub(super) ino: Ino,
    pub(super) version: u64,
}

/// Why there is no hash; all that wait for it get the same.
#[derive(Clone, Debug, thiserror::Error)]
enum Failure {
    #[error("it is not that version any more")]
    Changed,
    #[error("not here")]
    NotHere,
    #[error("{text}")]
    Unreadable { errno: i32, text: String },
    #[error("{0}")]
    Catalog(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Mismatch { .. } => Failure::NotHere,
            StoreError::Io { ref source, .. } if is_not_that_file(source) => Failure::NotHere,
            StoreError::Io { ref source, .. } => Failure::Unreadable {
                errno: source.raw_os_error().unwrap_or(libc::EIO),
                text: error.to_string(),
            },
            other => Failure::Unreadable {
                errno: libc::EIO,
                text: other.to_string(),
            },
        }
    }
}

impl From<Failure> for FsError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Changed | Failure::NotHere => FsError::Stale,
            Failure::Unreadable { errno, .. } => std::io::Error::from_raw_os_error(errno).into(),
            Failure::Catalog(text) => FsError::Catalog(text),
        }
    }
}

type Outcome = Result<Hash, Failure>;
type Flight = watch::Receiver<Option<Outcome>>;

/// The background hasher; one file at a time.
pub struct Hasher {
    shared: Arc<Shared>,
    feeder: tokio::task::AbortHandle,
    myself: Weak<Hasher>,
}

struct Shared {
    store: Arc<Store>,
    catalog: Catalog,
    queue: Mutex<Queue>,
    is_queued: Notify,
    /// Hashings under way, by inode and version.
    flights: Mutex<HashMap<(Ino, u64), Flight>>,
    waited_for: Semaphore,
    /// How many hold the background hashing up.
    holds: AtomicUsize,
}

/// The background hashing is held up until this is dropped.
pub(super) struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::AcqRel);
        self.0.is_queued.notify_one();
    }
}

/// What the low-priority thread is asked to do.
enum Task {
    Hash(Job, oneshot::Sender<Outcome>),
    /// Find files without a hash, at most so many.
    FindMore(usize, oneshot::Sender<Vec<Job>>),
}

impl Hasher {
    /// Starts the thread and its task; they end when the hasher is dropped.
    pub fn start(store: Arc<Store>, catalog: Catalog) -> Arc<Self> {
        let shared = Arc::new(Shared {
            store,
            catalog,
            queue: Mutex::new(Queue::new(QUEUE_MAX)),
            is_queued: Notify::new(),
            flights: Mutex::new(HashMap::new()),
            waited_for: Semaphore::new(WAITED_FOR_MAX),
            holds: AtomicUsize::new(0),
        });
        let (tasks, received) = std::sync::mpsc::sync_channel(1);
        let store = Arc::clone(&shared.store);
        let thread = std::thread::Builder::new()
            .name("ks-hasher".into())
            .spawn(move || work(&store, &received));
        if let Err(error) = thread {
            tracing::error!(%error, "no thread for hashing: files are hashed only when they are asked for");
        }
        let feeder = tokio::spawn(Arc::clone(&shared).feed(tasks)).abort_handle();
        Arc::new_cyclic(|myself| Self {
            shared,
            feeder,
            myself: Weak::clone(myself),
        })
    }

    /// For those that outlive whoever lent them the hasher.
    pub(super) fn handle(&self) -> Weak<Hasher> {
        Weak::clone(&self.myself)
    }

    /// Queues a file that this node holds whole. A newer version takes the place of an older one.
    pub fn queue(&self, path: TreePath, ino: Ino, version: u64) {
        self.shared.enqueue(Job { path, ino, version });
    }

    /// Hashes it now (joins a hashing under way); stores tree, `user.ks` and catalog hash. Fails when the file changed meanwhile.
    pub async fn hash_now(&self, path: &TreePath, ino: Ino, version: u64) -> Result<Hash, FsError> {
        let job = Job {
            path: path.clone(),
            ino,
            version,
        };
        let shared = Arc::clone(&self.shared);
        let flight = self.shared.fly(job, move |job| async move {
            let _permit = shared.waited_for.acquire().await;
            let store = Arc::clone(&shared.store);
            let hashed = tokio::task::spawn_blocking(move || hash_one(&store, &job)).await;
            hashed.unwrap_or_else(|panic| Err(panicked(panic)))
        });
        Ok(landed(flight).await?)
    }

    /// Nothing is hashed in the background for now: a node that starts has better things to do. What somebody waits for is.
    pub(super) fn hold(&self) -> Hold {
        self.shared.holds.fetch_add(1, Ordering::AcqRel);
        Hold(Arc::clone(&self.shared))
    }

    /// How many files wait to be hashed in the background (at least).
    pub fn queued(&self) -> usize {
        lock(&self.shared.queue).len()
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        self.feeder.abort();
    }
}

impl Shared {
    fn enqueue(&self, job: Job) {
        lock(&self.queue).push(job);
        self.is_queued.notify_one();
    }

    /// Joins the hashing of that version, or starts it with `hash`; it goes on when nobody waits any more.
    fn fly<F>(self: &Arc<Self>, job: Job, hash: impl FnOnce(Job) -> F) -> Flight
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let key = (job.ino, job.version);
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (done, flight) = watch::channel(None);
        flights.insert(key, flight.clone());
        drop(flights);
        let shared = Arc::clone(self);
        let hashing = hash(job.clone());
        let moved = Landing(Arc::clone(self), key);
        tokio::spawn(async move {
            let _moved = moved;
            let mut outcome = hashing.await;
            if let Err(Failure::NotHere) = outcome {
                outcome = shared.look_elsewhere(&job).await;
            }
            if let Ok(hash) = outcome
                && let Err(error) = shared.tell(&job, hash).await
            {
                outcome = Err(error);
            }
            let _ = done.send(Some(outcome));
        });
        flight
    }

    /// It was renamed since it was queued: asks the catalog where it stands now, once.
    async fn look_elsewhere(&self, job: &Job) -> Outcome {
        let path = match self.catalog.path_of(job.ino).await {
            Ok(Some(path)) if path != job.path => path,
            Ok(_) => return Err(Failure::NotHere),
            Err(error) => return Err(Failure::Catalog(error.to_string())),
        };
        let (store, job) = (
            Arc::clone(&self.store),
            Job {
                path,
                ..job.clone()
            },
        );
        let hashed = tokio::task::spawn_blocking(move || hash_one(&store, &job)).await;
        hashed.unwrap_or_else(|panic| Err(panicked(panic)))
    }

    async fn tell(&self, job: &Job, hash: Hash) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            match self.catalog.set_hash(job.ino, job.version, hash).await {
                Ok(()) => return Ok(()),
                Err(error) if attempt == TELL_ATTEMPTS => {
                    return Err(Failure::Catalog(error.to_string()));
                }
                Err(_) => attempt += 1,
            }
            tokio::time::sleep(TELL_PAUSE).await;
        }
    }

    /// Gives the thread one file after the other.
    async fn feed(self: Arc<Self>, tasks: std::sync::mpsc::SyncSender<Task>) {
        loop {
            if self.holds.load(Ordering::Acquire) > 0 {
                self.is_queued.notified().await;
                continue;
            }
            let next = lock(&self.queue).pop();
            match next {
                Some(job) => self.hash_in_background(job, &tasks).await,
                None if lock(&self.queue).take_overflow() => self.find_more(&tasks).await,
                None => self.is_queued.notified().await,
            }
        }
    }

    async fn hash_in_background(
        self: &Arc<Self>,
        job: Job,
        tasks: &std::sync::mpsc::SyncSender<Task>,
    ) {
        let tasks = tasks.clone();
        let path = job.path.clone();
        let flight = self.fly(job, move |job| async move {
            let (done, outcome) = oneshot::channel();
            // One at a time: the thread is free, so this never waits.
            if tasks.send(Task::Hash(job, done)).is_err() {
                return Err(Failure::Changed);
            }
            outcome.await.unwrap_or(Err(Failure::Changed))
        });
        match landed(flight).await {
            // Whoever changed it queues it again.
            Ok(_) | Err(Failure::Changed | Failure::NotHere) => {}
            Err(failure) => {
                tracing::warn!(%path, %failure, "a file could not be hashed; the next start tries again");
            }
        }
    }

    async fn find_more(&self, tasks: &std::sync::mpsc::SyncSender<Task>) {
        let (done, found) = oneshot::channel();
        if tasks.send(Task::FindMore(QUEUE_MAX / 2, done)).is_err() {
            return;
        }
        let found = found.await.unwrap_or_default();
        let mut queue = lock(&self.queue);
        if found.len() == QUEUE_MAX / 2 {
            // There may be more behind these.
            queue.set_overflow();
        }
        for job in found {
            queue.push(job);
        }
    }
}

/// Takes a flight off the list when it ends, also by a panic.
struct Landing(Arc<Shared>, (Ino, u64));

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.0.flights).remove(&self.1);
    }
}

async fn landed(mut flight: Flight) -> Outcome {
    match flight.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Err(Failure::Changed)),
        Err(_) => Err(Failure::Unreadable {
            errno: libc::EIO,
            text: "hashing ended early".into(),
        }),
    }
}

fn panicked(panic: tokio::task::JoinError) -> Failure {
    Failure::Unreadable {
        errno: libc::EIO,
        text: panic.to_string(),
    }
}

/// The low-priority thread.
fn work(store: &Arc<Store>, tasks: &std::sync::mpsc::Receiver<Task>) {
    // A Linux thread has a priority of its own; without it, hashing only disturbs more.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
    let mut walker: Option<Walker> = None;
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Hash(job, done) => {
                let _ = done.send(hash_one(store, &job));
            }
            Task::FindMore(max, done) => {
                let walk =
                    walker.get_or_insert_with(|| Walker::new(Arc::clone(store), TreePath::root()));
                let found: Vec<Job> = walk
                    .filter_map(|found| without_hash(store, found))
                    .take(max)
                    .collect();
                if found.len() < max {
                    walker = None;
                }
                let _ = done.send(found);
            }
        }
    }
}

fn without_hash(store: &Store, found: Found) -> Option<Job> {
    let Found::Entry {
        path,
        kind: Kind::File,
        ..
    } = found
    else {
        return None;
    };
    let standing = store.standing(&path).ok()?;
    let meta = standing.meta().filter(|meta| meta.blake3.is_none())?;
    let (ino, version) = (meta.ino, meta.version);
    (!standing.is_dirty()).then_some(Job { path, ino, version })
}

/// Hashes one file and keeps tree and `user.ks`.
fn hash_one(store: &Store, job: &Job) -> Outcome {
    let only_reading = OpenLocal {
        write: false,
        truncate: false,
    };
    let (file, meta) = store.open_file(&job.path, job.ino, only_reading)?;
    let stat = |file| rustix::fs::fstat(file).map_err(|error| store.io(&job.path)(error.into()));
    if meta.version != job.version || !meta::is_untouched(&meta, &stat(&file)?) {
        return Err(Failure::Changed);
    }
    if let Some(hash) = meta.blake3
        && store.tree(&hash, meta.size).is_some()
    {
        return Ok(hash);
    }
    let (hash, outboard) =
        ks_transport::blocks::hash_file(&file, meta.size).map_err(store.io(&job.path))?;
    if !meta::is_untouched(&meta, &stat(&file)?) {
        return Err(Failure::Changed);
    }
    store.put_tree(&hash, &outboard)?;
    let is_kept = store
        .add_hash_to_meta(&file, job.ino, job.version, hash)
        .map_err(store.io(&job.path))?;
    if is_kept {
        Ok(hash)
    } else {
        Err(Failure::Changed)
    }
}

#[cfg(test)]
#[path = "hasher_tests.rs"]
mod tests;
