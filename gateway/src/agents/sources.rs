//! How often a source may be wrong before it is not listened to for a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Of one source, a second; and at once.
const WRONG_A_SECOND: u32 = 25;
const BURST: u32 = 50;
/// Of a source that an agent is heard from.
const USUAL: u32 = 40;
/// Of all sources that no agent is heard from.
const WRONG_IN_ALL: u32 = 2000;
/// Sources remembered. If there are more, only the sum of all is limited.
const SOURCES: usize = 4096;
const COST: Duration = Duration::from_nanos(1_000_000_000 / WRONG_A_SECOND as u64);
const FULL: Duration = Duration::from_nanos(COST.as_nanos() as u64 * BURST as u64);
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Sources {
    /// Until when the debt of a source is paid; each failure adds to it.
    debts: HashMap<IpAddr, Duration>,
    all: Duration,
    swept: Duration,
}

impl Sources {
    pub(super) fn allows(&self, source: IpAddr, is_usual: bool, now: Duration) -> bool {
        let owes = |until: Duration| until.saturating_sub(now) >= FULL;
        let is_flooded = self.all.saturating_sub(now) >= Duration::from_secs(1);
        let debt = self.debts.get(&source);
        !debt.is_some_and(|until| owes(*until)) && (is_usual || !is_flooded)
    }

    /// It was wrong.
    pub(super) fn charge(&mut self, source: IpAddr, is_usual: bool, now: Duration) {
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.debts.retain(|_, until| *until > now);
        }
        let cost = if is_usual { COST / USUAL } else { COST };
        if self.debts.len() < SOURCES || self.debts.contains_key(&source) {
            let debt = self.debts.entry(source).or_insert(now);
            *debt = (*debt).max(now) + cost;
        }
        if !is_usual {
            self.all = self.all.max(now) + Duration::from_secs(1) / WRONG_IN_ALL;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn ip(last: u32) -> IpAddr {
        IpAddr::V4(last.into())
    }

    /// How often it may be wrong at once.
    fn wrong(sources: &mut Sources, source: IpAddr, is_usual: bool, now: Duration) -> u32 {
        let mut times = 0;
        while times < 10_000 && sources.allows(source, is_usual, now) {
            sources.charge(source, is_usual, now);
            times += 1;
        }
        times
    }

    #[test]
    fn a_source_that_is_wrong_too_often_is_not_heard_for_a_while() {
        let mut sources = Sources::default();
        assert_eq!(wrong(&mut sources, ip(1), false, NOW), BURST);
        assert!(sources.allows(ip(2), false, NOW));
        let later = NOW + Duration::from_secs(1);
        assert_eq!(wrong(&mut sources, ip(1), false, later), WRONG_A_SECOND);
        assert_eq!(wrong(&mut sources, ip(3), true, NOW), BURST * USUAL);
    }

    #[test]
    fn many_sources_together_are_limited_but_not_those_of_agents() {
        let mut sources = Sources::default();
        let mut times = 0;
        for source in 0..100_000 {
            if sources.allows(ip(source), false, NOW) {
                sources.charge(ip(source), false, NOW);
                times += 1;
            }
        }
        assert_eq!(times, WRONG_IN_ALL);
        assert!(sources.allows(ip(7_000_000), true, NOW));
        assert!(sources.debts.len() <= SOURCES);
        let later = NOW + Duration::from_secs(10);
        assert!(sources.allows(ip(5), false, later));
        sources.charge(ip(5), false, later);
        assert_eq!(sources.debts.len(), 1, "the others are forgotten");
    }
}
