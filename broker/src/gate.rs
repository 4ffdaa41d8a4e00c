//! Connections that have not said who they are: how many may wait, and which goes when another
//! comes. Pure: the driver closes what is named here.
//!
//! Nobody is turned away at the door, since whoever comes last may be the honest one: the oldest
//! of the busiest source goes, those without a finished TLS handshake first.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Of one source, once they have had time to get on.
pub(crate) const MOST_OF_A_SOURCE: usize = 32;
pub(crate) const MOST: usize = 1024;
/// Enough for an honest caller to finish its handshake while others of its source come in a rush:
/// a hundred nodes behind one address may join at once.
pub(crate) const TIME_TO_GET_ON: Duration = Duration::from_secs(2);

/// One who may be many: an IPv4 address, or a /64 of IPv6, which is what one host gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(IpAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Waiter(u64);

#[derive(Default)]
pub(crate) struct Gate {
    next: u64,
    /// In the order in which they came.
    waiting: BTreeMap<Waiter, Waiting>,
    by_source: HashMap<Source, usize>,
}

struct Waiting {
    source: Source,
    since: Instant,
    /// Has finished a TLS handshake.
    shaken: bool,
}

impl Source {
    pub(crate) fn of(address: IpAddr) -> Source {
        Source(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

impl Gate {
    /// Lets one in; the second is to be closed for it.
    pub(crate) fn handle_connection(
        &mut self,
        source: Source,
        now: Instant,
    ) -> (Waiter, Option<Waiter>) {
        let waiter = Waiter(self.next);
        self.next += 1;
        self.waiting.insert(
            waiter,
            Waiting {
                source,
                since: now,
                shaken: false,
            },
        );
        let of_source = self.by_source.entry(source).or_default();
        *of_source += 1;
        let goes = if self.waiting.len() > MOST {
            self.oldest_of_busiest(waiter)
        } else if *of_source > MOST_OF_A_SOURCE {
            self.oldest_stalled(source, now)
        } else {
            None
        };
        if let Some(goes) = goes {
            self.remove(goes);
        }
        (waiter, goes)
    }

    pub(crate) fn handle_handshake(&mut self, waiter: Waiter) {
        if let Some(waiting) = self.waiting.get_mut(&waiter) {
            waiting.shaken = true;
        }
    }

    /// It is known now, or gone.
    pub(crate) fn remove(&mut self, waiter: Waiter) {
        let Some(gone) = self.waiting.remove(&waiter) else {
            return;
        };
        if let Some(count) = self.by_source.get_mut(&gone.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&gone.source);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The one to close when the process has no descriptors left.
    pub(crate) fn handle_shortage(&mut self) -> Option<Waiter> {
        let goes = self.oldest_of_busiest(Waiter(self.next))?;
        self.remove(goes);
        Some(goes)
    }

    fn oldest_of_busiest(&self, newest: Waiter) -> Option<Waiter> {
        let busiest = *self.by_source.values().max()?;
        self.waiting
            .iter()
            .filter(|(waiter, waiting)| {
                **waiter != newest && self.by_source.get(&waiting.source) == Some(&busiest)
            })
            .min_by_key(|(waiter, waiting)| (waiting.shaken, **waiter))
            .map(|(waiter, _)| *waiter)
    }

    fn oldest_stalled(&self, source: Source, now: Instant) -> Option<Waiter> {
        self.waiting
            .iter()
            .take_while(|(_, waiting)| now - waiting.since >= TIME_TO_GET_ON)
            .find(|(_, waiting)| waiting.source == source && !waiting.shaken)
            .map(|(waiter, _)| *waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        Source::of(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn a_host_with_a_64_is_one_source_and_a_mapped_address_is_the_ipv4_one() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn when_full_the_oldest_of_the_busiest_source_goes() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let (quiet, _) = gate.handle_connection(source(1), now);
        let (oldest, _) = gate.handle_connection(source(2), now);
        for _ in 2..MOST {
            assert_eq!(gate.handle_connection(source(2), now).1, None);
        }
        let (honest, goes) = gate.handle_connection(source(3), now);
        assert_eq!(goes, Some(oldest));
        assert_eq!(gate.len(), MOST);
        // Both who are alone outlast any number of the busy one's.
        for _ in 0..2 * MOST {
            let (_, goes) = gate.handle_connection(source(2), now);
            assert!(goes.is_some() && goes != Some(quiet) && goes != Some(honest));
        }
        assert_eq!(gate.len(), MOST);
    }

    #[test]
    fn who_has_finished_a_handshake_goes_after_those_who_have_not() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let (honest, _) = gate.handle_connection(source(2), now);
        gate.handle_handshake(honest);
        for _ in 0..3 * MOST {
            assert_ne!(gate.handle_connection(source(2), now).1, Some(honest));
        }
    }

    #[test]
    fn a_rush_from_one_source_is_let_in_and_what_stalls_there_goes() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let (oldest, _) = gate.handle_connection(source(1), now);
        for _ in 1..100 {
            assert_eq!(gate.handle_connection(source(1), now).1, None);
        }
        let later = now + TIME_TO_GET_ON;
        assert_eq!(gate.handle_connection(source(2), later).1, None);
        assert_eq!(gate.handle_connection(source(1), later).1, Some(oldest));
    }

    #[test]
    fn what_has_left_is_not_counted() {
        let now = Instant::now();
        let mut gate = Gate::default();
        for _ in 0..10 * MOST {
            let (waiter, goes) = gate.handle_connection(source(1), now);
            assert_eq!(goes, None);
            gate.remove(waiter);
        }
        assert_eq!(gate.len(), 0);
        assert!(gate.by_source.is_empty());
    }

    #[test]
    fn a_shortage_takes_one_as_long_as_there_is_one() {
        let now = Instant::now();
        let mut gate = Gate::default();
        let (only, _) = gate.handle_connection(source(1), now);
        assert_eq!(gate.handle_shortage(), Some(only));
        assert_eq!(gate.handle_shortage(), None);
    }
}
