//! The scrub: re-reads what this node holds, slowly and for ever, and mends what has rotted; and what the cluster is told of troubles.
//!
//! Who takes part: a thread of the lowest priority (walks, reads, hashes; `copies::scrub` says when), `checking` (looks closer at a suspect: re-reads every copy, mends), a task that tells
//! the catalog what needs a person. Always: the thread ends with the file system; where it is is on disk.
use super::FileSystem;
use crate::copies::scrub::{self, Next, Progress};
use crate::path::TreePath;
use crate::store::Store;
use crate::store::check::Scrubbed;
use crate::store::ordered::Ordered;
use crate::store::troubles::Troubles;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;

/// How far it is is written down this often; what was read since is read again after a crash.
const SAVE_EVERY: Duration = Duration::from_secs(600);
/// The cluster is told of troubles at most this often.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// And again after so long, should Redis have lost it.
const TELL_AGAIN: Duration = Duration::from_secs(600);
/// Damaged files are looked up in the catalog this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

/// Ends the thread when it is dropped.
pub(super) type Guard = Sender<()>;

/// Starts both; `every`: each file once in that time, zero: the scrub is off.
pub(super) fn spawn(file_system: &Arc<FileSystem>, every: Duration) -> Option<Guard> {
    tokio::spawn(tell(Arc::downgrade(file_system)));
    if every.is_zero() {
        return None;
    }
    let (guard, ended) = std::sync::mpsc::channel();
    let scrub = Scrub {
        store: file_system.store.clone(),
        file_system: Arc::downgrade(file_system),
        runtime: Handle::current(),
        progress: file_system.store.scrub_progress(),
        saved: Instant::now(),
        ended: Mutex::new(ended),
    };
    let thread = std::thread::Builder::new()
        .name("ks-scrub".into())
        .spawn(move || scrub.run(every));
    match thread {
        Ok(_) => Some(guard),
        Err(error) => {
            tracing::error!(%error, "no thread for the scrub: files are checked only by ks verify");
            None
        }
    }
}

struct Scrub {
    store: Arc<Store>,
    file_system: Weak<FileSystem>,
    runtime: Handle,
    progress: Progress,
    saved: Instant,
    /// One thread alone has it.
    ended: Mutex<Receiver<()>>,
}

impl Scrub {
    fn run(mut self, every: Duration) {
        // A Linux thread has a priority of its own, and the disk's goes with it.
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        let mut walk: Option<Ordered> = None;
        loop {
            let used = self
                .store
                .space()
                .map_or(0, |space| space.total - space.free);
            match self.progress.next(every, now_ms(), used) {
                Next::Wait(time) => {
                    walk = None;
                    self.tell();
                    if self.saved.elapsed() >= SAVE_EVERY {
                        self.save();
                    }
                    if !self.rest(time) {
                        return self.save();
                    }
                }
                Next::Look => {
                    let walk = walk.get_or_insert_with(|| {
                        let position = TreePath::new(&self.progress.position);
                        Ordered::after(self.store.clone(), &position.unwrap_or_default())
                    });
                    match walk.next() {
                        Some(path) => {
                            if !self.look(&path) || !self.rest(scrub::rest_after_file()) {
                                return self.save();
                            }
                        }
                        None => self.pass_ended(),
                    }
                }
            }
        }
    }

    fn pass_ended(&mut self) {
        self.progress.passed(now_ms());
        let (files, bytes) = (self.progress.last_files, self.progress.last_read_bytes);
        tracing::info!(files, bytes, "the scrub has been through all files here");
        self.save();
    }

    fn rest(&self, time: Duration) -> bool {
        rest(&self.ended, time)
    }

    /// One file; `false`: the file system ends.
    fn look(&mut self, path: &TreePath) -> bool {
        self.store.note_if_conflict(path);
        let ended = &self.ended;
        let (found, read_bytes) =
            self.store
                .scrub_copy(path, |bytes| match rest(ended, scrub::least_time(bytes)) {
                    true => Ok(()),
                    false => Err(std::io::ErrorKind::Interrupted.into()),
                });
        match found {
            Scrubbed::Ended => return false,
            Scrubbed::Suspect => self.mend(path),
            Scrubbed::Good | Scrubbed::Passed => {}
        }
        self.progress.looked(path.as_bytes(), read_bytes);
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save();
        }
        true
    }

    /// Its bytes are not those of its hash: every copy is re-read, and the damaged ones mended.
    fn mend(&mut self, path: &TreePath) {
        let Some(file_system) = self.file_system.upgrade() else {
            return;
        };
        tracing::warn!(%path, "the scrub found bytes here that are not those of its hash; all its copies are checked");
        self.progress.damaged += 1;
        let verified = self
            .runtime
            .block_on(async move { file_system.verify(path).await });
        match verified {
            Ok(verified) if verified.good => {
                self.progress.mended += 1;
                tracing::warn!(%path, "the damaged copy was mended from another node's");
            }
            Ok(verified) if !verified.lost => {
                tracing::warn!(%path, copies = ?verified.copies, "a damaged copy is not mended; ks verify tries again");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%path, %error, "a damaged copy could not be looked at; ks verify tries again");
            }
        }
    }

    fn save(&mut self) {
        self.store.save_scrub_progress(&self.progress);
        self.saved = Instant::now();
        self.tell();
    }

    /// Lets `ks status` know.
    fn tell(&self) {
        if let Some(file_system) = self.file_system.upgrade() {
            *file_system.scrubbed.lock().unwrap() = Some(self.progress.clone());
        }
    }
}

/// `false`: the file system ends.
fn rest(ended: &Mutex<Receiver<()>>, time: Duration) -> bool {
    let ended = ended.lock().expect("one thread alone has it");
    matches!(ended.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Tells the catalog what needs a person, when that changes.
async fn tell(file_system: Weak<FileSystem>) {
    let (mut told, mut told_at) = (Troubles::default(), None::<Instant>);
    let mut looked_up = Instant::now();
    loop {
        {
            let Some(file_system) = file_system.upgrade() else {
                return;
            };
            if looked_up.elapsed() >= LOOK_UP_EVERY {
                looked_up = Instant::now();
                file_system.forget_settled().await;
            }
            let now = super::on_disk(|| file_system.store.troubles());
            let is_old = told_at.is_none_or(|at| at.elapsed() > TELL_AGAIN);
            if (now != told || is_old) && file_system.catalog.tell_troubles(&now).await.is_ok() {
                (told, told_at) = (now, Some(Instant::now()));
            }
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

impl FileSystem {
    /// Damaged files that have another version by now, or are gone, are no trouble any more.
    async fn forget_settled(&self) {
        for (path, version) in self.store.damaged_files() {
            match self.catalog.locate_path(&path).await {
                Ok(Some(located)) if located.node.inode.version == version => {}
                Ok(_) => self.store.note_sound(&path),
                Err(_) => return,
            }
        }
    }

    /// What needs a person, on all nodes: (the node's name, its troubles). While the catalog is away, this node's alone.
    pub async fn troubles(&self) -> Vec<(String, Troubles)> {
        let mine = super::on_disk(|| self.store.troubles());
        let mut all = vec![(self.options.node_name.clone(), mine)];
        for (node, told) in self.catalog.troubles().await.unwrap_or_default() {
            if node != self.me() {
                all.push((self.node_name(node).await, told));
            }
        }
        all.retain(|(_, troubles)| !troubles.is_empty());
        all
    }

    /// How far the scrub is; `None`: it is off, or has just begun.
    pub fn scrub_progress(&self) -> Option<Progress> {
        self.scrubbed.lock().unwrap().clone()
    }
}
