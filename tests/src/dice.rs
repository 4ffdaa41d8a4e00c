//! Random numbers that can be had again: a test prints the seed when it starts.

/// xorshift64.
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
