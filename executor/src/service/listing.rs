//! What is told of jobs to people: those that go on, and what one wrote.
use super::Executor;
use crate::protocol::{Answer, Outcome, Update};
use crate::queue::record::{self, StoredCall, StoredEnd};
use crate::queue::{Listed, QueueError};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Jobs of one answer.
pub const LISTED_MAX: u32 = 10_000;

impl Executor {
    /// Jobs that have not ended, oldest first: how many there are, and what is known of the first `limit`.
    pub(crate) async fn list_jobs(&self, limit: u32) -> Result<(u64, Vec<Value>), QueueError> {
        let (total, listed) = self.queue.list(limit.min(LISTED_MAX) as usize).await?;
        let nodes = self.nodes.get(self.fs.catalog()).await.unwrap_or_default();
        let names: HashMap<String, &str> = nodes
            .iter()
            .map(|node| (node.id.to_string(), node.name.as_str()))
            .collect();
        let now_ms = super::payload::now_ms();
        let jobs = listed
            .into_iter()
            .filter_map(|job| described(&job, &names, now_ms))
            .collect();
        Ok((total, jobs))
    }

    /// What a job wrote, and how it ended.
    pub(crate) async fn logs(&self, job: &str) -> Result<Option<Answer>, QueueError> {
        let standing = self.queue.standing(&[job.to_owned()]).await?.pop();
        let ended = match standing {
            Some(crate::queue::Standing::Ended(ended)) => ended,
            Some(crate::queue::Standing::Going) => return Ok(Some(self.logs_so_far(job))),
            _ => return Ok(None),
        };
        let stored: StoredEnd = record::decode(&ended)?;
        Ok(Some(Answer::Logs {
            ended: how_it_ended(&stored.update),
            pieces: stored.wrote.pieces,
            omitted_bytes: stored.wrote.omitted_bytes,
        }))
    }

    /// Of a job that goes on: what it wrote until now, where it runs here.
    fn logs_so_far(&self, job: &str) -> Answer {
        let board = self.board.lock().unwrap();
        let (wrote, place) = match board.runs.get(job) {
            Some(run) => (run.output.kept(), "here"),
            None => (
                record::Wrote::default(),
                "elsewhere, or waits; what it writes is kept when it ends",
            ),
        };
        Answer::Logs {
            ended: format!("goes on {place}"),
            pieces: wrote.pieces,
            omitted_bytes: wrote.omitted_bytes,
        }
    }
}

fn described(job: &Listed, names: &HashMap<String, &str>, now_ms: u64) -> Option<Value> {
    let stored: Option<StoredCall> = record::decode(&job.body).ok();
    let (function, why, costs) = match &stored {
        Some(stored) => (
            stored.call.name.as_str(),
            stored.why.as_str(),
            stored.costs.as_slice(),
        ),
        None => ("", "", &[][..]),
    };
    let node = job.token.split(':').next().unwrap_or_default();
    let costs: serde_json::Map<String, Value> = costs
        .iter()
        .map(|(node, bytes)| (node.clone(), json!(bytes)))
        .collect();
    let state = match job.state.as_str() {
        "q" => "queued",
        "c" => "claimed",
        _ => return None,
    };
    Some(json!({
        "job": job.job, "function": function, "state": state, "queue": job.queue,
        "node": names.get(node), "priority": job.priority, "retries_left": job.retries,
        "age_ms": now_ms.saturating_sub(job.accepted_ms), "why": why, "costs": costs,
    }))
}

fn how_it_ended(update: &Update) -> String {
    let Update::Ended { outcome, report } = update else {
        return "ended".into();
    };
    let how = match outcome {
        Outcome::Returned(_) => "returned".to_owned(),
        Outcome::Raised {
            type_name, message, ..
        } => format!("raised {type_name}: {message}"),
        Outcome::Failed { kind, message, .. } => format!("failed: {kind}: {message}"),
    };
    match (report.pid, report.why.as_str()) {
        (0, _) => how,
        (pid, "") => format!("{how} (node {}, process {pid})", report.node),
        (pid, why) => format!(
            "{how} (node {}, process {pid}; placed there: {why})",
            report.node
        ),
    }
}
