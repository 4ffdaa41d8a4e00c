//! How often something may happen: so many times at once, and then so many a second.

use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    cost: Duration,
    full: Duration,
}

impl Rate {
    pub(super) const fn new(a_second: u32, at_once: u32) -> Rate {
        let cost = Duration::from_nanos(1_000_000_000 / a_second as u64);
        Rate {
            cost,
            full: Duration::from_nanos(cost.as_nanos() as u64 * at_once as u64),
        }
    }
}

/// Of one rate.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// When all of it is there again.
    whole: Duration,
}

impl Budget {
    pub(super) fn allows(&self, rate: Rate, now: Duration) -> bool {
        self.whole.saturating_sub(now) + rate.cost <= rate.full
    }

    pub(super) fn charge(&mut self, rate: Rate, now: Duration) {
        self.whole = self.whole.max(now) + rate.cost;
    }

    /// Charges what is allowed.
    pub(super) fn take(&mut self, rate: Rate, now: Duration) -> bool {
        let allows = self.allows(rate, now);
        if allows {
            self.charge(rate, now);
        }
        allows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_up_comes_back_at_its_pace_and_no_more_than_all_of_it() {
        let rate = Rate::new(100, 10);
        let mut budget = Budget::default();
        let mut take = |at: u64| {
            let now = Duration::from_millis(at);
            (0..1000).filter(|_| budget.take(rate, now)).count()
        };
        assert_eq!(take(5000), 10);
        assert_eq!(take(5030), 3);
        assert_eq!(take(5030), 0);
        assert_eq!(take(60_000), 10);
    }
}
