//! A link that control steers: where handshakes go, what moves it and what does not, what is told.

use std::sync::atomic::Ordering::Relaxed;

use proptest::prelude::*;

use super::*;
use crate::data::link::OVERHEAD;
use crate::data::link::wire::*;
use crate::data::outbox::Datagram;

const BOTH: [bool; 2] = [true, true];
const PLACE: LinkPlace = LinkPlace { thread: 0, slot: 0 };

fn remote(port: u16) -> SocketAddr {
    at(port).remote
}

fn initiate(side: &mut Side, ports: &[u16], now: Duration) -> Vec<Datagram> {
    let to: Vec<SocketAddr> = ports.iter().map(|port| remote(*port)).collect();
    side.act(now, |link, work| link.initiate_at(&to, work));
    side.sent()
}

fn only(sent: &[Datagram]) -> &Datagram {
    assert_eq!(sent.len(), 1, "{:?}", kinds(sent));
    &sent[0]
}

fn news(side: &Side) -> Vec<News> {
    std::iter::from_fn(|| side.control.pop_news()).collect()
}

fn session(port: u16) -> News {
    let from = at(port);
    News::Session { place: PLACE, from }
}

fn source(port: u16) -> News {
    let from = at(port);
    News::Source { place: PLACE, from }
}

fn control_packet(len: usize) -> Vec<u8> {
    let mut packet = vec![0; len];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
    (packet[6], packet[8], packet[9]) = (17, 0xfe, 0x80);
    (packet[24], packet[25]) = (0xfe, 0x80);
    packet
}

/// Two gateways with a session, which `a` began; what control heard of it is taken.
fn connected() -> Wire {
    let mut wire = Wire::in_mesh();
    let sent = initiate(&mut wire.a, &[2], wire.now);
    wire.b.hear(&sent[0].bytes, wire.a.at, wire.now).unwrap();
    wire.settle();
    assert_eq!(news(&wire.a), [session(2)]);
    assert_eq!(news(&wire.b), [session(1)]);
    wire
}

// ---- handshakes ---------------------------------------------------------------------------------

#[test]
fn one_initiation_goes_to_every_address_and_the_first_that_arrives_counts() {
    let mut wire = Wire::in_mesh();
    let sent = initiate(&mut wire.a, &[20, 21, 22], wire.now);
    assert_eq!(kinds(&sent), [HANDSHAKE; 3]);
    let to: Vec<u16> = sent.iter().map(|one| one.to.remote.port()).collect();
    assert_eq!(to, [20, 21, 22]);
    assert!(sent.iter().all(|one| one.bytes == sent[0].bytes));

    wire.b.hear(&sent[1].bytes, at(11), wire.now).unwrap();
    let answers = wire.b.sent();
    assert_eq!(
        only(&answers).to,
        at(11),
        "it goes where the first came from"
    );
    wire.b.hear(&sent[0].bytes, at(10), wire.now).unwrap();
    wire.b.hear(&sent[2].bytes, at(12), wire.now).unwrap();
    assert!(wire.b.sent().is_empty());
    assert_eq!(wire.b.drops.get(DropReason::HandshakeRejected), 2);

    wire.a.hear(&answers[0].bytes, at(21), wire.now).unwrap();
    let proof = wire.a.sent();
    assert_eq!((only(&proof).to, kinds(&proof)), (at(21), vec![DATA]));
    assert_eq!(wire.a.link.endpoint, Some(at(21)), "none was set");
    wire.b.hear(&proof[0].bytes, at(11), wire.now).unwrap();
    assert_eq!(wire.b.link.endpoint, Some(at(11)));
    assert_eq!(
        (news(&wire.a), news(&wire.b)),
        (vec![session(21)], vec![session(11)])
    );
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn every_command_makes_a_new_initiation_and_the_last_two_may_be_answered() {
    for answered in [0, 1] {
        let mut wire = Wire::in_mesh();
        let mut sent = Vec::new();
        for millis in [0, 250, 750] {
            let now = wire.now + Duration::from_millis(millis);
            sent.extend(initiate(&mut wire.a, &[2], now));
        }
        assert_eq!(kinds(&sent), [HANDSHAKE; 3]);
        let (a_at, now) = (wire.a.at, wire.now + Duration::from_secs(1));
        wire.b.hear(&sent[1 + answered].bytes, a_at, now).unwrap();
        wire.settle();
        assert_eq!(wire.carries(), BOTH);
    }
}

#[test]
fn handshakes_that_cross_are_harmless() {
    let mut wire = Wire::in_mesh();
    let from_a = initiate(&mut wire.a, &[2], wire.now);
    let from_b = initiate(&mut wire.b, &[1], wire.now);
    wire.a.hear(&from_b[0].bytes, wire.b.at, wire.now).unwrap();
    wire.b.hear(&from_a[0].bytes, wire.a.at, wire.now).unwrap();
    wire.settle();
    assert_eq!(wire.carries(), BOTH);
    assert!(news(&wire.a).contains(&session(2)) && news(&wire.b).contains(&session(1)));
}

#[test]
fn packets_and_time_begin_no_handshake() {
    let mut wire = Wire::in_mesh();
    wire.a.link.set_remote(remote(2));
    wire.a.send(&packet(1, 100), wire.now);
    for seconds in 1..200 {
        let now = wire.now + Duration::from_secs(seconds);
        wire.a.act(now, |link, work| link.tick(work));
    }
    assert!(wire.a.sent().is_empty());
    assert_eq!(wire.a.drops.get(DropReason::LinkNoSession), 1);
}

/// boringtun's clock is the real one, hence the sleep; longer than it waits for an answer.
#[test]
fn an_unanswered_initiation_is_not_repeated_but_by_command_and_its_late_answer_counts() {
    let mut wire = Wire::in_mesh();
    wire.a.link.set_remote(remote(2));
    let first = initiate(&mut wire.a, &[2], wire.now);
    std::thread::sleep(Duration::from_millis(5_100));
    wire.now += Duration::from_millis(5_100);
    wire.a.act(wire.now, |link, work| link.tick(work));
    wire.a.send(&packet(1, 100), wire.now);
    assert!(wire.a.sent().is_empty());
    // Its own timers would repeat it now; that and the command must not make two.
    assert_eq!(kinds(&initiate(&mut wire.a, &[2], wire.now)), [HANDSHAKE]);
    wire.b.hear(&first[0].bytes, wire.a.at, wire.now).unwrap();
    wire.settle();
    assert_eq!(wire.carries(), BOTH);
}

// ---- what moves a link, and what does not -------------------------------------------------------

#[test]
fn a_datagram_from_elsewhere_is_told_once_a_second_and_moves_nothing() {
    let mut wire = connected();
    for millis in [0, 10, 990, 1000, 1001] {
        let now = wire.now + Duration::from_millis(millis);
        wire.a.send(&packet(1, 100), now);
        let sent = wire.a.sent();
        assert_eq!(wire.b.hear(&only(&sent).bytes, at(9), now), Ok(100));
    }
    assert_eq!(news(&wire.b), [source(9), source(9)]);
    assert_eq!(wire.b.link.endpoint, Some(at(1)));
    wire.b.send(&packet(2, 100), wire.now);
    assert_eq!(only(&wire.b.sent()).to, at(1));
    wire.b.link.set_remote(remote(9));
    wire.b.send(&packet(2, 100), wire.now);
    assert_eq!(only(&wire.b.sent()).to, at(9), "control has said so");
}

#[test]
fn many_sources_at_once_are_not_all_told() {
    let mut wire = connected();
    for port in 100..200 {
        wire.a.send(&packet(1, 100), wire.now);
        let sent = wire.a.sent();
        wire.b.hear(&sent[0].bytes, at(port), wire.now).unwrap();
    }
    assert_eq!(news(&wire.b).len(), SOURCES);
}

#[test]
fn a_replayed_or_damaged_datagram_from_elsewhere_is_not_told() {
    let mut wire = connected();
    wire.a.send(&packet(1, 100), wire.now);
    let mut datagram = wire.a.sent().remove(0).bytes;
    wire.b.hear(&datagram, at(1), wire.now).unwrap();
    assert_eq!(
        wire.b.hear(&datagram, at(9), wire.now),
        Err(DropReason::Replay)
    );
    datagram[40] ^= 1;
    assert!(wire.b.hear(&datagram, at(9), wire.now).is_err());
    assert!(news(&wire.b).is_empty());
}

#[test]
fn a_new_session_from_elsewhere_is_told_with_its_source_and_moves_nothing() {
    let mut wire = connected();
    let sent = initiate(&mut wire.a, &[2], wire.now);
    wire.b.hear(&sent[0].bytes, at(9), wire.now).unwrap();
    let answer = wire.b.sent();
    assert_eq!(only(&answer).to, at(9));
    wire.a.hear(&answer[0].bytes, at(8), wire.now).unwrap();
    let proof = wire.a.sent();
    assert_eq!(only(&proof).to, at(8));
    wire.b.hear(&proof[0].bytes, at(9), wire.now).unwrap();
    assert_eq!(
        (wire.a.link.endpoint, wire.b.link.endpoint),
        (Some(at(2)), Some(at(1)))
    );
    assert_eq!(news(&wire.a), [session(8)]);
    assert!(news(&wire.b).contains(&session(9)));
}

#[test]
fn a_session_that_control_could_not_be_told_of_is_told_later() {
    let mut wire = Wire::in_mesh();
    while wire.a.control.push_news(source(7)) {}
    let sent = initiate(&mut wire.a, &[2], wire.now);
    wire.b.hear(&sent[0].bytes, wire.a.at, wire.now).unwrap();
    wire.settle();
    assert!(!news(&wire.a).contains(&session(2)));
    wire.a.act(wire.now, |link, work| link.tick(work));
    wire.a.act(wire.now, |link, work| link.tick(work));
    assert_eq!(news(&wire.a), [session(2)]);
}

// ---- a peer that began anew -----------------------------------------------------------------------

#[test]
fn after_a_restart_the_peers_initiation_brings_the_link_back_in_one_round_trip() {
    let mut wire = connected();
    wire.a = Side::in_mesh(1, 2);
    wire.b.send(&packet(2, 100), wire.now);
    let lost = wire.b.sent();
    assert!(wire.a.hear(&lost[0].bytes, wire.b.at, wire.now).is_err());

    let sent = initiate(&mut wire.a, &[2], wire.now);
    wire.b.hear(&sent[0].bytes, wire.a.at, wire.now).unwrap();
    let answer = wire.b.sent();
    wire.a
        .hear(&only(&answer).bytes, wire.b.at, wire.now)
        .unwrap();
    // The one who restarted may send at once, and what it sends brings the other over.
    wire.a.send(&packet(1, 100), wire.now);
    wire.settle();
    assert_eq!(wire.b.opened, [packet(1, 100)]);
    assert_eq!(news(&wire.b), [session(1)]);
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn after_a_restart_of_the_peer_our_own_initiation_brings_the_link_back_too() {
    let mut wire = connected();
    wire.a = Side::in_mesh(1, 2);
    let sent = initiate(&mut wire.b, &[1], wire.now);
    wire.a
        .hear(&only(&sent).bytes, wire.b.at, wire.now)
        .unwrap();
    wire.settle();
    assert_eq!(
        (news(&wire.a), news(&wire.b)),
        (vec![session(2)], vec![session(1)])
    );
    assert_eq!(wire.carries(), BOTH);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Initiate(bool),
    Send(bool),
    Restart(bool),
    Tick(bool),
    Wait(u64),
    /// One of those under way arrives; the same may arrive again, and before what was sent earlier.
    Arrive(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<bool>().prop_map(Step::Initiate),
        2 => any::<bool>().prop_map(Step::Send),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => any::<bool>().prop_map(Step::Tick),
        1 => (0_u64..8000).prop_map(Step::Wait),
        8 => any::<usize>().prop_map(Step::Arrive),
    ]
}

/// A wire that keeps all it was given.
struct Chaos {
    wire: Wire,
    /// Whether it is for `b`, and the datagram.
    under_way: Vec<(bool, Vec<u8>)>,
}

impl Chaos {
    fn side(&mut self, is_b: bool) -> &mut Side {
        if is_b {
            &mut self.wire.b
        } else {
            &mut self.wire.a
        }
    }

    fn collect(&mut self) {
        for is_b in [false, true] {
            let sent = self.side(is_b).sent();
            self.under_way
                .extend(sent.into_iter().map(|one| (!is_b, one.bytes)));
        }
    }

    fn take(&mut self, step: Step) {
        let now = self.wire.now;
        match step {
            Step::Initiate(is_b) => {
                let to = remote(if is_b { 1 } else { 2 });
                self.side(is_b)
                    .act(now, |link, work| link.initiate_at(&[to], work));
            }
            Step::Send(is_b) => self.side(is_b).send(&packet(1, 100), now),
            Step::Restart(is_b) => {
                let keys = if is_b { (2, 1) } else { (1, 2) };
                *self.side(is_b) = Side::in_mesh(keys.0, keys.1);
            }
            Step::Tick(is_b) => self.side(is_b).act(now, |link, work| link.tick(work)),
            Step::Wait(millis) => self.wire.now += Duration::from_millis(millis),
            Step::Arrive(number) if !self.under_way.is_empty() => {
                let (is_b, datagram) = self.under_way[number % self.under_way.len()].clone();
                let from = at(if is_b { 1 } else { 2 });
                // What is stale or came before is refused.
                let _ = self.side(is_b).hear(&datagram, from, now);
            }
            Step::Arrive(_) => {}
        }
        self.collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_happened_one_initiation_of_either_side_makes_both_carry(
        steps in proptest::collection::vec(step(), 0..60), by_b: bool,
    ) {
        let mut chaos = Chaos { wire: Wire::in_mesh(), under_way: Vec::new() };
        for step in steps {
            chaos.take(step);
        }
        chaos.take(Step::Initiate(by_b));
        let (is_b, initiation) = chaos.under_way.pop().unwrap();
        let (from, now) = (at(if by_b { 2 } else { 1 }), chaos.wire.now);
        chaos.side(is_b).hear(&initiation, from, now).unwrap();
        prop_assert_eq!(chaos.wire.carries(), BOTH);
    }
}

// ---- packets of control ---------------------------------------------------------------------------

#[test]
fn a_control_packet_goes_where_it_is_told_to_and_keeps_its_size() {
    let mut wire = connected();
    for (to, len) in [(Some(5), 1412), (Some(2), 1281), (None, 77)] {
        let to_remote = to.map(remote);
        let sealed = control_packet(len);
        wire.a.act(wire.now, |link, work| {
            link.send_control(&sealed, to_remote, work)
        });
        let sent = wire.a.sent();
        assert_eq!(only(&sent).to, at(to.unwrap_or(2)));
        assert_eq!(sent[0].bytes.len(), len + OVERHEAD);
        assert_eq!(wire.b.hear(&sent[0].bytes, wire.a.at, wire.now), Ok(len));
    }
    assert_eq!(wire.a.link.endpoint, Some(at(2)));
}

#[test]
fn a_control_packet_that_cannot_be_sent_is_counted() {
    let mut wire = Wire::in_mesh();
    let sealed = control_packet(100);
    wire.a.act(wire.now, |link, work| {
        link.send_control(&sealed, None, work)
    });
    wire.a.act(wire.now, |link, work| {
        link.send_control(&sealed, Some(remote(2)), work)
    });
    assert!(wire.a.sent().is_empty());
    for reason in [DropReason::NoEndpoint, DropReason::ControlNoSession] {
        assert_eq!(wire.a.drops.get(reason), 1, "{reason:?}");
    }
}

#[test]
fn data_and_control_are_counted_apart() {
    let mut wire = connected();
    let before = wire.b.shared.rx_any.load(Relaxed);
    for len in [100, 1200, 1216] {
        wire.a.send(&packet(1, len), wire.now);
    }
    let sealed = control_packet(1400);
    wire.a.act(wire.now, |link, work| {
        link.send_control(&sealed, None, work)
    });
    let now = wire.now;
    wire.settle();
    let (a, b) = (&wire.a.shared, &wire.b.shared);
    assert_eq!(a.tx_data.load(Relaxed), 112 + 1200 + 1216, "with padding");
    assert_eq!(a.large.load(Relaxed), 1);
    assert_eq!(b.rx_data.load(Relaxed), 100 + 1200 + 1216);
    assert_eq!(b.rx_any.load(Relaxed), before + 4);
    assert_eq!(b.last_opened.load(Relaxed), now.as_nanos() as u64);
    assert_eq!(b.tx_data.load(Relaxed), 0);
}

#[test]
fn padding_goes_up_to_the_mtu_of_the_path() {
    let mut wire = connected();
    for (mtu, padded) in [(1400, 1392), (1390, 1390), (1385, 1385)] {
        wire.a.link.set_mtu(mtu);
        wire.a.send(&packet(1, 1385), wire.now);
        assert_eq!(only(&wire.a.sent()).bytes.len(), padded + OVERHEAD);
    }
}

#[test]
fn a_link_that_is_removed_gives_its_index_back() {
    let wire = connected();
    let Side {
        link,
        mut table,
        drops,
        ..
    } = wire.a;
    link.remove(&mut table, &drops);
    assert_eq!(table.in_use(), 0);
}
