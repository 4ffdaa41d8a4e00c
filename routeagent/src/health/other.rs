//! Shows one gateway that this node has its LAN address of the other family: the gateway believes
//! it when a question from there names an answer that was sent there.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::lan::{Answer, Heard, PORT};

/// The answer is named at once: a little later, since a liar could make us ask without end.
const APART: Duration = Duration::from_millis(10);
/// What is not answered is sent again, and not for ever.
const AGAIN: Duration = Duration::from_millis(200);
const TRIES: u32 = 5;
/// A gateway believes it for a minute.
const ROUND: Duration = Duration::from_secs(10);

/// From one of our addresses to one of a gateway's, in this start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) own: IpAddr,
    pub(super) gateway: IpAddr,
    pub(super) boot: u64,
}

#[derive(Default)]
pub(super) struct Other {
    way: Option<Way>,
    /// Of the last question; they are counted apart.
    number: u64,
    tries: u32,
    /// What came in this round.
    heard: Option<Heard>,
    /// The last question named it.
    is_named: bool,
    next: Duration,
}

impl Other {
    /// `None`: there is none, or the gateway is not heard. Another one is tried at once.
    pub(super) fn handle_way(&mut self, way: Option<Way>, now: Duration) {
        if way != self.way {
            *self = Other {
                way,
                number: self.number,
                next: now,
                ..Other::default()
            };
        }
    }

    /// The question that has fallen due: where to, its number, and what it names.
    pub(super) fn poll(&mut self, now: Duration) -> Option<(SocketAddr, u64, Option<Heard>)> {
        let way = self.way.filter(|_| now >= self.next)?;
        let heard = self.heard;
        self.is_named = heard.is_some();
        self.number += 1;
        self.tries += 1;
        if self.tries < TRIES {
            self.next = now + AGAIN;
        } else {
            self.end(now);
        }
        Some((SocketAddr::new(way.gateway, PORT), self.number, heard))
    }

    /// From the gateway's other address.
    pub(super) fn handle_answer(&mut self, answer: &Answer, boot: u64, now: Duration) {
        let to = Heard {
            boot,
            number: self.number,
        };
        if answer.to != to || self.way.is_none_or(|way| way.boot != answer.boot) {
            return;
        }
        if self.is_named {
            self.end(now);
        } else if self.heard.is_none() {
            self.heard = Some(Heard {
                boot: answer.boot,
                number: answer.number,
            });
            self.next = now + APART;
        }
    }

    fn end(&mut self, now: Duration) {
        (self.heard, self.tries, self.next) = (None, 0, now + ROUND);
    }

    /// Where answers come from.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.way.map(|way| SocketAddr::new(way.gateway, PORT))
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.way.map(|_| self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const BOOT: u64 = 5;

    fn way(boot: u64) -> Option<Way> {
        Some(Way {
            own: "fd00::1".parse().unwrap(),
            gateway: "fd00::2".parse().unwrap(),
            boot,
        })
    }

    /// Numbers of the questions of some time, with when they went; answered or not.
    fn run(other: &mut Other, milliseconds: u64, answers: bool) -> Vec<(u64, bool)> {
        let mut asked = vec![];
        for at in 0..milliseconds {
            let now = NOW + Duration::from_millis(at);
            let Some((_, number, heard)) = other.poll(now) else {
                continue;
            };
            asked.push((at, heard.is_some()));
            let answer = Answer {
                boot: 9,
                number: at + 1,
                to: Heard { boot: BOOT, number },
                interval: 50,
                table: 0,
                leaving: false,
                forwards: true,
                other_lan: None,
            };
            if answers {
                other.handle_answer(&answer, BOOT, now);
            }
        }
        asked
    }

    #[test]
    fn it_is_shown_at_once_and_then_every_ten_seconds() {
        let mut other = Other::default();
        assert_eq!((other.poll(NOW), other.poll_timeout()), (None, None));
        other.handle_way(way(9), NOW);
        let asked = run(&mut other, 21_000, true);
        let round = |begun: u64| [(begun, false), (begun + 10, true)];
        let rounds = [0, 10_010, 20_020].map(round);
        assert_eq!(asked, rounds.concat());
    }

    #[test]
    fn what_is_not_answered_is_tried_a_few_times_a_round() {
        let mut other = Other::default();
        other.handle_way(way(9), NOW);
        let asked: Vec<u64> = run(&mut other, 12_000, false)
            .iter()
            .map(|one| one.0)
            .collect();
        let tries = [0, 200, 400, 600, 800];
        assert_eq!(
            asked,
            [tries, tries.map(|at| 10_800 + at)].concat()[..asked.len()]
        );
        assert!(asked.len() > tries.len());
    }

    #[test]
    fn another_start_of_the_gateway_is_shown_it_at_once() {
        let mut other = Other::default();
        other.handle_way(way(8), NOW);
        assert_eq!(
            run(&mut other, 100, true).len(),
            1,
            "answers are of another"
        );
        other.handle_way(way(9), NOW);
        assert_eq!(run(&mut other, 100, true).len(), 2);
        other.handle_way(None, NOW);
        assert_eq!((other.poll(NOW + ROUND), other.address()), (None, None));
    }
}
