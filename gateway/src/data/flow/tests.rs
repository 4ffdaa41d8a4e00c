use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::data::snapshot::LinkPlace;

const FLOWS: u32 = 20_000;

fn choices(seeds: &[u64]) -> Vec<Choice> {
    seeds
        .iter()
        .zip(0..)
        .map(|(seed, slot)| Choice {
            seed: *seed,
            place: LinkPlace { thread: 0, slot },
        })
        .collect()
}

fn chosen(flow: u64, choices: &[Choice]) -> u64 {
    choose(flow, &choices[0], &choices[1..]).seed
}

/// A TCP or UDP packet over IPv4 of this flow.
fn v4(protocol: u8, addresses: [u8; 8], ports: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 40, 64, protocol);
    packet[12..20].copy_from_slice(&addresses);
    packet[20..24].copy_from_slice(&ports);
    packet
}

/// A packet over IPv6 whose header chain is this.
fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(rest);
    packet
}

fn one_of_many(number: u32) -> u64 {
    let [.., high, low] = number.to_be_bytes();
    hash(&v4(
        PROTOCOL_TCP,
        [10, 1, 0, 1, 10, 2, 0, 1],
        [high, low, 0, 80],
    ))
}

#[test]
fn two_to_five_gateways_share_the_flows_evenly() {
    for count in 2..=5 {
        // Seeds as like each other as can be are no worse.
        for seeds in [[1, 2, 3, 4, 5], [u64::MAX, 77, 1 << 63, 0xdead_beef, 0]] {
            let choices = choices(&seeds[..count]);
            let mut flows: HashMap<u64, u32> = HashMap::new();
            for number in 0..FLOWS {
                *flows
                    .entry(chosen(one_of_many(number), &choices))
                    .or_default() += 1;
            }
            let even = f64::from(FLOWS) / count as f64;
            for (seed, flows) in flows {
                let off = (f64::from(flows) - even).abs() / even;
                assert!(off < 0.1, "{seed} of {count}: {flows} instead of {even}");
            }
        }
    }
}

proptest! {
    #[test]
    fn a_death_moves_the_flows_of_the_dead_one_only(
        seeds in proptest::collection::hash_set(any::<u64>(), 2..6), flows: [u64; 32], dead: usize,
    ) {
        let seeds: Vec<u64> = seeds.into_iter().collect();
        let dead = seeds[dead % seeds.len()];
        let alive: Vec<u64> = seeds.iter().copied().filter(|seed| *seed != dead).collect();
        for flow in flows {
            let before = chosen(flow, &choices(&seeds));
            let after = chosen(flow, &choices(&alive));
            prop_assert!(before == dead || before == after);
        }
    }

    #[test]
    fn the_order_of_the_choices_does_not_matter(seeds: [u64; 4], flow: u64) {
        let mut turned = seeds;
        turned.reverse();
        prop_assert_eq!(chosen(flow, &choices(&seeds)), chosen(flow, &choices(&turned)));
    }

    #[test]
    fn any_bytes_have_a_hash(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
        hash(&packet);
    }
}

#[test]
fn a_flow_is_told_by_addresses_protocol_and_ports_and_by_nothing_else() {
    let (addresses, ports) = ([10, 1, 0, 1, 10, 2, 0, 1], [0, 1, 0, 2]);
    let same = hash(&v4(PROTOCOL_TCP, addresses, ports));
    let mut other_payload = v4(PROTOCOL_TCP, addresses, ports);
    other_payload[24..].fill(7);
    (other_payload[1], other_payload[4], other_payload[8]) = (4, 9, 1);
    assert_eq!(hash(&other_payload), same);
    for differs in [
        v4(PROTOCOL_UDP, addresses, ports),
        v4(PROTOCOL_TCP, [10, 1, 0, 2, 10, 2, 0, 1], ports),
        v4(PROTOCOL_TCP, [10, 1, 0, 1, 10, 2, 0, 2], ports),
        v4(PROTOCOL_TCP, addresses, [0, 3, 0, 2]),
        v4(PROTOCOL_TCP, addresses, [0, 1, 0, 3]),
    ] {
        assert_ne!(hash(&differs), same);
    }
}

#[test]
fn what_has_no_ports_is_one_flow_between_two_hosts() {
    let icmp = |id| hash(&v4(1, [10, 1, 0, 1, 10, 2, 0, 1], [8, 0, id, 7]));
    assert_eq!(icmp(1), icmp(2));
}

#[test]
fn all_fragments_of_a_packet_go_one_way() {
    let whole = v4(PROTOCOL_UDP, [10, 1, 0, 1, 10, 2, 0, 1], [0, 1, 0, 2]);
    let (mut first, mut later) = (whole.clone(), whole.clone());
    first[6] = 0x20;
    later[7] = 3;
    later[20..24].fill(0xff);
    assert_eq!(hash(&first), hash(&later));
    assert_ne!(hash(&first), hash(&whole));

    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let fragment = |next: u8, field: [u8; 2], rest: &[u8]| {
        let header = [next, 0, field[0], field[1], 0, 0, 0, 1];
        hash(&v6(44, &[&header[..], rest].concat()))
    };
    let first = fragment(PROTOCOL_UDP, [0, 1], &udp);
    assert_eq!(first, fragment(PROTOCOL_UDP, [1, 0], &[9; 8]));
    // Only the first of these shows what is behind the options.
    let options = [&[PROTOCOL_UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp].concat();
    assert_eq!(fragment(60, [0, 1], &options), first);
    assert_eq!(fragment(60, [1, 0], &[9; 8]), first);
}

#[test]
fn ports_behind_extension_headers_count() {
    let behind_options = |port: u8| {
        let udp = [0, port, 0, 2, 0, 8, 0, 0];
        hash(&v6(
            60,
            &[&[PROTOCOL_UDP, 0, 0, 0, 0, 0, 0, 0][..], &udp].concat(),
        ))
    };
    assert_ne!(behind_options(1), behind_options(2));
}
