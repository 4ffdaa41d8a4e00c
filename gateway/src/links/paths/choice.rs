//! Which candidate is in use, and when a relay is needed.

use std::net::SocketAddr;
use std::time::Duration;

use super::candidate::Candidate;
use super::{Cause, Outstanding, PathOutput, Paths, RELAY_AFTER, RELAY_BACK, Rtt, Search};
use crate::links::PathKind;

/// A quicker path is taken after so many looks, a second apart.
const LOOKS: u32 = 3;
const LOOK_APART: Duration = Duration::from_secs(1);
const CLEARLY: Duration = Duration::from_millis(5);

/// Lower is better; within one rank the round trip decides.
fn rank(kind: PathKind) -> u8 {
    match kind {
        PathKind::Lan => 0,
        PathKind::Record | PathKind::Observed => 1,
        PathKind::Relay => 2,
    }
}

impl Paths {
    pub(super) fn handle_answer(&mut self, sent: Outstanding, now: Duration) {
        let Some(in_use) = self.in_use else {
            self.use_path(sent.to, None, now);
            return;
        };
        if sent.to == in_use {
            // A probe from before the silence says nothing about it.
            if self
                .life
                .search
                .is_some_and(|search| sent.at >= search.since)
            {
                self.end_search(now);
            }
            return;
        }
        match self.life.search {
            Some(search) if sent.at >= search.since => self.handle_search_answer(sent.to, now),
            Some(_) | None => self.compare(sent.to, in_use, now),
        }
    }

    /// The first that answers a search is taken, unless the path in use could not have yet.
    fn handle_search_answer(&mut self, from: SocketAddr, now: Duration) {
        let Some(search) = &mut self.life.search else {
            return;
        };
        search.runner_up.get_or_insert(from);
        if self.runner_up_at().is_some_and(|at| now >= at) {
            self.take_runner_up(now);
        }
    }

    pub(super) fn runner_up_at(&self) -> Option<Duration> {
        let search = self.life.search?;
        search.runner_up?;
        Some(search.since + self.rtt().map_or(Duration::ZERO, Rtt::limit))
    }

    pub(super) fn take_runner_up(&mut self, now: Duration) {
        let runner_up = self.life.search.and_then(|search| search.runner_up);
        if let Some(to) = runner_up {
            self.use_path(to, self.in_use, now);
        }
    }

    /// A candidate has answered while the path in use lives.
    fn compare(&mut self, address: SocketAddr, in_use: SocketAddr, now: Duration) {
        let find = |address| self.candidates.iter().find(|c| c.address == address);
        let (Some(candidate), Some(current)) = (find(address), find(in_use)) else {
            return;
        };
        let better = rank(candidate.kind) < rank(current.kind);
        let worse = rank(candidate.kind) > rank(current.kind);
        let has_moved = candidate.is_new_source && is_left(current, candidate.since);
        let is_quicker = !worse && is_clearly_quicker(candidate.rtt, current.rtt);
        if better || (has_moved && !worse) {
            self.use_path(address, Some(in_use), now);
            return;
        }
        let Some(candidate) = self.candidate(address) else {
            return;
        };
        candidate.is_new_source = false;
        candidate.looks = if is_quicker { candidate.looks + 1 } else { 0 };
        if candidate.looks >= LOOKS {
            self.use_path(address, Some(in_use), now);
        } else if is_quicker {
            candidate.try_by(now + LOOK_APART);
            if let Some(current) = self.candidate(in_use) {
                current.try_by(now + LOOK_APART);
            }
        }
    }

    pub(super) fn use_path(&mut self, to: SocketAddr, from: Option<SocketAddr>, now: Duration) {
        let Some(candidate) = self.candidate(to) else {
            return;
        };
        candidate.looks = 0;
        candidate.is_new_source = false;
        let is_direct = candidate.is_direct();
        for other in &mut self.candidates {
            other.looks = 0;
        }
        if self.in_use != Some(to) {
            self.in_use = Some(to);
            self.in_use_since = now;
            // It may have been taken for what came from there only.
            if let Some(candidate) = self.candidate(to)
                && candidate.answered != Some(now)
            {
                candidate.try_at_once(now);
            }
            self.outputs.push_back(PathOutput::Use { from, to });
        }
        self.end_search(now);
        if is_direct {
            self.relay.punch_at = None;
        } else if self.relay.punch_at.is_none() {
            self.relay.missing_since.get_or_insert(now);
            self.relay.direct_since = None;
            self.relay.punch_at = Some(now);
        }
    }

    /// Whatever works is found at once.
    pub(super) fn search(&mut self, cause: Cause, now: Duration) {
        self.life.search = Some(Search {
            since: now,
            cause,
            runner_up: None,
        });
        if cause != Cause::Moved {
            self.relay.missing_since.get_or_insert(now);
        }
        self.probe_all(now);
    }

    /// Asks the path in use whether it lives still, and the others at the same moment.
    pub(super) fn doubt(&mut self, now: Duration) {
        if self.life.search.is_none() {
            self.search(Cause::Moved, now);
        }
    }

    pub(super) fn end_doubt(&mut self, now: Duration) {
        if self.cause() == Some(Cause::Moved) {
            self.end_search(now);
        }
    }

    pub(super) fn cause(&self) -> Option<Cause> {
        self.life.search.map(|search| search.cause)
    }

    /// In one direction at least, as far as is known.
    pub(super) fn is_silent(&self) -> bool {
        match self.cause() {
            Some(Cause::Silent | Cause::Deaf | Cause::Unanswered) => true,
            Some(Cause::Moved) | None => false,
        }
    }

    pub(super) fn end_search(&mut self, now: Duration) {
        self.life.search = None;
        let is_direct = self
            .in_use()
            .is_some_and(|(_, kind)| kind != PathKind::Relay);
        if is_direct {
            self.relay.missing_since = None;
            self.relay.direct_since.get_or_insert(now);
        }
    }

    pub(super) fn best_answered(&self) -> Option<SocketAddr> {
        let answered = self.candidates.iter().filter(|c| c.answered.is_some());
        let best = answered.min_by_key(|c| (rank(c.kind), c.rtt.map(|rtt| rtt.smoothed)));
        best.map(|c| c.address)
    }

    /// When it is wanted, and when it is given back.
    pub(super) fn relay_due(&self) -> (Option<Duration>, Option<Duration>) {
        let missing = self.relay.missing_since.filter(|_| !self.relay.is_wanted);
        let direct = self.relay.direct_since.filter(|_| self.relay.is_wanted);
        (
            missing.map(|at| at + RELAY_AFTER),
            direct.map(|at| at + RELAY_BACK),
        )
    }

    pub(super) fn judge_relay(&mut self, now: Duration) {
        let is_due = |at: Option<Duration>| at.is_some_and(|at| now >= at);
        if self
            .relay
            .missing_since
            .is_some_and(|at| now >= at + RELAY_AFTER)
        {
            self.relay.direct_since = None;
        }
        let (wanted, back) = self.relay_due();
        if is_due(wanted) {
            self.relay.is_wanted = true;
            self.outputs.push_back(PathOutput::Relay { wanted: true });
        } else if is_due(back) {
            self.relay.is_wanted = false;
            self.relay.direct_since = None;
            self.outputs.push_back(PathOutput::Relay { wanted: false });
        }
    }
}

/// Nothing came by the current path since the other side began to send from elsewhere.
fn is_left(current: &Candidate, since: Duration) -> bool {
    current.heard.is_none_or(|heard| heard <= since)
}

fn is_clearly_quicker(candidate: Option<Rtt>, current: Option<Rtt>) -> bool {
    let (Some(candidate), Some(current)) = (candidate, current) else {
        return false;
    };
    candidate.smoothed + CLEARLY <= current.smoothed
        && candidate.smoothed * 5 <= current.smoothed * 4
}
