//! The shell around one content's plan: sends what the plan says, writes what arrives, wakes who waits.
//!
//! There is no task per file: each event (a read, an extent that arrived, a request that ended, a waiter's timer) takes the plan's lock for a moment and carries
//! out its actions. Requests are tasks of their own. Nothing is awaited under a lock.
//!
//! Always: what is marked in the backing was verified by the transport; a waiter is entered before it looks at the map for the last time; closing gives
//! back everything that was taken from the node's budget.
mod keeping;
mod sink;
mod wait;

use self::sink::Sink;
use self::wait::Wait;
use super::FetchCounters;
use super::backing::{Backing, Found};
use super::budget::{Budget, Purse};
use super::flight::{Denied, Waiters, lock};
use super::plan::{Action, BlockMap, Class, Event, Failure, Limits, Moment, Plan, RequestId};
use super::ranges::Ranges;
use super::readahead::Readahead;
use super::surroundings::{Surroundings, Whereabouts, blocking};
use crate::error::FsError;
use crate::path::TreePath;
use crate::record::NodeId;
use crate::store::partial::ContentKey;
use bytes::Bytes;
use ks_transport::blocks::{BlockRequest, FetchError, FetchLimits, Refusal};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// A holder that sends nothing for so long is left.
const STALL: Duration = Duration::from_millis(2500);
/// A read ends after this time, whatever happens (a second holder found late, a bounded backing that is too small).
const READ_AT_MOST: Duration = Duration::from_secs(27);
/// An error message waits so long for the nodes' names.
const NAMES_WAIT: Duration = Duration::from_millis(500);
/// The disk is asked for room for this much at a time.
const ROOM_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes ahead of a reader at most.
pub const WINDOW_MAX_BYTES: u64 = 8 * 1024 * 1024;

/// What a content is, as far as its fetching goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKind {
    /// A file of the tree; it becomes a plain file here when it is whole.
    File,
    /// A file of the tree on a node that keeps nothing.
    FileNotKept,
    /// A payload: the catalog does not know it, and whoever fetches it puts it in its place.
    Payload,
}

/// What a content is made of at its opening.
pub struct Opening {
    /// Which content.
    pub key: ContentKey,
    /// Its path, for messages and for its place when it is whole.
    pub path: TreePath,
    /// A file of the tree, or a payload.
    pub kind: ContentKind,
    /// How holders are asked for it.
    pub locator: Vec<u8>,
    /// Who has it, the preferred first.
    pub holders: Vec<NodeId>,
    /// Where its bytes go.
    pub backing: Backing,
}

/// What all contents of a node share.
#[derive(Clone)]
pub struct Shared {
    /// Peers, catalog, store.
    pub around: Arc<dyn Surroundings>,
    /// Memory for bytes under way.
    pub budget: Arc<Budget>,
    /// For people and tests.
    pub counters: Arc<FetchCounters>,
    /// Where requests run.
    pub runtime: Handle,
    /// Bounds of each plan.
    pub limits: Limits,
}

/// How the making of a plain file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    NotYet,
    Done,
    Failed(i32),
}

struct State {
    plan: Plan,
    tasks: HashMap<RequestId, AbortHandle>,
    saved: Instant,
    /// Bytes that came since the disk was last asked for room.
    since_room: u64,
}

/// One content that is being fetched; shared by its readers and its requests.
pub struct Core {
    key: ContentKey,
    path: TreePath,
    kind: ContentKind,
    locator: Vec<u8>,
    backing: Backing,
    shared: Shared,
    opened: Instant,
    state: Mutex<State>,
    readahead: Mutex<Readahead>,
    waiters: Waiters,
    /// Bytes that arrived for readers and were not yet told to one.
    untold_bytes: AtomicU64,
    /// Something came since the map was saved.
    unsaved: AtomicBool,
    keeping: AtomicBool,
    kept: watch::Sender<Kept>,
    warned: OnceLock<()>,
}

impl Core {
    /// Nothing is asked for yet.
    pub fn new(opening: Opening, shared: Shared) -> Arc<Self> {
        let size = opening.key.size;
        let holders = present_first(opening.holders, &*shared.around);
        let window_max = WINDOW_MAX_BYTES.min(shared.budget.limit_bytes() / 4);
        let state = State {
            plan: Plan::new(size, holders, shared.limits),
            tasks: HashMap::new(),
            saved: Instant::now(),
            since_room: 0,
        };
        Arc::new(Self {
            key: opening.key,
            path: opening.path,
            kind: opening.kind,
            locator: opening.locator,
            backing: opening.backing,
            opened: Instant::now(),
            state: Mutex::new(state),
            readahead: Mutex::new(Readahead::new(size, window_max)),
            waiters: Waiters::default(),
            untold_bytes: AtomicU64::new(0),
            unsaved: AtomicBool::new(false),
            keeping: AtomicBool::new(false),
            kept: watch::Sender::new(Kept::NotYet),
            warned: OnceLock::new(),
            shared,
        })
    }

    /// Where its bytes are.
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    #[cfg(test)]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiters.count()
    }

    /// Nodes that hold it now.
    pub fn know_holders(self: &Arc<Self>, nodes: Vec<NodeId>) {
        self.step(Event::Holders(nodes));
    }

    /// Reads at most `len` bytes; with them, how many were fetched for readers since the last read told so.
    pub async fn read(self: &Arc<Self>, offset: u64, len: usize) -> Result<(Bytes, u64), FsError> {
        let size = self.key.size;
        let range = offset.min(size)..offset.saturating_add(len as u64).min(size);
        if range.is_empty() {
            return Ok((Bytes::new(), 0));
        }
        let ahead = lock(&self.readahead).read(range.start, range.end - range.start);
        if let Some(data) = self.read_here(&range).await? {
            if let Some(ahead) = ahead {
                self.step(Event::Ahead(ahead));
            }
            return Ok((data, self.told()));
        }
        let read = self.read_missing(&range, ahead);
        match tokio::time::timeout(READ_AT_MOST, read).await {
            Ok(read) => Ok((read?, self.told())),
            Err(_) => Err(self.no_holder().await),
        }
    }

    async fn read_missing(
        self: &Arc<Self>,
        range: &Range<u64>,
        mut ahead: Option<Range<u64>>,
    ) -> Result<Bytes, FsError> {
        loop {
            self.bring(range.clone(), ahead.take()).await?;
            // With a bounded backing it may be gone already: then it is brought again.
            if let Some(data) = self.read_here(range).await? {
                return Ok(data);
            }
        }
    }

    fn told(&self) -> u64 {
        self.untold_bytes.swap(0, Ordering::Relaxed)
    }

    async fn read_here(self: &Arc<Self>, range: &Range<u64>) -> Result<Option<Bytes>, FsError> {
        match self.backing.read_now(range)? {
            Found::Data(data) => Ok(Some(data)),
            Found::Missing => Ok(None),
            Found::OnDisk => {
                let (core, range) = (self.clone(), range.clone());
                blocking(move || Ok(core.backing.read_blocking(&range)?)).await
            }
        }
    }

    /// Waits until `range` is here.
    async fn bring(
        self: &Arc<Self>,
        range: Range<u64>,
        ahead: Option<Range<u64>>,
    ) -> Result<(), FsError> {
        let mut asked_again = false;
        let mut ahead = ahead;
        loop {
            let wait = Wait::enter(self, range.clone(), false);
            if self.backing.missing(range.clone()).is_empty() {
                return Ok(());
            }
            self.step(Event::Demand {
                id: wait.waiter.id,
                range: range.clone(),
            });
            if let Some(ahead) = ahead.take() {
                self.step(Event::Ahead(ahead));
            }
            let Some(denied) = wait.until_here().await else {
                return Ok(());
            };
            drop(wait);
            self.denied(denied, &mut asked_again).await?;
        }
    }

    /// Brings all of it; then, where it is kept, waits until it is a plain file.
    pub async fn fetch_whole(self: &Arc<Self>, progress: impl Fn(u64)) -> Result<(), FsError> {
        let mut asked_again = false;
        while !self.backing.is_whole() {
            if self.backing.is_disk_full() {
                return Err(FsError::NoSpace);
            }
            let wait = Wait::enter(self, 0..self.key.size, true);
            let id = wait.waiter.id;
            self.step(Event::DemandWhole { id });
            let denied = wait.until_whole(&progress).await;
            drop(wait);
            if let Some(denied) = denied {
                self.denied(denied, &mut asked_again).await?;
            }
        }
        progress(self.key.size);
        if self.kind != ContentKind::File {
            return Ok(());
        }
        self.complete();
        let mut kept = self.kept.subscribe();
        let ended = kept.wait_for(|kept| *kept != Kept::NotYet).await;
        match ended.map(|kept| *kept) {
            Ok(Kept::Failed(libc::ENOSPC)) => Err(FsError::NoSpace),
            Ok(Kept::Failed(libc::ESTALE)) => Err(FsError::Stale),
            Ok(Kept::Failed(errno)) => Err(FsError::Io(std::io::Error::from_raw_os_error(errno))),
            _ => Ok(()),
        }
    }

    /// Nobody gave it. Once, the catalog is asked whether somebody else has it by now; then it is an error.
    async fn denied(
        self: &Arc<Self>,
        denied: Denied,
        asked_again: &mut bool,
    ) -> Result<(), FsError> {
        let stale = match denied {
            Denied::Local(errno) => {
                return Err(FsError::Io(std::io::Error::from_raw_os_error(errno)));
            }
            Denied::NoHolder { stale } => stale,
        };
        if self.kind != ContentKind::Payload {
            match self.shared.around.locate(&self.key).await {
                Whereabouts::Changed => return Err(FsError::Stale),
                Whereabouts::Holders(nodes) if !*asked_again && self.is_news(&nodes) => {
                    *asked_again = true;
                    self.step(Event::Holders(nodes));
                    return Ok(());
                }
                Whereabouts::Holders(_) | Whereabouts::Unknown => {}
            }
        }
        if stale && self.kind != ContentKind::Payload {
            return Err(FsError::Stale);
        }
        Err(self.no_holder().await)
    }

    async fn no_holder(&self) -> FsError {
        FsError::NoHolder {
            path: self.path.clone(),
            tried: self.tried().await,
        }
    }

    fn is_news(&self, nodes: &[NodeId]) -> bool {
        let report = lock(&self.state).plan.report();
        let known = |node| report.iter().any(|(known, _)| known == node);
        !nodes.iter().all(known)
    }

    /// The nodes and what each said.
    async fn tried(&self) -> String {
        let report = lock(&self.state).plan.report();
        if report.is_empty() {
            return "no node holds it".into();
        }
        let names = async {
            let mut tried = Vec::new();
            for (node, said) in &report {
                tried.push(format!("{}: {said}", self.shared.around.name(*node).await));
            }
            tried.join("; ")
        };
        let named = tokio::time::timeout(NAMES_WAIT, names).await;
        named.unwrap_or_else(|_| {
            let tried = report.iter().map(|(node, said)| format!("{node}: {said}"));
            tried.collect::<Vec<String>>().join("; ")
        })
    }

    fn now(&self) -> Moment {
        self.opened.elapsed()
    }

    /// When somebody who waits has to call `tick`.
    fn next_tick(&self) -> Option<Instant> {
        let next = lock(&self.state).plan.next_time(self.now())?;
        Some(self.opened + next)
    }

    /// Time went by, or there is memory again.
    pub fn tick(self: &Arc<Self>) {
        self.step(Event::Tick);
    }

    /// Nobody has it open any more: requests end, what was taken from the budget goes back.
    pub fn close(self: &Arc<Self>) {
        self.step(Event::Closed);
    }

    /// One event through the plan.
    fn step(self: &Arc<Self>, event: Event) {
        let mut purse = Purse::new(&self.shared.budget);
        let mut failed = Vec::new();
        {
            let mut state = lock(&self.state);
            let now = self.now();
            let actions = state.plan.handle(event, now, &self.backing, &mut purse);
            for action in actions {
                match action {
                    Action::Send { .. } => self.send(&mut state, action),
                    Action::Cancel { request } => {
                        if let Some(task) = state.tasks.remove(&request) {
                            task.abort();
                        }
                    }
                    Action::Fail { demand, stale } => failed.push((demand, stale)),
                }
            }
            if state.plan.is_starved() {
                self.shared.budget.starves(self);
            }
        }
        for (demand, stale) in failed {
            self.waiters.deny(demand, Denied::NoHolder { stale });
        }
        if purse.gave_back {
            self.shared.budget.gave_back();
        }
    }

    /// Starts the task of a request.
    fn send(self: &Arc<Self>, state: &mut State, action: Action) {
        let Action::Send {
            request,
            holder,
            lane,
            ranges,
            class,
        } = action
        else {
            return;
        };
        self.shared
            .counters
            .requests
            .fetch_add(1, Ordering::Relaxed);
        let core = self.clone();
        let task = self.shared.runtime.spawn(async move {
            let result = core.ask(request, holder, lane, ranges, class).await;
            core.ended(request, holder, result);
        });
        state.tasks.insert(request, task.abort_handle());
    }

    async fn ask(
        self: &Arc<Self>,
        request: RequestId,
        holder: NodeId,
        lane: usize,
        ranges: Ranges,
        class: Class,
    ) -> Result<u64, FetchError> {
        let first = ranges.first().map_or(0, |range| range.start);
        let blocks = BlockRequest {
            locator: self.locator.clone(),
            hash: self.key.hash,
            size: self.key.size,
            ranges,
        };
        let mut sink = Sink::new(self, request, class != Class::Whole, first);
        let limits = FetchLimits { stall: STALL, lane };
        let around = &self.shared.around;
        around.fetch(holder, &blocks, limits, &mut sink).await
    }

    /// A request ended, well or not.
    fn ended(
        self: &Arc<Self>,
        request: RequestId,
        holder: NodeId,
        result: Result<u64, FetchError>,
    ) {
        self.forget_task(request, result.as_ref().map_or(0, |bytes| *bytes));
        match result {
            Ok(_) => self.step(Event::Finished { request }),
            Err(FetchError::Sink(error)) => self.local_failure(request, &error),
            Err(error) => {
                self.shared
                    .counters
                    .failures
                    .fetch_add(1, Ordering::Relaxed);
                let failure = match classify(&error) {
                    Failure::Gone(text) if self.shared.around.is_away(holder) => {
                        Failure::Away(text)
                    }
                    other => other,
                };
                match failure {
                    Failure::Corrupt(_) => {
                        tracing::error!(path = %self.path, %holder, %error, "a holder sent wrong bytes; it is not asked for this content again");
                    }
                    _ => tracing::debug!(path = %self.path, %holder, %error, "a fetch failed"),
                }
                self.step(Event::Failed { request, failure });
                // Who waits keeps the plan's time, which is another now: the holder is to be asked again.
                self.waiters.ring();
            }
        }
        if self.backing.is_whole() {
            self.waiters.ring();
            self.complete();
        } else {
            self.save_now_and_then();
        }
    }

    /// A request's task ends; now and then the disk is asked whether there is room for more.
    fn forget_task(&self, request: RequestId, bytes: u64) {
        let mut state = lock(&self.state);
        state.tasks.remove(&request);
        state.since_room += bytes;
        if state.since_room < ROOM_BYTES || self.backing.as_partial().is_none() {
            return;
        }
        state.since_room = 0;
        drop(state);
        if !self.backing.is_disk_full() && !self.shared.around.has_room(ROOM_BYTES) {
            self.backing.set_disk_full();
            self.warn_of_full_disk();
        }
    }

    /// Our own disk failed: no other holder can help those who wait.
    fn local_failure(self: &Arc<Self>, request: RequestId, error: &std::io::Error) {
        if self.warned.set(()).is_ok() {
            tracing::error!(path = %self.path, %error, "what is fetched cannot be written");
        }
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.waiters.deny_all(&Denied::Local(errno));
        self.step(Event::Closed);
        let failure = Failure::Local(error.to_string());
        self.step(Event::Failed { request, failure });
    }

    /// Verified bytes of a request are in the backing.
    fn arrived(self: &Arc<Self>, request: RequestId, range: Range<u64>) {
        let event = Event::Arrived {
            request,
            range: range.clone(),
        };
        self.step(event);
        self.waiters.arrived(&range, &self.backing);
    }
}

/// The same nodes, those that are known to be away last.
fn present_first(mut nodes: Vec<NodeId>, around: &dyn Surroundings) -> Vec<NodeId> {
    nodes.sort_by_key(|node| around.is_away(*node));
    nodes
}

/// What a failed fetch means for the plan.
fn classify(error: &FetchError) -> Failure {
    let text = error.to_string();
    match error {
        FetchError::Peer(_) => Failure::Gone(text),
        FetchError::Refused { refusal, .. } => match refusal {
            Refusal::Busy => Failure::Busy(text),
            Refusal::Changed => Failure::Changed(text),
            Refusal::NotHere | Refusal::Unreadable(_) | Refusal::Nonsense(_) => {
                Failure::Refused(text)
            }
        },
        FetchError::Corrupt { .. } => Failure::Corrupt(text),
        FetchError::Stalled { .. } => Failure::Stalled(text),
        FetchError::Sink(_) => Failure::Local(text),
    }
}
