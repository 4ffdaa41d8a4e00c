//! How many may be connected at a time. Pure: whoever holds the connections ends those that are
//! named here.
//!
//! Whoever comes last may be the honest one, so a newcomer takes the place of one that has not
//! settled: of its own address if that has too many, else of the busiest. One that has settled has
//! been taken by a broker, which lets nobody wait for long who does not say who it is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::source::Source;

pub(super) const MOST: usize = 1024;
/// Longer than a broker waits for whoever does not say who it is.
pub(super) const SETTLED: Duration = Duration::from_secs(20);

pub(super) type Number = u64;

/// Everybody who is here has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

pub(super) struct Seats<T> {
    next: Number,
    /// In the order in which they came.
    taken: BTreeMap<Number, Taken<T>>,
    by_source: HashMap<Source, usize>,
}

struct Taken<T> {
    source: Source,
    since: Duration,
    holder: Option<T>,
}

impl<T> Default for Seats<T> {
    fn default() -> Seats<T> {
        Seats {
            next: 0,
            taken: BTreeMap::new(),
            by_source: HashMap::new(),
        }
    }
}

impl<T> Seats<T> {
    /// A seat, and who has to go for it.
    pub(super) fn take(
        &mut self,
        source: Source,
        now: Duration,
    ) -> Result<(Number, Option<T>), Full> {
        let of_source = self.by_source.get(&source).copied().unwrap_or(0);
        let goes = if of_source >= source.seats() {
            Some(self.oldest_unsettled(now, |of| of == source).ok_or(Full)?)
        } else if self.taken.len() >= MOST {
            let busiest = self.busiest_unsettled(now).ok_or(Full)?;
            Some(self.oldest_unsettled(now, |of| of == busiest).ok_or(Full)?)
        } else {
            None
        };
        let holder = goes.and_then(|number| self.leave(number));
        let number = self.next;
        self.next += 1;
        let taken = Taken {
            source,
            since: now,
            holder: None,
        };
        self.taken.insert(number, taken);
        *self.by_source.entry(source).or_default() += 1;
        Ok((number, holder))
    }

    pub(super) fn fill(&mut self, number: Number, holder: T) {
        if let Some(taken) = self.taken.get_mut(&number) {
            taken.holder = Some(holder);
        }
    }

    /// Also for one that was ended here already.
    pub(super) fn leave(&mut self, number: Number) -> Option<T> {
        let gone = self.taken.remove(&number)?;
        if let Some(count) = self.by_source.get_mut(&gone.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&gone.source);
            }
        }
        gone.holder
    }

    /// Everybody who is here has to go.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.by_source.clear();
        let gone = std::mem::take(&mut self.taken).into_values();
        gone.filter_map(|taken| taken.holder)
    }

    fn unsettled(&self, now: Duration) -> impl DoubleEndedIterator<Item = (&Number, &Taken<T>)> {
        let all = self.taken.iter();
        all.filter(move |(_, taken)| now.saturating_sub(taken.since) < SETTLED)
    }

    fn oldest_unsettled(&self, now: Duration, of: impl Fn(Source) -> bool) -> Option<Number> {
        let mut all = self.unsettled(now);
        all.find(|(_, taken)| of(taken.source))
            .map(|(number, _)| *number)
    }

    /// Of equals the one that came first: a newcomer is not thrown out by whoever comes next.
    fn busiest_unsettled(&self, now: Duration) -> Option<Source> {
        let all = self.unsettled(now).rev();
        all.map(|(_, taken)| taken.source)
            .max_by_key(|source| self.by_source.get(source).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn source(number: u32) -> Source {
        Source::of(
            std::net::Ipv4Addr::from_bits(0x0a01_0000 + number).into(),
            false,
        )
    }

    fn take(seats: &mut Seats<Number>, of: u32, now: Duration) -> Result<Option<Number>, Full> {
        let (number, goes) = seats.take(source(of), now)?;
        seats.fill(number, number);
        Ok(goes)
    }

    #[test]
    fn a_source_with_too_many_loses_its_oldest_and_nobody_elses() {
        let mut seats = Seats::default();
        assert_eq!(take(&mut seats, 1, START), Ok(None));
        for _ in 0..source(1).seats() {
            assert_eq!(take(&mut seats, 2, START), Ok(None));
        }
        assert_eq!(take(&mut seats, 2, START), Ok(Some(1)));
        assert_eq!(take(&mut seats, 2, START), Ok(Some(2)));
        assert_eq!(take(&mut seats, 1, START), Ok(None));
    }

    #[test]
    fn many_who_only_hold_connections_keep_nobody_out() {
        let mut seats = Seats::default();
        assert_eq!(take(&mut seats, 1, START), Ok(None), "the honest one");
        for number in 0..2 * MOST as u32 {
            let goes = take(&mut seats, 2 + number / 8, START).unwrap();
            assert_ne!(goes, Some(0));
        }
        let goes = take(&mut seats, 9000, START).unwrap();
        assert!(goes.is_some_and(|goes| goes != 0));
        assert_eq!(seats.taken.len(), MOST);
    }

    #[test]
    fn a_newcomer_stays_as_long_as_those_before_it_who_have_no_more_than_it() {
        let mut seats = Seats::default();
        for number in 0..MOST as u32 {
            assert_eq!(take(&mut seats, number, START), Ok(None));
        }
        // The honest one, and then more of those who have an address for each connection.
        assert_eq!(take(&mut seats, 5000, START), Ok(Some(0)));
        for number in 0..MOST as u32 - 1 {
            let goes = take(&mut seats, 6000 + number, START).unwrap();
            assert_eq!(goes, Some(Number::from(number) + 1));
        }
    }

    #[test]
    fn all_can_be_sent_away() {
        let mut seats = Seats::default();
        for number in 0..3 {
            take(&mut seats, number, START).unwrap();
        }
        assert_eq!(seats.clear().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(seats.leave(1), None, "it has left");
        assert_eq!(take(&mut seats, 1, START), Ok(None));
        assert_eq!(seats.by_source.len(), 1);
    }

    #[test]
    fn those_who_have_settled_stay() {
        let mut seats = Seats::default();
        for _ in 0..source(1).seats() {
            take(&mut seats, 1, START).unwrap();
        }
        let later = START + SETTLED;
        assert_eq!(take(&mut seats, 1, later), Err(Full));
        assert_eq!(take(&mut seats, 2, later), Ok(None));
        assert_eq!(seats.leave(0), Some(0));
        assert_eq!(seats.leave(0), None, "twice is once");
        assert_eq!(take(&mut seats, 1, later), Ok(None));
    }
}
