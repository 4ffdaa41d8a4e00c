//! `causeway close`, at boot: before there is a network and a daemon, nothing for other sites gets
//! out in clear, and the daemon takes over what it finds.

#![cfg(test)]
#![forbid(unsafe_code)]

use tests::broker::command::{self, Said, causeway};
use tests::broker::within;
use tests::lab::{Namespace, skip};
use tests::mesh::{AgentNode, Mesh, PATIENCE, Plan};

const CLOSED: &str = "unreachable 10.2.0.0/16 metric 4294967295";
const CLOSED6: &str = "unreachable fd00:0:2::/48 dev lo metric 4294967295";
const ROUTES: &str = "ip -4 route show table all proto 199; ip -6 route show table all proto 199";

fn close(machine: &Namespace, agent: &AgentNode) -> Said {
    let mut close = within(machine.name(), &causeway());
    close.arg("close").arg("--state-dir").arg(&agent.state);
    command::run(close, None).unwrap()
}

fn sent(machine: &Namespace, interface: &str) -> u64 {
    let file = format!("/sys/class/net/{interface}/statistics/tx_packets");
    machine
        .run("cat", &[&file])
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// A machine as it boots: its loopback, and later an interface whose router takes everything.
fn boot(mesh: &Mesh, agent: &AgentNode) {
    let machine = mesh.lab.namespace("boot").unwrap();
    let said = close(&machine, agent);
    assert_eq!(said.code, Some(0), "{said:?}");
    let routes = machine.sh(ROUTES).unwrap();
    for line in [CLOSED, CLOSED6] {
        assert!(
            routes.lines().any(|found| found.starts_with(line)),
            "{routes}"
        );
    }
    let table = machine
        .run("nft", &["list", "table", "inet", "causeway"])
        .unwrap();
    let said = close(&machine, agent);
    assert!(said.code == Some(0) && said.out.is_empty(), "{said:?}");
    assert!(said.err.contains("all closed before"), "{said:?}");
    assert_eq!(machine.sh(ROUTES).unwrap(), routes);

    machine
        .sysctl("net.ipv6.conf.default.disable_ipv6", "1")
        .unwrap();
    machine
        .sh("ip link add wan0 type veth peer name far && ip link set wan0 up && ip link set far up")
        .unwrap();
    machine.address("wan0", "192.0.2.7/24").unwrap();
    machine.sh("ip route add default via 192.0.2.1 && ip neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev wan0").unwrap();
    let way = |to: &str| machine.run("ip", &["route", "get", to]).is_ok();
    assert!(!way("10.2.0.10") && way("10.9.0.10"), "{routes}");
    // Without the routes the guard alone holds it back.
    machine
        .sh("ip route flush proto 199; ip -6 route flush proto 199")
        .unwrap();
    assert!(way("10.2.0.10"));
    let before = sent(&machine, "wan0");
    machine.ping([10, 2, 0, 10].into()).unwrap_err();
    assert_eq!(sent(&machine, "wan0"), before, "{table}");
    machine.ping([10, 9, 0, 10].into()).unwrap_err();
    assert!(
        sent(&machine, "wan0") > before,
        "nothing leaves at all: {table}"
    );

    let mut cleanup = within(machine.name(), &causeway());
    cleanup.arg("cleanup");
    command::run(cleanup, None)
        .unwrap()
        .expect_success()
        .unwrap();
    assert_eq!(machine.sh(ROUTES).unwrap(), "");
    assert!(
        !machine
            .run("nft", &["list", "tables"])
            .unwrap()
            .contains("causeway")
    );
}

#[test]
fn nothing_leaves_between_boot_and_the_daemon_which_takes_over_what_it_finds() {
    if skip("close", &["nft"]) {
        return;
    }
    let layouts = [Plan::ONE.agents(1), Plan::ONE.agents(1)];
    let mut mesh = Mesh::up("close", &layouts).unwrap();
    let agent = &mesh.sites[0].agents[0];
    let said = close(&agent.namespace, agent);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.err.contains("nothing to do"), "{said:?}");

    // What a daemon left behind goes on carrying.
    mesh.sites[0].agents[0].kill();
    let agent = &mesh.sites[0].agents[0];
    let routes = agent.namespace.sh(ROUTES).unwrap();
    let said = close(&agent.namespace, agent);
    assert!(said.err.contains("all closed before"), "{said:?}");
    assert_eq!(agent.namespace.sh(ROUTES).unwrap(), routes);
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    boot(&mesh, agent);

    let mut cleanup = within(agent.namespace.name(), &causeway());
    cleanup.arg("cleanup");
    command::run(cleanup, None)
        .unwrap()
        .expect_success()
        .unwrap();
    close(&agent.namespace, agent).expect_success().unwrap();
    let mut monitor = agent.namespace.command("ip");
    monitor.args(["monitor", "route"]);
    let monitor = agent.namespace.spawn(monitor).unwrap();
    let agent = &mut mesh.sites[0].agents[0];
    agent.start().unwrap();
    mesh.wait_for_agents(PATIENCE).unwrap();
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    let events = monitor.output();
    assert!(events.contains("table 7100"), "the monitor looks: {events}");
    let touched = |line: &&str| line.contains("10.2.0.0/16") && line.contains("metric 4294967295");
    assert_eq!(events.lines().find(touched), None, "{events}");
    mesh.watch.assert_clean();
}
