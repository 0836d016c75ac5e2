//! `Connection`: frames to and from a node or a worker's supervisor. Several threads may send; one at a time may receive.
use crate::{
    borrowed::Borrowed,
    frame_reader::{FrameReader, Step},
    quic,
    socket::{Socket, Waited},
};
use ks_transport::segments;
use pyo3::{
    exceptions::{PyConnectionError, PyRuntimeError, PyTimeoutError, PyValueError},
    prelude::*,
    types::PyList,
};
use std::{
    io::{self, IoSlice},
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError},
    time::{Duration, Instant},
};

/// Segments up to this size are copied into one piece with the frame's head: a system call takes less for it.
const COALESCE_BYTES: usize = 16 * 1024;
/// How long a frame that is half sent may stand still once Ctrl-C was pressed, before the connection is given up.
const STALLED: Duration = Duration::from_secs(2);

/// Why the connection ended, said by the task that carries it (QUIC).
pub type EndReason = Arc<OnceLock<String>>;

/// A connection that carries frames.
#[pyclass(frozen, module = "kitchensink._native")]
pub struct Connection {
    socket: Socket,
    reader: Mutex<FrameReader>,
    writing: Mutex<()>,
    reason: EndReason,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else {
        return Ok(None);
    };
    let duration = Duration::try_from_secs_f64(seconds.max(0.0))
        .map_err(|error| PyValueError::new_err(error.to_string()))?;
    Ok(Instant::now().checked_add(duration))
}

impl Connection {
    /// Over a connected stream socket.
    pub fn over(stream: OwnedFd, sliced: bool, reason: EndReason) -> PyResult<Self> {
        Ok(Self {
            socket: Socket::new(stream, sliced)?,
            reader: Mutex::new(FrameReader::new()),
            writing: Mutex::new(()),
            reason,
        })
    }

    fn ended(&self, error: PyErr) -> PyErr {
        match self.reason.get() {
            Some(reason) => PyConnectionError::new_err(reason.clone()),
            None => error,
        }
    }

    /// Writes all pieces; called without the GIL. A signal's exception waits until the frame is whole, unless it stands still.
    fn write(&self, pieces: &[&[u8]]) -> PyResult<()> {
        let _writing = lock(&self.writing);
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        let (mut begun, mut interrupted) = (false, None);
        while !rest.is_empty() {
            let sent = self.socket.send(rest)?;
            begun |= sent > 0;
            if sent > 0 || rest[0].is_empty() {
                IoSlice::advance_slices(&mut rest, sent);
                continue;
            }
            let until = interrupted.is_some().then(|| Instant::now() + STALLED);
            self.wait_to_write(until, begun, &mut interrupted)?;
        }
        interrupted.map_or(Ok(()), Err)
    }

    fn receive(&self, py: Python<'_>, deadline: Option<Instant>) -> PyResult<Option<Py<PyList>>> {
        let mut reader = match self.reader.try_lock() {
            Ok(reader) => reader,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(PyRuntimeError::new_err("another thread is receiving"));
            }
        };
        loop {
            match reader.step(py, &self.socket) {
                Ok(Step::Frame(frame)) => return Ok(Some(frame)),
                Ok(Step::End) if self.reason.get().is_none() || self.socket.is_closed() => {
                    return Ok(None);
                }
                Ok(Step::End) => return Err(self.ended(PyConnectionError::new_err("ended"))),
                Err(_) if self.socket.is_closed() => return Ok(None),
                Err(error) => return Err(self.ended(error)),
                Ok(Step::Starved) => {}
            }
            match py.detach(|| self.socket.wait_readable(deadline))? {
                Waited::Ready => {}
                Waited::Again => py.check_signals()?,
                Waited::Woken if self.socket.is_closed() => return Ok(None),
                Waited::Woken => return Err(PyTimeoutError::new_err("woken")),
                Waited::Late => return Err(PyTimeoutError::new_err("nothing came in time")),
            }
        }
    }

    fn wait_to_write(
        &self,
        until: Option<Instant>,
        begun: bool,
        interrupted: &mut Option<PyErr>,
    ) -> PyResult<()> {
        loop {
            match self.socket.wait_writable(until)? {
                Waited::Ready => return Ok(()),
                Waited::Late => {
                    self.socket.close();
                    let _ = self.reason.set(
                        "given up: interrupted inside a frame that the node did not take".into(),
                    );
                    return interrupted.take().map_or(Ok(()), Err);
                }
                Waited::Woken | Waited::Again => {}
            }
            if interrupted.is_none()
                && let Err(error) = Python::attach(|py| py.check_signals())
            {
                if !begun {
                    return Err(error);
                }
                *interrupted = Some(error);
                return Ok(());
            }
        }
    }
}

#[pymethods]
impl Connection {
    /// Sends one frame: the header, then the segments (buffers; large ones are not copied). Waits while the other side does not read.
    #[pyo3(signature = (header, segments = None))]
    fn send(
        &self,
        py: Python<'_>,
        header: &Bound<'_, PyAny>,
        segments: Option<Vec<Bound<'_, PyAny>>>,
    ) -> PyResult<()> {
        let mut borrowed = vec![Borrowed::new(header)?];
        for segment in segments.iter().flatten() {
            borrowed.push(Borrowed::new(segment)?);
        }
        let slices: Vec<&[u8]> = borrowed.iter().map(Borrowed::as_slice).collect();
        let mut first = segments::head(&slices);
        let small = slices
            .iter()
            .take_while(|slice| {
                let fits = first.len() + slice.len() <= COALESCE_BYTES;
                if fits {
                    first.extend_from_slice(slice);
                }
                fits
            })
            .count();
        let mut pieces = vec![first.as_slice()];
        pieces.extend_from_slice(&slices[small..]);
        py.detach(|| self.write(&pieces))
            .map_err(|error| self.ended(error))
    }

    /// The next frame, as a list of bytearrays (the header first), or None when the other side has closed. TimeoutError: nothing came
    /// within `timeout` seconds (None: for ever), or `wake` was called; a frame that is half there is kept for the next call.
    #[pyo3(signature = (timeout = None))]
    fn recv(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Py<PyList>>> {
        self.receive(py, deadline(timeout)?)
    }

    /// Like `recv`, and puts the frame at the end of `inbox`, so that no exception (Ctrl-C) can come between and lose it. False: the other
    /// side has closed.
    #[pyo3(signature = (inbox, timeout = None))]
    fn recv_to(&self, inbox: &Bound<'_, PyList>, timeout: Option<f64>) -> PyResult<bool> {
        match self.receive(inbox.py(), deadline(timeout)?)? {
            Some(frame) => inbox.append(frame).map(|()| true),
            None => Ok(false),
        }
    }

    /// Makes the `recv` that waits now, or else the next one that would wait, raise TimeoutError.
    fn wake(&self) {
        self.socket.wake();
    }

    /// Ends the connection. Who waits in `recv` gets None.
    fn close(&self) {
        self.socket.close();
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.socket.is_closed()
    }
}

/// Connects to a node's control socket. Errors: OSError of `connect`.
#[pyfunction]
pub fn connect_unix(path: PathBuf) -> PyResult<Connection> {
    let stream = UnixStream::connect(path)?;
    Connection::over(stream.into(), true, EndReason::default())
}

/// Connects to a node over QUIC. `key_path`: the cluster's key, or a client key. Errors: ConnectionError, whose message says which.
#[pyfunction]
#[pyo3(signature = (address, key_path, timeout = 10.0))]
pub fn connect_quic(
    py: Python<'_>,
    address: String,
    key_path: PathBuf,
    timeout: f64,
) -> PyResult<Connection> {
    let deadline = deadline(Some(timeout))?;
    let (stream, reason) = quic::connect(py, address, key_path, deadline)?;
    Connection::over(stream.into(), true, reason)
}

/// Takes an inherited socket (a worker's). The descriptor belongs to the connection from now on.
#[pyfunction]
pub fn adopt(fd: RawFd) -> PyResult<Connection> {
    if fd <= 2 {
        return Err(PyValueError::new_err(format!(
            "descriptor {fd} is not a connection"
        )));
    }
    // SAFETY: fcntl(F_GETFD) only asks whether the descriptor is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: it is open, and whoever started this process handed it to us; nothing else here owns it.
    let stream = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&stream, rustix::io::FdFlags::CLOEXEC).map_err(io::Error::from)?;
    Connection::over(stream, false, EndReason::default())
}
