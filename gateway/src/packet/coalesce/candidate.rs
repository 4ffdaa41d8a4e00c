//! A packet that may begin or continue a run, read once.

use crate::packet::checksum;
use crate::packet::headers::{
    Headers, IPV4_HEADER, IPV6_HEADER, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CWR, TCP_FIN, TCP_PSH,
    TCP_RST, TCP_SYN, TCP_URG, UDP_HEADER,
};

/// A whole TCP or UDP packet without IP options or extension headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Where it begins in the arena.
    pub(super) at: usize,
    /// By its own account.
    pub(super) length: usize,
    /// IP and transport header.
    pub(super) header_length: usize,
    pub(super) transport: Transport,
    pub(super) ipv4: Option<Ipv4>,
    /// Whether it carries payload, and nothing that forbids joining it to others.
    pub(super) may_join: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Transport {
    Tcp(Tcp),
    Udp,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Tcp {
    pub(super) sequence: u32,
    pub(super) flags: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ipv4 {
    pub(super) identification: u16,
    pub(super) dont_fragment: bool,
}

pub(super) enum Reading {
    Candidate(Candidate),
    /// Of no flow that is ever joined.
    Alone {
        length: usize,
    },
    /// Part of some flow, but not to tell of which: what comes later must not overtake it.
    Barrier {
        length: usize,
    },
}

#[inline]
pub(super) fn read(arena: &[u8], at: usize, length: usize) -> Reading {
    let packet = &arena[at..at + length];
    let Some(headers) = Headers::parse(packet) else {
        return Reading::Barrier { length };
    };
    let length = headers.total_length;
    if headers.is_fragment() {
        return Reading::Barrier { length };
    }
    let (transport, transport_header, may_join) = match headers.protocol {
        PROTOCOL_TCP => {
            let Some(tcp) = headers.tcp(packet) else {
                return Reading::Barrier { length };
            };
            let may_join = tcp.flags & (TCP_SYN | TCP_RST | TCP_URG) == 0;
            let transport = Transport::Tcp(Tcp {
                sequence: tcp.sequence,
                flags: tcp.flags,
            });
            (transport, tcp.header_length, may_join)
        }
        PROTOCOL_UDP => {
            let Some(udp) = headers.udp(packet) else {
                return Reading::Barrier { length };
            };
            let may_join = udp.checksum != 0 && udp.length == headers.transport_length();
            (Transport::Udp, UDP_HEADER, may_join)
        }
        _ => return Reading::Alone { length },
    };
    let ip_header = if headers.is_v4() {
        IPV4_HEADER
    } else {
        IPV6_HEADER
    };
    if headers.header_length != ip_header {
        return Reading::Barrier { length };
    }
    let header_length = ip_header + transport_header;
    Reading::Candidate(Candidate {
        at,
        length,
        header_length,
        transport,
        ipv4: headers.is_v4().then(|| Ipv4 {
            identification: u16::from_be_bytes([packet[4], packet[5]]),
            dont_fragment: packet[6] & 0x40 != 0,
        }),
        may_join: may_join && length > header_length,
    })
}

impl Candidate {
    pub(super) fn is_tcp(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
    }

    pub(super) fn protocol(&self) -> u8 {
        if self.is_tcp() {
            PROTOCOL_TCP
        } else {
            PROTOCOL_UDP
        }
    }

    pub(super) fn flags(&self) -> u8 {
        match self.transport {
            Transport::Tcp(tcp) => tcp.flags,
            Transport::Udp => 0,
        }
    }

    /// The receiver is to look at its data now, so nothing is joined behind it.
    pub(super) fn ends_run(&self) -> bool {
        self.flags() & (TCP_PSH | TCP_FIN) != 0
    }

    pub(super) fn payload_length(&self) -> usize {
        self.length - self.header_length
    }

    pub(super) fn ip_header(&self) -> usize {
        if self.ipv4.is_some() {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        }
    }

    /// Source and destination within the packet, for the pseudo-header.
    pub(super) fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.ipv4.is_some() {
            &packet[12..20]
        } else {
            &packet[8..40]
        }
    }

    fn packet<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.at..self.at + self.length]
    }

    /// Addresses and ports, which lie side by side.
    fn flow<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        let packet = self.packet(arena);
        if self.ipv4.is_some() {
            &packet[12..24]
        } else {
            &packet[8..44]
        }
    }

    #[inline]
    pub(super) fn hash(&self, arena: &[u8]) -> u32 {
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let (words, _) = self.flow(arena).as_chunks::<4>();
        let mut hash = u64::from(self.protocol());
        for word in words {
            hash = (hash.rotate_left(5) ^ u64::from(u32::from_le_bytes(*word)))
                .wrapping_mul(MULTIPLIER);
        }
        (hash >> 32) as u32
    }

    #[inline]
    pub(super) fn is_same_flow(&self, other: &Candidate, arena: &[u8]) -> bool {
        self.is_tcp() == other.is_tcp() && self.flow(arena) == other.flow(arena)
    }

    /// Whether all that a cut copies from the first header is alike in both, of one flow. Lengths,
    /// checksums, identification and sequence are for the run to judge.
    #[inline]
    pub(super) fn has_same_headers(&self, other: &Candidate, arena: &[u8]) -> bool {
        let (a, b) = (self.packet(arena), other.packet(arena));
        let is_same_ip = if self.ipv4.is_some() {
            a[..2] == b[..2] && a[6..10] == b[6..10]
        } else {
            a[..4] == b[..4] && a[6..8] == b[6..8]
        };
        if !is_same_ip || self.header_length != other.header_length {
            return false;
        }
        if !self.is_tcp() {
            return true;
        }
        let (a, b) = (
            &a[self.ip_header()..self.header_length],
            &b[self.ip_header()..self.header_length],
        );
        // The cut moves FIN and PSH to the last segment and leaves CWR on the first.
        let flags = (self.flags() ^ other.flags()) & !(TCP_CWR | TCP_FIN | TCP_PSH);
        let (acknowledgement, window, rest) = (8..13, 14..16, 18..);
        flags == 0
            && a[acknowledgement.clone()] == b[acknowledgement]
            && a[window.clone()] == b[window]
            && a[rest.clone()] == b[rest]
    }

    /// Whether every checksum in it holds.
    #[inline]
    pub(super) fn verify(&self, arena: &[u8]) -> bool {
        let packet = self.packet(arena);
        let (ip, transport) = packet.split_at(self.ip_header());
        let pseudo_header =
            checksum::pseudo_header(self.addresses(packet), self.protocol(), transport.len());
        (self.ipv4.is_none() || checksum::verify(ip, 0))
            && checksum::verify(transport, pseudo_header)
    }
}
