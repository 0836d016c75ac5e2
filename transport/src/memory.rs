//! The C library's allocator, told about this kind of program.
//!
//! Datagrams come in buffers of up to 64 KiB that live for microseconds. Left alone, glibc gives
//! their memory back to the kernel and takes it again, a page fault each 4 KiB: a tenth of a
//! receiver's time. Not for the program's own budgets.

/// Free memory at the end of the heap that is kept.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 32 << 20;

/// Allocations from this size on are the kernel's business: those beyond the longest read or write of a program.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 4 << 20;

/// Heaps at most: each keeps some, and threads share them well enough.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;

/// Keeps freed memory at hand; call it first thing in `main`, before there are other threads.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_TRIM_THRESHOLD, KEPT_BYTES),
        (libc::M_MMAP_THRESHOLD, LARGE_BYTES),
        (libc::M_ARENA_MAX, HEAPS_MAX),
    ] {
        // SAFETY: mallopt takes two integers and touches nothing but the allocator's own settings,
        // under the allocator's own lock.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives freed memory back to the kernel; for a program that has become idle.
pub fn release_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches memory that is free only, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
