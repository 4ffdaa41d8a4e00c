use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::packet::reference::{ACK, CWR, FIN, Flow, PSH, Packet, SYN, URG, ones_complement};
use crate::packet::split::{SPARE, Segments};

/// Everything that leaves for a link of `mtu`, as the packet path calls this module; the number of
/// packets that were refused beside it.
fn leave(vnet: VnetHeader, bytes: &[u8], mtu: usize) -> (Vec<Vec<u8>>, usize) {
    let mut buffer = bytes.to_vec();
    buffer.extend([0; SPARE]);
    let Ok(segments) = Segments::new(vnet, &mut buffer, bytes.len()) else {
        return (Vec::new(), 1);
    };
    let (mut out, mut refused) = (Vec::new(), 0);
    let (header, apart) = if segments.largest() <= mtu {
        let done = VnetHeader {
            data_valid: true,
            ..completed()
        };
        (if vnet.gso == Gso::None { done } else { vnet }, false)
    } else {
        match fit(vnet, &mut buffer[..bytes.len()], mtu) {
            Fit::Cut(header) => (header, false),
            Fit::Apart(header) => (header, true),
        }
    };
    let mut segments = Segments::new(header, &mut buffer, bytes.len()).unwrap();
    while let Some(packet) = segments.next_padded(0) {
        let length = Headers::parse(packet).unwrap().total_length;
        let packet = &packet[..length];
        if !apart {
            out.push(packet.to_vec());
            continue;
        }
        let Some(mut pieces) = Fragments::new(packet, mtu, 77) else {
            refused += 1;
            continue;
        };
        let mut room = vec![0xee; mtu];
        while let Some(length) = pieces.next_into(&mut room) {
            out.push(room[..length].to_vec());
        }
    }
    (out, refused)
}

fn whole(packet: &Packet) -> VnetHeader {
    packet.vnet(0)
}

fn completed() -> VnetHeader {
    VnetHeader::default()
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

/// Puts fragments together the obvious way, in any order.
fn join(fragments: &[Vec<u8>]) -> Vec<u8> {
    let v6 = fragments[0][0] >> 4 == 6;
    let mut pieces: Vec<(usize, bool, &[u8], &[u8])> = Vec::new();
    for fragment in fragments {
        let (header, field) = if v6 {
            let at = fragment_header(fragment);
            (at + 8, word(fragment, at + 2))
        } else {
            assert_eq!(
                ones_complement(&fragment[..header_length(fragment)], 0),
                0xffff
            );
            assert_eq!(word(fragment, 2), fragment.len());
            assert_eq!(fragment[6] & 0x40, 0, "DF stays off");
            (header_length(fragment), word(fragment, 6))
        };
        let (offset, more) = if v6 {
            assert_eq!(word(fragment, 4), fragment.len() - 40);
            (field & !7, field & 1 != 0)
        } else {
            ((field & 0x1fff) * 8, field & 0x2000 != 0)
        };
        let payload = &fragment[header..];
        assert!(!more || payload.len() % 8 == 0, "whole units but the last");
        pieces.push((offset, more, &fragment[..header], payload));
    }
    pieces.sort_by_key(|piece| piece.0);
    let mut payload: Vec<u8> = Vec::new();
    for (index, (offset, more, _, bytes)) in pieces.iter().enumerate() {
        assert_eq!(*offset, payload.len(), "no gap, no overlap");
        assert_eq!(*more, index + 1 < pieces.len());
        payload.extend(*bytes);
    }
    let mut packet = pieces[0].2.to_vec();
    if v6 {
        let at = packet.len() - 8;
        let next = packet[at];
        packet.truncate(at);
        let named = if packet.len() == 40 { 6 } else { 40 };
        packet[named] = next;
        packet.extend(payload);
        let length = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        packet.extend(payload);
        let length = packet.len() as u16;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[6..8].fill(0);
        packet[10..12].fill(0);
        let sum = !ones_complement(&packet[..header_length(&packet)], 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn header_length(packet: &[u8]) -> usize {
    usize::from(packet[0] & 15) * 4
}

fn fragment_header(packet: &[u8]) -> usize {
    match packet[6] {
        44 => 40,
        0 => {
            assert_eq!(packet[40], 44);
            48
        }
        other => panic!("no fragment: {other}"),
    }
}

fn tcp(flow: Flow, length: usize) -> Packet {
    Packet {
        flow,
        flags: ACK | PSH | FIN | CWR,
        tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
        payload: (0..length).map(|at| (at * 7 % 251) as u8).collect(),
        ..Packet::default()
    }
}

#[test]
fn one_tcp_packet_is_cut_as_its_sender_would_have() {
    for flow in [Flow::v4_tcp(), Flow::v6_tcp()] {
        let packet = tcp(flow, 3000);
        let headers = packet.ip_header_length() + packet.transport_header_length();
        let expected: Vec<Vec<u8>> = packet
            .segments(1300 - headers)
            .iter()
            .map(Packet::bytes)
            .collect();
        let sums = [
            (completed(), packet.bytes()),
            (whole(&packet), packet.bytes_with_partial_sum()),
        ];
        for (vnet, bytes) in sums {
            assert_eq!(leave(vnet, &bytes, 1300), (expected.clone(), 0));
        }
    }
}

#[test]
fn a_superpacket_is_cut_smaller() {
    for flow in [Flow::v4_tcp(), Flow::v6_tcp()] {
        let packet = tcp(flow, 20_000);
        let headers = packet.ip_header_length() + packet.transport_header_length();
        let naive = packet.segments(1220 - headers);
        let expected: Vec<Vec<u8>> = naive.iter().map(Packet::bytes).collect();
        let bytes = packet.bytes_with_partial_sum();
        assert_eq!(leave(packet.vnet(1400), &bytes, 1220), (expected, 0));
    }
}

#[test]
fn tcp_that_must_not_be_cut_is_refused_or_fragmented() {
    let signed = |kind| {
        vec![
            1, 1, kind, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ]
    };
    let plain = Packet {
        flags: ACK,
        ..tcp(Flow::v4_tcp(), 3000)
    };
    let cases = [
        Packet {
            flags: SYN,
            ..plain.clone()
        },
        Packet {
            flags: ACK | URG,
            urgent: 5,
            ..plain.clone()
        },
        Packet {
            flags: 0x04,
            ..plain.clone()
        },
        Packet {
            tcp_options: signed(MD5_SIGNATURE),
            ..plain.clone()
        },
        Packet {
            tcp_options: signed(AUTHENTICATION),
            ..plain
        },
    ];
    for packet in cases {
        assert_eq!(leave(completed(), &packet.bytes(), 1300), (Vec::new(), 1));
        let free = Packet {
            dont_fragment: false,
            ..packet
        };
        let (pieces, refused) = leave(completed(), &free.bytes(), 1300);
        assert_eq!((pieces.len(), refused), (3, 0));
        assert_eq!(join(&pieces), free.bytes());
    }
}

#[test]
fn udp_is_fragmented_where_it_may_be_and_refused_where_not() {
    let packet = Packet {
        flow: Flow::v4_udp(),
        dont_fragment: false,
        payload: vec![7; 3000],
        ..Packet::default()
    };
    let (pieces, refused) = leave(whole(&packet), &packet.bytes_with_partial_sum(), 1301);
    assert_eq!(refused, 0);
    assert_eq!(
        pieces.iter().map(Vec::len).collect::<Vec<_>>(),
        [1300, 1300, 468]
    );
    assert_eq!(join(&pieces), packet.bytes());
    for packet in [
        Packet {
            dont_fragment: true,
            ..packet.clone()
        },
        Packet {
            flow: Flow::v6_udp(),
            ..packet
        },
    ] {
        assert_eq!(leave(completed(), &packet.bytes(), 1301), (Vec::new(), 1));
    }
}

#[test]
fn every_datagram_of_a_udp_superpacket_is_fragmented_by_itself() {
    let packet = Packet {
        flow: Flow::v4_udp(),
        dont_fragment: false,
        payload: (0..4500).map(|at| (at % 241) as u8).collect(),
        ..Packet::default()
    };
    let (pieces, refused) = leave(packet.vnet(1400), &packet.bytes_with_partial_sum(), 1200);
    assert_eq!((pieces.len(), refused), (7, 0));
    let datagrams = packet.segments(1400);
    for (pieces, datagram) in pieces[..6].chunks(2).zip(&datagrams) {
        assert_eq!(join(pieces), datagram.bytes());
    }
    assert_eq!(pieces[6], datagrams[3].bytes());
}

#[test]
fn a_fragment_is_fragmented_again_within_its_packet() {
    let packet = Packet {
        flow: Flow::v4_udp(),
        dont_fragment: false,
        payload: (0..9000).map(|at| (at % 241) as u8).collect(),
        ..Packet::default()
    };
    let (large, _) = leave(completed(), &packet.bytes(), 4000);
    assert_eq!(large.len(), 3);
    let small: Vec<Vec<u8>> = large
        .iter()
        .flat_map(|fragment| leave(completed(), fragment, 700).0)
        .collect();
    assert!(small.iter().all(|piece| piece.len() <= 700));
    assert_eq!(join(&small), packet.bytes());
}

#[test]
fn only_options_that_are_to_be_copied_stand_in_later_fragments() {
    // Record route, then a source route, then the end.
    let record = [7, 7, 4, 0, 0, 0, 0];
    let route = [0x83, 7, 4, 1, 2, 3, 4];
    let options = [&record[..], &route, &[0, 0]].concat();
    let packet = Packet {
        flow: Flow::v4_udp(),
        dont_fragment: false,
        ip_options: options,
        payload: vec![1; 100],
        ..Packet::default()
    };
    let (pieces, _) = leave(completed(), &packet.bytes(), 92);
    assert_eq!(header_length(&pieces[0]), 36);
    assert_eq!(header_length(&pieces[1]), 28);
    assert_eq!(pieces[1][20..28], [0x83, 7, 4, 1, 2, 3, 4, 0]);
    assert_eq!(join(&pieces), packet.bytes());
}

#[test]
fn ipv6_up_to_1280_bytes_passes_a_link_that_carries_less() {
    let hop_by_hop = vec![17, 0, 1, 4, 0, 0, 0, 0];
    for (ip_options, length) in [(Vec::new(), 1232), (hop_by_hop, 1224)] {
        let packet = Packet {
            flow: Flow::v6_udp(),
            ip_options,
            payload: (0..length).map(|at| (at % 241) as u8).collect(),
            ..Packet::default()
        };
        assert_eq!(packet.bytes().len(), 1280);
        let (pieces, refused) = leave(completed(), &packet.bytes(), 1200);
        assert_eq!((pieces.len(), refused), (2, 0));
        assert_eq!(join(&pieces), packet.bytes());
        for piece in &pieces {
            let at = fragment_header(piece);
            assert_eq!(piece[at + 4..at + 8], 77_u32.to_be_bytes());
        }
        // In smaller pieces still, and those of one packet keep its number.
        let again: Vec<Vec<u8>> = pieces
            .iter()
            .flat_map(|piece| leave(completed(), piece, 600).0)
            .collect();
        assert_eq!(join(&again), packet.bytes());
        // Where every packet of 1280 passes there is nothing to cut.
        let larger = Packet {
            payload: vec![0; length + 1],
            ..packet
        };
        assert_eq!(leave(completed(), &larger.bytes(), 1200), (Vec::new(), 1));
    }
}

#[test]
fn fragments_that_reach_beyond_the_largest_packet_are_refused() {
    let mut packet = Packet {
        flow: Flow::v4_udp(),
        dont_fragment: false,
        payload: vec![0; 2000],
        ..Packet::default()
    }
    .bytes();
    packet[6..8].copy_from_slice(&[0x1f, 0xff]);
    assert!(Fragments::new(&packet, 1300, 0).is_none());
}

fn free_packet() -> impl Strategy<Value = Packet> {
    (
        any::<bool>(),
        0..3_usize,
        vec(any::<u8>(), 0..6000),
        any::<u16>(),
    )
        .prop_map(|(tcp, options, payload, identification)| Packet {
            flow: if tcp { Flow::v4_tcp() } else { Flow::v4_udp() },
            flags: SYN,
            dont_fragment: false,
            ip_options: vec![1; options * 4],
            identification,
            payload,
            ..Packet::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_tcp_is_cut_into_what_fits_and_carries_the_same_stream(
        v6: bool, flags: u8, sequence: u32, identification: u16, payload in vec(any::<u8>(), 1..5000),
        mtu in 200..2000_usize, size in prop_oneof![Just(0_usize), 100..2500_usize],
    ) {
        let flow = if v6 { Flow::v6_tcp() } else { Flow::v4_tcp() };
        let flags = flags & !(SYN | URG | 0x04);
        let packet = Packet { flow, flags, sequence, identification, payload, ..Packet::default() };
        let headers = packet.ip_header_length() + 20;
        let step = match size { 0 => mtu - headers, size => size.min(mtu - headers) };
        let expected: Vec<Vec<u8>> = packet.segments(step).iter().map(Packet::bytes).collect();
        prop_assert_eq!(leave(packet.vnet(size), &packet.bytes_with_partial_sum(), mtu), (expected.clone(), 0));
        if size == 0 {
            prop_assert_eq!(leave(completed(), &packet.bytes(), mtu), (expected, 0));
        }
    }

    #[test]
    fn a_checksum_that_does_not_hold_is_not_mended(
        at in 0..3000_usize, flip in 1_u8..=255, mtu in 200..1500_usize,
    ) {
        let packet = Packet { flags: ACK, ..tcp(Flow::v4_tcp(), 3000) };
        let mut bytes = packet.bytes();
        let begins = bytes.len() - 3000;
        bytes[begins + at] ^= flip;
        // As if somebody had vouched for it.
        let vouched = VnetHeader { data_valid: true, ..completed() };
        let (pieces, _) = leave(vouched, &bytes, mtu);
        let damaged = pieces.iter().filter(|piece| {
            let plain = VnetHeader::default();
            let mut room = [&piece[..], &[0; SPARE]].concat();
            Segments::new(plain, &mut room, piece.len()).is_err()
        });
        prop_assert!(damaged.count() > 0);
    }

    #[test]
    fn any_fragments_join_to_the_same_packet(packet in free_packet(), mtu in 68..3000_usize) {
        let bytes = packet.bytes();
        let (pieces, refused) = leave(completed(), &bytes, mtu);
        prop_assert_eq!(refused, 0);
        prop_assert!(pieces.iter().all(|piece| piece.len() <= mtu));
        if pieces.len() == 1 {
            prop_assert_eq!(&pieces[0], &bytes);
        } else {
            prop_assert_eq!(join(&pieces), bytes);
        }
    }

    #[test]
    fn any_bytes_are_survived(
        mut bytes in vec(any::<u8>(), 0..2000), vnet: [u8; 10], version in prop_oneof![Just(0x45_u8), Just(0x60), any::<u8>()],
        protocol in prop_oneof![Just(6_u8), Just(44), Just(0), any::<u8>()], length: u16, mtu in 0..1500_usize,
    ) {
        let [high, low] = (length % 2000).to_be_bytes();
        for (at, value) in [(0, version), (2, high), (3, low), (4, high), (5, low), (6, protocol), (9, protocol)] {
            if let Some(byte) = bytes.get_mut(at) { *byte = value; }
        }
        if let Some(vnet) = VnetHeader::parse(&vnet) {
            leave(vnet, &bytes, mtu);
        }
        leave(VnetHeader { data_valid: true, ..completed() }, &bytes, mtu);
    }
}
