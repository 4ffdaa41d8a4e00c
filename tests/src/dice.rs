//! Random numbers that can be had again: a test prints the seed when it starts.

use std::time::Duration;

/// xorshift64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed is `CAUSEWAY_SEED` if that is set, and printed in any case.
    pub fn new(test: &str) -> Dice {
        let given = std::env::var("CAUSEWAY_SEED").ok();
        let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(1, |since| since.as_secs() | 1)
        });
        eprintln!("{test}: CAUSEWAY_SEED={seed}");
        Dice(seed.max(1))
    }

    /// The numbers of this seed; those of seeds that lie together have nothing in common.
    pub fn of(seed: u64) -> Dice {
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Dice((mixed ^ (mixed >> 31)).max(1))
    }

    /// True this many times of a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.below(1000) < u64::from(per_mille)
    }

    /// From this on and below that.
    pub fn between(&mut self, start: Duration, end: Duration) -> Duration {
        let width = u64::try_from(end.saturating_sub(start).as_nanos()).unwrap_or(u64::MAX);
        start + Duration::from_nanos(if width == 0 { 0 } else { self.below(width) })
    }

    /// How long something lasts that ends at any moment alike.
    pub fn lifetime(&mut self, mean: Duration) -> Duration {
        let even = (self.below(1 << 20) as f64 + 1.0) / f64::from(1 << 20);
        mean.mul_f64(-even.ln())
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(from.len()).unwrap_or(u64::MAX);
        let at = if count == 0 { 0 } else { self.below(count) };
        from.get(usize::try_from(at).unwrap_or_default())
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The low bits of an xorshift are its worst.
        (self.0 >> 16) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_end_and_vary() {
        let mut dice = Dice(1);
        let rolls: Vec<u64> = (0..100).map(|_| dice.below(6)).collect();
        assert!(rolls.iter().all(|&roll| roll < 6));
        assert!((0..6).all(|face| rolls.contains(&face)));
    }
}
