//! The largest inner packet that a path carries, found by probes inside the tunnel (in the manner
//! of RFC 8899) and confirmed while large packets flow. ICMP plays no part.
//!
//! An echo proves that a size passes. Silence proves nothing, since probes get lost: a size counts
//! as too large after several, and is tried again later.

mod round;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::dice::Dice;
use super::paths::Rtt;
use round::Round;

/// What nearly every path carries, and what is used before anything is known.
const START: u16 = 1280;
/// Used where that does not pass either.
const LEAST: u16 = 1200;
/// Passes wherever anything does: tells a path that has shrunk from one that is silent.
const WITNESS: u16 = 100;

const CONFIRM_EVERY: Duration = Duration::from_secs(1);
const CONFIRM_TRIES: u16 = 3;
const TRIES_APART: Duration = Duration::from_millis(100);
/// What is waited for an echo before any round trip was measured.
const UNMEASURED: Duration = Duration::from_millis(300);

/// Until something larger is tried again, with and without large packets.
const GROW_BUSY: Duration = Duration::from_secs(30);
const GROW_IDLE: Duration = Duration::from_secs(600);
/// Until a path that answered nothing at all is asked again; doubles.
const UNANSWERED: Duration = Duration::from_secs(1);
const UNANSWERED_MOST: Duration = Duration::from_secs(60);

const MAX_OUTSTANDING: usize = 256;
const ECHO_WITHIN: Duration = Duration::from_secs(5);
const MAX_REMEMBERED: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MtuOutput {
    /// To be echoed at this size.
    Probe {
        to: SocketAddr,
        nonce: u64,
        size: u16,
    },
    Changed(u16),
}

#[derive(Debug)]
pub(crate) struct MtuSearch {
    dice: Dice,
    path: Option<SocketAddr>,
    /// Of paths that were in use before, the latest last.
    remembered: VecDeque<(SocketAddr, u16)>,
    mtu: u16,
    /// The largest size that was echoed in this search; 0 if none was.
    low: u16,
    /// The smallest above it that was not.
    high: Option<u16>,
    state: State,
    confirm: Option<Confirm>,
    confirmed: Duration,
    /// Whether anything was echoed since the present round or confirmation began.
    is_alive: bool,
    unanswered: Duration,
    rtt: Option<Rtt>,
    outstanding: VecDeque<Sent>,
    /// Large packets sealed in all, and when that changed last.
    large: u64,
    large_at: Option<Duration>,
    outputs: VecDeque<MtuOutput>,
}

#[derive(Debug)]
enum State {
    Searching(Round),
    /// Since then; the timer depends on whether large packets flow.
    Resting {
        since: Duration,
    },
    /// The path has shown nothing yet: only its first echo proves that somebody is there who wants
    /// what is sent.
    Held,
    /// Nothing was echoed at all.
    Waiting {
        until: Duration,
    },
}

/// Whether the size in use still passes.
#[derive(Debug)]
struct Confirm {
    tries: u16,
    due: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    nonce: u64,
    size: u16,
    at: Duration,
}

impl MtuSearch {
    pub(crate) fn new(seed: u64, now: Duration) -> MtuSearch {
        MtuSearch {
            dice: Dice::new(seed),
            path: None,
            remembered: VecDeque::new(),
            mtu: START,
            low: 0,
            high: None,
            state: State::Waiting { until: now },
            confirm: None,
            confirmed: now,
            is_alive: false,
            unanswered: UNANSWERED,
            rtt: None,
            outstanding: VecDeque::new(),
            large: 0,
            large_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// The path in use, and whether it ever echoed anything.
    pub(crate) fn handle_path(&mut self, path: SocketAddr, has_echoed: bool, now: Duration) {
        if self.path == Some(path) {
            return;
        }
        if let Some(former) = self.path
            && self.low > 0
        {
            self.remembered.retain(|(known, _)| *known != former);
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back((former, self.mtu));
        }
        self.path = Some(path);
        self.rtt = None;
        let known = self.remembered.iter().find(|(known, _)| *known == path);
        self.set_mtu(known.map_or(START, |(_, mtu)| *mtu));
        self.unanswered = UNANSWERED;
        if has_echoed {
            self.search(now);
        } else {
            self.confirm = None;
            self.outstanding.clear();
            self.low = 0;
            self.high = None;
            self.state = State::Held;
        }
    }

    /// The path in use has echoed something.
    pub(crate) fn handle_path_echoed(&mut self, now: Duration) {
        if matches!(self.state, State::Held) {
            self.search(now);
        }
    }

    /// Large packets that were sealed for this link since its start.
    pub(crate) fn handle_large(&mut self, total: u64, now: Duration) {
        if total == self.large {
            return;
        }
        self.large = total;
        self.large_at = Some(now);
        let is_resting = matches!(self.state, State::Resting { .. });
        if is_resting && self.confirm.is_none() && now >= self.confirmed + CONFIRM_EVERY {
            self.is_alive = false;
            self.confirm = Some(Confirm { tries: 0, due: now });
        }
    }

    /// Whether the nonce is of a probe of ours that is still waited for.
    pub(crate) fn handle_echo(&mut self, nonce: u64, now: Duration) -> bool {
        let at = self.outstanding.iter().position(|sent| sent.nonce == nonce);
        let Some(sent) = at.and_then(|at| self.outstanding.remove(at)) else {
            return false;
        };
        let trip = now.saturating_sub(sent.at);
        if trip > ECHO_WITHIN {
            return true;
        }
        self.rtt = Some(
            self.rtt
                .map_or_else(|| Rtt::first(trip), |old| old.with(trip)),
        );
        self.is_alive = true;
        self.unanswered = UNANSWERED;
        if sent.size >= LEAST {
            self.handle_passed(sent.size, now);
        }
        true
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if self
            .confirm
            .as_ref()
            .is_some_and(|confirm| now >= confirm.due)
        {
            self.confirm(now);
        }
        match &self.state {
            State::Searching(round) if now >= round.due => self.go_on(now),
            State::Resting { since } if now >= self.grow_at(*since) => self.grow(now),
            State::Waiting { until } if now >= *until && self.path.is_some() => self.search(now),
            State::Searching(_) | State::Resting { .. } | State::Waiting { .. } | State::Held => {}
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.path?;
        let next = match &self.state {
            State::Searching(round) => round.due,
            State::Resting { since } => self.grow_at(*since),
            State::Waiting { until } => *until,
            State::Held => return None,
        };
        let confirm = self.confirm.as_ref();
        Some(confirm.map_or(next, |confirm| next.min(confirm.due)))
    }

    pub(crate) fn poll_output(&mut self) -> Option<MtuOutput> {
        self.outputs.pop_front()
    }

    /// Inner, of the path in use.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    fn handle_passed(&mut self, size: u16, now: Duration) {
        if size >= self.mtu {
            self.confirm = None;
            self.confirmed = now;
        }
        self.low = self.low.max(size);
        if self.low > self.mtu {
            self.set_mtu(self.low);
        }
        let was_wrong = self.high.is_some_and(|high| high <= self.low);
        if was_wrong {
            self.high = None;
        }
        match &mut self.state {
            State::Searching(round) => {
                round.handle_passed(self.low);
                if round.is_answered() {
                    self.conclude(now);
                }
            }
            State::Resting { .. } | State::Waiting { .. } if was_wrong => self.grow(now),
            State::Resting { .. } | State::Waiting { .. } | State::Held => {}
        }
    }

    /// From the beginning, on what may be another path than before.
    fn search(&mut self, now: Duration) {
        self.low = 0;
        self.high = None;
        self.confirm = None;
        self.outstanding.clear();
        self.begin(Round::ladder(self.mtu, now));
    }

    fn grow(&mut self, now: Duration) {
        self.high = None;
        let round = Round::growth(self.low.max(LEAST), now);
        if round.is_answered() {
            self.state = State::Resting { since: now };
        } else {
            self.begin(round);
        }
    }

    fn begin(&mut self, round: Round) {
        self.is_alive = false;
        let now = round.due;
        self.state = State::Searching(round);
        self.go_on(now);
    }

    /// The next tries of the round, or its end.
    fn go_on(&mut self, now: Duration) {
        let wait = self
            .rtt
            .map_or(UNMEASURED, |rtt| rtt.limit().max(TRIES_APART));
        let State::Searching(round) = &mut self.state else {
            return;
        };
        match round.next_tries(wait, now) {
            Some(sizes) => {
                self.probe(WITNESS, now);
                for size in sizes {
                    self.probe(size, now);
                }
            }
            None => self.conclude(now),
        }
    }

    /// A round is over: halve what is left, or rest.
    fn conclude(&mut self, now: Duration) {
        let State::Searching(round) = &self.state else {
            return;
        };
        if self.low == 0 {
            self.conclude_nothing(now);
            return;
        }
        let open = round.smallest_open();
        self.high = [self.high, open].into_iter().flatten().min();
        if self.mtu > self.low {
            self.set_mtu(self.low);
        }
        match self
            .high
            .and_then(|high| Round::between(self.low, high, now))
        {
            Some(round) => self.begin(round),
            None => self.state = State::Resting { since: now },
        }
    }

    fn conclude_nothing(&mut self, now: Duration) {
        if self.is_alive {
            self.set_mtu(LEAST);
            self.state = State::Waiting {
                until: now + GROW_BUSY,
            };
        } else {
            self.state = State::Waiting {
                until: now + self.unanswered,
            };
            self.unanswered = (self.unanswered * 2).min(UNANSWERED_MOST);
        }
    }

    fn grow_at(&self, since: Duration) -> Duration {
        let is_busy = self.large_at.is_some_and(|at| at + GROW_BUSY >= since);
        since + if is_busy { GROW_BUSY } else { GROW_IDLE }
    }

    fn confirm(&mut self, now: Duration) {
        let Some(confirm) = &mut self.confirm else {
            return;
        };
        if confirm.tries < CONFIRM_TRIES {
            confirm.tries += 1;
            let last = self.rtt.map_or(UNMEASURED, Rtt::limit).max(TRIES_APART);
            let is_last = confirm.tries == CONFIRM_TRIES;
            confirm.due = now + if is_last { last } else { TRIES_APART };
            let copies = confirm.tries;
            self.probe(WITNESS, now);
            for _ in 0..copies {
                self.probe(self.mtu, now);
            }
            return;
        }
        self.confirm = None;
        if self.is_alive {
            self.handle_shrunk(now);
        }
    }

    /// Small packets pass and the size in use does not.
    fn handle_shrunk(&mut self, now: Duration) {
        let former = self.mtu;
        self.set_mtu(if former > START { START } else { LEAST });
        self.remembered.retain(|(path, _)| self.path != Some(*path));
        self.search(now);
    }

    fn probe(&mut self, size: u16, now: Duration) {
        let Some(to) = self.path else {
            return;
        };
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        let nonce = self.dice.next();
        self.outstanding.push_back(Sent {
            nonce,
            size,
            at: now,
        });
        self.outputs.push_back(MtuOutput::Probe { to, nonce, size });
    }

    fn set_mtu(&mut self, mtu: u16) {
        if self.mtu != mtu {
            self.mtu = mtu;
            self.outputs.push_back(MtuOutput::Changed(mtu));
        }
    }
}
