//! `causeway diagnose` on nodes of a mesh, and `causeway routes` for machines without an agent.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use tests::broker::command::{self, Said, causeway};
use tests::broker::within;
use tests::lab::{skip, wait_for};
use tests::mesh::{GatewayNode, Lan, Mesh, Nat, PATIENCE, Plan};

fn ask(gateway: &GatewayNode, words: &[&str]) -> Said {
    let mut asked = within(gateway.namespace.name(), &causeway());
    asked.args(words).arg("--state-dir").arg(&gateway.state);
    command::run(asked, None).unwrap()
}

fn diagnose(gateway: &GatewayNode) -> (Vec<Value>, Said) {
    let runtime = gateway.runtime.to_str().unwrap();
    let words = [
        "diagnose",
        "--metadata",
        "off",
        "--json",
        "--runtime-dir",
        runtime,
    ];
    let said = ask(gateway, &words);
    let told: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
    (told["checks"].as_array().unwrap().clone(), said)
}

fn of<'a>(checks: &'a [Value], name: &str, result: &str) -> Vec<&'a Value> {
    let all = checks.iter();
    all.filter(|check| check["name"] == name && check["result"] == result)
        .collect()
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one gateway's machine is made worse step by step"
)]
fn a_gateway_behind_a_nat_is_looked_at_from_broker_to_path() {
    if skip("a_gateway_behind_a_nat", &["nft", "iptables"]) {
        return;
    }
    let plans = [Nat::Symmetric, Nat::None, Nat::None].map(|nat| Plan { gateways: 1, nat });
    let mut mesh = Mesh::up("diagnose", &plans).unwrap();
    let sound = &mesh.sites[1].gateways[0];
    let is_sound = || {
        let (checks, said) = diagnose(sound);
        let failed = checks.iter().filter(|check| check["result"] == "failed");
        let ports =
            of(&checks, "port-agents", "passed").len() + of(&checks, "port-tunnel", "passed").len();
        failed.count() == 0 && said.code == Some(0) && ports == 2
    };
    wait_for("a sound gateway has no failed check", PATIENCE, is_sound)
        .unwrap_or_else(|error| panic!("{error:#}: {:#?}", diagnose(sound).0));
    let gateway = &mesh.sites[0].gateways[0];
    // Broker and gateways tell how they see it a moment later.
    let knows = || {
        let (checks, _) = diagnose(gateway);
        of(&checks, "nat", "skipped").is_empty()
    };
    wait_for("its address outside is known", PATIENCE, knows).unwrap();
    let (checks, said) = diagnose(gateway);
    println!("diagnose took {:?}", said.took);
    for name in [
        "membership",
        "daemon",
        "broker",
        "clock",
        "lan-address",
        "overlap",
        "tun",
    ] {
        assert_eq!(of(&checks, name, "passed").len(), 1, "{name}: {checks:#?}");
    }
    for name in ["link", "path-mtu"] {
        assert_eq!(of(&checks, name, "passed").len(), 2, "{name}: {checks:#?}");
    }
    assert_eq!(of(&checks, "nat", "warning").len(), 1, "{checks:#?}");
    let far = &mesh.sites[1].gateways[0];
    let (checks, _) = diagnose(far);
    assert_eq!(of(&checks, "nat", "passed").len(), 1, "{checks:#?}");
    // One of each family.
    tried(far, "passed", 2);

    // A container network that is another site's, and somebody's way to a part of it.
    let namespace = &gateway.namespace;
    namespace
        .sh("ip link add docker0 up type bridge && ip address add 10.2.7.1/24 dev docker0 && ip route add 10.3.9.0/24 via 10.1.0.10")
        .unwrap();
    let (checks, said) = diagnose(gateway);
    assert_eq!(said.code, Some(1));
    let found = of(&checks, "overlap", "failed");
    assert_eq!(found.len(), 1, "{checks:#?}");
    let saw = found[0]["saw"].as_str().unwrap();
    assert!(
        saw.contains("10.2.7.0/24") && saw.contains("Docker"),
        "{saw}"
    );
    assert_eq!(of(&checks, "overlap", "warning").len(), 1, "{checks:#?}");

    namespace
        .sh("iptables -P FORWARD DROP && nft 'add table ip early; add chain ip early out { type nat hook postrouting priority 90; }; add rule ip early out oifname causeway0 masquerade'")
        .unwrap();
    let (checks, _) = diagnose(gateway);
    let found = of(&checks, "forward-rules", "failed");
    assert_eq!(found.len(), 1, "{checks:#?}");
    let next = found[0]["next"].as_str().unwrap();
    assert!(next.contains("--open-forward"), "{next}");
    let found = of(&checks, "masquerade", "failed");
    assert_eq!(found.len(), 1, "{checks:#?}");
    // It is tried, too: no packet gets through.
    let found = tried(gateway, "failed", 1);
    let [saw, next] = ["saw", "next"].map(|key| found[0][key].as_str().unwrap());
    assert!(
        saw.contains("is dropped on this host by ip filter FORWARD: policy drop"),
        "{saw}"
    );
    assert!(
        next.contains("--open-forward, or: iptables -I FORWARD -i causeway0"),
        "{next}"
    );
    a_rule_is_named_that_only_a_packet_can_find(gateway);

    mesh.gateway(1, 0).kill();
    let gateway = &mesh.sites[0].gateways[0];
    let is_seen = || !of(&diagnose(gateway).0, "link", "failed").is_empty();
    wait_for("the lost link is told", PATIENCE, is_seen).unwrap();
    mesh.watch.assert_clean();
}

/// The checks of the way from the tunnel to the LAN, once so many have this result: on a busy
/// machine the kernel tells of a packet late.
fn tried(gateway: &GatewayNode, result: &str, count: usize) -> Vec<Value> {
    let mut found = vec![];
    wait_for("packets out of the tunnel are tried", PATIENCE, || {
        let (checks, _) = diagnose(gateway);
        let checks = of(&checks, "tunnel-to-lan", result).into_iter();
        found = checks.cloned().collect();
        found.len() == count
    })
    .unwrap();
    found
}

/// By reading it cannot be said whether it holds.
fn a_rule_is_named_that_only_a_packet_can_find(gateway: &GatewayNode) {
    let namespace = &gateway.namespace;
    namespace
        .sh("iptables -P FORWARD ACCEPT && nft 'add table inet odd; add chain inet odd passing { type filter hook forward priority 5; }; add rule inet odd passing meta length 20-50000 counter drop'")
        .unwrap();
    let found = tried(gateway, "failed", 2);
    let saw = found[0]["saw"].as_str().unwrap();
    assert!(saw.contains("by inet odd passing handle"), "{saw}");
    // What was found out so is in the status as well, until it is gone.
    let is_told = || {
        let status = gateway.status().unwrap();
        let mut problems = status["problems"].as_array().unwrap().iter();
        problems.any(|problem| {
            let what = problem["what"].as_str().unwrap();
            what.contains("is dropped on this host by inet odd passing handle")
        })
    };
    wait_for("status names the rule", PATIENCE, is_told).unwrap();
    namespace.sh("nft delete table inet odd").unwrap();
    wait_for("status has forgotten the rule", PATIENCE, || !is_told()).unwrap();
    // Nothing of the trials stays.
    let left = namespace.sh("nft list tables").unwrap();
    assert!(!left.contains("causeway-trace"), "{left}");
}

#[test]
fn routes_for_linux_take_a_machine_without_an_agent_to_every_site() {
    if skip("routes_for_linux", &["nft"]) {
        return;
    }
    let one = Plan {
        gateways: 1,
        nat: Nat::None,
    };
    let mesh = Mesh::up("routes", &[Plan::OPEN, one]).unwrap();
    let (site, far) = (&mesh.sites[0], &mesh.sites[1]);
    let gateway = &site.gateways[0];
    let worker = &site.worker;
    worker
        .sh("ip route del 10.0.0.0/8 && ip -6 route del fd00::/16")
        .unwrap();
    let complete = || {
        let said = ask(gateway, &["routes", "--for", "linux"]);
        said.out.matches("nexthop via").count() == 4
    };
    // Both gateways' records, with what each has found of its own addresses.
    wait_for("both gateways are known", PATIENCE, complete).unwrap();
    let said = ask(gateway, &["routes", "--for", "linux"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for line in said.out.lines() {
        worker.sh(line).unwrap();
    }
    for target in [far.worker_address(), far.worker_address6()] {
        worker
            .wait_for_ping(target, Duration::from_secs(20))
            .unwrap();
    }
    let told = ask(gateway, &["routes", "--for", "aws", "--json"]);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["prefixes"].as_array().unwrap().len(), 2);
    assert_eq!(told["gateways"].as_array().unwrap().len(), 2);
    let lan: IpAddr = told["gateways"][0]["addresses"][0]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(lan, gateway.lan);
    let said = ask(&far.gateways[0], &["routes", "--for", "gcp"]);
    assert!(
        said.out.contains("--destination-range 10.1.0.0/16"),
        "{said:?}"
    );
    assert!(said.err.contains("can-ip-forward"), "{said:?}");
}

#[test]
fn a_token_tells_enough_to_look_before_joining() {
    if skip("a_token_tells_enough", &["nft"]) {
        return;
    }
    let mesh = Mesh::at_rest::<Plan>("token", &[]).unwrap();
    let token = mesh.trust.token("oslo", "10.9.0.0/16", &[]).unwrap();
    let file = mesh.lab.directory().join("token");
    std::fs::write(&file, token).unwrap();
    let look = || {
        let mut asked = within(mesh.hub.name(), &causeway());
        asked
            .args(["diagnose", "--metadata", "off", "--json", "--token-file"])
            .arg(&file)
            .args(["--state-dir=/nonexistent", "--runtime-dir=/nonexistent"]);
        let said = command::run(asked, None).unwrap();
        let told: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
        told["checks"].as_array().unwrap().clone()
    };
    let checks = look();
    for (name, result) in [
        ("broker", "passed"),
        ("clock", "passed"),
        ("lan-address", "warning"),
        ("membership", "skipped"),
    ] {
        assert_eq!(of(&checks, name, result).len(), 1, "{name}: {checks:#?}");
    }
    mesh.hub.address("wan", "10.9.0.1/24").unwrap();
    assert_eq!(of(&look(), "lan-address", "passed").len(), 1);
}

#[test]
fn an_agent_is_told_whether_foreign_addresses_pass_its_network() {
    if skip("an_agent_is_told", &["nft", "bridge"]) {
        return;
    }
    let open = Plan::ONE.agents(1);
    let mesh = Mesh::up("agents", &[open, open.over(Lan::Checked)]).unwrap();
    for (site, mode, result) in [(0, "direct", "passed"), (1, "vxlan", "warning")] {
        let agent = &mesh.sites[site].agents[0];
        let look = || {
            let mut asked = within(agent.namespace.name(), &causeway());
            asked
                .args(["diagnose", "--metadata", "off", "--json", "--state-dir"])
                .arg(&agent.state)
                .arg("--runtime-dir")
                .arg(&agent.runtime);
            let said = command::run(asked, None).unwrap();
            let told: Value =
                serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{said:?}"));
            told["checks"].as_array().unwrap().clone()
        };
        let is_told = || !of(&look(), "source-destination-check", result).is_empty();
        let what = format!("{mode}: {:#?}", look());
        wait_for(&what, PATIENCE, is_told).unwrap();
        let checks = look();
        for name in ["gateway", "port-agents", "port-vxlan"] {
            assert_eq!(of(&checks, name, "passed").len(), 1, "{name}: {checks:#?}");
        }
        assert_eq!(
            of(&checks, "forwarding", "passed").len(),
            0,
            "an agent forwards nothing"
        );
        let failed: Vec<&Value> = checks
            .iter()
            .filter(|check| check["result"] == "failed")
            .collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}
