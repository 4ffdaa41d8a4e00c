//! Which way links go: translators, hole punching, the relay and back, paths that become narrower.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};
use serde_json::Value;
use tests::lab::{Namespace, skip};
use tests::mesh::{Mesh, Nat, PATIENCE, Plan};
use tests::stream::Flow;

fn one(nat: Nat) -> Plan {
    Plan { gateways: 1, nat }
}

/// Waits until the link from site 0 to site 1 goes this way, `direct` or `relay`.
fn wait_for_path(mesh: &Mesh, wanted: &str, limit: Duration) -> Value {
    let begin = Instant::now();
    loop {
        let link = mesh.sites[0].gateways[0].link("g21").unwrap();
        if link["state"] == "up" && link["path"] == wanted {
            println!("{wanted} after {:?}", begin.elapsed());
            return link;
        }
        assert!(
            begin.elapsed() < limit,
            "not {wanted} within {limit:?}: {link}; the other side: {}",
            mesh.sites[1].gateways[0].link("g11").unwrap()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_translators_of_the_kind_that_keeps_ports_are_passed_directly() {
    if skip("two_translators", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("punch", &[one(Nat::Cone), one(Nat::Cone)]).unwrap();
    wait_for_path(&mesh, "direct", PATIENCE);
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    mesh.watch.assert_clean();
}

#[test]
fn a_site_that_can_only_dial_out_works_whatever_its_translator() {
    if skip("a_site_that_can_only_dial_out", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("dialout", &[one(Nat::Symmetric), one(Nat::None)]).unwrap();
    wait_for_path(&mesh, "direct", PATIENCE);
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    mesh.watch.assert_clean();
}

#[test]
fn what_no_hole_can_be_punched_through_is_relayed() {
    if skip("what_no_hole", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("relay", &[one(Nat::Symmetric), one(Nat::Symmetric)]).unwrap();
    wait_for_path(&mesh, "relay", PATIENCE);
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    let flow = Flow {
        from: &mesh.sites[0].worker,
        to: &mesh.sites[1].worker,
        address: mesh.sites[1].worker_address(),
    };
    flow.tcp(4 << 20).unwrap();
    mesh.watch.assert_clean();
}

#[test]
fn where_only_tcp_gets_out_the_relay_is_reached_through_tls_until_there_is_a_direct_way() {
    if skip("where_only_tcp_gets_out", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("tcponly", &[one(Nat::TcpOnly), one(Nat::None)]).unwrap();
    wait_for_path(&mesh, "relay", PATIENCE);
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    mesh.wait_for_ping(1, 0, PATIENCE).unwrap();
    let meters = [mesh.meter(0, 1).unwrap(), mesh.meter(1, 0).unwrap()];
    let nat = mesh.sites[0].nat.as_ref().unwrap();
    nat.sh("nft flush chain ip filter pass &&
         nft add rule ip filter pass iifname wan ct state new drop")
        .unwrap();
    wait_for_path(&mesh, "direct", Duration::from_secs(45));
    std::thread::sleep(Duration::from_millis(500));
    for meter in meters {
        let report = meter.finish();
        println!(
            "lost {} of {}, gap {:?}",
            report.lost, report.sent, report.gap
        );
        assert_eq!(report.lost, 0, "{report:?}");
    }
    mesh.watch.assert_clean();
}

/// What comes towards a site whose public address changed arrives again as soon as one packet has
/// left it.
#[test]
fn a_new_public_address_is_followed_with_the_next_packet_from_inside() {
    if skip("a_new_public_address", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("rebind", &[one(Nat::Cone), one(Nat::None)]).unwrap();
    mesh.wait_for_ping(0, 1, PATIENCE).unwrap();
    let outward = mesh.meter(0, 1).unwrap();
    let inward = mesh.meter(1, 0).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let nat = mesh.sites[0].nat.as_ref().unwrap();
    nat.sh(
        "ip address del 198.51.1.2/24 dev wan && ip address add 198.51.1.9/24 dev wan &&
         ip route replace default via 198.51.1.1 && conntrack --flush",
    )
    .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let (outward, inward) = (outward.finish(), inward.finish());
    println!("outward gap {:?}, inward gap {:?}", outward.gap, inward.gap);
    let link = mesh.sites[1].gateways[0].link("g11").unwrap();
    let endpoint = link["endpoint"].as_str().unwrap();
    assert!(
        endpoint.starts_with("198.51.1.9:"),
        "it did not move: {link}"
    );
    assert!(inward.gap <= Duration::from_millis(300), "{inward:?}");
    assert!(outward.gap <= Duration::from_millis(300), "{outward:?}");
    mesh.watch.assert_clean();
}

/// Drops every ICMP that tells of a size, wherever it comes from.
fn block_icmp(namespace: &Namespace) {
    namespace
        .sh("nft add table inet noicmp &&
             nft add chain inet noicmp in '{ type filter hook prerouting priority -300; }' &&
             nft add chain inet noicmp out '{ type filter hook postrouting priority 300; }' &&
             nft add rule inet noicmp in icmp type destination-unreachable drop &&
             nft add rule inet noicmp in icmpv6 type packet-too-big drop &&
             nft add rule inet noicmp out icmp type destination-unreachable drop &&
             nft add rule inet noicmp out icmpv6 type packet-too-big drop")
        .unwrap();
}

#[test]
fn a_path_that_shrinks_under_a_transfer_without_icmp_stalls_it_less_than_five_seconds() {
    if skip("a_path_that_shrinks", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("shrink", &[one(Nat::None), one(Nat::None)]).unwrap();
    for site in &mesh.sites {
        block_icmp(&site.worker);
        block_icmp(&site.gateways[0].namespace);
    }
    block_icmp(&mesh.internet);
    let transfers = mesh.transfers(0, 1).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    for mtu in ["1400", "1300"] {
        for port in ["g11", "g21"] {
            mesh.internet
                .run("ip", &["link", "set", port, "mtu", mtu])
                .unwrap();
        }
        std::thread::sleep(Duration::from_secs(6));
    }
    let transfer = transfers.finish().unwrap();
    println!("longest stall {:?}", transfer.stall);
    assert!(transfer.stall < Duration::from_secs(5), "{transfer:?}");
    let link = mesh.sites[0].gateways[0].link("g21").unwrap();
    let mtu = link["mtu"].as_u64().unwrap();
    assert!((1200..=1240).contains(&mtu), "{link}");
    // New connections, and every size, too.
    let flow = Flow {
        from: &mesh.sites[0].worker,
        to: &mesh.sites[1].worker,
        address: mesh.sites[1].worker_address(),
    };
    flow.tcp(4 << 20).unwrap();
    flow.reverse(mesh.sites[0].worker_address())
        .tcp(4 << 20)
        .unwrap();
    mesh.watch.assert_clean();
}

#[test]
fn a_path_mtu_that_the_kernel_has_cached_low_changes_nothing() {
    if skip("a_path_mtu_cached_low", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("cached", &[one(Nat::None), one(Nat::None)]).unwrap();
    let gateway = &mesh.sites[0].gateways[0];
    let remote = mesh.sites[1].gateways[0].outer.to_string();
    gateway
        .namespace
        .run(
            "ip",
            &["route", "add", &remote, "via", "198.51.1.5", "mtu", "1000"],
        )
        .unwrap();
    let flow = Flow {
        from: &mesh.sites[0].worker,
        to: &mesh.sites[1].worker,
        address: mesh.sites[1].worker_address(),
    };
    flow.tcp(20 << 20).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let link = gateway.link("g21").unwrap();
    assert!(link["mtu"].as_u64().unwrap() >= 1400, "{link}");
    assert_eq!(link["state"], "up");
}

/// An ICMP error as a router on the way would send it, about a datagram that the gateway sent.
fn forge_too_big(router: &Namespace, from: Ipv4Addr, to: Ipv4Addr, mtu: u16) {
    let mut quoted = vec![0x45, 0, 5, 0, 0, 0, 0x40, 0, 64, 17, 0, 0];
    quoted.extend_from_slice(&from.octets());
    quoted.extend_from_slice(&to.octets());
    let sum = checksum(&quoted);
    quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    // 51820 to 51820, and a length.
    quoted.extend_from_slice(&[0xca, 0x6c, 0xca, 0x6c, 4, 0xec, 0, 0]);
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend_from_slice(&mtu.to_be_bytes());
    message.extend_from_slice(&quoted);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    router
        .within(|| {
            let socket = socket(
                AddressFamily::Inet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Icmp,
            )?;
            let target = SockaddrIn::from(SocketAddrV4::new(from, 0));
            sendto(socket.as_raw_fd(), &message, &target, MsgFlags::empty())
        })
        .unwrap()
        .unwrap();
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[test]
fn a_forged_too_big_for_the_outer_path_changes_nothing() {
    if skip("a_forged_too_big", &["nft", "conntrack"]) {
        return;
    }
    let mesh = Mesh::up("forged", &[one(Nat::None), one(Nat::None)]).unwrap();
    let [IpAddr::V4(own), IpAddr::V4(remote)] =
        [0, 1].map(|site: usize| mesh.sites[site].gateways[0].outer)
    else {
        panic!("the outer network is IPv4");
    };
    let transfers = mesh.transfers(0, 1).unwrap();
    for _ in 0..20 {
        forge_too_big(&mesh.internet, own, remote, 576);
        std::thread::sleep(Duration::from_millis(100));
    }
    let gateway = &mesh.sites[0].gateways[0];
    // What the kernel made of it: without that the forgery would have proven nothing.
    let cached = gateway
        .namespace
        .run("ip", &["route", "get", &remote.to_string()])
        .unwrap();
    println!("the kernel believes: {cached}");
    let transfer = transfers.finish().unwrap();
    assert!(transfer.stall < Duration::from_millis(500), "{transfer:?}");
    let link = gateway.link("g21").unwrap();
    assert!(link["mtu"].as_u64().unwrap() >= 1400, "{link}");
}
