//! The ICMP error for a packet that goes nowhere: no peer takes it, or it is too big for its link
//! (RFC 792, RFC 1191 4, RFC 1122 3.2.2, RFC 4443 2.4, 3.1 and 3.2).
//!
//! It goes back through the TUN and names the packet's destination as its source: an address of this
//! host would fail the kernel's reverse path check there.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::checksum;
use crate::packet::fit::IPV6_LEAST;
use crate::packet::headers::{
    Fragment, Headers, IPV4_HEADER, IPV6_HEADER, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
};

/// The largest error: the smallest MTU of IPv6. One of IPv4 stays within 576.
pub const MAX_LEN: usize = 1280;
const MAX_LEN_V4: usize = 576;

const ICMP_HEADER: usize = 8;
const HOPS: u8 = 64;
/// Internetwork control, as routers mark their errors.
const CLASS: u8 = 0xc0;

const V4_DESTINATION_UNREACHABLE: u8 = 3;
const V4_HOST_UNREACHABLE: u8 = 1;
const V4_FRAGMENTATION_NEEDED: u8 = 4;
const V6_DESTINATION_UNREACHABLE: u8 = 1;
const V6_ADDRESS_UNREACHABLE: u8 = 3;
const V6_PACKET_TOO_BIG: u8 = 2;

/// What is wrong.
#[derive(Clone, Copy)]
enum Complaint {
    Unreachable,
    /// The packets that pass.
    TooBig(u16),
}

impl Complaint {
    fn v4(self) -> [u8; ICMP_HEADER] {
        let unreachable = V4_DESTINATION_UNREACHABLE;
        match self {
            Complaint::Unreachable => [unreachable, V4_HOST_UNREACHABLE, 0, 0, 0, 0, 0, 0],
            Complaint::TooBig(mtu) => {
                let [high, low] = mtu.to_be_bytes();
                let code = V4_FRAGMENTATION_NEEDED;
                [unreachable, code, 0, 0, 0, 0, high, low]
            }
        }
    }

    fn v6(self) -> [u8; ICMP_HEADER] {
        let (kind, code) = (V6_DESTINATION_UNREACHABLE, V6_ADDRESS_UNREACHABLE);
        match self {
            Complaint::Unreachable => [kind, code, 0, 0, 0, 0, 0, 0],
            Complaint::TooBig(mtu) => {
                // Whoever is told less takes no notice (RFC 8201 section 4).
                let [high, low] = mtu.max(IPV6_LEAST as u16).to_be_bytes();
                [V6_PACKET_TOO_BIG, 0, 0, 0, 0, 0, high, low]
            }
        }
    }
}

/// Writes the answer to a `packet` that no peer takes to the front of `answer` and returns its length;
/// `None` where there must be no answer, or where `answer` has less than `MAX_LEN` bytes.
pub fn build(packet: &[u8], answer: &mut [u8]) -> Option<usize> {
    build_with(Complaint::Unreachable, packet, answer)
}

/// The same for a packet above `mtu` that may not go in pieces.
pub fn build_too_big(packet: &[u8], mtu: u16, answer: &mut [u8]) -> Option<usize> {
    build_with(Complaint::TooBig(mtu), packet, answer)
}

fn build_with(complaint: Complaint, packet: &[u8], answer: &mut [u8]) -> Option<usize> {
    let headers = Headers::parse(packet)?;
    let packet = &packet[..headers.total_length];
    let answer = answer.first_chunk_mut::<MAX_LEN>()?;
    if headers.fragment == Fragment::Later || is_error(&headers, packet) {
        return None;
    }
    match (headers.source, headers.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => (is_host_v4(source)
            && is_host_v4(destination))
        .then(|| build_v4(complaint, packet, answer)),
        (IpAddr::V6(source), IpAddr::V6(destination)) => (is_host_v6(source)
            && is_host_v6(destination))
        .then(|| build_v6(complaint, packet, answer)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// An error is never answered with an error; what cannot be told apart counts as one.
fn is_error(headers: &Headers, packet: &[u8]) -> bool {
    let kind = packet.get(headers.header_length);
    match headers.protocol {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        PROTOCOL_ICMP if headers.is_v4() => {
            kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
        }
        // All below 128, and redirects.
        PROTOCOL_ICMPV6 if !headers.is_v4() => kind.is_none_or(|kind| *kind < 128 || *kind == 137),
        _ => false,
    }
}

/// Whether the address is one host's: not unspecified, loopback, multicast, reserved or broadcast.
fn is_host_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}

fn build_v4(complaint: Complaint, packet: &[u8], answer: &mut [u8; MAX_LEN]) -> usize {
    let quoted = packet.len().min(MAX_LEN_V4 - IPV4_HEADER - ICMP_HEADER);
    let length = IPV4_HEADER + ICMP_HEADER + quoted;
    let (header, icmp) = answer[..length].split_at_mut(IPV4_HEADER);
    header.fill(0);
    header[0] = 0x45;
    header[1] = CLASS;
    header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    header[8] = HOPS;
    header[9] = PROTOCOL_ICMP;
    header[12..16].copy_from_slice(&packet[16..20]);
    header[16..20].copy_from_slice(&packet[12..16]);
    let sum = checksum::complement(checksum::sum(header, 0));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    fill_icmp(icmp, complaint.v4(), &packet[..quoted], 0);
    length
}

fn build_v6(complaint: Complaint, packet: &[u8], answer: &mut [u8; MAX_LEN]) -> usize {
    let quoted = packet.len().min(MAX_LEN - IPV6_HEADER - ICMP_HEADER);
    let length = IPV6_HEADER + ICMP_HEADER + quoted;
    let (header, icmp) = answer[..length].split_at_mut(IPV6_HEADER);
    header.fill(0);
    header[0] = 0x60 | (CLASS >> 4);
    header[1] = CLASS << 4;
    header[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    header[6] = PROTOCOL_ICMPV6;
    header[7] = HOPS;
    header[8..24].copy_from_slice(&packet[24..40]);
    header[24..40].copy_from_slice(&packet[8..24]);
    let pseudo_header = checksum::pseudo_header(&header[8..40], PROTOCOL_ICMPV6, icmp.len());
    fill_icmp(icmp, complaint.v6(), &packet[..quoted], pseudo_header);
    length
}

fn fill_icmp(icmp: &mut [u8], header: [u8; ICMP_HEADER], quoted: &[u8], pseudo_header: u64) {
    icmp[..ICMP_HEADER].copy_from_slice(&header);
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let sum = checksum::complement(checksum::sum(icmp, pseudo_header));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
}
