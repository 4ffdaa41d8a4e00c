//! What data threads leave for control: handshakes, and in a mesh control packets, news of links
//! and what reflectors answered. Every queue is bounded; what finds no room is lost and counted.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};
use proto::control;

use super::RawHandshake;
use crate::data::link::Endpoint;
use crate::data::snapshot::LinkPlace;
use crate::io::boottime;
use crate::packet::probe;

/// Handshakes that reached data threads and wait for control.
const RAW_HANDSHAKES: usize = 256;
const CONTROL_PACKETS: usize = 4096;
/// All waiting control packets together.
const CONTROL_BYTES: usize = 4 << 20;
const NEWS: usize = 4096;
const REFLECTED: usize = 16;
const PROBES: usize = 64;
/// Taken of reflectors within a second; a question a second is much already.
const REFLECTED_A_SECOND: u32 = 64;
/// Reflectors that were asked last; one of each family is asked at a time.
const ASKED: usize = 8;
/// Reflectors answer with less.
const REFLECTED_LEN: usize = 512;
const _: () = assert!(
    CONTROL_BYTES
        + CONTROL_PACKETS * size_of::<ControlPacket>()
        + NEWS * size_of::<News>()
        + REFLECTED * (size_of::<Reflected>() + REFLECTED_LEN)
        + PROBES * (size_of::<LanProbe>() + probe::MAX_LEN)
        + RAW_HANDSHAKES * size_of::<RawHandshake>()
        < 6 << 20,
    "the most that can wait for control"
);
/// With this begin the datagrams of reflectors; no message of WireGuard does.
pub const REFLECTED_KIND: u8 = 0xc1;

/// A packet that was opened and is no data: it came from a link-local address.
#[derive(Debug)]
pub struct ControlPacket {
    pub place: LinkPlace,
    /// Of the datagram.
    pub from: Endpoint,
    pub packet: Box<[u8]>,
}

/// What happened to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A session became the one to send under, proven by a datagram from there.
    Session { place: LinkPlace, from: Endpoint },
    /// Something was opened that came from another address than the one in use; told once a second.
    Source { place: LinkPlace, from: Endpoint },
}

/// A datagram of a reflector.
#[derive(Debug)]
pub struct Reflected {
    pub from: SocketAddr,
    pub datagram: Box<[u8]>,
}

/// A packet that came from the TUN for one of our probe addresses.
#[derive(Debug)]
pub struct LanProbe {
    /// Whose queue it came by: the kernel takes answers by it.
    pub thread: usize,
    pub packet: Box<[u8]>,
}

pub struct ControlInbox {
    handshakes: ArrayQueue<RawHandshake>,
    mesh: Option<MeshQueues>,
    /// Woken already, and not there yet.
    waking: AtomicBool,
    wake: EventFd,
}

struct MeshQueues {
    packets: ArrayQueue<ControlPacket>,
    /// Whether control looks every few milliseconds anyway.
    is_looked_at: AtomicBool,
    packet_bytes: AtomicUsize,
    news: ArrayQueue<News>,
    reflected: ArrayQueue<Reflected>,
    probes: ArrayQueue<LanProbe>,
    asked: Mutex<Asked>,
}

/// Whose answers may come: everybody can send what begins like one.
#[derive(Default)]
struct Asked {
    reflectors: VecDeque<(IpAddr, u16)>,
    /// Since when so many were taken.
    since: Duration,
    taken: u32,
}

impl Asked {
    fn handle_question(&mut self, to: SocketAddr) {
        let to = plain(to);
        self.reflectors.retain(|reflector| *reflector != to);
        self.reflectors.truncate(ASKED - 1);
        self.reflectors.push_front(to);
    }

    fn admits(&mut self, from: SocketAddr, now: impl FnOnce() -> Duration) -> bool {
        if !self.reflectors.contains(&plain(from)) {
            return false;
        }
        let now = now();
        if now.saturating_sub(self.since) >= Duration::from_secs(1) {
            (self.since, self.taken) = (now, 0);
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= REFLECTED_A_SECOND
    }
}

/// A socket of both families shows an address otherwise than it was given.
fn plain(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

impl MeshQueues {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControlInbox {
    /// That of `causeway wg`: handshakes and nothing else.
    pub fn new() -> std::io::Result<ControlInbox> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(ControlInbox {
            handshakes: ArrayQueue::new(RAW_HANDSHAKES),
            mesh: None,
            waking: AtomicBool::new(false),
            wake,
        })
    }

    pub fn for_mesh() -> std::io::Result<ControlInbox> {
        let mesh = MeshQueues {
            packets: ArrayQueue::new(CONTROL_PACKETS),
            is_looked_at: AtomicBool::new(false),
            packet_bytes: AtomicUsize::new(0),
            news: ArrayQueue::new(NEWS),
            reflected: ArrayQueue::new(REFLECTED),
            probes: ArrayQueue::new(PROBES),
            asked: Mutex::default(),
        };
        Ok(ControlInbox {
            mesh: Some(mesh),
            ..ControlInbox::new()?
        })
    }

    /// False if there is no room, as with all that is pushed here.
    pub(in crate::data) fn push(&self, raw: RawHandshake) -> bool {
        let taken = self.handshakes.push(raw).is_ok();
        self.wake();
        taken
    }

    pub fn pop(&self) -> Option<RawHandshake> {
        self.handshakes.pop()
    }

    pub(in crate::data) fn push_packet(
        &self,
        place: LinkPlace,
        from: Endpoint,
        packet: &[u8],
    ) -> bool {
        let Some(mesh) = &self.mesh else { return false };
        let waiting = mesh.packet_bytes.fetch_add(packet.len(), Ordering::Relaxed);
        let taken = waiting + packet.len() <= CONTROL_BYTES
            && mesh
                .packets
                .push(ControlPacket {
                    place,
                    from,
                    packet: packet.into(),
                })
                .is_ok();
        if !taken {
            mesh.packet_bytes.fetch_sub(packet.len(), Ordering::Relaxed);
        }
        if !(mesh.is_looked_at.load(Ordering::Relaxed) && control::may_wait(packet)) {
            self.wake();
        }
        taken
    }

    /// From now on control looks every few milliseconds whether there are packets, and need not be
    /// woken for those that may wait. There is no way back: one would be lost on it.
    pub fn look_from_now_on(&self) {
        if let Some(mesh) = &self.mesh {
            mesh.is_looked_at.store(true, Ordering::Relaxed);
        }
    }

    pub fn is_looked_at(&self) -> bool {
        let mesh = self.mesh.as_ref();
        mesh.is_some_and(|mesh| mesh.is_looked_at.load(Ordering::Relaxed))
    }

    pub fn pop_packet(&self) -> Option<ControlPacket> {
        let mesh = self.mesh.as_ref()?;
        let popped = mesh.packets.pop()?;
        mesh.packet_bytes
            .fetch_sub(popped.packet.len(), Ordering::Relaxed);
        Some(popped)
    }

    pub(in crate::data) fn push_news(&self, news: News) -> bool {
        let Some(mesh) = &self.mesh else { return false };
        let taken = mesh.news.push(news).is_ok();
        self.wake();
        taken
    }

    pub fn pop_news(&self) -> Option<News> {
        self.mesh.as_ref()?.news.pop()
    }

    /// A question goes there, so answers may come from there.
    pub fn handle_question(&self, to: SocketAddr) {
        if let Some(mesh) = &self.mesh {
            mesh.asked().handle_question(to);
        }
    }

    /// Takes a datagram if it is of a reflector that was asked; for whoever reads a socket, in a
    /// mesh. What is not taken costs no allocation and wakes nobody.
    pub fn push_reflected(&self, from: SocketAddr, datagram: &[u8]) -> bool {
        let Some(mesh) = &self.mesh else { return false };
        if datagram.first() != Some(&REFLECTED_KIND) || datagram.len() > REFLECTED_LEN {
            return false;
        }
        if !mesh.asked().admits(from, boottime) || mesh.reflected.is_full() {
            return false;
        }
        let datagram = datagram.into();
        let taken = mesh.reflected.push(Reflected { from, datagram }).is_ok();
        self.wake();
        taken
    }

    pub fn pop_reflected(&self) -> Option<Reflected> {
        self.mesh.as_ref()?.reflected.pop()
    }

    pub(in crate::data) fn push_probe(&self, thread: usize, packet: &[u8]) -> bool {
        let Some(mesh) = &self.mesh else { return false };
        if packet.len() > probe::MAX_LEN || mesh.probes.is_full() {
            return false;
        }
        let packet = packet.into();
        let taken = mesh.probes.push(LanProbe { thread, packet }).is_ok();
        self.wake();
        taken
    }

    pub fn pop_probe(&self) -> Option<LanProbe> {
        self.mesh.as_ref()?.probes.pop()
    }

    pub fn wake(&self) {
        if !self.waking.swap(true, Ordering::SeqCst) {
            // Failing means the counter is at its limit: control will wake anyway.
            let _ = self.wake.write(1);
        }
    }

    /// To be called before the queues are emptied.
    pub fn woke(&self) {
        let _ = self.wake.read();
        // Not a mere store: what was pushed before is to be seen after.
        self.waking.swap(false, Ordering::SeqCst);
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests;
