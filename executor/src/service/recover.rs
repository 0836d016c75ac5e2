//! After a lost answer, and after other nodes' deaths: what is claimed is made to agree with what is known, what the dead held ends or is placed again.
use super::Executor;
use crate::placement::{self, resolve};
use crate::queue::{self, Reaped, record};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Executor {
    /// Compares what is claimed in our name with what we know: a lost answer may have claimed more, others may have taken some.
    pub(super) async fn reconcile(self: &Arc<Self>) {
        let known: HashSet<String> = self.board.lock().unwrap().runs.keys().cloned().collect();
        let claimed: HashSet<String> = match self.queue.claimed().await {
            Ok(claimed) => claimed.into_iter().collect(),
            Err(error) => {
                tracing::debug!(%error, "what is claimed cannot be asked now");
                return self.unsure.store(true, Ordering::Relaxed);
            }
        };
        for job in known.difference(&claimed) {
            self.withdraw(job);
        }
        let jobs = self.confirmed_strays(claimed.difference(&known));
        if jobs.is_empty() {
            return;
        }
        tracing::info!(
            count = jobs.len(),
            "calls that were claimed without our hearing of it are given back"
        );
        if let Err(error) = self.queue.release(&jobs).await {
            tracing::debug!(%error, "calls cannot be given back now");
            self.unsure.store(true, Ordering::Relaxed);
        }
    }

    /// Those of `strays` that were strays at the look before, too; the others are remembered for the next look. What is one for a
    /// moment has been claimed just now, by an answer that is on its way to the board: given back, it would run twice.
    fn confirmed_strays<'a>(
        &self,
        strays: impl Iterator<Item = &'a String>,
    ) -> Vec<(String, Option<String>)> {
        // Entered, or ended and being closed, since the question was asked: still ours. What ends leaves the board first.
        let board: HashSet<String> = self.board.lock().unwrap().runs.keys().cloned().collect();
        let closing = self.closing.jobs();
        let now: HashSet<String> = strays
            .filter(|job| !board.contains(*job) && !closing.contains(*job))
            .cloned()
            .collect();
        let mut remembered = self.strays.lock().unwrap();
        let (confirmed, new): (HashSet<String>, HashSet<String>) =
            now.into_iter().partition(|job| remembered.contains(job));
        if !new.is_empty() {
            self.unsure.store(true, Ordering::Relaxed);
        }
        *remembered = new;
        confirmed.into_iter().map(|job| (job, None)).collect()
    }

    /// Ends, or places again, what dead nodes held.
    pub(super) async fn take_from_the_dead(self: &Arc<Self>, reaped: Vec<Reaped>) {
        let nodes = self.nodes.get(self.fs.catalog()).await.unwrap_or_default();
        for job in reaped {
            match job.lost_by {
                Some(node) => {
                    let name = nodes
                        .iter()
                        .find(|fact| fact.id == node)
                        .map_or(node.to_string(), |fact| fact.name.clone());
                    tracing::warn!(
                        job = job.job,
                        node = name,
                        "a job is lost with the node that ran it"
                    );
                    let message = format!(
                        "node {name} was not heard of any more while it ran the call (it died, or was cut off): the call may have run"
                    );
                    let update = self.failure("NodeLost", message);
                    self.close_taken(&job.job, "lost", update, true);
                    self.cancel_inner(job.job);
                }
                None => self.place_again(job, &nodes).await,
            }
        }
    }

    /// A job waited for a node that is gone: it gets other places, or its end.
    async fn place_again(self: &Arc<Self>, job: Reaped, nodes: &[placement::NodeFact]) {
        let placed = self.places_now(&job, nodes).await;
        let released = match placed {
            Ok(places) => self
                .queue
                .release(&[(job.job.clone(), Some(places))])
                .await
                .map(drop),
            Err(Some(reason)) => {
                let update = self.failure("NotPlaceable", reason);
                self.close_taken(&job.job, "failed", update, false);
                Ok(())
            }
            Err(None) => self
                .queue
                .release(&[(job.job.clone(), None)])
                .await
                .map(drop),
        };
        if let Err(error) = released {
            tracing::debug!(%error, job = job.job, "a job cannot be placed again now");
            self.unsure.store(true, Ordering::Relaxed);
        }
    }

    /// `Err(None)`: it cannot be found out now.
    async fn places_now(
        &self,
        job: &Reaped,
        nodes: &[placement::NodeFact],
    ) -> Result<String, Option<String>> {
        let mut stored: record::StoredCall =
            record::decode(&job.body).map_err(|error| Some(error.to_string()))?;
        let call = &stored.call;
        let files = resolve::files(self.fs.catalog(), resolve::tree_paths(call))
            .await
            .map_err(|_| None)?;
        let kept = super::kept::KnownKept::default();
        let mut placed = placement::place(&self.wish(call, &files, &kept, nodes), nodes);
        if placed.is_err() && stored.is_learned {
            stored.call.locality.clear();
            placed = placement::place(&self.wish(&stored.call, &files, &kept, nodes), nodes);
        }
        match placed {
            Ok(placement) => Ok(queue::places_text(&placement)),
            Err(error) => Err(Some(format!("{}: {error}", stored.call.name))),
        }
    }
}
