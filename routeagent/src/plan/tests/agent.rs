//! What an agent wants, and how it gets from one state to any other.

use super::*;
use crate::facts::{Gateways, Mode, Neighbour};
use crate::link_layer::next_hop;

fn neighbour(number: u8) -> Neighbour {
    let probe = |text: String| text.parse().unwrap();
    Neighbour {
        name: format!("gateway{number}").parse().unwrap(),
        lan: format!("10.1.0.{number}").parse().unwrap(),
        other: Some(format!("fd00:1::{number}").parse().unwrap()),
        probes: vec![
            (probe(format!("198.18.0.{number}")), Mode::Direct),
            (probe(format!("198.19.0.{number}")), Mode::Vxlan),
        ],
    }
}

const GATEWAYS: [u8; 3] = [11, 12, 13];

/// Each prefix with the gateways that reach it.
fn agent(mode: Mode, prefixes: &[(&str, &[u8])]) -> Facts {
    let remote = |by: &[u8]| Remote {
        by: by.iter().map(|number| key(*number)).collect(),
        ..remote(Some(1400))
    };
    Facts {
        prefixes: prefixes
            .iter()
            .map(|(prefix, by)| (prefix.parse().unwrap(), remote(by)))
            .collect(),
        exit: Exit::Gateways(Gateways {
            gateways: GATEWAYS
                .map(|number| (key(number), neighbour(number)))
                .into(),
            mode,
            is_turning: false,
            vxlan: Vxlan {
                port: 7803,
                own: key(1),
            },
        }),
        ..facts(&[])
    }
}

fn lan_ground() -> Ground {
    let gateways = GATEWAYS.map(neighbour);
    let addresses = gateways
        .iter()
        .flat_map(|gateway| [Some(gateway.lan), gateway.other])
        .flatten();
    Ground {
        on_link: addresses
            .map(|address| (address, "lan".to_owned()))
            .collect(),
        ..ground()
    }
}

/// With the interface that the agent makes before all else.
fn ready(facts: &Facts, found: &mut Found) {
    found.devices.insert("lan".to_owned());
    if let Some(vxlan) = vxlan(facts, &lan_ground()) {
        found.vxlan = Some(vxlan);
        found.devices.insert(VXLAN_DEVICE.to_owned());
    }
}

/// What is changed to get there.
fn go(facts: &Facts, found: &mut Found) -> Vec<Change> {
    ready(facts, found);
    let settings = Settings::default();
    let wanted = super::super::plan(facts, &lan_ground(), found, &settings);
    let changes = diff(&wanted, found);
    apply(found, &changes);
    changes
}

/// All that is wanted is there, and nothing else.
fn check(facts: &Facts, found: &Found) {
    let settings = Settings::default();
    let wanted = super::super::plan(facts, &lan_ground(), found, &settings);
    assert_eq!(diff(&wanted, found), []);
    assert_eq!(found.routes, wanted.routes);
    assert_eq!(found.nexthops, wanted.nexthops);
    assert_eq!(found.forwarding, wanted.forwarding);
    assert_eq!(found.neighbours, wanted.neighbours);
    assert_eq!(found.vxlan, wanted.vxlan);
}

const BOTH: [(&str, &[u8]); 2] = [("10.2.0.0/16", &[11, 12]), ("fd00:2::/32", &[11, 12])];

#[test]
fn an_agent_wants_this() {
    let facts = agent(Mode::Vxlan, &BOTH);
    let mut found = Found::default();
    ready(&facts, &mut found);
    let wanted = super::super::plan(&facts, &lan_ground(), &found, &Settings::default());
    let groups = wanted.nexthops.iter();
    let groups = groups.filter_map(|(id, nexthop)| match nexthop {
        Nexthop::Group(group) => Some((*id, group.to_string())),
        Nexthop::Hop(_) => None,
    });
    let text = wanted.to_string();
    let groups: Vec<(u32, String)> = groups.collect();
    // Of the same two gateways, and one for each family all the same.
    let [(one, members), (other, same)] = &groups[..] else {
        panic!("{groups:?}");
    };
    assert_eq!(members, same);
    let is_v4 = text.contains(&format!("\n10.2.0.0/16 nhid {one} "));
    let (id4, id6) = if is_v4 { (one, other) } else { (other, one) };
    let (own, theirs) = (Mac::of(&key(1)), Mac::of(&key(12)));
    let hop = next_hop(&key(12));
    for line in [
        format!(
            "causeway-vx: mtu 1450 vxlan id 7803 local 10.1.0.1 dstport 7803 nolearning address {own}"
        ),
        format!("{theirs} dev causeway-vx dst 10.1.0.12 self static"),
        format!("{hop} dev causeway-vx lladdr {theirs} PERMANENT"),
        format!("id {id4} group {members} proto 199"),
        format!("id {id6} group {members} proto 199"),
        format!("10.2.0.0/16 nhid {id4} table 7100 proto 199 src 10.1.0.1"),
        format!("10.2.0.0/16 nhid {id4} table 7101 proto 199 src 10.1.0.1 mtu 1400"),
        format!("fd00:2::/32 nhid {id6} table 7101 proto 199 src fd00:1::1 metric 1024 mtu 1400"),
        "unreachable 10.2.0.0/16 proto 199 metric 4294967295".to_owned(),
        "net.ipv4.fib_multipath_hash_policy = 1 or 2 or 3".to_owned(),
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line}:\n{text}"
        );
    }
    assert!(members.ends_with(" type resilient"), "{members}");
    // Whether a node forwards is not for its agent to say.
    assert!(!text.contains("ip_forward"), "{text}");
}

#[test]
fn a_death_is_one_change_and_so_is_a_return_after_its_next_hop() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut found = Found::default();
        go(&agent(mode, &BOTH), &mut found);
        let alone: [(&str, &[u8]); 2] = [("10.2.0.0/16", &[12]), ("fd00:2::/32", &[12])];
        let death = go(&agent(mode, &alone), &mut found);
        // In clear, a gateway has one hop for each family.
        let hops = if mode == Mode::Vxlan { 1 } else { 2 };
        assert_eq!(death.len(), hops, "{death:?}");
        let is_removal = |change: &Change| matches!(change, Change::RemoveNexthop(..));
        assert!(death.iter().all(is_removal), "{death:?}");
        check(&agent(mode, &alone), &found);
        let back = go(&agent(mode, &BOTH), &mut found);
        // And the group of each family.
        assert_eq!(back.len(), hops + 2, "{back:?}");
        check(&agent(mode, &BOTH), &found);
    }
}

#[test]
fn a_death_waits_for_no_other_site_that_is_left_without_a_gateway() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut found = Found::default();
        let sites: [(&str, &[u8]); 4] = [
            ("10.2.0.0/16", &[11, 12]),
            ("10.3.0.0/16", &[11]),
            ("10.4.0.0/16", &[11]),
            ("10.5.0.0/16", &[11, 12, 13]),
        ];
        go(&agent(mode, &sites), &mut found);
        let left: [(&str, &[u8]); 4] = [
            ("10.2.0.0/16", &[12]),
            ("10.3.0.0/16", &[]),
            ("10.4.0.0/16", &[]),
            ("10.5.0.0/16", &[12, 13]),
        ];
        let changes = go(&agent(mode, &left), &mut found);
        let lines: Vec<String> = changes.iter().map(Change::to_string).collect();
        let mut first = lines.iter().take(2);
        assert!(
            first.all(|line| line.starts_with("nexthop replace")),
            "{lines:#?}"
        );
        // Then what is closed, in both tables, and at last the hop and the group that it was all of.
        assert_eq!(lines.len(), 2 + 4 + 2, "{lines:#?}");
        check(&agent(mode, &left), &found);
        // Where no group is left empty, another that died with it need not wait for that.
        let gone: [(&str, &[u8]); 2] = [("10.2.0.0/16", &[]), ("10.5.0.0/16", &[13])];
        go(&agent(mode, &sites[..1]), &mut found);
        go(
            &agent(mode, &[("10.2.0.0/16", &[11]), ("10.5.0.0/16", &[12, 13])]),
            &mut found,
        );
        let changes = go(&agent(mode, &gone), &mut found);
        assert!(
            matches!(changes[0], Change::RemoveNexthop(..)),
            "{changes:?}"
        );
        check(&agent(mode, &gone), &found);
    }
}

#[test]
fn a_node_without_ipv6_sends_none_over_vxlan() {
    let mut facts = agent(Mode::Vxlan, &BOTH);
    facts.lan.retain(IpAddr::is_ipv4);
    let mut found = Found::default();
    go(&facts, &mut found);
    let ways = |prefix: &str| {
        let prefix: IpNetwork = prefix.parse().unwrap();
        let routes = found.routes.iter();
        let routes = routes.filter(move |(place, _)| place.prefix == prefix);
        routes.map(|(_, way)| way.clone()).collect::<Vec<_>>()
    };
    let is_closed = |way: &Way| *way == Way::Unreachable;
    assert_eq!(ways("fd00:2::/32").len(), 3);
    assert!(ways("fd00:2::/32").iter().all(is_closed));
    assert!(!ways("10.2.0.0/16").iter().all(is_closed));
}

#[test]
fn a_gateway_that_loses_one_site_moves_only_that() {
    let mut found = Found::default();
    let sites: [(&str, &[u8]); 3] = [
        ("10.2.0.0/16", &[11, 12]),
        ("10.3.0.0/16", &[11, 12]),
        ("10.4.0.0/16", &[11, 12]),
    ];
    go(&agent(Mode::Vxlan, &sites), &mut found);
    let mut fewer = sites;
    fewer[1].1 = &[12];
    let changes = go(&agent(Mode::Vxlan, &fewer), &mut found);
    let lines: Vec<String> = changes.iter().map(Change::to_string).collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].starts_with("nexthop add"), "{lines:#?}");
    assert!(lines[1].starts_with("route replace 10.3.0.0/16"));
    assert!(lines[2].starts_with("route replace 10.3.0.0/16"));
    check(&agent(Mode::Vxlan, &fewer), &found);
}

#[test]
fn numbers_of_others_are_left_to_them() {
    let facts = agent(Mode::Vxlan, &BOTH);
    let mut found = Found::default();
    go(&facts, &mut found);
    let mut taken = Found {
        foreign_nexthops: found.nexthops.keys().copied().collect(),
        ..Found::default()
    };
    go(&facts, &mut taken);
    check(&facts, &taken);
    assert_eq!(taken.nexthops.len(), 4);
    assert!(
        taken
            .foreign_nexthops
            .is_disjoint(&taken.nexthops.keys().copied().collect())
    );
}

#[test]
fn probes_go_the_way_they_try() {
    let printed = |mode| {
        let facts = agent(mode, &BOTH);
        let mut found = Found::default();
        ready(&facts, &mut found);
        super::super::plan(&facts, &lan_ground(), &found, &Settings::default()).to_string()
    };
    let direct = "\n198.18.0.11/32 via 10.1.0.11 dev lan table 7100 proto 199 src 10.1.0.1\n";
    assert!(printed(Mode::Direct).contains(direct));
    assert!(!printed(Mode::Direct).contains("\n198.19.0.11"));
    assert!(printed(Mode::Vxlan).contains(direct));
    let vxlan = printed(Mode::Vxlan);
    let line = vxlan
        .lines()
        .find(|line| line.starts_with("198.19.0.11/32"));
    assert!(line.is_some_and(|line| line.contains(" via fe80::") && line.contains(VXLAN_DEVICE)));
}

#[test]
fn a_gateway_leads_back_to_agents_that_need_it() {
    let mut facts = facts(&["10.2.0.0/16"]);
    let mut stranger = neighbour(31);
    // What it says of itself is another's, and outside of the site.
    stranger.other = Some("10.1.0.30".parse().unwrap());
    let mut greedy = neighbour(32);
    greedy.other = Some("fd00:9::1".parse().unwrap());
    let agents = [
        (key(30), neighbour(30)),
        (key(31), stranger),
        (key(32), greedy),
    ];
    facts.local.push("fd00:1::/32".parse().unwrap());
    if let Exit::Tunnel(tunnel) = &mut facts.exit {
        tunnel.agents = agents.into();
        tunnel.probes = vec!["198.18.0.1".parse().unwrap()];
    }
    let mut found = up();
    ready(&facts, &mut found);
    let text = super::super::plan(&facts, &lan_ground(), &found, &Settings::default()).to_string();
    let back: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("table 7102"))
        .filter_map(|line| line.split(" via fe80::").next())
        .collect();
    let wanted = [
        "10.1.0.30/32",
        "10.1.0.31/32",
        "10.1.0.32/32",
        "fd00:1::30/128",
    ];
    assert_eq!(back, wanted);
    for line in [
        "98: from all iif cw0 lookup 7102 proto 199",
        "-6 98: from all iif cw0 lookup 7102 proto 199",
        "198.18.0.1/32 dev cw0 table 7100 proto 199 scope link",
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line}:\n{text}"
        );
    }
}

/// The way that leads to a neighbour need not be where the site's addresses are.
#[test]
fn vxlan_is_taken_by_the_way_that_leads_to_who_sends_it() {
    let mut gateway = facts(&["10.2.0.0/16"]);
    if let Exit::Tunnel(tunnel) = &mut gateway.exit {
        tunnel.agents = [(key(30), neighbour(30))].into();
    }
    let rule = "udp dport 7803 fib daddr type local fib saddr . iif oif missing counter drop";
    for facts in [gateway, agent(Mode::Vxlan, &BOTH)] {
        let printed = |ground: &Ground| {
            let settings = Settings::default();
            super::super::plan(&facts, ground, &Found::default(), &settings).to_string()
        };
        let text = printed(&lan_ground());
        assert!(text.contains(&format!("\t\tiif != 3 {rule}\n")), "{text}");
        // Where no interface has an address of the site, too.
        let text = printed(&Ground::default());
        assert!(text.contains(&format!("\t\t{rule}\n")), "{text}");
    }
}

#[test]
fn what_is_sent_to_a_gateway_is_not_sent_through_it() {
    let facts = agent(Mode::Vxlan, &[("10.1.0.11/32", &[11])]);
    let covered = refusal(&facts, "10.1.0.11/32".parse().unwrap());
    assert_eq!(covered.unwrap().to_string(), "10.1.0.11/32");
}

/// What an earlier release may have left: one group that routes of both families name.
#[test]
fn a_group_that_both_families_name_is_taken_apart() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut found = Found::default();
        go(&agent(Mode::Vxlan, &BOTH), &mut found);
        let ways = found.routes.values_mut().filter_map(|way| match way {
            Way::Leads {
                to: To::Group(id), ..
            } => Some(id),
            Way::Leads { .. } | Way::Unreachable | Way::Strange => None,
        });
        let mut ids: Vec<&mut u32> = ways.collect();
        let (shared, other) = (*ids[0], **ids.iter().find(|id| ***id != *ids[0]).unwrap());
        ids.iter_mut().for_each(|id| **id = shared);
        found.nexthops.remove(&other);
        go(&agent(mode, &BOTH), &mut found);
        check(&agent(mode, &BOTH), &found);
    }
}

/// Any state is reached from any other in one round, and no change takes routes along with it.
#[test]
fn every_way_from_one_state_to_another_is_safe() {
    let prefixes = ["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "fd00:2::/32"];
    let sets: [&[u8]; 6] = [&[], &[11], &[12], &[11, 12], &[12, 13], &[11, 12, 13]];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below).unwrap()
    };
    let mut found = Found::default();
    for round in 0..2000 {
        let mode = [Mode::Vxlan, Mode::Vxlan, Mode::Vxlan, Mode::Direct][next(4)];
        let mut picked: Vec<(&str, &[u8])> = prefixes
            .iter()
            .map(|prefix| (*prefix, sets[next(6)]))
            .collect();
        picked.truncate(next(5));
        let facts = agent(mode, &picked);
        // Somebody may have flushed something.
        match next(8) {
            0 => found.routes.clear(),
            1 => {
                found.nexthops.clear();
                found.routes.retain(|_, way| {
                    !matches!(
                        way,
                        Way::Leads {
                            to: To::Group(_),
                            ..
                        }
                    )
                });
            }
            2 => found.forwarding.clear(),
            _ => {}
        }
        go(&facts, &mut found);
        check(&facts, &found);
        assert!(found.nexthops.len() <= 12, "round {round}: groups pile up");
    }
}

fn with_mtu(mut facts: Facts, mtu: u16) -> Facts {
    for remote in facts.prefixes.values_mut() {
        remote.mtu = Some(mtu);
    }
    facts
}

fn turning(mut facts: Facts) -> Facts {
    if let Exit::Gateways(gateways) = &mut facts.exit {
        gateways.is_turning = true;
    }
    facts
}

fn mtus(found: &Found) -> BTreeMap<String, u16> {
    let mtus = found.routes.iter().filter_map(|(place, way)| match way {
        Way::Leads { mtu: Some(mtu), .. } => Some((place.prefix.to_string(), *mtu)),
        Way::Leads { .. } | Way::Unreachable | Way::Strange => None,
    });
    mtus.collect()
}

#[test]
fn what_the_former_mode_needs_stays_until_the_turn_is_over() {
    let direct = with_mtu(agent(Mode::Direct, &BOTH), 9000);
    let mut settled = Found::default();
    go(&direct, &mut settled);
    let mut found = Found::default();
    go(&with_mtu(agent(Mode::Vxlan, &BOTH), 9000), &mut found);
    assert_ne!(mtus(&found), mtus(&settled));
    let turning = turning(direct.clone());
    let changes = go(&turning, &mut found);
    assert!(!changes.contains(&Change::RemoveVxlan), "{changes:?}");
    check(&turning, &found);
    assert_eq!(
        mtus(&found),
        mtus(&settled),
        "the interface limits no route"
    );
    let changes = go(&direct, &mut found);
    assert!(changes.contains(&Change::RemoveVxlan), "{changes:?}");
    let touches =
        |change: &Change| matches!(change, Change::AddRoute(..) | Change::ReplaceRoute(..));
    assert!(!changes.iter().any(touches), "{changes:?}");
}

#[test]
fn while_the_mode_turns_the_guard_lets_both_ways_through() {
    let leaving = |facts: &Facts| {
        let devices = Devices {
            vxlan: 7,
            inner: [("lan".to_owned(), 3)].into(),
            ..Devices::default()
        };
        let table = guard::table(facts, &devices, &Settings::default());
        let leaving = table.chains.iter().find(|chain| chain.name == "leaving");
        let rules = &leaving.unwrap().rules;
        rules.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let ways = ["oif 7 accept", "oif 3 rt ip nexthop @hops4 accept"];
    let open = |facts: &Facts| ways.map(|way| leaving(facts).contains(&way.to_owned()));
    let [direct, vxlan] = [Mode::Direct, Mode::Vxlan].map(|mode| agent(mode, &BOTH));
    assert_eq!(open(&direct), [false, true]);
    assert_eq!(open(&vxlan), [true, false]);
    assert_eq!(open(&turning(direct)), [true, true]);
    assert_eq!(open(&turning(vxlan)), [true, true]);
}

#[test]
fn no_ipv6_route_has_less_than_ipv6_needs() {
    let mut found = Found::default();
    go(&with_mtu(agent(Mode::Direct, &BOTH), 900), &mut found);
    let mtus = mtus(&found);
    assert_eq!(mtus["10.2.0.0/16"], 900);
    assert_eq!(mtus["fd00:2::/32"], 1280);
}
