//! What two gateways compare and hand over.

use std::sync::Arc;

use super::scene::{Scene, member, node};
use crate::entry::{Role, Uses};
use crate::knowledge::Knowledge;
use crate::record::NodeState;

fn scene() -> (Scene, super::scene::Granted) {
    let mut scene = Scene::new();
    let granted = scene.grant("paris", Uses::AtMost(10));
    (scene, granted)
}

#[test]
fn the_digest_is_the_same_whatever_the_order_and_another_for_every_sequence() {
    let (scene, granted) = scene();
    let members = [1, 2, 3].map(|number| scene.member(&granted, number, &node(number)));
    let told = |order: [usize; 3]| {
        let mut mesh = scene.receiver();
        for at in order {
            mesh.handle_member(&members[at]).unwrap();
        }
        mesh
    };
    let mut mesh = told([0, 1, 2]);
    let before = Knowledge::of(&mesh);
    assert_eq!(before.records, Knowledge::of(&told([2, 0, 1])).records);
    assert_ne!(before.records, Knowledge::default().records);
    let newer = scene.member_at(&granted, 2, &node(2), 2);
    mesh.handle_member(&newer).unwrap();
    assert_ne!(before.records, Knowledge::of(&mesh).records);
}

#[test]
fn agents_are_not_spoken_of() {
    let (scene, granted) = scene();
    let mut mesh = scene.receiver();
    let mut record = scene.record("paris", &node(1), 1);
    record.role = Role::Agent;
    let enrolment = scene.enrol(&granted, 1, &node(1));
    mesh.handle_member(&member(&enrolment, record, &node(1)))
        .unwrap();
    assert_eq!(mesh.nodes().count(), 1);
    assert_eq!(
        Knowledge::of(&mesh).records,
        Knowledge::of(&scene.receiver()).records
    );
}

#[test]
fn who_has_left_is_told_of_and_who_is_revoked_is_not() {
    let (mut scene, granted) = scene();
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&granted, 1, &node(1)))
        .unwrap();
    let mut left = scene.record("paris", &node(1), 2);
    left.state = NodeState::Withdrawn;
    let enrolment = scene.enrol(&granted, 1, &node(1));
    mesh.handle_member(&member(&enrolment, left, &node(1)))
        .unwrap();
    let knowledge = Knowledge::of(&mesh);
    assert_eq!(knowledge.members[&node(1).public()].0, 2);
    scene.revoke(&[node(1).public()]);
    scene.tell(&mut mesh);
    assert!(Knowledge::of(&mesh).members.is_empty());
}

#[test]
fn what_is_missing_is_told_parents_first_and_takes_whoever_has_less_there() {
    let (mut scene, granted) = scene();
    let behind = scene.receiver();
    let heads = Knowledge::of(&behind).heads;
    scene.revoke(&[node(1).public()]);
    scene.close(&granted, &[]);
    let ahead = Knowledge::of(&scene.receiver());
    let missing = ahead.missing(&heads);
    assert_eq!(missing.len(), 2);
    let mut behind = behind;
    for entry in missing {
        behind.handle_entry(entry.bytes()).unwrap();
    }
    assert_eq!(Knowledge::of(&behind), ahead);
    assert!(ahead.missing(&ahead.heads).is_empty());
    assert_eq!(ahead.missing(&[]).len(), scene.entries.len());
}

#[test]
fn what_has_not_changed_is_shared_with_the_former() {
    let (mut scene, granted) = scene();
    let mut mesh = scene.receiver();
    let first = scene.member(&granted, 1, &node(1));
    mesh.handle_member(&first).unwrap();
    let before = Knowledge::of(&mesh);
    let same = before.clone().with_ledger(&mesh).with_members(&mesh);
    assert!(Arc::ptr_eq(&before.entries, &same.entries));
    assert!(Arc::ptr_eq(&before.members, &same.members));
    mesh.handle_member(&scene.member(&granted, 2, &node(2)))
        .unwrap();
    scene.revoke(&[node(9).public()]);
    scene.tell(&mut mesh);
    let after = before.clone().with_ledger(&mesh).with_members(&mesh);
    assert_eq!(after, Knowledge::of(&mesh));
    let of = |knowledge: &Knowledge| knowledge.members[&node(1).public()].1.clone();
    assert!(Arc::ptr_eq(&of(&before), &of(&after)));
}
