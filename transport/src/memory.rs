//! The C library's allocator, told about this kind of program.
//!
//! Datagrams come in buffers of up to 64 KiB that live for microseconds. Left alone, glibc gives
//! their memory back to the kernel and takes it again, a page fault each 4 KiB: a tenth of a
//! receiver's time. So it is told to keep it, and gives it back when the transfers rest. Not for the program's own budgets.
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Free memory at the end of the heap that is kept.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 32 << 20;

/// Allocations from this size on are the kernel's business: those beyond the longest read or write of a program.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 4 << 20;

/// Heaps at most: each keeps some, and threads share them well enough.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 2;

/// How long nothing is transferred until freed memory is given back.
const REST: Duration = Duration::from_secs(1);

/// Counts the ends of transfers.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Somebody waits for the rest.
static WAITING: AtomicBool = AtomicBool::new(false);

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

/// A transfer has ended: freed memory goes back to the kernel once no other has ended for a second. Call it in a tokio runtime.
pub fn release_at_rest() {
    ENDED.fetch_add(1, Ordering::SeqCst);
    if WAITING.swap(true, Ordering::SeqCst) {
        return;
    }
    let waiting = Waiting;
    tokio::spawn(async move {
        let mut ended = ENDED.load(Ordering::SeqCst);
        loop {
            tokio::time::sleep(REST).await;
            let now = ENDED.load(Ordering::SeqCst);
            if now == ended {
                break;
            }
            ended = now;
        }
        drop(waiting);
        // It looks at every free page: not on a thread that others wait for. Nothing depends on its end.
        drop(tokio::task::spawn_blocking(release_freed));
    });
}

/// The one who waits; also when its runtime ends.
struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_waits_for_the_rest_of_all() {
        for _ in 0..100 {
            release_at_rest();
        }
        assert!(WAITING.load(Ordering::SeqCst));
        let over = async {
            while WAITING.load(Ordering::SeqCst) {
                tokio::time::sleep(REST / 10).await;
            }
        };
        tokio::time::timeout(REST * 10, over).await.unwrap();
    }
}
