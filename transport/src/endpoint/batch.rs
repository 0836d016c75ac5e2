//! Sends more at once than quinn does: the kernel's work for a send is the same for 10 datagrams
//! and for 40, and it is a third of a sender's time.
//!
//! Takes part: `socket` (under quinn, so that all of this is unseen by it).
//! Always holds: only full batches of a bulk sender wait, for one turn of the scheduler at most;
//! anything else goes out at once, after what waits before it. What cannot be sent now is kept and
//! sent when the socket takes it; what does not fit beside it is refused, as the socket would. One connection's datagrams
//! leave in the order in which they came.
use quinn::AsyncUdpSocket;
use quinn::udp::{EcnCodepoint, Transmit};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::Notify;

/// Bytes that the kernel takes for segmentation at once, headers left out.
const SEND_BYTES_MAX: usize = 65_000;
/// Datagrams that every kernel takes for segmentation at once.
const SEND_DATAGRAMS_MAX: usize = 64;
/// Datagrams of a batch that quinn fills when it has more to send.
const QUINN_DATAGRAMS: usize = 10;
/// Batches that are filled side by side; connections share them.
const SLOTS: usize = 4;

/// Batches on their way to one socket.
#[derive(Debug)]
pub(super) struct Batches {
    socket: Arc<dyn AsyncUdpSocket>,
    slots: [Mutex<Batch>; SLOTS],
    /// Something waits to be sent.
    filled: Arc<Notify>,
}

/// Datagrams of one size to one peer, one after another.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    way: Option<Way>,
}

/// What datagrams that are sent at once have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Way {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    segment_bytes: usize,
    src_ip: Option<IpAddr>,
}

impl Way {
    /// Of a full batch that further ones can join.
    fn of_full(transmit: &Transmit<'_>) -> Option<Way> {
        let segment_bytes = transmit.segment_size?;
        let len = transmit.contents.len();
        let joins = len == segment_bytes * QUINN_DATAGRAMS && room(segment_bytes) >= 2 * len;
        joins.then_some(Way {
            destination: transmit.destination,
            ecn: transmit.ecn,
            segment_bytes,
            src_ip: transmit.src_ip,
        })
    }

    fn transmit<'a>(&self, contents: &'a [u8]) -> Transmit<'a> {
        Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents,
            segment_size: (contents.len() > self.segment_bytes).then_some(self.segment_bytes),
            src_ip: self.src_ip,
        }
    }
}

/// Bytes of datagrams of this size that may be sent at once.
fn room(segment_bytes: usize) -> usize {
    (SEND_BYTES_MAX / segment_bytes).clamp(1, SEND_DATAGRAMS_MAX) * segment_bytes
}

impl Batches {
    /// For a socket; must be called in a tokio runtime.
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Arc<Self> {
        let filled = Arc::new(Notify::new());
        let batches = Arc::new(Batches {
            socket,
            slots: Default::default(),
            filled: filled.clone(),
        });
        tokio::spawn(send_leftovers(Arc::downgrade(&batches), filled));
        batches
    }

    /// Sends, now or very soon.
    pub(super) fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut batch = self.slots[slot(transmit.contents)]
            .lock()
            .expect("no panic while held");
        let way = Way::of_full(transmit);
        if !way.is_some_and(|way| batch.takes(&way, transmit.contents.len())) {
            // If the socket is full, both this and what waits are sent later.
            batch
                .flush(&*self.socket)
                .inspect_err(|_| self.filled.notify_one())?;
        }
        let Some(way) = way else {
            drop(batch);
            return self.send_now(transmit);
        };
        batch.way = Some(way);
        batch.bytes.extend_from_slice(transmit.contents);
        let is_full = !batch.takes(&way, transmit.contents.len());
        if !is_full || batch.flush(&*self.socket).is_err() {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// quinn asks for ten datagrams at once whatever their size: large ones go in several sends.
    fn send_now(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment_bytes = match transmit.segment_size {
            Some(bytes) if transmit.contents.len() > room(bytes) => bytes,
            _ => return self.socket.try_send(transmit),
        };
        let way = Way {
            destination: transmit.destination,
            ecn: transmit.ecn,
            segment_bytes,
            src_ip: transmit.src_ip,
        };
        // If the socket is full after the first send, quinn sends all again, and the peer drops
        // what it has: no harm, and rare.
        let mut sends = transmit.contents.chunks(room(segment_bytes));
        sends.try_for_each(|contents| self.socket.try_send(&way.transmit(contents)))
    }

    /// Sends what waits; `false`: the socket is full.
    fn flush(&self) -> bool {
        self.slots.iter().fold(true, |all, slot| {
            let mut batch = slot.lock().expect("no panic while held");
            batch.flush(&*self.socket).is_ok() && all
        })
    }
}

impl Batch {
    fn takes(&self, way: &Way, len: usize) -> bool {
        match &self.way {
            None => true,
            Some(mine) => mine == way && self.bytes.len() + len <= room(way.segment_bytes),
        }
    }

    /// Sends what waits. An error says that the socket is full; with any other the datagrams are
    /// lost, which quinn finds out as for any that the network loses.
    fn flush(&mut self, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let Some(way) = self.way else {
            return Ok(());
        };
        match socket.try_send(&way.transmit(&self.bytes)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(error) => tracing::debug!(%error, peer = %way.destination, "datagrams not sent"),
            Ok(()) => {}
        }
        self.way = None;
        self.bytes.clear();
        Ok(())
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // The last words of a connection may wait here; a full socket loses them, as it may.
        self.flush();
        self.filled.notify_one();
    }
}

/// Which batch a datagram joins: always the same for one connection (short headers begin with a byte of flags and the
/// connection's id), so that its datagrams leave in order whatever thread it runs on. What overtakes others is taken for a loss.
fn slot(datagram: &[u8]) -> usize {
    datagram.get(1).map_or(0, |id| usize::from(*id)) % SLOTS
}

/// Sends what no full batch took along, once the sender had its next turn.
async fn send_leftovers(batches: Weak<Batches>, filled: Arc<Notify>) {
    loop {
        filled.notified().await;
        tokio::task::yield_now().await;
        let Some(batches) = batches.upgrade() else {
            return;
        };
        if batches.flush() {
            continue;
        }
        let mut poller = batches.socket.clone().create_io_poller();
        let writable = std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx));
        // An error shows at the next send.
        let _ = writable.await;
        filled.notify_one();
    }
}

#[cfg(test)]
mod tests;
