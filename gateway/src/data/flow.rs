//! Which of several gateways carries a flow: rendezvous hashing, so that a gateway's death moves
//! only the flows that were its own, whoever else is there.

use std::net::IpAddr;

use super::snapshot::Choice;
use crate::packet::headers::{Headers, PROTOCOL_TCP, PROTOCOL_UDP};

const PROTOCOL_DCCP: u8 = 33;
const PROTOCOL_SCTP: u8 = 132;
const PROTOCOL_UDP_LITE: u8 = 136;

/// The same for all packets of a flow: of its addresses, protocol and ports. A fragment counts by
/// its addresses alone, since only the first says more.
pub(super) fn hash(packet: &[u8]) -> u64 {
    let Some(headers) = Headers::parse(packet) else {
        return 0;
    };
    let above_ip = if headers.is_fragment() {
        0
    } else {
        u64::from(headers.protocol) << 32 | u64::from(ports(&headers, packet))
    };
    let addresses = mix(fold(headers.source) ^ fold(headers.destination).rotate_left(32));
    mix(addresses ^ mix(above_ip))
}

/// The one that weighs most for this flow.
pub(super) fn choose<'a>(flow: u64, first: &'a Choice, rest: &'a [Choice]) -> &'a Choice {
    let weight = |choice: &Choice| mix(flow ^ mix(choice.seed));
    let (mut best, mut most) = (first, weight(first));
    for choice in rest {
        let weight = weight(choice);
        if weight > most {
            (best, most) = (choice, weight);
        }
    }
    best
}

/// Both ports where the transport has them, else 0.
fn ports(headers: &Headers, packet: &[u8]) -> u32 {
    let has_ports = matches!(
        headers.protocol,
        PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_DCCP | PROTOCOL_SCTP | PROTOCOL_UDP_LITE
    );
    let transport = packet.get(headers.header_length..headers.total_length);
    transport
        .filter(|_| has_ports)
        .and_then(|transport| transport.first_chunk())
        .map_or(0, |ports| u32::from_be_bytes(*ports))
}

fn fold(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            mix((bits >> 64) as u64) ^ bits as u64
        }
    }
}

/// A bijection in which every bit of the input moves about half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests;
