//! Our own end: told to everyone until they have heard it, then a while of delivering what is
//! still on its way.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::key::PublicKey;

const APART: Duration = Duration::from_millis(50);
const AT_MOST: Duration = Duration::from_secs(1);
/// Packets that were sent before the goodbye was heard.
const STRAGGLERS: Duration = Duration::from_millis(150);

pub(super) struct Goodbye {
    /// Those that answer and have not heard it.
    waiting: BTreeSet<PublicKey>,
    next: Duration,
    until: Duration,
    /// When the last one heard it, or was given up.
    heard_at: Duration,
    /// The longest round trip of any link.
    longest_rtt: Duration,
    is_told: bool,
}

impl Goodbye {
    pub(super) fn new(
        waiting: BTreeSet<PublicKey>,
        longest_rtt: Duration,
        now: Duration,
    ) -> Goodbye {
        Goodbye {
            waiting,
            next: now,
            until: now + AT_MOST,
            heard_at: now,
            longest_rtt,
            is_told: false,
        }
    }

    pub(super) fn handle_heard(&mut self, by: &PublicKey, now: Duration) {
        if self.waiting.remove(by) {
            self.heard_at = now;
        }
    }

    /// Whom to tell now.
    pub(super) fn poll_tell(&mut self, now: Duration) -> Vec<PublicKey> {
        if now >= self.until && !self.waiting.is_empty() {
            self.waiting.clear();
            self.heard_at = now;
        }
        if self.waiting.is_empty() || now < self.next {
            return Vec::new();
        }
        self.next = now + APART;
        self.waiting.iter().copied().collect()
    }

    /// Once: nothing more is to come.
    pub(super) fn poll_left(&mut self, now: Duration) -> bool {
        let is_over = self.waiting.is_empty() && now >= self.end() && !self.is_told;
        self.is_told |= is_over;
        is_over
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        if !self.waiting.is_empty() {
            Some(self.next.min(self.until))
        } else {
            (!self.is_told).then(|| self.end())
        }
    }

    fn end(&self) -> Duration {
        self.heard_at + STRAGGLERS + self.longest_rtt
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn gateway(number: u8) -> PublicKey {
        SigningKey::from_seed(&[number; 32]).public()
    }

    fn ends(goodbye: &mut Goodbye, heard: &[(u64, PublicKey)]) -> (u64, usize) {
        let mut told = 0;
        for now in 0..5000 {
            for (_, by) in heard.iter().filter(|(time, _)| *time == now) {
                goodbye.handle_heard(by, at(now));
            }
            told += goodbye.poll_tell(at(now)).len();
            if goodbye.poll_left(at(now)) {
                return (now, told);
            }
        }
        panic!("never ends");
    }

    #[test]
    fn it_ends_when_all_have_heard_and_nothing_is_on_its_way() {
        let (one, two) = (gateway(1), gateway(2));
        let mut goodbye = Goodbye::new([one, two].into(), at(20), at(0));
        assert_eq!(ends(&mut goodbye, &[(20, one), (70, two)]), (240, 3));
    }

    #[test]
    fn who_does_not_answer_is_waited_for_a_second() {
        let mut goodbye = Goodbye::new([gateway(1)].into(), at(20), at(0));
        assert_eq!(ends(&mut goodbye, &[]), (1170, 20));
    }

    #[test]
    fn with_nobody_to_tell_it_ends_soon() {
        let mut goodbye = Goodbye::new(BTreeSet::new(), at(0), at(0));
        assert_eq!(ends(&mut goodbye, &[]), (150, 0));
    }
}
