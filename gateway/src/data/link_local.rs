//! Addresses in fe80::/10: gateways speak with them inside their tunnels, and nobody else does.

const IPV6_SOURCE: usize = 8;
const IPV6_DESTINATION: usize = 24;

/// Whether an opened packet is for control: its source is link-local.
pub(super) fn is_control(packet: &[u8]) -> bool {
    is_v6(packet) && is_link_local(packet, IPV6_SOURCE)
}

/// Whether either address of a packet is link-local.
pub(super) fn concerns(packet: &[u8]) -> bool {
    is_v6(packet) && (is_link_local(packet, IPV6_SOURCE) || is_link_local(packet, IPV6_DESTINATION))
}

fn is_v6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

fn is_link_local(packet: &[u8], at: usize) -> bool {
    let begin = packet.get(at..).and_then(|rest| rest.first_chunk());
    matches!(begin, Some([0xfe, second]) if second >> 6 == 0b10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: [u8; 2], destination: [u8; 2]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[8..10].copy_from_slice(&source);
        packet[24..26].copy_from_slice(&destination);
        packet
    }

    #[test]
    fn the_whole_of_the_range_counts_and_nothing_beside_it() {
        for (begin, wanted) in [
            ([0xfe, 0x80], true),
            ([0xfe, 0xbf], true),
            ([0xfe, 0x7f], false),
            ([0xfe, 0xc0], false),
            ([0xfd, 0x80], false),
        ] {
            assert_eq!(is_control(&packet(begin, [0, 0])), wanted);
            assert_eq!(concerns(&packet(begin, [0, 0])), wanted);
            assert_eq!(concerns(&packet([0, 0], begin)), wanted);
            assert!(!is_control(&packet([0, 0], begin)), "a destination alone");
        }
    }

    #[test]
    fn what_is_no_ipv6_or_too_short_is_none() {
        let mut v4 = packet([0xfe, 0x80], [0xfe, 0x80]);
        v4[0] = 0x45;
        assert!(!is_control(&v4) && !concerns(&v4));
        assert!(!is_control(&[]) && !concerns(&[0x60; 9]));
    }
}
