//! A connected stream socket with waits that end for a deadline, a wake-up or a signal. Knows no frames and no Python.
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, sendmsg, shutdown},
};
use std::{
    io::{self, IoSlice},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long a wait goes on before it returns to look for signals that came just before it began.
const SLICE: Duration = Duration::from_millis(100);
/// Slices handed to one sendmsg.
const SLICES_MAX: usize = 64;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// The socket is ready.
    Ready,
    /// A slice passed or a signal came: look for signals, then wait again.
    Again,
    /// Somebody called `wake`.
    Woken,
    /// The deadline has passed.
    Late,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing there yet.
    Nothing,
    /// The other side has closed.
    End,
}

/// A socket and the event that wakes who waits on it.
pub struct Socket {
    stream: OwnedFd,
    wake: OwnedFd,
    sliced: bool,
    closed: AtomicBool,
}

impl Socket {
    /// Takes a connected stream socket. `sliced`: waits return every 100 ms, so that no signal is missed.
    pub fn new(stream: OwnedFd, sliced: bool) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            stream,
            wake,
            sliced,
            closed: AtomicBool::new(false),
        })
    }

    /// Reads what is there, without waiting.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<Received> {
        loop {
            return match recv(&self.stream, &mut *into, RecvFlags::DONTWAIT) {
                Ok((0, _)) => Ok(Received::End),
                Ok((count, _)) => Ok(Received::Bytes(count)),
                Err(Errno::AGAIN) => Ok(Received::Nothing),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Writes what fits, without waiting; 0: nothing fits now.
    pub fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            return match sendmsg(&self.stream, slices, &mut Default::default(), flags) {
                Ok(count) => Ok(count),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits until something can be read.
    pub fn wait_readable(&self, deadline: Option<Instant>) -> io::Result<Waited> {
        self.wait(PollFlags::IN, deadline, true)
    }

    /// Waits until something can be written.
    pub fn wait_writable(&self, deadline: Option<Instant>) -> io::Result<Waited> {
        self.wait(PollFlags::OUT, deadline, false)
    }

    fn wait(&self, on: PollFlags, deadline: Option<Instant>, wakeable: bool) -> io::Result<Waited> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(Waited::Late);
        }
        let slice = self.sliced.then_some(SLICE);
        let timeout = match (left, slice) {
            (Some(left), Some(slice)) => Some(left.min(slice)),
            (left, slice) => left.or(slice),
        };
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut polled = [
            PollFd::new(&self.stream, on),
            PollFd::new(&self.wake, PollFlags::IN),
        ];
        let polled = if wakeable {
            &mut polled[..]
        } else {
            &mut polled[..1]
        };
        match poll(polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Waited::Again),
            Err(error) => return Err(error.into()),
        }
        if !polled[0].revents().is_empty() {
            return Ok(Waited::Ready);
        }
        if wakeable && !polled[1].revents().is_empty() {
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut counter);
            return Ok(Waited::Woken);
        }
        Ok(Waited::Again)
    }

    /// Ends a wait for reading, of now or the next one.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Ends the connection for both sides and for who waits on it.
    pub fn close(&self) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            let _ = shutdown(&self.stream, Shutdown::Both);
            self.wake();
        }
    }

    /// Whether this side closed it.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}
