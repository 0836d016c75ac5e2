//! Buffers of what is being sent, used again: fresh memory of that size costs a page fault for each
//! 4 KiB, which is a tenth of the sending.
//!
//! Always holds: at most `KEPT_MAX` lie unused, and none while nothing is being sent.
use bytes::Bytes;
use std::sync::{Arc, Mutex};

/// Unused buffers that are kept: as many as one connection has on its way.
const KEPT_MAX: usize = 24;

/// Lends buffers of one size.
pub(super) struct Buffers {
    bytes_each: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    unused: Vec<Vec<u8>>,
    users: usize,
}

/// A lent buffer; goes back when it is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

/// Somebody who sends: buffers are kept for as long as there is one.
pub(super) struct User(Arc<Buffers>);

impl Buffers {
    pub(super) fn new(bytes_each: usize) -> Arc<Self> {
        Arc::new(Buffers {
            bytes_each,
            state: Mutex::default(),
        })
    }

    pub(super) fn user(self: &Arc<Self>) -> User {
        self.state.lock().expect("no panic while held").users += 1;
        User(self.clone())
    }

    #[cfg(test)]
    fn unused(&self) -> usize {
        self.state.lock().unwrap().unused.len()
    }
}

impl User {
    /// A buffer of the size; what is in it is left over from before.
    pub(super) fn lend(&self) -> Buffer {
        let mut state = self.0.state.lock().expect("no panic while held");
        let unused = state.unused.pop();
        drop(state);
        Buffer {
            bytes: unused.unwrap_or_else(|| vec![0; self.0.bytes_each]),
            home: self.0.clone(),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().expect("no panic while held");
        state.users -= 1;
        if state.users == 0 {
            state.unused = Vec::new();
        }
    }
}

impl Buffer {
    /// The first `len` bytes, to be sent; the buffer goes back when the last of them is let go.
    pub(super) fn freeze(self, len: usize) -> Bytes {
        Bytes::from_owner(self).slice(..len)
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.home.state.lock().expect("no panic while held");
        if state.users > 0 && state.unused.len() < KEPT_MAX {
            state.unused.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_again_while_somebody_sends() {
        let buffers = Buffers::new(100);
        let user = buffers.user();
        let mut one = user.lend();
        one.as_mut()[99] = 7;
        let sent = one.freeze(50);
        let part = sent.slice(10..20);
        drop(sent);
        assert_eq!(buffers.unused(), 0, "a part is still on its way");
        drop(part);
        assert_eq!(buffers.unused(), 1);
        assert_eq!(user.lend().as_ref()[99], 7, "the same buffer");
        let late = user.lend().freeze(1);
        drop(user);
        assert_eq!(buffers.unused(), 0);
        drop(late);
        assert_eq!(buffers.unused(), 0, "nothing is kept at rest");
    }

    #[test]
    fn bounded() {
        let buffers = Buffers::new(1);
        let user = buffers.user();
        let many: Vec<_> = (0..100).map(|_| user.lend()).collect();
        drop(many);
        assert_eq!(buffers.unused(), KEPT_MAX);
    }
}
