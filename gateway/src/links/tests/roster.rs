//! Changes of the roster are applied in place.

use proto::key::WireguardKey;

use super::wire::{Wire, identity, ms};
use super::{NEAR, Why};

#[test]
fn a_changed_address_or_name_resets_no_link() {
    let mut wire = Wire::up(&["a", "b", "c"], NEAR, 1);
    let began = wire.now;
    let gateway = wire.roster().gateways.get_mut(&identity(1).public());
    let gateway = gateway.unwrap();
    gateway
        .candidates
        .insert(0, ([203, 0, 113, 9], 4000).into());
    gateway.node = "renamed".parse().unwrap();
    wire.introduce();
    wire.run(ms(5000));
    assert_eq!(wire.changes(0, 1, began), []);
    assert_eq!(wire.changes(0, 2, began), []);
    assert_eq!(wire.carriers(0, "b"), (true, vec![1]));
}

#[test]
fn another_wireguard_key_begins_that_link_anew_and_no_other() {
    let mut wire = Wire::up(&["a", "b", "c"], NEAR, 2);
    let began = wire.now;
    let gateway = wire.roster().gateways.get_mut(&identity(1).public());
    gateway.unwrap().wireguard = WireguardKey::new([55; 32]).unwrap();
    wire.tell_roster(0);
    assert_eq!(wire.state(0, 1), Err(Why::NoAnswer));
    assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    assert_eq!(wire.carriers(0, "c"), (true, vec![2]));
    wire.run(ms(5000));
    assert_eq!(wire.changes(0, 2, began), []);
    // The wire takes any key; the proof does not.
    assert!(wire.state(0, 1).is_err());
}

#[test]
fn a_gateway_that_is_removed_is_gone_at_once() {
    let mut wire = Wire::up(&["a", "b", "c"], NEAR, 3);
    wire.roster().gateways.remove(&identity(1).public());
    wire.tell_roster(0);
    assert_eq!(wire.carriers(0, "b"), (false, vec![]));
    assert_eq!(wire.carriers(0, "c"), (true, vec![2]));
    assert_eq!(wire.nodes[0].links.statuses(wire.now).len(), 1);
    let before = wire.nodes[0].events.len();
    wire.run(ms(5000));
    let of = identity(1).public();
    let said = wire.nodes[0].events[before..].iter();
    let about = said.filter(|(_, event)| format!("{event:?}").contains(&of.to_string()));
    assert_eq!(about.count(), 0);
}

#[test]
fn one_without_an_address_is_said_to_have_none() {
    let mut wire = Wire::new(&["a", "b"], NEAR, 4);
    let gateway = wire.roster().gateways.get_mut(&identity(1).public());
    gateway.unwrap().candidates.clear();
    wire.tell_roster(0);
    assert_eq!(wire.state(0, 1), Err(Why::NoAddress));
}

#[test]
fn who_claims_anothers_key_is_not_proven() {
    let mut wire = Wire::new(&["a", "b"], NEAR, 5);
    let gateway = wire.roster().gateways.get_mut(&identity(1).public());
    gateway.unwrap().wireguard = WireguardKey::new([55; 32]).unwrap();
    wire.introduce();
    wire.run(ms(3000));
    assert_eq!(wire.state(0, 1), Err(Why::NotProven));
    assert!(!wire.nodes[0].links.is_proven(&identity(1).public()));
}
