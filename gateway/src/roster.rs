//! Which gateways there are to be linked with, and what the node's own kernel has to know: read
//! from the verified view.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;
use node::follow::{Peer, View};
use proto::entry::Role;
use proto::key::PublicKey;
use proto::ledger::{PrefixState, Standing};
use proto::name::Name;
use proto::prefix::overlap;
use routeagent::facts::{Exit, Facts, Remote, Vxlan};

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
    let mut facts = Facts {
        lan: tunnel.lan.clone(),
        prefixes: BTreeMap::new(),
        local: Vec::new(),
        services: Vec::new(),
        exit: Exit::Tunnel(routeagent::facts::Tunnel {
            tun: tunnel.tun.clone(),
            listen_port: tunnel.listen_port,
            agents: BTreeMap::new(),
            vxlan: Vxlan {
                port: VXLAN_PORT,
                own: view.identity,
            },
            probes: Vec::new(),
        }),
    };
    let in_force = view
        .prefixes
        .iter()
        .filter(|owned| owned.state == PrefixState::Owned);
    for owned in in_force {
        if owned.site == view.site {
            facts.local.push(owned.prefix);
            facts.services.extend(owned.service.then_some(owned.prefix));
        } else {
            let remote = Remote {
                site: owned.site.clone(),
                mtu: mtu_of(&owned.site, carriers, mtus),
                by: BTreeSet::new(),
            };
            facts.prefixes.insert(owned.prefix, remote);
        }
    }
    close(view, &mut facts);
    facts
}

/// What is quarantined, and what a revoked site had, nobody carries; it does not leave in clear
/// for that.
fn close(view: &View, facts: &mut Facts) {
    let quarantined = view
        .prefixes
        .iter()
        .filter(|held| held.state == PrefixState::Quarantined)
        .map(|held| (&held.prefix, &held.site));
    let cut_off = view.cut_off.iter().map(|(prefix, site)| (prefix, site));
    let mut closed = vec![];
    for (prefix, site) in quarantined.chain(cut_off) {
        if *site == view.site {
            continue;
        }
        let given = || facts.prefixes.keys().copied();
        let parts = closed_parts(*prefix, &facts.local).into_iter();
        let parts = parts.filter(|part| stays_closed(*part, given()));
        closed.extend(parts.map(|part| (part, site.clone())));
    }
    for (prefix, site) in closed {
        let nobody = Remote {
            site,
            mtu: None,
            by: BTreeSet::new(),
        };
        facts.prefixes.insert(prefix, nobody);
    }
}

/// Of a prefix that nobody has any more. Where another site has it all now, that counts; a part
/// that another site has goes there by its longer route.
fn stays_closed(prefix: IpNetwork, mut given: impl Iterator<Item = IpNetwork>) -> bool {
    !given.any(|given| given.netmask() <= prefix.netmask() && overlap(given, prefix))
}

/// Our own site is never cut off: what of the prefix it does not have.
fn closed_parts(prefix: IpNetwork, local: &[IpNetwork]) -> Vec<IpNetwork> {
    let touching = || local.iter().filter(|local| overlap(**local, prefix));
    if touching().any(|local| local.netmask() <= prefix.netmask()) {
        return vec![];
    }
    if touching().next().is_none() {
        return vec![prefix];
    }
    let halves: Vec<IpNetwork> = match prefix {
        IpNetwork::V4(v4) => v4.subnets().map(IpNetwork::V4).collect(),
        IpNetwork::V6(v6) => v6.subnets().map(IpNetwork::V6).collect(),
    };
    let parts = halves.into_iter().map(|half| closed_parts(half, local));
    parts.flatten().collect()
}

/// UDP, where no other is asked for.
pub const VXLAN_PORT: u16 = 7803;

/// What is fixed for the life of the process, save the addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    pub tun: String,
    pub lan: Vec<IpAddr>,
    pub listen_port: u16,
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
    fn the_rest_of_a_closed_prefix_stays_closed_when_a_part_is_given() {
        let net = |text: &str| -> IpNetwork { text.parse().unwrap() };
        let stays = |given: &str| stays_closed(net("10.2.0.0/16"), [net(given)].into_iter());
        for given in ["192.168.0.0/24", "10.2.5.0/24", "10.3.0.0/16", "fd00::/8"] {
            assert!(stays(given), "{given}");
        }
        for given in ["10.2.0.0/16", "10.0.0.0/8"] {
            assert!(!stays(given), "{given}");
        }
    }

    #[test]
    fn of_a_closed_prefix_only_what_is_our_own_is_open() {
        let net = |text: &&str| -> IpNetwork { text.parse().unwrap() };
        for (closed, local, parts) in [
            ("10.2.0.0/16", vec!["192.168.0.0/24"], vec!["10.2.0.0/16"]),
            ("10.2.0.0/16", vec!["10.2.0.0/16"], vec![]),
            ("10.2.0.0/16", vec!["10.0.0.0/8"], vec![]),
            (
                "10.2.0.0/22",
                vec!["10.2.1.0/24", "fd00::/8"],
                vec!["10.2.0.0/24", "10.2.2.0/23"],
            ),
            (
                "10.2.0.0/22",
                vec!["10.2.1.0/24", "10.2.3.0/24"],
                vec!["10.2.0.0/24", "10.2.2.0/24"],
            ),
            ("fd00:2::/32", vec!["fd00:2::/33"], vec!["fd00:2:8000::/33"]),
        ] {
            let local: Vec<IpNetwork> = local.iter().map(net).collect();
            let wanted: Vec<IpNetwork> = parts.iter().map(net).collect();
            assert_eq!(closed_parts(net(&closed), &local), wanted, "{closed}");
        }
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
