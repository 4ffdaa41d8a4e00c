//! What is done to a world besides starting and stopping processes: by operators, by attackers, by
//! those who own the networks.

use proto::entry::Body;

use super::check::Excuse;
use super::expect::Reach;
use super::flow::FlowId;
use super::node::NodeId;
use super::world::World;

impl World {
    /// `causeway leave`: its record says that it is gone, and its process ends.
    pub fn leave(&mut self, at: NodeId) {
        let node = &mut self.nodes[at];
        let member = self.authority.withdraw(&mut node.actor);
        drop(node.mesh.handle_member(&member));
        node.member = Some(member);
        node.is_published = false;
        node.has_left = true;
        self.note(format!("{} leaves", self.nodes[at].label()));
        self.mesh_changed(at);
        self.contact(at);
        self.stop(at);
    }

    pub fn revoke_node(&mut self, at: NodeId) {
        let keys = vec![self.nodes[at].identity()];
        self.authority.append(Body::Revocation {
            keys,
            closings: Vec::new(),
        });
        self.revoked(|world, other| world.nodes[other].identity() == world.nodes[at].identity());
    }

    pub fn revoke_site(&mut self, at: NodeId) {
        let site = self.nodes[at].actor.site.clone();
        self.authority.append(Body::SiteRevoked { site });
        self.revoked(|world, other| world.nodes[other].actor.site == world.nodes[at].actor.site);
    }

    fn revoked(&mut self, which: impl Fn(&World, NodeId) -> bool) {
        for at in 0..self.nodes.len() {
            if which(self, at) {
                self.nodes[at].is_revoked = true;
                self.touch(at);
                self.note(format!("{} is revoked", self.nodes[at].label()));
            }
        }
        if self.broker.works() {
            self.push_entries();
        }
    }

    pub fn add_prefix(&mut self, at: NodeId) {
        let number = self.authority.entries.len() % 250;
        let edge = self.network.hosts[self.nodes[at].host].edge;
        let prefix = format!("172.{}.{number}.0/24", 16 + edge % 16);
        self.authority.append(Body::Prefixes {
            site: self.nodes[at].actor.site.clone(),
            added: vec![prefix.parse().expect("a prefix")],
            added_service: Vec::new(),
            removed: Vec::new(),
        });
        if self.broker.works() {
            self.push_entries();
        }
    }

    /// Its interface has another address; the daemon sees that at once.
    pub fn renumber(&mut self, at: NodeId) {
        self.network.renumber(self.nodes[at].host);
        self.touch(at);
        if let Some(process) = &mut self.nodes[at].process {
            process.reflected = None;
            process.asked_reflection = None;
            self.addresses_changed(at);
        }
    }

    /// Started again with a new WireGuard key, which its record tells.
    pub fn rotate(&mut self, at: NodeId) {
        self.kill(at);
        let node = &mut self.nodes[at];
        node.rotations += 1;
        let turn = node.rotations;
        node.actor.rotate(turn);
        self.start(at);
    }

    /// Someone on the way has kept datagrams and sends them again, from where they came or from
    /// elsewhere.
    pub fn replay(&mut self, count: usize) {
        for _ in 0..count {
            let kept: Vec<usize> = (0..self.recorded.len()).collect();
            let Some(at) = self.dice.pick(&kept).copied() else {
                return;
            };
            let (host, mut source, datagram) = self.recorded[at].clone();
            if self.dice.chance(500) {
                source = ([5, 0, 0, 99], 4444).into();
            }
            self.arrive(host, source, datagram);
        }
    }

    /// The link between these two may fail from now on.
    pub fn excuse(&mut self, one: NodeId, other: NodeId) {
        self.excuses.push(Excuse {
            pair: (one, other),
            since: self.now,
        });
    }

    /// Nodes with a link by relay may lose it.
    pub fn touch_relayed(&mut self) {
        for one in 0..self.nodes.len() {
            let relays = self.nodes[one].process.as_ref();
            let relayed = relays.map(|process| process.relays.keys().copied().collect::<Vec<_>>());
            for of in relayed.unwrap_or_default() {
                if let Some(other) = self.node_of(&of) {
                    self.excuse(one, other);
                }
            }
        }
    }

    /// Whether the packets of this flow have a way now, and nothing on it is lost.
    pub fn must_deliver(&mut self, flow: FlowId) -> bool {
        let (from, to) = (self.flows[flow].from, self.flows[flow].to.clone());
        if !self.nodes[from].is_running() || self.nodes[from].is_revoked {
            return false;
        }
        let site = self.nodes[from].actor.site.clone();
        let running = self.running();
        // Two with one key answer for each other's traffic.
        let involved = running.iter().filter(|at| {
            let of = &self.nodes[**at].actor.site;
            *of == to || *of == site
        });
        let involved: Vec<NodeId> = involved.copied().collect();
        if involved
            .iter()
            .any(|at| self.nodes[*at].is_clone || self.nodes[*at].is_revoked)
        {
            return false;
        }
        for (at, one) in involved.iter().enumerate() {
            for other in &involved[at + 1..] {
                if self.loss(*one, *other) != Some(0) || !self.are_informed(*one, *other) {
                    return false;
                }
            }
        }
        let reaches = |world: &World, at: NodeId| {
            let mut remote = involved
                .iter()
                .filter(|of| world.nodes[**of].actor.site == to);
            remote.any(|of| world.reach(at, *of) > Reach::None)
        };
        let mut own = involved
            .iter()
            .filter(|at| self.nodes[**at].actor.site == site);
        reaches(self, from)
            || own
                .any(|sibling| self.reach(from, *sibling) > Reach::None && reaches(self, *sibling))
    }
}
