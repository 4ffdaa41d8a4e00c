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
use proto::record::Capabilities;
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
            agents: by_vxlan(siblings(&members(view)), &tunnel.agents),
            vxlan: Vxlan {
                port: tunnel.vxlan_port,
                own: view.identity,
            },
            probes: probe_addresses(&view.identity),
        }),
    }
}

/// Another node of our site, as its signed record has it.
struct Member {
    name: Name,
    role: Role,
    by_vxlan: bool,
    /// Inside the site, its LAN address first.
    addresses: Vec<IpAddr>,
}

fn members(view: &View) -> BTreeMap<PublicKey, Member> {
    let is_ours = |peer: &&Peer| peer.node.record.site == view.site;
    let peers = view
        .peers
        .iter()
        .filter(|_| view.standing == Standing::Good);
    let members = peers.filter_map(|(identity, peer)| {
        let peer = Some(&**peer).filter(is_ours)?;
        let record = &peer.node.record;
        // Gateways name their addresses of both families there.
        let candidates = match record.role {
            Role::Gateway => &peer.candidates[..],
            Role::Agent => &[],
        };
        let more = candidates.iter().map(|candidate| candidate.ip());
        let more = more.filter(|address| is_own(view, *address));
        let member = Member {
            name: record.node.clone(),
            role: record.role,
            by_vxlan: record.presence()?.capabilities.has(Capabilities::VXLAN),
            addresses: peer.lan_address.into_iter().chain(more).collect(),
        };
        Some((*identity, member))
    });
    members.collect()
}

/// Where the site's network takes no addresses of other sites from agents, it takes none from the
/// other gateways of the site either: what came in by one of them for this very node, or the other
/// way round, goes by VXLAN too. That is so once the record of any agent says it. Gateways do not
/// ask each other: all of them read the same records.
fn siblings(members: &BTreeMap<PublicKey, Member>) -> BTreeMap<PublicKey, Neighbour> {
    let agents = members.values().filter(|member| member.by_vxlan);
    let agents = agents.filter(|member| member.role == Role::Agent);
    let outer: BTreeSet<bool> = agents
        .filter_map(|agent| agent.addresses.first())
        .map(IpAddr::is_ipv4)
        .collect();
    // One interface speaks one family outside, and agents need theirs.
    let Some(is_v4) = outer.last() else {
        return BTreeMap::new();
    };
    let gateways = members.iter();
    let gateways = gateways.filter(|(_, member)| member.role == Role::Gateway);
    let siblings = gateways.filter_map(|(identity, gateway)| {
        let of_family = |v4: bool| {
            let mut addresses = gateway.addresses.iter();
            addresses.find(|address| address.is_ipv4() == v4).copied()
        };
        let neighbour = Neighbour {
            name: gateway.name.clone(),
            lan: of_family(*is_v4)?,
            other: of_family(!is_v4),
            probes: Vec::new(),
        };
        Some((*identity, neighbour))
    });
    siblings.collect()
}

/// What an agent says of itself does not take what siblings have signed.
fn by_vxlan(
    siblings: BTreeMap<PublicKey, Neighbour>,
    agents: &BTreeMap<PublicKey, Neighbour>,
) -> BTreeMap<PublicKey, Neighbour> {
    let signed = siblings.values();
    let signed = signed.flat_map(|sibling| [Some(sibling.lan), sibling.other]);
    let signed: BTreeSet<IpAddr> = signed.flatten().collect();
    let agents = agents.iter().map(|(identity, agent)| {
        let agent = Neighbour {
            other: agent.other.filter(|other| !signed.contains(other)),
            ..agent.clone()
        };
        (*identity, agent)
    });
    siblings.into_iter().chain(agents).collect()
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

    fn member(role: Role, by_vxlan: bool, addresses: &[&str]) -> Member {
        Member {
            name: "x".parse().unwrap(),
            role,
            by_vxlan,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    fn siblings_of(members: Vec<Member>) -> BTreeMap<PublicKey, Neighbour> {
        siblings(&(1..).map(identity).zip(members).collect())
    }

    /// LAN address and other of each.
    fn shown(neighbours: BTreeMap<PublicKey, Neighbour>) -> Vec<String> {
        let neighbours = neighbours.into_values();
        let mut shown: Vec<String> = neighbours
            .map(|one| format!("{} {:?}", one.lan, one.other))
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn siblings_are_reached_by_vxlan_once_an_agent_is() {
        let site = |agents: &[(bool, &str)]| {
            let both = &["10.1.0.1", "10.1.0.1", "fd00:1::1"];
            let mut site = vec![
                member(Role::Gateway, false, both),
                member(Role::Gateway, false, &["fd00:1::2"]),
            ];
            for (by_vxlan, address) in agents {
                site.push(member(Role::Agent, *by_vxlan, &[*address]));
            }
            shown(siblings_of(site))
        };
        let direct = (false, "10.1.0.10");
        assert_eq!(site(&[direct]), Vec::<String>::new());
        assert_eq!(
            site(&[direct, (true, "fd00:1::12")]),
            ["fd00:1::1 Some(10.1.0.1)", "fd00:1::2 None"]
        );
        assert_eq!(
            site(&[(true, "fd00:1::12"), (true, "10.1.0.11")]),
            ["10.1.0.1 Some(fd00:1::1)"]
        );
    }

    #[test]
    fn no_agent_takes_an_address_that_a_sibling_signed() {
        let agent = |other: &str| Neighbour {
            name: "agent".parse().unwrap(),
            lan: "10.1.0.10".parse().unwrap(),
            other: Some(other.parse().unwrap()),
            probes: Vec::new(),
        };
        let site = || {
            siblings_of(vec![
                member(Role::Gateway, false, &["10.1.0.1", "fd00:1::1"]),
                member(Role::Agent, true, &["10.1.0.10"]),
            ])
        };
        let with = |other| shown(by_vxlan(site(), &[(identity(9), agent(other))].into()));
        let sibling = "10.1.0.1 Some(fd00:1::1)";
        assert_eq!(with("fd00:1::1"), [sibling, "10.1.0.10 None"]);
        assert_eq!(with("fd00:1::a"), [sibling, "10.1.0.10 Some(fd00:1::a)"]);
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
