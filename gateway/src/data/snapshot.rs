//! What the data threads need to know of the configuration: immutable, replaced as a whole.

use std::net::IpAddr;

use ip_network::IpNetwork;
use ip_network_table::IpNetworkTable;

use super::flow;
use crate::drops::DropReason;

/// Which owner of a prefix; an index into [`Snapshot::owners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(pub u32);

/// Where a link lives: its thread, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkPlace {
    pub thread: u32,
    pub slot: u32,
}

/// One of the links that may carry a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The gateway's, and not the link's: a flow stays where it is when links are placed anew.
    pub seed: u64,
    pub place: LinkPlace,
}

/// Whom packets for an owner are given to; one choice for each flow.
#[derive(Clone, Debug)]
pub enum Carried {
    /// Its own gateways; in `causeway wg` the peer's one link.
    By(Box<[Choice]>),
    /// Siblings, since none of its gateways can be reached from here.
    BySiblings(Box<[Choice]>),
    Nobody(DropReason),
}

/// Whom a prefix leads to: a site of the mesh, a peer in `causeway wg`.
#[derive(Clone, Debug)]
pub struct Owner {
    pub carried: Carried,
}

/// What may come through a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// `causeway wg`: what would leave through the same link, whatever its destination.
    Peer,
    /// From this site to ours.
    Site(OwnerId),
    /// From our site to another, which the sibling does not reach.
    Sibling,
}

/// Where a packet that came through a link goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    Tun,
    /// To a gateway of its destination's site, for a sibling.
    Link,
}

/// A mesh as one of its gateways sees it.
#[derive(Default)]
pub struct Mesh {
    /// Of the other sites; those of one site lead to one owner.
    pub prefixes: Vec<(IpNetwork, OwnerId)>,
    pub owners: Vec<Owner>,
    /// Links that are not listed may carry control packets only.
    pub senders: Vec<(LinkPlace, Sender)>,
    /// Our own site's prefixes.
    pub own: Vec<IpNetwork>,
    /// Where agents of our site send probes, through the TUN.
    pub probes: Vec<IpAddr>,
    pub own_port: Option<u16>,
}

/// The configuration as the packet path sees it.
pub struct Snapshot {
    prefixes: IpNetworkTable<OwnerId>,
    pub owners: Vec<Owner>,
    /// By thread and slot; `None` in `causeway wg`, where every link is a peer's.
    senders: Option<Vec<Vec<Option<Sender>>>>,
    own: IpNetworkTable<()>,
    /// The interface's MTU: padding does not go above it. In a mesh every link has its own.
    pub mtu: usize,
    /// Our port, where nothing but us keeps our datagrams out of the tunnel: a firewall mark would.
    pub own_port: Option<u16>,
}

impl Owner {
    /// A peer with its one link.
    pub fn peer(place: LinkPlace) -> Owner {
        let only = Choice { seed: 0, place };
        Owner {
            carried: Carried::By(Box::new([only])),
        }
    }
}

impl Snapshot {
    /// That of `causeway wg`.
    pub fn new(
        prefixes: impl Iterator<Item = (IpNetwork, OwnerId)>,
        owners: Vec<Owner>,
        mtu: usize,
        own_port: Option<u16>,
    ) -> Snapshot {
        Snapshot {
            prefixes: table(prefixes),
            owners,
            senders: None,
            own: IpNetworkTable::new(),
            mtu,
            own_port,
        }
    }

    pub fn mesh(mesh: Mesh) -> Snapshot {
        let mut senders: Vec<Vec<Option<Sender>>> = Vec::new();
        for (place, sender) in mesh.senders {
            let (thread, slot) = (place.thread as usize, place.slot as usize);
            if senders.len() <= thread {
                senders.resize_with(thread + 1, Vec::new);
            }
            let slots = &mut senders[thread];
            if slots.len() <= slot {
                slots.resize(slot + 1, None);
            }
            slots[slot] = Some(sender);
        }
        // An owner that nobody carries, so that no packet but these pays for them.
        let (mut prefixes, mut owners) = (mesh.prefixes, mesh.owners);
        let us = OwnerId(owners.len() as u32);
        owners.push(Owner {
            carried: Carried::Nobody(DropReason::LanProbe),
        });
        prefixes.extend(mesh.probes.into_iter().map(|at| (IpNetwork::from(at), us)));
        Snapshot {
            prefixes: table(prefixes.into_iter()),
            owners,
            senders: Some(senders),
            own: table(mesh.own.into_iter().map(|prefix| (prefix, ()))),
            mtu: 0,
            own_port: mesh.own_port,
        }
    }

    pub fn is_mesh(&self) -> bool {
        self.senders.is_some()
    }

    /// The owner of the longest prefix that holds `address`, over the whole device.
    pub fn owner(&self, address: IpAddr) -> Option<OwnerId> {
        find(&self.prefixes, address).copied()
    }

    fn is_own(&self, address: IpAddr) -> bool {
        find(&self.own, address).is_some()
    }

    fn carried(&self, owner: OwnerId) -> Result<&Carried, DropReason> {
        let owner = self.owners.get(owner.0 as usize);
        owner.map(|owner| &owner.carried).ok_or(DropReason::NoPeer)
    }

    /// The link that carries `packet`, which goes to `address`.
    #[inline]
    pub fn link_for(&self, address: IpAddr, packet: &[u8]) -> Result<LinkPlace, DropReason> {
        let owner = self.owner(address).ok_or(DropReason::NoPeer)?;
        match self.carried(owner)? {
            Carried::By(choices) | Carried::BySiblings(choices) => choose(choices, packet),
            Carried::Nobody(reason) => Err(*reason),
        }
    }

    /// The link that carries a sibling's `packet` on: that of a gateway of its destination's site.
    /// What came from a sibling never goes to one.
    pub fn link_for_sibling(
        &self,
        address: IpAddr,
        packet: &[u8],
    ) -> Result<LinkPlace, DropReason> {
        let owner = self.owner(address).ok_or(DropReason::SiblingDestination)?;
        match self.carried(owner)? {
            Carried::By(choices) => choose(choices, packet),
            Carried::BySiblings(_) | Carried::Nobody(_) => Err(DropReason::SiblingSiteLost),
        }
    }

    /// Whether a packet with these addresses may come through the link at `place`, and where it
    /// goes then.
    pub fn admit(
        &self,
        place: LinkPlace,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Onward, DropReason> {
        match self.sender(place).ok_or(DropReason::InnerNotAllowed)? {
            Sender::Peer => self.admit_peer(place, source),
            Sender::Site(_) if !self.is_own(destination) => Err(DropReason::InnerDestination),
            Sender::Site(site) if self.owner(source) != Some(site) => Err(DropReason::InnerSource),
            Sender::Site(_) => Ok(Onward::Tun),
            Sender::Sibling if !self.is_own(source) => Err(DropReason::SiblingSource),
            Sender::Sibling if self.is_own(destination) => Err(DropReason::SiblingDestination),
            Sender::Sibling => {
                let owner = self.owner(destination);
                match self.carried(owner.ok_or(DropReason::SiblingDestination)?)? {
                    Carried::By(choices) if !choices.is_empty() => Ok(Onward::Link),
                    Carried::By(_) | Carried::BySiblings(_) | Carried::Nobody(_) => {
                        Err(DropReason::SiblingSiteLost)
                    }
                }
            }
        }
    }

    /// `causeway wg`: the source's owner has this link.
    pub fn admit_peer(&self, place: LinkPlace, source: IpAddr) -> Result<Onward, DropReason> {
        let owner = self.owner(source).ok_or(DropReason::InnerSource)?;
        match self.carried(owner) {
            Ok(Carried::By(choices)) if matches!(**choices, [one] if one.place == place) => {
                Ok(Onward::Tun)
            }
            _ => Err(DropReason::InnerSource),
        }
    }

    fn sender(&self, place: LinkPlace) -> Option<Sender> {
        let Some(senders) = &self.senders else {
            return Some(Sender::Peer);
        };
        let slots = senders.get(place.thread as usize)?;
        *slots.get(place.slot as usize)?
    }
}

fn table<T>(prefixes: impl Iterator<Item = (IpNetwork, T)>) -> IpNetworkTable<T> {
    let mut table = IpNetworkTable::new();
    for (prefix, of) in prefixes {
        table.insert(prefix, of);
    }
    table
}

fn find<T>(table: &IpNetworkTable<T>, address: IpAddr) -> Option<&T> {
    match address {
        IpAddr::V4(v4) => table.longest_match_ipv4(v4).map(|(_, of)| of),
        IpAddr::V6(v6) => table.longest_match_ipv6(v6).map(|(_, of)| of),
    }
}

/// The flow is only looked at where there is something to choose.
#[inline]
fn choose(choices: &[Choice], packet: &[u8]) -> Result<LinkPlace, DropReason> {
    match choices {
        [] => Err(DropReason::SiteDown),
        [only] => Ok(only.place),
        [first, rest @ ..] => Ok(flow::choose(flow::hash(packet), first, rest).place),
    }
}

#[cfg(test)]
mod tests;
