//! Two gateways with several addresses each, NATs before them and a relay between: the paths of
//! one link, seen from the outside of `Links`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::wire::{identity, ms, wireguard};
use crate::links::{Change, Counters, Event, Gateway, LinkStatus, Links, Local, PathKind, Roster};

/// Maps an inner address to one outer port whatever the destination, and lets in only those that
/// were sent to.
pub(super) struct Nat {
    pub(super) outer: SocketAddr,
    let_in: BTreeSet<SocketAddr>,
}

pub(super) struct Side {
    pub(super) links: Links,
    /// The last is the one that datagrams leave from where nothing else fits.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) nat: Option<Nat>,
    /// Of the relay's client, on this machine.
    pub(super) relay: Option<SocketAddr>,
    has_session: bool,
    path: Option<SocketAddr>,
    counters: Counters,
    pub(super) changes: Vec<(Duration, Change)>,
    pub(super) mtu: u16,
    pub(super) relay_wanted: Vec<(Duration, bool)>,
    handed_over: usize,
}

enum Datagram {
    Initiation,
    Response,
    Confirmation,
    Control(Vec<u8>),
}

pub(super) struct Roads {
    pub(super) now: Duration,
    pub(super) sides: [Side; 2],
    /// One way.
    pub(super) trip: Duration,
    /// Addresses that nothing passes to or from, that nothing passes to, and those that are slower.
    pub(super) dead: BTreeSet<SocketAddr>,
    pub(super) dead_to: BTreeSet<SocketAddr>,
    pub(super) slower: BTreeMap<SocketAddr, Duration>,
    /// Of what fits inside, by the address that is sent to.
    pub(super) mtu: BTreeMap<SocketAddr, usize>,
    /// Whether data is sent both ways, in large packets.
    pub(super) is_busy: bool,
    flights: BTreeMap<(Duration, u64), (usize, SocketAddr, Datagram)>,
    sent: u64,
    sweep: Duration,
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Nat {
    fn new(outer: &str) -> Nat {
        Nat {
            outer: address(outer),
            let_in: BTreeSet::new(),
        }
    }
}

impl Side {
    fn new(number: usize, addresses: &[&str], now: Duration) -> Side {
        let local = Local {
            identity: identity(number),
            wireguard: wireguard(number),
            site: format!("site-{number}").parse().unwrap(),
            boot: 1000 + number as u64,
        };
        Side {
            links: Links::new(local, 11 + number as u64, now),
            addresses: addresses.iter().map(|text| address(text)).collect(),
            nat: None,
            relay: None,
            has_session: false,
            path: None,
            counters: Counters::default(),
            changes: Vec::new(),
            mtu: 1280,
            relay_wanted: Vec::new(),
            handed_over: 0,
        }
    }
}

impl Roads {
    pub(super) fn new(one: &[&str], other: &[&str]) -> Roads {
        let now = ms(1000);
        Roads {
            now,
            sides: [Side::new(0, one, now), Side::new(1, other, now)],
            trip: ms(20),
            dead: BTreeSet::new(),
            dead_to: BTreeSet::new(),
            slower: BTreeMap::new(),
            mtu: BTreeMap::new(),
            is_busy: false,
            flights: BTreeMap::new(),
            sent: 0,
            sweep: now,
        }
    }

    /// Each learns these addresses of the other from its record.
    pub(super) fn introduce(&mut self, one: &[&str], other: &[&str]) {
        for (at, told) in [(0, other), (1, one)] {
            let gateway = Gateway {
                site: format!("site-{}", 1 - at).parse().unwrap(),
                node: "gate".parse().unwrap(),
                wireguard: wireguard(1 - at),
                candidates: told.iter().map(|text| address(text)).collect(),
                lan: told.first().map(|text| address(text).ip()),
            };
            let gateways = BTreeMap::from([(identity(1 - at).public(), gateway)]);
            let roster = Roster {
                gateways,
                prefixes: Vec::new(),
            };
            let now = self.now;
            self.sides[at].links.handle_roster(&roster, now);
            self.drain(at);
        }
    }

    pub(super) fn give_relay(&mut self) {
        for (at, port) in [(0, 4000), (1, 4001)] {
            let relay = SocketAddr::from(([127, 0, 0, 1], port));
            self.sides[at].relay = Some(relay);
            let (of, now) = (identity(1 - at).public(), self.now);
            self.sides[at].links.handle_relay(&of, Some(relay), now);
            self.drain(at);
        }
    }

    pub(super) fn status(&self, at: usize) -> LinkStatus {
        self.sides[at].links.statuses(self.now).remove(0)
    }

    pub(super) fn path(&self, at: usize) -> Option<(SocketAddr, PathKind)> {
        self.status(at).path
    }

    pub(super) fn are_up(&self) -> bool {
        [0, 1].iter().all(|at| self.status(*at).state.is_ok())
    }

    pub(super) fn forget(&mut self) {
        for side in &mut self.sides {
            side.changes.clear();
            side.relay_wanted.clear();
        }
    }

    pub(super) fn downs(&self) -> Vec<Change> {
        let changes = self.sides.iter().flat_map(|side| &side.changes);
        let downs = changes.filter(|(_, change)| matches!(change, Change::Down(_)));
        downs.map(|(_, change)| change.clone()).collect()
    }

    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        self.run_until(end, |_| false);
    }

    pub(super) fn run_until(&mut self, end: Duration, holds: impl Fn(&Roads) -> bool) -> bool {
        loop {
            if holds(self) {
                return true;
            }
            let timeouts = self
                .sides
                .iter()
                .filter_map(|side| side.links.poll_timeout());
            let flight = self.flights.keys().next().map(|(at, _)| *at);
            let next = timeouts.chain(flight).chain([self.sweep]).min().unwrap();
            if next > end {
                self.now = end;
                return false;
            }
            self.now = self.now.max(next);
            while let Some(first) = self.flights.first_entry()
                && first.key().0 <= self.now
            {
                let (from, to, datagram) = first.remove();
                self.arrive(from, to, datagram);
            }
            if self.sweep <= self.now {
                self.sweep();
            }
            for at in 0..2 {
                let now = self.now;
                if self.sides[at]
                    .links
                    .poll_timeout()
                    .is_some_and(|due| due <= now)
                {
                    self.sides[at].links.handle_timeout(now);
                    self.drain(at);
                }
            }
        }
    }

    /// Every 100 ms.
    fn sweep(&mut self) {
        self.sweep += ms(100);
        for at in 0..2 {
            if self.is_busy {
                self.sides[at].counters.tx_data += 1000;
                self.sides[at].counters.large += 1;
            }
            let (of, now, counters) =
                (identity(1 - at).public(), self.now, self.sides[at].counters);
            self.sides[at].links.handle_counters(&of, counters, now);
            self.drain(at);
        }
    }

    fn drain(&mut self, at: usize) {
        while let Some(event) = self.sides[at].links.poll_event() {
            self.handle_event(at, event);
        }
        while let Some(transmit) = self.sides[at].links.poll_transmit() {
            let to = transmit.path.or(self.sides[at].path);
            if let Some(to) = to.filter(|_| self.sides[at].has_session) {
                self.send(at, to, Datagram::Control(transmit.packet));
            }
        }
    }

    fn handle_event(&mut self, at: usize, event: Event) {
        let now = self.now;
        let side = &mut self.sides[at];
        match event {
            Event::Initiate { addresses, .. } => {
                for to in addresses {
                    self.send(at, to, Datagram::Initiation);
                }
            }
            Event::UsePath { address, .. } => side.path = Some(address),
            Event::Mtu { mtu, .. } => side.mtu = mtu,
            Event::Relay { wanted, .. } => side.relay_wanted.push((now, wanted)),
            Event::Changed { change, .. } => side.changes.push((now, change)),
            Event::HandedOver { handover, .. } => side.handed_over += handover.entries.len(),
            Event::CarriersChanged | Event::Ponged { .. } | Event::Left => {}
        }
    }

    fn send(&mut self, at: usize, to: SocketAddr, datagram: Datagram) {
        if let Some(nat) = &mut self.sides[at].nat {
            nat.let_in.insert(to);
        }
        self.sent += 1;
        let slower = self.slower.get(&to).copied().unwrap_or_default();
        let arrival = (self.now + self.trip + slower, self.sent);
        self.flights.insert(arrival, (at, to, datagram));
    }

    /// Where a datagram seems to come from that was sent there.
    fn source(&self, from: usize, to: SocketAddr) -> SocketAddr {
        let side = &self.sides[from];
        let in_its_network = |own: &&SocketAddr| match (own.ip(), to.ip()) {
            (std::net::IpAddr::V4(own), std::net::IpAddr::V4(to)) => {
                own.octets()[0] == to.octets()[0]
            }
            _ => false,
        };
        let own = side.addresses.iter().find(in_its_network);
        let own = *own.or(side.addresses.last()).unwrap();
        side.nat.as_ref().map_or(own, |nat| nat.outer)
    }

    fn arrive(&mut self, from: usize, to: SocketAddr, datagram: Datagram) {
        let at = 1 - from;
        let is_relayed = self.sides[from].relay == Some(to);
        let source = if is_relayed {
            let Some(relay) = self.sides[at].relay else {
                return;
            };
            relay
        } else {
            self.source(from, to)
        };
        let side = &self.sides[at];
        let reaches = match &side.nat {
            _ if is_relayed => true,
            Some(nat) => nat.outer == to && nat.let_in.contains(&source),
            None => side.addresses.contains(&to),
        };
        let most = self.mtu.get(&to).copied().unwrap_or(usize::MAX);
        let is_dead = self.dead.contains(&to) || self.dead.contains(&source);
        if !reaches || is_dead || self.dead_to.contains(&to) {
            return;
        }
        let (of, now) = (identity(from).public(), self.now);
        match datagram {
            Datagram::Initiation => self.send(at, source, Datagram::Response),
            Datagram::Response => {
                self.sides[at].has_session = true;
                self.send(at, source, Datagram::Confirmation);
                self.sides[at].links.handle_session(&of, source, now);
            }
            Datagram::Confirmation => {
                self.sides[at].has_session = true;
                self.sides[at].links.handle_session(&of, source, now);
            }
            Datagram::Control(packet) if side.has_session && packet.len() <= most => {
                self.sides[at].counters.rx_any += 1;
                self.sides[at]
                    .links
                    .handle_control(&of, source, &packet, now);
            }
            Datagram::Control(_) => {}
        }
        self.drain(at);
    }
}

const ONE: &str = "192.0.2.1:51820";
const OTHER: &str = "198.51.100.2:51820";

/// `sides[0]` behind a NAT, `sides[1]` in the open.
fn behind_nat() -> Roads {
    let mut roads = Roads::new(&["10.0.0.5:51820"], &[OTHER]);
    roads.sides[0].nat = Some(Nat::new("192.0.2.1:40000"));
    roads.introduce(&[], &[OTHER]);
    roads.run(ms(5000));
    assert!(roads.are_up());
    roads
}

#[test]
fn a_site_that_can_only_dial_out_is_connected() {
    let roads = behind_nat();
    assert_eq!(
        roads.path(1),
        Some((address("192.0.2.1:40000"), PathKind::Observed))
    );
    let seen_as = roads.status(0).seen_as;
    assert_eq!(seen_as, Some(address("192.0.2.1:40000")));
}

#[test]
fn a_new_address_of_a_nat_is_followed_one_round_trip_after_the_next_packet() {
    for is_busy in [false, true] {
        for phase in 0..5 {
            let mut roads = behind_nat();
            roads.is_busy = is_busy;
            roads.run(ms(3000 + 197 * phase));
            roads.forget();
            roads.sides[0].nat = Some(Nat::new("192.0.2.99:50000"));
            let moved = roads.now;
            roads.run(ms(1500));
            let path = roads.path(1).unwrap().0;
            assert_eq!(path, address("192.0.2.99:50000"));
            // The next packet comes within an interval; a probe and its echo are a round trip.
            let interval = if is_busy { ms(100) } else { ms(1000) };
            let changes = roads.sides[1].changes.iter();
            let mut changes = changes.filter(|(_, c)| matches!(c, Change::Path { .. }));
            let (when, _) = changes.next().unwrap();
            assert!(*when - moved <= interval + roads.trip * 3 + ms(1));
            assert_eq!(roads.downs(), []);
        }
    }
}

/// Both have two addresses; the first is in the network that they share.
fn with_two_paths() -> Roads {
    let (one, other) = (["10.0.0.1:51820", ONE], ["10.0.0.2:51820", OTHER]);
    let mut roads = Roads::new(&one, &other);
    roads.introduce(&one, &other);
    roads.run(ms(5000));
    assert!(roads.are_up());
    for at in [0, 1] {
        let path = roads.path(at).unwrap();
        assert_eq!(
            path,
            (
                address(["10.0.0.2:51820", "10.0.0.1:51820"][at]),
                PathKind::Lan
            )
        );
    }
    roads
}

#[test]
fn a_path_that_dies_is_left_without_the_link_going_down_and_taken_again_when_it_lives() {
    for is_busy in [false, true] {
        for phase in 0..5 {
            let mut roads = with_two_paths();
            roads.is_busy = is_busy;
            roads.run(ms(3000 + 197 * phase));
            roads.forget();
            roads.dead = [address("10.0.0.1:51820"), address("10.0.0.2:51820")].into();
            roads.run(ms(2000));
            assert_eq!(
                roads.path(0).unwrap().0,
                address(OTHER),
                "{is_busy} {phase}"
            );
            assert_eq!(roads.path(1).unwrap().0, address(ONE));
            roads.dead.clear();
            roads.run(ms(70_000));
            assert_eq!(roads.path(0).unwrap().1, PathKind::Lan);
            assert_eq!(roads.path(1).unwrap().1, PathKind::Lan);
            assert_eq!(roads.downs(), [], "{is_busy} {phase}");
        }
    }
}

#[test]
fn a_path_that_dies_in_one_direction_is_left_by_who_is_not_heard() {
    for is_busy in [false, true] {
        let mut roads = with_two_paths();
        roads.is_busy = is_busy;
        roads.run(ms(3000));
        roads.forget();
        // Nothing of the first side arrives there.
        roads.dead_to = [address("10.0.0.2:51820")].into();
        roads.run(ms(3000));
        assert_eq!(roads.path(0).unwrap().0, address(OTHER));
        assert!(roads.are_up());
        assert_eq!(roads.downs(), [], "{is_busy}");
    }
}

#[test]
fn a_relay_carries_the_link_while_no_direct_path_does_and_is_given_back_after() {
    let mut roads = Roads::new(&[ONE], &[OTHER]);
    roads.dead = [address(ONE), address(OTHER)].into();
    roads.introduce(&[ONE], &[OTHER]);
    let start = roads.now;
    roads.run(ms(1700));
    for side in &roads.sides {
        assert_eq!(side.relay_wanted, [(start + ms(1500), true)]);
    }
    roads.give_relay();
    roads.run(ms(1500));
    assert!(roads.are_up());
    assert_eq!(roads.path(0).unwrap().1, PathKind::Relay);
    roads.run(ms(60_000));
    roads.forget();
    roads.dead.clear();
    roads.run(ms(12_000));
    assert_eq!(roads.path(0), Some((address(OTHER), PathKind::Lan)));
    assert_eq!(roads.path(1), Some((address(ONE), PathKind::Lan)));
    roads.run(ms(62_000));
    for side in &roads.sides {
        assert_eq!(side.relay_wanted.len(), 1);
        assert!(!side.relay_wanted[0].1);
    }
    // And again, from a living direct path.
    roads.forget();
    roads.dead = [address(ONE), address(OTHER)].into();
    roads.is_busy = true;
    roads.run(ms(3000));
    assert_eq!(roads.path(0).unwrap().1, PathKind::Relay);
    assert!(roads.are_up());
    roads.run(ms(60_000));
    assert!(roads.are_up());
    let last = roads.sides[0].relay_wanted.last();
    assert!(last.is_some_and(|(_, wanted)| *wanted));
}

#[test]
fn a_relay_is_not_left_for_a_path_that_leads_one_way_only_even_when_it_fails_for_a_moment() {
    let mut roads = Roads::new(&[ONE], &[OTHER]);
    roads.dead_to = [address(OTHER)].into();
    roads.introduce(&[ONE], &[OTHER]);
    roads.run(ms(1700));
    roads.give_relay();
    roads.run(ms(3000));
    assert!(roads.are_up());
    let relays = [0, 1].map(|at| roads.sides[at].relay.unwrap());
    for phase in 0..12 {
        roads.is_busy = phase % 2 == 0;
        roads.dead_to.extend(relays);
        roads.run(ms(600 + 70 * phase));
        roads.dead_to = [address(OTHER)].into();
        // Probes of the other side come directly meanwhile.
        roads.run(ms(6000));
        assert_eq!(roads.path(0).unwrap().1, PathKind::Relay, "{phase}");
        assert!(roads.are_up(), "{phase}");
    }
}

#[test]
fn two_behind_nats_find_each_other_by_what_a_relay_lets_them_tell() {
    let mut roads = Roads::new(&["10.0.0.5:51820"], &["10.9.0.6:51820"]);
    roads.sides[0].nat = Some(Nat::new("192.0.2.1:40000"));
    roads.sides[1].nat = Some(Nat::new("198.51.100.2:50000"));
    // Their records say nothing that leads anywhere.
    roads.introduce(&[], &[]);
    roads.run(ms(2000));
    roads.give_relay();
    roads.run(ms(3000));
    assert!(roads.are_up());
    assert_eq!(roads.path(0).unwrap().1, PathKind::Relay);
    roads.forget();
    // The reflector has told them how they are seen.
    for at in [0, 1] {
        let outer = roads.sides[at].nat.as_ref().unwrap().outer;
        let now = roads.now;
        roads.sides[at].links.handle_own_addresses(&[outer], now);
        roads.drain(at);
    }
    roads.run(ms(1500));
    assert_eq!(roads.path(0).unwrap().0, address("198.51.100.2:50000"));
    assert_eq!(roads.path(1).unwrap().0, address("192.0.2.1:40000"));
    assert_eq!(roads.downs(), []);
}

#[test]
fn two_behind_nats_that_are_named_in_their_records_need_no_relay() {
    let mut roads = Roads::new(&["10.0.0.5:51820"], &["10.9.0.6:51820"]);
    roads.sides[0].nat = Some(Nat::new("192.0.2.1:40000"));
    roads.sides[1].nat = Some(Nat::new("198.51.100.2:50000"));
    roads.introduce(&["192.0.2.1:40000"], &["198.51.100.2:50000"]);
    roads.run(ms(1500));
    assert!(roads.are_up());
    assert!(roads.sides.iter().all(|side| side.relay_wanted.is_empty()));
}

#[test]
fn the_mtu_told_is_that_of_the_path_in_use_and_follows_it() {
    let mut roads = with_two_paths();
    roads.mtu = [
        (address("10.0.0.1:51820"), 8920),
        (address("10.0.0.2:51820"), 8920),
        (address(ONE), 1390),
        (address(OTHER), 1390),
    ]
    .into();
    roads.is_busy = true;
    roads.run(ms(40_000));
    assert_eq!(roads.sides[0].mtu, 8920);
    roads.dead = [address("10.0.0.1:51820"), address("10.0.0.2:51820")].into();
    roads.run(ms(1500));
    assert!(roads.sides[0].mtu <= 1390);
    roads.run(ms(3000));
    assert!((1387..=1390).contains(&roads.sides[0].mtu));
    roads.mtu.insert(address(OTHER), 1300);
    roads.run(ms(2000));
    assert!(roads.sides[0].mtu <= 1300);
    assert!(
        (1387..=1390).contains(&roads.sides[1].mtu),
        "the other direction"
    );
    assert_eq!(roads.downs(), []);
}

#[test]
fn a_link_by_a_slow_way_comes_up_and_stays() {
    for trip in [150, 300, 450] {
        let mut roads = Roads::new(&[ONE], &[OTHER]);
        roads.trip = ms(trip);
        roads.introduce(&[ONE], &[OTHER]);
        roads.run(ms(10 * trip));
        assert!(roads.are_up(), "{trip}");
        roads.forget();
        roads.is_busy = true;
        roads.run(ms(60_000));
        assert_eq!(roads.downs(), [], "{trip}");
        let paths = roads.sides.iter().flat_map(|side| &side.changes).count();
        assert_eq!(paths, 0, "{trip}");
    }
}
