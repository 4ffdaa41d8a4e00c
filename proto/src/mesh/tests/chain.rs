//! One member against one ledger.

use super::scene::{
    OTHER_STORE, STORE, Scene, broker, events, identities, key, member, node, other_broker,
    presence, wireguard,
};
use crate::blob::BlobError;
use crate::enrolment::{EnrolmentError, JoinProof};
use crate::entry::{Body, GrantRole, Role, Uses};
use crate::mesh::{Event, MemberRefusal, Mesh, Taken};
use crate::record::{Member, NodeState};

fn one_node() -> (Scene, super::scene::Granted, Member, Mesh) {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let member = scene.member(&grant, 0, &node(1));
    let mesh = scene.receiver();
    (scene, grant, member, mesh)
}

#[test]
fn a_whole_chain_is_taken_once_and_known_afterwards() {
    let (scene, _, member, mut mesh) = one_node();
    let verified = mesh.check_member(&member).unwrap();
    assert_eq!(verified.hash, member.hash());
    assert_eq!(mesh.handle_member(&member), Ok(Taken::New));
    assert_eq!(events(&mut mesh), [Event::NodeChanged(node(1).public())]);
    assert_eq!(mesh.handle_member(&member), Ok(Taken::Known));
    assert_eq!(events(&mut mesh), []);
    let taken = mesh.node(&node(1).public()).unwrap();
    assert_eq!(taken.member, member);
    assert_eq!(taken.record, scene.record("paris", &node(1), 1));
    mesh.check_enrolment(&verified.enrolment).unwrap();
}

#[test]
fn a_newer_record_takes_the_place_of_the_last_and_an_older_one_never_does() {
    let (scene, grant, first, mut mesh) = one_node();
    mesh.handle_member(&first).unwrap();
    let third = scene.member_at(&grant, 0, &node(1), 3);
    assert_eq!(mesh.handle_member(&third), Ok(Taken::New));
    for old in [first, scene.member_at(&grant, 0, &node(1), 2)] {
        let refused = mesh.handle_member(&old).unwrap_err();
        assert!(matches!(
            refused,
            MemberRefusal::OldSequence { latest: 3, .. }
        ));
    }
    assert_eq!(mesh.node(&node(1).public()).unwrap().record.sequence, 3);
}

#[test]
fn another_record_with_the_same_number_is_refused_and_the_copied_directory_named() {
    let (scene, grant, first, mut mesh) = one_node();
    mesh.handle_member(&first).unwrap();
    events(&mut mesh);
    let mut record = scene.record("paris", &node(1), 1);
    record.issued = 7;
    let other = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    assert_eq!(
        mesh.handle_member(&other),
        Err(MemberRefusal::SameSequence(1))
    );
    assert_eq!(events(&mut mesh), [Event::ProblemsChanged]);
    assert!(mesh.problems()[0].to_string().contains("sequence number 1"));
    assert_eq!(mesh.node(&node(1).public()).unwrap().member, first);
    mesh.handle_member(&scene.member_at(&grant, 0, &node(1), 2))
        .unwrap();
    assert!(mesh.problems().is_empty());
}

#[test]
fn a_forged_record_with_the_same_number_blames_nobody() {
    let (scene, grant, first, mut mesh) = one_node();
    mesh.handle_member(&first).unwrap();
    let mut record = scene.record("paris", &node(1), 1);
    record.issued = 7;
    let mut forged = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    *forged.record.last_mut().unwrap() ^= 1;
    assert_eq!(
        mesh.handle_member(&forged),
        Err(MemberRefusal::RecordSignature)
    );
    assert!(mesh.problems().is_empty());
}

#[test]
fn the_number_outlives_the_record_and_the_process() {
    let (scene, grant, first, mut mesh) = one_node();
    let second = scene.member_at(&grant, 0, &node(1), 2);
    mesh.handle_member(&second).unwrap();
    mesh.forget(&node(1).public());
    assert_eq!(identities(&mesh), []);
    assert_eq!(mesh.sequence(&node(1).public()), Some(2));
    mesh.handle_member(&first).unwrap_err();
    mesh.handle_member(&second).unwrap();

    let mut restarted = scene.receiver();
    restarted.restore_sequence(node(1).public(), 2);
    restarted.restore_sequence(node(1).public(), 1);
    restarted.handle_member(&first).unwrap_err();
    // The record itself may have been lost with a damaged line of the cache.
    restarted.handle_member(&second).unwrap();
}

#[test]
fn the_same_number_with_other_bytes_is_refused_after_the_record_was_dropped_too() {
    let (scene, grant, first, mut mesh) = one_node();
    mesh.handle_member(&first).unwrap();
    mesh.forget(&node(1).public());
    let mut record = scene.record("paris", &node(1), 1);
    record.issued = 7;
    let other = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    assert_eq!(
        mesh.handle_member(&other),
        Err(MemberRefusal::SameSequence(1))
    );
    assert_eq!(mesh.handle_member(&first), Ok(Taken::New));
}

#[test]
fn a_withdrawal_takes_the_node_out_and_its_old_record_does_not_bring_it_back() {
    let (scene, grant, first, mut mesh) = one_node();
    mesh.handle_member(&first).unwrap();
    events(&mut mesh);
    let mut record = scene.record("paris", &node(1), 2);
    record.state = NodeState::Withdrawn;
    let gone = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    assert_eq!(mesh.handle_member(&gone), Ok(Taken::New));
    assert_eq!(events(&mut mesh), [Event::NodeWithdrawn(node(1).public())]);
    assert_eq!(identities(&mesh), []);
    mesh.handle_member(&first).unwrap_err();
}

#[test]
fn a_member_of_another_mesh_is_refused() {
    let (scene, _, member, _) = one_node();
    let genesis = crate::ledger::Ledger::genesis(9, key(1).public(), &key(2).public());
    let genesis = genesis.sign(&key(1));
    let mut mesh = Mesh::new(genesis.hash(), None);
    mesh.handle_entry(genesis.bytes()).unwrap();
    assert_eq!(
        mesh.handle_member(&member),
        Err(MemberRefusal::WrongMesh(scene.mesh))
    );
}

#[test]
fn an_enrolment_signed_for_another_mesh_is_refused_though_its_grant_is_of_this_one() {
    let (scene, grant, _, mut mesh) = one_node();
    let mut elsewhere = Scene::new();
    elsewhere.mesh.0[0] ^= 1;
    let enrolment = elsewhere.enrol(&grant, 0, &node(1));
    let refused = Err(MemberRefusal::WrongMesh(elsewhere.mesh));
    assert_eq!(mesh.check_enrolment(&enrolment), refused);
    let shown = member(&enrolment, scene.record("paris", &node(1), 1), &node(1));
    assert_eq!(mesh.check_member(&shown).map(|_| ()), refused);
    assert_eq!(mesh.handle_member(&shown).map(|_| ()), refused);
}

#[test]
fn a_record_for_another_mesh_is_refused_though_its_enrolment_is_of_this_one() {
    let (scene, grant, _, mut mesh) = one_node();
    let mut record = scene.record("paris", &node(1), 1);
    record.mesh.0[0] ^= 1;
    let wrong = record.mesh;
    let changed = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    assert_eq!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::WrongMesh(wrong))
    );
}

#[test]
fn a_record_for_another_site_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    let record = scene.record("london", &node(1), 1);
    let changed = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
    assert!(matches!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::WrongSite { .. })
    ));
}

#[test]
fn a_role_that_the_grant_does_not_allow_is_refused() {
    for (granted, claimed, fits) in [
        (GrantRole::Gateway, Role::Gateway, true),
        (GrantRole::Gateway, Role::Agent, false),
        (GrantRole::Agent, Role::Agent, true),
        (GrantRole::Agent, Role::Gateway, false),
        (GrantRole::Any, Role::Gateway, true),
        (GrantRole::Any, Role::Agent, true),
    ] {
        let mut scene = Scene::new();
        let grant = scene.grant_as("paris", Uses::Unlimited, granted, &[]);
        let mut record = scene.record("paris", &node(1), 1);
        record.role = claimed;
        let shown = member(&scene.enrol(&grant, 0, &node(1)), record, &node(1));
        let taken = scene.receiver().handle_member(&shown);
        assert_eq!(taken.is_ok(), fits, "{granted:?} {claimed:?}: {taken:?}");
        if !fits {
            assert!(matches!(taken, Err(MemberRefusal::WrongRole { .. })));
        }
    }
}

#[test]
fn a_record_of_another_identity_than_the_enrolments_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    let record = scene.record("paris", &node(2), 1);
    let changed = member(&scene.enrol(&grant, 0, &node(1)), record, &node(2));
    assert_eq!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::OtherIdentity)
    );
}

#[test]
fn a_record_that_someone_else_signed_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    let record = scene.record("paris", &node(1), 1);
    let enrolment = scene.enrol(&grant, 0, &node(1));
    let honest = record.clone().sign(&node(1));
    let mut other = record;
    other.identity = node(2).public();
    let signed = other.sign(&node(2));
    let mut bytes = honest.bytes().to_vec();
    let at = bytes.len() - 64;
    bytes[at..].copy_from_slice(&signed.bytes()[signed.bytes().len() - 64..]);
    let changed = Member {
        enrolment: enrolment.write(),
        record: bytes,
    };
    assert_eq!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::RecordSignature)
    );
}

#[test]
fn an_enrolment_without_the_tokens_key_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    let proof = JoinProof::sign(scene.mesh, grant.id, &key(999), &node(1));
    let changed = member(
        &proof.enrol(0, &broker()),
        scene.record("paris", &node(1), 1),
        &node(1),
    );
    assert_eq!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::Enrolment(EnrolmentError::Join))
    );
}

#[test]
fn an_enrolment_that_the_identity_did_not_consent_to_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    let mut enrolment = scene.enrol(&grant, 0, &node(1));
    enrolment.proof.consent = scene.enrol(&grant, 0, &node(2)).proof.consent;
    let changed = member(&enrolment, scene.record("paris", &node(1), 1), &node(1));
    assert_eq!(
        mesh.handle_member(&changed),
        Err(MemberRefusal::Enrolment(EnrolmentError::Consent))
    );
}

#[test]
fn an_enrolment_counted_by_no_broker_or_by_one_of_another_store_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    for stranger in [key(77), other_broker()] {
        let enrolment = scene.enrol_at(&stranger, &grant, 0, &node(1));
        let shown = member(&enrolment, scene.record("paris", &node(1), 1), &node(1));
        assert_eq!(
            mesh.handle_member(&shown),
            Err(MemberRefusal::ForeignBroker(stranger.public()))
        );
        assert_eq!(
            mesh.check_enrolment(&enrolment),
            Err(MemberRefusal::ForeignBroker(stranger.public()))
        );
    }
}

#[test]
fn what_a_removed_broker_has_counted_stays_counted() {
    let (mut scene, _, member, _) = one_node();
    scene.append(Body::BrokerRemoved {
        key: broker().public(),
    });
    scene.receiver().handle_member(&member).unwrap();
}

#[test]
fn a_second_broker_of_the_store_may_count_too() {
    let (mut scene, grant, _, _) = one_node();
    scene.add_broker(&key(5), STORE);
    scene.add_broker(&key(6), OTHER_STORE);
    let mut mesh = scene.receiver();
    let enrolment = scene.enrol_at(&key(5), &grant, 0, &node(1));
    mesh.check_enrolment(&enrolment).unwrap();
    let enrolment = scene.enrol_at(&key(6), &grant, 0, &node(1));
    mesh.check_enrolment(&enrolment).unwrap_err();
    let shown = member(
        &scene.enrol_at(&key(5), &grant, 0, &node(1)),
        scene.record("paris", &node(1), 1),
        &node(1),
    );
    mesh.handle_member(&shown).unwrap();
}

#[test]
fn a_use_beyond_what_the_grant_allows_is_refused() {
    let (scene, grant, _, mut mesh) = one_node();
    for use_number in [2, u32::MAX] {
        assert_eq!(
            mesh.handle_member(&scene.member(&grant, use_number, &node(1))),
            Err(MemberRefusal::UseNumber {
                use_number,
                most: 2
            })
        );
    }
    mesh.handle_member(&scene.member(&grant, 1, &node(1)))
        .unwrap();
}

#[test]
fn a_member_whose_grant_is_not_here_yet_is_taken_when_it_is() {
    let (scene, _, member, _) = one_node();
    let (last, before) = scene.entries.split_last().unwrap();
    let mut mesh = Mesh::new(scene.mesh, None);
    for entry in before {
        mesh.handle_entry(entry.bytes()).unwrap();
    }
    let refused = mesh.handle_member(&member).unwrap_err();
    assert_eq!(refused, MemberRefusal::NoGrant);
    assert!(refused.may_pass_later());
    mesh.handle_entry(last.bytes()).unwrap();
    mesh.handle_member(&member).unwrap();
}

#[test]
fn a_low_order_wireguard_key_is_refused_now_or_next() {
    let (scene, grant, member, mut mesh) = one_node();
    let at = member
        .record
        .windows(32)
        .position(|window| window == wireguard(&node(1).public()).as_bytes())
        .unwrap();
    let mut weak = [0; 32];
    for first in [0, 1] {
        weak[0] = first;
        let mut payload = member.record[..member.record.len() - 64].to_vec();
        payload[at..at + 32].copy_from_slice(&weak);
        let signature = node(1).sign(crate::key::Domain::Record, &payload);
        payload.extend_from_slice(&signature.0);
        let changed = Member {
            enrolment: scene.enrol(&grant, 0, &node(1)).write(),
            record: payload,
        };
        assert_eq!(
            mesh.handle_member(&changed),
            Err(MemberRefusal::RecordForm(BlobError::Field("WireGuard key")))
        );
    }
}

#[test]
fn a_copied_wireguard_key_locks_nobody_out_in_either_order_and_is_reported() {
    for copier_first in [false, true] {
        let (scene, grant, owner, mut mesh) = one_node();
        let mut record = scene.record("paris", &node(2), 1);
        record.state = NodeState::Present(presence(&node(1).public()));
        let copier = member(&scene.enrol(&grant, 1, &node(2)), record, &node(2));
        let mut shown = [&owner, &copier];
        if copier_first {
            shown.reverse();
        }
        mesh.handle_member(shown[0]).unwrap();
        assert!(mesh.problems().is_empty());
        events(&mut mesh);
        mesh.handle_member(shown[1]).unwrap();
        assert!(events(&mut mesh).contains(&Event::ProblemsChanged));
        assert_eq!(identities(&mesh).len(), 2);
        let problems = mesh.problems();
        assert_eq!(problems.len(), 1);
        let text = problems[0].to_string();
        assert!(text.contains(&node(1).public().to_string()), "{text}");
        assert!(text.contains(&node(2).public().to_string()), "{text}");
        mesh.forget(&node(2).public());
        assert!(mesh.problems().is_empty());
    }
}

#[test]
fn a_second_enrolment_of_one_identity_saves_it_when_its_first_grant_is_closed() {
    let mut scene = Scene::new();
    let first = scene.grant("paris", Uses::AtMost(1));
    let second = scene.grant("paris", Uses::AtMost(1));
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&first, 0, &node(1)))
        .unwrap();
    scene.close(&first, &[]);
    scene.tell(&mut mesh);
    assert_eq!(identities(&mesh), []);
    mesh.handle_member(&scene.member(&second, 0, &node(1)))
        .unwrap();
    assert_eq!(identities(&mesh), [node(1).public()]);
    mesh.handle_member(&scene.member(&first, 0, &node(1)))
        .unwrap_err();
    assert_eq!(identities(&mesh), [node(1).public()]);
}

#[test]
fn brokers_of_either_store_are_told_apart() {
    let scene = Scene::new();
    let mesh = scene.receiver();
    assert!(mesh.charter().may_count(&broker().public(), &STORE));
    assert!(!mesh.charter().may_count(&broker().public(), &OTHER_STORE));
}

#[test]
fn a_node_restored_from_a_snapshot_signs_above_what_it_is_shown_of_itself() {
    let (scene, grant, _, mut mesh) = one_node();
    mesh.handle_member(&scene.member_at(&grant, 0, &node(1), 9))
        .unwrap();
    // Its directory is as it was at 4: what it signs next is behind.
    let behind = scene.member_at(&grant, 0, &node(1), 5);
    let Err(MemberRefusal::OldSequence { latest, .. }) = mesh.handle_member(&behind) else {
        panic!("a sequence number went back");
    };
    let mut own = scene.receiver();
    own.restore_sequence(node(1).public(), 4);
    own.handle_member(&mesh.node(&node(1).public()).unwrap().member)
        .unwrap();
    let shown = own.sequence(&node(1).public()).unwrap();
    assert_eq!(shown, latest);
    let next = crate::life::next_sequence(4, shown).unwrap();
    mesh.handle_member(&scene.member_at(&grant, 0, &node(1), next))
        .unwrap();
}
