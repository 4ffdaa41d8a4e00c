//! The agents of this site, as this gateway hears them: it answers their questions, tells which
//! sites it reaches, and says in time that it stops.
//!
//! Pure: time and the socket are the caller's. Nothing is sent unasked save that we leave; nothing
//! is remembered of a question that does not prove fresh by naming an answer of ours that went to
//! where it comes from, so that what was once recorded on the wire moves nothing, and an agent can
//! have nothing sent to others.

mod agent;
mod budget;
mod numbers;
mod table;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use boringtun::x25519;
use proto::key::{MeshId, PublicKey, WireguardKey};
use proto::lan::{
    Answer, Ask, Heard, INTERVAL, LONGEST_INTERVAL, Message, Mode, PairKey, ProbeBy, Site, Tag,
    may_be_ask, probe_address, sender_of, tag_of,
};
use proto::name::Name;

use agent::{Agent, Taken};
use budget::{Budget, Rate};
use numbers::Numbers;
use table::Table;

/// Above this many agents each is asked to ask less often.
const AT_FULL_PACE: usize = 100;
/// Who is silent for so many intervals, and so long, does not count among those.
const GONE_AFTER: u32 = 10;
const GONE_AFTER_LEAST: Duration = Duration::from_secs(2);
/// How often it is looked who is gone, while there are any.
const LOOK: Duration = Duration::from_secs(1);
/// That we leave is said again so often to those that have not heard it.
const SAY_AGAIN: Duration = Duration::from_millis(25);
/// They are waited for so long.
const LEAVE_WITHIN: Duration = Duration::from_millis(600);
/// After the last one heard it, its kernel needs a moment, and packets are on their way.
const STRAGGLERS: Duration = Duration::from_millis(150);
/// A question that fetches parts of a table fetches so many at once.
const PARTS_AT_ONCE: usize = 16;
/// What comes in the name of agents from where none of them is known to be, and is wrong.
const WRONG: Rate = Rate::new(20_000, 2000);
/// Answers to questions from there that prove nothing.
const TO_STRANGERS: Rate = Rate::new(2000, 2000);

/// This gateway, in this start.
pub struct Own {
    pub mesh: MeshId,
    pub identity: PublicKey,
    pub wireguard: x25519::StaticSecret,
    /// Random, another one after every start.
    pub boot: u64,
    /// Random, and known to nobody else.
    pub secret: u64,
}

/// An agent of this site, as its verified record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAt {
    pub name: Name,
    pub wireguard: WireguardKey,
    pub lan: Option<IpAddr>,
    /// Its record says that it is reached by VXLAN.
    pub by_vxlan: bool,
}

/// One agent, to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentStatus {
    pub identity: PublicKey,
    pub name: Name,
    /// Where it was heard from, else what its record says.
    pub address: Option<IpAddr>,
    pub mode: Mode,
    /// It answers now.
    pub is_heard: bool,
    pub last_heard: Option<Duration>,
    /// What it keeps between questions.
    pub interval: Option<Duration>,
    pub passes: Option<bool>,
}

/// An agent that is reached by VXLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    pub name: Name,
    /// Of its signed record.
    pub lan: IpAddr,
    /// Of the other family, as it says and has shown itself, if no other node has it.
    pub other: Option<IpAddr>,
}

/// What was refused, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// From nobody known here.
    pub unknown: u64,
    /// Sent by another than it claims, or cannot be read.
    pub forged: u64,
    /// Old, or sent twice, or too soon.
    pub stale: u64,
    /// There were too many of those.
    pub limited: u64,
}

pub struct Agents {
    own: Own,
    tag: Tag,
    agents: BTreeMap<PublicKey, Agent>,
    by_tag: HashMap<Tag, PublicKey>,
    /// LAN addresses that signed records name.
    recorded: BTreeSet<IpAddr>,
    /// Our own, at most one a family.
    lan: Vec<IpAddr>,
    table: Table,
    forwards: bool,
    interval: Duration,
    next_look: Option<Duration>,
    leave: Option<Leave>,
    numbers: Numbers,
    wrong: Budget,
    to_strangers: Budget,
    refused: Refused,
    has_changed: bool,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// Our own end.
struct Leave {
    next: Duration,
    until: Duration,
    /// When the last agent heard it.
    heard_at: Duration,
    is_heard: bool,
}

impl Agents {
    pub fn new(own: Own) -> Agents {
        Agents {
            tag: tag_of(&own.identity),
            numbers: Numbers::new(own.boot, own.secret),
            own,
            agents: BTreeMap::new(),
            by_tag: HashMap::new(),
            recorded: BTreeSet::new(),
            lan: Vec::new(),
            table: Table::default(),
            forwards: false,
            interval: INTERVAL,
            next_look: None,
            leave: None,
            wrong: Budget::default(),
            to_strangers: Budget::default(),
            refused: Refused::default(),
            has_changed: false,
            transmits: VecDeque::new(),
        }
    }

    /// Who there is; `recorded` are the LAN addresses of all nodes of the site.
    pub fn handle_roster(
        &mut self,
        known: BTreeMap<PublicKey, AgentAt>,
        recorded: BTreeSet<IpAddr>,
    ) {
        self.agents.retain(|who, _| known.contains_key(who));
        for (who, at) in known {
            match self.agents.get_mut(&who) {
                Some(agent) => agent.handle_place(at),
                None => {
                    self.agents.insert(who, Agent::new(&who, at));
                }
            }
        }
        let tags = self.agents.keys().map(|who| (tag_of(who), *who));
        self.by_tag = tags.collect();
        self.recorded = recorded;
        self.has_changed = true;
    }

    /// This node's own addresses in its site, at most one a family.
    pub fn handle_lan(&mut self, lan: &[IpAddr]) {
        if self.lan != lan {
            self.lan = lan.to_vec();
        }
    }

    /// What we reach, and whether our kernel forwards. Agents read it with their next question.
    pub fn handle_sites(&mut self, sites: Vec<Site>, forwards: bool) {
        self.forwards = forwards;
        self.table.handle_sites(sites);
    }

    /// Whatever came to the socket.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Duration) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let Some((who, is_there, message)) = self.open(from, datagram, now) else {
            return;
        };
        let taken = match message {
            Message::Ask(ask) if ask.shows_other => self.take_other(&who, &ask, from, now),
            Message::Ask(ask) => self.take(&who, &ask, from, now),
            Message::Answer(_)
            | Message::Sites(_)
            | Message::Probe(_)
            | Message::ProbeAnswer(_) => Taken::Stale,
        };
        if taken == Taken::Stale {
            self.refused.stale += 1;
        }
        if matches!(taken, Taken::Stale | Taken::Unproven) && !is_there {
            self.wrong.charge(WRONG, now);
        }
    }

    /// One look-up and one MAC at most before anything is believed.
    ///
    /// From where an agent is known to be all is looked at, since others may use its name and its
    /// address to have it shut out; the MAC costs no more than to read the datagram did. What comes
    /// from elsewhere has a budget, which agents do not use once they were heard.
    fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Duration,
    ) -> Option<(PublicKey, bool, Message)> {
        let tag = sender_of(datagram).filter(|_| may_be_ask(datagram));
        let who = tag.and_then(|tag| self.by_tag.get(&tag));
        let Some((who, agent)) = who.and_then(|who| Some((*who, self.agents.get_mut(who)?))) else {
            self.refused.unknown += 1;
            return None;
        };
        let is_there = agent.is_at(from);
        if !is_there && !self.wrong.allows(WRONG, now) {
            self.refused.limited += 1;
            return None;
        }
        let opened = agent
            .key(&self.own, &who)
            .and_then(|key| Message::open(datagram, key).ok());
        if opened.is_none() {
            self.refused.forged += 1;
            if !is_there {
                self.wrong.charge(WRONG, now);
            }
        }
        opened.map(|message| (who, is_there, message))
    }

    fn take(&mut self, who: &PublicKey, ask: &Ask, from: SocketAddr, now: Duration) -> Taken {
        let Some(agent) = self.agents.get_mut(who) else {
            return Taken::Stale;
        };
        let was_heard = agent.is_heard(now, self.interval);
        let proof = ask.heard;
        let proof = proof.and_then(|heard| self.numbers.proven(heard, agent.tag, from, now));
        let taken = agent.take(ask, proof, from, now);
        match taken {
            Taken::Stale => return taken,
            Taken::Unproven => {
                self.answer_stranger(who, ask, from, now);
                return taken;
            }
            Taken::Fresh => {}
            Taken::Changed => self.has_changed = true,
        }
        self.answer(who, (ask.boot, ask.number), from, now);
        self.tell_sites(who, ask, from, now);
        if !was_heard {
            self.has_changed = true;
            self.look(now);
        }
        self.settle_leave(now);
        taken
    }

    fn take_other(&mut self, who: &PublicKey, ask: &Ask, from: SocketAddr, now: Duration) -> Taken {
        let Some(agent) = self.agents.get_mut(who) else {
            return Taken::Stale;
        };
        let proof = ask.heard;
        let proof = proof.and_then(|heard| self.numbers.proven(heard, agent.tag, from, now));
        let taken = agent.take_other(ask, proof, from, now);
        match taken {
            Taken::Stale => {}
            Taken::Unproven => self.answer_stranger(who, ask, from, now),
            Taken::Fresh | Taken::Changed => {
                self.answer(who, (ask.boot, ask.number), from, now);
                self.has_changed |= taken == Taken::Changed;
                self.next_look.get_or_insert(now + LOOK);
            }
        }
        taken
    }

    /// A question that proves nothing may be one that was recorded: what is sent for such is
    /// limited, and not by what comes from elsewhere than the agent is known to be.
    fn answer_stranger(&mut self, who: &PublicKey, ask: &Ask, to: SocketAddr, now: Duration) {
        let Some(agent) = self.agents.get_mut(who) else {
            return;
        };
        let may = if agent.is_at(to) {
            agent.may_answer(now)
        } else {
            self.to_strangers.take(TO_STRANGERS, now)
        };
        if may {
            self.answer(who, (ask.boot, ask.number), to, now);
        } else {
            self.refused.limited += 1;
        }
    }

    fn answer(
        &mut self,
        who: &PublicKey,
        (boot, number): (u64, u64),
        to: SocketAddr,
        now: Duration,
    ) {
        let Some(agent) = self.agents.get_mut(who) else {
            return;
        };
        let other = |own: &&IpAddr| own.is_ipv4() != to.is_ipv4();
        let own_number = self.numbers.next(agent.last_answer(), agent.tag, to, now);
        agent.handle_answered(own_number, self.leave.is_some());
        let answer = Answer {
            boot: self.own.boot,
            number: own_number,
            to: Heard { boot, number },
            interval: u16::try_from(self.interval.as_millis()).unwrap_or(u16::MAX),
            table: self.table.version(),
            leaving: self.leave.is_some(),
            forwards: self.forwards,
            other_lan: self.lan.iter().find(other).copied(),
        };
        if let Some(key) = agent.key(&self.own, who) {
            let datagram = Message::Answer(answer).seal(self.tag, key);
            self.transmits.push_back((to, datagram));
        }
    }

    /// Parts of our table that it lacks. It asks again for those that did not come with these.
    fn tell_sites(&mut self, who: &PublicKey, ask: &Ask, to: SocketAddr, now: Duration) {
        let Some(agent) = self.agents.get_mut(who) else {
            return;
        };
        let has = if ask.table == self.table.version() {
            ask.parts
        } else {
            0
        };
        let missing = self.table.missing(has, self.own.boot);
        let mut missing = missing.take(PARTS_AT_ONCE).peekable();
        if missing.peek().is_none() || !agent.may_tell(self.interval / 2, now) {
            return;
        }
        let Some(key) = agent.key(&self.own, who) else {
            return;
        };
        for part in missing {
            let datagram = Message::Sites(part).seal(self.tag, key);
            self.transmits.push_back((to, datagram));
        }
    }

    /// A probe that came through the tunnel interface to one of our probe addresses: the answer,
    /// to be sent back the same way. `to` is the address it came to.
    pub fn handle_probe(&mut self, to: IpAddr, datagram: &[u8], now: Duration) -> Option<Vec<u8>> {
        let who = *sender_of(datagram).and_then(|tag| self.by_tag.get(&tag))?;
        let agent = self.agents.get_mut(&who)?;
        let opened = Message::open(datagram, agent.key(&self.own, &who)?);
        let Ok(Message::Probe(probe)) = opened else {
            self.refused.forged += 1;
            return None;
        };
        let is_meant = to == probe_address(&self.own.identity, probe.by, to);
        let is_fresh = is_meant && self.numbers.is_fresh(probe.heard, now);
        if !is_fresh || !agent.take_probe(index(probe.by, to), &probe, now) {
            self.refused.stale += 1;
            return None;
        }
        let answer = Message::ProbeAnswer(probe);
        Some(answer.seal(self.tag, agent.key(&self.own, &who)?))
    }

    /// We stop: said to all that are heard, at once.
    pub fn handle_stop(&mut self, now: Duration) {
        if self.leave.is_none() {
            self.leave = Some(Leave {
                next: now,
                until: now + LEAVE_WITHIN,
                heard_at: now,
                is_heard: false,
            });
            self.settle_leave(now);
        }
    }

    /// Whether all agents have heard that we leave, or do not answer, and what they had sent
    /// before has arrived.
    pub fn has_left(&self, now: Duration) -> bool {
        self.leave
            .as_ref()
            .is_some_and(|leave| leave.is_heard && now >= leave.heard_at + STRAGGLERS)
    }

    /// When [`Agents::has_left`] may be true; `None` before [`Agents::handle_stop`].
    pub fn leaves_at(&self) -> Option<Duration> {
        self.leave.as_ref().map(|leave| {
            if leave.is_heard {
                leave.heard_at + STRAGGLERS
            } else {
                leave.until + STRAGGLERS
            }
        })
    }

    fn settle_leave(&mut self, now: Duration) {
        let Some(leave) = &mut self.leave else {
            return;
        };
        if leave.is_heard {
            return;
        }
        let interval = self.interval;
        let waiting: Vec<PublicKey> = self
            .agents
            .iter()
            .filter(|(_, agent)| agent.is_heard(now, interval) && !agent.knows_we_leave())
            .map(|(who, _)| *who)
            .collect();
        if waiting.is_empty() || now >= leave.until {
            (leave.is_heard, leave.heard_at) = (true, now);
        } else if now >= leave.next {
            leave.next = now + SAY_AGAIN;
            for who in waiting {
                let last = self.agents.get(&who).and_then(Agent::last_question);
                if let Some((question, address)) = last {
                    self.answer(&who, question, address, now);
                }
            }
        }
    }

    pub fn handle_timeout(&mut self, now: Duration) {
        if self.next_look.is_some_and(|at| now >= at) {
            self.look(now);
        }
        self.settle_leave(now);
    }

    /// `None` while nothing is known of any agent that time changes.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let leave = self.leave.as_ref().filter(|leave| !leave.is_heard);
        let leave = leave.map(|leave| leave.next.min(leave.until));
        leave.into_iter().chain(self.next_look).min()
    }

    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// Whether anything changed since this was asked last that [`Agents::reached`] rests on.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.has_changed, false)
    }

    /// How many there are, and so how often each is to ask; and what is not believed any more.
    fn look(&mut self, now: Duration) {
        for agent in self.agents.values_mut() {
            self.has_changed |= agent.forget(now);
        }
        let has_shown = self.agents.values().any(Agent::has_shown);
        let interval = self.interval;
        let heard = self.agents.values();
        let heard = heard.filter(|agent| agent.is_heard(now, interval)).count();
        let times = heard.div_ceil(AT_FULL_PACE).max(1);
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        self.interval = INTERVAL.saturating_mul(times).min(LONGEST_INTERVAL);
        self.next_look = (heard > 0 || has_shown).then(|| now + LOOK);
    }

    pub fn statuses(&self, now: Duration) -> Vec<AgentStatus> {
        let all = self.agents.iter();
        all.map(|(who, agent)| agent.status(who, now, self.interval))
            .collect()
    }

    pub const fn refused(&self) -> Refused {
        self.refused
    }

    /// Those that VXLAN is used with. What an agent said last counts for as long as it has a
    /// record, since its kernel goes on without it; before it was heard its record says.
    pub fn reached(&self) -> BTreeMap<PublicKey, Reached> {
        let by_vxlan = || self.agents.iter().filter(|(_, agent)| agent.is_by_vxlan());
        let mut claimed: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for other in self.agents.values().filter_map(Agent::other_lan) {
            *claimed.entry(other).or_default() += 1;
        }
        let is_its_own = |other: &IpAddr| {
            claimed.get(other) == Some(&1)
                && !self.recorded.contains(other)
                && !self.lan.contains(other)
        };
        let all = by_vxlan().filter_map(|(who, agent)| {
            let reached = Reached {
                name: agent.at.name.clone(),
                lan: agent.at.lan?,
                other: agent.other_lan().filter(is_its_own),
            };
            Some((*who, reached))
        });
        all.collect()
    }
}

/// What keeps ways and families of probes apart where they are counted.
const fn index(by: ProbeBy, to: IpAddr) -> usize {
    let way = match by {
        ProbeBy::Direct => 0,
        ProbeBy::Vxlan => 1,
    };
    if to.is_ipv4() { way } else { way + 2 }
}

impl Own {
    fn pair_key(&self, who: &PublicKey, wireguard: &WireguardKey) -> Option<PairKey> {
        let theirs = x25519::PublicKey::from(*wireguard.as_bytes());
        let shared = zeroize::Zeroizing::new(self.wireguard.diffie_hellman(&theirs).to_bytes());
        PairKey::derive(&shared, &self.mesh, &self.identity, who)
    }
}

#[cfg(test)]
mod tests;
