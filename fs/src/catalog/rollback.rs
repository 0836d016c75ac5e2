//! A Redis that came back with an older state than this node has seen: the last moments of its file went with a power failure, or an
//! old file was put back. What it has forgotten is in the journals of those who made it, so the tree is rebuilt from them.
//!
//! Always: it is looked for before anything in a data directory is taken for removed because Redis does not know it.
use super::events::{STREAM, entries};
use super::fence::REBUILD_WAIT;
use super::reads::bytes;
use super::recovery::{is_behind, meta};
use super::{Catalog, CatalogError, EventId};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long a node's start waits for the tree to be rebuilt.
const START_WAIT: Duration = Duration::from_secs(120);

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
