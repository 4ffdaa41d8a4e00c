//! Which start of the other side speaks. A new one replaces the one before; an old one that keeps
//! speaking is a second node with the same key.

use std::collections::VecDeque;
use std::time::Duration;

/// The boot that counts has given way when it said nothing for so long.
const SILENCE: Duration = Duration::from_secs(3);
/// What is on its way when a node starts again has arrived by then.
const STRAGGLES: Duration = Duration::from_secs(1);
const TURNS: usize = 3;
const TURNS_WITHIN: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// The boot that counts, as before.
    Same,
    /// Another boot counts from now on.
    New,
    /// One that was replaced; nothing it says counts.
    Old,
}

/// The first is the one that counts.
#[derive(Default)]
pub(crate) struct Boots {
    seen: VecDeque<Boot>,
    last_speaker: Option<u64>,
    turns: VecDeque<Duration>,
    alarmed_until: Option<Duration>,
}

struct Boot {
    id: u64,
    number: u64,
    heard: Duration,
    replaced: Option<Duration>,
}

impl Boots {
    /// A hello with this number came from a boot.
    pub(crate) fn handle_hello(&mut self, id: u64, number: u64, now: Duration) -> Speaker {
        let current = self.seen.front();
        let is_silent = current.is_none_or(|boot| now >= boot.heard + SILENCE);
        let Some(at) = self.seen.iter().position(|boot| boot.id == id) else {
            self.replace(id, number, now);
            return Speaker::New;
        };
        let Some(boot) = self.seen.get_mut(at) else {
            return Speaker::Old;
        };
        if number <= boot.number {
            return if at == 0 { Speaker::Same } else { Speaker::Old };
        }
        boot.number = number;
        boot.heard = now;
        if boot.replaced.is_some_and(|at| now < at + STRAGGLES) {
            return Speaker::Old;
        }
        if self.last_speaker != Some(id) {
            self.last_speaker = Some(id);
            self.turn(now);
        }
        if at == 0 {
            Speaker::Same
        } else if is_silent {
            self.seen.remove(at);
            self.replace(id, number, now);
            Speaker::New
        } else {
            Speaker::Old
        }
    }

    /// Whether two nodes seem to use one key.
    pub(crate) fn are_two(&self, now: Duration) -> bool {
        self.alarmed_until.is_some_and(|until| now < until)
    }

    pub(crate) const fn poll_timeout(&self) -> Option<Duration> {
        self.alarmed_until
    }

    fn replace(&mut self, id: u64, number: u64, now: Duration) {
        if let Some(current) = self.seen.front_mut() {
            current.replaced = Some(now);
        }
        let replaced = None;
        self.seen.push_front(Boot {
            id,
            number,
            heard: now,
            replaced,
        });
        self.seen.truncate(REMEMBERED);
        self.last_speaker = Some(id);
        if self.are_two(now) {
            self.alarmed_until = Some(now + QUIET);
        }
    }

    /// One that spoke before speaks again.
    fn turn(&mut self, now: Duration) {
        self.turns.push_back(now);
        if self.turns.len() > TURNS {
            self.turns.pop_front();
        }
        self.turns
            .retain(|at| now.saturating_sub(*at) <= TURNS_WITHIN);
        if self.turns.len() >= TURNS || self.are_two(now) {
            self.alarmed_until = Some(now + QUIET);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_node_that_starts_again_is_the_new_one_at_once() {
        let mut boots = Boots::default();
        assert_eq!(boots.handle_hello(1, 1, at(0)), Speaker::New);
        assert_eq!(boots.handle_hello(1, 2, at(100)), Speaker::Same);
        assert_eq!(boots.handle_hello(2, 1, at(200)), Speaker::New);
        assert_eq!(boots.handle_hello(2, 2, at(300)), Speaker::Same);
    }

    #[test]
    fn what_an_old_boot_said_and_comes_late_or_again_does_no_harm() {
        let mut boots = Boots::default();
        boots.handle_hello(1, 10, at(0));
        boots.handle_hello(2, 1, at(200));
        for late in 0..20 {
            let now = at(210 + 20 * late);
            assert_eq!(boots.handle_hello(1, 11 + late, now), Speaker::Old);
            assert_eq!(boots.handle_hello(2, 2 + late, now), Speaker::Same);
        }
        for again in 0..20 {
            let now = at(3000 + 20 * again);
            assert_eq!(boots.handle_hello(1, again, now), Speaker::Old);
            assert_eq!(boots.handle_hello(2, 30 + again, now), Speaker::Same);
        }
        assert!(!boots.are_two(at(4000)));
    }

    #[test]
    fn many_starts_in_a_row_are_one_node() {
        let mut boots = Boots::default();
        for start in 0..20 {
            let now = at(500 * start);
            assert_eq!(boots.handle_hello(start, 1, now), Speaker::New);
            assert!(!boots.are_two(now));
        }
    }

    #[test]
    fn two_that_speak_in_turn_are_told_until_one_is_quiet_for_a_minute() {
        let mut boots = Boots::default();
        boots.handle_hello(1, 1, at(0));
        boots.handle_hello(2, 1, at(500));
        for turn in 0..5 {
            boots.handle_hello(1, 2 + turn, at(2000 + 1000 * turn));
            boots.handle_hello(2, 2 + turn, at(2500 + 1000 * turn));
        }
        assert!(boots.are_two(at(7000)));
        for alone in 0..59 {
            boots.handle_hello(2, 10 + alone, at(7000 + 1000 * alone));
            assert!(boots.are_two(at(7000 + 1000 * alone)));
        }
        assert!(!boots.are_two(at(6500 + 60_000)));
    }

    #[test]
    fn the_one_that_stays_is_taken_again() {
        let mut boots = Boots::default();
        boots.handle_hello(1, 1, at(0));
        boots.handle_hello(2, 1, at(500));
        assert_eq!(boots.handle_hello(1, 2, at(3400)), Speaker::Old);
        assert_eq!(boots.handle_hello(1, 3, at(3500)), Speaker::New);
        assert_eq!(boots.handle_hello(1, 4, at(6500)), Speaker::Same);
    }
}
