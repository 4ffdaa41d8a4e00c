//! How long a round trip takes.

use std::time::Duration;

/// By so much a round trip may grow at once, however short it was.
const JUMP: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rtt {
    pub(crate) smoothed: Duration,
    pub(crate) deviation: Duration,
}

impl Rtt {
    pub(crate) fn first(sample: Duration) -> Rtt {
        Rtt {
            smoothed: sample,
            deviation: sample / 2,
        }
    }

    /// The same for who waits by it: a single sample does not count for more than twice what was to
    /// be expected. An answer that waited while the other side was stopped says nothing of the path,
    /// and would make us wait as long the next time that side is said to be dead.
    pub(crate) fn with_at_most_twice(self, sample: Duration) -> Rtt {
        self.with(sample.min(self.limit() * 2 + JUMP))
    }

    /// The weights of RFC 6298, but for an answer in less than half the time: no path is shorter
    /// than it is, so those before have waited somewhere, as at a busy start.
    pub(crate) fn with(self, sample: Duration) -> Rtt {
        let off = self.smoothed.abs_diff(sample);
        let keep = if sample < self.smoothed / 2 { 1 } else { 7 };
        Rtt {
            smoothed: (self.smoothed * keep + sample) / (keep + 1),
            deviation: (self.deviation * 3 + off) / 4,
        }
    }

    /// An answer that has not come by then is hardly on its way.
    pub(crate) fn limit(self) -> Duration {
        self.smoothed + self.deviation * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_round_trip_measured_at_a_busy_start_is_soon_forgotten() {
        let mut rtt = Rtt::first(ms(200));
        for _ in 0..8 {
            rtt = rtt.with(ms(2));
        }
        assert!(rtt.smoothed <= ms(4), "{rtt:?}");
        // While one late answer counts for little.
        assert!(rtt.with(ms(18)).smoothed <= ms(6), "{rtt:?}");
    }
}
