//! Nothing signed survives the change of a single bit.

use super::scene::{Scene, identities, node};
use crate::enrolment::Enrolment;
use crate::entry::Uses;
use crate::mesh::Mesh;
use crate::record::Member;

/// Every copy of `bytes` with one bit changed.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut changed = bytes.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
}

#[test]
fn a_member_with_any_bit_of_its_record_flipped_is_refused() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let member = scene.member(&grant, 0, &node(1));
    let mut mesh = scene.receiver();
    for record in flips(&member.record) {
        let changed = Member {
            record,
            ..member.clone()
        };
        mesh.check_member(&changed).unwrap_err();
        mesh.handle_member(&changed).unwrap_err();
    }
    assert!(identities(&mesh).is_empty());
    mesh.handle_member(&member).unwrap();
}

#[test]
fn a_member_with_any_bit_of_its_enrolment_flipped_is_refused_even_when_the_true_one_is_known() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let member = scene.member(&grant, 0, &node(1));
    let newer = scene.member_at(&grant, 0, &node(1), 2);
    let mut mesh = scene.receiver();
    mesh.handle_member(&member).unwrap();
    for enrolment in flips(&member.enrolment) {
        let changed = Member {
            enrolment: enrolment.clone(),
            record: newer.record.clone(),
        };
        mesh.check_member(&changed).unwrap_err();
        mesh.handle_member(&changed).unwrap_err();
        if let Ok(enrolment) = Enrolment::read(&enrolment) {
            mesh.check_enrolment(&enrolment).unwrap_err();
        }
    }
    assert_eq!(mesh.sequence(&node(1).public()), Some(1));
    mesh.handle_member(&newer).unwrap();
}

#[test]
fn a_ledger_entry_with_any_bit_flipped_is_refused() {
    let mut scene = Scene::new();
    scene.grant("paris", Uses::AtMost(2));
    let (last, before) = scene.entries.split_last().unwrap();
    let mut mesh = Mesh::new(scene.mesh, None);
    for entry in before {
        mesh.handle_entry(entry.bytes()).unwrap();
    }
    for changed in flips(last.bytes()) {
        mesh.handle_entry(&changed).unwrap_err();
    }
    mesh.handle_entry(last.bytes()).unwrap();
    for changed in flips(last.bytes()) {
        mesh.handle_entry(&changed).unwrap_err();
    }
}

#[test]
fn the_first_entry_with_any_bit_flipped_is_refused() {
    let scene = Scene::new();
    let mut mesh = Mesh::new(scene.mesh, None);
    for changed in flips(scene.entries[0].bytes()) {
        mesh.handle_entry(&changed).unwrap_err();
    }
    mesh.handle_entry(scene.entries[0].bytes()).unwrap();
}

#[test]
fn a_member_that_is_cut_or_grown_anywhere_is_refused() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::AtMost(2));
    let member = scene.member(&grant, 0, &node(1));
    let mut mesh = scene.receiver();
    for length in 0..member.record.len() {
        let mut changed = member.clone();
        changed.record.truncate(length);
        mesh.handle_member(&changed).unwrap_err();
    }
    for length in 0..member.enrolment.len() {
        let mut changed = member.clone();
        changed.enrolment.truncate(length);
        mesh.handle_member(&changed).unwrap_err();
    }
    let mut grown = member.clone();
    grown.record.push(0);
    mesh.handle_member(&grown).unwrap_err();
    let mut grown = member;
    grown.enrolment.push(0);
    mesh.handle_member(&grown).unwrap_err();
}
