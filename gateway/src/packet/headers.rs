//! A packet's IP header, checked once: what lies where, and what the rest may rely on.
//!
//! Never panics, whatever the bytes. The transport headers are views taken on demand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_ICMPV6: u8 = 58;

pub const IPV4_HEADER: usize = 20;
pub const IPV6_HEADER: usize = 40;
pub const TCP_HEADER: usize = 20;
pub const UDP_HEADER: usize = 8;

pub const TCP_CHECKSUM: usize = 16;
pub const UDP_CHECKSUM: usize = 6;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_PSH: u8 = 0x08;
pub const TCP_ACK: u8 = 0x10;
pub const TCP_URG: u8 = 0x20;
pub const TCP_CWR: u8 = 0x80;

pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// No sender chains more; a longer chain is left unread and its protocol unknown.
const MAX_EXTENSIONS: usize = 8;

/// The two low bits of the traffic class (RFC 3168).
pub const ECN_MASK: u8 = 0x03;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First,
    Later,
}

/// The checked view. Every offset in it lies within the packet it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Bytes of the packet by its own account, at most what there is.
    pub total_length: usize,
    /// Bytes of the IP header, options and extension headers included: where the transport begins.
    pub header_length: usize,
    /// The transport, or the extension header at which reading had to stop.
    pub protocol: u8,
    pub traffic_class: u8,
    pub fragment: Fragment,
    /// A routing header names another final destination, which the transport checksum covers.
    pub rerouted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub sequence: u32,
    pub header_length: usize,
    pub flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    pub length: usize,
    pub checksum: u16,
}

impl Headers {
    /// `None` if this is neither IPv4 nor IPv6, or shorter than it says.
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Headers> {
        match packet.first()? >> 4 {
            4 => Headers::parse_v4(packet),
            6 => Headers::parse_v6(packet),
            _ => None,
        }
    }

    #[inline]
    fn parse_v4(packet: &[u8]) -> Option<Headers> {
        let fixed = packet.first_chunk::<IPV4_HEADER>()?;
        let header_length = usize::from(fixed[0] & 0x0f) * 4;
        let total_length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_length < IPV4_HEADER
            || total_length < header_length
            || total_length > packet.len()
        {
            return None;
        }
        let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
        Some(Headers {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]).into(),
            destination: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]).into(),
            total_length,
            header_length,
            protocol: fixed[9],
            traffic_class: fixed[1],
            fragment: Fragment::from_fields(fragment & 0x1fff, fragment & 0x2000 != 0),
            rerouted: false,
        })
    }

    #[inline]
    fn parse_v6(packet: &[u8]) -> Option<Headers> {
        let fixed = packet.first_chunk::<IPV6_HEADER>()?;
        let total_length = IPV6_HEADER + usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        if total_length > packet.len() {
            return None;
        }
        let (addresses, _) = fixed[8..].as_chunks::<16>();
        let mut headers = Headers {
            source: Ipv6Addr::from(addresses[0]).into(),
            destination: Ipv6Addr::from(addresses[1]).into(),
            total_length,
            header_length: IPV6_HEADER,
            protocol: fixed[6],
            traffic_class: (fixed[0] << 4) | (fixed[1] >> 4),
            fragment: Fragment::Whole,
            rerouted: false,
        };
        if !matches!(
            headers.protocol,
            PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_ICMPV6
        ) {
            headers.walk_extensions(&packet[..total_length]);
        }
        Some(headers)
    }

    /// Moves `header_length` and `protocol` behind the extension headers.
    fn walk_extensions(&mut self, packet: &[u8]) {
        for _ in 0..MAX_EXTENSIONS {
            let rest = packet.get(self.header_length..).unwrap_or_default();
            let Some(&[next, units, b2, b3]) = rest.first_chunk::<4>() else {
                return;
            };
            let length = match self.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6 => {
                    8 + usize::from(units) * 8
                }
                AUTHENTICATION => 8 + usize::from(units) * 4,
                FRAGMENT => 8,
                _ => return,
            };
            if length > rest.len() {
                return;
            }
            if self.protocol == ROUTING && b3 != 0 {
                self.rerouted = true;
            }
            if self.protocol == FRAGMENT {
                let field = u16::from_be_bytes([b2, b3]);
                self.fragment = Fragment::from_fields(field >> 3, field & 1 != 0);
            }
            self.protocol = next;
            self.header_length += length;
            if self.fragment == Fragment::Later {
                return;
            }
        }
    }

    pub fn is_fragment(&self) -> bool {
        self.fragment != Fragment::Whole
    }

    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    pub fn ecn(&self) -> u8 {
        self.traffic_class & ECN_MASK
    }

    /// Bytes of transport header and payload.
    pub fn transport_length(&self) -> usize {
        self.total_length - self.header_length
    }

    /// Source and destination as they lie in the packet, for the pseudo-header.
    #[inline]
    pub fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.is_v4() {
            &packet[12..20]
        } else {
            &packet[8..40]
        }
    }

    /// Transport header and payload; empty where another fragment holds the header.
    fn transport<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        match self.fragment {
            Fragment::Whole | Fragment::First => &packet[self.header_length..self.total_length],
            Fragment::Later => &[],
        }
    }

    /// The TCP header of the packet this was parsed from.
    #[inline]
    pub fn tcp(&self, packet: &[u8]) -> Option<Tcp> {
        let transport = self.transport(packet);
        let fixed = transport.first_chunk::<TCP_HEADER>()?;
        let header_length = usize::from(fixed[12] >> 4) * 4;
        if self.protocol != PROTOCOL_TCP || !(TCP_HEADER..=transport.len()).contains(&header_length)
        {
            return None;
        }
        let sequence = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        Some(Tcp {
            sequence,
            header_length,
            flags: fixed[13],
        })
    }

    /// The UDP header of the packet this was parsed from. A first fragment is shorter than it says.
    #[inline]
    pub fn udp(&self, packet: &[u8]) -> Option<Udp> {
        let transport = self.transport(packet);
        let fixed = transport.first_chunk::<UDP_HEADER>()?;
        let length = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
        let fits = length <= transport.len() || self.fragment == Fragment::First;
        if self.protocol != PROTOCOL_UDP || length < UDP_HEADER || !fits {
            return None;
        }
        Some(Udp {
            length,
            checksum: u16::from_be_bytes([fixed[6], fixed[7]]),
        })
    }
}

impl Fragment {
    fn from_fields(offset: u16, more: bool) -> Fragment {
        match (offset, more) {
            (0, false) => Fragment::Whole,
            (0, true) => Fragment::First,
            (_, _) => Fragment::Later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v6(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, protocol, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend(rest);
        packet
    }

    fn v4(rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![
            0x45,
            0x02,
            0,
            20 + rest.len() as u8,
            0,
            7,
            0,
            0,
            64,
            PROTOCOL_UDP,
            0,
            0,
        ];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend(rest);
        packet
    }

    #[test]
    fn an_ipv4_packet_is_read_up_to_its_own_length() {
        let mut packet = v4(&[0, 1, 0, 2, 0, 9, 0xab, 0xcd, 5]);
        packet.extend([0; 7]);
        let headers = Headers::parse(&packet).unwrap();
        assert_eq!(headers.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(headers.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(
            (headers.total_length, headers.header_length, headers.ecn()),
            (29, 20, 2)
        );
        assert_eq!(
            headers.udp(&packet),
            Some(Udp {
                length: 9,
                checksum: 0xabcd
            })
        );
        assert_eq!(headers.tcp(&packet), None);
    }

    #[test]
    fn a_packet_shorter_than_it_says_is_refused() {
        let packet = v4(&[0; 8]);
        assert!(Headers::parse(&packet).is_some());
        assert!(Headers::parse(&packet[..27]).is_none());
        let packet = v6(PROTOCOL_UDP, &[0; 8]);
        assert!(Headers::parse(&packet).is_some());
        assert!(Headers::parse(&packet[..47]).is_none());
        assert!(Headers::parse(&[]).is_none());
        assert!(Headers::parse(&[0x55; 64]).is_none());
    }

    #[test]
    fn an_ipv4_header_length_below_twenty_or_beyond_the_packet_is_refused() {
        let mut packet = v4(&[0; 8]);
        packet[0] = 0x44;
        assert!(Headers::parse(&packet).is_none());
        packet[0] = 0x48;
        assert!(Headers::parse(&packet).is_none());
    }

    #[test]
    fn ipv6_extension_headers_are_walked_to_the_transport() {
        let mut rest = vec![DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([AUTHENTICATION, 1, 0, 0]);
        rest.extend([0; 12]);
        rest.extend([PROTOCOL_TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        rest.extend([
            0, 1, 0, 2, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0,
        ]);
        let packet = v6(HOP_BY_HOP, &rest);
        let headers = Headers::parse(&packet).unwrap();
        assert_eq!(
            (headers.protocol, headers.header_length),
            (PROTOCOL_TCP, 40 + 8 + 16 + 12)
        );
        let tcp = headers.tcp(&packet).unwrap();
        assert_eq!(
            (tcp.sequence, tcp.header_length, tcp.flags),
            (0x0102_0304, 20, TCP_SYN | TCP_ACK)
        );
    }

    #[test]
    fn an_extension_header_that_leaves_the_packet_ends_the_walk() {
        let packet = v6(HOP_BY_HOP, &[PROTOCOL_TCP, 9, 0, 0, 0, 0, 0, 0]);
        let headers = Headers::parse(&packet).unwrap();
        assert_eq!((headers.protocol, headers.header_length), (HOP_BY_HOP, 40));
        assert_eq!(headers.tcp(&packet), None);
    }

    #[test]
    fn a_chain_longer_than_the_bound_is_left_unread() {
        let rest = [DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0].repeat(MAX_EXTENSIONS + 2);
        let headers = Headers::parse(&v6(DESTINATION_OPTIONS, &rest)).unwrap();
        assert_eq!(headers.header_length, 40 + 8 * MAX_EXTENSIONS);
        assert_eq!(headers.protocol, DESTINATION_OPTIONS);
    }

    #[test]
    fn fragments_are_told_apart_and_only_the_first_has_a_transport_header() {
        let mut packet = v4(&[0, 1, 0, 2, 0, 200, 0, 0, 0, 0]);
        packet[6] = 0x20;
        let first = Headers::parse(&packet).unwrap();
        assert_eq!(first.fragment, Fragment::First);
        assert_eq!(
            first.udp(&packet),
            Some(Udp {
                length: 200,
                checksum: 0
            })
        );
        packet[6..8].copy_from_slice(&[0, 3]);
        let later = Headers::parse(&packet).unwrap();
        assert_eq!(
            (later.fragment, later.udp(&packet)),
            (Fragment::Later, None)
        );

        let udp = [0, 1, 0, 2, 0, 8, 0, 0];
        for (field, fragment) in [
            ([0, 1], Fragment::First),
            ([1, 0], Fragment::Later),
            ([0, 0], Fragment::Whole),
        ] {
            let mut rest = vec![PROTOCOL_UDP, 0, field[0], field[1], 0, 0, 0, 1];
            rest.extend(udp);
            let packet = v6(FRAGMENT, &rest);
            let headers = Headers::parse(&packet).unwrap();
            assert_eq!((headers.fragment, headers.header_length), (fragment, 48));
            assert_eq!(headers.udp(&packet).is_some(), fragment != Fragment::Later);
        }
    }

    #[test]
    fn a_routing_header_with_segments_left_is_noted() {
        for (left, rerouted) in [(0, false), (1, true)] {
            let mut rest = vec![PROTOCOL_UDP, 2, 4, left];
            rest.extend([0; 20 + 8]);
            assert_eq!(
                Headers::parse(&v6(ROUTING, &rest)).unwrap().rerouted,
                rerouted
            );
        }
    }

    #[test]
    fn a_tcp_data_offset_below_five_or_beyond_the_packet_is_no_tcp_header() {
        for (offset, good) in [(0x40, false), (0x50, true), (0x60, true), (0x70, false)] {
            let mut tcp = [0; 24];
            tcp[12] = offset;
            let packet = v6(PROTOCOL_TCP, &tcp);
            assert_eq!(
                Headers::parse(&packet).unwrap().tcp(&packet).is_some(),
                good,
                "{offset:x}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_offsets_within_the_packet(
            mut packet in proptest::collection::vec(any::<u8>(), 0..200), version in 4_u8..7, next: u8,
        ) {
            if packet.len() > 8 {
                packet[0] = (version << 4) | (packet[0] & 7);
                packet[if version == 6 { 4 } else { 2 }] = 0;
                packet[6] = if next > 128 { FRAGMENT } else { packet[6] % 61 };
            }
            if let Some(headers) = Headers::parse(&packet) {
                prop_assert!(headers.header_length <= headers.total_length);
                prop_assert!(headers.total_length <= packet.len());
                if let Some(tcp) = headers.tcp(&packet) {
                    prop_assert!(tcp.header_length <= headers.transport_length());
                }
                headers.udp(&packet);
                headers.addresses(&packet);
            }
        }
    }
}
