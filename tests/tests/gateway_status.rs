//! What people see of a gateway that runs: `causeway status` and `causeway ping`.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::broker::command::{self, Said, causeway};
use tests::lab::skip;
use tests::mesh::{GatewayNode, Mesh, Nat, PATIENCE, Plan};

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};

/// Runs `causeway` with these words for this gateway.
fn ask(gateway: &GatewayNode, line: &str) -> Said {
    let mut asked = causeway();
    asked
        .args(line.split(' '))
        .arg("--runtime-dir")
        .arg(&gateway.runtime);
    command::run(asked, None).unwrap()
}

#[test]
fn status_and_ping_tell_what_is_up_and_what_is_not() {
    if skip("status_and_ping", &["nft"]) {
        return;
    }
    let mut mesh = Mesh::up("status", &[ONE, ONE]).unwrap();
    let (near, far) = (&mesh.sites[0], &mesh.sites[1]);
    let (gateway, other) = (&near.gateways[0], &far.gateways[0]);
    let said = ask(gateway, "status --wait");
    assert_eq!(said.code, Some(0), "{said:?}");
    for word in [&other.name, "connected to", "reachable", "causeway0"] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let told: Value = serde_json::from_str(&ask(gateway, "status --json").out).unwrap();
    assert_eq!(told["links"][0]["state"], "up");

    let site = told["links"][0]["site"].as_str().unwrap().to_owned();
    let said = ask(gateway, &format!("ping {site} --count 3 --interval 0.2"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let summary = format!("{}: 3 of 3 answered, 0 % lost", other.name);
    assert!(said.out.contains(&summary), "{}", said.out);
    let said = ask(gateway, "ping nowhere");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains(&format!("known of {site}")),
        "{}",
        said.err
    );

    mesh.gateway(1, 0).kill();
    let (gateway, other) = (&mesh.sites[0].gateways[0], &mesh.sites[1].gateways[0]);
    let killed = Instant::now();
    let mut said = ask(gateway, "status");
    while said.code == Some(0) || !said.out.contains("PROBLEM gateway") {
        assert!(killed.elapsed() < PATIENCE, "{}", said.out);
        std::thread::sleep(Duration::from_millis(100));
        said = ask(gateway, "status");
    }
    assert_eq!(said.code, Some(1));
    for word in ["down (", "unreachable", "What to do: ", &other.name] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let said = ask(gateway, &format!("ping {site} --count 1"));
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("100 % lost"), "{}", said.out);
    let said = ask(other, "status");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("left by one that was killed"),
        "{}",
        said.err
    );
    mesh.watch.assert_clean();
}

#[test]
fn a_link_by_relay_is_well_and_a_problem() {
    if skip("a_link_by_relay", &["nft"]) {
        return;
    }
    let far = Plan {
        gateways: 1,
        nat: Nat::Symmetric,
    };
    let mesh = Mesh::up("statusrelay", &[far, far]).unwrap();
    let gateway = &mesh.sites[0].gateways[0];
    let said = ask(gateway, "status --wait");
    println!("{}", said.out);
    assert_eq!(said.code, Some(0), "{said:?}");
    for word in ["relay  through a broker", "PROBLEM gateway", "--endpoint"] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let said = ask(gateway, "status");
    assert_eq!(said.code, Some(0), "nothing is down: {said:?}");
    let said = ask(gateway, "ping site-2 --count 1");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("relay through a broker"), "{}", said.out);
    mesh.watch.assert_clean();
}

/// What is well is 0, what stops traffic is 1, and neither depends on how much there is to say.
#[test]
fn the_exit_code_tells_what_stops_traffic() {
    if skip("the_exit_code_tells", &["nft"]) {
        return;
    }
    let mesh = Mesh::up("code", &[ONE, ONE]).unwrap();
    let gateway = &mesh.sites[0].gateways[0];
    mesh.trust.token("vacant", "10.99.0.0/16", &[]).unwrap();
    let wait_for = |word: &str| {
        let begun = Instant::now();
        let mut said = ask(gateway, "status");
        while !said.out.contains(word) {
            assert!(begun.elapsed() < PATIENCE, "{word}: {}", said.out);
            std::thread::sleep(Duration::from_millis(100));
            said = ask(gateway, "status");
        }
        said
    };
    let said = wait_for("NOTE site vacant has no gateway");
    assert!(said.out.contains("All is well"), "{}", said.out);
    assert_eq!(said.code, Some(0));

    let namespace = &gateway.namespace;
    namespace
        .sh("nft add table ip other && nft add chain ip other forward \
             '{ type filter hook forward priority 0; policy drop; }'")
        .unwrap();
    let said = wait_for("PROBLEM the nft chain");
    assert_eq!(said.code, Some(1), "{}", said.out);
    namespace.sh("nft delete table ip other").unwrap();
    let said = wait_for("All is well");
    assert_eq!(said.code, Some(0));

    // Its own fault is not the other side's firewall.
    namespace.sh("ip route del default").unwrap();
    let said = wait_for("this host has no route to");
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("ip route get"), "{}", said.out);
    mesh.watch.assert_clean();
}
