//! Brokers with stores of their own, as they ship: a node follows them all.

use std::path::PathBuf;
use std::time::Duration;

use node::follow::{BrokerState, Handle, Problem, StoreName, View};
use node::leave::leave;
use node::session::Session;
use proto::entry::{Body, GrantRole, StoreId, Uses};
use proto::key::{PublicKey, SigningKey};
use proto::ledger::Standing;
use proto::message::{NodeStatus, Refusal};
use proto::record::{Member, SignedRecord};

use crate::follow::until;
use crate::scratch::Scratch;
use crate::with_broker::{Running, follow_from, join_as, sees};
use crate::world::{Granted, STORE, World, name};

const NORTH: StoreName = StoreName::Known(STORE);
const SOUTH_STORE: StoreId = StoreId([6; 16]);
const SOUTH: StoreName = StoreName::Known(SOUTH_STORE);

/// Two brokers that know nothing of each other but what the ledger says, and a site for each whose
/// token names that broker alone.
struct Pair {
    world: World,
    south_key: SigningKey,
    north: Option<Running>,
    south: Option<Running>,
    paris: Granted,
    rome: Granted,
    scratch: Scratch,
}

impl Pair {
    fn new() -> Pair {
        let scratch = Scratch::new();
        let mut world = World::new();
        let south_key = SigningKey::from_seed(&[66; 32]);
        for broker in ["north", "south"] {
            std::fs::create_dir(scratch.path().join(broker)).unwrap();
        }
        world.add_broker_of(SOUTH_STORE, south_key.public(), Vec::new());
        let north = Running::start(&scratch.path().join("north"), &world, "127.0.0.1:0");
        let south = Running::start_as(
            &scratch.path().join("south"),
            &world,
            (&south_key, SOUTH_STORE),
            "127.0.0.1:0",
        );
        let added = [
            (STORE, north.key, north.at()),
            (SOUTH_STORE, south.key, south.at()),
        ];
        for (store, key, at) in added {
            world.add_broker_of(store, key, vec![at]);
        }
        let mut grant = |store, site, prefix: &str| {
            let of = (name(site), prefix.parse().unwrap());
            world.grant_of(store, of, Uses::AtMost(3), GrantRole::Any)
        };
        let paris = grant(STORE, "paris", "10.1.0.0/16");
        let rome = grant(SOUTH_STORE, "rome", "10.2.0.0/16");
        Pair {
            world,
            south_key,
            north: Some(north),
            south: Some(south),
            paris,
            rome,
            scratch,
        }
    }

    fn north(&self) -> &Running {
        self.north.as_ref().unwrap()
    }

    fn south(&self) -> &Running {
        self.south.as_ref().unwrap()
    }

    fn dir(&self, node: &str) -> PathBuf {
        self.scratch.path().join(node)
    }

    /// A node that was told of one broker; of the other it knows by the ledger.
    async fn node(&self, node: &str) -> (PublicKey, Handle) {
        let (broker, granted) = match node {
            "paris" => (self.north(), &self.paris),
            "rome" => (self.south(), &self.rome),
            other => panic!("no site for {other}"),
        };
        broker.put(&self.world).await;
        let token = broker.token(&self.world, granted);
        let joined = join_as(&self.dir(node), &token, "gate").await.unwrap();
        (joined.identity, follow_from(&self.dir(node)).await)
    }

    /// Paris and rome, who see each other and follow both stores.
    async fn both(&self) -> [(PublicKey, Handle); 2] {
        // The other broker learns of the second address and of the grants from the nodes.
        let paris = self.node("paris").await;
        let rome = self.node("rome").await;
        until(&paris.1, |view| is_settled(view, rome.0)).await;
        until(&rome.1, |view| is_settled(view, paris.0)).await;
        [paris, rome]
    }
}

fn is_settled(view: &View, other: PublicKey) -> bool {
    sees(view, &[other]) && is_connected(view, NORTH) && is_connected(view, SOUTH)
}

fn is_connected(view: &View, store: StoreName) -> bool {
    let mut stores = view.stores.iter().filter(|view| view.store == store);
    stores
        .any(|view| matches!(view.state, BrokerState::Connected { .. }) && view.last_sync.is_some())
}

fn is_lost(view: &View, store: StoreName) -> bool {
    let lost = |problem: &Problem| matches!(problem, Problem::StoreLost { store: named, .. } if *named == store);
    !is_connected(view, store) && view.problems.iter().any(lost)
}

async fn listed(broker: &Running, world: &World) -> Vec<(PublicKey, u64)> {
    let connected = Session::connect(&broker.at(), broker.key, world.mesh()).await;
    let (mut session, _) = connected.unwrap();
    session
        .authenticate_authority(&world.authority)
        .await
        .unwrap();
    let nodes = session.list_nodes().await.unwrap();
    session.close().await;
    let of = |status: &NodeStatus| {
        let member = Member::read(&status.member).unwrap();
        let record = SignedRecord::read(&member.record).unwrap();
        (record.record().identity, record.record().sequence)
    };
    nodes.iter().map(of).collect()
}

/// Both brokers list these, each with what the other has.
async fn until_both_list(pair: &Pair, count: usize) {
    let alike = async {
        loop {
            let north = listed(pair.north(), &pair.world).await;
            let south = listed(pair.south(), &pair.world).await;
            if north == south && north.len() == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), alike)
        .await
        .expect("one of the brokers lacks a record");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_enrolled_at_different_stores_see_each_other() {
    let pair = Pair::new();
    let [paris, rome] = pair.both().await;
    // Each store took the record that the other store's broker had counted.
    until_both_list(&pair, 2).await;
    for (_, handle) in [&paris, &rome] {
        let view = until(handle, |view| view.problems.is_empty()).await;
        assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
        assert!(matches!(view.broker, BrokerState::Connected { .. }));
        assert_eq!(view.stores.len(), 2);
    }
    for (_, handle) in [paris, rome] {
        handle.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_broker_down_all_nodes_remain_and_changes_go_on_through_the_other() {
    let mut pair = Pair::new();
    let [paris, rome] = pair.both().await;
    let south_at = pair.south().at();
    drop(pair.south.take());
    for (_, handle) in [&paris, &rome] {
        let view = until(handle, |view| is_lost(view, SOUTH)).await;
        assert_eq!(view.peers.len(), 1);
        assert!(matches!(view.broker, BrokerState::Connected { .. }));
    }
    // Rome's own store is down; what it says reaches paris all the same.
    let mut moved = crate::world::presence(
        rome.1.node().wireguard.public(),
        vec!["192.0.2.99:51820".parse().unwrap()],
    );
    rome.1.publish(moved.clone()).await;
    until(&paris.1, |view| {
        view.peers[&rome.0].candidates == moved.candidates
    })
    .await;
    // It starts from what it knows, with each store in its own state, and the store that comes
    // back is brought what it has missed.
    rome.1.stop().await;
    let again = follow_from(&pair.dir("rome")).await;
    until(&again, |view| {
        sees(view, &[paris.0]) && is_lost(view, SOUTH)
    })
    .await;
    let south = Running::start_as(
        &pair.dir("south"),
        &pair.world,
        (&pair.south_key, SOUTH_STORE),
        &south_at,
    );
    pair.south = Some(south);
    moved.region = "south".to_owned();
    again.publish(moved).await;
    until(&again, |view| is_settled(view, paris.0)).await;
    until(&paris.1, |view| is_settled(view, rome.0)).await;
    until_both_list(&pair, 2).await;
    for handle in [again, paris.1] {
        let view = until(&handle, |view| view.problems.is_empty()).await;
        assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
        handle.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_handed_to_one_store_reaches_the_other_through_the_nodes() {
    let mut pair = Pair::new();
    let [paris, rome] = pair.both().await;
    let third = pair.scratch.path().join("third");
    let token = pair.north().token(&pair.world, &pair.paris);
    let third_key = join_as(&third, &token, "second").await.unwrap().identity;
    let third = follow_from(&third).await;
    until(&rome.1, |view| sees(view, &[paris.0, third_key])).await;
    pair.world.revoke(vec![third_key]);
    pair.north().put(&pair.world).await;
    until(&rome.1, |view| sees(view, &[paris.0])).await;
    until(&third, |view| {
        view.standing == Standing::Revoked
            || view.problems.iter().any(|problem| {
                matches!(
                    problem,
                    Problem::NotTaken {
                        refusal: Refusal::Revoked,
                        ..
                    }
                )
            })
    })
    .await;
    let heads = pair.world.ledger.heads();
    let south_has_it = async {
        loop {
            let connected =
                Session::connect(&pair.south().at(), pair.south().key, pair.world.mesh()).await;
            let (mut session, _) = connected.unwrap();
            let authority = &pair.world.authority;
            session.authenticate_authority(authority).await.unwrap();
            let fetched = session.fetch_ledger(&[]).await.unwrap();
            if fetched.heads == heads {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), south_has_it)
        .await
        .expect("nobody told the other broker");
    for handle in [paris.1, rome.1, third] {
        handle.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_conversation_with_a_broker_that_the_ledger_removes_ends() {
    let mut pair = Pair::new();
    let [paris, rome] = pair.both().await;
    let key = pair.south().key;
    pair.world.sign(Body::BrokerRemoved { key });
    pair.north().put(&pair.world).await;
    for (_, handle) in [&paris, &rome] {
        let view = until(handle, |view| view.stores.len() == 1).await;
        assert!(is_connected(&view, NORTH));
        assert_eq!(view.peers.len(), 1, "what it has counted stays counted");
    }
    // A broker that comes is followed at once.
    let (store, at) = (StoreId([7; 16]), pair.south().at());
    pair.world.add_broker_of(store, key, vec![at]);
    pair.north().put(&pair.world).await;
    for (_, handle) in [&paris, &rome] {
        let view = until(handle, |view| is_connected(view, StoreName::Known(store))).await;
        assert!(view.problems.is_empty(), "{:?}", view.problems);
    }
    for (_, handle) in [paris, rome] {
        handle.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_held_at_one_store_is_held_at_the_other() {
    let pair = Pair::new();
    let [paris, rome] = pair.both().await;
    until_both_list(&pair, 2).await;
    let rival = pair.scratch.path().join("rival");
    let token = pair.south().token(&pair.world, &pair.rome);
    join_as(&rival, &token, "gate").await.unwrap();
    let rival = follow_from(&rival).await;
    let taken = |problem: &&Problem| matches!(problem, Problem::NameTaken { .. });
    until(&rival, |view| {
        view.problems.iter().filter(taken).count() == 2
    })
    .await;
    assert!(sees(&paris.1.view().borrow(), &[rome.0]));
    // And free again at both, once its holder has left.
    rome.1.stop().await;
    leave(&pair.dir("rome")).await.unwrap();
    let view = until(&rival, |view| {
        !view.problems.iter().any(|problem| taken(&problem))
    })
    .await;
    assert!(view.problems.is_empty(), "{:?}", view.problems);
    until(&paris.1, |view| sees(view, &[view_key(&rival)])).await;
    for handle in [rival, paris.1] {
        handle.stop().await;
    }
}

fn view_key(handle: &Handle) -> PublicKey {
    handle.node().identity_key()
}
