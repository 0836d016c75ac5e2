//! That the tree stands in Redis: every script that reads or changes it says which cluster's it means, and is refused where that
//! tree is not, or not yet again (Redis was emptied or replaced).
//!
//! Always: an emptied Redis never answers for the tree: nothing is taken for removed because Redis has forgotten it. Whoever asks
//! meanwhile waits (`REBUILD_WAIT` at most) for the tree to be rebuilt, which the first refusal starts (`recovery`).
use super::{Catalog, CatalogError};
use crate::record::*;
use crate::redis_client::{RedisError, Script};
use redis::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a question waits for a tree that is being rebuilt.
pub const REBUILD_WAIT: Duration = Duration::from_secs(10);
/// Between two attempts to rebuild.
const PAUSE: Duration = Duration::from_secs(1);
/// What the scripts' refusal begins with.
const REFUSAL: &str = "KSGONE";
/// How often several calls are sent again when the connection goes before their answers.
const CALL_ATTEMPTS: usize = 3;

/// What this handle knows of the tree's state.
pub(super) struct Fence {
    whole: watch::Sender<bool>,
    /// A rebuilding was seen to end that this node's data directory has not been compared with yet.
    behind: AtomicBool,
    /// How often the tree was seen to be rebuilt.
    pub(super) rebuilt: AtomicU64,
    /// The count of changes without events that this node's last one came to; 0: not known.
    pub(super) untold: AtomicU64,
}

impl Fence {
    pub(super) fn new(behind: bool) -> Self {
        Self {
            whole: watch::Sender::new(true),
            behind: AtomicBool::new(behind),
            rebuilt: AtomicU64::new(0),
            untold: AtomicU64::new(0),
        }
    }

    /// As far as is known, the tree is there.
    pub(super) fn is_whole(&self) -> bool {
        *self.whole.borrow()
    }
}

pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error, RedisError::Refused(text) if text.contains(REFUSAL))
}

pub(super) fn being_rebuilt() -> RedisError {
    RedisError::Refused(
        "it has lost the tree, which is being rebuilt from the nodes' data directories; see: ks recover".into(),
    )
}

impl Catalog {
    /// A script on the condition that the tree stands here.
    pub(super) async fn fenced(
        &self,
        script: &Script,
        args: &[&[u8]],
    ) -> Result<Value, RedisError> {
        let deadline = Instant::now() + REBUILD_WAIT;
        let cluster = self.shared.cluster.as_bytes();
        loop {
            match self.redis().script(script, &[cluster], args).await {
                Err(error) if is_refusal(&error) => self.await_whole(deadline).await?,
                answer => return answer,
            }
        }
    }

    /// As `fenced`, called once with each of these arguments, in one round trip; again where the connection goes before the answer,
    /// so for what may be done twice.
    pub(super) async fn fenced_all(
        &self,
        script: &Script,
        calls: &[Vec<Vec<u8>>],
    ) -> Result<Vec<Value>, CatalogError> {
        let mut pipeline = redis::pipe();
        // Whatever Redis forgot: the script is there before it is called.
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.source());
        for words in calls {
            pipeline.cmd("EVALSHA").arg(script.sha1());
            pipeline.arg(1).arg(self.cluster()).arg(&words[..]);
        }
        let mut attempt = 1;
        let deadline = Instant::now() + REBUILD_WAIT;
        let mut answers = loop {
            match self.redis().pipe(&pipeline).await {
                Err(RedisError::Lost(_)) if attempt < CALL_ATTEMPTS => attempt += 1,
                Err(error) if is_refusal(&error) => self.await_whole(deadline).await?,
                answers => break answers?,
            }
        };
        Ok(answers.split_off(1))
    }

    /// The tree was not there: it is rebuilt, and waited for until `deadline`.
    pub(super) async fn await_whole(&self, deadline: Instant) -> Result<(), RedisError> {
        self.notice_loss();
        let mut whole = self.shared.fence.whole.subscribe();
        let waited = tokio::time::timeout_at(deadline, whole.wait_for(|whole| *whole)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(being_rebuilt()),
        }
    }

    /// Asks whether the tree is there; waits for it as every question does.
    pub(super) async fn check_whole(&self) -> Result<(), CatalogError> {
        self.record(ROOT, false).await.map(|_| ())
    }

    /// Whether Redis answers for the tree, as far as is known.
    pub(crate) fn is_answering(&self) -> bool {
        self.redis().is_connected() && self.shared.fence.is_whole()
    }

    /// Starts the rebuilding, once.
    pub(super) fn notice_loss(&self) {
        let fence = &self.shared.fence;
        let is_first = fence
            .whole
            .send_if_modified(|whole| std::mem::replace(whole, false));
        if !is_first {
            return;
        }
        if self.shared.journal.is_none() {
            return tracing::error!("redis has lost the tree (it was emptied or replaced)");
        }
        tracing::error!(
            "redis has lost the tree (it was emptied or replaced): it is rebuilt from the nodes' data directories"
        );
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            while let Some(shared) = shared.upgrade() {
                let catalog = Catalog { shared };
                match catalog.rebuild_running().await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(%error, "the tree cannot be rebuilt now; trying again")
                    }
                }
                drop(catalog);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// The tree is there again: what was remembered before is not.
    pub(super) fn forget_tree(&self) {
        let shared = &*self.shared;
        shared.memory.locked().reset();
        shared.nodes.forget();
        shared.feed.reset();
        shared.fence.untold.store(0, Ordering::Release);
        (shared.on_change)(None);
    }

    /// It is there again, and has what this node alone knew.
    pub(super) fn tree_is_back(&self) {
        self.forget_tree();
        let fence = &self.shared.fence;
        fence.rebuilt.fetch_add(1, Ordering::AcqRel);
        fence.behind.store(true, Ordering::Release);
        fence.whole.send_replace(true);
        if let Some(on_news) = self.shared.on_news.get() {
            on_news(None);
        }
    }

    /// Waits until the tree is there, as far as this node knows.
    pub(super) async fn until_whole(&self, deadline: Instant) -> Result<(), CatalogError> {
        let mut whole = self.shared.fence.whole.subscribe();
        let waited = tokio::time::timeout_at(deadline, whole.wait_for(|whole| *whole)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(being_rebuilt().into()),
        }
    }

    /// Whether the tree was rebuilt since this node's data directory was compared with it last.
    pub fn is_behind(&self) -> bool {
        self.shared.fence.behind.load(Ordering::Acquire)
    }

    /// Notes that the data directory has been compared with the rebuilt tree.
    pub async fn has_caught_up(&self) -> Result<(), CatalogError> {
        let meta = super::recovery::meta(self.redis()).await?;
        if let Some(recovery) = meta.recovery {
            let mut command = redis::cmd("HSET");
            command.arg(super::recovery::MERGED);
            command.arg(self.me().to_string()).arg(recovery);
            self.redis().run(&command).await?;
        }
        self.shared.fence.behind.store(false, Ordering::Release);
        Ok(())
    }

    /// Waits until the tree is rebuilt again after it was lost, as often as that happens; at once when it has been already.
    pub async fn until_behind(&self) {
        let mut whole = self.shared.fence.whole.subscribe();
        while !self.is_behind() {
            if whole.changed().await.is_err() {
                return;
            }
        }
    }
}
