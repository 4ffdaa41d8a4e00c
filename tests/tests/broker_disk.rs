//! A disk that is full or read-only, under a broker and under a join.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use proto::message::{Refusal, Reply, Request};
use tests::broker::cast::{Actor, Authority};
use tests::broker::client::{Entrance, Target, runtime};
use tests::broker::disk::Disk;
use tests::broker::{ENOUGH, Mesh, join};
use tests::lab::{skip, wait_for};

/// A store takes half of it; the rest is there to be filled.
const BROKER_DISK: u64 = 16 * 1024;
const NODE_DISK: u64 = 256;

fn may_not_mount() -> bool {
    let thread = std::thread::current();
    skip(thread.name().unwrap_or("a test with a disk"), &[])
}

fn anything_in(directory: &Path) -> bool {
    let left = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    left.iter().any(|name| name == "node")
}

#[test]
fn a_broker_whose_disk_is_full_says_so_serves_on_and_recovers_by_itself() {
    if may_not_mount() {
        return;
    }
    let disk = Disk::new(BROKER_DISK).unwrap();
    let mut mesh = Mesh::with_first_state("full", &disk.path().join("state")).unwrap();
    mesh.brokers[0].start().unwrap();
    let token = mesh
        .token("paris", "10.1.0.0/16", &["--uses", "unlimited"])
        .unwrap();
    mesh.join("a", &token).unwrap().expect_success().unwrap();
    let mut actor = Actor::joined(&mesh.node("a")).unwrap();
    let authority = Authority::of(&mesh).unwrap();
    let target = authority.target(&mesh.brokers[0]).unwrap();
    disk.fill().unwrap();
    let runtime = runtime().unwrap();
    let acknowledged = runtime.block_on(write_until_full(&target, &mut actor));
    assert!(mesh.brokers[0].is_running(), "{}", mesh.brokers[0].log());
    let late = mesh.join("b", &token).unwrap();
    late.assert_refused(&["cannot write"]);
    runtime.block_on(reads_go_on(&target, &actor, acknowledged));
    disk.empty().unwrap();
    // Whoever asks again is served; nobody has to restart anything.
    wait_for("the broker writes again", ENOUGH, || {
        std::thread::sleep(Duration::from_millis(200));
        mesh.join("b", &token).unwrap().success()
    })
    .unwrap();
    assert!(mesh.brokers[0].is_running());
    mesh.brokers[0].kill();
    mesh.brokers[0].start().unwrap();
    runtime.block_on(reads_go_on(&target, &actor, acknowledged));
}

/// The last sequence that was acknowledged.
async fn write_until_full(target: &Target, actor: &mut Actor) -> u64 {
    let Entrance::In(mut client) = target.enter(None, actor).await.unwrap() else {
        panic!("an enrolled node is not let in");
    };
    let mut acknowledged = 0;
    loop {
        match client.publish(actor).await.unwrap() {
            Ok(()) => acknowledged = actor.sequence,
            Err(Refusal::StoreDown { .. }) => return acknowledged,
            Err(Refusal::TooOften { .. }) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(other) => panic!("refused for another reason: {other:?}"),
        }
        assert!(
            actor.sequence < 5000,
            "a full disk takes five thousand records"
        );
    }
}

async fn reads_go_on(target: &Target, actor: &Actor, acknowledged: u64) {
    let Entrance::In(mut client) = target.enter(None, actor).await.unwrap() else {
        panic!("an enrolled node is not let in");
    };
    let sequences = client.sequences().await.unwrap();
    let kept = sequences.get(&actor.identity.public()).copied();
    assert!(kept.unwrap_or(0) >= acknowledged, "{kept:?}");
    let heads = Vec::new();
    let reply = client.call(Request::Ledger { heads }).await.unwrap();
    assert!(matches!(reply, Reply::Ledger { .. }), "{reply:?}");
}

#[test]
fn a_broker_on_a_read_only_disk_is_refused_in_words() {
    if may_not_mount() {
        return;
    }
    let disk = Disk::new(BROKER_DISK).unwrap();
    let mut mesh = Mesh::with_first_state("readonly", &disk.path().join("state")).unwrap();
    disk.make_read_only().unwrap();
    let said = tests::broker::command::run(mesh.brokers[0].run_command(), None).unwrap();
    said.assert_refused(&["read-only", &disk.path().display().to_string()]);
    disk.make_writable().unwrap();
    mesh.brokers[0].start().unwrap();
}

#[test]
fn a_join_on_a_full_disk_takes_no_use_leaves_nothing_and_works_once_there_is_room() {
    if may_not_mount() {
        return;
    }
    let mesh = Mesh::new("join-full").unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let disk = Disk::new(NODE_DISK).unwrap();
    let state = disk.path().join("state");
    disk.fill().unwrap();
    let said = join(&state, "a", &token).unwrap();
    said.assert_refused(&["no space", &state.display().to_string()]);
    assert!(!anything_in(&state));
    disk.empty().unwrap();
    join(&state, "a", &token).unwrap().expect_success().unwrap();
}

#[test]
fn a_join_into_a_read_only_directory_takes_no_use() {
    if may_not_mount() {
        return;
    }
    let mesh = Mesh::new("join-readonly").unwrap();
    let token = mesh.token("paris", "10.1.0.0/16", &[]).unwrap();
    let disk = Disk::new(NODE_DISK).unwrap();
    disk.make_read_only().unwrap();
    let state = disk.path().join("state");
    let said = join(&state, "a", &token).unwrap();
    said.assert_refused(&["read-only", &state.display().to_string()]);
    disk.make_writable().unwrap();
    join(&state, "a", &token).unwrap().expect_success().unwrap();
}
