//! One address by which a gateway may be reached, and what is known of it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::{CandidateState, PathKind};
use super::Rtt;

/// Between the five tries of a candidate: they go out at 0, 100, 300, 700 and 1500 ms.
const GAPS: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];
/// One that was told or seen and does not answer is forgotten.
const UNANSWERED: Duration = Duration::from_secs(120);
/// One that did answer, after it fell silent.
const SILENT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) address: SocketAddr,
    pub(super) kind: PathKind,
    pub(super) since: Duration,
    /// Tries of the present round.
    tries: usize,
    pub(super) due: Duration,
    /// Since it answered last.
    unanswered: u32,
    pub(super) answered: Option<Duration>,
    pub(super) heard: Option<Duration>,
    pub(super) rtt: Option<Rtt>,
    /// Times in a row that it was clearly quicker than the path in use.
    pub(super) looks: u32,
    /// The other side sends from there since lately: it may have moved.
    pub(super) is_new_source: bool,
}

impl Candidate {
    pub(super) fn new(address: SocketAddr, kind: PathKind, now: Duration) -> Candidate {
        Candidate {
            address,
            kind,
            since: now,
            tries: 0,
            due: now,
            unanswered: 0,
            answered: None,
            heard: None,
            rtt: None,
            looks: 0,
            is_new_source: false,
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.kind != PathKind::Relay
    }

    /// Nothing signed names it, and nothing that went there was echoed yet.
    pub(super) fn is_newcomer(&self) -> bool {
        self.kind == PathKind::Observed && self.answered.is_none()
    }

    pub(super) fn is_untried(&self) -> bool {
        self.unanswered == 0
    }

    /// What went there last was echoed, except for what may be under way.
    pub(super) fn is_answering(&self) -> bool {
        self.answered.is_some() && self.unanswered <= 1
    }

    /// So many tries in vain that chance is no explanation.
    pub(super) fn is_unanswering(&self) -> bool {
        self.unanswered >= GAPS.len() as u32
    }

    /// A new round of tries from now on.
    pub(super) fn try_at_once(&mut self, now: Duration) {
        self.tries = 0;
        self.due = now;
    }

    pub(super) fn try_by(&mut self, at: Duration) {
        self.due = self.due.min(at);
    }

    /// A probe goes out; `rest` is the time until the next after the last of a round.
    pub(super) fn handle_probed(&mut self, rest: Duration, now: Duration) {
        self.unanswered = self.unanswered.saturating_add(1);
        self.due = match GAPS.get(self.tries) {
            Some(gap) => now + self.rtt.map_or(*gap, |rtt| rtt.limit().max(*gap)),
            None => now + rest,
        };
        self.tries += 1;
    }

    /// What its round trip comes to with one more sample.
    pub(super) fn trip_with(&self, sample: Duration) -> Rtt {
        self.rtt.map_or_else(
            || Rtt::first(sample),
            |known| known.with_at_most_twice(sample),
        )
    }

    pub(super) fn handle_answered(&mut self, rtt: Rtt, rest: Duration, now: Duration) {
        self.rtt = Some(rtt);
        self.answered = Some(now);
        self.heard = Some(now);
        self.unanswered = 0;
        self.tries = 0;
        self.due = now + rest;
    }

    /// Observed ones only; those of a record stay as long as they are in it.
    pub(super) fn is_expired(&self, now: Duration) -> bool {
        match self.kind {
            PathKind::Observed => {}
            PathKind::Lan | PathKind::Record | PathKind::Relay => return false,
        }
        match self.answered.max(self.heard) {
            Some(last) => now >= last + SILENT,
            None => now >= self.since + UNANSWERED,
        }
    }

    /// For the choice of whom to forget when there are too many.
    pub(super) fn worth(&self) -> (Option<Duration>, Option<Duration>, Duration) {
        (self.answered, self.heard, self.since)
    }

    pub(super) fn state(&self) -> CandidateState {
        match self.rtt {
            Some(rtt) if self.unanswered <= GAPS.len() as u32 => {
                CandidateState::Answered { rtt: rtt.smoothed }
            }
            _ if self.unanswered == 0 => CandidateState::Untried,
            _ => CandidateState::Silent {
                tries: self.unanswered,
            },
        }
    }
}

/// Whether datagrams may be sent there at all, whoever owns it.
pub(super) fn is_usable(address: SocketAddr) -> bool {
    let is_special = match address.ip() {
        IpAddr::V4(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
        }
    };
    address.port() != 0 && !is_special
}

/// An IPv4 address in the form of IPv6 is that IPv4 address.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
