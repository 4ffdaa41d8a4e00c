//! Which address of a machine is its own in its site, where it has others that lead out.

#![cfg(test)]
#![forbid(unsafe_code)]

use tests::echo::Echo;
use tests::lab::{Namespace, skip};
use tests::mesh::{Mesh, PATIENCE, Plan};

/// Addresses on which something of ours is listened to for this site's own machines.
fn listened_to(machine: &Namespace) -> Vec<String> {
    let all = machine
        .run("ss", &["-lntuH", "sport", "=", ":7802"])
        .unwrap();
    let local = all
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4));
    local.map(str::to_owned).collect()
}

#[test]
fn a_site_of_ipv6_alone_is_served_though_its_machines_have_ipv4_uplinks() {
    if skip("only_v6", &["nft", "ss"]) {
        return;
    }
    let layouts = [Plan::ONE.agents(2).only_v6(), Plan::ONE.agents(1)];
    let mut mesh = Mesh::at_rest("only-v6", &layouts).unwrap();
    // The gateway and one agent find their addresses; the other is given its own.
    mesh.gateway(0, 0).is_told_address = false;
    mesh.sites[0].agents[0].is_told_address = false;
    mesh.start_all().unwrap();
    let (near, far) = (&mesh.sites[0], &mesh.sites[1]);
    for agent in &near.agents {
        let status = agent.status().unwrap();
        assert_eq!(status["lan_address"], agent.lan6.to_string(), "{status}");
        assert_eq!(status["problems"].as_array().unwrap().len(), 0, "{status}");
        let there = Echo::to(far.worker_address6()).payload(1400);
        there.until_reply(&agent.namespace, PATIENCE).unwrap();
        let back = Echo::to(agent.lan6).payload(1400);
        back.until_reply(&far.agents[0].namespace, PATIENCE)
            .unwrap();
    }
    let gateway = near.gateways[0].lan.to_string();
    let sockets = listened_to(&near.gateways[0].namespace);
    let own = format!("[{gateway}]:7802");
    assert_eq!(sockets, [own.clone(), own], "hellos and the way to brokers");
    for agent in &near.agents {
        let own = format!("[{}]:7802", agent.lan6);
        assert_eq!(listened_to(&agent.namespace), [own]);
    }
    mesh.watch.assert_clean();
}
