//! The largest segment that a TCP side says it takes (RFC 9293 3.7.1), lowered to what a link carries.
//!
//! Done on every SYN that passes, in both directions, so that segments fit without any ICMP.

#[cfg(test)]
mod tests;

use crate::packet::checksum;
use crate::packet::headers::{
    Headers, IPV4_HEADER, IPV6_HEADER, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP_CHECKSUM,
    TCP_HEADER, TCP_SYN,
};

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;

/// Whether it may be a SYN: a look that costs little and rules out nearly everything else.
#[inline]
pub fn may_be_syn(packet: &[u8]) -> bool {
    const V6_FLAGS: usize = IPV6_HEADER + 13;
    let flags = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.get(9) == Some(&PROTOCOL_TCP) => {
            packet.get(usize::from(packet[0] & 0x0f) * 4 + 13)
        }
        Some(6) => match packet.get(6) {
            Some(&PROTOCOL_TCP) => packet.get(V6_FLAGS),
            // TCP may still come behind extension headers.
            Some(&(PROTOCOL_UDP | PROTOCOL_ICMPV6)) | None => None,
            Some(_) => return true,
        },
        _ => None,
    };
    flags.is_some_and(|flags| flags & TCP_SYN != 0)
}

/// Lowers what a SYN announces to what fits into packets of `mtu` bytes. A checksum that is partial
/// does not cover the option yet and stays.
#[cold]
pub fn clamp(packet: &mut [u8], mtu: usize, checksum_is_partial: bool) {
    let Some(headers) = Headers::parse(packet) else {
        return;
    };
    let Some(tcp) = headers.tcp(packet).filter(|tcp| tcp.flags & TCP_SYN != 0) else {
        return;
    };
    let overhead = TCP_HEADER
        + if headers.is_v4() {
            IPV4_HEADER
        } else {
            IPV6_HEADER
        };
    let most = mtu.saturating_sub(overhead).min(usize::from(u16::MAX)) as u16;
    let transport = &mut packet[headers.header_length..headers.header_length + tcp.header_length];
    if let Some(at) = value_of_mss(transport) {
        lower(transport, at, most, checksum_is_partial);
    }
}

/// Where in a TCP header the announced size lies.
fn value_of_mss(transport: &[u8]) -> Option<usize> {
    let mut at = TCP_HEADER;
    loop {
        let length = match *transport.get(at)? {
            END_OF_OPTIONS => return None,
            NO_OPERATION => 1,
            kind => match usize::from(*transport.get(at + 1)?) {
                4 if kind == MAXIMUM_SEGMENT_SIZE => {
                    return (at + 4 <= transport.len()).then_some(at + 2);
                }
                0 | 1 => return None,
                length => length,
            },
        };
        at += length;
    }
}

fn lower(transport: &mut [u8], at: usize, most: u16, checksum_is_partial: bool) {
    let old = u16::from_be_bytes([transport[at], transport[at + 1]]);
    if old <= most {
        return;
    }
    // The value may lie across two of the words that the checksum is made of.
    let words = at & !1..(at + 2).next_multiple_of(2).min(transport.len());
    let before = checksum::sum(&transport[words.clone()], 0);
    transport[at..at + 2].copy_from_slice(&most.to_be_bytes());
    if checksum_is_partial {
        return;
    }
    let after = checksum::sum(&transport[words], 0);
    let field = TCP_CHECKSUM..TCP_CHECKSUM + 2;
    let sum = u16::from_be_bytes([transport[TCP_CHECKSUM], transport[TCP_CHECKSUM + 1]]);
    let sum = checksum::update(sum, checksum::fold(before), checksum::fold(after));
    transport[field].copy_from_slice(&sum.to_be_bytes());
}
