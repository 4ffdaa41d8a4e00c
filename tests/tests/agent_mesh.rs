//! What agents know and use follows who is there: sites, prefixes, gateways and agents that come and
//! go while traffic passes.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use tests::broker::{command, within};
use tests::lab::{skip, wait_for};
use tests::mesh::{Daemon, Lan, Mesh, PATIENCE, Plan};

/// A record without its gateway is forgotten by its goodbye at once.
const GONE: Duration = Duration::from_secs(30);

fn leave(daemon: &mut Daemon) {
    daemon.stop().unwrap();
    let mut leave = command::causeway();
    leave.arg("leave").arg("--state-dir").arg(&daemon.state);
    let leave = within(daemon.namespace.name(), &leave);
    command::run(leave, None).unwrap().expect_success().unwrap();
}

/// The names of the gateways that an agent knows, sorted.
fn gateways(mesh: &Mesh) -> Vec<String> {
    let status = mesh.sites[0].agents[0].status().unwrap();
    let known = status["gateways"].as_array().cloned().unwrap_or_default();
    let names = known.iter().filter_map(|one| one["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_site_that_joins_is_reached_and_one_that_is_revoked_is_not() {
    if skip("a_site_that_joins", &["nft"]) {
        return;
    }
    let layout = Plan::ONE.agents(1);
    let mut mesh = Mesh::up("joins", &[layout, layout]).unwrap();
    let meter = mesh.meter(0, 1).unwrap();
    mesh.add_site(layout).unwrap();
    let site = &mesh.sites[2];
    let token = site.token(&mesh).unwrap();
    let site = &mut mesh.sites[2];
    for daemon in [&mut *site.gateways[0], &mut *site.agents[0]] {
        daemon.join(&token).unwrap();
        daemon.start().unwrap();
    }
    for (from, to) in [(0, 2), (2, 1)] {
        mesh.wait_for_ping(from, to, PATIENCE).unwrap();
    }
    mesh.wait_for_agents(PATIENCE).unwrap();
    let revoke = mesh.trust.operator(&["site", "revoke", "site-3", "--yes"]);
    command::run(revoke, None)
        .unwrap()
        .expect_success()
        .unwrap();
    // Whose it was nobody else is: it stays unreachable, and does not leave in clear.
    let target = mesh.sites[2].worker_address().to_string();
    let agent = &mesh.sites[0].agents[0].namespace;
    let is_routed = || agent.run("ip", &["route", "get", &target]).is_ok();
    wait_for("the way to it goes", PATIENCE, || !is_routed()).unwrap();
    let report = meter.finish();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn a_prefix_that_is_added_is_reached_and_one_that_is_removed_is_not() {
    if skip("a_prefix_that_is_added", &["nft"]) {
        return;
    }
    let layout = Plan::OPEN.agents(1);
    let mesh = Mesh::up("aprefix", &[layout, layout]).unwrap();
    let meter = mesh.meter(0, 1).unwrap();
    let change = |what: &str| {
        let change = mesh
            .trust
            .operator(&["site", what, "site-2", "10.200.0.0/24"]);
        command::run(change, None)
            .unwrap()
            .expect_success()
            .unwrap();
    };
    mesh.sites[1]
        .worker
        .address("eth0", "10.200.0.1/32")
        .unwrap();
    for gateway in &mesh.sites[1].gateways {
        let route = ["route", "add", "10.200.0.0/24", "via", "10.2.0.10"];
        gateway.namespace.run("ip", &route).unwrap();
    }
    change("add-prefix");
    let target: IpAddr = "10.200.0.1".parse().unwrap();
    mesh.sites[0]
        .worker
        .wait_for_ping(target, PATIENCE)
        .unwrap();
    change("remove-prefix");
    wait_for("the prefix is gone", PATIENCE, || {
        mesh.sites[0].worker.ping(target).is_err()
    })
    .unwrap();
    let report = meter.finish();
    assert_eq!(report.lost, 0, "{report:?}");
}

#[test]
fn a_gateway_that_joins_is_used_and_one_that_leaves_is_forgotten() {
    if skip("a_gateway_that_joins", &["nft"]) {
        return;
    }
    let sites = [Plan::OPEN.agents(1), Plan::ONE.agents(1)];
    let mut mesh = Mesh::strangers("second", &sites).unwrap();
    let tokens = [0, 1].map(|site| mesh.sites[site].token(&mesh).unwrap());
    for (site, token) in mesh.sites.iter_mut().zip(&tokens) {
        for daemon in [&mut *site.gateways[0], &mut *site.agents[0]] {
            daemon.join(token).unwrap();
            daemon.start().unwrap();
        }
    }
    mesh.settle().unwrap();
    assert_eq!(gateways(&mesh), ["g11"]);
    let meter = mesh.meter(0, 1).unwrap();
    mesh.gateway(0, 1).join(&tokens[0]).unwrap();
    mesh.gateway(0, 1).start().unwrap();
    mesh.wait_until_up(PATIENCE).unwrap();
    mesh.wait_for_agents(PATIENCE).unwrap();
    assert_eq!(gateways(&mesh), ["g11", "g12"]);
    leave(mesh.gateway(0, 0));
    wait_for("it is forgotten", GONE, || gateways(&mesh) == ["g12"]).unwrap();
    mesh.wait_for_agents(PATIENCE).unwrap();
    let report = meter.finish();
    println!(
        "lost {} of {}, gap {:?}",
        report.lost, report.sent, report.gap
    );
    assert_eq!(report.lost, 0, "{report:?}");
    mesh.watch.assert_clean();
}

#[test]
fn a_gateway_has_a_way_to_an_agent_behind_a_router_for_as_long_as_it_is_a_member() {
    if skip("a_gateway_has_a_way", &["nft"]) {
        return;
    }
    let sites = [Plan::ONE.agents(2).over(Lan::Routed), Plan::ONE.agents(1)];
    let mut mesh = Mesh::up("member", &sites).unwrap();
    let second = mesh.sites[0].agents[1].lan;
    mesh.sites[1]
        .worker
        .wait_for_ping(second, PATIENCE)
        .unwrap();
    let has_way = |mesh: &Mesh| {
        let gateway = &mesh.sites[0].gateways[0].namespace;
        let table = gateway.run("ip", &["route", "show", "table", "7102"]);
        let peers = gateway.sh("bridge fdb show dev causeway-vx");
        let address = second.to_string();
        [table, peers].map(|shown| shown.unwrap_or_default().contains(&address))
    };
    assert_eq!(has_way(&mesh), [true, true]);
    leave(&mut mesh.sites[0].agents[1]);
    wait_for("its way is gone", GONE, || has_way(&mesh) == [false, false]).unwrap();
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    mesh.watch.assert_clean();
}
