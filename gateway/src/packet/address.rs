//! Where a packet comes from and goes to.

use std::net::IpAddr;

use super::headers::{Fragment, Headers, PROTOCOL_UDP, UDP_HEADER};

const PROTOCOL_IPV6_FRAGMENT: u8 = 44;

/// `None` if it is neither IPv4 nor IPv6, or shorter than its header.
pub fn source(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 12, 8)
}

/// `None` if it is neither IPv4 nor IPv6, or shorter than its header.
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    address(packet, 16, 24)
}

/// The hop limit of a packet that a WireGuard tunnel may have sent: a datagram that begins as its
/// messages do, or a later fragment of some datagram.
pub fn tunnel_hops(packet: &[u8]) -> Option<u8> {
    let v4 = packet.first()? >> 4 == 4;
    let (protocol, hops) = if v4 {
        (*packet.get(9)?, *packet.get(8)?)
    } else {
        (*packet.get(6)?, *packet.get(7)?)
    };
    if protocol != PROTOCOL_UDP && (v4 || protocol != PROTOCOL_IPV6_FRAGMENT) {
        return None;
    }
    let headers = Headers::parse(packet)?;
    if headers.protocol != PROTOCOL_UDP {
        return None;
    }
    let kind = packet
        .get(headers.header_length + UDP_HEADER..)
        .and_then(|payload| payload.first_chunk::<4>());
    let is_tunnel = headers.fragment == Fragment::Later || matches!(kind, Some([1..=4, 0, 0, 0]));
    is_tunnel.then_some(hops)
}

/// Source and destination port of a UDP packet that has them.
pub fn udp_ports(packet: &[u8]) -> Option<(u16, u16)> {
    let headers = Headers::parse(packet)?;
    let begins = matches!(headers.fragment, Fragment::Whole | Fragment::First);
    if headers.protocol != PROTOCOL_UDP || !begins {
        return None;
    }
    let [a, b, c, d] = *packet.get(headers.header_length..)?.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn address(packet: &[u8], v4_at: usize, v6_at: usize) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet
            .get(v4_at..20)?
            .first_chunk::<4>()
            .map(|octets| IpAddr::from(*octets)),
        6 => packet
            .get(v6_at..40)?
            .first_chunk::<16>()
            .map(|octets| IpAddr::from(*octets)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_are_found() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(source(&v4), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(destination(&v4), Some("10.0.0.2".parse().unwrap()));
        let mut v6 = [0; 40];
        (v6[0], v6[23], v6[39]) = (0x60, 1, 2);
        assert_eq!(source(&v6), Some("::1".parse().unwrap()));
        assert_eq!(destination(&v6), Some("::2".parse().unwrap()));
    }

    #[test]
    fn ports_are_read_of_udp_only_and_not_of_later_fragments() {
        let mut packet = [0; 28];
        packet[..10].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17]);
        packet[20..28].copy_from_slice(&[0xca, 0x6c, 0, 53, 0, 8, 0, 0]);
        assert_eq!(udp_ports(&packet), Some((51820, 53)));
        packet[7] = 1;
        assert_eq!(udp_ports(&packet), None);
        (packet[7], packet[9]) = (0, 6);
        assert_eq!(udp_ports(&packet), None);
    }

    #[test]
    fn the_hop_limit_counts_of_what_a_tunnel_may_have_sent_only() {
        let mut packet = [0; 60];
        packet[..10].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0, 0, 33, 17]);
        packet[25] = 40;
        packet[28] = 4;
        assert_eq!(tunnel_hops(&packet), Some(33));
        packet[28] = 9;
        assert_eq!(tunnel_hops(&packet), None);
        packet[7] = 1;
        assert_eq!(tunnel_hops(&packet), Some(33), "a later fragment");
        packet[9] = 6;
        assert_eq!(tunnel_hops(&packet), None);
    }

    #[test]
    fn anything_shorter_than_its_header_has_none() {
        for (version, len) in [(0x45, 19), (0x60, 39), (0x50, 60), (0x45, 1)] {
            let mut packet = vec![0; len];
            packet[0] = version;
            assert_eq!((source(&packet), destination(&packet)), (None, None));
        }
        assert_eq!(source(&[]), None);
    }
}
