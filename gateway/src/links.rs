//! The deciding part of a gateway: which links live, by which path, with which MTU, and who
//! carries what. Pure: packets, time and seeds are arguments, so that a whole mesh of them runs in
//! one thread on virtual time.
//!
//! The driving rule: give one input, then drain `poll_event` and `poll_transmit`, then sleep until
//! `poll_timeout`. Events first: what is said may rest on what they ask for. Times are since boot,
//! suspend included.

mod boots;
mod carriers;
mod desk;
mod dice;
mod goodbye;
mod gossip;
mod handshakes;
mod hold;
mod link;
mod liveness;
mod loss;
mod lost;
mod mtu;
mod paths;
mod pings;
mod prefixes;
mod proof;
mod shapes;
mod shut_out;
#[cfg(test)]
mod tests;
mod timers;
mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::control::{self, Control, Word};
use proto::key::{PublicKey, SigningKey, WireguardKey};
use proto::knowledge::Knowledge;
use proto::name::Name;

pub use shapes::{
    CandidateState, Carriers, Carry, Change, Event, Gateway, LinkStatus, PathKind, Roster,
    Transmit, Why,
};

use desk::Desk;
use goodbye::Goodbye;
use gossip::{Gossip, GossipMessage, GossipOutput};
use link::{Link, Settled};
use lost::Told;
use prefixes::Prefixes;
use timers::Timers;
use witness::Accusation;

/// Who this gateway is.
pub struct Local {
    pub identity: SigningKey,
    pub wireguard: WireguardKey,
    pub site: Name,
    /// Another one at every start.
    pub boot: u64,
}

/// Of one link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of inner data; control does not count.
    pub tx_data: u64,
    pub rx_data: u64,
    /// Datagrams opened, whatever was in them.
    pub rx_any: u64,
    /// Packets sealed above 1200 bytes.
    pub large: u64,
}

/// Control that was not taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Packets that cannot be read.
    pub unreadable: u64,
    /// From one that has not proven who it is.
    pub unproven: u64,
    /// Words of those that may not accuse, or about a boot that is gone.
    pub words: u64,
    /// Addresses of gateways that lie in a prefix of another site.
    pub addresses: u64,
}

pub struct Links {
    desk: Desk,
    links: BTreeMap<PublicKey, Link>,
    timers: Timers<PublicKey>,
    /// Of other sites.
    sites: BTreeMap<Name, BTreeSet<PublicKey>>,
    siblings: BTreeSet<PublicKey>,
    carriers: Carriers,
    are_carriers_new: bool,
    told: Told,
    gossip: Gossip,
    accusations: Vec<Accusation>,
    goodbye: Option<Goodbye>,
    refused: Refused,
    /// When anything was told to this machine.
    input_at: Duration,
    woke_at: Duration,
}

/// Addresses of ours that are told.
const OWN_ADDRESSES: usize = 16;
/// A timeout that comes later than this means that we did not run.
const SLEPT: Duration = Duration::from_millis(100);
const SLEPT_APART: Duration = Duration::from_secs(1);
/// Nothing is looked at more often without an input.
const TICK: Duration = Duration::from_millis(1);

impl Links {
    pub fn new(local: Local, seed: u64, now: Duration) -> Links {
        let mut desk = Desk::new(local, seed);
        let gossip = Gossip::new(desk.own, desk.dice.next(), now);
        Links {
            desk,
            links: BTreeMap::new(),
            timers: Timers::new(),
            sites: BTreeMap::new(),
            siblings: BTreeSet::new(),
            carriers: Carriers::default(),
            are_carriers_new: false,
            told: Told::default(),
            gossip,
            accusations: Vec::new(),
            goodbye: None,
            refused: Refused::default(),
            input_at: now,
            woke_at: now,
        }
    }

    /// Differences are applied in place: only a gateway with another WireGuard key, or of another
    /// site, begins anew.
    pub fn handle_roster(&mut self, roster: &Roster, now: Duration) {
        let is_kept = |of: &PublicKey, link: &Link| {
            roster.gateways.get(of).is_some_and(|gateway| {
                gateway.wireguard == link.gateway.wireguard && gateway.site == link.gateway.site
            })
        };
        let links = self.links.iter();
        let gone: Vec<PublicKey> = links
            .filter(|(of, link)| !is_kept(of, link))
            .map(|(of, _)| *of)
            .collect();
        gone.iter().for_each(|of| self.remove(of));
        self.handle_prefixes(roster);
        for (of, gateway) in &roster.gateways {
            if *of == self.desk.own {
                continue;
            }
            match self.links.get_mut(of) {
                Some(link) => link.handle_gateway(gateway, now),
                None => self.add(of, gateway, now),
            }
            self.settle(of, now);
        }
    }

    fn handle_prefixes(&mut self, roster: &Roster) {
        let prefixes = Prefixes::new(self.desk.local.site.clone(), roster.prefixes.clone());
        if *self.desk.prefixes != prefixes {
            self.desk.prefixes = Arc::new(prefixes);
            for link in self.links.values_mut() {
                link.handle_prefixes(&self.desk.prefixes);
            }
        }
    }

    /// An opened packet that is not for the TUN.
    pub fn handle_control(
        &mut self,
        from: &PublicKey,
        source: SocketAddr,
        packet: &[u8],
        now: Duration,
    ) {
        self.wake(now);
        let Some(link) = self.links.get_mut(from) else {
            return;
        };
        link.handle_control_source(source, now);
        match control::read(packet, from, &self.desk.own) {
            // One that was cut on its way says nothing of the size that passes.
            Ok(Control::Probe(probe)) if usize::from(probe.size) != packet.len() => {}
            Ok(control) => {
                link.handle_control(&control, source, &mut self.desk, now);
                self.handle_shared(from, control, now);
            }
            Err(_) => self.refused.unreadable += 1,
        }
        self.settle(from, now);
    }

    /// A new session can be used; the other side confirmed it from there.
    pub fn handle_session(&mut self, of: &PublicKey, source: SocketAddr, now: Duration) {
        self.with(of, now, |link| link.handle_session(source, now));
    }

    /// Something was opened that came from an address not in use.
    pub fn handle_source(&mut self, of: &PublicKey, source: SocketAddr, now: Duration) {
        self.with(of, now, |link| link.handle_source(source, now));
    }

    /// In one sweep over all links, every 100 ms or so.
    pub fn handle_counters(&mut self, of: &PublicKey, counters: Counters, now: Duration) {
        self.wake(now);
        let is_news = |link: &mut Link| link.handle_counters(counters, now);
        if self.links.get_mut(of).is_some_and(is_news) {
            self.settle(of, now);
        }
    }

    /// The relayed path, as an address of this machine.
    pub fn handle_relay(&mut self, of: &PublicKey, address: Option<SocketAddr>, now: Duration) {
        self.with(of, now, |link| link.handle_relay(address, now));
    }

    /// Where this gateway may be found, as others are told.
    pub fn handle_own_addresses(&mut self, addresses: &[SocketAddr], now: Duration) {
        let addresses: Vec<SocketAddr> = addresses.iter().copied().take(OWN_ADDRESSES).collect();
        if addresses == self.desk.own_addresses {
            return;
        }
        self.desk.own_addresses = addresses;
        let all: Vec<PublicKey> = self.links.keys().copied().collect();
        for of in all {
            self.with(&of, now, |link| link.paths.handle_own_addresses(now));
        }
    }

    pub fn handle_knowledge(&mut self, knowledge: Arc<Knowledge>, now: Duration) {
        self.gossip.handle_knowledge(knowledge, now);
        self.settle_gossip(now);
    }

    pub fn handle_ping(&mut self, of: &PublicKey, id: u64, now: Duration) {
        if let Some(link) = self.links.get_mut(of) {
            link.handle_ping(id, &mut self.desk, now);
        }
    }

    /// We are to end: everyone is told, then [`Event::Left`] follows.
    pub fn handle_stop(&mut self, now: Duration) {
        if self.goodbye.is_some() {
            return;
        }
        let heard = || self.links.values().filter(|link| link.is_heard(now));
        let waiting = heard().map(|link| link.of).collect();
        let rtts = heard().filter_map(|link| link.paths.rtt());
        let longest = rtts.map(|rtt| rtt.smoothed).max().unwrap_or_default();
        self.goodbye = Some(Goodbye::new(waiting, longest, now));
        self.settle_goodbye(now);
    }

    pub fn handle_timeout(&mut self, now: Duration) {
        self.spare(self.poll_timeout(), now);
        while let Some(of) = self.timers.pop(now) {
            self.settle(&of, now);
        }
        self.settle_words(now);
        self.settle_told(now);
        self.settle_goodbye(now);
        self.gossip.handle_timeout(now);
        self.settle_gossip(now);
    }

    pub fn poll_timeout(&self) -> Option<Duration> {
        let words = self.accusations.iter().filter_map(Accusation::poll_timeout);
        [
            self.timers.first(),
            words.min(),
            self.told.poll_timeout().filter(|_| self.has_sibling_up()),
            self.goodbye.as_ref().and_then(Goodbye::poll_timeout),
            self.gossip.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.desk.transmits.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.are_carriers_new) {
            return Some(Event::CarriersChanged);
        }
        self.desk.events.pop_front()
    }

    pub const fn carriers(&self) -> &Carriers {
        &self.carriers
    }

    pub const fn refused(&self) -> Refused {
        Refused {
            addresses: self.desk.refused_addresses,
            ..self.refused
        }
    }

    /// Whether what comes through this link may be taken: its tunnel is its own.
    pub fn is_proven(&self, of: &PublicKey) -> bool {
        self.links.get(of).is_some_and(Link::is_proven)
    }

    pub fn statuses(&self, now: Duration) -> Vec<LinkStatus> {
        self.links.values().map(|link| link.status(now)).collect()
    }

    fn add(&mut self, of: &PublicKey, gateway: &Gateway, now: Duration) {
        let link = Link::new(*of, gateway.clone(), &mut self.desk, now);
        if link.is_sibling {
            self.siblings.insert(*of);
        } else {
            let site = self.sites.entry(gateway.site.clone()).or_default();
            site.insert(*of);
        }
        let site = gateway.site.clone();
        self.links.insert(*of, link);
        self.refresh(&site);
    }

    fn remove(&mut self, of: &PublicKey) {
        let Some(link) = self.links.remove(of) else {
            return;
        };
        self.timers.set(*of, None);
        self.gossip.handle_gone(of);
        self.accusations.retain(|word| word.accused() != of);
        let was_sibling = self.siblings.remove(of);
        let site = link.gateway.site;
        if let Some(gateways) = self.sites.get_mut(&site) {
            gateways.remove(of);
            if gateways.is_empty() {
                self.sites.remove(&site);
            }
        }
        if was_sibling {
            self.refresh_lost();
        } else {
            self.refresh(&site);
        }
    }

    /// If we did not run when we should have, what came meanwhile is read before anybody is called
    /// silent; not again and again, or who never runs in time would call nobody so.
    fn wake(&mut self, now: Duration) {
        let input_before = std::mem::replace(&mut self.input_at, now);
        self.spare(self.timers.first().map(|due| due.max(input_before)), now);
    }

    fn spare(&mut self, due: Option<Duration>, now: Duration) {
        if due.is_some_and(|due| now > due + SLEPT) && now > self.woke_at + SLEPT_APART {
            self.woke_at = now;
            let links = self.links.values_mut();
            links.for_each(|link| link.handle_slept(now));
        }
    }

    fn with(&mut self, of: &PublicKey, now: Duration, input: impl FnOnce(&mut Link)) {
        self.wake(now);
        if let Some(link) = self.links.get_mut(of) {
            input(link);
            self.settle(of, now);
        }
    }

    /// What concerns more than the link it came by. Only the proven are listened to.
    fn handle_shared(&mut self, from: &PublicKey, control: Control, now: Duration) {
        if !self.is_proven(from) {
            self.refused.unproven += u64::from(is_shared(&control));
            return;
        }
        match control {
            Control::GoodbyeHeard { boot } if boot == self.desk.local.boot => {
                self.handle_goodbye_heard(from, now);
            }
            Control::Word(word) => self.handle_word(from, word, now),
            Control::Lost(lost) => {
                let link = self.links.get_mut(from).filter(|link| link.is_sibling);
                if link.is_some_and(|link| link.hears.handle_lost(&lost, &self.told)) {
                    self.refresh_lost();
                }
            }
            Control::Digest(digest) => self.hear(from, GossipMessage::Digest(digest), now),
            Control::Want(want) => self.hear(from, GossipMessage::Want(want), now),
            Control::Part(part) => self.hear(from, GossipMessage::Part(part), now),
            Control::GoodbyeHeard { .. }
            | Control::Hello(_)
            | Control::Goodbye { .. }
            | Control::Probe(_)
            | Control::Echo(_)
            | Control::Prove { .. }
            | Control::Proof { .. }
            | Control::Question { .. }
            | Control::Answer { .. }
            | Control::Candidates { .. }
            | Control::Ping { .. }
            | Control::Pong { .. }
            | Control::TwoOfOneKey => {}
        }
    }

    fn hear(&mut self, from: &PublicKey, message: GossipMessage, now: Duration) {
        self.gossip.handle_message(from, message, now);
        self.settle_gossip(now);
    }

    fn handle_goodbye_heard(&mut self, by: &PublicKey, now: Duration) {
        let Some(goodbye) = &mut self.goodbye else {
            return;
        };
        goodbye.handle_heard(by, now);
        if let Some(link) = self.links.get_mut(by) {
            link.handle_end();
        }
        self.settle_goodbye(now);
    }

    /// Only a gateway of the same site may accuse, and not of our site: siblings we watch ourselves.
    fn handle_word(&mut self, from: &PublicKey, word: Word, now: Duration) {
        let accused = PublicKey::new(word.accused).ok();
        let accuser = self.links.get(from).filter(|link| !link.is_sibling);
        let site = accuser.map(|link| link.gateway.site.clone());
        let accused = accused
            .filter(|accused| accused != from)
            .and_then(|accused| self.links.get_mut(&accused))
            .filter(|link| Some(&link.gateway.site) == site.as_ref());
        let Some(link) = accused.filter(|link| link.is_meant(word.boot)) else {
            self.refused.words += 1;
            return;
        };
        link.handle_word(now);
        let of = link.of;
        self.settle(&of, now);
    }

    /// Looks at one link, and at what follows for the rest.
    fn settle(&mut self, of: &PublicKey, now: Duration) {
        let Some(link) = self.links.get_mut(of) else {
            return;
        };
        let settled = link.settle(&mut self.desk, now);
        let timeout = link.poll_timeout(now).map(|at| at.max(now + TICK));
        self.timers.set(*of, timeout);
        if settled != Settled::default() {
            self.follow(of, settled, now);
        }
    }

    fn follow(&mut self, of: &PublicKey, settled: Settled, now: Duration) {
        let is_sibling = self.siblings.contains(of);
        if settled.went_down {
            self.gossip.handle_gone(of);
        }
        if settled.went_up {
            self.gossip.handle_up(of, now);
            self.settle_gossip(now);
            if is_sibling {
                self.told.handle_new_sibling();
                self.settle_told(now);
            }
        }
        if settled.is_other_bearing {
            if is_sibling {
                self.refresh_lost();
            } else if let Some(link) = self.links.get(of) {
                let site = link.gateway.site.clone();
                self.refresh(&site);
                self.settle_told(now);
            }
        }
        if let Some(boot) = settled.dead
            && self.goodbye.is_none()
        {
            self.accusations.retain(|word| word.accused() != of);
            self.accusations.push(Accusation::new(*of, boot, now));
            self.settle_words(now);
        }
    }

    /// Sites without a gateway of their own that is up: those hang on what siblings say.
    fn refresh_lost(&mut self) {
        let lost = |site: &&Name| !matches!(self.carriers.sites.get(*site), Some(Carry::Direct(_)));
        let lost: Vec<Name> = self.sites.keys().filter(lost).cloned().collect();
        lost.iter().for_each(|site| self.refresh(site));
    }

    /// Who carries for one site now.
    fn refresh(&mut self, site: &Name) {
        let carry = self.carry(site);
        let is_lost = !matches!(carry, Some(Carry::Direct(_)));
        let is_known = self.sites.contains_key(site);
        self.told.handle_site(site, is_known.then_some(is_lost));
        let before = self.carriers.sites.get(site);
        if before == carry.as_ref() {
            return;
        }
        match carry {
            Some(carry) => self.carriers.sites.insert(site.clone(), carry),
            None => self.carriers.sites.remove(site),
        };
        self.are_carriers_new = true;
    }

    fn carry(&self, site: &Name) -> Option<Carry> {
        let gateways = self.sites.get(site)?.iter();
        let links = gateways.filter_map(|of| self.links.get(of));
        let direct = carriers::direct(links.map(|link| (link.of, link.bearing())));
        if !direct.is_empty() {
            return Some(Carry::Direct(direct));
        }
        let siblings = self.siblings.iter().filter_map(|of| self.links.get(of));
        let able = siblings.filter(|link| link.bearing().is_up && link.hears.reaches(site));
        let able: Vec<PublicKey> = able.map(|link| link.of).collect();
        (!able.is_empty()).then_some(Carry::Siblings(able))
    }

    fn has_sibling_up(&self) -> bool {
        let mut siblings = self.siblings.iter().filter_map(|of| self.links.get(of));
        siblings.any(|link| link.bearing().is_up)
    }

    fn settle_told(&mut self, now: Duration) {
        if !self.has_sibling_up() {
            return;
        }
        for lost in self.told.poll(now) {
            for of in &self.siblings {
                if self.links.get(of).is_some_and(|link| link.bearing().is_up) {
                    self.desk.say(of, &lost);
                }
            }
        }
    }

    fn settle_words(&mut self, now: Duration) {
        for accusation in &mut self.accusations {
            let Some(word) = accusation.poll_word(now) else {
                continue;
            };
            let remote = self.links.values().filter(|link| !link.is_sibling);
            for link in remote.filter(|link| link.is_heard(now)) {
                self.desk.say(&link.of, &word);
            }
        }
        self.accusations
            .retain(|word| word.poll_timeout().is_some());
    }

    fn settle_goodbye(&mut self, now: Duration) {
        let Some(goodbye) = &mut self.goodbye else {
            return;
        };
        let boot = self.desk.local.boot;
        for of in goodbye.poll_tell(now) {
            self.desk.say(&of, &Control::Goodbye { boot });
        }
        if goodbye.poll_left(now) {
            self.desk.events.push_back(Event::Left);
        }
    }

    fn settle_gossip(&mut self, now: Duration) {
        self.gossip.handle_timeout(now);
        while let Some(output) = self.gossip.poll_output() {
            match output {
                GossipOutput::Send { to, message } => self.desk.say(&to, &message),
                GossipOutput::HandedOver { from, handover } => {
                    let event = Event::HandedOver { from, handover };
                    self.desk.events.push_back(event);
                }
            }
        }
    }
}

fn is_shared(control: &Control) -> bool {
    matches!(
        control,
        Control::Word(_)
            | Control::Lost(_)
            | Control::Digest(_)
            | Control::Want(_)
            | Control::Part(_)
    )
}
