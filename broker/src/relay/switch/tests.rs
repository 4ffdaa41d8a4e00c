//! Sessions, pairs and addresses, with a way that is just an address.

use proto::key::SigningKey;
use proto::relay::{bind, open, read_bound, wrap};

use super::*;

const GRANT: Hash = Hash([3; 32]);
const PAYLOAD: &[u8] = &[0xee; 100];

fn who(number: u8) -> PublicKey {
    SigningKey::from_seed(&[number; 32]).public()
}

fn key(number: u64) -> Key {
    Key::new(&[u8::try_from(number).unwrap(); 32])
}

fn at(number: u64) -> SocketAddr {
    format!("192.0.2.{number}:4000").parse().unwrap()
}

struct Stage {
    switch: Switch<SocketAddr>,
    now: Instant,
}

impl Stage {
    /// Sessions 1 and 2 of nodes 1 and 2, which want each other as channels 12 and 21.
    fn paired() -> Stage {
        let mut stage = Stage::empty();
        for number in [1, 2] {
            stage.session(number);
        }
        stage.switch.handle_wanted(1, &[(12, who(2))]);
        stage.switch.handle_wanted(2, &[(21, who(1))]);
        stage
    }

    fn empty() -> Stage {
        let now = Instant::now();
        Stage {
            switch: Switch::new(&[9; 32], now),
            now,
        }
    }

    fn session(&mut self, number: u64) -> Vec<u64> {
        self.switch.handle_session(New {
            number,
            key: key(number),
            identity: who(u8::try_from(number).unwrap()),
            grant: GRANT,
        })
    }

    fn ask(&mut self, session: u64, from: SocketAddr, echo: u64) -> Result<Bound, Dropped> {
        let question = Bind {
            session,
            nonce: 5,
            echo,
        };
        let question = bind(question, &key(session));
        let answer = self.switch.handle_bind(&question, (from, from), self.now)?;
        assert_eq!(answer.len(), question.len());
        Ok(read_bound(&answer, &key(session)).unwrap())
    }

    fn bind(&mut self, session: u64) {
        let asked = self.ask(session, at(session), 0).unwrap();
        let bound = self.ask(session, at(session), asked.challenge).unwrap();
        assert_eq!(bound.challenge, 0);
    }

    fn send(&mut self, session: u64, channel: u32) -> Result<Forward<SocketAddr>, Dropped> {
        let mut datagram = wrap(PAYLOAD, TO_RELAY, (session, channel), &key(session)).unwrap();
        self.switch
            .handle_datagram(&mut datagram, at(session), self.now)
    }
}

#[test]
fn a_datagram_of_a_pair_that_both_asked_for_goes_to_the_other_and_is_no_longer() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let mut datagram = wrap(PAYLOAD, TO_RELAY, (1, 12), &key(1)).unwrap();
    let length = datagram.len();
    let to = stage
        .switch
        .handle_datagram(&mut datagram, at(1), stage.now);
    assert_eq!(to, Ok(Forward::Udp(at(2))));
    assert_eq!(datagram.len(), length);
    let got = open(&datagram, FROM_RELAY, &key(2)).unwrap();
    assert_eq!((got.session, got.channel, got.payload), (2, 21, PAYLOAD));
}

#[test]
fn a_pair_opens_only_when_both_have_asked_and_both_are_told() {
    let mut stage = Stage::empty();
    for number in [1, 2, 3] {
        stage.session(number);
        stage.bind(number);
    }
    assert_eq!(
        stage.switch.handle_wanted(1, &[(12, who(2)), (13, who(3))]),
        [1]
    );
    assert_eq!(stage.send(1, 12), Err(Dropped::Pair));
    assert!(stage.switch.open_channels(1).is_empty());
    assert_eq!(stage.switch.handle_wanted(2, &[(21, who(1))]), [2, 1]);
    assert_eq!(stage.switch.open_channels(1), [12]);
    assert_eq!(stage.switch.open_channels(2), [21]);
    assert!(stage.send(1, 12).is_ok());
    assert_eq!(stage.send(1, 13), Err(Dropped::Pair), "the third has not");
    assert_eq!(stage.send(3, 31), Err(Dropped::Pair));
    assert_eq!(stage.switch.pairs(), 1);
    // Given back by one of them, it is closed for both.
    let mut told = stage.switch.handle_wanted(1, &[(13, who(3))]);
    told.sort_unstable();
    assert_eq!(told, [1, 2]);
    assert_eq!(stage.send(2, 21), Err(Dropped::Pair));
    assert_eq!(stage.switch.pairs(), 0);
}

#[test]
fn an_address_that_has_not_echoed_gets_nothing_and_nothing_is_taken_from_it() {
    let mut stage = Stage::paired();
    stage.bind(1);
    assert_eq!(
        stage.send(1, 12),
        Ok(Forward::Tls {
            session: 2,
            channel: 21
        })
    );
    assert_eq!(stage.send(2, 21), Err(Dropped::Unbound));
    // Asked for, not echoed.
    let asked = stage.ask(2, at(2), 0).unwrap();
    assert_ne!(asked.challenge, 0);
    assert_eq!(stage.send(2, 21), Err(Dropped::Unbound));
    // What was given to one address is no echo from another.
    let victim = at(77);
    let answer = stage.ask(2, victim, asked.challenge).unwrap();
    assert_ne!(answer.challenge, 0);
    assert!(matches!(stage.send(1, 12), Ok(Forward::Tls { .. })));
    stage.ask(2, at(2), asked.challenge).unwrap();
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
}

#[test]
fn a_new_address_takes_the_place_of_the_old_once_it_has_echoed() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let rebound = at(99);
    let asked = stage.ask(2, rebound, 1).unwrap();
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
    stage.ask(2, rebound, asked.challenge).unwrap();
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(rebound)));
    assert_eq!(stage.send(2, 21), Err(Dropped::Unbound), "from the old one");
}

#[test]
fn an_address_not_confirmed_again_is_left_and_the_connection_serves() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    stage.now += BOUND_FOR - Duration::from_millis(1);
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
    stage.now += Duration::from_millis(1);
    assert_eq!(stage.send(1, 12), Err(Dropped::Unbound));
    stage.bind(1);
    assert!(matches!(stage.send(1, 12), Ok(Forward::Tls { .. })));
}

#[test]
fn who_sends_over_its_connection_again_is_sent_to_over_it_unless_it_has_just_bound() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let now = stage.now;
    stage.switch.handle_carried((2, 21), PAYLOAD, now).unwrap();
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
    stage.now += BOUND_FRESH + Duration::from_secs(1);
    let (to, datagram) = stage
        .switch
        .handle_carried((2, 21), PAYLOAD, stage.now)
        .unwrap();
    assert_eq!(to, Forward::Udp(at(1)));
    assert_eq!(
        open(&datagram, FROM_RELAY, &key(1)).unwrap().payload,
        PAYLOAD
    );
    assert!(matches!(stage.send(1, 12), Ok(Forward::Tls { .. })));
}

#[test]
fn a_datagram_with_any_bit_changed_is_dropped() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let whole = wrap(PAYLOAD, TO_RELAY, (1, 12), &key(1)).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let passed = stage.switch.handle_datagram(&mut changed, at(1), stage.now);
        assert!(passed.is_err(), "bit {bit}");
    }
    let question = bind(
        Bind {
            session: 1,
            nonce: 5,
            echo: 0,
        },
        &key(1),
    );
    for bit in 0..question.len() * 8 {
        let mut changed = question;
        changed[bit / 8] ^= 1 << (bit % 8);
        let answer = stage
            .switch
            .handle_bind(&changed, (at(1), at(1)), stage.now);
        assert!(answer.is_err(), "bit {bit}");
    }
}

#[test]
fn a_flood_of_forgeries_takes_nothing_from_whom_it_imitates() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    for _ in 0..10_000 {
        let mut forged = wrap(PAYLOAD, TO_RELAY, (1, 12), &key(7)).unwrap();
        let passed = stage.switch.handle_datagram(&mut forged, at(1), stage.now);
        assert_eq!(passed, Err(Dropped::Mac));
    }
    assert!(stage.send(1, 12).is_ok());
}

#[test]
fn whoever_floods_with_its_own_key_is_held_to_its_rate_and_others_pass() {
    let mut stage = Stage::paired();
    for number in [3, 4] {
        stage.session(number);
    }
    stage.switch.handle_wanted(3, &[(34, who(4))]);
    stage.switch.handle_wanted(4, &[(43, who(3))]);
    for number in [1, 2, 3, 4] {
        stage.bind(number);
    }
    let (mut flooded, mut other) = (0, 0);
    for _ in 0..1000 {
        stage.now += Duration::from_millis(1);
        for _ in 0..200 {
            flooded += usize::from(stage.send(1, 12).is_ok());
        }
        other += usize::from(stage.send(3, 34).is_ok());
    }
    assert_eq!(other, 1000);
    // 100 Mbit/s for one second and a burst, in datagrams that cost 200 bytes.
    assert!((62_500..66_000).contains(&flooded), "{flooded}");
}

#[test]
fn a_node_that_is_cut_off_sends_and_gets_nothing_from_then_on() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let told = stage.switch.cut_off(|identity, _| *identity == who(2));
    assert_eq!(told, [1]);
    assert_eq!(stage.send(2, 21), Err(Dropped::Session));
    assert_eq!(stage.send(1, 12), Err(Dropped::Pair));
    assert!(stage.switch.open_channels(1).is_empty());
    assert_eq!(stage.ask(2, at(2), 0), Err(Dropped::Session));
}

#[test]
fn a_node_that_comes_again_has_its_pairs_on_the_new_session_only() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let told = stage.switch.handle_session(New {
        number: 5,
        key: key(5),
        identity: who(2),
        grant: GRANT,
    });
    assert_eq!(told, [1]);
    assert_eq!(stage.send(1, 12), Err(Dropped::Pair));
    let mut told = stage.switch.handle_wanted(5, &[(51, who(1))]);
    told.sort_unstable();
    assert_eq!(told, [1, 5]);
    assert_eq!(
        stage.send(1, 12),
        Ok(Forward::Tls {
            session: 5,
            channel: 51
        })
    );
    // The old connection ends late, and takes nothing with it.
    assert!(stage.switch.handle_left(2).is_empty());
    assert_eq!(stage.switch.pairs(), 1);
    assert_eq!(stage.switch.handle_left(5), [1]);
    assert_eq!((stage.switch.pairs(), stage.switch.sessions()), (0, 1));
}

#[test]
fn a_session_that_asks_again_and_again_is_answered_at_its_rate() {
    let mut stage = Stage::paired();
    let answered = (0..100).filter(|_| stage.ask(1, at(1), 0).is_ok()).count();
    assert_eq!(answered, 16);
}

#[test]
fn nobody_is_its_own_peer_and_a_channel_named_twice_is_one() {
    let mut stage = Stage::empty();
    stage.session(1);
    stage.switch.handle_wanted(1, &[(11, who(1)), (12, who(1))]);
    assert_eq!(stage.switch.pairs(), 0);
    stage.session(2);
    stage
        .switch
        .handle_wanted(1, &[(7, who(2)), (7, who(3)), (8, who(2))]);
    stage.switch.handle_wanted(2, &[(21, who(1))]);
    assert!(stage.switch.open_channels(1).len() <= 1);
    stage.switch.handle_wanted(1, &[]);
    assert_eq!(stage.switch.pairs(), 0);
    assert!(stage.switch.open_channels(2).is_empty());
}

#[test]
fn pairs_have_an_end() {
    let mut stage = Stage::empty();
    // 46 nodes that all want each other are 1035 pairs.
    for number in 1..=46_u64 {
        stage.session(number);
    }
    for number in 1..=46_u8 {
        let others = (1..=46).filter(|other| *other != number);
        let wanted: Vec<_> = others.map(|other| (u32::from(other), who(other))).collect();
        stage.switch.handle_wanted(u64::from(number), &wanted);
    }
    assert_eq!(stage.switch.pairs(), MAX_PAIRS);
    stage.switch.handle_left(1);
    assert!(stage.switch.pairs() < MAX_PAIRS);
}

#[test]
fn an_echo_of_long_ago_binds_nothing() {
    let mut stage = Stage::paired();
    stage.bind(1);
    let asked = stage.ask(2, at(2), 0).unwrap();
    stage.now += CHALLENGE_OF * 2 - Duration::from_millis(1);
    assert_eq!(stage.ask(2, at(2), asked.challenge).unwrap().challenge, 0);
    stage.now += Duration::from_millis(1);
    stage.bind(1);
    let again = stage.ask(2, at(2), asked.challenge).unwrap();
    assert!(again.challenge != 0 && again.challenge != asked.challenge);
    stage.now += BOUND_FOR;
    stage.bind(1);
    assert!(matches!(stage.send(1, 12), Ok(Forward::Tls { .. })));
    stage.ask(2, at(2), again.challenge).unwrap();
    assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
}

/// As gateways of every version do: what is asked for is echoed at once, and again while it serves.
#[test]
fn an_address_that_echoes_what_it_is_asked_is_bound_all_the_time() {
    let mut stage = Stage::paired();
    stage.bind(1);
    stage.bind(2);
    let mut challenges = [0; 2];
    for _ in 0..120 {
        for (known, session) in challenges.iter_mut().zip([1, 2]) {
            let answer = stage.ask(session, at(session), *known).unwrap();
            if answer.challenge != 0 {
                *known = answer.challenge;
                let echoed = stage.ask(session, at(session), *known).unwrap();
                assert_eq!(echoed.challenge, 0);
            }
            stage.now += Duration::from_secs(5);
        }
        assert_eq!(stage.send(1, 12), Ok(Forward::Udp(at(2))));
        assert_eq!(stage.send(2, 21), Ok(Forward::Udp(at(1))));
    }
}
