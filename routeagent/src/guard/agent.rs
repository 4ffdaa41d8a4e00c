//! Chains of a node with an agent: between its own programs, or its containers, and the gateways.

use ip_network::IpNetwork;

use super::{Chain, Hook, LOOPBACK, RAW, Rule, SetName, Term};
use super::{forged, from, leaving, sources, vxlan_port};
use crate::facts::{Gateways, Mode, Neighbour};
use crate::plan::Devices;
use crate::settings::Settings;
use crate::wanted::Family;

pub(super) fn chains(gateways: &Gateways, devices: &Devices, settings: &Settings) -> Vec<Chain> {
    vec![
        arriving(gateways, devices),
        sources(kept()),
        leaving(ways(gateways, devices), settings),
    ]
}

/// Addresses of a gateway on the site's own network.
pub(super) fn hops(gateway: &Neighbour) -> impl Iterator<Item = IpNetwork> {
    let addresses = [Some(gateway.lan), gateway.other];
    addresses.into_iter().flatten().map(IpNetwork::from)
}

/// Sources of other sites come from gateways, by VXLAN or by the site's own network; from elsewhere
/// they are forged. Everything stays tracked: it begins or ends on this node.
fn arriving(gateways: &Gateways, devices: &Devices) -> Chain {
    let mut rules = vec![];
    let mut known: Vec<u32> = devices.inner.values().copied().collect();
    if gateways.has(Mode::Vxlan) {
        rules.extend(vxlan_port(gateways.vxlan.port, devices));
    }
    rules.extend(forged(&known));
    // Where the site's network is not known, nothing can be told apart.
    if !known.is_empty() {
        known.extend([devices.vxlan, LOOPBACK]);
        rules.extend(Family::BOTH.map(|family| {
            let mut terms: Vec<Term> = known.iter().map(|index| from(false, *index)).collect();
            let mesh = Term::Source(SetName::Mesh(family));
            terms.extend([mesh, Term::Count, Term::Drop]);
            Rule(terms)
        }));
    }
    Chain {
        name: "arriving",
        kind: "filter",
        hook: Hook::Prerouting,
        priority: RAW,
        rules,
    }
}

/// Connections between this site and others keep their source, whatever other chains masquerade:
/// this node's own and those of containers on it. Where a service's address was translated, the one
/// who did that decides.
fn kept() -> Vec<Rule> {
    let rules = Family::BOTH.map(|family| {
        let (mesh, local) = (SetName::Mesh(family), SetName::Local(family));
        let keep = Term::KeepSource(family);
        [
            Rule(vec![Term::Destination(mesh), Term::OwnSource, keep.clone()]),
            Rule(vec![
                Term::Destination(mesh),
                Term::Source(local),
                keep.clone(),
            ]),
            Rule(vec![
                Term::Source(mesh),
                Term::Destination(local),
                Term::NotTranslated,
                keep,
            ]),
        ]
    });
    rules.into_iter().flatten().collect()
}

/// By VXLAN, or handed to a gateway on the site's own network. What tries that network may go there
/// before it is used.
fn ways(gateways: &Gateways, devices: &Devices) -> Vec<Rule> {
    let mut rules = vec![];
    if gateways.has(Mode::Vxlan) {
        rules.push(Rule(vec![Term::To(devices.vxlan), Term::Accept]));
    }
    for index in devices.inner.values() {
        for family in Family::BOTH {
            let mut terms = vec![Term::To(*index)];
            if !gateways.has(Mode::Direct) {
                terms.push(Term::Destination(SetName::Probes(family)));
            }
            terms.extend([Term::NextHop(SetName::Hops(family)), Term::Accept]);
            rules.push(Rule(terms));
        }
    }
    rules
}
