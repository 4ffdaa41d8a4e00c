//! The reference model: from the state of the world alone, which pairs of gateways can have a link
//! and of what kind. It knows nothing of how links are made.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::edge::EdgeKind;
use super::line::{Line, Loss};
use super::network::{Flight, HostId, Network};
use super::node::NodeId;
use super::world::World;
use crate::dice::Dice;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    None,
    Relay,
    Direct,
}

/// Whether two sites with such edges can speak without help, once both know where the other was
/// seen by a third party: tried out, both sending to all they know at once, a few times.
pub fn can_punch(one: EdgeKind, other: EdgeKind) -> bool {
    // Ports are drawn anew each time; none may be met by chance.
    let mut network = Network::default();
    let third = network.add_edge(EdgeKind::Open);
    let third = network.add_host(third);
    let hosts = [one, other].map(|kind| {
        let edge = network.add_edge(kind);
        network.add_host(edge)
    });
    for from in [third, hosts[0], hosts[1]] {
        for to in [third, hosts[0], hosts[1]] {
            network.set_line(from, to, Line::new(Duration::ZERO));
        }
    }
    let mut trial = Trial {
        network,
        dice: Dice::of(1),
    };
    let reflector = trial.network.public(third).map(SocketAddr::V4);
    let mut known: [BTreeSet<SocketAddrV4>; 2] = Default::default();
    for (at, host) in hosts.into_iter().enumerate() {
        let public = trial.network.public(host);
        let seen = reflector.and_then(|reflector| trial.send(host, reflector));
        known[1 - at].extend(public.into_iter().chain(seen.map(|flight| flight.from)));
    }
    trial.punch(hosts, known)
}

struct Trial {
    network: Network,
    dice: Dice,
}

impl Trial {
    fn send(&mut self, from: HostId, to: SocketAddr) -> Option<Flight> {
        let now = Duration::ZERO;
        let sent = self.network.send(from, (to, 100), now, &mut self.dice);
        sent.first().map(|(_, flight)| *flight)
    }

    /// Whether an answer ever comes back; it may come from another address than was asked.
    fn punch(&mut self, hosts: [HostId; 2], mut known: [BTreeSet<SocketAddrV4>; 2]) -> bool {
        for _ in 0..4 {
            let mut flights = Vec::new();
            for at in 0..2 {
                for to in known[at].clone() {
                    let flight = self.send(hosts[at], SocketAddr::V4(to));
                    flights.extend(flight.map(|flight| (at, flight)));
                }
            }
            for (at, flight) in flights {
                if self.network.arrive(&flight, Duration::ZERO) != Some(hosts[1 - at]) {
                    continue;
                }
                known[1 - at].insert(flight.from);
                let answer = self.send(hosts[1 - at], SocketAddr::V4(flight.from));
                let back = answer.and_then(|answer| self.network.arrive(&answer, Duration::ZERO));
                if back == Some(hosts[at]) {
                    return true;
                }
            }
        }
        false
    }
}

impl World {
    /// What both could have now, if they know each other's latest record.
    pub fn reach(&self, one: NodeId, other: NodeId) -> Reach {
        let (a, b) = (&self.nodes[one], &self.nodes[other]);
        if !a.is_running() || !b.is_running() || !self.know_each_other(one, other) {
            return Reach::None;
        }
        let is_whole = !self.network.is_cut(a.host, b.host) && !self.network.is_cut(b.host, a.host);
        let edges = [a.host, b.host].map(|host| self.network.hosts[host].edge);
        let kinds = edges.map(|edge| self.network.edges[edge].kind);
        let can_direct = edges[0] == edges[1] || can_punch(kinds[0], kinds[1]);
        if is_whole && can_direct {
            Reach::Direct
        } else if self.broker.relays && self.reaches_broker(one) && self.reaches_broker(other) {
            Reach::Relay
        } else {
            Reach::None
        }
    }

    /// Both believe the other to be a node, with the keys it has now.
    pub fn know_each_other(&self, one: NodeId, other: NodeId) -> bool {
        self.knows(one, other) && self.knows(other, one)
    }

    /// Both have the other's last record: who has moved unseen need not be found.
    pub fn are_informed(&self, one: NodeId, other: NodeId) -> bool {
        let has_last = |by: NodeId, of: NodeId| {
            let actor = &self.nodes[of].actor;
            let held = self.nodes[by].mesh.node(&actor.identity);
            held.is_some_and(|held| held.record.sequence == actor.sequence)
        };
        has_last(one, other) && has_last(other, one)
    }

    pub fn knows(&self, one: NodeId, other: NodeId) -> bool {
        let other = &self.nodes[other];
        let listed = self.nodes[one]
            .process
            .as_ref()
            .and_then(|process| process.roster.gateways.get(&other.identity()));
        listed.is_some_and(|gateway| gateway.wireguard == other.actor.wireguard)
    }

    /// The part lost between two nodes at worst, of a thousand; `None` in bursts.
    pub fn loss(&mut self, one: NodeId, other: NodeId) -> Option<u32> {
        let (one, other) = (self.nodes[one].host, self.nodes[other].host);
        let broker = self.broker.host;
        let mut worst = 0;
        for (from, to) in [(one, other), (other, one)] {
            for (from, to) in [(from, to), (from, broker), (broker, from)] {
                match self.network.line(from, to).loss {
                    Loss::Independent(per_mille) => worst = worst.max(per_mille),
                    Loss::Bursts { .. } => return None,
                }
            }
        }
        Some(worst)
    }
}

/// Whether an address lies in what sites have inside.
pub fn site_of(address: Ipv4Addr) -> Option<usize> {
    let [first, second, ..] = address.octets();
    (first == 10).then_some(usize::from(second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::edge::Dependence;

    fn nat(mapping: Dependence, filtering: Dependence) -> EdgeKind {
        EdgeKind::Nat { mapping, filtering }
    }

    #[test]
    fn who_can_reach_whom_is_as_everybody_knows_it() {
        use Dependence::{Address, AddressAndPort, Endpoint};
        let cone = nat(Endpoint, Endpoint);
        let restricted = nat(Endpoint, Address);
        let port_restricted = nat(Endpoint, AddressAndPort);
        let symmetric = nat(AddressAndPort, AddressAndPort);
        for (one, other, can) in [
            (EdgeKind::Open, symmetric, true),
            (EdgeKind::Firewall, EdgeKind::Firewall, true),
            (port_restricted, port_restricted, true),
            (cone, symmetric, true),
            (restricted, symmetric, true),
            (port_restricted, symmetric, false),
            (EdgeKind::Firewall, symmetric, false),
            (symmetric, symmetric, false),
            (EdgeKind::NoUdp, EdgeKind::Open, false),
        ] {
            assert_eq!(can_punch(one, other), can, "{one:?} {other:?}");
            assert_eq!(can_punch(other, one), can, "{other:?} {one:?}");
        }
    }
}
