//! A Redis that came back with an older state than this node has seen: the last moments of its file went with a power failure, or an
//! old file was put back. What it has forgotten is in the journals of those who made it, so the tree is rebuilt from them.
//!
//! Always: it is looked for before anything in a data directory is taken for removed, or for new, because Redis does not know it ([`Ground`]).
use super::events::{STREAM, entries};
use super::fence::REBUILD_WAIT;
use super::reads::{array, bytes, damaged};
use super::recovery::{MERGED, is_behind, meta};
use super::{Catalog, CatalogError, EventId};
use redis::Value;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long a node's start waits for the tree to be rebuilt.
const START_WAIT: Duration = Duration::from_secs(120);

/// The tree at a moment when Redis was seen to have all that this node has seen there, and the data directory to have been compared with it.
/// What was found out then holds while the ground does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ground {
    connection: u64,
    rebuilt: u64,
}

/// Whether a stream that begins with `first` and does not have `seen` has another past. What is trimmed goes from its beginning.
fn has_another_past(first: Option<EventId>, seen: EventId) -> bool {
    seen != EventId::default() && first.is_none_or(|first| first <= seen)
}

impl Catalog {
    /// The stream does not have the event `seen`, which this node has seen there: because it was trimmed, or was it never there?
    pub(super) async fn look_for_lost_event(&self, seen: EventId) -> Result<(), CatalogError> {
        let mut command = redis::cmd("XRANGE");
        command.arg(STREAM).arg("-").arg("+").arg("COUNT").arg(1);
        let first = entries(self.redis().run(&command).await?)?;
        match has_another_past(first.first().map(|entry| entry.id), seen) {
            true => self.rebuild_after_rollback().await,
            false => Ok(()),
        }
    }

    /// At a node's start, before anything of its data directory is compared with the tree: has Redis forgotten `seen`? Returns when the
    /// tree that it then has is whole.
    pub(crate) async fn look_back(&self, seen: EventId) -> Result<(), CatalogError> {
        if self.reaches_back(seen).await? {
            return Ok(());
        }
        self.look_for_lost_event(seen).await?;
        self.until_whole(Instant::now() + START_WAIT).await
    }

    /// `None`: the tree that Redis has is not to be compared with the data directory now. It does not have the event `seen` (it went back to an
    /// older state, or the event was trimmed), has forgotten changes without events, or was rebuilt since the last comparison. One round trip.
    pub(crate) async fn ground(&self, seen: EventId) -> Result<Option<Ground>, CatalogError> {
        let shared = &self.shared;
        let ground = self.ground_now();
        let untold = shared.fence.untold.load(Ordering::Acquire);
        let mut pipeline = redis::pipe();
        let fields = ["whole", "recovery", "untold"];
        pipeline.cmd("HMGET").arg("ks:meta").arg(&fields);
        pipeline.cmd("HGET").arg(MERGED).arg(self.me().to_string());
        let at = seen.to_string();
        pipeline.cmd("XRANGE").arg(STREAM).arg(&at).arg(&at);
        let answers = self.redis().pipe(&pipeline).await?;
        let [meta, merged, event]: [Value; 3] =
            answers.try_into().map_err(|_| damaged("ks:meta"))?;
        let meta = array(meta).ok_or_else(|| damaged("ks:meta"))?;
        let [whole, recovery, count]: [Value; 3] =
            meta.try_into().map_err(|_| damaged("ks:meta"))?;
        let count = bytes(count).and_then(|count| std::str::from_utf8(&count).ok()?.parse().ok());
        let recovery = bytes(recovery).filter(|name| !name.is_empty());
        let has_seen = seen == EventId::default() || !entries(event)?.is_empty();
        let is_it = bytes(whole).as_deref() == Some(self.cluster().as_bytes())
            && (recovery.is_none() || bytes(merged) == recovery)
            && count.unwrap_or(0) >= untold
            && has_seen;
        Ok((is_it && self.holds(ground)).then_some(ground))
    }

    fn ground_now(&self) -> Ground {
        Ground {
            connection: self.redis().connection_number(),
            rebuilt: self.shared.fence.rebuilt.load(Ordering::Acquire),
        }
    }

    /// Whether Redis has been the same all the time since, as far as is known. No round trip.
    pub(crate) fn holds(&self, ground: Ground) -> bool {
        self.is_answering() && !self.is_behind() && self.ground_now() == ground
    }

    /// Changes without events are counted: has the count gone back?
    pub(super) async fn look_for_lost_changes(&self) -> Result<(), CatalogError> {
        let seen = self.shared.fence.untold.load(Ordering::Acquire);
        if seen == 0 {
            return Ok(());
        }
        let mut command = redis::cmd("HGET");
        command.arg("ks:meta").arg("untold");
        let count = bytes(self.redis().run(&command).await?);
        let count = count.and_then(|count| std::str::from_utf8(&count).ok()?.parse().ok());
        match count.unwrap_or(0) < seen {
            true => self.rebuild_after_rollback().await,
            false => Ok(()),
        }
    }

    async fn rebuild_after_rollback(&self) -> Result<(), CatalogError> {
        let found = meta(self.redis()).await?;
        let goes_on = found.whole.as_deref() != Some(self.cluster());
        if self.shared.journal.is_none() || goes_on || self.is_behind() {
            return Ok(());
        }
        if is_behind(self.redis(), found.recovery, self.me()).await? {
            tracing::warn!("the tree was rebuilt without this node, which brings its part now");
            self.notice_loss();
            return Ok(self.await_whole(Instant::now() + REBUILD_WAIT).await?);
        }
        tracing::error!(
            "redis has gone back to an older state than this node has seen (a power failure, or an old file was put back): the tree is \
             rebuilt from what the nodes' data directories know"
        );
        self.recover().await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trimmed_is_no_other_past() {
        let at = |ms| EventId(ms, 0);
        assert!(!has_another_past(Some(at(5)), at(4)));
        assert!(has_another_past(Some(at(3)), at(4)));
        assert!(has_another_past(None, at(4)));
        assert!(!has_another_past(Some(at(3)), EventId::default()));
    }
}
