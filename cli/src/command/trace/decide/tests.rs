use std::net::IpAddr;

use proto::key::SigningKey;
use routeagent::guard::Hook;
use routeagent::inspect::{Finding, ForeignRule, Packets, Program};

use super::super::packet::Protocol;
use super::*;

/// Of a virtual machine: the same kind as the tunnel, and before it.
const TAP: u32 = 1;
const LAN: u32 = 2;
const TUN: u32 = 3;
const WAN: u32 = 4;
const VX: u32 = 5;

const WORKER: &str = "10.1.0.10";
const FAR: &str = "10.2.0.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str, site: &str, state: &str, gateways: &[&str]) -> Prefix {
    Prefix {
        prefix: text.to_owned(),
        site: site.to_owned(),
        state: state.to_owned(),
        gateways: gateways.iter().map(|name| (*name).to_owned()).collect(),
        by_siblings: false,
        mtu: Some(1400),
    }
}

fn prefixes() -> Vec<Prefix> {
    vec![
        prefix("10.1.0.0/16", "here", "local", &[]),
        prefix("10.2.0.0/16", "far", "reachable", &["f1", "f2"]),
        prefix("10.3.0.0/16", "lost", "unreachable", &[]),
        prefix("10.4.0.0/16", "torn", "quarantined", &[]),
        prefix("10.5.0.0/16", "bare", "no_gateway", &[]),
    ]
}

fn link(number: u8, name: &str, site: &str, state: &str) -> Link {
    Link {
        site: site.to_owned(),
        gateway: name.to_owned(),
        identity: SigningKey::from_seed(&[number; 32]).public().to_string(),
        state: state.to_owned(),
        why_text: (state != "up").then(|| "nothing of it arrives any more".to_owned()),
        path: Some("direct".to_owned()),
        endpoint: Some("192.0.2.1:51820".to_owned()),
        datapath: "wireguard".to_owned(),
        mtu: 1400,
        carries: state == "up",
        ..Link::default()
    }
}

fn gateway() -> Told {
    Told::Gateway(Box::new(gateway::status::Status {
        site: "here".to_owned(),
        node: "g1".to_owned(),
        tun: "causeway0".to_owned(),
        prefixes: prefixes(),
        links: vec![
            link(1, "f1", "far", "up"),
            link(2, "f2", "far", "up"),
            link(3, "l1", "lost", "down"),
        ],
        ..Default::default()
    }))
}

fn agent() -> Told {
    let near = |name: &str, address: &str, state: &str| routeagent::status::Gateway {
        name: name.to_owned(),
        address: address.to_owned(),
        state: state.to_owned(),
        ..Default::default()
    };
    Told::Agent(Box::new(routeagent::status::Status {
        site: "here".to_owned(),
        node: "w1".to_owned(),
        lan_address: Some(WORKER.to_owned()),
        prefixes: prefixes(),
        gateways: vec![
            near("g1", "10.1.0.1", "up"),
            near("g2", "10.1.0.2", "silent"),
        ],
        ..Default::default()
    }))
}

fn packet(source: &str, destination: &str) -> Packet {
    Packet {
        source: ip(source),
        destination: ip(destination),
        protocol: Protocol::Udp,
        source_port: 40000,
        destination_port: 53,
        size: 100,
        whole: false,
    }
}

fn out(device: u32, via: Option<&str>, table: u32) -> Way {
    Way::Out {
        device,
        via: via.map(ip),
        source: None,
        table,
        mtu: None,
    }
}

/// Of a machine with this address: its site on the LAN, the rest as `far` says.
fn trace_with(told: &Told, own: &str, packet: &Packet, far: Way) -> Trace {
    let open = |_: &Packets| vec![];
    trace_past((told, own), packet, far, &open)
}

/// The same with rules that drop.
fn trace_past(
    (told, own): (&Told, &str),
    packet: &Packet,
    far: Way,
    drops: &dyn Fn(&Packets) -> Vec<Finding>,
) -> Trace {
    let interface = |name: &str, kind: Option<&str>, address: Option<&str>| Interface {
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        addresses: address.map(ip).into_iter().collect(),
        ..Interface::default()
    };
    let interfaces = BTreeMap::from([
        (LAN, interface("eth0", None, Some(own))),
        (TAP, interface("vnet0", Some("tun"), None)),
        (VX, interface("causeway-vx", Some("vxlan"), None)),
        (TUN, interface("causeway0", Some("tun"), None)),
        (WAN, interface("wan0", None, Some("192.0.2.9"))),
    ]);
    let own = ip(own);
    let look_up = |question: &Question| {
        Ok(match question.destination {
            to if to == own => Way::Local,
            IpAddr::V4(to) if to.octets()[..2] == [10, 1] => out(LAN, None, 254),
            IpAddr::V4(_) | IpAddr::V6(_) => far.clone(),
        })
    };
    // One port is led elsewhere.
    let translated = |packets: &Packets| match packets.port {
        Some(5353) => vec![finding("dnat to 192.0.2.5", true)],
        Some(_) | None => vec![],
    };
    let kernel = Kernel {
        interfaces,
        look_up: &look_up,
        rule_of: &|table, _| (table == 7100).then_some(100),
        filters: Filters {
            drops,
            translations: &translated,
            unread: None,
        },
    };
    decide(told, packet, &kernel)
}

fn finding(verdict: &str, certain: bool) -> Finding {
    let rule = ForeignRule {
        program: Program::Nft,
        family: "inet",
        table: "host".to_owned(),
        chain: "some".to_owned(),
        base_chain: "some".to_owned(),
        hook: None,
        priority: 0,
        handle: Some(7),
        text: format!("ip daddr 10.0.0.0/8 {verdict}"),
        verdict: verdict.to_owned(),
        remove: Some("nft delete rule inet host some handle 7".to_owned()),
    };
    Finding { rule, certain }
}

fn on_gateway(packet: &Packet) -> Trace {
    trace_with(&gateway(), "10.1.0.1", packet, out(TUN, None, 7100))
}

fn on_agent(packet: &Packet, via: &str) -> Trace {
    trace_with(&agent(), WORKER, packet, out(LAN, Some(via), 7100))
}

fn said(trace: &Trace, decision: Decision) -> &str {
    let step = trace.steps.iter().find(|step| step.decision == decision);
    &step
        .unwrap_or_else(|| panic!("{decision:?}: {trace:#?}"))
        .what
}

#[track_caller]
fn assert_dropped(trace: &Trace, reason: Reason, words: &str) {
    assert_eq!(trace.reason, Some(reason), "{trace:#?}");
    assert_eq!(trace.verdict, Verdict::Dropped);
    assert!(trace.because.contains(words), "{}", trace.because);
    assert!(trace.next.is_some());
}

#[test]
fn a_packet_of_a_worker_is_followed_through_its_gateway_with_each_decision_named() {
    let trace = on_gateway(&packet(WORKER, FAR));
    assert_eq!(trace.verdict, Verdict::Passes, "{trace:#?}");
    assert!(said(&trace, Decision::Destination).contains("10.2.0.0/16 of site far"));
    assert!(said(&trace, Decision::Source).contains("site here (local)"));
    let route = said(&trace, Decision::Route);
    assert!(
        route.contains("from eth0, rule 100, table 7100") && route.contains("by causeway0"),
        "{route}"
    );
    let gateway = said(&trace, Decision::Gateway);
    assert!(gateway.contains("among 2 that carry far"), "{gateway}");
    let link = said(&trace, Decision::Link);
    assert!(
        link.contains("direct path 192.0.2.1:51820, wireguard"),
        "{link}"
    );
    assert!(said(&trace, Decision::Size).contains("100 bytes fit"));
}

#[test]
fn flows_are_told_apart_by_their_ports_and_both_gateways_have_some() {
    let chosen = |port: u16| {
        let mut one = packet(WORKER, FAR);
        one.source_port = port;
        let trace = on_gateway(&one);
        said(&trace, Decision::Gateway)[..2].to_owned()
    };
    let all: Vec<String> = (40000..40064).map(chosen).collect();
    for name in ["f1", "f2"] {
        assert!(all.iter().any(|one| one == name), "{all:?}");
    }
    assert_eq!(chosen(40000), all[0], "one flow goes one way");
}

#[test]
fn what_is_for_no_site_goes_its_own_way_unless_a_route_leads_it_into_the_tunnel() {
    let one = packet(WORKER, "203.0.113.1");
    let trace = trace_with(&gateway(), "10.1.0.1", &one, out(WAN, None, 254));
    assert_eq!(trace.verdict, Verdict::NotMesh);
    assert!(said(&trace, Decision::Route).contains("table main"));
    assert_dropped(
        &on_gateway(&one),
        Reason::NoPrefix,
        "no site has the prefix",
    );
}

#[test]
fn a_source_that_is_not_of_this_site_is_dropped() {
    for source in ["10.3.0.1", "203.0.113.1"] {
        let trace = on_gateway(&packet(source, FAR));
        assert_dropped(&trace, Reason::Source, "no address of site here");
    }
}

#[test]
fn a_site_that_cannot_be_reached_is_told_with_the_reason() {
    let lost = on_gateway(&packet(WORKER, "10.3.0.1"));
    assert_dropped(&lost, Reason::LinkDown, "l1: nothing of it arrives");
    let torn = on_gateway(&packet(WORKER, "10.4.0.1"));
    assert_dropped(&torn, Reason::Quarantined, "10.4.0.0/16 is quarantined");
    let bare = on_gateway(&packet(WORKER, "10.5.0.1"));
    assert_dropped(&bare, Reason::SiteUnreachable, "has no gateway");
    let agent = on_agent(&packet(WORKER, "10.3.0.1"), "10.1.0.1");
    assert_dropped(&agent, Reason::SiteUnreachable, "no gateway of this site");
}

#[test]
fn what_would_leave_in_clear_is_stopped_by_the_guard() {
    let in_clear = out(WAN, Some("192.0.2.1"), 254);
    for (told, own) in [(gateway(), "10.1.0.1"), (agent(), WORKER)] {
        let trace = trace_with(&told, own, &packet(WORKER, FAR), in_clear.clone());
        assert_dropped(&trace, Reason::Guard, "in clear by wan0");
    }
}

#[test]
fn a_kernel_without_a_way_is_told_in_its_own_words() {
    let nowhere = Way::Nowhere("No route to host".to_owned());
    let trace = trace_with(&gateway(), "10.1.0.1", &packet(WORKER, FAR), nowhere);
    assert_dropped(&trace, Reason::NoRoute, "No route to host");
}

#[test]
fn what_is_too_large_goes_in_pieces_or_not_at_all() {
    let mut large = packet(WORKER, FAR);
    large.size = 1401;
    let trace = on_gateway(&large);
    assert_eq!(trace.verdict, Verdict::Passes);
    assert!(said(&trace, Decision::Size).contains("in pieces"));
    large.whole = true;
    assert_dropped(&on_gateway(&large), Reason::TooBig, "1400");
    assert_dropped(&on_agent(&large, "10.1.0.1"), Reason::TooBig, "1400");
}

#[test]
fn what_stays_in_the_site_is_local() {
    let neighbour = on_gateway(&packet(WORKER, "10.1.0.11"));
    assert_eq!(neighbour.verdict, Verdict::Local);
    assert!(neighbour.because.contains("both ends"));
    let own = on_gateway(&packet(WORKER, "10.1.0.1"));
    assert_eq!(own.verdict, Verdict::Local);
    assert!(own.because.contains("this machine itself"));
}

#[test]
fn an_agent_names_the_gateway_that_its_kernel_has_chosen() {
    let trace = on_agent(&packet(WORKER, FAR), "10.1.0.1");
    assert_eq!(trace.verdict, Verdict::Passes, "{trace:#?}");
    assert!(said(&trace, Decision::Gateway).starts_with("g1 at 10.1.0.1 (up)"));
    let silent = on_agent(&packet(WORKER, FAR), "10.1.0.2");
    assert_dropped(&silent, Reason::GatewaySilent, "gateway g2");
}

#[test]
fn a_packet_of_another_machine_is_to_be_traced_there() {
    let trace = on_agent(&packet("10.1.0.77", FAR), "10.1.0.1");
    assert_eq!(trace.verdict, Verdict::Elsewhere, "{trace:#?}");
    assert!(trace.because.contains("10.1.0.77 is another machine's"));
    assert!(trace.next.unwrap().contains("causeway trace"));
    // And one that comes for another.
    let trace = on_agent(&packet(FAR, "10.1.0.77"), "10.1.0.1");
    assert_eq!(trace.verdict, Verdict::Elsewhere);
}

#[test]
fn what_comes_from_another_site_is_delivered() {
    let at_gateway = on_gateway(&packet(FAR, WORKER));
    assert_eq!(at_gateway.verdict, Verdict::Passes);
    assert!(said(&at_gateway, Decision::Link).contains("tunnel of a gateway of far"));
    assert!(said(&at_gateway, Decision::Route).contains("from causeway0"));
    let at_worker = on_agent(&packet(FAR, WORKER), "10.1.0.1");
    assert_eq!(at_worker.verdict, Verdict::Passes);
    let torn = on_gateway(&packet("10.4.0.1", WORKER));
    assert_dropped(&torn, Reason::Quarantined, "10.4.0.0/16");
}

/// Traced with one rule in `hook`, for a packet that comes in and goes out there.
fn dropped_in(hook: Hook, ways: [Option<&str>; 2], rule: Finding, one: &Packet) -> Trace {
    let drops = |packets: &Packets| {
        let is_there = packets.hook == hook
            && [&packets.input, &packets.output]
                == ways.map(|way| way.map(str::to_owned)).each_ref();
        is_there.then(|| rule.clone()).into_iter().collect()
    };
    let far = out(TUN, None, 7100);
    trace_past((&gateway(), "10.1.0.1"), one, far, &drops)
}

#[test]
fn a_rule_that_drops_it_ends_it_and_one_that_may_is_told() {
    let outward = (packet(WORKER, FAR), [Some("eth0"), Some("causeway0")]);
    let inward = (packet(FAR, WORKER), [Some("causeway0"), Some("eth0")]);
    for (one, ways) in [outward, inward] {
        let certain = dropped_in(Hook::Forward, ways, finding("drop", true), &one);
        assert_dropped(&certain, Reason::Filter, "inet host some handle 7");
        assert!(certain.next.unwrap().contains("causeway0 accept"));
        let perhaps = dropped_in(Hook::Forward, ways, finding("drop", false), &one);
        assert_eq!((perhaps.verdict, perhaps.sure), (Verdict::Passes, false));
        assert!(said(&perhaps, Decision::Filter).contains("cannot be told for sure"));
    }
    assert!(on_gateway(&packet(WORKER, FAR)).sure);
    let own = packet("10.1.0.1", FAR);
    let ways = [None, Some("causeway0")];
    let certain = dropped_in(Hook::Output, ways, finding("drop", true), &own);
    assert_dropped(&certain, Reason::Filter, "inet host some");
}

#[test]
fn our_own_filter_is_named_as_ours_and_only_where_it_is_sure() {
    let ours = |certain| {
        let mut finding = finding("drop", certain);
        finding.rule.table = "causeway".to_owned();
        finding
    };
    let one = packet(WORKER, FAR);
    let ways = [Some("eth0"), None];
    let certain = dropped_in(Hook::Prerouting, ways, ours(true), &one);
    assert_dropped(&certain, Reason::Guard, "causeway's own packet filter");
    let perhaps = dropped_in(Hook::Prerouting, ways, ours(false), &one);
    assert_eq!((perhaps.verdict, perhaps.sure), (Verdict::Passes, true));
}

#[test]
fn a_destination_that_a_rule_changes_never_comes_to_the_mesh() {
    let mut one = packet(WORKER, FAR);
    one.destination_port = 5353;
    assert_dropped(&on_gateway(&one), Reason::Translated, "dnat to 192.0.2.5");
}

#[test]
fn packets_of_an_agent_with_vxlan_come_and_go_by_its_interface() {
    let Told::Gateway(mut status) = gateway() else {
        panic!("a gateway");
    };
    status.agents.push(gateway::status::Agent {
        address: Some(format!("{WORKER}:7802")),
        mode: "vxlan".to_owned(),
        ..Default::default()
    });
    let told = Told::Gateway(status);
    let trace = trace_with(
        &told,
        "10.1.0.1",
        &packet(WORKER, FAR),
        out(TUN, None, 7100),
    );
    let route = said(&trace, Decision::Route);
    assert!(route.contains("from causeway-vx"), "{route}");
    let Told::Agent(mut status) = agent() else {
        panic!("an agent");
    };
    status.mode.used = "vxlan".to_owned();
    let trace = trace_with(
        &Told::Agent(status),
        WORKER,
        &packet(FAR, WORKER),
        out(VX, None, 7100),
    );
    assert!(said(&trace, Decision::Gateway).contains("by causeway-vx"));
}
