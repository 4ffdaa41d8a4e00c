//! By which address a gateway is reached: its candidates, how each of them answers, and which one
//! is in use.
//!
//! Each side chooses where it sends to. A candidate is believed when it has echoed a nonce that
//! went there; where a datagram seemed to come from proves nothing, but is worth a probe.

mod candidate;
mod choice;
mod newcomer;
mod rtt;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::dice::Dice;
use super::{CandidateState, PathKind};
use candidate::{Candidate, is_usable, plain};
pub(crate) use newcomer::Strangers;
use newcomer::{Leap, Newcomers};
pub(crate) use rtt::Rtt;

const MAX_CANDIDATES: usize = 16;
/// Of these at most so many are observed or told, so that a record's always find room.
const MAX_OBSERVED: usize = 6;
const MAX_OUTSTANDING: usize = 64;
/// A later echo is too old to say anything.
const ECHO_WITHIN: Duration = Duration::from_secs(5);

/// Between rounds of probes of a candidate that is not in use.
const MINUTE: Duration = Duration::from_secs(60);
/// The same while the relay is in use, and while nothing is heard.
const URGENT: Duration = Duration::from_secs(10);
/// Of the path in use, for its round trip.
const IN_USE: Duration = Duration::from_secs(15);
const IN_USE_BUSY: Duration = Duration::from_secs(2);
const BUSY: Duration = Duration::from_millis(100);

/// A candidate that was quiet for so long and is heard again is one that the other side has turned
/// to. Longer than any interval of hellos.
const SPEAKS_ANEW: Duration = Duration::from_secs(3);

const RELAY_AFTER: Duration = Duration::from_millis(1500);
const RELAY_BACK: Duration = Duration::from_secs(60);
/// What the other side tells is tried, and ours told, at most so often.
const TELL_APART: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathOutput {
    /// To be echoed, as small as it can be.
    Probe {
        to: SocketAddr,
        nonce: u64,
    },
    /// The path in use is another one.
    Use {
        from: Option<SocketAddr>,
        to: SocketAddr,
    },
    Relay {
        wanted: bool,
    },
    /// Tell the other side where we can be found, so that both probe at the same moment.
    TellCandidates,
}

#[derive(Debug)]
pub(crate) struct Paths {
    dice: Dice,
    candidates: Vec<Candidate>,
    in_use: Option<SocketAddr>,
    /// Since when.
    in_use_since: Duration,
    leap: Leap,
    has_session: bool,
    life: Life,
    relay: Relay,
    outstanding: VecDeque<Outstanding>,
    told: Option<Duration>,
    /// When the other side's addresses were tried because it asked.
    asked: Option<Duration>,
    seen_as: Option<SocketAddr>,
    newcomers: Newcomers,
    outputs: VecDeque<PathOutput>,
}

/// What is known of the life of the path in use.
#[derive(Debug)]
struct Life {
    heard: Duration,
    /// Between the other side's hellos.
    interval: Duration,
    /// Between ours, and until when the longer one before still counts.
    own_interval: Duration,
    own_interval_was: (Duration, Duration),
    search: Option<Search>,
    /// The end of the last silence: what was asked before it says nothing of the path's length.
    silent_until: Duration,
}

impl Life {
    fn hear(&mut self, now: Duration) {
        if now >= self.heard + silence(self.interval) {
            self.silent_until = now;
        }
        self.heard = now;
    }
}

/// The path in use may be dead: everything is probed.
#[derive(Clone, Copy, Debug)]
struct Search {
    since: Duration,
    cause: Cause,
    /// Answered before the path in use could have.
    runner_up: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Nothing is heard.
    Silent,
    /// The other side says that it does not hear us.
    Deaf,
    /// Probes of it are not echoed, though something is heard: what counts as heard may have come
    /// by a path that is not in use.
    Unanswered,
    /// The other side has begun to use another path, maybe because this one is dead. A doubt only.
    Moved,
}

#[derive(Debug)]
struct Relay {
    is_wanted: bool,
    /// Since when no direct path works.
    missing_since: Option<Duration>,
    direct_since: Option<Duration>,
    /// When both sides probe next.
    punch_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    nonce: u64,
    to: SocketAddr,
    at: Duration,
}

impl Paths {
    pub(crate) fn new(seed: u64, now: Duration) -> Paths {
        Paths {
            dice: Dice::new(seed),
            candidates: Vec::new(),
            in_use: None,
            in_use_since: now,
            leap: Leap::default(),
            has_session: false,
            life: Life {
                heard: now,
                interval: Duration::from_secs(1),
                own_interval: Duration::from_secs(1),
                own_interval_was: (Duration::ZERO, now),
                search: None,
                silent_until: Duration::ZERO,
            },
            relay: Relay {
                is_wanted: false,
                missing_since: Some(now),
                direct_since: None,
                punch_at: None,
            },
            outstanding: VecDeque::new(),
            told: None,
            asked: None,
            seen_as: None,
            newcomers: Newcomers::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What the record says now.
    pub(crate) fn handle_record(
        &mut self,
        candidates: &[SocketAddr],
        lan: Option<IpAddr>,
        now: Duration,
    ) {
        let kind_of = |address: SocketAddr| match lan.map(|lan| lan.to_canonical()) {
            Some(lan) if lan == address.ip() => PathKind::Lan,
            Some(_) | None => PathKind::Record,
        };
        let named: Vec<SocketAddr> = candidates
            .iter()
            .map(|address| plain(*address))
            .filter(|address| is_usable(*address))
            .take(MAX_CANDIDATES - MAX_OBSERVED - 1)
            .collect();
        // One that works is not left because a record no longer says it.
        let in_use = self.in_use;
        self.candidates.retain(|c| match c.kind {
            PathKind::Lan | PathKind::Record => {
                named.contains(&c.address) || in_use == Some(c.address)
            }
            PathKind::Observed | PathKind::Relay => true,
        });
        for candidate in &mut self.candidates {
            if candidate.is_direct() && !named.contains(&candidate.address) {
                candidate.kind = PathKind::Observed;
            }
        }
        for address in named {
            match self.candidate(address) {
                Some(known) if known.is_direct() => known.kind = kind_of(address),
                Some(_) => {}
                None => self
                    .candidates
                    .push(Candidate::new(address, kind_of(address), now)),
            }
        }
    }

    /// The relayed path, as an address of this machine; `None` if there is none any more.
    pub(crate) fn handle_relay(&mut self, address: Option<SocketAddr>, now: Duration) {
        let former = self.candidates.iter().find(|c| !c.is_direct());
        let former = former.map(|c| c.address);
        if former == address {
            return;
        }
        self.candidates.retain(Candidate::is_direct);
        if let Some(address) = address {
            self.candidates.retain(|c| c.address != address);
            self.candidates
                .push(Candidate::new(address, PathKind::Relay, now));
        }
        if self.in_use.is_some() && self.in_use == former {
            self.in_use = None;
            let next = address.or_else(|| self.best_answered());
            if let Some(next) = next {
                self.use_path(next, former, now);
            }
        }
    }

    /// Our own addresses have changed.
    pub(crate) fn handle_own_addresses(&mut self, now: Duration) {
        if self.has_session {
            self.tell(now);
        }
    }

    /// A new session was confirmed from there.
    pub(crate) fn handle_session(&mut self, source: SocketAddr, now: Duration) {
        let source = plain(source);
        let is_first = !self.has_session || self.is_silent();
        self.has_session = true;
        self.see(source, now);
        if let Some(candidate) = self.candidate(source) {
            candidate.heard = Some(now);
            candidate.try_at_once(now);
            if is_first {
                self.use_path(source, self.in_use, now);
            }
        }
        self.handle_heard(now);
        if is_first {
            self.probe_all(now);
        }
    }

    /// A datagram was opened under the session from there.
    pub(crate) fn handle_source(&mut self, source: SocketAddr, now: Duration) {
        let source = plain(source);
        let in_use = self.in_use;
        let is_known = self.candidate(source).is_some();
        if self.see(source, now) {
            if let Some(candidate) = self.candidate(source) {
                candidate.is_new_source = true;
            }
            // Asked at the same moment, so that an old path that still works is not left.
            let in_use = in_use.and_then(|address| self.candidate(address));
            if let Some(candidate) = in_use {
                candidate.try_at_once(now);
            }
        }
        let Some(candidate) = self.candidate(source) else {
            return;
        };
        let last = candidate.heard.replace(now);
        let is_worth_it = !is_known || candidate.is_answering();
        if in_use == Some(source) {
            self.end_doubt(now);
        } else if in_use.is_none() || (self.is_silent() && is_worth_it) {
            self.leap(source, now);
        } else if is_known && last.is_none_or(|last| now >= last + SPEAKS_ANEW) {
            self.doubt(now);
        }
        self.handle_heard(now);
    }

    /// Something was opened under the session, wherever from.
    pub(crate) fn handle_heard(&mut self, now: Duration) {
        self.life.hear(now);
        if self.cause() == Some(Cause::Silent) {
            self.end_search(now);
        }
    }

    /// `heard_age`: since the other side heard us last, as it says.
    pub(crate) fn handle_hello(
        &mut self,
        interval: Duration,
        heard_age: Option<Duration>,
        own_interval: Duration,
        now: Duration,
    ) {
        self.life.interval = interval.clamp(BUSY / 2, Duration::from_secs(10));
        if own_interval != self.life.own_interval {
            self.life.own_interval_was = (self.life.own_interval, now + Duration::from_secs(2));
            self.life.own_interval = own_interval;
        }
        self.handle_heard(now);
        let (former, until) = self.life.own_interval_was;
        let own = if now < until {
            own_interval.max(former)
        } else {
            own_interval
        };
        // What was heard before the present path was taken says nothing of it.
        let path_age = now.saturating_sub(self.in_use_since);
        let trip = self.rtt().map_or(BUSY, Rtt::limit);
        let deaf_for = heard_age
            .unwrap_or(Duration::MAX)
            .min(path_age.saturating_sub(trip));
        let is_deaf = deaf_for > silence(own);
        match self.cause() {
            Some(Cause::Deaf) if !is_deaf => self.end_search(now),
            Some(Cause::Moved) | None if is_deaf && self.in_use.is_some() => {
                self.search(Cause::Deaf, now);
            }
            Some(_) | None => {}
        }
    }

    /// Whether the nonce is of a probe of ours that is still waited for.
    pub(crate) fn handle_echo(&mut self, nonce: u64, seen_as: SocketAddr, now: Duration) -> bool {
        let at = self.outstanding.iter().position(|sent| sent.nonce == nonce);
        let Some(sent) = at.and_then(|at| self.outstanding.remove(at)) else {
            return false;
        };
        if now > sent.at + ECHO_WITHIN {
            return true;
        }
        self.seen_as = Some(plain(seen_as));
        self.life.hear(now);
        let rest = self.rest_of(sent.to);
        let is_telling = sent.at >= self.life.silent_until;
        let Some(candidate) = self.candidate(sent.to) else {
            return true;
        };
        let trip = now.saturating_sub(sent.at);
        let known = candidate.rtt.filter(|_| !is_telling);
        let trip = known.unwrap_or_else(|| candidate.trip_with(trip));
        candidate.handle_answered(trip, rest, now);
        self.leap.handle_echo(sent.to);
        self.handle_answer(sent, now);
        true
    }

    pub(crate) fn handle_timeout(&mut self, strangers: &mut Strangers, now: Duration) {
        if self.silent_at().is_some_and(|at| now >= at) {
            self.search(Cause::Silent, now);
        }
        if self.runner_up_at().is_some_and(|at| now >= at) {
            self.take_runner_up(now);
        }
        if self.leap.back_at().is_some_and(|at| now >= at) {
            self.leap_back(now);
        }
        self.judge_relay(now);
        if self.relay.punch_at.is_some_and(|at| now >= at) {
            self.relay.punch_at = Some(now + URGENT);
            self.probe_all(now);
            self.tell(now);
        }
        if self.has_session {
            self.probe_due(strangers, now);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        let probes = self.candidates.iter().map(|c| c.due).min();
        let (wanted, back) = self.relay_due();
        [
            probes.filter(|_| self.has_session),
            self.silent_at(),
            self.runner_up_at(),
            self.leap.back_at(),
            wanted,
            back,
            self.relay.punch_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(crate) fn poll_output(&mut self) -> Option<PathOutput> {
        self.outputs.pop_front()
    }

    pub(crate) fn in_use(&self) -> Option<(SocketAddr, PathKind)> {
        let in_use = self.in_use?;
        let candidate = self.candidates.iter().find(|c| c.address == in_use)?;
        Some((in_use, candidate.kind))
    }

    /// Of the path in use.
    pub(crate) fn rtt(&self) -> Option<Rtt> {
        let in_use = self.in_use?;
        self.candidates.iter().find(|c| c.address == in_use)?.rtt
    }

    pub(crate) fn has_echoed(&self, address: SocketAddr) -> bool {
        let mut candidates = self.candidates.iter();
        candidates.any(|c| c.address == address && c.answered.is_some())
    }

    /// Of ours, as the other side saw it last.
    pub(crate) fn seen_as(&self) -> Option<SocketAddr> {
        self.seen_as
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.candidates.iter().map(|c| c.address).collect()
    }

    pub(crate) fn candidates(&self) -> Vec<(SocketAddr, PathKind, CandidateState)> {
        let candidates = self.candidates.iter();
        candidates.map(|c| (c.address, c.kind, c.state())).collect()
    }

    fn candidate(&mut self, address: SocketAddr) -> Option<&mut Candidate> {
        self.candidates.iter_mut().find(|c| c.address == address)
    }

    fn tell(&mut self, now: Duration) {
        self.told = Some(now);
        self.outputs.push_back(PathOutput::TellCandidates);
    }

    fn probe_all(&mut self, now: Duration) {
        for candidate in &mut self.candidates {
            candidate.try_at_once(now);
        }
    }

    fn probe_due(&mut self, strangers: &mut Strangers, now: Duration) {
        let in_use = self.in_use;
        self.candidates
            .retain(|c| Some(c.address) == in_use || !c.is_expired(now));
        for at in 0..self.candidates.len() {
            if self.candidates[at].due > now {
                continue;
            }
            let to = self.candidates[at].address;
            if in_use == Some(to) && self.candidates[at].is_unanswering() && !self.is_silent() {
                self.search(Cause::Unanswered, now);
            }
            let candidate = &mut self.candidates[at];
            if candidate.is_newcomer()
                && let Err(next) = self.newcomers.take_probe(
                    candidate,
                    in_use == Some(to),
                    strangers,
                    (&mut self.dice, now),
                )
            {
                candidate.due = next;
                continue;
            }
            let rest = self.rest_of(to);
            let rest = self.dice.jitter(rest, 87);
            let nonce = self.dice.next();
            self.candidates[at].handle_probed(rest, now);
            if self.outstanding.len() >= MAX_OUTSTANDING {
                self.outstanding.pop_front();
            }
            self.outstanding
                .push_back(Outstanding { nonce, to, at: now });
            self.outputs.push_back(PathOutput::Probe { to, nonce });
        }
    }

    /// Between rounds of probes of a candidate.
    fn rest_of(&self, address: SocketAddr) -> Duration {
        let is_busy = self.life.interval <= BUSY || self.life.own_interval <= BUSY;
        let is_relayed = self
            .in_use()
            .is_some_and(|(_, kind)| kind == PathKind::Relay);
        if self.in_use == Some(address) {
            if is_busy { IN_USE_BUSY } else { IN_USE }
        } else if is_relayed || self.is_silent() {
            URGENT
        } else {
            MINUTE
        }
    }

    fn silent_at(&self) -> Option<Duration> {
        let is_watched = self.has_session && self.in_use.is_some() && !self.is_silent();
        is_watched.then(|| self.life.heard.max(self.in_use_since) + silence(self.life.interval))
    }
}

/// After which a path is asked whether it lives: far before the link counts as down.
fn silence(interval: Duration) -> Duration {
    (interval * 3).min(interval + Duration::from_millis(200))
}
