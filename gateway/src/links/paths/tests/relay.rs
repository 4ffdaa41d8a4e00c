//! When a relay is wanted, used and given back.

use super::*;

#[test]
fn a_relay_is_wanted_when_nothing_direct_answers_for_a_second_and_a_half() {
    let mut world = World::new(&[(relay(), 60)]);
    let start = world.now;
    world.paths.handle_record(&[at(1)], None, world.now);
    world.run(Duration::from_secs(10));
    assert_eq!(world.relay, [(start + RELAY_AFTER, true)]);
    world.forget();
    world.paths.handle_relay(Some(relay()), world.now);
    world.speaks_from = Some(relay());
    world.paths.handle_session(relay(), world.now);
    world.run(Duration::from_secs(100));
    assert_eq!(world.paths.in_use(), Some((relay(), PathKind::Relay)));
    // Both probe at the same moment: every ten seconds it is told, and tried.
    assert!(
        (10..=11).contains(&world.told.len()),
        "{}",
        world.told.len()
    );
    for told in &world.told {
        assert!(world.probes.contains(&(*told, at(1))), "{told:?}");
    }
    assert_eq!(world.relay, []);
}

#[test]
fn a_direct_path_is_taken_from_a_relay_at_once_and_the_relay_given_back_a_minute_later() {
    let mut world = World::new(&[(relay(), 10)]);
    world.paths.handle_record(&[at(1)], None, world.now);
    world.run(Duration::from_secs(2));
    world.paths.handle_relay(Some(relay()), world.now);
    world.speaks_from = Some(relay());
    world.paths.handle_session(relay(), world.now);
    world.run(Duration::from_secs(20));
    world.forget();
    // Far slower, but direct.
    world.trips.insert(at(1), ms(150));
    world.run(Duration::from_secs(11));
    assert_eq!(world.in_use(), at(1));
    let direct = world.uses[0].0;
    world.speaks_from = Some(at(1));
    world.run(Duration::from_secs(100));
    assert_eq!(world.relay, [(direct + RELAY_BACK, false)]);
    world.paths.handle_relay(None, world.now);
    assert_eq!(world.paths.addresses(), [at(1)]);
    assert_eq!(world.in_use(), at(1));
}

#[test]
fn a_relay_is_wanted_again_when_all_direct_paths_fall_silent() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(Duration::from_secs(100));
    assert_eq!(world.relay, []);
    world.trips.clear();
    let silent = world.now;
    world.run(Duration::from_secs(3));
    assert_eq!(world.relay.len(), 1);
    let (when, wanted) = world.relay[0];
    assert!(wanted && when - silent <= ms(2000), "{:?}", when - silent);
    world.trips.insert(relay(), ms(30));
    world.paths.handle_relay(Some(relay()), world.now);
    world.run(ms(100));
    assert_eq!(world.in_use(), relay(), "it answered the search");
}

#[test]
fn a_relay_that_changes_its_address_stays_in_use_and_one_that_ends_gives_way() {
    let mut world = World::connected(&[(at(1), 20)]);
    world.run(Duration::from_secs(1));
    let other: SocketAddr = "127.0.0.1:4001".parse().unwrap();
    world.trips.clear();
    world.run(Duration::from_secs(3));
    world.trips = BTreeMap::from([(relay(), ms(30)), (other, ms(30))]);
    world.paths.handle_relay(Some(relay()), world.now);
    world.run(ms(100));
    world.paths.handle_relay(Some(other), world.now);
    assert_eq!(world.in_use(), other);
    world.paths.handle_relay(None, world.now);
    assert_eq!(world.in_use(), at(1), "it answered once");
}
