//! After a failure a gateway is the last to be used for a while, never excluded. Counts failures.

use std::time::Duration;

pub(crate) const HOLD: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Hold {
    until: Option<Duration>,
    down_since: Option<Duration>,
    failovers: u64,
    down_for: Duration,
}

impl Hold {
    /// It failed; a goodbye is none.
    pub(crate) fn handle_failure(&mut self, now: Duration) {
        self.failovers += 1;
        self.down_since = Some(now);
        self.until = Some(now + HOLD);
    }

    pub(crate) fn handle_up(&mut self, now: Duration) {
        if let Some(since) = self.down_since.take() {
            self.down_for += now.saturating_sub(since);
        }
    }

    /// It left or began anew in good order: nothing is held against it.
    pub(crate) const fn handle_goodbye(&mut self) {
        self.until = None;
    }

    pub(crate) fn is_held(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    pub(crate) fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        self.until.filter(|until| now < *until)
    }

    pub(crate) const fn failovers(&self) -> u64 {
        self.failovers
    }

    pub(crate) fn down_for(&self, now: Duration) -> Duration {
        let current = self
            .down_since
            .map_or(Duration::ZERO, |since| now.saturating_sub(since));
        self.down_for + current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn second(at: u64) -> Duration {
        Duration::from_secs(at)
    }

    #[test]
    fn a_failure_is_held_against_it_for_thirty_seconds_from_the_last() {
        let mut hold = Hold::default();
        assert!(!hold.is_held(second(1)));
        hold.handle_failure(second(10));
        hold.handle_up(second(12));
        hold.handle_failure(second(20));
        assert!(hold.is_held(second(49)));
        assert!(!hold.is_held(second(50)));
        assert_eq!(hold.failovers(), 2);
        assert_eq!(hold.down_for(second(25)), second(7));
    }

    #[test]
    fn a_goodbye_wipes_the_slate() {
        let mut hold = Hold::default();
        hold.handle_failure(second(10));
        hold.handle_goodbye();
        assert!(!hold.is_held(second(11)));
    }
}
