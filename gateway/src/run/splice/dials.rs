//! How fast brokers are connected to for others. Each connection keeps one of this host's ports to
//! the broker for a minute after its end, and the gateway itself needs one, too. Pure.

use std::collections::HashMap;
use std::time::Duration;

use super::source::{Rate, Source};

/// For all together: a site whose agents all come at once is served within seconds, and of the
/// 28,000 ports that a host has for one broker a few thousand are taken at most.
const ALL: Rate = Rate {
    burst: 128,
    every: Duration::from_millis(20),
};

#[derive(Default)]
pub(super) struct Dials {
    all: Owed,
    /// Of those alone that owe something: no more than were connected within a few seconds.
    of: HashMap<Source, Owed>,
}

/// When all that was taken is made up for.
#[derive(Clone, Copy, Default)]
struct Owed(Duration);

impl Owed {
    fn after_one_more(self, rate: Rate, now: Duration) -> Option<Owed> {
        let then = self.0.max(now) + rate.every;
        (then <= now + rate.every * rate.burst).then_some(Owed(then))
    }
}

impl Dials {
    /// Whether a broker may be connected to for `source` now. Whoever may not takes from nobody.
    pub(super) fn take(&mut self, source: Source, now: Duration) -> bool {
        let owed = self.of.get(&source).copied().unwrap_or_default();
        let Some(owed) = owed.after_one_more(source.dials(), now) else {
            return false;
        };
        let Some(all) = self.all.after_one_more(ALL, now) else {
            return false;
        };
        self.all = all;
        self.of.retain(|_, owed| owed.0 > now);
        self.of.insert(source, owed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn host(number: u32) -> Source {
        Source::of(std::net::Ipv4Addr::from_bits(number).into(), false)
    }

    /// How many of `tries` in this second may.
    fn taken(dials: &mut Dials, source: Source, second: u32, tries: u32) -> u32 {
        let begin = START + Duration::from_secs(second.into());
        let at = |number| begin + Duration::from_secs(1) * number / tries;
        (0..tries)
            .filter(|number| dials.take(source, at(*number)))
            .count() as u32
    }

    #[test]
    fn a_source_that_asks_all_the_time_gets_two_a_second_and_keeps_nobody_out() {
        let mut dials = Dials::default();
        let first = taken(&mut dials, host(1), 0, 1000);
        assert!((8..=10).contains(&first), "{first}");
        for second in 1..10 {
            let now = taken(&mut dials, host(1), second, 1000);
            assert!((1..=3).contains(&now), "{now}");
            assert!(dials.take(host(2), START + Duration::from_secs(second.into())));
        }
    }

    #[test]
    fn many_sources_together_leave_ports_to_the_gateway_itself() {
        let mut dials = Dials::default();
        let mut all = 0;
        for second in 0..20 {
            for number in 0..100 {
                all += taken(&mut dials, host(number), second, 10);
            }
        }
        // Three times as many within the minute for which a port is kept.
        assert!((1000..=1150).contains(&all), "{all}");
        assert!(dials.of.len() < 500, "{}", dials.of.len());
    }

    #[test]
    fn after_a_while_nothing_is_owed() {
        let mut dials = Dials::default();
        for minute in 0..2 {
            let now = START + Duration::from_secs(60 * minute);
            let may = (0..9).filter(|_| dials.take(host(1), now)).count();
            assert_eq!(may, 8);
        }
        assert_eq!(dials.of.len(), 1);
    }
}
