//! A broker whose directory comes from an old copy: its nodes give it back what it has forgotten,
//! and do not go back themselves.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use node::follow::{self, Handle, Options, Timing};
use node::state::StateDir;
use proto::entry::Role;
use proto::key::PublicKey;
use tests::broker::cast::{Authority, Ticket, presence};
use tests::broker::client::Target;
use tests::broker::{Mesh, command};
use tokio::runtime::Runtime;

const LIMIT: Duration = Duration::from_secs(60);

struct Scene {
    mesh: Mesh,
    authority: Authority,
    target: Target,
    runtime: Runtime,
}

impl Scene {
    fn new() -> Scene {
        let mesh = Mesh::new("restore").unwrap();
        let authority = Authority::of(&mesh).unwrap();
        Scene {
            target: authority.target(&mesh.brokers[0]).unwrap(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            authority,
            mesh,
        }
    }

    /// A gateway of a site of its own.
    fn gateway(&self, site: &str, prefix: &str) -> Handle {
        let token = self.mesh.token(site, prefix, &[]).unwrap();
        let said = self.mesh.join(site, &token).unwrap();
        said.expect_success().unwrap();
        let state = StateDir::open(&self.mesh.node(site)).unwrap();
        let options = Options {
            role: Role::Gateway,
            timing: Timing::default(),
            fwmark: None,
        };
        let _inside = self.runtime.enter();
        follow::start(&state, options).unwrap()
    }

    fn publish(&self, handle: &Handle, zone: &str) {
        self.runtime.block_on(handle.publish(presence(zone)));
    }

    /// The sequence of a node's record at the broker.
    fn listed(&self, node: PublicKey) -> Option<u64> {
        let sequences = self.runtime.block_on(async {
            let mut client = self.target.connect(None).await?;
            client.authenticate_authority(&self.authority.key).await?;
            client.sequences().await
        });
        sequences.ok()?.get(&node).copied()
    }
}

/// What a gateway shows of another one: its zone and its sequence.
fn seen(by: &Handle, node: PublicKey) -> Option<(String, u64)> {
    let view = by.view().borrow().clone();
    let record = &view.peers.get(&node)?.node.record;
    Some((record.presence()?.zone.clone(), record.sequence))
}

#[track_caller]
fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !reached() {
        assert!(begin.elapsed() < LIMIT, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-a").args([from, to]);
    command::run(command, None)
        .unwrap()
        .expect_success()
        .unwrap();
}

#[test]
fn a_broker_restored_from_a_copy_gets_back_what_its_nodes_have() {
    let mut scene = Scene::new();
    let leaked = scene
        .mesh
        .token("oslo", "10.9.0.0/16", &["--uses", "unlimited"])
        .unwrap();
    let paris = scene.gateway("paris", "10.1.0.0/16");
    let berlin = scene.gateway("berlin", "10.2.0.0/16");
    let node = paris.node().identity_key();
    scene.publish(&berlin, "berlin");
    scene.publish(&paris, "early");
    wait_until("berlin shows the early record", || {
        seen(&berlin, node).is_some_and(|(zone, _)| zone == "early")
    });
    let own = scene.mesh.brokers[0].state.join("broker");
    let backup = scene.mesh.path().join("backup");
    scene.mesh.brokers[0].kill();
    copy(&own, &backup);
    scene.mesh.brokers[0].start().unwrap();
    scene.publish(&paris, "late");
    wait_until("berlin shows the late record", || {
        seen(&berlin, node).is_some_and(|(zone, _)| zone == "late")
    });
    let (_, late) = seen(&berlin, node).unwrap();
    let heads = |handle: &Handle| handle.view().borrow().heads.clone();
    let before = heads(&paris);
    let id = Ticket::of(&leaked).unwrap().entry.hash().short();
    let revoke = scene.mesh.operator(&["token", "revoke", &id, "--yes"]);
    let said = command::run(revoke, None).unwrap();
    said.expect_success().unwrap();
    wait_until("the revocation is known", || heads(&paris) != before);
    scene.mesh.brokers[0].kill();
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&backup, &own).unwrap();
    scene.mesh.brokers[0].start().unwrap();
    wait_until("the broker has the late record again", || {
        let (zone, sequence) = seen(&berlin, node).expect("berlin never loses paris");
        assert!(sequence >= late, "berlin went back to {zone:?}");
        scene.listed(node).is_some_and(|listed| listed >= late)
    });
    let said = scene.mesh.join("oslo", &leaked).unwrap();
    said.assert_refused(&["revoked"]);
}
