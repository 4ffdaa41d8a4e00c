use super::*;
use crate::packet::reference::{ACK, CWR, FIN, Flow, PSH, Packet, ones_complement};

/// Cuts `packet` in a buffer whose spare bytes are not zero, and checks that it is as it was behind.
fn split(vnet: VnetHeader, packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, DropReason> {
    let mut buffer = packet.to_vec();
    buffer.extend([0xee; SPARE]);
    let mut segments = Segments::new(vnet, &mut buffer, packet.len())?;
    let mut out = Vec::new();
    while let Some(segment) = segments.next_padded(mtu) {
        out.push(segment.to_vec());
    }
    assert_eq!(out.len(), segments.count());
    assert_eq!(buffer[packet.len()..], [0xee; SPARE]);
    Ok(out)
}

fn padded(packets: &[Packet]) -> Vec<Vec<u8>> {
    let pad = |packet: &Packet| {
        let mut bytes = packet.bytes();
        bytes.resize(bytes.len().next_multiple_of(16), 0);
        bytes
    };
    packets.iter().map(pad).collect()
}

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8 + 1).collect()
}

const UNTOUCHED: VnetHeader = VnetHeader {
    needs_csum: false,
    data_valid: true,
    gso: Gso::None,
    ecn: false,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
};

const UNVERIFIED: VnetHeader = VnetHeader {
    data_valid: false,
    ..UNTOUCHED
};

#[test]
fn superpackets_of_every_kind_become_the_packets_they_stand_for() {
    for flow in Flow::ALL {
        for size in [1, 7, 15, 16, 40, 100, 1400] {
            let flags = ACK | PSH | FIN | CWR;
            let packet = Packet {
                flow,
                flags,
                sequence: u32::MAX - 50,
                payload: payload(1500),
                ..Packet::default()
            };
            let out = split(packet.vnet(size), &packet.bytes_with_partial_sum(), 1500).unwrap();
            assert_eq!(out, padded(&packet.segments(size)), "{flow:?} {size}");
        }
    }
}

#[test]
fn cwr_is_only_on_the_first_segment_and_fin_and_psh_only_on_the_last() {
    let packet = Packet {
        flags: ACK | PSH | FIN | CWR,
        payload: payload(300),
        ..Packet::default()
    };
    let out = split(packet.vnet(100), &packet.bytes_with_partial_sum(), 0).unwrap();
    let flags: Vec<u8> = out.iter().map(|segment| segment[33]).collect();
    assert_eq!(flags, [ACK | CWR, ACK, ACK | PSH | FIN]);
}

#[test]
fn identifications_count_up_and_wrap() {
    let packet = Packet {
        identification: 0xffff,
        payload: payload(30),
        ..Packet::default()
    };
    let out = split(packet.vnet(10), &packet.bytes_with_partial_sum(), 0).unwrap();
    let ids: Vec<&[u8]> = out.iter().map(|segment| &segment[4..6]).collect();
    assert_eq!(ids, [[0xff, 0xff], [0, 0], [0, 1]]);
}

#[test]
fn options_and_extension_headers_are_repeated_in_every_segment() {
    let tcp_options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let base = Packet {
        tcp_options,
        payload: payload(500),
        ..Packet::default()
    };
    let v4 = Packet {
        ip_options: vec![1, 1, 1, 0],
        ..base.clone()
    };
    let ip_options = vec![6, 0, 1, 4, 0, 0, 0, 0];
    let v6 = Packet {
        flow: Flow::v6_tcp(),
        extension: 60,
        ip_options,
        ..base
    };
    for packet in [v4, v6] {
        let out = split(packet.vnet(120), &packet.bytes_with_partial_sum(), 0).unwrap();
        assert_eq!(out, padded(&packet.segments(120)));
    }
}

#[test]
fn what_the_frame_says_of_itself_is_known_before_it_is_cut() {
    let packet = Packet {
        traffic_class: 0x03,
        payload: payload(301),
        ..Packet::default()
    };
    let mut buffer = packet.bytes_with_partial_sum();
    let length = buffer.len();
    buffer.extend([0; SPARE]);
    let segments = Segments::new(packet.vnet(100), &mut buffer, length).unwrap();
    assert_eq!(segments.count(), 4);
    assert_eq!(segments.ecn(), 3);
    assert_eq!(segments.source(), IpAddr::from([10, 0, 0, 1]));
    assert_eq!(segments.destination(), IpAddr::from([10, 0, 0, 2]));
}

#[test]
fn padding_follows_the_kernels_rule() {
    assert_eq!(padded_length(0, 1420), 0);
    assert_eq!(padded_length(1, 1420), 16);
    assert_eq!(padded_length(16, 1420), 16);
    assert_eq!(padded_length(1419, 1420), 1420);
    assert_eq!(padded_length(1420, 1420), 1420);
    assert_eq!(padded_length(1421, 1420), 1436);
    assert_eq!(padded_length(2840, 1420), 2840);
    assert_eq!(padded_length(1421, 0), 1424);
}

#[test]
fn a_lone_packet_is_padded_with_zeros_and_the_bytes_behind_it_come_back() {
    let packet = Packet {
        payload: payload(3),
        ..Packet::default()
    };
    let out = split(UNVERIFIED, &packet.bytes(), 1420).unwrap();
    assert_eq!(out[0].len(), 48);
    assert_eq!(out[0][43..], [0; 5]);
}

#[test]
fn bytes_behind_the_packets_own_length_are_not_sent() {
    let packet = Packet {
        payload: payload(8),
        ..Packet::default()
    };
    let mut bytes = packet.bytes();
    bytes.extend([9; 100]);
    assert_eq!(split(UNVERIFIED, &bytes, 1420).unwrap(), padded(&[packet]));
}

#[test]
fn a_partial_sum_is_completed() {
    for flow in Flow::ALL {
        let packet = Packet {
            flow,
            payload: payload(333),
            ..Packet::default()
        };
        let out = split(packet.vnet(0), &packet.bytes_with_partial_sum(), 1420).unwrap();
        assert_eq!(out, padded(&[packet]));
    }
}

#[test]
fn a_completed_udp_sum_of_zero_is_written_as_ffff() {
    let mut packet = Packet {
        flow: Flow::v4_udp(),
        payload: vec![0; 2],
        ..Packet::default()
    };
    let bytes = packet.bytes();
    packet.payload.copy_from_slice(&bytes[26..28]);
    assert_eq!(packet.bytes()[26..28], [0xff, 0xff]);
    for size in [0, 1400] {
        let out = split(packet.vnet(size), &packet.bytes_with_partial_sum(), 0).unwrap();
        assert_eq!(out, padded(std::slice::from_ref(&packet)), "{size}");
    }
}

#[test]
fn an_inner_partial_sum_of_vxlan_is_completed_and_the_outer_sum_stays() {
    for unsummed in [true, false] {
        let inner = Packet {
            payload: payload(700),
            ..Packet::default()
        };
        let around =
            |inner: &[u8]| [&[8, 0, 0, 0, 0, 0, 7, 0], &[2; 12][..], &[8, 0], inner].concat();
        let outer = |payload| Packet {
            flow: Flow::v4_udp(),
            unsummed,
            payload,
            ..Packet::default()
        };
        let finished = outer(around(&inner.bytes())).bytes();
        // Where the outer datagram has a sum, the kernel leaves the one that will hold at the end.
        let mut unfinished = finished.clone();
        unfinished[50..].copy_from_slice(&inner.bytes_with_partial_sum());
        let vnet = VnetHeader {
            csum_start: 50 + 20,
            ..inner.vnet(0)
        };
        let mut out = split(vnet, &unfinished, 1420).unwrap().remove(0);
        out.truncate(finished.len());
        assert_eq!(out, finished);
    }
}

#[test]
fn what_nobody_vouched_for_is_verified() {
    for flow in Flow::ALL {
        let packet = Packet {
            flow,
            payload: payload(99),
            ..Packet::default()
        };
        let good = packet.bytes();
        assert_eq!(
            split(UNVERIFIED, &good, 1420).unwrap(),
            padded(std::slice::from_ref(&packet))
        );
        for at in [packet.ip_header_length(), good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(split(UNVERIFIED, &bad, 1420), Err(DropReason::TunChecksum));
            assert!(
                split(UNTOUCHED, &bad, 1420).is_ok(),
                "the kernel vouches for it"
            );
        }
    }
}

#[test]
fn a_udp_datagram_without_a_sum_passes() {
    let packet = Packet {
        flow: Flow::v4_udp(),
        unsummed: true,
        payload: payload(9),
        ..Packet::default()
    };
    assert_eq!(
        split(UNVERIFIED, &packet.bytes(), 1420).unwrap(),
        padded(&[packet])
    );
}

#[test]
fn a_udp_sum_covers_the_datagram_and_not_what_follows_it_in_the_packet() {
    let packet = Packet {
        flow: Flow::v4_udp(),
        payload: payload(9),
        ..Packet::default()
    };
    let mut bytes = packet.bytes();
    bytes.extend([7; 5]);
    bytes[3] += 5;
    assert!(split(UNVERIFIED, &bytes, 1420).is_ok());
}

#[test]
fn fragments_pass_unverified() {
    let mut bytes = Packet {
        flow: Flow::v4_udp(),
        payload: payload(64),
        ..Packet::default()
    }
    .bytes();
    bytes[27] ^= 1;
    for field in [[0x20, 0], [0x20, 9], [0, 9]] {
        bytes[6..8].copy_from_slice(&field);
        assert!(split(UNVERIFIED, &bytes, 1420).is_ok(), "{field:?}");
    }
}

#[test]
fn a_rerouted_superpacket_keeps_the_destination_that_its_seed_covers() {
    let mut routing = vec![6, 2, 4, 1];
    routing.extend([0; 20]);
    let packet = Packet {
        flow: Flow::v6_tcp(),
        payload: payload(250),
        ..Packet::default()
    };
    let segments = packet.segments(100);
    // The sums cover the last hop's address; the packet carries the first hop's.
    let reroute = |packet: &Packet, mut bytes: Vec<u8>| {
        bytes.splice(40..40, routing.clone());
        bytes[5] = (packet.payload.len() + 20 + 24) as u8;
        bytes[4] = ((packet.payload.len() + 20 + 24) >> 8) as u8;
        bytes[6] = 43;
        bytes[39] = 99;
        bytes
    };
    let vnet = VnetHeader {
        csum_start: 64,
        hdr_len: 84,
        ..packet.vnet(100)
    };
    let out = split(
        vnet,
        &reroute(&packet, packet.bytes_with_partial_sum()),
        1420,
    )
    .unwrap();
    for (out, segment) in out.iter().zip(&segments) {
        let expected = reroute(segment, segment.bytes());
        assert_eq!(out[..expected.len()], expected);
    }
    // Nor is such a packet verified against the address that it carries.
    assert!(split(UNVERIFIED, &reroute(&packet, packet.bytes()), 1420).is_ok());
}

#[test]
fn a_damaged_seed_never_becomes_a_valid_sum() {
    let packet = Packet {
        payload: payload(250),
        ..Packet::default()
    };
    let mut bytes = packet.bytes_with_partial_sum();
    bytes[37] ^= 4;
    for segment in split(packet.vnet(100), &bytes, 0).unwrap() {
        let length = usize::from(segment[3]) - 20;
        let pseudo_header = [&segment[12..20], &[0, 6, 0, length as u8]].concat();
        let pseudo_header = u64::from(ones_complement(&pseudo_header, 0));
        assert_ne!(
            ones_complement(&segment[20..20 + length], pseudo_header),
            0xffff
        );
    }
}

#[test]
fn a_header_length_that_lies_changes_nothing() {
    let packet = Packet {
        payload: payload(250),
        ..Packet::default()
    };
    for hdr_len in [0, 20, 0xffff] {
        let vnet = VnetHeader {
            hdr_len,
            ..packet.vnet(100)
        };
        let out = split(vnet, &packet.bytes_with_partial_sum(), 0).unwrap();
        assert_eq!(out, padded(&packet.segments(100)));
    }
}

#[test]
fn a_superpacket_that_contradicts_its_vnet_header_is_refused() {
    let packet = Packet {
        payload: payload(250),
        ..Packet::default()
    };
    type Lie = (&'static str, fn(&mut VnetHeader));
    let lies: [Lie; 9] = [
        ("no size", |vnet| vnet.gso_size = 0),
        ("the other family", |vnet| vnet.gso = Gso::Tcp6),
        ("UDP", |vnet| vnet.gso = Gso::Udp),
        ("UDP and its field", |vnet| {
            (vnet.gso, vnet.csum_offset) = (Gso::Udp, 6)
        }),
        ("no partial sum", |vnet| vnet.needs_csum = false),
        ("verified", |vnet| {
            (vnet.needs_csum, vnet.data_valid) = (false, true)
        }),
        ("sum from the IP header", |vnet| vnet.csum_start = 0),
        ("sum from the payload", |vnet| vnet.csum_start = 40),
        ("another field", |vnet| vnet.csum_offset = 6),
    ];
    for (name, lie) in lies {
        let mut vnet = packet.vnet(100);
        lie(&mut vnet);
        let result = split(vnet, &packet.bytes_with_partial_sum(), 1420);
        assert_eq!(result, Err(DropReason::VnetHeader), "{name}");
    }
}

#[test]
fn a_superpacket_that_is_not_what_is_to_be_cut_is_refused() {
    let tcp = Packet {
        payload: payload(250),
        ..Packet::default()
    };
    let mut fragment = tcp.bytes_with_partial_sum();
    fragment[6] |= 0x20;
    assert_eq!(
        split(tcp.vnet(100), &fragment, 1420),
        Err(DropReason::VnetHeader)
    );

    let udp = Packet {
        flow: Flow::v4_udp(),
        ..tcp
    };
    let as_tcp = VnetHeader {
        gso: Gso::Tcp4,
        ..udp.vnet(100)
    };
    let mut bytes = udp.bytes_with_partial_sum();
    assert_eq!(split(as_tcp, &bytes, 1420), Err(DropReason::VnetHeader));
    // A datagram shorter than its packet.
    bytes[25] -= 1;
    assert_eq!(
        split(udp.vnet(100), &bytes, 1420),
        Err(DropReason::VnetHeader)
    );
}

#[test]
fn a_partial_sum_outside_the_packet_or_in_its_ip_header_is_refused() {
    let packet = Packet {
        payload: payload(10),
        ..Packet::default()
    };
    let bytes = packet.bytes_with_partial_sum();
    for (csum_start, csum_offset) in [
        (0, 10),
        (19, 16),
        (20, 29),
        (49, 0),
        (50, 0),
        (0xffff, 0xffff),
    ] {
        let lie = VnetHeader {
            csum_start,
            csum_offset,
            ..packet.vnet(0)
        };
        assert_eq!(
            split(lie, &bytes, 1420),
            Err(DropReason::VnetHeader),
            "{lie:?}"
        );
    }
    let last_possible = VnetHeader {
        csum_start: 48,
        csum_offset: 0,
        ..packet.vnet(0)
    };
    assert!(split(last_possible, &bytes, 1420).is_ok());
}

#[test]
fn what_is_no_whole_packet_is_refused() {
    let good = Packet {
        payload: payload(10),
        ..Packet::default()
    }
    .bytes();
    for bad in [
        &[][..],
        &[0x45],
        &[0x60; 39],
        &[0xff; 60],
        &good[..good.len() - 1],
    ] {
        assert_eq!(split(UNTOUCHED, bad, 1420), Err(DropReason::TunMalformed));
    }
    let mut short_tcp = good[..39].to_vec();
    short_tcp[3] = 39;
    assert_eq!(
        split(UNVERIFIED, &short_tcp, 1420),
        Err(DropReason::TunMalformed)
    );
    let mut udp = Packet {
        flow: Flow::v4_udp(),
        payload: payload(10),
        ..Packet::default()
    }
    .bytes();
    udp[25] += 1;
    assert_eq!(split(UNVERIFIED, &udp, 1420), Err(DropReason::TunMalformed));
}

#[test]
fn a_buffer_without_room_for_the_padding_is_refused() {
    let mut bytes = Packet {
        payload: payload(10),
        ..Packet::default()
    }
    .bytes();
    let length = bytes.len();
    bytes.extend([0; SPARE - 1]);
    assert!(Segments::new(UNTOUCHED, &mut bytes, length).is_err());
    bytes.push(0);
    assert!(Segments::new(UNTOUCHED, &mut bytes, length).is_ok());
    assert!(Segments::new(UNTOUCHED, &mut bytes, usize::MAX).is_err());
}
