//! Other programs' packet filters as the kernel holds them, read and judged.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use ip_network::IpNetwork;
use routeagent::inspect::{
    Accept, Flow, Judged, Listening, Ruleset, Situation, Topic, Trace, judge, private_networks,
};
use tests::lab::{Lab, Namespace, skip, wait_for};

fn network(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn situation() -> Situation {
    Situation {
        remote: vec![network("10.2.0.0/16"), network("fd00:2::/32")],
        local: vec![network("10.1.0.0/16"), network("fd00:1::/32")],
        mesh_devices: vec!["causeway0".to_owned()],
        inner_devices: vec!["lan".to_owned()],
        forwards: true,
        listening: vec![Listening {
            what: "VXLAN of agents".to_owned(),
            accept: Accept::Udp(7803),
            from: vec![network("10.1.0.0/16")],
        }],
    }
}

fn place(tag: &str) -> (Lab, Namespace) {
    let lab = Lab::new(tag).unwrap();
    let namespace = lab.namespace("node").unwrap();
    (lab, namespace)
}

fn read(namespace: &Namespace) -> Ruleset {
    namespace.within(|| Ruleset::read().unwrap()).unwrap()
}

fn judged(namespace: &Namespace, topic: Topic) -> Vec<Judged> {
    let all = judge(&read(namespace), &situation());
    all.into_iter().filter(|one| one.topic == topic).collect()
}

/// What each says, and whether for certain.
fn texts(all: &[Judged]) -> Vec<(String, bool)> {
    let all = all.iter();
    let mut all: Vec<_> = all
        .map(|one| (one.finding.rule.to_string(), one.finding.certain))
        .collect();
    all.sort();
    all
}

/// What people write who have no mesh, and what is none of ours.
const LEFTOVERS: &str = "set -e; \
        iptables -t nat -A OUTPUT -d 10.2.0.5 -j DNAT --to-destination 198.51.100.7; \
        iptables -t nat -A OUTPUT -d 10.9.0.5 -j DNAT --to-destination 198.51.100.7; \
        iptables -t nat -A PREROUTING -d 10.2.3.0/24 -p tcp --dport 80 -m comment --comment 'web of them' -j DNAT --to-destination 198.51.100.7:8080; \
        iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DNAT --to-destination 172.17.0.2; \
        iptables -t nat -N OLD; iptables -t nat -A OLD -j DNAT --to-destination 198.51.100.8-198.51.100.9; \
        iptables -t nat -A OUTPUT -d 10.2.9.9 -j OLD; \
        ip6tables -t nat -A OUTPUT -d fd00:2::5 -j DNAT --to-destination 2001:db8::7; \
        iptables -t nat -A OUTPUT -d 10.2.0.7 -p tcp -j REDIRECT --to-ports 4000; \
        nft 'add table inet mine; add set inet mine far { type ipv4_addr; flags interval; elements = { 10.2.8.0/24, 192.0.2.0/24 }; }; \
             add chain inet mine out { type nat hook output priority -100; }; \
             add rule inet mine out ip daddr @far dnat ip to 198.51.100.9; \
             add rule inet mine out ip daddr { 10.7.0.1, 10.8.0.1 } dnat ip to 198.51.100.9; \
             add rule inet mine out ip daddr 10.2.7.1-10.2.7.9 tcp dport { 80, 443 } dnat ip to 198.51.100.9:80; \
             add rule inet mine out ip6 daddr fd00:3::5 dnat ip6 to 2001:db8::7'; \
        iptables-legacy -t nat -A OUTPUT -d 10.2.0.6/32 -m comment --comment 'an old one' -j DNAT --to-destination 198.51.100.6; \
        iptables-legacy -t nat -A OUTPUT -d 10.6.0.6/32 -j DNAT --to-destination 198.51.100.6";

#[test]
fn leftover_translations_are_named_and_each_is_gone_after_its_command() {
    if skip(
        "leftover",
        &["nft", "iptables", "ip6tables", "iptables-legacy"],
    ) {
        return;
    }
    let (_lab, node) = place("leftover");
    node.sh(LEFTOVERS).unwrap();
    let found = judged(&node, Topic::Leftover);
    let said = texts(&found);
    let has = |text: &str, certain: bool| {
        let mut all = said.iter();
        assert!(
            all.any(|(rule, sure)| rule.ends_with(text) && *sure == certain),
            "{text}: {said:#?}"
        );
    };
    has("ip daddr 10.2.0.5 dnat to 198.51.100.7", false);
    has(
        "ip daddr 10.2.3.0/24 dport 80 dnat to 198.51.100.7:8080",
        false,
    );
    has("dnat to 198.51.100.8-198.51.100.9", false);
    has("ip6 daddr fd00:2::5 dnat to 2001:db8::7", false);
    has("ip daddr 10.2.0.7 redirect to :4000", false);
    has("ip daddr @far dnat to 198.51.100.9", false);
    has(
        "10.2.7.9 meta l4proto tcp dport @__set1 dnat to 198.51.100.9:80",
        false,
    );
    has(
        "-d 10.2.0.6/32 -m comment --comment \"an old one\" -j DNAT --to-destination 198.51.100.6",
        false,
    );
    assert_eq!(found.len(), 8, "{said:#?}");
    for one in &found {
        node.sh(&one.next)
            .unwrap_or_else(|error| panic!("{}: {error}", one.next));
    }
    assert_eq!(texts(&judged(&node, Topic::Leftover)), []);
    // What is about others stays.
    let left = node.sh("nft list ruleset; iptables-legacy-save").unwrap();
    for other in [
        "10.9.0.5",
        "10.7.0.1",
        "fd00:3::5",
        "10.6.0.6",
        "172.17.0.2",
    ] {
        assert!(left.contains(other), "{other}: {left}");
    }
}

#[test]
fn before_there_is_a_mesh_every_private_address_may_be_one_of_another_site() {
    if skip(
        "before",
        &["nft", "iptables", "ip6tables", "iptables-legacy"],
    ) {
        return;
    }
    let (_lab, node) = place("before");
    node.sh(LEFTOVERS).unwrap();
    let before = Situation {
        remote: private_networks(),
        ..Situation::default()
    };
    let found = judge(&read(&node), &before);
    let said = texts(&found);
    for other in ["10.9.0.5", "fd00:3::5", "10.6.0.6"] {
        assert!(
            said.iter().any(|(rule, _)| rule.contains(other)),
            "{other}: {said:#?}"
        );
    }
}

const DOCKER: &str = "set -e; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
        iptables -A FORWARD -j DOCKER-USER; \
        iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
        iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; iptables -P FORWARD DROP";
const HOST: &str = "nft 'add table inet filter; \
        add chain inet filter input { type filter hook input priority filter; policy drop; }; \
        add rule inet filter input ct state established,related accept; \
        add rule inet filter input iif lo accept; add rule inet filter input tcp dport { 22, 7802 } accept; \
        add chain inet filter forward { type filter hook forward priority filter; }; \
        add rule inet filter forward ct state vmap { established : accept, related : accept, invalid : drop }; \
        add rule inet filter forward reject'";
const STATE: &str = "set -e; iptables -A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT; \
        iptables -A INPUT -p udp -m multiport --dports 53,7000:8000 ! -s 10.9.0.0/16 -j DROP; \
        iptables -A FORWARD -m iprange --src-range 10.1.0.0-10.1.255.255 -o causeway0 -j REJECT";
const OLD: &str = "set -e; iptables-legacy -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT; \
        iptables-legacy -A INPUT -p udp -j DROP; \
        iptables-legacy -A FORWARD ! -i docker0 -j REJECT --reject-with icmp-port-unreachable";

/// A host's rules, and what shall be said of them.
type Case = (&'static str, &'static str, &'static [(Topic, &'static str)]);

const CASES: [Case; 4] = [
    (
        "docker",
        DOCKER,
        &[(Topic::Forward, "ip filter FORWARD: policy drop")],
    ),
    (
        "host",
        HOST,
        &[
            (Topic::Forward, "inet filter forward handle 9: reject"),
            (Topic::Input, "inet filter input: policy drop"),
        ],
    ),
    (
        "state",
        STATE,
        &[
            (Topic::Forward, "ip saddr 10.1.0.0-10.1.255.255 reject"),
            (Topic::Input, "dport 53, 7000-8000 drop"),
        ],
    ),
    (
        "old",
        OLD,
        &[
            (
                Topic::Forward,
                "iptables-legacy filter FORWARD: ! -i docker0 -j REJECT --reject-with icmp-port-unreachable",
            ),
            (Topic::Input, "iptables-legacy filter INPUT: -p udp -j DROP"),
        ],
    ),
];

#[test]
fn what_drops_forwarded_packets_or_those_to_our_ports_is_named_with_the_way_out() {
    if skip(
        "drops",
        &["nft", "iptables", "ip6tables", "iptables-legacy"],
    ) {
        return;
    }
    for (name, rules, wanted) in CASES {
        let (_lab, node) = place(name);
        node.sh(rules).unwrap();
        for topic in [Topic::Forward, Topic::Input] {
            let found = judged(&node, topic);
            let said = texts(&found);
            let expected = wanted.iter().filter(|(of, _)| *of == topic);
            for (_, text) in expected.clone() {
                let has = said
                    .iter()
                    .any(|(rule, sure)| rule.ends_with(text) && *sure);
                assert!(has, "{name}: {text}: {said:#?}");
            }
            assert_eq!(found.len(), expected.count(), "{name}: {said:#?}");
            for one in &found {
                let commands = one
                    .next
                    .trim_start_matches("start with --open-forward, or: ");
                node.sh(commands)
                    .unwrap_or_else(|error| panic!("{commands}: {error}"));
            }
            assert_eq!(texts(&judged(&node, topic)), [], "{name}");
        }
    }
}

#[test]
fn rules_that_may_hold_are_told_from_those_that_do_and_accepted_packets_are_no_matter() {
    if skip("maybe", &["nft", "iptables"]) {
        return;
    }
    let (_lab, node) = place("maybe");
    let rules = "set -e; iptables -A FORWARD -p tcp --dport 25 -j DROP; \
        iptables -A FORWARD -m mark --mark 0x20/0x20 -j DROP; \
        iptables -A FORWARD -m limit --limit 5/sec -j REJECT; \
        nft 'add table inet fw; \
        add chain inet fw forward { type filter hook forward priority 10; policy drop; }; \
        add rule inet fw forward iifname \"cause*\" accept; \
        add rule inet fw forward ip saddr 10.0.0.0/8 ip daddr . meta l4proto { 10.2.0.0/16 . tcp } counter; \
        add rule inet fw forward oifname { \"causeway0\", \"wg0\" } accept; \
        add chain inet fw input { type filter hook input priority 0; policy drop; }; \
        add rule inet fw input udp dport 7000-8000 accept'";
    node.sh(rules).unwrap();
    let found = judged(&node, Topic::Forward);
    assert_eq!(
        texts(&found),
        [
            (
                "ip filter FORWARD handle 2: meta l4proto tcp dport 25 drop".to_owned(),
                false
            ),
            ("ip filter FORWARD handle 4: limit reject".to_owned(), false),
        ]
    );
    assert_eq!(texts(&judged(&node, Topic::Input)), []);
}

#[test]
fn a_change_of_sources_before_ours_is_named_and_one_behind_is_not() {
    if skip("sources", &["nft", "iptables"]) {
        return;
    }
    let (_lab, node) = place("sources");
    let rules = "set -e; iptables -t nat -A POSTROUTING ! -o lo -j MASQUERADE; \
        nft 'add table ip early; \
        add chain ip early post { type nat hook postrouting priority 90; }; \
        add rule ip early post oifname \"causeway0\" ip daddr 10.0.0.0/8 snat to 192.0.2.1'";
    node.sh(rules).unwrap();
    let found = judged(&node, Topic::SourceChange);
    let rule =
        "ip early post handle 2: oifname \"causeway0\" ip daddr 10.0.0.0/8 snat to 192.0.2.1";
    assert_eq!(texts(&found), [(rule.to_owned(), true)]);
    assert!(
        found[0]
            .next
            .ends_with("nft delete rule ip early post handle 2"),
        "{}",
        found[0].next
    );
}

/// A datagram from the port of its own number to `to`.
fn send(from: &Namespace, to: &str, port: u16) {
    let to: std::net::IpAddr = to.parse().unwrap();
    from.within(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = std::net::UdpSocket::bind(any).unwrap();
        let _ = socket.send_to(b"traced", (to, port));
    })
    .unwrap();
}

/// A host, a router with filters of three programs, and somebody behind it.
fn traced_nodes() -> (Lab, [Namespace; 3]) {
    let lab = Lab::new("trace").unwrap();
    let [host, node, far] = ["host", "node", "far"].map(|name| lab.namespace(name).unwrap());
    lab.veth(&host, "eth0", &node, "lan").unwrap();
    lab.veth(&node, "tun", &far, "eth0").unwrap();
    for (place, device, address) in [
        (&host, "eth0", "10.1.0.2/16"),
        (&node, "lan", "10.1.0.1/16"),
        (&node, "tun", "10.2.0.1/16"),
        (&far, "eth0", "10.2.0.5/16"),
        (&host, "eth0", "fd00:1::2/32"),
        (&node, "lan", "fd00:1::1/32"),
        (&node, "tun", "fd00:2::1/32"),
        (&far, "eth0", "fd00:2::5/32"),
    ] {
        place.address(device, address).unwrap();
    }
    for via in ["10.1.0.1", "fd00:1::1"] {
        host.run("ip", &["route", "add", "default", "via", via])
            .unwrap();
    }
    node.forward().unwrap();
    let rules = "set -e; nft 'add table inet fw; \
        add chain inet fw eats; add rule inet fw eats counter drop; \
        add chain inet fw forward { type filter hook forward priority 10; }; \
        add rule inet fw forward udp dport 4000 jump eats; \
        add rule inet fw forward udp dport 4005 accept; \
        add chain inet fw out { type filter hook output priority 0; }; \
        add rule inet fw out udp dport 4006 drop; \
        add chain inet fw late { type filter hook postrouting priority 200; policy drop; }; \
        add rule inet fw late meta l4proto != udp accept; add rule inet fw late udp dport != 4007 accept'; \
        iptables -A FORWARD -p udp --dport 4001 -j REJECT; \
        iptables-legacy -A FORWARD -p udp --dport 4002 -j DROP";
    node.sh(rules).unwrap();
    (lab, [host, node, far])
}

const FAR: [&str; 2] = ["10.2.0.5", "fd00:2::5"];

/// Where to, which port, who sends, and what becomes of it.
const ENDS: [(&str, u16, &str, &str); 10] = [
    (
        FAR[0],
        4000,
        "host",
        "dropped by inet fw eats handle N: drop",
    ),
    (
        FAR[1],
        4000,
        "host",
        "dropped by inet fw eats handle N: drop",
    ),
    (
        FAR[0],
        4001,
        "host",
        "dropped by ip filter FORWARD handle N: meta l4proto udp dport 4001 reject",
    ),
    (
        FAR[0],
        4002,
        "host",
        "dropped by iptables-legacy filter FORWARD: -p udp -m udp --dport 4002 -j DROP",
    ),
    (FAR[0], 4003, "host", "passed postrouting"),
    (FAR[1], 4003, "host", "passed postrouting"),
    (
        "10.77.0.1",
        4003,
        "host",
        "lost after prerouting: there is no route for it, or the check of sources (rp_filter) refused it",
    ),
    ("10.1.0.1", 4003, "host", "came to this node's sockets"),
    (
        FAR[0],
        4006,
        "node",
        "dropped by inet fw out handle N: meta l4proto udp dport 4006 drop",
    ),
    (FAR[0], 4007, "host", "dropped by inet fw late: policy drop"),
];

/// It comes through everything, and nobody behind gets it.
fn a_traced_packet_may_stay_here([host, node, far]: [&Namespace; 3]) {
    let listen = || std::net::UdpSocket::bind((FAR[0], 4008)).unwrap();
    let listening = far.within(listen).unwrap();
    listening
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let flow = Flow {
        destination: Some(FAR[0].parse().unwrap()),
        port: Some(4008),
        stays: true,
        ..Flow::default()
    };
    let traced = node.within(|| {
        let trace = Trace::start(&[flow]).unwrap();
        send(host, FAR[0], 4008);
        trace.finish(1, Duration::from_secs(5)).unwrap()
    });
    let traced = traced.unwrap();
    assert_eq!(traced[0].end.to_string(), "passed postrouting");
    assert!(traced[0].output.is_some());
    let last = || {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        socket.send_to(b"the next one", (FAR[0], 4008)).unwrap();
    };
    host.within(last).unwrap();
    let mut buffer = [0; 64];
    let (len, _) = listening.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"the next one");
}

#[test]
fn the_rule_that_ate_a_packet_is_found_by_sending_one() {
    if skip("trace", &["nft", "iptables", "iptables-legacy"]) {
        return;
    }
    let (_lab, [host, node, far]) = traced_nodes();
    let ended = |to: &str, port: u16, from: &Namespace| {
        let flow = Flow {
            destination: Some(to.parse().unwrap()),
            port: Some(port),
            ..Flow::default()
        };
        let traced = node.within(|| {
            let trace = Trace::start(&[flow]).unwrap();
            send(from, to, port);
            trace.finish(1, Duration::from_secs(1)).unwrap()
        });
        let traced = traced.unwrap();
        let ends: Vec<String> = traced.iter().map(|one| one.end.to_string()).collect();
        ends.first()
            .cloned()
            .unwrap_or_else(|| "not seen".to_owned())
    };
    for (to, port, sender, end) in ENDS {
        let from = if sender == "node" { &node } else { &host };
        // The first packet may wait for a neighbour.
        let mut found = String::new();
        wait_for("a trace", Duration::from_secs(10), || {
            found = ended(to, port, from);
            found != "not seen"
        })
        .unwrap();
        // Handles are the kernel's to give.
        let mut words: Vec<&str> = found.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "handle") {
            words[at + 1] = "N:";
        }
        assert_eq!(words.join(" "), end, "{to} {port}");
    }
    a_traced_packet_may_stay_here([&host, &node, &far]);
    // Nothing of it stays.
    let left = node.sh("nft list tables").unwrap();
    assert!(!left.contains("causeway-trace"), "{left}");
}
