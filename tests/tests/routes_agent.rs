//! The kernel of a node that is no gateway: it reaches the other site through both gateways of its
//! own, in the clear of its LAN or over VXLAN, and what comes in the way is put right or told.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use routeagent::facts::{Exit, Facts, Mode};
use routeagent::{Handle, Kernel, Settings};
use tests::lab::{skip, wait_for};
use tests::node_kernel::{FAR_V4, FAR_V6, LAN, prefix, told};
use tests::site_kernel::{
    AGENT, SiteKernel, agent_facts, arrivals, lan, remote, watch_arrivals, whole,
};

const LIMIT: Duration = Duration::from_secs(20);
const FIRST_PORT: u16 = 20_000;

/// What a busy machine may take for what is promised within half a second.
const REPAIR_LIMIT: Duration = Duration::from_secs(5);

/// Routes that only show that they are heard of.
static MARKS: AtomicU32 = AtomicU32::new(0);

fn started(site: &SiteKernel, mode: Mode) -> Handle {
    site.set_facts(agent_facts(mode, &[1, 2]));
    let handle = site.start(Settings::default()).unwrap();
    site.until(&whole(mode)).unwrap();
    handle
}

/// One datagram of each of so many flows.
fn send(site: &SiteKernel, flows: u16) {
    let [own, _] = lan(AGENT);
    let send = || {
        for flow in 0..flows {
            let socket = UdpSocket::bind((own, FIRST_PORT + flow)).unwrap();
            socket.send_to(b"flow", (FAR_V4, 9000)).unwrap();
        }
    };
    site.node.within(send).unwrap();
}

/// Which wire each flow comes out of.
fn flows(site: &SiteKernel, flows: u16) -> BTreeMap<u16, String> {
    watch_arrivals(&site.far).unwrap();
    send(site, flows);
    let mut found = BTreeMap::new();
    wait_for("all flows", LIMIT, || {
        found = arrivals(&site.far).unwrap();
        found.len() == usize::from(flows)
    })
    .unwrap_or_else(|error| panic!("{error}: {} of {flows}", found.len()));
    let one = |devices: BTreeSet<String>| devices.into_iter().next().unwrap();
    found
        .into_iter()
        .map(|(port, at)| (port, one(at)))
        .collect()
}

/// Lines that `ip monitor` prints about what is ours while `work` is done.
fn events(site: &SiteKernel, work: impl FnOnce()) -> Vec<String> {
    let mut command = site.node.command("ip");
    command.args([
        "monitor", "route", "rule", "nexthop", "link", "neigh", "address",
    ]);
    let log = site.node.spawn(command).unwrap();
    // It is heard once it shows what is done only for it to show.
    let mark = || {
        let probe = MARKS.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = probe.to_be_bytes();
        let line = format!("ip route add 100.100.{high}.{low}/32 dev lo table 4000 proto 77");
        site.node.sh(&line).unwrap();
        format!("100.100.{high}.{low} ")
    };
    wait_for("ip monitor", LIMIT, || {
        mark();
        std::thread::sleep(Duration::from_millis(20));
        log.output().contains("table 4000")
    })
    .unwrap();
    work();
    let last = mark();
    wait_for("the last mark", LIMIT, || log.output().contains(&last)).unwrap();
    let is_ours = |line: &&str| line.contains("199") || line.contains("causeway-vx");
    let output = log.output();
    output.lines().filter(is_ours).map(str::to_owned).collect()
}

fn applied(handle: &Handle, site: &SiteKernel, facts: Facts) {
    let facts = site.set_facts(facts);
    wait_for("facts", LIMIT, || handle.has_applied(&facts)).unwrap();
}

#[test]
fn a_node_reaches_the_other_site_through_its_gateways_either_way() {
    if skip("agent_reaches", &["nft", "bridge"]) {
        return;
    }
    for mode in [Mode::Vxlan, Mode::Direct] {
        let site = SiteKernel::new("reach").unwrap();
        let gateways = site.start_gateways(mode).unwrap();
        let handle = started(&site, mode);
        for far in [FAR_V4, FAR_V6] {
            let address = far.split('/').next().unwrap().parse().unwrap();
            site.node.wait_for_ping(address, LIMIT).unwrap();
        }
        let devices: BTreeSet<String> = flows(&site, 100).into_values().collect();
        assert_eq!(devices.len(), 2, "{mode:?}: both gateways carry");
        assert_eq!(told(&handle.problems()), "", "{mode:?}");
        for gateway in &gateways {
            assert_eq!(told(&gateway.problems()), "", "{mode:?}");
        }
        assert_eq!(site.lost().unwrap(), 0, "{mode:?}");
    }
}

#[test]
fn a_death_is_one_request_and_moves_no_flow_of_the_others() {
    if skip("agent_death", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("death").unwrap();
    let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let handle = started(&site, Mode::Vxlan);
    let before = flows(&site, 200);
    let told = events(&site, || {
        applied(&handle, &site, agent_facts(Mode::Vxlan, &[1]));
        // Also what a look at it all makes of that.
        site.until("test $(ip nexthop | grep -c ' via ') = 1")
            .unwrap();
        std::thread::sleep(Duration::from_millis(300));
    });
    let deleted = |line: &&String| line.starts_with("Deleted id") || line.contains("]Deleted id");
    assert_eq!(told.iter().filter(deleted).count(), 1, "{told:#?}");
    // The kernel tells along what is left of the group of each family.
    assert!(told.len() <= 3, "{told:#?}");
    let after = flows(&site, 200);
    for (port, device) in &before {
        if device == "eth1" {
            assert_eq!(after[port], *device, "flow {port}");
        }
        assert_eq!(after[port], "eth1", "flow {port}");
    }
    assert!(before.values().any(|device| device == "eth2"));
    // Back with one change of each group, and without a change of any route.
    let told = events(&site, || {
        applied(&handle, &site, agent_facts(Mode::Vxlan, &[1, 2]));
        site.until(&whole(Mode::Vxlan)).unwrap();
    });
    let requests = told
        .iter()
        .filter(|line| line.contains("id ") && !line.contains("nhid"));
    assert!(requests.count() <= 3, "{told:#?}");
    assert_eq!(site.lost().unwrap(), 0);
}

#[test]
fn without_a_gateway_that_reaches_it_a_site_is_unreachable_and_closed() {
    if skip("agent_unreachable", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("none").unwrap();
    let handle = started(&site, Mode::Vxlan);
    applied(&handle, &site, agent_facts(Mode::Vxlan, &[]));
    let closed = "ip route show table 7100 | grep -q '^unreachable 10.2.0.0/16' && \
        ip -6 route show table 7101 | grep -q '^unreachable fd00:2::/32' && ! ip nexthop | grep -q 'proto 199'";
    site.until(closed).unwrap();
    let refused = site.node.sh("ping -c1 -W1 10.2.0.5 2>&1; true").unwrap();
    assert!(!refused.contains("1 received"), "{refused}");
    applied(&handle, &site, agent_facts(Mode::Vxlan, &[2]));
    site.until("ip route show table 7100 | grep -q '^10.2.0.0/16 nhid'")
        .unwrap();
    assert_eq!(told(&handle.problems()), "");
    assert_eq!(site.lost().unwrap(), 0);
}

#[test]
fn a_restart_is_not_seen_and_what_is_stale_goes() {
    if skip("agent_restart", &["nft", "bridge"]) {
        return;
    }
    for mode in [Mode::Vxlan, Mode::Direct] {
        let site = SiteKernel::new("again").unwrap();
        let handle = started(&site, mode);
        // The groups are not named for their members any more.
        applied(&handle, &site, agent_facts(mode, &[2]));
        applied(&handle, &site, agent_facts(mode, &[1, 2]));
        site.until(&whole(mode)).unwrap();
        handle.stop();
        let mut again = None;
        let told = events(&site, || {
            let handle = site.start(Settings::default()).unwrap();
            applied(&handle, &site, agent_facts(mode, &[1, 2]));
            again = Some(handle);
        });
        assert_eq!(told, Vec::<String>::new(), "{mode:?}");
        drop(again);
        // One gateway has gone from the mesh while nobody looked.
        let mut fewer = agent_facts(mode, &[1]);
        if let Exit::Gateways(gateways) = &mut fewer.exit {
            gateways
                .gateways
                .retain(|_, gateway| gateway.lan == lan(1)[0]);
        }
        let facts = site.set_facts(fewer);
        let handle = site.start(Settings::default()).unwrap();
        wait_for("facts", LIMIT, || handle.has_applied(&facts)).unwrap();
        let gone = "! ip nexthop | grep -q '10.1.0.2' && ! bridge fdb | grep -q '10.1.0.2' && \
            test $(ip neigh show nud permanent dev causeway-vx 2>/dev/null | wc -l) -le 1";
        site.until(gone).unwrap();
    }
}

#[test]
fn cleanup_leaves_nothing_whatever_was_killed() {
    if skip("agent_cleanup", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("clean").unwrap();
    let mine = "ip nexthop add id 7 via 192.0.2.2 dev outside; ip route add 10.78.0.0/16 nhid 7; \
        bridge fdb add 02:00:00:00:00:99 dev lan self; sysctl -qw net.ipv4.fib_multipath_hash_policy=0";
    site.node.sh(mine).unwrap();
    let before = site.snapshot().unwrap();
    for mode in [Mode::Vxlan, Mode::Direct, Mode::Vxlan] {
        let handle = started(&site, mode);
        handle.stop();
    }
    // As if it had been killed before the interface had its mark.
    site.node.sh("ip link set causeway-vx alias ''").unwrap();
    let cleaned = site.node.within(|| routeagent::cleanup(false)).unwrap();
    let removed = cleaned.unwrap().removed.join("\n");
    for word in [
        "interface causeway-vx",
        "nexthop id ",
        "fib_multipath_hash_policy",
    ] {
        assert!(removed.contains(word), "{word}: {removed}");
    }
    assert_eq!(site.snapshot().unwrap(), before);
}

/// All that the agent ever told, once it has ended.
fn problems_of(handle: &Handle) -> std::thread::JoinHandle<Vec<String>> {
    let mut problems = handle.problems();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let mut all = vec![told(&problems)];
        runtime.unwrap().block_on(async {
            while problems.changed().await.is_ok() {
                all.push(told(&problems));
            }
        });
        all
    })
}

#[test]
fn the_mode_changes_back_and_forth_and_the_kernel_refuses_nothing() {
    if skip("agent_modes", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("modes").unwrap();
    let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let handle = started(&site, Mode::Vxlan);
    let problems = problems_of(&handle);
    for mode in [Mode::Direct, Mode::Vxlan, Mode::Direct, Mode::Vxlan] {
        applied(&handle, &site, agent_facts(mode, &[1, 2]));
        site.until(&whole(mode)).unwrap();
    }
    handle.stop();
    let told = problems.join().unwrap().join("\n");
    assert_eq!(told.trim(), "");
    assert_eq!(site.lost().unwrap(), 0);
}

/// What is taken away, singly and two at once.
const DAMAGE: [&str; 12] = [
    "ip nexthop flush proto 199",
    "ip route del 10.2.0.0/16 table 7100",
    "ip -6 route del fd00:2::/32 table 7100; ip -6 route del fd00:2::/32 table 7101",
    "ip rule del priority 100; ip -6 rule del priority 99",
    "nft flush ruleset",
    "ip link del causeway-vx",
    "ip link set causeway-vx down",
    "bridge fdb del $(bridge fdb show dev causeway-vx | head -1 | cut -d' ' -f1) dev causeway-vx",
    "ip neigh flush dev causeway-vx nud permanent",
    "ip link del causeway-vx & nft flush ruleset; wait",
    "ip nexthop flush proto 199 & ip rule del priority 100; wait",
    "ip link del causeway-vx & ip route del unreachable 10.2.0.0/16 metric 4294967295; wait",
];

#[test]
fn what_is_taken_away_is_back_and_nothing_leaves_in_clear() {
    if skip("agent_repair", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("mend").unwrap();
    let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let handle = started(&site, Mode::Vxlan);
    let mut times = vec![];
    for damage in DAMAGE {
        let begin = Instant::now();
        site.node.sh(damage).unwrap();
        site.until(&whole(Mode::Vxlan)).unwrap();
        times.push((begin.elapsed(), damage));
        // Packets that come meanwhile go the right way or nowhere.
        let _ = site.node.within(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            (0..20).for_each(|_| drop(socket.send_to(b"x", (FAR_V4, 9000))));
        });
        std::thread::sleep(Duration::from_millis(1100).saturating_sub(begin.elapsed()));
    }
    times.sort();
    println!("back, the look for it included: {times:?}");
    assert!(times[times.len() / 2].0 < REPAIR_LIMIT, "{times:?}");
    assert_eq!(site.lost().unwrap(), 0);
    wait_for("no problem", LIMIT, || {
        !told(&handle.problems()).contains("refused")
    })
    .unwrap();
}

#[test]
fn older_kernels_do_with_what_they_have() {
    if skip("agent_older", &["nft", "bridge"]) {
        return;
    }
    let all = Kernel::default();
    for (kernel, group, word) in [
        (
            Kernel {
                resilient: false,
                ..all
            },
            "ip nexthop | grep group | grep -qv resilient",
            "resilient",
        ),
        (
            Kernel {
                nexthops: false,
                resilient: false,
                ..all
            },
            "! ip nexthop | grep -q 'proto 199'",
            "next hop objects",
        ),
        (
            Kernel { v6: false, ..all },
            "ip route show table 7100 | grep -q 'via 10.1.0.1 dev causeway-vx.* onlink'",
            "IPv6",
        ),
    ] {
        let site = SiteKernel::new("older").unwrap();
        let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
        site.set_facts(agent_facts(Mode::Vxlan, &[1, 2]));
        let settings = Settings {
            use_kernel: kernel,
            ..Settings::default()
        };
        let handle = site.start(settings).unwrap();
        let two = "test $(ip route show table 7100 | grep -c 'nexthop via') = 2";
        site.until(&format!("{two} && {group}")).unwrap();
        wait_for(word, LIMIT, || told(&handle.problems()).contains(word)).unwrap();
        let devices: BTreeSet<String> = flows(&site, 100).into_values().collect();
        assert_eq!(devices.len(), 2, "{word}");
        // One dies, and all goes through the other.
        applied(&handle, &site, agent_facts(Mode::Vxlan, &[2]));
        let devices: BTreeSet<String> = flows(&site, 100).into_values().collect();
        assert_eq!(devices, BTreeSet::from(["eth2".to_owned()]), "{word}");
        let problems = told(&handle.problems());
        assert!(!problems.contains("refused"), "{problems}");
        let again = events(&site, || {
            handle.stop();
            let handle = site.start(settings_of(kernel)).unwrap();
            applied(&handle, &site, agent_facts(Mode::Vxlan, &[2]));
        });
        assert_eq!(again, Vec::<String>::new(), "{word}");
    }
}

fn settings_of(kernel: Kernel) -> Settings {
    Settings {
        use_kernel: kernel,
        ..Settings::default()
    }
}

#[test]
fn what_others_have_taken_is_told_and_the_rest_works() {
    if skip("agent_taken", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("taken").unwrap();
    let taken = "ip link add causeway-vx type bridge; \
        ip route add 10.99.0.0/16 dev lan table 7100; \
        ip route add 10.98.0.0/16 dev lan proto 66";
    site.node.sh(taken).unwrap();
    let mut facts = agent_facts(Mode::Vxlan, &[1, 2]);
    // As the node's own network, and over its gateways.
    facts
        .prefixes
        .insert(prefix("192.0.2.0/24"), remote(&[1, 2]));
    facts
        .prefixes
        .insert(prefix("10.1.0.0/24"), remote(&[1, 2]));
    site.set_facts(facts.clone());
    let handle = site.start(Settings::default()).unwrap();
    let problems = handle.problems();
    for word in [
        "an interface causeway-vx that Causeway has not made",
        "routes in our table 7100, as for 10.99.0.0/16",
        "192.0.2.0/24 of site berlin overlaps",
        "10.1.0.0/24 of site berlin covers",
    ] {
        wait_for(word, LIMIT, || told(&problems).contains(word))
            .unwrap_or_else(|error| panic!("{error}: {}", told(&problems)));
    }
    // Closed, since nothing leads there.
    site.until("ip route | grep -q '^unreachable 10.2.0.0/16'")
        .unwrap();
    // Without the one thing the rest works.
    site.node.sh("ip link del causeway-vx").unwrap();
    site.until("ip route show table 7100 | grep -q '^10.2.0.0/16 nhid'")
        .unwrap();
    wait_for("no word", LIMIT, || {
        !told(&problems).contains("has not made")
    })
    .unwrap();
    assert_eq!(
        site.node
            .sh("ip route show 10.98.0.0/16")
            .unwrap()
            .lines()
            .count(),
        1
    );
}

#[test]
fn a_port_that_is_taken_and_a_gateway_out_of_reach_are_told() {
    if skip("agent_port", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("port").unwrap();
    let socket = site
        .node
        .within(|| UdpSocket::bind(("0.0.0.0", 7803)))
        .unwrap();
    let mut facts = agent_facts(Mode::Vxlan, &[1, 2]);
    site.set_facts(facts.clone());
    let handle = site.start(Settings::default()).unwrap();
    let problems = handle.problems();
    wait_for("the port", LIMIT, || {
        told(&problems).contains("UDP port 7803")
    })
    .unwrap();
    drop(socket);
    site.until(&whole(Mode::Vxlan)).unwrap();
    wait_for("no word", LIMIT, || told(&problems).is_empty()).unwrap();
    let Exit::Gateways(gateways) = &mut facts.exit else {
        unreachable!()
    };
    gateways.mode = Mode::Direct;
    for gateway in gateways.gateways.values_mut() {
        if gateway.lan == lan(2)[0] {
            gateway.lan = "172.31.0.2".parse().unwrap();
            gateway.other = None;
        }
    }
    applied(&handle, &site, facts);
    let word = "gateway node2 at 172.31.0.2 is in no network of this node";
    wait_for(word, LIMIT, || told(&problems).contains(word)).unwrap();
    let one = format!(
        "test $(ip route show table 7100 | grep -c 'via 10.1.0.1 dev {LAN}') = 1 && ! ip link show causeway-vx 2>/dev/null"
    );
    site.until(&one).unwrap();
}
