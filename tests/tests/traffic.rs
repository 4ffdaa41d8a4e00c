//! Traffic of every kind through tunnels of every make-up (netns.sh 1 to 7, 20, 21, 24 to 27).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use tests::capture::Capture;
use tests::echo::{Answer, Echo};
use tests::lab::{Namespace, wait_for};
use tests::shown::transfer;
use tests::stream::Pace;
use tests::subject::{missing, subject};
use tests::tunnel::{
    FAR_OUTER_V4, FAR_V4, FAR_V6, HANDSHAKE, NEAR_OUTER_V4, NEAR_V4, NEAR_V6, Outer, Plan, Tunnel,
};
use tests::wireguard::{Device, Implementation};

/// The inner MTU that a wire of 65535 bytes would leave half of.
const LARGE_MTU: u16 = 34668;

/// More than ten pings of 84 bytes that go round, longer each time, until they exceed the MTU: eleven
/// rounds and 8,448 bytes each, and a few handshakes.
const STORM: u64 = 100_000;

/// iperf3 from one machine to another for a second; it fails when nothing passes.
fn iperf3(from: &Namespace, to: &Namespace, address: IpAddr, options: &[&str]) {
    let bound = address.to_string();
    let mut server = to.command("iperf3");
    server.args(["-s", "-1", "-B", &bound]);
    let server = to.spawn(server).unwrap();
    wait_for("iperf3 listens", Duration::from_secs(10), || {
        to.sh("ss -Htln sport = :5201")
            .is_ok_and(|line| line.contains(&bound))
    })
    .unwrap();
    let arguments = [
        &["-c", &bound, "-t", "1", "--connect-timeout", "10000"],
        options,
    ]
    .concat();
    let printed = from.run("iperf3", &arguments).unwrap();
    assert!(printed.contains("receiver"), "{printed}");
    server.wait_timeout(Duration::from_secs(20)).unwrap();
}

/// Checks 1 to 7 between the two ends of a tunnel.
fn matrix(left: &Namespace, right: &Namespace, [near_v4, near_v6, far_v4, far_v6]: [IpAddr; 4]) {
    Echo::to(far_v4)
        .until_reply(left, Duration::from_secs(15))
        .unwrap();
    for (from, to) in [
        (left, far_v4),
        (right, near_v4),
        (left, far_v6),
        (right, near_v6),
    ] {
        Echo::to(to).flood(from, 10).unwrap();
    }
    iperf3(left, right, far_v4, &["-Z"]);
    iperf3(right, left, near_v6, &["-Z"]);
    iperf3(left, right, far_v4, &["-u", "-b", "0"]);
    iperf3(right, left, near_v6, &["-u", "-b", "0"]);
    for connections in [4, 5, 50] {
        iperf3(left, right, far_v4, &["-P", &connections.to_string()]);
    }
    let flow = tests::stream::Flow {
        from: left,
        to: right,
        address: far_v4,
    };
    flow.tcp_parallel(4, 2 << 20).unwrap();
    flow.reverse(near_v4).tcp_parallel(50, 100_000).unwrap();
    // What floods did to the queues is over at once.
    Echo::to(far_v4).flood(left, 10).unwrap();
}

fn plain_matrix(tag: &str, outer: Outer, large: bool) {
    if missing(&["iperf3"]) {
        return;
    }
    let mut plan = Plan {
        outer,
        ..Plan::plain().unwrap()
    };
    if large {
        (plan.outer_mtu, plan.inner_mtu) = (65535, LARGE_MTU);
    }
    let tunnel = Tunnel::build(tag, plan).unwrap();
    let ends = [NEAR_V4, NEAR_V6, FAR_V4, FAR_V6];
    matrix(tunnel.left(), tunnel.right(), ends);
}

/// netns.sh 1 to 7.
#[test]
fn all_traffic_passes_over_ipv4() {
    plain_matrix("t4", Outer::V4, false);
}

/// netns.sh 1 to 7.
#[test]
fn all_traffic_passes_over_ipv6() {
    plain_matrix("t6", Outer::V6, false);
}

/// netns.sh 1 to 7.
#[test]
fn all_traffic_passes_over_ipv4_with_a_large_mtu() {
    plain_matrix("t4l", Outer::V4, true);
}

/// netns.sh 1 to 7.
#[test]
fn all_traffic_passes_over_ipv6_with_a_large_mtu() {
    plain_matrix("t6l", Outer::V6, true);
}

/// netns.sh 20.
#[test]
fn all_traffic_passes_a_tunnel_inside_a_tunnel() {
    if missing(&["iperf3"]) {
        return;
    }
    let outer = Tunnel::new("nest").unwrap();
    let near = Device::start(outer.left(), subject(), 1).unwrap();
    let far = Device::start(outer.right(), subject(), 2).unwrap();
    near.peer(&far, Some((FAR_V4, 2).into()), "10.10.0.2/32,fd10::2/128")
        .unwrap();
    far.peer(&near, Some((NEAR_V6, 1).into()), "10.10.0.1/32,fd10::1/128")
        .unwrap();
    for (device, host) in [(&near, 1), (&far, 2)] {
        device.up(1340).unwrap();
        device.address(&format!("10.10.0.{host}/24")).unwrap();
        device.address(&format!("fd10::{host}/64")).unwrap();
    }
    let ends = ["10.10.0.1", "fd10::1", "10.10.0.2", "fd10::2"].map(|end| end.parse().unwrap());
    matrix(outer.left(), outer.right(), ends);
}

/// Two tunnels, each of which is told that the other's end lies inside itself.
struct Loop {
    first: Tunnel,
    near: Device,
    _far: Device,
}

impl Loop {
    fn make() -> Loop {
        let first = Tunnel::new("loop").unwrap();
        let near = Device::start(first.left(), subject(), 1).unwrap();
        let far = Device::start(first.right(), subject(), 2).unwrap();
        near.peer(&far, Some((FAR_OUTER_V4, 2).into()), "10.10.0.2/32")
            .unwrap();
        far.peer(&near, Some((NEAR_OUTER_V4, 1).into()), "10.10.0.1/32")
            .unwrap();
        for (device, host) in [(&near, 1), (&far, 2)] {
            device.up(1420).unwrap();
            device.address(&format!("10.10.0.{host}/24")).unwrap();
        }
        first.wait().unwrap();
        let inside: IpAddr = [10, 10, 0, 2].into();
        Echo::to(inside)
            .until_reply(first.left(), HANDSHAKE)
            .unwrap();
        first
            .near
            .set(&["peer", &first.far.keys().public, "endpoint", "10.10.0.2:7"])
            .unwrap();
        near.set(&["peer", &far.keys().public, "endpoint", "10.9.0.2:8"])
            .unwrap();
        Loop {
            first,
            near,
            _far: far,
        }
    }

    /// Ten pings that nobody can answer; the bytes that one of the two sent for them.
    fn run(&self) -> u64 {
        let far_key = &self.first.far.keys().public;
        let before = transfer(&self.first.near, far_key).unwrap().sent;
        for _ in 0..10 {
            let echo = Echo::to(FAR_V4).limit(Duration::from_millis(100));
            let answer = echo.once(self.first.left());
            assert!(!matches!(answer, Ok(Answer::Reply)), "nothing can answer");
        }
        std::thread::sleep(Duration::from_secs(1));
        transfer(&self.first.near, far_key).unwrap().sent - before
    }
}

/// netns.sh 21.
#[test]
fn a_routing_loop_of_two_interfaces_makes_no_storm() {
    if missing(&[]) {
        return;
    }
    let sent = Loop::make().run();
    assert!(sent > 0, "the loop was never entered");
    assert!(sent < STORM, "ten pings became {sent} bytes");
}

/// netns.sh 21: it ends with its cause, and leaves nothing behind.
#[test]
fn a_routing_loop_of_two_interfaces_ends_with_its_cause() {
    if missing(&[]) {
        return;
    }
    let ring = Loop::make();
    assert!(ring.run() > 0, "the loop was never entered");
    let first = &ring.first;
    let endpoint = first.plan.far_outer().to_string();
    first
        .near
        .set(&["peer", &first.far.keys().public, "endpoint", &endpoint])
        .unwrap();
    first.wait().unwrap();
    Echo::to(FAR_V4).flood(first.left(), 10).unwrap();
    for device in [&first.near, &ring.near] {
        assert!(
            device.process().is_running(),
            "{}",
            device.process().output()
        );
    }
}

/// netns.sh 24 and 25.
#[test]
fn a_socket_bound_to_the_interface_works_also_under_a_mark() {
    if missing(&["nft"]) {
        return;
    }
    let tunnel = Tunnel::new("bind").unwrap();
    tunnel.wait().unwrap();
    let bound = Echo::to(FAR_V4).device(tunnel.near.interface());
    bound.flood(tunnel.left(), 3).unwrap();
    tunnel
        .left()
        .sh(
            "nft add table ip mark_all && nft add chain ip mark_all out \
             '{ type route hook output priority mangle; }' && \
             nft add rule ip mark_all out meta mark set 1",
        )
        .unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    bound.flood(tunnel.left(), 3).unwrap();
}

/// netns.sh 26: the endpoint of a peer lies behind another peer of the same interface.
#[test]
fn a_peer_behind_another_peer_of_the_same_interface_is_reached() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("onion").unwrap();
    tunnel.wait().unwrap();
    let inner = Device::start(tunnel.right(), subject(), 9).unwrap();
    inner.peer(&tunnel.near, None, "10.9.0.1/32").unwrap();
    inner.up(1340).unwrap();
    inner.address("10.9.7.2/32").unwrap();
    // Its answers go back into itself; the far end's own tunnel has the more specific route to
    // nothing else.
    tunnel
        .right()
        .run(
            "ip",
            &["route", "add", "10.9.7.1/32", "dev", inner.interface()],
        )
        .unwrap();
    inner
        .set(&[
            "peer",
            &tunnel.near.keys().public,
            "allowed-ips",
            "10.9.7.1/32",
        ])
        .unwrap();
    tunnel
        .near
        .peer(&inner, Some((FAR_V4, 9).into()), "10.9.7.2/32")
        .unwrap();
    tunnel.near.address("10.9.7.1/24").unwrap();
    let end: IpAddr = [10, 9, 7, 2].into();
    Echo::to(end)
        .until_reply(tunnel.left(), Duration::from_secs(15))
        .unwrap();
    Echo::to(end).flood(tunnel.left(), 10).unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 10).unwrap();
}

/// netns.sh 27: an endpoint inside its own allowed-ips.
#[test]
fn a_peer_that_loops_on_itself_fails_cleanly_and_recovers() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("self").unwrap();
    tunnel.wait().unwrap();
    let far_key = &tunnel.far.keys().public;
    tunnel
        .near
        .set(&["peer", far_key, "endpoint", "10.9.0.2:51822"])
        .unwrap();
    let before = transfer(&tunnel.near, far_key).unwrap().sent;
    for _ in 0..10 {
        let answer = Echo::to(FAR_V4)
            .limit(Duration::from_millis(100))
            .once(tunnel.left());
        assert!(!matches!(answer, Ok(Answer::Reply)), "nothing can answer");
    }
    let sent = transfer(&tunnel.near, far_key).unwrap().sent - before;
    assert!(sent < STORM, "ten pings became {sent} bytes");
    assert!(
        tunnel.near.process().is_running(),
        "{}",
        tunnel.near.process().output()
    );
    let endpoint = tunnel.plan.far_outer().to_string();
    tunnel
        .near
        .set(&["peer", far_key, "endpoint", &endpoint])
        .unwrap();
    tunnel.wait().unwrap();
}

/// The tunnel's first promise: whatever passes inside, the wire shows nothing but WireGuard.
#[test]
fn nothing_is_seen_in_clear_on_the_wire() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("clear").unwrap();
    let wire = Capture::start(tunnel.left(), "eth0", |packet| {
        packet.datagram().is_none_or(|datagram| {
            let ports = [datagram.source.port(), datagram.destination.port()];
            ports != [51821, 51822] && ports != [51822, 51821]
        })
    })
    .unwrap();
    tunnel.wait().unwrap();
    for family in [Outer::V4, Outer::V6] {
        tunnel.outbound(family).tcp(1 << 20).unwrap();
        tunnel.inbound(family).tcp(1 << 20).unwrap();
    }
    let strangers: Vec<_> = wire
        .packets()
        .into_iter()
        .filter(|packet| !is_neighbour_discovery(&packet.bytes))
        .collect();
    assert!(strangers.is_empty(), "seen on the wire: {strangers:?}");
}

/// ARP, and ICMPv6 between the wire's own addresses.
fn is_neighbour_discovery(bytes: &[u8]) -> bool {
    match bytes.first().map(|byte| byte >> 4) {
        Some(6) => bytes[6] == 58 || bytes[6] == 0,
        Some(4) => false,
        _ => true,
    }
}

/// An interface taken to another namespace leaves its sockets in the first: how a container gets a
/// tunnel as its only way out. The namespaces then end without each other (netns.sh 55).
#[test]
fn an_interface_moved_to_another_namespace_keeps_its_sockets_behind() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("moved").unwrap();
    let inside = tunnel.lab.namespace("inside").unwrap();
    let interface = tunnel.near.interface();
    tunnel
        .left()
        .run("ip", &["link", "set", interface, "netns", inside.name()])
        .unwrap();
    inside
        .run("ip", &["link", "set", interface, "mtu", "1420", "up"])
        .unwrap();
    inside.address(interface, "10.9.0.1/24").unwrap();
    Echo::to(FAR_V4)
        .until_reply(&inside, Duration::from_secs(15))
        .unwrap();
    Echo::to(NEAR_V4).flood(tunnel.right(), 10).unwrap();
    assert!(tunnel.near.process().is_running());
    inside.run("ip", &["link", "del", interface]).unwrap();
    if subject() == Implementation::Causeway {
        tunnel
            .near
            .process()
            .wait_timeout(Duration::from_secs(10))
            .unwrap();
    }
}

/// Datagrams come in the order they were sent, whatever their number and size.
#[test]
fn datagrams_of_one_flow_are_never_reordered() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("order").unwrap();
    tunnel.wait().unwrap();
    for family in [Outer::V4, Outer::V6] {
        for size in [64, 300, 1200] {
            let pace = Pace {
                datagrams: 20_000,
                size,
                interval: Duration::ZERO,
            };
            let arrivals = tunnel.outbound(family).udp(pace).unwrap();
            assert_eq!(arrivals.disordered(), 0, "{family:?}, {size} bytes");
            assert_eq!(arrivals.damaged, 0, "{family:?}, {size} bytes");
            assert!(!arrivals.numbers.is_empty(), "nothing came");
        }
    }
}
