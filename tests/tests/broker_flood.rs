//! Ten thousand connections that never become sessions, and an honest node that wants in.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

use tests::broker::flood::Flood;
use tests::broker::{Mesh, look};
use tests::lab::wait_for;

const SIZE: usize = 10_000;
const JOINS: usize = 5;
const JOINED_WITHIN: Duration = Duration::from_secs(2);
/// KiB.
const MAY_GROW: u64 = 32 * 1024;

#[test]
fn among_ten_thousand_half_open_connections_an_honest_join_takes_two_seconds() {
    let mut mesh = Mesh::at_rest("flood").unwrap();
    // As systemd starts a program that asks for nothing.
    let limits = ["prlimit", "--nofile=1024:12288"];
    mesh.brokers[0].through = limits.map(str::to_owned).to_vec();
    mesh.brokers[0].start().unwrap();
    let broker = &mesh.brokers[0];
    let pid = broker.process().pid();
    let uses = JOINS.to_string();
    let token = mesh
        .token("paris", "10.1.0.0/16", &["--uses", &uses])
        .unwrap();
    let before = look::resident(pid).unwrap();
    let flood = Flood::start(broker.address, SIZE).unwrap();
    wait_for("the flood is there", Duration::from_secs(60), || {
        flood.opened() >= SIZE
    })
    .unwrap();
    for number in 0..JOINS {
        let begin = Instant::now();
        mesh.join(&format!("n{number}"), &token)
            .unwrap()
            .expect_success()
            .unwrap();
        let took = begin.elapsed();
        eprintln!("join {number}: {took:?}, {} connections open", flood.open());
        assert!(took <= JOINED_WITHIN, "join {number} took {took:?}");
        thread::sleep(Duration::from_secs(1));
    }
    let grown = look::peak_resident(pid).unwrap().saturating_sub(before);
    eprintln!("{grown} KiB more, {} connections in all", flood.opened());
    assert!(grown < MAY_GROW, "the broker has grown by {grown} KiB");
    assert!(look::healthy(broker.http));
}
