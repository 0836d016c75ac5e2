//! What the kernel knows of the way to a peer: how large a datagram may leave this machine.
//!
//! QUIC finds the largest that arrives by trying, from what every path carries up to a bound. With
//! the interface's own limit as that bound the search is short and every try may succeed.
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// Bytes of the IPv4 and the UDP header.
const HEADERS_BYTES_IPV4: u32 = 20 + 8;
/// Bytes of the IPv6 and the UDP header.
const HEADERS_BYTES_IPV6: u32 = 40 + 8;

/// The largest UDP payload that the interface towards `peer` takes, if the kernel tells.
pub(super) fn payload_bytes_max(peer: SocketAddr) -> Option<u32> {
    let mtu = path_mtu(peer).ok()?;
    let headers = if peer.is_ipv4() {
        HEADERS_BYTES_IPV4
    } else {
        HEADERS_BYTES_IPV6
    };
    mtu.checked_sub(headers)
}

fn path_mtu(peer: SocketAddr) -> io::Result<u32> {
    let (any, level, option): (IpAddr, _, _) = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), libc::IPPROTO_IP, libc::IP_MTU),
        SocketAddr::V6(_) => (
            Ipv6Addr::UNSPECIFIED.into(),
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU,
        ),
    };
    // Connecting a UDP socket sends nothing: it looks up the route, which is what is asked for.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    let mut mtu: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` lives; `mtu` and `len` are ours, live
    // across the call, and `len` says how many bytes `mtu` has room for.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut mtu).cast(),
            &raw mut len,
        )
    };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(mtu).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_takes_the_largest() {
        let payload = payload_bytes_max("127.0.0.1:9".parse().unwrap()).unwrap();
        assert!(payload > 10_000, "{payload}");
    }
}
