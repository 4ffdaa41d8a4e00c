//! Random numbers from a seed, so that a run can be had again: for nonces, jitter and ids, never
//! for keys.

use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

/// A hash of a secret seed and a counter: who is shown some of the numbers, as nonces are, cannot
/// tell the others.
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    seed: u64,
    thrown: u64,
}

impl Dice {
    pub(crate) const fn new(seed: u64) -> Dice {
        Dice { seed, thrown: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.thrown = self.thrown.wrapping_add(1);
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write_u64(self.thrown);
        hasher.finish()
    }

    /// Below `end`; 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// From `low` percent of a time to all of it.
    pub(crate) fn jitter(&mut self, of: Duration, low: u64) -> Duration {
        let whole = of.as_micros() as u64;
        let least = whole / 100 * low.min(100);
        Duration::from_micros(least + self.below(whole - least + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_no_two_are_alike() {
        let numbers = |seed| {
            let mut dice = Dice::new(seed);
            (0..1000).map(|_| dice.next()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        let mut all = [numbers(7), numbers(8)].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn jitter_stays_between_its_ends_and_varies() {
        let mut dice = Dice::new(1);
        let whole = Duration::from_millis(100);
        let drawn: Vec<Duration> = (0..1000).map(|_| dice.jitter(whole, 75)).collect();
        assert!(
            drawn
                .iter()
                .all(|one| *one >= whole * 3 / 4 && *one <= whole)
        );
        assert!(drawn.iter().any(|one| *one < whole * 4 / 5));
        assert!(drawn.iter().any(|one| *one > whole * 19 / 20));
    }
}
