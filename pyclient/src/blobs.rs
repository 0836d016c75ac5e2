//! Large payloads put where the node keeps them, by this process itself: written once, not sent through a socket and written
//! there again.
//!
//! What always holds: the hash is that of the bytes in the file, whatever another thread does to the buffer meanwhile, as each
//! piece is hashed from the copy that is written. A file has its name (`<directory>/ab/abcd…`) only when it is whole. Not for
//! deciding what is large, nor whether there is room: that is Python's.
use crate::borrowed::Borrowed;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len};
use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root};
use pyo3::{prelude::*, types::PyBytes};
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    sync::{Mutex, PoisonError},
    thread,
};

/// Copied, hashed and written at a time: it stays in the processor's cache.
const PIECE_BYTES: usize = 256 * 1024;
/// Parts below this are not divided among threads.
const DIVIDED_BYTES: u64 = 4 * 1024 * 1024;
/// How often a payload is divided in two: up to four threads.
const DIVISIONS: u32 = 2;
/// Buffers that are remembered.
const RECENT_MAX: usize = 64;

/// Where the bytes of a payload go, beside the hash.
type Sink<'a> = Option<&'a File>;

/// Bytes that stand in several buffers, one after the other.
struct Joined<'a> {
    /// Where each begins, and it.
    parts: Vec<(u64, &'a [u8])>,
    len: u64,
}

impl<'a> Joined<'a> {
    fn new(buffers: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let (mut parts, mut len) = (Vec::new(), 0);
        for buffer in buffers {
            parts.push((len, buffer));
            len += buffer.len() as u64;
        }
        Self { parts, len }
    }

    /// What stands from `from` to `to`, piece by piece, each with its offset.
    fn pieces(&self, from: u64, to: u64) -> impl Iterator<Item = (u64, &'a [u8])> + '_ {
        let first = self
            .parts
            .partition_point(|(start, part)| start + part.len() as u64 <= from);
        let within = self.parts[first..]
            .iter()
            .take_while(move |(start, _)| *start < to);
        within.map(move |(start, part)| {
            let begin = from.saturating_sub(*start) as usize;
            let end = (to - start).min(part.len() as u64) as usize;
            (start + begin as u64, &part[begin..end])
        })
    }
}

/// Hashes what stands from `from` to `to`, and writes it there. It is no whole payload.
fn part(
    sink: Sink<'_>,
    bytes: &Joined<'_>,
    from: u64,
    to: u64,
    divisions: u32,
) -> io::Result<ChainingValue> {
    if divisions == 0 || to - from < DIVIDED_BYTES {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(from);
        feed(&mut hasher, sink, bytes, from, to)?;
        return Ok(hasher.finalize_non_root());
    }
    let (left, right) = halves(sink, bytes, from, to, divisions)?;
    Ok(merge_subtrees_non_root(&left, &right, Mode::Hash))
}

fn halves(
    sink: Sink<'_>,
    bytes: &Joined<'_>,
    from: u64,
    to: u64,
    divisions: u32,
) -> io::Result<(ChainingValue, ChainingValue)> {
    let middle = from + left_subtree_len(to - from);
    let (left, right) = thread::scope(|scope| {
        let other = scope.spawn(|| part(sink, bytes, middle, to, divisions - 1));
        (part(sink, bytes, from, middle, divisions - 1), other.join())
    });
    let right = right.map_err(|_| io::Error::other("a thread that hashes has panicked"))?;
    Ok((left?, right?))
}

fn feed(
    hasher: &mut blake3::Hasher,
    sink: Sink<'_>,
    bytes: &Joined<'_>,
    from: u64,
    to: u64,
) -> io::Result<()> {
    let mut copy = Vec::new();
    for (mut offset, piece) in bytes.pieces(from, to) {
        let Some(file) = sink else {
            hasher.update(piece);
            continue;
        };
        for piece in piece.chunks(PIECE_BYTES) {
            copy.clear();
            copy.extend_from_slice(piece);
            hasher.update(&copy);
            file.write_all_at(&copy, offset)?;
            offset += copy.len() as u64;
        }
    }
    Ok(())
}

fn whole(sink: Sink<'_>, bytes: &Joined<'_>) -> io::Result<blake3::Hash> {
    if bytes.len < DIVIDED_BYTES {
        let mut hasher = blake3::Hasher::new();
        feed(&mut hasher, sink, bytes, 0, bytes.len)?;
        return Ok(hasher.finalize());
    }
    let (left, right) = halves(sink, bytes, 0, bytes.len, DIVISIONS)?;
    Ok(merge_subtrees_root(&left, &right, Mode::Hash))
}

fn path_of(directory: &Path, hash: &blake3::Hash) -> PathBuf {
    let name = hash.to_hex();
    directory.join(&name[..2]).join(name.as_str())
}

/// A file under a name that says that it is not whole yet.
fn unfinished(directory: &Path) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = directory.join(format!("new.{}-{number}.tmp", std::process::id()));
    let mut options = File::options();
    let file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&path)?;
    Ok((file, path))
}

/// Buffers that were put here of late, by address and size: the same buffer again is likely there already, so it is hashed before
/// anything is written. What is remembered decides the order of the work, never its result.
fn was_put_before(bytes: &[u8]) -> bool {
    static RECENT: Mutex<VecDeque<(usize, usize)>> = Mutex::new(VecDeque::new());
    let this = (bytes.as_ptr() as usize, bytes.len());
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.contains(&this) {
        return true;
    }
    if recent.len() >= RECENT_MAX {
        recent.pop_front();
    }
    recent.push_back(this);
    false
}

fn put(directory: &Path, bytes: &[u8]) -> io::Result<blake3::Hash> {
    let joined = Joined::new([bytes]);
    if was_put_before(bytes) {
        let hash = whole(None, &joined)?;
        if path_of(directory, &hash).is_file() {
            return Ok(hash);
        }
    }
    write(directory, &joined)
}

/// Writes a file and gives it its name.
fn write(directory: &Path, bytes: &Joined<'_>) -> io::Result<blake3::Hash> {
    let (file, temporary) = unfinished(directory)?;
    let named = whole(Some(&file), bytes).and_then(|hash| {
        let path = path_of(directory, &hash);
        match std::fs::rename(&temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_private(path.parent().unwrap_or(directory))?;
                std::fs::rename(&temporary, &path)?;
            }
            other => other?,
        }
        Ok(hash)
    });
    if named.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    named
}

/// A directory that is its owner's alone; it may be there already.
fn make_private(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Puts a buffer into a directory of payload files; returns its BLAKE3 hash (32 bytes), which is its name there. Errors:
/// OSError of the files.
#[pyfunction]
pub fn put_blob<'py>(
    py: Python<'py>,
    directory: PathBuf,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let borrowed = Borrowed::new(data)?;
    let bytes = borrowed.as_slice();
    let hash = py.detach(|| put(&directory, bytes))?;
    Ok(PyBytes::new(py, hash.as_bytes()))
}

/// Puts several buffers, one after the other, into one file of a directory of payload files; returns its BLAKE3 hash (32 bytes), which
/// is its name there. Errors: OSError of the files.
#[pyfunction]
pub fn put_value<'py>(
    py: Python<'py>,
    directory: PathBuf,
    buffers: Vec<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let borrowed: Vec<Borrowed> = buffers.iter().map(Borrowed::new).collect::<PyResult<_>>()?;
    let slices: Vec<&[u8]> = borrowed.iter().map(Borrowed::as_slice).collect();
    let hash = py.detach(|| write(&directory, &Joined::new(slices)))?;
    Ok(PyBytes::new(py, hash.as_bytes()))
}
