//! A WireGuard peer driven by hand: it sends what no proper implementation would.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use crate::lab::Namespace;
use crate::shown::bytes;
use crate::wireguard::Keys;

/// One end of a tunnel without an interface.
pub struct Hand {
    socket: UdpSocket,
    tunnel: Tunn,
}

impl Hand {
    /// A peer with `keys` on a port of its own, for the device with the key `public` at `target`.
    pub fn new(
        namespace: &Namespace,
        keys: &Keys,
        public: &str,
        target: SocketAddr,
    ) -> Result<Hand> {
        let any = if target.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = namespace.within(|| UdpSocket::bind(any))??;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Hand {
            socket,
            tunnel: tunnel(keys, public)?,
        })
    }

    /// Its own port, on whatever address the route gives it.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// An initiation, not sent.
    pub fn initiation(&mut self) -> Result<Vec<u8>> {
        initiation(&mut self.tunnel)
    }

    /// Sends an initiation and takes the answer; the first data message confirms the session.
    pub fn shake(&mut self, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < limit {
            let initiation = self.initiation()?;
            self.send(&initiation)?;
            let Some(answer) = self.receive() else {
                continue;
            };
            let mut reply = [0; 256];
            match self.tunnel.decapsulate(None, &answer, &mut reply) {
                TunnResult::WriteToNetwork(keepalive) => {
                    let keepalive = keepalive.to_vec();
                    return self.send(&keepalive);
                }
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..) => {}
            }
        }
        bail!("no handshake within {limit:?}")
    }

    /// Seals whatever bytes are given, also those that are no packet.
    pub fn seal(&mut self, inner: &[u8]) -> Result<Vec<u8>> {
        let mut room = vec![0; inner.len() + 256];
        let TunnResult::WriteToNetwork(datagram) = self.tunnel.encapsulate(inner, &mut room) else {
            bail!("there is no session to seal under");
        };
        Ok(datagram.to_vec())
    }

    pub fn send(&self, datagram: &[u8]) -> Result<()> {
        self.socket.send(datagram).context("cannot send").map(drop)
    }

    /// The next datagram, if one comes within half a second.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        let length = self.socket.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
}

/// An initiation from a key that is nobody's, with a first authentication code that holds.
pub fn strange_initiation(namespace: &Namespace, public: &str) -> Result<Vec<u8>> {
    let keys = Keys::generate(namespace)?;
    initiation(&mut tunnel(&keys, public)?)
}

fn tunnel(keys: &Keys, public: &str) -> Result<Tunn> {
    let private = StaticSecret::from(bytes(&keys.private)?);
    let public = PublicKey::from(bytes(public)?);
    Ok(Tunn::new(private, public, None, None, 1, None))
}

fn initiation(tunnel: &mut Tunn) -> Result<Vec<u8>> {
    let mut room = [0; 256];
    let made = tunnel.format_handshake_initiation(&mut room, true);
    let TunnResult::WriteToNetwork(datagram) = made else {
        bail!("no initiation");
    };
    Ok(datagram.to_vec())
}

/// An IPv4 UDP packet as it would come out of a TUN, sums included.
pub fn udp_packet(source: ([u8; 4], u16), destination: ([u8; 4], u16), payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).expect("a short payload");
    let mut packet = vec![0x45, 0];
    packet.extend((20 + udp_length).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.0);
    packet.extend(destination.0);
    packet.extend(source.1.to_be_bytes());
    packet.extend(destination.1.to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    // No sum over UDP: IPv4 allows it.
    packet.extend([0, 0]);
    packet.extend(payload);
    let sum = header_checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn header_checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
