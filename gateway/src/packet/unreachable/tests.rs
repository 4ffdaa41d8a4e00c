use super::*;
use crate::packet::reference::{Flow, Packet, ones_complement};

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = [0xaa; MAX_LEN];
    build(packet, &mut buffer).map(|length| buffer[..length].to_vec())
}

fn udp(flow: Flow, length: usize) -> Vec<u8> {
    Packet {
        flow,
        payload: vec![7; length],
        ..Packet::default()
    }
    .bytes()
}

fn icmp(flow: Flow, kind: &[u8]) -> Vec<u8> {
    let mut packet = udp(flow, 0);
    let (at, protocol, header) = if flow.v6 {
        (6, PROTOCOL_ICMPV6, 40)
    } else {
        (9, PROTOCOL_ICMP, 20)
    };
    packet[at] = protocol;
    packet.truncate(header);
    packet.extend(kind);
    let at = if flow.v6 { 5 } else { 3 };
    packet[at] = (packet.len() - if flow.v6 { 40 } else { 0 }) as u8;
    packet
}

#[test]
fn an_ipv4_sender_hears_host_unreachable_from_the_destination() {
    let packet = udp(Flow::v4_udp(), 100);
    let answer = answer(&packet).unwrap();
    assert_eq!(answer.len(), 28 + packet.len());
    assert_eq!(answer[2..4], (answer.len() as u16).to_be_bytes());
    assert_eq!((answer[0], answer[9]), (0x45, PROTOCOL_ICMP));
    assert_eq!(answer[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
    assert_eq!(answer[20..22], [3, 1]);
    assert_eq!(answer[28..], packet);
    assert_eq!(ones_complement(&answer[..20], 0), 0xffff);
    assert_eq!(ones_complement(&answer[20..], 0), 0xffff);
}

#[test]
fn an_ipv6_sender_hears_address_unreachable_from_the_destination() {
    let packet = udp(Flow::v6_udp(), 101);
    let answer = answer(&packet).unwrap();
    assert_eq!(answer.len(), 48 + packet.len());
    assert_eq!(answer[4..6], ((answer.len() - 40) as u16).to_be_bytes());
    assert_eq!((answer[0] >> 4, answer[6]), (6, PROTOCOL_ICMPV6));
    assert_eq!(answer[8..24], packet[24..40]);
    assert_eq!(answer[24..40], packet[8..24]);
    assert_eq!(answer[40..42], [1, 3]);
    assert_eq!(answer[48..], packet);
    let pseudo_header = [
        &answer[8..40],
        &[0, 0, 0, (answer.len() - 40) as u8, 0, 0, 0, 58],
    ]
    .concat();
    let pseudo_header = u64::from(ones_complement(&pseudo_header, 0));
    assert_eq!(ones_complement(&answer[40..], pseudo_header), 0xffff);
}

#[test]
fn a_long_packet_is_quoted_up_to_the_size_that_passes_everywhere() {
    let packet = udp(Flow::v4_udp(), 1300);
    let error = answer(&packet).unwrap();
    assert_eq!(error.len(), 576);
    assert_eq!(error[28..], packet[..548]);
    let packet = udp(Flow::v6_udp(), 1300);
    let error = answer(&packet).unwrap();
    assert_eq!(error.len(), 1280);
    assert_eq!(error[48..], packet[..1232]);
}

#[test]
fn errors_are_not_answered_and_queries_are() {
    for (kind, answered) in [
        (0, true),
        (3, false),
        (4, false),
        (5, false),
        (8, true),
        (11, false),
        (12, false),
        (13, true),
    ] {
        assert_eq!(
            answer(&icmp(Flow::v4_udp(), &[kind, 0, 0, 0])).is_some(),
            answered,
            "v4 {kind}"
        );
    }
    for (kind, answered) in [
        (1, false),
        (2, false),
        (127, false),
        (128, true),
        (135, true),
        (137, false),
    ] {
        assert_eq!(
            answer(&icmp(Flow::v6_udp(), &[kind, 0, 0, 0])).is_some(),
            answered,
            "v6 {kind}"
        );
    }
}

#[test]
fn icmp_too_short_to_tell_is_not_answered() {
    assert_eq!(answer(&icmp(Flow::v4_udp(), &[])), None);
    assert_eq!(answer(&icmp(Flow::v6_udp(), &[])), None);
}

#[test]
fn only_the_first_fragment_is_answered() {
    let mut packet = udp(Flow::v4_udp(), 64);
    packet[6..8].copy_from_slice(&[0x20, 0]);
    assert!(answer(&packet).is_some());
    packet[6..8].copy_from_slice(&[0x20, 8]);
    assert_eq!(answer(&packet), None);
}

#[test]
fn addresses_that_are_not_one_host_are_not_answered() {
    let hosts = [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
    ];
    for host in hosts {
        for at in [12, 16] {
            let mut packet = udp(Flow::v4_udp(), 10);
            packet[at..at + 4].copy_from_slice(&host);
            assert_eq!(answer(&packet), None, "{host:?} at {at}");
        }
    }
    let mut multicast = [0; 16];
    multicast[0] = 0xff;
    let mut loopback = [0; 16];
    loopback[15] = 1;
    for host in [[0; 16], multicast, loopback] {
        for at in [8, 24] {
            let mut packet = udp(Flow::v6_udp(), 10);
            packet[at..at + 16].copy_from_slice(&host);
            assert_eq!(answer(&packet), None, "{host:?} at {at}");
        }
    }
}

#[test]
fn malformed_packets_and_small_buffers_give_nothing() {
    assert_eq!(answer(&[]), None);
    assert_eq!(answer(&[0x45; 12]), None);
    assert_eq!(build(&udp(Flow::v4_udp(), 10), &mut [0; MAX_LEN - 1]), None);
}

#[test]
fn a_packet_that_is_too_big_is_answered_with_what_passes() {
    let told = |packet: &[u8], mtu| {
        let mut buffer = [0xaa; MAX_LEN];
        let length = build_too_big(packet, mtu, &mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    let packet = udp(Flow::v4_udp(), 1400);
    let error = told(&packet, 1392);
    assert_eq!(error[20..22], [3, 4]);
    assert_eq!(error[24..28], 1392_u32.to_be_bytes());
    assert_eq!(error[28..], packet[..548]);
    assert_eq!(ones_complement(&error[20..], 0), 0xffff);
    for (mtu, expected) in [(1392, 1392_u32), (1240, 1280)] {
        let packet = udp(Flow::v6_udp(), 1400);
        let error = told(&packet, mtu);
        assert_eq!(error[40..42], [2, 0]);
        assert_eq!(error[44..48], expected.to_be_bytes());
        assert_eq!(error[48..], packet[..1232]);
        let pseudo_header = [&error[8..40], &[0, 0, 4, 0xd8, 0, 0, 0, 58]].concat();
        let pseudo_header = u64::from(ones_complement(&pseudo_header, 0));
        assert_eq!(ones_complement(&error[40..], pseudo_header), 0xffff);
    }
}
