//! Nothing for the mesh leaves in clear, and what is the host's own business stays as it is.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use routeagent::Settings;
use tests::capture::Capture;
use tests::lab::{Namespace, skip, wait_for};
use tests::node_kernel::{FAR_V4, FAR_V6, LAN_V4, LAN_V6, NodeKernel, OUTSIDE, TUN, told};

const PORT: u16 = 4567;
const LIMIT: Duration = Duration::from_secs(5);

/// One way each to lose a layer whole.
const LAYERS: [&str; 3] = [
    "for f in -4 -6; do for p in 99 100; do ip $f rule del priority $p; done; done",
    "ip route del unreachable 10.2.0.0/16 metric 4294967295; \
     ip -6 route del unreachable fd00:2::/32 metric 4294967295",
    "nft delete table inet causeway",
];

/// A datagram to `to`; it may be refused, which is as good.
fn send(from: &Namespace, to: &str, port: u16) {
    let to: IpAddr = to.parse().unwrap();
    from.within(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        let _ = socket.send_to(b"plain", SocketAddr::new(to, port));
    })
    .unwrap();
}

fn is_to(port: u16) -> impl Fn(&tests::capture::Packet) -> bool + Send + 'static {
    move |packet| {
        let datagram = packet.datagram();
        datagram.is_some_and(|datagram| datagram.destination.port() == port)
    }
}

#[test]
fn nothing_leaves_in_clear_with_any_two_layers_gone() {
    if skip("nothing_leaves", &["nft"]) {
        return;
    }
    for (left, _) in LAYERS.iter().enumerate() {
        let kernel = NodeKernel::new("closed").unwrap();
        // The agent is stopped when everything is there: nothing repairs.
        let handle = kernel.start(Settings::default()).unwrap();
        kernel.until_whole().unwrap();
        handle.stop();
        let clear = Capture::start(&kernel.node, OUTSIDE, is_to(PORT)).unwrap();
        for (number, layer) in LAYERS.iter().enumerate() {
            if number != left {
                kernel.node.sh(layer).unwrap();
            }
        }
        let send_all = || {
            for to in [FAR_V4, FAR_V6] {
                send(&kernel.node, to, PORT);
                send(&kernel.host, to, PORT);
            }
        };
        send_all();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(clear.count(), 0, "only layer {left} was left");
        // The last layer is what held them: without it all four are seen.
        kernel.node.sh(LAYERS[left]).unwrap();
        let seen = wait_for("packets in clear", LIMIT, || {
            send_all();
            clear.count() >= 4
        });
        seen.unwrap();
    }
}

#[test]
fn forged_sources_of_the_mesh_are_not_passed_on() {
    if skip("forged", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("forged").unwrap();
    // The world says that it is the other site.
    for (address, via) in [(FAR_V4, "192.0.2.1"), (FAR_V6, "2001:db8::1")] {
        let line = format!(
            "ip address add {address} dev lo; ip route add {} via {via} src {address}",
            if via.contains(':') {
                "fd00:1::/32"
            } else {
                "10.1.0.0/16"
            },
        );
        kernel.world.sh(&line).unwrap();
    }
    kernel.node.sysctl("net.ipv4.ip_forward", "1").unwrap();
    kernel
        .node
        .sysctl("net.ipv6.conf.all.forwarding", "1")
        .unwrap();
    let arrived = Capture::start(&kernel.host, "eth0", is_to(PORT)).unwrap();
    let send_both = || {
        for to in ["10.1.0.2", "fd00:1::2"] {
            send(&kernel.world, to, PORT);
        }
    };
    wait_for("them without us", LIMIT, || {
        send_both();
        arrived.count() >= 4
    })
    .unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_whole().unwrap();
    assert_eq!(told(&handle.problems()), "");
    let before = arrived.count();
    for _ in 0..3 {
        send_both();
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(arrived.count(), before);
    // By the tunnel they come.
    for to in ["10.1.0.2", "fd00:1::2"] {
        send(&kernel.far, to, PORT);
    }
    wait_for("both by the tunnel", LIMIT, || {
        arrived.count() >= before + 2
    })
    .unwrap();
}

/// From one address of `from`, to which the node need not know a way back.
fn send_as(from: &Namespace, source: &str, to: &str) {
    let [source, to]: [IpAddr; 2] = [source, to].map(|text| text.parse().unwrap());
    from.within(|| {
        let socket = UdpSocket::bind(SocketAddr::new(source, 0)).unwrap();
        let _ = socket.send_to(b"plain", SocketAddr::new(to, PORT));
    })
    .unwrap();
}

/// A host in another network of the site, on an interface that says nothing of it to the agent.
fn second_network(kernel: &NodeKernel) -> Namespace {
    let second = kernel.lab.namespace("second").unwrap();
    let veth = kernel.lab.veth(&kernel.node, "lan2", &second, "eth0");
    veth.unwrap();
    for (own, other, via) in [
        ("10.1.200.1/24", "10.1.200.2/24", "10.1.200.1"),
        ("fd00:1:200::1/48", "fd00:1:200::2/48", "fd00:1:200::1"),
    ] {
        kernel.node.address("lan2", own).unwrap();
        second.address("eth0", other).unwrap();
        let default = ["route", "add", "default", "via", via];
        second.run("ip", &default).unwrap();
    }
    second
}

#[test]
fn own_sources_from_outside_are_not_led_into_the_mesh_and_a_second_network_is() {
    if skip("own_from_outside", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("astray").unwrap();
    let second = second_network(&kernel);
    let (forged, legitimate) = (
        [("10.1.0.77", FAR_V4), ("fd00:1::77", FAR_V6)],
        [("10.1.200.2", FAR_V4), ("fd00:1:200::2", FAR_V6)],
    );
    // The world says that it is a host of this site.
    let claims = "ip address add 10.1.0.77/32 dev lo; ip address add fd00:1::77/128 dev lo; \
        ip route add 10.2.0.0/16 via 192.0.2.1; ip route add fd00:2::/32 via 2001:db8::1";
    kernel.world.sh(claims).unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    kernel.until_whole().unwrap();
    assert_eq!(told(&handle.problems()), "");
    let inside = Capture::start(&kernel.node, TUN, is_to(PORT)).unwrap();
    let send_all = |from: &Namespace, pairs: [(&str, &str); 2]| {
        for (source, to) in pairs {
            send_as(from, source, to);
        }
    };
    let dropped = || {
        let list = "nft list chain inet causeway arriving | grep -c 'packets [1-9]'";
        let counted = kernel.node.sh(list).unwrap_or_default();
        counted.trim() == "2"
    };
    wait_for("both counted", LIMIT, || {
        send_all(&kernel.world, forged);
        dropped()
    })
    .unwrap();
    wait_for("the second network inside", LIMIT, || {
        send_all(&second, legitimate);
        inside.count() >= 2
    })
    .unwrap();
    let has_come = |wanted: [(&str, &str); 2]| {
        let packets = inside.packets();
        let mut sources = packets
            .iter()
            .filter_map(|packet| Some(packet.datagram()?.source.ip().to_string()));
        sources.any(|source| wanted.iter().any(|(one, _)| *one == source))
    };
    assert!(!has_come(forged));
    // Nothing else had held them.
    handle.stop();
    kernel
        .node
        .run("nft", &["flush", "chain", "inet", "causeway", "arriving"])
        .unwrap();
    wait_for("them without the rule", LIMIT, || {
        send_all(&kernel.world, forged);
        has_come(forged)
    })
    .unwrap();
}

#[test]
fn the_tunnels_own_datagrams_are_never_led_into_it() {
    if skip("own_datagrams", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("marked").unwrap();
    let _handle = kernel.start(Settings::default()).unwrap();
    kernel.until_whole().unwrap();
    let by = |mark: &str| {
        let line = format!("ip route get 192.0.2.2 {mark}; ip route get {FAR_V4} {mark} || true");
        kernel.node.sh(&line).unwrap()
    };
    assert!(
        by("").contains(&format!("{FAR_V4} dev {TUN}")),
        "{}",
        by("")
    );
    assert!(!by("mark 0x1000").contains(TUN), "{}", by("mark 0x1000"));
}

#[test]
fn forwarded_sources_are_kept_untracked_and_own_ones_tracked() {
    if skip("sources", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("sources").unwrap();
    // A host that translates whatever leaves it.
    let hostile = "nft 'add table inet host; \
        add chain inet host post { type nat hook postrouting priority srcnat; }; \
        add rule inet host post oifname != lo ip version 4 snat ip to 192.0.2.1; \
        add rule inet host post oifname != lo ip6 version 6 snat ip6 to 2001:db8::1; \
        add chain inet host forwarded { type filter hook forward priority filter; }; \
        add rule inet host forwarded ct state invalid drop'";
    kernel.node.sh(hostile).unwrap();
    let _handle = kernel.start(Settings::default()).unwrap();
    kernel.until_forwarding().unwrap();
    let inside = Capture::start(&kernel.node, TUN, is_to(PORT)).unwrap();
    for to in [FAR_V4, FAR_V6] {
        send(&kernel.node, to, PORT);
        send(&kernel.host, to, PORT);
    }
    wait_for("all four", LIMIT, || inside.count() >= 4).unwrap();
    let mut sources: Vec<String> = inside
        .packets()
        .iter()
        .filter_map(|packet| Some(packet.datagram()?.source.ip().to_string()))
        .collect();
    sources.sort();
    assert_eq!(sources, ["10.1.0.1", "10.1.0.2", LAN_V6, "fd00:1::2"]);
    let tracked = kernel.node.sh("cat /proc/net/nf_conntrack").unwrap();
    assert!(
        tracked.contains(&format!("src={LAN_V4} dst={FAR_V4}")),
        "{tracked}"
    );
    assert!(!tracked.contains("src=10.1.0.2"), "{tracked}");
    // Others' connections are translated as before.
    let outside = Capture::start(&kernel.node, OUTSIDE, is_to(PORT)).unwrap();
    send(&kernel.host, "192.0.2.2", PORT);
    wait_for("one outside", LIMIT, || outside.count() >= 1).unwrap();
    let packets = outside.packets();
    let source = packets[0].datagram().unwrap().source.ip();
    assert_eq!(source.to_string(), "192.0.2.1");
    // Half a flow that comes back another way is not called invalid.
    for to in [FAR_V4, FAR_V6] {
        let to: IpAddr = to.parse().unwrap();
        kernel.host.wait_for_ping(to, LIMIT).unwrap();
        kernel.node.wait_for_ping(to, LIMIT).unwrap();
    }
}

#[test]
fn a_chain_that_drops_what_is_forwarded_is_told_and_opened_only_if_wanted() {
    if skip("forward", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("forward").unwrap();
    let docker = "nft 'add table ip filter; add chain ip filter FORWARD \
        { type filter hook forward priority filter; policy drop; }'";
    kernel.node.sh(docker).unwrap();
    let chain = || {
        kernel
            .node
            .sh("nft -s list chain ip filter FORWARD")
            .unwrap()
    };
    let before = chain();
    let handle = kernel.start(Settings::default()).unwrap();
    let problems = handle.problems();
    wait_for("a word about it", LIMIT, || {
        told(&problems).contains("nft chain ip filter FORWARD drops forwarded packets")
    })
    .unwrap();
    assert_eq!(chain(), before);
    handle.stop();
    let open = Settings {
        open_forward: true,
        ..Settings::default()
    };
    let handle = kernel.start(open).unwrap();
    let far: IpAddr = FAR_V4.parse().unwrap();
    kernel.host.wait_for_ping(far, LIMIT).unwrap();
    // Whoever makes the chain anew has it opened anew.
    kernel.node.sh("nft flush chain ip filter FORWARD").unwrap();
    kernel.host.wait_for_ping(far, LIMIT).unwrap();
    assert_eq!(told(&handle.problems()), "");
    handle.stop();
    kernel
        .node
        .within(|| routeagent::cleanup(false))
        .unwrap()
        .unwrap();
    assert_eq!(chain(), before);
}

#[test]
fn what_stands_in_the_way_is_told() {
    if skip("in_the_way", &["nft"]) {
        return;
    }
    let kernel = NodeKernel::new("way").unwrap();
    let others = "ip rule add priority 50 lookup 5050; ip route add 10.2.3.0/24 via 192.0.2.2 table 5050; \
        ip link add br-x type bridge; ip address add 10.2.7.1/24 dev br-x; ip link set br-x up; \
        ip address del 10.1.0.1/16 dev lan";
    kernel.node.sh(others).unwrap();
    let handle = kernel.start(Settings::default()).unwrap();
    let problems = handle.problems();
    for word in [
        "the rule with priority 50 to table 5050 comes before ours, and 10.2.3.0/24",
        "10.2.0.0/16 of site berlin overlaps 10.2.7.0/24 of br-x",
        "10.1.0.1 is no address of this node",
    ] {
        wait_for(word, LIMIT, || told(&problems).contains(word))
            .unwrap_or_else(|error| panic!("{error}: {}", told(&problems)));
    }
}
