//! What the plane has for the daemon: one list, taken whole.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::key::PublicKey;
use tokio::sync::Notify;

/// Packets beyond this are lost, as on a network; news are few and always kept.
const MAX_PACKETS: usize = 8192;

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
    /// Addresses or routes of this host have changed.
    Addresses,
    /// The interface was deleted and is there again, or cannot be made.
    Interface(Result<(), String>),
}

impl PlaneEvent {
    fn is_packet(&self) -> bool {
        matches!(
            self,
            PlaneEvent::Control { .. } | PlaneEvent::Reflected { .. }
        )
    }
}

#[derive(Default)]
pub(super) struct Outgoing {
    list: Mutex<List>,
    filled: Notify,
}

#[derive(Default)]
struct List {
    events: Vec<PlaneEvent>,
    is_closed: bool,
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
            if list.events.len() >= MAX_PACKETS && event.is_packet() {
                lost += 1;
            } else {
                list.events.push(event);
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
                    return std::mem::take(&mut list.events);
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

    fn packet() -> PlaneEvent {
        PlaneEvent::Reflected {
            from: ([192, 0, 2, 1], 7800).into(),
            datagram: Box::default(),
        }
    }

    #[tokio::test]
    async fn packets_beyond_the_bound_are_counted_and_news_are_kept() {
        let outgoing = Outgoing::default();
        let packets = (0..MAX_PACKETS + 3).map(|_| packet()).collect();
        assert_eq!(outgoing.push(packets), 3);
        assert_eq!(outgoing.push(vec![PlaneEvent::Addresses]), 0);
        let taken = outgoing.take().await;
        assert_eq!(taken.len(), MAX_PACKETS + 1);
        assert!(matches!(taken.last(), Some(PlaneEvent::Addresses)));
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
