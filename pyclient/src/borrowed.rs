//! A Python buffer (bytes, memoryview, an array's PickleBuffer, ...) borrowed for reading, without a copy.
//!
//! The stable ABI of Python 3.9 and 3.10 has no buffer functions in its headers, so PyO3 offers none there. Every CPython since 3.0
//! exports them with this very layout, which 3.11 made part of the stable ABI; they are declared here.
use pyo3::{ffi, prelude::*};
use std::{
    ffi::{c_char, c_int, c_void},
    marker::PhantomData,
    ptr,
};

/// CPython's `Py_buffer`.
#[repr(C)]
struct RawBuffer {
    buf: *mut c_void,
    obj: *mut ffi::PyObject,
    len: ffi::Py_ssize_t,
    itemsize: ffi::Py_ssize_t,
    readonly: c_int,
    ndim: c_int,
    format: *mut c_char,
    shape: *mut ffi::Py_ssize_t,
    strides: *mut ffi::Py_ssize_t,
    suboffsets: *mut ffi::Py_ssize_t,
    internal: *mut c_void,
}

/// Asks for plain contiguous bytes.
const PYBUF_SIMPLE: c_int = 0;

unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut ffi::PyObject, view: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(view: *mut RawBuffer);
}

/// Bytes of a Python object; as long as this lives, the object stays and its buffer does not move.
pub struct Borrowed<'py> {
    // Boxed: exporters may fill it so that it points into itself.
    view: Box<RawBuffer>,
    attached: PhantomData<Python<'py>>,
}

impl<'py> Borrowed<'py> {
    /// Borrows `object`'s buffer. Errors: TypeError or BufferError where it has none or it is not contiguous.
    pub fn new(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(RawBuffer {
            buf: ptr::null_mut(),
            obj: ptr::null_mut(),
            len: 0,
            itemsize: 0,
            readonly: 0,
            ndim: 0,
            format: ptr::null_mut(),
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            suboffsets: ptr::null_mut(),
            internal: ptr::null_mut(),
        });
        // SAFETY: the thread is attached (`object` proves it); `view` is a valid Py_buffer that does not move while it is filled.
        let status = unsafe { PyObject_GetBuffer(object.as_ptr(), &mut *view, PYBUF_SIMPLE) };
        if status != 0 {
            return Err(PyErr::fetch(object.py()));
        }
        Ok(Self {
            view,
            attached: PhantomData,
        })
    }

    /// The bytes. Python code that writes into the object meanwhile is the caller's race, as with any buffer of Python's.
    pub fn as_slice(&self) -> &[u8] {
        if self.view.len == 0 {
            return &[];
        }
        // SAFETY: a filled Py_buffer of PyBUF_SIMPLE points to `len` contiguous bytes that stay valid until it is released.
        unsafe { std::slice::from_raw_parts(self.view.buf.cast(), self.view.len as usize) }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        // SAFETY: `view` was filled by PyObject_GetBuffer, is released once, and the thread is attached (lifetime 'py).
        unsafe { PyBuffer_Release(&mut *self.view) }
    }
}
