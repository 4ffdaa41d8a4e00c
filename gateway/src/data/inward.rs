//! Opened packets on their way to the TUN: checked, coalesced, written.

use std::net::IpAddr;

use super::snapshot::{LinkPlace, Snapshot};
use crate::drops::{DropReason, Drops};
use crate::io::tun::TunQueue;
use crate::packet::coalesce::Coalescer;
use crate::packet::vnet::Gso;
use crate::packet::{address, ecn};

/// As much as one batch of datagrams can hold.
const OPENED: usize = 512 << 10;

pub(super) struct Inward {
    opened: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
    /// The last source that belonged to its link: runs of packets have one source.
    checked: Option<(IpAddr, LinkPlace)>,
}

impl Inward {
    pub(super) fn new(tcp: bool, udp: bool) -> Inward {
        let mut coalescer = Coalescer::new();
        coalescer.set_tcp(tcp);
        coalescer.set_udp(udp);
        Inward {
            opened: vec![0; OPENED],
            used: 0,
            coalescer,
            checked: None,
        }
    }

    /// The configuration may have changed: what was checked counts no longer.
    pub(super) fn forget_checked(&mut self) {
        self.checked = None;
    }

    /// Room to open a datagram of `len` bytes into; without enough of it, write first.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.opened
            .get_mut(self.used..)
            .filter(|room| room.len() >= len)
    }

    /// Takes what was opened at the beginning of the last room, if its source may come from `place`.
    pub(super) fn deliver(
        &mut self,
        len: usize,
        outer_ecn: u8,
        place: LinkPlace,
        snapshot: &Snapshot,
    ) -> Result<(), DropReason> {
        let at = self.used;
        let packet = &mut self.opened[at..at + len];
        let source = address::source(packet).ok_or(DropReason::InnerMalformed)?;
        if self.checked != Some((source, place)) {
            if snapshot.link_for(source) != Ok(place) {
                return Err(DropReason::InnerSource);
            }
            self.checked = Some((source, place));
        }
        ecn::apply(outer_ecn, packet)?;
        self.coalescer.push(&self.opened, at, len);
        self.used = (at + len).next_multiple_of(64).min(self.opened.len());
        Ok(())
    }

    /// Hands everything to the kernel.
    pub(super) fn write(&mut self, tun: &TunQueue, drops: &Drops) {
        self.used = 0;
        if self.coalescer.is_empty() {
            return;
        }
        let mut refused = None;
        self.coalescer
            .drain(&mut self.opened, |header, pieces, packets| {
                if let Err(error) = tun.write(pieces) {
                    drops.add(DropReason::TunWrite, packets as u64);
                    if packets > 1 && error.raw_os_error() == Some(libc::EINVAL) {
                        refused = Some(header.gso);
                    }
                }
            });
        if let Some(gso) = refused {
            tracing::warn!(
                ?gso,
                "the kernel takes no superpackets of this kind from us: written one by one from now on"
            );
            match gso {
                Gso::Udp => self.coalescer.set_udp(false),
                Gso::None | Gso::Tcp4 | Gso::Tcp6 => self.coalescer.set_tcp(false),
            }
        }
    }
}
