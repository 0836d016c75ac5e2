//! What stays of a fetch: a whole content becomes a plain file, once; what is here of the others is written down now and then and at the end.
use super::{ContentKind, Core, Kept};
use crate::error::FsError;
use crate::fetch::flight::lock;
use crate::fetch::surroundings::{Keep, blocking};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// While a file is being fetched its map is saved and the catalog told at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(10);

impl Core {
    /// The whole content becomes a plain file, once, in the background; readers go on with their descriptor.
    pub(super) fn complete(self: &Arc<Self>) {
        if self.kind != ContentKind::File || self.keeping.swap(true, Ordering::SeqCst) {
            return;
        }
        self.kept.send_replace(Kept::NotYet);
        let core = self.clone();
        self.shared.runtime.spawn(async move {
            let result = core.keep().await;
            let kept = match &result {
                Ok(()) => Kept::Done,
                Err(error) => {
                    tracing::warn!(path = %core.path, %error, "a fetched file was not kept");
                    Kept::Failed(error.to_errno())
                }
            };
            core.kept.send_replace(kept);
            // Whoever wants it whole later may try again.
            core.keeping.store(result.is_ok(), Ordering::SeqCst);
        });
    }

    async fn keep(self: &Arc<Self>) -> Result<(), FsError> {
        let Some(copy) = self.backing.whole_copy()? else {
            return Ok(());
        };
        let keep = Keep {
            key: self.key.clone(),
            path: self.path.clone(),
            copy,
        };
        self.shared.around.keep(keep).await
    }

    pub(super) fn save_now_and_then(self: &Arc<Self>) {
        {
            let mut state = lock(&self.state);
            if state.saved.elapsed() < SAVE_EVERY {
                return;
            }
            state.saved = Instant::now();
        }
        let core = self.clone();
        self.shared.runtime.spawn(async move { core.save().await });
    }

    /// Writes down what is here, so that a restart finds it.
    pub async fn save(self: &Arc<Self>) {
        self.warn_of_full_disk();
        let Some(partial) = self.backing.as_partial() else {
            return;
        };
        let over = matches!(*self.kept.borrow(), Kept::Done | Kept::Failed(libc::ESTALE));
        if over || !self.unsaved.swap(false, Ordering::Relaxed) {
            return;
        }
        let core = self.clone();
        let flushed = blocking(move || Ok(core.backing.flush_nodes()?)).await;
        match flushed {
            Ok(()) => self.shared.around.save(partial.clone()).await,
            Err(error) => {
                tracing::warn!(path = %self.path, %error, "a partial file was not saved");
            }
        }
    }

    /// Whether the whole content is being made a plain file at this moment.
    pub async fn kept_or_failed(&self) {
        if !self.keeping.load(Ordering::SeqCst) {
            return;
        }
        let mut kept = self.kept.subscribe();
        // Both ends of the making send.
        let _ = kept.wait_for(|kept| *kept != Kept::NotYet).await;
    }

    pub(super) fn warn_of_full_disk(&self) {
        if self.backing.is_disk_full() && self.warned.set(()).is_ok() {
            tracing::warn!(path = %self.path, "the data directory's disk is full: the file is read without being kept; free space or set --cache-limit");
        }
    }
}
