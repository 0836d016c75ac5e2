//! Takes frames (`ks_transport::segments`) off a socket, in steps: a step never waits, and a frame half read stays as it is between
//! steps, so a wait can be given up (deadline, Ctrl-C) and taken up again. Large segments are read straight into the Python object
//! that is handed out.
use crate::socket::{Received, Socket};
use ks_transport::segments::{check_count, check_lengths};
use pyo3::{
    exceptions::PyMemoryError,
    ffi,
    prelude::*,
    types::{PyByteArray, PyList},
};
use std::{collections::VecDeque, io};

/// Bytes read ahead: several small frames come in one system call.
const BUFFER_BYTES: usize = 64 * 1024;
/// What is missing of a segment and at least this long goes around the buffer.
const DIRECT_BYTES: usize = 16 * 1024;

/// What a step came to.
pub enum Step {
    /// A whole frame.
    Frame(Py<PyList>),
    /// More has to come: wait for the socket.
    Starved,
    /// A clean end between frames.
    End,
}

/// A frame in the making.
struct Partial {
    lengths: VecDeque<usize>,
    done: Vec<Py<PyByteArray>>,
    current: Option<Filling>,
}

/// A segment in the making.
struct Filling {
    object: Py<PyByteArray>,
    length: usize,
    filled: usize,
}

/// Reads frames; one a connection.
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    partial: Option<Partial>,
}

/// A pointer that may cross `Python::detach`.
struct Target(*mut u8);
// SAFETY: it points into a bytearray that nobody but the reader knows yet, and is used by the one thread that holds the reader.
unsafe impl Send for Target {}

impl FrameReader {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            partial: None,
        }
    }

    /// Goes on as far as it can without waiting. Errors: the connection's, or what came is no frame.
    pub fn step(&mut self, py: Python<'_>, socket: &Socket) -> PyResult<Step> {
        loop {
            if let Some(frame) = self.assemble(py)? {
                return Ok(Step::Frame(frame));
            }
            match self.receive(py, socket)? {
                Received::Bytes(_) => {}
                Received::Nothing => return Ok(Step::Starved),
                Received::End if self.partial.is_none() && self.start == self.end => {
                    return Ok(Step::End);
                }
                Received::End => {
                    let message = "the connection ended inside a frame";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message).into());
                }
            }
        }
    }

    /// Reads once: into the segment that is being filled where much of it is missing, else into the buffer.
    fn receive(&mut self, py: Python<'_>, socket: &Socket) -> PyResult<Received> {
        let filling = self.partial.as_mut().and_then(|p| p.current.as_mut());
        if let Some(filling) = filling
            && filling.length - filling.filled >= DIRECT_BYTES
        {
            return filling.receive(py, socket);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = &mut self.buffer[self.end..];
        let received = py.detach(|| socket.receive(room))?;
        if let Received::Bytes(count) = received {
            self.end += count;
        }
        Ok(received)
    }

    /// Makes what it can of the buffered bytes.
    fn assemble(&mut self, py: Python<'_>) -> PyResult<Option<Py<PyList>>> {
        if self.partial.is_none() {
            self.partial = self.head()?;
        }
        let Some(partial) = self.partial.as_mut() else {
            return Ok(None);
        };
        loop {
            if partial.current.is_none() {
                let Some(length) = partial.lengths.pop_front() else {
                    let list = PyList::new(py, partial.done.drain(..))?;
                    self.partial = None;
                    return Ok(Some(list.unbind()));
                };
                partial.current = Some(Filling::new(py, length)?);
            }
            let Some(filling) = partial.current.as_mut() else {
                continue;
            };
            let available = &self.buffer[self.start..self.end];
            self.start += filling.copy(py, available);
            if filling.filled < filling.length {
                return Ok(None);
            }
            partial
                .done
                .extend(partial.current.take().map(|filling| filling.object));
        }
    }

    /// The frame's head, once all of it is buffered. A head longer than the buffer makes the buffer grow.
    fn head(&mut self) -> io::Result<Option<Partial>> {
        let available = &self.buffer[self.start..self.end];
        let Some((count, rest)) = available.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let lengths_bytes = 8 * check_count(u32::from_le_bytes(*count))?;
        let Some(raw) = rest.get(..lengths_bytes) else {
            self.buffer
                .resize(self.buffer.len().max(2 * (4 + lengths_bytes)), 0);
            return Ok(None);
        };
        let lengths = check_lengths(raw)?;
        self.start += 4 + lengths_bytes;
        Ok(Some(Partial {
            done: Vec::with_capacity(lengths.len()),
            lengths: lengths.into(),
            current: None,
        }))
    }
}

impl Filling {
    /// A bytearray of `length` bytes, not initialised: the kernel gives its pages as they are filled.
    fn new(py: Python<'_>, length: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(length)
            .map_err(|_| PyMemoryError::new_err(format!("a segment of {length} bytes")))?;
        // SAFETY: a null source asks for an uninitialised bytearray of that size; the result is a new reference or null with an error.
        let object = unsafe {
            let pointer = ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size);
            Bound::from_owned_ptr_or_err(py, pointer)?
        };
        Ok(Self {
            object: object.cast_into::<PyByteArray>()?.unbind(),
            length,
            filled: 0,
        })
    }

    /// Takes as much as it needs of `available`; returns how much.
    fn copy(&mut self, py: Python<'_>, available: &[u8]) -> usize {
        let count = available.len().min(self.length - self.filled);
        let target = self.object.bind(py).data();
        // SAFETY: `filled + count` is within the bytearray, which nobody else has seen; source and target do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(available.as_ptr(), target.add(self.filled), count)
        };
        self.filled += count;
        count
    }

    /// Reads once from the socket, straight into the bytearray, without the GIL.
    fn receive(&mut self, py: Python<'_>, socket: &Socket) -> PyResult<Received> {
        let target = Target(self.object.bind(py).data());
        let (offset, length) = (self.filled, self.length - self.filled);
        let received = py.detach(move || {
            let Target(start) = { target };
            // SAFETY: the bytearray is known to this reader alone, so it is neither resized nor freed while the GIL is released; the
            // range is within it. The kernel writes into it before it is read.
            let room = unsafe { std::slice::from_raw_parts_mut(start.add(offset), length) };
            socket.receive(room)
        })?;
        if let Received::Bytes(count) = received {
            self.filled += count;
        }
        Ok(received)
    }
}
