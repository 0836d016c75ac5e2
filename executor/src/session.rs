//! One client's connection: asks and tells (`protocol`). On the control socket (unix) and on QUIC streams alike.
//!
//! What always holds: a frame that is too long or nonsense ends this connection and nothing else; jobs go on when their
//! client's connection is gone (but for those that are tied to it); a client that does not read costs a bounded amount of memory beside the ends of its jobs.
use crate::frames::{self, Decoder};
use crate::outlet::Outlet;
use crate::protocol::{Answer, Ask, JobId, Request, Tell, VERSION};
use crate::service::Executor;
use crate::service::callers::Audience;
use bytes::Bytes;
use ks_transport::BoxFuture;
use ks_transport::endpoint::Handler;
use ks_transport::frame::Stream;
use ks_transport::identity::{PeerIdentity, Role};
use ks_transport::quiet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};

mod answers;
mod copies;

/// Questions of one client that are worked on at once; it is not read from while there are more.
const QUESTIONS_MAX: usize = 64;
/// So few calls may have ended before their client would have read that they were accepted: the answer waits for the first end, for a moment.
const FEW_CALLS: usize = 4;
/// Jobs that are tied to one session at most.
const TIED_MAX: usize = 10_000;
/// Connections to the control socket at once.
const SESSIONS_MAX: usize = 4_096;
/// A client has to introduce itself within this.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// What a session needs of the node beside the executor (implemented by `node`).
pub trait NodeFacts: Send + Sync + 'static {
    /// `ks status`.
    fn status(&self) -> BoxFuture<'_, serde_json::Value>;
    /// Ends the node in order.
    fn shutdown(&self);
}

/// Accepts sessions on the control socket (mode 0600; a stale one is replaced) until dropped.
pub struct ControlSocket {
    path: PathBuf,
    listener: tokio::task::JoinHandle<()>,
}

impl ControlSocket {
    /// Binds it. Who may open it may do everything: so only its owner may.
    pub fn bind(
        path: &Path,
        executor: Arc<Executor>,
        facts: Arc<dyn NodeFacts>,
    ) -> std::io::Result<Self> {
        // A second one would be another node on this data directory, whose lock keeps it out before it comes here.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Bound under a name that nobody looks for, and renamed when its mode is right.
        let hidden = path.with_extension(format!("new-{}", std::process::id()));
        let _ = std::fs::remove_file(&hidden);
        let listener = UnixListener::bind(&hidden)?;
        std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&hidden, path)?;
        let _ = executor.facts.set(facts);
        let listener = tokio::spawn(accept(listener, Arc::downgrade(&executor)));
        Ok(Self {
            path: path.to_owned(),
            listener,
        })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.listener.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, executor: Weak<Executor>) {
    let room = Arc::new(Semaphore::new(SESSIONS_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket does not accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(executor) = executor.upgrade() else {
            return;
        };
        tokio::spawn(async move {
            let (reader, writer) = match stream.into_std().and_then(quiet::halves) {
                Ok(halves) => halves,
                Err(error) => return tracing::warn!(%error, "a session cannot begin"),
            };
            let audience = Audience::new(Outlet::unix(writer), true);
            serve(executor, reader, audience, Rights { may_end: true }).await;
            drop(permit);
        });
    }
}

/// Sessions on QUIC streams.
pub(crate) struct SessionHandler(Weak<Executor>);

impl SessionHandler {
    pub(crate) fn new(executor: &Arc<Executor>) -> Self {
        Self(Arc::downgrade(executor))
    }
}

impl Handler for SessionHandler {
    fn open_to_clients(&self) -> bool {
        true
    }

    fn handle(&self, peer: Arc<PeerIdentity>, stream: Stream) -> BoxFuture<'static, ()> {
        let executor = self.0.clone();
        Box::pin(async move {
            let Some(executor) = executor.upgrade() else {
                return;
            };
            let audience = Audience::new(Outlet::stream(stream.send), false);
            let rights = Rights {
                may_end: peer.role == Role::Node,
            };
            serve(executor, stream.recv, audience, rights).await;
        })
    }
}

/// What a client may do beside calling and reading.
#[derive(Clone, Copy)]
struct Rights {
    /// End the node.
    may_end: bool,
}

/// One session.
struct Session {
    executor: Arc<Executor>,
    audience: Arc<Audience>,
    rights: Rights,
    questions: Arc<Semaphore>,
    /// Jobs that end with this session.
    tied: Mutex<Vec<JobId>>,
    /// The client has gone.
    gone: watch::Sender<bool>,
}

/// Serves a session to its end.
async fn serve(
    executor: Arc<Executor>,
    mut reader: impl AsyncRead + Unpin,
    audience: Arc<Audience>,
    rights: Rights,
) {
    let session = Arc::new(Session {
        executor,
        audience,
        rights,
        questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
        tied: Mutex::default(),
        gone: watch::Sender::new(false),
    });
    let mut decoder = Decoder::default();
    let greeted =
        tokio::time::timeout(HELLO_DEADLINE, session.greet(&mut reader, &mut decoder)).await;
    if greeted.unwrap_or(false) {
        loop {
            match decoder.read(&mut reader).await {
                Ok(Some(frame)) => {
                    if !session.heed(frame).await {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a client's connection ended");
                    break;
                }
            }
            if session.audience.outlet.is_broken() {
                break;
            }
        }
    }
    session.gone.send_replace(true);
    session.executor.leave(&session.audience);
    let tied = std::mem::take(&mut *session.tied.lock().unwrap());
    if !tied.is_empty()
        && let Err(error) = session.executor.cancel(&tied).await
    {
        tracing::warn!(%error, "jobs whose client has gone cannot be cancelled now");
    }
}

impl Session {
    /// The first exchange.
    async fn greet(&self, reader: &mut (impl AsyncRead + Unpin), decoder: &mut Decoder) -> bool {
        let Ok(Some(frame)) = decoder.read(reader).await else {
            return false;
        };
        let Ok(Request { request, body }) = frames::header(&frame) else {
            return false;
        };
        let Ask::Hello { version, program } = body else {
            self.fail(request, "ProtocolError", "a client says Hello first".into());
            return false;
        };
        if version != VERSION {
            let message = format!(
                "{program} speaks protocol {version}, this node (ks {}) {VERSION}",
                env!("CARGO_PKG_VERSION")
            );
            self.fail(request, "ProtocolError", message);
            return false;
        }
        self.reply(request, self.introduction().await);
        true
    }

    /// One request. `false`: the connection is to be ended.
    async fn heed(self: &Arc<Self>, frame: Vec<Bytes>) -> bool {
        let Request { request, body } = match frames::header(&frame) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(%error, "a client does not keep to the protocol");
                self.fail(0, "ProtocolError", error.to_string());
                return false;
            }
        };
        match body {
            // In order, and read on only when they are recorded: what a client sends faster than that waits at the client.
            Ask::Submit { functions, calls } => {
                let count = calls.len();
                let submitted = self
                    .executor
                    .submit(functions, calls, &frame, &self.audience)
                    .await;
                match submitted {
                    Ok(()) if count <= FEW_CALLS => {
                        let answer = Answer::Accepted;
                        self.executor
                            .answer_soon(&self.audience, &Tell::Reply { request, answer });
                    }
                    Ok(()) => self.reply(request, Answer::Accepted),
                    Err(error) => self.fail(request, error.kind(), error.to_string()),
                }
            }
            Ask::Tie { jobs } => {
                let mut tied = self.tied.lock().unwrap();
                if tied.len() + jobs.len() <= TIED_MAX {
                    tied.extend(jobs);
                }
            }
            Ask::Ping => self.reply(
                request,
                Answer::Pong {
                    node: self.executor.options.node_name.clone(),
                },
            ),
            Ask::Hello { .. } => self.reply(request, self.introduction().await),
            body => {
                let Ok(permit) = self.questions.clone().acquire_owned().await else {
                    return false;
                };
                let session = self.clone();
                let ends_with_client = matches!(body, Ask::Fetch { .. });
                let mut gone = session.gone.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        () = session.answer(request, body) => {}
                        _ = gone.wait_for(|gone| *gone), if ends_with_client => {}
                    }
                    drop(permit);
                });
            }
        }
        true
    }

    fn reply(&self, request: u64, answer: Answer) {
        self.audience.tell(&Tell::Reply { request, answer });
    }

    fn fail(&self, request: u64, kind: &str, message: String) {
        self.reply(
            request,
            Answer::Failed {
                kind: kind.into(),
                message,
            },
        );
    }
}
