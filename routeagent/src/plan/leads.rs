//! Where packets for the mesh, and back from it, are led.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;
use proto::key::{Domain, Hash, PublicKey};

use super::groups::{Assigned, assign};
use super::{Ground, START_MTU, V6_METRIC, routed};
use crate::diff::Found;
use crate::facts::{self, Exit, Facts, Gateways, Mode, Tunnel};
use crate::link_layer::{Mac, next_hop};
use crate::settings::{NEXTHOP_BASE, Settings, VXLAN_DEVICE};
use crate::wanted::{Family, Forwarding, Hop, Neighbour, Nexthop, Place, To, Vxlan, Wanted, Way};

type Nodes = BTreeMap<PublicKey, facts::Neighbour>;

/// What VXLAN is needed with, and to whom.
pub(super) fn over_vxlan(facts: &Facts) -> Option<(&facts::Vxlan, &Nodes)> {
    match &facts.exit {
        Exit::Tunnel(tunnel) => {
            (!tunnel.agents.is_empty()).then_some((&tunnel.vxlan, &tunnel.agents))
        }
        Exit::Gateways(gateways) => gateways
            .has(Mode::Vxlan)
            .then_some((&gateways.vxlan, &gateways.gateways)),
    }
}

pub(super) fn put(
    facts: &Facts,
    ground: &Ground,
    found: &Found,
    settings: &Settings,
    wanted: &mut Wanted,
) {
    let leads = Leads {
        facts,
        ground,
        found,
        settings,
        vxlan: wanted.vxlan.clone(),
    };
    leads.link_layer(wanted);
    match &facts.exit {
        Exit::Tunnel(tunnel) => {
            leads.tunnel(tunnel, wanted);
            leads.back(tunnel, wanted);
        }
        Exit::Gateways(gateways) => {
            leads.through(gateways, wanted);
            leads.probes(gateways, wanted);
        }
    }
}

struct Leads<'a> {
    facts: &'a Facts,
    ground: &'a Ground,
    found: &'a Found,
    settings: &'a Settings,
    vxlan: Option<Vxlan>,
}

/// A hop of each gateway that has one now, with its number.
type Hops = BTreeMap<PublicKey, (u32, Hop)>;

impl Leads<'_> {
    /// Addresses of others come from their signed records only.
    fn link_layer(&self, wanted: &mut Wanted) {
        let Some((vxlan, (_, nodes))) = self.vxlan.as_ref().zip(over_vxlan(self.facts)) else {
            return;
        };
        for (identity, node) in nodes {
            if node.lan.is_ipv4() != vxlan.local.is_ipv4() {
                continue;
            }
            let mac = Mac::of(identity);
            wanted.forwarding.insert(Forwarding { mac, to: node.lan });
            let address = self.inside(identity, node);
            wanted.neighbours.insert(Neighbour { address, mac });
        }
    }

    /// A kernel without IPv6 knows the other node inside by its address outside.
    fn inside(&self, identity: &PublicKey, node: &facts::Neighbour) -> IpAddr {
        if self.ground.kernel.v6 {
            next_hop(identity)
        } else {
            node.lan
        }
    }

    fn tunnel(&self, tunnel: &Tunnel, wanted: &mut Wanted) {
        for prefix in routed(self.facts, self.ground) {
            let to = To::Device(tunnel.tun.clone());
            self.routes(prefix, Some(to), wanted);
        }
        for probe in &tunnel.probes {
            let to = To::Device(tunnel.tun.clone());
            self.host(self.settings.table, *probe, to, wanted);
        }
    }

    /// To agents for which the site's network does not take addresses of other sites.
    fn back(&self, tunnel: &Tunnel, wanted: &mut Wanted) {
        let table = self.settings.return_table();
        let own: BTreeSet<IpAddr> = tunnel.agents.values().map(|agent| agent.lan).collect();
        for (identity, agent) in &tunnel.agents {
            let Some(hop) = self.vxlan_hop(identity, agent) else {
                continue;
            };
            // What only the agent says of itself must not take what is another's.
            let is_free = |other: &IpAddr| {
                let inside = |prefix: &IpNetwork| prefix.contains(*other);
                !own.contains(other)
                    && !self.facts.lan.contains(other)
                    && self.facts.local.iter().any(inside)
            };
            for address in [Some(agent.lan), agent.other.filter(is_free)] {
                let hops = To::Hops(BTreeSet::from([hop.clone()]));
                if let Some(address) = address {
                    self.host(table, address, hops, wanted);
                }
            }
        }
    }

    fn through(&self, gateways: &Gateways, wanted: &mut Wanted) {
        let ids = self.ids(&gateways.gateways);
        let hops = Family::BOTH.map(|family| self.hops(gateways, family, &ids));
        let mut members = BTreeMap::new();
        for prefix in routed(self.facts, self.ground) {
            let hops = self.of(&hops, prefix);
            let by = self.facts.prefixes.get(&prefix).map(|remote| &remote.by);
            let ids = by.into_iter().flatten().filter_map(|by| hops.get(by));
            let ids: BTreeSet<u32> = ids.map(|(id, _)| *id).collect();
            if !ids.is_empty() {
                members.insert(prefix, ids);
            }
        }
        let nexthops = hops.iter().flat_map(BTreeMap::values);
        let nexthops: BTreeMap<u32, &Hop> = nexthops.map(|(id, hop)| (*id, hop)).collect();
        let assigned = if self.ground.kernel.nexthops {
            assign(&members, self.found, self.settings, self.ground.kernel)
        } else {
            Assigned::default()
        };
        for prefix in routed(self.facts, self.ground) {
            let to = members.get(&prefix).map(|ids| {
                let hops = ids.iter().filter_map(|id| nexthops.get(id));
                match assigned.of.get(&prefix) {
                    Some(group) => To::Group(*group),
                    None => To::Hops(hops.map(|hop| (*hop).clone()).collect()),
                }
            });
            self.routes(prefix, to, wanted);
        }
        for (id, group) in assigned.groups {
            for member in &group.members {
                if let Some(hop) = nexthops.get(member) {
                    wanted
                        .nexthops
                        .insert(*member, Nexthop::Hop((*hop).clone()));
                }
            }
            wanted.nexthops.insert(id, Nexthop::Group(group));
        }
    }

    /// A way to each gateway for what finds out whether it passes.
    fn probes(&self, gateways: &Gateways, wanted: &mut Wanted) {
        for (identity, gateway) in &gateways.gateways {
            for (probe, mode) in &gateway.probes {
                let hop = match mode {
                    Mode::Direct => self.direct_hop(gateway, Family::of(*probe)),
                    Mode::Vxlan => self.vxlan_hop(identity, gateway),
                };
                if let Some(hop) = hop {
                    let to = To::Hops(BTreeSet::from([hop]));
                    self.host(self.settings.table, *probe, to, wanted);
                }
            }
        }
    }

    fn of<'h>(&self, hops: &'h [Hops; 2], prefix: IpNetwork) -> &'h Hops {
        let [v4, v6] = hops;
        match prefix {
            IpNetwork::V4(_) => v4,
            IpNetwork::V6(_) => v6,
        }
    }

    fn hops(&self, gateways: &Gateways, family: Family, ids: &Ids) -> Hops {
        let hops = gateways.gateways.iter().filter_map(|(identity, gateway)| {
            let (hop, kind) = match (gateways.mode, family) {
                // Without an address of its own the kernel would take any other as the source, which
                // the far side drops; in clear there is no next hop either.
                (Mode::Vxlan, _) => {
                    self.source(family)?;
                    (self.vxlan_hop(identity, gateway)?, Kind::Vxlan)
                }
                (Mode::Direct, Family::V4) => (self.direct_hop(gateway, family)?, Kind::DirectV4),
                (Mode::Direct, Family::V6) => (self.direct_hop(gateway, family)?, Kind::DirectV6),
            };
            Some((*identity, (*ids.get(&(*identity, kind))?, hop)))
        });
        hops.collect()
    }

    fn direct_hop(&self, node: &facts::Neighbour, family: Family) -> Option<Hop> {
        let addresses = [Some(node.lan), node.other].into_iter().flatten();
        let mut of_family = addresses.filter(|address| Family::of(*address) == family);
        let via = of_family.next()?;
        let device = self.ground.on_link.get(&via)?;
        self.found.devices.contains(device).then(|| Hop {
            via,
            device: device.clone(),
            onlink: false,
        })
    }

    fn vxlan_hop(&self, identity: &PublicKey, node: &facts::Neighbour) -> Option<Hop> {
        let vxlan = self.vxlan.as_ref()?;
        let is_there = self.found.devices.contains(VXLAN_DEVICE);
        let fits = node.lan.is_ipv4() == vxlan.local.is_ipv4();
        (is_there && fits).then(|| Hop {
            via: self.inside(identity, node),
            device: VXLAN_DEVICE.to_owned(),
            onlink: !self.ground.kernel.v6,
        })
    }

    /// In both tables; where nobody leads there, the answer is so at once.
    fn routes(&self, prefix: IpNetwork, to: Option<To>, wanted: &mut Wanted) {
        let family = Family::of(prefix.network_address());
        let known = self.facts.prefixes.get(&prefix);
        let path = known.and_then(|remote| remote.mtu).unwrap_or(START_MTU);
        // A route's own MTU hides that of its device, which drops what is larger.
        let own = self.facts.lan.iter();
        let lan = own.filter_map(|own| self.ground.mtus.get(own)).min();
        let is_inside = |gateways: &Gateways| gateways.mode == Mode::Vxlan;
        let inside = self.vxlan.as_ref().map(|vxlan| vxlan.mtu);
        let inside = inside.filter(|_| self.facts.gateways().is_some_and(is_inside));
        let device = inside.or(lan.copied());
        let device = device.filter(|_| self.facts.tunnel().is_none());
        let device = device.and_then(|mtu| u16::try_from(mtu).ok());
        let mtu = device.map_or(path, |device| device.min(path));
        // The kernel refuses to send IPv6 by routes with less. (RFC 8200, section 5)
        let mtu = match family {
            Family::V4 => mtu,
            Family::V6 => mtu.max(START_MTU),
        };
        // Packets that are forwarded must not meet an MTU here: the kernel would refuse those above
        // it, and the packet path can cut them.
        let mtus = [
            (self.settings.table, None),
            (self.settings.own_table(), Some(mtu)),
        ];
        for (table, mtu) in mtus {
            let place = place(table, prefix);
            let way = match to.clone() {
                Some(to) => Way::Leads {
                    to,
                    source: self.source(family),
                    mtu,
                },
                None => Way::Unreachable,
            };
            wanted.routes.insert(place, way);
        }
    }

    fn host(&self, table: u32, address: IpAddr, to: To, wanted: &mut Wanted) {
        let family = Family::of(address);
        if family == Family::V6 && !self.ground.kernel.v6 {
            return;
        }
        // Nobody on a gateway sends from itself by these.
        let source = match self.facts.exit {
            Exit::Tunnel(_) => None,
            Exit::Gateways(_) => self.source(family),
        };
        let mtu = None;
        let way = Way::Leads { to, source, mtu };
        wanted
            .routes
            .insert(place(table, IpNetwork::from(address)), way);
    }

    fn source(&self, family: Family) -> Option<IpAddr> {
        let mut own = self.facts.lan.iter().copied();
        own.find(|address| Family::of(*address) == family)
    }

    /// Of every gateway, whether it is used or not: numbers do not change with who lives.
    fn ids(&self, nodes: &Nodes) -> Ids {
        let mut ids = Ids::new();
        let mut used = self.found.foreign_nexthops.clone();
        for identity in nodes.keys() {
            for kind in [Kind::DirectV4, Kind::DirectV6, Kind::Vxlan] {
                let mut bytes = identity.as_bytes().to_vec();
                bytes.push(kind as u8);
                let id = free(NEXTHOP_BASE, &bytes, &used);
                used.insert(id);
                ids.insert((*identity, kind), id);
            }
        }
        ids
    }
}

type Ids = BTreeMap<(PublicKey, Kind), u32>;

/// A gateway may have a hop of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    DirectV4,
    DirectV6,
    Vxlan,
}

/// Above `base` by a hash of `bytes`, or the next that is not in use.
pub(super) fn free(base: u32, bytes: &[u8], used: &BTreeSet<u32>) -> u32 {
    let [high, low, ..] = Hash::of(Domain::Vxlan, bytes).0;
    let hash = u32::from(u16::from_be_bytes([high, low]) & 0x7fff);
    let mut tries = (hash..=0x7fff).chain(0..hash).map(|low| base | low);
    tries.find(|id| !used.contains(id)).unwrap_or(base | hash)
}

fn place(table: u32, prefix: IpNetwork) -> Place {
    let metric = match prefix {
        IpNetwork::V4(_) => 0,
        IpNetwork::V6(_) => V6_METRIC,
    };
    Place {
        table,
        prefix,
        metric,
    }
}
