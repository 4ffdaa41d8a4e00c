//! How often somebody may ask. Pure: time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// So many at once, and refilled at an even rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    most: u32,
    every: Duration,
    /// What is taken counts as being there until then.
    empty_until: Option<Instant>,
}

impl Bucket {
    /// `most` at once, then one each `every`.
    pub(crate) fn new(most: u32, every: Duration) -> Bucket {
        Bucket {
            most,
            every,
            empty_until: None,
        }
    }

    /// Takes one, or says how long until there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let start = self.empty_until.map_or(now, |until| until.max(now));
        let ahead = start + self.every;
        let allowed = now + self.every * self.most;
        if ahead > allowed {
            return Err(ahead - allowed);
        }
        self.empty_until = Some(ahead);
        Ok(())
    }
}

/// So many of each, and refilled at an even rate. Keys are of things that are few.
pub(crate) struct Paces<K> {
    most: u32,
    every: Duration,
    of: HashMap<K, Bucket>,
}

impl<K: Hash + Eq> Paces<K> {
    pub(crate) fn new(most: u32, every: Duration) -> Paces<K> {
        Paces {
            most,
            every,
            of: HashMap::new(),
        }
    }

    /// Whether one may be taken now, else how long until it may.
    pub(crate) fn check(&self, of: &K, now: Instant) -> Result<(), Duration> {
        // A copy, so that asking takes nothing.
        let bucket = self.of.get(of).copied();
        bucket.map_or(Ok(()), |mut bucket| bucket.take(now))
    }

    /// One was taken.
    pub(crate) fn handle_taken(&mut self, of: K, now: Instant) {
        let bucket = self.of.entry(of);
        let bucket = bucket.or_insert_with(|| Bucket::new(self.most, self.every));
        // Those that were let through together may be a few too many.
        let _over = bucket.take(now);
    }
}

/// Failed attempts by source: some are free, then each doubles the wait.
pub(crate) struct Attempts<K> {
    failed: HashMap<K, Failed>,
}

#[derive(Clone, Copy)]
struct Failed {
    count: u32,
    last: Instant,
    barred_until: Instant,
}

const FREE: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_secs(12);
/// A proof cannot be guessed, so this only spares work; who shares an address with a forger should
/// not be kept out for long.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Sources remembered; beyond, the one that failed longest ago is forgotten.
const MOST_SOURCES: usize = 4096;

impl<K: Hash + Eq + Copy> Attempts<K> {
    pub(crate) fn new() -> Attempts<K> {
        Attempts {
            failed: HashMap::new(),
        }
    }

    /// Whether this source may try now, else how long it has to wait.
    pub(crate) fn check(&self, source: &K, now: Instant) -> Result<(), Duration> {
        match self.failed.get(source) {
            Some(failed) if failed.barred_until > now => Err(failed.barred_until - now),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn handle_failure(&mut self, source: K, now: Instant) {
        self.failed
            .retain(|_, failed| now - failed.last < LONGEST_WAIT);
        if self.failed.len() >= MOST_SOURCES && !self.failed.contains_key(&source) {
            self.forget_oldest();
        }
        let failed = self.failed.entry(source).or_insert(Failed {
            count: 0,
            last: now,
            barred_until: now,
        });
        // A minute of quiet gives one back every 12 s, so that five a minute go on for ever.
        let quiet = (now - failed.last).as_secs() / FIRST_WAIT.as_secs();
        failed.count = failed
            .count
            .saturating_sub(u32::try_from(quiet).unwrap_or(u32::MAX))
            .saturating_add(1);
        failed.last = now;
        if failed.count > FREE {
            let doublings = (failed.count - FREE - 1).min(16);
            failed.barred_until = now + (FIRST_WAIT * 2u32.pow(doublings)).min(LONGEST_WAIT);
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.failed.iter().min_by_key(|(_, failed)| failed.last);
        if let Some(source) = oldest.map(|(source, _)| *source) {
            self.failed.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_so_many_are_taken_at_once_and_then_at_an_even_rate() {
        let mut paces = Paces::new(3, Duration::from_secs(1));
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(paces.check(&'a', start), Ok(()));
            paces.handle_taken('a', start);
        }
        for _ in 0..2 {
            assert_eq!(paces.check(&'a', start), Err(Duration::from_secs(1)));
        }
        assert_eq!(paces.check(&'b', start), Ok(()));
        let later = start + Duration::from_secs(1);
        assert_eq!(paces.check(&'a', later), Ok(()));
        paces.handle_taken('a', later);
        assert!(paces.check(&'a', later).is_err());
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_gives_its_most_at_once_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10, SECOND / 10);
        for _ in 0..10 {
            assert!(bucket.take(now).is_ok());
        }
        assert!(bucket.take(now).is_err());
        assert!(bucket.take(now + SECOND / 10).is_ok());
        assert!(bucket.take(now + SECOND / 10).is_err());
    }

    #[test]
    fn a_bucket_left_alone_fills_no_higher_than_its_most() {
        let now = Instant::now();
        let mut bucket = Bucket::new(2, SECOND);
        let later = now + SECOND * 1000;
        assert!(bucket.take(now).is_ok());
        assert!(bucket.take(later).is_ok());
        assert!(bucket.take(later).is_ok());
        assert!(bucket.take(later).is_err());
    }

    #[test]
    fn five_failures_are_free_and_each_further_one_doubles_the_wait() {
        let now = Instant::now();
        let mut attempts = Attempts::new();
        for _ in 0..5 {
            assert!(attempts.check(&1, now).is_ok());
            attempts.handle_failure(1, now);
        }
        assert!(attempts.check(&1, now).is_ok());
        attempts.handle_failure(1, now);
        let first = attempts.check(&1, now).unwrap_err();
        attempts.handle_failure(1, now);
        let second = attempts.check(&1, now).unwrap_err();
        assert_eq!(second, first * 2);
        assert!(attempts.check(&1, now + second).is_ok());
        assert!(attempts.check(&2, now).is_ok());
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let now = Instant::now();
        let mut attempts = Attempts::new();
        for source in 0..MOST_SOURCES + 10 {
            attempts.handle_failure(source, now);
        }
        assert_eq!(attempts.failed.len(), MOST_SOURCES);
    }
}
