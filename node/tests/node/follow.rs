//! Following brokers: what is shown, what is kept, and what happens when brokers go.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use node::follow::{self, BrokerState, FollowError, Handle, Options, Problem, Timing, View};
use node::join;
use node::leave::{LeaveError, leave};
use node::state::{StateDir, StateError};
use proto::entry::{Body, GrantRole, Role, Uses};
use proto::key::{PublicKey, SigningKey};
use proto::message::{Position, Push, Refusal};
use proto::record::{Member, SignedRecord};

use crate::double::{Double, Script, Sent, delta, entries, snapshot};
use crate::scratch::Scratch;
use crate::world::{Granted, Other, World, name, presence};

/// Nothing here waits for less than this, however slow the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A mesh, a broker and this node in its site "home".
pub(crate) struct Home {
    pub(crate) world: World,
    pub(crate) broker: Double,
    pub(crate) granted: Granted,
    pub(crate) scratch: Scratch,
    pub(crate) timing: Timing,
}

impl Home {
    pub(crate) async fn new() -> Home {
        Home::with_role(GrantRole::Any).await
    }

    async fn with_role(role: GrantRole) -> Home {
        let scratch = Scratch::new();
        let mut world = World::new();
        let granted = world.grant_role("home", "10.9.0.0/16", Uses::AtMost(1), role);
        let broker = Double::start(&world.broker, Script::honest(&world.ledger)).await;
        let token = world.token(&granted, &[(&broker.at(), broker.key)]);
        let options = join::Options {
            token: Some(token),
            state_dir: scratch.state(),
            node: Some(name("here")),
            region: String::new(),
            zone: String::new(),
            via: None,
        };
        join::join(options, &mut |_| {}).await.unwrap();
        let timing = Timing {
            back_off: (Duration::from_millis(20), Duration::from_millis(100)),
            republish: Duration::from_millis(100),
            ..Timing::default()
        };
        Home {
            world,
            broker,
            granted,
            scratch,
            timing,
        }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.scratch.state()
    }

    pub(crate) fn follow(&self) -> Handle {
        self.start(Role::Gateway).unwrap()
    }

    fn start(&self, role: Role) -> Result<Handle, FollowError> {
        let state = StateDir::open(&self.state()).unwrap();
        follow::start(
            &state,
            Options {
                role,
                timing: self.timing,
                fwmark: None,
            },
        )
    }

    /// A site with one node that the broker lists.
    pub(crate) fn neighbour(&mut self, site: &str, prefix: &str) -> (Granted, Other) {
        let granted = self.world.grant(site, prefix, Uses::AtMost(2));
        let other = self.world.other(&granted, 0, "gate");
        self.serve();
        (granted, other)
    }

    /// The broker has the ledger as it is now.
    pub(crate) fn serve(&self) {
        let ledger = self.world.entries();
        self.broker.script(|script| script.ledger = ledger);
    }

    pub(crate) fn list(&self, members: Vec<Vec<u8>>, revision: u64) {
        let pushed = Sent::Push(snapshot(members, revision));
        self.broker.script(|script| script.on_watch = vec![pushed]);
    }
}

pub(crate) async fn until(handle: &Handle, wanted: impl Fn(&View) -> bool) -> Arc<View> {
    let mut view = handle.view();
    let waited = tokio::time::timeout(PATIENCE, view.wait_for(|view| wanted(view))).await;
    match waited {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!(
            "not within {PATIENCE:?}; the last view: {:#?}",
            handle.view().borrow()
        ),
    }
}

pub(crate) async fn until_seen(broker: &Double, wanted: impl Fn(&crate::double::Seen) -> bool) {
    let looked = async {
        while !broker.seen(&wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looked)
        .await
        .expect("it was never seen");
}

fn connected(view: &View) -> bool {
    matches!(view.broker, BrokerState::Connected { .. })
}

fn keys(view: &View) -> Vec<PublicKey> {
    view.peers.keys().copied().collect()
}

fn sequences(broker: &Double) -> Vec<u64> {
    broker.seen(|seen| {
        seen.published
            .iter()
            .map(|(sequence, _)| *sequence)
            .collect()
    })
}

pub(crate) fn ours(handle: &Handle) -> proto::record::Presence {
    presence(
        handle.node().wireguard.public(),
        vec!["192.0.2.1:51820".parse().unwrap()],
    )
}

fn corrupt(path: &Path, number: usize) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[number].push('x');
    std::fs::write(path, lines.join("\n") + "\n").unwrap();
}

#[tokio::test]
async fn nodes_appear_change_say_goodbye_and_are_revoked_at_once() {
    let mut home = Home::new().await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    let (_, rome) = home.neighbour("rome", "10.2.0.0/16");
    home.list(vec![paris.member(1)], 1);
    let handle = home.follow();
    until(&handle, |view| keys(view) == [paris.key()]).await;
    home.broker.push(delta(vec![rome.member(1)], 2));
    let view = until(&handle, |view| view.peers.len() == 2).await;
    assert!(connected(&view) && view.last_sync.is_some());
    assert_eq!(view.prefixes.len(), 3);
    home.broker.push(delta(vec![rome.withdrawal(2)], 3));
    until(&handle, |view| keys(view) == [paris.key()]).await;
    let revoked = home.world.revoke(vec![paris.key()]);
    home.broker.push(entries(vec![revoked.bytes().to_vec()], 4));
    let view = until(&handle, |view| view.peers.is_empty()).await;
    assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
    handle.stop().await;
}

#[tokio::test]
async fn of_a_closed_grant_those_stay_that_the_entry_lists() {
    let mut home = Home::new().await;
    let (granted, kept) = home.neighbour("paris", "10.1.0.0/16");
    let gone = home.world.other(&granted, 1, "second");
    home.list(vec![kept.member(1), gone.member(1)], 1);
    let handle = home.follow();
    until(&handle, |view| view.peers.len() == 2).await;
    let closed = home.world.close(granted.entry.hash(), vec![kept.key()]);
    home.broker.push(entries(vec![closed.bytes().to_vec()], 2));
    until(&handle, |view| keys(view) == [kept.key()]).await;
    handle.stop().await;
}

#[tokio::test]
async fn what_was_verified_is_shown_at_once_with_the_broker_down_and_resumed_from() {
    let mut home = Home::new().await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![paris.member(3)], 7);
    let handle = home.follow();
    until(&handle, |view| {
        !view.peers.is_empty() && view.last_sync.is_some()
    })
    .await;
    handle.stop().await;
    home.broker.script(|script| script.hung = true);
    let handle = home.follow();
    let view = handle.view().borrow().clone();
    assert_eq!(keys(&view), [paris.key()]);
    assert_eq!(view.prefixes.len(), 2);
    assert!(
        matches!(view.broker, BrokerState::Cached { .. }),
        "{:?}",
        view.broker
    );
    // What is replayed now is older than what is remembered.
    home.broker.script(|script| {
        script.hung = false;
        script.on_watch = vec![Sent::Push(delta(vec![paris.member(2)], 8))];
    });
    home.broker.cut();
    let view = until(&handle, |view| view.refused.total() > 0).await;
    assert_eq!(view.refused.count(follow::Cause::Replayed), 1);
    assert_eq!(view.peers[&paris.key()].node.record.sequence, 3);
    let resumed = home
        .broker
        .seen(|seen| seen.watches.last().copied())
        .unwrap();
    assert_eq!(
        resumed,
        Some(Position {
            epoch: [9; 16],
            revision: 7
        })
    );
    handle.stop().await;
}

#[tokio::test]
async fn a_cache_with_a_damaged_line_costs_what_the_line_said_until_it_is_fetched_again() {
    let mut home = Home::new().await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    let (_, rome) = home.neighbour("rome", "10.2.0.0/16");
    home.list(vec![paris.member(3), rome.member(1)], 7);
    let handle = home.follow();
    until(&handle, |view| {
        view.peers.len() == 2 && view.last_sync.is_some()
    })
    .await;
    handle.stop().await;
    let cache = home.state().join("node/cache.journal");
    let text = std::fs::read_to_string(&cache).unwrap();
    let line = text
        .lines()
        .position(|line| line.contains(" member "))
        .unwrap();
    corrupt(&cache, line);
    home.broker.script(|script| script.hung = true);
    let handle = home.follow();
    let view = handle.view().borrow().clone();
    assert_eq!(view.peers.len(), 1);
    let damaged = |problem: &Problem| matches!(problem, Problem::CacheDamaged { lines: 1, .. });
    assert!(view.problems.iter().any(damaged), "{:?}", view.problems);
    handle.stop().await;
}

#[tokio::test]
async fn our_record_is_kept_before_it_is_sent_and_sent_again_with_the_same_number() {
    let home = Home::new().await;
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| !seen.published.is_empty()).await;
    home.broker.cut();
    until_seen(&home.broker, |seen| seen.published.len() >= 2).await;
    handle.stop().await;
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| seen.published.len() >= 3).await;
    assert!(
        sequences(&home.broker)
            .iter()
            .all(|sequence| *sequence == 1)
    );
    for (last, port) in [(2, 1), (3, 2)] {
        let mut moved = ours(&handle);
        moved.candidates[0].set_port(port);
        handle.publish(moved).await;
        until_seen(&home.broker, |seen| {
            seen.published
                .last()
                .is_some_and(|(number, _)| *number == last)
        })
        .await;
    }
    // Whoever has seen it can rely on its being on the disk here.
    let (_, sent) = home
        .broker
        .seen(|seen| seen.published.last().cloned())
        .unwrap();
    let cache = std::fs::read_to_string(home.state().join("node/cache.journal")).unwrap();
    assert!(cache.contains(&data_encoding::BASE64URL_NOPAD.encode(&sent)));
    handle.stop().await;
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| {
        seen.published
            .last()
            .is_some_and(|(number, _)| *number == 4)
    })
    .await;
    handle.stop().await;
}

#[tokio::test]
async fn a_directory_from_a_snapshot_signs_above_its_own_newer_record() {
    let home = Home::new().await;
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until_seen(&home.broker, |seen| !seen.published.is_empty()).await;
    // The same identity, further on: as it was before the snapshot was put back.
    let (_, first) = home.broker.seen(|seen| seen.published[0].clone());
    let member = Member::read(&first).unwrap();
    let mut record = SignedRecord::read(&member.record).unwrap().record().clone();
    record.sequence = 41;
    let newer = record.sign(&handle.node().identity);
    let newer = Member {
        record: newer.bytes().to_vec(),
        ..member
    }
    .write();
    home.broker.push(delta(vec![newer], 2));
    until_seen(&home.broker, |seen| {
        seen.published.iter().any(|(sequence, _)| *sequence == 42)
    })
    .await;
    handle.stop().await;
}

#[tokio::test]
async fn a_brokers_word_about_our_number_is_believed_only_so_far() {
    let home = Home::new().await;
    let latest = u64::MAX - 1;
    home.broker
        .script(|script| script.refuse_publish = Some(Refusal::OldSequence { latest }));
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    until(&handle, |view| !view.problems.is_empty()).await;
    home.broker
        .script(|script| script.refuse_publish = Some(Refusal::OldSequence { latest: 9 }));
    tokio::time::sleep(Duration::from_millis(300)).await;
    home.broker.script(|script| script.refuse_publish = None);
    until_seen(&home.broker, |seen| !seen.published.is_empty()).await;
    assert_eq!(sequences(&home.broker)[0], 10);
    until(&handle, |view| view.problems.is_empty()).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_name_that_another_holds_is_a_problem_until_it_is_free() {
    let home = Home::new().await;
    let holder = *SigningKey::from_seed(&[3; 32]).public().as_bytes();
    let taken = Refusal::NameTaken { holder, heard_s: 4 };
    home.broker
        .script(|script| script.refuse_publish = Some(taken));
    let handle = home.follow();
    handle.publish(ours(&handle)).await;
    let named = |problem: &Problem| matches!(problem, Problem::NameTaken { heard_s: 4, .. });
    until(&handle, |view| view.problems.iter().any(named)).await;
    home.broker.script(|script| script.refuse_publish = None);
    until(&handle, |view| view.problems.is_empty()).await;
    assert_eq!(sequences(&home.broker), [1]);
    handle.stop().await;
}

#[tokio::test]
async fn a_broker_is_handed_the_entries_it_lacks() {
    let mut home = Home::new().await;
    let handle = home.follow();
    until(&handle, connected).await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    let revoked = home.world.revoke(vec![paris.key()]);
    let new: Vec<Vec<u8>> = home.world.entries().split_off(3);
    home.broker.push(entries(new.clone(), 2));
    until(&handle, |view| view.heads[..] == [revoked.hash()]).await;
    let short = home.world.entries()[..3].to_vec();
    home.broker.script(|script| script.ledger = short);
    home.broker.cut();
    until_seen(&home.broker, |seen| seen.entries == new).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left_for_the_next() {
    let mut home = Home::new().await;
    home.timing.quiet = Duration::from_millis(200);
    home.timing.dead = Duration::from_millis(300);
    let second_key = SigningKey::from_seed(&[44; 32]);
    let second = Double::start(&second_key, Script::honest(&home.world.ledger)).await;
    home.world
        .add_broker(second_key.public(), vec![second.at()]);
    home.serve();
    let ledger = home.world.entries();
    second.script(|script| script.ledger = ledger);
    let handle = home.follow();
    let at = |address: String| {
        move |view: &View| {
            view.broker
                == BrokerState::Connected {
                    address: address.clone(),
                }
        }
    };
    until(&handle, connected).await;
    until(&handle, |view| view.brokers.len() == 2).await;
    // Whichever it is with falls silent; it goes to the other, and back.
    for (deaf, other) in [
        (&home.broker, &second),
        (&second, &home.broker),
        (&home.broker, &second),
    ] {
        deaf.script(|script| script.deaf = true);
        other.script(|script| script.deaf = false);
        until(&handle, at(other.at())).await;
    }
    handle.stop().await;
}

#[tokio::test]
async fn no_broker_keeps_a_node_to_itself_for_ever() {
    let mut home = Home::new().await;
    home.timing.relist = Duration::from_millis(200);
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    let second_key = SigningKey::from_seed(&[44; 32]);
    let second = Double::start(&second_key, Script::honest(&home.world.ledger)).await;
    home.world
        .add_broker(second_key.public(), vec![second.at()]);
    home.serve();
    let ledger = home.world.entries();
    // One withholds a record, as long as it is asked; the other is honest.
    second.script(|script| {
        script.ledger = ledger;
        script.on_watch = vec![Sent::Push(snapshot(vec![paris.member(1)], 1))];
    });
    let handle = home.follow();
    until(&handle, |view| view.peers.contains_key(&paris.key())).await;
    for broker in [&home.broker, &second] {
        let before = broker.seen(|seen| seen.watches.len());
        until_seen(broker, |seen| seen.watches.len() > before + 1).await;
    }
    handle.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_removed_is_left_and_one_that_comes_is_used() {
    let mut home = Home::new().await;
    let handle = home.follow();
    until(&handle, connected).await;
    let second_key = SigningKey::from_seed(&[44; 32]);
    let second = Double::start(&second_key, Script::honest(&home.world.ledger)).await;
    let added = home
        .world
        .add_broker(second_key.public(), vec![second.at()]);
    let removed = home.world.sign(Body::BrokerRemoved {
        key: home.broker.key,
    });
    let ledger = home.world.entries();
    second.script(|script| script.ledger = ledger);
    let new = [added, removed].map(|entry| entry.bytes().to_vec());
    home.broker.push(entries(new.to_vec(), 2));
    let there = BrokerState::Connected {
        address: second.at(),
    };
    until(&handle, |view| view.broker == there).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_broker_that_never_sends_all_it_has_is_left() {
    let mut home = Home::new().await;
    home.timing.caught_up = Duration::from_millis(300);
    let half = Push {
        caught_up: false,
        ..snapshot(Vec::new(), 1)
    };
    home.broker
        .script(|script| script.on_watch = vec![Sent::Push(half)]);
    let handle = home.follow();
    until_seen(&home.broker, |seen| seen.watches.len() >= 2).await;
    assert_eq!(handle.view().borrow().last_sync, None);
    handle.stop().await;
}

#[tokio::test]
async fn everything_is_asked_for_again_now_and_then_without_losing_touch() {
    let mut home = Home::new().await;
    home.timing.relist = Duration::from_millis(200);
    let handle = home.follow();
    until(&handle, connected).await;
    let states = tokio::spawn({
        let mut view = handle.view();
        async move {
            let mut lost = 0;
            while view.changed().await.is_ok() {
                lost += usize::from(!connected(&view.borrow()));
            }
            lost
        }
    });
    until_seen(&home.broker, |seen| seen.watches.len() >= 4).await;
    let resumed = home
        .broker
        .seen(|seen| seen.watches.iter().flatten().count());
    assert_eq!(resumed, 0);
    handle.stop().await;
    assert_eq!(states.await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_refused_for_want_of_its_grant_is_asked_for_again_once_that_is_here() {
    let mut home = Home::new().await;
    let handle = home.follow();
    until(&handle, |view| view.last_sync.is_some()).await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![paris.member(1)], 3);
    home.broker.push(delta(vec![paris.member(1)], 2));
    until(&handle, |view| view.refused.total() == 1).await;
    let grant = home.world.entries().pop().unwrap();
    home.broker.push(entries(vec![grant], 3));
    until(&handle, |view| keys(view) == [paris.key()]).await;
    handle.stop().await;
}

#[tokio::test]
async fn a_brokers_word_alone_removes_no_record() {
    let mut home = Home::new().await;
    let (_, paris) = home.neighbour("paris", "10.1.0.0/16");
    home.list(vec![paris.member(1)], 1);
    let handle = home.follow();
    until(&handle, |view| !view.peers.is_empty()).await;
    let forgotten = vec![*paris.key().as_bytes()];
    home.broker.push(Push {
        forgotten,
        ..delta(Vec::new(), 2)
    });
    home.broker.push(snapshot(Vec::new(), 3));
    let (_, rome) = home.neighbour("rome", "10.2.0.0/16");
    let new = home.world.entries().pop().unwrap();
    home.broker.push(Push {
        members: vec![rome.member(1)],
        ..entries(vec![new], 4)
    });
    let view = until(&handle, |view| view.peers.contains_key(&rome.key())).await;
    assert!(view.peers.contains_key(&paris.key()));
    handle.stop().await;
}

#[tokio::test]
async fn one_process_at_a_time_follows_as_one_node_and_in_a_role_it_has() {
    let home = Home::with_role(GrantRole::Agent).await;
    assert!(matches!(
        home.start(Role::Gateway),
        Err(FollowError::WrongRole { .. })
    ));
    let first = home.start(Role::Agent).unwrap();
    let second = home.start(Role::Agent);
    assert!(matches!(
        second,
        Err(FollowError::State(StateError::InUse(_)))
    ));
    let leaving = leave(&home.state()).await;
    assert!(matches!(
        leaving,
        Err(LeaveError::State(StateError::InUse(_)))
    ));
    first.stop().await;
    home.start(Role::Agent).unwrap().stop().await;
}
