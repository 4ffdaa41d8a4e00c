//! A verified head packet and what was joined to it.

use std::io::IoSlice;

use crate::packet::checksum;
use crate::packet::coalesce::candidate::{Candidate, Transport};
use crate::packet::headers::{IPV6_HEADER, TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_PSH, UDP_CHECKSUM};
use crate::packet::vnet::{Gso, VnetHeader};

/// What the length fields of both families can say.
const MAX_LENGTH: usize = 65_535;

/// So many pieces one gathered write takes without an allocation.
const MAX_PACKETS: usize = 128;

/// What kernels before 6.9 cut a UDP frame into at most.
const MAX_DATAGRAMS: usize = 64;

/// No piece follows.
const END: usize = usize::MAX;

#[derive(Debug)]
pub(super) struct Run {
    pub(super) head: Candidate,
    packets: usize,
    /// Headers and all payloads.
    length: usize,
    /// FIN and PSH of the last packet.
    last_flags: u8,
    identifications: Identifications,
    first_piece: usize,
    last_piece: usize,
}

/// How the IPv4 identification goes on from packet to packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identifications {
    Unknown,
    Counting,
    Constant,
}

/// The payload of a joined packet, and which one follows.
#[derive(Debug)]
pub(super) struct Piece {
    at: usize,
    length: usize,
    next: usize,
}

impl Run {
    pub(super) fn new(head: Candidate) -> Run {
        Run {
            head,
            packets: 1,
            length: head.length,
            last_flags: 0,
            identifications: Identifications::Unknown,
            first_piece: END,
            last_piece: END,
        }
    }

    /// Whether a verified packet of the same flow continues this run, and if so, how its
    /// identifications go on. The rules for TCP are those of the kernel's own coalescing.
    #[inline]
    pub(super) fn accepts(&self, next: &Candidate, arena: &[u8]) -> Option<Identifications> {
        let (packets, continues) = match (self.head.transport, next.transport) {
            (Transport::Tcp(head), Transport::Tcp(tcp)) => {
                let sent = (self.length - self.head.header_length) as u32;
                let continues =
                    head.sequence.wrapping_add(sent) == tcp.sequence && tcp.flags & TCP_CWR == 0;
                (MAX_PACKETS, continues)
            }
            (Transport::Udp, Transport::Udp) => (MAX_DATAGRAMS, true),
            (Transport::Tcp(_), Transport::Udp) | (Transport::Udp, Transport::Tcp(_)) => {
                return None;
            }
        };
        let fits = self.packets < packets
            && next.payload_length() <= self.head.payload_length()
            && self.length + next.payload_length() <= MAX_LENGTH;
        if continues && fits && self.head.has_same_headers(next, arena) {
            self.identifications_with(next)
        } else {
            None
        }
    }

    /// The cut counts identifications up. Where the packet must not be fragmented they mean nothing
    /// (RFC 6864), so a constant one may come out counting.
    #[inline]
    fn identifications_with(&self, next: &Candidate) -> Option<Identifications> {
        let Some(ipv4) = self.head.ipv4 else {
            return Some(Identifications::Unknown);
        };
        let step = usize::from(next.ipv4?.identification.wrapping_sub(ipv4.identification));
        if step == self.packets && self.identifications != Identifications::Constant {
            Some(Identifications::Counting)
        } else if step == 0
            && ipv4.dont_fragment
            && self.identifications != Identifications::Counting
        {
            Some(Identifications::Constant)
        } else {
            None
        }
    }

    /// Returns whether the run takes more.
    #[inline]
    pub(super) fn join(
        &mut self,
        next: &Candidate,
        identifications: Identifications,
        pieces: &mut Vec<Piece>,
    ) -> bool {
        let index = pieces.len();
        match pieces.get_mut(self.last_piece) {
            Some(last) => last.next = index,
            None => self.first_piece = index,
        }
        pieces.push(Piece {
            at: next.at + next.header_length,
            length: next.payload_length(),
            next: END,
        });
        self.last_piece = index;
        self.identifications = identifications;
        self.packets += 1;
        self.length += next.payload_length();
        self.last_flags = next.flags() & (TCP_FIN | TCP_PSH);
        next.payload_length() == self.head.payload_length() && !next.ends_run()
    }

    pub(super) fn hand_out(
        &self,
        arena: &mut [u8],
        pieces: &[Piece],
        write: &mut impl FnMut(&VnetHeader, &[IoSlice<'_>], usize),
    ) {
        let vnet = self.finish(arena);
        let header = vnet.write();
        let head = &arena[self.head.at..self.head.at + self.head.length];
        if self.packets == 1 {
            write(&vnet, &[IoSlice::new(&header), IoSlice::new(head)], 1);
            return;
        }
        let mut slices = [IoSlice::new(&[]); 1 + MAX_PACKETS];
        slices[0] = IoSlice::new(&header);
        slices[1] = IoSlice::new(head);
        let mut next = self.first_piece;
        for slice in &mut slices[2..=self.packets] {
            let piece = &pieces[next];
            *slice = IoSlice::new(&arena[piece.at..piece.at + piece.length]);
            next = piece.next;
        }
        write(&vnet, &slices[..=self.packets], self.packets);
    }

    /// Makes the head packet's headers those of the whole. Its checksum is left to the kernel, which
    /// then neither sums nor verifies anything on local delivery; for a single packet likewise.
    fn finish(&self, arena: &mut [u8]) -> VnetHeader {
        let head = &mut arena[self.head.at..self.head.at + self.head.length];
        let start = self.head.ip_header();
        if self.packets > 1 {
            self.rewrite_lengths(head);
        }
        let (field, protocol) = (start + self.checksum_offset(), self.head.protocol());
        let seed =
            checksum::pseudo_header(self.head.addresses(head), protocol, self.length - start);
        put(head, field, checksum::fold(seed));
        let (gso, ecn) = self.gso();
        VnetHeader {
            needs_csum: true,
            data_valid: false,
            gso,
            ecn,
            hdr_len: self.head.header_length as u16,
            gso_size: if gso == Gso::None {
                0
            } else {
                self.head.payload_length() as u16
            },
            csum_start: start as u16,
            csum_offset: self.checksum_offset() as u16,
        }
    }

    fn rewrite_lengths(&self, head: &mut [u8]) {
        let start = self.head.ip_header();
        if self.head.ipv4.is_some() {
            put(head, 2, self.length as u16);
            put(head, 10, 0);
            let sum = checksum::complement(checksum::sum(&head[..start], 0));
            put(head, 10, sum);
        } else {
            put(head, 4, (self.length - IPV6_HEADER) as u16);
        }
        match self.head.transport {
            Transport::Tcp(_) => head[start + 13] |= self.last_flags,
            Transport::Udp => put(head, start + 4, (self.length - start) as u16),
        }
    }

    fn gso(&self) -> (Gso, bool) {
        match self.head.transport {
            Transport::Tcp(_) | Transport::Udp if self.packets == 1 => (Gso::None, false),
            Transport::Tcp(tcp) => {
                let gso = if self.head.ipv4.is_some() {
                    Gso::Tcp4
                } else {
                    Gso::Tcp6
                };
                (gso, tcp.flags & TCP_CWR != 0)
            }
            Transport::Udp => (Gso::Udp, false),
        }
    }

    fn checksum_offset(&self) -> usize {
        match self.head.transport {
            Transport::Tcp(_) => TCP_CHECKSUM,
            Transport::Udp => UDP_CHECKSUM,
        }
    }
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
