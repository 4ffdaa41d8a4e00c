//! Endpoints that move, and translators in between (netns.sh 12, 13, 22, 23).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tests::echo::Echo;
use tests::lab::{Lab, Namespace, wait_for};
use tests::shown::endpoint;
use tests::subject::{missing, subject};
use tests::tunnel::{FAR_V4, FAR_V6, HANDSHAKE, NEAR_V4, NEAR_V6, Outer, Plan, Tunnel};
use tests::wireguard::{Device, MTU};

/// Moves the near end to `address` and `port`, and expects the far end to follow after one ping.
fn moves(tunnel: &Tunnel, [from, to]: [&str; 2], port: u16) {
    let address: IpAddr = to.split('/').next().unwrap().parse().unwrap();
    // In this order: the first IPv4 address of a subnet takes the later ones with it.
    tunnel
        .left()
        .run("ip", &["address", "del", from, "dev", "eth0"])
        .unwrap();
    tunnel.left().address("eth0", to).unwrap();
    tunnel
        .near
        .set(&["listen-port", &port.to_string()])
        .unwrap();
    Echo::to(FAR_V4)
        .limit(HANDSHAKE)
        .flood(tunnel.left(), 1)
        .unwrap();
    let learned = endpoint(&tunnel.far, &tunnel.near.keys().public).unwrap();
    assert_eq!(learned, Some(SocketAddr::new(address, port)));
    // And the way back works without the near end saying anything more.
    Echo::to(NEAR_V4).flood(tunnel.right(), 2).unwrap();
}

/// netns.sh 12.
#[test]
fn a_peer_is_followed_to_another_ipv4_address_and_port() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("roam4").unwrap();
    tunnel.wait().unwrap();
    moves(&tunnel, ["192.0.2.1/24", "192.0.2.13/24"], 9997);
}

/// netns.sh 13.
#[test]
fn a_peer_is_followed_to_another_ipv6_address_and_port() {
    if missing(&[]) {
        return;
    }
    let plan = Plan {
        outer: Outer::V6,
        ..Plan::plain().unwrap()
    };
    let tunnel = Tunnel::build("roam6", plan).unwrap();
    tunnel.wait().unwrap();
    moves(&tunnel, ["2001:db8::1/64", "2001:db8::13/64"], 9998);
}

/// From one family to the other and back, under the same session.
#[test]
fn a_peer_is_followed_from_one_family_to_the_other() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("roam46").unwrap();
    tunnel.wait().unwrap();
    let far = &tunnel.far.keys().public;
    for (to, from) in [
        ("[2001:db8::2]:51822", "[2001:db8::1]:51821"),
        ("192.0.2.2:51822", "192.0.2.1:51821"),
    ] {
        tunnel.near.set(&["peer", far, "endpoint", to]).unwrap();
        Echo::to(FAR_V6).flood(tunnel.left(), 1).unwrap();
        let learned = endpoint(&tunnel.far, &tunnel.near.keys().public).unwrap();
        assert_eq!(learned, Some(from.parse().unwrap()));
        Echo::to(NEAR_V6).flood(tunnel.right(), 2).unwrap();
    }
}

/// The route of the near end to the far end goes over a translator that forgets after two seconds.
struct Translated {
    near: Device,
    far: Device,
    left: Namespace,
    right: Namespace,
    _lab: Lab,
}

fn translated() -> Translated {
    let lab = Lab::new("nat").unwrap();
    let names = ["near", "nat", "far"];
    let [left, middle, right] = names.map(|name| lab.namespace(name).unwrap());
    lab.veth(&left, "eth0", &middle, "in").unwrap();
    lab.veth(&middle, "out", &right, "eth0").unwrap();
    left.address("eth0", "192.168.1.100/24").unwrap();
    middle.address("in", "192.168.1.1/24").unwrap();
    middle.address("out", "198.51.100.1/24").unwrap();
    right.address("eth0", "198.51.100.100/24").unwrap();
    left.run("ip", &["route", "add", "default", "via", "192.168.1.1"])
        .unwrap();
    middle.forward().unwrap();
    middle
        .sh("nft add table ip nat && nft add chain ip nat post \
             '{ type nat hook postrouting priority srcnat; }' && \
             nft add rule ip nat post oifname out snat to 198.51.100.1")
        .unwrap();
    middle
        .sysctl("net.netfilter.nf_conntrack_udp_timeout", "2")
        .unwrap();
    middle
        .sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "2")
        .unwrap();

    let near = Device::start(&left, subject(), 1).unwrap();
    let far = Device::start(&right, subject(), 2).unwrap();
    near.peer(
        &far,
        Some("198.51.100.100:2".parse().unwrap()),
        "10.9.0.2/32",
    )
    .unwrap();
    far.peer(&near, None, "10.9.0.1/32").unwrap();
    near.set(&["peer", &far.keys().public, "persistent-keepalive", "1"])
        .unwrap();
    for (device, address) in [(&near, "10.9.0.1/24"), (&far, "10.9.0.2/24")] {
        device.up(MTU).unwrap();
        device.address(address).unwrap();
    }
    Translated {
        near,
        far,
        left,
        right,
        _lab: lab,
    }
}

/// netns.sh 22 and 23.
#[test]
fn a_keepalive_holds_the_mapping_of_a_translator_open() {
    if missing(&["nft"]) {
        return;
    }
    let site = translated();
    Echo::to(FAR_V4).until_reply(&site.left, HANDSHAKE).unwrap();
    Echo::to(NEAR_V4).flood(&site.right, 1).unwrap();
    let learned = endpoint(&site.far, &site.near.keys().public).unwrap();
    assert_eq!(
        learned.map(|endpoint| endpoint.ip()),
        Some([198, 51, 100, 1].into())
    );
    // Longer than the translator remembers without traffic.
    std::thread::sleep(Duration::from_millis(3500));
    Echo::to(NEAR_V4).flood(&site.right, 1).unwrap();
}

/// The counter-proof: without keepalives the mapping goes, and the near end's next packet restores
/// the path in both directions.
#[test]
fn without_a_keepalive_the_mapping_goes_and_the_next_packet_restores_it() {
    if missing(&["nft"]) {
        return;
    }
    let site = translated();
    let far_key = &site.far.keys().public;
    Echo::to(FAR_V4).until_reply(&site.left, HANDSHAKE).unwrap();
    site.near
        .set(&["peer", far_key, "persistent-keepalive", "off"])
        .unwrap();
    let lost = || {
        std::thread::sleep(Duration::from_millis(3500));
        let echo = Echo::to(NEAR_V4).limit(Duration::from_millis(500));
        echo.flood(&site.right, 1).is_err()
    };
    // The passive keepalive may answer once more, ten seconds after the last packet.
    wait_for("the mapping goes", Duration::from_secs(30), lost).unwrap();
    Echo::to(FAR_V4).until_reply(&site.left, HANDSHAKE).unwrap();
    Echo::to(NEAR_V4).flood(&site.right, 1).unwrap();
}
