//! Gateways and agents of one site on virtual time, over a network that loses, doubles, delays and
//! keeps what is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use boringtun::x25519;
use proto::key::{Hash, PublicKey, SigningKey, WireguardKey};
use proto::lan::{Mode, PORT, PairKey, ProbeBy, Site, probe_address, site_hash};
use proto::name::Name;
use routeagent::health::{Choice, GatewayAt, GatewayState, Health};

use super::super::{AgentAt, Agents, Own};

const MESH: Hash = Hash([7; 32]);

pub(super) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// How many in a thousand datagrams; and the longest delay.
#[derive(Clone, Copy, Default)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) delay: Duration,
}

pub(super) struct Node {
    pub(super) identity: PublicKey,
    secret: x25519::StaticSecret,
    wireguard: WireguardKey,
    name: Name,
    pub(super) address: SocketAddr,
    /// Of the other family, in a world that has both.
    pub(super) other: SocketAddr,
}

pub(super) struct GatewayNode {
    pub(super) node: Node,
    /// `None`: its process is not there.
    pub(super) agents: Option<Agents>,
    pub(super) sites: Vec<Site>,
    /// Foreign packets pass on these ways.
    pub(super) passes: BTreeSet<ProbeBy>,
}

pub(super) struct AgentNode {
    pub(super) node: Node,
    pub(super) health: Option<Health>,
    /// It does not run before this.
    pub(super) stalled: Duration,
    inbox: Vec<Packet>,
    /// Every choice of sites it made, with when.
    pub(super) choices: Vec<(Duration, BTreeMap<Name, Vec<usize>>)>,
}

#[derive(Clone)]
pub(super) struct Packet {
    /// When it was sent.
    pub(super) at: Duration,
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

pub(super) struct World {
    pub(super) now: Duration,
    pub(super) weather: Weather,
    pub(super) gateways: Vec<GatewayNode>,
    pub(super) agents: Vec<AgentNode>,
    wire: BTreeMap<(Duration, u64), Packet>,
    /// Nodes from and to which nothing passes.
    pub(super) cut: BTreeSet<SocketAddr>,
    /// All that was ever sent, if it is kept.
    pub(super) kept: Option<Vec<Packet>>,
    pub(super) sent: u64,
    dice: u64,
    boots: u64,
    sites: Vec<Name>,
    has_other: bool,
}

impl Node {
    fn new(number: u16, is_gateway: bool) -> Node {
        let [high, low] = number.to_be_bytes();
        let mut seed = [u8::from(is_gateway) + 1; 32];
        (seed[1], seed[2]) = (high, low);
        let secret = x25519::StaticSecret::from(seed);
        let public = x25519::PublicKey::from(&secret);
        let kind = if is_gateway { "gate" } else { "work" };
        let net = if is_gateway { 1 } else { 2 + high };
        Node {
            identity: SigningKey::from_seed(&seed).public(),
            wireguard: WireguardKey::new(public.to_bytes()).unwrap(),
            secret,
            name: format!("{kind}-{number}").parse().unwrap(),
            address: SocketAddr::new(IpAddr::from([10, 1, net, low]), PORT),
            other: SocketAddr::new(
                IpAddr::from([0xfd00, 1, net.into(), 0, 0, 0, 0, low.into()]),
                PORT,
            ),
        }
    }

    pub(super) const fn addresses(&self) -> [SocketAddr; 2] {
        [self.address, self.other]
    }

    /// What goes there is sent from this address.
    fn towards(&self, to: SocketAddr) -> SocketAddr {
        if to.is_ipv4() {
            self.address
        } else {
            self.other
        }
    }

    pub(super) fn key(&self, other: &Node) -> PairKey {
        let theirs = x25519::PublicKey::from(*other.wireguard.as_bytes());
        let shared = self.secret.diffie_hellman(&theirs).to_bytes();
        PairKey::derive(&shared, &MESH, &self.identity, &other.identity).unwrap()
    }
}

impl World {
    /// Everyone reaches `sites` at first.
    pub(super) fn new(gateways: u16, agents: u16, sites: &[&str]) -> World {
        let sites: Vec<Name> = sites.iter().map(|name| name.parse().unwrap()).collect();
        let all = |names: &[Name]| names.iter().map(|name| reached(name, 1400)).collect();
        let mut world = World {
            now: Duration::from_secs(1000),
            weather: Weather {
                delay: Duration::from_micros(300),
                ..Weather::default()
            },
            gateways: (0..gateways)
                .map(|number| GatewayNode {
                    node: Node::new(number, true),
                    agents: None,
                    sites: all(&sites),
                    passes: [ProbeBy::Direct, ProbeBy::Vxlan].into(),
                })
                .collect(),
            agents: (0..agents)
                .map(|number| AgentNode {
                    node: Node::new(number, false),
                    health: None,
                    stalled: Duration::ZERO,
                    inbox: vec![],
                    choices: vec![],
                })
                .collect(),
            wire: BTreeMap::new(),
            cut: BTreeSet::new(),
            kept: None,
            sent: 0,
            dice: 1,
            boots: 0,
            sites,
            has_other: false,
        };
        for at in 0..world.gateways.len() {
            world.start_gateway(at);
        }
        for at in 0..world.agents.len() {
            world.start_agent(at);
        }
        world
    }

    /// Every node has an address of the other family from now on, and starts anew.
    pub(super) fn with_other(mut self) -> World {
        self.has_other = true;
        for at in 0..self.gateways.len() {
            self.start_gateway(at);
        }
        for at in 0..self.agents.len() {
            self.start_agent(at);
        }
        self
    }

    pub(super) fn start_gateway(&mut self, at: usize) {
        self.boots += 1;
        let known = self.agents.iter().map(|agent| {
            let place = AgentAt {
                name: agent.node.name.clone(),
                wireguard: agent.node.wireguard,
                lan: Some(agent.node.address.ip()),
                by_vxlan: false,
            };
            (agent.node.identity, place)
        });
        let known = known.collect();
        let gateway = &mut self.gateways[at];
        let mut agents = Agents::new(Own {
            mesh: MESH,
            identity: gateway.node.identity,
            wireguard: gateway.node.secret.clone(),
            boot: self.boots,
            secret: self.boots + 1000,
        });
        agents.handle_roster(known, BTreeSet::new());
        let lan = gateway.node.addresses().map(|address| address.ip());
        agents.handle_lan(&lan[..1 + usize::from(self.has_other)]);
        agents.handle_sites(gateway.sites.clone(), true);
        gateway.agents = Some(agents);
    }

    pub(super) fn start_agent(&mut self, at: usize) {
        self.boots += 1;
        let agent = &mut self.agents[at];
        let own = routeagent::health::Own {
            identity: agent.node.identity,
            boot: self.boots,
            seed: self.boots,
        };
        let known = self.gateways.iter().map(|gateway| {
            let place = GatewayAt {
                name: gateway.node.name.clone(),
                address: gateway.node.address,
                key: agent.node.key(&gateway.node),
                is_near: true,
            };
            (gateway.node.identity, place)
        });
        let mut health = Health::new(own, self.now);
        health.set_mode(Mode::Vxlan, self.now);
        health.set_other_lan(self.has_other.then_some(agent.node.other.ip()));
        health.handle_gateways(&known.collect(), self.now);
        agent.health = Some(health);
        agent.inbox.clear();
        agent.choices.clear();
        self.drain_agent(at);
    }

    pub(super) fn kill(&mut self, gateway: usize) {
        self.gateways[gateway].agents = None;
    }

    pub(super) fn leave(&mut self, gateway: usize) {
        let now = self.now;
        let agents = self.gateways[gateway].agents.as_mut();
        agents.unwrap().handle_stop(now);
        self.drain_gateway(gateway);
    }

    pub(super) fn tell(&mut self, gateway: usize, sites: Vec<Site>) {
        self.gateways[gateway].sites = sites.clone();
        if let Some(agents) = &mut self.gateways[gateway].agents {
            agents.handle_sites(sites, true);
        }
    }

    /// Whether a gateway's kernel does what it has to.
    pub(super) fn forwards(&mut self, gateway: usize, forwards: bool) {
        let gateway = &mut self.gateways[gateway];
        let agents = gateway.agents.as_mut().unwrap();
        agents.handle_sites(gateway.sites.clone(), forwards);
    }

    /// Whether an agent's probes have had their routes for long enough.
    pub(super) fn prove(&mut self, agent: usize, is_proven: bool) {
        let now = self.now;
        let health = self.agents[agent].health.as_mut().unwrap();
        health.set_proven(is_proven, now);
        self.drain_agent(agent);
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.step();
        }
        self.now = end;
    }

    fn next(&self) -> Option<Duration> {
        let wire = self.wire.keys().next().map(|(at, _)| *at);
        let gateways = self.gateways.iter().filter_map(|gateway| {
            let agents = gateway.agents.as_ref()?;
            agents.poll_timeout()
        });
        let agents = self.agents.iter().filter_map(|agent| {
            let due = agent.health.as_ref()?.poll_timeout()?;
            let due = if agent.inbox.is_empty() {
                due
            } else {
                self.now
            };
            Some(due.max(agent.stalled))
        });
        wire.into_iter().chain(gateways).chain(agents).min()
    }

    fn step(&mut self) {
        while let Some(entry) = self.wire.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let packet = entry.remove();
            self.deliver(packet);
        }
        let now = self.now;
        for at in 0..self.gateways.len() {
            let agents = self.gateways[at].agents.as_mut();
            if let Some(agents) =
                agents.filter(|one| one.poll_timeout().is_some_and(|at| at <= now))
            {
                agents.handle_timeout(now);
                self.drain_gateway(at);
            }
        }
        for at in 0..self.agents.len() {
            self.run_agent(at);
        }
    }

    /// All that waits in its socket first.
    fn run_agent(&mut self, at: usize) {
        let (now, agent) = (self.now, &mut self.agents[at]);
        let Some(health) = agent.health.as_mut().filter(|_| agent.stalled <= now) else {
            return;
        };
        for packet in std::mem::take(&mut agent.inbox) {
            health.handle_datagram(packet.from, &packet.bytes, now);
        }
        if health.poll_timeout().is_some_and(|due| due <= now) {
            health.handle_timeout(now);
        }
        self.drain_agent(at);
    }

    pub(super) fn deliver(&mut self, packet: Packet) {
        let now = self.now;
        if let Some(at) = self
            .agents
            .iter()
            .position(|one| one.node.addresses().contains(&packet.to))
        {
            self.agents[at].inbox.push(packet);
            return self.run_agent(at);
        }
        for at in 0..self.gateways.len() {
            let gateway = &mut self.gateways[at];
            let Some(agents) = gateway.agents.as_mut() else {
                continue;
            };
            if gateway.node.addresses().contains(&packet.to) {
                agents.handle_datagram(packet.from, &packet.bytes, now);
                return self.drain_gateway(at);
            }
            for by in gateway.passes.clone() {
                let to = packet.to.ip();
                if to == probe_address(&gateway.node.identity, by, to) {
                    let answer = agents.handle_probe(to, &packet.bytes, now);
                    let back = |bytes| Packet {
                        at: now,
                        from: packet.to,
                        to: packet.from,
                        bytes,
                    };
                    answer
                        .map(back)
                        .into_iter()
                        .for_each(|back| self.send(back));
                    return;
                }
            }
        }
    }

    fn drain_gateway(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        let Some(agents) = gateway.agents.as_mut() else {
            return;
        };
        let all: Vec<_> = std::iter::from_fn(|| agents.poll_transmit()).collect();
        let now = self.now;
        for (to, bytes) in all {
            let from = self.gateways[at].node.towards(to);
            self.send(Packet {
                at: now,
                from,
                to,
                bytes,
            });
        }
    }

    fn drain_agent(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        let Some(health) = agent.health.as_mut() else {
            return;
        };
        let all: Vec<_> = std::iter::from_fn(|| health.poll_transmit()).collect();
        let changed = health.take_change();
        if changed {
            self.note(at);
        }
        let now = self.now;
        for (to, bytes) in all {
            let from = self.agents[at].node.towards(to);
            self.send(Packet {
                at: now,
                from,
                to,
                bytes,
            });
        }
    }

    fn note(&mut self, at: usize) {
        let found = self.used(at);
        let choices = &mut self.agents[at].choices;
        if choices.last().is_none_or(|(_, last)| *last != found) {
            choices.push((self.now, found));
        }
    }

    pub(super) fn send(&mut self, packet: Packet) {
        self.sent += 1;
        if let Some(kept) = &mut self.kept {
            kept.push(packet.clone());
        }
        if self.cut.contains(&packet.from) || self.cut.contains(&packet.to) {
            return;
        }
        let times = u64::from(self.throw(1000) >= self.weather.lost)
            + u64::from(self.throw(1000) < self.weather.doubled);
        for _ in 0..times {
            let longest = self.weather.delay.as_micros() as u64;
            let delay = Duration::from_micros(longest / 3 + self.throw(longest * 2 / 3 + 1));
            let number = self.sent * 2
                + u64::from(self.wire.contains_key(&(self.now + delay, self.sent * 2)));
            self.wire.insert((self.now + delay, number), packet.clone());
        }
    }

    /// Below `end`.
    pub(super) fn throw(&mut self, end: u64) -> u64 {
        // A linear congruence of Knuth's; its high bits are good enough for weather.
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.dice >> 33) % end
    }

    pub(super) fn seed(&mut self, seed: u64) {
        self.dice = seed;
    }

    pub(super) fn choice(&self, agent: usize) -> Choice {
        self.agents[agent].health.as_ref().unwrap().choice()
    }

    /// Which gateways an agent uses for each site.
    pub(super) fn used(&self, agent: usize) -> BTreeMap<Name, Vec<usize>> {
        let choice = self.choice(agent);
        let sites = self.sites.iter().map(|site| {
            let by = choice.of(site).by;
            let used = self.gateways.iter().enumerate();
            let used = used.filter(|(_, gateway)| by.contains(&gateway.node.identity));
            (site.clone(), used.map(|(at, _)| at).collect())
        });
        sites.collect()
    }

    /// Of the first site.
    pub(super) fn first(&self, agent: usize) -> Vec<usize> {
        self.used(agent)[&self.sites[0]].clone()
    }

    /// What a gateway takes for an agent's address in the other family.
    pub(super) fn believed(&self, gateway: usize, agent: usize) -> Option<IpAddr> {
        let agents = self.gateways[gateway].agents.as_ref().unwrap();
        agents.reached()[&self.agents[agent].node.identity].other
    }

    pub(super) fn state(&self, agent: usize, gateway: usize) -> GatewayState {
        self.choice(agent).gateways[&self.gateways[gateway].node.identity].state
    }

    /// What an agent uses for the first site, and thinks of each gateway.
    pub(super) fn look(&self, agent: usize) -> (Vec<usize>, Vec<GatewayState>) {
        let choice = self.choice(agent);
        let by = choice.of(&self.sites[0]).by;
        let identities = || self.gateways.iter().map(|gateway| gateway.node.identity);
        let used = identities().enumerate().filter(|(_, who)| by.contains(who));
        let states = identities().map(|who| choice.gateways[&who].state);
        (used.map(|(at, _)| at).collect(), states.collect())
    }

    pub(super) fn probes(&self, agent: usize, gateway: usize) -> (Option<bool>, Option<bool>) {
        let choice = self.choice(agent);
        let health = &choice.gateways[&self.gateways[gateway].node.identity];
        (health.direct.passed, health.vxlan.passed)
    }
}

pub(super) fn reached(site: &Name, mtu: u16) -> Site {
    Site {
        hash: site_hash(site),
        mtu,
        by_sibling: false,
    }
}
