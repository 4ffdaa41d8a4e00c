//! Which gateways there are to be linked with, and what the node's own kernel has to know: read
//! from the verified view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use node::follow::{Peer, View};
use proto::entry::Role;
use proto::key::PublicKey;
use proto::lan::{self, ProbeBy};
use proto::ledger::{PrefixState, Standing};
use proto::name::Name;
use routeagent::facts::{Exit, Facts, Neighbour, Vxlan};
use routeagent::held::{Held, Reach};

use crate::links::{Carriers, Carry, Gateway, Roster};

/// A node that is not one of the mesh any more speaks with nobody.
pub fn roster(view: &View) -> Roster {
    if view.standing != Standing::Good {
        return Roster::default();
    }
    let gateways = view
        .peers
        .iter()
        .filter(|(identity, _)| **identity != view.identity)
        .filter_map(|(identity, peer)| Some((*identity, gateway(peer)?)));
    let owned = view
        .prefixes
        .iter()
        .filter(|held| held.state == PrefixState::Owned);
    Roster {
        gateways: gateways.collect(),
        prefixes: owned.map(|held| (held.prefix, held.site.clone())).collect(),
    }
}

fn gateway(peer: &Peer) -> Option<Gateway> {
    let record = &peer.node.record;
    let presence = record.presence()?;
    if record.role != Role::Gateway {
        return None;
    }
    Some(Gateway {
        site: record.site.clone(),
        node: record.node.clone(),
        wireguard: presence.wireguard,
        candidates: peer.candidates.clone(),
        lan: peer.lan_address,
    })
}

/// What the route agent is told. The MTU of a site is what fits through every gateway that may
/// carry it.
pub fn facts(
    view: &View,
    tunnel: &Tunnel,
    carriers: &Carriers,
    mtus: &BTreeMap<PublicKey, u16>,
) -> Facts {
    let held = Held::of(view, |site| Reach {
        mtu: mtu_of(site, carriers, mtus),
        by: BTreeSet::new(),
    });
    Facts {
        lan: tunnel.lan.clone(),
        prefixes: held.remote,
        local: held.local,
        services: held.services,
        exit: Exit::Tunnel(routeagent::facts::Tunnel {
            tun: tunnel.tun.clone(),
            listen_port: tunnel.listen_port,
            agents: tunnel.agents.clone(),
            vxlan: Vxlan {
                port: tunnel.vxlan_port,
                own: view.identity,
            },
            probes: probe_addresses(&view.identity),
        }),
    }
}

/// Where agents of our site try the ways to this gateway, packets of the mesh going the same.
pub fn probe_addresses(gateway: &PublicKey) -> Vec<IpAddr> {
    let ways = [ProbeBy::Direct, ProbeBy::Vxlan];
    let both = ways.map(|by| lan::probe_addresses(gateway, by));
    both.into_iter()
        .flat_map(|(v4, v6)| [v4.into(), v6.into()])
        .collect()
}

/// Whether it is an address of this node's site, by the longest prefix: another site's may lie
/// inside one of ours.
pub fn is_own(view: &View, address: IpAddr) -> bool {
    let holding = view
        .prefixes
        .iter()
        .filter(|held| held.state == PrefixState::Owned && held.prefix.contains(address));
    let longest = holding.max_by_key(|held| held.prefix.netmask());
    longest.is_some_and(|held| held.site == view.site)
}

/// What the mesh does not tell: this node's own, and what its agents say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub tun: String,
    pub lan: Vec<IpAddr>,
    pub listen_port: u16,
    pub vxlan_port: u16,
    /// Those that are reached by VXLAN.
    pub agents: BTreeMap<PublicKey, Neighbour>,
}

/// Of a path that was not probed yet.
pub const FIRST_MTU: u16 = 1280;

/// `None` while nobody carries it.
pub fn mtu_of(site: &Name, carriers: &Carriers, mtus: &BTreeMap<PublicKey, u16>) -> Option<u16> {
    let gateways = match carriers.sites.get(site)? {
        Carry::Direct(gateways) | Carry::Siblings(gateways) => gateways,
    };
    let known = gateways.iter().map(|gateway| mtus.get(gateway));
    known.map(|mtu| mtu.copied().unwrap_or(FIRST_MTU)).min()
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    fn identity(number: u8) -> PublicKey {
        SigningKey::from_seed(&[number; 32]).public()
    }

    #[test]
    fn the_mtu_of_a_site_is_what_all_its_carriers_carry() {
        let berlin: Name = "berlin".parse().unwrap();
        let mut carriers = Carriers::default();
        let mut mtus = BTreeMap::from([(identity(1), 1420), (identity(2), 1380)]);
        assert_eq!(mtu_of(&berlin, &carriers, &mtus), None);
        let both = Carry::Direct(vec![identity(1), identity(2)]);
        carriers.sites.insert(berlin.clone(), both);
        assert_eq!(mtu_of(&berlin, &carriers, &mtus), Some(1380));
        mtus.remove(&identity(1));
        assert_eq!(mtu_of(&berlin, &carriers, &mtus), Some(FIRST_MTU));
    }
}
