//! Sample traffic: packets of a flow from one gateway to a site, numbered, so that each loss is
//! seen.

use std::time::Duration;

use gateway::links::Carry;
use proto::key::{Domain, Hash, PublicKey};
use proto::name::Name;

use super::node::{Inner, NodeId};
use super::world::{What, World};

pub type FlowId = usize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub flow: FlowId,
    pub number: usize,
    pub size: usize,
    pub from: Name,
    pub to: Name,
}

pub struct Flow {
    /// Where it enters the mesh.
    pub from: NodeId,
    pub to: Name,
    pub hash: u64,
    pub interval: Duration,
    pub size: usize,
    pub is_on: bool,
    /// For each packet: when it was sent, and when and by whom it was delivered.
    pub packets: Vec<Packet>,
}

#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub sent: Duration,
    pub arrived: Option<(Duration, NodeId)>,
}

/// What a flow saw in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub sent: usize,
    pub lost: usize,
    /// The longest time in which nothing that was sent arrived.
    pub gap: Duration,
}

impl Flow {
    /// Of the packets sent from this moment on and before that.
    pub fn seen(&self, from: Duration, until: Duration) -> Seen {
        let mut seen = Seen::default();
        let mut begun: Option<Duration> = None;
        for packet in &self.packets {
            if packet.sent < from || packet.sent >= until {
                continue;
            }
            seen.sent += 1;
            if packet.arrived.is_some() {
                begun = None;
            } else {
                seen.lost += 1;
                let since = *begun.get_or_insert(packet.sent);
                seen.gap = seen.gap.max(packet.sent + self.interval - since);
            }
        }
        seen
    }

    /// The last gateway that delivered one of its packets.
    pub fn carrier(&self) -> Option<NodeId> {
        let mut back = self.packets.iter().rev();
        back.find_map(|packet| packet.arrived.map(|(_, by)| by))
    }
}

/// The gateway that a flow goes to: the highest of all hashes over flow and gateway.
pub fn choose(among: &[PublicKey], flow: u64) -> Option<PublicKey> {
    among.iter().copied().max_by_key(|gateway| {
        let said = [flow.to_be_bytes().as_slice(), gateway.as_bytes()].concat();
        Hash::of(Domain::SiteTag, &said).0
    })
}

impl World {
    /// A flow that sends from now on.
    pub fn add_flow(&mut self, from: NodeId, to: &Name, interval: Duration) -> FlowId {
        let flow = self.flows.len();
        self.flows.push(Flow {
            from,
            to: to.clone(),
            hash: self.dice.below(u64::MAX),
            interval,
            size: 100,
            is_on: true,
            packets: Vec::new(),
        });
        self.schedule(self.now, What::Send(flow));
        flow
    }

    pub(super) fn send_flow(&mut self, at: FlowId) {
        let flow = &self.flows[at];
        if !flow.is_on {
            return;
        }
        self.schedule(self.now + flow.interval, What::Send(at));
        let flow = &mut self.flows[at];
        let from = flow.from;
        if !self.nodes[from].is_running() {
            // Its hosts go by another gateway; that is the agent's part.
            return;
        }
        let sample = Sample {
            flow: at,
            number: flow.packets.len(),
            size: flow.size,
            from: self.nodes[from].actor.site.clone(),
            to: flow.to.clone(),
        };
        flow.packets.push(Packet {
            sent: self.now,
            arrived: None,
        });
        self.carry(from, sample, true);
    }

    /// As the packet path does it: to a gateway of the site, or to a sibling, once.
    fn carry(&mut self, at: NodeId, sample: Sample, may_hand_on: bool) {
        let hash = self.flows[sample.flow].hash;
        let Some(process) = &self.nodes[at].process else {
            return;
        };
        let to = match process.carriers.sites.get(&sample.to) {
            Some(Carry::Direct(gateways)) => choose(gateways, hash),
            Some(Carry::Siblings(siblings)) if may_hand_on => choose(siblings, hash),
            Some(Carry::Siblings(_)) | None => None,
        };
        if let Some(to) = to {
            self.seal(at, &to, Inner::Sample(sample), None);
        }
    }

    /// A packet came out of the tunnel of `from`.
    pub(super) fn take_sample(&mut self, at: NodeId, from: &PublicKey, sample: Sample) {
        let Some(process) = &self.nodes[at].process else {
            return;
        };
        let Some(sender) = process.roster.gateways.get(from) else {
            return;
        };
        let own = self.nodes[at].actor.site.clone();
        if sender.site == own && sample.from == own && sample.to != own {
            self.carry(at, sample, false);
        } else if sender.site != own && sender.site == sample.from && sample.to == own {
            let now = self.now;
            let packet = self.flows[sample.flow].packets.get_mut(sample.number);
            if let Some(packet) = packet {
                packet.arrived.get_or_insert((now, at));
            }
            self.check_sender(at, from);
        }
    }
}
