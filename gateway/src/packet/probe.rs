//! An agent's probe as the packet that it travels in, and the packet that answers it. Whether an
//! agent sent it, the message inside says.

use std::net::{IpAddr, SocketAddr};

use proto::lan::PORT;

use super::checksum;
use super::headers::{Fragment, Headers, IPV4_HEADER, IPV6_HEADER, PROTOCOL_UDP, UDP_HEADER};

/// Longer than any probe with its headers.
pub const MAX_LEN: usize = 256;

const HOPS: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe<'a> {
    pub from: SocketAddr,
    /// The probe address.
    pub to: IpAddr,
    pub datagram: &'a [u8],
}

impl Probe<'_> {
    /// `None` if it is anything else. The sum is not looked at: it may be left to whoever sends the
    /// packet on, and the datagram has a MAC.
    pub fn parse(packet: &[u8]) -> Option<Probe<'_>> {
        let headers = Headers::parse(packet)?;
        let udp = headers.udp(packet)?;
        let ports = packet.get(headers.header_length..)?.first_chunk::<4>()?;
        let [from, to] = [[ports[0], ports[1]], [ports[2], ports[3]]].map(u16::from_be_bytes);
        let is_one = headers.fragment == Fragment::Whole && packet.len() <= MAX_LEN && to == PORT;
        let begin = headers.header_length + UDP_HEADER;
        let datagram = packet.get(begin..headers.header_length + udp.length)?;
        is_one.then_some(Probe {
            from: SocketAddr::new(headers.source, from),
            to: headers.destination,
            datagram,
        })
    }

    /// The packet with `datagram`, back to where this came from; `None` if it is too long for one.
    pub fn answer(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let length = u16::try_from(UDP_HEADER + datagram.len()).ok()?;
        if datagram.len() > MAX_LEN {
            return None;
        }
        let mut packet = match (self.to, self.from.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                header_v4(&source.octets(), &destination.octets(), length)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                header_v6(&source.octets(), &destination.octets(), length)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
        };
        let begin = packet.len();
        packet.extend_from_slice(&PORT.to_be_bytes());
        packet.extend_from_slice(&self.from.port().to_be_bytes());
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[0, 0]);
        packet.extend_from_slice(datagram);
        let addresses = match self.to {
            IpAddr::V4(_) => &packet[12..IPV4_HEADER],
            IpAddr::V6(_) => &packet[8..IPV6_HEADER],
        };
        let pseudo = checksum::pseudo_header(addresses, PROTOCOL_UDP, usize::from(length));
        let sum = checksum::complement_udp(checksum::sum(&packet[begin..], pseudo));
        packet[begin + 6..begin + 8].copy_from_slice(&sum.to_be_bytes());
        Some(packet)
    }
}

fn header_v4(source: &[u8; 4], destination: &[u8; 4], length: u16) -> Vec<u8> {
    let mut header = vec![0; IPV4_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(IPV4_HEADER as u16 + length).to_be_bytes());
    // Too small for any path to want it in pieces.
    header[6] = 0x40;
    header[8] = HOPS;
    header[9] = PROTOCOL_UDP;
    header[12..16].copy_from_slice(source);
    header[16..20].copy_from_slice(destination);
    let sum = checksum::complement(checksum::sum(&header, 0));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn header_v6(source: &[u8; 16], destination: &[u8; 16], length: u16) -> Vec<u8> {
    let mut header = vec![0; IPV6_HEADER];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = PROTOCOL_UDP;
    header[7] = HOPS;
    header[8..24].copy_from_slice(source);
    header[24..40].copy_from_slice(destination);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(from: &str, to: &str) -> Vec<u8> {
        // The answer to whoever asks from the other end is the same packet turned round.
        let turned = Probe {
            from: SocketAddr::new(to.parse().unwrap(), PORT),
            to: from.parse().unwrap(),
            datagram: &[],
        };
        turned.answer(b"is anybody there").unwrap()
    }

    fn sums_hold(packet: &[u8]) -> bool {
        let headers = Headers::parse(packet).unwrap();
        let length = headers.transport_length();
        let pseudo = checksum::pseudo_header(headers.addresses(packet), PROTOCOL_UDP, length);
        let is_header_good = !headers.is_v4() || checksum::verify(&packet[..IPV4_HEADER], 0);
        is_header_good && checksum::verify(&packet[headers.header_length..], pseudo)
    }

    #[test]
    fn a_probe_is_read_and_answered_with_sums_that_hold() {
        for (from, to) in [("10.1.0.10", "198.18.3.4"), ("fd00::10", "2001:2::5")] {
            let packet = question(from, to);
            assert!(sums_hold(&packet));
            let probe = Probe::parse(&packet).unwrap();
            assert_eq!(probe.from.ip(), from.parse::<IpAddr>().unwrap());
            assert_eq!(probe.to, to.parse::<IpAddr>().unwrap());
            assert_eq!(probe.datagram, b"is anybody there");
            let answer = probe.answer(b"somebody is").unwrap();
            assert!(sums_hold(&answer));
            let back = Probe::parse(&answer).unwrap();
            assert_eq!((back.from.ip(), back.to), (probe.to, probe.from.ip()));
            assert_eq!(back.datagram, b"somebody is");
        }
    }

    #[test]
    fn what_is_cut_off_a_fragment_or_for_another_port_is_no_probe() {
        let packet = question("10.1.0.10", "198.18.3.4");
        for length in 0..packet.len() {
            assert_eq!(Probe::parse(&packet[..length]), None, "{length}");
        }
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        assert_eq!(Probe::parse(&fragment), None);
        let mut elsewhere = packet.clone();
        elsewhere[23] ^= 1;
        assert_eq!(Probe::parse(&elsewhere), None);
        let mut other = packet;
        other[9] = 6;
        assert_eq!(Probe::parse(&other), None, "no UDP");
    }

    #[test]
    fn nothing_long_is_sent_as_an_answer() {
        let packet = question("fd00::10", "2001:2::5");
        let probe = Probe::parse(&packet).unwrap();
        assert_eq!(probe.answer(&[0; MAX_LEN + 1]), None);
    }
}
