//! What takes minutes: the life of a session. These tests sleep, and run side by side.

#![cfg(test)]
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::capture::{Capture, Packet};
use tests::echo::{Answer, Echo};
use tests::lab::wait_for;
use tests::rival::Rival;
use tests::shown::latest_handshake;
use tests::stream::{Arrivals, Pace};
use tests::subject::{missing, subject};
use tests::tunnel::{FAR_V4, HANDSHAKE, Outer, Plan, Tunnel};
use tests::wireguard::Program;

/// Past the 120 seconds after which a session is renewed.
const REKEY: Duration = Duration::from_secs(132);

/// Past the 180 seconds after which a key may not be used.
const REJECT: Duration = Duration::from_secs(183);

/// A datagram every 50 ms, in both directions, over the whole life of a session.
const TRICKLE: Pace = Pace {
    datagrams: REKEY.as_millis() as u64 / 50,
    size: 100,
    interval: Duration::from_millis(50),
};

/// What became of one tunnel under [`TRICKLE`].
struct Renewed {
    what: String,
    outbound: Arrivals,
    inbound: Arrivals,
    /// Seconds by which the subject's latest handshake moved.
    moved: u64,
}

/// Every pair of ends, and who begins.
fn pairs() -> Option<Vec<(String, Plan)>> {
    let own = || Program::find(subject()).unwrap();
    let mut plans = vec![("itself".to_owned(), Plan::plain().unwrap())];
    for rival in Rival::ALL {
        let program = rival.find()?;
        plans.push((
            format!("{rival:?} answers"),
            Plan::between(own(), program.clone()),
        ));
        plans.push((format!("{rival:?} begins"), Plan::between(program, own())));
    }
    for (_, plan) in &mut plans {
        plan.preshared_key = true;
    }
    Some(plans)
}

fn trickle(what: String, plan: Plan) -> Renewed {
    let tunnel = Tunnel::build("renew", plan).unwrap();
    tunnel.wait().unwrap();
    // The subject's own view; where a rival begins, the subject is the far end.
    let (own, other) = match tunnel.plan.near.implementation == subject() {
        true => (&tunnel.near, &tunnel.far),
        false => (&tunnel.far, &tunnel.near),
    };
    let first = latest_handshake(own, &other.keys().public).unwrap();
    let (outbound, inbound) = std::thread::scope(|scope| {
        let outbound = scope.spawn(|| tunnel.outbound(Outer::V4).udp(TRICKLE).unwrap());
        let inbound = scope.spawn(|| tunnel.inbound(Outer::V6).udp(TRICKLE).unwrap());
        (outbound.join().unwrap(), inbound.join().unwrap())
    });
    let moved = latest_handshake(own, &other.keys().public).unwrap() - first;
    Renewed {
        what,
        outbound,
        inbound,
        moved,
    }
}

/// A session is renewed under traffic, with every implementation in both roles, and no packet is lost.
#[test]
fn a_session_is_renewed_under_traffic_without_loss() {
    if missing(&[]) {
        return;
    }
    let Some(pairs) = pairs() else {
        return;
    };
    let outcomes: Vec<Renewed> = std::thread::scope(|scope| {
        let running: Vec<_> = pairs
            .into_iter()
            .map(|(what, plan)| scope.spawn(|| trickle(what, plan)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let mut wrong = Vec::new();
    for outcome in outcomes {
        let lost = [outcome.outbound.lost(), outcome.inbound.lost()];
        let line = format!(
            "{}: lost {lost:?}, handshake moved by {} s",
            outcome.what, outcome.moved
        );
        println!("{line}");
        if lost != [0, 0] || outcome.moved < 60 {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// WireGuard's message type, and the receiver index of data.
fn kind(packet: &Packet) -> (u8, [u8; 4]) {
    let datagram = packet.datagram().unwrap();
    (
        datagram.payload[0],
        datagram.payload[4..8].try_into().unwrap(),
    )
}

fn data_indexes(packets: &[Packet]) -> Vec<[u8; 4]> {
    let data = packets.iter().map(kind).filter(|(kind, _)| *kind == 4);
    data.map(|(_, index)| index).collect()
}

/// A process that slept past the life of its keys, with packets waiting in its TUN: all that it sends
/// when it wakes is under new keys. The clock that counts is not the process's own.
fn nothing_is_sent_under_an_old_key() {
    let tunnel = Tunnel::new("sleep").unwrap();
    tunnel.wait().unwrap();
    let seen = Capture::start(tunnel.left(), "eth0", |packet| {
        packet.outgoing && packet.datagram().is_some()
    })
    .unwrap();
    Echo::to(FAR_V4).flood(tunnel.left(), 2).unwrap();
    wait_for("the requests on the wire", HANDSHAKE, || {
        data_indexes(&seen.packets()).len() >= 2
    })
    .unwrap();
    let old = *data_indexes(&seen.packets()).last().unwrap();

    tunnel.near.process().signal(Signal::SIGSTOP).unwrap();
    let stopped = Instant::now();
    std::thread::sleep(REJECT);
    for _ in 0..3 {
        // These wait in the TUN's queue.
        let asleep = Echo::to(FAR_V4)
            .limit(Duration::from_millis(50))
            .once(tunnel.left())
            .unwrap();
        assert_eq!(asleep, Answer::Nothing);
    }
    let before = seen.count();
    assert!(stopped.elapsed() > Duration::from_secs(180));
    tunnel.near.process().signal(Signal::SIGCONT).unwrap();
    Echo::to(FAR_V4)
        .until_reply(tunnel.left(), HANDSHAKE)
        .unwrap();

    let after = || seen.packets()[before..].to_vec();
    wait_for("data on the wire", HANDSHAKE, || {
        !data_indexes(&after()).is_empty()
    })
    .unwrap();
    let sent = after();
    assert!(
        data_indexes(&sent).iter().all(|index| *index != old),
        "sent under the old key {old:?}: {:?}",
        sent.iter().map(kind).collect::<Vec<_>>()
    );
    assert_eq!(
        kind(&after()[0]).0,
        1,
        "the first datagram is an initiation"
    );
}

/// The same for what was received while asleep: a datagram under a key that is too old is refused.
fn nothing_is_accepted_under_an_old_key() {
    let tunnel = Tunnel::new("slept").unwrap();
    tunnel.wait().unwrap();
    let inside = Capture::start(tunnel.right(), tunnel.far.interface(), |packet| {
        !packet.outgoing
    })
    .unwrap();
    tunnel.far.process().signal(Signal::SIGSTOP).unwrap();
    // Sent at once, read three minutes later.
    for _ in 0..3 {
        let _ = Echo::to(FAR_V4)
            .limit(Duration::from_millis(50))
            .once(tunnel.left());
    }
    std::thread::sleep(REJECT);
    let before = inside.count();
    tunnel.far.process().signal(Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        inside.count(),
        before,
        "an old datagram was let in: {:?}",
        inside.packets()
    );
    Echo::to(FAR_V4)
        .until_reply(tunnel.left(), Duration::from_secs(45))
        .unwrap();
}

#[test]
fn a_key_that_aged_in_a_sleep_is_neither_used_nor_accepted() {
    if missing(&[]) {
        return;
    }
    std::thread::scope(|scope| {
        scope.spawn(nothing_is_sent_under_an_old_key);
        scope.spawn(nothing_is_accepted_under_an_old_key);
    });
}
