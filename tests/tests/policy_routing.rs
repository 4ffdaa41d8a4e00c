//! A default route into the tunnel, and packets that have no peer (netns.sh 28, 29).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tests::echo::{Answer, Echo};
use tests::subject::{missing, not_causeway};
use tests::tunnel::{FAR_V4, FAR_V6, Tunnel};

/// netns.sh 28: everything goes into the tunnel, save what carries the tunnel's own mark.
#[test]
fn a_default_route_into_the_tunnel_spares_its_own_datagrams() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("policy").unwrap();
    let far = &tunnel.far.keys().public;
    tunnel.near.set(&["fwmark", "51820"]).unwrap();
    tunnel
        .near
        .set(&["peer", far, "allowed-ips", "0.0.0.0/0,::/0"])
        .unwrap();
    let interface = tunnel.near.interface();
    for family in ["-4", "-6"] {
        let ip = |line: &str| tunnel.left().sh(&format!("ip {family} {line}")).unwrap();
        ip(&format!("route add default dev {interface} table 51820"));
        ip("rule add not fwmark 51820 table 51820");
        ip("rule add table main suppress_prefixlength 0");
    }
    // Addresses that only the default route covers.
    tunnel.right().address("lo", "203.0.113.7/32").unwrap();
    tunnel.right().address("lo", "2001:db8:7::7/128").unwrap();
    let far_v4: IpAddr = [203, 0, 113, 7].into();
    let far_v6: IpAddr = "2001:db8:7::7".parse().unwrap();
    Echo::to(far_v4)
        .until_reply(tunnel.left(), Duration::from_secs(15))
        .unwrap();
    for to in [far_v4, far_v6, FAR_V4, FAR_V6] {
        Echo::to(to).flood(tunnel.left(), 100).unwrap();
    }
    // The mark is what does it: without it the datagrams run into their own tunnel. The sockets
    // follow a change at once.
    assert_eq!(tunnel.near.show("fwmark").unwrap().trim(), "0xca6c");
    tunnel.near.set(&["fwmark", "51821"]).unwrap();
    for family in ["-4", "-6"] {
        let change = format!(
            "ip {family} rule add not fwmark 51821 table 51820 && \
             ip {family} rule del not fwmark 51820 table 51820"
        );
        tunnel.left().sh(&change).unwrap();
    }
    for to in [far_v4, far_v6] {
        Echo::to(to).flood(tunnel.left(), 100).unwrap();
    }
}

/// What a sender sees of a packet that no peer may have: an error, at once.
fn unreachable_at_once(echo: &Echo, from: &tests::lab::Namespace) {
    let begin = Instant::now();
    let answer = echo
        .clone()
        .limit(Duration::from_secs(10))
        .once(from)
        .unwrap();
    let Answer::Unreachable { errno, .. } = answer else {
        panic!("{answer:?} instead of an ICMP error");
    };
    assert_eq!(Errno::from_raw(errno), Errno::EHOSTUNREACH);
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

/// netns.sh 29, for packets of this machine.
#[test]
fn a_packet_without_a_peer_is_answered_with_unreachable() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("nopeer").unwrap();
    tunnel.wait().unwrap();
    for to in ["10.9.0.77", "fd09::77"] {
        let to: IpAddr = to.parse().unwrap();
        unreachable_at_once(&Echo::to(to), tunnel.left());
    }
    tunnel
        .near
        .set(&["peer", &tunnel.far.keys().public, "remove"])
        .unwrap();
    unreachable_at_once(&Echo::to(FAR_V4), tunnel.left());
    unreachable_at_once(&Echo::to(FAR_V6), tunnel.left());
}

/// netns.sh 29: the worker behind a gateway that translates sources hears it too.
#[test]
fn a_forwarded_and_translated_packet_without_a_peer_is_answered() {
    if missing(&["nft"]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("snat").unwrap();
    let worker = tunnel.lab.namespace("worker").unwrap();
    tunnel
        .lab
        .veth(&worker, "eth0", tunnel.left(), "eth1")
        .unwrap();
    worker.address("eth0", "172.16.5.2/24").unwrap();
    tunnel.left().address("eth1", "172.16.5.1/24").unwrap();
    worker
        .run("ip", &["route", "add", "default", "via", "172.16.5.1"])
        .unwrap();
    tunnel.left().forward().unwrap();
    let interface = tunnel.near.interface();
    tunnel
        .left()
        .sh(&format!(
            "nft add table ip nat && nft add chain ip nat post \
             '{{ type nat hook postrouting priority srcnat; }}' && \
             nft add rule ip nat post oifname {interface} masquerade"
        ))
        .unwrap();
    Echo::to(FAR_V4)
        .until_reply(&worker, Duration::from_secs(15))
        .unwrap();
    tunnel
        .near
        .set(&["peer", &tunnel.far.keys().public, "remove"])
        .unwrap();
    unreachable_at_once(&Echo::to(FAR_V4), &worker);
}
