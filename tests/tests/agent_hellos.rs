//! Gateways as agents hear them: a death, a stop in good order, a port that is taken.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use tests::lab::{skip, wait_for};
use tests::mesh::{Askers, GatewayNode, Mesh, PATIENCE, Plan};

const AGENTS: u16 = 20;
/// The bar on a machine that does nothing else.
const NOTICED: Duration = Duration::from_millis(300);

/// Whether a gateway of the first site hears all of them, as it says itself.
fn hears_all(mesh: &Mesh, gateway: usize) -> bool {
    let status = mesh.sites[0].gateways[gateway].status();
    let agents = status.unwrap_or_default()["agents"].as_array().cloned();
    let agents = agents.unwrap_or_default();
    let up = agents
        .iter()
        .filter(|agent| agent["state"] == "up" && agent["mode"] == "direct");
    up.count() == usize::from(AGENTS)
}

fn problem(gateway: &GatewayNode) -> Option<String> {
    let status = gateway.status().ok()?;
    let problems = status["problems"].as_array()?.clone();
    let mut texts = problems.iter().filter_map(|one| one["what"].as_str());
    texts.find(|text| text.contains(":7802")).map(str::to_owned)
}

#[test]
fn agents_hear_who_died_and_who_leaves_and_a_taken_port_is_told() {
    if skip("agents_hear", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::up("hellos", &[Plan::OPEN, Plan::ONE]).unwrap();
    let askers = Askers::start(&mesh, (0, 1), AGENTS).unwrap();
    askers.wait_until_used(&["g11", "g12"], PATIENCE).unwrap();
    wait_for("it hears them", PATIENCE, || hears_all(&mesh, 0)).unwrap();

    let killed = Instant::now();
    mesh.gateway(0, 1).kill();
    let noticed = askers.wait_until_used(&["g11"], PATIENCE).unwrap();
    let took = noticed.saturating_duration_since(killed);
    println!("a death is noticed after {took:?}; the bar is {NOTICED:?}");
    assert!(took < NOTICED * 10, "{took:?}");

    // It is back, and used last for a while; the other leaves, and nobody has to find that out.
    mesh.gateway(0, 1).start().unwrap();
    mesh.wait_until_up(PATIENCE).unwrap();
    wait_for("the other hears them", PATIENCE, || hears_all(&mesh, 1)).unwrap();
    let begun = Instant::now();
    let took = mesh.gateway(0, 0).stop().unwrap();
    let left = askers.wait_until_used(&["g12"], PATIENCE).unwrap();
    let left = left.saturating_duration_since(begun);
    println!("it was left after {left:?}, and ended after {took:?}");
    assert!(left < took, "{left:?} {took:?}");

    // Another program has the port.
    let gateway = mesh.gateway(0, 0);
    let lan = gateway.lan;
    let taken = gateway.namespace.within(|| UdpSocket::bind((lan, 7802)));
    let taken = taken.unwrap().unwrap();
    gateway.start().unwrap();
    wait_for("it says so", PATIENCE, || problem(gateway).is_some()).unwrap();
    let said = problem(gateway).unwrap();
    assert!(said.contains("agents of this site do not hear"), "{said}");
    drop(taken);
    wait_for("it hears them", PATIENCE, || hears_all(&mesh, 0)).unwrap();
    assert_eq!(problem(&mesh.sites[0].gateways[0]), None);
    mesh.watch.assert_clean();
}
