//! What is known of one agent.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::key::PublicKey;
use proto::lan::{Ask, Mode, PORT, PairKey, Probe, Tag, is_usable, tag_of};

use super::budget::{Budget, Rate};
use super::{AgentAt, AgentStatus, GONE_AFTER, GONE_AFTER_LEAST, Own};

/// Probes on one way come no faster.
const PROBES_APART: Duration = Duration::from_millis(20);
/// Of one way; more than are sent between two answers.
const NONCES: usize = 16;
/// Questions that are taken. Agents leave ten milliseconds between two, and networks may make
/// several come together.
const ASKS: Rate = Rate::new(100, 20);
/// Answers to questions that prove nothing, from where the agent is known to be.
const UNPROVEN: Rate = Rate::new(1000, 1000);
/// That the agent has its other address counts for so long.
const SHOWN_FOR: Duration = Duration::from_secs(60);

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Old, or not for this.
    Stale,
    /// It names no answer of ours that went to where it comes from: answered, and nothing is made
    /// of it.
    Unproven,
    Fresh,
    /// Fresh, and it says something new.
    Changed,
}

pub(super) struct Agent {
    pub(super) at: AgentAt,
    pub(super) tag: Tag,
    /// Made when it is heard for the first time; `None` inside if the two keys make none.
    key: Option<Option<PairKey>>,
    /// Of our last answer.
    answered: u64,
    /// The highest of our answers that it has named.
    echoed: u64,
    heard: Option<HeardOf>,
    other: Option<Other>,
    /// An address of the family that its record does not name, and when what was sent there had
    /// reached it.
    shown: Option<(SocketAddr, Duration)>,
    /// The first answer that said that we leave.
    leaving: Option<u64>,
    asks: Budget,
    unproven: Budget,
    /// When it was told parts of our table.
    told: Option<Duration>,
    /// By way and family.
    probed: [Probed; 4],
}

/// Of the last question that proved fresh.
#[derive(Clone, Copy)]
struct HeardOf {
    boot: u64,
    number: u64,
    at: Duration,
    from: SocketAddr,
    interval: Duration,
    mode: Mode,
    passes: Option<bool>,
    other_lan: Option<IpAddr>,
}

/// Of the last question that only showed where the agent is besides.
#[derive(Clone, Copy)]
struct Other {
    boot: u64,
    number: u64,
    /// The answer that it named: each shows an address once.
    echoed: u64,
}

/// Probes that were answered.
#[derive(Default)]
struct Probed {
    at: Option<Duration>,
    /// The newest answer that one named.
    heard: u64,
    /// Of those that named it.
    nonces: VecDeque<u64>,
}

impl Agent {
    pub(super) fn new(who: &PublicKey, at: AgentAt) -> Agent {
        Agent {
            at,
            tag: tag_of(who),
            key: None,
            answered: 0,
            echoed: 0,
            heard: None,
            other: None,
            shown: None,
            leaving: None,
            asks: Budget::default(),
            unproven: Budget::default(),
            told: None,
            probed: Default::default(),
        }
    }

    pub(super) fn handle_place(&mut self, at: AgentAt) {
        if at.wireguard != self.at.wireguard {
            self.key = None;
        }
        self.at = at;
    }

    /// The exchange costs as much as fifty datagrams and is done once, whoever caused it.
    pub(super) fn key(&mut self, own: &Own, who: &PublicKey) -> Option<&PairKey> {
        let wireguard = &self.at.wireguard;
        self.key
            .get_or_insert_with(|| own.pair_key(who, wireguard))
            .as_ref()
    }

    /// `proof`: the answer that it names, if that went to where it comes from, a short while ago.
    pub(super) fn take(
        &mut self,
        ask: &Ask,
        proof: Option<u64>,
        from: SocketAddr,
        now: Duration,
    ) -> Taken {
        let former = self.heard;
        let is_same_boot = former.is_some_and(|former| former.boot == ask.boot);
        if is_same_boot && former.is_some_and(|former| ask.number <= former.number) {
            return Taken::Stale;
        }
        let Some(echo) = proof else {
            return Taken::Unproven;
        };
        // Another start of the agent must have heard something newer than the one before.
        let is_new_enough = if is_same_boot {
            echo >= self.echoed
        } else {
            echo > self.echoed
        };
        if !is_new_enough || !self.asks.take(ASKS, now) {
            return Taken::Stale;
        }
        self.echoed = echo;
        let mode = match (ask.mode, former) {
            // It begins anew, and its kernel goes on as it was.
            (Mode::Undecided, Some(former)) => former.mode,
            (Mode::Undecided | Mode::Direct | Mode::Vxlan, _) => ask.mode,
        };
        let before = former.map(|former| (former.mode, self.other_lan()));
        self.heard = Some(HeardOf {
            boot: ask.boot,
            number: ask.number,
            at: now,
            from,
            interval: Duration::from_millis(ask.interval.into()),
            mode,
            passes: ask.passes,
            other_lan: ask.other_lan.filter(|other| is_usable(*other)),
        });
        self.show(from, now);
        if before == Some((mode, self.other_lan())) {
            Taken::Fresh
        } else {
            Taken::Changed
        }
    }

    /// One that only shows that it has the address `from`.
    pub(super) fn take_other(
        &mut self,
        ask: &Ask,
        proof: Option<u64>,
        from: SocketAddr,
        now: Duration,
    ) -> Taken {
        let former = self.other;
        if former.is_some_and(|former| former.boot == ask.boot && ask.number <= former.number) {
            return Taken::Stale;
        }
        let is_new = |echo: &u64| former.is_none_or(|former| *echo > former.echoed);
        let Some(echoed) = proof.filter(is_new) else {
            return Taken::Unproven;
        };
        if !self.asks.take(ASKS, now) {
            return Taken::Stale;
        }
        let (boot, number) = (ask.boot, ask.number);
        self.other = Some(Other {
            boot,
            number,
            echoed,
        });
        let before = self.other_lan();
        self.show(from, now);
        if before == self.other_lan() {
            Taken::Fresh
        } else {
            Taken::Changed
        }
    }

    /// It has read what was sent there.
    fn show(&mut self, from: SocketAddr, now: Duration) {
        let recorded = self.at.lan;
        if recorded.is_some_and(|lan| lan.is_ipv4() != from.is_ipv4()) {
            self.shown = Some((from, now));
        }
    }

    /// Whether a question that proves nothing may be answered.
    pub(super) fn may_answer(&mut self, now: Duration) -> bool {
        self.unproven.take(UNPROVEN, now)
    }

    /// Whether it may be told parts of our table now.
    pub(super) fn may_tell(&mut self, apart: Duration, now: Duration) -> bool {
        let may = self.told.is_none_or(|at| now.saturating_sub(at) >= apart);
        if may {
            self.told = Some(now);
        }
        may
    }

    pub(super) const fn last_answer(&self) -> u64 {
        self.answered
    }

    pub(super) fn handle_answered(&mut self, number: u64, is_leaving: bool) {
        self.answered = number;
        if is_leaving {
            self.leaving.get_or_insert(number);
        }
    }

    pub(super) fn knows_we_leave(&self) -> bool {
        self.leaving.is_some_and(|first| self.echoed >= first)
    }

    pub(super) fn last_question(&self) -> Option<((u64, u64), SocketAddr)> {
        self.heard
            .map(|heard| ((heard.boot, heard.number), heard.from))
    }

    /// Whether it is known to be there: by its record, or because it was heard from there last.
    pub(super) fn is_at(&self, from: SocketAddr) -> bool {
        let heard = self.heard.map(|heard| heard.from);
        let shown = self.shown.map(|(shown, _)| shown);
        let recorded = self.at.lan.map(|lan| SocketAddr::new(lan, PORT));
        [heard, shown, recorded].contains(&Some(from))
    }

    pub(super) fn is_heard(&self, now: Duration, interval: Duration) -> bool {
        let limit = |heard: HeardOf| {
            let longest = interval.max(heard.interval.min(GONE_AFTER_LEAST));
            (longest * GONE_AFTER).max(GONE_AFTER_LEAST)
        };
        self.heard
            .is_some_and(|heard| now.saturating_sub(heard.at) < limit(heard))
    }

    /// Whether a probe of the way `index` is new, and does not come too soon. What was recorded
    /// changes nothing here, so that it does not take the place of a true one.
    pub(super) fn take_probe(&mut self, index: usize, probe: &Probe, now: Duration) -> bool {
        let Some(probed) = self.probed.get_mut(index) else {
            return false;
        };
        let is_old = probe.heard.number < probed.heard
            || probe.heard.number == probed.heard && probed.nonces.contains(&probe.nonce);
        let is_soon = |at: Duration| now.saturating_sub(at) < PROBES_APART;
        if is_old || probed.at.is_some_and(is_soon) {
            return false;
        }
        if probe.heard.number > probed.heard {
            probed.nonces.clear();
        }
        probed.nonces.truncate(NONCES - 1);
        probed.nonces.push_front(probe.nonce);
        (probed.at, probed.heard) = (Some(now), probe.heard.number);
        true
    }

    fn mode(&self) -> Mode {
        let of_record = if self.at.by_vxlan {
            Mode::Vxlan
        } else {
            Mode::Undecided
        };
        match self.heard.map(|heard| heard.mode) {
            Some(Mode::Direct) => Mode::Direct,
            Some(Mode::Vxlan) => Mode::Vxlan,
            Some(Mode::Undecided) | None => of_record,
        }
    }

    pub(super) fn is_by_vxlan(&self) -> bool {
        self.mode() == Mode::Vxlan
    }

    /// Its address in the family that its record does not name: as it says itself, and only if it
    /// has shown that what is sent there reaches it.
    pub(super) fn other_lan(&self) -> Option<IpAddr> {
        let says = self.heard.and_then(|heard| heard.other_lan)?;
        let shown = self.shown.map(|(shown, _)| shown);
        let is_other = self.at.lan?.is_ipv4() != says.is_ipv4();
        (is_other && shown == Some(SocketAddr::new(says, PORT))).then_some(says)
    }

    pub(super) const fn has_shown(&self) -> bool {
        self.shown.is_some()
    }

    /// What was shown too long ago is forgotten; whether there was anything.
    pub(super) fn forget(&mut self, now: Duration) -> bool {
        let is_old = |shown: &mut (SocketAddr, Duration)| now.saturating_sub(shown.1) >= SHOWN_FOR;
        self.shown.take_if(is_old).is_some()
    }

    pub(super) fn status(&self, who: &PublicKey, now: Duration, interval: Duration) -> AgentStatus {
        AgentStatus {
            identity: *who,
            name: self.at.name.clone(),
            address: self.heard.map(|heard| heard.from.ip()).or(self.at.lan),
            mode: self.mode(),
            is_heard: self.is_heard(now, interval),
            last_heard: self.heard.map(|heard| heard.at),
            interval: self.heard.map(|heard| heard.interval),
            passes: self.heard.and_then(|heard| heard.passes),
        }
    }
}
