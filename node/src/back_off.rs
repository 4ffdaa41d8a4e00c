//! How long to wait before the next try: doubling, bounded, and spread by chance, so that a
//! thousand nodes do not come back to a broker in the same second.

use std::time::Duration;

/// Waits of `first`, then twice as long each time up to `most`, each shortened by chance to
/// between half and all of itself.
pub struct BackOff {
    first: Duration,
    most: Duration,
    next: Duration,
    chance: Chance,
}

/// A small generator for spreading waits and choosing orders. Not for secrets.
#[derive(Clone)]
pub struct Chance(u64);

impl BackOff {
    pub fn new(first: Duration, most: Duration, seed: u64) -> BackOff {
        BackOff {
            first,
            most,
            next: first,
            chance: Chance::new(seed),
        }
    }

    /// The wait after one more failure.
    pub fn handle_failure(&mut self) -> Duration {
        let wait = self.chance.shorten(self.next);
        self.next = (self.next * 2).min(self.most);
        wait
    }

    pub fn handle_success(&mut self) {
        self.next = self.first;
    }
}

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// SplitMix64: every seed is good, zero too.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    /// Between half and all of it.
    pub fn shorten(&mut self, wait: Duration) -> Duration {
        let half = wait / 2;
        let spread = u64::try_from(half.as_micros()).unwrap_or(u64::MAX - 1);
        half + Duration::from_micros(self.draw() % (spread + 1))
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            let other = usize::try_from(self.draw() % (last as u64 + 1)).unwrap_or(last);
            values.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back_off(seed: u64) -> BackOff {
        BackOff::new(Duration::from_millis(500), Duration::from_secs(30), seed)
    }

    #[test]
    fn waits_double_up_to_the_most_and_start_again_after_a_success() {
        let mut waits = back_off(7);
        let mut whole = Duration::from_millis(500);
        for _ in 0..20 {
            let wait = waits.handle_failure();
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(Duration::from_secs(30));
        }
        waits.handle_success();
        assert!(waits.handle_failure() <= Duration::from_millis(500));
    }

    #[test]
    fn a_thousand_nodes_do_not_come_back_at_once() {
        let mut per_tenth = [0; 10];
        for seed in 0..1000 {
            let mut waits = back_off(seed);
            for _ in 0..10 {
                waits.handle_failure();
            }
            let tenth = (waits.handle_failure().as_secs_f64() - 15.0) / 1.5;
            per_tenth[(tenth as usize).min(9)] += 1;
        }
        assert!(per_tenth.iter().all(|&count| count < 200), "{per_tenth:?}");
    }

    #[test]
    fn a_shuffle_loses_nothing_and_a_seed_repeats_it() {
        let mut one: Vec<u8> = (0..50).collect();
        let mut same = one.clone();
        Chance::new(3).shuffle(&mut one);
        Chance::new(3).shuffle(&mut same);
        assert_eq!(one, same);
        assert_ne!(one, (0..50).collect::<Vec<u8>>());
        one.sort_unstable();
        assert_eq!(one, (0..50).collect::<Vec<u8>>());
    }
}
