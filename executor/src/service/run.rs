//! The executing node's part: from a claimed call to its end.
use super::Executor;
use super::board::{Entered, Run};
use super::flow::Flow;
use super::output::{self, Output};
use super::payload;
use super::tend::Closing;
use crate::frames;
use crate::job::{Action, Ending, Event, Life, State};
use crate::placement::{lacks, why_here};
use crate::protocol::{
    FunctionRef, INLINE_BYTES, KeepAs, KeptValue, NOTE_STREAM, Outcome, Part, Payload, Phases,
    Report, Update,
};
use crate::queue::durations::function_key;
use crate::queue::record::{self, StoredCall, StoredEnd, StoredFunction, Wrote};
use crate::queue::{Claimed, Finish};
use crate::worker::{Answered, Exit, Measured, Worker};
use bytes::Bytes;
use ks_fs::record::NodeId;
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// `protocol::ToWorker::Run`, borrowed: arguments are not copied on their way.
#[derive(Serialize)]
enum RunMessage<'a> {
    Run {
        job: &'a str,
        name: &'a str,
        function: &'a FunctionRef,
        code: Option<Part>,
        format: &'a str,
        args: &'a Payload,
        mountpoint_from: Option<&'a serde_bytes::ByteBuf>,
        mountpoint_to: &'a serde_bytes::Bytes,
        intermediate_results: bool,
        kept: &'a [KeptValue],
        keep: Option<&'a KeepAs>,
        priority: i32,
    },
}

/// What a call that ends is known by, once it is off the board.
struct Over {
    job: String,
    run: Run,
    report: Report,
}

impl Executor {
    /// Enters what was claimed; what is needed for it is brought here first.
    /// `asked`: when they were asked for; `now_ms`: Redis's clock then.
    pub(super) fn enter_claims(
        self: &Arc<Self>,
        asked: Instant,
        now_ms: u64,
        claims: Vec<Claimed>,
    ) {
        for claimed in claims {
            let stored = match record::decode::<StoredCall>(&claimed.body) {
                Ok(stored) => stored,
                Err(error) => {
                    self.close_unread(&claimed, &error.to_string());
                    continue;
                }
            };
            let waited = Duration::from_millis(now_ms.saturating_sub(claimed.accepted_ms));
            self.enter_claim(claimed, stored, asked, waited);
        }
        self.start_calls();
    }

    fn enter_claim(
        self: &Arc<Self>,
        claimed: Claimed,
        mut stored: StoredCall,
        asked: Instant,
        waited: Duration,
    ) {
        let mut args = std::mem::take(&mut stored.call.args);
        let is_here = self.find_payload(&mut args) && self.has_function(&stored.call.function);
        stored.call.args = args;
        let is_here = self.find_kept(&mut stored.call.kept) && is_here;
        let stored = Arc::new(stored);
        let run = Run {
            stored: stored.clone(),
            origin: claimed.origin,
            retries: claimed.retries,
            since: asked,
            waited_before: waited,
            claiming: asked.elapsed(),
            bringing: Duration::ZERO,
            waits: false,
            life: Life::new(stored.call.timeout_ms),
            worker: None,
            began: None,
            grown_to_bytes: 0,
            brought_bytes: 0,
            output: Output::default(),
            flow: Flow::default(),
        };
        let entered = self.board.lock().unwrap().enter(&claimed.job, run);
        self.follow_when_here(claimed.job, stored, entered, is_here);
    }

    /// Follows up on a call that was entered on the board, once everything it needs is here.
    pub(super) fn follow_when_here(
        self: &Arc<Self>,
        job: String,
        stored: Arc<StoredCall>,
        entered: Entered,
        is_here: bool,
    ) {
        if is_here {
            return self.follow_entry(&job, entered);
        }
        let this = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            match this.bring(&stored).await {
                Ok((ready, brought_bytes)) => {
                    if let Some(run) = this.board.lock().unwrap().runs.get_mut(&job) {
                        run.stored = Arc::new(ready);
                        run.brought_bytes = brought_bytes;
                        run.bringing = begun.elapsed();
                    }
                    this.follow_entry(&job, entered);
                    this.start_calls();
                    // Who claims gives back what waits for long, and did not see this one.
                    if this.board.lock().unwrap().has_waiting() {
                        this.claim_soon.notify_one();
                    }
                }
                Err((kind, reason)) => this.fail_waiting(&job, kind, reason),
            }
        });
    }

    /// A record that cannot be read still has to end.
    fn close_unread(&self, claimed: &Claimed, reason: &str) {
        tracing::error!(job = claimed.job, reason, "a job's record cannot be read");
        let update = self.failure(
            "NodeLost",
            format!("the job's record cannot be read: {reason}"),
        );
        self.close(&claimed.job, "failed", update, false, true);
    }

    fn has_function(&self, function: &FunctionRef) -> bool {
        match function {
            FunctionRef::Hash(hash) => self.functions.get(hash).is_some(),
            FunctionRef::Name(_) => true,
        }
    }

    /// Brings a call's function, arguments and kept values to this node; how many bytes of the last.
    async fn bring(
        &self,
        stored: &StoredCall,
    ) -> Result<(StoredCall, u64), (&'static str, String)> {
        if let FunctionRef::Hash(hash) = &stored.call.function
            && self.functions.get(hash).is_none()
        {
            let brought = self.bring_function(hash).await;
            brought.map_err(|reason| ("NodeLost", reason))?;
        }
        let mut ready = stored.clone();
        let brought = self
            .bring_payload(&mut ready.call.args, stored.keeper)
            .await;
        brought.map_err(|e| ("NodeLost", format!("its arguments: {e}")))?;
        let brought = self.bring_kept(&mut ready.call.kept).await;
        Ok((ready, brought?))
    }

    async fn bring_function(&self, hash: &[u8]) -> Result<(), String> {
        let stored = self
            .queue
            .function(hash)
            .await
            .map_err(|e| format!("its function: {e}"))?;
        let code = match stored
            .ok_or("its function's code is not recorded any more; send the call again")?
        {
            StoredFunction::Inline(code) => Bytes::from(code.into_vec()),
            StoredFunction::Blob { hash, size, keeper } => {
                let brought = self.bring_blob(hash, size, keeper).await;
                let path = brought.map_err(|e| format!("its function: {e}"))?;
                let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
                let read = read.map_err(|e| e.to_string())?;
                Bytes::from(read.map_err(|e| format!("its function: {e}"))?)
            }
        };
        if blake3::hash(&code).as_bytes()[..] != *hash {
            return Err(
                "its function's code, as it is recorded, does not have the hash it should".into(),
            );
        }
        self.functions.put(hash, code);
        Ok(())
    }

    /// Lets a call wait for a worker; one that this node cannot run ends.
    pub(super) fn make_ready(self: &Arc<Self>, job: &str) {
        let stored = self
            .board
            .lock()
            .unwrap()
            .runs
            .get(job)
            .map(|run| run.stored.clone());
        let Some(stored) = stored else { return };
        if let Err((kind, reason)) = self.check_registered(&stored.call) {
            return self.fail_waiting(job, kind, reason);
        }
        if !self.board.lock().unwrap().make_ready(job) {
            let python = stored.call.python.as_deref().unwrap_or("default");
            let reason = format!(
                "node {} has no interpreter '{python}'",
                self.options.node_name
            );
            self.fail_waiting(job, "NotPlaceable", reason);
        }
    }

    /// Gives waiting calls to idle workers, and sees to it that there are workers.
    pub(super) fn start_calls(self: &Arc<Self>) {
        loop {
            let started = {
                let mut board = self.board.lock().unwrap();
                board.next_start().and_then(|(job, worker)| {
                    let run = board.runs.get_mut(&job)?;
                    run.worker = Some(worker.clone());
                    run.began = Some(Instant::now());
                    let actions = run.life.handle(Event::Started, self.now_ms());
                    Some((job, worker, run.stored.clone(), run.origin, actions))
                })
            };
            let Some((job, worker, stored, origin, actions)) = started else {
                break;
            };
            self.stopped.lock().unwrap().begins(&job);
            self.send_run(&job, &worker, &stored);
            self.follow(&job, actions);
            let started = Update::Started {
                node: self.options.node_name.clone(),
                pid: worker.pid,
            };
            self.tell(origin, &job, started);
        }
        self.raise_workers();
    }

    fn send_run(self: &Arc<Self>, job: &str, worker: &Arc<Worker>, stored: &StoredCall) {
        let call = &stored.call;
        let mut segments = Vec::new();
        let mut code = None;
        if let FunctionRef::Hash(hash) = &call.function
            && worker.needs_function(hash)
        {
            // Not in memory any more: the worker says that it lacks it, and the call fails with that.
            code = self.functions.get(hash).map(|bytes| {
                if bytes.len() <= INLINE_BYTES {
                    return Part::Inline(bytes.to_vec().into());
                }
                segments.push(bytes);
                Part::Segment(segments.len() as u32)
            });
        }
        let message = RunMessage::Run {
            job,
            name: &call.name,
            function: &call.function,
            code,
            format: &call.format,
            args: &call.args,
            mountpoint_from: call.mountpoint.as_ref(),
            mountpoint_to: serde_bytes::Bytes::new(&self.mountpoint),
            intermediate_results: call.intermediate_results,
            kept: &call.kept,
            keep: call.keep.as_ref(),
            priority: call.priority,
        };
        worker.send(frames::frame(&message, segments));
    }

    /// Does what a call's life asks for.
    fn follow(self: &Arc<Self>, job: &str, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Signal(signal) => {
                    let worker = self
                        .board
                        .lock()
                        .unwrap()
                        .runs
                        .get(job)
                        .and_then(|run| run.worker.clone());
                    if let Some(worker) = worker {
                        worker.signal(job, signal.into());
                    }
                }
                Action::WakeAt(at_ms) => {
                    let (this, job) = (Arc::downgrade(self), job.to_owned());
                    let wait = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
                    tokio::spawn(async move {
                        tokio::time::sleep(wait).await;
                        if let Some(this) = Weak::upgrade(&this) {
                            this.tick(&job);
                        }
                    });
                }
                Action::End(ending) => self.end_waiting(job, ending),
            }
        }
    }

    fn tick(self: &Arc<Self>, job: &str) {
        let worker = match self.board.lock().unwrap().runs.get(job) {
            Some(run) => run.worker.clone(),
            None => return,
        };
        let has_heard = worker.is_some_and(|worker| worker.has_heard());
        self.happen(
            job,
            match has_heard {
                true => Event::TickHeard,
                false => Event::Tick,
            },
        );
    }

    pub(super) fn happen(self: &Arc<Self>, job: &str, event: Event) {
        let now_ms = self.now_ms();
        let actions = match self.board.lock().unwrap().runs.get_mut(job) {
            Some(run) => run.life.handle(event, now_ms),
            None => return,
        };
        self.follow(job, actions);
    }

    /// Cancels a call that is here. `false`: it is not.
    pub(super) fn cancel_here(self: &Arc<Self>, job: &str) -> bool {
        let is_here = self.board.lock().unwrap().runs.contains_key(job);
        if is_here {
            self.happen(job, Event::CancelAsked);
        }
        is_here
    }

    /// The claim is another node's now: the call is stopped, nothing is told.
    pub(super) fn withdraw(self: &Arc<Self>, job: &str) {
        tracing::warn!(
            job,
            "this node was thought dead, and its claim of a job has been taken: the call is stopped"
        );
        self.happen(job, Event::Withdrawn);
    }

    /// Ends a call that no worker has.
    fn end_waiting(self: &Arc<Self>, job: &str, ending: Ending) {
        let Some(over) = self.take_over(job, None) else {
            return;
        };
        let outcome = self.outcome_of(&over, ending, None, None);
        if let Some(outcome) = outcome {
            self.finish(over, outcome, false);
        }
    }

    /// Ends a call that cannot be run here.
    pub(super) fn fail_waiting(self: &Arc<Self>, job: &str, kind: &str, reason: String) {
        if let Some(over) = self.take_over(job, None) {
            let message = format!("{}: {reason}", over.run.stored.call.name);
            self.finish(over, failed(kind, message), false);
        }
    }

    /// Takes a call off the board, with the report of what it used.
    fn take_over(&self, job: &str, measured: Option<Measured>) -> Option<Over> {
        let run = self.board.lock().unwrap().remove(job)?;
        let measured = measured.unwrap_or_else(|| Measured {
            run_us: run.began.map_or(0, |began| micros(began.elapsed())),
            ..Measured::default()
        });
        let here = run
            .began
            .unwrap_or_else(Instant::now)
            .duration_since(run.since);
        let node = &self.options.node_name;
        let mut report = Report {
            node: node.clone(),
            pid: run.worker.as_ref().map_or(0, |worker| worker.pid),
            why: why_here(&run.stored.why, &run.stored.costs, node),
            costs: run.stored.costs.clone(),
            queued_us: micros(run.waited_before + here),
            run_us: measured.run_us,
            cpu_us: measured.cpu_us,
            phases: Phases {
                claiming_us: micros(run.claiming),
                bringing_us: micros(run.bringing),
                unpickling_us: measured.unpickling_us,
                waiting_us: 0,
                pickling_us: measured.pickling_us,
            },
            ..Report::default()
        };
        let kept_bytes: u64 = run.stored.call.kept.iter().map(|value| value.size).sum();
        report.bytes_local += kept_bytes.saturating_sub(run.brought_bytes);
        report.bytes_fetched += run.brought_bytes;
        if let Some(worker) = &run.worker {
            let used = self.fs.usage().take_used(worker.pid as i32);
            report.phases.waiting_us = micros(used.waited);
            for file in used.files {
                report.bytes_local += file.local_bytes;
                report.bytes_fetched += file.fetched_bytes;
                report.files.push(file.path.as_bytes().to_vec().into());
            }
        }
        Some(Over {
            job: job.to_owned(),
            run,
            report,
        })
    }

    /// What the caller is told; `None`: nothing, the end is another node's.
    fn outcome_of(
        &self,
        over: &Over,
        ending: Ending,
        answer: Option<Outcome>,
        exit: Option<&Exit>,
    ) -> Option<Outcome> {
        let name = &over.run.stored.call.name;
        let node = &self.options.node_name;
        match ending {
            Ending::AsAnswered => answer,
            Ending::Crashed => Some(self.crash(over, exit?)),
            Ending::Cancelled => Some(failed("JobCancelled", format!("{name} was cancelled"))),
            Ending::TimedOut => {
                let seconds = over.run.stored.call.timeout_ms.unwrap_or(0) as f64 / 1000.0;
                let message =
                    format!("{name} ran longer than its time limit of {seconds} s on node {node}");
                Some(failed("JobTimeout", message))
            }
            Ending::OverMemory => Some(self.grew(over, exit)),
            Ending::Withdrawn => None,
        }
    }

    fn grew(&self, over: &Over, exit: Option<&Exit>) -> Outcome {
        let limit = self.options.worker_memory_limit.unwrap_or(0);
        let message = format!(
            "{}: its worker (process {} on node {}) had grown to {} MiB; the limit is {} MiB (--worker-memory-limit)",
            over.run.stored.call.name,
            over.report.pid,
            self.options.node_name,
            over.run.grown_to_bytes >> 20,
            limit >> 20,
        );
        Outcome::Failed {
            kind: "WorkerMemoryExceeded".into(),
            message,
            signal: exit.and_then(|exit| exit.signal),
            exit_code: None,
            stack: None,
        }
    }

    fn crash(&self, over: &Over, exit: &Exit) -> Outcome {
        let name = &over.run.stored.call.name;
        let node = &self.options.node_name;
        if self.stopping.load(Ordering::Relaxed) {
            return failed(
                "NodeLost",
                format!("{name}: node {node} was stopped while it ran"),
            );
        }
        if exit.was_cut_off {
            return failed(
                "WorkerCrashed",
                format!(
                    "{name}: the code of the call closed the socket between its worker (process {} on node {node}) and the node, so nothing of it can be told any more, and the worker was ended: close only descriptors that you opened (os.closerange?)",
                    over.report.pid
                ),
            );
        }
        let how = match (exit.signal, exit.exit_code) {
            _ if exit.was_ended => "was ended by the node, as what it sent made no sense: code of the call, or a process that it forked, has written to the worker's socket".into(),
            (Some(signal), _) => format!("was killed by {}", signal_name(signal)),
            (None, Some(code)) => format!("exited with status {code}"),
            (None, None) => "ended".into(),
        };
        Outcome::Failed {
            kind: "WorkerCrashed".into(),
            message: format!(
                "{name}: its worker (process {} on node {node}) {how}",
                over.report.pid
            ),
            signal: exit.signal,
            exit_code: exit.exit_code,
            stack: exit.stack.clone(),
        }
    }

    /// Tells the end and closes the record.
    fn finish(self: &Arc<Self>, mut over: Over, outcome: Outcome, may_retry: bool) {
        let dropped_bytes = over.run.output.take_dropped();
        if dropped_bytes > 0 && over.run.stored.call.intermediate_results {
            let note = self.output(NOTE_STREAM, &output::note(dropped_bytes));
            self.tell(over.run.origin, &over.job, note);
        }
        let kind = kind_of(&outcome);
        let ended = Update::Ended {
            outcome,
            report: over.report,
        };
        let retry = may_retry && over.run.retries > 0;
        // Told first, recorded behind; but not where the record decides whether this is the end at all.
        let told =
            !retry && self.lease_is_fresh() && self.tell(over.run.origin, &over.job, ended.clone());
        let wrote = over.run.output.into_kept();
        self.closing
            .add(self.closing_of(&over.job, kind, ended, wrote, retry, !told));
        self.refill();
    }

    fn close(&self, job: &str, kind: &'static str, ended: Update, retry: bool, notify: bool) {
        self.closing
            .add(self.closing_of(job, kind, ended, Wrote::default(), retry, notify));
    }

    /// A record's end, to be written.
    pub(super) fn closing_of(
        &self,
        job: &str,
        kind: &'static str,
        ended: Update,
        wrote: Wrote,
        retry: bool,
        notify: bool,
    ) -> Closing {
        let stored = StoredEnd {
            update: ended,
            keeper: self.me().node,
            wrote,
        };
        let finish = Finish {
            job: job.to_owned(),
            kind,
            ended: record::encode(&stored),
            retry,
            notify,
        };
        Closing {
            finish,
            was_told: !notify,
        }
    }

    /// Ends a job that was taken from others: lost with its node, or cancelled while it waited.
    pub(super) fn close_taken(&self, job: &str, kind: &'static str, update: Update, retry: bool) {
        self.close(job, kind, update, retry, true);
    }

    /// Who waits for a job that runs here has changed.
    pub(super) fn redirect(&self, job: &str, origin: NodeId) {
        if let Some(run) = self.board.lock().unwrap().runs.get_mut(job) {
            run.origin = origin;
            run.flow.restart();
        }
    }

    /// An end that is ours, not the call's.
    pub(super) fn failure(&self, kind: &str, message: String) -> Update {
        Update::Ended {
            outcome: failed(kind, message),
            report: Report {
                node: self.options.node_name.clone(),
                ..Report::default()
            },
        }
    }

    pub(super) fn origin_of(&self, job: &str) -> Option<(NodeId, bool)> {
        let board = self.board.lock().unwrap();
        let run = board.runs.get(job)?;
        Some((run.origin, run.stored.call.intermediate_results))
    }

    /// A worker's answer: what the life of its call makes of it.
    pub(super) fn take_answer(self: &Arc<Self>, worker: &Arc<Worker>, answer: Answered) {
        let Answered {
            job,
            mut outcome,
            measured,
            kept: value,
            segments,
        } = answer;
        let actions = {
            let mut board = self.board.lock().unwrap();
            match board.runs.get_mut(&job) {
                Some(run) => {
                    let function = function_key(&run.stored.call.function);
                    let actions = run.life.handle(Event::Answered, 0);
                    let is_typical = lacks(&run.stored.costs, &self.options.node_name).is_none();
                    let whole_us = measured.whole_us();
                    board.took(function, whole_us, worker.was_new_to_it(), is_typical);
                    actions
                }
                None => Vec::new(),
            }
        };
        if let Some(Action::End(ending)) = actions.first() {
            self.stop_inner(&job, *ending);
        }
        let over = self.take_over(&job, Some(measured));
        if worker.state() == crate::worker::state::State::Idle {
            self.board.lock().unwrap().idle(worker);
        }
        self.start_calls();
        let Some(over) = over else { return };
        let Some(Action::End(ending)) = actions.first().copied() else {
            return;
        };
        let is_plain = value.is_none()
            && payload::payload_of(&mut outcome).is_none_or(|payload| payload::is_plain(payload));
        if is_plain || ending != Ending::AsAnswered {
            if let Some(outcome) = self.outcome_of(&over, ending, Some(outcome), None) {
                self.finish(over, outcome, false);
            }
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            let kept = match payload::payload_of(&mut outcome) {
                Some(payload) => this.keep_payload(payload, &segments).await,
                None => Ok(()),
            };
            if let Err(error) = kept {
                let name = &over.run.stored.call.name;
                outcome = failed("PayloadError", format!("{name}: its result: {error}"));
            }
            if let (Some(file), Some(keep)) = (value, &over.run.stored.call.keep)
                && let Err((_, reason)) = this.record_kept(vec![(keep.clone(), file)]).await
            {
                let name = &over.run.stored.call.name;
                outcome = failed("PayloadError", format!("{name}: its result: {reason}"));
            }
            this.finish(over, outcome, false);
        });
    }

    pub(super) fn take_exit(self: &Arc<Self>, worker: &Arc<Worker>, exit: Exit) {
        self.fs.usage().unwatch(worker.pid as i32);
        self.bury_worker(worker, &exit);
        let Some(job) = &exit.job else {
            return self.start_calls();
        };
        let ending = match self.board.lock().unwrap().runs.get_mut(job) {
            Some(run) => match run.life.handle(Event::WorkerDied, 0).first() {
                Some(Action::End(ending)) => *ending,
                _ => return,
            },
            None => return,
        };
        self.stop_inner(job, ending);
        if let Some(over) = self.take_over(job, None)
            && let Some(outcome) = self.outcome_of(&over, ending, None, Some(&exit))
        {
            self.finish(over, outcome, ending == Ending::Crashed);
        }
        self.start_calls();
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

/// An outcome of ours.
pub(super) fn failed(kind: &str, message: String) -> Outcome {
    Outcome::Failed {
        kind: kind.into(),
        message,
        signal: None,
        exit_code: None,
        stack: None,
    }
}

/// The state in which a job's record ends.
fn kind_of(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Returned(_) => "done",
        Outcome::Failed { kind, .. } if kind == "JobCancelled" => "cancelled",
        Outcome::Failed { kind, .. } if kind == "NodeLost" => "lost",
        Outcome::Raised { .. } | Outcome::Failed { .. } => "failed",
    }
}

/// "signal 11 (SIGSEGV)".
fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        libc::SIGKILL => "SIGKILL; out of memory?",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// Whether a call still waits.
pub(super) fn is_waiting(run: &Run) -> bool {
    run.life.state() == State::Waiting
}
