//! Which of its addresses a device sends from (netns.sh 30 to 37).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use tests::echo::Echo;
use tests::lab::{Lab, wait_for};
use tests::shown::endpoint;
use tests::subject::{missing, subject};
use tests::tunnel::{FAR_PORT, FAR_V4, HANDSHAKE, NEAR_PORT, NEAR_V4, Outer, Plan, Tunnel};
use tests::wireguard::{Device, MTU};

/// Takes the address the near end sends from away, and expects it to send from the other one.
fn falls_over(tag: &str, outer: Outer, [first, second]: [&str; 2]) {
    let plan = Plan {
        outer,
        ..Plan::plain().unwrap()
    };
    let tunnel = Tunnel::build(tag, plan).unwrap();
    // Or the first IPv4 address of the subnet would take the second with it.
    tunnel
        .left()
        .sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")
        .unwrap();
    tunnel.left().address("eth0", second).unwrap();
    tunnel.wait().unwrap();
    let near = &tunnel.near.keys().public;
    let learned = || endpoint(&tunnel.far, near).unwrap().unwrap();
    // Which of two equal addresses comes first is the kernel's choice.
    let (gone, left) = match first.starts_with(&learned().ip().to_string()) {
        true => (first, second),
        false => (second, first),
    };
    assert!(
        gone.starts_with(&learned().ip().to_string()),
        "{}",
        learned()
    );
    tunnel
        .left()
        .run("ip", &["address", "del", gone, "dev", "eth0"])
        .unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 1).unwrap();
    let left = left.split('/').next().unwrap().parse().unwrap();
    assert_eq!(learned(), SocketAddr::new(left, NEAR_PORT));
}

/// netns.sh 30.
#[test]
fn a_removed_ipv4_source_is_replaced() {
    if missing(&[]) {
        return;
    }
    falls_over("fall4", Outer::V4, ["192.0.2.1/24", "192.0.2.3/24"]);
}

/// netns.sh 31.
#[test]
fn a_removed_ipv6_source_is_replaced() {
    if missing(&[]) {
        return;
    }
    falls_over("fall6", Outer::V6, ["2001:db8::1/64", "2001:db8::3/64"]);
}

/// netns.sh 32 to 35: two addresses of each family; whichever is spoken to answers.
#[test]
fn answers_leave_from_the_address_that_was_spoken_to() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("stick").unwrap();
    tunnel.right().address("eth0", "192.0.2.12/24").unwrap();
    tunnel.right().address("eth0", "2001:db8::12/64").unwrap();
    tunnel.wait().unwrap();
    let far = &tunnel.far.keys().public;
    let spoken = [
        "192.0.2.2",
        "192.0.2.12",
        "2001:db8::2",
        "2001:db8::12",
        "192.0.2.12",
    ];
    for address in spoken {
        let target = SocketAddr::new(address.parse().unwrap(), FAR_PORT);
        tunnel
            .near
            .set(&["peer", far, "endpoint", &target.to_string()])
            .unwrap();
        // Had the answer come from elsewhere, the near end would have followed it there.
        Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
        Echo::to(NEAR_V4).flood(tunnel.right(), 3).unwrap();
        assert_eq!(endpoint(&tunnel.near, far).unwrap(), Some(target));
    }
}

/// The same before there is a session: the handshake's answer too.
#[test]
fn a_handshake_is_answered_from_the_address_that_was_spoken_to() {
    if missing(&[]) {
        return;
    }
    for address in ["192.0.2.12", "2001:db8::12"] {
        let tunnel = Tunnel::new("stickh").unwrap();
        tunnel.right().address("eth0", "192.0.2.12/24").unwrap();
        tunnel.right().address("eth0", "2001:db8::12/64").unwrap();
        let far = &tunnel.far.keys().public;
        let target = SocketAddr::new(address.parse().unwrap(), FAR_PORT);
        tunnel
            .near
            .set(&["peer", far, "endpoint", &target.to_string()])
            .unwrap();
        tunnel.wait().unwrap();
        assert_eq!(endpoint(&tunnel.near, far).unwrap(), Some(target));
    }
}

/// netns.sh 36: the address lies on an interface that the datagrams never pass.
#[test]
fn an_address_on_another_interface_answers_too() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("dummy").unwrap();
    tunnel
        .right()
        .sh("ip link add br0 type bridge && ip link set br0 up")
        .unwrap();
    tunnel.right().address("br0", "203.0.113.9/32").unwrap();
    tunnel
        .left()
        .run(
            "ip",
            &["route", "add", "203.0.113.9/32", "via", "192.0.2.2"],
        )
        .unwrap();
    let far = &tunnel.far.keys().public;
    let target: SocketAddr = "203.0.113.9:51822".parse().unwrap();
    tunnel
        .near
        .set(&["peer", far, "endpoint", &target.to_string()])
        .unwrap();
    tunnel.wait().unwrap();
    Echo::to(NEAR_V4).flood(tunnel.right(), 3).unwrap();
    assert_eq!(endpoint(&tunnel.near, far).unwrap(), Some(target));
}

/// netns.sh 37: two wires lead to the far end, and the better one appears in mid-flow.
#[test]
fn traffic_moves_to_a_better_route() {
    if missing(&[]) {
        return;
    }
    let lab = Lab::new("route").unwrap();
    let (left, right) = (
        lab.namespace("near").unwrap(),
        lab.namespace("far").unwrap(),
    );
    for (interface, net) in [("eth0", "192.0.2"), ("eth1", "192.0.3")] {
        lab.veth(&left, interface, &right, interface).unwrap();
        left.address(interface, &format!("{net}.1/24")).unwrap();
        right.address(interface, &format!("{net}.2/24")).unwrap();
    }
    right.address("lo", "203.0.113.9/32").unwrap();
    let near = Device::start(&left, subject(), NEAR_PORT).unwrap();
    let far = Device::start(&right, subject(), FAR_PORT).unwrap();
    near.peer(
        &far,
        Some("203.0.113.9:51822".parse().unwrap()),
        "10.9.0.2/32",
    )
    .unwrap();
    far.peer(&near, None, "10.9.0.1/32").unwrap();
    for (device, address) in [(&near, "10.9.0.1/24"), (&far, "10.9.0.2/24")] {
        device.up(MTU).unwrap();
        device.address(address).unwrap();
    }
    left.sh("ip route add 203.0.113.9/32 via 192.0.2.2 metric 20")
        .unwrap();
    Echo::to(FAR_V4).until_reply(&left, HANDSHAKE).unwrap();
    let learned = || endpoint(&far, &near.keys().public).unwrap();
    assert_eq!(learned(), Some("192.0.2.1:51821".parse().unwrap()));

    left.sh("ip route add 203.0.113.9/32 via 192.0.3.2 metric 10")
        .unwrap();
    let moved = Some("192.0.3.1:51821".parse().unwrap());
    wait_for(
        "traffic moves to the better route",
        Duration::from_secs(10),
        || {
            Echo::to(FAR_V4).flood(&left, 1).unwrap();
            learned() == moved
        },
    )
    .unwrap();
    // And back, when it goes.
    left.sh("ip route del 203.0.113.9/32 via 192.0.3.2")
        .unwrap();
    wait_for("traffic moves back", Duration::from_secs(10), || {
        let _ = Echo::to(FAR_V4).flood(&left, 1);
        learned() == Some("192.0.2.1:51821".parse().unwrap())
    })
    .unwrap();
}
