//! The way to a broker through gateways, for workers that have no route to it at all; and those who
//! would keep them from it.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use proto::key::{PublicKey, SigningKey};
use proto::splice::{self, Verdict};
use tests::broker::command::{self, Said};
use tests::broker::{join_command, within};
use tests::lab::{Namespace, skip, wait_for};
use tests::mesh::{Mesh, PATIENCE, Plan};

/// What nobody waits for an answer longer than.
const ANSWER: Duration = Duration::from_secs(15);

fn join(from: &Namespace, (state, name): (&Path, &str), token: &str, via: Option<&str>) -> Said {
    let mut join = join_command(state, name);
    join.args(via.map(|via| format!("--via={via}")));
    command::run(within(from.name(), &join), Some(token)).unwrap()
}

/// One call from there, and the first byte that comes back.
fn call(from: &Namespace, to: SocketAddr, said: &[u8]) -> Option<Verdict> {
    let called = from.within(|| {
        let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(said)?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok::<u8, std::io::Error>(byte[0])
    });
    Verdict::read(called.unwrap().unwrap())
}

/// Both run, and no worker is a member yet.
fn a_site_with_two_gateways(tag: &str) -> (Mesh, String) {
    let mut mesh = Mesh::strangers(tag, &[Plan::OPEN.agents(1)]).unwrap();
    let token = mesh.sites[0].token(&mesh).unwrap();
    for gateway in &mut mesh.sites[0].gateways {
        gateway.join(&token).unwrap();
        gateway.start().unwrap();
    }
    for gateway in &mesh.sites[0].gateways {
        gateway.wait_until_ready(PATIENCE).unwrap();
    }
    (mesh, token)
}

/// The gateway that the agent follows its broker through.
fn way(mesh: &Mesh) -> Option<String> {
    let status = mesh.sites[0].agents[0].status().ok()?;
    let broker = &status["broker"];
    let (_, gateway) = broker["address"]
        .as_str()?
        .split_once(" through gateway ")?;
    (broker["state"] == "connected").then(|| gateway.to_owned())
}

fn wait_for_way(mesh: &Mesh, wanted: impl Fn(&str) -> bool) -> String {
    let mut found = None;
    let is_so = || {
        found = way(mesh).filter(|way| wanted(way));
        found.is_some()
    };
    wait_for("the agent follows through a gateway", PATIENCE, is_so)
        .unwrap_or_else(|error| panic!("{error}: {}", mesh.sites[0].agents[0].log()));
    found.unwrap()
}

/// Of the gateway with this address, among those of its site.
fn index_of(gateway: &str) -> usize {
    usize::from(gateway.starts_with("10.1.0.2:"))
}

#[test]
fn a_worker_without_a_route_to_the_broker_joins_and_follows_through_one_gateway_or_the_other() {
    if skip(
        "a_worker_without_a_route_to_the_broker_joins_and_follows_through_one_gateway_or_the_other",
        &["ip", "nft"],
    ) {
        return;
    }
    let (mut mesh, token) = a_site_with_two_gateways("splice");
    let agent = &mut mesh.sites[0].agents[0];
    for family in ["-4", "-6"] {
        let away = [family, "route", "del", "default"];
        agent.namespace.run("ip", &away).unwrap();
    }
    let (worker, state, name) = (
        agent.namespace.clone(),
        agent.state.clone(),
        agent.name.clone(),
    );
    let whom = (state.as_path(), name.as_str());
    let alone = join(&worker, whom, &token, None);
    alone.assert_refused(&["unreachable", "nothing was changed here"]);
    // A gateway that is none, and one that is.
    let nobody = join(&worker, whom, &token, Some("10.1.0.10:9"));
    nobody.assert_refused(&["through gateway 10.1.0.10:9", "is it a gateway"]);
    let joined = join(&worker, whom, &token, Some("10.1.0.1"));
    let joined = joined.expect_success().unwrap();
    let words = "through gateway 10.1.0.1:7802 reached";
    assert!(joined.err.contains(words), "{}", joined.err);

    agent.start().unwrap();
    let first = wait_for_way(&mesh, |_| true);
    mesh.gateway(0, index_of(&first)).kill();
    let second = wait_for_way(&mesh, |way| way != first);
    mesh.gateway(0, index_of(&second)).kill();
    // With none there is an outage and nothing worse; with one again it is over.
    wait_for("the broker is lost", PATIENCE, || way(&mesh).is_none()).unwrap();
    mesh.gateway(0, 0).start().unwrap();
    wait_for_way(&mesh, |_| true);
}

#[test]
fn a_gateway_passes_on_to_brokers_only_and_from_its_own_site_only() {
    if skip(
        "a_gateway_passes_on_to_brokers_only_and_from_its_own_site_only",
        &["ip", "nft"],
    ) {
        return;
    }
    let mut mesh = Mesh::up("strange", &[Plan::ONE, Plan::ONE]).unwrap();
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    let gateway = SocketAddr::new(mesh.sites[0].gateways[0].lan, splice::PORT);
    let broker: PublicKey = mesh.trust.brokers[0].key.parse().unwrap();
    let good = splice::call(&broker);
    let [own, foreign] = [0, 1].map(|site| mesh.sites[site].worker.clone());
    assert_eq!(call(&own, gateway, &good), Some(Verdict::Connected));
    // Across the mesh, to the same address.
    assert_eq!(call(&foreign, gateway, &good), Some(Verdict::Stranger));
    let nobody = SigningKey::from_seed(&[9; 32]).public();
    let unknown = call(&own, gateway, &splice::call(&nobody));
    assert_eq!(unknown, Some(Verdict::UnknownBroker));
    let malformed = call(&own, gateway, &[b'G'; splice::CALL]);
    assert_eq!(malformed, Some(Verdict::Malformed));

    // Many who say half of what they should, from the very machine that is to join.
    let held: Vec<TcpStream> = own
        .within(|| {
            let hold = |_| {
                let mut stream = TcpStream::connect_timeout(&gateway, ANSWER).unwrap();
                stream.write_all(&good[..splice::CALL / 2]).unwrap();
                stream
            };
            (0..200).map(hold).collect()
        })
        .unwrap();
    let token = mesh.sites[0].token(&mesh).unwrap();
    let state = mesh.trust.node("late");
    let late = join(&own, (&state, "late"), &token, Some("10.1.0.1"));
    late.expect_success().unwrap();
    // And each of them is let go.
    for mut stream in held {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = stream.read(&mut [0; 8]);
        let is_silence = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!ended.is_err_and(|error| is_silence(&error)), "held on");
    }

    mesh.trust.brokers[0].kill();
    assert_eq!(call(&own, gateway, &good), Some(Verdict::Unreachable));
    let port = mesh.sites[0].gateways[0].status().unwrap();
    assert!(port["problems"].as_array().is_some_and(|all| {
        let said = |problem: &serde_json::Value| problem["what"].to_string().contains("7802");
        !all.iter().any(said)
    }));
}
