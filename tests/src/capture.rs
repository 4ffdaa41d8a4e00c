//! What passes the interfaces of a namespace, as the kernel shows it to a packet socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use crate::lab::Namespace;

/// `PACKET_OUTGOING`: sent by this host.
const OUTGOING: u8 = 4;

/// One packet, from its IP header on; a superpacket is one packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub at: Instant,
    pub outgoing: bool,
    pub bytes: Vec<u8>,
}

/// A UDP datagram of a captured packet.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Traffic class, ECN in its two low bits.
    pub tos: u8,
    pub payload: &'a [u8],
}

/// Keeps what passes one interface and is wanted, until it is dropped.
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Wanted = Box<dyn Fn(&Packet) -> bool + Send>;

impl Capture {
    /// Starts to watch `interface` of `namespace`.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        wanted: impl Fn(&Packet) -> bool + Send + 'static,
    ) -> Result<Capture> {
        let (descriptor, index) = namespace
            .within(|| open(interface))?
            .with_context(|| format!("cannot watch {interface} of {}", namespace.name()))?;
        let packets = Arc::<Mutex<Vec<Packet>>>::default();
        let ended = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (packets, ended) = (Arc::clone(&packets), Arc::clone(&ended));
            let wanted: Wanted = Box::new(wanted);
            move || watch(&descriptor, index, &wanted, (&packets, &ended))
        });
        Ok(Capture {
            packets,
            ended,
            thread: Some(thread),
        })
    }

    /// All so far.
    pub fn packets(&self) -> Vec<Packet> {
        self.packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn count(&self) -> usize {
        self.packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Packet {
    /// The UDP datagram in it, if it is one.
    pub fn datagram(&self) -> Option<Datagram<'_>> {
        let bytes = &self.bytes;
        let (source, destination, tos, udp) = match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 15) * 4;
                (*bytes.get(9)? == 17).then_some(())?;
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets).into())
                };
                (address(12)?, address(16)?, bytes[1], bytes.get(header..)?)
            }
            6 => {
                (*bytes.get(6)? == 17).then_some(())?;
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).into())
                };
                let tos = (bytes[0] << 4) | (bytes[1] >> 4);
                (address(8)?, address(24)?, tos, bytes.get(40..)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
        Some(Datagram {
            source: SocketAddr::new(source, port(0)?),
            destination: SocketAddr::new(destination, port(2)?),
            tos,
            payload: udp.get(8..)?,
        })
    }
}

fn open(interface: &str) -> Result<(OwnedFd, usize)> {
    let index = if_nametoindex(interface).context("no such interface")?;
    let descriptor = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )?;
    setsockopt(&descriptor, ReceiveTimeout, &TimeVal::new(0, 50_000))?;
    setsockopt(&descriptor, RcvBufForce, &(16 << 20))?;
    Ok((descriptor, usize::try_from(index)?))
}

fn watch(
    descriptor: &OwnedFd,
    index: usize,
    wanted: &Wanted,
    (packets, ended): (&Mutex<Vec<Packet>>, &AtomicBool),
) {
    let mut buffer = vec![0; 1 << 17];
    while !ended.load(Ordering::Relaxed) {
        let Ok((length, Some(address))) = recvfrom::<LinkAddr>(descriptor.as_raw_fd(), &mut buffer)
        else {
            continue;
        };
        if address.ifindex() != index {
            continue;
        }
        let packet = Packet {
            at: Instant::now(),
            outgoing: address.pkttype() == OUTGOING,
            bytes: buffer[..length].to_vec(),
        };
        if wanted(&packet) {
            packets
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(packet);
        }
    }
}
