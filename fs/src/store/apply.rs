//! Applies the catalog's events to the data directory, in their order, so that plain files stand at their tree paths.
//!
//! Who takes part: the event stream (every change of names in the catalog, by whom), [`local`] (what one event means for
//! the plain files here), [`position`] (how far we are, kept in `.ks/events`), [`reconcile`] (when the stream was trimmed).
//!
//! Always:
//! - Events are applied one at a time in the stream's order, each at most once in a process; own ones in their place among the
//!   others.
//! - Applying an event again (after a crash) changes nothing that later events put right: files are moved and removed by the
//!   inode in their `user.ks`, and nothing that carries the mark of a later event is touched.
//! - Nothing is overwritten: a file that the tree does not know and that stands in the way is set aside as
//!   `NAME.conflict-NODE`. Nothing is removed but what was unlinked, and old untouched copies of what another node published.
//! - Waits have deadlines: [`OWN_WAIT`], [`CATCH_UP_WAIT`].
//!
//! Not for content: what a file holds is the business of `partial`, `fetch` and the home's writers.
mod local;
mod moves;
mod names;
mod position;
mod reconcile;

use super::{Store, StoreError};
use crate::path::TreePath;
use crate::{
    catalog::{Catalog, EventId},
    record::*,
};
use local::Local;
use position::PositionFile;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, watch};

/// How long an own change that comes by in the stream waits for its maker to apply it.
const MAKER_WAIT: Duration = Duration::from_millis(50);
/// How long an own change waits for the events of others before it.
pub const OWN_WAIT: Duration = Duration::from_secs(5);
/// How long `catch_up` waits.
pub const CATCH_UP_WAIT: Duration = Duration::from_secs(2);
/// Events asked for at once.
const BATCH_MAX: usize = 500;
/// How often an event that the disk does not take is tried.
const ATTEMPTS_MAX: usize = 3;
/// Between attempts, and when the catalog does not answer; doubled up to the longest.
const PAUSE_SHORTEST: Duration = Duration::from_millis(50);
/// See `PAUSE_SHORTEST`.
const PAUSE_LONGEST: Duration = Duration::from_secs(2);

/// Told of every event once it is applied, with the node that caused it (own events too). Must not block, and runs in the
/// task that applies: one that answers the kernel, when the event is its own.
pub type OnEvent = Arc<dyn Fn(NodeId, &Event) + Send + Sync>;

/// Whether something was heard of a path that the tree does not know yet. Must not block.
pub type IsNews = Arc<dyn Fn(&TreePath) -> bool + Send + Sync>;

/// The one place where names in the data directory change.
pub struct Applier {
    shared: Arc<Shared>,
    follower: tokio::task::AbortHandle,
}

struct Shared {
    store: Arc<Store>,
    catalog: Catalog,
    on_event: OnEvent,
    /// Held while an event is applied: the order of the data directory's changes. Its holder may ask the catalog, whose commands
    /// have deadlines; whoever waits for the lock has one of its own.
    order: Mutex<PositionFile>,
    position: watch::Sender<EventId>,
    /// Who hears what is done behind the daemon's back, once somebody does.
    is_news: OnceLock<IsNews>,
    /// Caught up: from now on there are makers of own changes.
    has_started: AtomicBool,
}

impl Applier {
    /// Reads the position; catches up before it returns. When the stream no longer reaches back: compares the whole directory (by ino in `user.ks`) with the catalog.
    pub async fn start(
        store: Arc<Store>,
        catalog: Catalog,
        on_event: OnEvent,
    ) -> Result<Arc<Self>, StoreError> {
        let cluster = names::cluster(&catalog);
        store.set_cluster(cluster);
        let mut file = PositionFile::open(&store.state_dir(), cluster)?;
        let seen = file.read();
        if let Some(seen) = seen {
            catalog.look_back(seen).await?;
        }
        let last = catalog.last_event().await?;
        let position = match seen {
            Some(position) if position > last => {
                tracing::warn!(
                    ours = ?position, catalog = ?last,
                    "the catalog is older than this data directory (its Redis lost something); the scan enters what it does not know"
                );
                last
            }
            Some(position) => position,
            None => last,
        };
        file.write(position)?;
        store.stamp_position(position);
        let shared = Arc::new(Shared {
            store,
            catalog,
            on_event,
            order: Mutex::new(file),
            position: watch::Sender::new(position),
            is_news: OnceLock::new(),
            has_started: AtomicBool::new(false),
        });
        reconcile::place_parked(&shared.local(), position).await?;
        if shared.catalog.is_behind() {
            shared.compare_all().await?;
        }
        while shared.position() < last {
            shared.follow_once().await?;
        }
        shared.has_started.store(true, Ordering::Release);
        let follower = tokio::spawn(Arc::clone(&shared).follow()).abort_handle();
        Ok(Arc::new(Self { shared, follower }))
    }

    /// This node's own change: applied in its place. When nothing of others stands between (`previous` is our position) it is applied at once, without a round trip.
    pub async fn own(
        &self,
        event_id: EventId,
        previous: EventId,
        event: &Event,
    ) -> Result<(), StoreError> {
        let applied = self.shared.own(event_id, previous, event);
        match tokio::time::timeout(OWN_WAIT, applied).await {
            Ok(result) => result,
            Err(_) => Err(self.shared.behind(event_id, OWN_WAIT)),
        }
    }

    /// Waits (at most 2 s) until everything up to now is applied: for a local file that is not where the catalog says. Where the stream ends before
    /// what is applied here, Redis has gone back to an older state: there is nothing to wait for, and that is an error.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        let applied = self.position();
        let mut position = self.shared.position.subscribe();
        let mut wanted = EventId::default();
        let wait = async {
            wanted = self.shared.catalog.last_event().await?;
            self.shared.catalog.wake_events();
            if wanted < applied {
                return Err(self.shared.behind(applied, Duration::ZERO));
            }
            // The sender lives as long as we do.
            let _ = position.wait_for(|position| *position >= wanted).await;
            Ok(())
        };
        match tokio::time::timeout(CATCH_UP_WAIT, wait).await {
            Ok(result) => result,
            Err(_) => Err(self.shared.behind(wanted, CATCH_UP_WAIT)),
        }
    }

    /// What is news (somebody moved it behind the daemon's back, and the tree does not know it yet) is left where it stands from now on,
    /// whenever the whole data directory is compared with the tree. The first who says what is counts.
    pub fn leave_news(&self, is_news: IsNews) {
        let _ = self.shared.is_news.set(is_news);
    }

    /// Compares the whole data directory with the tree: after it was rebuilt.
    pub async fn compare(&self) -> Result<(), StoreError> {
        self.shared.compare_all().await
    }

    /// The event up to which everything is applied.
    pub fn position(&self) -> EventId {
        self.shared.position()
    }

    /// Does `act` at the path where inode `ino` stands now, with no event applied in between: for making a plain file (`Store::create`,
    /// `Store::promote`) whose directories may be renamed at the same time. `act` is short; it runs on the calling task.
    pub async fn at_path<T>(
        &self,
        ino: Ino,
        mut act: impl FnMut(&TreePath) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let before = self.position();
        let path = self.path_now(ino).await?;
        if let Some(result) = self.while_at(before, || act(&path)).await? {
            return Ok(result);
        }
        // Where many make files, an event is applied whenever our turn comes: the path is asked for within our turn then.
        let _order = self.order().await?;
        let path = self.path_now(ino).await?;
        act(&path)
    }

    async fn path_now(&self, ino: Ino) -> Result<TreePath, StoreError> {
        let path = self.shared.catalog.path_of(ino).await?;
        path.ok_or_else(|| self.shared.store.mismatch(&TreePath::root()))
    }

    /// Our turn: while it is held, no event is applied.
    async fn order(&self) -> Result<MutexGuard<'_, PositionFile>, StoreError> {
        let order = tokio::time::timeout(OWN_WAIT, self.shared.order.lock()).await;
        order.map_err(|_| self.shared.behind(self.position(), OWN_WAIT))
    }

    /// As `at_path`, for an inode that the own event `event` (applied by `own`) has just entered as `name` in `parent`: without a
    /// round trip when nothing came after it.
    pub async fn at_new_path<T>(
        &self,
        event: EventId,
        (parent, name): (Ino, &[u8]),
        ino: Ino,
        mut act: impl FnMut(&TreePath) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.position() == event
            && let Some(above) = self.shared.catalog.path_of(parent).await?
        {
            let path = above.join(name);
            if let Some(result) = self.while_at(event, || act(&path)).await? {
                return Ok(result);
            }
        }
        self.at_path(ino, act).await
    }

    /// While it is held no event is applied: what stands in the data directory under a name of the tree stays there, as far as this
    /// node's own doing goes. For moments.
    pub async fn hold(&self) -> Result<impl Drop + '_, StoreError> {
        let order = tokio::time::timeout(OWN_WAIT, self.shared.order.lock()).await;
        order.map_err(|_| self.shared.behind(self.position(), OWN_WAIT))
    }

    /// Does `act` if everything up to `position` is applied and nothing after it; nothing is applied meanwhile.
    async fn while_at<T>(
        &self,
        position: EventId,
        act: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let _order = self.order().await?;
        if self.position() == position {
            act().map(Some)
        } else {
            Ok(None)
        }
    }
}

/// Whether an event may change the data directory of `me`.
fn has_effect(event: &Event, me: NodeId) -> bool {
    match event {
        Event::Linked { .. } | Event::Entered { .. } => false,
        Event::Published { home, .. } => *home != me,
        _ => true,
    }
}

impl Drop for Applier {
    fn drop(&mut self) {
        self.follower.abort();
        if let Ok(mut file) = self.shared.order.try_lock()
            && let Err(error) = file.finish()
        {
            tracing::debug!(%error, "events without an effect are looked at again at the next start");
        }
    }
}

impl Shared {
    fn position(&self) -> EventId {
        *self.position.borrow()
    }

    fn behind(&self, event: EventId, waited: Duration) -> StoreError {
        StoreError::Behind {
            datadir: self.store.datadir().to_owned(),
            event,
            waited_ms: waited.as_millis() as u64,
        }
    }

    fn local(&self) -> Local<'_> {
        Local {
            store: &self.store,
            names: &self.catalog,
            me: self.store.node_id(),
        }
    }

    async fn own(
        &self,
        event_id: EventId,
        previous: EventId,
        event: &Event,
    ) -> Result<(), StoreError> {
        let mut position = self.position.subscribe();
        loop {
            let seen = *position.borrow_and_update();
            if seen >= event_id {
                return Ok(());
            }
            if seen == previous {
                let mut order = self.order.lock().await;
                if self.position() == previous {
                    self.local().apply(event_id, event).await?;
                    let me = self.store.node_id();
                    return self.advance(&mut order, event_id, Some((me, event)));
                }
                continue;
            }
            self.catalog.wake_events();
            if position.changed().await.is_err() {
                return Err(self.behind(event_id, OWN_WAIT));
            }
        }
    }

    /// Follows the stream for ever.
    async fn follow(self: Arc<Self>) {
        let mut pause = PAUSE_SHORTEST;
        loop {
            match self.follow_once().await {
                Ok(()) => pause = PAUSE_SHORTEST,
                Err(error) => {
                    tracing::warn!(%error, "events cannot be applied now; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_LONGEST);
                }
            }
        }
    }

    /// Waits for events and applies them.
    async fn follow_once(&self) -> Result<(), StoreError> {
        let read = self.catalog.events_after(|| self.position(), BATCH_MAX);
        match read.await? {
            Ok(events) => {
                let me = self.store.node_id();
                let own = |(id, origin, event): &(EventId, NodeId, Event)| {
                    (*origin == me && !has_effect(event, me)).then(|| (*id, event.clone()))
                };
                let own: Vec<(EventId, Event)> = events.iter().filter_map(own).collect();
                self.catalog.journal_again(&own).await?;
                for (id, origin, event) in events {
                    self.apply_next(id, origin, &event).await?;
                }
                Ok(())
            }
            Err(crate::catalog::EventsTrimmed) => self.compare_all().await,
        }
    }

    async fn apply_next(
        &self,
        id: EventId,
        origin: NodeId,
        event: &Event,
    ) -> Result<(), StoreError> {
        let me = self.store.node_id();
        if origin == me && has_effect(event, me) {
            self.leave_to_its_maker(id).await;
            self.catalog.journal_again(&[(id, event.clone())]).await?;
        }
        let mut order = self.order.lock().await;
        if id <= self.position() {
            return Ok(());
        }
        for attempt in 1.. {
            match self.local().apply(id, event).await {
                Ok(()) => break,
                // Nothing can be known without it: the event waits.
                Err(error @ StoreError::Catalog(_)) => return Err(error),
                Err(error) if attempt == ATTEMPTS_MAX => {
                    tracing::error!(
                        ?event, %error,
                        "a change of names could not be applied to the data directory; the next scan puts it right"
                    );
                    break;
                }
                Err(_) => tokio::time::sleep(PAUSE_SHORTEST).await,
            }
        }
        self.advance(&mut order, id, Some((origin, event)))
    }

    /// This node's own change, seen in the stream before its maker has come to apply it: what the catalog remembers may be of
    /// before the change until then. One that nobody comes for (the scan's) is applied a little later.
    async fn leave_to_its_maker(&self, id: EventId) {
        if !self.has_started.load(Ordering::Acquire) {
            return;
        }
        let mut position = self.position.subscribe();
        let applied = position.wait_for(|position| *position >= id);
        let _ = tokio::time::timeout(MAKER_WAIT, applied).await;
    }

    /// The stream does not reach back to our position.
    async fn compare_all(&self) -> Result<(), StoreError> {
        tracing::warn!(
            "the changes since this node was last here are not all known: comparing its whole data directory with the catalog"
        );
        let mut order = self.order.lock().await;
        let last = self.catalog.last_event().await?;
        let is_news = |path: &TreePath| self.is_news.get().is_some_and(|is_news| is_news(path));
        reconcile::reconcile(&self.local(), last, &is_news).await?;
        self.advance(&mut order, last, None)
    }

    /// It is applied: noted on disk, told, and then those who wait for it go on.
    fn advance(
        &self,
        file: &mut PositionFile,
        position: EventId,
        told: Option<(NodeId, &Event)>,
    ) -> Result<(), StoreError> {
        let me = self.store.node_id();
        match told {
            Some((_, event)) if !has_effect(event, me) => file.note(position)?,
            _ => file.write(position)?,
        }
        self.store.stamp_position(position);
        if let Some((origin, event)) = told {
            (self.on_event)(origin, event);
        }
        self.position.send_replace(position);
        Ok(())
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
