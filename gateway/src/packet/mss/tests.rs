use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::reference::{ACK, Flow, Packet, SYN};

fn syn(flow: Flow, tcp_options: Vec<u8>) -> Packet {
    Packet {
        flow,
        flags: SYN,
        tcp_options,
        ..Packet::default()
    }
}

/// The option with so many no-operations before it, made up to whole words.
fn announced(size: u16, padding: usize) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    let mut options = vec![NO_OPERATION; padding];
    options.extend([MAXIMUM_SEGMENT_SIZE, 4, high, low]);
    options.resize(options.len().next_multiple_of(4), 0);
    options
}

fn clamped(packet: &Packet, mtu: usize) -> Vec<u8> {
    let mut bytes = packet.bytes();
    assert!(may_be_syn(&bytes));
    clamp(&mut bytes, mtu, false);
    bytes
}

#[test]
fn a_size_that_is_too_large_is_lowered_and_the_checksum_holds() {
    for (flow, overhead) in [(Flow::v4_tcp(), 40), (Flow::v6_tcp(), 60)] {
        for padding in 0..4 {
            for announce in [1460, 8960, 0xffff] {
                let packet = syn(flow, announced(announce, padding));
                let lowered = syn(flow, announced(1380 - overhead, padding));
                assert_eq!(clamped(&packet, 1380), lowered.bytes(), "{padding}");
            }
        }
    }
}

#[test]
fn a_size_that_fits_is_left_alone() {
    for flow in [Flow::v4_tcp(), Flow::v6_tcp()] {
        for size in [0, 536, 1320] {
            let packet = syn(flow, announced(size, 1));
            assert_eq!(clamped(&packet, 1380), packet.bytes());
        }
    }
}

#[test]
fn an_answer_to_a_syn_is_clamped_too_and_a_partial_sum_stays_as_it_is() {
    let packet = Packet {
        flags: SYN | ACK,
        ..syn(Flow::v6_tcp(), announced(1440, 0))
    };
    let lowered = Packet {
        tcp_options: announced(1220, 0),
        ..packet.clone()
    };
    assert_eq!(clamped(&packet, 1280), lowered.bytes());
    let mut bytes = packet.bytes_with_partial_sum();
    clamp(&mut bytes, 1280, true);
    assert_eq!(bytes, lowered.bytes_with_partial_sum());
}

#[test]
fn options_before_and_extension_headers_are_walked() {
    let sack_and_time = [4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
    let mut options = sack_and_time.to_vec();
    options.extend(announced(1460, 0));
    let mut lowered = sack_and_time.to_vec();
    lowered.extend(announced(1240, 0));
    let behind = Packet {
        ip_options: vec![6, 0, 1, 4, 0, 0, 0, 0],
        extension: 60,
        ..syn(Flow::v6_tcp(), options)
    };
    let expected = Packet {
        tcp_options: lowered,
        ..behind.clone()
    };
    assert_eq!(clamped(&behind, 1300), expected.bytes());
}

#[test]
fn options_that_lie_or_say_nothing_change_nothing() {
    let lies: [&[u8]; 8] = [
        &[],
        &[0, 2, 4, 0],
        &[2, 4, 0xff, 0xff],
        &[3, 0, 2, 4],
        &[3, 1, 2, 4],
        &[3, 200, 2, 4],
        &[2, 3, 0xff, 0],
        &[1, 1, 1, 2],
    ];
    for options in lies {
        let packet = syn(Flow::v4_tcp(), options.to_vec());
        let mut expected = packet.bytes();
        if options == [2, 4, 0xff, 0xff] {
            expected = syn(Flow::v4_tcp(), announced(1340, 0)).bytes();
        }
        assert_eq!(clamped(&packet, 1380), expected, "{options:?}");
    }
}

#[test]
fn what_is_no_syn_is_passed_by() {
    let data = Packet {
        tcp_options: announced(1460, 0),
        ..Packet::default()
    };
    for flow in Flow::ALL {
        let bytes = Packet {
            flow,
            ..data.clone()
        }
        .bytes();
        assert!(!may_be_syn(&bytes));
        let mut after = bytes.clone();
        clamp(&mut after, 600, false);
        assert_eq!(after, bytes);
    }
    // A later fragment may look like one.
    let mut bytes = syn(Flow::v4_tcp(), announced(1460, 0)).bytes();
    bytes[6..8].copy_from_slice(&[0, 7]);
    let before = bytes.clone();
    clamp(&mut bytes, 600, false);
    assert_eq!(bytes, before);
}

proptest! {
    #[test]
    fn any_bytes_are_survived_and_only_syns_are_touched(
        mut bytes in vec(any::<u8>(), 0..120), version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(6_u8), any::<u8>()], mtu in 0..2000_usize, partial: bool,
    ) {
        for (at, value) in [(0, version), (6, protocol), (9, protocol), (2, 0), (4, 0)] {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        let before = bytes.clone();
        let looked = may_be_syn(&bytes);
        clamp(&mut bytes, mtu, partial);
        prop_assert!(looked || bytes == before);
    }

    #[test]
    fn the_checksum_holds_for_any_options_and_any_mtu(
        v6: bool, size: u16, mtu in 68_usize..9000, padding in 0..8_usize, flags: u8, sequence: u32,
    ) {
        let flow = if v6 { Flow::v6_tcp() } else { Flow::v4_tcp() };
        let packet = Packet { flags: flags | SYN, sequence, ..syn(flow, announced(size, padding)) };
        let most = mtu.saturating_sub(if v6 { 60 } else { 40 }) as u16;
        let lowered = Packet { tcp_options: announced(size.min(most), padding), ..packet.clone() };
        prop_assert_eq!(clamped(&packet, mtu), lowered.bytes());
    }
}
