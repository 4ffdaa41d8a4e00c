//! Addresses that a member names or forges: none is to be flooded through us.

use std::sync::Arc;

use super::*;
use crate::links::prefixes::Prefixes;

fn stranger(number: u32) -> SocketAddr {
    let [_, _, high, low] = number.to_be_bytes();
    SocketAddr::from(([203, 0, 113, high], 1024 + u16::from(low)))
}

fn probes_of_strangers(world: &World) -> usize {
    let strangers = world.probes.iter().filter(|(_, to)| *to != at(1));
    strangers.count()
}

#[test]
fn a_stream_of_told_addresses_makes_a_probe_a_second() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(ms(2000));
    world.forget();
    for turn in 0..600 {
        let told: Vec<SocketAddr> = (0..6).map(|one| stranger(turn * 6 + one)).collect();
        world.paths.handle_candidates(&told, world.now);
        world.run(ms(50));
    }
    let probes = probes_of_strangers(&world);
    assert!((12..=42).contains(&probes), "{probes} in 30 s");
    assert_eq!(world.in_use(), at(1));
}

#[test]
fn a_stream_of_forged_sources_makes_a_probe_a_second() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(ms(2000));
    world.forget();
    for turn in 0..600 {
        world.paths.handle_source(stranger(turn), world.now);
        world.run(ms(50));
    }
    let probes = probes_of_strangers(&world);
    assert!((12..=42).contains(&probes), "{probes} in 30 s");
    assert_eq!(world.in_use(), at(1));
}

/// As many worlds as links, that share what they may send to strangers.
fn run_together(worlds: &mut [World], strangers: &mut Strangers, span: Duration) {
    for world in worlds {
        std::mem::swap(&mut world.strangers, strangers);
        world.run(span);
        std::mem::swap(&mut world.strangers, strangers);
    }
}

#[test]
fn many_links_with_made_up_addresses_are_no_flood_and_a_new_gateway_is_probed_at_once() {
    let mut worlds: Vec<World> = (0..300).map(|_| World::connected(&[(at(1), 20)])).collect();
    let mut strangers = Strangers::default();
    run_together(&mut worlds, &mut strangers, ms(2000));
    for turn in 0..150 {
        for (number, world) in worlds.iter_mut().enumerate() {
            let first = (turn * 300 + number as u32) * 6;
            let told: Vec<SocketAddr> = (0..6).map(|one| stranger(first + one)).collect();
            world.paths.handle_candidates(&told, world.now);
        }
        run_together(&mut worlds, &mut strangers, ms(200));
    }
    let probes: usize = worlds.iter().map(probes_of_strangers).sum();
    // Alone each has some 40 in half a minute.
    let limit = 300 * (4 + 2) + 256 + 64 * 30;
    assert!((limit / 2..=limit).contains(&probes), "{probes}");
    // Nothing is left, and there comes one by an address that nobody knows.
    let mut world = World::connected(&[(at(1), 20)]);
    world.trips.insert(at(2), ms(20));
    world.now = worlds[0].now;
    world.paths.handle_session(at(2), world.now);
    world.paths.handle_candidates(&[at(3)], world.now);
    run_together(std::slice::from_mut(&mut world), &mut strangers, ms(100));
    assert!(world.paths.has_echoed(at(2)));
    assert!(!world.probes_of(at(3)).is_empty());
}

#[test]
fn told_too_early_nothing_is_kept() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.paths.handle_candidates(&[at(2)], world.now);
    world.run(ms(1000));
    world.paths.handle_candidates(&[at(3)], world.now);
    assert_eq!(world.paths.addresses(), [at(1), at(2)]);
}

#[test]
fn what_lies_in_a_foreign_prefix_is_refused_and_counted() {
    let mut world = World::connected(&[(at(1), 20)]);
    let name = |text: &str| -> proto::name::Name { text.parse().unwrap() };
    let owned = |prefix: &str, site| (prefix.parse().unwrap(), name(site));
    let all = vec![
        owned("10.1.0.0/16", "here"),
        owned("10.2.0.0/16", "peer"),
        owned("10.3.0.0/16", "third"),
    ];
    let prefixes = Arc::new(Prefixes::new(name("here"), all));
    let [here, peer, third]: [SocketAddr; 3] =
        ["10.1.0.9:9", "10.2.0.9:9", "10.3.0.9:9"].map(|text| text.parse().unwrap());
    world.paths.handle_source(third, world.now);
    assert_eq!(world.paths.addresses(), [at(1), third]);
    world.paths.handle_prefixes(&prefixes, &name("peer"));
    assert_eq!(world.paths.addresses(), [at(1)]);
    world
        .paths
        .handle_candidates(&[here, peer, third], world.now);
    world.paths.handle_source(third, world.now);
    world.paths.handle_session(third, world.now);
    assert_eq!(world.paths.addresses(), [at(1), peer]);
    assert_eq!(world.paths.take_refused(), 4);
    world.paths.handle_source(here, world.now);
    assert_eq!(world.paths.addresses(), [at(1), peer, here]);
}

/// What is silent is left for forged sources, which echo nothing.
#[test]
fn a_source_that_echoes_nothing_is_left_after_a_second_and_no_other_is_followed_unasked() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(ms(2000));
    world.forget();
    let began = world.now;
    for turn in 0..100 {
        // It says that it hears nothing of us, and seems to move each time.
        let busy = ms(100);
        world.paths.handle_hello(busy, None, busy, world.now);
        world.paths.handle_source(stranger(turn), world.now);
        world.run(ms(90));
    }
    let strangers: Vec<_> = world.uses.iter().filter(|(_, to)| *to != at(1)).collect();
    assert_eq!(strangers.len(), 1, "{strangers:?}");
    let back = world.uses.iter().find(|(_, to)| *to == at(1)).unwrap();
    assert!(back.0 <= began + ms(1500), "{:?}", back.0 - began);
    assert_eq!(world.in_use(), at(1));
}
