//! Chains of a gateway: between its tunnel and the site's network.

use super::{Chain, Hook, MANGLE, RAW, Rule, SetName, Term};
use super::{forged, from, leaving, sources, vxlan_port};
use crate::facts::{Facts, Tunnel};
use crate::plan::Devices;
use crate::settings::Settings;
use crate::wanted::Family;

pub(super) fn chains(
    facts: &Facts,
    tunnel: &Tunnel,
    devices: &Devices,
    settings: &Settings,
) -> Vec<Chain> {
    vec![
        arriving(facts, tunnel, settings, devices),
        entering(devices),
        sources(kept(facts, tunnel)),
        leaving(
            vec![Rule(vec![Term::To(devices.tun), Term::Accept])],
            settings,
        ),
    ]
}

/// One chain for all that arrives, since each chain costs time for every packet.
///
/// What is only passed on may come back through a sibling: no conntrack shall call it invalid. But
/// what goes to a service must come back this way, and is tracked.
///
/// A site may have more networks than that of its gateways' addresses.
///
/// Outer datagrams whose source lies in another site's prefix did not come through the tunnel; with
/// the mark the check of reverse paths knows.
fn arriving(facts: &Facts, tunnel: &Tunnel, settings: &Settings, devices: &Devices) -> Chain {
    let has_services = !facts.services.is_empty();
    let (value, mask) = settings.fwmark;
    let tun = from(true, devices.tun);
    let untracked = |from: SetName, to: SetName| {
        [
            Term::Source(from),
            Term::Destination(to),
            Term::DestinationIsOwn(false),
            Term::Untracked,
        ]
    };
    let to_services = Family::BOTH
        .into_iter()
        .filter(|_| has_services)
        .map(|family| {
            let services = Term::Destination(SetName::Services(family));
            Rule(vec![tun.clone(), services, Term::Accept])
        });
    let from_tunnel = Family::BOTH.map(|family| {
        let mut terms = vec![tun.clone()];
        terms.extend(untracked(SetName::Mesh(family), SetName::Local(family)));
        terms.push(Term::Accept);
        Rule(terms)
    });
    let into_tunnel = Family::BOTH
        .map(|family| Rule(untracked(SetName::Local(family), SetName::Mesh(family)).into()));
    let mut rules: Vec<Rule> = to_services.collect();
    rules.extend(from_tunnel);
    rules.push(Rule(vec![tun, Term::Accept]));
    rules.push(Rule(vec![
        Term::UdpTo(tunnel.listen_port),
        Term::DestinationIsOwn(true),
        Term::Mark(value, mask),
        Term::Accept,
    ]));
    let mut known: Vec<u32> = devices.inner.values().copied().collect();
    if !tunnel.agents.is_empty() {
        rules.extend(vxlan_port(tunnel.vxlan.port, devices));
        known.push(devices.vxlan);
    }
    rules.extend(forged(&known));
    rules.extend(into_tunnel);
    Chain {
        name: "arriving",
        kind: "filter",
        hook: Hook::Prerouting,
        priority: RAW,
        rules,
    }
}

/// Sources of other sites come by the tunnel, or by the site's own network from a sibling; from
/// elsewhere they are forged, and are not passed on.
fn entering(devices: &Devices) -> Chain {
    let accepted = |index: &u32| Rule(vec![from(true, *index), Term::Accept]);
    let mut rules = vec![accepted(&devices.tun)];
    rules.extend(devices.inner.values().map(accepted));
    for family in Family::BOTH {
        let mesh = Term::Source(SetName::Mesh(family));
        rules.push(Rule(vec![mesh, Term::Count, Term::Drop]));
    }
    // Where the site's network is not known, nothing can be told apart.
    if devices.inner.is_empty() {
        rules.clear();
    }
    Chain {
        name: "entering",
        kind: "filter",
        hook: Hook::Forward,
        priority: MANGLE,
        rules,
    }
}

/// This node's own connections into the mesh keep their source, whatever other chains masquerade.
/// Those from the mesh to services get this node's: their answers must come back to where the
/// address of the service was translated. It is the one place where a source is not kept.
fn kept(facts: &Facts, tunnel: &Tunnel) -> Vec<Rule> {
    let own = Family::BOTH.map(|family| {
        Rule(vec![
            Term::Output {
                is: true,
                device: tunnel.tun.clone(),
            },
            Term::OwnSource,
            Term::KeepSource(family),
        ])
    });
    let to_services = facts.lan.iter().map(|address| {
        let family = Family::of(*address);
        Rule(vec![
            Term::OriginalSource(SetName::Mesh(family)),
            Term::OriginalDestination(SetName::Services(family)),
            Term::TranslateSource(*address),
        ])
    });
    let mut rules = Vec::from(own);
    rules.extend(to_services.filter(|_| !facts.services.is_empty()));
    rules
}
