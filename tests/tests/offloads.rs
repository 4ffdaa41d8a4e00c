//! Superpackets, and the same without each offload: every byte of every transfer is compared.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use tests::capture::Capture;
use tests::echo::{Answer, Echo};
use tests::lab::{Lab, Namespace};
use tests::relay::{Mischief, Relay};
use tests::stream::{Flow, Pace};
use tests::subject::{missing, not_causeway, subject};
use tests::tunnel::{FAR_V4, FAR_V6, HANDSHAKE, NEAR_V4, NEAR_V6, Outer, Plan, Tunnel};
use tests::wireguard::{Device, Implementation, Keys, MTU, Program};

const FAMILIES: [Outer; 2] = [Outer::V4, Outer::V6];

/// TCP and UDP in both directions and families.
fn everything_passes(tunnel: &Tunnel) {
    tunnel.wait().unwrap();
    for family in FAMILIES {
        tunnel.outbound(family).tcp(20 << 20).unwrap();
        tunnel.inbound(family).tcp(20 << 20).unwrap();
        for size in [100, 1200, 8000] {
            let pace = Pace {
                datagrams: 200,
                size,
                interval: Duration::from_millis(1),
            };
            for flow in [tunnel.outbound(family), tunnel.inbound(family)] {
                let arrivals = flow.udp(pace).unwrap();
                assert_eq!(arrivals.damaged, 0, "{family:?}, {size} bytes");
                assert_eq!(arrivals.disordered(), 0, "{family:?}, {size} bytes");
                assert_eq!(arrivals.lost(), 0, "{family:?}, {size} bytes");
            }
        }
    }
}

/// One end without some offloads, the other with all it has.
fn everything_passes_without(offloads: &str) {
    if missing(&[]) || not_causeway() {
        return;
    }
    let mut plan = Plan::plain().unwrap();
    plan.near.arguments = vec!["--without".to_owned(), offloads.to_owned()];
    everything_passes(&Tunnel::build("without", plan).unwrap());
}

#[test]
fn everything_passes_with_all_offloads() {
    if missing(&[]) {
        return;
    }
    everything_passes(&Tunnel::new("with").unwrap());
}

#[test]
fn everything_passes_without_tso() {
    everything_passes_without("tso");
}

#[test]
fn everything_passes_without_uso() {
    everything_passes_without("uso");
}

#[test]
fn everything_passes_without_udp_segment() {
    everything_passes_without("udp-segment");
}

#[test]
fn everything_passes_without_udp_gro() {
    everything_passes_without("udp-gro");
}

#[test]
fn everything_passes_without_multi_queue() {
    everything_passes_without("multi-queue");
}

#[test]
fn everything_passes_without_steering() {
    everything_passes_without("steering");
}

#[test]
fn everything_passes_without_any_offload() {
    everything_passes_without("tso,uso,udp-segment,udp-gro,multi-queue,steering");
}

/// As on a card that neither segments nor adds sums.
#[test]
fn everything_passes_over_a_wire_that_does_not_segment() {
    if missing(&["ethtool"]) {
        return;
    }
    let tunnel = Tunnel::new("txoff").unwrap();
    for namespace in [tunnel.left(), tunnel.right()] {
        namespace
            .sh("ethtool -K eth0 tx off gro on && ethtool -K eth0 tx-udp-segmentation off")
            .unwrap();
    }
    everything_passes(&tunnel);
}

/// A hundredth of all outer packets is lost, among them whole superpackets.
#[test]
fn a_long_transfer_survives_loss() {
    if missing(&["nft"]) {
        return;
    }
    let tunnel = Tunnel::new("loss").unwrap();
    tunnel.wait().unwrap();
    for namespace in [tunnel.left(), tunnel.right()] {
        namespace
            .sh("nft add table inet loss && nft add chain inet loss in \
                 '{ type filter hook input priority 0; }' && \
                 nft add rule inet loss in meta l4proto udp numgen random mod 100 0 counter drop")
            .unwrap();
    }
    tunnel.outbound(Outer::V4).tcp(200 << 20).unwrap();
    tunnel.inbound(Outer::V6).tcp(20 << 20).unwrap();
    let ruleset = tunnel.right().sh("nft list table inet loss").unwrap();
    assert!(
        !ruleset.contains("packets 0 "),
        "nothing was lost: {ruleset}"
    );
}

/// The near end reaches the far end over a wire that doubles and swaps datagrams.
fn mischievous(tag: &str, mischief: Mischief) -> (Tunnel, Relay) {
    let tunnel = Tunnel::new(tag).unwrap();
    let target = tunnel.plan.far_outer();
    let relay = Relay::start(
        tunnel.left(),
        "127.0.0.1:4000".parse().unwrap(),
        target,
        mischief,
    )
    .unwrap();
    let endpoint = relay.address().to_string();
    tunnel
        .near
        .set(&["peer", &tunnel.far.keys().public, "endpoint", &endpoint])
        .unwrap();
    tunnel.wait().unwrap();
    (tunnel, relay)
}

#[test]
fn a_long_transfer_survives_reordering_and_doubling() {
    if missing(&[]) {
        return;
    }
    let mischief = Mischief {
        seed: 0x5eed,
        doubled: 20,
        held: 20,
        depth: 30,
    };
    let (tunnel, _relay) = mischievous("swap", mischief);
    for family in FAMILIES {
        tunnel.outbound(family).tcp(30 << 20).unwrap();
        tunnel.inbound(family).tcp(30 << 20).unwrap();
    }
}

/// What came twice is delivered once; what came late, but within the window, is delivered.
#[test]
fn a_doubled_datagram_is_delivered_once_and_a_late_one_is_delivered() {
    if missing(&[]) {
        return;
    }
    let mischief = Mischief {
        seed: 7,
        doubled: 300,
        held: 300,
        depth: 20,
    };
    let (tunnel, _relay) = mischievous("twice", mischief);
    let pace = Pace {
        datagrams: 2000,
        size: 300,
        interval: Duration::from_micros(500),
    };
    let arrivals = tunnel.outbound(Outer::V4).udp(pace).unwrap();
    assert_eq!(arrivals.lost(), 0);
    assert_eq!(arrivals.numbers.len(), 2000, "none may come twice");
    assert!(arrivals.disordered() > 0, "the wire did nothing");
}

/// The outer path becomes narrower while a transfer runs: at both ends' devices, then by a route.
#[test]
fn a_transfer_continues_when_the_wire_becomes_narrower() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("narrow").unwrap();
    tunnel.wait().unwrap();
    let mtu = |mtu: &str| {
        for namespace in [tunnel.left(), tunnel.right()] {
            namespace
                .run("ip", &["link", "set", "eth0", "mtu", mtu])
                .unwrap();
        }
    };
    std::thread::scope(|scope| {
        let outbound = scope.spawn(|| tunnel.outbound(Outer::V4).tcp(300 << 20));
        let inbound = scope.spawn(|| tunnel.inbound(Outer::V6).tcp(300 << 20));
        std::thread::sleep(Duration::from_millis(300));
        mtu("1300");
        outbound.join().unwrap().unwrap();
        inbound.join().unwrap().unwrap();
    });
    // New connections too, and superpackets again once the wire is wide.
    tunnel.outbound(Outer::V4).tcp(5 << 20).unwrap();
    mtu("1500");
    let route = "ip route add 192.0.2.2/32 dev eth0 mtu 1300";
    std::thread::scope(|scope| {
        let outbound = scope.spawn(|| tunnel.outbound(Outer::V4).tcp(100 << 20));
        tunnel.left().sh(route).unwrap();
        outbound.join().unwrap().unwrap();
    });
    everything_passes(&tunnel);
}

/// Sets the ECN field of WireGuard's datagrams on the wire.
fn mark_congestion(namespace: &Namespace) {
    namespace
        .sh("nft add table inet ce && nft add chain inet ce pre \
             '{ type filter hook prerouting priority -300; }' && \
             nft add rule inet ce pre meta nfproto ipv4 udp dport 51822 ip ecn set ce && \
             nft add rule inet ce pre meta nfproto ipv6 udp dport 51822 ip6 ecn set ce")
        .unwrap();
}

/// The traffic class of an IP packet.
fn class(bytes: &[u8]) -> u8 {
    if bytes[0] >> 4 == 4 {
        bytes[1]
    } else {
        (bytes[0] << 4) | (bytes[1] >> 4)
    }
}

const ECT0: u8 = 2;
const CE: u8 = 3;
/// A code point beside ECN; it stays inside.
const DSCP: u8 = 0x28;

/// RFC 6040, from inside out: the outer datagram says what the inner packet says about ECN, and
/// nothing about its class.
#[test]
fn the_ecn_field_is_copied_outward() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("ecnout").unwrap();
    tunnel.wait().unwrap();
    for ecn in [0, 1, ECT0, CE] {
        let wire = Capture::start(tunnel.left(), "eth0", |packet| {
            packet.outgoing
                && packet
                    .datagram()
                    .is_some_and(|datagram| datagram.payload[0] == 4)
        })
        .unwrap();
        for to in [FAR_V4, FAR_V6] {
            Echo::to(to)
                .tos(DSCP | ecn)
                .flood(tunnel.left(), 3)
                .unwrap();
        }
        tests::lab::wait_for("six datagrams", HANDSHAKE, || wire.count() >= 6).unwrap();
        for packet in wire.packets() {
            assert_eq!(packet.datagram().unwrap().tos, ecn);
        }
    }
}

/// RFC 6040, from outside in: congestion marked on the way is seen inside by whoever can understand
/// it, and a packet whose sender cannot is dropped.
#[test]
fn congestion_marked_outside_is_seen_inside() {
    if missing(&["nft"]) {
        return;
    }
    let tunnel = Tunnel::new("ecnin").unwrap();
    tunnel.wait().unwrap();
    mark_congestion(tunnel.right());
    let inside = Capture::start(tunnel.right(), tunnel.far.interface(), |packet| {
        !packet.outgoing
    })
    .unwrap();
    for to in [FAR_V4, FAR_V6] {
        for ecn in [1, ECT0, CE] {
            Echo::to(to)
                .tos(DSCP | ecn)
                .flood(tunnel.left(), 2)
                .unwrap();
        }
    }
    tests::lab::wait_for("twelve requests", HANDSHAKE, || inside.count() >= 12).unwrap();
    for packet in inside.packets() {
        assert_eq!(class(&packet.bytes), DSCP | CE);
    }
    let before = inside.count();
    for to in [FAR_V4, FAR_V6] {
        let deaf = Echo::to(to)
            .limit(Duration::from_millis(500))
            .once(tunnel.left())
            .unwrap();
        assert_eq!(deaf, Answer::Nothing, "RFC 6040 wants it dropped");
    }
    assert_eq!(inside.count(), before);
}

/// TCP that understands ECN hears of congestion, through split and coalesce, and is not damaged.
#[test]
fn tcp_hears_of_congestion_on_the_wire() {
    if missing(&["nft"]) {
        return;
    }
    let tunnel = Tunnel::new("ecntcp").unwrap();
    tunnel.wait().unwrap();
    for namespace in [tunnel.left(), tunnel.right()] {
        namespace.sysctl("net.ipv4.tcp_ecn", "1").unwrap();
    }
    tunnel
        .right()
        .sh("nft add table inet ce && nft add chain inet ce pre \
             '{ type filter hook prerouting priority -300; }' && \
             nft add rule inet ce pre udp dport 51822 ip ecn ect0 numgen random mod 10 0 ip ecn set ce")
        .unwrap();
    tunnel.outbound(Outer::V4).tcp(20 << 20).unwrap();
    tunnel.outbound(Outer::V6).tcp(20 << 20).unwrap();
    assert!(
        ip_counter(tunnel.right(), "InCEPkts") > 0,
        "no mark was seen inside"
    );
}

/// A counter of `IpExt` in /proc/net/netstat.
fn ip_counter(namespace: &Namespace, name: &str) -> u64 {
    let text = namespace.run("cat", &["/proc/net/netstat"]).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names
        .split_whitespace()
        .position(|column| column == name)
        .unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

/// A network of containers inside the tunnel: sums that are partial only inside, and outer sums that
/// are zero (VXLAN's usual), computed, or over IPv6.
#[test]
fn a_vxlan_inside_the_tunnel_carries_tcp() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("vxlan").unwrap();
    tunnel.wait().unwrap();
    let kinds = [
        (1, NEAR_V4, FAR_V4, "noudpcsum"),
        (2, NEAR_V4, FAR_V4, "udpcsum"),
        (3, NEAR_V6, FAR_V6, "udp6zerocsumtx udp6zerocsumrx"),
        (4, NEAR_V6, FAR_V6, "noudp6zerocsumtx noudp6zerocsumrx"),
    ];
    for (id, near, far, sums) in kinds {
        for (namespace, local, remote, host) in [
            (tunnel.left(), near, far, 1),
            (tunnel.right(), far, near, 2),
        ] {
            namespace
                .sh(&format!(
                    "ip link add vx{id} type vxlan id {id} local {local} remote {remote} \
                     dstport {} {sums} && ip link set vx{id} mtu 1340 up",
                    4788 + u16::from(id)
                ))
                .unwrap();
            namespace
                .address(&format!("vx{id}"), &format!("172.20.{id}.{host}/24"))
                .unwrap();
            namespace
                .address(&format!("vx{id}"), &format!("fd20:{id}::{host}/64"))
                .unwrap();
        }
        let v4: [IpAddr; 2] = [[172, 20, id, 1].into(), [172, 20, id, 2].into()];
        let v6 = [1, 2].map(|host| format!("fd20:{id}::{host}").parse::<IpAddr>().unwrap());
        for [near, far] in [v4, v6] {
            Echo::to(far).until_reply(tunnel.left(), HANDSHAKE).unwrap();
            let flow = Flow {
                from: tunnel.left(),
                to: tunnel.right(),
                address: far,
            };
            flow.tcp(10 << 20).unwrap();
            flow.reverse(near).tcp(10 << 20).unwrap();
            let pace = Pace {
                datagrams: 100,
                size: 4000,
                interval: Duration::from_millis(1),
            };
            assert_eq!(flow.udp(pace).unwrap().damaged, 0);
        }
    }
}

/// Fragments are neither verified nor joined.
#[test]
fn fragments_pass_the_tunnel() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("frag").unwrap();
    tunnel.wait().unwrap();
    for (from, to) in [
        (tunnel.left(), FAR_V4),
        (tunnel.left(), FAR_V6),
        (tunnel.right(), NEAR_V4),
        (tunnel.right(), NEAR_V6),
    ] {
        for payload in [1400, 3000, 20_000, 60_000] {
            Echo::to(to).payload(payload).flood(from, 5).unwrap();
        }
    }
}

/// Three devices around one, which has two data threads.
struct Star {
    centre: Device,
    spokes: Vec<Device>,
    _lab: Lab,
}

const CENTRE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 100));

fn star() -> Star {
    let lab = Lab::new("peers").unwrap();
    let hub = lab.namespace("hub").unwrap();
    let mut program = Program::find(subject()).unwrap();
    if subject() == Implementation::Causeway {
        program.arguments = vec!["--threads".to_owned(), "2".to_owned()];
    }
    let keys = Keys::generate(&hub).unwrap();
    let centre = Device::launch(&hub, &program, 51820, keys).unwrap();
    let spokes = (1..=3).map(|number| spoke(&lab, &centre, number)).collect();
    centre.up(MTU).unwrap();
    centre.address(&format!("{CENTRE}/24")).unwrap();
    Star {
        centre,
        spokes,
        _lab: lab,
    }
}

fn spoke(lab: &Lab, centre: &Device, number: u8) -> Device {
    let hub = centre.namespace();
    let namespace = lab.namespace(&format!("spoke{number}")).unwrap();
    let wire = format!("eth{number}");
    lab.veth(hub, &wire, &namespace, "eth0").unwrap();
    hub.address(&wire, &format!("192.0.{number}.1/24")).unwrap();
    namespace
        .address("eth0", &format!("192.0.{number}.2/24"))
        .unwrap();
    let spoke = Device::start(&namespace, subject(), 51820).unwrap();
    let endpoint = |host: u8| Some(format!("192.0.{number}.{host}:51820").parse().unwrap());
    spoke.peer(centre, endpoint(1), "10.9.0.0/24").unwrap();
    centre
        .peer(&spoke, endpoint(2), &format!("10.9.0.{number}/32"))
        .unwrap();
    spoke.up(MTU).unwrap();
    spoke.address(&format!("10.9.0.{number}/24")).unwrap();
    spoke
}

/// Two data threads and three peers: whoever the threads belong to, each flow stays in order.
#[test]
fn flows_of_several_peers_stay_in_order_on_two_threads() {
    if missing(&[]) {
        return;
    }
    let star = star();
    let hub = star.centre.namespace();
    for spoke in &star.spokes {
        Echo::to(CENTRE)
            .until_reply(spoke.namespace(), HANDSHAKE)
            .unwrap();
    }
    let pace = Pace {
        datagrams: 5000,
        size: 400,
        interval: Duration::from_micros(400),
    };
    std::thread::scope(|scope| {
        let mut flows = Vec::new();
        for (spoke, number) in star.spokes.iter().zip(1..) {
            let outward = Flow {
                from: hub,
                to: spoke.namespace(),
                address: [10, 9, 0, number].into(),
            };
            for flow in [
                outward,
                outward,
                outward.reverse(CENTRE),
                outward.reverse(CENTRE),
            ] {
                flows.push(scope.spawn(move || flow.udp(pace).unwrap()));
            }
            scope.spawn(move || outward.tcp(10 << 20).unwrap());
            scope.spawn(move || outward.reverse(CENTRE).tcp(10 << 20).unwrap());
        }
        for flow in flows {
            let arrivals = flow.join().unwrap();
            assert_eq!(
                arrivals.disordered(),
                0,
                "of {} arrived",
                arrivals.numbers.len()
            );
            assert_eq!(arrivals.damaged, 0);
            assert!(arrivals.numbers.len() > 1000, "hardly anything came");
        }
    });
    let counts = hub
        .sh("grep ^Tcp: /proc/net/snmp | cut -d' ' -f 11,12,13")
        .unwrap();
    println!("TCP of the hub: {counts}");
}
