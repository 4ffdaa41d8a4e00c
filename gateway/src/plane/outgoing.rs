//! What the plane has for the daemon: one list, taken whole.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::key::PublicKey;
use tokio::sync::Notify;

/// Control packets beyond this are lost, as on a network; news are few and always kept.
const MAX_PACKETS: usize = 8192;
const MAX_PACKET_BYTES: usize = 4 << 20;
/// Apart from control packets, which they must not crowd out.
const MAX_REFLECTED: usize = 16;
const MAX_PROBES: usize = 256;

#[derive(Debug)]
pub enum PlaneEvent {
    /// Came through the tunnel of this gateway; read by nobody yet.
    Control {
        from: PublicKey,
        source: SocketAddr,
        packet: Box<[u8]>,
    },
    /// There is a new session, confirmed by a datagram from there.
    Session { of: PublicKey, source: SocketAddr },
    /// Datagrams of it come from an address that is not in use.
    Source { of: PublicKey, source: SocketAddr },
    /// Begins like an answer of a reflector; nothing of it is verified.
    Reflected {
        from: SocketAddr,
        datagram: Box<[u8]>,
    },
    /// A packet from the TUN to one of our probe addresses; nothing of it is verified. The answer
    /// goes back by the same thread.
    LanProbe { thread: usize, packet: Box<[u8]> },
    /// Addresses or routes of this host have changed.
    Addresses,
    /// The interface was deleted and is there again, or cannot be made.
    Interface(Result<(), String>),
}

#[derive(Default)]
pub(super) struct Outgoing {
    list: Mutex<List>,
    filled: Notify,
}

#[derive(Default)]
struct List {
    events: Vec<PlaneEvent>,
    packets: usize,
    packet_bytes: usize,
    reflected: usize,
    probes: usize,
    is_closed: bool,
}

impl List {
    /// Counts it in if there is room for it.
    fn has_room(&mut self, event: &PlaneEvent) -> bool {
        match event {
            PlaneEvent::Control { packet, .. } => {
                let bytes = self.packet_bytes + packet.len();
                let room = self.packets < MAX_PACKETS && bytes <= MAX_PACKET_BYTES;
                if room {
                    self.packets += 1;
                    self.packet_bytes = bytes;
                }
                room
            }
            PlaneEvent::Reflected { .. } => {
                let room = self.reflected < MAX_REFLECTED;
                self.reflected += usize::from(room);
                room
            }
            PlaneEvent::LanProbe { .. } => {
                let room = self.probes < MAX_PROBES;
                self.probes += usize::from(room);
                room
            }
            PlaneEvent::Session { .. }
            | PlaneEvent::Source { .. }
            | PlaneEvent::Addresses
            | PlaneEvent::Interface(_) => true,
        }
    }

    fn take(&mut self) -> Vec<PlaneEvent> {
        (self.packets, self.packet_bytes) = (0, 0);
        (self.reflected, self.probes) = (0, 0);
        std::mem::take(&mut self.events)
    }
}

impl Outgoing {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many had no room.
    pub(super) fn push(&self, events: Vec<PlaneEvent>) -> u64 {
        if events.is_empty() {
            return 0;
        }
        let mut lost = 0;
        let mut list = self.list();
        for event in events {
            if list.has_room(&event) {
                list.events.push(event);
            } else {
                lost += 1;
            }
        }
        drop(list);
        self.filled.notify_one();
        lost
    }

    pub(super) fn close(&self) {
        self.list().is_closed = true;
        self.filled.notify_one();
    }

    /// Waits for at least one; none means that no more will come. Cancelling it loses nothing.
    pub(super) async fn take(&self) -> Vec<PlaneEvent> {
        loop {
            {
                let mut list = self.list();
                if !list.events.is_empty() {
                    return list.take();
                }
                if list.is_closed {
                    return Vec::new();
                }
            }
            self.filled.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reflected() -> PlaneEvent {
        PlaneEvent::Reflected {
            from: ([192, 0, 2, 1], 7800).into(),
            datagram: Box::default(),
        }
    }

    fn packet(len: usize) -> impl Fn() -> PlaneEvent {
        let from = proto::key::SigningKey::from_seed(&[7; 32]).public();
        move || PlaneEvent::Control {
            from,
            source: ([192, 0, 2, 1], 7800).into(),
            packet: vec![0; len].into(),
        }
    }

    fn push(outgoing: &Outgoing, count: usize, event: impl Fn() -> PlaneEvent) -> u64 {
        outgoing.push((0..count).map(|_| event()).collect())
    }

    #[tokio::test]
    async fn packets_beyond_the_bound_are_counted_and_news_are_kept() {
        let outgoing = Outgoing::default();
        assert_eq!(push(&outgoing, MAX_PACKETS + 3, packet(40)), 3);
        assert_eq!(outgoing.push(vec![PlaneEvent::Addresses]), 0);
        let taken = outgoing.take().await;
        assert_eq!(taken.len(), MAX_PACKETS + 1);
        assert!(matches!(taken.last(), Some(PlaneEvent::Addresses)));
        assert_eq!(push(&outgoing, MAX_PACKETS, packet(40)), 0);
    }

    #[tokio::test]
    async fn packets_are_bounded_in_bytes_and_room_comes_back() {
        let outgoing = Outgoing::default();
        let fit = MAX_PACKET_BYTES / 9216;
        for _ in 0..2 {
            assert_eq!(push(&outgoing, fit + 5, packet(9216)), 5);
            assert_eq!(outgoing.take().await.len(), fit);
        }
    }

    #[tokio::test]
    async fn a_flood_of_reflected_datagrams_leaves_room_for_hellos() {
        let outgoing = Outgoing::default();
        let lost = push(&outgoing, 2 * MAX_PACKETS, reflected);
        assert_eq!(lost as usize, 2 * MAX_PACKETS - MAX_REFLECTED);
        assert_eq!(push(&outgoing, MAX_PACKETS, packet(40)), 0);
        assert_eq!(outgoing.take().await.len(), MAX_REFLECTED + MAX_PACKETS);
    }

    #[tokio::test]
    async fn what_was_left_is_taken_before_the_end_is_told() {
        let outgoing = Outgoing::default();
        outgoing.push(vec![PlaneEvent::Addresses]);
        outgoing.close();
        assert_eq!(outgoing.take().await.len(), 1);
        assert!(outgoing.take().await.is_empty());
    }
}
