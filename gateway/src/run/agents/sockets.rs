//! Where agents ask: one socket for each of this node's LAN addresses, made anew when they change
//! and tried again while that fails.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};
use std::task::Poll;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use proto::lan::{MAX_DATAGRAM, PORT};
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::io::boottime;

/// Read in one go; others get their turn.
const AT_ONCE: usize = 256;
const AGAIN: Duration = Duration::from_secs(1);
/// Hundreds of agents may ask at once.
const BUFFER: usize = 1 << 20;

/// An address that cannot be listened on.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) address: SocketAddr,
    pub(super) error: io::Error,
}

pub(super) struct Sockets {
    fwmark: u32,
    wanted: Vec<SocketAddr>,
    open: Vec<(SocketAddr, UdpSocket)>,
    failing: watch::Sender<Vec<Failed>>,
    again: Option<Duration>,
    port: u16,
}

impl Sockets {
    pub(super) fn new(fwmark: u32, failing: watch::Sender<Vec<Failed>>) -> Sockets {
        Sockets {
            fwmark,
            wanted: Vec::new(),
            open: Vec::new(),
            failing,
            again: None,
            port: PORT,
        }
    }

    pub(super) fn handle_addresses(&mut self, lan: &[IpAddr]) {
        let port = self.port;
        self.wanted = lan
            .iter()
            .map(|address| SocketAddr::new(*address, port))
            .collect();
        self.open
            .retain(|(address, _)| self.wanted.contains(address));
        self.bind();
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if self.again.is_some_and(|at| now >= at) {
            self.bind();
        }
    }

    pub(super) const fn poll_timeout(&self) -> Option<Duration> {
        self.again
    }

    fn bind(&mut self) {
        let mut failed = Vec::new();
        for address in &self.wanted {
            if self.open.iter().any(|(open, _)| open == address) {
                continue;
            }
            match bind(*address, self.fwmark) {
                Ok(socket) => {
                    tracing::debug!(%address, "listens for agents");
                    self.open.push((*address, socket));
                }
                Err(error) => failed.push(Failed {
                    address: *address,
                    error,
                }),
            }
        }
        self.again = (!failed.is_empty()).then(|| boottime() + AGAIN);
        for Failed { address, error } in &failed {
            let known = |known: &Failed| known.address == *address;
            if !self.failing.borrow().iter().any(known) {
                tracing::warn!(%address, "cannot listen for agents: {error}");
            }
        }
        self.failing.send_replace(failed);
    }

    /// Never, without a socket.
    pub(super) async fn readable(&self) {
        poll_fn(|context| {
            let ready =
                |(_, socket): &(SocketAddr, UdpSocket)| socket.poll_recv_ready(context).is_ready();
            // All are asked, so that each wakes us.
            let count = self.open.iter().map(ready).filter(|ready| *ready).count();
            if count > 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// What has come, in its order.
    pub(super) fn read(&self, mut take: impl FnMut(SocketAddr, &[u8], Duration)) {
        // One more than the longest, so that a longer one is seen to be.
        let mut datagram = [0; MAX_DATAGRAM + 1];
        for (_, socket) in &self.open {
            for _ in 0..AT_ONCE {
                match socket.try_recv_from(&mut datagram) {
                    Ok((length, from)) => take(from, &datagram[..length], boottime()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An earlier answer met a closed port; the next datagram may be well.
                    Err(_) => {}
                }
            }
        }
    }

    /// What cannot be sent is lost; it is asked for again.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let fits = |(own, _): &&(SocketAddr, UdpSocket)| own.is_ipv4() == to.is_ipv4();
        if let Some((_, socket)) = self.open.iter().find(fits)
            && let Err(error) = socket.try_send_to(datagram, to)
        {
            tracing::debug!(%to, "cannot answer an agent: {error}");
        }
    }
}

fn bind(address: SocketAddr, fwmark: u32) -> io::Result<UdpSocket> {
    let socket = StdSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Both need a privilege that a gateway has; a test may lack it and misses nothing.
    let _marked = setsockopt(&socket, sockopt::Mark, &fwmark);
    let _larger = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockets() -> (Sockets, watch::Receiver<Vec<Failed>>) {
        let (failing, failed) = watch::channel(vec![]);
        let mut sockets = Sockets::new(0, failing);
        sockets.port = 0;
        (sockets, failed)
    }

    #[tokio::test]
    async fn what_comes_to_either_address_is_read_and_answered_from_it() {
        let (mut sockets, failed) = sockets();
        sockets.handle_addresses(&["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()]);
        assert!(failed.borrow().is_empty());
        for at in 0..2 {
            let address = sockets.open[at].1.local_addr().unwrap();
            let agent = StdSocket::bind("127.0.0.1:0").unwrap();
            agent.send_to(b"ask", address).unwrap();
            sockets.readable().await;
            let mut came = vec![];
            while came.is_empty() {
                sockets.read(|from, datagram, _| came.push((from, datagram.to_vec())));
                tokio::task::yield_now().await;
            }
            assert_eq!(came, [(agent.local_addr().unwrap(), b"ask".to_vec())]);
            sockets.send(came[0].0, b"answer");
            let mut datagram = [0; 16];
            let (length, from) = agent.recv_from(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], b"answer");
            assert_eq!(from, sockets.open[0].1.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_and_tried_again() {
        let taken = StdSocket::bind("127.0.0.1:0").unwrap();
        let (mut sockets, failed) = sockets();
        sockets.port = taken.local_addr().unwrap().port();
        sockets.handle_addresses(&["127.0.0.1".parse().unwrap()]);
        let kind = |failed: &[Failed]| failed.iter().map(|one| one.error.kind()).next();
        assert_eq!(kind(&failed.borrow()), Some(io::ErrorKind::AddrInUse));
        let again = sockets.poll_timeout().unwrap();
        drop(taken);
        sockets.handle_timeout(again);
        assert!(failed.borrow().is_empty() && sockets.open.len() == 1);
        assert_eq!(sockets.poll_timeout(), None);
        sockets.handle_addresses(&[]);
        assert!(sockets.open.is_empty());
    }
}
