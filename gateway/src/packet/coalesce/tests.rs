use super::*;
use crate::packet::reference::{ACK, CWR, FIN, Flow, PSH, Packet, SYN, URG, kernel_receives};
use crate::packet::vnet::Gso;

/// One write to the TUN.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    vnet: VnetHeader,
    packets: usize,
    frame: Vec<u8>,
}

fn coalesce_with(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<Written> {
    let mut arena = Vec::new();
    let places: Vec<usize> = packets
        .iter()
        .map(|packet| {
            // As after opening: 16 bytes of outer header before each, padding behind.
            arena.extend([0x55; 16]);
            let at = arena.len();
            arena.extend(packet);
            arena.resize(at + packet.len().next_multiple_of(16), 0);
            at
        })
        .collect();
    for (at, packet) in places.iter().zip(packets) {
        coalescer.push(&arena, *at, packet.len().next_multiple_of(16));
    }
    let mut written = Vec::new();
    coalescer.drain(&mut arena, |vnet, slices, packets| {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        assert_eq!(bytes[..VnetHeader::LEN], vnet.write());
        written.push(Written {
            vnet: *vnet,
            packets,
            frame: bytes[VnetHeader::LEN..].to_vec(),
        });
    });
    assert!(coalescer.is_empty());
    written
}

fn coalesce(packets: &[Packet]) -> Vec<Written> {
    let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    let written = coalesce_with(&mut Coalescer::new(), &bytes);
    let received: Vec<Vec<u8>> = written
        .iter()
        .flat_map(|written| kernel_receives(&written.vnet, &written.frame))
        .collect();
    let mut sorted = (received, bytes);
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1, "the kernel receives what was put in");
    written
}

fn counts(packets: &[Packet]) -> Vec<usize> {
    coalesce(packets)
        .iter()
        .map(|written| written.packets)
        .collect()
}

/// `count` packets of `size` in a row, and a short one.
fn stream(first: &Packet, count: usize, size: usize) -> Vec<Packet> {
    Packet {
        payload: vec![0x5a; count * size + size / 2],
        ..first.clone()
    }
    .segments(size)
}

fn both_kinds() -> [Packet; 4] {
    Flow::ALL.map(|flow| Packet {
        flow,
        ..Packet::default()
    })
}

#[test]
fn a_stream_becomes_one_superpacket_that_looks_as_the_kernel_would_have_made_it() {
    for first in both_kinds() {
        let whole = Packet {
            payload: vec![0x5a; 5 * 100 + 50],
            ..first
        };
        let written = coalesce(&whole.segments(100));
        let expected = Written {
            vnet: whole.vnet(100),
            packets: 6,
            frame: whole.bytes_with_partial_sum(),
        };
        assert_eq!(written, [expected]);
    }
}

#[test]
fn a_single_packet_leaves_its_verified_sum_to_the_kernel() {
    for first in both_kinds() {
        let packet = Packet {
            payload: vec![1; 100],
            ..first
        };
        let written = coalesce(std::slice::from_ref(&packet));
        let frame = packet.bytes_with_partial_sum();
        assert_eq!(
            written,
            [Written {
                vnet: packet.vnet(0),
                packets: 1,
                frame
            }]
        );
    }
}

#[test]
fn interleaved_flows_each_become_one_superpacket() {
    let mut flows = Vec::new();
    for (index, first) in both_kinds().into_iter().cycle().take(20).enumerate() {
        let flow = Flow {
            ports: (1000 + index as u16, 53),
            ..first.flow
        };
        flows.push(stream(&Packet { flow, ..first }, 9, 40));
    }
    let packets: Vec<Packet> = (0..10)
        .flat_map(|round| flows.iter().map(move |flow| flow[round].clone()))
        .collect();
    assert_eq!(counts(&packets), [10; 20]);
}

#[test]
fn more_flows_than_the_table_holds_lose_nothing_and_keep_their_order() {
    let flow = |n: u16| Flow {
        ports: (n, 9),
        ..Flow::v4_udp()
    };
    let packets: Vec<Packet> = (0..3000)
        .map(|n| Packet {
            flow: flow(n % 1000),
            identification: n / 1000,
            payload: vec![n as u8; 20],
            ..Packet::default()
        })
        .collect();
    assert_eq!(counts(&packets).iter().sum::<usize>(), 3000);
}

#[test]
fn psh_and_fin_end_a_superpacket_and_move_to_its_head() {
    for flag in [PSH, FIN] {
        let mut packets = stream(&Packet::default(), 6, 100);
        packets[2].flags |= flag;
        let written = coalesce(&packets);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [3, 4]
        );
        assert_eq!(
            (written[0].frame[33], written[1].frame[33]),
            (ACK | flag, ACK)
        );
    }
}

#[test]
fn nothing_is_joined_behind_a_head_with_psh() {
    let mut packets = stream(&Packet::default(), 2, 100);
    packets[0].flags |= PSH;
    assert_eq!(counts(&packets), [1, 2]);
}

#[test]
fn cwr_may_only_be_on_the_head_and_is_told_to_the_kernel() {
    let mut packets = stream(&Packet::default(), 5, 100);
    packets[3].flags |= CWR;
    let written = coalesce(&packets);
    assert_eq!(
        written
            .iter()
            .map(|written| written.packets)
            .collect::<Vec<_>>(),
        [3, 3]
    );
    assert_eq!((written[0].vnet.ecn, written[1].vnet.ecn), (false, true));
}

#[test]
fn pure_acknowledgements_syn_and_urg_are_alone_and_are_not_overtaken() {
    let empty = |packet: &mut Packet| packet.payload.clear();
    let syn = |packet: &mut Packet| packet.flags |= SYN;
    let urg = |packet: &mut Packet| packet.flags |= URG;
    for change in [empty as fn(&mut Packet), syn, urg] {
        let mut packets = stream(&Packet::default(), 3, 100);
        let mut odd = packets[2].clone();
        change(&mut odd);
        packets.insert(2, odd.clone());
        let written = coalesce(&packets);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [2, 1, 2]
        );
        assert_eq!(written[1].vnet, VnetHeader::default());
        assert_eq!(written[1].frame, odd.bytes());
    }
}

#[test]
fn whatever_the_cut_would_not_give_back_is_not_joined() {
    type Change = (&'static str, fn(&mut Packet));
    let changes: [Change; 13] = [
        ("gap", |packet| packet.sequence += 1),
        ("acknowledgement", |packet| packet.acknowledgement += 1),
        ("window", |packet| packet.window += 1),
        ("urgent pointer", |packet| packet.urgent = 1),
        ("echo of congestion", |packet| packet.flags |= 0x40),
        ("options", |packet| packet.tcp_options[7] += 1),
        ("options' length", |packet| {
            packet.tcp_options.extend([1; 4])
        }),
        ("mark", |packet| packet.traffic_class = 1),
        ("class", |packet| packet.traffic_class = 0x20),
        ("hops", |packet| packet.hops -= 1),
        ("fragmentation", |packet| packet.dont_fragment = false),
        ("identification", |packet| packet.identification += 7),
        ("size", |packet| packet.payload.push(1)),
    ];
    for (name, change) in changes {
        let tcp_options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        let mut packets = stream(
            &Packet {
                tcp_options,
                ..Packet::default()
            },
            3,
            100,
        );
        change(&mut packets[2]);
        let counts = counts(&packets);
        assert_eq!(counts[0], 2, "{name}");
    }
    let mut packets = stream(
        &Packet {
            flow: Flow::v6_tcp(),
            ..Packet::default()
        },
        3,
        100,
    );
    packets[2].flow_label = 7;
    assert_eq!(counts(&packets)[0], 2, "flow label");
}

#[test]
fn a_constant_identification_is_joined_only_where_nothing_may_be_fragmented() {
    for (dont_fragment, expected) in [(true, vec![5]), (false, vec![1; 5])] {
        let mut packets = stream(
            &Packet {
                dont_fragment,
                ..Packet::default()
            },
            4,
            100,
        );
        packets
            .iter_mut()
            .for_each(|packet| packet.identification = 9);
        let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        let written = coalesce_with(&mut Coalescer::new(), &bytes);
        let counts: Vec<usize> = written.iter().map(|written| written.packets).collect();
        assert_eq!(counts, expected);
    }
}

#[test]
fn counting_and_constant_identifications_are_not_mixed() {
    let ids = [
        (vec![7, 7, 9], vec![2, 1]),
        (vec![7, 8, 7], vec![2, 1]),
        (vec![7, 9, 10], vec![1, 2]),
    ];
    for (ids, expected) in ids {
        let mut packets = stream(&Packet::default(), 2, 100);
        for (packet, id) in packets.iter_mut().zip(ids) {
            packet.identification = id;
        }
        let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        let written = coalesce_with(&mut Coalescer::new(), &bytes);
        let counts: Vec<usize> = written.iter().map(|written| written.packets).collect();
        assert_eq!(counts, expected);
    }
}

#[test]
fn a_damaged_packet_passes_untouched_and_is_joined_to_nothing() {
    for first in both_kinds() {
        let packets = stream(&first, 5, 100);
        let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        let header = first.ip_header_length();
        // In the payload, in the checksum, and for IPv4 in the IP header.
        for at in [bytes[2].len() - 1, header + first.checksum_offset(), 8] {
            if first.flow.v6 && at == 8 {
                continue;
            }
            bytes[2][at] ^= 0x40;
            let written = coalesce_with(&mut Coalescer::new(), &bytes);
            let counts: Vec<usize> = written.iter().map(|written| written.packets).collect();
            assert_eq!(counts, [2, 1, 3]);
            assert_eq!(written[1].vnet, VnetHeader::default());
            assert_eq!(written[1].frame, bytes[2]);
            bytes[2][at] ^= 0x40;
        }
    }
}

#[test]
fn udp_without_a_sum_passes_untouched() {
    let first = Packet {
        flow: Flow::v4_udp(),
        unsummed: true,
        ..Packet::default()
    };
    let mut packets = stream(&first, 2, 100);
    // One whose bytes happen to sum up as if the 0 were its sum.
    let summed = Packet {
        unsummed: false,
        payload: vec![0; 2],
        ..first.clone()
    };
    let payload = summed.bytes()[26..28].to_vec();
    packets.push(Packet { payload, ..first });
    let written = coalesce(&packets);
    assert_eq!(written.len(), packets.len());
    for (written, packet) in written.iter().zip(&packets) {
        assert_eq!(written.vnet, VnetHeader::default());
        assert_eq!(written.frame, packet.bytes());
    }
}

#[test]
fn datagrams_of_another_size_begin_a_new_superpacket() {
    let sizes = [50, 50, 30, 50, 60, 60, 0, 60];
    let packets: Vec<Packet> = (0..)
        .zip(sizes)
        .map(|(identification, size)| Packet {
            flow: Flow::v4_udp(),
            identification,
            payload: vec![1; size],
            ..Packet::default()
        })
        .collect();
    assert_eq!(counts(&packets), [3, 1, 2, 1, 1]);
}

#[test]
fn a_udp_superpacket_ends_at_64_datagrams_and_a_tcp_one_at_128_packets() {
    let udp = Packet {
        flow: Flow::v4_udp(),
        ..Packet::default()
    };
    assert_eq!(counts(&stream(&udp, 129, 10)), [64, 64, 2]);
    assert_eq!(counts(&stream(&Packet::default(), 129, 10)), [128, 2]);
}

#[test]
fn a_superpacket_stays_below_64_kib() {
    for flow in [Flow::v4_tcp(), Flow::v6_udp()] {
        let packets = stream(
            &Packet {
                flow,
                ..Packet::default()
            },
            50,
            1400,
        );
        let written = coalesce(&packets);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [46, 5]
        );
        assert!(written[0].frame.len() <= 65_535);
    }
}

#[test]
fn a_fragment_is_alone_and_nothing_overtakes_it() {
    let packets = stream(
        &Packet {
            flow: Flow::v4_udp(),
            ..Packet::default()
        },
        3,
        100,
    );
    for field in [[0x20, 0], [0x20, 5], [0, 5]] {
        let mut bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
        bytes[2][6..8].copy_from_slice(&field);
        let written = coalesce_with(&mut Coalescer::new(), &bytes);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [2, 1, 1]
        );
        assert_eq!(written[1].frame, bytes[2]);
    }
}

#[test]
fn ip_options_and_extension_headers_are_alone_and_not_overtaken() {
    for flow in [Flow::v4_tcp(), Flow::v6_tcp()] {
        let mut packets = stream(
            &Packet {
                flow,
                ..Packet::default()
            },
            5,
            100,
        );
        packets[2].extension = 60;
        packets[2].ip_options = if flow.v6 {
            vec![6, 0, 1, 4, 0, 0, 0, 0]
        } else {
            vec![1, 1, 1, 0]
        };
        let written = coalesce(&packets);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [2, 1, 3]
        );
        assert_eq!(written[1].frame, packets[2].bytes());
    }
}

#[test]
fn other_protocols_pass_between_without_disturbing_a_flow() {
    let packets = stream(&Packet::default(), 1, 100);
    let mut icmp = packets[0].bytes();
    icmp[9] = 1;
    let written = coalesce_with(
        &mut Coalescer::new(),
        &[packets[0].bytes(), icmp.clone(), packets[1].bytes()],
    );
    assert_eq!(
        written
            .iter()
            .map(|written| written.packets)
            .collect::<Vec<_>>(),
        [2, 1]
    );
    assert_eq!(written[1].frame, icmp);
}

#[test]
fn what_cannot_be_read_is_alone_and_not_overtaken() {
    let packets = stream(&Packet::default(), 1, 100);
    let short = &packets[0].bytes()[..64];
    let bytes = [packets[0].bytes(), short.to_vec(), packets[1].bytes()];
    let written = coalesce_with(&mut Coalescer::new(), &bytes);
    assert_eq!(
        written
            .iter()
            .map(|written| written.packets)
            .collect::<Vec<_>>(),
        [1, 1, 1]
    );
    assert_eq!(written[1].frame, bytes[1]);
}

#[test]
fn a_kind_that_is_switched_off_passes_untouched() {
    let mut coalescer = Coalescer::new();
    for (tcp, udp) in [(false, true), (true, false), (false, false), (true, true)] {
        coalescer.set_tcp(tcp);
        coalescer.set_udp(udp);
        for first in both_kinds() {
            let bytes: Vec<Vec<u8>> = stream(&first, 3, 100).iter().map(Packet::bytes).collect();
            let written = coalesce_with(&mut coalescer, &bytes);
            if if first.flow.tcp { tcp } else { udp } {
                assert_eq!(written.len(), 1);
            } else {
                let frames: Vec<Vec<u8>> =
                    written.into_iter().map(|written| written.frame).collect();
                assert_eq!(frames, bytes);
            }
        }
    }
}

#[test]
fn one_batch_leaves_nothing_behind_for_the_next() {
    let mut coalescer = Coalescer::new();
    let packets = stream(&Packet::default(), 3, 100);
    let bytes: Vec<Vec<u8>> = packets.iter().map(Packet::bytes).collect();
    for part in bytes.chunks(2) {
        let written = coalesce_with(&mut coalescer, part);
        assert_eq!(
            written
                .iter()
                .map(|written| written.packets)
                .collect::<Vec<_>>(),
            [2]
        );
        assert_eq!(written[0].vnet.gso, Gso::Tcp4);
    }
}
