//! Hosts, the edges of their sites, and the lines between them. Datagrams are opaque to it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::edge::{Edge, EdgeKind, public_of};
use super::line::Line;
use crate::dice::Dice;

pub type HostId = usize;

/// Every host's socket.
pub const PORT: u16 = 51820;

#[derive(Clone, Debug)]
pub struct Host {
    pub edge: usize,
    /// In its site.
    pub address: Ipv4Addr,
}

#[derive(Clone, Debug, Default)]
pub struct Network {
    pub hosts: Vec<Host>,
    pub edges: Vec<Edge>,
    lines: BTreeMap<(HostId, HostId), Line>,
    renumbered: u8,
}

/// On its way; whether it may come in is judged when it gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    edge: usize,
    within: bool,
}

impl Network {
    pub fn add_edge(&mut self, kind: EdgeKind) -> usize {
        let number = u8::try_from(self.edges.len()).expect("few edges");
        self.edges
            .push(Edge::new(kind, Ipv4Addr::new(6, number, 0, 1)));
        self.edges.len() - 1
    }

    pub fn add_host(&mut self, edge: usize) -> HostId {
        let site = u8::try_from(edge).expect("few edges");
        let number = u8::try_from(self.hosts.len() + 1).expect("few hosts");
        self.hosts.push(Host {
            edge,
            address: Ipv4Addr::new(10, site, 0, number),
        });
        self.hosts.len() - 1
    }

    pub fn set_line(&mut self, from: HostId, to: HostId, line: Line) {
        self.lines.insert((from, to), line);
    }

    pub fn line(&mut self, from: HostId, to: HostId) -> &mut Line {
        self.lines
            .entry((from, to))
            .or_insert_with(|| Line::new(Duration::from_millis(5)))
    }

    pub fn lines(&mut self) -> impl Iterator<Item = (&(HostId, HostId), &mut Line)> {
        self.lines.iter_mut()
    }

    pub fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.lines.get(&(from, to)).is_some_and(|line| line.is_cut)
    }

    pub fn private(&self, host: HostId) -> SocketAddrV4 {
        SocketAddrV4::new(self.hosts[host].address, PORT)
    }

    /// The address that the world can use for it without asking anyone.
    pub fn public(&self, host: HostId) -> Option<SocketAddrV4> {
        match self.edges[self.hosts[host].edge].kind {
            EdgeKind::Open | EdgeKind::Firewall => Some(public_of(self.private(host))),
            EdgeKind::Nat { .. } | EdgeKind::NoUdp => None,
        }
    }

    /// Another address inside, and with it outside.
    pub fn renumber(&mut self, host: HostId) {
        self.renumbered = self.renumbered % 200 + 1;
        let [a, b, _, d] = self.hosts[host].address.octets();
        self.hosts[host].address = Ipv4Addr::new(a, b, self.renumbered, d);
    }

    /// The NAT of this edge forgets everything, and has another address if that is wanted.
    pub fn rebind(&mut self, edge: usize, other_address: bool) {
        let [a, b, c, d] = self.edges[edge].public().octets();
        let third = if other_address { c.wrapping_add(1) } else { c };
        self.edges[edge].rebind(Ipv4Addr::new(a, b, third, d));
    }

    /// What becomes of a datagram of `size` bytes with its headers: where it flies, and when it
    /// gets there.
    pub fn send(
        &mut self,
        host: HostId,
        (to, size): (SocketAddr, usize),
        now: Duration,
        dice: &mut Dice,
    ) -> Vec<(Duration, Flight)> {
        let SocketAddr::V4(to) = to else {
            return Vec::new();
        };
        let private = self.private(host);
        let edge = self.hosts[host].edge;
        let neighbour = self.neighbour(edge, *to.ip());
        let (flight, other) = if let Some(neighbour) = neighbour {
            let flight = Flight {
                from: private,
                to,
                edge,
                within: true,
            };
            (flight, neighbour)
        } else {
            let Some(from) = self.edges[edge].outward(private, to, now, dice) else {
                return Vec::new();
            };
            let Some((edge, other)) = self.find(to, edge) else {
                return Vec::new();
            };
            let flight = Flight {
                from,
                to,
                edge,
                within: false,
            };
            (flight, other)
        };
        let line = self.line(host, other);
        let arrivals = line.carry(size, now, dice);
        arrivals.into_iter().map(|at| (at, flight)).collect()
    }

    /// The host that gets it.
    pub fn arrive(&mut self, flight: &Flight, now: Duration) -> Option<HostId> {
        let inside = if flight.within {
            flight.to
        } else {
            self.edges[flight.edge].inward(flight.from, flight.to, now)?
        };
        self.host_at(flight.edge, inside)
    }

    fn neighbour(&self, edge: usize, address: Ipv4Addr) -> Option<HostId> {
        self.hosts
            .iter()
            .position(|host| host.edge == edge && host.address == address)
    }

    fn host_at(&self, edge: usize, inside: SocketAddrV4) -> Option<HostId> {
        let host = self.neighbour(edge, *inside.ip())?;
        (inside.port() == PORT).then_some(host)
    }

    /// Behind a public address; from the inside it is not reached (no hairpin).
    fn find(&self, public: SocketAddrV4, from_edge: usize) -> Option<(usize, HostId)> {
        let [first, second, ..] = public.ip().octets();
        let edge = usize::from(second);
        let held = self.edges.get(edge).filter(|_| edge != from_edge)?;
        let is_its = match held.kind {
            EdgeKind::Open | EdgeKind::Firewall => first == 5,
            EdgeKind::Nat { .. } => *public.ip() == held.public(),
            EdgeKind::NoUdp => false,
        };
        if !is_its {
            return None;
        }
        let host = self.host_at(edge, held.inside(public)?)?;
        Some((edge, host))
    }
}
