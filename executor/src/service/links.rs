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
}

/// The streams to all peers.
#[derive(Default)]
pub struct Links {
    links: Mutex<HashMap<NodeId, Link>>,
}

/// One stream's queue.
struct Link {
    send: mpsc::Sender<(String, Update)>,
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
        self.push(job, update)
    }

    fn push(&self, job: &str, update: Update) -> bool {
        let len = output_len(&update);
        self.output_bytes.fetch_add(len, Ordering::Relaxed);
        let sent = self.send.try_send((job.to_owned(), update)).is_ok();
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

impl Executor {
    /// Tells the node where a job's caller waits. `false`: it was not taken; an end has to go another way.
    pub(super) fn tell(self: &Arc<Self>, origin: NodeId, job: &str, update: Update) -> bool {
        if origin == self.me().node {
            self.update_caller(job, update, origin);
            return true;
        }
        let mut links = self.links.links.lock().unwrap();
        let link = links.entry(origin).or_insert_with(|| {
            let (send, receive) = mpsc::channel(QUEUE_UPDATES_MAX);
            let output_bytes = Arc::<AtomicUsize>::default();
            let queue = Queue(receive, output_bytes.clone());
            tokio::spawn(carry(Arc::downgrade(self), origin, queue));
            Link {
                send,
                output_bytes,
                dropped_bytes: HashMap::new(),
            }
        });
        link.tell(job, update)
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
struct Queue(mpsc::Receiver<(String, Update)>, Arc<AtomicUsize>);

impl Queue {
    async fn next(&mut self) -> Option<(String, Update)> {
        let next = self.0.recv().await;
        next.inspect(|next| self.taken(next))
    }

    fn next_now(&mut self) -> Option<(String, Update)> {
        let next = self.0.try_recv().ok();
        next.inspect(|next| self.taken(next))
    }

    fn taken(&self, next: &(String, Update)) {
        self.1.fetch_sub(output_len(&next.1), Ordering::Relaxed);
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

fn gather(first: (String, Update), updates: &mut Queue) -> Vec<(String, Update)> {
    let mut bytes = size(&first.1);
    let mut batch = vec![first];
    while batch.len() < BATCH_UPDATES_MAX && bytes < BATCH_BYTES {
        match updates.next_now() {
            Some(next) => {
                bytes += size(&next.1);
                batch.push(next);
            }
            None => break,
        }
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
    updates: Vec<(String, Update)>,
) -> Result<(), Failed> {
    let message = Updates {
        from: executor.me().node,
        updates,
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
