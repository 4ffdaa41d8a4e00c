//! Whether this node's gateways live and which sites each reaches, judged by the agent's own
//! authenticated questions, and from that which gateways to use for each site.
//!
//! Pure. The driving rule: read **all** that waits in the socket into [`Health::handle_datagram`],
//! then call [`Health::handle_timeout`] if [`Health::poll_timeout`] has come, then send what
//! [`Health::poll_transmit`] gives; a datagram that cannot be sent counts as lost. Read the choice
//! again whenever [`Health::take_change`] says so.
//!
//! Silence is counted while this process runs: a stall of the agent itself takes nobody out.

mod choice;
mod gateway;
mod other;
mod table;
mod trial;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proto::key::PublicKey;
use proto::lan::{
    INTERVAL, MAX_DATAGRAM, Message, Mode, PairKey, ProbeBy, Tag, probe_address, sender_of, tag_of,
};
use proto::name::Name;

pub use choice::{Choice, Fallback, GatewayHealth, GatewayState, SiteChoice};
pub use trial::ProbeHealth;

use choice::{Decision, decide};
use gateway::{Gateway, News};

/// All that fell silent together with the last one had no failure of their own: it is this node's
/// network that failed.
const TOGETHER: Duration = Duration::from_secs(1);
/// After all were silent the others have so long to be heard too, before the first is used alone.
const RETURNING: Duration = Duration::from_millis(2 * INTERVAL.as_millis() as u64);

/// This node, in this start of its agent.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub identity: PublicKey,
    /// Random, another one after every start.
    pub boot: u64,
    /// Random, for what others must not guess.
    pub seed: u64,
}

/// A gateway of this site, as its verified record has it.
#[derive(Clone, Debug)]
pub struct GatewayAt {
    pub name: Name,
    /// Its LAN address with [`proto::lan::PORT`].
    pub address: SocketAddr,
    pub key: PairKey,
    /// On the same segment, so that the direct way can be tried.
    pub is_near: bool,
}

pub struct Health {
    own: Own,
    tag: Tag,
    mode: Mode,
    /// Probes have had their routes for long enough.
    is_proven: bool,
    holds_probes: bool,
    other_lan: Option<IpAddr>,
    gateways: BTreeMap<PublicKey, Gateway>,
    by_tag: HashMap<Tag, PublicKey>,
    decision: Decision,
    /// After all were silent: until when the last choice still counts.
    returning: Option<Duration>,
    is_old: bool,
    has_changed: bool,
    nonces: u64,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    begun: Duration,
    now: Duration,
}

impl Health {
    pub fn new(own: Own, now: Duration) -> Health {
        Health {
            tag: tag_of(&own.identity),
            own,
            mode: Mode::Undecided,
            is_proven: false,
            holds_probes: false,
            other_lan: None,
            gateways: BTreeMap::new(),
            by_tag: HashMap::new(),
            decision: Decision::default(),
            returning: None,
            is_old: false,
            has_changed: false,
            nonces: 0,
            transmits: VecDeque::new(),
            begun: now,
            now,
        }
    }

    /// Who there is; those known before keep what was learnt of them.
    pub fn handle_gateways(&mut self, known: &BTreeMap<PublicKey, GatewayAt>, now: Duration) {
        self.now = now;
        let before = self.gateways.len();
        self.gateways.retain(|who, _| known.contains_key(who));
        self.is_old |= self.gateways.len() != before;
        for (who, at) in known {
            match self.gateways.get_mut(who) {
                Some(gateway) => gateway.handle_place(at.clone(), now),
                None => {
                    let gateway = Gateway::new(*who, at.clone(), self.begun, now);
                    self.gateways.insert(*who, gateway);
                    self.is_old = true;
                }
            }
        }
        let tags = self.gateways.keys().map(|who| (tag_of(who), *who));
        self.by_tag = tags.collect();
        self.act(now);
    }

    /// What the questions tell of this node, and which ways are tried.
    pub fn set_mode(&mut self, mode: Mode, now: Duration) {
        if mode != self.mode {
            self.mode = mode;
            for gateway in self.gateways.values_mut() {
                gateway.handle_mode(now);
            }
            self.act(now);
        }
    }

    /// Whether the kernel has had the routes of probes for long enough that a probe without an
    /// answer says something of the way.
    pub fn set_proven(&mut self, is_proven: bool, now: Duration) {
        if is_proven != self.is_proven {
            self.is_proven = is_proven;
            self.settle(now);
        }
    }

    /// While the kernel lacks their routes none is sent, and none counts as lost.
    pub const fn hold_probes(&mut self, holds: bool) {
        self.holds_probes = holds;
    }

    /// This node's LAN address in the family that its questions do not travel in; what goes to an
    /// address of that family is sent from it.
    pub const fn set_other_lan(&mut self, address: Option<IpAddr>) {
        self.other_lan = address;
    }

    /// Whatever came to the socket.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Duration) {
        self.now = now;
        let news = self.take(from, datagram, now);
        match news {
            News::Nothing => {}
            News::Changed => self.is_old = true,
            News::AskAgain => {
                self.is_old = true;
                self.act(now);
            }
        }
        self.settle(now);
    }

    /// One look-up and one MAC at most, before anything is believed.
    fn take(&mut self, from: SocketAddr, datagram: &[u8], now: Duration) -> News {
        if datagram.len() > MAX_DATAGRAM {
            return News::Nothing;
        }
        let who = sender_of(datagram).and_then(|tag| self.by_tag.get(&tag));
        let Some((who, gateway)) = who.and_then(|who| Some((who, self.gateways.get_mut(who)?)))
        else {
            return News::Nothing;
        };
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let is_own_address = from == gateway.at.address;
        let is_probe = |by| from.ip() == probe_address(who, by, from.ip());
        let is_other = gateway.is_other(from);
        let is_probed = is_probe(ProbeBy::Direct) || is_probe(ProbeBy::Vxlan);
        if !is_own_address && !is_other && !is_probed {
            return News::Nothing;
        }
        if !gateway.may_hold(datagram.len()) {
            return News::Nothing;
        }
        let Ok(message) = Message::open(datagram, &gateway.at.key) else {
            gateway.handle_wrong();
            return News::Nothing;
        };
        match message {
            Message::Answer(answer) if is_own_address => {
                gateway.handle_answer(&answer, self.own.boot, now)
            }
            Message::Answer(answer) if is_other => {
                gateway.handle_other(&answer, self.own.boot, now);
                News::Nothing
            }
            Message::Sites(sites) if is_own_address => gateway.handle_sites(sites),
            Message::ProbeAnswer(probe) if is_probe(probe.by) => {
                gateway.handle_probe_answer(probe, now)
            }
            Message::Answer(_)
            | Message::Sites(_)
            | Message::ProbeAnswer(_)
            | Message::Ask(_)
            | Message::Probe(_) => News::Nothing,
        }
    }

    pub fn handle_timeout(&mut self, now: Duration) {
        self.act(now);
    }

    pub fn poll_timeout(&self) -> Option<Duration> {
        let probes = !self.holds_probes;
        let of_gateways = self.gateways.values();
        let of_gateways = of_gateways.map(|one| one.poll_timeout(probes, self.now));
        of_gateways.chain(self.returning).min()
    }

    /// To be sent from this node's LAN address and [`proto::lan::PORT`].
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// Whether sites, fallback or the state of a gateway changed since this was asked last.
    pub const fn take_change(&mut self) -> bool {
        std::mem::replace(&mut self.has_changed, false)
    }

    pub fn choice(&self) -> Choice {
        let gateways = self.gateways.iter();
        Choice {
            sites: self.decision.sites.clone(),
            gateways: gateways
                .map(|(who, gateway)| (*who, gateway.health(self.now)))
                .collect(),
            fallback: self.decision.fallback,
            settled: self.decision.settled,
        }
    }

    /// What has fallen due.
    fn act(&mut self, now: Duration) {
        self.now = now;
        for gateway in self.gateways.values_mut() {
            self.is_old |= gateway.judge(now);
        }
        self.forgive(now);
        let mut nonces = std::mem::take(&mut self.nonces);
        for gateway in self.gateways.values_mut() {
            let says = gateway::Says {
                boot: self.own.boot,
                mode: self.mode,
                other_lan: self.other_lan,
            };
            if let Some(ask) = gateway.poll_ask(&says, now) {
                let datagram = Message::Ask(ask).seal(self.tag, &gateway.at.key);
                self.transmits.push_back((gateway.at.address, datagram));
            }
            if let Some((to, ask)) = gateway.poll_other(&says, now) {
                let datagram = Message::Ask(ask).seal(self.tag, &gateway.at.key);
                self.transmits.push_back((to, datagram));
            }
            if self.holds_probes {
                continue;
            }
            let nonce = || {
                nonces += 1;
                trial::nonce(self.own.seed, nonces)
            };
            let (is_news, probes) = gateway.poll_probes(self.mode, now, nonce);
            self.is_old |= is_news;
            for (to, probe) in probes {
                let datagram = Message::Probe(probe).seal(self.tag, &gateway.at.key);
                self.transmits.push_back((to, datagram));
            }
        }
        self.nonces = nonces;
        self.settle(now);
    }

    /// If nobody is left, it is likely this node that was cut off.
    fn forgive(&mut self, now: Duration) {
        if self.is_old && !self.gateways.values().any(Gateway::is_heard) {
            for gateway in self.gateways.values_mut() {
                gateway.forgive(now.saturating_sub(TOGETHER));
            }
        }
    }

    fn settle(&mut self, now: Duration) {
        for gateway in self.gateways.values_mut() {
            self.is_old |= gateway.look_at_way(self.mode, self.is_proven);
        }
        let was_late = self.returning.is_some_and(|until| now >= until);
        if !self.is_old && !was_late {
            return;
        }
        let standings: Vec<_> = self
            .gateways
            .iter()
            .map(|(who, gateway)| (*who, gateway.standing(now)))
            .collect();
        let heard = standings.iter().filter(|(_, one)| one.answers).count();
        if self.decision.fallback != Some(Fallback::Last) || heard == 0 {
            self.returning = None;
        } else if heard < standings.len() && !was_late {
            // The one that is heard first is not used alone for the moment that others may need.
            self.returning.get_or_insert(now + RETURNING);
            self.has_changed = true;
            self.is_old = false;
            return;
        }
        self.returning = None;
        self.is_old = false;
        self.has_changed = true;
        self.decision = decide(&standings, &self.decision);
    }
}

#[cfg(test)]
mod tests;
