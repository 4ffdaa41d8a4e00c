//! What people see of an agent that runs: `causeway status`, `causeway ping`, and what a second one
//! is told.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tests::broker::command::{self, Said, causeway};
use tests::broker::within;
use tests::lab::{skip, wait_for};
use tests::mesh::{AgentNode, Mesh, PATIENCE, Plan};

const HELLOS: u16 = 7802;
/// Shorter than the shortest sleep of the agent's loop.
const BETWEEN: Duration = Duration::from_micros(100);

/// Runs `causeway` with these words on this agent's machine.
fn ask(agent: &AgentNode, line: &str) -> Said {
    let mut asked = within(agent.namespace.name(), &causeway());
    asked
        .args(line.split(' '))
        .arg("--runtime-dir")
        .arg(&agent.runtime);
    command::run(asked, None).unwrap()
}

fn problems(agent: &AgentNode) -> String {
    let status = agent.status().unwrap();
    let all = status["problems"].as_array().cloned().unwrap_or_default();
    let all: Vec<String> = all.iter().map(Value::to_string).collect();
    all.join("\n")
}

#[test]
fn status_tells_mode_gateways_and_prefixes_and_what_is_wrong() {
    if skip("status_of_an_agent", &["nft"]) {
        return;
    }
    let layouts = [Plan::ONE.agents(1), Plan::ONE.agents(0)];
    let mut mesh = Mesh::up("agent-status", &layouts).unwrap();
    let (near, far) = (&mesh.sites[0], &mesh.sites[1]);
    let (agent, gateway) = (&near.agents[0], &near.gateways[0]);
    let said = ask(agent, "status --wait");
    assert_eq!(said.code, Some(0), "{said:?}");
    let words = [
        "agent ",
        &*gateway.name,
        "(auto): ",
        "connected to",
        "reachable",
    ];
    for word in words {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let told: Value = serde_json::from_str(&ask(agent, "status --json").out).unwrap();
    assert_eq!(told["role"], "agent");
    assert_eq!(told["gateways"][0]["state"], "up");
    assert!(told["gateways"][0]["carries"] == true, "{told}");
    let site = far.gateways[0].status().unwrap()["site"].clone();
    let site = site.as_str().unwrap();
    let said = ask(agent, &format!("ping {site}"));
    said.assert_refused(&["runs an agent", &gateway.name]);
    let metrics = agent.metrics().unwrap();
    let up = format!(
        "causeway_agent_gateway_up{{gateway=\"{}\"}} 1",
        gateway.name
    );
    assert!(metrics.contains(&up), "{metrics}");

    // A second one on the same machine.
    let state = agent.state.display();
    let said = ask(
        agent,
        &format!("routeagent run --metrics off --state-dir {state}"),
    );
    said.assert_refused(&[
        "keeps the routes of this network namespace",
        "routeagent run",
    ]);

    see_a_family_without_a_direct_way(&mesh);
    see_a_taken_port(&mut mesh);
    see_through_junk(&mut mesh);
}

/// As where a cloud gives out an IPv6 address without a network.
fn see_a_family_without_a_direct_way(mesh: &Mesh) {
    let agent = &mesh.sites[0].agents[0];
    assert_eq!(agent.mode().unwrap(), "direct");
    let own = agent.lan6;
    agent
        .namespace
        .sh(&format!(
            "ip address del {own}/64 dev eth0 && ip address add {own}/128 dev eth0 nodad &&
             ip route add fd00:0:1::/64 dev eth0"
        ))
        .unwrap();
    let reaches_all = || {
        let status = agent.status().unwrap_or_default();
        let prefixes = status["prefixes"].as_array().cloned().unwrap_or_default();
        let is_reached = |one: &Value| one["state"] == "reachable" || one["state"] == "local";
        let has_v6 = |one: &Value| {
            one["prefix"]
                .as_str()
                .is_some_and(|text| text.contains(':'))
        };
        prefixes.iter().any(has_v6) && prefixes.iter().all(is_reached)
    };
    wait_for("the other way is used", PATIENCE, || {
        agent.mode().unwrap() == "vxlan" && reaches_all()
    })
    .unwrap();
    let why = agent.status().unwrap()["mode"]["why"].to_string();
    assert!(why.contains("in one family only"), "{why}");
    agent
        .namespace
        .sh(&format!(
            "ip address del {own}/128 dev eth0 && ip address add {own}/64 dev eth0 nodad"
        ))
        .unwrap();
}

/// One datagram after the other to the port of hellos, until it is dropped.
struct Junk<'a>(&'a AtomicBool);

impl Drop for Junk<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whoever sends a lot keeps the agent from nothing: silence is judged, status answers, and SIGTERM
/// ends it.
fn see_through_junk(mesh: &mut Mesh) {
    let ended = AtomicBool::new(false);
    let from = &mesh.sites[0].gateways[0];
    let bound = (from.lan, 0);
    let socket = from.namespace.within(|| UdpSocket::bind(bound).unwrap());
    let (socket, to) = (socket.unwrap(), (mesh.sites[0].agents[0].lan, HELLOS));
    thread::scope(|scope| {
        let junk = Junk(&ended);
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // A full queue or a refusal is nothing to wait for.
                let _sent = socket.send_to(&[0xd1], to);
                thread::sleep(BETWEEN);
            }
        });
        see_a_dead_gateway(mesh);
        mesh.sites[0].agents[0].stop().unwrap();
        drop(junk);
    });
}

/// From the start of the agent until it is free again.
fn see_a_taken_port(mesh: &mut Mesh) {
    let lan = mesh.sites[0].agents[0].lan;
    mesh.sites[0].agents[0].stop().unwrap();
    let agent = &mesh.sites[0].agents[0];
    let taken = agent
        .namespace
        .within(|| UdpSocket::bind((lan, HELLOS)).unwrap())
        .unwrap();
    let agent = &mut mesh.sites[0].agents[0];
    agent.start().unwrap();
    agent.wait_until_ready(PATIENCE).unwrap();
    let agent = &mesh.sites[0].agents[0];
    let says = |word: &str| problems(agent).contains(word);
    wait_for("the taken port is named", PATIENCE, || {
        says("UDP port 7802") && says("is taken by another program")
    })
    .unwrap();
    drop(taken);
    wait_for("it is opened once it is free", PATIENCE, || {
        problems(agent).is_empty()
            && agent
                .gateway_state(&mesh.sites[0].gateways[0].name)
                .unwrap()
                == "up"
    })
    .unwrap();
}

fn see_a_dead_gateway(mesh: &mut Mesh) {
    mesh.gateway(0, 0).kill();
    let agent = &mesh.sites[0].agents[0];
    wait_for("silence is told", PATIENCE, || {
        problems(agent).contains("no gateway answers any more")
    })
    .unwrap();
    let said = ask(agent, "status");
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("silent"), "{}", said.out);
}
