//! One gateway: questions to it, its answers, and whether it lives.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::key::PublicKey;
use proto::lan::{
    Answer, Ask, Heard, INTERVAL, LONGEST_INTERVAL, Mode, PORT, Probe, ProbeBy, Sites, is_usable,
    probe_address,
};

use super::GatewayAt;
use super::choice::{GatewayHealth, GatewayState, Standing};
use super::other::{Other, Way};
use super::table::Table;
use super::trial::Trial;

/// Intervals without an answer after which a gateway is dead.
const DEAD_AFTER: u32 = 4;
/// Questions that must have been in vain by then; they are asked twice as fast from the first on.
const IN_VAIN: u32 = 4;
/// As gateways do with each other.
const HOLD_DOWN: Duration = Duration::from_secs(30);
/// Who is silent for long is asked less.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(10);
const RARE: Duration = Duration::from_millis(200);
/// Questions fall on multiples of this, so that those to several gateways go together.
const GRID: Duration = Duration::from_millis(25);
/// An answer that calls for another question gets it no sooner after the last.
const APART: Duration = Duration::from_millis(10);
/// Above that no more is looked at until the next question: its answer comes within a millisecond,
/// and nobody sends so many before it.
const MOST_WRONG: u32 = 256;
/// Only parts of tables are longer.
const LONG: usize = 256;
/// Questions that an answer may still come to.
const REMEMBERED: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    /// Something that a choice rests on.
    Changed,
    /// The same, and there is more to ask for.
    AskAgain,
}

/// What questions tell of this node.
pub(super) struct Says {
    pub(super) boot: u64,
    pub(super) mode: Mode,
    pub(super) other_lan: Option<IpAddr>,
}

pub(super) struct Gateway {
    pub(super) at: GatewayAt,
    who: PublicKey,
    epoch: Duration,
    /// Of the last question.
    number: u64,
    /// Questions by number and time.
    sent: VecDeque<(u64, Duration)>,
    asked_at: Option<Duration>,
    next: Duration,
    /// The newest question that was answered.
    answered: u64,
    remote: Option<Remote>,
    table: Table,
    /// Datagrams in its name whose MAC was wrong, since the last question or probe.
    wrong: u32,
    life: Life,
    hold: Hold,
    rtt: Option<Duration>,
    direct: Trial,
    vxlan: Trial,
    other: Other,
    was_known: bool,
    /// Probes have found that the way in use does not pass.
    fails: bool,
    /// Or that it does.
    passes: bool,
    /// It told all it reaches, once.
    did_answer: bool,
}

/// The last answer.
#[derive(Clone, Copy)]
struct Remote {
    boot: u64,
    number: u64,
    interval: Duration,
    leaving: bool,
    forwards: bool,
    other_lan: Option<IpAddr>,
}

/// Silence, counted only while this process runs as it should.
struct Life {
    is_heard: bool,
    silence: Duration,
    /// Up to when silence is counted.
    counted: Duration,
    /// Until when we meant to look again.
    planned: Duration,
    in_vain: u32,
    last_heard: Option<Duration>,
}

#[derive(Default)]
struct Hold {
    failed: Option<Duration>,
    until: Option<Duration>,
    /// Whether it counted when things were looked at last.
    was_held: bool,
}

impl Gateway {
    pub(super) fn new(who: PublicKey, at: GatewayAt, epoch: Duration, now: Duration) -> Gateway {
        Gateway {
            at,
            who,
            epoch,
            number: 0,
            sent: VecDeque::new(),
            asked_at: None,
            next: now,
            answered: 0,
            remote: None,
            table: Table::default(),
            wrong: 0,
            life: Life {
                is_heard: false,
                silence: Duration::ZERO,
                counted: now,
                planned: now,
                in_vain: 0,
                last_heard: None,
            },
            hold: Hold::default(),
            rtt: None,
            direct: Trial::default(),
            vxlan: Trial::default(),
            other: Other::default(),
            was_known: false,
            fails: false,
            passes: false,
            did_answer: false,
        }
    }

    /// Its record may have changed.
    pub(super) fn handle_place(&mut self, at: GatewayAt, now: Duration) {
        if at.address != self.at.address || at.is_near != self.at.is_near {
            self.direct.restart();
            self.vxlan.restart();
            self.next = self.next.min(now);
        }
        self.at = at;
    }

    pub(super) fn handle_mode(&mut self, now: Duration) {
        self.vxlan.restart();
        // Told at once: packets to this node go another way now.
        self.next = self.next.min(now);
    }

    /// Only what answers a question of this start, and was not taken before, counts.
    pub(super) fn handle_answer(&mut self, answer: &Answer, boot: u64, now: Duration) -> News {
        let of_this_start = answer.to.boot == boot && answer.to.number <= self.number;
        let sent = self.sent.iter().find(|(of, _)| *of == answer.to.number);
        let Some((_, sent)) = sent.copied().filter(|_| of_this_start) else {
            return News::Nothing;
        };
        let is_fresh = answer.to.number > self.answered;
        let former = self.remote;
        let is_same_boot = former.is_some_and(|former| former.boot == answer.boot);
        let is_newer = former.is_some_and(|former| answer.number > former.number);
        // Of the same process it may be one that was sent unasked; of another it must be fresh.
        if !(is_fresh && !is_same_boot || is_newer && is_same_boot) {
            return News::Nothing;
        }
        if !is_fresh {
            return self.handle_unasked(answer, now);
        }
        let remote = Remote {
            boot: answer.boot,
            number: answer.number,
            interval: Duration::from_millis(answer.interval.into())
                .clamp(INTERVAL, LONGEST_INTERVAL),
            leaving: answer.leaving,
            forwards: answer.forwards,
            other_lan: answer
                .other_lan
                .filter(|other| is_usable(*other) && other.is_ipv4() != self.at.address.is_ipv4()),
        };
        self.remote = Some(remote);
        if !is_same_boot {
            self.table.handle_boot();
            if former.is_some_and(|former| former.leaving) {
                self.hold.handle_goodbye();
            }
        }
        self.table.handle_version(answer.table);
        let is_back = self.handle_heard(answer.to.number, sent, now);
        let is_other = former.is_none_or(|former| {
            former.leaving != remote.leaving
                || former.forwards != remote.forwards
                || former.other_lan != remote.other_lan
        });
        if former.is_some_and(|former| former.forwards) && !remote.forwards {
            // What was found before says nothing now.
            self.direct.hurry(now);
            self.vxlan.hurry(now);
        }
        let leaves = remote.leaving && !former.is_some_and(|former| former.leaving);
        if !is_same_boot || leaves {
            self.ask_again(now)
        } else if is_back || is_other {
            News::Changed
        } else {
            News::Nothing
        }
    }

    /// Nobody asked, and so it comes as often as a liar likes: only the end is told so.
    fn handle_unasked(&mut self, answer: &Answer, now: Duration) -> News {
        let Some(remote) = &mut self.remote else {
            return News::Nothing;
        };
        remote.number = answer.number;
        if !answer.leaving || std::mem::replace(&mut remote.leaving, true) {
            return News::Nothing;
        }
        self.ask_again(now)
    }

    /// The table comes with the next answer, and who leaves waits until we know. A liar does not
    /// make us ask without end.
    fn ask_again(&mut self, now: Duration) -> News {
        let soonest = self.asked_at.map_or(now, |at| at + APART);
        self.next = self.next.min(soonest.max(now));
        News::AskAgain
    }

    /// Whether a datagram of this length is worth a MAC.
    pub(super) const fn may_hold(&self, length: usize) -> bool {
        self.wrong < MOST_WRONG && (length <= LONG || self.table.is_collected())
    }

    pub(super) const fn handle_wrong(&mut self) {
        self.wrong = self.wrong.saturating_add(1);
    }

    /// Whether it was not heard before.
    fn handle_heard(&mut self, number: u64, sent: Duration, now: Duration) -> bool {
        self.answered = number;
        // One that is sent unasked answers the last question a second time.
        self.sent.retain(|(of, _)| *of >= number);
        let rtt = now.saturating_sub(sent);
        self.rtt = Some(self.rtt.map_or(rtt, |mean| (mean * 7 + rtt) / 8));
        let life = &mut self.life;
        (life.silence, life.counted, life.in_vain) = (Duration::ZERO, now, 0);
        life.last_heard = Some(now);
        !std::mem::replace(&mut life.is_heard, true)
    }

    pub(super) fn handle_sites(&mut self, sites: Sites) -> News {
        let is_of_boot = self.remote.is_some_and(|remote| remote.boot == sites.boot);
        if is_of_boot && self.table.handle_part(sites) {
            self.did_answer = true;
            News::Changed
        } else {
            News::Nothing
        }
    }

    pub(super) fn handle_probe_answer(&mut self, probe: Probe, now: Duration) -> News {
        let trial = match probe.by {
            ProbeBy::Direct => &mut self.direct,
            ProbeBy::Vxlan => &mut self.vxlan,
        };
        if trial.handle_answer(probe.nonce, now) {
            News::Changed
        } else {
            News::Nothing
        }
    }

    /// Counts the silence until now. Whether something changed that a choice rests on.
    pub(super) fn judge(&mut self, now: Duration) -> bool {
        let is_held = self.hold.is_held(now);
        let hold_ended = std::mem::replace(&mut self.hold.was_held, is_held) != is_held;
        let is_known = self.is_known();
        let is_news = std::mem::replace(&mut self.was_known, is_known) != is_known;
        let life = &mut self.life;
        // However long we slept, it is no more than what was planned and a little.
        let planned = life.planned.saturating_sub(life.counted);
        let since = now.saturating_sub(life.counted);
        life.silence += since.min(planned + planned / 2);
        life.counted = now.max(life.counted);
        let interval = self.remote.map_or(INTERVAL, |remote| remote.interval);
        // Timers end a little early or late.
        let limit = interval * DEAD_AFTER - interval / 10;
        let is_silent = self.life.silence >= limit && self.life.in_vain >= IN_VAIN;
        if self.life.is_heard && is_silent {
            self.life.is_heard = false;
            self.direct.pause();
            self.vxlan.pause();
            if !self.remote.is_some_and(|remote| remote.leaving) {
                self.hold.handle_failure(now);
            }
            return true;
        }
        hold_ended || is_news
    }

    /// Failures since then were none of its own.
    pub(super) fn forgive(&mut self, since: Duration) {
        if self.hold.failed.is_some_and(|failed| failed >= since) {
            self.hold.handle_goodbye();
        }
    }

    /// The question that has fallen due.
    pub(super) fn poll_ask(&mut self, says: &Says, now: Duration) -> Option<Ask> {
        if now < self.next {
            return None;
        }
        if self.number > self.answered {
            self.life.in_vain = self.life.in_vain.saturating_add(1);
        }
        self.number += 1;
        self.wrong = 0;
        if self.sent.len() >= REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        self.asked_at = Some(now);
        let pace = self.pace();
        self.next = self.on_grid(now + pace).max(now + GRID);
        self.life.planned = self.next;
        let (table, parts) = self.table.asked();
        Some(Ask {
            boot: says.boot,
            number: self.number,
            interval: u16::try_from(pace.as_millis()).unwrap_or(u16::MAX),
            heard: self.remote.map(|remote| remote.heard()),
            table,
            parts,
            mode: says.mode,
            passes: self.passed(says.mode),
            other_lan: says.other_lan,
            shows_other: false,
        })
    }

    /// The question from our other address to the gateway's, if it has fallen due.
    pub(super) fn poll_other(&mut self, says: &Says, now: Duration) -> Option<(SocketAddr, Ask)> {
        let remote = self.remote.filter(|_| self.life.is_heard);
        let way = remote.and_then(|remote| {
            let (own, gateway) = (says.other_lan?, remote.other_lan?);
            let boot = remote.boot;
            (own.is_ipv4() == gateway.is_ipv4()).then_some(Way { own, gateway, boot })
        });
        self.other.handle_way(way, now);
        let (to, number, heard) = self.other.poll(now)?;
        let ask = Ask {
            boot: says.boot,
            number,
            interval: 0,
            heard,
            table: 0,
            parts: 0,
            mode: says.mode,
            passes: None,
            other_lan: None,
            shows_other: true,
        };
        Some((to, ask))
    }

    /// From there.
    pub(super) fn handle_other(&mut self, answer: &Answer, boot: u64, now: Duration) {
        self.other.handle_answer(answer, boot, now);
    }

    pub(super) fn is_other(&self, from: SocketAddr) -> bool {
        self.other.address() == Some(from)
    }

    const fn passed(&self, mode: Mode) -> Option<bool> {
        match mode {
            Mode::Undecided | Mode::Direct => self.direct.health().passed,
            Mode::Vxlan => self.vxlan.health().passed,
        }
    }

    /// A failure that was found while probes had no route yet says nothing; one that was found
    /// before stays until one passes. Whether it changed.
    pub(super) fn look_at_way(&mut self, mode: Mode, is_proven: bool) -> bool {
        let was_last = self.is_last();
        let passed = self.passed(mode);
        self.passes = passed == Some(true);
        self.fails = match passed {
            Some(true) | None => false,
            Some(false) => self.fails || is_proven,
        };
        self.is_last() != was_last
    }

    fn pace(&self) -> Duration {
        let interval = self.remote.map_or(INTERVAL, |remote| remote.interval);
        let life = &self.life;
        if life.is_heard && life.in_vain == 0 {
            interval
        } else if life.is_heard {
            (interval / 2).max(GRID)
        } else if life.silence < GIVEN_UP_AFTER {
            INTERVAL
        } else {
            RARE
        }
    }

    fn on_grid(&self, at: Duration) -> Duration {
        let since = at.saturating_sub(self.epoch).as_nanos();
        at.saturating_sub(Duration::from_nanos((since % GRID.as_nanos()) as u64))
    }

    /// Probes that have fallen due, with where they go.
    pub(super) fn poll_probes(
        &mut self,
        mode: Mode,
        now: Duration,
        mut nonce: impl FnMut() -> u64,
    ) -> (bool, Vec<(SocketAddr, Probe)>) {
        let Some(remote) = self.remote.filter(|_| self.may_probe()) else {
            return (false, Vec::new());
        };
        let heard = remote.heard();
        let ways = [
            (ProbeBy::Direct, self.at.is_near, &mut self.direct),
            (ProbeBy::Vxlan, mode == Mode::Vxlan, &mut self.vxlan),
        ];
        let (mut has_changed, mut due) = (false, Vec::new());
        for (by, is_tried, trial) in ways {
            if !is_tried {
                continue;
            }
            let (is_news, nonce) = trial.poll(now, &mut nonce);
            has_changed |= is_news;
            if let Some(nonce) = nonce {
                self.wrong = 0;
                let to = probe_address(&self.who, by, self.at.address.ip());
                due.push((SocketAddr::new(to, PORT), Probe { nonce, by, heard }));
            }
        }
        (has_changed, due)
    }

    /// While it does not answer questions, or does not forward yet, silence says nothing of the way.
    /// One that did once tells what it reaches.
    fn may_probe(&self) -> bool {
        let began = || self.table.sites().is_some_and(|sites| !sites.is_empty());
        self.life.is_heard && (self.remote.is_some_and(|remote| remote.forwards) || began())
    }

    /// What it says of its own kernel counts until a probe says better.
    fn is_last(&self) -> bool {
        self.fails || !self.passes && self.remote.is_some_and(|remote| !remote.forwards)
    }

    pub(super) fn poll_timeout(&self, with_probes: bool, now: Duration) -> Duration {
        let hold = self.hold.until.filter(|until| now < *until);
        let probes = [self.direct.poll_timeout(), self.vxlan.poll_timeout()];
        let may_probe = with_probes && self.may_probe();
        let probes = probes.into_iter().flatten().filter(|_| may_probe);
        let other = self.other.poll_timeout();
        probes
            .chain(hold)
            .chain(other)
            .fold(self.next, Duration::min)
    }

    pub(super) const fn is_heard(&self) -> bool {
        self.life.is_heard
    }

    fn is_leaving(&self) -> bool {
        self.remote.is_some_and(|remote| remote.leaving)
    }

    /// It told all it reaches, or had time to answer.
    const fn is_known(&self) -> bool {
        if self.life.is_heard {
            self.table.sites().is_some()
        } else {
            self.life.in_vain >= IN_VAIN
        }
    }

    pub(super) fn standing(&self, now: Duration) -> Standing<'_> {
        Standing {
            answers: self.life.is_heard && self.table.sites().is_some(),
            did_answer: self.did_answer,
            is_known: self.is_known(),
            fails: self.is_last(),
            is_leaving: self.is_leaving(),
            is_held: self.hold.is_held(now),
            sites: self.table.sites(),
        }
    }

    pub(super) fn health(&self, now: Duration) -> GatewayHealth {
        let state = if self.life.last_heard.is_none() {
            GatewayState::Never
        } else if self.is_leaving() {
            GatewayState::Leaving
        } else if !self.life.is_heard {
            GatewayState::Silent
        } else if self.hold.is_held(now) {
            GatewayState::HeldDown
        } else {
            GatewayState::Up
        };
        GatewayHealth {
            name: self.at.name.clone(),
            address: self.at.address.ip(),
            state,
            rtt: self.rtt,
            other_lan: self.remote.and_then(|remote| remote.other_lan),
            reaches: self.table.sites().map_or(0, |sites| sites.len()),
            forwards: self.remote.is_some_and(|remote| remote.forwards),
            last_heard: self.life.last_heard,
            held_until: self.hold.until.filter(|until| now < *until),
            direct: self.direct.health(),
            vxlan: self.vxlan.health(),
        }
    }
}

impl Remote {
    const fn heard(self) -> Heard {
        Heard {
            boot: self.boot,
            number: self.number,
        }
    }
}

impl Hold {
    fn handle_failure(&mut self, now: Duration) {
        self.failed = Some(now);
        self.until = Some(now + HOLD_DOWN);
        self.was_held = true;
    }

    /// Nothing is held against it.
    fn handle_goodbye(&mut self) {
        *self = Hold::default();
    }

    fn is_held(&self, now: Duration) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}
