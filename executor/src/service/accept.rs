//! The accepting node's part: checks calls, keeps their payloads, places them, records them.
use super::Executor;
use super::board::{Entered, Run};
use super::callers::Audience;
use super::flow::Flow;
use super::kept::{KnownKept, USED_MAX};
use super::output::Output;
use super::payload::{self, PayloadError, part_bytes};
use super::recall::{self, Remembered};
use super::room::{Batch, ROOM_WAIT, Recorded};
use crate::job::Life;
use crate::placement::resolve::{self, Files};
use crate::placement::{self, FileFact, NodeFact, Wish};
use crate::protocol::{Call, FunctionCode, FunctionRef, INLINE_BYTES, Tell};
use crate::queue::durations::function_key;
use crate::queue::record::{StoredCall, StoredFunction, encode};
use crate::queue::{self, BATCH_BYTES_MAX, BATCH_JOBS_MAX, Full, Limits, QueueError, Submission};
use bytes::Bytes;
use ks_fs::path::TreePath;
use ks_fs::record::NodeId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long this node's own heart-beat is waited for where Redis has lost sight of it: two beats and a little.
const BEAT_WAIT: Duration = Duration::from_secs(5);
/// Between two looks whether it has come.
const BEAT_LOOK: Duration = Duration::from_millis(100);

/// Why a submission as a whole was refused. Calls that cannot be placed end by themselves.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The function's code is not what its hash says.
    #[error("the code of {0} does not have the hash it was sent with")]
    Function(String),
    /// A payload cannot be kept.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The catalog does not say where the files are.
    #[error(transparent)]
    Catalog(#[from] ks_fs::catalog::CatalogError),
    /// Redis does not take the jobs; those after the first of them are not accepted.
    #[error("the jobs cannot be recorded: {0}")]
    Queue(#[from] QueueError),
    /// Redis holds as much of jobs as it may, and has for a while.
    #[error("{}", full_text(.0, .1))]
    Full(Full, Limits),
    /// Too many jobs are waited for.
    #[error(
        "{} jobs are waited for at this node, which is the most",
        super::callers::WATCHED_MAX
    )]
    TooMany,
}

impl SubmitError {
    /// The name of the Python exception.
    pub fn kind(&self) -> &'static str {
        match self {
            SubmitError::Function(_) => "NotSerializable",
            SubmitError::Payload(_) => "PayloadError",
            SubmitError::Catalog(_) | SubmitError::Queue(_) => "CatalogUnavailable",
            SubmitError::TooMany | SubmitError::Full(..) => "TooManyJobs",
        }
    }
}

/// What is full, and what helps.
fn full_text(full: &Full, limits: &Limits) -> String {
    let waited = ROOM_WAIT.as_secs();
    match full {
        Full::Jobs => format!(
            "{} jobs go on in the cluster, which is the most (--max-queued), and for {waited} s too few ended: collect results before you send more, cancel some (ks cancel), or add workers",
            limits.going_max
        ),
        Full::Bodies => format!(
            "what the jobs that go on carry takes {} MiB of Redis, which is the most, and for {waited} s too few ended: name fewer paths in a call, collect results before you send more, or cancel some (ks cancel)",
            limits.bodies_bytes_max >> 20
        ),
        Full::Memory => format!(
            "Redis has had no memory left for {waited} s: raise its maxmemory, or cancel jobs (ks cancel); 'ks doctor' says on which machine it is"
        ),
    }
}

/// A call that was not accepted: its name, the exception's name, and why.
type Refused = (String, &'static str, String);

/// A call that was placed, with what is recorded of it.
struct Accepted {
    stored: Arc<StoredCall>,
    submission: Submission,
}

impl Executor {
    /// Takes a client's calls: on return every one is recorded, or has ended with the reason why not. Updates go to `audience`.
    pub async fn submit(
        self: &Arc<Self>,
        functions: Vec<FunctionCode>,
        calls: Vec<Call>,
        segments: &[Bytes],
        audience: &Arc<Audience>,
    ) -> Result<(), SubmitError> {
        let since = Instant::now();
        let functions = self.keep_functions(functions, segments).await?;
        let jobs: Vec<String> = calls.iter().map(|call| call.job.clone()).collect();
        if !self.callers.watch(jobs.iter(), audience) {
            return Err(SubmitError::TooMany);
        }
        let inner = super::nested::inner_of(&calls);
        let recorded = async {
            let placed = self.place(calls, segments).await?;
            self.record(&functions, placed, since).await
        };
        if let Err(error) = recorded.await {
            let refused = self.callers.unwatch(jobs.iter(), audience);
            if refused.len() == jobs.len() {
                return Err(error);
            }
            // The others are recorded, or have heard of their end.
            for job in refused {
                let update = self.failure(error.kind(), error.to_string());
                audience.tell(&Tell::Update { job, update });
            }
        }
        self.cancel_late(inner);
        Ok(())
    }

    /// Checks and keeps functions' code; what is to be recorded of it.
    async fn keep_functions(
        &self,
        functions: Vec<FunctionCode>,
        segments: &[Bytes],
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, SubmitError> {
        let mut records = Vec::with_capacity(functions.len());
        for function in functions {
            let code = part_bytes(&function.code, segments)?;
            let code = code.ok_or_else(|| SubmitError::Function(function.name.clone()))?;
            if blake3::hash(&code).as_bytes()[..] != function.hash[..] {
                return Err(SubmitError::Function(function.name));
            }
            let stored = if code.len() <= INLINE_BYTES {
                StoredFunction::Inline(code.to_vec().into())
            } else {
                let (hash, size) = self.put_blob(code.clone()).await?;
                StoredFunction::Blob {
                    hash,
                    size,
                    keeper: self.me().node,
                }
            };
            self.functions.put(&function.hash, code);
            records.push((function.hash.to_vec(), encode(&stored)));
        }
        Ok(records)
    }

    /// Checks calls, keeps their arguments and finds places for them. One for which there is none ends here.
    async fn place(
        self: &Arc<Self>,
        calls: Vec<Call>,
        segments: &[Bytes],
    ) -> Result<Vec<Accepted>, SubmitError> {
        let mut calls = calls;
        let remembered = self.remember(&mut calls);
        let nodes = self.nodes_to_place().await?;
        let kept = self.know_kept(&mut calls, &nodes).await?;
        let routed = |call: &&Call| {
            let names_data = !call.paths.is_empty() || !call.locality.is_empty();
            names_data && !call.no_route_data
        };
        let mut paths: Vec<TreePath> = calls
            .iter()
            .filter(routed)
            .flat_map(resolve::tree_paths)
            .collect();
        paths.extend(recall::paths(&remembered));
        let files = match paths.is_empty() {
            true => HashMap::new(),
            false => resolve::files(self.fs.catalog(), paths).await?,
        };
        let mut accepted = Vec::with_capacity(calls.len());
        for mut call in calls {
            self.keep_payload(&mut call.args, segments).await?;
            match self.place_known(call, &nodes, &files, &remembered, &kept) {
                Ok(one) => accepted.push(one),
                Err((job, kind, reason)) => {
                    let ended = self.failure(kind, reason);
                    self.update_caller(&job, ended, self.me().node);
                }
            }
        }
        Ok(accepted)
    }

    /// Places a call by what is known of it; where that is impossible, or nothing is known, by what it says itself.
    fn place_known(
        &self,
        mut call: Call,
        nodes: &[NodeFact],
        files: &Files,
        remembered: &Remembered,
        kept: &KnownKept,
    ) -> Result<Accepted, Refused> {
        if let Err(reason) = self.check_locality(&call, nodes, files) {
            return Err((call.job, "NotPlaceable", reason));
        }
        let known = remembered.get(&call.job);
        let how = known.and_then(|known| self.choose(&mut call, known, files));
        if how.is_some() && placement::place(&self.wish(&call, files, kept, nodes), nodes).is_err()
        {
            call.locality.clear();
            return self.place_one(call, nodes, files, kept, None);
        }
        self.place_one(call, nodes, files, kept, how)
    }

    fn place_one(
        &self,
        call: Call,
        nodes: &[NodeFact],
        files: &Files,
        kept: &KnownKept,
        how_known: Option<String>,
    ) -> Result<Accepted, Refused> {
        if let Err((kind, reason)) = self.check(&call) {
            return Err((call.job, kind, reason));
        }
        let used = call.kept.iter().filter_map(|value| kept.get(&value.id));
        if let Some(Err(reason)) = used.into_iter().find(|known| known.is_err()) {
            return Err((call.job, "KeyLost", reason.clone()));
        }
        let placement = match placement::place(&self.wish(&call, files, kept, nodes), nodes) {
            Ok(placement) => placement,
            Err(error) => {
                let reason = format!("{}: {error}", call.name);
                return Err((call.job, "NotPlaceable", reason));
            }
        };
        let queue = queue::queue_key(&call.queue, call.python.as_deref());
        let at_once =
            |place: &placement::Place| place.node == self.me().node && place.delay_ms == 0;
        let here = match placement.places.is_empty() {
            true => self.queues.contains(&queue),
            false => placement.places.iter().any(at_once),
        };
        let mut submission = Submission {
            job: call.job.clone(),
            body: Vec::new(),
            queue,
            priority: call.priority,
            retries: call.retries,
            places: queue::places_text(&placement),
            here,
            outer: call.outer.clone(),
        };
        let is_learned = how_known.is_some();
        let why = match how_known {
            Some(how) => format!("{} ({how})", placement.why),
            None => placement.why,
        };
        let stored = StoredCall {
            call,
            keeper: self.me().node,
            why,
            costs: placement.costs,
            is_learned,
        };
        submission.body = encode(&stored);
        Ok(Accepted {
            stored: Arc::new(stored),
            submission,
        })
    }

    /// What is refused whoever runs it.
    fn check(&self, call: &Call) -> Result<(), (&'static str, String)> {
        if !queue::job_is_valid(&call.job) {
            return Err((
                "ProtocolError",
                format!("'{}' is no job's name: 32 hex digits are", call.job),
            ));
        }
        if call.kept.len() > USED_MAX {
            let count = call.kept.len();
            let reason = format!("it uses {count} kept values; {USED_MAX} are the most");
            return Err(("NotPlaceable", reason));
        }
        let names = std::iter::once(&call.queue).chain(&call.python);
        if let Some(name) = names.into_iter().find(|name| !queue::name_is_valid(name)) {
            let reason = format!(
                "'{name}' cannot be the name of a queue or an interpreter: up to 64 letters, digits, '_', '-' and '.' can"
            );
            return Err(("NotPlaceable", reason));
        }
        if let Some(outer) = call
            .outer
            .as_ref()
            .filter(|outer| !queue::job_is_valid(outer))
        {
            let reason = format!("'{outer}' is no job's name: 32 hex digits are");
            return Err(("ProtocolError", reason));
        }
        self.check_registered(call)
    }

    /// A hint names a path in the tree, or a node: one that names nothing was not meant so. (Our own functions say by themselves what is
    /// not there.)
    fn check_locality(&self, call: &Call, nodes: &[NodeFact], files: &Files) -> Result<(), String> {
        let Some(mountpoint) = call.mountpoint.as_ref().filter(|_| !call.no_route_data) else {
            return Ok(());
        };
        if matches!(&call.function, FunctionRef::Name(name) if name.starts_with("kitchensink.builtins:"))
        {
            return Ok(());
        }
        for hint in &call.locality {
            let path = resolve::tree_path(hint, mountpoint);
            let is_there = |path: &TreePath| files.get(path).is_some_and(|seen| seen.is_there);
            if path.as_ref().is_some_and(is_there) || hinted_node(hint, mountpoint, nodes).is_some()
            {
                continue;
            }
            let why = match path {
                Some(_) => "is not there",
                None => "is not in the tree",
            };
            return Err(format!(
                "{}: its _locality {} {why}: name a file or a directory under {}, or a node",
                call.name,
                String::from_utf8_lossy(hint),
                String::from_utf8_lossy(mountpoint),
            ));
        }
        Ok(())
    }

    /// A node that runs registered functions only refuses code before anything of it is unpickled, and shell commands.
    /// Which names are registered its workers know: they refuse the others before they unpickle their arguments.
    pub(super) fn check_registered(&self, call: &Call) -> Result<(), (&'static str, String)> {
        if !self.options.registered_only {
            return Ok(());
        }
        let allowed = match &call.function {
            FunctionRef::Hash(_) => false,
            FunctionRef::Name(name) => name != "kitchensink.builtins:run_command",
        };
        match allowed {
            true => Ok(()),
            false => Err((
                "NotRegistered",
                format!(
                    "{}: node {} runs registered functions only (modules: {})",
                    call.name,
                    self.options.node_name,
                    self.options.modules.join(", ")
                ),
            )),
        }
    }

    pub(super) fn wish<'a>(
        &self,
        call: &'a Call,
        files: &'a Files,
        kept: &'a KnownKept,
        nodes: &[NodeFact],
    ) -> Wish<'a> {
        let mut needed: Vec<&FileFact> = Vec::new();
        if !call.no_route_data {
            let used = call.kept.iter().filter_map(|value| kept.get(&value.id));
            needed.extend(used.filter_map(|known| known.as_ref().ok()));
        }
        if !call.no_route_data && !files.is_empty() {
            for path in resolve::tree_paths(call) {
                for file in files.get(&path).into_iter().flat_map(|seen| &seen.files) {
                    if !needed.iter().any(|known| std::ptr::eq(*known, &**file)) {
                        needed.push(file);
                    }
                }
            }
        }
        let mountpoint = call.mountpoint.as_ref().map_or(&[][..], |path| &path[..]);
        let near = call.locality.iter().filter(|_| !call.no_route_data);
        let near = near.filter_map(|hint| {
            let path = resolve::tree_path(hint, mountpoint);
            let is_there =
                path.is_some_and(|path| files.get(&path).is_some_and(|seen| seen.is_there));
            (!is_there)
                .then(|| hinted_node(hint, mountpoint, nodes))
                .flatten()
        });
        // Who names the node means it, unless a threshold is named too.
        let default = call.node.is_none().then_some(self.options.data_threshold);
        Wish {
            files: needed,
            queue: &call.queue,
            python: call.python.as_deref(),
            node: call.node.as_deref(),
            near: near.collect(),
            threshold_bytes: call.data_threshold.or(default),
            data: data_key(call),
            function: function_key(&call.function),
            seed: u64::from_str_radix(call.job.get(..16).unwrap_or_default(), 16).unwrap_or(0),
        }
    }

    /// The nodes that calls may be placed at. Where not even this one counts as alive, Redis has been away for longer than a
    /// heart-beat lasts and has just come back: then the beat is waited for.
    async fn nodes_to_place(&self) -> Result<Arc<Vec<NodeFact>>, SubmitError> {
        let begun = Instant::now();
        loop {
            let nodes = self.nodes.get(self.fs.catalog()).await?;
            let is_here = |node: &NodeFact| node.id == self.me().node && node.alive;
            if nodes.iter().any(is_here) || begun.elapsed() >= BEAT_WAIT {
                return Ok(nodes);
            }
            tokio::time::sleep(BEAT_LOOK).await;
        }
    }

    /// Records placed calls, in batches; what may run here at once does.
    async fn record(
        self: &Arc<Self>,
        functions: &[(Vec<u8>, Vec<u8>)],
        mut accepted: Vec<Accepted>,
        since: Instant,
    ) -> Result<(), SubmitError> {
        let mut functions = functions;
        while !accepted.is_empty() || !functions.is_empty() {
            let rest = accepted.split_off(batch_length(&accepted, self.queue.batch_jobs_max()));
            let batch = std::mem::replace(&mut accepted, rest);
            self.record_batch(functions, batch, since).await?;
            functions = &[];
        }
        Ok(())
    }

    async fn record_batch(
        self: &Arc<Self>,
        functions: &[(Vec<u8>, Vec<u8>)],
        batch: Vec<Accepted>,
        since: Instant,
    ) -> Result<(), SubmitError> {
        let (stored, submissions) = batch
            .into_iter()
            .map(|one| (one.stored, one.submission))
            .unzip();
        let mut batch = Batch {
            calls: stored,
            submissions,
        };
        let Recorded { submitted, asked } = self.record_in_room(functions, &mut batch).await?;
        let jobs = batch.submissions.iter().map(|submission| &submission.job);
        self.callers.recorded(jobs.clone());
        let claiming = asked.elapsed();
        let mut calls: HashMap<&String, Arc<StoredCall>> = jobs.zip(batch.calls).collect();
        for job in submitted.claimed {
            let Some(stored) = calls.remove(&job) else {
                continue;
            };
            let stored = self.with_blobs(stored);
            let is_here = stored.call.kept.iter().all(|value| value.path.is_some());
            let run = Run {
                origin: self.me().node,
                retries: stored.call.retries,
                since,
                waited_before: Duration::ZERO,
                claiming,
                bringing: Duration::ZERO,
                waits: false,
                life: Life::new(stored.call.timeout_ms),
                worker: None,
                began: None,
                grown_to_bytes: 0,
                brought_bytes: 0,
                output: Output::default(),
                flow: Flow::default(),
                stored: stored.clone(),
            };
            let entered = self.board.lock().unwrap().enter(&job, run);
            self.entered.notify_one();
            self.follow_when_here(job, stored, entered, is_here);
        }
        self.start_calls();
        if self.board.lock().unwrap().has_waiting() {
            // Those that no worker takes soon are given back to other nodes (`STUCK`): somebody has to look.
            self.claim_soon.notify_one();
        }
        if !submitted.known.is_empty() {
            self.attach_recorded(&submitted.known).await?;
        }
        Ok(())
    }

    /// A call that this node both accepted and runs: its blobs are here, and the worker is told where.
    fn with_blobs(&self, stored: Arc<StoredCall>) -> Arc<StoredCall> {
        if payload::is_plain(&stored.call.args) && stored.call.kept.is_empty() {
            return stored;
        }
        let mut stored = Arc::unwrap_or_clone(stored);
        self.find_kept(&mut stored.call.kept);
        self.find_payload(&mut stored.call.args);
        Arc::new(stored)
    }

    /// Wants to hear of jobs that another connection (or the same, before) submitted.
    pub async fn attach(
        self: &Arc<Self>,
        jobs: Vec<String>,
        audience: &Arc<Audience>,
    ) -> Result<(), SubmitError> {
        let (valid, invalid): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| queue::job_is_valid(job));
        for job in invalid {
            let update = self.failure("JobUnknown", format!("'{job}' is no job's name"));
            audience.tell(&Tell::Update { job, update });
        }
        if !self.callers.watch(valid.iter(), audience) {
            return Err(SubmitError::TooMany);
        }
        Ok(self.attach_recorded(&valid).await?)
    }

    async fn attach_recorded(self: &Arc<Self>, jobs: &[String]) -> Result<(), QueueError> {
        for batch in jobs.chunks(BATCH_JOBS_MAX) {
            let standings = self.queue.attach(batch).await?;
            self.callers.recorded(batch.iter());
            for (job, standing) in batch.iter().zip(standings) {
                match standing {
                    queue::Standing::Ended(ended) => self.end_from_record(job, &ended),
                    queue::Standing::Going => {}
                    queue::Standing::Unknown => {
                        let message = format!(
                            "there is no job {job} (the records of those that ended are kept for {} s)",
                            self.queue.result_ttl().as_secs()
                        );
                        let update = self.failure("JobUnknown", message);
                        self.update_caller(job, update, self.me().node);
                    }
                }
            }
        }
        Ok(())
    }

    /// Follows up on a call that was entered on the board and has everything it needs.
    pub(super) fn follow_entry(self: &Arc<Self>, job: &str, entered: Entered) {
        match entered {
            Entered::New => self.make_ready(job),
            Entered::Cancelled => drop(self.cancel_here(job)),
            Entered::Known => {}
        }
    }
}

/// The node that a hint names: the name alone, or (as clients write it) below the mount point.
fn hinted_node(hint: &[u8], mountpoint: &[u8], nodes: &[NodeFact]) -> Option<NodeId> {
    let below = hint
        .strip_prefix(mountpoint)
        .and_then(|rest| rest.strip_prefix(b"/"));
    let name = below.unwrap_or(hint);
    let node = nodes.iter().find(|node| node.name.as_bytes() == name)?;
    Some(node.id)
}

/// Tells calls that need the same files from others.
fn data_key(call: &Call) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for path in resolve::tree_paths(call) {
        hasher.update(path.as_bytes()).update(&[0]);
    }
    for value in &call.kept {
        hasher.update(value.id.as_bytes()).update(&[1]);
    }
    u64::from_le_bytes(
        hasher.finalize().as_bytes()[..8]
            .try_into()
            .expect("8 of 32 bytes"),
    )
}

/// How many of the first fit in one script call.
fn batch_length(accepted: &[Accepted], jobs_max: usize) -> usize {
    let mut bytes = 0;
    let fits = |one: &&Accepted| {
        bytes += one.submission.body.len();
        bytes <= BATCH_BYTES_MAX
    };
    let count = accepted.iter().take(jobs_max).take_while(fits).count();
    count.max(1).min(accepted.len())
}
