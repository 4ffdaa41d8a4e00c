//! Addresses that the other side names or seems to send from. Nothing shows that it is there, so
//! few are kept, few probes go to them, and none to a foreign site.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::name::Name;

use super::candidate::{Candidate, is_usable, plain};
use super::{MAX_OBSERVED, PathKind, Paths, TELL_APART};
use crate::links::prefixes::Prefixes;

/// Probes to addresses that never answered: so many at once, then one each so often.
const PROBES: u32 = 12;
const PROBES_APART: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Newcomers {
    /// With the site of the other side.
    prefixes: Option<(Arc<Prefixes>, Name)>,
    /// Not counted yet by who asks.
    refused: u64,
    /// When all probes may go again.
    full_at: Duration,
}

impl Newcomers {
    /// Whether a probe may go now, or when it may.
    pub(super) fn take_probe(&mut self, now: Duration) -> Result<(), Duration> {
        let full_at = self.full_at.max(now);
        let next = full_at.saturating_sub(PROBES_APART * (PROBES - 1));
        if next > now {
            return Err(next);
        }
        self.full_at = full_at + PROBES_APART;
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
