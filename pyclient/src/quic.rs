//! Sessions with nodes on other machines. A task carries the bytes between the QUIC stream and one end of a socket pair, so all else
//! (frames, waits, signals) is the same as on the node's own socket.
//!
//! One runtime, endpoint and peer pool a process, made when first needed. A forked child has none of the parent's threads, so it
//! leaves the parent's alone and makes its own.
use crate::connection::EndReason;
use ks_transport::{
    endpoint::{Endpoint, StreamKind},
    frame::Stream,
    identity::Identity,
    key::{ClientKey, ClusterKey, KeyError},
    pool::PeerPool,
};
use pyo3::{exceptions::PyConnectionError, prelude::*};
use std::{
    collections::HashMap,
    future::Future,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
};

/// How long a wait goes on before it looks for signals.
const SLICE: Duration = Duration::from_millis(100);
/// Bytes that go from the socket pair to the QUIC stream at once.
const PIECE_BYTES: usize = 256 * 1024;

/// What this process has for QUIC.
struct Process {
    pid: u32,
    runtime: Runtime,
    /// By key file.
    pools: HashMap<PathBuf, PeerPool>,
}

static PROCESS: Mutex<Option<Process>> = Mutex::new(None);

fn failed(error: impl ToString) -> PyErr {
    PyConnectionError::new_err(error.to_string())
}

/// This process's runtime and pools. The lock is held for moments only, by threads that hold the GIL, so a fork never copies it locked.
fn process() -> PyResult<MutexGuard<'static, Option<Process>>> {
    let mut process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if process.as_ref().is_some_and(|process| process.pid != pid) {
        // Ending the parent's runtime would wait for threads that are not there.
        std::mem::forget(process.take());
    }
    if process.is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("kitchensink-quic")
            .enable_all()
            .build()?;
        *process = Some(Process {
            pid,
            runtime,
            pools: HashMap::new(),
        });
    }
    Ok(process)
}

/// Runs a future on the process's runtime, watching for signals and the deadline.
fn run<T: Send + 'static>(
    py: Python<'_>,
    what: &str,
    deadline: Option<Instant>,
    future: impl Future<Output = T> + Send + 'static,
) -> PyResult<T> {
    let (done, result) = mpsc::channel();
    let task = process()?.as_ref().map(|process| {
        process.runtime.spawn(async move {
            let _ = done.send(future.await);
        })
    });
    let result = Mutex::new(result);
    loop {
        let received = py.detach(|| {
            let result = result.lock().unwrap_or_else(PoisonError::into_inner);
            result.recv_timeout(SLICE)
        });
        match received {
            Ok(value) => return Ok(value),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(failed(format!("{what}: the connection's task ended early")));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if let Err(error) = py.check_signals().and(match late {
            true => Err(failed(format!("{what}: no answer in time"))),
            false => Ok(()),
        }) {
            task.iter().for_each(|task| task.abort());
            return Err(error);
        }
    }
}

/// The pool for a key file, made where there is none yet.
fn pool(py: Python<'_>, key_path: &Path, deadline: Option<Instant>) -> PyResult<PeerPool> {
    let known = process()?
        .as_ref()
        .and_then(|process| process.pools.get(key_path).cloned());
    if let Some(pool) = known {
        return Ok(pool);
    }
    let path = key_path.to_owned();
    let pool = run(py, "QUIC", deadline, async move {
        let identity = identity(&path)?;
        let endpoint = Endpoint::outgoing(&identity).map_err(|error| error.to_string())?;
        Ok::<_, String>(PeerPool::new(endpoint))
    })?
    .map_err(failed)?;
    if let Some(process) = process()?.as_mut() {
        process.pools.insert(key_path.to_owned(), pool.clone());
    }
    Ok(pool)
}

/// Who we are to the nodes: a client, whether the file is the cluster's key or a client key.
fn identity(path: &Path) -> Result<Identity, String> {
    match ClientKey::load(path) {
        Ok(key) => Identity::from_client_key(&key).map_err(|error| error.to_string()),
        Err(KeyError::Malformed(_)) => {
            let key = ClusterKey::load(path).map_err(|error| error.to_string())?;
            Identity::client(&key, &name()).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Who we say we are: for the node's log.
fn name() -> String {
    let host = rustix::system::uname();
    format!(
        "{}:{}",
        host.nodename().to_string_lossy(),
        std::process::id()
    )
}

/// Opens a session with the node at `address` ("host:port"); returns our end of the socket pair.
pub fn connect(
    py: Python<'_>,
    address: String,
    key_path: PathBuf,
    deadline: Option<Instant>,
) -> PyResult<(UnixStream, EndReason)> {
    let pool = pool(py, &key_path, deadline)?;
    let what = format!("ks://{address}");
    let peer = pool.peer(&address);
    let stream = run(py, &what, deadline, async move {
        peer.open(StreamKind::SESSION).await
    })?
    .map_err(failed)?;
    let (ours, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    let reason = EndReason::default();
    if let Some(process) = process()?.as_ref() {
        let _runtime = process.runtime.enter();
        let theirs = tokio::net::UnixStream::from_std(theirs)?;
        process
            .runtime
            .spawn(carry(stream, theirs, what, Arc::clone(&reason)));
    }
    Ok((ours, reason))
}

/// Carries bytes both ways until either side ends.
async fn carry(stream: Stream, socket: tokio::net::UnixStream, what: String, reason: EndReason) {
    let Stream {
        mut send, mut recv, ..
    } = stream;
    let (mut from_client, mut to_client) = socket.into_split();
    let up = async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = from_client
                .read(&mut piece)
                .await
                .map_err(|e| e.to_string())?;
            if count == 0 {
                let _ = send.finish();
                return Ok::<_, String>(());
            }
            send.write_all(&piece[..count])
                .await
                .map_err(|e| e.to_string())?;
        }
    };
    let down = async {
        while let Some(chunk) = recv
            .read_chunk(PIECE_BYTES, true)
            .await
            .map_err(|e| e.to_string())?
        {
            to_client
                .write_all(&chunk.bytes)
                .await
                .map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(())
    };
    let ended = tokio::select! { ended = up => ended, ended = down => ended };
    if let Err(error) = ended {
        // Before the socket closes, so that who finds it closed finds the reason.
        let _ = reason.set(format!("{what}: {error}"));
    }
}
