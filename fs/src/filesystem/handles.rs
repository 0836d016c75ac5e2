//! The open files: handles by number, and for each open inode how it is open and where its bytes come from.
//!
//! What always holds: the counts of an inode cover at least what the kernel has open (a handle is counted before the kernel
//! hears of it and until the kernel has said that it is gone), so a mode chosen by them is one the kernel accepts.
//! All cached handles of an inode read the same content, as they share the kernel's pages: one version, from the first byte
//! that was given out. Who opens another version meanwhile is served beside the pages (`Mode::Direct`).
use super::{
    Handle, Opened,
    open_plan::{self, InUse, Mode, Source},
    writing::{Stamp, Writing},
};
use crate::{
    catalog::Node_, error::FsError, fetch::RemoteFile, peer::forward::Forwarded, record::Ino,
};
use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Open handles on this node.
pub(crate) const HANDLES_MAX: usize = 65_536;
/// Inodes whose version in the kernel's pages is remembered after the last close.
const PAGES_MAX: usize = 65_536;

/// After nobody gave a content, how long reads of it fail at once.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// The bytes that cached handles of an inode read.
#[derive(Clone)]
pub(crate) enum Content {
    /// Nothing to read.
    Empty,
    /// The plain file here.
    Local(Arc<File>),
    /// Fetched from peers.
    Remote(Arc<RemoteFile>),
    /// Read at the home as it is now (it is being written there).
    Live(Arc<Forwarded>),
}

/// What one handle's reads and writes go to.
#[derive(Clone)]
pub(crate) enum Served {
    /// Its own content.
    Own(Content),
    /// The inode's content.
    Shared,
    /// The plain file, for writing.
    Writing(Arc<Writing>),
    /// The home, for reading and writing.
    Forwarded(Arc<Forwarded>),
}

/// One open handle.
#[derive(Clone)]
pub(crate) struct OpenHandle {
    pub(crate) ino: Ino,
    pub(crate) inode: Arc<OpenInode>,
    pub(crate) served: Served,
    pub(crate) mode: Mode,
    pub(crate) append: bool,
    /// It can be mapped for writing.
    pub(crate) maps: bool,
    /// It runs as a program.
    pub(crate) executes: bool,
    /// The process group that opened it, where somebody watches process groups.
    pub(crate) group: Option<i32>,
}

/// An inode that is open here.
pub(crate) struct OpenInode {
    /// Another node published a version since the content was chosen.
    pub(crate) stale: AtomicBool,
    /// Bytes of the content were given out, or are in the kernel's pages: what is read from now on is of the same version.
    given: AtomicBool,
    /// Another version is current, and bytes of this one were given out: its readers get ESTALE.
    pub(crate) outdated: AtomicBool,
    /// One look for a newer content at a time.
    pub(crate) refreshing: tokio::sync::Mutex<()>,
    /// When a read of the content last found nobody to give it, and who was tried.
    failed: Mutex<Option<(Instant, String)>>,
    state: Mutex<InodeState>,
}

struct InodeState {
    /// The node as it was when it was opened last (all that is left once it is unlinked).
    node: Node_,
    passthrough: usize,
    /// Device and number of the plain file that passthrough handles use.
    backing: Option<(u64, u64)>,
    through_daemon: usize,
    writers: usize,
    writing: Option<Arc<Writing>>,
    forwarded: Option<Arc<Forwarded>>,
    content: Content,
    content_version: u64,
}

impl OpenInode {
    fn new(node: Node_) -> Self {
        Self {
            stale: AtomicBool::new(false),
            given: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            refreshing: tokio::sync::Mutex::new(()),
            failed: Mutex::new(None),
            state: Mutex::new(InodeState {
                node,
                passthrough: 0,
                backing: None,
                through_daemon: 0,
                writers: 0,
                writing: None,
                forwarded: None,
                content: Content::Empty,
                content_version: 0,
            }),
        }
    }

    pub(crate) fn content(&self) -> (Content, u64) {
        let state = self.state.lock().unwrap();
        (state.content.clone(), state.content_version)
    }

    /// Bytes of the content are given out.
    pub(crate) fn note_given(&self) {
        if !self.given.load(Ordering::Relaxed) {
            self.given.store(true, Ordering::Release);
        }
    }

    /// Whether its readers may go on with another version: they have seen nothing of this one.
    pub(crate) fn may_change(&self) -> bool {
        !self.given.load(Ordering::Acquire)
    }

    /// Later reads of cached handles come from `content`, unless a newer one is there already.
    pub(crate) fn set_content(&self, content: Content, version: u64) {
        let mut state = self.state.lock().unwrap();
        if version >= state.content_version {
            state.content = content;
            state.content_version = version;
            *self.failed.lock().unwrap() = None;
        }
    }

    pub(crate) fn note_failure(&self, tried: String) {
        *self.failed.lock().unwrap() = Some((Instant::now(), tried));
    }

    /// Who was tried in vain a moment ago: not worth another wait now (the kernel asks twice for what it cannot read ahead).
    pub(crate) fn failed_lately(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap();
        let (at, tried) = failed.as_ref()?;
        (at.elapsed() < TRY_AGAIN_AFTER).then(|| tried.clone())
    }

    pub(crate) fn writing(&self) -> Option<Arc<Writing>> {
        self.state.lock().unwrap().writing.clone()
    }

    pub(crate) fn forwarded(&self) -> Option<Arc<Forwarded>> {
        self.state.lock().unwrap().forwarded.clone()
    }

    pub(crate) fn node(&self) -> Node_ {
        self.state.lock().unwrap().node.clone()
    }
}

/// What is registered as a new handle.
pub(crate) struct NewHandle {
    pub(crate) node: Node_,
    pub(crate) source: Source,
    pub(crate) served: Served,
    pub(crate) passthrough_allowed: bool,
    /// It reads one version, whatever others write (not at the home, where the plain file is the truth).
    pub(crate) fixed: bool,
    pub(crate) append: bool,
    pub(crate) maps: bool,
    pub(crate) executes: bool,
    pub(crate) group: Option<i32>,
}

/// All open files of this node.
pub(crate) struct Table {
    next: AtomicU64,
    handles: RwLock<HashMap<Handle, Arc<OpenHandle>>>,
    inodes: Mutex<HashMap<Ino, Arc<OpenInode>>>,
    /// Inodes open for writing here, or forwarded: nearly always none, so that attributes need no second look.
    live_inodes: AtomicUsize,
    /// Which version the kernel's pages are of.
    pages: Mutex<HashMap<Ino, u64>>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            handles: RwLock::default(),
            inodes: Mutex::default(),
            live_inodes: AtomicUsize::new(0),
            pages: Mutex::default(),
        }
    }
}

impl Table {
    pub(crate) fn handle(&self, handle: Handle) -> Result<Arc<OpenHandle>, FsError> {
        let handles = self.handles.read().unwrap();
        let found = handles.get(&handle).cloned();
        found.ok_or_else(|| FsError::Io(std::io::Error::from_raw_os_error(libc::EBADF)))
    }

    pub(crate) fn len(&self) -> usize {
        self.handles.read().unwrap().len()
    }

    pub(crate) fn inode(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        self.inodes.lock().unwrap().get(&ino).cloned()
    }

    /// Whether somebody on this node runs it as a program.
    pub(crate) fn is_executed(&self, ino: Ino) -> bool {
        let handles = self.handles.read().unwrap();
        let executes = |open: &Arc<OpenHandle>| open.ino == ino && open.executes;
        handles.values().any(executes)
    }

    /// The inode, when its attributes live somewhere else than in the catalog: open for writing here or forwarded.
    pub(crate) fn live_inode(&self, ino: Ino) -> Option<Arc<OpenInode>> {
        match self.live_inodes.load(Ordering::Acquire) {
            0 => None,
            _ => self.inode(ino),
        }
    }

    pub(crate) fn all_writing(&self) -> Vec<Arc<Writing>> {
        let inodes = self.inodes.lock().unwrap();
        inodes
            .values()
            .filter_map(|inode| inode.writing())
            .collect()
    }

    /// Counts a new handle, decides its mode by what is open, and says what the kernel is to be told.
    pub(crate) fn register(&self, new: NewHandle) -> Result<Opened, FsError> {
        if self.len() >= HANDLES_MAX {
            return Err(FsError::TooManyOpen(HANDLES_MAX));
        }
        let NewHandle {
            node,
            source,
            served,
            append,
            maps,
            executes,
            group,
            ..
        } = new;
        let file = plain_file(&served);
        let identity = file.as_ref().map(|file| identity(file)).transpose()?;
        let (ino, version) = (node.ino, node.inode.version);
        let mut inodes = self.inodes.lock().unwrap();
        let inode = inodes
            .entry(ino)
            .or_insert_with(|| Arc::new(OpenInode::new(node.clone())))
            .clone();
        let mode = {
            let mut state = inode.state.lock().unwrap();
            state.node = node;
            let in_use = InUse {
                passthrough_same_file: (state.passthrough > 0).then(|| state.backing == identity),
                through_daemon: state.through_daemon > 0,
                other_version: new.fixed
                    && state.through_daemon > 0
                    && state.content_version != 0
                    && (state.content_version != version || inode.outdated.load(Ordering::Acquire)),
            };
            let mode = open_plan::mode(&source, new.passthrough_allowed, in_use);
            state.count(mode, &served, identity, self);
            mode
        };
        let served = share(&inode, served, mode, version);
        let keep_cache = mode == Mode::Cached && self.pages_are_kept(ino, version, &inode);
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let opened = OpenHandle {
            ino,
            inode,
            served,
            mode,
            append,
            maps,
            executes,
            group,
        };
        drop(inodes);
        self.handles
            .write()
            .unwrap()
            .insert(handle, Arc::new(opened));
        Ok(match (mode, file) {
            (Mode::Passthrough, Some(file)) => Opened::Passthrough { handle, file },
            (Mode::Cached, _) => Opened::Cached { handle, keep_cache },
            _ => Opened::Direct { handle },
        })
    }

    fn pages_are_kept(&self, ino: Ino, version: u64, inode: &OpenInode) -> bool {
        let (content, _) = inode.content();
        let mut pages = self.pages.lock().unwrap();
        if matches!(content, Content::Live(_)) {
            pages.remove(&ino);
            return false;
        }
        if pages.len() >= PAGES_MAX {
            pages.clear();
        }
        let kept = pages.insert(ino, version) == Some(version);
        if kept {
            inode.note_given();
        }
        kept
    }

    /// The kernel does not take a backing file for this handle, which it has not heard of yet: it becomes a cached one.
    pub(crate) fn without_passthrough(&self, handle: Handle) -> Result<Opened, FsError> {
        let old = self.handle(handle)?;
        let version = old.inode.node().inode.version;
        {
            let mut state = old.inode.state.lock().unwrap();
            state.passthrough -= 1;
            state.through_daemon += 1;
        }
        let new = OpenHandle {
            served: share(&old.inode, old.served.clone(), Mode::Cached, version),
            mode: Mode::Cached,
            ..(*old).clone()
        };
        let keep_cache = self.pages_are_kept(old.ino, version, &old.inode);
        self.handles.write().unwrap().insert(handle, Arc::new(new));
        Ok(Opened::Cached { handle, keep_cache })
    }

    /// Forgets a handle. The last writer's handle stays counted as a writer until `writer_gone`.
    pub(crate) fn remove(&self, handle: Handle) -> Option<Arc<OpenHandle>> {
        let removed = self.handles.write().unwrap().remove(&handle)?;
        let mut inodes = self.inodes.lock().unwrap();
        {
            let mut state = removed.inode.state.lock().unwrap();
            match removed.mode {
                Mode::Passthrough => state.passthrough -= 1,
                Mode::Cached | Mode::Direct => state.through_daemon -= 1,
            }
            if let Served::Forwarded(gone) = &removed.served
                && state
                    .forwarded
                    .as_ref()
                    .is_some_and(|last| Arc::ptr_eq(last, gone))
            {
                state.forwarded = None;
                self.live_inodes.fetch_sub(1, Ordering::AcqRel);
            }
            if state.passthrough == 0 {
                state.backing = None;
            }
        }
        self.drop_unused(&mut inodes, removed.ino, &removed.inode);
        Some(removed)
    }

    fn drop_unused(
        &self,
        inodes: &mut HashMap<Ino, Arc<OpenInode>>,
        ino: Ino,
        inode: &Arc<OpenInode>,
    ) {
        let state = inode.state.lock().unwrap();
        if state.passthrough + state.through_daemon + state.writers == 0 {
            inodes.remove(&ino);
        }
    }

    /// Takes part in the writing of an inode: the one that is open already, or `fresh`, which becomes it.
    pub(crate) fn join_writing(
        &self,
        node: &Node_,
        fresh: Option<Arc<Writing>>,
    ) -> Option<Arc<Writing>> {
        let mut inodes = self.inodes.lock().unwrap();
        let known = inodes.get(&node.ino).cloned();
        let inode = match (known, &fresh) {
            (Some(inode), _) => inode,
            (None, None) => return None,
            (None, Some(_)) => {
                let inode = Arc::new(OpenInode::new(node.clone()));
                inodes.insert(node.ino, inode.clone());
                inode
            }
        };
        let mut state = inode.state.lock().unwrap();
        if state.writing.is_none() {
            state.writing = Some(fresh?);
            self.live_inodes.fetch_add(1, Ordering::AcqRel);
        }
        state.writers += 1;
        state.writing.clone()
    }

    /// Whether it is open for writing here, by whomever.
    pub(crate) fn is_written(&self, ino: Ino) -> bool {
        let inode = self.inode(ino);
        inode.is_some_and(|inode| inode.state.lock().unwrap().writers > 0)
    }

    /// Whether this is the last writer; it publishes before it goes.
    pub(crate) fn is_last_writer(&self, ino: Ino) -> bool {
        let inode = self.inode(ino);
        inode.is_some_and(|inode| inode.state.lock().unwrap().writers == 1)
    }

    /// One who joined the writing goes.
    pub(crate) fn writer_gone(&self, ino: Ino) {
        let mut inodes = self.inodes.lock().unwrap();
        let Some(inode) = inodes.get(&ino).cloned() else {
            return;
        };
        {
            let mut state = inode.state.lock().unwrap();
            state.writers -= 1;
            if state.writers == 0 {
                state.writing = None;
                self.live_inodes.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.drop_unused(&mut inodes, ino, &inode);
    }

    /// A version was published from writes that went through this kernel: its pages are of that version now.
    pub(crate) fn written_through(&self, ino: Ino, version: u64) {
        let mut pages = self.pages.lock().unwrap();
        if let Some(known) = pages.get_mut(&ino) {
            *known = version;
        }
    }

    /// Nothing is known any more about the kernel's pages of an inode (or of all).
    pub(crate) fn pages_unknown(&self, ino: Option<Ino>) {
        let mut pages = self.pages.lock().unwrap();
        match ino {
            Some(ino) => drop(pages.remove(&ino)),
            None => pages.clear(),
        }
    }

    /// The content that cached handles read may be an old version.
    pub(crate) fn mark_stale(&self, ino: Option<Ino>) {
        let inodes = self.inodes.lock().unwrap();
        let of_one = ino.and_then(|ino| inodes.get(&ino));
        let marked: Vec<_> = match ino {
            Some(_) => of_one.into_iter().collect(),
            None => inodes.values().collect(),
        };
        for inode in marked {
            inode.stale.store(true, Ordering::Release);
        }
    }
}

impl InodeState {
    fn count(&mut self, mode: Mode, served: &Served, identity: Option<(u64, u64)>, table: &Table) {
        match mode {
            Mode::Passthrough => {
                self.passthrough += 1;
                self.backing = identity;
            }
            Mode::Cached | Mode::Direct => self.through_daemon += 1,
        }
        if let Served::Forwarded(forwarded) = served {
            if self.forwarded.is_none() {
                table.live_inodes.fetch_add(1, Ordering::AcqRel);
            }
            self.forwarded = Some(forwarded.clone());
        }
    }
}

/// Cached handles read what the inode reads; others keep their own.
fn share(inode: &OpenInode, served: Served, mode: Mode, version: u64) -> Served {
    match served {
        Served::Own(content) if mode == Mode::Cached => {
            inode.set_content(content, version);
            Served::Shared
        }
        other => other,
    }
}

fn plain_file(served: &Served) -> Option<Arc<File>> {
    match served {
        Served::Own(Content::Local(file)) => Some(file.clone()),
        Served::Writing(writing) => Some(writing.file.clone()),
        _ => None,
    }
}

fn identity(file: &File) -> Result<(u64, u64), FsError> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// A node with the size and times of its plain file.
pub(crate) fn with_stamp(mut node: Node_, stamp: Stamp) -> Node_ {
    let inode = Arc::make_mut(&mut node.inode);
    inode.size = stamp.size;
    inode.mtime = stamp.mtime;
    inode.ctime = inode.ctime.max(stamp.ctime);
    node
}
