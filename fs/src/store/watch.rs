//! Hears of what happens in the data directory: inotify watches on its directories, and the thread that reads their events into
//! [`Due`].
//!
//! Who takes part: the scan's walk ([`Watches::add`] before it lists a directory, so that nothing falls between), the thread
//! ([`Listener`]), and whoever looks at what is due (`filesystem/behind`).
//!
//! Always: a directory is watched before it is listed; one that appears is watched and listed by the thread itself. `.ks/` is not
//! watched, nor another file system mounted inside. What the daemon itself takes from a name is known ([`own`]); what else it does is heard
//! like others' doing: what that left agrees with the tree, and a look at it costs two system calls. The thread sleeps while nothing happens. Where there are more directories than the system
//! lets one user watch, the rest is left to scans ([`Watches::is_exhausted`]).
//!
//! Not for what becomes of what was heard.
pub mod due;
pub(crate) mod own;
mod tree;

use super::walk::{Found, Walker};
use super::{Store, lock};
use crate::path::{TreePath, is_own_name};
use crate::record::Kind;
use due::{Due, Hint};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tree::Tree;

/// What is read of the kernel's queue at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// After a read more is let come, so that a burst is read in few pieces.
const GATHER: Duration = Duration::from_millis(10);

/// See the module.
pub struct Watches {
    inotify: OwnedFd,
    tree: Mutex<Tree>,
    due: Mutex<Due>,
    /// Something new is due.
    news: Notify,
    epoch: Instant,
    is_exhausted: AtomicBool,
    /// The first scan marks all that it finds: such events are not news.
    is_starting: AtomicBool,
}

impl Watches {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            tree: Mutex::default(),
            due: Mutex::default(),
            news: Notify::new(),
            epoch: Instant::now(),
            is_exhausted: AtomicBool::new(false),
            is_starting: AtomicBool::new(true),
        })
    }

    /// The clock that `due` goes by.
    pub fn now_ms(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// What is due; held for moments.
    pub fn due(&self) -> MutexGuard<'_, Due> {
        lock(&self.due)
    }

    /// Returns when something may have become due earlier than was known.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What could not be told may be told now.
    pub fn try_again_soon(&self) {
        let now_ms = self.now_ms();
        if lock(&self.due).hurry(now_ms) {
            self.news.notify_one();
        }
    }

    /// Whether not all directories can be watched: the system's limit is reached.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// Directories that are watched.
    pub fn directories(&self) -> usize {
        lock(&self.tree).len()
    }

    /// The first scan is over: changes of attributes are news from now on.
    pub fn has_started(&self) {
        self.is_starting.store(false, Ordering::Release);
    }

    /// Watches a directory that is open for being listed. `true`: it was not watched before.
    pub(super) fn add(&self, path: &TreePath, directory: impl AsFd) -> bool {
        let link = format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd());
        let mut tree = lock(&self.tree);
        match inotify::add_watch(&self.inotify, link, mask()) {
            Ok(watch) => tree.put(watch, path),
            Err(error) => {
                self.not_watched(path, error);
                true
            }
        }
    }

    fn not_watched(&self, path: &TreePath, error: Errno) {
        if self.is_exhausted.swap(true, Ordering::Relaxed) {
            return;
        }
        let then = "what is changed there behind the daemon's back is found by a scan now and then";
        match error {
            Errno::NOSPC => tracing::warn!(
                "more directories than may be watched: {then}; raise fs.inotify.max_user_watches (sysctl), then mount again"
            ),
            error => tracing::warn!(%path, %error, "a directory cannot be watched: {then}"),
        }
    }

    fn path_of(&self, watch: i32) -> Option<TreePath> {
        lock(&self.tree).path_of(watch)
    }

    /// What was moved out of sight is watched no more, with all below it.
    fn forget_below(&self, path: &TreePath) {
        let mut tree = lock(&self.tree);
        for watch in tree.at_and_below(path) {
            tree.remove(watch);
            // Its directory may be gone already.
            let _ = inotify::remove_watch(&self.inotify, watch);
        }
    }
}

fn mask() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::DELETE
        | WatchFlags::ONLYDIR
        | WatchFlags::EXCL_UNLINK
}

/// The thread that listens; ends with this.
pub struct Listener {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts it.
    pub fn start(store: &Arc<Store>, watches: &Arc<Watches>) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let ear = Ear {
            store: Arc::clone(store),
            watches: Arc::clone(watches),
            stop: stop.try_clone()?,
        };
        store.root.own_removals.listen();
        let thread = std::thread::Builder::new()
            .name("ks-watch".into())
            .spawn(move || ear.listen())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = rustix::io::write(&self.stop, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "the thread that watches the data directory is left behind");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watches the data directory ended early");
        }
    }
}

/// One event, as it was read.
struct Heard {
    watch: i32,
    what: ReadFlags,
    cookie: u32,
    name: Vec<u8>,
}

struct Ear {
    store: Arc<Store>,
    watches: Arc<Watches>,
    stop: OwnedFd,
}

impl Ear {
    fn listen(self) {
        let mut buffer = vec![MaybeUninit::<u8>::uninit(); BUFFER_BYTES];
        // A directory that was moved away and may appear elsewhere: its two events follow each other.
        let mut moved: Option<(u32, TreePath)> = None;
        loop {
            let mut descriptors = [
                PollFd::new(&self.watches.inotify, PollFlags::IN),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            match poll(&mut descriptors, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the data directory is watched no more; mount again");
                    return;
                }
            }
            if !descriptors[1].revents().is_empty() {
                return;
            }
            self.read(&mut buffer, &mut moved);
            std::thread::sleep(GATHER);
            if moved.is_some() {
                self.read(&mut buffer, &mut moved);
                self.left(moved.take());
            }
            self.watches.news.notify_one();
        }
    }

    /// Reads what there is.
    fn read(&self, buffer: &mut [MaybeUninit<u8>], moved: &mut Option<(u32, TreePath)>) {
        let mut reader = inotify::Reader::new(&self.watches.inotify, buffer);
        loop {
            let heard = match reader.next() {
                Ok(event) => Heard {
                    watch: event.wd(),
                    what: event.events(),
                    cookie: event.cookie(),
                    name: event
                        .file_name()
                        .map_or(Vec::new(), |n| n.to_bytes().to_vec()),
                },
                Err(Errno::INTR) => continue,
                Err(error) => {
                    if error != Errno::AGAIN {
                        tracing::warn!(%error, "events of the data directory cannot be read");
                        self.watches.due().overflow();
                    }
                    return;
                }
            };
            self.hear(heard, moved);
        }
    }

    fn hear(&self, heard: Heard, moved: &mut Option<(u32, TreePath)>) {
        let what = heard.what;
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            self.watches.due().overflow();
            return;
        }
        if what.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
            lock(&self.watches.tree).remove(heard.watch);
            return;
        }
        let Some(path) = self.path_of(&heard) else {
            return;
        };
        let is_directory = what.contains(ReadFlags::ISDIR);
        let now_ms = self.watches.now_ms();
        if moved
            .as_ref()
            .is_some_and(|(cookie, _)| *cookie != heard.cookie)
        {
            self.left(moved.take());
        }
        if what.contains(ReadFlags::MOVED_FROM) {
            let mut hint = Hint::Gone;
            if is_directory {
                *moved = Some((heard.cookie, path.clone()));
                hint = Hint::MovedAway;
            }
            let hint = self.removed(&path, hint);
            self.watches.due().event(path, hint, now_ms);
        } else if what.contains(ReadFlags::MOVED_TO) {
            let from = moved.take().map(|(_, from)| from);
            let hint = from.map_or(Hint::Put, Hint::MovedFrom);
            self.watches.due().event(path.clone(), hint, now_ms);
            if is_directory {
                self.enter(path);
            }
        } else if what.contains(ReadFlags::DELETE) {
            let hint = self.removed(&path, Hint::Gone);
            self.watches.due().event(path, hint, now_ms);
        } else if what.contains(ReadFlags::CREATE) {
            let hint = if is_directory {
                Hint::Settled
            } else {
                Hint::Made
            };
            self.watches.due().event(path.clone(), hint, now_ms);
            if is_directory {
                self.enter(path);
            }
        } else if what.contains(ReadFlags::CLOSE_WRITE) {
            self.watches.due().event(path, Hint::Settled, now_ms);
        } else if !self.watches.is_starting.load(Ordering::Acquire) {
            self.watches.due().event(path, Hint::Attributes, now_ms);
        }
    }

    /// `hint`, unless it was the daemon itself.
    fn removed(&self, path: &TreePath, hint: Hint) -> Hint {
        match self.store.root.own_removals.take(path) {
            true => Hint::TakenByUs,
            false => hint,
        }
    }

    /// Where it happened; `None`: nowhere in the tree.
    fn path_of(&self, heard: &Heard) -> Option<TreePath> {
        if heard.name.is_empty() {
            return None;
        }
        let above = self.watches.path_of(heard.watch)?;
        (!is_own_name(&above, &heard.name)).then(|| above.join(&heard.name))
    }

    /// A directory that was moved and did not appear elsewhere is out of sight.
    fn left(&self, moved: Option<(u32, TreePath)>) {
        if let Some((_, path)) = moved {
            self.watches.forget_below(&path);
        }
    }

    /// A directory that appeared: watched, and what is in it already is looked at.
    fn enter(&self, path: TreePath) {
        let Ok(directory) = self.store.root.open_directory(&path) else {
            return;
        };
        if !self.watches.add(&path, &directory) {
            return;
        }
        drop(directory);
        for found in Walker::watched(Arc::clone(&self.store), path, &self.watches) {
            let Found::Entry { path, kind, .. } = found else {
                continue;
            };
            let hint = match kind {
                Kind::File => Hint::Made,
                _ => Hint::Settled,
            };
            let now_ms = self.watches.now_ms();
            self.watches.due().event(path, hint, now_ms);
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
