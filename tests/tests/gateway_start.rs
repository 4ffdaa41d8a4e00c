//! How a mesh comes up: with its broker, without it, and when the broker goes away.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::lab::skip;
use tests::mesh::{Mesh, Nat, PATIENCE, Plan, rounds};

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};
const PROMISED: Duration = Duration::from_secs(2);

/// Starts every gateway at once and says when the first packet came through.
fn first_packet(mesh: &mut Mesh) -> Option<Duration> {
    let meter = mesh.meter(0, 1).unwrap();
    let begin = Instant::now();
    mesh.start_gateways().unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    meter.finish().first_after(begin)
}

fn stop_gateways(mesh: &mut Mesh) {
    for site in &mut mesh.sites {
        for gateway in &mut site.gateways {
            gateway.kill();
        }
    }
}

#[test]
fn two_gateways_started_together_carry_within_two_seconds() {
    if skip("two_gateways_started_together", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::at_rest("start", &[ONE, ONE]).unwrap();
    for round in 0..rounds(3) {
        let found = first_packet(&mut mesh);
        println!("round {round}, broker up: {found:?}");
        assert!(found.is_some_and(|found| found <= PROMISED), "{found:?}");
        mesh.wait_until_up(PATIENCE).unwrap();
        stop_gateways(&mut mesh);
        // The first round knew nothing of the other side; the others start from the cache and
        // without the broker.
        mesh.trust.brokers[0].kill();
        let found = first_packet(&mut mesh);
        println!("round {round}, from the cache: {found:?}");
        assert!(found.is_some_and(|found| found <= PROMISED), "{found:?}");
        stop_gateways(&mut mesh);
        mesh.start_broker().unwrap();
    }
    mesh.watch.assert_clean();
}

/// Ten minutes of it where `CAUSEWAY_BROKER_AWAY=600` asks for them.
#[test]
fn a_broker_that_dies_hangs_and_returns_costs_no_packet() {
    if skip("a_broker_that_dies", &["nft"]) {
        return;
    }
    let away = std::env::var("CAUSEWAY_BROKER_AWAY").ok();
    let away = Duration::from_secs(away.and_then(|text| text.parse().ok()).unwrap_or(12));
    let mut mesh = Mesh::up("broker", &[ONE, Plan::OPEN]).unwrap();
    let meters = [mesh.meter(0, 1).unwrap(), mesh.meter(1, 0).unwrap()];
    std::thread::sleep(Duration::from_millis(500));
    mesh.trust.brokers[0]
        .process()
        .signal(Signal::SIGSTOP)
        .unwrap();
    std::thread::sleep(away);
    mesh.trust.brokers[0].kill();
    std::thread::sleep(away / 2);
    mesh.start_broker().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    for meter in meters {
        let report = meter.finish();
        println!(
            "lost {} of {}, gap {:?}",
            report.lost, report.sent, report.gap
        );
        assert_eq!(report.lost, 0, "{report:?}");
    }
    let connected = |mesh: &Mesh| {
        let status = mesh.sites[0].gateways[0].status().unwrap();
        status["broker"]["state"] == "connected"
    };
    let begin = Instant::now();
    while !connected(&mesh) {
        assert!(
            begin.elapsed() < PATIENCE,
            "the gateway does not find its broker again"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    mesh.watch.assert_clean();
}
