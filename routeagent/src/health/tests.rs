//! What one who sends in a gateway's name, or a gateway itself, cannot make this agent do.

use proto::key::{Hash, SigningKey};
use proto::lan::{Answer, Ask, Heard, PORT};

use super::*;

const BOOT: u64 = 5;

struct Site {
    health: Health,
    gateway: PublicKey,
    key: PairKey,
    address: SocketAddr,
    /// Of answers.
    number: u64,
    now: Duration,
}

impl Site {
    fn new() -> Site {
        let key = |seed: u8| SigningKey::from_seed(&[seed; 32]).public();
        let (own, gateway) = (key(1), key(2));
        let pair = PairKey::derive(&[3; 32], &Hash([7; 32]), &own, &gateway).unwrap();
        let now = Duration::from_secs(100);
        let own = Own {
            identity: own,
            boot: BOOT,
            seed: 1,
        };
        let address = SocketAddr::new([10, 1, 0, 1].into(), PORT);
        let mut health = Health::new(own, now);
        let at = GatewayAt {
            name: "gate".parse().unwrap(),
            address,
            key: pair.clone(),
            is_near: true,
        };
        health.handle_gateways(&[(gateway, at)].into(), now);
        Site {
            health,
            gateway,
            key: pair,
            address,
            number: 0,
            now,
        }
    }

    /// The question that the agent asks next.
    fn ask(&mut self) -> Ask {
        loop {
            while let Some((_, datagram)) = self.health.poll_transmit() {
                if let Ok(Message::Ask(ask)) = Message::open(&datagram, &self.key) {
                    return ask;
                }
            }
            self.now = self.health.poll_timeout().unwrap().max(self.now);
            self.health.handle_timeout(self.now);
        }
    }

    /// The next answer of the gateway, unasked if the question was answered before.
    fn answer(&mut self, to: &Ask, change: impl Fn(&mut Answer)) {
        self.number += 1;
        let mut answer = Answer {
            boot: 1,
            number: self.number,
            to: Heard {
                boot: to.boot,
                number: to.number,
            },
            interval: 50,
            table: 0,
            leaving: false,
            forwards: true,
            other_lan: None,
        };
        change(&mut answer);
        let datagram = Message::Answer(answer).seal(tag_of(&self.gateway), &self.key);
        self.health
            .handle_datagram(self.address, &datagram, self.now);
    }

    fn forge(&mut self, length: usize) {
        let mut datagram = Message::Answer(Answer {
            boot: 1,
            number: 9,
            to: Heard {
                boot: BOOT,
                number: 1,
            },
            interval: 50,
            table: 0,
            leaving: true,
            forwards: true,
            other_lan: None,
        })
        .seal(tag_of(&self.gateway), &self.key);
        *datagram.last_mut().unwrap() ^= 1;
        datagram.resize(length.max(datagram.len()), 0);
        self.health
            .handle_datagram(self.address, &datagram, self.now);
    }

    fn shown(&self) -> GatewayHealth {
        self.health.choice().gateways[&self.gateway].clone()
    }
}

#[test]
fn what_nobody_asked_for_only_says_that_a_gateway_leaves() {
    let mut site = Site::new();
    let ask = site.ask();
    site.answer(&ask, |_| {});
    assert_eq!(site.shown().state, GatewayState::Up);
    let _changed = site.health.take_change();
    for number in 1..50 {
        site.answer(&ask, |answer| {
            answer.table = number;
            answer.forwards = number % 2 == 0;
            answer.other_lan = Some([0xfd00, 0, 0, 0, 0, 0, 0, number as u16].into());
        });
        assert!(!site.health.take_change(), "{number}");
    }
    assert_eq!(site.shown().other_lan, None);
    assert_eq!(site.ask().table, 0);
    site.answer(&ask, |answer| answer.leaving = true);
    assert_eq!(site.shown().state, GatewayState::Leaving);
    site.answer(&ask, |_| {});
    assert_eq!(site.shown().state, GatewayState::Leaving, "nobody asked");
    let ask = site.ask();
    site.answer(&ask, |answer| answer.other_lan = "fd00::1".parse().ok());
    assert_eq!(site.shown().state, GatewayState::Up);
    assert!(site.shown().other_lan.is_some());
}

#[test]
fn wrong_macs_are_looked_at_so_often_and_no_more_until_the_next_question() {
    let mut site = Site::new();
    let ask = site.ask();
    for _ in 0..255 {
        site.forge(0);
    }
    site.answer(&ask, |_| {});
    assert_eq!(
        site.shown().state,
        GatewayState::Up,
        "it is among the first"
    );
    for _ in 0..1000 {
        site.forge(0);
    }
    site.answer(&ask, |answer| answer.leaving = true);
    assert_eq!(site.shown().state, GatewayState::Up, "not looked at");
    let ask = site.ask();
    site.answer(&ask, |answer| answer.leaving = true);
    assert_eq!(site.shown().state, GatewayState::Leaving);
}

#[test]
fn what_is_long_is_not_looked_at_while_no_table_is_collected() {
    let mut site = Site::new();
    let ask = site.ask();
    for _ in 0..1000 {
        site.forge(1000);
    }
    site.answer(&ask, |_| {});
    assert_eq!(site.shown().state, GatewayState::Up);
}
