//! Opened packets on their way to the TUN, or for a sibling to another site: checked, coalesced,
//! handed on.

use std::io::IoSlice;
use std::net::IpAddr;

use super::snapshot::{LinkPlace, Onward, Snapshot};
use crate::drops::{DropReason, Drops};
use crate::io::tun::TunQueue;
use crate::packet::coalesce::Coalescer;
use crate::packet::vnet::Gso;
use crate::packet::{address, ecn, mss};

/// As much as one batch of datagrams can hold.
const OPENED: usize = 512 << 10;

pub(super) struct Inward {
    opened: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
    /// What siblings sent for other sites; made when the first of it comes.
    passing: Option<Box<Coalescer>>,
    /// The last source that belonged to its link: runs of packets have one source.
    checked: Option<(IpAddr, LinkPlace)>,
    /// In a mesh the last addresses that were admitted, and where they lead.
    admitted: Option<(IpAddr, IpAddr, LinkPlace, Onward)>,
}

/// What goes from link to link.
pub(super) struct Passing {
    coalescer: Box<Coalescer>,
    opened: Vec<u8>,
}

impl Passing {
    /// Every frame in turn, as if a TUN had given it: vnet header and packet in pieces, and how
    /// many packets that is.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&[IoSlice<'_>], usize)) {
        self.coalescer
            .drain(&mut self.opened, |_, pieces, packets| each(pieces, packets));
    }
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
            passing: None,
            checked: None,
            admitted: None,
        }
    }

    /// The configuration may have changed: what was checked counts no longer.
    pub(super) fn forget_checked(&mut self) {
        self.checked = None;
        self.admitted = None;
    }

    /// Room to open a datagram of `len` bytes into; without enough of it, write first.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.opened
            .get_mut(self.used..)
            .filter(|room| room.len() >= len)
    }

    /// The first bytes of what was opened into the last room.
    pub(super) fn opened(&self, len: usize) -> &[u8] {
        &self.opened[self.used..self.used + len]
    }

    /// Has a SYN that was opened announce no more than fits into packets of `mtu` bytes.
    pub(super) fn clamp_syn(&mut self, len: usize, mtu: usize) {
        let packet = &mut self.opened[self.used..self.used + len];
        if mss::may_be_syn(packet) {
            mss::clamp(packet, mtu, false);
        }
    }

    /// Takes what was opened at the beginning of the last room, if it may come from `place`.
    pub(super) fn deliver(
        &mut self,
        len: usize,
        outer_ecn: u8,
        place: LinkPlace,
        snapshot: &Snapshot,
    ) -> Result<(), DropReason> {
        let at = self.used;
        if snapshot.is_mesh() {
            return self.deliver_in_mesh(len, outer_ecn, place, snapshot);
        }
        let packet = &mut self.opened[at..at + len];
        let source = address::source(packet).ok_or(DropReason::InnerMalformed)?;
        if self.checked != Some((source, place)) {
            snapshot.admit_peer(place, source)?;
            self.checked = Some((source, place));
        }
        ecn::apply(outer_ecn, packet)?;
        self.coalescer.push(&self.opened, at, len);
        self.took(at + len);
        Ok(())
    }

    fn took(&mut self, end: usize) {
        self.used = end.next_multiple_of(64).min(self.opened.len());
    }

    fn deliver_in_mesh(
        &mut self,
        len: usize,
        outer_ecn: u8,
        place: LinkPlace,
        snapshot: &Snapshot,
    ) -> Result<(), DropReason> {
        let at = self.used;
        let packet = &mut self.opened[at..at + len];
        let source = address::source(packet).ok_or(DropReason::InnerMalformed)?;
        let destination = address::destination(packet).ok_or(DropReason::InnerMalformed)?;
        let onward = match self.admitted {
            Some((from, to, through, onward))
                if (from, to, through) == (source, destination, place) =>
            {
                onward
            }
            _ => {
                let onward = snapshot.admit(place, source, destination)?;
                self.admitted = Some((source, destination, place, onward));
                onward
            }
        };
        ecn::apply(outer_ecn, packet)?;
        let coalescer = match onward {
            Onward::Tun => &mut self.coalescer,
            Onward::Link => self.passing.get_or_insert_default(),
        };
        coalescer.push(&self.opened, at, len);
        self.took(at + len);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        let passes = self.passing.as_ref();
        self.coalescer.is_empty() && passes.is_none_or(|passing| passing.is_empty())
    }

    /// Takes out what goes on to another link, with the memory that it lies in. Before
    /// [`Inward::write`], which uses that memory again; to be followed by [`Inward::give_back`].
    pub(super) fn take_passing(&mut self) -> Option<Passing> {
        let coalescer = self.passing.take_if(|passing| !passing.is_empty())?;
        let opened = std::mem::take(&mut self.opened);
        Some(Passing { coalescer, opened })
    }

    pub(super) fn give_back(&mut self, passing: Passing) {
        self.opened = passing.opened;
        self.passing = Some(passing.coalescer);
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
