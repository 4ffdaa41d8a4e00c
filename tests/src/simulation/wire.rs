//! Between a node's links and the network: what its packet path does with each datagram.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use gateway::links::Transmit;
use proto::control;
use proto::key::PublicKey;

use super::edge::EdgeKind;
use super::network::HostId;
use super::node::{Datagram, Inner, NodeId, Relay};
use super::tunnel::{Answer, Data, HANDSHAKE_SIZE, Initiation, Wire, outer_size};
use super::world::{What, World};

/// Of a socket whose process does not read it.
const SOCKET_QUEUE: usize = 400;
/// What the own interface carries; a larger datagram is refused to the sender.
const INTERFACE_MTU: usize = 1500;
/// Around a datagram that is relayed.
const RELAY_HEADER: usize = 40;
const FIRST_RELAY_PORT: u16 = 20_000;
/// A new source is told to control so often.
const SOURCE_AGAIN: Duration = Duration::from_secs(1);
const REFLECT_SIZE: usize = 100;
/// Of a thousand datagrams that arrive, and how many are kept.
const RECORDED: u32 = 50;
const MOST_RECORDED: u64 = 100;

impl World {
    pub(super) fn transmit(&mut self, at: NodeId, transmit: Transmit) {
        self.seal(
            at,
            &transmit.to,
            Inner::Control(transmit.packet),
            transmit.path,
        );
    }

    /// Into the tunnel of `to`, out by its path in use or the one given.
    pub(super) fn seal(
        &mut self,
        at: NodeId,
        to: &PublicKey,
        inner: Inner,
        path: Option<SocketAddr>,
    ) {
        let now = self.now;
        let Some(peer) = self.nodes[at]
            .process
            .as_mut()
            .and_then(|process| process.peers.get_mut(to))
        else {
            return;
        };
        let length = match &inner {
            Inner::Control(packet) => packet.len(),
            // What is larger was cut or refused before.
            Inner::Sample(sample) => sample.size.min(peer.mtu),
        };
        let Some(path) = path.or(peer.tunnel.endpoint) else {
            return;
        };
        let is_sample = matches!(inner, Inner::Sample(_));
        let Some(data) = peer.tunnel.seal(Some(inner), now) else {
            return;
        };
        if is_sample {
            peer.counters.tx_data += length as u64;
            peer.counters.large += u64::from(length > 1200);
        }
        // Control says the size of what it sends; it is not padded.
        let size = outer_size(length, if is_sample { peer.mtu } else { length });
        self.send(at, path, size, Wire::Data(data));
    }

    pub(super) fn initiate(&mut self, at: NodeId, to: &PublicKey, addresses: &[SocketAddr]) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let wall = (i128::from(node.clock) + now.as_micros() as i128).max(1);
        let Some(process) = &mut node.process else {
            return;
        };
        let Some(peer) = process.peers.get_mut(to) else {
            return;
        };
        let stamp = u64::try_from(wall).unwrap_or(1).max(process.last_stamp + 1);
        process.last_stamp = stamp;
        let initiation = peer.tunnel.initiate(stamp, now, &mut self.dice);
        self.note_of(at, to, format!("initiation to {addresses:?}"));
        for address in addresses {
            self.send(at, *address, HANDSHAKE_SIZE, Wire::Initiation(initiation));
        }
    }

    pub(super) fn send(&mut self, at: NodeId, to: SocketAddr, size: usize, datagram: Datagram) {
        self.trace.add((self.now, at, to, size));
        self.check_address(at, to);
        if to.ip().is_loopback() {
            return self.send_relayed(at, to, size, datagram);
        }
        if size > INTERFACE_MTU {
            return;
        }
        let host = self.nodes[at].host;
        let flights = self
            .network
            .send(host, (to, size), self.now, &mut self.dice);
        for (when, flight) in flights {
            self.schedule(when, What::Arrive(flight, datagram.clone()));
        }
    }

    pub(super) fn arrive(&mut self, host: HostId, source: SocketAddr, datagram: Datagram) {
        if host == self.broker.host {
            return self.reflect(source, &datagram);
        }
        if self.dice.chance(RECORDED) {
            let at = usize::try_from(self.dice.below(MOST_RECORDED)).unwrap_or_default();
            let record = (host, source, datagram.clone());
            match self.recorded.get_mut(at) {
                Some(older) => *older = record,
                None => self.recorded.push(record),
            }
        }
        if let Some(at) = self.nodes.iter().position(|node| node.host == host) {
            self.deliver(at, source, datagram);
        }
    }

    /// To the socket; read at once if anyone reads.
    fn deliver(&mut self, at: NodeId, source: SocketAddr, datagram: Datagram) {
        let node = &mut self.nodes[at];
        if node.is_stopped {
            if node.backlog.len() < SOCKET_QUEUE {
                node.backlog.push_back((source, datagram));
            }
        } else {
            self.receive(at, source, datagram);
        }
    }

    pub(super) fn receive(&mut self, at: NodeId, source: SocketAddr, datagram: Datagram) {
        self.trace.add((self.now, at, source));
        match datagram {
            Wire::Initiation(initiation) => self.receive_initiation(at, source, &initiation),
            Wire::Answer(answer) => self.receive_answer(at, source, &answer),
            Wire::Data(data) => self.receive_data(at, source, data),
            Wire::Reflect => {}
            Wire::Reflected(seen) => self.receive_reflected(at, seen),
        }
    }

    fn receive_initiation(&mut self, at: NodeId, source: SocketAddr, initiation: &Initiation) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let mut peers = process.peers.values_mut();
        let peer = peers.find(|peer| peer.tunnel.peer() == initiation.from);
        let answer = peer.and_then(|peer| {
            peer.tunnel
                .handle_initiation(initiation, now, &mut self.dice)
        });
        if let Some(answer) = answer {
            self.send(at, source, HANDSHAKE_SIZE, Wire::Answer(answer));
        }
    }

    fn receive_answer(&mut self, at: NodeId, source: SocketAddr, answer: &Answer) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let mut peers = process.peers.iter_mut();
        let Some((of, peer)) = peers.find(|(_, peer)| peer.tunnel.peer() == answer.from) else {
            return;
        };
        if !peer.tunnel.handle_answer(answer, now) {
            return;
        }
        let of = *of;
        peer.tunnel.endpoint.get_or_insert(source);
        // Shows the other side that the session is there.
        if let Some(first) = peer.tunnel.seal(None, now) {
            self.send(at, source, outer_size(0, 0), Wire::Data(first));
        }
        self.session(at, &of, source);
    }

    fn session(&mut self, at: NodeId, of: &PublicKey, source: SocketAddr) {
        let now = self.now;
        self.note_of(at, of, format!("has a session by {source}"));
        if let Some(process) = &mut self.nodes[at].process {
            process.links.handle_session(of, source, now);
            self.drain(at);
        }
    }

    fn receive_data(&mut self, at: NodeId, source: SocketAddr, data: Data<Inner>) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let mut peers = process.peers.iter_mut();
        let Some((of, peer)) = peers.find(|(_, peer)| peer.tunnel.holds(&data)) else {
            return;
        };
        let of = *of;
        let Some(opened) = peer.tunnel.open(data, now) else {
            return;
        };
        peer.counters.rx_any += 1;
        if let Some(Inner::Sample(sample)) = &opened.inner {
            peer.counters.rx_data += sample.size as u64;
        }
        if opened.is_first {
            peer.tunnel.endpoint.get_or_insert(source);
            self.session(at, &of, source);
        }
        self.look_at_source(at, &of, source);
        match opened.inner {
            Some(Inner::Control(packet)) => {
                self.show(at, &of, source, &packet);
                if let Some(process) = &mut self.nodes[at].process {
                    process.links.handle_control(&of, source, &packet, now);
                    self.drain(at);
                }
            }
            Some(Inner::Sample(sample)) => self.take_sample(at, &of, sample),
            None => {}
        }
    }

    fn show(&self, at: NodeId, of: &PublicKey, source: SocketAddr, packet: &[u8]) {
        if self.trace.shows_messages {
            let own = &self.nodes[at];
            let said = control::read(packet, of, &own.identity());
            let from = self.node_of(of).map(|of| self.nodes[of].label());
            let (now, label) = (self.now.as_secs_f64(), own.label());
            let from = from.unwrap_or_default();
            eprintln!("{now:>10.3} {label} hears {from} by {source}: {said:?}");
        }
    }

    /// Control hears of a source that is not the path in use.
    fn look_at_source(&mut self, at: NodeId, of: &PublicKey, source: SocketAddr) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let Some(peer) = process.peers.get_mut(of) else {
            return;
        };
        let is_known = peer
            .source
            .is_some_and(|(known, when)| known == source && now < when + SOURCE_AGAIN);
        if peer.tunnel.endpoint == Some(source) || is_known {
            return;
        }
        peer.source = Some((source, now));
        process.links.handle_source(of, source, now);
        self.drain(at);
    }

    /// The broker's relay as it looks to this node.
    pub(super) fn relay_address(&self, of: &PublicKey) -> Option<SocketAddr> {
        let number = u16::try_from(self.node_of(of)?).ok()?;
        Some(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            FIRST_RELAY_PORT + number,
        ))
    }

    fn send_relayed(&mut self, at: NodeId, to: SocketAddr, size: usize, datagram: Datagram) {
        let number = usize::from(to.port().wrapping_sub(FIRST_RELAY_PORT));
        let Some(other) = self.nodes.get(number).map(|node| node.identity()) else {
            return;
        };
        if !self.may_relay(at, &other) {
            return;
        }
        let size = size + RELAY_HEADER;
        let arrivals = self.broker_line(at, true, size, self.now);
        for when in arrivals {
            for when in self.broker_line(number, false, size, when) {
                self.schedule(when, What::Relayed(number, at, datagram.clone()));
            }
        }
    }

    /// Between a node and the broker; through TLS nothing is lost while the line is whole.
    fn broker_line(&mut self, at: NodeId, to: bool, size: usize, when: Duration) -> Vec<Duration> {
        let (host, broker) = (self.nodes[at].host, self.broker.host);
        let edge = self.network.hosts[host].edge;
        let is_tls = self.network.edges[edge].kind == EdgeKind::NoUdp;
        let (from, to) = if to { (host, broker) } else { (broker, host) };
        let line = self.network.line(from, to);
        if is_tls {
            let arrives = when + line.latency;
            return if line.is_cut {
                Vec::new()
            } else {
                vec![arrives]
            };
        }
        line.carry(size, when, &mut self.dice)
    }

    pub(super) fn arrive_relayed(&mut self, to: NodeId, from: NodeId, datagram: Datagram) {
        let sender = self.nodes[from].identity();
        if !self.may_relay(to, &sender) {
            return;
        }
        if let Some(source) = self.relay_address(&sender) {
            self.deliver(to, source, datagram);
        }
    }

    fn may_relay(&self, at: NodeId, with: &PublicKey) -> bool {
        let relay = self.nodes[at]
            .process
            .as_ref()
            .and_then(|process| process.relays.get(with));
        relay == Some(&Relay::Given) && self.broker.works() && self.broker.relays
    }

    /// Asks the broker where this node's datagrams come from.
    pub(super) fn ask_reflection(&mut self, at: NodeId) {
        if let Some(broker) = self.network.public(self.broker.host) {
            let broker = SocketAddr::V4(broker);
            self.send(at, broker, REFLECT_SIZE, Wire::Reflect);
        }
    }

    fn reflect(&mut self, source: SocketAddr, datagram: &Datagram) {
        if *datagram != Wire::Reflect || !self.broker.works() {
            return;
        }
        let host = self.broker.host;
        let flights = self
            .network
            .send(host, (source, REFLECT_SIZE), self.now, &mut self.dice);
        for (when, flight) in flights {
            self.schedule(when, What::Arrive(flight, Wire::Reflected(source)));
        }
    }

    fn receive_reflected(&mut self, at: NodeId, seen: SocketAddr) {
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        if process.reflected != Some(seen) {
            process.reflected = Some(seen);
            self.note(format!("{} is seen as {seen}", self.nodes[at].label()));
            self.addresses_changed(at);
        }
    }
}
