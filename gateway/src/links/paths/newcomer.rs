//! Addresses that the other side names or seems to send from. Nothing shows that it is there, so
//! few are kept, few probes go to them, and none to a foreign site.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::name::Name;

use super::candidate::{Candidate, is_usable, plain};
use super::{Cause, MAX_OBSERVED, PathKind, Paths, TELL_APART};
use crate::links::dice::Dice;
use crate::links::prefixes::Prefixes;

/// Probes of one link to addresses that never answered.
const OF_LINK: Bucket = Bucket::new(12, Duration::from_secs(1));
/// Of these, first ones to an address that need not wait for those of other links: many gateways
/// that come at once are found at once.
const FIRST: Bucket = Bucket::new(4, Duration::from_secs(16));
/// Of all links together, so that many of them make no flood.
const OF_ALL: Bucket = Bucket::new(256, Duration::from_micros(15_625));
/// Whom the others left nothing asks again within this.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Who is to be sent to without having echoed does so by then.
const LEAP: Duration = Duration::from_secs(1);
/// After one who did not, the next has to echo first.
const LEAPS_APART: Duration = Duration::from_secs(10);

/// A path that was taken only because something came from there while the one before was silent.
/// What came may be forged: nothing but an echo shows who is there.
#[derive(Debug, Default)]
pub(super) struct Leap {
    /// Where to, where from and when; until the echo.
    under_way: Option<(SocketAddr, Option<SocketAddr>, Duration)>,
    failed: Option<Duration>,
}

impl Leap {
    pub(super) fn back_at(&self) -> Option<Duration> {
        self.under_way.map(|(_, _, at)| at + LEAP)
    }

    pub(super) fn handle_echo(&mut self, from: SocketAddr) {
        if self.under_way.is_some_and(|(to, ..)| to == from) {
            *self = Leap::default();
        }
    }
}

/// So many at once, then one each so often.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    size: u32,
    apart: Duration,
    /// When all may go again.
    full_at: Duration,
}

impl Bucket {
    const fn new(size: u32, apart: Duration) -> Bucket {
        Bucket {
            size,
            apart,
            full_at: Duration::ZERO,
        }
    }

    /// When the next may go.
    fn next(&self, now: Duration) -> Duration {
        let full_at = self.full_at.max(now);
        full_at.saturating_sub(self.apart * (self.size - 1))
    }

    fn take(&mut self, now: Duration) -> bool {
        let has_one = self.next(now) <= now;
        if has_one {
            self.full_at = self.full_at.max(now) + self.apart;
        }
        has_one
    }
}

/// What the links of a gateway may send together to addresses that never answered.
#[derive(Debug)]
pub(crate) struct Strangers(Bucket);

impl Default for Strangers {
    fn default() -> Strangers {
        Strangers(OF_ALL)
    }
}

#[derive(Debug)]
pub(super) struct Newcomers {
    /// With the site of the other side.
    prefixes: Option<(Arc<Prefixes>, Name)>,
    /// Not counted yet by who asks.
    refused: u64,
    probes: Bucket,
    first: Bucket,
}

impl Default for Newcomers {
    fn default() -> Newcomers {
        Newcomers {
            prefixes: None,
            refused: 0,
            probes: OF_LINK,
            first: FIRST,
        }
    }
}

impl Newcomers {
    /// Whether a probe may go now, or when to ask again. That of the path in use, of which there is
    /// one, waits for no other link's.
    pub(super) fn take_probe(
        &mut self,
        candidate: &Candidate,
        is_in_use: bool,
        strangers: &mut Strangers,
        (dice, now): (&mut Dice, Duration),
    ) -> Result<(), Duration> {
        let next = self.probes.next(now);
        if next > now {
            return Err(next);
        }
        let may_go =
            is_in_use || (candidate.is_untried() && self.first.take(now)) || strangers.0.take(now);
        if !may_go {
            return Err(now + dice.jitter(ASK_AGAIN, 50));
        }
        self.probes.take(now);
        Ok(())
    }

    fn check(&mut self, is_allowed: impl Fn(&Prefixes, &Name) -> bool) -> bool {
        let prefixes = self.prefixes.as_ref();
        let is_allowed = prefixes.is_none_or(|(prefixes, site)| is_allowed(prefixes, site));
        self.refused += u64::from(!is_allowed);
        is_allowed
    }
}

impl Paths {
    /// Who owns what, and of which site the other side is.
    pub(crate) fn handle_prefixes(&mut self, prefixes: &Arc<Prefixes>, site: &Name) {
        let in_use = self.in_use;
        self.candidates.retain(|c| {
            c.kind != PathKind::Observed
                || in_use == Some(c.address)
                || prefixes.may_send(site, c.address.ip())
        });
        self.newcomers.prefixes = Some((prefixes.clone(), site.clone()));
    }

    /// Addresses in foreign prefixes since this was asked last.
    pub(crate) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.newcomers.refused)
    }

    /// The other side tells where it may be found, and probes us at this moment.
    pub(crate) fn handle_candidates(&mut self, told: &[SocketAddr], now: Duration) {
        if self.asked.is_some_and(|at| now < at + TELL_APART) {
            return;
        }
        self.asked = Some(now);
        for address in told.iter().take(MAX_OBSERVED) {
            let address = plain(*address);
            let ip = address.ip();
            if is_usable(address)
                && self.candidate(address).is_none()
                && self.newcomers.check(|all, site| all.may_tell(site, ip))
            {
                self.observe(address, now);
            }
        }
        self.probe_all(now);
        if self.told.is_none_or(|at| now >= at + TELL_APART) {
            self.tell(now);
        }
    }

    /// Something was opened that came from there; whether that is news and worth a probe.
    pub(super) fn see(&mut self, source: SocketAddr, now: Duration) -> bool {
        let is_new = self.candidate(source).is_none()
            && is_usable(source)
            && self
                .newcomers
                .check(|all, site| all.may_send(site, source.ip()));
        if is_new {
            self.observe(source, now);
        }
        is_new
    }

    /// A source is taken at once, on trial unless it has echoed before. One at a time: while one is
    /// on trial and for some time after it failed, others have to echo first.
    pub(super) fn leap(&mut self, to: SocketAddr, now: Duration) {
        let from = self.in_use;
        if self.has_echoed(to) {
            self.use_path(to, from, now);
            return;
        }
        let has_failed = self.leap.failed.is_some_and(|at| now < at + LEAPS_APART);
        if self.leap.under_way.is_none() && !has_failed {
            self.leap.under_way = Some((to, from, now));
            self.use_path(to, from, now);
        }
    }

    /// Nobody has echoed there: back to what did once, and whatever echoes first is taken.
    pub(super) fn leap_back(&mut self, now: Duration) {
        let Some((to, from, _)) = self.leap.under_way.take() else {
            return;
        };
        self.leap.failed = Some(now);
        if self.in_use != Some(to) {
            return;
        }
        let former = from.filter(|from| self.has_echoed(*from));
        if let Some(back) = former.or_else(|| self.best_answered()) {
            self.use_path(back, Some(to), now);
        }
        self.search(Cause::Unanswered, now);
    }

    /// Takes an address that was seen or told; the least worth of its like makes room.
    fn observe(&mut self, address: SocketAddr, now: Duration) {
        let in_use = self.in_use;
        let observed = |c: &&Candidate| c.kind == PathKind::Observed;
        if self.candidates.iter().filter(observed).count() >= MAX_OBSERVED {
            let others = self.candidates.iter().filter(observed);
            let least = others
                .filter(|c| Some(c.address) != in_use)
                .min_by_key(|c| c.worth());
            let Some(least) = least.map(|c| c.address) else {
                return;
            };
            self.candidates.retain(|c| c.address != least);
        }
        self.candidates
            .push(Candidate::new(address, PathKind::Observed, now));
    }
}
