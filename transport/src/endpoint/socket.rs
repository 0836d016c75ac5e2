//! The UDP socket under the endpoint.
use super::batch::Batches;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, UdpPoller};
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What the kernel may hold for us while we are at something else.
const BUFFER_BYTES: usize = 8 << 20;

/// Binds; `[::]` means all addresses, IPv4 too, also on a machine without IPv6.
pub(super) fn bind(listen: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let all_addresses = listen.is_ipv6() && listen.ip().is_unspecified();
    let socket = match bind_one(listen) {
        Err(error) if all_addresses && lacks_ipv6(&error) => {
            bind_one(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port()))?
        }
        bound => bound?,
    };
    let inner = quinn::TokioRuntime.wrap_udp_socket(socket)?;
    let batches = Batches::new(inner.clone());
    Ok(Arc::new(Socket { inner, batches }))
}

fn bind_one(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(
        family,
        SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        Some(ipproto::UDP),
    )?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    enlarge_buffers(&socket);
    rustix::net::bind(&socket, &address)?;
    Ok(socket.into())
}

/// As large as allowed: beyond the system's limit as root, else up to it.
fn enlarge_buffers(socket: &OwnedFd) {
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(socket, BUFFER_BYTES);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(socket, BUFFER_BYTES);
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT)
    )
}

/// quinn's own socket, but for how much is sent at once and the size of the receive buffers.
#[derive(Debug)]
struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    batches: Arc<Batches>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.batches.send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    /// One: quinn multiplies this with the largest payload to size each receive buffer, and one
    /// buffer of the largest payload already holds whatever the kernel coalesces (64 KiB at most).
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_take_ipv4() {
        let socket = bind(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        other.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let mut buffer = [0; 64];
        let mut meta = [RecvMeta::default()];
        let received = std::future::poll_fn(|cx| {
            socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)
        });
        tokio::time::timeout(std::time::Duration::from_secs(5), received)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&buffer[..meta[0].len], b"hello");
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = bind(taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
