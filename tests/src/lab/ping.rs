//! An echo request from the kernel's own echo sockets, so that no test depends on a ping program.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const PAYLOAD: &[u8] = b"causeway laboratory";

/// Sends one request from the calling thread's namespace and waits for its answer.
pub(super) fn once(to: IpAddr, limit: Duration) -> io::Result<Duration> {
    let (family, protocol, request) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let descriptor = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)?;
    // The kernel's echo sockets behave as UDP ones do: connect, send, receive, time out.
    let socket = UdpSocket::from(descriptor);
    socket.connect(SocketAddr::new(to, 0))?;
    socket.set_read_timeout(Some(limit))?;

    // Type, code, checksum, identifier, sequence; the kernel fills in the middle two.
    let mut packet = vec![request, 0, 0, 0, 0, 0, 0, 1];
    packet.extend_from_slice(PAYLOAD);
    let begin = Instant::now();
    socket.send(&packet)?;
    let mut answer = [0; 128];
    loop {
        let length = socket.recv(&mut answer)?;
        if answer[..length].ends_with(PAYLOAD) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}
