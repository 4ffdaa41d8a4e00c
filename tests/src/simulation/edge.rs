//! Where a site meets the rest of the world: nothing at all, a firewall, or a NAT of any of the
//! kinds of RFC 4787.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use crate::dice::Dice;

/// How far a mapping or a filter looks at the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    Endpoint,
    Address,
    AddressAndPort,
}

pub const DEPENDENCES: [Dependence; 3] = [
    Dependence::Endpoint,
    Dependence::Address,
    Dependence::AddressAndPort,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeKind {
    /// Every host has a public address, and anything reaches it.
    Open,
    /// The same, but only answers come in.
    Firewall,
    Nat {
        mapping: Dependence,
        filtering: Dependence,
    },
    /// No datagram gets out or in.
    NoUdp,
}

#[derive(Clone, Debug)]
pub struct Edge {
    pub kind: EdgeKind,
    /// How long a mapping and a filter live after the last datagram out.
    pub expiry: Duration,
    /// Of the NAT itself; hosts of other kinds have one each.
    public: Ipv4Addr,
    mappings: BTreeMap<MappingKey, Mapping>,
    contacts: BTreeMap<(SocketAddrV4, SocketAddrV4), Duration>,
    next_sweep: Duration,
}

/// The inside, and what of the outside it depends on.
type MappingKey = (SocketAddrV4, Option<Ipv4Addr>, Option<u16>);

#[derive(Clone, Copy, Debug)]
struct Mapping {
    port: u16,
    used: Duration,
}

impl Edge {
    pub fn new(kind: EdgeKind, public: Ipv4Addr) -> Edge {
        Edge {
            kind,
            expiry: Duration::from_secs(120),
            public,
            mappings: BTreeMap::new(),
            contacts: BTreeMap::new(),
            next_sweep: Duration::ZERO,
        }
    }

    /// All it knew is forgotten; what comes next has another address or other ports.
    pub fn rebind(&mut self, public: Ipv4Addr) {
        self.public = public;
        self.mappings.clear();
        self.contacts.clear();
    }

    pub fn public(&self) -> Ipv4Addr {
        self.public
    }

    /// The source that the other side will see.
    pub fn outward(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        now: Duration,
        dice: &mut Dice,
    ) -> Option<SocketAddrV4> {
        self.sweep(now);
        let mapping = match self.kind {
            EdgeKind::NoUdp => return None,
            EdgeKind::Open => return Some(public_of(from)),
            EdgeKind::Firewall => {
                self.contacts.insert((from, to), now);
                return Some(public_of(from));
            }
            EdgeKind::Nat { mapping, .. } => mapping,
        };
        self.contacts.insert((from, to), now);
        let key = match mapping {
            Dependence::Endpoint => (from, None, None),
            Dependence::Address => (from, Some(*to.ip()), None),
            Dependence::AddressAndPort => (from, Some(*to.ip()), Some(to.port())),
        };
        let port = match self.mappings.get(&key) {
            Some(held) if now < held.used + self.expiry => held.port,
            Some(_) | None => self.free_port(dice),
        };
        self.mappings.insert(key, Mapping { port, used: now });
        Some(SocketAddrV4::new(self.public, port))
    }

    /// The host that this goes to, if it may come in.
    pub fn inward(
        &mut self,
        from: SocketAddrV4,
        to: SocketAddrV4,
        now: Duration,
    ) -> Option<SocketAddrV4> {
        self.sweep(now);
        let inside = self.inside(to)?;
        let filtering = match self.kind {
            EdgeKind::NoUdp => return None,
            EdgeKind::Open => return Some(inside),
            EdgeKind::Firewall => Dependence::AddressAndPort,
            EdgeKind::Nat { filtering, .. } => filtering,
        };
        let is_fresh = |at: Option<&Duration>| at.is_some_and(|at| now < *at + self.expiry);
        let may_pass = match filtering {
            Dependence::Endpoint => true,
            Dependence::Address => self
                .contacts
                .range(span(inside, *from.ip()))
                .any(|(_, at)| is_fresh(Some(at))),
            Dependence::AddressAndPort => is_fresh(self.contacts.get(&(inside, from))),
        };
        may_pass.then_some(inside)
    }

    /// Behind this public address, whether or not it may be reached.
    pub fn inside(&self, public: SocketAddrV4) -> Option<SocketAddrV4> {
        match self.kind {
            EdgeKind::NoUdp => None,
            EdgeKind::Open | EdgeKind::Firewall => Some(private_of(public)),
            EdgeKind::Nat { .. } => {
                let mut all = self.mappings.iter();
                all.find(|(_, held)| held.port == public.port())
                    .map(|((inside, ..), _)| *inside)
            }
        }
    }

    fn free_port(&self, dice: &mut Dice) -> u16 {
        loop {
            let port = u16::try_from(10_000 + dice.below(50_000)).unwrap_or(10_000);
            if self.mappings.values().all(|held| held.port != port) {
                return port;
            }
        }
    }

    fn sweep(&mut self, now: Duration) {
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + Duration::from_secs(1);
        let expiry = self.expiry;
        self.mappings.retain(|_, held| now < held.used + expiry);
        self.contacts.retain(|_, at| now < *at + expiry);
    }
}

/// All contacts of an inside with one address.
fn span(
    inside: SocketAddrV4,
    remote: Ipv4Addr,
) -> std::ops::RangeInclusive<(SocketAddrV4, SocketAddrV4)> {
    let at = |port| (inside, SocketAddrV4::new(remote, port));
    at(0)..=at(u16::MAX)
}

/// Where nothing is translated, a host `10.S.M.N` is `5.S.M.N` to the world.
pub fn public_of(private: SocketAddrV4) -> SocketAddrV4 {
    with_first(private, 5)
}

fn private_of(public: SocketAddrV4) -> SocketAddrV4 {
    with_first(public, 10)
}

fn with_first(address: SocketAddrV4, first: u8) -> SocketAddrV4 {
    let [_, b, c, d] = address.ip().octets();
    SocketAddrV4::new(Ipv4Addr::new(first, b, c, d), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 51820);
    const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(7, 0, 0, 1), 7800);
    const OTHER_PORT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(7, 0, 0, 1), 7801);
    const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(7, 0, 0, 2), 7800);

    fn nat(mapping: Dependence, filtering: Dependence) -> Edge {
        Edge::new(
            EdgeKind::Nat { mapping, filtering },
            Ipv4Addr::new(6, 0, 0, 1),
        )
    }

    #[test]
    fn a_mapping_depends_on_what_its_kind_says() {
        for (mapping, same) in [
            (Dependence::Endpoint, [true, true]),
            (Dependence::Address, [true, false]),
            (Dependence::AddressAndPort, [false, false]),
        ] {
            let mut edge = nat(mapping, Dependence::Endpoint);
            let dice = &mut Dice::of(1);
            let mut seen = |to| edge.outward(INSIDE, to, Duration::ZERO, dice).unwrap();
            let first = seen(OUTSIDE);
            assert_eq!([seen(OTHER_PORT) == first, seen(OTHER) == first], same);
            assert_eq!(seen(OUTSIDE), first);
        }
    }

    #[test]
    fn a_filter_lets_in_what_its_kind_says() {
        for (filtering, passes) in [
            (Dependence::Endpoint, [true, true, true]),
            (Dependence::Address, [true, true, false]),
            (Dependence::AddressAndPort, [true, false, false]),
        ] {
            let mut edge = nat(Dependence::Endpoint, filtering);
            let now = Duration::ZERO;
            let seen = edge
                .outward(INSIDE, OUTSIDE, now, &mut Dice::of(1))
                .unwrap();
            let found = [OUTSIDE, OTHER_PORT, OTHER]
                .map(|from| edge.inward(from, seen, now) == Some(INSIDE));
            assert_eq!(found, passes);
        }
    }

    #[test]
    fn what_is_not_used_expires_and_what_is_rebound_is_gone() {
        let mut edge = nat(Dependence::Endpoint, Dependence::Endpoint);
        let dice = &mut Dice::of(1);
        let seen = edge.outward(INSIDE, OUTSIDE, Duration::ZERO, dice).unwrap();
        let late = edge.expiry;
        assert_eq!(edge.inward(OUTSIDE, seen, late), None);
        let again = edge.outward(INSIDE, OUTSIDE, late, dice).unwrap();
        edge.rebind(Ipv4Addr::new(6, 0, 1, 1));
        assert_eq!(edge.inward(OUTSIDE, again, late), None);
    }

    #[test]
    fn a_firewall_lets_only_answers_in() {
        let mut edge = Edge::new(EdgeKind::Firewall, Ipv4Addr::UNSPECIFIED);
        let now = Duration::ZERO;
        let public = public_of(INSIDE);
        assert_eq!(edge.inward(OUTSIDE, public, now), None);
        edge.outward(INSIDE, OUTSIDE, now, &mut Dice::of(1));
        assert_eq!(edge.inward(OUTSIDE, public, now), Some(INSIDE));
        assert_eq!(edge.inward(OTHER, public, now), None);
    }
}
