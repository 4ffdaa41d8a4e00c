//! Between siblings: which sites each has lost, so that packets for them go where they can go on.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::control::{Control, Lost, site_tag};
use proto::name::Name;

const EVERY: Duration = Duration::from_secs(1);
/// A burst of changes is told together.
const APART: Duration = Duration::from_millis(20);
/// Tags of nine bytes in a message.
const TAGS: usize = 100;

/// What we tell siblings.
#[derive(Default)]
pub(crate) struct Told {
    /// By tag.
    lost: BTreeSet<u64>,
    reached: BTreeSet<u64>,
    is_changed: bool,
    last: Option<Duration>,
}

impl Told {
    /// `None`: there is no such site any more.
    pub(crate) fn handle_site(&mut self, site: &Name, is_lost: Option<bool>) {
        let tag = site_tag(site.as_str());
        let was_alone = self.reached.is_empty();
        let is_changed = match is_lost {
            Some(true) => self.lost.insert(tag),
            Some(false) | None => self.lost.remove(&tag),
        };
        match is_lost {
            Some(false) => self.reached.insert(tag),
            Some(true) | None => self.reached.remove(&tag),
        };
        self.is_changed |= is_changed || was_alone != self.reached.is_empty();
    }

    pub(crate) const fn handle_new_sibling(&mut self) {
        self.is_changed = true;
    }

    /// Whether there is a site with this tag.
    pub(crate) fn knows(&self, tag: u64) -> bool {
        self.lost.contains(&tag) || self.reached.contains(&tag)
    }

    pub(crate) fn poll(&mut self, now: Duration) -> Vec<Control> {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.last = Some(now);
        self.is_changed = false;
        self.messages()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let wait = if self.is_changed { APART } else { EVERY };
        Some(self.last.map_or(Duration::ZERO, |last| last + wait))
    }

    fn messages(&self) -> Vec<Control> {
        if self.reached.is_empty() {
            return vec![Control::Lost(Lost {
                all: true,
                span: (0, u64::MAX),
                sites: Vec::new(),
            })];
        }
        let tags: Vec<u64> = self.lost.iter().copied().collect();
        let count = tags.len().div_ceil(TAGS).max(1);
        let mut from = 0;
        (0..count)
            .map(|at| {
                let sites: Vec<u64> = tags.iter().skip(at * TAGS).take(TAGS).copied().collect();
                let is_last = at + 1 == count;
                let end = sites.last().copied().filter(|_| !is_last);
                let span = (from, end.unwrap_or(u64::MAX));
                from = span.1.saturating_add(1);
                Control::Lost(Lost {
                    all: false,
                    span,
                    sites,
                })
            })
            .collect()
    }
}

/// What one sibling told us.
#[derive(Default)]
pub(crate) struct Hears {
    all: bool,
    lost: BTreeSet<u64>,
    has_told: bool,
}

impl Hears {
    /// Whether anything changed. Of what we do not know nothing is kept: it would be endless.
    pub(crate) fn handle_lost(&mut self, said: &Lost, sites: &Told) -> bool {
        let (from, to) = said.span;
        if from > to {
            return false;
        }
        let before: BTreeSet<u64> = self.lost.range(from..=to).copied().collect();
        let said_sites = said.sites.iter().copied();
        let after: BTreeSet<u64> = said_sites
            .filter(|tag| (from..=to).contains(tag) && sites.knows(*tag))
            .collect();
        let changed = before != after || self.all != said.all || !self.has_told;
        if changed {
            self.lost.retain(|tag| !(from..=to).contains(tag));
            self.lost.extend(after);
            self.all = said.all;
            self.has_told = true;
        }
        changed
    }

    /// Another boot, or the link is gone: what was told counts no more.
    pub(crate) fn forget(&mut self) {
        *self = Hears::default();
    }

    pub(crate) fn reaches(&self, site: &Name) -> bool {
        self.has_told && !self.all && !self.lost.contains(&site_tag(site.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(number: usize) -> Name {
        format!("site-{number}").parse().unwrap()
    }

    fn said(controls: Vec<Control>) -> Vec<Lost> {
        controls
            .into_iter()
            .map(|control| {
                let Control::Lost(lost) = control else {
                    panic!("{control:?}");
                };
                lost
            })
            .collect()
    }

    #[test]
    fn any_number_of_lost_sites_arrives() {
        for count in [0, 1, 99, 100, 101, 1000] {
            let mut told = Told::default();
            told.handle_site(&site(3000), Some(false));
            (0..count).for_each(|number| told.handle_site(&site(number), Some(true)));
            let mut hears = Hears::default();
            assert!(!hears.reaches(&site(2000)), "nothing was told yet");
            for lost in said(told.poll(Duration::ZERO)) {
                let bytes = proto::codec::encode(&Control::Lost(lost.clone())).unwrap();
                assert!(bytes.len() <= proto::control::MAX_MESSAGE);
                hears.handle_lost(&lost, &told);
            }
            assert!((0..count).all(|number| !hears.reaches(&site(number))));
            assert!(hears.reaches(&site(2000)));
        }
    }

    #[test]
    fn a_site_found_again_is_told_at_once_and_the_rest_once_a_second() {
        let mut told = Told::default();
        told.handle_site(&site(3000), Some(false));
        told.handle_site(&site(1), Some(true));
        let mut hears = Hears::default();
        let first = said(told.poll(Duration::ZERO));
        assert!(hears.handle_lost(&first[0], &told));
        assert!(told.poll(Duration::from_millis(900)).is_empty());
        told.handle_site(&site(1), Some(false));
        let second = said(told.poll(Duration::from_millis(901)));
        assert!(hears.handle_lost(&second[0], &told));
        assert!(hears.reaches(&site(1)));
        let third = said(told.poll(Duration::from_millis(1901)));
        assert!(!hears.handle_lost(&third[0], &told));
    }

    #[test]
    fn who_reaches_nobody_says_so_in_one_message() {
        let mut told = Told::default();
        (0..1000).for_each(|number| told.handle_site(&site(number), Some(true)));
        let said = said(told.poll(Duration::ZERO));
        assert_eq!(said.len(), 1);
        let mut hears = Hears::default();
        hears.handle_lost(&said[0], &told);
        assert!(!hears.reaches(&site(5000)));
    }

    #[test]
    fn made_up_sites_fill_no_memory() {
        let mut told = Told::default();
        told.handle_site(&site(1), Some(false));
        let mut hears = Hears::default();
        for round in 0..100 {
            let made_up = (0..100).map(|number| round * 100 + number);
            let lost = Lost {
                all: false,
                span: (round * 100, round * 100 + 99),
                sites: made_up.collect(),
            };
            hears.handle_lost(&lost, &told);
        }
        assert_eq!(hears.lost.len(), 0);
        assert!(hears.reaches(&site(1)));
    }
}
