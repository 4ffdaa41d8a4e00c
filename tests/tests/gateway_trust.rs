//! Who is let in and who is put out, by daemons at work.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use tests::broker::{command, join_command, within};
use tests::lab::{skip, wait_for};
use tests::mesh::{Mesh, Nat, PATIENCE, Plan, rounds};

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};

fn revoke(mesh: &Mesh, site: &str) -> Instant {
    let revoke = mesh.trust.operator(&["site", "revoke", site, "--yes"]);
    let begin = Instant::now();
    command::run(revoke, None)
        .unwrap()
        .expect_success()
        .unwrap();
    begin
}

/// From the command on: its own work is part of what the operator waits for.
fn accepted_after_revocation(mesh: &Mesh, limit: Duration) -> Duration {
    let meters = [mesh.meter(2, 0).unwrap(), mesh.meter(0, 2).unwrap()];
    std::thread::sleep(Duration::from_millis(500));
    let begin = revoke(mesh, "site-3");
    std::thread::sleep(limit + Duration::from_secs(1));
    let mut longest = Duration::ZERO;
    for meter in meters {
        let report = meter.finish();
        assert!(report.lost > 0 && report.lost < report.sent, "{report:?}");
        let last = report.last().unwrap();
        longest = longest.max(last.saturating_duration_since(begin));
    }
    println!("last packet accepted {longest:?} after the revocation");
    longest
}

#[test]
fn nothing_of_a_revoked_site_is_accepted_two_seconds_later() {
    if skip("nothing_of_a_revoked_site", &["nft"]) {
        return;
    }
    for _ in 0..rounds(1) {
        let mesh = Mesh::up("revoked", &[ONE, ONE, ONE]).unwrap();
        let limit = Duration::from_secs(2);
        let meter = mesh.meter(1, 0).unwrap();
        assert!(accepted_after_revocation(&mesh, limit) <= limit);
        let others = meter.finish();
        assert_eq!(
            others.lost, 0,
            "the revocation disturbed another site: {others:?}"
        );
        mesh.watch.assert_clean();
    }
}

#[test]
fn a_gateway_that_was_revoked_says_so_and_is_not_ready() {
    if skip("a_gateway_that_was_revoked", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::up("putout", &[ONE, ONE]).unwrap();
    revoke(&mesh, "site-2");
    for is_started_again in [false, true] {
        let gateway = mesh.gateway(1, 0);
        if is_started_again {
            gateway.stop().unwrap();
            gateway.start().unwrap();
        }
        wait_for("it says that it was revoked", PATIENCE, || {
            gateway.log().contains("site was revoked")
                && gateway
                    .status()
                    .is_ok_and(|status| status["ready"] == false)
        })
        .unwrap();
        let status = gateway.status().unwrap();
        let problems = status["problems"].to_string();
        assert!(problems.contains("site was revoked"), "{problems}");
        let log = gateway.log();
        let told = log.matches("site was revoked").count();
        assert_eq!(told, 1, "{log}");
    }
    let gateway = mesh.gateway(1, 0);
    gateway.stop().unwrap();
    let join = join_command(&gateway.state, &gateway.name);
    let said = command::run(within(gateway.namespace.name(), &join), None).unwrap();
    said.assert_refused(&["no longer part of the mesh", "site was revoked"]);
}

/// Only one site's gateway hears of it from the broker; the rest from each other.
#[test]
fn a_revocation_spreads_from_gateway_to_gateway() {
    if skip("a_revocation_spreads", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("gossip", &[ONE, ONE, ONE]).unwrap();
    mesh.internet
        .sh("nft add table ip away &&
             nft add chain ip away pass '{ type filter hook forward priority 0; }' &&
             nft add rule ip away pass iifname { g11, g31 } oifname hub drop")
        .unwrap();
    let limit = Duration::from_secs(10);
    assert!(accepted_after_revocation(&mesh, limit) <= limit);
    mesh.watch.assert_clean();
}

#[test]
fn a_prefix_added_to_a_site_is_reached_without_disturbing_anyone() {
    if skip("a_prefix_added", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("prefix", &[ONE, ONE]).unwrap();
    let meter = mesh.meter(0, 1).unwrap();
    let worker = &mesh.sites[1].worker;
    worker.address("eth0", "10.200.0.1/32").unwrap();
    let gateway = &mesh.sites[1].gateways[0].namespace;
    gateway
        .run("ip", &["route", "add", "10.200.0.0/24", "via", "10.2.0.10"])
        .unwrap();
    let add = mesh
        .trust
        .operator(&["site", "add-prefix", "site-2", "10.200.0.0/24"]);
    command::run(add, None).unwrap().expect_success().unwrap();
    let target = "10.200.0.1".parse().unwrap();
    mesh.sites[0]
        .worker
        .wait_for_ping(target, PATIENCE)
        .unwrap();
    let remove = mesh
        .trust
        .operator(&["site", "remove-prefix", "site-2", "10.200.0.0/24"]);
    command::run(remove, None)
        .unwrap()
        .expect_success()
        .unwrap();
    wait_for("the prefix is gone", PATIENCE, || {
        mesh.sites[0].worker.ping(target).is_err()
    })
    .unwrap();
    let report = meter.finish();
    assert_eq!(report.lost, 0, "{report:?}");
}

/// A restored snapshot, or a copied image: both run with one key.
#[test]
fn two_nodes_with_one_key_are_told() {
    if skip("two_nodes_with_one_key", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::at_rest("clone", &[Plan::OPEN, ONE]).unwrap();
    let original = mesh.sites[0].gateways[0].state.clone();
    let clone = mesh.sites[0].gateways[1].state.clone();
    std::fs::remove_dir_all(&clone).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&original, &clone])
        .status()
        .unwrap();
    assert!(copied.success());
    mesh.start_gateways().unwrap();
    let begin = Instant::now();
    wait_for("someone tells of two nodes with one key", PATIENCE, || {
        let gateways = mesh.sites.iter().flat_map(|site| &site.gateways);
        let mut statuses = gateways.filter_map(|gateway| gateway.status().ok());
        statuses.any(|status| {
            let problems = status["problems"].to_string();
            problems.contains("use its key")
        })
    })
    .unwrap();
    println!("told after {:?}", begin.elapsed());
    tells_of_its_own_key(&mut mesh);
    mesh.watch.assert_clean();
}

/// The copy ends, the other site still shuts the key out, and who is shut out must not say that
/// all is well.
fn tells_of_its_own_key(mesh: &mut Mesh) {
    wait_for("the other site shuts the key out", PATIENCE, || {
        let link = mesh.sites[1].gateways[0].link("g11");
        link.is_ok_and(|link| link["why"] == "two_of_one_key")
    })
    .unwrap();
    mesh.gateway(0, 1).kill();
    let original = &mesh.sites[0].gateways[0];
    wait_for("the one that is left learns of it", PATIENCE, || {
        let status = original.status().unwrap();
        status["links"][0]["why"] == "shut_out"
            && status["links"][0]["state"] != "up"
            && status["problems"].to_string().contains("this node's key")
    })
    .unwrap();
    let link = mesh.sites[1].gateways[0].link("g11").unwrap();
    assert_eq!(link["why"], "two_of_one_key", "it was over already: {link}");
}

#[test]
fn an_interface_deleted_under_the_daemon_is_made_again() {
    if skip("an_interface_deleted", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("deleted", &[ONE, ONE]).unwrap();
    for _ in 0..rounds(2) {
        let meter = mesh.meter(0, 1).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let gateway = &mesh.sites[0].gateways[0].namespace;
        gateway.run("ip", &["link", "delete", "causeway0"]).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let report = meter.finish();
        println!("gap {:?}", report.gap);
        assert!(report.gap <= Duration::from_millis(1500), "{report:?}");
        assert!(report.lost > 0, "the interface was not gone at all");
    }
    mesh.watch.assert_clean();
}
