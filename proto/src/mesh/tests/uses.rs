//! Revoked nodes, closed grants, and uses that were counted twice.

use super::scene::{Granted, Scene, broker, events, identities, member, node, other_broker};
use crate::enrolment::EnrolmentError;
use crate::entry::{Body, Closing, Uses};
use crate::key::PublicKey;
use crate::mesh::{Event, MemberRefusal, Mesh, Problem, check_use};
use crate::record::Member;

fn key_of(number: u32) -> PublicKey {
    node(number).public()
}

#[test]
fn a_revoked_node_is_gone_at_once_and_never_comes_back() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&grant, 0, &node(1)))
        .unwrap();
    mesh.handle_member(&scene.member(&grant, 1, &node(2)))
        .unwrap();
    events(&mut mesh);
    scene.revoke(&[key_of(1)]);
    scene.tell(&mut mesh);
    assert_eq!(
        events(&mut mesh)[0],
        Event::NodeRevoked(key_of(1)),
        "before anything else"
    );
    assert_eq!(identities(&mesh), [key_of(2)]);
    for again in [1, 2] {
        let shown = scene.member_at(&grant, 0, &node(1), again);
        assert_eq!(mesh.handle_member(&shown), Err(MemberRefusal::Revoked));
        assert_eq!(mesh.check_member(&shown), Err(MemberRefusal::Revoked));
    }
    let enrolment = scene.enrol(&grant, 0, &node(1));
    assert_eq!(
        mesh.check_enrolment(&enrolment),
        Err(MemberRefusal::Revoked)
    );
}

#[test]
fn a_revocation_known_before_its_node_holds_too() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    scene.revoke(&[key_of(1)]);
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&grant, 0, &node(1)))
        .unwrap_err();
    assert_eq!(identities(&mesh), []);
}

#[test]
fn a_closed_grant_keeps_only_those_that_stay_whenever_they_come() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let mut early = scene.receiver();
    for number in 0..4 {
        early
            .handle_member(&scene.member(&grant, number, &node(number)))
            .unwrap();
    }
    scene.close(&grant, &[key_of(1), key_of(2)]);
    let late = &mut scene.receiver();
    scene.tell(&mut early);
    let mut expected = [key_of(1), key_of(2)];
    expected.sort();
    assert_eq!(identities(&early), expected);
    for number in 0..4 {
        let taken = late.handle_member(&scene.member(&grant, number, &node(number)));
        assert_eq!(taken.is_ok(), number == 1 || number == 2);
        if let Err(refused) = taken {
            assert_eq!(refused, MemberRefusal::GrantClosed);
        }
    }
    assert_eq!(identities(late), expected);
}

#[test]
fn a_leaked_many_use_token_brings_nobody_in_once_it_is_closed() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    scene.close(&grant, &[key_of(1)]);
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&grant, 0, &node(1)))
        .unwrap();
    // Even a broker that helps cannot.
    mesh.handle_member(&scene.member(&grant, 1, &node(666)))
        .unwrap_err();
    let enrolment = scene.enrol(&grant, 1, &node(666));
    assert_eq!(
        mesh.check_enrolment(&enrolment),
        Err(MemberRefusal::GrantClosed)
    );
}

#[test]
fn a_revoked_node_that_still_holds_the_seed_cannot_return_under_a_new_identity() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let mut mesh = scene.receiver();
    for number in 1..=3 {
        mesh.handle_member(&scene.member(&grant, number, &node(number)))
            .unwrap();
    }
    // One entry revokes the key and closes the grant with the others listed.
    scene.append(Body::Revocation {
        keys: vec![key_of(1)],
        closings: vec![Closing {
            grant: grant.id,
            stay: vec![key_of(2), key_of(3)],
        }],
    });
    scene.tell(&mut mesh);
    let mut expected = [key_of(2), key_of(3)];
    expected.sort();
    assert_eq!(identities(&mesh), expected);
    mesh.handle_member(&scene.member(&grant, 9, &node(11)))
        .unwrap_err();
    mesh.handle_member(&scene.member_at(&grant, 1, &node(1), 5))
        .unwrap_err();
    assert_eq!(identities(&mesh), expected);
}

#[test]
fn a_revoked_site_loses_its_nodes_and_a_later_grant_may_use_its_name() {
    let mut scene = Scene::new();
    let old = scene.grant("paris", Uses::Unlimited);
    let other = scene.grant("london", Uses::Unlimited);
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&old, 0, &node(1)))
        .unwrap();
    mesh.handle_member(&scene.member(&other, 0, &node(2)))
        .unwrap();
    events(&mut mesh);
    let site = "paris".parse().unwrap();
    scene.append(Body::SiteRevoked { site });
    scene.tell(&mut mesh);
    assert_eq!(events(&mut mesh)[0], Event::NodeRevoked(key_of(1)));
    assert_eq!(identities(&mesh), [key_of(2)]);
    assert_eq!(
        mesh.handle_member(&scene.member(&old, 1, &node(3))),
        Err(MemberRefusal::SiteRevoked)
    );
    let new = scene.grant("paris", Uses::Unlimited);
    scene.tell(&mut mesh);
    mesh.handle_member(&scene.member(&new, 0, &node(4)))
        .unwrap();
    mesh.handle_member(&scene.member(&old, 0, &node(1)))
        .unwrap_err();
}

#[test]
fn what_a_revoked_broker_counted_counts_no_more() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&grant, 0, &node(1)))
        .unwrap();
    scene.revoke(&[broker().public()]);
    scene.tell(&mut mesh);
    assert_eq!(identities(&mesh), []);
    assert_eq!(
        mesh.handle_member(&scene.member(&grant, 0, &node(1))),
        Err(MemberRefusal::ForeignBroker(broker().public()))
    );
}

/// Two members for use 0 of one grant, and a receiver that knows neither.
fn doubled() -> (Scene, Granted, [Member; 2], Mesh) {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(1));
    let members = [
        scene.member(&grant, 0, &node(1)),
        scene.member(&grant, 0, &node(2)),
    ];
    let mesh = scene.receiver();
    (scene, grant, members, mesh)
}

fn both_are_named(problems: &[Problem]) {
    assert_eq!(problems.len(), 1, "{problems:?}");
    let text = problems[0].to_string();
    for key in [key_of(1), key_of(2), broker().public()] {
        assert!(text.contains(&key.to_string()), "{text}");
    }
    assert!(problems[0].next().contains("revoke"));
}

#[test]
fn of_two_identities_for_one_use_a_newcomer_takes_neither_in_either_order() {
    for swapped in [false, true] {
        let (_, _, mut members, mut mesh) = doubled();
        if swapped {
            members.reverse();
        }
        mesh.handle_member(&members[0]).unwrap();
        let refused = mesh.handle_member(&members[1]).unwrap_err();
        assert!(matches!(refused, MemberRefusal::TwoForOneUse(_)));
        assert!(refused.may_pass_later());
        assert_eq!(identities(&mesh), []);
        both_are_named(&mesh.problems());
        let events = events(&mut mesh);
        assert!(events.contains(&Event::ProblemsChanged), "{events:?}");
        // Shown again, nothing changes.
        for member in &members {
            mesh.handle_member(member).unwrap_err();
        }
        mesh.handle_synced();
        assert_eq!(identities(&mesh), []);
    }
}

#[test]
fn of_two_identities_for_one_use_the_established_one_stays() {
    let (scene, grant, members, mut mesh) = doubled();
    mesh.handle_member(&members[0]).unwrap();
    mesh.handle_synced();
    events(&mut mesh);
    assert_eq!(
        mesh.handle_member(&members[1]),
        Err(MemberRefusal::TwoForOneUse(key_of(1)))
    );
    assert_eq!(identities(&mesh), [key_of(1)]);
    both_are_named(&mesh.problems());
    // It goes on publishing, and the other still comes too late.
    mesh.handle_member(&scene.member_at(&grant, 0, &node(1), 2))
        .unwrap();
    mesh.handle_synced();
    mesh.handle_member(&scene.member_at(&grant, 0, &node(2), 2))
        .unwrap_err();
    assert_eq!(identities(&mesh), [key_of(1)]);
}

#[test]
fn dropping_the_first_does_not_let_the_second_take_its_use() {
    let (_, _, members, mut mesh) = doubled();
    mesh.handle_member(&members[0]).unwrap();
    mesh.handle_synced();
    mesh.forget(&key_of(1));
    mesh.handle_member(&members[1]).unwrap_err();
    assert_eq!(identities(&mesh), []);
}

#[test]
fn revoking_one_of_two_lets_the_other_in_without_being_shown_again() {
    let (mut scene, _, members, mut mesh) = doubled();
    for member in &members {
        let _ = mesh.handle_member(member);
    }
    events(&mut mesh);
    scene.revoke(&[key_of(1)]);
    scene.tell(&mut mesh);
    assert_eq!(identities(&mesh), [key_of(2)]);
    assert!(events(&mut mesh).contains(&Event::NodeChanged(key_of(2))));
    assert!(mesh.problems().is_empty());
}

#[test]
fn closing_the_grant_with_one_of_two_listed_settles_it() {
    for known in [true, false] {
        let (mut scene, grant, members, mut mesh) = doubled();
        if known {
            for member in &members {
                let _ = mesh.handle_member(member);
            }
        }
        scene.close(&grant, &[key_of(2)]);
        scene.tell(&mut mesh);
        mesh.handle_member(&members[0]).unwrap_err();
        mesh.handle_member(&members[1]).unwrap();
        assert_eq!(identities(&mesh), [key_of(2)]);
        assert!(mesh.problems().is_empty());
    }
}

#[test]
fn many_identities_for_one_use_fill_no_memory_and_the_one_that_is_settled_on_comes_in() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(1));
    let mut mesh = scene.receiver();
    for number in 0..20 {
        let refused = mesh.handle_member(&scene.member(&grant, 0, &node(number)));
        let too_many = matches!(refused, Err(MemberRefusal::Quota { .. }));
        assert_eq!(too_many, number >= 4, "{number}: {refused:?}");
    }
    assert!(mesh.register.iter().count() <= 4);
    scene.close(&grant, &[key_of(17)]);
    scene.tell(&mut mesh);
    mesh.handle_member(&scene.member(&grant, 0, &node(17)))
        .unwrap();
    assert_eq!(identities(&mesh), [key_of(17)]);
}

#[test]
fn a_second_identity_with_a_forged_enrolment_does_not_dispute_a_use() {
    let (scene, grant, members, mut mesh) = doubled();
    mesh.handle_member(&members[0]).unwrap();
    let mut enrolment = scene.enrol(&grant, 0, &node(2));
    enrolment.signature.0[0] ^= 1;
    let forged = member(&enrolment, scene.record("paris", &node(2), 1), &node(2));
    mesh.handle_member(&forged).unwrap_err();
    assert_eq!(identities(&mesh), [key_of(1)]);
    assert!(mesh.problems().is_empty());
}

#[test]
fn a_node_that_collects_uses_holds_only_its_last_one() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let mut mesh = scene.receiver();
    for use_number in 0..50 {
        let sequence = u64::from(use_number) + 1;
        let record = scene.record("paris", &node(1), sequence);
        let shown = member(&scene.enrol(&grant, use_number, &node(1)), record, &node(1));
        mesh.handle_member(&shown).unwrap();
    }
    assert_eq!(mesh.register.uses().count(), 1);
}

#[test]
fn who_disputed_a_use_comes_in_when_the_other_moves_to_another_use_in_either_order() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let first = scene.member(&grant, 0, &node(1));
    let rival = scene.member(&grant, 0, &node(2));
    let record = scene.record("paris", &node(1), 2);
    let moved = member(&scene.enrol(&grant, 1, &node(1)), record, &node(1));
    let mut expected = [key_of(1), key_of(2)];
    expected.sort();
    for order in [[&first, &rival, &moved], [&first, &moved, &rival]] {
        let mut mesh = scene.receiver();
        for shown in order {
            let _ = mesh.handle_member(shown);
        }
        assert_eq!(identities(&mesh), expected);
        assert!(mesh.problems().is_empty());
    }
}

/// Nodes 1 and 2 under uses of their own, and node 2's record again under the use of node 1: what
/// the store's broker can sign without anybody's help.
fn misplaced(sequence: u64) -> (Scene, [Member; 3]) {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let members = [
        scene.member(&grant, 0, &node(1)),
        scene.member(&grant, 1, &node(2)),
        scene.member_at(&grant, 0, &node(2), sequence),
    ];
    (scene, members)
}

#[test]
fn a_broker_that_signs_a_node_under_the_use_of_another_cuts_off_neither() {
    for sequence in [1, 2] {
        let (scene, [first, second, misplaced]) = misplaced(sequence);
        let mut expected = [key_of(1), key_of(2)];
        expected.sort();
        for synced in [false, true] {
            let mut mesh = scene.receiver();
            mesh.handle_member(&first).unwrap();
            mesh.handle_member(&second).unwrap();
            if synced {
                mesh.handle_synced();
            }
            let _ = mesh.handle_member(&misplaced);
            assert_eq!(identities(&mesh), expected);
            // What is held can be shown to others and be read again.
            for node in mesh.nodes() {
                mesh.check_member(&node.member).unwrap();
            }
            assert_eq!(mesh.sequence(&key_of(2)), Some(sequence));
            assert_eq!(mesh.node(&key_of(2)).unwrap().record.sequence, sequence);
        }
    }
}

#[test]
fn who_met_such_a_broker_first_takes_both_nodes_once_another_shows_them() {
    let (scene, [first, second, misplaced]) = misplaced(1);
    let mut expected = [key_of(1), key_of(2)];
    expected.sort();
    for order in [[&first, &misplaced, &second], [&misplaced, &first, &second]] {
        let mut mesh = scene.receiver();
        for shown in order {
            let _ = mesh.handle_member(shown);
            mesh.handle_synced();
        }
        let _ = mesh.handle_member(&first);
        assert_eq!(identities(&mesh), expected);
        assert!(mesh.problems().is_empty());
    }
}

#[test]
fn a_use_is_proven_by_its_enrolment_alone_whatever_became_of_the_node() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let enrolment = scene.enrol(&grant, 1, &node(1));
    let check = |scene: &Scene, bytes: &[u8]| check_use(bytes, scene.receiver().ledger());
    assert_eq!(check(&scene, &enrolment.write()), Ok(enrolment.clone()));
    let foreign = scene.enrol_at(&other_broker(), &grant, 1, &node(1));
    assert_eq!(
        check(&scene, &foreign.write()),
        Err(MemberRefusal::ForeignBroker(other_broker().public()))
    );
    let third = scene.enrol(&grant, 2, &node(1));
    assert!(matches!(
        check(&scene, &third.write()),
        Err(MemberRefusal::UseNumber { .. })
    ));
    let mut forged = enrolment.clone();
    forged.proof.identity = key_of(2);
    assert_eq!(
        check(&scene, &forged.write()),
        Err(MemberRefusal::Enrolment(EnrolmentError::Join))
    );
    assert!(matches!(
        check(&scene, b""),
        Err(MemberRefusal::EnrolmentForm(_))
    ));
    scene.revoke(&[key_of(1)]);
    scene.close(&grant, &[]);
    assert_eq!(check(&scene, &enrolment.write()), Ok(enrolment));
}

#[test]
fn a_use_of_another_meshs_grant_is_no_use_here() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let mut other = scene.enrol(&grant, 0, &node(1));
    other.proof.mesh.0[0] ^= 1;
    let mesh = other.proof.mesh;
    assert_eq!(
        check_use(&other.write(), scene.receiver().ledger()),
        Err(MemberRefusal::WrongMesh(mesh))
    );
}
