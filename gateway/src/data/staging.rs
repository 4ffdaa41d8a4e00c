//! Packets that wait for a session. Bounded in bytes and in number; the oldest goes first.

use std::collections::VecDeque;

use crate::io::udp::Mark;

/// As many as the kernel stages.
const STAGED_PACKETS: usize = 128;
/// Per link: more than one superpacket, so that a first burst survives the handshake.
pub(crate) const STAGED_BYTES: usize = 128 << 10;

#[derive(Debug, Default)]
pub(crate) struct Staging {
    packets: VecDeque<(Mark, Box<[u8]>)>,
    bytes: usize,
}

impl Staging {
    /// Keeps a copy of one packet and its mark; returns how many older ones had to go.
    pub(crate) fn push(&mut self, mark: Mark, packet: &[u8]) -> u64 {
        self.packets.push_back((mark, packet.into()));
        self.bytes += packet.len();
        let mut dropped = 0;
        while (self.bytes > STAGED_BYTES || self.packets.len() > STAGED_PACKETS)
            && self.pop().is_some()
        {
            dropped += 1;
        }
        dropped
    }

    pub(crate) fn pop(&mut self) -> Option<(Mark, Box<[u8]>)> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.1.len();
        Some(packet)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Forgets everything; returns how many packets that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let dropped = self.packets.len() as u64;
        *self = Staging::default();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(ecn: u8) -> Mark {
        Mark { ecn, hops: 0 }
    }

    #[test]
    fn the_oldest_go_when_the_room_is_full() {
        let mut staging = Staging::default();
        let packet = vec![0; 60_000];
        assert_eq!(staging.push(mark(0), &packet), 0);
        assert_eq!(staging.push(mark(1), &packet), 0);
        assert_eq!(staging.push(mark(2), &packet), 1);
        assert_eq!(staging.pop().map(|(mark, _)| mark.ecn), Some(1));
        assert_eq!(staging.clear(), 1);
        assert!(staging.is_empty() && staging.bytes == 0);
    }

    #[test]
    fn small_packets_are_bounded_in_number() {
        let mut staging = Staging::default();
        let dropped: u64 = (0..200).map(|_| staging.push(mark(0), &[0; 20])).sum();
        assert_eq!((dropped, staging.clear()), (72, 128));
    }
}
