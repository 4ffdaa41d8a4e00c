//! What a plan is made from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;
use proto::key::PublicKey;
use proto::name::Name;

/// What a node knows that its own kernel has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// This node's addresses in its site's network, at most one a family: sources of what it sends
    /// into the mesh.
    pub lan: Vec<IpAddr>,
    /// All prefixes of other sites that are in force, whether anyone reaches them now or not.
    pub prefixes: BTreeMap<IpNetwork, Remote>,
    /// Prefixes of this site.
    pub local: Vec<IpNetwork>,
    /// Those of `local` that lie behind a translation of the site's own, granted with
    /// `--service-cidr`.
    pub services: Vec<IpNetwork>,
    pub exit: Exit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    pub site: Name,
    /// What fits through every gateway that may carry it; `None` while none does.
    pub mtu: Option<u16>,
    /// On an agent: the gateways of its own site to send through, none if no living one reaches the
    /// site. Gateways leave it empty.
    pub by: BTreeSet<PublicKey>,
}

/// How packets for the mesh leave this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A gateway has a tunnel.
    Tunnel(Tunnel),
    /// An agent has gateways.
    Gateways(Gateways),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The tunnel's interface.
    pub tun: String,
    /// Where outer datagrams arrive.
    pub listen_port: u16,
    /// Of this site, those that use VXLAN.
    pub agents: BTreeMap<PublicKey, Neighbour>,
    pub vxlan: Vxlan,
    /// Addresses of this gateway that agents try ways with.
    pub probes: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateways {
    pub gateways: BTreeMap<PublicKey, Neighbour>,
    pub mode: Mode,
    /// The mode was another a moment ago, and others may send by it still: what it needs stays.
    pub is_turning: bool,
    pub vxlan: Vxlan,
}

/// How packets get from an agent to its gateways and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The site's network lets addresses of other sites through.
    Direct,
    Vxlan,
}

/// A gateway for an agent, an agent for a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub name: Name,
    /// Of its signed record.
    pub lan: IpAddr,
    /// Its address of the other family, from its authenticated hello: direct mode needs one for
    /// each.
    pub other: Option<IpAddr>,
    /// Addresses that are reached through it, each by one way, to find out which ways work.
    pub probes: Vec<(IpAddr, Mode)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// UDP.
    pub port: u16,
    /// This node's identity: its addresses inside are made of it.
    pub own: PublicKey,
}

impl Facts {
    /// On a gateway.
    pub fn tunnel(&self) -> Option<&Tunnel> {
        match &self.exit {
            Exit::Tunnel(tunnel) => Some(tunnel),
            Exit::Gateways(_) => None,
        }
    }

    /// On an agent.
    pub fn gateways(&self) -> Option<&Gateways> {
        match &self.exit {
            Exit::Tunnel(_) => None,
            Exit::Gateways(gateways) => Some(gateways),
        }
    }
}

impl Gateways {
    /// Whether packets may come or go by this way.
    pub fn has(&self, mode: Mode) -> bool {
        self.is_turning || self.mode == mode
    }
}
