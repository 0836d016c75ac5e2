//! Unix stream sockets that wake their reader when something can be read, and for nothing else.
//!
//! The runtime's own sockets are registered for reading and writing at once. The kernel then wakes who waits to read also each time that
//! the other side has taken what was written: once for every message, in vain. Here a socket is registered for writing only while it is
//! full. Who takes part: the sessions of a node's own machine, its workers, its Redis. Not for TCP, which tells of room only to who lacked it.
use bytes::Buf;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, sendmsg, shutdown};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Pieces handed to one system call.
pub const SLICES_MAX: usize = 64;

/// The reading half.
pub struct QuietReader {
    socket: AsyncFd<OwnedFd>,
}

/// The writing half. The connection is closed for writing when it is dropped.
pub struct QuietWriter {
    socket: OwnedFd,
}

/// Both halves, for who wants one stream.
pub struct QuietStream {
    reader: QuietReader,
    writer: QuietWriter,
    /// While it is full.
    full: Option<AsyncFd<OwnedFd>>,
}

/// Makes halves of a connected socket. Must be called on a runtime. Errors: those of `fcntl` and `epoll_ctl`.
pub fn halves(stream: UnixStream) -> io::Result<(QuietReader, QuietWriter)> {
    stream.set_nonblocking(true)?;
    let socket = OwnedFd::from(stream);
    let writer = QuietWriter {
        socket: socket.try_clone()?,
    };
    let reader = QuietReader {
        socket: watched(socket, Interest::READABLE)?,
    };
    Ok((reader, writer))
}

fn watched(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, always the same, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

impl AsyncRead for QuietReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(context))?;
            // SAFETY: the kernel writes into it; nothing that was initialised before becomes anything else.
            let room = unsafe { buffer.unfilled_mut() };
            let wanted = room.len();
            match recv(self.socket.get_ref(), room, RecvFlags::DONTWAIT) {
                Ok(((filled, _), _)) => {
                    let count = filled.len();
                    // Less than there was room for: no more is there, and the next arrival is told.
                    if count > 0 && count < wanted {
                        guard.clear_ready();
                    }
                    // SAFETY: so many bytes at its beginning were just written.
                    unsafe { buffer.assume_init(count) };
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl QuietWriter {
    /// Writes what fits now, without waiting; `None`: nothing does.
    pub fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            return match sendmsg(&self.socket, slices, &mut Default::default(), flags) {
                Ok(count) => Ok(Some(count)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Waits until something fits.
    pub async fn writable(&self) -> io::Result<()> {
        let watched = watched(self.socket.try_clone()?, Interest::WRITABLE)?;
        watched.writable().await.map(drop)
    }
}

impl Drop for QuietWriter {
    fn drop(&mut self) {
        let _ = shutdown(self.socket.as_fd(), Shutdown::Write);
    }
}

impl QuietStream {
    /// Of a connected socket. Must be called on a runtime. Errors: as of [`halves`].
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let (reader, writer) = halves(stream)?;
        Ok(Self {
            reader,
            writer,
            full: None,
        })
    }
}

impl AsyncRead for QuietStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for QuietStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(count) = self.writer.write_now(slices)? {
                self.full = None;
                return Poll::Ready(Ok(count));
            }
            let full = match self.full.take() {
                Some(full) => full,
                None => watched(self.writer.socket.try_clone()?, Interest::WRITABLE)?,
            };
            match full.poll_write_ready(context) {
                Poll::Ready(guard) => {
                    guard?.clear_ready();
                    self.full = Some(full);
                }
                Poll::Pending => {
                    self.full = Some(full);
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.writer.socket, Shutdown::Write).map_err(io::Error::from))
    }
}

/// Takes `count` bytes off the front of chunks, and empty chunks with them.
pub fn advance(chunks: &mut std::collections::VecDeque<bytes::Bytes>, mut count: usize) {
    while let Some(first) = chunks.front_mut() {
        let taken = count.min(first.len());
        first.advance(taken);
        count -= taken;
        if !first.is_empty() {
            return;
        }
        chunks.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::collections::VecDeque;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const WAIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn bytes_arrive_both_ways_and_in_order_however_slow_the_reader() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut near, mut far) = (
            QuietStream::new(near).unwrap(),
            QuietStream::new(far).unwrap(),
        );
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut got = Vec::new();
        let read = tokio::time::timeout(WAIT, far.read_to_end(&mut got));
        read.await.expect("in time").unwrap();
        assert!(got == expected);
        far.write_all(b"thanks").await.unwrap();
        drop(far);
        let answer = tokio::time::timeout(WAIT, writer).await.expect("in time");
        assert_eq!(answer.unwrap(), b"thanks");
    }

    #[tokio::test]
    async fn a_reader_is_not_woken_by_what_the_other_side_reads() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut reader, writer) = halves(near).unwrap();
        let mut polled = 0;
        let mut byte = [0];
        let reading = std::future::poll_fn(|context| {
            polled += 1;
            Pin::new(&mut reader).poll_read(context, &mut ReadBuf::new(&mut byte))
        });
        let other = async {
            for _ in 0..20 {
                writer.write_now(&[IoSlice::new(b"ping")]).unwrap();
                let mut ping = [0; 4];
                io::Read::read_exact(&mut &far, &mut ping).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            io::Write::write_all(&mut &far, b"x").unwrap();
        };
        let both = async { tokio::join!(reading, other) };
        let (read, ()) = tokio::time::timeout(WAIT, both).await.expect("in time");
        read.unwrap();
        assert_eq!(byte, [b'x']);
        // `join!` polls both whenever one of them is woken; so the clock of the other counts, but no second wake-up for each message.
        assert!(polled <= 24, "polled {polled} times");
    }

    #[tokio::test]
    async fn a_full_socket_is_waited_for() {
        let (near, far) = UnixStream::pair().unwrap();
        let (_reader, writer) = halves(near).unwrap();
        let piece = vec![1; 64 * 1024];
        let mut sent = 0;
        while let Some(count) = writer.write_now(&[IoSlice::new(&piece)]).unwrap() {
            sent += count;
        }
        let full = tokio::time::timeout(Duration::from_millis(20), writer.writable());
        assert!(full.await.is_err());
        let mut taken = vec![0; sent];
        io::Read::read_exact(&mut &far, &mut taken).unwrap();
        let writable = tokio::time::timeout(WAIT, writer.writable());
        writable.await.expect("in time").unwrap();
    }

    #[test]
    fn chunks_are_taken_off_in_order() {
        let mut chunks = VecDeque::from([&b"abc"[..], b"", b"de"].map(Bytes::from_static));
        advance(&mut chunks, 2);
        assert_eq!(chunks.iter().map(Bytes::len).collect::<Vec<_>>(), [1, 0, 2]);
        advance(&mut chunks, 1);
        assert_eq!(chunks, [Bytes::from_static(b"de")]);
        advance(&mut chunks, 2);
        assert!(chunks.is_empty());
    }
}
