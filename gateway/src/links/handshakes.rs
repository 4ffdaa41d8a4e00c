//! When to begin a handshake with a gateway, and at which of its addresses.
//!
//! One initiation goes to all addresses that are due: the receiver takes the first that arrives and
//! its replay rule refuses the others. An answer is matched to the last two initiations only, so
//! that their spacing grows.

use std::net::SocketAddr;
use std::time::Duration;

use super::dice::Dice;

/// Of one address, before it is tried rarely.
const TRIES: u32 = 5;
const RARELY: Duration = Duration::from_secs(60);
const SPACING: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(5),
];
/// A session that is silent for so long may be one that the other side has forgotten. It might not
/// be able to begin itself: after a restart with an earlier clock its initiations are refused.
const SILENT: Duration = Duration::from_secs(3);
/// An address that had a session is likely to have one again, and who sits behind a NAT can be
/// reached by nobody else: it is tried often while a restart may be going on, then less.
const RESTART: Duration = Duration::from_secs(30);
const RESTART_SPACING: Duration = Duration::from_secs(1);
const ABSENCE: Duration = Duration::from_secs(600);
const ABSENCE_SPACING: Duration = Duration::from_secs(5);
/// Reasons to begin again come from outside; they never make more initiations than this.
const RESTARTS_APART: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Handshakes {
    dice: Dice,
    addresses: Vec<Address>,
    state: State,
    /// Steps of [`SPACING`] taken.
    steps: usize,
    /// No initiation before this.
    not_before: Duration,
    restarted: Option<Duration>,
    /// A reason to begin again came too soon after another.
    again: bool,
    initiation: Option<Vec<SocketAddr>>,
}

#[derive(Clone, Copy, Debug)]
struct Address {
    address: SocketAddr,
    tries: u32,
    due: Duration,
    had_session: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Seeking { since: Duration },
    Alive { heard: Duration },
}

impl Handshakes {
    pub(crate) fn new(seed: u64, now: Duration) -> Handshakes {
        Handshakes {
            dice: Dice::new(seed),
            addresses: Vec::new(),
            state: State::Seeking { since: now },
            steps: 0,
            not_before: now,
            restarted: None,
            again: false,
            initiation: None,
        }
    }

    /// All that may be tried, the relay among them.
    pub(crate) fn handle_addresses(&mut self, addresses: &[SocketAddr], now: Duration) {
        let is_known = |address: &SocketAddr| self.addresses.iter().any(|a| a.address == *address);
        let has_new = !addresses.iter().all(is_known);
        self.addresses.retain(|a| addresses.contains(&a.address));
        for address in addresses {
            if !self.addresses.iter().any(|a| a.address == *address) {
                self.addresses.push(Address {
                    address: *address,
                    tries: 0,
                    due: now,
                    had_session: false,
                });
            }
        }
        if has_new {
            self.restart(now);
        }
    }

    pub(crate) fn handle_session(&mut self, source: SocketAddr, now: Duration) {
        self.state = State::Alive { heard: now };
        self.initiation = None;
        self.again = false;
        for address in &mut self.addresses {
            address.had_session |= address.address == source;
        }
    }

    /// Something was opened under the session.
    pub(crate) fn handle_heard(&mut self, now: Duration) {
        self.state = State::Alive { heard: now };
        self.initiation = None;
        self.again = false;
    }

    /// There is a reason to think that an initiation would be answered now.
    pub(crate) fn restart(&mut self, now: Duration) {
        match self.state {
            State::Alive { .. } => return,
            State::Seeking { .. } => {}
        }
        if self.restarted.is_some_and(|at| now < at + RESTARTS_APART) {
            self.again = true;
            return;
        }
        self.begin(now);
    }

    pub(crate) fn handle_timeout(&mut self, now: Duration) {
        if let State::Alive { heard } = self.state
            && now >= heard + SILENT
        {
            self.state = State::Seeking { since: now };
            self.begin(now);
        }
        if self.again && self.restarted.is_none_or(|at| now >= at + RESTARTS_APART) {
            self.begin(now);
        }
        if let State::Seeking { since } = self.state {
            self.initiate(since, now);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        match self.state {
            State::Alive { heard } => Some(heard + SILENT),
            State::Seeking { .. } => {
                let due = self.addresses.iter().map(|a| a.due).min()?;
                let again = self.restarted.filter(|_| self.again);
                let due = due.max(self.not_before);
                Some(again.map_or(due, |at| due.min(at + RESTARTS_APART)))
            }
        }
    }

    pub(crate) fn poll_initiation(&mut self) -> Option<Vec<SocketAddr>> {
        self.initiation.take()
    }

    fn begin(&mut self, now: Duration) {
        self.restarted = Some(now);
        self.again = false;
        self.steps = 0;
        self.not_before = now;
        for address in &mut self.addresses {
            address.tries = 0;
            address.due = now;
        }
    }

    fn initiate(&mut self, since: Duration, now: Duration) {
        if now < self.not_before || !self.addresses.iter().any(|a| a.due <= now) {
            return;
        }
        let step = SPACING[self.steps.min(SPACING.len() - 1)];
        self.steps += 1;
        let spacing = self.dice.jitter(step, 87);
        let often = self.dice.jitter(step.min(RESTART_SPACING), 87);
        let silent_for = now.saturating_sub(since);
        let mut to = Vec::new();
        for address in self.addresses.iter_mut().filter(|a| a.due <= now) {
            address.tries += 1;
            address.due = now + address.wait(spacing, often, silent_for);
            to.push(address.address);
        }
        self.not_before = now + often;
        self.initiation = Some(to);
    }
}

impl Address {
    fn wait(&self, spacing: Duration, often: Duration, silent_for: Duration) -> Duration {
        if self.had_session && silent_for < RESTART {
            often
        } else if self.tries < TRIES {
            spacing
        } else if self.had_session && silent_for < ABSENCE {
            ABSENCE_SPACING
        } else {
            RARELY
        }
    }
}

#[cfg(test)]
mod tests;
