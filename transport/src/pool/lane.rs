//! One connection to a peer: made once however many want it, watched until it ends.
use super::link::{Action, Event, Link};
use super::{PeerError, PeerState};
use crate::endpoint::{ConnectError, Endpoint, code};
use crate::identity::PeerIdentity;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a lane that may end waits for work.
const IDLE_AFTER: Duration = Duration::from_secs(30);
/// What it carries meanwhile with no work: a keep-alive a second, both ways.
const IDLE_BYTES_MAX: u64 = 16 << 10;

/// A connection that is up.
#[derive(Clone)]
pub(super) struct Ready {
    pub connection: quinn::Connection,
    pub identity: Arc<PeerIdentity>,
}

type Outcome = Result<Ready, ConnectError>;

/// See the module's head.
#[derive(Clone)]
pub(super) struct Lane {
    state: Arc<Mutex<State>>,
    /// Kept while the peer lives; other lanes end when they are not used.
    stays: bool,
}

#[derive(Default)]
struct State {
    link: Link,
    ready: Option<Ready>,
    attempt: Option<watch::Receiver<Option<Outcome>>>,
    last_error: Option<ConnectError>,
}

impl State {
    /// Notices a connection that has ended since.
    fn refresh(&mut self, now: Instant) {
        let ended = |ready: &Ready| ready.connection.close_reason();
        let Some(reason) = self.ready.as_ref().and_then(ended) else {
            return;
        };
        if let Some(ready) = self.ready.take()
            && reason != quinn::ConnectionError::LocallyClosed
        {
            let peer = ready.connection.remote_address().to_string();
            self.last_error = Some(ConnectError::Gone(peer));
        }
        self.link.handle(Event::Lost, now);
    }

    /// Forgets the connection; the next who wants one makes another.
    fn give_up(&mut self) {
        if self.ready.take().is_some() {
            self.link.handle(Event::Lost, Instant::now());
        }
    }
}

enum Step {
    Use(Ready),
    Wait(watch::Receiver<Option<Outcome>>),
    Fail(ConnectError),
}

impl Lane {
    /// A lane that `stays`, or one that ends when it is not used.
    pub(super) fn new(stays: bool) -> Self {
        Lane {
            state: Arc::default(),
            stays,
        }
    }

    /// Ends the back-off: for who paces his attempts himself.
    pub(super) fn urge(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        state.link.handle(Event::Urged, Instant::now());
    }

    /// The connection; makes it, or waits for whoever makes it.
    pub(super) async fn ready(
        &self,
        endpoint: &Endpoint,
        address: &Arc<str>,
    ) -> Result<Ready, PeerError> {
        let mut attempt = match self.step(endpoint, address) {
            Step::Use(ready) => return Ok(ready),
            Step::Fail(error) => return Err(error.into()),
            Step::Wait(attempt) => attempt,
        };
        // The attempt is a task of its own with a deadline: it ends, and so does this wait.
        let outcome = attempt.wait_for(Option::is_some).await;
        match outcome.ok().and_then(|outcome| outcome.clone()) {
            Some(outcome) => Ok(outcome?),
            None => Err(ConnectError::Gone(address.to_string()).into()),
        }
    }

    fn step(&self, endpoint: &Endpoint, address: &Arc<str>) -> Step {
        let now = Instant::now();
        let mut state = self.state.lock().expect("no panic while held");
        state.refresh(now);
        match (
            state.link.handle(Event::Wanted, now),
            &state.ready,
            &state.attempt,
        ) {
            (Action::Use, Some(ready), _) => Step::Use(ready.clone()),
            (Action::Wait, _, Some(attempt)) => Step::Wait(attempt.clone()),
            (Action::Connect, _, _) => {
                let (sender, receiver) = watch::channel(None);
                state.attempt = Some(receiver.clone());
                tokio::spawn(
                    self.clone()
                        .attempt(endpoint.clone(), address.clone(), sender),
                );
                Step::Wait(receiver)
            }
            _ => Step::Fail(
                state
                    .last_error
                    .clone()
                    .unwrap_or_else(|| ConnectError::Gone(address.to_string())),
            ),
        }
    }

    /// Connects; lives on when those who wanted it have left.
    async fn attempt(
        self,
        endpoint: Endpoint,
        address: Arc<str>,
        sender: watch::Sender<Option<Outcome>>,
    ) {
        let outcome = connect(&endpoint, &address).await;
        let now = Instant::now();
        {
            let mut state = self.state.lock().expect("no panic while held");
            state.attempt = None;
            match &outcome {
                Ok(ready) => {
                    state.link.handle(Event::Connected, now);
                    state.ready = Some(ready.clone());
                    state.last_error = None;
                }
                Err(error) => {
                    state.link.handle(Event::Failed, now);
                    state.last_error = Some(error.clone());
                }
            }
        }
        let connection = outcome.as_ref().ok().map(|ready| ready.connection.clone());
        let _ = sender.send(Some(outcome));
        if let Some(connection) = connection {
            self.watch(connection, &address).await;
        }
    }

    /// Waits for the connection's end and notes it.
    async fn watch(&self, connection: quinn::Connection, address: &str) {
        let error = tokio::select! {
            error = connection.closed() => error,
            () = self.idle(&connection) => {
                connection.close(code::IDLE, b"");
                quinn::ConnectionError::LocallyClosed
            }
        };
        tracing::debug!(peer = address, %error, "the connection ended");
        let mut state = self.state.lock().expect("no panic while held");
        state.refresh(Instant::now());
        if state.ready.is_none() && error != quinn::ConnectionError::LocallyClosed {
            state.last_error = Some(ConnectError::Gone(address.to_owned()));
        }
    }

    /// Returns once a lane that may end has carried nothing for a while.
    async fn idle(&self, connection: &quinn::Connection) {
        if self.stays {
            return std::future::pending().await;
        }
        let mut carried_before = 0;
        loop {
            tokio::time::sleep(IDLE_AFTER).await;
            let stats = connection.stats();
            let carried = stats.udp_rx.bytes + stats.udp_tx.bytes;
            if carried - carried_before < IDLE_BYTES_MAX {
                // From here on nobody is given this connection.
                self.state.lock().expect("no panic while held").give_up();
                return;
            }
            carried_before = carried;
        }
    }

    pub(super) fn state(&self) -> PeerState {
        let mut state = self.state.lock().expect("no panic while held");
        state.refresh(Instant::now());
        match (&state.ready, &state.last_error) {
            (Some(_), _) => PeerState::Ready,
            (None, None) => PeerState::Unknown,
            (None, Some(ConnectError::Refused { .. })) => PeerState::Refusing,
            (None, Some(_)) => PeerState::Gone,
        }
    }

    pub(super) fn close(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        if let Some(ready) = &state.ready {
            ready.connection.close(code::IDLE, b"");
        }
        state.give_up();
    }
}

async fn connect(endpoint: &Endpoint, address: &str) -> Outcome {
    let connection = endpoint.connect(address).await?;
    let identity = endpoint
        .peer_identity(&connection)
        .ok_or_else(|| ConnectError::Refused {
            address: address.to_owned(),
            reason: "its certificate has no name that we can read".into(),
        })?;
    tracing::debug!(peer = address, name = %identity.name, "connected");
    Ok(Ready {
        connection,
        identity: Arc::new(identity),
    })
}
