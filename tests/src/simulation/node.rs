//! One gateway: what survives its process, and the process.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use gateway::links::{Carriers, Counters, Gateway, Links, Roster};
use proto::entry::Role;
use proto::key::{PublicKey, WireguardKey};
use proto::ledger::PrefixState;
use proto::mesh::Mesh;
use proto::name::Name;
use proto::record::Member;

use super::cast::Actor;
use super::flow::Sample;
use super::network::HostId;
use super::tunnel::{Tunnel, Wire};

pub type NodeId = usize;

/// What a tunnel carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    Control(Vec<u8>),
    Sample(Sample),
}

pub type Datagram = Wire<Inner>;

pub struct Node {
    pub actor: Actor,
    pub host: HostId,
    /// Its cache on disk as well.
    pub mesh: Mesh,
    pub process: Option<Process>,
    /// Counts its processes; what was scheduled for an older one is void.
    pub generation: u64,
    /// By SIGSTOP; what comes meanwhile waits in its socket.
    pub is_stopped: bool,
    pub backlog: VecDeque<(SocketAddr, Datagram)>,
    /// Of its wall clock; stamps of initiations come from it.
    pub clock: i64,
    /// How far it has read the broker's log.
    pub taken: usize,
    /// Its last record, and whether the broker has it.
    pub member: Option<Member>,
    pub is_published: bool,
    /// Since when it does not run.
    pub died: Option<Duration>,
    /// When something last happened that may disturb its links.
    pub touched: Duration,
    /// By the ledger, whoever knows it by now.
    pub is_revoked: bool,
    /// Another host has its keys.
    pub is_clone: bool,
    /// It has withdrawn.
    pub has_left: bool,
    pub rotations: u32,
}

pub struct Process {
    pub links: Links,
    pub peers: BTreeMap<PublicKey, Peer>,
    pub roster: Roster,
    pub relays: BTreeMap<PublicKey, Relay>,
    pub carriers: Carriers,
    pub wake: Option<Duration>,
    pub is_leaving: bool,
    pub reflected: Option<SocketAddr>,
    pub asked_reflection: Option<Duration>,
    pub last_stamp: u64,
    pub started: Duration,
    pub wakes: Wakes,
}

/// How often it woke up in this second.
#[derive(Default)]
pub struct Wakes {
    pub second: u64,
    pub count: usize,
    /// Without any time between.
    pub at_once: usize,
    pub last: Duration,
}

/// What the packet path holds of a link.
pub struct Peer {
    pub tunnel: Tunnel,
    pub is_sibling: bool,
    pub mtu: usize,
    pub counters: Counters,
    pub told: Counters,
    /// The last new source that control heard of.
    pub source: Option<(SocketAddr, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    Wanted,
    /// The broker has agreed; in a moment.
    Coming,
    Given,
}

impl Node {
    pub fn is_running(&self) -> bool {
        self.process.is_some() && !self.is_stopped
    }

    pub fn identity(&self) -> PublicKey {
        self.actor.identity
    }

    pub fn label(&self) -> String {
        format!("{}/{}", self.actor.site, self.actor.name)
    }

    /// All gateways in good standing but itself, as its daemon makes it from what it believes.
    pub fn roster(&self) -> Roster {
        let mut gateways = BTreeMap::new();
        for node in self.mesh.nodes() {
            let record = &node.record;
            let Some(presence) = record.presence() else {
                continue;
            };
            if record.role != Role::Gateway || node.identity == self.identity() {
                continue;
            }
            let gateway = Gateway {
                site: record.site.clone(),
                node: record.node.clone(),
                wireguard: presence.wireguard,
                candidates: self.mesh.usable_candidates(node),
                lan: self.mesh.usable_lan_address(node),
            };
            gateways.insert(node.identity, gateway);
        }
        let held = self.mesh.charter().prefixes.iter();
        let owned = held.filter(|held| held.state == PrefixState::Owned);
        Roster {
            gateways,
            prefixes: owned.map(|held| (held.prefix, held.site.clone())).collect(),
        }
    }
}

impl Process {
    /// The packet path gets the links of a new roster: what has not changed is not touched.
    pub(super) fn update_peers(&mut self, roster: &Roster, own: &(Name, WireguardKey)) {
        self.peers.retain(|of, peer| {
            let listed = roster.gateways.get(of);
            listed.is_some_and(|gateway| gateway.wireguard == peer.tunnel.peer())
        });
        self.relays.retain(|of, _| roster.gateways.contains_key(of));
        for (of, gateway) in &roster.gateways {
            self.peers.entry(*of).or_insert_with(|| Peer {
                tunnel: Tunnel::new(own.1, gateway.wireguard),
                is_sibling: gateway.site == own.0,
                mtu: 1280,
                counters: Counters::default(),
                told: Counters::default(),
                source: None,
            });
        }
    }
}
