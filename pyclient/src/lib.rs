//! The native part of the Python package `kitchensink`: connections and their frames, hashes, payload files. No policy: what is said on a
//! connection is decided in Python. Waits release the GIL and end early for signals.
mod blobs;
mod borrowed;
mod connection;
mod frame_reader;
mod quic;
mod socket;

use pyo3::{prelude::*, types::PyBytes};

/// Hashing up to this many bytes is quicker than giving the GIL away.
const HASH_WITH_GIL_BYTES: usize = 16 * 1024;

/// The BLAKE3 hash (32 bytes) of a buffer.
#[pyfunction(name = "blake3")]
fn hash<'py>(py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let borrowed = borrowed::Borrowed::new(data)?;
    let bytes = borrowed.as_slice();
    let hash = if bytes.len() <= HASH_WITH_GIL_BYTES {
        blake3::hash(bytes)
    } else {
        py.detach(|| blake3::hash(bytes))
    };
    Ok(PyBytes::new(py, hash.as_bytes()))
}

/// Writes out what C code has printed and the C library still holds.
#[pyfunction]
fn flush_c_streams(py: Python<'_>) {
    // SAFETY: fflush(NULL) flushes every open output stream; it takes the streams' own locks and touches no memory of ours.
    py.detach(|| unsafe { libc::fflush(std::ptr::null_mut()) });
}

/// `kitchensink._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<connection::Connection>()?;
    module.add_function(wrap_pyfunction!(hash, module)?)?;
    module.add_function(wrap_pyfunction!(blobs::put_blob, module)?)?;
    module.add_function(wrap_pyfunction!(blobs::put_value, module)?)?;
    module.add_function(wrap_pyfunction!(flush_c_streams, module)?)?;
    module.add_function(wrap_pyfunction!(connection::connect_unix, module)?)?;
    module.add_function(wrap_pyfunction!(connection::connect_quic, module)?)?;
    module.add_function(wrap_pyfunction!(connection::adopt, module)?)?;
    Ok(())
}
