//! The way out: frames from the TUN, to the link that carries them.

use std::time::Duration;

use super::fitted::TooLarge;
use super::{DataThread, ERRORS_PER_SECOND, FRAME_BUFFER};
use crate::data::link_local;
use crate::data::mailbox::Frame;
use crate::data::snapshot::LinkPlace;
use crate::drops::DropReason;
use crate::packet::split::{SPARE, Segments};
use crate::packet::vnet::{Gso, VnetHeader};
use crate::packet::{address, mss, unreachable};

/// A tunnel inside this one starts with so many hops less than its own packets have: tunnels that
/// lead into each other would else carry one packet round for ever, growing and in pieces.
const NESTED_HOPS: u8 = 8;
/// Frames taken from the TUN before the network is looked at again.
const TUN_BURST: usize = 16;
/// Sealed bytes that are worth a system call at once.
const SEND_AT: usize = 128 << 10;
/// How often we give way to a thread whose ring is full before a frame for it is dropped: two that
/// wait for each other must not do so for ever.
const WAITS_FOR_ROOM: u32 = 256;

impl DataThread {
    /// After a sleep the first frame leaves at once: it may be the only one, and someone waits for it.
    pub(super) fn read_tun(&mut self, slept: bool) -> bool {
        for count in 0..TUN_BURST {
            if !self.attached || self.outbox.is_full() {
                return count > 0;
            }
            let end = FRAME_BUFFER - SPARE;
            match self.tun.read(&mut self.frame[..end]) {
                Ok(Some(len)) => self.frame_from_tun(len),
                Ok(None) => return count > 0,
                Err(error) => {
                    tracing::debug!(%error, "TUN read failed");
                    return false;
                }
            }
            if self.outbox.waiting() >= SEND_AT || (slept && count == 0) {
                self.flush();
            }
        }
        true
    }

    fn frame_from_tun(&mut self, len: usize) {
        let Some(packet) = self.frame.get(VnetHeader::LEN..len) else {
            return self.drops.count(DropReason::TunMalformed);
        };
        let snapshot = self.snapshot.load();
        if snapshot.is_mesh() && link_local::concerns(packet) {
            return self.drops.count(DropReason::ControlFromTun);
        }
        let Some(to) = address::destination(packet) else {
            return self.drops.count(DropReason::TunMalformed);
        };
        match snapshot.link_for(to, packet) {
            Ok(place) => self.give_to(place, len),
            Err(DropReason::LanProbe) => self.take_probe(len),
            Err(reason) => {
                let frame = std::mem::take(&mut self.frame);
                self.refuse(reason, &frame[VnetHeader::LEN..len]);
                self.frame = frame;
            }
        }
    }

    /// Gives the frame that was read to its link, here or on another thread.
    pub(super) fn give_to(&mut self, place: LinkPlace, len: usize) {
        if place.thread as usize != self.id {
            return self.hand_over(place, len);
        }
        if self
            .links
            .get(place.slot as usize)
            .is_none_or(Option::is_none)
        {
            // The snapshot may be newer than the commands we followed.
            self.obey();
        }
        let mut frame = std::mem::take(&mut self.frame);
        self.transmit(place.slot, &mut frame, len);
        self.frame = frame;
    }

    pub(super) fn transmit(&mut self, slot: u32, frame: &mut [u8], len: usize) {
        let header = frame.first_chunk().and_then(VnetHeader::parse);
        let Some(header) = header else {
            return self.drops.count(DropReason::VnetHeader);
        };
        let packet_len = len - VnetHeader::LEN;
        let packet = &frame[VnetHeader::LEN..len];
        let hops = match address::tunnel_hops(packet) {
            None => 0,
            Some(hops) if hops > NESTED_HOPS && !self.is_own_datagram(slot, packet) => {
                hops - NESTED_HOPS
            }
            Some(_) => return self.drops.count(DropReason::Loop),
        };
        let limit = self.limit(slot);
        let buffer = &mut frame[VnetHeader::LEN..];
        if let Some(mtu) = limit
            && header.gso == Gso::None
            && mss::may_be_syn(&buffer[..packet_len])
        {
            mss::clamp(&mut buffer[..packet_len], mtu, header.needs_csum);
        }
        let mut segments = match Segments::new(header, buffer, packet_len) {
            Ok(segments) => segments,
            Err(reason) => return self.drops.count(reason),
        };
        if let Some(mtu) = limit.filter(|limit| segments.largest() > *limit) {
            let large = TooLarge {
                slot,
                header,
                hops,
                mtu,
            };
            return self.transmit_fitted(&large, &mut frame[VnetHeader::LEN..], packet_len);
        }
        let (links, mut work) = self.work();
        match links.get_mut(slot as usize) {
            Some(Some(link)) if link.remote().is_some() => {
                link.transmit(&mut segments, hops, &mut work)
            }
            Some(Some(_)) => self.refuse(DropReason::NoEndpoint, &frame[VnetHeader::LEN..len]),
            _ => self.drops.count(DropReason::NoPeer),
        }
    }

    /// The largest packet that the link carries, if it is of a mesh.
    pub(super) fn limit(&self, slot: u32) -> Option<usize> {
        self.links.get(slot as usize)?.as_ref()?.limit()
    }

    /// Whether this is what we sent to the peer of this link, on its way to be sent there again.
    fn is_own_datagram(&mut self, slot: u32, packet: &[u8]) -> bool {
        let Some(own_port) = self.snapshot.load().own_port else {
            return false;
        };
        let link = self.links.get(slot as usize).and_then(Option::as_ref);
        let Some(remote) = link.and_then(|link| link.remote()) else {
            return false;
        };
        address::destination(packet) == Some(remote.ip())
            && address::udp_ports(packet) == Some((own_port, remote.port()))
    }

    /// Gives a frame to the thread that owns its link, buffer and all.
    pub(super) fn hand_over(&mut self, place: LinkPlace, len: usize) {
        let owner = &self.shared.mailboxes[place.thread as usize];
        let spare = owner.spare.pop().unwrap_or_else(|| vec![0; FRAME_BUFFER]);
        let buffer = std::mem::replace(&mut self.frame, spare);
        let mut frame = Frame { place, len, buffer };
        for _ in 0..WAITS_FOR_ROOM {
            match owner.frames.push(frame) {
                Ok(()) => return owner.wake(),
                Err(refused) => frame = refused,
            }
            // It has not run for a while: a burst waits in the TUN's queue rather than is lost.
            owner.wake();
            std::thread::yield_now();
        }
        self.drops.count(DropReason::RingFull);
        let _ = owner.spare.push(frame.buffer);
    }

    /// Tells the sender that no peer takes this packet.
    pub(super) fn refuse(&mut self, reason: DropReason, packet: &[u8]) {
        self.drops.count(reason);
        self.complain(|answer| unreachable::build(packet, answer));
    }

    /// Writes an ICMP error to the TUN, unless there were too many.
    pub(super) fn complain(&mut self, build: impl FnOnce(&mut [u8]) -> Option<usize>) {
        if self.now.saturating_sub(self.errors_since) >= Duration::from_secs(1) {
            (self.errors_since, self.errors_left) = (self.now, ERRORS_PER_SECOND);
        }
        if self.errors_left == 0 {
            return;
        }
        let mut answer = [0; unreachable::MAX_LEN];
        if let Some(size) = build(&mut answer) {
            self.errors_left -= 1;
            self.write_tun(&answer[..size]);
        }
    }
}
