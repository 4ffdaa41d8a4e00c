//! Splitting and coalescing against the naive reference, over whatever proptest thinks of.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::packet::coalesce::Coalescer;
use crate::packet::reference::{CWR, FIN, Flow, PSH, Packet, SYN, URG, kernel_receives};
use crate::packet::split::{SPARE, Segments, padded_length};
use crate::packet::vnet::VnetHeader;

fn flow() -> impl Strategy<Value = Flow> {
    (any::<bool>(), any::<bool>(), 1_u8..3, 1_u8..3).prop_map(|(v6, tcp, source, port)| Flow {
        v6,
        tcp,
        source,
        destination: 9,
        ports: (u16::from(port), 443),
    })
}

fn tcp_options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
        1 => Just(vec![]),
        1 => vec(any::<u8>(), 40),
    ]
}

/// Bytes that repeat, so that sums of ffff and 0 come up too.
fn payload(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![2 => Just(0_u8), 1 => Just(0xff), 3 => any::<u8>()],
        length,
    )
}

fn superpacket() -> impl Strategy<Value = Packet> {
    let ip = (
        any::<u8>(),
        1_u8..255,
        0..0x10_0000_u32,
        any::<u16>(),
        any::<bool>(),
        0_usize..4,
    );
    let tcp = (
        any::<u32>(),
        any::<u32>(),
        any::<u8>(),
        any::<u16>(),
        any::<u16>(),
        tcp_options(),
    );
    (flow(), ip, tcp, payload(0..4000)).prop_map(|(flow, ip, tcp, payload)| Packet {
        flow,
        traffic_class: ip.0,
        hops: ip.1,
        flow_label: ip.2,
        identification: ip.3,
        dont_fragment: ip.4,
        ip_options: if flow.v6 {
            [60, 0, 1, 4, 0, 0, 0, 0].repeat(ip.5)
        } else {
            vec![1; 4 * ip.5]
        },
        extension: 60,
        sequence: tcp.0,
        acknowledgement: tcp.1,
        flags: tcp.2,
        window: tcp.3,
        urgent: tcp.4,
        tcp_options: tcp.5,
        unsummed: false,
        payload,
    })
}

/// Makes the last of the chained extension headers name the transport.
fn close_extensions(packet: &mut Packet) {
    if packet.flow.v6 && !packet.ip_options.is_empty() {
        let last = packet.ip_options.len() - 8;
        packet.ip_options[last] = if packet.flow.tcp { 6 } else { 17 };
    }
}

/// What one step of a flow does otherwise than just go on.
#[derive(Clone, Debug)]
enum Step {
    Plain,
    Size(usize),
    Flags(u8),
    Gap(u32),
    Acknowledge,
    Options(Vec<u8>),
    Class(u8),
    Hops(u8),
    Identification(u16),
    FixedIdentification,
    DontFragment(bool),
    Unsummed,
    /// One bit, anywhere.
    Damage(usize),
    IpOptions,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => Just(Step::Plain),
        2 => prop_oneof![0..3_usize, 90..110_usize, Just(100), Just(1400)].prop_map(Step::Size),
        2 => prop::sample::select(vec![PSH, FIN, SYN, URG, CWR, 0x40, 0x04, PSH | FIN | CWR]).prop_map(Step::Flags),
        1 => any::<u32>().prop_map(Step::Gap),
        1 => Just(Step::Acknowledge),
        1 => tcp_options().prop_map(Step::Options),
        1 => any::<u8>().prop_map(Step::Class),
        1 => any::<u8>().prop_map(Step::Hops),
        1 => any::<u16>().prop_map(Step::Identification),
        2 => Just(Step::FixedIdentification),
        1 => any::<bool>().prop_map(Step::DontFragment),
        1 => Just(Step::Unsummed),
        2 => any::<usize>().prop_map(Step::Damage),
        1 => Just(Step::IpOptions),
    ]
}

/// A flow's packets as they arrive: bytes, and whether they are whole.
fn arrivals(flow: Flow, steps: &[Step]) -> Vec<(Vec<u8>, bool)> {
    let mut state = Packet {
        flow,
        payload: vec![0; 100],
        ..Packet::default()
    };
    let mut count = 0_u8;
    let one = |step: &Step| {
        let mut packet = state.clone();
        let mut damage = None;
        match step {
            Step::Plain => {}
            Step::Size(size) => packet.payload.resize(*size, 0),
            Step::Flags(flags) => packet.flags |= flags,
            Step::Gap(gap) => packet.sequence = packet.sequence.wrapping_add(*gap),
            Step::Acknowledge => packet.acknowledgement += 1,
            Step::Options(options) => packet.tcp_options.clone_from(options),
            Step::Class(class) => packet.traffic_class = *class,
            Step::Hops(hops) => packet.hops = *hops,
            Step::Identification(identification) => packet.identification = *identification,
            Step::FixedIdentification => {
                packet.identification = packet.identification.wrapping_sub(1)
            }
            Step::DontFragment(on) => packet.dont_fragment = *on,
            Step::Unsummed => packet.unsummed = !flow.tcp,
            Step::Damage(bit) => damage = Some(*bit),
            Step::IpOptions => {
                let protocol = if flow.tcp { 6 } else { 17 };
                packet.extension = 60;
                packet.ip_options = if flow.v6 {
                    vec![protocol, 0, 1, 4, 0, 0, 0, 0]
                } else {
                    vec![1; 4]
                };
            }
        }
        count = count.wrapping_add(1);
        packet.payload.fill(count);
        let mut bytes = packet.bytes();
        if let Some(bit) = damage {
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let keeps = matches!(
            step,
            Step::Options(_)
                | Step::Class(_)
                | Step::Hops(_)
                | Step::DontFragment(_)
                | Step::Acknowledge
        );
        let next = if keeps { &packet } else { &state };
        state = Packet {
            payload: vec![0; 100],
            sequence: packet.sequence.wrapping_add(packet.payload.len() as u32),
            identification: packet.identification.wrapping_add(1),
            ..next.clone()
        };
        (bytes, damage.is_none())
    };
    steps.iter().map(one).collect()
}

/// Several flows' packets in one order of arrival.
fn interleave(mut flows: Vec<Vec<(Vec<u8>, bool)>>, order: &[usize]) -> Vec<(Vec<u8>, bool)> {
    flows.iter_mut().for_each(|flow| flow.reverse());
    let mut out = Vec::new();
    let mut turns = order.iter().cycle();
    while flows.iter().any(|flow| !flow.is_empty()) {
        let turn = turns.next().copied().unwrap_or_default();
        // An empty flow's turn goes to the next that has something left.
        let count = flows.len();
        let next = (0..count)
            .map(|step| (turn + step) % count)
            .find(|flow| !flows[*flow].is_empty());
        out.extend(next.and_then(|flow| flows[flow].pop()));
    }
    out
}

/// The cut counts identifications of packets that must not be fragmented, where they mean nothing.
fn without_free_identification(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] == 0x45 && packet[6] == 0x40 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// What tells flows apart; a damaged packet is in the flow that it claims.
fn key(packet: &[u8]) -> Vec<u8> {
    let (addresses, protocol, transport) = match (packet[0] >> 4, packet[6]) {
        (6, 60) => (8..40, packet[40], 48),
        (6, protocol) => (8..40, protocol, 40),
        (_, _) => (12..20, packet[9], usize::from(packet[0] & 15) * 4),
    };
    let ports = packet.get(transport..transport + 4).unwrap_or_default();
    [&packet[addresses], &[protocol], ports].concat()
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut coalescer = Coalescer::new();
    let mut arena: Vec<u8> = packets.concat();
    let mut at = 0;
    for packet in packets {
        coalescer.push(&arena, at, packet.len());
        at += packet.len();
    }
    let mut received = Vec::new();
    coalescer.drain(&mut arena, |vnet, slices, packets| {
        let frame: Vec<u8> = slices[1..]
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        let cut = kernel_receives(vnet, &frame);
        assert_eq!(cut.len(), packets);
        received.extend(cut);
    });
    received
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_superpacket_becomes_the_packets_it_stands_for(
        mut packet in superpacket(), size in prop_oneof![1..60_usize, 60..2000_usize], mtu in 1280..1500_usize,
    ) {
        close_extensions(&mut packet);
        let bytes = packet.bytes_with_partial_sum();
        let mut buffer = bytes.clone();
        buffer.extend([0xee; SPARE]);
        let mut segments = Segments::new(packet.vnet(size), &mut buffer, bytes.len()).unwrap();
        let naive = packet.segments(size);
        prop_assert_eq!(segments.count(), naive.len());
        for segment in naive {
            let mut expected = segment.bytes();
            expected.resize(padded_length(expected.len(), mtu), 0);
            prop_assert_eq!(segments.next_padded(mtu), Some(&expected[..]));
        }
        prop_assert_eq!(segments.next_padded(mtu), None);
    }

    #[test]
    fn any_mix_of_flows_is_received_as_it_was_put_in(
        flows in vec((flow(), vec(step(), 1..30)), 1..6), order in vec(0_usize..6, 1..40),
    ) {
        let flows = flows.iter().map(|(flow, steps)| arrivals(*flow, steps)).collect();
        let arrived = interleave(flows, &order);
        let packets: Vec<Vec<u8>> = arrived.iter().map(|(bytes, _)| bytes.clone()).collect();
        // Lengths that damage made smaller cut the packet short on either way.
        let packets: Vec<Vec<u8>> = packets.into_iter().map(trimmed).collect();
        let received = coalesce(&packets);

        let by_flow = |packets: &[Vec<u8>]| {
            let mut sorted: Vec<(Vec<u8>, Vec<u8>)> =
                packets.iter().map(|packet| (key(packet), without_free_identification(packet.clone()))).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            sorted
        };
        prop_assert_eq!(by_flow(&received), by_flow(&packets));
        // Damaged packets come out bit for bit.
        for (packet, _) in packets.iter().zip(&arrived).filter(|(_, (_, whole))| !whole) {
            prop_assert!(received.contains(packet));
        }
    }

    #[test]
    fn random_bytes_and_lying_vnet_headers_never_panic(
        vnet in any::<[u8; 10]>(), start in any::<[u8; 12]>(), rest in vec(any::<u8>(), 0..300), mtu in 0..200_usize,
    ) {
        let packet: Vec<u8> = start.iter().chain(&rest).copied().collect();
        run_all(&vnet, &packet, mtu);
    }

    #[test]
    fn superpackets_with_one_lie_never_panic(
        mut packet in superpacket(), size in 1..2000_usize, lie in (any::<usize>(), any::<u8>()), cut in prop_oneof![Just(0), 0..50_usize], mtu in 0..1500_usize,
    ) {
        close_extensions(&mut packet);
        let mut vnet = packet.vnet(size).write();
        let mut bytes = packet.bytes_with_partial_sum();
        bytes.truncate(bytes.len().saturating_sub(cut));
        let at = lie.0 % 100;
        if at < 10 {
            vnet[at] ^= lie.1;
        } else if let Some(byte) = bytes.get_mut(at - 10) {
            *byte ^= lie.1;
        }
        run_all(&vnet, &bytes, mtu);
    }
}

/// As the kernel and the coalescer do, cuts off what lies behind the packet's own length.
fn trimmed(mut packet: Vec<u8>) -> Vec<u8> {
    if let Some(headers) = crate::packet::headers::Headers::parse(&packet) {
        packet.truncate(headers.total_length);
    }
    packet
}

/// Everything that TUN input goes through.
fn run_all(vnet: &[u8; 10], packet: &[u8], mtu: usize) {
    let Some(vnet) = VnetHeader::parse(vnet) else {
        return;
    };
    let mut buffer = packet.to_vec();
    buffer.extend([0xee; SPARE]);
    let Ok(mut segments) = Segments::new(vnet, &mut buffer, packet.len()) else {
        return;
    };
    let mut arena = Vec::new();
    let mut places = Vec::new();
    while let Some(segment) = segments.next_padded(mtu) {
        places.push((arena.len(), segment.len()));
        arena.extend(segment);
    }
    assert_eq!(places.len(), segments.count());
    assert_eq!(buffer[packet.len()..], [0xee; SPARE]);
    let mut coalescer = Coalescer::new();
    for (at, length) in &places {
        coalescer.push(&arena, *at, *length);
    }
    let mut packets = 0;
    coalescer.drain(&mut arena, |_, _, count| packets += count);
    assert_eq!(packets, places.len());
}
