//! Updates on their way to the nodes whose callers wait for them: one stream to each, in order, many at a time.
//!
//! What always holds: nobody who tells waits. What cannot be told here is made up for: an end through the job's record
//! (`Told::No`, or a message through Redis when the stream breaks), output with a note of how much was dropped.
use super::Executor;
use super::callers::dropped_note;
use crate::protocol::Update;
use ks_fs::record::NodeId;
use ks_transport::BoxFuture;
use ks_transport::endpoint::{Handler, StreamKind};
use ks_transport::frame::Stream;
use ks_transport::identity::PeerIdentity;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Updates that wait for one peer.
const QUEUE_UPDATES_MAX: usize = 4_096;
/// Bytes of output that wait for one peer; what is written beyond that is dropped.
const QUEUE_OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Updates in one message.
const BATCH_UPDATES_MAX: usize = 256;
/// Bytes of one message, as read. Updates are at most `INLINE_BYTES` for each part; few are large.
const MESSAGE_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes after which a message is sent though more wait.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// How long a peer may take to accept a message.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// A stream that is not used is closed.
const IDLE: Duration = Duration::from_secs(60);

/// What goes from the executing node to the one whose caller waits.
#[derive(Serialize, Deserialize)]
struct Updates {
    /// Who sends, and keeps the blobs of ends.
    from: NodeId,
    updates: Vec<(String, Update)>,
    /// Bytes of output in all, by job, that the callers' connections have taken.
    credits: Vec<(String, u64)>,
}

/// What waits for a peer.
#[allow(clippy::large_enum_variant)] // nearly all are updates
enum Parcel {
    Update(String, Update),
    Credit(String, u64),
}

/// The streams to all peers.
#[derive(Default)]
pub struct Links {
    links: Mutex<HashMap<NodeId, Link>>,
}

/// One stream's queue.
struct Link {
    send: mpsc::Sender<Parcel>,
    /// Of output, in the queue.
    output_bytes: Arc<AtomicUsize>,
    /// Of output, dropped and not spoken of yet, by job.
    dropped_bytes: HashMap<String, u64>,
}

impl Link {
    fn tell(&mut self, job: &str, update: Update) -> bool {
        let len = output_len(&update);
        if len > 0 && self.output_bytes.load(Ordering::Relaxed) + len > QUEUE_OUTPUT_BYTES_MAX {
            *self.dropped_bytes.entry(job.to_owned()).or_default() += len as u64;
            return true;
        }
        if let Some(dropped) = self.dropped_bytes.remove(job)
            && !self.push(job, dropped_note(dropped, &update))
        {
            self.dropped_bytes.insert(job.to_owned(), dropped);
        }
        let sent = self.push(job, update);
        if !sent && len > 0 {
            *self.dropped_bytes.entry(job.to_owned()).or_default() += len as u64;
        }
        sent
    }

    fn has_room(&self) -> bool {
        let waiting_bytes = self.output_bytes.load(Ordering::Relaxed);
        waiting_bytes < QUEUE_OUTPUT_BYTES_MAX / 2 && self.send.capacity() > QUEUE_UPDATES_MAX / 2
    }

    fn push(&self, job: &str, update: Update) -> bool {
        let len = output_len(&update);
        self.output_bytes.fetch_add(len, Ordering::Relaxed);
        let parcel = Parcel::Update(job.to_owned(), update);
        let sent = self.send.try_send(parcel).is_ok();
        if !sent {
            self.output_bytes.fetch_sub(len, Ordering::Relaxed);
        }
        sent
    }
}

fn output_len(update: &Update) -> usize {
    match update {
        Update::Output { data, .. } => data.len(),
        _ => 0,
    }
}

impl Links {
    /// Whether output may be told to this peer: there are no more updates waiting for it than it takes in a moment.
    pub(super) fn has_room(&self, peer: NodeId) -> bool {
        let links = self.links.lock().unwrap();
        links.get(&peer).is_none_or(Link::has_room)
    }

    /// Output that may not have arrived: what comes next says so.
    fn lost(&self, peer: NodeId, updates: &[(String, Update)]) {
        let mut links = self.links.lock().unwrap();
        let Some(link) = links.get_mut(&peer) else {
            return;
        };
        for (job, update) in updates {
            let len = output_len(update);
            if len > 0 {
                *link.dropped_bytes.entry(job.clone()).or_default() += len as u64;
            }
        }
    }
}

impl Executor {
    /// Tells a call's node how much of its output was taken. One that does not arrive is made up for by the next.
    pub(super) fn give_credit(self: &Arc<Self>, node: NodeId, job: &str, bytes_in_all: u64) {
        if node == self.me().node {
            return self.credit(job, bytes_in_all);
        }
        let mut links = self.links.links.lock().unwrap();
        let link = self.link(&mut links, node);
        let _ = link
            .send
            .try_send(Parcel::Credit(job.to_owned(), bytes_in_all));
    }

    /// Tells the node where a job's caller waits. `false`: it was not taken; an end has to go another way.
    pub(super) fn tell(self: &Arc<Self>, origin: NodeId, job: &str, update: Update) -> bool {
        if origin == self.me().node {
            self.update_caller(job, update, origin);
            return true;
        }
        let mut links = self.links.links.lock().unwrap();
        self.link(&mut links, origin).tell(job, update)
    }

    fn link<'a>(
        self: &Arc<Self>,
        links: &'a mut HashMap<NodeId, Link>,
        peer: NodeId,
    ) -> &'a mut Link {
        links.entry(peer).or_insert_with(|| {
            let (send, receive) = mpsc::channel(QUEUE_UPDATES_MAX);
            let output_bytes = Arc::<AtomicUsize>::default();
            let queue = Queue(receive, output_bytes.clone());
            tokio::spawn(carry(Arc::downgrade(self), peer, queue));
            Link {
                send,
                output_bytes,
                dropped_bytes: HashMap::new(),
            }
        })
    }

    async fn open_link(&self, peer: NodeId) -> Result<Stream, String> {
        let address = self
            .fs
            .catalog()
            .address_of(peer)
            .await
            .map_err(|e| e.to_string())?;
        let address = address.ok_or("it is gone")?;
        self.pool
            .peer(&address)
            .open(StreamKind::CALLS)
            .await
            .map_err(|e| e.to_string())
    }

    /// Ends that may not have arrived are announced through Redis; their records tell the rest.
    async fn announce_ends(&self, origin: NodeId, batch: &[(String, Update)]) {
        let mut pipeline = redis::pipe();
        for (job, update) in batch {
            if matches!(update, Update::Ended { .. }) {
                pipeline
                    .cmd("PUBLISH")
                    .arg(format!("ks:wake:{origin}"))
                    .arg(format!("e{job}"));
            }
        }
        if let Err(error) = self.queue.redis().pipe(&pipeline).await {
            tracing::debug!(%error, %origin, "ends cannot be announced; their caller's node will find them");
        }
    }
}

/// The taking end of a link's queue.
struct Queue(mpsc::Receiver<Parcel>, Arc<AtomicUsize>);

impl Queue {
    async fn next(&mut self) -> Option<Parcel> {
        let next = self.0.recv().await;
        next.inspect(|next| self.taken(next))
    }

    fn next_now(&mut self) -> Option<Parcel> {
        let next = self.0.try_recv().ok();
        next.inspect(|next| self.taken(next))
    }

    fn taken(&self, next: &Parcel) {
        if let Parcel::Update(_, update) = next {
            self.1.fetch_sub(output_len(update), Ordering::Relaxed);
        }
    }
}

/// Carries updates to one peer for as long as this node runs.
async fn carry(executor: Weak<Executor>, peer: NodeId, mut updates: Queue) {
    let mut stream: Option<Stream> = None;
    loop {
        let first = match tokio::time::timeout(IDLE, updates.next()).await {
            Ok(Some(first)) => first,
            Ok(None) => break,
            Err(_) => {
                close(stream.take());
                continue;
            }
        };
        let Some(executor) = executor.upgrade() else {
            break;
        };
        let batch = gather(first, &mut updates);
        if let Err((reason, batch)) = send(&executor, peer, &mut stream, batch).await {
            tracing::debug!(%peer, reason, "updates of calls cannot be sent");
            stream = None;
            executor.links.lost(peer, &batch);
            executor.announce_ends(peer, &batch).await;
        }
    }
    close(stream);
}

fn close(stream: Option<Stream>) {
    if let Some(mut stream) = stream {
        let _ = stream.send.finish();
    }
}

/// What goes in one message.
#[derive(Default)]
struct Batch {
    updates: Vec<(String, Update)>,
    credits: Vec<(String, u64)>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, parcel: Parcel) {
        match parcel {
            Parcel::Update(job, update) => {
                self.bytes += size(&update);
                self.updates.push((job, update));
            }
            Parcel::Credit(job, bytes) => self.credits.push((job, bytes)),
        }
    }

    fn is_full(&self) -> bool {
        self.updates.len() + self.credits.len() >= BATCH_UPDATES_MAX || self.bytes >= BATCH_BYTES
    }
}

fn gather(first: Parcel, parcels: &mut Queue) -> Batch {
    let mut batch = Batch::default();
    batch.add(first);
    while !batch.is_full()
        && let Some(next) = parcels.next_now()
    {
        batch.add(next);
    }
    batch
}

/// About how many bytes an update has.
fn size(update: &Update) -> usize {
    match update {
        Update::Output { data, .. } => data.len(),
        Update::Ended { .. } => 4096,
        _ => 256,
    }
}

type Failed = (String, Vec<(String, Update)>);

async fn send(
    executor: &Executor,
    peer: NodeId,
    stream: &mut Option<Stream>,
    batch: Batch,
) -> Result<(), Failed> {
    let message = Updates {
        from: executor.me().node,
        updates: batch.updates,
        credits: batch.credits,
    };
    let attempt = async {
        if stream.is_none() {
            *stream = Some(executor.open_link(peer).await?);
        }
        let open = stream.as_mut().expect("it was just opened");
        open.write(&message).await.map_err(|e| e.to_string())
    };
    match tokio::time::timeout(SEND_DEADLINE, attempt).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err((reason, message.updates)),
        Err(_) => Err((
            format!("not accepted within {SEND_DEADLINE:?}"),
            message.updates,
        )),
    }
}

/// Takes updates from peers.
pub(super) struct UpdatesHandler(pub(super) Weak<Executor>);

impl Handler for UpdatesHandler {
    fn handle(&self, peer: Arc<PeerIdentity>, mut stream: Stream) -> BoxFuture<'static, ()> {
        let executor = self.0.clone();
        Box::pin(async move {
            loop {
                let message = stream.read::<Updates>(MESSAGE_BYTES_MAX).await;
                let Some(executor) = executor.upgrade() else {
                    return;
                };
                match message {
                    Ok(Some(message)) => {
                        for (job, update) in message.updates {
                            executor.update_caller(&job, update, message.from);
                        }
                        for (job, bytes) in message.credits {
                            executor.credit(&job, bytes);
                        }
                    }
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(peer = peer.name, %error, "a stream of updates ended");
                        // What was under way may be lost: the records know.
                        executor.look_soon.notify_one();
                        return;
                    }
                }
            }
        })
    }
}
