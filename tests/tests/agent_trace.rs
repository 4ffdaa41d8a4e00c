//! Agents' probes on their way through real kernels, and what `causeway trace` says of packets.

#![cfg(test)]
#![forbid(unsafe_code)]

use serde_json::Value;
use tests::broker::command::{self, causeway};
use tests::broker::within;
use tests::lab::{skip, wait_for};
use tests::mesh::{Daemon, Lan, Mesh, PATIENCE, Plan};

/// Both gateways of the first site, as its agent sees them.
const GATEWAYS: [&str; 2] = ["g11", "g12"];

fn probe(mesh: &Mesh, gateway: &str) -> Option<String> {
    let status = mesh.sites[0].agents[0].status().ok()?;
    let mut all = status["gateways"].as_array()?.iter();
    let found = all.find(|one| one["name"] == gateway)?;
    found["probe"].as_str().map(str::to_owned)
}

/// Those that packets of other sites are sent to.
fn carrying(mesh: &Mesh) -> Vec<String> {
    let status = mesh.sites[0].agents[0].status().unwrap_or_default();
    let all = status["gateways"].as_array().cloned().unwrap_or_default();
    let carrying = all.iter().filter(|one| one["carries"] == true);
    let names = carrying.filter_map(|one| one["name"].as_str());
    names.map(str::to_owned).collect()
}

#[track_caller]
fn wait_for_probe(mesh: &Mesh, gateway: &str, wanted: &str) {
    let what = format!("the probe of {gateway} is {wanted}");
    let is_so = || probe(mesh, gateway).as_deref() == Some(wanted);
    wait_for(&what, PATIENCE, is_so).unwrap_or_else(|error| {
        let status = mesh.sites[0].agents[0].status();
        panic!("{error:#}: {status:#?}")
    });
}

fn trace(on: &Daemon, words: &[&str]) -> Value {
    let mut trace = causeway();
    trace.args(["trace", "--json"]).args(words);
    trace.arg("--runtime-dir").arg(&on.runtime);
    let said = command::run(within(on.namespace.name(), &trace), None).unwrap();
    serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.err))
}

fn step<'a>(trace: &'a Value, decision: &str) -> &'a str {
    let steps = trace["steps"].as_array();
    let mut found = steps.into_iter().flatten();
    let found = found.find(|step| step["decision"] == decision);
    found
        .and_then(|step| step["what"].as_str())
        .unwrap_or_else(|| panic!("no {decision} in {trace:#}"))
}

#[test]
fn a_probe_passes_as_packets_of_the_mesh_do_and_a_forward_drop_eats_it() {
    if skip(
        "a_probe_passes_as_packets_of_the_mesh_do_and_a_forward_drop_eats_it",
        &["ip", "nft"],
    ) {
        return;
    }
    let mesh = Mesh::up("probes", &[Plan::OPEN.agents(1), Plan::ONE.agents(1)]).unwrap();
    for gateway in GATEWAYS {
        wait_for_probe(&mesh, gateway, "passed");
    }
    let gateway = &mesh.sites[0].gateways[0].namespace;
    gateway
        .sh("nft add table ip eater &&
             nft add chain ip eater pass '{ type filter hook forward priority 10; policy drop; }'")
        .unwrap();
    wait_for_probe(&mesh, GATEWAYS[0], "failed");
    assert_eq!(probe(&mesh, GATEWAYS[1]).as_deref(), Some("passed"));
    // It answers hellos, and nothing is sent into it while another passes.
    wait_for("the other carries all", PATIENCE, || {
        carrying(&mesh) == GATEWAYS[1..]
    })
    .unwrap();
    gateway.sh("nft delete table ip eater").unwrap();
    wait_for_probe(&mesh, GATEWAYS[0], "passed");
    wait_for("both carry", PATIENCE, || carrying(&mesh) == GATEWAYS).unwrap();
}

#[test]
fn a_trace_names_the_decisions_of_agent_and_gateway_and_where_a_packet_is_dropped() {
    if skip(
        "a_trace_names_the_decisions_of_agent_and_gateway_and_where_a_packet_is_dropped",
        &["ip", "nft"],
    ) {
        return;
    }
    let mut mesh = Mesh::up("trace", &[Plan::OPEN.agents(1), Plan::ONE.agents(1)]).unwrap();
    let (worker, far) = ("10.1.0.10", "10.2.0.10");
    let flow = ["--proto=udp", "--sport=40001", "--dport=53"];
    let on = |mesh: &Mesh, from: &str, to: &str, more: &[&str]| -> [Value; 2] {
        let words = [&[from, to], more].concat();
        let site = &mesh.sites[0];
        [&*site.agents[0], &*site.gateways[0]].map(|daemon| trace(daemon, &words))
    };
    let [agent, gateway] = on(&mesh, worker, far, &flow);
    assert_eq!(agent["verdict"], "passes", "{agent:#}");
    assert!(step(&agent, "route").contains("table 7101"), "{agent:#}");
    let named = step(&agent, "gateway");
    assert!(GATEWAYS.iter().any(|one| named.starts_with(one)), "{named}");
    assert_eq!(gateway["verdict"], "passes", "{gateway:#}");
    assert!(
        step(&gateway, "route").contains("table 7100"),
        "{gateway:#}"
    );
    assert!(step(&gateway, "gateway").starts_with("g21 of site site-2"));
    assert!(step(&gateway, "link").starts_with("up, direct path"));

    for (from, to, more, reason) in [
        ("10.9.0.1", far, vec![], "source"),
        (worker, far, vec!["--size=9000", "--df"], "too_big"),
    ] {
        for trace in on(&mesh, from, to, &more) {
            assert_eq!(trace["reason"], reason, "{trace:#}");
        }
    }
    for trace in on(&mesh, worker, "203.0.113.1", &[]) {
        assert_eq!(trace["verdict"], "not_mesh", "{trace:#}");
    }
    for trace in on(&mesh, worker, "10.1.0.2", &[]) {
        assert_eq!(trace["verdict"], "local", "{trace:#}");
    }
    let [others, _] = on(&mesh, "10.1.0.99", far, &[]);
    assert_eq!(others["verdict"], "elsewhere", "{others:#}");
    let [_, arrived] = on(&mesh, far, worker, &[]);
    assert_eq!(arrived["verdict"], "passes", "{arrived:#}");

    mesh.gateway(1, 0).kill();
    let reasons = |mesh: &Mesh| on(mesh, worker, far, &flow).map(|trace| trace["reason"].clone());
    let wanted = ["site_unreachable", "link_down"].map(Value::from);
    wait_for("the site is lost", PATIENCE, || reasons(&mesh) == wanted)
        .unwrap_or_else(|error| panic!("{error:#}: {:#?}", on(&mesh, worker, far, &flow)));
}

/// Rules of other programs are put in and taken out again between traces.
#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one way of a packet, closed in one place after the other"
)]
fn a_trace_follows_vxlan_and_names_the_rule_that_drops() {
    if skip(
        "a_trace_follows_vxlan_and_names_the_rule_that_drops",
        &["ip", "nft", "bridge"],
    ) {
        return;
    }
    let sites = [Plan::ONE.agents(1), Plan::ONE.agents(1)];
    let mesh = Mesh::up("tracevx", &[sites[0].over(Lan::Routed), sites[1]]).unwrap();
    let (site, far) = (&mesh.sites[0], "10.2.0.10");
    let (agent, gateway) = (&*site.agents[0], &*site.gateways[0]);
    let worker = agent.status().unwrap()["lan_address"].clone();
    let worker = worker.as_str().unwrap();
    // A tap of a virtual machine is no tunnel of ours.
    let tap = "ip tuntap add name vnet0 mode tap && ip link set vnet0 up";
    gateway.namespace.sh(tap).unwrap();
    let flow = ["--proto=tcp", "--dport=443"];
    let on =
        |daemon: &Daemon, from: &str, to: &str| trace(daemon, &[&[from, to], &flow[..]].concat());

    let passes = |trace: &Value| trace["verdict"] == "passes" && trace["sure"] == true;
    let outward = on(agent, worker, far);
    assert!(passes(&outward), "{outward:#}");
    assert!(
        step(&outward, "route").contains("by causeway-vx"),
        "{outward:#}"
    );
    assert!(
        step(&outward, "gateway").contains("by VXLAN"),
        "{outward:#}"
    );
    let handed = on(gateway, worker, far);
    assert!(passes(&handed), "{handed:#}");
    assert!(
        step(&handed, "route").contains("from causeway-vx"),
        "{handed:#}"
    );
    let back = on(gateway, far, worker);
    assert!(passes(&back), "{back:#}");
    assert!(
        step(&back, "route").contains("table 7102: via fe80::"),
        "{back:#}"
    );
    let arrived = on(agent, far, worker);
    assert!(passes(&arrived), "{arrived:#}");
    assert!(
        step(&arrived, "gateway").contains("by causeway-vx"),
        "{arrived:#}"
    );

    let dropped = |daemon: &Daemon, (from, to): (&str, &str), chain: &str, rule: &str| {
        let lines = format!(
            "add table inet eater; add chain inet eater c {{ type filter hook {chain} }} ; {rule}"
        );
        daemon
            .namespace
            .run_with_input("nft", &["-f", "-"], &lines)
            .unwrap();
        let said = on(daemon, from, to);
        daemon.namespace.sh("nft delete table inet eater").unwrap();
        said
    };
    let [input, forward, output] =
        ["input", "forward", "output"].map(|hook| format!("{hook} priority 0; policy accept;"));
    let cases = [
        (
            agent,
            (far, worker),
            &input,
            "add rule inet eater c tcp dport 443 ct state new drop",
        ),
        (
            agent,
            (worker, far),
            &output,
            "add rule inet eater c ip daddr 10.2.0.0/16 reject",
        ),
        (
            gateway,
            (worker, far),
            &forward,
            "add rule inet eater c oifname causeway0 drop",
        ),
        (
            gateway,
            (far, worker),
            &forward,
            "add rule inet eater c ct state != established drop",
        ),
    ];
    for (daemon, way, chain, rule) in cases {
        let said = dropped(daemon, way, chain, rule);
        assert_eq!(said["reason"], "filter", "{rule}: {said:#}");
        assert!(
            said["because"]
                .as_str()
                .unwrap()
                .contains("inet eater c handle"),
            "{said:#}"
        );
    }
    let unsure = "add rule inet eater c ip daddr 10.2.0.0/16 limit rate 1/second drop";
    let said = dropped(agent, (worker, far), &output, unsure);
    assert_eq!(
        (&said["verdict"], &said["sure"]),
        (&"passes".into(), &false.into()),
        "{said:#}"
    );
    assert!(
        step(&said, "filter").contains("cannot be told for sure"),
        "{said:#}"
    );

    let translated = "add table ip led; add chain ip led o { type nat hook output priority -100; }; add rule ip led o ip daddr 10.2.0.10 dnat to 192.0.2.7";
    agent
        .namespace
        .run_with_input("nft", &["-f", "-"], translated)
        .unwrap();
    let said = on(agent, worker, far);
    assert_eq!(said["reason"], "translated", "{said:#}");
}
