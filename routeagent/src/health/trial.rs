//! Whether foreign packets pass on one way between this node and one gateway.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

/// While nothing is known, and after one was not answered.
const FAST: Duration = Duration::from_millis(200);
const SLOW: Duration = Duration::from_secs(1);
const SLOWEST: Duration = Duration::from_secs(10);
/// It begins with these, then [`SLOW`] ...
const FAST_FOR: Duration = Duration::from_secs(2);
/// ... until it is so old.
const SLOW_FOR: Duration = Duration::from_secs(12);
/// Probes in a row without an answer: a second's worth.
const FAILED: u32 = 5;
/// Those that an answer may still come to.
const REMEMBERED: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeHealth {
    /// `None` while it is not tried, or not long enough to tell.
    pub passed: Option<bool>,
    /// When the last answer came.
    pub last_passed: Option<Duration>,
}

#[derive(Default)]
pub(super) struct Trial {
    health: ProbeHealth,
    begun: Option<Duration>,
    next: Duration,
    nonces: VecDeque<u64>,
    /// Since the last answer.
    unanswered: u32,
    is_answered: bool,
}

impl Trial {
    /// From the beginning: the way is another, or was not tried for a while.
    pub(super) fn restart(&mut self) {
        *self = Trial::default();
    }

    /// The other side cannot answer now; what is known stays.
    pub(super) fn pause(&mut self) {
        let health = self.health;
        *self = Trial {
            health,
            ..Trial::default()
        };
    }

    /// The next one goes at once.
    pub(super) fn hurry(&mut self, now: Duration) {
        self.next = self.next.min(now);
    }

    /// Whether what is known has changed with it, and the nonce of the probe to be sent.
    pub(super) fn poll(
        &mut self,
        now: Duration,
        nonce: impl FnOnce() -> u64,
    ) -> (bool, Option<u64>) {
        let begun = *self.begun.get_or_insert_with(|| {
            self.next = now;
            now
        });
        if now < self.next {
            return (false, None);
        }
        let before = self.health.passed;
        if !self.nonces.is_empty() && !self.is_answered {
            self.unanswered = self.unanswered.saturating_add(1);
            if self.unanswered >= FAILED {
                self.health.passed = Some(false);
            }
        }
        let nonce = nonce();
        self.nonces.truncate(REMEMBERED - 1);
        self.nonces.push_front(nonce);
        self.is_answered = false;
        // One that is not answered is followed by another soon, however rare they are.
        self.next = now
            + if self.unanswered < FAILED {
                FAST
            } else {
                self.pace(now.saturating_sub(begun))
            };
        (self.health.passed != before, Some(nonce))
    }

    /// Whether what is known has changed.
    pub(super) fn handle_answer(&mut self, nonce: u64, now: Duration) -> bool {
        if !self.nonces.contains(&nonce) {
            return false;
        }
        // Each is answered once.
        self.nonces.retain(|one| *one != nonce);
        self.unanswered = 0;
        self.is_answered = true;
        self.health.last_passed = Some(now);
        let begun = self.begun.unwrap_or(now);
        self.next = now + self.pace(now.saturating_sub(begun));
        self.health.passed.replace(true) != Some(true)
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.begun.map(|_| self.next)
    }

    pub(super) const fn health(&self) -> ProbeHealth {
        self.health
    }

    const fn pace(&self, age: Duration) -> Duration {
        let doubts = self.unanswered > 0 && self.unanswered < FAILED;
        if doubts || age.as_millis() < FAST_FOR.as_millis() {
            FAST
        } else if age.as_millis() < SLOW_FOR.as_millis() {
            SLOW
        } else {
            SLOWEST
        }
    }
}

/// Nobody who saw some can tell the next.
pub(super) fn nonce(seed: u64, number: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    hasher.write_u64(number);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for so many milliseconds; every probe is answered or none. When they went.
    fn run(trial: &mut Trial, (from, to): (u64, u64), answers: bool) -> Vec<u64> {
        let mut sent = vec![];
        for at in from..to {
            let now = Duration::from_millis(at);
            if let (_, Some(nonce)) = trial.poll(now, || at) {
                sent.push(at);
                if answers {
                    trial.handle_answer(nonce, now);
                }
            }
        }
        sent
    }

    #[test]
    fn it_is_fast_at_first_and_rare_later() {
        let mut trial = Trial::default();
        assert_eq!(run(&mut trial, (0, 2000), true).len(), 10);
        assert_eq!(run(&mut trial, (2000, 12_000), true).len(), 10);
        assert_eq!(run(&mut trial, (12_000, 72_000), true).len(), 6);
        assert_eq!(trial.health().passed, Some(true));
    }

    #[test]
    fn a_second_without_an_answer_is_a_failure_and_one_answer_ends_it() {
        let mut trial = Trial::default();
        run(&mut trial, (0, 1000), false);
        assert_eq!(trial.health().passed, None);
        run(&mut trial, (1000, 1001), false);
        assert_eq!(trial.health().passed, Some(false));
        assert!(trial.handle_answer(1000, Duration::from_millis(1010)));
        assert!(!trial.handle_answer(1000, Duration::from_millis(1020)));
        assert!(!trial.handle_answer(77, Duration::from_millis(1020)));
        assert_eq!(trial.health().passed, Some(true));
    }

    #[test]
    fn a_way_that_passed_for_long_is_known_to_fail_a_second_after_the_first_loss() {
        let mut trial = Trial::default();
        run(&mut trial, (0, 60_000), true);
        let sent = run(&mut trial, (60_000, 90_000), false);
        assert_eq!(trial.health().passed, Some(false));
        let first = sent[0];
        assert_eq!(sent[1..6], [200, 400, 600, 800, 1000].map(|at| first + at));
        trial.pause();
        assert_eq!(trial.health().passed, Some(false));
        assert_eq!(trial.poll_timeout(), None);
    }
}
