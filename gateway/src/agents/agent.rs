//! What is known of one agent.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::key::PublicKey;
use proto::lan::{Ask, Mode, PairKey, ProbeBy, is_usable};

use super::{AgentAt, AgentStatus, GONE_AFTER, GONE_AFTER_LEAST, Own, index};

/// Probes on one way come no faster.
const PROBES_APART: Duration = Duration::from_millis(20);

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Old, or not for this.
    Stale,
    /// It names no answer of ours: answered, and nothing is made of it.
    Unproven,
    Fresh,
    /// Fresh, and it says something new.
    Changed,
}

pub(super) struct Agent {
    pub(super) at: AgentAt,
    /// Made when it is heard for the first time; `None` inside if the two keys make none.
    key: Option<Option<PairKey>>,
    /// Of our last answer.
    answered: u64,
    /// The highest of our answers that it has named.
    echoed: u64,
    heard: Option<HeardOf>,
    /// The first answer that said that we leave.
    leaving: Option<u64>,
    probed: [Option<Duration>; 2],
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

impl Agent {
    pub(super) const fn new(at: AgentAt) -> Agent {
        Agent {
            at,
            key: None,
            answered: 0,
            echoed: 0,
            heard: None,
            leaving: None,
            probed: [None; 2],
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

    pub(super) fn take(&mut self, ask: &Ask, boot: u64, from: SocketAddr, now: Duration) -> Taken {
        let former = self.heard;
        let is_same_boot = former.is_some_and(|former| former.boot == ask.boot);
        if is_same_boot && former.is_some_and(|former| ask.number <= former.number) {
            return Taken::Stale;
        }
        let Some(heard) = ask.heard.filter(|heard| heard.boot == boot) else {
            return Taken::Unproven;
        };
        // Another start of the agent must have heard something newer than the one before.
        let is_new_enough = if is_same_boot {
            heard.number >= self.echoed
        } else {
            heard.number > self.echoed
        };
        if !is_new_enough || heard.number > self.answered {
            return Taken::Stale;
        }
        self.echoed = heard.number;
        let mode = match (ask.mode, former) {
            // It begins anew, and its kernel goes on as it was.
            (Mode::Undecided, Some(former)) => former.mode,
            (Mode::Undecided | Mode::Direct | Mode::Vxlan, _) => ask.mode,
        };
        let other_lan = ask
            .other_lan
            .filter(|other| is_usable(*other) && other.is_ipv4() != from.is_ipv4());
        self.heard = Some(HeardOf {
            boot: ask.boot,
            number: ask.number,
            at: now,
            from,
            interval: Duration::from_millis(ask.interval.into()),
            mode,
            passes: ask.passes,
            other_lan,
        });
        let says = former.map(|former| (former.mode, former.other_lan));
        if says == Some((mode, other_lan)) {
            Taken::Fresh
        } else {
            Taken::Changed
        }
    }

    /// The number of the answer that is sent now.
    pub(super) fn next_answer(&mut self, is_leaving: bool) -> u64 {
        self.answered += 1;
        if is_leaving {
            self.leaving.get_or_insert(self.answered);
        }
        self.answered
    }

    pub(super) fn knows_we_leave(&self) -> bool {
        self.leaving.is_some_and(|first| self.echoed >= first)
    }

    pub(super) fn last_question(&self) -> Option<((u64, u64), SocketAddr)> {
        self.heard
            .map(|heard| ((heard.boot, heard.number), heard.from))
    }

    /// Whether this is where it was heard last.
    pub(super) fn is_at(&self, from: SocketAddr) -> bool {
        self.heard.is_some_and(|heard| heard.from == from)
    }

    pub(super) fn is_heard(&self, now: Duration, interval: Duration) -> bool {
        let limit = |heard: HeardOf| {
            let longest = interval.max(heard.interval.min(GONE_AFTER_LEAST));
            (longest * GONE_AFTER).max(GONE_AFTER_LEAST)
        };
        self.heard
            .is_some_and(|heard| now.saturating_sub(heard.at) < limit(heard))
    }

    pub(super) fn may_probe(&mut self, by: ProbeBy, now: Duration) -> bool {
        let last = &mut self.probed[index(by)];
        let may = last.is_none_or(|last| now.saturating_sub(last) >= PROBES_APART);
        if may {
            *last = Some(now);
        }
        may
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

    pub(super) fn other_lan(&self) -> Option<IpAddr> {
        self.heard.and_then(|heard| heard.other_lan)
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
