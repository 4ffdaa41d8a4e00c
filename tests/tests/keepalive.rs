//! Keepalives when an interface comes up (netns.sh 38, 39), and while it is idle.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::Duration;

use tests::capture::Capture;
use tests::echo::Echo;
use tests::lab::{Lab, wait_for};
use tests::shown::transfer;
use tests::subject::{missing, subject};
use tests::tunnel::{FAR_V4, HANDSHAKE, Tunnel, wire};
use tests::wireguard::{Device, Keys, MTU};

/// Long enough for a program that would send to have sent.
const QUIET: Duration = Duration::from_millis(1500);

/// netns.sh 38.
#[test]
fn a_keepalive_starts_when_the_interface_comes_up_and_not_before() {
    if missing(&[]) {
        return;
    }
    let lab = Lab::new("keep").unwrap();
    let (left, _right) = wire(&lab, 1500).unwrap();
    let device = Device::start(&left, subject(), 51820).unwrap();
    let peer = Keys::generate(&left).unwrap().public;
    device
        .set(&[
            "peer",
            &peer,
            "endpoint",
            "192.0.2.2:1",
            "persistent-keepalive",
            "1",
        ])
        .unwrap();
    std::thread::sleep(QUIET);
    assert_eq!(
        transfer(&device, &peer).unwrap().sent,
        0,
        "the interface is down"
    );
    device.up(MTU).unwrap();
    wait_for("a handshake at once", HANDSHAKE, || {
        transfer(&device, &peer).unwrap().sent > 0
    })
    .unwrap();

    // Down means quiet again.
    left.run("ip", &["link", "set", device.interface(), "down"])
        .unwrap();
    std::thread::sleep(QUIET);
    let before = transfer(&device, &peer).unwrap().sent;
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(
        transfer(&device, &peer).unwrap().sent,
        before,
        "the interface is down"
    );
}

/// netns.sh 39.
#[test]
fn a_keepalive_waits_for_the_private_key() {
    if missing(&[]) {
        return;
    }
    let lab = Lab::new("keepk").unwrap();
    let (left, _right) = wire(&lab, 1500).unwrap();
    let device = Device::start(&left, subject(), 51820).unwrap();
    device.set(&["private-key", "/dev/null"]).unwrap();
    let peer = Keys::generate(&left).unwrap().public;
    device
        .set(&[
            "peer",
            &peer,
            "endpoint",
            "192.0.2.2:1",
            "persistent-keepalive",
            "1",
        ])
        .unwrap();
    device.up(MTU).unwrap();
    std::thread::sleep(QUIET);
    assert_eq!(transfer(&device, &peer).unwrap().sent, 0, "there is no key");
    let configuration = format!("[Interface]\nPrivateKey = {}\n", device.keys().private);
    device.configure(&configuration).unwrap();
    wait_for("a handshake at once", HANDSHAKE, || {
        transfer(&device, &peer).unwrap().sent > 0
    })
    .unwrap();
}

/// A persistent keepalive is a datagram every interval, no more and no less.
#[test]
fn a_persistent_keepalive_keeps_its_interval() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("keepi").unwrap();
    tunnel.wait().unwrap();
    let far = &tunnel.far.keys().public;
    let seen = Capture::start(tunnel.left(), "eth0", |packet| {
        packet.outgoing
            && packet
                .datagram()
                .is_some_and(|datagram| datagram.payload.len() == 32)
    })
    .unwrap();
    tunnel
        .near
        .set(&["peer", far, "persistent-keepalive", "1"])
        .unwrap();
    // Three may take longer than three seconds on a busy machine, never less than two.
    wait_for("four keepalives", Duration::from_secs(20), || {
        seen.count() >= 4
    })
    .unwrap();
    let times: Vec<_> = seen.packets().iter().map(|packet| packet.at).collect();
    let between = times[3] - times[0];
    assert!(between > Duration::from_millis(2000), "{between:?}");
}

/// An idle tunnel is silent: what one end sends to confirm may not wake the other, and so on.
#[test]
fn an_idle_tunnel_falls_silent() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("idle").unwrap();
    tunnel.wait().unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    // Past the passive keepalive, which comes after ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    let seen = Capture::start(tunnel.left(), "eth0", |packet| packet.datagram().is_some()).unwrap();
    std::thread::sleep(Duration::from_secs(12));
    assert!(
        seen.count() <= 1,
        "an idle tunnel sent {:?}",
        seen.packets()
    );
}

/// One-way data is acknowledged after ten seconds, so that its sender knows the peer is alive.
#[test]
fn data_without_an_answer_is_acknowledged_by_a_keepalive() {
    if missing(&["nft"]) {
        return;
    }
    let tunnel = Tunnel::new("passive").unwrap();
    tunnel.wait().unwrap();
    let seen = Capture::start(tunnel.right(), "eth0", |packet| {
        packet.outgoing
            && packet
                .datagram()
                .is_some_and(|datagram| datagram.payload.len() == 32)
    })
    .unwrap();
    // The far machine takes the datagrams and says nothing, not even that the port is closed.
    tunnel
        .right()
        .sh("nft add table inet mute && nft add chain inet mute in \
             '{ type filter hook input priority 0; }' && \
             nft add rule inet mute in ip protocol icmp drop")
        .unwrap();
    // Away from what was sent before: boringtun's clock moves only with its timers' ticks.
    std::thread::sleep(Duration::from_secs(2));
    let _ = Echo::to(FAR_V4)
        .limit(Duration::from_millis(10))
        .once(tunnel.left());
    wait_for("a keepalive", Duration::from_secs(30), || seen.count() > 0).unwrap();
}
