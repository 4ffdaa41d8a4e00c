//! A sibling's word: who watches tells remote sites that one died, and they ask the accused before
//! they believe it.

use std::time::Duration;

use proto::control::{Control, Word};
use proto::key::PublicKey;

use super::liveness::SIBLING;

/// Silence of a sibling that is told.
const SILENCE: Duration = SIBLING.saturating_mul(4);
const APART: Duration = Duration::from_millis(50);
const WORDS: u32 = 3;
const QUESTIONS: u32 = 3;
/// From the first question to the end of the last one's turn.
const ASKING: Duration = Duration::from_millis(150);
/// Where nothing was measured yet.
const UNKNOWN_WAIT: Duration = Duration::from_millis(500);

/// Watches one sibling.
#[derive(Default)]
pub(crate) struct Watch {
    /// The boot that was heard, and when; none after it was told to be dead.
    heard: Option<(u64, Duration)>,
}

impl Watch {
    pub(crate) fn handle_heard(&mut self, boot: u64, at: Duration) {
        let last = self.heard.map_or(at, |(_, last)| last.max(at));
        self.heard = Some((boot, last));
    }

    /// We slept, and what came meanwhile is still to be read.
    pub(crate) fn handle_slept(&mut self, now: Duration) {
        self.heard = self.heard.map(|(boot, _)| (boot, now));
    }

    /// It said goodbye, or is nobody to be watched.
    pub(crate) const fn handle_goodbye(&mut self) {
        self.heard = None;
    }

    /// The boot to accuse, once.
    pub(crate) fn poll_silent(&mut self, now: Duration) -> Option<u64> {
        let (boot, at) = self.heard?;
        if now < at + SILENCE {
            return None;
        }
        self.heard = None;
        Some(boot)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.heard.map(|(_, at)| at + SILENCE)
    }
}

/// A word on its way to all remote gateways.
pub(crate) struct Accusation {
    accused: PublicKey,
    boot: u64,
    left: u32,
    next: Duration,
}

impl Accusation {
    pub(crate) const fn new(accused: PublicKey, boot: u64, now: Duration) -> Accusation {
        Accusation {
            accused,
            boot,
            left: WORDS,
            next: now,
        }
    }

    pub(crate) const fn accused(&self) -> &PublicKey {
        &self.accused
    }

    pub(crate) fn poll_word(&mut self, now: Duration) -> Option<Control> {
        if self.left == 0 || now < self.next {
            return None;
        }
        self.left -= 1;
        self.next = now + APART;
        Some(Control::Word(Word {
            accused: *self.accused.as_bytes(),
            boot: self.boot,
        }))
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        (self.left > 0).then_some(self.next)
    }
}

/// Asks an accused gateway whether it lives.
pub(crate) struct Inquiry {
    began: Duration,
    asked: u32,
    end: Duration,
    is_cleared: bool,
}

impl Inquiry {
    /// `wait` is one smoothed round trip and four deviations of it.
    pub(crate) fn new(wait: Option<Duration>, now: Duration) -> Inquiry {
        Inquiry {
            began: now,
            asked: 0,
            end: now + ASKING + wait.unwrap_or(UNKNOWN_WAIT).max(APART),
            is_cleared: false,
        }
    }

    /// Something of it was opened at this time or later.
    pub(crate) fn handle_heard(&mut self, at: Duration) {
        self.is_cleared |= at >= self.began;
    }

    pub(crate) fn handle_slept(&mut self, now: Duration) {
        self.end = self.end.max(now + ASKING);
    }

    pub(crate) fn poll_question(&mut self, now: Duration) -> Option<Control> {
        if self.is_cleared || self.asked == QUESTIONS || now < self.next() {
            return None;
        }
        self.asked += 1;
        Some(Control::Question {
            id: u64::from(self.asked),
        })
    }

    /// `Some(true)` when it is dead, `Some(false)` when it is not.
    pub(crate) fn verdict(&self, now: Duration) -> Option<bool> {
        if self.is_cleared {
            Some(false)
        } else {
            (now >= self.end).then_some(true)
        }
    }

    pub(crate) fn poll_timeout(&self) -> Duration {
        if self.asked < QUESTIONS {
            self.next()
        } else {
            self.end
        }
    }

    fn next(&self) -> Duration {
        self.began + APART * self.asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_sibling_is_accused_once_after_four_hellos_that_did_not_come() {
        let mut watch = Watch::default();
        assert_eq!(watch.poll_silent(at(1000)), None, "never heard");
        watch.handle_heard(7, at(1000));
        assert_eq!(watch.poll_silent(at(1199)), None);
        assert_eq!(watch.poll_silent(at(1200)), Some(7));
        assert_eq!(watch.poll_silent(at(1300)), None);
        watch.handle_heard(7, at(1400));
        watch.handle_goodbye();
        assert_eq!(watch.poll_silent(at(2000)), None);
    }

    #[test]
    fn a_word_goes_out_three_times() {
        let accused = proto::key::SigningKey::from_seed(&[1; 32]).public();
        let mut accusation = Accusation::new(accused, 7, at(0));
        let times: Vec<u64> = (0..300)
            .filter(|now| accusation.poll_word(at(*now)).is_some())
            .collect();
        assert_eq!(times, [0, 50, 100]);
        assert_eq!(accusation.poll_timeout(), None);
    }

    #[test]
    fn the_accused_has_its_round_trip_to_answer() {
        let asked = |wait, answer: u64| {
            let mut inquiry = Inquiry::new(wait, at(0));
            for now in 0..2000 {
                inquiry.poll_question(at(now));
                if now == answer {
                    inquiry.handle_heard(at(now));
                }
                if let Some(is_dead) = inquiry.verdict(at(now)) {
                    return (is_dead, now);
                }
            }
            panic!("no verdict");
        };
        assert_eq!(asked(Some(at(320)), 300), (false, 300));
        assert_eq!(asked(Some(at(320)), 1999), (true, 470));
        assert_eq!(asked(None, 1999), (true, 650));
        assert_eq!(asked(Some(at(1)), 1999), (true, 200));
    }

    #[test]
    fn what_came_before_the_word_clears_nobody() {
        let mut inquiry = Inquiry::new(Some(at(20)), at(500));
        inquiry.handle_heard(at(499));
        assert_eq!(inquiry.verdict(at(600)), None);
    }
}
