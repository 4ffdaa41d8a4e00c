mod agent;

use std::net::IpAddr;

use proto::key::{PublicKey, SigningKey};

use super::*;
use crate::diff::{Change, Found, diff};
use crate::facts::{Exit, Remote, Tunnel, Vxlan};
use crate::guard::FoundTable;
use crate::wanted::{Nexthop, To};

fn key(number: u8) -> PublicKey {
    SigningKey::from_seed(&[number; 32]).public()
}

fn remote(mtu: Option<u16>) -> Remote {
    Remote {
        site: "berlin".parse().unwrap(),
        mtu,
        by: BTreeSet::new(),
    }
}

fn facts(prefixes: &[&str]) -> Facts {
    let lan: [IpAddr; 2] = ["10.1.0.1".parse().unwrap(), "fd00:1::1".parse().unwrap()];
    Facts {
        lan: lan.into(),
        prefixes: prefixes
            .iter()
            .map(|prefix| (prefix.parse().unwrap(), remote(Some(1380))))
            .collect(),
        local: vec!["10.1.0.0/16".parse().unwrap()],
        services: vec![],
        exit: Exit::Tunnel(Tunnel {
            tun: "cw0".to_owned(),
            listen_port: 7800,
            agents: BTreeMap::new(),
            vxlan: Vxlan {
                port: 7803,
                own: key(1),
            },
            probes: vec![],
        }),
    }
}

const PRINTED: &str = "\
unreachable 10.2.0.0/16 proto 199 metric 4294967295
unreachable fd00:2::/32 dev lo proto 199 metric 4294967295
10.2.0.0/16 dev cw0 table 7100 proto 199 scope link src 10.1.0.1
fd00:2::/32 dev cw0 table 7100 proto 199 src fd00:1::1 metric 1024
10.2.0.0/16 dev cw0 table 7101 proto 199 scope link src 10.1.0.1 mtu 1380
fd00:2::/32 dev cw0 table 7101 proto 199 src fd00:1::1 metric 1024 mtu 1380
99: from all fwmark 0/0x1000 iif lo lookup 7101 proto 199
100: not from all fwmark 0x1000/0x1000 lookup 7100 proto 199
-6 99: from all fwmark 0/0x1000 iif lo lookup 7101 proto 199
-6 100: not from all fwmark 0x1000/0x1000 lookup 7100 proto 199
net.ipv4.conf.all.src_valid_mark = 1
net.ipv4.conf.cw0.rp_filter = 0 or 2
net.ipv4.conf.lan.rp_filter = 0 or 2
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1 or 2
table inet causeway {
\tset mesh4 {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.2.0.0/16 }
\t}
\tset mesh6 {
\t\ttype ipv6_addr
\t\tflags interval
\t\telements = { fd00:2::/32 }
\t}
\tset local4 {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.1.0.0/16 }
\t}
\tset local6 {
\t\ttype ipv6_addr
\t\tflags interval
\t}
\tchain arriving {
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tiif 7 ip saddr @mesh4 ip daddr @local4 fib daddr type != local notrack accept
\t\tiif 7 ip6 saddr @mesh6 ip6 daddr @local6 fib daddr type != local notrack accept
\t\tiif 7 accept
\t\tudp dport 7800 fib daddr type local meta mark set meta mark | 0x00001000 accept
\t\tiif != 3 ip saddr @local4 ip daddr @mesh4 fib saddr . iif oif missing counter drop
\t\tiif != 3 ip6 saddr @local6 ip6 daddr @mesh6 fib saddr . iif oif missing counter drop
\t\tip saddr @local4 ip daddr @mesh4 fib daddr type != local notrack
\t\tip6 saddr @local6 ip6 daddr @mesh6 fib daddr type != local notrack
\t}
\tchain entering {
\t\ttype filter hook forward priority -150; policy accept;
\t\tiif 7 accept
\t\tiif 3 accept
\t\tip saddr @mesh4 counter drop
\t\tip6 saddr @mesh6 counter drop
\t}
\tchain sources {
\t\ttype nat hook postrouting priority 99; policy accept;
\t\toifname \"cw0\" fib saddr type local snat ip to ip saddr
\t\toifname \"cw0\" fib saddr type local snat ip6 to ip6 saddr
\t}
\tchain leaving {
\t\ttype filter hook postrouting priority 300; policy accept;
\t\toif 7 accept
\t\toif 1 accept
\t\tmeta mark & 0x00001000 == 0x00001000 accept
\t\tip daddr @mesh4 counter drop
\t\tip6 daddr @mesh6 counter drop
\t}
}
";

fn ground() -> Ground {
    Ground {
        devices: Devices {
            tun: 7,
            vxlan: 0,
            inner: [("lan".to_owned(), 3)].into(),
        },
        ..Ground::default()
    }
}

fn plan(facts: &Facts, settings: &Settings) -> Wanted {
    super::plan(facts, &ground(), &Found::default(), settings)
}

#[test]
fn a_gateway_wants_this() {
    let wanted = plan(
        &facts(&["10.2.0.0/16", "fd00:2::/32"]),
        &Settings::default(),
    );
    assert_eq!(wanted.to_string(), PRINTED);
}

#[test]
fn where_the_sites_network_is_not_known_sources_are_not_judged() {
    let facts = facts(&["10.2.0.0/16"]);
    let text = super::plan(
        &facts,
        &Ground::default(),
        &Found::default(),
        &Settings::default(),
    )
    .to_string();
    assert!(!text.contains("saddr @mesh4 counter drop"), "{text}");
    assert!(!text.contains("conf.all.rp_filter"), "{text}");
}

#[test]
fn the_order_of_facts_is_nothing() {
    let prefixes = [
        "10.2.0.0/16",
        "10.4.0.0/24",
        "10.4.1.0/24",
        "10.3.0.0/16",
        "fd00:2::/32",
    ];
    let one = facts(&prefixes);
    let local = ["10.1.0.0/17", "10.1.128.0/17", "fd00:1::/32"];
    let mut printed = vec![];
    for turn in 0..prefixes.len() {
        let mut prefixes = prefixes;
        prefixes.rotate_left(turn);
        prefixes.swap(0, turn);
        let mut other = facts(&prefixes);
        assert_eq!(other, one);
        let mut local = local;
        local.rotate_left(turn % 3);
        other.local = local.iter().map(|prefix| prefix.parse().unwrap()).collect();
        other.lan.rotate_left(turn % 2);
        printed.push(plan(&other, &Settings::default()).to_string());
    }
    assert!(printed.iter().all(|text| *text == printed[0]));
    // Neighbours are one interval, as the kernel wants them.
    let merged = "elements = { 10.2.0.0-10.4.1.255 }";
    assert!(printed[0].contains(merged), "{}", printed[0]);
}

#[test]
fn without_ipv6_in_the_mesh_its_forwarding_is_left_alone() {
    let wanted = plan(&facts(&["10.2.0.0/16"]), &Settings::default());
    assert!(!wanted.to_string().contains("net.ipv6"), "{wanted}");
}

#[test]
fn a_prefix_that_covers_this_site_is_refused_and_others_are_not() {
    let facts = facts(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0"]);
    let refused: Vec<String> = facts
        .prefixes
        .keys()
        .filter(|prefix| refusal(&facts, **prefix).is_some())
        .map(IpNetwork::to_string)
        .collect();
    assert_eq!(refused, ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16"]);
    let text = plan(&facts, &Settings::default()).to_string();
    assert!(!text.contains("10.0.0.0/8"), "{text}");
    assert!(text.contains("\n10.1.2.0/24 dev cw0"), "{text}");
}

#[test]
fn as_long_as_no_path_was_measured_little_is_taken_to_fit() {
    let mut facts = facts(&["10.2.0.0/16"]);
    facts
        .prefixes
        .values_mut()
        .for_each(|remote| remote.mtu = None);
    let text = plan(&facts, &Settings::default()).to_string();
    assert!(text.contains("table 7101 proto 199 scope link src 10.1.0.1 mtu 1280"));
}

/// What a kernel would have after `changes`.
fn apply(found: &mut Found, changes: &[Change]) {
    for change in changes {
        match change.clone() {
            Change::Guard(table) => {
                found.guard = Some(FoundTable {
                    sets: table.sets.clone(),
                    shape: table.shape(),
                });
            }
            Change::Elements { set, add, remove } => {
                let table = found.guard.as_mut().expect("only changed if it is there");
                let elements = table.sets.entry(set).or_default();
                elements.retain(|element| !remove.contains(element));
                elements.extend(add);
            }
            Change::AddRoute(place, way) => {
                assert!(found.routes.insert(place, way).is_none(), "{change}");
            }
            Change::ReplaceRoute(place, way) => {
                assert!(found.routes.insert(place, way).is_some(), "{change}");
            }
            Change::RemoveRoute(place, _) => {
                assert!(found.routes.remove(&place).is_some(), "{change}");
            }
            Change::RemoveVxlan => {
                found.vxlan = None;
                found.devices.remove(VXLAN_DEVICE);
                found.forwarding.clear();
                found.neighbours.clear();
            }
            Change::SetForwarding(entry) => {
                found.forwarding.retain(|old| old.mac != entry.mac);
                found.forwarding.insert(entry);
            }
            Change::RemoveForwarding(entry) => assert!(found.forwarding.remove(&entry)),
            Change::SetNeighbour(node) => {
                found.neighbours.retain(|old| old.address != node.address);
                found.neighbours.insert(node);
            }
            Change::RemoveNeighbour(node) => assert!(found.neighbours.remove(&node)),
            Change::AddNexthop(id, nexthop) => {
                assert!(found.nexthops.insert(id, nexthop).is_none(), "{change}");
            }
            Change::ReplaceNexthop(id, nexthop) => {
                assert!(found.nexthops.insert(id, nexthop).is_some(), "{change}");
            }
            Change::RemoveNexthop(id, _) => remove_nexthop(found, id),
            Change::AddRule(rule) => assert!(found.rules.insert(rule), "{change}"),
            Change::RemoveRule(rule) => assert!(found.rules.remove(&rule), "{change}"),
        }
        check_groups(found, change);
    }
}

/// As a kernel asks for it: what a route names is there, and a route of IPv6 names no hop of IPv4.
fn check_groups(found: &Found, change: &Change) {
    for (place, way) in &found.routes {
        let Way::Leads {
            to: To::Group(id), ..
        } = way
        else {
            continue;
        };
        let Some(Nexthop::Group(group)) = found.nexthops.get(id) else {
            panic!("{change}: {} names {id}, which is no group", place.prefix);
        };
        for member in &group.members {
            let Some(Nexthop::Hop(hop)) = found.nexthops.get(member) else {
                panic!("{change}: {member} in {id} is no hop");
            };
            let refused = matches!(place.prefix, IpNetwork::V6(_)) && hop.via.is_ipv4();
            assert!(!refused, "{change}: {} gets {}", place.prefix, hop.via);
        }
    }
}

/// As a kernel does: a hop leaves all groups, the last one takes its group along, and a group takes
/// its routes along.
fn remove_nexthop(found: &mut Found, id: u32) {
    assert!(found.nexthops.remove(&id).is_some(), "{id}");
    let mut empty = vec![];
    for (group, nexthop) in &mut found.nexthops {
        if let Nexthop::Group(of) = nexthop
            && of.members.remove(&id)
            && of.members.is_empty()
        {
            empty.push(*group);
        }
    }
    let names = |way: &Way| matches!(way, Way::Leads { to: To::Group(group), .. } if *group == id);
    assert!(!found.routes.values().any(names), "{id} takes routes along");
    empty
        .into_iter()
        .for_each(|group| remove_nexthop(found, group));
}

fn up() -> Found {
    Found {
        devices: ["cw0".to_owned()].into(),
        ..Found::default()
    }
}

#[test]
fn one_round_of_changes_reaches_what_is_wanted_from_anywhere() {
    let all = ["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/24", "fd00:2::/32"];
    let settings = Settings::default();
    // Every subset of sites before, every other after.
    for before in 0..16_usize {
        for after in 0..16_usize {
            let pick = |bits: usize| {
                let picked = all.iter().enumerate();
                let picked = picked.filter(|(bit, _)| bits & (1 << bit) != 0);
                facts(&picked.map(|(_, prefix)| *prefix).collect::<Vec<_>>())
            };
            let mut found = up();
            apply(&mut found, &diff(&plan(&pick(before), &settings), &up()));
            let wanted = plan(&pick(after), &settings);
            let changes = diff(&wanted, &found);
            assert_eq!(changes.is_empty(), before == after, "{changes:?}");
            apply(&mut found, &changes);
            assert_eq!(diff(&wanted, &found), []);
            assert_eq!(found.routes, wanted.routes);
        }
    }
}

#[test]
fn what_closes_comes_before_what_leads_and_what_goes_is_last() {
    let settings = Settings::default();
    let mut found = up();
    apply(
        &mut found,
        &diff(&plan(&facts(&["10.9.0.0/16"]), &settings), &up()),
    );
    found.rules.clear();
    let wanted = plan(&facts(&["10.2.0.0/16"]), &settings);
    let steps: Vec<String> = diff(&wanted, &found)
        .iter()
        .map(|change| {
            let words = change.to_string();
            words.split(' ').take(3).collect::<Vec<_>>().join(" ")
        })
        .collect();
    assert_eq!(
        steps,
        [
            "nft set mesh4:",
            "route add unreachable",
            "route add 10.2.0.0/16",
            "route add 10.2.0.0/16",
            "rule add 99:",
            "rule add 100:",
            "rule add -6",
            "rule add -6",
            "route del unreachable",
            "route del 10.9.0.0/16",
            "route del 10.9.0.0/16",
        ]
    );
}

#[test]
fn a_table_that_somebody_changed_is_made_anew_and_a_set_is_filled() {
    let settings = Settings::default();
    let wanted = plan(&facts(&["10.2.0.0/16"]), &settings);
    let mut found = up();
    apply(&mut found, &diff(&wanted, &up()));
    let mut fewer = found.clone();
    let chains = &mut fewer.guard.as_mut().unwrap().shape;
    chains.get_mut("leaving").unwrap().comments.pop();
    assert!(matches!(diff(&wanted, &fewer)[..], [Change::Guard(_)]));
    let mut emptied = found.clone();
    for set in emptied.guard.as_mut().unwrap().sets.values_mut() {
        set.clear();
    }
    let changes = diff(&wanted, &emptied);
    assert!(
        matches!(
            changes[..],
            [Change::Elements { .. }, Change::Elements { .. }]
        ),
        "{changes:?}"
    );
}

#[test]
fn routes_wait_for_the_interface() {
    let wanted = plan(&facts(&["10.2.0.0/16"]), &Settings::default());
    let changes = diff(&wanted, &Found::default());
    let routes: Vec<String> = changes
        .iter()
        .filter(|change| matches!(change, Change::AddRoute(..)))
        .map(Change::to_string)
        .collect();
    assert_eq!(
        routes,
        ["route add unreachable 10.2.0.0/16 proto 199 metric 4294967295"]
    );
}
