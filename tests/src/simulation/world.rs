//! The world: virtual time, what is scheduled, and the nodes that live in it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use gateway::links::{Change, Event, Why};
use proto::control::Handover;
use proto::key::PublicKey;
use proto::knowledge::Knowledge;
use proto::mesh::Mesh;
use proto::name::Name;

use super::broker::Broker;
use super::cast::{Actor, Authority, name};
use super::check::Excuse;
use super::edge::EdgeKind;
use super::flow::{Flow, FlowId};
use super::line::Line;
use super::network::{Flight, HostId, Network};
use super::node::{Datagram, Node, NodeId, Relay, Wakes};
use super::trace::Trace;
use crate::dice::Dice;

/// How often the packet path gives its counters and looks at its timers.
pub(super) const SWEEP: Duration = Duration::from_millis(100);
/// Where sessions, links and processes begin to be told apart from nothing.
const BEGINNING: Duration = Duration::from_secs(1000);
/// A machine that wants to be woken more often for each of its links spins.
const WAKES_PER_LINK: usize = 150;
const AT_ONCE_PER_LINK: usize = 4;
/// What one input may lead to for each link.
const BURST_PER_LINK: usize = 200;

pub struct World {
    pub seed: u64,
    pub now: Duration,
    pub dice: Dice,
    pub network: Network,
    pub nodes: Vec<Node>,
    pub flows: Vec<Flow>,
    pub authority: Authority,
    pub broker: Broker,
    pub trace: Trace,
    pub changes: Vec<Changed>,
    /// What must never be, and was.
    pub faults: Vec<String>,
    pub(super) excuses: Vec<Excuse>,
    /// Some of what has arrived, for those who send it again.
    pub(super) recorded: Vec<(HostId, SocketAddr, Datagram)>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    ordinal: u64,
}

/// A state of a link that has changed.
#[derive(Clone, Debug)]
pub struct Changed {
    pub at: Duration,
    pub by: NodeId,
    pub of: PublicKey,
    pub change: Change,
}

pub(super) enum What {
    Arrive(Flight, Datagram),
    /// By the broker's relay, from this node.
    Relayed(NodeId, NodeId, Datagram),
    Wake(NodeId, u64),
    Sweep(NodeId, u64),
    Contact(NodeId, u64),
    Told(NodeId),
    Verify(NodeId, u64, Handover),
    RelayReady(NodeId, u64, PublicKey),
    Send(FlowId),
}

struct Scheduled {
    at: Duration,
    ordinal: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.ordinal == other.ordinal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.ordinal).cmp(&(other.at, other.ordinal))
    }
}

impl World {
    /// A broker and nobody else.
    pub fn new(seed: u64) -> World {
        let mut network = Network::default();
        let edge = network.add_edge(EdgeKind::Open);
        let host = network.add_host(edge);
        World {
            seed,
            now: BEGINNING,
            dice: Dice::of(seed),
            network,
            nodes: Vec::new(),
            flows: Vec::new(),
            authority: Authority::new(),
            broker: Broker::new(host),
            trace: Trace::default(),
            changes: Vec::new(),
            faults: Vec::new(),
            excuses: Vec::new(),
            recorded: Vec::new(),
            queue: BinaryHeap::new(),
            ordinal: 0,
        }
    }

    /// Its hosts are in `10.EDGE.0.0/16`, which is its prefix.
    pub fn add_site(&mut self, kind: EdgeKind) -> usize {
        self.network.add_edge(kind)
    }

    pub fn site_name(edge: usize) -> Name {
        name(&format!("s{edge}"))
    }

    /// A node that has joined and has not been started. It knows the ledger as of now.
    pub fn add_node(&mut self, edge: usize) -> NodeId {
        let host = self.network.add_host(edge);
        self.connect(host);
        let actor = self
            .authority
            .enrol(Self::site_name(edge).as_str(), &format!("10.{edge}.0.0/16"));
        self.push_entries();
        self.enter(actor, host)
    }

    /// Another host with all keys of this node.
    pub fn clone_node(&mut self, of: NodeId) -> NodeId {
        let host = self
            .network
            .add_host(self.network.hosts[self.nodes[of].host].edge);
        self.connect(host);
        let actor = self.nodes[of].actor.clone();
        let clone = self.enter(actor, host);
        self.nodes[clone].is_clone = true;
        self.nodes[of].is_clone = true;
        clone
    }

    fn enter(&mut self, actor: Actor, host: HostId) -> NodeId {
        let mut mesh = Mesh::new(self.authority.mesh, Some(actor.site.clone()));
        for entry in &self.authority.entries {
            mesh.handle_entry(entry.bytes())
                .expect("the authority's own");
        }
        self.nodes.push(Node {
            actor,
            host,
            mesh,
            process: None,
            generation: 0,
            is_stopped: false,
            backlog: VecDeque::new(),
            clock: 0,
            taken: 0,
            member: None,
            is_published: false,
            died: None,
            touched: self.now,
            is_revoked: false,
            is_clone: false,
            has_left: false,
            rotations: 0,
        });
        self.nodes.len() - 1
    }

    /// Lines to everyone: short within a site, longer to others.
    fn connect(&mut self, host: HostId) {
        let edge = self.network.hosts[host].edge;
        for other in 0..self.network.hosts.len() {
            if other == host {
                continue;
            }
            let latency = if self.network.hosts[other].edge == edge {
                Duration::from_micros(200)
            } else {
                Duration::from_millis(10)
            };
            self.network.set_line(host, other, Line::new(latency));
            self.network.set_line(other, host, Line::new(latency));
        }
    }

    pub fn set_latency(&mut self, one: NodeId, other: NodeId, latency: Duration) {
        let (one, other) = (self.nodes[one].host, self.nodes[other].host);
        self.network.line(one, other).latency = latency;
        self.network.line(other, one).latency = latency;
    }

    /// Both directions between two nodes.
    pub fn each_way(&mut self, one: NodeId, other: NodeId, change: impl Fn(&mut Line)) {
        let (one, other) = (self.nodes[one].host, self.nodes[other].host);
        change(self.network.line(one, other));
        change(self.network.line(other, one));
    }

    /// All lines of a host, in and out.
    pub fn around(&mut self, host: HostId, change: impl Fn(&mut Line)) {
        for ((from, to), line) in self.network.lines() {
            if *from == host || *to == host {
                change(line);
            }
        }
    }

    pub(super) fn schedule(&mut self, at: Duration, what: What) {
        self.ordinal += 1;
        self.queue.push(Reverse(Scheduled {
            at: at.max(self.now),
            ordinal: self.ordinal,
            what,
        }));
    }

    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    /// Or until something is found that must never be.
    pub fn run_until(&mut self, end: Duration) {
        while self.faults.is_empty() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                Some(_) | None => break,
            }
            let Some(Reverse(next)) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(next.at);
            self.handle(next.what);
        }
        self.now = self.now.max(end);
    }

    fn handle(&mut self, what: What) {
        match what {
            What::Arrive(flight, datagram) => {
                if let Some(host) = self.network.arrive(&flight, self.now) {
                    self.arrive(host, SocketAddr::V4(flight.from), datagram);
                }
            }
            What::Relayed(to, from, datagram) => self.arrive_relayed(to, from, datagram),
            What::Wake(node, generation) => self.wake(node, generation),
            What::Sweep(node, generation) => self.sweep(node, generation),
            What::Contact(node, generation) => {
                if self.is_current(node, generation) {
                    let next = self.now + Duration::from_secs(1);
                    self.schedule(next, What::Contact(node, generation));
                    self.contact(node);
                }
            }
            What::Told(node) => self.contact(node),
            What::Verify(node, generation, handover) => {
                if self.is_current(node, generation) {
                    self.take_handover(node, &handover);
                }
            }
            What::RelayReady(node, generation, of) => self.relay_ready(node, generation, of),
            What::Send(flow) => self.send_flow(flow),
        }
    }

    pub(super) fn is_current(&self, node: NodeId, generation: u64) -> bool {
        let node = &self.nodes[node];
        node.generation == generation && node.process.is_some()
    }

    fn wake(&mut self, at: NodeId, generation: u64) {
        let now = self.now;
        if !self.is_current(at, generation) || self.nodes[at].is_stopped {
            return;
        }
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        if process.wake != Some(now) {
            return;
        }
        let links = process.roster.gateways.len() + 1;
        if process.wakes.second != now.as_secs() {
            process.wakes = Wakes {
                second: now.as_secs(),
                ..Wakes::default()
            };
        }
        process.wakes.count += 1;
        // A timeout that is handled does not come at the same moment again, save for what one
        // timer of a link makes due of another.
        let is_same = process.wakes.last == now;
        process.wakes.at_once = if is_same {
            process.wakes.at_once + 1
        } else {
            0
        };
        process.wakes.last = now;
        if process.wakes.at_once > links * AT_ONCE_PER_LINK {
            let label = self.nodes[at].label();
            return self.fault(format!("{label} handles its timeout, and it is due again"));
        }
        if process.wakes.count > links * WAKES_PER_LINK {
            let count = process.wakes.count;
            let label = self.nodes[at].label();
            self.fault(format!(
                "{label} woke {count} times in a second, with {links} links"
            ));
        }
        self.time_out(at);
    }

    fn sweep(&mut self, at: NodeId, generation: u64) {
        if !self.is_current(at, generation) || self.nodes[at].is_stopped {
            return;
        }
        let now = self.now;
        self.schedule(now + SWEEP, What::Sweep(at, generation));
        let mut wanting = Vec::new();
        if let Some(process) = &mut self.nodes[at].process {
            for (of, peer) in &mut process.peers {
                if peer.counters != peer.told {
                    peer.told = peer.counters;
                    process.links.handle_counters(of, peer.counters, now);
                }
                if peer.tunnel.wants_handshake(now) {
                    wanting.extend(peer.tunnel.endpoint.map(|endpoint| (*of, endpoint)));
                }
            }
        }
        for (of, endpoint) in wanting {
            self.initiate(at, &of, &[endpoint]);
        }
        self.drain(at);
    }

    /// After every input: what it sends, what it tells, when it wants to be woken.
    pub(super) fn drain(&mut self, at: NodeId) {
        let mut told = 0;
        loop {
            let Some(process) = &mut self.nodes[at].process else {
                return;
            };
            let transmits: Vec<_> = std::iter::from_fn(|| process.links.poll_transmit()).collect();
            let events: Vec<_> = std::iter::from_fn(|| process.links.poll_event()).collect();
            let links = process.roster.gateways.len() + 1;
            told += transmits.len() + events.len();
            if told > links * BURST_PER_LINK {
                let label = self.nodes[at].label();
                return self.fault(format!("{label} said {told} things at once"));
            }
            if transmits.is_empty() && events.is_empty() {
                break;
            }
            for transmit in transmits {
                self.transmit(at, transmit);
            }
            for event in events {
                self.handle_event(at, event);
            }
        }
        self.set_wake(at);
    }

    fn set_wake(&mut self, at: NodeId) {
        let now = self.now;
        let generation = self.nodes[at].generation;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        let wanted = process.links.poll_timeout();
        let wanted = wanted.map(|wanted| wanted.max(now));
        if wanted == process.wake && wanted != Some(now) {
            return;
        }
        process.wake = wanted;
        if let Some(wanted) = wanted {
            self.schedule(wanted, What::Wake(at, generation));
        }
    }

    fn handle_event(&mut self, at: NodeId, event: Event) {
        let now = self.now;
        let Some(process) = &mut self.nodes[at].process else {
            return;
        };
        match event {
            Event::Initiate { to, addresses } => self.initiate(at, &to, &addresses),
            Event::UsePath { of, address } => {
                if let Some(peer) = process.peers.get_mut(&of) {
                    peer.tunnel.endpoint = Some(address);
                }
            }
            Event::Mtu { of, mtu } => {
                if let Some(peer) = process.peers.get_mut(&of) {
                    peer.mtu = usize::from(mtu);
                }
                self.note_of(at, &of, format!("carries packets of {mtu}"));
            }
            Event::CarriersChanged => process.carriers = process.links.carriers().clone(),
            Event::Relay { of, wanted: true } => {
                // One that is there is given again: the link that had it may be another now.
                process.relays.insert(of, Relay::Wanted);
                self.note_of(at, &of, "wants a relay".to_owned());
                self.match_relays(at);
            }
            Event::Relay { of, wanted: false } => {
                process.relays.remove(&of);
                self.note_of(at, &of, "gives the relay back".to_owned());
            }
            Event::HandedOver { handover, .. } => {
                let generation = self.nodes[at].generation;
                let takes = Duration::from_millis(20);
                self.schedule(now + takes, What::Verify(at, generation, handover));
            }
            Event::Changed { of, change } => self.changed(at, of, change),
            Event::Ponged { .. } => {}
            Event::Left => {
                self.kill(at);
            }
        }
    }

    fn changed(&mut self, by: NodeId, of: PublicKey, change: Change) {
        self.note_of(by, &of, format!("{change:?}"));
        self.changes.push(Changed {
            at: self.now,
            by,
            of,
            change,
        });
        self.check_change(
            by,
            &of,
            &self.changes[self.changes.len() - 1].change.clone(),
        );
    }

    /// What it believes has changed, or it has just begun.
    pub(super) fn mesh_changed(&mut self, at: NodeId) {
        let now = self.now;
        while self.nodes[at].mesh.poll_event().is_some() {}
        self.check_beliefs(at);
        let roster = self.nodes[at].roster();
        let knowledge = std::sync::Arc::new(Knowledge::of(&self.nodes[at].mesh));
        let node = &mut self.nodes[at];
        let own = (node.actor.site.clone(), node.actor.wireguard);
        let Some(process) = &mut node.process else {
            return;
        };
        process.links.handle_knowledge(knowledge, now);
        if roster != process.roster {
            process.update_peers(&roster, &own);
            process.links.handle_roster(&roster, now);
            process.roster = roster;
        }
        self.drain(at);
    }

    /// Its own addresses, as it knows them now, go into its record and to its links.
    pub(super) fn addresses_changed(&mut self, at: NodeId) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let private = SocketAddr::V4(self.network.private(node.host));
        let mut addresses = vec![private];
        addresses.extend(self.network.public(node.host).map(SocketAddr::V4));
        let Some(process) = &mut node.process else {
            return;
        };
        addresses.extend(process.reflected.filter(|seen| !addresses.contains(seen)));
        process.links.handle_own_addresses(&addresses, now);
        let lan: IpAddr = private.ip();
        let member = self.authority.publish(&mut node.actor, addresses, lan);
        // Its own record is among what it hands over.
        let _ = node.mesh.handle_member(&member);
        node.member = Some(member);
        node.is_published = false;
        self.mesh_changed(at);
        self.contact(at);
    }

    /// All that runs, in order.
    pub fn running(&self) -> Vec<NodeId> {
        (0..self.nodes.len())
            .filter(|at| self.nodes[*at].is_running())
            .collect()
    }

    pub fn node_of(&self, identity: &PublicKey) -> Option<NodeId> {
        let mut nodes = self.nodes.iter();
        nodes.position(|node| node.identity() == *identity)
    }

    pub fn is_up(&self, by: NodeId, of: NodeId) -> bool {
        self.state(by, of) == Some(Ok(()))
    }

    pub fn state(&self, by: NodeId, of: NodeId) -> Option<Result<(), Why>> {
        let of = self.nodes[of].identity();
        let process = self.nodes[by].process.as_ref()?;
        let statuses = process.links.statuses(self.now);
        let status = statuses.into_iter().find(|status| status.of == of)?;
        Some(status.state)
    }

    pub fn touch(&mut self, at: NodeId) {
        self.nodes[at].touched = self.now;
    }

    pub fn note(&mut self, text: String) {
        self.trace.note(self.now, text);
    }

    pub(super) fn note_of(&mut self, by: NodeId, of: &PublicKey, text: String) {
        let other = self.node_of(of).map(|of| self.nodes[of].label());
        let own = self.nodes[by].label();
        self.note(format!("{own} of {}: {text}", other.unwrap_or_default()));
    }

    pub fn fault(&mut self, text: String) {
        self.note(format!("FAULT: {text}"));
        self.faults.push(text);
    }
}
