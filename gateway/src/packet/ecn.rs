//! Congestion marks across the tunnel (RFC 6040, normal mode).

use crate::drops::DropReason;
use crate::packet::checksum;
use crate::packet::headers::ECN_MASK;

pub const NOT_ECT: u8 = 0b00;
pub const ECT_1: u8 = 0b01;
pub const ECT_0: u8 = 0b10;
pub const CE: u8 = 0b11;

/// The mark of the datagram around a packet.
pub fn outer_for(inner: u8) -> u8 {
    inner & ECN_MASK
}

/// Carries the mark of the datagram over to the packet that was in it. A packet whose sender does not
/// understand marks has to be dropped instead, as a router without marks would have done.
#[inline]
pub fn apply(outer: u8, packet: &mut [u8]) -> Result<(), DropReason> {
    let outer = outer & ECN_MASK;
    if outer == NOT_ECT || outer == ECT_0 {
        return Ok(());
    }
    let Some(&[b0, b1]) = packet.first_chunk::<2>() else {
        return Err(DropReason::InnerMalformed);
    };
    let class = if b0 >> 4 == 6 {
        (b0 << 4) | (b1 >> 4)
    } else {
        b1
    };
    let mark = match (class & ECN_MASK, outer) {
        (NOT_ECT, CE) => return Err(DropReason::Ecn),
        (ECT_0 | ECT_1, CE) => CE,
        (ECT_0, ECT_1) => ECT_1,
        (_, _) => return Ok(()),
    };
    let class = (class & !ECN_MASK) | mark;
    match b0 >> 4 {
        4 => set_ipv4(packet, class),
        6 => {
            packet[1] = (packet[1] & 0x0f) | (class << 4);
            Ok(())
        }
        _ => Err(DropReason::InnerMalformed),
    }
}

fn set_ipv4(packet: &mut [u8], class: u8) -> Result<(), DropReason> {
    let Some(header) = packet.first_chunk_mut::<20>() else {
        return Err(DropReason::InnerMalformed);
    };
    let old = u16::from_be_bytes([header[0], header[1]]);
    header[1] = class;
    let new = u16::from_be_bytes([header[0], header[1]]);
    let sum = checksum::update(u16::from_be_bytes([header[10], header[11]]), old, new);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::headers::Headers;
    use crate::packet::reference::{Flow, Packet};

    /// RFC 6040, figure 4: inner mark, outer mark, mark afterwards.
    const TABLE: [(u8, u8, Option<u8>); 16] = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
        (NOT_ECT, ECT_0, Some(NOT_ECT)),
        (NOT_ECT, ECT_1, Some(NOT_ECT)),
        (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, Some(ECT_0)),
        (ECT_0, ECT_0, Some(ECT_0)),
        (ECT_0, ECT_1, Some(ECT_1)),
        (ECT_0, CE, Some(CE)),
        (ECT_1, NOT_ECT, Some(ECT_1)),
        (ECT_1, ECT_0, Some(ECT_1)),
        (ECT_1, ECT_1, Some(ECT_1)),
        (ECT_1, CE, Some(CE)),
        (CE, NOT_ECT, Some(CE)),
        (CE, ECT_0, Some(CE)),
        (CE, ECT_1, Some(CE)),
        (CE, CE, Some(CE)),
    ];

    #[test]
    fn every_pair_of_marks_gives_what_the_rfc_says_in_both_families() {
        for flow in [Flow::v4_udp(), Flow::v6_udp()] {
            for (inner, outer, expected) in TABLE {
                let packet = Packet {
                    flow,
                    traffic_class: 0xb8 | inner,
                    ..Packet::default()
                };
                let mut bytes = packet.bytes();
                let result = apply(outer, &mut bytes);
                let Some(mark) = expected else {
                    assert_eq!(result, Err(DropReason::Ecn));
                    continue;
                };
                assert_eq!(result, Ok(()));
                let remarked = Packet {
                    traffic_class: 0xb8 | mark,
                    ..packet
                };
                assert_eq!(bytes, remarked.bytes(), "{inner} in {outer}");
                assert_eq!(Headers::parse(&bytes).unwrap().ecn(), mark);
            }
        }
    }

    #[test]
    fn only_the_mark_of_the_inner_packet_goes_out() {
        assert_eq!(outer_for(CE), CE);
        assert_eq!(outer_for(0xb8 | ECT_0), ECT_0);
    }

    #[test]
    fn bytes_that_are_no_packet_are_refused_without_a_panic() {
        for bytes in [
            &mut [][..],
            &mut [0x45],
            &mut [0x45, ECT_0, 0],
            &mut [0x55, ECT_0, 0],
        ] {
            assert_eq!(apply(CE, bytes), Err(DropReason::InnerMalformed));
        }
    }
}
