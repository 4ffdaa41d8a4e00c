//! How many handshakes one source may begin: a token bucket per IPv4 address or IPv6 /64.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

const PER_SECOND: u32 = 20;
const BURST: u32 = 5;
const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
const FULL: Duration = Duration::from_nanos(COST.as_nanos() as u64 * BURST as u64);
/// Sources remembered; when all are in use a new one is refused.
const SOURCES: usize = 16 << 10;
const FORGET_AFTER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct SourceLimiter {
    buckets: HashMap<u128, Bucket>,
    swept: Duration,
}

/// Tokens counted in the time that they take to come.
#[derive(Debug)]
struct Bucket {
    tokens: Duration,
    seen: Duration,
}

impl SourceLimiter {
    pub(crate) fn allows(&mut self, source: IpAddr, now: Duration) -> bool {
        self.sweep(now);
        let key = match source {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            // Bit 127 keeps the families apart: no unicast /64 comes out as an IPv4 key.
            IpAddr::V6(v6) => v6.to_bits() >> 64 | 1 << 127,
        };
        if self.buckets.len() >= SOURCES && !self.buckets.contains_key(&key) {
            return false;
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket {
            tokens: FULL,
            seen: now,
        });
        bucket.tokens = (bucket.tokens + now.saturating_sub(bucket.seen)).min(FULL);
        bucket.seen = now;
        match bucket.tokens.checked_sub(COST) {
            Some(left) => {
                bucket.tokens = left;
                true
            }
            None => false,
        }
    }

    /// A source unseen for a second has a full bucket again, which need not be remembered.
    fn sweep(&mut self, now: Duration) {
        if now.saturating_sub(self.swept) >= FORGET_AFTER {
            self.swept = now;
            self.buckets
                .retain(|_, bucket| now.saturating_sub(bucket.seen) < FORGET_AFTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn five_at_once_then_one_every_twentieth_of_a_second() {
        let mut limiter = SourceLimiter::default();
        let mut now = Duration::from_secs(100);
        let source = ip("192.0.2.1");
        for _ in 0..5 {
            assert!(limiter.allows(source, now));
        }
        assert!(!limiter.allows(source, now));
        now += COST;
        assert!(limiter.allows(source, now) && !limiter.allows(source, now));
        now += COST * 2;
        assert!(
            limiter.allows(source, now)
                && limiter.allows(source, now)
                && !limiter.allows(source, now)
        );
    }

    #[test]
    fn another_address_is_not_affected_and_ipv6_counts_by_64_bits() {
        let mut limiter = SourceLimiter::default();
        let now = Duration::from_secs(1);
        for _ in 0..6 {
            limiter.allows(ip("2001:db8:1:2::1"), now);
        }
        assert!(!limiter.allows(ip("2001:db8:1:2:ffff::9"), now));
        assert!(limiter.allows(ip("2001:db8:1:3::1"), now));
        assert!(limiter.allows(ip("192.0.2.2"), now));
    }

    #[test]
    fn a_full_table_refuses_newcomers_until_the_old_are_forgotten() {
        let mut limiter = SourceLimiter::default();
        let now = Duration::from_secs(1);
        for bits in 0..SOURCES as u32 {
            assert!(limiter.allows(IpAddr::V4(bits.into()), now));
        }
        assert!(!limiter.allows(ip("203.0.113.1"), now));
        assert!(limiter.allows(ip("0.0.0.1"), now));
        assert!(limiter.allows(ip("203.0.113.1"), now + FORGET_AFTER * 2));
        assert!(limiter.buckets.len() <= 2);
    }
}
