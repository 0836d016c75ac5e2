//! Who waits for which job at this node, and how updates reach them.
//!
//! What always holds: everybody who asked for a job hears of its end once; ends are never dropped, output is when a caller does
//! not read (with a note of how much); `Started` is held back for a moment, and left out where the end follows at once. What a
//! job prints is seen by all who wait for it, and held up for the one who asked last.
use super::flow::{Inflow, PATIENCE_MS};
use super::learned::Lesson;
use super::{Executor, payload};
use crate::frames;
use crate::outlet::Outlet;
use crate::protocol::{NOTE_STREAM, Outcome, Part, Tell, Update};
use crate::queue::record::StoredEnd;
use bytes::Bytes;
use ks_fs::record::NodeId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Jobs that callers of this node wait for; more are refused.
pub const WATCHED_MAX: usize = 1_000_000;
/// Room for so many is kept when they have ended; that of more goes back.
const WATCHED_KEPT: usize = 4096;
/// Bytes that wait for a caller who does not read; then ends are told later.
pub const PENDING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that wait for a caller who does not read; then output is dropped. Calls are held up long before (`ROOM_BYTES`): this is
/// for the output of many that is under way by then.
pub const PENDING_OUTPUT_BYTES_MAX: usize = 4 * PENDING_BYTES_MAX;
/// A caller for whom fewer bytes wait has room for output.
const ROOM_BYTES: usize = 2 * 1024 * 1024;
/// Time between two looks whether a caller who did not read has room.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Late ends that are told at a time.
const LATE_JOBS: usize = 128;
/// How long `Started`, and the answer to a submission of few calls, are held back: they go with what follows, or not at all.
const HOLD: Duration = Duration::from_millis(3);
/// Frames are joined into one write up to this size.
const JOINED_BYTES_MAX: usize = 64 * 1024;

/// A client's connection, as far as updates go.
pub struct Audience {
    /// Tells connections apart.
    pub number: u64,
    /// Where frames leave.
    pub outlet: Outlet,
    /// The client is on this machine and opens files itself.
    pub is_local: bool,
    /// Bytes of output that were dropped and not spoken of yet.
    dropped_bytes: AtomicU64,
    /// What goes with the next frame.
    held: Mutex<Vec<Bytes>>,
    /// Ends that are read from their records once there is room for them.
    late: Mutex<Vec<String>>,
    /// Somebody looks when there is room, to give credit.
    looks_for_room: AtomicBool,
    /// Since when there was no room, whenever it was looked for.
    full_since: Mutex<Option<Instant>>,
}

impl Audience {
    /// Of a connection.
    pub fn new(outlet: Outlet, is_local: bool) -> Arc<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            outlet,
            is_local,
            dropped_bytes: AtomicU64::new(0),
            held: Mutex::default(),
            late: Mutex::default(),
            looks_for_room: AtomicBool::new(false),
            full_since: Mutex::default(),
        })
    }

    /// Says something, without payloads.
    pub fn tell(&self, tell: &Tell) -> bool {
        self.send(frames::frame(tell, Vec::new()))
    }

    /// Sends a frame, and before it what was held back.
    fn send(&self, mut chunks: Vec<Bytes>) -> bool {
        let mut held = self.held.lock().unwrap();
        if !held.is_empty() {
            held.append(&mut chunks);
            chunks = std::mem::take(&mut *held);
            if chunks.iter().map(Bytes::len).sum::<usize>() <= JOINED_BYTES_MAX {
                chunks = vec![Bytes::from(chunks.concat())];
            }
        }
        self.outlet.send(chunks)
    }

    /// Sends what was held back.
    fn release(&self) {
        if !self.held.lock().unwrap().is_empty() {
            self.send(Vec::new());
        }
    }

    /// Whether the caller takes more output.
    fn has_room(&self) -> bool {
        let has_room = self.outlet.pending_bytes() < ROOM_BYTES;
        let mut full_since = self.full_since.lock().unwrap();
        match has_room {
            true => *full_since = None,
            false => {
                full_since.get_or_insert_with(Instant::now);
            }
        }
        has_room
    }

    /// Whether the caller does not read at all: nobody waits for it any more.
    fn is_deaf(&self) -> bool {
        let full_since = *self.full_since.lock().unwrap();
        let patience = Duration::from_millis(PATIENCE_MS);
        full_since.is_some_and(|since| since.elapsed() >= patience) && !self.has_room()
    }

    /// Passes on output, unless the caller is too slow.
    fn output(&self, job: &str, update: Update) {
        if self.outlet.pending_bytes() > PENDING_OUTPUT_BYTES_MAX {
            if let Update::Output { data, .. } = &update {
                self.dropped_bytes
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            return;
        }
        self.confess(job, &update);
        self.tell(&Tell::Update {
            job: job.to_owned(),
            update,
        });
    }

    /// Says how much was dropped, once there is room again.
    fn confess(&self, job: &str, next: &Update) {
        let dropped = self.dropped_bytes.swap(0, Ordering::Relaxed);
        if dropped == 0 {
            return;
        }
        self.tell(&Tell::Update {
            job: job.to_owned(),
            update: dropped_note(dropped, next),
        });
    }
}

/// What a caller is told of output that it will not see, before `next` of the same job.
pub(super) fn dropped_note(bytes: u64, next: &Update) -> Update {
    let node = match next {
        Update::Output { node, .. } | Update::Log { node, .. } => node.clone(),
        Update::Ended { report, .. } => report.node.clone(),
        Update::Started { node, .. } => node.clone(),
    };
    let note =
        format!("[kitchensink: {bytes} bytes of output were dropped, as they were not read]\n");
    Update::Output {
        node,
        stream: NOTE_STREAM,
        data: note.into_bytes().into(),
    }
}

/// A job that is waited for.
struct Watched {
    /// Who asked last.
    audience: Arc<Audience>,
    /// Who asked before, on other connections.
    others: Vec<Arc<Audience>>,
    started: Option<Update>,
    since: Instant,
    /// It has a record; before, there is nothing to look at.
    is_recorded: bool,
    /// What it opens is to be remembered under this.
    learn: Option<Box<Lesson>>,
    /// Of output that came from another node, and which that was.
    inflow: Inflow,
    runs_on: Option<NodeId>,
}

impl Watched {
    fn by(audience: Arc<Audience>) -> Self {
        Self {
            audience,
            others: Vec::new(),
            started: None,
            since: Instant::now(),
            is_recorded: false,
            learn: None,
            inflow: Inflow::default(),
            runs_on: None,
        }
    }

    /// All who wait, the one who asked last at the end.
    fn all(&self) -> Vec<Arc<Audience>> {
        let all = self.others.iter().chain([&self.audience]);
        all.cloned().collect()
    }

    /// One more asks, or the same again.
    fn join(&mut self, audience: &Arc<Audience>) {
        if self.audience.number == audience.number {
            return;
        }
        self.others.retain(|one| one.number != audience.number);
        let before = std::mem::replace(&mut self.audience, audience.clone());
        self.others.push(before);
    }

    /// A connection is gone. `false`: nobody is left who waits.
    fn leave(&mut self, audience: &Audience) -> bool {
        self.others.retain(|one| one.number != audience.number);
        if self.audience.number != audience.number {
            return true;
        }
        match self.others.pop() {
            Some(other) => {
                self.audience = other;
                true
            }
            None => false,
        }
    }
}

/// Something held back.
enum Held {
    /// A job's `Started`.
    Started(String),
    /// An answer.
    Answer(Arc<Audience>),
}

/// All who wait.
#[derive(Default)]
pub struct Callers {
    watched: Mutex<HashMap<String, Watched>>,
    /// What is held back.
    held: Mutex<Vec<Held>>,
    flushing: AtomicBool,
}

impl Callers {
    /// From now on `audience` is told of these jobs. `false`: too many are waited for.
    pub fn watch<'a>(
        &self,
        jobs: impl ExactSizeIterator<Item = &'a String>,
        audience: &Arc<Audience>,
    ) -> bool {
        let mut watched = self.watched.lock().unwrap();
        if watched.len() + jobs.len() > WATCHED_MAX {
            return false;
        }
        for job in jobs {
            match watched.get_mut(job) {
                Some(entry) => entry.join(audience),
                None => {
                    watched.insert(job.clone(), Watched::by(audience.clone()));
                }
            }
        }
        true
    }

    /// What this job opens is to be remembered under `lesson`.
    pub(super) fn learn_from(&self, job: &str, lesson: Lesson) {
        if let Some(entry) = self.watched.lock().unwrap().get_mut(job) {
            entry.learn = Some(Box::new(lesson));
        }
    }

    /// These jobs have records now.
    pub fn recorded<'a>(&self, jobs: impl Iterator<Item = &'a String>) {
        let mut watched = self.watched.lock().unwrap();
        for job in jobs {
            if let Some(entry) = watched.get_mut(job) {
                entry.is_recorded = true;
            }
        }
    }

    /// Those of these jobs that have no record were not accepted after all: `audience` waits for them no longer. Returns which.
    pub fn unwatch<'a>(
        &self,
        jobs: impl Iterator<Item = &'a String>,
        audience: &Audience,
    ) -> Vec<String> {
        let mut watched = self.watched.lock().unwrap();
        let mut refused = Vec::new();
        for job in jobs {
            let Some(entry) = watched.get_mut(job).filter(|entry| !entry.is_recorded) else {
                continue;
            };
            if !entry.leave(audience) {
                watched.remove(job);
            }
            refused.push(job.clone());
        }
        refused
    }

    /// A connection is gone: its jobs go on, their ends stay in their records. Returns those that run elsewhere, and where.
    fn leave(&self, audience: &Audience) -> Vec<(String, NodeId)> {
        let mut watched = self.watched.lock().unwrap();
        let gone = watched.extract_if(|_, entry| !entry.leave(audience));
        let elsewhere = gone.filter_map(|(job, entry)| Some((job, entry.runs_on?)));
        let elsewhere = elsewhere.collect();
        give_back(&mut watched);
        elsewhere
    }

    /// Whether the caller of a job that runs here takes more output; one that nobody waits for does.
    pub(super) fn has_room(&self, job: &str) -> bool {
        let watched = self.watched.lock().unwrap();
        watched
            .get(job)
            .is_none_or(|entry| entry.audience.has_room())
    }

    /// Whether the caller of a job that runs here has not read for so long that its calls are not held up for it.
    pub(super) fn is_deaf(&self, job: &str) -> bool {
        let watched = self.watched.lock().unwrap();
        watched
            .get(job)
            .is_some_and(|entry| entry.audience.is_deaf())
    }

    /// Output of a job came from another node: the credit to give now, if any, and whether it is due later.
    fn came(&self, job: &str, from: NodeId, bytes: usize) -> (Option<u64>, bool) {
        let mut watched = self.watched.lock().unwrap();
        let Some(entry) = watched.get_mut(job) else {
            return (Some(u64::MAX), false);
        };
        entry.runs_on = Some(from);
        entry.inflow.came(bytes as u64);
        let credit = entry.inflow.credit(entry.audience.has_room());
        (credit, entry.inflow.owes())
    }

    /// The credit that is due to the jobs of a connection that has room: job, node, bytes in all.
    fn due(&self, audience: &Audience) -> Vec<(String, NodeId, u64)> {
        let mut watched = self.watched.lock().unwrap();
        let its = watched
            .iter_mut()
            .filter(|(_, entry)| entry.audience.number == audience.number);
        its.filter_map(|(job, entry)| {
            Some((job.clone(), entry.runs_on?, entry.inflow.credit(true)?))
        })
        .collect()
    }

    /// How many jobs are waited for.
    pub fn count(&self) -> usize {
        self.watched.lock().unwrap().len()
    }

    /// Jobs with a record that have been waited for longer than `age`, at most `limit`.
    pub fn older_than(&self, age: Duration, limit: usize) -> Vec<String> {
        let watched = self.watched.lock().unwrap();
        let old = watched
            .iter()
            .filter(|(_, entry)| entry.is_recorded && entry.since.elapsed() >= age);
        old.map(|(job, _)| job.clone()).take(limit).collect()
    }

    /// They were looked at: they come last the next time.
    pub fn looked_at(&self, jobs: &[String]) {
        let mut watched = self.watched.lock().unwrap();
        for job in jobs {
            if let Some(entry) = watched.get_mut(job) {
                entry.since = Instant::now();
            }
        }
    }

    /// Takes those who wait for the end.
    fn take(&self, job: &str) -> Option<Watched> {
        let mut watched = self.watched.lock().unwrap();
        let entry = watched.remove(job);
        give_back(&mut watched);
        entry
    }

    /// Who is to be told of something before the end, the one who asked last at the end; and the `Started` that was held back
    /// until now.
    fn find(&self, job: &str) -> Option<(Vec<Arc<Audience>>, Option<Update>)> {
        let mut watched = self.watched.lock().unwrap();
        let entry = watched.get_mut(job)?;
        Some((entry.all(), entry.started.take()))
    }

    /// Holds `Started` back. `true`: somebody has to `flush` soon.
    fn hold_started(&self, job: &str, update: Update) -> bool {
        let mut watched = self.watched.lock().unwrap();
        let Some(entry) = watched.get_mut(job) else {
            return false;
        };
        entry.started = Some(update);
        drop(watched);
        self.hold(Held::Started(job.to_owned()))
    }

    fn hold(&self, held: Held) -> bool {
        self.held.lock().unwrap().push(held);
        !self.flushing.swap(true, Ordering::AcqRel)
    }

    /// Tells what was held back and has not gone with something else.
    fn flush(&self) {
        self.flushing.store(false, Ordering::Release);
        let held = std::mem::take(&mut *self.held.lock().unwrap());
        for held in held {
            match held {
                Held::Started(job) => {
                    if let Some((all, Some(update))) = self.find(&job) {
                        let tell = Tell::Update { job, update };
                        for audience in all {
                            audience.tell(&tell);
                        }
                    }
                }
                Held::Answer(audience) => audience.release(),
            }
        }
    }
}

/// Gives back the room that many jobs took, once most of them have ended; so seldom that it costs each of them next to nothing.
fn give_back(watched: &mut HashMap<String, Watched>) {
    if watched.capacity() > WATCHED_KEPT && watched.len() < watched.capacity() / 8 {
        watched.shrink_to((2 * watched.len()).max(WATCHED_KEPT / 2));
        ks_transport::memory::release_at_rest();
    }
}

impl Executor {
    /// Something happened to a job whose caller is (or was) at this node. `keeper`: who has the blobs of its end.
    pub(super) fn update_caller(self: &Arc<Self>, job: &str, update: Update, keeper: NodeId) {
        match update {
            Update::Started { .. } => {
                if self.callers.hold_started(job, update) {
                    self.flush_soon();
                }
            }
            Update::Output { .. } | Update::Log { .. } => {
                let bytes = match &update {
                    Update::Output { data, .. } => data.len(),
                    _ => 0,
                };
                if let Some((all, started)) = self.callers.find(job) {
                    for audience in &all {
                        if let Some(update) = started.clone() {
                            let job = job.to_owned();
                            audience.tell(&Tell::Update { job, update });
                        }
                        audience.output(job, update.clone());
                    }
                    if let Some(last) = all.last()
                        && bytes > 0
                        && keeper != self.me().node
                    {
                        self.acknowledge(last, job, keeper, bytes);
                    }
                } else if bytes > 0 && keeper != self.me().node {
                    self.give_credit(keeper, job, u64::MAX);
                }
            }
            ended @ Update::Ended { .. } => {
                if let Some(entry) = self.callers.take(job) {
                    // One that failed may not have come to open what it opens.
                    if let (
                        Some(lesson),
                        Update::Ended {
                            outcome: Outcome::Returned(_),
                            report,
                        },
                    ) = (&entry.learn, &ended)
                    {
                        self.learned.note(lesson, &report.files);
                    }
                    for audience in entry.all() {
                        self.end_for(audience, job, ended.clone(), keeper);
                    }
                }
            }
        }
    }

    /// Gives credit for output that came, now or when the caller has room.
    fn acknowledge(
        self: &Arc<Self>,
        audience: &Arc<Audience>,
        job: &str,
        from: NodeId,
        bytes: usize,
    ) {
        let (credit, is_due_later) = self.callers.came(job, from, bytes);
        if let Some(credit) = credit {
            self.give_credit(from, job, credit);
        }
        if is_due_later && !audience.looks_for_room.swap(true, Ordering::AcqRel) {
            tokio::spawn(look_for_room(Arc::downgrade(self), audience.clone()));
        }
    }

    /// A connection is gone: nobody holds up what its jobs write elsewhere.
    pub(crate) fn leave(self: &Arc<Self>, audience: &Audience) {
        for (job, node) in self.callers.leave(audience) {
            self.give_credit(node, &job, u64::MAX);
        }
    }

    /// Answers a moment later, together with what follows.
    pub(crate) fn answer_soon(self: &Arc<Self>, audience: &Arc<Audience>, tell: &Tell) {
        let mut frame = frames::frame(tell, Vec::new());
        audience.held.lock().unwrap().append(&mut frame);
        if self.callers.hold(Held::Answer(audience.clone())) {
            self.flush_soon();
        }
    }

    fn flush_soon(self: &Arc<Self>) {
        let this = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD).await;
            if let Some(this) = this.upgrade() {
                this.callers.flush();
            }
        });
    }

    /// Tells a caller of the end, its payload brought to where the caller can have it.
    fn end_for(
        self: &Arc<Self>,
        audience: Arc<Audience>,
        job: &str,
        mut ended: Update,
        keeper: NodeId,
    ) {
        if audience.outlet.pending_bytes() > PENDING_BYTES_MAX {
            return self.end_later(audience, job);
        }
        audience.confess(job, &ended);
        let Update::Ended { outcome, .. } = &mut ended else {
            return;
        };
        let has_blobs = payload::payload_of(outcome).is_some_and(|payload| {
            payload
                .parts
                .iter()
                .any(|part| matches!(part, Part::Blob { .. }))
        });
        if !has_blobs {
            audience.tell(&Tell::Update {
                job: job.to_owned(),
                update: ended,
            });
            return;
        }
        let (this, job) = (self.clone(), job.to_owned());
        tokio::spawn(async move {
            let segments = match this
                .end_payload(&mut ended, keeper, audience.is_local)
                .await
            {
                Ok(segments) => segments,
                Err(error) => {
                    lost_result(&mut ended, &error.to_string());
                    Vec::new()
                }
            };
            audience.send(frames::frame(
                &Tell::Update { job, update: ended },
                segments,
            ));
        });
    }

    /// The caller does not read now: its job's record keeps the end until there is room.
    fn end_later(self: &Arc<Self>, audience: Arc<Audience>, job: &str) {
        let is_first = {
            let mut late = audience.late.lock().unwrap();
            late.push(job.to_owned());
            late.len() == 1
        };
        if is_first {
            tokio::spawn(catch_up(Arc::downgrade(self), audience));
        }
    }

    async fn end_payload(
        &self,
        ended: &mut Update,
        keeper: NodeId,
        is_local: bool,
    ) -> Result<Vec<bytes::Bytes>, payload::PayloadError> {
        let Update::Ended { outcome, .. } = ended else {
            return Ok(Vec::new());
        };
        let Some(payload) = payload::payload_of(outcome) else {
            return Ok(Vec::new());
        };
        self.bring_payload(payload, keeper).await?;
        match is_local {
            true => Ok(Vec::new()),
            false => self.read_payload(payload).await,
        }
    }

    /// A record says how a job ended.
    pub(super) fn end_from_record(self: &Arc<Self>, job: &str, ended: &[u8]) {
        match crate::queue::record::decode::<StoredEnd>(ended) {
            Ok(end) => self.update_caller(job, end.update, end.keeper),
            Err(error) => {
                tracing::error!(job, %error, "a job's end cannot be read");
                let update = self.failure(
                    "NodeLost",
                    format!("job {job}: its end cannot be read: {error}"),
                );
                self.update_caller(job, update, self.me().node);
            }
        }
    }

    /// Looks how jobs stand that may have ended without our hearing of it.
    pub(super) async fn look_after(self: &Arc<Self>, jobs: &[String]) {
        use crate::queue::Standing;
        for batch in jobs.chunks(crate::queue::BATCH_JOBS_MAX) {
            let standings = match self.queue.standing(batch).await {
                Ok(standings) => standings,
                Err(error) => return tracing::debug!(%error, "how jobs stand cannot be asked now"),
            };
            self.callers.looked_at(batch);
            for (job, standing) in batch.iter().zip(standings) {
                match standing {
                    Standing::Ended(ended) => self.end_from_record(job, &ended),
                    Standing::Going => {}
                    Standing::Unknown => {
                        let message = format!("job {job}: its record is gone (was Redis emptied?)");
                        let update = self.failure("NodeLost", message);
                        self.update_caller(job, update, self.me().node);
                    }
                }
            }
        }
    }
}

/// Gives credit as soon as the caller has room, or is gone.
async fn look_for_room(executor: Weak<Executor>, audience: Arc<Audience>) {
    while !audience.has_room() && !audience.outlet.is_broken() {
        tokio::time::sleep(CATCH_UP).await;
    }
    audience.looks_for_room.store(false, Ordering::Release);
    if let Some(executor) = executor.upgrade() {
        for (job, node, credit) in executor.callers.due(&audience) {
            executor.give_credit(node, &job, credit);
        }
    }
}

/// Tells late ends as the caller makes room, until there are none or the caller is gone.
async fn catch_up(executor: Weak<Executor>, audience: Arc<Audience>) {
    let mut started = 0;
    loop {
        tokio::time::sleep(CATCH_UP).await;
        let Some(executor) = executor.upgrade() else {
            return;
        };
        if audience.outlet.is_broken() {
            return;
        }
        if audience.outlet.pending_bytes() > PENDING_BYTES_MAX / 2 {
            continue;
        }
        let jobs: Vec<String> = {
            let mut late = audience.late.lock().unwrap();
            // Those told in the last round stay until now, so that nobody starts a second task meanwhile.
            late.drain(..started);
            if late.is_empty() {
                return;
            }
            late.iter().take(LATE_JOBS).cloned().collect()
        };
        started = jobs.len();
        if executor.callers.watch(jobs.iter(), &audience) {
            executor.callers.recorded(jobs.iter());
            // One whose record is not closed yet is found by a later look.
            executor.look_after(&jobs).await;
        } else {
            started = 0;
        }
    }
}

/// The call ended, but its result cannot be had any more.
fn lost_result(ended: &mut Update, reason: &str) {
    if let Update::Ended { outcome, .. } = ended {
        *outcome = Outcome::Failed {
            kind: "NodeLost".into(),
            message: format!("the call ended, but its result cannot be had: {reason}"),
            signal: None,
            exit_code: None,
            stack: None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audience() -> Arc<Audience> {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (_, writer) = ks_transport::quiet::halves(ours).unwrap();
        Audience::new(Outlet::unix(writer), true)
    }

    #[tokio::test]
    async fn who_was_not_accepted_leaves_the_others_waiting() {
        let callers = Callers::default();
        let (first, second) = (audience(), audience());
        let jobs = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        assert!(callers.watch(jobs.iter(), &first));
        assert!(callers.watch(jobs[..1].iter(), &second));
        callers.recorded(jobs[2..].iter());
        assert_eq!(callers.unwatch(jobs.iter(), &first), jobs[..2]);
        let waiting = |job: &str| {
            let all = callers.find(job).map(|(all, _)| all).unwrap_or_default();
            all.iter().map(|one| one.number).collect::<Vec<_>>()
        };
        assert_eq!(waiting("a"), [second.number]);
        assert!(waiting("b").is_empty());
        // What has a record goes on, and its end is told.
        assert_eq!(waiting("c"), [first.number]);
        assert_eq!(callers.unwatch(jobs.iter(), &second), jobs[..1]);
        assert_eq!(callers.count(), 1);
    }

    #[tokio::test]
    async fn the_room_of_many_jobs_is_given_back() {
        let callers = Callers::default();
        let audience = audience();
        let jobs: Vec<String> = (0..100_000).map(|job| job.to_string()).collect();
        assert!(callers.watch(jobs.iter(), &audience));
        assert!(jobs[..99_000].iter().all(|job| callers.take(job).is_some()));
        let room = || callers.watched.lock().unwrap().capacity();
        assert!(room() < 10_000, "{}", room());
        assert!(jobs[99_000..].iter().all(|job| callers.find(job).is_some()));
        callers.leave(&audience);
        assert!(callers.count() == 0 && room() <= WATCHED_KEPT);
    }
}
