//! A link's life: from the first packet over changes of keys to its removal.

use super::wire::*;
use super::*;
use crate::data::outbox::Datagram;
use crate::data::staging::STAGED_BYTES;
use crate::io::udp::Local;

const BOTH: [bool; 2] = [true, true];
const NEITHER: [bool; 2] = [false, false];
const OLD: Option<[u8; 32]> = Some([0x11; 32]);
const NEW: Option<[u8; 32]> = Some([0x22; 32]);
/// Longer than an unanswered initiation is waited for, jitter included.
const RETRY: Duration = Duration::from_millis(10_400);

fn set_preshared_key(side: &mut Side, key: Option<[u8; 32]>, now: Duration) {
    side.act(now, |link, work| link.set_preshared_key(key, work));
}

/// The one datagram of this kind that waits.
fn only(side: &mut Side, kind: u8) -> Datagram {
    let sent = side.sent();
    assert_eq!(kinds(&sent), [kind]);
    sent[0].clone()
}

// ---- the first session ------------------------------------------------------------------------

#[test]
fn a_handshake_is_made_when_something_is_to_be_sent_and_then_data_flows_both_ways() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let sent = wire.settle();
    assert_eq!(kinds(&sent), [HANDSHAKE, ANSWER, DATA, DATA]);
    assert_eq!(sent[2].bytes.len(), OVERHEAD, "the proof is a keepalive");
    assert_eq!(wire.b.opened, [packet(1, 100)]);
    assert_eq!(wire.carries(), BOTH);
    for side in [&wire.a, &wire.b] {
        assert!(side.shared.last_handshake.load(Ordering::Relaxed) > 0);
    }
}

#[test]
fn what_waits_for_a_session_leaves_in_order_and_before_what_comes_later() {
    let mut wire = Wire::new();
    for number in 1..=50 {
        wire.a.send(&packet(number, 60), wire.now);
    }
    wire.settle();
    wire.a.send(&packet(51, 60), wire.now);
    wire.settle();
    let wanted: Vec<Vec<u8>> = (1..=51).map(|number| packet(number, 60)).collect();
    assert_eq!(wire.b.opened, wanted);
    assert_eq!(wire.a.drops.get(DropReason::StagingFull), 0);
}

#[test]
fn beyond_the_bound_the_oldest_go_and_are_counted() {
    let mut wire = Wire::new();
    let fit = STAGED_BYTES / 1408;
    for number in 0..fit + 7 {
        wire.a.send(&packet(number as u8, 1400), wire.now);
    }
    wire.settle();
    assert_eq!(wire.a.drops.get(DropReason::StagingFull), 7);
    assert_eq!(wire.b.opened.len(), fit);
    assert_eq!(wire.b.opened[0], packet(7, 1400));
}

#[test]
fn the_responder_sends_nothing_under_a_session_before_it_is_proven() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let initiation = only(&mut wire.a, HANDSHAKE);
    let (a_at, b_at, now) = (wire.a.at, wire.b.at, wire.now);
    wire.b.hear(&initiation.bytes, a_at, now).unwrap();
    let answer = only(&mut wire.b, ANSWER);
    wire.b.send(&packet(2, 100), now);
    wire.b.act(now, |link, work| link.tick(work));
    wire.b.send(&packet(3, 100), now);
    assert_eq!(
        kinds(&wire.b.sent()),
        [HANDSHAKE],
        "its own, for want of one"
    );
    wire.a.hear(&answer.bytes, b_at, now).unwrap();
    wire.settle();
    assert_eq!(wire.a.opened, [packet(2, 100), packet(3, 100)]);
}

#[test]
fn the_responder_waits_for_the_proof_whatever_number_the_session_has() {
    for unanswered in 1..=9 {
        let mut wire = Wire::new();
        for _ in 0..unanswered {
            wire.now += RETRY;
            wire.b.send(&packet(2, 100), wire.now);
            only(&mut wire.b, HANDSHAKE);
        }
        wire.a.send(&packet(1, 100), wire.now);
        let initiation = only(&mut wire.a, HANDSHAKE);
        wire.b.hear(&initiation.bytes, wire.a.at, wire.now).unwrap();
        only(&mut wire.b, ANSWER);
        wire.now += RETRY;
        wire.b.act(wire.now, |link, work| link.tick(work));
        wire.b.send(&packet(2, 100), wire.now);
        only(&mut wire.b, HANDSHAKE);
    }
}

#[test]
fn initiations_whose_answers_never_arrive_leave_the_session_in_use() {
    let mut wire = Wire::connected();
    // The peer with another preshared key: what it makes of our answers is no session.
    let mut twin = Side::new(1, 2, NEW);
    for _ in 0..20 {
        wire.now += RETRY;
        twin.send(&packet(1, 100), wire.now);
        let initiation = only(&mut twin, HANDSHAKE);
        wire.b.hear(&initiation.bytes, wire.a.at, wire.now).unwrap();
        let answer = only(&mut wire.b, ANSWER);
        twin.hear(&answer.bytes, wire.b.at, wire.now).unwrap();
        assert_eq!(wire.carries(), BOTH);
    }
    assert_eq!(twin.drops.get(DropReason::HandshakeRejected), 20);
}

#[test]
fn an_unanswered_initiation_is_repeated_after_five_seconds_and_not_before() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let first = only(&mut wire.a, HANDSHAKE);
    wire.a
        .send(&packet(2, 100), wire.now + Duration::from_millis(4_990));
    assert!(wire.a.sent().is_empty());
    wire.a
        .send(&packet(3, 100), wire.now + Duration::from_millis(5_400));
    let second = only(&mut wire.a, HANDSHAKE);
    assert_ne!(first.bytes, second.bytes);
    assert_eq!(wire.a.counters(), (296, 0));
}

#[test]
fn an_answer_to_the_initiation_before_the_last_still_counts() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let first = only(&mut wire.a, HANDSHAKE);
    wire.b.hear(&first.bytes, wire.a.at, wire.now).unwrap();
    wire.now += RETRY;
    wire.a.send(&packet(2, 100), wire.now);
    only(&mut wire.a, HANDSHAKE);
    wire.settle();
    assert_eq!(wire.b.opened, [packet(1, 100), packet(2, 100)]);
}

// ---- on the wire ------------------------------------------------------------------------------

#[test]
fn inner_packets_are_padded_to_sixteen_but_not_above_the_mtu() {
    let mut wire = Wire::connected();
    for len in (20..200).chain([MTU - 20, MTU - 12, MTU - 11, MTU - 1, MTU]) {
        wire.a.send(&packet(9, len), wire.now);
        let datagram = only(&mut wire.a, DATA);
        let size = datagram.bytes.len();
        assert!(
            size.is_multiple_of(16) || size == MTU + OVERHEAD,
            "{len}: {size}"
        );
        assert!(size - OVERHEAD >= len && size - OVERHEAD < len + 16);
        assert_eq!(wire.b.hear(&datagram.bytes, wire.a.at, wire.now), Ok(len));
    }
}

#[test]
fn the_congestion_mark_of_an_inner_packet_stands_on_its_datagram_staged_or_not() {
    let mut wire = Wire::new();
    let mut marked = packet(1, 100);
    marked[1] = 0b01;
    wire.a.send(&marked, wire.now);
    let sent = wire.settle();
    assert_eq!(
        sent.iter().map(|one| one.ecn).collect::<Vec<_>>(),
        [0, 0, 0, 1]
    );
    wire.a.send(&marked, wire.now);
    assert_eq!(only(&mut wire.a, DATA).ecn, 1);
}

#[test]
fn every_byte_on_the_wire_is_counted_once_on_either_side() {
    let mut wire = Wire::new();
    let mut sent = Vec::new();
    for len in [20, 100, 1400, 60] {
        wire.a.send(&packet(1, len), wire.now);
        wire.b.send(&packet(2, len), wire.now);
        sent.extend(wire.settle());
    }
    let bytes = |to: Endpoint| -> u64 {
        let mine = sent.iter().filter(|datagram| datagram.to == to);
        mine.map(|datagram| datagram.bytes.len() as u64).sum()
    };
    assert_eq!(wire.a.counters(), (bytes(wire.b.at), bytes(wire.a.at)));
    assert_eq!(wire.b.counters(), (bytes(wire.a.at), bytes(wire.b.at)));
}

#[test]
fn a_keepalive_that_begins_is_sent_at_once_and_a_changed_one_is_not() {
    let mut wire = Wire::connected();
    let now = wire.now;
    wire.a.act(now, |link, work| link.set_keepalive(25, work));
    assert_eq!(only(&mut wire.a, DATA).bytes.len(), OVERHEAD);
    wire.a.act(now, |link, work| link.set_keepalive(10, work));
    assert!(wire.a.sent().is_empty());
    let mut silent = Wire::new();
    silent.a.act(now, |link, work| link.set_keepalive(25, work));
    only(&mut silent.a, HANDSHAKE);
}

#[test]
fn a_keepalive_is_due_after_silence_either_way_and_traffic_puts_it_off() {
    let mut wire = Wire::connected();
    wire.a
        .act(wire.now, |link, work| link.set_keepalive(10, work));
    wire.settle();
    wire.now += Duration::from_secs(6);
    wire.b.send(&packet(1, 100), wire.now);
    wire.settle();
    wire.now += Duration::from_secs(6);
    wire.a.act(wire.now, |link, work| link.tick(work));
    assert!(
        wire.a.sent().is_empty(),
        "something was heard six seconds ago"
    );
    wire.now += Duration::from_secs(4);
    wire.a.act(wire.now, |link, work| link.tick(work));
    assert_eq!(only(&mut wire.a, DATA).bytes.len(), OVERHEAD);
}

// ---- where the peer is ------------------------------------------------------------------------

#[test]
fn only_an_opened_datagram_moves_the_endpoint() {
    let mut wire = Wire::new();
    let (elsewhere, now) = (at(999), wire.now);
    let (a_at, b_at) = (wire.a.at, wire.b.at);
    wire.a.send(&packet(1, 100), now);
    let initiation = only(&mut wire.a, HANDSHAKE);
    wire.b.hear(&initiation.bytes, elsewhere, now).unwrap();
    let answer = only(&mut wire.b, ANSWER);
    assert_eq!(answer.to, elsewhere, "answered where it came from");
    assert_eq!(wire.b.link.endpoint, Some(a_at), "an initiation");
    wire.b.hear(&initiation.bytes, elsewhere, now).unwrap();
    assert!(wire.b.sent().is_empty());
    assert_eq!(wire.b.drops.get(DropReason::HandshakeRejected), 1);
    assert_eq!(wire.b.link.endpoint, Some(a_at), "a replayed initiation");
    wire.a.hear(&answer.bytes, elsewhere, now).unwrap();
    let proof = wire.a.sent();
    assert!(proof.iter().all(|datagram| datagram.to == b_at));
    assert_eq!(wire.a.link.endpoint, Some(b_at), "an answer");

    let mut damaged = proof[1].bytes.clone();
    damaged[20] ^= 1;
    assert_eq!(
        wire.b.hear(&damaged, elsewhere, now),
        Err(DropReason::BadTag)
    );
    assert_eq!(wire.b.link.endpoint, Some(a_at), "a damaged datagram");
    wire.b.hear(&proof[0].bytes, elsewhere, now).unwrap();
    assert_eq!(
        wire.b.link.endpoint,
        Some(elsewhere),
        "a keepalive that opened"
    );
    assert_eq!(wire.b.shared.endpoint(), Some(elsewhere));
    wire.b.send(&packet(2, 100), now);
    assert_eq!(only(&mut wire.b, DATA).to, elsewhere);
}

#[test]
fn a_cookie_is_used_in_the_next_initiation_and_does_not_move_the_endpoint() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let first = only(&mut wire.a, HANDSHAKE);
    assert_eq!(first.bytes[132..], [0; 16]);
    let strict = RateLimiter::new(&wire.b.public, 0);
    let mut room = [0; 64];
    let Err(TunnResult::WriteToNetwork(cookie)) =
        strict.verify_packet(Some([192, 0, 2, 1].into()), &first.bytes, &mut room)
    else {
        panic!("no cookie");
    };
    wire.a.hear(cookie, at(999), wire.now).unwrap();
    assert_eq!(wire.a.link.endpoint, Some(wire.b.at));
    assert_eq!(wire.a.counters().1, 0, "unauthenticated, not counted");
    wire.now += RETRY;
    wire.a.send(&packet(2, 100), wire.now);
    let second = only(&mut wire.a, HANDSHAKE);
    assert_ne!(second.bytes[132..], [0; 16]);
    let verified = strict.verify_packet(Some([192, 0, 2, 1].into()), &second.bytes, &mut room);
    assert!(verified.is_ok());
}

#[test]
fn a_forgotten_source_is_learned_again_from_the_next_datagram() {
    let mut wire = Wire::connected();
    let local = Some(Local {
        address: [192, 0, 2, 2].into(),
        interface: 7,
    });
    wire.a.at.local = local;
    wire.a.send(&packet(1, 100), wire.now);
    wire.settle();
    assert_eq!(wire.b.link.endpoint, Some(wire.a.at));
    wire.b.link.forget_source();
    assert_eq!(wire.b.link.endpoint, Some(at(1)));
    wire.a.send(&packet(1, 100), wire.now);
    wire.settle();
    assert_eq!(wire.b.shared.endpoint(), Some(wire.a.at));
}

// ---- preshared key ----------------------------------------------------------------------------

fn connected_with_old_key() -> Wire {
    let mut wire = Wire::with_preshared_key(OLD);
    wire.connect();
    wire
}

#[test]
fn a_changed_preshared_key_loses_nothing_before_during_or_after() {
    let mut wire = connected_with_old_key();
    let before = wire.a.link.current.index;
    set_preshared_key(&mut wire.b, NEW, wire.now);
    wire.b.send(&packet(1, 100), wire.now);
    let on_the_way = wire.b.sent();
    assert_eq!(kinds(&on_the_way), [HANDSHAKE, DATA]);
    set_preshared_key(&mut wire.a, NEW, wire.now);
    for datagram in &on_the_way {
        wire.a.hear(&datagram.bytes, wire.b.at, wire.now).unwrap();
    }
    wire.a.send(&packet(2, 100), wire.now);
    wire.settle();
    assert_eq!(
        (&wire.a.opened[..], &wire.b.opened[..]),
        (&[packet(1, 100)][..], &[packet(2, 100)][..])
    );
    assert_ne!(
        wire.a.link.current.index, before,
        "the new Tunn carries now"
    );
    assert!(wire.a.link.successor.is_none() && wire.b.link.successor.is_none());
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn a_preshared_key_that_only_one_side_has_leaves_the_session_in_use() {
    let mut wire = connected_with_old_key();
    set_preshared_key(&mut wire.a, NEW, wire.now);
    wire.settle();
    assert_eq!(wire.a.drops.get(DropReason::HandshakeRejected), 1);
    for _ in 0..3 {
        wire.now += RETRY;
        assert_eq!(wire.carries(), BOTH);
    }
    set_preshared_key(&mut wire.b, NEW, wire.now);
    wire.settle();
    assert!(wire.b.link.successor.is_none());
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn without_a_session_no_side_gets_through_with_another_preshared_key() {
    let mut wire = Wire::with_preshared_key(OLD);
    set_preshared_key(&mut wire.a, NEW, wire.now);
    assert_eq!(wire.carries(), NEITHER);
    wire.now += RETRY;
    assert_eq!(wire.carries(), NEITHER);
    assert!(wire.a.drops.get(DropReason::HandshakeRejected) > 0);
    assert!(!wire.a.link.current.has_session && !wire.b.link.current.has_session);
}

#[test]
fn datagrams_on_their_way_under_the_old_preshared_key_open_for_five_seconds() {
    let mut wire = connected_with_old_key();
    wire.b.send(&packet(1, 100), wire.now);
    wire.b.send(&packet(2, 100), wire.now);
    let late = wire.b.sent();
    set_preshared_key(&mut wire.a, NEW, wire.now);
    set_preshared_key(&mut wire.b, NEW, wire.now);
    wire.settle();
    let just_before = wire.now + Duration::from_millis(4_900);
    assert_eq!(wire.a.hear(&late[0].bytes, wire.b.at, just_before), Ok(100));
    let after = wire.now + Duration::from_millis(6_000);
    let refused = wire.a.hear(&late[1].bytes, wire.b.at, after);
    assert_eq!(refused, Err(DropReason::UnknownIndex));
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn any_number_of_changes_of_the_preshared_key_leave_no_index_behind() {
    let mut wire = connected_with_old_key();
    for change in 0..40_u8 {
        set_preshared_key(&mut wire.a, Some([change; 32]), wire.now);
        if change % 3 == 0 {
            set_preshared_key(&mut wire.b, Some([change; 32]), wire.now);
            wire.settle();
        }
        wire.now += Duration::from_secs(1);
    }
    let Side {
        link,
        mut table,
        drops,
        ..
    } = wire.a;
    link.remove(&mut table, &drops);
    assert_eq!(table.in_use(), 0);
}

#[test]
fn an_answer_under_the_old_preshared_key_makes_no_session_once_it_was_changed() {
    let mut wire = connected_with_old_key();
    wire.a.act(wire.now, |link, work| link.initiate(work));
    let initiation = only(&mut wire.a, HANDSHAKE);
    wire.b.hear(&initiation.bytes, wire.a.at, wire.now).unwrap();
    let answer = only(&mut wire.b, ANSWER);
    set_preshared_key(&mut wire.a, NEW, wire.now);
    only(&mut wire.a, HANDSHAKE);
    wire.a.hear(&answer.bytes, wire.b.at, wire.now).unwrap();
    assert!(
        wire.a.sent().is_empty(),
        "nothing proves the session to the peer"
    );
    assert_eq!(wire.a.drops.get(DropReason::UnknownIndex), 1);
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn a_preshared_key_put_right_sends_at_once_what_waited_for_it() {
    let mut wire = Wire::with_preshared_key(OLD);
    set_preshared_key(&mut wire.b, NEW, wire.now);
    wire.a.send(&packet(1, 100), wire.now);
    wire.settle();
    assert!(wire.b.opened.is_empty());
    set_preshared_key(&mut wire.a, NEW, wire.now);
    wire.settle();
    assert_eq!(wire.b.opened, [packet(1, 100)]);
}

#[test]
fn a_preshared_key_set_where_nothing_waits_sends_nothing() {
    let mut wire = Wire::new();
    set_preshared_key(&mut wire.a, NEW, wire.now);
    assert!(wire.a.sent().is_empty());
}

// ---- private key, down, removal ---------------------------------------------------------------

#[test]
fn under_a_new_private_key_nothing_of_the_old_opens_and_a_new_session_is_made() {
    let mut wire = Wire::connected();
    wire.b.send(&packet(1, 100), wire.now);
    let late = only(&mut wire.b, DATA);
    let now = wire.now;
    wire.a.act(now, |link, work| {
        link.set_private_key(secret(3), limiter(3), work)
    });
    assert_eq!(
        wire.a.hear(&late.bytes, wire.b.at, now),
        Err(DropReason::UnknownIndex)
    );
    let mut peer = Side::new(2, 3, None);
    peer.at = wire.b.at;
    wire.b = peer;
    wire.a.send(&packet(2, 100), now);
    wire.settle();
    assert_eq!(wire.b.opened, [packet(2, 100)]);
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn a_reset_ends_every_session_and_what_waits_is_counted() {
    let mut wire = Wire::connected();
    wire.b.send(&packet(1, 100), wire.now);
    let late = only(&mut wire.b, DATA);
    wire.a.act(wire.now, |link, work| link.reset(work));
    let refused = wire.a.hear(&late.bytes, wire.b.at, wire.now);
    assert_eq!(refused, Err(DropReason::UnknownIndex));
    wire.a.send(&packet(2, 100), wire.now);
    only(&mut wire.a, HANDSHAKE);
    wire.a.act(wire.now, |link, work| link.reset(work));
    assert_eq!(wire.a.drops.get(DropReason::StagingGivenUp), 1);
    wire.now += RETRY;
    wire.a.send(&packet(3, 100), wire.now);
    wire.settle();
    assert_eq!(wire.b.opened, [packet(3, 100)]);
    assert_eq!(wire.carries(), BOTH);
}

#[test]
fn a_reset_also_ends_the_session_under_the_former_preshared_key() {
    let mut wire = connected_with_old_key();
    wire.b.send(&packet(1, 100), wire.now);
    let late = only(&mut wire.b, DATA);
    set_preshared_key(&mut wire.a, NEW, wire.now);
    set_preshared_key(&mut wire.b, NEW, wire.now);
    wire.settle();
    wire.a.act(wire.now, |link, work| link.reset(work));
    let refused = wire.a.hear(&late.bytes, wire.b.at, wire.now);
    assert_eq!(refused, Err(DropReason::UnknownIndex));
    assert_eq!(wire.a.table.in_use(), 1);
}

#[test]
fn a_removed_link_gives_its_indexes_back_and_counts_what_waited() {
    let mut wire = connected_with_old_key();
    set_preshared_key(&mut wire.a, NEW, wire.now);
    let Side {
        link,
        mut table,
        drops,
        ..
    } = wire.a;
    let indexes = [link.current.index, link.successor.as_ref().unwrap().index];
    assert_eq!(indexes.map(|index| table.find(index)), [Some(0); 2]);
    link.remove(&mut table, &drops);
    assert_eq!(indexes.map(|index| table.find(index)), [None; 2]);
    assert_eq!(drops.get(DropReason::StagingGivenUp), 0);

    let mut wire = Wire::new();
    wire.a.send(&packet(1, 100), wire.now);
    let Side {
        link,
        mut table,
        drops,
        ..
    } = wire.a;
    link.remove(&mut table, &drops);
    assert_eq!(drops.get(DropReason::StagingGivenUp), 1);
}
