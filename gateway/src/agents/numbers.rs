//! The numbers of answers. Each tells when its answer was sent and proves to which address: who
//! names it has read what went there. Nothing is remembered for that, so that nobody can make us
//! forget it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use proto::lan::{Heard, Tag};

/// Bits that prove the address; the others count milliseconds, and last for eight years.
const MARK: u32 = 26;
/// What was answered longer ago proves nothing now. Agents ask every two seconds at least.
const FRESH: Duration = Duration::from_secs(10);

pub(super) struct Numbers {
    boot: u64,
    secret: u64,
}

impl Numbers {
    pub(super) const fn new(boot: u64, secret: u64) -> Numbers {
        Numbers { boot, secret }
    }

    /// Of an answer to this agent, which has had `last`.
    pub(super) fn next(&self, last: u64, who: Tag, to: SocketAddr, now: Duration) -> u64 {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let moment = now.max((last >> MARK) + 1);
        moment << MARK | self.mark(moment, who, to)
    }

    /// The number, if it is of an answer that was sent to `from` a short while ago.
    pub(super) fn proven(
        &self,
        heard: Heard,
        who: Tag,
        from: SocketAddr,
        now: Duration,
    ) -> Option<u64> {
        let moment = heard.number >> MARK;
        let is_of = heard.number == moment << MARK | self.mark(moment, who, from);
        (is_of && self.is_fresh(heard, now)).then_some(heard.number)
    }

    /// Whether it names an answer of a short while ago, wherever that went.
    pub(super) fn is_fresh(&self, heard: Heard, now: Duration) -> bool {
        let sent = Duration::from_millis(heard.number >> MARK);
        heard.boot == self.boot && now.saturating_sub(sent) <= FRESH
    }

    fn mark(&self, moment: u64, who: Tag, to: SocketAddr) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.secret, moment, who, to).hash(&mut hasher);
        hasher.finish() >> (64 - MARK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const WHO: Tag = [7; 8];

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, 1], port))
    }

    #[test]
    fn a_number_proves_the_address_it_was_sent_to_and_only_for_a_while() {
        let numbers = Numbers::new(3, 9);
        let number = numbers.next(0, WHO, at(1), NOW);
        let heard = Heard { boot: 3, number };
        let proves = |heard, who, from, now| numbers.proven(heard, who, from, now) == Some(number);
        assert!(proves(heard, WHO, at(1), NOW));
        assert!(proves(heard, WHO, at(1), NOW + FRESH));
        let late = NOW + FRESH + Duration::from_millis(1);
        assert!(!proves(heard, WHO, at(1), late));
        assert!(!proves(heard, WHO, at(2), NOW));
        assert!(!proves(heard, [8; 8], at(1), NOW));
        assert!(!proves(Heard { boot: 4, ..heard }, WHO, at(1), NOW));
        let guesses = (0..1000).map(|guess| Heard {
            number: number ^ (guess + 1),
            ..heard
        });
        assert_eq!(
            guesses.filter(|one| proves(*one, WHO, at(1), NOW)).count(),
            0
        );
        let other = Numbers::new(3, 10);
        assert_eq!(other.proven(heard, WHO, at(1), NOW), None);
    }

    #[test]
    fn numbers_grow_however_many_there_are_in_a_millisecond() {
        let numbers = Numbers::new(3, 9);
        let mut last = 0;
        for answer in 0..1000 {
            let next = numbers.next(last, WHO, at(answer % 7), NOW);
            assert!(next > last);
            last = next;
        }
        assert!(numbers.is_fresh(
            Heard {
                boot: 3,
                number: last
            },
            NOW
        ));
    }
}
