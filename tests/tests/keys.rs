//! Key changes and keys that need care (netns.sh 18, 19, 46 to 53).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::Result;
use tests::capture::Capture;
use tests::echo::Echo;
use tests::lab::{Lab, Namespace};
use tests::shown::{allowed_ips, peers, transfer};
use tests::stream::Pace;
use tests::subject::{missing, subject};
use tests::tunnel::{FAR_V4, HANDSHAKE, Outer, Plan, Tunnel, set_preshared_key, wire};
use tests::wireguard::{Device, Keys, MTU};

/// Less than the five seconds after which a lost handshake is tried again.
const AT_ONCE: Duration = Duration::from_secs(4);

fn set_private_key(device: &Device, key: &str) -> Result<()> {
    let arguments = ["set", device.interface(), "private-key", "/dev/stdin"];
    device
        .namespace()
        .run_with_input("wg", &arguments, key)
        .map(drop)
}

/// One device without peers.
fn alone(tag: &str) -> (Device, Namespace, Lab) {
    let lab = Lab::new(tag).unwrap();
    let namespace = lab.namespace("a").unwrap();
    let device = Device::start(&namespace, subject(), 51820).unwrap();
    (device, namespace, lab)
}

/// netns.sh 18 and 19.
#[test]
fn a_new_private_key_is_used_at_once() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("rekey").unwrap();
    tunnel.wait().unwrap();
    let fresh = Keys::generate(tunnel.left()).unwrap();
    let old = &tunnel.near.keys().public;
    set_private_key(&tunnel.near, &fresh.private).unwrap();
    let endpoint = tunnel.plan.near_outer().to_string();
    tunnel
        .far
        .set(&[
            "peer",
            &fresh.public,
            "allowed-ips",
            "10.9.0.1/32,fd09::1/128",
            "endpoint",
            &endpoint,
            "peer",
            old,
            "remove",
        ])
        .unwrap();
    Echo::to(FAR_V4)
        .until_reply(tunnel.left(), AT_ONCE)
        .unwrap();
    assert_eq!(peers(&tunnel.far).unwrap(), [fresh.public]);
}

/// netns.sh 46 and 47.
#[test]
fn keys_are_read_back_as_they_were_set_and_can_be_cleared() {
    if missing(&[]) {
        return;
    }
    let (device, namespace, _lab) = alone("read");
    let peer = Keys::generate(&namespace).unwrap().public;
    let preshared = namespace.run("wg", &["genpsk"]).unwrap().trim().to_owned();
    set_preshared_key(&device, &peer, &preshared).unwrap();
    assert_eq!(
        device.show("private-key").unwrap().trim(),
        device.keys().private
    );
    assert_eq!(
        device.show("preshared-keys").unwrap().trim(),
        format!("{peer}\t{preshared}")
    );

    device.set(&["private-key", "/dev/null"]).unwrap();
    device
        .set(&["peer", &peer, "preshared-key", "/dev/null"])
        .unwrap();
    assert_eq!(device.show("private-key").unwrap().trim(), "(none)");
    assert_eq!(device.show("public-key").unwrap().trim(), "(none)");
    assert_eq!(
        device.show("preshared-keys").unwrap().trim(),
        format!("{peer}\t(none)")
    );
}

/// netns.sh 48 to 50.
#[test]
fn the_own_key_is_never_a_peer() {
    if missing(&[]) {
        return;
    }
    let (device, namespace, _lab) = alone("own");
    let other = Keys::generate(&namespace).unwrap();
    let own = device.keys().clone();
    device.set(&["peer", &other.public]).unwrap();
    assert_eq!(peers(&device).unwrap(), [other.public.as_str()]);
    set_private_key(&device, &other.private).unwrap();
    assert!(
        peers(&device).unwrap().is_empty(),
        "the peer became the device itself"
    );
    device
        .set(&["peer", &other.public, "allowed-ips", "10.1.1.0/24"])
        .unwrap();
    assert!(
        peers(&device).unwrap().is_empty(),
        "the device itself became a peer"
    );
    set_private_key(&device, &own.private).unwrap();
    device.set(&["peer", &other.public]).unwrap();
    assert_eq!(peers(&device).unwrap(), [other.public]);
}

/// netns.sh 51.
#[test]
fn a_private_key_is_clamped() {
    if missing(&[]) {
        return;
    }
    let (device, _, _lab) = alone("clamp");
    // 32 bytes of ff: the three lowest bits and the highest go, the second highest stays.
    set_private_key(&device, "//////////////////////////////////////////8=").unwrap();
    let clamped = "+P////////////////////////////////////////8=";
    let shown = device.show("private-key").unwrap();
    assert_eq!(shown.trim(), clamped.replace("///8=", "//38="));
}

/// netns.sh 52.
#[test]
fn lists_of_prefixes_are_replaced_by_the_default_route() {
    if missing(&[]) {
        return;
    }
    let (device, namespace, _lab) = alone("zero");
    let peer = Keys::generate(&namespace).unwrap().public;
    let lists = [
        "0.0.0.0/0",
        "0.0.0.0/0,10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16",
        "0.0.0.0/0",
        "10.0.0.0/8,100.0.0.0/10,172.16.0.0/12,192.168.0.0/16",
        "::/0,0.0.0.0/0",
        "0000::/10,2000::/3,fe80::/10",
        "::/0",
    ];
    for list in lists {
        device.set(&["peer", &peer, "allowed-ips", list]).unwrap();
        let mut expected: Vec<String> = list
            .split(',')
            .map(|prefix| prefix.replace("0000::", "::"))
            .collect();
        expected.sort();
        assert_eq!(allowed_ips(&device, &peer).unwrap(), expected);
    }
}

/// The points of Curve25519 whose order divides eight, in base64: with each of them the shared
/// secret is zero, whoever has the private key.
const LOW_ORDER: [&str; 7] = [
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    "4Ot6fDtBuK4WVuP68Z/EatoJjeucMrH9hmIFFl9JuAA=",
    "X5yVvKNQjCSx0LFVnIPvWwREXMRYHI6G2CJO3dCfEVc=",
    "7P///////////////////////////////////////38=",
    "7f///////////////////////////////////////38=",
    "7v///////////////////////////////////////38=",
];

/// netns.sh 53.
#[test]
fn nothing_is_ever_sent_to_a_low_order_key() {
    if missing(&[]) {
        return;
    }
    let lab = Lab::new("low").unwrap();
    let (left, right) = wire(&lab, 1500).unwrap();
    let device = Device::start(&left, subject(), 51820).unwrap();
    let honest = Keys::generate(&left).unwrap().public;
    let seen = Capture::start(&right, "eth0", |packet| packet.datagram().is_some()).unwrap();
    for (number, key) in LOW_ORDER.iter().chain([&honest.as_str()]).enumerate() {
        let port = 1000 + number;
        let endpoint = format!("192.0.2.2:{port}");
        let prefix = format!("10.77.{number}.0/24");
        device
            .set(&[
                "peer",
                key,
                "endpoint",
                &endpoint,
                "persistent-keepalive",
                "1",
                "allowed-ips",
                &prefix,
            ])
            .unwrap();
    }
    device.up(MTU).unwrap();
    device.address("10.77.100.1/16").unwrap();
    for number in 0..LOW_ORDER.len() {
        let to: std::net::IpAddr = [10, 77, u8::try_from(number).unwrap(), 1].into();
        let _ = Echo::to(to).limit(Duration::from_millis(100)).once(&left);
    }
    // The honest peer shows that keepalives do start handshakes here.
    let honest_port = u16::try_from(1000 + LOW_ORDER.len()).unwrap();
    tests::lab::wait_for("a handshake with the honest peer", HANDSHAKE, || {
        seen.count() > 0
    })
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    for packet in seen.packets() {
        let port = packet.datagram().unwrap().destination.port();
        assert_eq!(port, honest_port, "sent to a low-order key");
    }
    assert_eq!(
        peers(&device).unwrap().len(),
        LOW_ORDER.len() + 1,
        "they are listed"
    );
    for key in LOW_ORDER {
        assert_eq!(transfer(&device, key).unwrap().sent, 0, "{key}");
    }
    assert!(device.process().is_running());
}

/// A preshared key that one side lacks keeps the tunnel down; the same on both opens it.
#[test]
fn a_preshared_key_must_be_the_same_on_both_ends() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("psk").unwrap();
    let key = tunnel.left().run("wg", &["genpsk"]).unwrap();
    set_preshared_key(&tunnel.near, &tunnel.far.keys().public, &key).unwrap();
    let refused = Echo::to(FAR_V4).until_reply(tunnel.left(), Duration::from_secs(2));
    assert!(refused.is_err(), "one end does not know the key");
    set_preshared_key(&tunnel.far, &tunnel.near.keys().public, &key).unwrap();
    tunnel.wait().unwrap();
}

/// A living session goes on when the preshared key changes, and no packet is lost.
#[test]
fn a_change_of_the_preshared_key_loses_nothing() {
    if missing(&[]) {
        return;
    }
    let plan = Plan {
        preshared_key: true,
        ..Plan::plain().unwrap()
    };
    let tunnel = Tunnel::build("pskc", plan).unwrap();
    tunnel.wait().unwrap();
    let pace = Pace {
        datagrams: 300,
        size: 200,
        interval: Duration::from_millis(10),
    };
    let (outbound, inbound) = std::thread::scope(|scope| {
        let outbound = scope.spawn(|| tunnel.outbound(Outer::V4).udp(pace).unwrap());
        let inbound = scope.spawn(|| tunnel.inbound(Outer::V6).udp(pace).unwrap());
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(400));
            tunnel.change_preshared_key().unwrap();
        }
        (outbound.join().unwrap(), inbound.join().unwrap())
    });
    assert_eq!((outbound.lost(), inbound.lost()), (0, 0));
    assert_eq!((outbound.disordered(), inbound.disordered()), (0, 0));
}

/// Whatever is done to one peer, the others do not notice.
#[test]
fn changes_of_one_peer_lose_no_packet_of_another() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("other").unwrap();
    tunnel.wait().unwrap();
    let other = Keys::generate(tunnel.left()).unwrap().public;
    let pace = Pace {
        datagrams: 400,
        size: 200,
        interval: Duration::from_millis(5),
    };
    let arrivals = std::thread::scope(|scope| {
        let stream = scope.spawn(|| tunnel.outbound(Outer::V4).udp(pace).unwrap());
        for round in 0..10 {
            let prefix = format!("10.200.{round}.0/24");
            let set =
                |arguments: &[&str]| tunnel.near.set(&[&["peer", &other], arguments].concat());
            set(&["allowed-ips", &prefix, "endpoint", "192.0.2.99:1"]).unwrap();
            set(&["persistent-keepalive", "1", "endpoint", "[2001:db8::99]:1"]).unwrap();
            set(&["allowed-ips", ""]).unwrap();
            set(&["remove"]).unwrap();
        }
        stream.join().unwrap()
    });
    assert_eq!(arrivals.lost(), 0);
    assert_eq!(arrivals.disordered(), 0);
}
