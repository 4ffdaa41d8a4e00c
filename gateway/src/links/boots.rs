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

/// What of a hello tells who speaks, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speech {
    pub(crate) boot: u64,
    pub(crate) number: u64,
    /// The last hello of ours that it names as heard.
    pub(crate) heard: Option<u64>,
    /// The last that we sent.
    pub(crate) ours: u64,
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
    replaced: Option<Replaced>,
}

/// When it was replaced, and the last hello that we had sent by then.
#[derive(Clone, Copy)]
struct Replaced {
    at: Duration,
    ours: u64,
}

impl Boots {
    /// A hello came. One of a boot that was replaced counts only if it names a hello of ours that
    /// was sent later: any other may be an old one that was kept back on its way.
    pub(crate) fn handle_hello(&mut self, speech: Speech, now: Duration) -> Speaker {
        let Speech {
            boot: id, number, ..
        } = speech;
        let current = self.seen.front();
        let is_silent = current.is_none_or(|boot| now >= boot.heard + SILENCE);
        let Some(at) = self.seen.iter().position(|boot| boot.id == id) else {
            self.replace(speech, now);
            return Speaker::New;
        };
        let Some(boot) = self.seen.get_mut(at) else {
            return Speaker::Old;
        };
        if number <= boot.number {
            return if at == 0 { Speaker::Same } else { Speaker::Old };
        }
        let is_old = boot.replaced.is_some_and(|replaced| {
            let lives = speech.heard.is_some_and(|heard| heard > replaced.ours);
            now < replaced.at + STRAGGLES || !lives
        });
        boot.number = number;
        boot.heard = now;
        if is_old {
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
            self.replace(speech, now);
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

    fn replace(&mut self, speech: Speech, now: Duration) {
        if let Some(current) = self.seen.front_mut() {
            current.replaced = Some(Replaced {
                at: now,
                ours: speech.ours,
            });
        }
        let replaced = None;
        self.seen.push_front(Boot {
            id: speech.boot,
            number: speech.number,
            heard: now,
            replaced,
        });
        self.seen.truncate(REMEMBERED);
        self.last_speaker = Some(speech.boot);
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

    /// From one that lives: it has heard the last hello of ours, one a millisecond.
    fn hello(boots: &mut Boots, boot: u64, number: u64, now: Duration) -> Speaker {
        let ours = now.as_millis() as u64;
        let speech = Speech {
            boot,
            number,
            heard: Some(ours),
            ours,
        };
        boots.handle_hello(speech, now)
    }

    #[test]
    fn hellos_that_were_kept_back_before_a_restart_are_nobodys_turn() {
        let mut boots = Boots::default();
        let mut say = |boot, number, heard, at_ms: u64| {
            let speech = Speech {
                boot,
                number,
                heard,
                ours: at_ms / 100,
            };
            let speaker = boots.handle_hello(speech, at(at_ms));
            (speaker, boots.are_two(at(at_ms)))
        };
        say(1, 1, Some(4), 500);
        say(2, 1, None, 1000);
        for kept in 0..5 {
            let now = 2500 + 1000 * kept;
            assert_eq!(say(1, 2 + kept, Some(9), now), (Speaker::Old, false));
            assert_eq!(say(1, 20 + kept, None, now + 100), (Speaker::Old, false));
            let heard = Some(now / 100);
            assert_eq!(say(2, 2 + kept, heard, now + 500), (Speaker::Same, false));
        }
        // Nor do they take a silent one's place.
        assert_eq!(say(1, 50, Some(9), 20_000), (Speaker::Old, false));
    }

    #[test]
    fn a_node_that_starts_again_is_the_new_one_at_once() {
        let mut boots = Boots::default();
        assert_eq!(hello(&mut boots, 1, 1, at(0)), Speaker::New);
        assert_eq!(hello(&mut boots, 1, 2, at(100)), Speaker::Same);
        assert_eq!(hello(&mut boots, 2, 1, at(200)), Speaker::New);
        assert_eq!(hello(&mut boots, 2, 2, at(300)), Speaker::Same);
    }

    #[test]
    fn what_an_old_boot_said_and_comes_late_or_again_does_no_harm() {
        let mut boots = Boots::default();
        hello(&mut boots, 1, 10, at(0));
        hello(&mut boots, 2, 1, at(200));
        for late in 0..20 {
            let now = at(210 + 20 * late);
            assert_eq!(hello(&mut boots, 1, 11 + late, now), Speaker::Old);
            assert_eq!(hello(&mut boots, 2, 2 + late, now), Speaker::Same);
        }
        for again in 0..20 {
            let now = at(3000 + 20 * again);
            assert_eq!(hello(&mut boots, 1, again, now), Speaker::Old);
            assert_eq!(hello(&mut boots, 2, 30 + again, now), Speaker::Same);
        }
        assert!(!boots.are_two(at(4000)));
    }

    #[test]
    fn many_starts_in_a_row_are_one_node() {
        let mut boots = Boots::default();
        for start in 0..20 {
            let now = at(500 * start);
            assert_eq!(hello(&mut boots, start, 1, now), Speaker::New);
            assert!(!boots.are_two(now));
        }
    }

    #[test]
    fn two_that_speak_in_turn_are_told_until_one_is_quiet_for_a_minute() {
        let mut boots = Boots::default();
        hello(&mut boots, 1, 1, at(0));
        hello(&mut boots, 2, 1, at(500));
        for turn in 0..5 {
            hello(&mut boots, 1, 2 + turn, at(2000 + 1000 * turn));
            hello(&mut boots, 2, 2 + turn, at(2500 + 1000 * turn));
        }
        assert!(boots.are_two(at(7000)));
        for alone in 0..59 {
            hello(&mut boots, 2, 10 + alone, at(7000 + 1000 * alone));
            assert!(boots.are_two(at(7000 + 1000 * alone)));
        }
        assert!(!boots.are_two(at(6500 + 60_000)));
    }

    #[test]
    fn the_one_that_stays_is_taken_again() {
        let mut boots = Boots::default();
        hello(&mut boots, 1, 1, at(0));
        hello(&mut boots, 2, 1, at(500));
        assert_eq!(hello(&mut boots, 1, 2, at(3400)), Speaker::Old);
        assert_eq!(hello(&mut boots, 1, 3, at(3500)), Speaker::New);
        assert_eq!(hello(&mut boots, 1, 4, at(6500)), Speaker::Same);
    }
}
