//! When each link wants to be looked at: one queue, so that a thousand links cost nothing while
//! nothing happens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Timers<K> {
    queue: BTreeSet<(Duration, K)>,
    due: BTreeMap<K, Duration>,
}

impl<K: Copy + Ord> Timers<K> {
    pub(super) const fn new() -> Timers<K> {
        Timers {
            queue: BTreeSet::new(),
            due: BTreeMap::new(),
        }
    }

    pub(super) fn set(&mut self, of: K, at: Option<Duration>) {
        let before = match at {
            Some(at) => self.due.insert(of, at),
            None => self.due.remove(&of),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.queue.remove(&(before, of));
        }
        if let Some(at) = at {
            self.queue.insert((at, of));
        }
    }

    pub(super) fn first(&self) -> Option<Duration> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// One that is due, which is set no longer.
    pub(super) fn pop(&mut self, now: Duration) -> Option<K> {
        let (at, of) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.set(of, None);
        Some(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_one_time_and_they_come_in_order() {
        let second = Duration::from_secs;
        let mut timers = Timers::new();
        timers.set('a', Some(second(3)));
        timers.set('b', Some(second(2)));
        timers.set('c', Some(second(1)));
        timers.set('a', Some(second(1)));
        timers.set('b', None);
        assert_eq!(timers.first(), Some(second(1)));
        assert_eq!(timers.pop(Duration::ZERO), None);
        assert_eq!(timers.pop(second(5)), Some('a'));
        assert_eq!(timers.pop(second(5)), Some('c'));
        assert_eq!(timers.pop(second(5)), None);
        assert_eq!(timers.first(), None);
    }
}
