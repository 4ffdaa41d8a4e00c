//! What strangers and the network may send: dropped, counted, and noticed by nobody else.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tests::capture::Capture;
use tests::echo::Echo;
use tests::hand::{Hand, strange_initiation, udp_packet};
use tests::lab::{Lab, Namespace, wait_for};
use tests::relay::{Relay, Toward};
use tests::shown::{endpoint, latest_handshake};
use tests::stream::{Flow, Pace};
use tests::subject::{missing, not_causeway};
use tests::tunnel::{FAR_PORT, FAR_V4, HANDSHAKE, NEAR_V4, Outer, Plan, Tunnel};
use tests::wireguard::{Device, Implementation, Keys, MTU};

/// The drop counters of a device.
fn drops(device: &Device) -> HashMap<String, u64> {
    let program = Implementation::Causeway.locate().unwrap();
    let arguments = ["drops", device.interface(), "--json"];
    let text = device
        .namespace()
        .run(program.to_str().unwrap(), &arguments)
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

fn drop_count(device: &Device, reason: &str) -> u64 {
    drops(device)[reason]
}

/// Memory that a process keeps for itself, in KiB.
fn resident(device: &Device) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", device.process().pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A stranger on the far machine, who sends to the near end's port.
fn stranger(tunnel: &Tunnel) -> UdpSocket {
    let target = tunnel.plan.near_outer();
    let socket = tunnel
        .right()
        .within(|| UdpSocket::bind("0.0.0.0:0").unwrap())
        .unwrap();
    socket.connect(target).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    socket
}

/// A steady flow that nothing may disturb, while `work` runs; how many of its datagrams were lost.
fn beside(tunnel: &Tunnel, seconds: u64, work: impl FnOnce() + Send) -> u64 {
    let pace = Pace {
        datagrams: seconds * 200,
        size: 200,
        interval: Duration::from_millis(5),
    };
    std::thread::scope(|scope| {
        let flow = scope.spawn(|| tunnel.outbound(Outer::V4).udp(pace).unwrap());
        let back = scope.spawn(|| tunnel.inbound(Outer::V6).udp(pace).unwrap());
        work();
        let (flow, back) = (flow.join().unwrap(), back.join().unwrap());
        assert_eq!((flow.damaged, back.damaged), (0, 0));
        flow.lost() + back.lost()
    })
}

/// xorshift64, so that a failure can be repeated.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Datagrams that are nothing, or nearly something: any length, each type with a wrong length, the
/// right length with nonsense behind it, the longest there are.
fn nonsense(state: &mut u64, real: &[Vec<u8>]) -> Vec<u8> {
    let sort = random(state) % 6;
    let length = match sort {
        0 => (random(state) % 200) as usize,
        1 => [148, 92, 64, 32, 48, 1452][(random(state) % 6) as usize],
        2 => (random(state) % 65_508) as usize,
        3 => [0, 1, 3, 4, 8, 15, 16, 31, 65_507][(random(state) % 9) as usize],
        // A real message, cut off or with one byte changed.
        _ => {
            let mut message = real[(random(state) as usize) % real.len()].clone();
            let at = (random(state) as usize) % message.len();
            if sort == 4 {
                message.truncate(at);
            } else {
                message[at] ^= 1 << (random(state) % 8);
            }
            return message;
        }
    };
    let mut bytes: Vec<u8> = (0..length).map(|_| random(state) as u8).collect();
    if sort == 1 && !random(state).is_multiple_of(4) {
        let kind = [1, 2, 3, 4, 4, 4][(random(state) % 6) as usize];
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
    }
    bytes
}

/// Issue "Bad input": strangers' datagrams are dropped, counted and not answered; nobody else notices,
/// and nothing grows.
#[test]
fn nonsense_from_strangers_is_counted_and_disturbs_nobody() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("junk").unwrap();
    // Real messages of the living tunnel, to be cut and changed.
    let seen = Capture::start(tunnel.right(), "eth0", |packet| {
        !packet.outgoing
            && packet
                .datagram()
                .is_some_and(|datagram| datagram.payload.len() < 1500)
    })
    .unwrap();
    tunnel.wait().unwrap();
    // The capture's thread may be late on a busy machine; without them nothing could be changed.
    wait_for("real messages", HANDSHAKE, || seen.count() > 0).unwrap();
    let real: Vec<Vec<u8>> = seen
        .packets()
        .iter()
        .map(|packet| packet.datagram().unwrap().payload.to_vec())
        .collect();
    drop(seen);
    let socket = stranger(&tunnel);
    // Once, so that buffers of all sizes have been touched.
    let mut state = 0x0bad_5eed;
    for _ in 0..2000 {
        let _ = socket.send(&nonsense(&mut state, &real));
    }
    let before = resident(&tunnel.near);
    let lost = beside(&tunnel, 3, || {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(2) {
            let _ = socket.send(&nonsense(&mut state, &real));
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    assert_eq!(lost, 0, "a stranger's nonsense cost others packets");
    assert!(
        socket.recv(&mut [0; 2048]).is_err(),
        "nonsense was answered"
    );
    let grown = resident(&tunnel.near).saturating_sub(before);
    assert!(grown < 2048, "it grew by {grown} KiB");
    if !not_causeway() {
        let counts = drops(&tunnel.near);
        for reason in ["udp_malformed", "udp_unknown_index", "handshake_mac"] {
            assert!(counts[reason] > 0, "{reason}: {counts:?}");
        }
    }
}

/// A known peer, driven by hand: it may send what no proper one would.
fn known_hand(tunnel: &Tunnel, prefix: &str) -> Hand {
    let keys = Keys::generate(tunnel.right()).unwrap();
    tunnel
        .near
        .set(&["peer", &keys.public, "allowed-ips", prefix])
        .unwrap();
    let own = &tunnel.near.keys().public;
    let mut hand = Hand::new(tunnel.right(), &keys, own, tunnel.plan.near_outer()).unwrap();
    hand.shake(HANDSHAKE).unwrap();
    hand
}

/// The packets that come out of the near end's interface from addresses 10.66.x.x.
fn watch_inside(tunnel: &Tunnel) -> Capture {
    Capture::start(tunnel.left(), tunnel.near.interface(), |packet| {
        !packet.outgoing && packet.bytes.len() >= 20 && packet.bytes[12..14] == [10, 66]
    })
    .unwrap()
}

const HAND: ([u8; 4], u16) = ([10, 66, 0, 1], 7);
const NEAR: ([u8; 4], u16) = ([10, 9, 0, 1], 9);

/// What is opened and is no packet, or says it is longer than it is, goes no further.
#[test]
fn opened_bytes_that_are_no_packet_are_dropped() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("inner").unwrap();
    tunnel.wait().unwrap();
    let mut hand = known_hand(&tunnel, "10.66.0.0/16");
    let inside = watch_inside(&tunnel);
    let good = udp_packet(HAND, NEAR, b"good");
    let mut bad: Vec<Vec<u8>> = (1..good.len())
        .map(|length| good[..length].to_vec())
        .collect();
    for length in (0..20).chain([good.len() as u16 + 1, u16::MAX]) {
        let mut packet = good.clone();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        bad.push(packet);
    }
    for version in [0, 1, 3, 5, 6, 7, 15] {
        let mut packet = good.clone();
        packet[0] = (version << 4) | 5;
        bad.push(packet);
    }
    for packet in &bad {
        let datagram = hand.seal(packet).unwrap();
        hand.send(&datagram).unwrap();
    }
    // What comes behind them arrives: the session is unharmed.
    let datagram = hand.seal(&good).unwrap();
    hand.send(&datagram).unwrap();
    wait_for("the good packet", HANDSHAKE, || {
        inside.packets().iter().any(|packet| packet.bytes == good)
    })
    .unwrap();
    assert_eq!(inside.count(), 1, "{:?}", inside.packets());
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    // A header that says it is shorter than a header is left to the kernel to refuse, as the kernel's
    // own WireGuard does; it may end nothing.
    for words in 0..5 {
        let mut packet = good.clone();
        packet[0] = 0x40 | words;
        let datagram = hand.seal(&packet).unwrap();
        hand.send(&datagram).unwrap();
    }
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    if !not_causeway() {
        assert!(drop_count(&tunnel.near, "inner_malformed") >= bad.len() as u64 / 2);
    }
}

/// Data sent again is counted and not delivered again, nor are its neighbours lost.
#[test]
fn a_data_message_is_taken_once() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("again").unwrap();
    tunnel.wait().unwrap();
    let mut hand = known_hand(&tunnel, "10.66.0.0/16");
    let inside = watch_inside(&tunnel);
    let datagrams: Vec<Vec<u8>> = (0..200_u8)
        .map(|number| hand.seal(&udp_packet(HAND, NEAR, &[number])).unwrap())
        .collect();
    for _ in 0..3 {
        // Backwards, so that all but the first are late, but within the window.
        for datagram in datagrams.iter().rev() {
            hand.send(datagram).unwrap();
        }
    }
    wait_for("all of them", HANDSHAKE, || {
        inside.count() >= datagrams.len()
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(inside.count(), datagrams.len());
    if !not_causeway() {
        assert_eq!(
            drop_count(&tunnel.near, "udp_replay"),
            2 * datagrams.len() as u64
        );
    }
}

/// Another machine's address stays what it was, whatever a stranger repeats from his own.
#[test]
fn a_repeated_data_message_moves_no_endpoint() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("move").unwrap();
    let seen = Capture::start(tunnel.right(), "eth0", |packet| {
        packet.outgoing && packet.datagram().is_some()
    })
    .unwrap();
    tunnel.wait().unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    let recorded = seen.packets();
    let socket = stranger(&tunnel);
    for packet in &recorded {
        socket.send(packet.datagram().unwrap().payload).unwrap();
    }
    Echo::to(FAR_V4).flood(tunnel.left(), 3).unwrap();
    let learned = endpoint(&tunnel.near, &tunnel.far.keys().public).unwrap();
    assert_eq!(learned, Some(tunnel.plan.far_outer()));
}

/// A tunnel whose far end was restarted, and what the near end began it with before.
struct Restarted {
    near: Device,
    far: Device,
    relay: Relay,
    initiation: Vec<u8>,
    /// From elsewhere on the near machine to the far end.
    attacker: UdpSocket,
    _lab: Lab,
}

impl Restarted {
    /// Where the far end believes the near end to be.
    fn learned(&self) -> Option<u16> {
        let learned = endpoint(&self.far, &self.near.keys().public).unwrap();
        learned.map(|address| address.port())
    }
}

fn restarted() -> Restarted {
    let mut plan = Plan::plain().unwrap();
    plan.far_knows = false;
    let tunnel = Tunnel::build("replay", plan).unwrap();
    let listen: SocketAddr = "127.0.0.1:4000".parse().unwrap();
    let relay = Relay::recording(tunnel.left(), listen, tunnel.plan.far_outer()).unwrap();
    let far_key = &tunnel.far.keys().public;
    tunnel
        .near
        .set(&["peer", far_key, "endpoint", "127.0.0.1:4000"])
        .unwrap();
    tunnel.wait().unwrap();
    let first = relay.passed().into_iter().next().expect("something passed");
    assert_eq!(
        (first.toward, first.bytes[0]),
        (Toward::Target, 1),
        "an initiation comes first"
    );

    let Tunnel {
        near,
        far,
        plan,
        lab,
    } = tunnel;
    far.process().kill();
    let _ = std::fs::remove_file(far.socket());
    let fresh = Device::launch(far.namespace(), &plan.far, FAR_PORT, far.keys().clone()).unwrap();
    fresh.peer(&near, None, "10.9.0.1/32,fd09::1/128").unwrap();
    fresh.up(MTU).unwrap();
    fresh.address("10.9.0.2/24").unwrap();
    let attacker = near
        .namespace()
        .within(|| UdpSocket::bind("0.0.0.0:0").unwrap())
        .unwrap();
    attacker.connect(plan.far_outer()).unwrap();
    Restarted {
        near,
        far: fresh,
        relay,
        initiation: first.bytes,
        attacker,
        _lab: lab,
    }
}

/// An initiation recorded before a restart is repeated after it, from elsewhere. It is genuine, and the
/// restarted end has forgotten that it saw it; still it takes no endpoint and no session away.
#[test]
fn an_initiation_repeated_after_a_restart_disturbs_nothing() {
    if missing(&[]) {
        return;
    }
    let site = restarted();
    // Before the owner of the key has said anything: nothing is believed.
    site.attacker.send(&site.initiation).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        site.learned(),
        None,
        "an unconfirmed handshake moved the endpoint"
    );
    assert_eq!(
        latest_handshake(&site.far, &site.near.keys().public).unwrap(),
        0
    );

    // Then under a living session. The near end notices the restart after fifteen seconds.
    let left = site.near.namespace();
    Echo::to(FAR_V4)
        .until_reply(left, Duration::from_secs(45))
        .unwrap();
    let honest = Some(site.relay.outward().unwrap().port());
    assert_eq!(site.learned(), honest);
    let flow = Flow {
        from: left,
        to: site.far.namespace(),
        address: FAR_V4,
    };
    let pace = Pace {
        datagrams: 200,
        size: 100,
        interval: Duration::from_millis(5),
    };
    let arrivals = std::thread::scope(|scope| {
        let arrivals = scope.spawn(|| flow.udp(pace).unwrap());
        for _ in 0..50 {
            site.attacker.send(&site.initiation).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        arrivals.join().unwrap()
    });
    assert_eq!(arrivals.lost(), 0);
    assert_eq!(site.learned(), honest);
    Echo::to(NEAR_V4).flood(site.far.namespace(), 3).unwrap();
}

/// Strangers who know the public key: initiations with a first authentication code that holds.
fn flood(
    namespace: &Namespace,
    target: SocketAddr,
    initiations: &[Vec<u8>],
    sent: &AtomicU64,
    ended: &AtomicBool,
) {
    let sources = 4000_u64;
    let sockets: Vec<UdpSocket> = (0..sources)
        .step_by(10)
        .map(|number| {
            let address: IpAddr = [100, 64, (number >> 8) as u8, number as u8].into();
            let socket = namespace
                .within(|| UdpSocket::bind((address, 0)).unwrap())
                .unwrap();
            socket.connect(target).unwrap();
            socket
        })
        .collect();
    let mut number = 0;
    while !ended.load(Ordering::Relaxed) {
        for _ in 0..10 {
            let _ = sockets[number % sockets.len()].send(&initiations[number % initiations.len()]);
            number += 1;
        }
        sent.store(number as u64, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Issue: own per-source limits and cookies under load. While strangers at hundreds of addresses begin
/// handshakes, what is established goes on, and an honest peer still gets in.
#[test]
fn a_flood_of_handshakes_stops_neither_traffic_nor_honest_peers() {
    if missing(&[]) {
        return;
    }
    let tunnel = Tunnel::new("flood").unwrap();
    tunnel.wait().unwrap();
    // Any address of the range is the far machine's own.
    tunnel
        .right()
        .run(
            "ip",
            &["route", "add", "local", "100.64.0.0/16", "dev", "lo"],
        )
        .unwrap();
    tunnel
        .left()
        .run("ip", &["route", "add", "100.64.0.0/16", "via", "192.0.2.2"])
        .unwrap();
    let own = &tunnel.near.keys().public;
    let initiations: Vec<Vec<u8>> = (0..100)
        .map(|_| strange_initiation(tunnel.right(), own).unwrap())
        .collect();
    let (sent, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let target = tunnel.plan.near_outer();
    let before = resident(&tunnel.near);
    std::thread::scope(|scope| {
        scope.spawn(|| flood(tunnel.right(), target, &initiations, &sent, &ended));
        wait_for("the flood", HANDSHAKE, || {
            sent.load(Ordering::Relaxed) > 2000
        })
        .unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // An established tunnel goes on in both directions.
            tunnel.outbound(Outer::V4).tcp(20 << 20).unwrap();
            tunnel.inbound(Outer::V6).tcp(20 << 20).unwrap();
            // An honest newcomer from an address of his own gets in.
            let newcomer = Keys::generate(tunnel.right()).unwrap();
            tunnel
                .near
                .set(&["peer", &newcomer.public, "allowed-ips", "10.66.0.0/16"])
                .unwrap();
            let mut hand = Hand::new(tunnel.right(), &newcomer, own, target).unwrap();
            hand.shake(HANDSHAKE).unwrap();
        }));
        ended.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let grown = resident(&tunnel.near).saturating_sub(before);
    assert!(
        grown < 8192,
        "it grew by {grown} KiB under {} initiations",
        sent.load(Ordering::Relaxed)
    );
    if !not_causeway() {
        let counts = drops(&tunnel.near);
        let refused = [
            "handshake_limited",
            "handshake_cookie",
            "handshake_unknown_peer",
            "handshake_queue_full",
        ];
        let refused: u64 = refused.iter().map(|reason| counts[*reason]).sum();
        assert!(refused > 1000, "{counts:?}");
    }
}

/// What is for nobody, or for a peer without an endpoint, is counted as such.
#[test]
fn packets_that_cannot_go_anywhere_are_counted() {
    if missing(&[]) || not_causeway() {
        return;
    }
    let tunnel = Tunnel::new("nowhere").unwrap();
    tunnel.wait().unwrap();
    let lost = Keys::generate(tunnel.left()).unwrap().public;
    tunnel
        .near
        .set(&["peer", &lost, "allowed-ips", "10.9.0.50/32"])
        .unwrap();
    let before = drops(&tunnel.near);
    for (to, reason) in [([10, 9, 0, 99], "no_peer"), ([10, 9, 0, 50], "no_endpoint")] {
        let _ = Echo::to(to)
            .limit(Duration::from_millis(200))
            .once(tunnel.left());
        assert_eq!(
            drop_count(&tunnel.near, reason),
            before[reason] + 1,
            "{reason}"
        );
    }
}
