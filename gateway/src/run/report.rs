//! From what is known to what is shown: the status, and what a person should look at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use node::cloud::Place;
use node::follow::View;
use node::status::{
    Kernel, Prefix, Problem, broker, broker_problem, millis, vacancy, view_problems,
};
use proto::key::PublicKey;
use proto::ledger::{PrefixState, SitePrefix, Standing};
use proto::name::Name;

use super::addresses::From as AddressFrom;
use super::drive::Linked;
use super::problems::{Unrouted, link_problem, own_key_problem, path_problems};
use super::relayed::Relayed;
use crate::data::link::LinkShared;
use crate::links::{CandidateState, Carriers, Carry, LinkStatus, PathKind, Why};
use crate::roster;
use crate::status::{Agent, Candidate, Link, OwnAddress, Pong, Status};

/// A link that is not up for shorter may just be starting.
const PATIENCE: Duration = Duration::from_secs(5);

/// All that a report is made from.
pub(super) struct Facts<'a> {
    pub(super) view: &'a View,
    pub(super) links: Vec<LinkStatus>,
    pub(super) linked: &'a HashMap<PublicKey, Linked>,
    pub(super) carriers: &'a Carriers,
    pub(super) mtus: &'a BTreeMap<PublicKey, u16>,
    pub(super) relayed: &'a Relayed,
    pub(super) addresses: &'a [(SocketAddr, AddressFrom)],
    pub(super) lan: &'a [IpAddr],
    pub(super) place: &'a Place,
    pub(super) tun: &'a str,
    pub(super) port: u16,
    pub(super) kernel: Kernel,
    pub(super) uptime: Duration,
    pub(super) ready: bool,
    pub(super) drops: BTreeMap<String, u64>,
    pub(super) agents: Vec<Agent>,
    /// Of those addresses that are tried in vain.
    pub(super) unrouted: Unrouted,
    /// Of other parts: interface, routes, endpoints.
    pub(super) problems: Vec<Problem>,
}

pub(super) fn status(facts: Facts<'_>) -> Status {
    let view = facts.view;
    let mut problems = view_problems(view);
    problems.extend(own_key_problem(&facts.links));
    problems.extend(facts.problems.iter().cloned());
    if facts.uptime >= PATIENCE {
        problems.extend(broker_problem(&view.broker, "come through other gateways"));
        problems.extend(facts.links.iter().filter_map(|link| {
            let no_relay = facts.relayed.why_lost(&link.of);
            link_problem(link, no_relay, &facts.unrouted)
        }));
    }
    let paths = facts.links.iter();
    problems.extend(paths.flat_map(|link| path_problems(link, &facts.unrouted)));
    if facts.addresses.is_empty() {
        problems.push(Problem::new(
            "this gateway has no address to be found at: others can only be called by it",
            "give the address that others reach with --endpoint HOST:PORT, unless it is meant to dial out only",
        ));
    }
    let index = Index::new(&facts.links, facts.carriers);
    let links = facts.links.iter().map(|link| show(link, &facts, &index));
    let mut links: Vec<Link> = links.collect();
    links.sort_by(|one, other| (&one.site, &one.gateway).cmp(&(&other.site, &other.gateway)));
    Status {
        mesh: view.mesh.to_string(),
        site: view.site.to_string(),
        node: view.node.to_string(),
        role: "gateway".to_owned(),
        identity: view.identity.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: facts.uptime.as_secs(),
        ready: facts.ready,
        broker: broker(view),
        tun: facts.tun.to_owned(),
        listen_port: facts.port,
        kernel: facts.kernel,
        lan_address: facts.lan.first().map(IpAddr::to_string),
        region: facts.place.region.clone(),
        zone: facts.place.zone.clone(),
        addresses: facts
            .addresses
            .iter()
            .map(|(address, from)| OwnAddress {
                address: address.to_string(),
                from: from.name().to_owned(),
            })
            .collect(),
        links,
        prefixes: view
            .prefixes
            .iter()
            .map(|prefix| show_prefix(prefix, &facts, &index))
            .collect(),
        remarks: remarks(&facts, &index),
        drops: facts.drops,
        agents: facts.agents,
        problems,
    }
}

fn remarks(facts: &Facts<'_>, index: &Index<'_>) -> Vec<Problem> {
    if facts.uptime < PATIENCE {
        return Vec::new();
    }
    let mut vacant: BTreeMap<&Name, Vec<String>> = BTreeMap::new();
    for owned in facts.view.prefixes.iter() {
        if state_of(owned, &Own::of(facts.view), index) == NO_GATEWAY {
            let prefixes = vacant.entry(&owned.site).or_default();
            prefixes.push(owned.prefix.to_string());
        }
    }
    let all = vacant.iter();
    all.map(|(site, prefixes)| vacancy(site, prefixes))
        .collect()
}

/// Made once for a report, so that it costs as much as it is long.
struct Index<'a> {
    carriers: &'a Carriers,
    /// Those that a gateway is known of.
    sites: HashSet<&'a Name>,
    carrying: HashSet<PublicKey>,
    names: HashMap<PublicKey, &'a Name>,
}

impl<'a> Index<'a> {
    fn new(links: &'a [LinkStatus], carriers: &'a Carriers) -> Index<'a> {
        let carrying = carriers.sites.values().flat_map(|carry| match carry {
            Carry::Direct(gateways) | Carry::Siblings(gateways) => gateways,
        });
        Index {
            carriers,
            sites: links.iter().map(|link| &link.site).collect(),
            carrying: carrying.copied().collect(),
            names: links.iter().map(|link| (link.of, &link.node)).collect(),
        }
    }
}

fn show(link: &LinkStatus, facts: &Facts<'_>, index: &Index<'_>) -> Link {
    let shared = facts.linked.get(&link.of).map(|linked| &*linked.shared);
    let load = |value: fn(&LinkShared) -> u64| shared.map_or(0, value);
    let handshake = load(|shared| shared.last_handshake.load(Ordering::Relaxed)) / 1_000_000_000;
    let state = state_word(link);
    let why = link.state.err();
    let kind = link.path.map(|(_, kind)| kind);
    let place = place_of(facts.view, &link.of);
    Link {
        site: link.site.to_string(),
        gateway: link.node.to_string(),
        identity: link.of.to_string(),
        region: place.region,
        zone: place.zone,
        sibling: link.is_sibling,
        state: state.to_owned(),
        why: why.map(|why| word(why).to_owned()),
        why_text: why.map(|why| sentence(why).to_owned()),
        path: kind.map(|kind| path_word(kind).to_owned()),
        path_kind: kind.map(|kind| kind_word(kind).to_owned()),
        endpoint: link.path.map(|(address, _)| address.to_string()),
        datapath: "wireguard".to_owned(),
        suite: None,
        lanes: 0,
        rtt_ms: link.rtt.map(millis),
        jitter_ms: link.jitter.map(millis),
        loss: link.loss,
        mtu: link.mtu,
        tx_bytes: load(|shared| shared.tx_bytes.load(Ordering::Relaxed)),
        rx_bytes: load(|shared| shared.rx_bytes.load(Ordering::Relaxed)),
        last_handshake_s: (handshake > 0).then(|| node::now().saturating_sub(handshake)),
        held_down: link.held_down,
        carries: index.carrying.contains(&link.of),
        failovers: link.failovers,
        down_ms: u64::try_from(link.down_for.as_millis()).unwrap_or(u64::MAX),
        seen_as: link.seen_as.map(|address| address.to_string()),
        candidates: link.candidates.iter().map(show_candidate).collect(),
    }
}

fn place_of(view: &View, gateway: &PublicKey) -> Place {
    let peer = view.peers.get(gateway);
    let presence = peer.and_then(|peer| peer.node.record.presence());
    presence.map_or_else(Place::default, |presence| Place {
        region: presence.region.clone(),
        zone: presence.zone.clone(),
    })
}

/// To be stopped is no failover, and yet whoever says goodbye was there.
fn state_word(link: &LinkStatus) -> &'static str {
    match link.state {
        Ok(()) => "up",
        Err(Why::Goodbye) => "down",
        Err(_) if link.failovers == 0 => "connecting",
        Err(_) => "down",
    }
}

/// Before any answer.
pub(super) fn pong(link: &LinkStatus) -> Pong {
    Pong {
        site: link.site.to_string(),
        gateway: link.node.to_string(),
        number: 0,
        rtt_ms: None,
        path: link.path.map(|(_, kind)| path_word(kind).to_owned()),
        endpoint: link.path.map(|(address, _)| address.to_string()),
    }
}

fn show_candidate((address, kind, state): &(SocketAddr, PathKind, CandidateState)) -> Candidate {
    let (word, rtt, tries) = match state {
        CandidateState::Untried => ("untried", None, None),
        CandidateState::Answered { rtt } => ("answered", Some(millis(*rtt)), None),
        CandidateState::Silent { tries } => ("silent", None, Some(*tries)),
    };
    Candidate {
        address: address.to_string(),
        kind: kind_word(*kind).to_owned(),
        state: word.to_owned(),
        rtt_ms: rtt,
        tries,
    }
}

/// Which state words there are is told in [`Prefix::state`].
const NO_GATEWAY: &str = "no_gateway";

/// What of this node counts for the state of a prefix.
struct Own<'a> {
    site: &'a Name,
    /// Else it knows of no gateways, whichever there are.
    is_member: bool,
}

impl Own<'_> {
    fn of(view: &View) -> Own<'_> {
        Own {
            site: &view.site,
            is_member: view.standing == Standing::Good,
        }
    }
}

fn state_of(owned: &SitePrefix, own: &Own<'_>, index: &Index<'_>) -> &'static str {
    match &owned.state {
        PrefixState::Owned if owned.site == *own.site => "local",
        PrefixState::Owned if index.carriers.sites.contains_key(&owned.site) => "reachable",
        PrefixState::Owned if own.is_member && !index.sites.contains(&owned.site) => NO_GATEWAY,
        PrefixState::Owned => "unreachable",
        PrefixState::Quarantined => "quarantined",
        PrefixState::Overlaps { .. } | PrefixState::Refused(_) => "refused",
    }
}

fn show_prefix(owned: &SitePrefix, facts: &Facts<'_>, index: &Index<'_>) -> Prefix {
    let carry = facts.carriers.sites.get(&owned.site);
    let (gateways, by_siblings): (&[PublicKey], bool) = match carry {
        None => (&[], false),
        Some(Carry::Direct(gateways)) => (gateways, false),
        Some(Carry::Siblings(siblings)) => (siblings, true),
    };
    let state = state_of(owned, &Own::of(facts.view), index);
    let counts = state == "reachable";
    let name = |identity: &PublicKey| index.names.get(identity).map(|name| name.to_string());
    Prefix {
        prefix: owned.prefix.to_string(),
        site: owned.site.to_string(),
        state: state.to_owned(),
        gateways: gateways
            .iter()
            .filter(|_| counts)
            .filter_map(name)
            .collect(),
        by_siblings: counts && by_siblings,
        mtu: roster::mtu_of(&owned.site, facts.carriers, facts.mtus).filter(|_| counts),
    }
}

fn path_word(kind: PathKind) -> &'static str {
    match kind {
        PathKind::Relay => "relay",
        PathKind::Lan | PathKind::Record | PathKind::Observed => "direct",
    }
}

fn kind_word(kind: PathKind) -> &'static str {
    match kind {
        PathKind::Lan => "lan",
        PathKind::Record => "record",
        PathKind::Observed => "observed",
        PathKind::Relay => "relay",
    }
}

pub(super) fn word(why: Why) -> &'static str {
    match why {
        Why::NoAnswer => "no_answer",
        Why::NoAddress => "no_address",
        Why::NotProven => "not_proven",
        Why::Silent => "silent",
        Why::NotHeard => "not_heard",
        Why::Accused => "accused",
        Why::Goodbye => "goodbye",
        Why::TwoOfOneKey => "two_of_one_key",
        Why::ShutOut => "shut_out",
    }
}

pub(super) fn sentence(why: Why) -> &'static str {
    match why {
        Why::NoAnswer => "no address of it has answered a handshake yet",
        Why::NoAddress => "no address of it is known, and it has not called",
        Why::NotProven => "it has not proven yet that the tunnel is its own",
        Why::Silent => "nothing of it arrives any more",
        Why::NotHeard => "it does not hear this gateway, though its packets arrive here",
        Why::Accused => "its sibling says that it died, and it does not answer",
        Why::Goodbye => "it was stopped",
        Why::TwoOfOneKey => "two machines use its key",
        Why::ShutOut => "it takes nothing from here, since two machines use this node's key",
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::super::problems::tests::link;
    use super::*;

    #[test]
    fn a_prefix_that_nobody_is_there_to_carry_is_told_from_one_that_is_lost() {
        let (berlin, cork): (Name, Name) = ("berlin".parse().unwrap(), "cork".parse().unwrap());
        let links = [link(Err(Why::Silent))];
        let mut carriers = Carriers::default();
        let state = |site: &Name, is_member, carriers: &Carriers| {
            let own = Own {
                site: &"oslo".parse().unwrap(),
                is_member,
            };
            let owned = SitePrefix {
                prefix: "10.1.0.0/16".parse().unwrap(),
                site: site.clone(),
                service: false,
                number: 1,
                state: PrefixState::Owned,
            };
            state_of(&owned, &own, &Index::new(&links, carriers))
        };
        assert_eq!(state(&berlin, true, &carriers), "unreachable");
        assert_eq!(state(&cork, true, &carriers), "no_gateway");
        assert_eq!(state(&cork, false, &carriers), "unreachable", "who knows?");
        assert_eq!(state(&"oslo".parse().unwrap(), true, &carriers), "local");
        let carry = Carry::Direct(vec![links[0].of]);
        carriers.sites.insert(berlin.clone(), carry);
        assert_eq!(state(&berlin, true, &carriers), "reachable");
    }

    #[test]
    fn a_link_whose_gateway_was_stopped_is_down_and_one_that_never_was_up_connects() {
        assert_eq!(state_word(&link(Err(Why::Goodbye))), "down");
        assert_eq!(state_word(&link(Err(Why::NoAnswer))), "connecting");
    }

    #[test]
    fn those_that_carry_are_found_with_their_names() {
        let site: Name = "berlin".parse().unwrap();
        let (mut up, mut other) = (link(Ok(())), link(Ok(())));
        up.of = SigningKey::from_seed(&[2; 32]).public();
        other.node = "gate-2".parse().unwrap();
        let mut carriers = Carriers::default();
        carriers.sites.insert(site, Carry::Direct(vec![up.of]));
        let links = [up, other];
        let index = Index::new(&links, &carriers);
        assert_eq!(index.carrying, HashSet::from([links[0].of]));
        assert_eq!(index.names[&links[1].of].as_str(), "gate-2");
    }
}
