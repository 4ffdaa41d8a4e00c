//! What a peer may send, and what anyone else may send in its name.

use boringtun::noise::TunnResult;

use super::*;
use crate::data::link::OVERHEAD;
use crate::data::link::wire::*;
use crate::data::outbox::Datagram;

/// A peer that puts into the tunnel whatever it likes, in session with a link.
struct Rogue {
    tunn: Tunn,
    side: Side,
    now: Duration,
}

impl Rogue {
    fn new() -> Rogue {
        let side = Side::new(2, 1, None);
        let mut rogue = Rogue {
            tunn: Tunn::new(secret(1), side.public, None, None, 77, None),
            side,
            now: Duration::from_secs(2000),
        };
        let mut room = [0; 256];
        let TunnResult::WriteToNetwork(initiation) =
            rogue.tunn.format_handshake_initiation(&mut room, false)
        else {
            panic!("no initiation");
        };
        rogue.side.hear(initiation, at(1), rogue.now).unwrap();
        let answer = rogue.side.sent();
        let mut room = [0; 256];
        let TunnResult::WriteToNetwork(proof) =
            rogue.tunn.decapsulate(None, &answer[0].bytes, &mut room)
        else {
            panic!("no session");
        };
        assert_eq!(rogue.side.hear(proof, at(1), rogue.now), Ok(0));
        rogue
    }

    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut room = vec![0; inner.len() + 148];
        let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(inner, &mut room) else {
            panic!("not sealed");
        };
        datagram.to_vec()
    }

    fn opens(&mut self, datagram: &[u8]) -> Result<usize, DropReason> {
        self.side.hear(datagram, at(1), self.now)
    }
}

fn sealed(wire: &mut Wire, inner: &[u8]) -> Vec<u8> {
    wire.a.send(inner, wire.now);
    let sent: Vec<Datagram> = wire.a.sent();
    assert_eq!(kinds(&sent), [DATA]);
    sent[0].bytes.clone()
}

#[test]
fn a_datagram_opens_once() {
    let mut wire = Wire::connected();
    let datagram = sealed(&mut wire, &packet(1, 100));
    assert_eq!(wire.b.hear(&datagram, wire.a.at, wire.now), Ok(100));
    for _ in 0..2 {
        let again = wire.b.hear(&datagram, wire.a.at, wire.now);
        assert_eq!(again, Err(DropReason::Replay));
    }
}

#[test]
fn datagrams_may_overtake_each_other_within_the_window_and_not_beyond() {
    let mut wire = Wire::connected();
    let late: Vec<Vec<u8>> = (0..2).map(|_| sealed(&mut wire, &packet(1, 60))).collect();
    for _ in 0..1022 {
        let next = sealed(&mut wire, &packet(2, 60));
        assert_eq!(wire.b.hear(&next, wire.a.at, wire.now), Ok(60));
    }
    assert_eq!(wire.b.hear(&late[0], wire.a.at, wire.now), Ok(60));
    for _ in 0..2 {
        let next = sealed(&mut wire, &packet(2, 60));
        assert_eq!(wire.b.hear(&next, wire.a.at, wire.now), Ok(60));
    }
    let beyond = wire.b.hear(&late[1], wire.a.at, wire.now);
    assert_eq!(beyond, Err(DropReason::Replay));
}

#[test]
fn a_datagram_damaged_anywhere_does_not_open_and_does_no_harm_to_the_whole_one() {
    let mut wire = Wire::connected();
    let datagram = sealed(&mut wire, &packet(1, 60));
    for at in 4..datagram.len() {
        for bit in 0..8 {
            let mut damaged = datagram.clone();
            damaged[at] ^= 1 << bit;
            let refused = wire.b.hear(&damaged, wire.a.at, wire.now).unwrap_err();
            let expected: &[DropReason] = match at {
                4 => &[DropReason::NoSession],
                5..8 => &[DropReason::UnknownIndex],
                // Another low counter may be one that was seen.
                8 => &[DropReason::BadTag, DropReason::Replay],
                _ => &[DropReason::BadTag],
            };
            assert!(
                expected.contains(&refused),
                "bit {bit} of byte {at}: {refused:?}"
            );
        }
    }
    for len in OVERHEAD..datagram.len() {
        let cut = wire.b.hear(&datagram[..len], wire.a.at, wire.now);
        assert_eq!(cut, Err(DropReason::BadTag), "{len}");
    }
    assert_eq!(wire.b.hear(&datagram, wire.a.at, wire.now), Ok(60));
}

#[test]
fn a_counter_at_the_limit_of_messages_is_refused_before_it_is_tried() {
    let mut wire = Wire::connected();
    let mut datagram = sealed(&mut wire, &packet(1, 60));
    for (counter, refused) in [
        (REJECT_AFTER_MESSAGES - 1, DropReason::BadTag),
        (REJECT_AFTER_MESSAGES, DropReason::MessageLimit),
        (u64::MAX, DropReason::MessageLimit),
    ] {
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(wire.b.hear(&datagram, wire.a.at, wire.now), Err(refused));
    }
    assert_eq!(wire.carries(), [true, true]);
}

#[test]
fn an_inner_length_below_its_own_header_is_malformed() {
    let mut rogue = Rogue::new();
    for length in 0..=19_u16 {
        let mut inner = packet(1, 32);
        inner[2..4].copy_from_slice(&length.to_be_bytes());
        let datagram = rogue.seal(&inner);
        assert_eq!(
            rogue.opens(&datagram),
            Err(DropReason::InnerMalformed),
            "{length}"
        );
    }
    let datagram = rogue.seal(&packet(1, 20));
    assert_eq!(rogue.opens(&datagram), Ok(20));
}

#[test]
fn an_inner_length_beyond_what_was_sealed_is_malformed() {
    let mut rogue = Rogue::new();
    for length in [33, 1000, 65_535_u16] {
        let mut inner = packet(1, 32);
        inner[2..4].copy_from_slice(&length.to_be_bytes());
        let datagram = rogue.seal(&inner);
        assert_eq!(rogue.opens(&datagram), Err(DropReason::InnerMalformed));
        let mut inner = [0; 40 + 32];
        inner[0] = 0x60;
        inner[4..6].copy_from_slice(&length.to_be_bytes());
        let datagram = rogue.seal(&inner);
        assert_eq!(rogue.opens(&datagram), Err(DropReason::InnerMalformed));
    }
    let mut inner = [0; 40 + 32];
    (inner[0], inner[5]) = (0x60, 32);
    let datagram = rogue.seal(&inner);
    assert_eq!(rogue.opens(&datagram), Ok(72));
}

#[test]
fn what_is_no_ip_packet_is_malformed_at_any_length() {
    let mut rogue = Rogue::new();
    for version in 0..16_u8 {
        for length in 1..48 {
            let mut inner = vec![0; length];
            inner[0] = version << 4 | 5;
            let datagram = rogue.seal(&inner);
            let opened = rogue.opens(&datagram);
            // 40 zeroed bytes behind an IPv6 version are an empty IPv6 packet.
            let is_empty_v6 = version == 6 && length >= 40;
            let expected = if is_empty_v6 {
                Ok(40)
            } else {
                Err(DropReason::InnerMalformed)
            };
            assert_eq!(opened, expected, "version {version}, {length} bytes");
        }
    }
}

#[test]
fn what_opened_stays_opened_when_what_was_inside_is_not_wanted() {
    let mut rogue = Rogue::new();
    let datagram = rogue.seal(&[0xff; 64]);
    assert_eq!(rogue.opens(&datagram), Err(DropReason::InnerMalformed));
    assert_eq!(rogue.opens(&datagram), Err(DropReason::Replay));
}

#[test]
fn an_index_that_is_not_ours_is_unknown_and_one_without_session_has_none() {
    let mut wire = Wire::connected();
    let mut datagram = sealed(&mut wire, &packet(1, 60));
    let ours = u32::from_le_bytes(datagram[4..8].try_into().unwrap());
    for (index, refused) in [
        (ours ^ 1 << 12, DropReason::UnknownIndex),
        (ours ^ 1 << 31, DropReason::UnknownIndex),
        (ours ^ 1 << 3, DropReason::NoSession),
        (ours ^ 1, DropReason::NoSession),
    ] {
        datagram[4..8].copy_from_slice(&index.to_le_bytes());
        assert_eq!(wire.b.hear(&datagram, wire.a.at, wire.now), Err(refused));
    }
}

#[test]
fn handshake_messages_that_are_damaged_lead_nowhere() {
    let mut wire = Wire::new();
    wire.a.send(&packet(1, 60), wire.now);
    let initiation = wire.a.sent().remove(0).bytes;
    for at in 0..132 {
        let mut damaged = initiation.clone();
        damaged[at] ^= 0x40;
        let _ = wire.b.hear(&damaged, wire.a.at, wire.now);
        assert!(wire.b.sent().is_empty(), "byte {at}");
    }
    wire.b.hear(&initiation, wire.a.at, wire.now).unwrap();
    let answer = wire.b.sent().remove(0).bytes;
    for at in 0..76 {
        let mut damaged = answer.clone();
        damaged[at] ^= 0x40;
        let _ = wire.a.hear(&damaged, wire.b.at, wire.now);
        assert!(wire.a.sent().is_empty(), "byte {at}");
    }
    wire.a.hear(&answer, wire.b.at, wire.now).unwrap();
    assert_eq!(kinds(&wire.a.sent()), [DATA, DATA]);
}
