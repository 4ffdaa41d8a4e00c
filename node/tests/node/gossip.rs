//! What other gateways hand over, and what they are told.

use std::sync::Arc;

use node::follow::Cause;
use proto::control::Handover;
use proto::entry::Uses;
use proto::ledger::Standing;

use crate::follow::{Home, until, until_seen};
use crate::scratch::Scratch;
use crate::with_broker::{Running, follow_from, join_as, sees};
use crate::world::World;

#[tokio::test]
async fn a_revocation_handed_over_is_shown_kept_and_told_to_the_broker() {
    let mut home = Home::new().await;
    let (_, other) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![other.member(1)], 1);
    let handle = home.follow();
    until(&handle, |view| view.peers.len() == 1).await;
    let entry = home.world.revoke(vec![other.key()]).bytes().to_vec();
    assert!(handle.hand_in(Handover {
        entries: vec![entry.clone()],
        members: vec![],
    }));
    let view = until(&handle, |view| view.peers.is_empty()).await;
    assert_eq!(view.knowledge.heads, *view.heads);
    assert!(view.knowledge.members.is_empty());
    until_seen(&home.broker, |seen| seen.entries.contains(&entry)).await;
    handle.stop().await;
    home.broker.script(|script| script.hung = true);
    home.broker.cut();
    let again = home.follow();
    assert!(again.view().borrow().peers.is_empty());
    assert_eq!(again.view().borrow().knowledge, view.knowledge);
}

#[tokio::test]
async fn a_newer_record_handed_over_is_taken_and_an_older_one_of_the_store_is_no_replay() {
    let mut home = Home::new().await;
    let (_, other) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![other.member(1)], 1);
    let handle = home.follow();
    let before = until(&handle, |view| view.peers.len() == 1).await;
    handle.hand_in(Handover {
        entries: vec![],
        members: vec![other.member(5)],
    });
    let view = until(&handle, |view| {
        view.knowledge.records != before.knowledge.records
    })
    .await;
    assert_eq!(view.peers[&other.key()].node.record.sequence, 5);
    assert_eq!(view.knowledge.members[&other.key()].0, 5);
    home.broker
        .push(crate::double::delta(vec![other.member(2)], 2));
    home.broker
        .push(crate::double::delta(vec![other.member(6)], 3));
    let view = until(&handle, |view| {
        view.peers[&other.key()].node.record.sequence == 6
    })
    .await;
    assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
}

#[tokio::test]
async fn who_hands_over_lies_changes_nothing_and_is_soon_not_listened_to() {
    let mut home = Home::new().await;
    let (granted, other) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![other.member(1)], 1);
    let handle = home.follow();
    let before = until(&handle, |view| view.peers.len() == 1).await;
    let mut forged_entry = home.world.revoke(vec![other.key()]).bytes().to_vec();
    *forged_entry.last_mut().unwrap() ^= 1;
    let stranger = World::seeded(7).other(&granted, 1, "stranger");
    let mut forged = other.member(9);
    *forged.last_mut().unwrap() ^= 1;
    let lies = Handover {
        entries: vec![forged_entry, b"no entry".to_vec()],
        members: (0..200)
            .map(|_| forged.clone())
            .chain([stranger.member(1), other.member(7)])
            .collect(),
    };
    assert!(handle.hand_in(lies));
    let view = until(&handle, |view| view.refused.total() >= 32).await;
    assert!(
        view.refused.count(Cause::Forged) >= 30,
        "{:?}",
        view.refused
    );
    // What came after the lies was not looked at, and nothing has changed.
    handle.hand_in(Handover::default());
    handle.hand_in(Handover {
        entries: vec![],
        members: vec![other.member(2)],
    });
    let view = until(&handle, |view| {
        view.knowledge.records != before.knowledge.records
    })
    .await;
    assert_eq!(view.peers[&other.key()].node.record.sequence, 2);
    assert_eq!(view.refused.total(), 32);
    assert_eq!(view.standing, Standing::Good);
    assert_eq!(view.problems, before.problems);
    assert!(Arc::ptr_eq(
        &view.knowledge.entries,
        &before.knowledge.entries
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_of_one_broker_have_one_digest_and_are_told_where_they_can_ask_for_theirs() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let grants = [
        world.grant("paris", "10.1.0.0/16", Uses::AtMost(1)),
        world.grant("rome", "10.2.0.0/16", Uses::AtMost(1)),
    ];
    let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let mut handles = Vec::new();
    let mut keys = Vec::new();
    for (granted, site) in grants.iter().zip(["paris", "rome"]) {
        let directory = scratch.path().join(site);
        let joined = join_as(&directory, &broker.token(&world, granted), "gate").await;
        keys.push(joined.unwrap().identity);
        handles.push(follow_from(&directory).await);
    }
    let paris = until(&handles[0], |view| sees(view, &keys[1..])).await;
    let rome = until(&handles[1], |view| sees(view, &keys[..1])).await;
    assert_eq!(paris.knowledge.records, rome.knowledge.records);
    assert_eq!(paris.knowledge.members.len(), 2);

    let mut reflector = handles[0].reflector();
    let first = reflector.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(
        first.as_ref().unwrap().addresses[0].to_string(),
        broker.at()
    );
    let address = broker.at();
    drop(broker);
    reflector.wait_for(Option::is_none).await.unwrap();
    let _broker = Running::start(scratch.path(), &world, &address);
    let renewed = reflector.wait_for(Option::is_some).await.unwrap().clone();
    assert_ne!(renewed, first, "a session ends with its broker");
}
