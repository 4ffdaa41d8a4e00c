//! Prefixes, addresses and problems as a receiver sees them; what a change costs it.

use std::time::{Duration, Instant};

use super::scene::{Scene, events, member, node, presence};
use crate::entry::{Body, GrantRole, Uses};
use crate::ledger::PrefixState;
use crate::mesh::{Event, Mesh, Problem, RefusedAddress};
use crate::record::NodeState;

fn receiver_in(scene: &Scene, site: &str) -> Mesh {
    let mut mesh = Mesh::new(scene.mesh, Some(site.parse().unwrap()));
    for entry in &scene.entries {
        mesh.handle_entry(entry.bytes()).unwrap();
    }
    mesh
}

fn states(mesh: &Mesh) -> Vec<(String, String, PrefixState)> {
    let prefixes = mesh.prefixes().into_iter();
    prefixes
        .map(|prefix| {
            (
                prefix.site.to_string(),
                prefix.prefix.to_string(),
                prefix.state,
            )
        })
        .collect()
}

/// Two sites that overlap, the first one earlier, and one that is sound.
fn overlapping() -> Scene {
    let mut scene = Scene::new();
    scene.grant_as("first", Uses::Unlimited, GrantRole::Any, &["10.0.0.0/16"]);
    scene.grant_as("second", Uses::Unlimited, GrantRole::Any, &["10.0.7.0/24"]);
    scene.grant_as("third", Uses::Unlimited, GrantRole::Any, &["10.1.0.0/16"]);
    scene
}

#[test]
fn of_two_sites_that_overlap_the_earlier_one_has_the_prefix_everywhere_else() {
    for receiver in ["first", "third"] {
        let mesh = receiver_in(&overlapping(), receiver);
        let states = states(&mesh);
        assert_eq!(states[0].2, PrefixState::Owned);
        assert!(matches!(states[1].2, PrefixState::Overlaps { .. }));
        assert_eq!(states[2].2, PrefixState::Owned);
        let problems = mesh.problems();
        assert_eq!(problems.len(), 1);
        let text = problems[0].to_string();
        for part in ["10.0.7.0/24", "second", "10.0.0.0/16", "first"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

#[test]
fn a_site_whose_own_prefix_overlaps_sends_that_prefix_to_nobody() {
    let mesh = receiver_in(&overlapping(), "second");
    assert_eq!(
        states(&mesh)[0].2,
        PrefixState::Overlaps {
            site: "second".parse().unwrap(),
            prefix: "10.0.7.0/24".parse().unwrap()
        }
    );
    assert_eq!(states(&mesh)[2].2, PrefixState::Owned);
    assert_eq!(mesh.problems().len(), 2);
}

#[test]
fn a_default_route_signed_by_the_authority_itself_is_refused_and_shuts_nobody_off() {
    let mut scene = Scene::new();
    scene.grant_as(
        "paris",
        Uses::Unlimited,
        GrantRole::Any,
        &["0.0.0.0/0", "10.1.0.0/16"],
    );
    scene.grant_as("london", Uses::Unlimited, GrantRole::Any, &["10.2.0.0/16"]);
    for receiver in ["paris", "london"] {
        let mesh = receiver_in(&scene, receiver);
        let states = states(&mesh);
        assert!(matches!(states[0].2, PrefixState::Refused(_)));
        assert_eq!(states[1].2, PrefixState::Owned);
        assert_eq!(states[2].2, PrefixState::Owned);
        assert!(matches!(mesh.problems()[0], Problem::PrefixRefused { .. }));
    }
}

#[test]
fn addresses_that_would_lead_the_tunnel_astray_are_left_out_and_reported() {
    let mut scene = Scene::new();
    let grant = scene.grant_as("paris", Uses::Unlimited, GrantRole::Any, &["10.1.0.0/16"]);
    scene.grant_as(
        "london",
        Uses::Unlimited,
        GrantRole::Any,
        &["10.2.0.0/16", "2001:db8:2::/48"],
    );
    let mut mesh = scene.receiver();
    let mut shown = presence(&node(1).public());
    shown.candidates = [
        "127.0.0.1:1",
        "169.254.1.1:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::1]:1",
        "10.2.3.4:1",
        "[2001:db8:2::1]:1",
        "10.1.3.4:51820",
    ]
    .map(|text| text.parse().unwrap())
    .to_vec();
    shown.lan_address = Some("fe80::1".parse().unwrap());
    let mut record = scene.record("paris", &node(1), 1);
    record.state = NodeState::Present(shown);
    mesh.handle_member(&member(&scene.enrol(&grant, 0, &node(1)), record, &node(1)))
        .unwrap();
    assert!(events(&mut mesh).contains(&Event::ProblemsChanged));
    let taken = mesh.node(&node(1).public()).unwrap();
    assert_eq!(
        mesh.usable_candidates(taken),
        ["10.1.3.4:51820".parse().unwrap()]
    );
    assert_eq!(mesh.usable_lan_address(taken), None);
    let refused = mesh.problems();
    assert_eq!(refused.len(), 8, "{refused:?}");
    assert!(refused.iter().any(|problem| matches!(
        problem,
        Problem::AddressRefused {
            why: RefusedAddress::OtherSite { .. },
            ..
        }
    )));
}

#[test]
fn an_address_is_judged_by_the_ledger_as_it_is_now() {
    let mut scene = Scene::new();
    let mut mesh = scene.receiver();
    let paris = "paris".parse().unwrap();
    let address = "10.2.3.4".parse().unwrap();
    assert_eq!(mesh.check_address(&paris, address), Ok(()));
    scene.grant_as("london", Uses::Unlimited, GrantRole::Any, &["10.0.0.0/8"]);
    scene.tell(&mut mesh);
    mesh.check_address(&paris, address).unwrap_err();
    scene.append(Body::Prefixes {
        site: "london".parse().unwrap(),
        added: vec![],
        added_service: vec![],
        removed: vec!["10.0.0.0/8".parse().unwrap()],
    });
    scene.tell(&mut mesh);
    assert_eq!(mesh.check_address(&paris, address), Ok(()));
}

#[test]
fn entries_in_any_order_are_taken_once_what_they_follow_is_here() {
    let mut scene = Scene::new();
    scene.grant("paris", Uses::AtMost(1));
    let mut mesh = Mesh::new(scene.mesh, None);
    let last = scene.entries.last().unwrap().bytes();
    assert_eq!(
        mesh.handle_entry(last),
        Err(crate::mesh::EntryRefusal::Orphan)
    );
    for entry in &scene.entries {
        mesh.handle_entry(entry.bytes()).unwrap();
    }
    assert_eq!(mesh.handle_entry(last), Ok(crate::mesh::Taken::Known));
}

#[test]
fn what_happened_to_one_node_before_anyone_looked_is_one_event() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(1));
    let mut mesh = scene.receiver();
    for sequence in 1..100 {
        mesh.handle_member(&scene.member_at(&grant, 0, &node(1), sequence))
            .unwrap();
    }
    assert_eq!(events(&mut mesh), [Event::NodeChanged(node(1).public())]);
}

#[test]
fn two_nodes_with_one_name_are_reported() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let mut mesh = scene.receiver();
    for number in 0..2 {
        let mut record = scene.record("paris", &node(number), 1);
        record.node = "gate".parse().unwrap();
        let enrolment = scene.enrol(&grant, number, &node(number));
        mesh.handle_member(&member(&enrolment, record, &node(number)))
            .unwrap();
    }
    assert!(matches!(
        mesh.problems()[..],
        [Problem::TwoForOneName { .. }]
    ));
}

/// A thousand sites with two gateways each. Not a measurement: that takes a release build. It
/// fails when a change costs in proportion to all there is.
#[test]
fn a_change_in_a_mesh_of_a_thousand_sites_looks_at_that_node_only() {
    let mut scene = Scene::new();
    let mut grants = Vec::new();
    for number in 0..1000u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let prefix = format!("10.{high}.{low}.0/24");
        grants.push(scene.grant_as("site", Uses::Unlimited, GrantRole::Any, &[&prefix]));
    }
    let mut mesh = scene.receiver();
    for (grant, number) in grants.iter().zip(0..) {
        mesh.handle_member(&scene.member(grant, 0, &node(number)))
            .unwrap();
    }
    let changes: Vec<_> = (2..52)
        .map(|sequence| scene.member_at(&grants[500], 0, &node(500), sequence))
        .collect();
    let verify = median(&changes, |change| {
        let record = crate::record::SignedRecord::read(&change.record).unwrap();
        record.verify().unwrap();
    });
    let take = median(&changes, |change| {
        mesh.handle_member(change).unwrap();
    });
    assert!(
        take < verify * 6 + Duration::from_micros(500),
        "{take:?} for a change, {verify:?} of it for the signature"
    );
}

fn median<T>(all: &[T], mut cost: impl FnMut(&T)) -> Duration {
    let mut costs: Vec<Duration> = all
        .iter()
        .map(|one| {
            let start = Instant::now();
            cost(one);
            start.elapsed()
        })
        .collect();
    costs.sort();
    costs[costs.len() / 2]
}
