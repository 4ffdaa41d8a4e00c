//! Hellos of the last minute that should have come and did not.

use std::collections::VecDeque;
use std::time::Duration;

const SLOT: Duration = Duration::from_secs(5);
const SLOTS: u64 = 12;

#[derive(Default)]
pub(crate) struct Loss {
    last: Option<u64>,
    slots: VecDeque<Slot>,
}

struct Slot {
    number: u64,
    expected: u64,
    came: u64,
}

impl Loss {
    pub(crate) const fn handle_boot(&mut self) {
        self.last = None;
    }

    pub(crate) fn handle_hello(&mut self, number: u64, now: Duration) {
        let expected = match self.last {
            Some(last) => number.saturating_sub(last),
            None => 1,
        };
        self.last = self.last.max(Some(number));
        self.slot(now, expected, 1);
    }

    /// Silence: none came, and one should have come each `interval`.
    pub(crate) fn part(&self, now: Duration, missing: u64) -> f64 {
        let first = slot_of(now).saturating_sub(SLOTS - 1);
        let kept = self.slots.iter().filter(|slot| slot.number >= first);
        let (mut expected, mut came) = (missing, 0);
        for slot in kept {
            expected += slot.expected;
            came += slot.came;
        }
        if expected == 0 {
            return 0.0;
        }
        expected.saturating_sub(came) as f64 / expected as f64
    }

    fn slot(&mut self, now: Duration, expected: u64, came: u64) {
        let number = slot_of(now);
        if self.slots.back().is_none_or(|slot| slot.number != number) {
            self.slots.push_back(Slot {
                number,
                expected: 0,
                came: 0,
            });
            if self.slots.len() as u64 > SLOTS {
                self.slots.pop_front();
            }
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.expected = slot.expected.saturating_add(expected);
            slot.came += came;
        }
    }
}

fn slot_of(now: Duration) -> u64 {
    now.as_secs() / SLOT.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fifth_hello_that_is_missing_is_a_fifth() {
        let mut loss = Loss::default();
        for number in (0..1000u64).filter(|number| number % 5 != 3) {
            loss.handle_hello(number, Duration::from_millis(100 * number));
        }
        let part = loss.part(Duration::from_secs(100), 0);
        assert!((part - 0.2).abs() < 0.01, "{part}");
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let mut loss = Loss::default();
        loss.handle_hello(1, Duration::from_secs(1));
        loss.handle_hello(11, Duration::from_secs(2));
        assert!(loss.part(Duration::from_secs(3), 0) > 0.8);
        loss.handle_hello(12, Duration::from_secs(70));
        assert!(loss.part(Duration::from_secs(70), 0) < 0.01);
        assert!(loss.part(Duration::from_secs(70), 3) > 0.7);
    }

    #[test]
    fn a_new_boot_counts_from_its_own_first() {
        let mut loss = Loss::default();
        loss.handle_hello(5000, Duration::from_secs(1));
        loss.handle_boot();
        loss.handle_hello(1, Duration::from_secs(2));
        assert!(loss.part(Duration::from_secs(3), 0) < 0.01);
    }
}
