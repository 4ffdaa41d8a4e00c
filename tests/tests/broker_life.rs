//! Tokens and nodes over their lives: leaked, revoked, made again, restored, at another broker.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use node::follow::{self, Options, Timing};
use node::state::StateDir;
use proto::entry::Role;
use proto::key::PublicKey;
use proto::message::Refusal;
use tests::broker::cast::{Actor, Authority, Ticket, presence};
use tests::broker::client::{Client, Entrance, Target, runtime};
use tests::broker::{ENOUGH, Mesh, command};
use tokio::runtime::Runtime;

/// For which the name of a node that is not heard stays its own.
const NAME_KEPT: Duration = Duration::from_secs(60);

async fn wait_until<F: Future<Output = bool>>(what: &str, mut reached: impl FnMut() -> F) {
    let begin = Instant::now();
    while !reached().await {
        assert!(begin.elapsed() < ENOUGH, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A mesh and one who can speak to its broker.
struct Life {
    mesh: Mesh,
    target: Target,
    runtime: Runtime,
}

impl Life {
    fn new(tag: &str) -> Life {
        let mesh = Mesh::new(tag).unwrap();
        let authority = Authority::of(&mesh).unwrap();
        Life {
            target: authority.target(&mesh.brokers[0]).unwrap(),
            runtime: runtime().unwrap(),
            mesh,
        }
    }

    fn many_use_token(&self) -> String {
        self.mesh
            .token("paris", "10.1.0.0/16", &["--uses", "unlimited"])
            .unwrap()
    }

    fn join(&self, directory: &str, name: &str, token: &str) -> Actor {
        let state = self.mesh.node(directory);
        let said = tests::broker::join(&state, name, token).unwrap();
        said.expect_success().unwrap();
        Actor::joined(&state).unwrap()
    }

    fn enter(&self, actor: &Actor) -> Entrance {
        self.runtime
            .block_on(self.target.enter(None, actor))
            .unwrap()
    }

    #[track_caller]
    fn enter_well(&self, actor: &Actor) -> Box<Client> {
        match self.enter(actor) {
            Entrance::In(client) => client,
            Entrance::Refused(refusal) => panic!("{} is refused: {refusal:?}", actor.node),
        }
    }

    fn publish(&self, client: &mut Client, actor: &mut Actor) -> Result<(), Refusal> {
        self.runtime.block_on(client.publish(actor)).unwrap()
    }

    #[track_caller]
    fn publish_well(&self, client: &mut Client, actor: &mut Actor) {
        assert_eq!(self.publish(client, actor), Ok(()));
    }

    /// A command of the operator that must succeed.
    fn operate(&self, words: &[&str], more: &[&str]) {
        let mut command = self.mesh.operator(words);
        command.args(more);
        command::run(command, None)
            .unwrap()
            .expect_success()
            .unwrap();
    }

    fn id(token: &str) -> String {
        Ticket::of(token).unwrap().entry.hash().short()
    }
}

#[test]
fn a_leaked_token_is_closed_while_its_nodes_live_on() {
    let life = Life::new("leaked");
    let token = life.many_use_token();
    let mut a = life.join("a", "a", &token);
    let mut client = life.enter_well(&a);
    life.publish_well(&mut client, &mut a);
    life.operate(&["token", "revoke"], &[&Life::id(&token), "--yes"]);
    let late = life.mesh.join("late", &token).unwrap();
    late.assert_refused(&["revoked", "token create"]);
    // The connection that was open, and a new one.
    life.publish_well(&mut client, &mut a);
    let mut again = life.enter_well(&a);
    life.publish_well(&mut again, &mut a);
}

#[test]
fn a_token_revoked_with_its_nodes_cuts_them_off_at_once() {
    let life = Life::new("with-nodes");
    let token = life.many_use_token();
    let mut a = life.join("a", "a", &token);
    let mut client = life.enter_well(&a);
    life.publish_well(&mut client, &mut a);
    life.operate(&["token", "revoke"], &[&Life::id(&token), "--with-nodes"]);
    life.runtime.block_on(client.wait_until_cut()).unwrap();
    let Entrance::Refused(refusal) = life.enter(&a) else {
        panic!("a revoked node is let in");
    };
    assert_eq!(refusal, Refusal::Revoked);
}

#[test]
fn a_revoked_node_that_still_holds_a_many_use_token_stays_out() {
    let life = Life::new("revoked");
    let token = life.many_use_token();
    let mut a = life.join("a", "a", &token);
    let mut b = life.join("b", "b", &token);
    let mut of_a = life.enter_well(&a);
    let mut of_b = life.enter_well(&b);
    life.publish_well(&mut of_a, &mut a);
    life.publish_well(&mut of_b, &mut b);
    life.operate(&["node", "revoke"], &["paris/a", "--yes"]);
    life.runtime.block_on(of_a.wait_until_cut()).unwrap();
    let Entrance::Refused(refusal) = life.enter(&a) else {
        panic!("a revoked node is let in");
    };
    assert_eq!(refusal, Refusal::Revoked);
    let again = life.mesh.join("a2", &token).unwrap();
    again.assert_refused(&["revoked"]);
    life.publish_well(&mut of_b, &mut b);
}

#[test]
fn a_node_made_again_has_its_old_name_once_the_old_one_has_left() {
    let life = Life::new("left");
    let token = life.many_use_token();
    let mut old = life.join("old", "gateway-1", &token);
    let mut of_old = life.enter_well(&old);
    life.publish_well(&mut of_old, &mut old);
    let mut new = life.join("new", "gateway-1", &token);
    let mut of_new = life.enter_well(&new);
    let reply = life.publish(&mut of_new, &mut new);
    let Err(Refusal::NameTaken { holder, .. }) = reply else {
        panic!("the name of a living node was given away: {reply:?}");
    };
    assert_eq!(&holder, old.identity.public().as_bytes());
    drop(of_old);
    life.operate_node("leave", "old");
    life.publish_well(&mut of_new, &mut new);
}

#[test]
fn a_node_made_again_has_its_old_name_once_the_old_one_is_silent() {
    let life = Life::new("silent");
    let token = life.many_use_token();
    let mut old = life.join("old", "gateway-1", &token);
    let mut of_old = life.enter_well(&old);
    life.publish_well(&mut of_old, &mut old);
    drop(of_old);
    let mut new = life.join("new", "gateway-1", &token);
    let mut of_new = life.enter_well(&new);
    let reply = life.publish(&mut of_new, &mut new);
    assert!(matches!(reply, Err(Refusal::NameTaken { .. })), "{reply:?}");
    drop(of_new);
    thread::sleep(NAME_KEPT + Duration::from_secs(2));
    let mut of_new = life.enter_well(&new);
    life.publish_well(&mut of_new, &mut new);
}

impl Life {
    /// The last sequence that the broker has of a node.
    fn sequence(&self, node: &PublicKey) -> u64 {
        let authority = Authority::of(&self.mesh).unwrap();
        let sequences = self.runtime.block_on(async {
            let mut client = self.target.connect(None).await?;
            client.authenticate_authority(&authority.key).await?;
            client.sequences().await
        });
        sequences.unwrap().get(node).copied().unwrap_or(0)
    }

    /// What a gateway does with its state directory: one presence after the other, each of them
    /// until the broker has it.
    fn follow_and_publish(&self, state: &Path, zones: &[&str]) {
        self.runtime.block_on(async {
            let options = Options {
                role: Role::Gateway,
                timing: Timing::default(),
                fwmark: None,
            };
            let state = StateDir::open(state).unwrap();
            let handle = follow::start(&state, options).unwrap();
            for zone in zones {
                handle.publish(presence(zone)).await;
                let shows = |zones: &[String]| zones.iter().any(|shown| shown == zone);
                wait_until("the broker shows a record", || async {
                    let reader = self.zones().await;
                    shows(&reader)
                })
                .await;
            }
            handle.stop().await;
        });
    }

    /// The zones of all records that the broker lists.
    async fn zones(&self) -> Vec<String> {
        let authority = Authority::of(&self.mesh).unwrap();
        let mut client = self.target.connect(None).await.unwrap();
        client.authenticate_authority(&authority.key).await.unwrap();
        let records = client.records().await.unwrap();
        let presences = records.iter().filter_map(|record| record.presence());
        presences.map(|presence| presence.zone.clone()).collect()
    }

    fn operate_node(&self, word: &str, directory: &str) {
        let mut command = command::causeway();
        command
            .arg(word)
            .arg("--state-dir")
            .arg(self.mesh.node(directory));
        command::run(command, None)
            .unwrap()
            .expect_success()
            .unwrap();
    }
}

#[test]
fn one_token_at_two_brokers_with_stores_of_their_own_counts_at_one_of_them() {
    let mut mesh = Mesh::new("stores").unwrap();
    mesh.add_broker(None).unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    mesh.brokers[0].kill();
    let lone = mesh.join("a", &token).unwrap();
    lone.assert_refused(&[&mesh.brokers[0].address.to_string()]);
    assert!(!mesh.node("a").join("node").exists());
    mesh.brokers[0].start().unwrap();
    mesh.join("a", &token).unwrap().expect_success().unwrap();
    let second = mesh.join("b", &token).unwrap();
    second.assert_refused(&["used"]);
    // The node is known at the other broker too, which never counted it.
    let authority = Authority::of(&mesh).unwrap();
    let target = authority.target(&mesh.brokers[1]).unwrap();
    let actor = Actor::joined(&mesh.node("a")).unwrap();
    let entrance = runtime().unwrap().block_on(target.enter(None, &actor));
    assert!(matches!(entrance.unwrap(), Entrance::In(_)));
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_node_restored_from_a_snapshot_signs_above_what_the_broker_has() {
    let life = Life::new("snapshot");
    let token = life.many_use_token();
    let node = life.join("a", "a", &token).identity.public();
    let (state, backup) = (life.mesh.node("a"), life.mesh.path().join("backup"));
    life.follow_and_publish(&state, &["one"]);
    let early = life.sequence(&node);
    copy(&state, &backup);
    life.follow_and_publish(&state, &["two", "three"]);
    let late = life.sequence(&node);
    assert!(late > early, "{early} {late}");
    std::fs::remove_dir_all(&state).unwrap();
    std::fs::rename(&backup, &state).unwrap();
    life.follow_and_publish(&state, &["four"]);
    let restored = life.sequence(&node);
    assert!(restored > late, "{restored} after {late}");
}
