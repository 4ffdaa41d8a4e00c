//! Some gateways on virtual time, joined by a wire with a latency, with faults of each direction,
//! and with a WireGuard that knows nothing but sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use proto::key::{PublicKey, SigningKey, WireguardKey};

use crate::links::dice::Dice;
use crate::links::{Carry, Change, Counters, Event, Gateway, Links, Local, Roster, Transmit, Why};

pub(super) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub(super) struct Node {
    pub(super) of: PublicKey,
    pub(super) links: Links,
    pub(super) events: Vec<(Duration, Event)>,
    /// Times that it was woken by its own timers.
    pub(super) timeouts: u64,
    /// Counts process starts; what was agreed with an earlier one is void.
    start: u64,
    is_running: bool,
    stalled_until: Duration,
    site: String,
    /// The start of each peer that a session was agreed with.
    sessions: BTreeMap<usize, u64>,
    /// Answered, and not yet confirmed by anything that came under it.
    answered: BTreeMap<usize, u64>,
    paths: BTreeMap<usize, SocketAddr>,
    counters: BTreeMap<usize, Counters>,
}

enum Datagram {
    Initiation,
    Response,
    Confirmation,
    Control { packet: Vec<u8> },
    Data { bytes: u64 },
}

struct Flight {
    from: usize,
    to: usize,
    /// Of the sender, as of when it was sent.
    start: u64,
    datagram: Datagram,
}

pub(super) struct Wire {
    pub(super) now: Duration,
    pub(super) nodes: Vec<Node>,
    pub(super) latency: Duration,
    /// Of a hundred.
    pub(super) loss: u64,
    pub(super) dead: BTreeSet<(usize, usize)>,
    /// Data sent every 20 ms.
    pub(super) load: BTreeSet<(usize, usize)>,
    roster: Roster,
    flights: BTreeMap<(Duration, u64), Flight>,
    sent: u64,
    sweep: Duration,
    dice: Dice,
}

pub(super) fn identity(node: usize) -> SigningKey {
    SigningKey::from_seed(&[node as u8 + 1; 32])
}

pub(super) fn wireguard(node: usize) -> WireguardKey {
    let mut bytes = [9; 32];
    bytes[0] = node as u8;
    WireguardKey::new(bytes).unwrap()
}

pub(super) fn address(node: usize) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, node as u8 + 1), 51820).into()
}

impl Wire {
    /// One node of each of these sites; none knows another yet.
    pub(super) fn new(sites: &[&str], latency: Duration, seed: u64) -> Wire {
        let now = ms(1000);
        let mut wire = Wire {
            now,
            nodes: Vec::new(),
            latency,
            loss: 0,
            dead: BTreeSet::new(),
            load: BTreeSet::new(),
            roster: Roster::default(),
            flights: BTreeMap::new(),
            sent: 0,
            sweep: now,
            dice: Dice::new(seed),
        };
        for (number, site) in sites.iter().enumerate() {
            wire.nodes.push(Node {
                of: identity(number).public(),
                links: links(number, site, 0, now),
                events: Vec::new(),
                timeouts: 0,
                start: 0,
                is_running: true,
                stalled_until: Duration::ZERO,
                site: (*site).to_owned(),
                sessions: BTreeMap::new(),
                answered: BTreeMap::new(),
                paths: BTreeMap::new(),
                counters: BTreeMap::new(),
            });
            wire.roster.gateways.insert(
                identity(number).public(),
                Gateway {
                    site: site.parse().unwrap(),
                    node: format!("node-{number}").parse().unwrap(),
                    wireguard: wireguard(number),
                    candidates: vec![address(number)],
                    lan: None,
                },
            );
        }
        wire
    }

    /// All know all, and as long as that takes to settle.
    pub(super) fn up(sites: &[&str], latency: Duration, seed: u64) -> Wire {
        let mut wire = Wire::new(sites, latency, seed);
        wire.introduce();
        wire.run(ms(5000));
        for one in 0..sites.len() {
            for other in (0..sites.len()).filter(|other| *other != one) {
                assert_eq!(wire.state(one, other), Ok(()), "{one} to {other}");
            }
        }
        wire
    }

    pub(super) fn introduce(&mut self) {
        for node in 0..self.nodes.len() {
            self.tell_roster(node);
        }
    }

    /// Node 0 knows all, and all others know only it.
    pub(super) fn introduce_star(&mut self) {
        self.tell_roster(0);
        let centre = self.nodes[0].of;
        let all = self.roster.clone();
        self.roster.gateways.retain(|of, _| *of == centre);
        for node in 1..self.nodes.len() {
            self.tell_roster(node);
        }
        self.roster = all;
    }

    pub(super) fn tell_roster(&mut self, node: usize) {
        let mut roster = self.roster.clone();
        roster.gateways.remove(&self.nodes[node].of);
        self.nodes[node].links.handle_roster(&roster, self.now);
        self.drain(node);
    }

    pub(super) const fn roster(&mut self) -> &mut Roster {
        &mut self.roster
    }

    pub(super) fn state(&self, of: usize, to: usize) -> Result<(), Why> {
        let statuses = self.nodes[of].links.statuses(self.now);
        let to = self.nodes[to].of;
        let status = statuses.into_iter().find(|status| status.of == to);
        status.unwrap().state
    }

    pub(super) fn is_held(&self, of: usize, to: usize) -> bool {
        let statuses = self.nodes[of].links.statuses(self.now);
        statuses
            .iter()
            .any(|status| status.of == self.nodes[to].of && status.held_down)
    }

    /// Who carries for a site, as numbers of nodes; and whether directly.
    pub(super) fn carriers(&self, of: usize, site: &str) -> (bool, Vec<usize>) {
        let carriers = self.nodes[of].links.carriers();
        let (is_direct, keys) = match carriers.sites.get(&site.parse().unwrap()) {
            Some(Carry::Direct(keys)) => (true, keys.clone()),
            Some(Carry::Siblings(keys)) => (false, keys.clone()),
            None => (false, Vec::new()),
        };
        let mut numbers: Vec<usize> = keys.iter().map(|key| self.number(key)).collect();
        numbers.sort_unstable();
        (is_direct, numbers)
    }

    /// Changes that `of` told about `to` since then.
    pub(super) fn changes(&self, of: usize, to: usize, since: Duration) -> Vec<(Duration, Change)> {
        let about = self.nodes[to].of;
        let events = self.nodes[of].events.iter();
        events
            .filter(|(at, _)| *at >= since)
            .filter_map(|(at, event)| {
                let Event::Changed { of, change } = event else {
                    return None;
                };
                (*of == about).then(|| (*at, change.clone()))
            })
            .collect()
    }

    /// When `of` told first that `to` is down, and why.
    pub(super) fn went_down(
        &self,
        of: usize,
        to: usize,
        since: Duration,
    ) -> Option<(Duration, Why)> {
        self.changes(of, to, since)
            .into_iter()
            .find_map(|(at, change)| {
                let Change::Down(why) = change else {
                    return None;
                };
                Some((at - since, why))
            })
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.nodes[node].is_running = false;
    }

    pub(super) fn stall(&mut self, node: usize, lasting: Duration) {
        self.nodes[node].stalled_until = self.now + lasting;
    }

    /// Another process with the same keys, introduced to all.
    pub(super) fn start(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.start += 1;
        node.is_running = true;
        node.links = links(number, &node.site, node.start, self.now);
        node.sessions.clear();
        node.answered.clear();
        node.paths.clear();
        node.counters.clear();
        node.events.clear();
        self.tell_roster(number);
    }

    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].links.handle_stop(self.now);
        self.drain(node);
    }

    pub(super) fn ping(&mut self, from: usize, to: usize, id: u64) {
        let to = self.nodes[to].of;
        self.nodes[from].links.handle_ping(&to, id, self.now);
        self.drain(from);
    }

    pub(super) fn control(&mut self, from: usize, to: usize, packet: Vec<u8>) {
        self.send(from, to, Datagram::Control { packet });
    }

    /// Datagrams since the beginning.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// When a node that was told to stop has ended.
    pub(super) fn ended(&self, node: usize) -> Option<Duration> {
        let events = self.nodes[node].events.iter().rev();
        let mut left = events.filter(|(_, event)| *event == Event::Left);
        left.next().map(|(at, _)| *at)
    }

    pub(super) fn run(&mut self, lasting: Duration) {
        let end = self.now + lasting;
        self.run_until(end, |_| false);
    }

    /// Until something holds, at most to the end; whether it does.
    pub(super) fn run_until(&mut self, end: Duration, holds: impl Fn(&Wire) -> bool) -> bool {
        loop {
            if holds(self) {
                return true;
            }
            let next = self.next();
            if next > end {
                self.now = end;
                return false;
            }
            self.now = self.now.max(next);
            self.step();
        }
    }

    fn next(&self) -> Duration {
        let running = self.nodes.iter().filter(|node| node.is_running);
        let timeouts = running.filter_map(|node| {
            let timeout = node.links.poll_timeout()?;
            Some(timeout.max(node.stalled_until))
        });
        let flights = self.flights.keys().next().map(|(at, _)| *at);
        let first = timeouts.chain(flights).min().unwrap_or(self.sweep);
        first.min(self.sweep)
    }

    fn step(&mut self) {
        while let Some(entry) = self.flights.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let flight = entry.remove();
            self.arrive(flight);
        }
        if self.sweep <= self.now {
            self.sweep();
        }
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            let is_due = node.links.poll_timeout().is_some_and(|at| at <= self.now);
            if node.is_running && node.stalled_until <= self.now && is_due {
                node.timeouts += 1;
                node.links.handle_timeout(self.now);
                self.drain(number);
            }
        }
    }

    /// Every 20 ms: data under load; every 100 ms: the counters.
    fn sweep(&mut self) {
        self.sweep = self.now + ms(20);
        for (from, to) in self.load.clone() {
            if self.nodes[from].is_running && self.nodes[from].stalled_until <= self.now {
                self.send(from, to, Datagram::Data { bytes: 1000 });
            }
        }
        if !self.now.as_millis().is_multiple_of(100) {
            return;
        }
        for number in 0..self.nodes.len() {
            if !self.nodes[number].is_running || self.nodes[number].stalled_until > self.now {
                continue;
            }
            for (peer, counters) in self.nodes[number].counters.clone() {
                let peer = self.nodes[peer].of;
                let links = &mut self.nodes[number].links;
                links.handle_counters(&peer, counters, self.now);
            }
            self.drain(number);
        }
    }

    fn send(&mut self, from: usize, to: usize, datagram: Datagram) {
        if let Datagram::Data { bytes } = &datagram {
            let counters = self.nodes[from].counters.entry(to).or_default();
            counters.tx_data += bytes;
        }
        let is_lost = self.dice.below(100) < self.loss || self.dead.contains(&(from, to));
        if is_lost {
            return;
        }
        self.sent += 1;
        let start = self.nodes[from].start;
        let flight = Flight {
            from,
            to,
            start,
            datagram,
        };
        let is_near = self.nodes[from].site == self.nodes[to].site;
        let latency = if is_near { ms(1) } else { self.latency };
        self.flights.insert((self.now + latency, self.sent), flight);
    }

    fn arrive(&mut self, flight: Flight) {
        let Flight {
            from, to, start, ..
        } = flight;
        let node = &mut self.nodes[to];
        if !node.is_running {
            return;
        }
        if node.stalled_until > self.now {
            let at = node.stalled_until;
            self.sent += 1;
            self.flights.insert((at, self.sent), flight);
            return;
        }
        let of = identity(from).public();
        match &flight.datagram {
            Datagram::Initiation => {
                node.answered.insert(from, start);
                self.send(to, from, Datagram::Response);
                return;
            }
            Datagram::Response => {
                node.sessions.insert(from, start);
                node.links.handle_session(&of, address(from), self.now);
                self.send(to, from, Datagram::Confirmation);
            }
            Datagram::Confirmation | Datagram::Control { .. } | Datagram::Data { .. } => {
                if node.answered.get(&from) == Some(&start) {
                    node.answered.remove(&from);
                    node.sessions.insert(from, start);
                    node.links.handle_session(&of, address(from), self.now);
                }
            }
        }
        self.open(flight);
        self.drain(to);
    }

    fn open(&mut self, flight: Flight) {
        let Flight {
            from, to, start, ..
        } = flight;
        let node = &mut self.nodes[to];
        if node.sessions.get(&from) != Some(&start) {
            return;
        }
        let counters = node.counters.entry(from).or_default();
        counters.rx_any += 1;
        if let Datagram::Data { bytes } = flight.datagram {
            counters.rx_data += bytes;
        }
        if let Datagram::Control { packet } = flight.datagram {
            let (of, source) = (identity(from).public(), address(from));
            node.links.handle_control(&of, source, &packet, self.now);
        }
    }

    fn drain(&mut self, number: usize) {
        while let Some(event) = self.nodes[number].links.poll_event() {
            if let Event::Initiate { to, addresses } = &event {
                let to = self.number(to);
                if addresses.contains(&address(to)) {
                    self.send(number, to, Datagram::Initiation);
                }
            }
            if let Event::UsePath { of, address } = &event {
                let of = self.number(of);
                self.nodes[number].paths.insert(of, *address);
            }
            if event == Event::Left {
                self.nodes[number].is_running = false;
            }
            let now = self.now;
            self.nodes[number].events.push((now, event));
        }
        while let Some(transmit) = self.nodes[number].links.poll_transmit() {
            self.transmit(number, transmit);
        }
    }

    fn transmit(&mut self, from: usize, transmit: Transmit) {
        let to = self.number(&transmit.to);
        let node = &self.nodes[from];
        let path = transmit.path.or_else(|| node.paths.get(&to).copied());
        if node.sessions.contains_key(&to) && path == Some(address(to)) {
            let packet = transmit.packet;
            self.send(from, to, Datagram::Control { packet });
        }
    }

    fn number(&self, of: &PublicKey) -> usize {
        self.nodes.iter().position(|node| node.of == *of).unwrap()
    }
}

fn links(number: usize, site: &str, start: u64, now: Duration) -> Links {
    let local = Local {
        identity: identity(number),
        wireguard: wireguard(number),
        site: site.parse().unwrap(),
        boot: 1000 * (number as u64 + 1) + start,
    };
    Links::new(local, 7 * (number as u64 + 1) + start, now)
}
