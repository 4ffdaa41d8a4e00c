//! Pings that are on their way.

use std::collections::VecDeque;
use std::time::Duration;

const AT_MOST: usize = 64;

#[derive(Default)]
pub(super) struct Pings {
    sent: VecDeque<(u64, Duration)>,
}

impl Pings {
    pub(super) fn handle_ping(&mut self, id: u64, now: Duration) {
        self.sent.push_back((id, now));
        if self.sent.len() > AT_MOST {
            self.sent.pop_front();
        }
    }

    /// The round trip, if we asked; the first answer counts.
    pub(super) fn handle_pong(&mut self, id: u64, now: Duration) -> Option<Duration> {
        let at = self.sent.iter().position(|(sent, _)| *sent == id)?;
        let (_, sent) = self.sent.remove(at)?;
        Some(now.saturating_sub(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_answer_to_what_was_asked_counts() {
        let mut pings = Pings::default();
        let at = Duration::from_millis;
        pings.handle_ping(7, at(100));
        assert_eq!(pings.handle_pong(8, at(110)), None);
        assert_eq!(pings.handle_pong(7, at(120)), Some(at(20)));
        assert_eq!(pings.handle_pong(7, at(121)), None);
    }
}
