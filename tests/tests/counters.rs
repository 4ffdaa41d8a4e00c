//! Byte counters to the byte, and padding against the MTU (netns.sh 8 to 11).

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use tests::capture::Capture;
use tests::echo::Echo;
use tests::lab::wait_for;
use tests::shown::{Bytes, latest_handshake, transfer};
use tests::stream::Pace;
use tests::subject::missing;
use tests::tunnel::{FAR_V4, FAR_V6, HANDSHAKE, NEAR_V4, Outer, Plan, Tunnel};

/// Sizes on the wire, from the protocol.
const INITIATION: u64 = 148;
const RESPONSE: u64 = 92;
const KEEPALIVE: u64 = 32;

/// A data message: header and tag are 32 bytes, the packet is filled to a multiple of 16.
fn data(inner: u64) -> u64 {
    32 + inner.next_multiple_of(16)
}

/// Both ends' counters, once they have come to rest.
fn settled(tunnel: &Tunnel) -> (Bytes, Bytes) {
    let read = || {
        let near = transfer(&tunnel.near, &tunnel.far.keys().public).unwrap();
        let far = transfer(&tunnel.far, &tunnel.near.keys().public).unwrap();
        (near, far)
    };
    let mut last = read();
    wait_for("counters come to rest", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(200));
        let now = read();
        let rested = now == last && now.0.sent == now.1.received && now.1.sent == now.0.received;
        last = now;
        rested
    })
    .unwrap();
    last
}

/// netns.sh 8 to 10. Ten echoes of 84 bytes are 128 each on the wire; the initiator may add one
/// keepalive that confirms the session.
#[test]
fn ten_pings_count_to_the_byte_on_both_ends() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("count").unwrap();
    assert_eq!(
        latest_handshake(&tunnel.near, &tunnel.far.keys().public).unwrap(),
        0
    );
    // What the kernel says on its own account when an interface comes up has no peer here.
    let (before, _) = settled(&tunnel);
    assert_eq!(
        before,
        Bytes {
            received: 0,
            sent: 0
        }
    );

    Echo::to(FAR_V4)
        .limit(HANDSHAKE)
        .flood(tunnel.left(), 10)
        .unwrap();
    let (near, far) = settled(&tunnel);
    let echoes = 10 * data(84);
    let plain = INITIATION + echoes;
    assert_eq!(plain, 1428);
    assert!(
        [plain, plain + KEEPALIVE].contains(&near.sent),
        "sent {}",
        near.sent
    );
    assert_eq!(near.received, RESPONSE + echoes);
    assert_eq!(near.received, 1372);
    assert_eq!((far.received, far.sent), (near.sent, near.received));

    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    for (device, peer) in [(&tunnel.near, &tunnel.far), (&tunnel.far, &tunnel.near)] {
        let at = latest_handshake(device, &peer.keys().public).unwrap();
        assert!(
            now.abs_diff(at) < 60,
            "a handshake at {at}, and now is {now}"
        );
    }
}

/// A tunnel's counters do not depend on who reads them and through which family they came.
#[test]
fn data_is_counted_with_its_padding_whatever_the_size() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("pads").unwrap();
    tunnel.wait().unwrap();
    let mut before = settled(&tunnel).0;
    for payload in [0, 1, 15, 16, 17, 100, 1000, 1391, 1392] {
        Echo::to(FAR_V4)
            .payload(payload)
            .limit(HANDSHAKE)
            .flood(tunnel.left(), 1)
            .unwrap();
        let now = settled(&tunnel).0;
        // The largest two cannot be filled up: 1420 is no multiple of 16.
        let inner = 28 + payload as u64;
        let expected = data(inner).min(32 + 1420);
        assert_eq!(now.sent - before.sent, expected, "payload {payload}");
        assert_eq!(
            now.received - before.received,
            expected,
            "payload {payload}"
        );
        before = now;
    }
}

/// netns.sh 11, as far as a program sees it: it knows the interface's MTU, not a route's.
#[test]
fn padding_never_goes_beyond_the_mtu() {
    if missing(&["nft"]) {
        return;
    }
    let plan = Plan {
        inner_mtu: 1300,
        ..Plan::plain().unwrap()
    };
    let tunnel = Tunnel::build("mtu", plan).unwrap();
    tunnel.wait().unwrap();
    let beyond = Capture::start(tunnel.left(), "eth0", |packet| {
        // Only single datagrams; a superpacket is as long as it likes.
        packet
            .datagram()
            .is_some_and(|datagram| datagram.payload.len() > 1332)
            && packet.bytes.len() < 1500
    })
    .unwrap();
    for payload in 1250..=1272 {
        Echo::to(FAR_V4)
            .payload(payload)
            .flood(tunnel.left(), 1)
            .unwrap();
        Echo::to(FAR_V6)
            .payload(payload - 20)
            .flood(tunnel.left(), 1)
            .unwrap();
        Echo::to(NEAR_V4)
            .payload(payload)
            .flood(tunnel.right(), 1)
            .unwrap();
    }
    assert_eq!(beyond.count(), 0, "{:?}", beyond.packets());
}

/// The MTU is followed when it is changed.
#[test]
fn padding_follows_a_change_of_the_mtu() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("mtuc").unwrap();
    tunnel.wait().unwrap();
    for mtu in [1290, 1300, 1380] {
        for device in [&tunnel.near, &tunnel.far] {
            device.up(mtu).unwrap();
        }
        // A packet as long as the MTU may not become longer. The change reaches the program as an
        // event, so it may come a moment later.
        let payload = usize::from(mtu) - 28;
        wait_for("padding follows the MTU", Duration::from_secs(10), || {
            let before = transfer(&tunnel.near, &tunnel.far.keys().public)
                .unwrap()
                .sent;
            Echo::to(FAR_V4)
                .payload(payload)
                .flood(tunnel.left(), 1)
                .unwrap();
            let after = transfer(&tunnel.near, &tunnel.far.keys().public)
                .unwrap()
                .sent;
            after - before == 32 + u64::from(mtu)
        })
        .unwrap();
    }
}

/// The counters are as exact for superpackets that are split and joined on the way.
#[test]
fn datagrams_in_bulk_count_to_the_byte() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("bulk").unwrap();
    tunnel.wait().unwrap();
    let before = settled(&tunnel).0;
    let pace = Pace {
        datagrams: 500,
        size: 1000,
        interval: Duration::from_millis(1),
    };
    let arrivals = tunnel.outbound(Outer::V4).udp(pace).unwrap();
    assert_eq!(arrivals.lost(), 0);
    let now = settled(&tunnel).0;
    assert_eq!(now.sent - before.sent, 500 * data(1028));
}
