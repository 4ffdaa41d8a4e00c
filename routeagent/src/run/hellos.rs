//! The sockets for hellos and probes: one for each of this node's LAN addresses. They carry no mark,
//! so that a probe takes the way that packets of the mesh take.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;
use std::time::Duration;

use proto::lan::{MAX_DATAGRAM, PORT};
use tokio::net::UdpSocket;

/// Between tries to open one.
const AGAIN: Duration = Duration::from_secs(2);
/// What waited in a socket is read to the end before silence is judged, and no longer than this.
const MOST: usize = 256;

#[derive(Default)]
pub(super) struct Hellos {
    wanted: Vec<IpAddr>,
    sockets: Vec<(IpAddr, UdpSocket)>,
    failed: Vec<(IpAddr, io::Error)>,
    next: Option<Duration>,
}

impl Hellos {
    pub(super) fn handle_addresses(&mut self, lan: &[IpAddr], now: Duration) {
        if self.wanted != lan {
            self.wanted = lan.to_vec();
            self.sockets.retain(|(address, _)| lan.contains(address));
            self.open(now);
        }
    }

    pub(super) const fn due(&self) -> Option<Duration> {
        self.next
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if self.next.is_some_and(|at| now >= at) {
            self.open(now);
        }
    }

    fn open(&mut self, now: Duration) {
        self.failed.clear();
        for address in &self.wanted {
            if self.sockets.iter().any(|(open, _)| open == address) {
                continue;
            }
            match open((*address, PORT).into()) {
                Ok(socket) => self.sockets.push((*address, socket)),
                Err(error) => self.failed.push((*address, error)),
            }
        }
        self.next = (!self.failed.is_empty()).then(|| now + AGAIN);
    }

    pub(super) fn failed(&self) -> &[(IpAddr, io::Error)] {
        &self.failed
    }

    /// What cannot be sent counts as lost.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let mut all = self.sockets.iter();
        let fits = all.find(|(own, _)| own.is_ipv4() == to.is_ipv4());
        if let Some((_, socket)) = fits
            && let Err(error) = socket.try_send_to(datagram, to)
        {
            tracing::debug!(%to, %error, "a hello cannot be sent");
        }
    }

    /// Until there is something to read. Without a socket, for ever.
    pub(super) async fn readable(&self) {
        poll_fn(|context| {
            let mut all = self.sockets.iter();
            // One that fails is read like one that has something.
            if all.any(|(_, socket)| socket.poll_recv_ready(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// What waits in each socket, but for what is too much.
    pub(super) fn receive(&self, mut each: impl FnMut(SocketAddr, &[u8])) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for (_, socket) in &self.sockets {
            for _ in 0..MOST {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, from)) => each(from, &buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error of an earlier datagram: what is silent is judged by its silence.
                    Err(_) => {}
                }
            }
        }
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
