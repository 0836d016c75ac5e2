//! Where frames leave: written at once where the socket takes them (no task is woken), else by a task behind.
//!
//! What always holds: chunks leave in the order in which they were sent, a frame is never torn; nobody who sends waits.
//! What is pending is counted, so that senders of what may be dropped (output) can see the bound; ends are never dropped here.
use bytes::Bytes;
use ks_transport::quiet::{self, QuietWriter, SLICES_MAX};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Small chunks are joined into writes of about this size.
const JOINED_BYTES: usize = 128 * 1024;

/// One direction of a connection; cheap to clone. The connection is closed for writing when the last is gone.
#[derive(Clone)]
pub struct Outlet {
    guard: Arc<Guard>,
}

/// Tells the writing task when nobody can send any more.
struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.pending.lock().unwrap().abandoned = true;
        self.shared.wake.notify_one();
    }
}

struct Shared {
    pending: Mutex<Pending>,
    wake: Notify,
    socket: Option<QuietWriter>,
}

#[derive(Default)]
struct Pending {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    /// The task has taken chunks that it has not written yet: nobody else may write.
    writing: bool,
    broken: bool,
    abandoned: bool,
}

impl Outlet {
    /// Over a unix socket.
    pub fn unix(half: QuietWriter) -> Self {
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            wake: Notify::new(),
            socket: Some(half),
        });
        tokio::spawn(write_socket(shared.clone()));
        Self {
            guard: Arc::new(Guard { shared }),
        }
    }

    /// Over any stream.
    pub fn stream(stream: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            wake: Notify::new(),
            socket: None,
        });
        tokio::spawn(write_stream(shared.clone(), stream));
        Self {
            guard: Arc::new(Guard { shared }),
        }
    }

    /// Sends a frame (or several), whole. `false`: the connection is broken.
    pub fn send(&self, chunks: Vec<Bytes>) -> bool {
        let shared = &self.guard.shared;
        let mut pending = shared.pending.lock().unwrap();
        if pending.broken {
            return false;
        }
        let mut chunks = VecDeque::from(chunks);
        if let Some(socket) = &shared.socket
            && pending.chunks.is_empty()
            && !pending.writing
            && let Err(error) = write_now(socket, &mut chunks)
        {
            tracing::debug!(%error, "a connection broke while writing");
            pending.broken = true;
            return false;
        }
        if !chunks.is_empty() {
            pending.bytes += chunks.iter().map(Bytes::len).sum::<usize>();
            pending.chunks.append(&mut chunks);
            shared.wake.notify_one();
        }
        true
    }

    /// Bytes that wait to be written.
    pub fn pending_bytes(&self) -> usize {
        self.guard.shared.pending.lock().unwrap().bytes
    }

    /// Whether it cannot write any more.
    pub fn is_broken(&self) -> bool {
        self.guard.shared.pending.lock().unwrap().broken
    }
}

/// Writes what the socket takes without waiting; what is left stays.
fn write_now(socket: &QuietWriter, chunks: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !chunks.is_empty() {
        let slices: Vec<IoSlice<'_>> = chunks
            .iter()
            .take(SLICES_MAX)
            .map(|chunk| IoSlice::new(chunk))
            .collect();
        match socket.write_now(&slices)? {
            Some(count) => quiet::advance(chunks, count),
            None => return Ok(()),
        }
    }
    Ok(())
}

impl Shared {
    /// Waits for something to write; `None`: nobody sends any more. The caller has the floor until it takes again.
    async fn take(&self) -> Option<VecDeque<Bytes>> {
        loop {
            {
                let mut pending = self.pending.lock().unwrap();
                pending.writing = false;
                if !pending.chunks.is_empty() {
                    pending.writing = true;
                    return Some(join(&mut pending));
                }
                if pending.abandoned {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    fn broke(&self, error: &io::Error) {
        tracing::debug!(%error, "a connection broke while writing");
        let mut pending = self.pending.lock().unwrap();
        pending.broken = true;
        pending.bytes = 0;
        pending.chunks.clear();
    }
}

/// Takes chunks off the queue: one large one, or many small ones as one.
fn join(pending: &mut Pending) -> VecDeque<Bytes> {
    let mut joined = Vec::new();
    while let Some(chunk) = pending.chunks.front() {
        if joined.len() + chunk.len() > JOINED_BYTES {
            break;
        }
        joined.extend_from_slice(chunk);
        pending.bytes -= chunk.len();
        pending.chunks.pop_front();
    }
    if !joined.is_empty() {
        return VecDeque::from([Bytes::from(joined)]);
    }
    let large: VecDeque<Bytes> = pending.chunks.pop_front().into_iter().collect();
    pending.bytes -= large.iter().map(Bytes::len).sum::<usize>();
    large
}

async fn write_socket(shared: Arc<Shared>) {
    let socket = shared.socket.as_ref().expect("made with one");
    while let Some(mut chunks) = shared.take().await {
        while !chunks.is_empty() {
            let written = match write_now(socket, &mut chunks) {
                Ok(()) if chunks.is_empty() => break,
                Ok(()) => socket.writable().await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                return shared.broke(&error);
            }
        }
    }
}

async fn write_stream(shared: Arc<Shared>, mut stream: impl AsyncWrite + Send + Unpin) {
    while let Some(chunks) = shared.take().await {
        for chunk in chunks {
            if let Err(error) = stream.write_all(&chunk).await {
                return shared.broke(&error);
            }
        }
    }
    let _ = stream.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn order_is_kept_when_the_reader_is_slow() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let (_read, write) = quiet::halves(near.into_std().unwrap()).unwrap();
        let outlet = Outlet::unix(write);
        let mut expected = Vec::new();
        for number in 0..3_000u32 {
            let size = (number as usize * 37) % 2_000;
            let mut chunk = number.to_le_bytes().to_vec();
            chunk.resize(4 + size, number as u8);
            expected.extend_from_slice(&chunk);
            assert!(outlet.send(vec![Bytes::from(chunk)]));
        }
        assert!(outlet.pending_bytes() > 0);
        let large = vec![7; 1_000_000];
        expected.extend_from_slice(&large);
        assert!(outlet.send(vec![Bytes::from(large)]));
        drop(outlet);
        let mut got = Vec::new();
        let read = tokio::time::timeout(
            std::time::Duration::from_secs(10),
            far.read_to_end(&mut got),
        );
        read.await.expect("in time").unwrap();
        assert!(got == expected);
    }

    #[tokio::test]
    async fn a_connection_that_is_gone_is_broken() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_read, write) = quiet::halves(near.into_std().unwrap()).unwrap();
        let outlet = Outlet::unix(write);
        drop(far);
        assert!(!outlet.send(vec![Bytes::from_static(b"x")]));
        assert!(outlet.is_broken());
    }
}
