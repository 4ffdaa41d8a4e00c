//! The same against the broker that ships.

use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use broker::directory::{About, New, StoreUrl, init};
use broker::run::{Options, serve};
use node::follow::{self, BrokerState, Handle, Problem, Timing, View};
use node::join::{JoinError, Joined, join};
use node::leave::leave;
use node::session::Session;
use node::state::StateDir;
use proto::entry::{Role, StoreId, Uses};
use proto::key::{PublicKey, SigningKey};
use proto::message::Refusal;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::follow::until;
use crate::scratch::Scratch;
use crate::world::{STORE, World, name, presence};

pub(crate) struct Running {
    address: SocketAddr,
    pub(crate) key: PublicKey,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// On the directory of an earlier one, if there was one.
    pub(crate) fn start(scratch: &Path, world: &World, listen: &str) -> Running {
        Running::start_as(scratch, world, (&world.broker, STORE), listen)
    }

    /// With another key, and a store of its own.
    pub(crate) fn start_as(
        scratch: &Path,
        world: &World,
        of: (&SigningKey, StoreId),
        listen: &str,
    ) -> Running {
        Running::start_with(scratch, world, of, (listen, true))
    }

    /// With a relay or without.
    pub(crate) fn start_with(
        scratch: &Path,
        world: &World,
        (key, store): (&SigningKey, StoreId),
        (listen, relay): (&str, bool),
    ) -> Running {
        let state = scratch.join("broker-state");
        if !state.exists() {
            std::fs::create_dir(&state).unwrap();
            let new = New {
                key: SigningKey::from_seed(&key.seed()),
                about: About {
                    mesh: Some(world.mesh()),
                    authority: world.authority.public(),
                    store_id: store,
                    store: StoreUrl::Redb,
                    authority_directory: None,
                },
                entries: world.ledger.entries().cloned().collect(),
            };
            init(&state, &new).unwrap();
        }
        let options = Options {
            runtime_directory: scratch.join("run"),
            state_directory: state,
            listen: listen.parse().unwrap(),
            store: None,
            etcd: Default::default(),
            http: None,
            relay,
        };
        let (told, ready) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let stopped = async {
                stopped.await.ok();
            };
            serve(
                options,
                |serving| told.send(serving.listen).unwrap(),
                stopped,
            )
            .unwrap();
        });
        Running {
            address: ready.recv().unwrap(),
            key: key.public(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn at(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn token(
        &self,
        world: &World,
        granted: &crate::world::Granted,
    ) -> Zeroizing<String> {
        world.token(granted, &[(&self.at(), self.key)])
    }

    /// As an operator's command does.
    pub(crate) async fn put(&self, world: &World) {
        let connected = Session::connect(&self.at(), self.key, world.mesh()).await;
        let (mut session, _) = connected.unwrap();
        session
            .authenticate_authority(&world.authority)
            .await
            .unwrap();
        session.put_ledger(world.ledger.entries()).await.unwrap();
        session.close().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

pub(crate) async fn join_as(
    state: &Path,
    token: &Zeroizing<String>,
    node: &str,
) -> Result<Joined, JoinError> {
    let options = node::join::Options {
        token: Some(token.clone()),
        state_dir: state.to_owned(),
        node: Some(name(node)),
        region: String::new(),
        zone: String::new(),
        via: None,
    };
    join(options, &mut |_| {}).await
}

pub(crate) async fn follow_from(state: &Path) -> Handle {
    let state = StateDir::open(state).unwrap();
    let timing = Timing {
        republish: std::time::Duration::from_millis(500),
        ..Timing::default()
    };
    let options = follow::Options {
        role: Role::Gateway,
        timing,
        fwmark: None,
    };
    let handle = follow::start(&state, options).unwrap();
    let candidate = "192.0.2.1:51820".parse().unwrap();
    let own = presence(handle.node().wireguard.public(), vec![candidate]);
    handle.publish(own).await;
    handle
}

pub(crate) fn sees(view: &View, keys: &[PublicKey]) -> bool {
    view.peers.len() == keys.len() && keys.iter().all(|key| view.peers.contains_key(key))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_join_see_each_other_go_on_without_the_broker_and_part() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let grants = [
        world.grant("paris", "10.1.0.0/16", Uses::AtMost(1)),
        world.grant("rome", "10.2.0.0/16", Uses::AtMost(1)),
    ];
    let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let (paris_dir, rome_dir) = (scratch.path().join("paris"), scratch.path().join("rome"));
    let paris = join_as(&paris_dir, &broker.token(&world, &grants[0]), "gate")
        .await
        .unwrap();
    let rome = join_as(&rome_dir, &broker.token(&world, &grants[1]), "gate")
        .await
        .unwrap();
    let at_paris = follow_from(&paris_dir).await;
    let at_rome = follow_from(&rome_dir).await;
    until(&at_paris, |view| sees(view, &[rome.identity])).await;
    until(&at_rome, |view| sees(view, &[paris.identity])).await;
    // Down, and everything still known; back, and in touch again.
    let address = broker.at();
    drop(broker);
    until(&at_rome, |view| {
        matches!(view.broker, BrokerState::Cached { .. })
    })
    .await;
    assert!(sees(&at_rome.view().borrow(), &[paris.identity]));
    at_paris.stop().await;
    let broker = Running::start(scratch.path(), &world, &address);
    until(&at_rome, |view| {
        matches!(view.broker, BrokerState::Connected { .. })
    })
    .await;
    let left = leave(&paris_dir).await.unwrap();
    assert_eq!(left.identity, paris.identity);
    let view = until(&at_rome, |view| view.peers.is_empty()).await;
    assert_eq!(view.refused.total(), 0, "{:?}", view.refused);
    world.revoke(vec![rome.identity]);
    broker.put(&world).await;
    let revoked = |view: &View| view.standing == proto::ledger::Standing::Revoked;
    let refused = |view: &View| matches!(view.problems.first(), Some(Problem::NotTaken { .. }));
    until(&at_rome, |view| revoked(view) || refused(view)).await;
    at_rome.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_joins_with_a_one_use_token_one_wins_and_may_repeat_it() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("paris", "10.1.0.0/16", Uses::AtMost(1));
    let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let token = broker.token(&world, &granted);
    let mut joins = tokio::task::JoinSet::new();
    for number in 0..20 {
        let state = scratch.path().join(format!("node-{number}"));
        let token = token.clone();
        joins.spawn(async move { (join_as(&state, &token, "gate").await, state) });
    }
    let mut won = Vec::new();
    for (joined, state) in joins.join_all().await {
        match joined {
            Ok(joined) => won.push((joined, state)),
            Err(error) => {
                let used = matches!(
                    error.refusal(),
                    Some(Refusal::TokenUsed {
                        holder: Some(_),
                        ..
                    })
                );
                assert!(used, "{error}");
                assert!(!state.exists(), "a loser leaves nothing");
            }
        }
    }
    assert_eq!(won.len(), 1);
    assert!(join_as(&won[0].1, &token, "gate").await.unwrap().already);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_living_holder_keeps_its_name_and_the_other_is_told() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let granted = world.grant("paris", "10.1.0.0/16", Uses::AtMost(2));
    let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let token = broker.token(&world, &granted);
    let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
    let first = join_as(&one, &token, "gate").await.unwrap();
    join_as(&two, &token, "gate").await.unwrap();
    let holder = follow_from(&one).await;
    let rival = follow_from(&two).await;
    let both = [holder, rival];
    let taken = |problem: &Problem| matches!(problem, Problem::NameTaken { .. });
    let one_is_told = async {
        loop {
            let told = both
                .iter()
                .filter(|handle| handle.view().borrow().problems.iter().any(taken));
            if told.count() == 1 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), one_is_told)
        .await
        .unwrap();
    // The holder says goodbye; the name is free at once.
    let [holder, rival] = both;
    let rival_waits = rival.view().borrow().problems.iter().any(taken);
    let (leaves, stays, state) = if rival_waits {
        (holder, rival, &one)
    } else {
        (rival, holder, &two)
    };
    leaves.stop().await;
    leave(state).await.unwrap();
    until(&stays, |view| view.problems.is_empty()).await;
    assert_eq!(first.site, name("paris"));
    stays.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_whose_ledger_lacks_the_nodes_grant_is_brought_it() {
    let scratch = Scratch::new();
    let mut world = World::new();
    let second = SigningKey::from_seed(&[88; 32]);
    world.add_broker(second.public(), Vec::new());
    let behind = World {
        authority: SigningKey::from_seed(&world.authority.seed()),
        broker: SigningKey::from_seed(&second.seed()),
        ledger: world.ledger.clone(),
    };
    let granted = world.grant("paris", "10.1.0.0/16", Uses::AtMost(1));
    let other_place = Scratch::new();
    let late = Running::start(other_place.path(), &behind, "127.0.0.1:0");
    let broker = Running::start(scratch.path(), &world, "127.0.0.1:0");
    let brokers = [(broker.at(), broker.key), (late.at(), late.key)];
    let brokers: Vec<(&str, PublicKey)> = brokers
        .iter()
        .map(|(at, key)| (at.as_str(), *key))
        .collect();
    let token = world.token(&granted, &brokers);
    let state = scratch.path().join("paris");
    join_as(&state, &token, "gate").await.unwrap();
    drop(broker);
    let handle = follow_from(&state).await;
    let at_late = BrokerState::Connected { address: late.at() };
    let view = until(&handle, |view| {
        view.broker == at_late && view.last_sync.is_some()
    })
    .await;
    assert!(view.problems.is_empty(), "{:?}", view.problems);
    handle.stop().await;
}
