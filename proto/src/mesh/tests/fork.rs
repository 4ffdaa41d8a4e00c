//! A ledger that was signed twice, settled, or recovered from a thief.

use super::scene::{
    STORE, Scene, authority, closing, events, grant_for, identities, key, node, recovery,
    revocation,
};
use crate::entry::{Body, Broker, Entry, SignedEntry, Uses};
use crate::key::Domain;
use crate::key::Hash;
use crate::mesh::{Event, MemberRefusal, Mesh, Problem};

fn sign_after(
    parent: &SignedEntry,
    number: u64,
    body: Body,
    signer: &crate::key::SigningKey,
) -> SignedEntry {
    Entry {
        number,
        previous: parent.hash(),
        issued: 0,
        body,
    }
    .sign(signer)
}

/// Sites paris (below the split) and london (above it, on the first branch); the other branch has
/// this body.
fn forked(
    other: impl FnOnce(&super::scene::Granted) -> Body,
) -> (Scene, [super::scene::Granted; 2], SignedEntry) {
    let mut scene = Scene::new();
    let below = scene.grant("paris", Uses::Unlimited);
    let split = scene.entries.last().unwrap().clone();
    let above = scene.grant("london", Uses::Unlimited);
    let other = scene.after(&split, other(&below));
    (scene, [below, above], other)
}

fn put(mesh: &mut Mesh, entry: &SignedEntry) {
    mesh.handle_entry(entry.bytes()).unwrap();
}

#[test]
fn a_fork_quarantines_what_is_above_it_until_it_is_settled() {
    let (scene, [below, above], other) =
        forked(|_| Body::Grant(grant_for("rome", Uses::Unlimited, 50)));
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&below, 0, &node(1)))
        .unwrap();
    mesh.handle_member(&scene.member(&above, 0, &node(2)))
        .unwrap();
    events(&mut mesh);

    put(&mut mesh, &other);
    assert_eq!(identities(&mesh), [node(1).public()]);
    assert!(events(&mut mesh).contains(&Event::NodeHidden(node(2).public())));
    assert!(matches!(mesh.problems()[0], Problem::Fork { .. }));
    assert_eq!(
        mesh.handle_member(&scene.member(&above, 0, &node(2))),
        Err(MemberRefusal::Quarantined)
    );
    let late = scene.member(&above, 1, &node(3));
    assert_eq!(mesh.handle_member(&late), Err(MemberRefusal::Quarantined));

    let kept = scene.entries.last().unwrap();
    let settlement = sign_after(
        kept,
        kept.entry().number + 1,
        Body::Settlement {
            other: other.hash(),
        },
        &authority(),
    );
    put(&mut mesh, &settlement);
    // Also the one that was only ever shown while it was quarantined.
    assert_eq!(identities(&mesh).len(), 3);
    assert!(mesh.problems().is_empty(), "{:?}", mesh.problems());
}

#[test]
fn a_revocation_on_either_branch_of_a_fork_holds() {
    let (scene, [below, _], other) = forked(|_| revocation(&[node(1).public()]));
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&below, 0, &node(1)))
        .unwrap();
    events(&mut mesh);
    put(&mut mesh, &other);
    assert_eq!(identities(&mesh), []);
    assert_eq!(events(&mut mesh)[0], Event::NodeRevoked(node(1).public()));
}

#[test]
fn a_closing_on_an_abandoned_branch_still_holds() {
    let (scene, [below, _], other) = forked(|below| closing(below, &[node(1).public()]));
    let mut mesh = scene.receiver();
    for number in 1..=2 {
        mesh.handle_member(&scene.member(&below, number, &node(number)))
            .unwrap();
    }
    put(&mut mesh, &other);
    let kept = scene.entries.last().unwrap();
    let settlement = sign_after(
        kept,
        kept.entry().number + 1,
        Body::Settlement {
            other: other.hash(),
        },
        &authority(),
    );
    put(&mut mesh, &settlement);
    assert_eq!(identities(&mesh), [node(1).public()]);
}

#[test]
fn a_node_counted_by_a_broker_above_the_split_is_out_whenever_it_came() {
    let mut scene = Scene::new();
    let below = scene.grant("paris", Uses::Unlimited);
    let split = scene.entries.last().unwrap().clone();
    scene.append(Body::Broker(Broker {
        key: key(9).public(),
        store: STORE,
        addresses: vec![],
    }));
    let other = scene.after(&split, revocation(&[key(99).public()]));
    let enrolment = scene.enrol_at(&key(9), &below, 0, &node(1));
    let member = super::scene::member(&enrolment, scene.record("paris", &node(1), 1), &node(1));

    let mut early = scene.receiver();
    early.handle_member(&member).unwrap();
    put(&mut early, &other);
    let mut late = scene.receiver();
    put(&mut late, &other);
    late.handle_member(&member).unwrap_err();
    assert_eq!(identities(&early), []);
    assert_eq!(identities(&late), []);
    assert_eq!(
        early.handle_member(&member),
        Err(MemberRefusal::ForeignBroker(key(9).public()))
    );
}

#[test]
fn a_recovery_ends_what_a_thief_of_the_authoritys_key_has_signed() {
    let mut scene = Scene::new();
    let grant = scene.grant("paris", Uses::Unlimited);
    let split = scene.entries.last().unwrap().clone();
    let mut mesh = scene.receiver();
    mesh.handle_member(&scene.member(&grant, 0, &node(1)))
        .unwrap();

    // The thief revokes a good node and adds a site of his own.
    let theft = scene.after(&split, revocation(&[node(1).public()]));
    let thiefs = scene.after(&theft, Body::Grant(grant_for("thief", Uses::Unlimited, 70)));
    put(&mut mesh, &theft);
    put(&mut mesh, &thiefs);
    assert_eq!(identities(&mesh), []);

    let recovered = sign_after(
        &split,
        split.entry().number + 1,
        Body::Authority {
            recovery: recovery().public(),
            authority: key(20).public(),
            next_recovery: Hash::of(Domain::RecoveryKey, key(21).public().as_bytes()),
        },
        &recovery(),
    );
    events(&mut mesh);
    put(&mut mesh, &recovered);
    assert_eq!(identities(&mesh), [node(1).public()]);
    assert!(events(&mut mesh).contains(&Event::NodeChanged(node(1).public())));
    assert!(mesh.charter().grant(&thiefs.hash()).is_none());
    assert!(mesh.problems().is_empty());

    // What he signs later says nothing either.
    put(
        &mut mesh,
        &scene.after(&thiefs, revocation(&[node(1).public()])),
    );
    assert_eq!(identities(&mesh), [node(1).public()]);
    // The new authority does.
    let revoked = sign_after(
        &recovered,
        recovered.entry().number + 1,
        revocation(&[node(1).public()]),
        &key(20),
    );
    put(&mut mesh, &revoked);
    assert_eq!(identities(&mesh), []);
}
