//! Other programs' packet filters as the kernel holds them, read and judged.

#![cfg(test)]
#![forbid(unsafe_code)]

use ip_network::IpNetwork;
use routeagent::inspect::{
    Accept, Judged, Listening, Ruleset, Situation, Topic, judge, private_networks,
};
use tests::lab::{Lab, Namespace, skip};

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

#[test]
fn leftover_translations_are_named_and_each_is_gone_after_its_command() {
    if skip(
        "leftover",
        &["nft", "iptables", "ip6tables", "iptables-legacy"],
    ) {
        return;
    }
    let (_lab, node) = place("leftover");
    let rules = "set -e; \
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
    node.sh(rules).unwrap();
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
    // Before there is a mesh, every private address may be one of another site.
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
