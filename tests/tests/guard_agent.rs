//! What an agent's node does with packets of the mesh while other programs' filters are in the way
//! and while parts of its own state are gone.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use routeagent::facts::Mode;
use routeagent::{Handle, Settings};
use tests::capture::{Capture, Packet};
use tests::lab::{HOSTILE, Namespace, skip, wait_for};
use tests::node_kernel::{FAR_V4, FAR_V6, LAN, LAN_V4, NodeKernel, facts, prefix, told};
use tests::site_kernel::{AGENT, SiteKernel, agent_facts, lan, whole};

const PORT: u16 = 4567;
const VXLAN: u16 = 7803;
const LIMIT: Duration = Duration::from_secs(20);
const MODES: [Mode; 2] = [Mode::Vxlan, Mode::Direct];

/// One way each to lose a layer whole.
const LAYERS: [&str; 3] = [
    "for f in -4 -6; do for p in 99 100; do ip $f rule del priority $p; done; done",
    "ip route del unreachable 10.2.0.0/16 metric 4294967295; \
     ip -6 route del unreachable fd00:2::/32 metric 4294967295",
    "nft delete table inet causeway",
];

fn started(site: &SiteKernel, mode: Mode) -> Handle {
    site.set_facts(agent_facts(mode, &[1, 2]));
    let handle = site.start(Settings::default()).unwrap();
    site.until(&whole(mode)).unwrap();
    handle
}

/// A datagram; it may be refused, which is as good.
fn send(from: &Namespace, to: &str, port: u16) {
    let to: IpAddr = to.parse().unwrap();
    from.within(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        let _ = socket.send_to(b"plain", SocketAddr::new(to, port));
    })
    .unwrap();
}

fn is_to(port: u16) -> impl Fn(&Packet) -> bool + Send + 'static {
    move |packet| {
        let datagram = packet.datagram();
        datagram.is_some_and(|datagram| datagram.destination.port() == port)
    }
}

#[test]
fn nothing_leaves_an_agents_node_in_clear_with_any_two_layers_gone() {
    if skip("agent_closed", &["nft", "bridge"]) {
        return;
    }
    for mode in MODES {
        for (left, _) in LAYERS.iter().enumerate() {
            let site = SiteKernel::new("closed").unwrap();
            // The agent is stopped when everything is there: nothing repairs.
            started(&site, mode).stop();
            for (number, layer) in LAYERS.iter().enumerate() {
                if number != left {
                    site.node.sh(layer).unwrap();
                }
            }
            for to in [FAR_V4, FAR_V6] {
                send(&site.node, to, PORT);
            }
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!(
                site.lost().unwrap(),
                0,
                "{mode:?}: only layer {left} was left"
            );
            // The last layer is what held them.
            site.node.sh(LAYERS[left]).unwrap();
            wait_for("packets in clear", LIMIT, || {
                for to in [FAR_V4, FAR_V6] {
                    send(&site.node, to, PORT);
                }
                site.lost().unwrap() >= 2
            })
            .unwrap();
        }
    }
}

/// Somebody of the LAN who is no gateway, and routes that lead there.
const STRANGER: &str = "set -e; for a in 10.1.0.77 fd00:1::77; do \
    ip neigh add $a lladdr 02:00:00:00:00:77 dev lan; done; \
    ip route add 10.2.0.0/16 via 10.1.0.77; ip -6 route add fd00:2::/32 via fd00:1::77";

#[test]
fn packets_of_the_mesh_are_handed_to_nobody_of_the_lan_but_gateways() {
    if skip("agent_hops", &["nft", "bridge"]) {
        return;
    }
    for mode in MODES {
        let site = SiteKernel::new("hops").unwrap();
        started(&site, mode).stop();
        let clear = Capture::start(&site.node, LAN, is_to(PORT)).unwrap();
        site.node.sh(STRANGER).unwrap();
        site.node.sh(LAYERS[0]).unwrap();
        let dropped = "nft list chain inet causeway leaving | grep -c 'packets [1-9]'";
        wait_for("both counted", LIMIT, || {
            for to in [FAR_V4, FAR_V6] {
                send(&site.node, to, PORT);
            }
            site.node.sh(dropped).unwrap_or_default().trim() == "2"
        })
        .unwrap();
        assert_eq!(clear.count(), 0, "{mode:?}");
        site.node.sh(LAYERS[2]).unwrap();
        wait_for("them without the table", LIMIT, || {
            for to in [FAR_V4, FAR_V6] {
                send(&site.node, to, PORT);
            }
            clear.count() >= 2
        })
        .unwrap();
    }
}

/// On top of what is hostile: only answers come in, and nothing is forwarded.
const FIREWALL: &str = "nft 'add chain inet host input { type filter hook input priority filter; policy drop; }; \
    add rule inet host input ct state established,related accept; \
    add rule inet host input iif lo accept; \
    add rule inet host input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept; \
    add chain inet host closed { type filter hook forward priority filter; policy drop; }'";

#[test]
fn a_host_firewall_a_masquerade_and_strict_filtering_change_nothing() {
    if skip("agent_hostile", &["nft", "bridge", "iptables"]) {
        return;
    }
    for mode in MODES {
        let site = SiteKernel::new("hostile").unwrap();
        for node in site.gateways.iter().chain([&site.node]) {
            node.sh(HOSTILE).unwrap();
        }
        site.node.sh(FIREWALL).unwrap();
        let gateways = site.start_gateways(mode).unwrap();
        let handle = started(&site, mode);
        // Answers come by any gateway. An agent speaks with all of its own all the time; here flows do.
        for _ in 0..40 {
            send(&site.node, FAR_V4, PORT - 1);
        }
        for far in [FAR_V4, FAR_V6] {
            site.node
                .wait_for_ping(far.parse().unwrap(), LIMIT)
                .unwrap();
        }
        let arrivals =
            ["eth1", "eth2"].map(|device| Capture::start(&site.far, device, is_to(PORT)).unwrap());
        let seen = || {
            let packets = arrivals.iter().flat_map(Capture::packets);
            let sources = packets.filter_map(|packet| Some(packet.datagram()?.source.ip()));
            sources.collect::<BTreeSet<IpAddr>>()
        };
        wait_for("both families", LIMIT, || {
            for to in [FAR_V4, FAR_V6] {
                send(&site.node, to, PORT);
            }
            seen().len() >= 2
        })
        .unwrap();
        assert_eq!(seen(), BTreeSet::from(lan(AGENT)), "{mode:?}");
        assert_eq!(told(&handle.problems()), "", "{mode:?}");
        for gateway in &gateways {
            assert_eq!(told(&gateway.problems()), "", "{mode:?}");
        }
        assert_eq!(site.lost().unwrap(), 0, "{mode:?}");
    }
}

#[test]
fn a_firewall_on_a_gateway_is_named_with_the_commands_that_open_it() {
    if skip("gateway_firewall", &["nft", "bridge", "iptables"]) {
        return;
    }
    let site = SiteKernel::new("gatewall").unwrap();
    let docker = "iptables -P FORWARD DROP; \
        iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; \
        iptables -A INPUT -p udp -j REJECT; iptables -t nat -A OUTPUT -d 10.2.0.9 -j DNAT --to 192.0.2.9";
    site.gateways[0].sh(docker).unwrap();
    let gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let problems = gateways[0].problems();
    for word in [
        "the nft chain ip filter FORWARD drops forwarded packets of the mesh",
        "UDP port 7800 (the tunnels of other gateways): ip filter INPUT",
        "UDP port 7802 (this site's agents): ip filter INPUT",
        "UDP port 7803 (VXLAN of this site's agents): ip filter INPUT",
        "ip daddr 10.2.0.9 dnat to 192.0.2.9",
    ] {
        wait_for(word, LIMIT, || told(&problems).contains(word))
            .unwrap_or_else(|error| panic!("{error}: {}", told(&problems)));
    }
    let commands: Vec<String> = problems
        .borrow()
        .iter()
        .map(|problem| problem.next.replace("start with --open-forward, or: ", ""))
        .collect();
    for command in commands {
        site.gateways[0].sh(&command).unwrap();
    }
    wait_for("no problem", LIMIT, || told(&problems).is_empty())
        .unwrap_or_else(|error| panic!("{error}: {}", told(&problems)));
    assert_eq!(told(&gateways[1].problems()), "");
}

#[test]
fn only_neighbours_speak_vxlan_and_sources_of_the_mesh_come_from_gateways() {
    if skip("agent_forged", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("forged").unwrap();
    let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let _handle = started(&site, Mode::Vxlan);
    // Somebody of the LAN, and the world outside, which says that it is the other site.
    site.lan.sh("ip address add 10.1.0.66/16 dev br0").unwrap();
    let claims = format!(
        "ip address add {FAR_V4} dev lo; ip address add {FAR_V6} dev lo; \
         ip route add 10.1.0.0/16 via 192.0.2.1 src {FAR_V4}; \
         ip route add fd00:1::/32 via 2001:db8::1 src {FAR_V6}"
    );
    site.world.sh(&claims).unwrap();
    let counted = |what: &str| {
        let line = format!(
            "nft list chain inet causeway arriving | grep -E '{what}.*packets [1-9]' | wc -l"
        );
        site.node.sh(&line).unwrap().trim().to_owned()
    };
    assert_eq!(counted("."), "0");
    wait_for("the stranger's datagram", LIMIT, || {
        send(&site.lan, "10.1.0.5", VXLAN);
        counted("udp dport 7803.*@neighbours4") == "1"
    })
    .unwrap();
    let arrived = Capture::start(&site.node, "outside", is_to(PORT)).unwrap();
    wait_for("the forged ones", LIMIT, || {
        send(&site.world, "10.1.0.5", PORT);
        send(&site.world, "fd00:1::5", PORT);
        counted("saddr @mesh[46] counter") == "2"
    })
    .unwrap();
    assert!(arrived.count() >= 2);
    // What belongs to the mesh still comes.
    for far in [FAR_V4, FAR_V6] {
        site.node
            .wait_for_ping(far.parse().unwrap(), LIMIT)
            .unwrap();
    }
}

/// As where routes are announced to the hosts: the site's addresses are on an interface that leads
/// nowhere, and packets come by one whose own address is in no prefix.
const ELSEWHERE: &str = "set -e; ip link add home up type bridge; \
    ip address del 10.1.0.5/16 dev lan; ip address del fd00:1::5/32 dev lan; \
    ip address add 10.1.0.5/32 dev home; ip address add fd00:1::5/128 dev home nodad; \
    ip address add 172.31.0.5/24 dev lan; \
    for n in 1 2; do ip route add 10.1.0.$n/32 via 172.31.0.$n src 10.1.0.5; done";
/// The world outside says that it is a gateway.
const CLAIM: &str = "ip address add 10.1.0.1/32 dev lo; \
    ip route add 10.1.0.5/32 via 192.0.2.1 src 10.1.0.1";

#[test]
fn vxlan_comes_by_the_way_that_leads_to_the_gateway_wherever_the_sites_addresses_are() {
    if skip("agent_elsewhere", &["nft", "bridge"]) {
        return;
    }
    let site = SiteKernel::new("elsewhere").unwrap();
    site.node.sh(ELSEWHERE).unwrap();
    for (gateway, number) in site.gateways.iter().zip(1..) {
        let way = format!(
            "ip address add 172.31.0.{number}/24 dev lan && ip route add 10.1.0.5/32 via 172.31.0.5"
        );
        gateway.sh(&way).unwrap();
    }
    let _gateways = site.start_gateways(Mode::Vxlan).unwrap();
    let handle = started(&site, Mode::Vxlan);
    for far in [FAR_V4, FAR_V6] {
        site.node
            .wait_for_ping(far.parse().unwrap(), LIMIT)
            .unwrap();
    }
    assert_eq!(told(&handle.problems()), "");
    site.world.sh(CLAIM).unwrap();
    let astray = "nft list chain inet causeway arriving | \
        grep 'udp dport 7803.*fib saddr . iif.*packets [1-9]'";
    assert!(site.node.sh(astray).is_err());
    wait_for("what comes by another way", LIMIT, || {
        send(&site.world, "10.1.0.5", VXLAN);
        site.node.sh(astray).is_ok()
    })
    .unwrap();
}

#[test]
fn a_service_gets_the_gateways_address_and_others_of_the_site_the_true_one() {
    if skip("services", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("services").unwrap();
    let translate = "nft 'add table ip proxy; \
        add chain ip proxy pre { type nat hook prerouting priority dstnat; }; \
        add rule ip proxy pre ip daddr 10.1.96.10 dnat to 10.1.0.2'";
    kernel.node.sh(translate).unwrap();
    let with_services = || routeagent::facts::Facts {
        services: vec![prefix("10.1.96.0/20")],
        ..facts()
    };
    kernel.set_facts(with_services());
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_forwarding().unwrap();
    let echo = kernel
        .host
        .within(|| UdpSocket::bind(("10.1.0.2", PORT)).unwrap())
        .unwrap();
    echo.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let (source, back) = {
        let mut found = None;
        wait_for("an answer of the service", LIMIT, || {
            let asker = kernel
                .far
                .within(|| UdpSocket::bind((FAR_V4, 0)).unwrap())
                .unwrap();
            asker
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            asker.send_to(b"ask", ("10.1.96.10", PORT)).unwrap();
            let mut bytes = [0; 16];
            let Ok((_, source)) = echo.recv_from(&mut bytes) else {
                return false;
            };
            echo.send_to(b"answer", source).unwrap();
            let Ok((_, back)) = asker.recv_from(&mut bytes) else {
                return false;
            };
            found = Some((source, back));
            true
        })
        .unwrap();
        found.unwrap()
    };
    assert_eq!(source.ip().to_string(), LAN_V4);
    assert_eq!(back.to_string(), format!("10.1.96.10:{PORT}"));
    let mut source = None;
    wait_for("one without a service", LIMIT, || {
        send(&kernel.far, "10.1.0.2", PORT);
        let mut bytes = [0; 16];
        source = echo.recv_from(&mut bytes).ok().map(|(_, source)| source);
        source.is_some()
    })
    .unwrap();
    assert_eq!(source.unwrap().ip().to_string(), FAR_V4);
    assert_eq!(told(&handle.problems()), "");
}
