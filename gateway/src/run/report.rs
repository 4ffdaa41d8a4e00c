//! From what is known to what is shown: the status, and what a person should look at.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use node::follow::{BrokerState, View};
use proto::key::PublicKey;
use proto::ledger::{PrefixState, SitePrefix};
use proto::name::Name;

use super::addresses::From as AddressFrom;
use super::drive::Linked;
use super::relayed::Relayed;
use crate::data::link::LinkShared;
use crate::links::{CandidateState, Carriers, Carry, LinkStatus, PathKind, Why};
use crate::roster;
use crate::status::{Broker, Candidate, Link, OwnAddress, Pong, Prefix, Problem, Status};

/// A link that is not up for shorter may just be starting.
const PATIENCE: Duration = Duration::from_secs(5);
/// Below this most of what people use needs care.
const SMALL_MTU: u16 = 1280;

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
    pub(super) tun: &'a str,
    pub(super) port: u16,
    pub(super) uptime: Duration,
    pub(super) ready: bool,
    pub(super) drops: BTreeMap<String, u64>,
    /// Of other parts: interface, routes, endpoints.
    pub(super) problems: Vec<Problem>,
}

/// The last report, for those who ask again at once: it is made where hellos are sent.
#[derive(Default)]
pub(super) struct Shown(Option<(Duration, Arc<Status>)>);

impl Shown {
    const KEPT: Duration = Duration::from_millis(250);

    pub(super) fn get(&self, now: Duration) -> Option<Arc<Status>> {
        let (made, status) = self.0.as_ref()?;
        (now < *made + Self::KEPT).then(|| status.clone())
    }

    pub(super) fn keep(&mut self, status: Status, now: Duration) -> Arc<Status> {
        let status = Arc::new(status);
        self.0 = Some((now, status.clone()));
        status
    }
}

pub(super) fn status(facts: Facts<'_>) -> Status {
    let view = facts.view;
    let mut problems = view_problems(view);
    problems.extend(own_key_problem(&facts.links));
    problems.extend(facts.problems.iter().cloned());
    if facts.uptime >= PATIENCE {
        problems.extend(broker_problem(&view.broker));
        problems.extend(facts.links.iter().filter_map(|link| {
            let no_relay = facts.relayed.why_lost(&link.of);
            link_problem(link, no_relay)
        }));
    }
    problems.extend(facts.links.iter().flat_map(path_problems));
    if facts.addresses.is_empty() {
        problems.push(Problem {
            what: "this gateway has no address to be found at: others can only be called by it".to_owned(),
            next: "give the address that others reach with --endpoint HOST:PORT, unless it is meant to dial out only".to_owned(),
        });
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
        lan_address: facts.lan.first().map(IpAddr::to_string),
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
        drops: facts.drops,
        problems,
    }
}

/// Made once for a report, so that it costs as much as it is long.
struct Index<'a> {
    carrying: HashSet<PublicKey>,
    names: HashMap<PublicKey, &'a Name>,
}

impl<'a> Index<'a> {
    fn new(links: &'a [LinkStatus], carriers: &Carriers) -> Index<'a> {
        let carrying = carriers.sites.values().flat_map(|carry| match carry {
            Carry::Direct(gateways) | Carry::Siblings(gateways) => gateways,
        });
        Index {
            carrying: carrying.copied().collect(),
            names: links.iter().map(|link| (link.of, &link.node)).collect(),
        }
    }
}

fn broker(view: &View) -> Broker {
    let address = match &view.broker {
        BrokerState::Connected { address } => Some(address.clone()),
        BrokerState::Cached { .. } | BrokerState::Unreachable { .. } => None,
    };
    Broker {
        state: view.broker.name().to_owned(),
        address,
        last_sync_s: view.last_sync.map(|at| node::now().saturating_sub(at)),
        reasons: view.broker.reasons().to_vec(),
    }
}

pub(super) fn millis(time: Duration) -> f64 {
    // Microseconds are what there is; more digits would only look exact.
    (time.as_secs_f64() * 1e6).round() / 1000.0
}

fn show(link: &LinkStatus, facts: &Facts<'_>, index: &Index<'_>) -> Link {
    let shared = facts.linked.get(&link.of).map(|linked| &*linked.shared);
    let load = |value: fn(&LinkShared) -> u64| shared.map_or(0, value);
    let handshake = load(|shared| shared.last_handshake.load(Ordering::Relaxed)) / 1_000_000_000;
    let state = match link.state {
        Ok(()) => "up",
        Err(_) if link.failovers == 0 => "connecting",
        Err(_) => "down",
    };
    let why = link.state.err();
    let kind = link.path.map(|(_, kind)| kind);
    Link {
        site: link.site.to_string(),
        gateway: link.node.to_string(),
        identity: link.of.to_string(),
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

fn show_prefix(owned: &SitePrefix, facts: &Facts<'_>, index: &Index<'_>) -> Prefix {
    let carry = facts.carriers.sites.get(&owned.site);
    let (gateways, by_siblings): (&[PublicKey], bool) = match carry {
        None => (&[], false),
        Some(Carry::Direct(gateways)) => (gateways, false),
        Some(Carry::Siblings(siblings)) => (siblings, true),
    };
    let is_local = owned.site == facts.view.site;
    let state = match &owned.state {
        PrefixState::Owned if is_local => "local",
        PrefixState::Owned if gateways.is_empty() => "unreachable",
        PrefixState::Owned => "reachable",
        PrefixState::Quarantined => "quarantined",
        PrefixState::Overlaps { .. } | PrefixState::Refused(_) => "refused",
    };
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

// ---- problems -------------------------------------------------------------------------------

fn view_problems(view: &View) -> Vec<Problem> {
    let all = view.problems.iter().map(|problem| Problem {
        what: problem.to_string(),
        next: problem.next(),
    });
    all.collect()
}

fn broker_problem(broker: &BrokerState) -> Option<Problem> {
    if matches!(broker, BrokerState::Connected { .. }) {
        return None;
    }
    Some(Problem {
        what: format!("no broker can be reached: {}", broker.reasons().join("; ")),
        next: "traffic goes on with what is known, and changes of the mesh come through other gateways; see whether the broker runs, and whether TCP to it passes from here".to_owned(),
    })
}

/// One for all links: others know of two, and this node is the one to be looked at.
fn own_key_problem(links: &[LinkStatus]) -> Option<Problem> {
    let who = |link: &LinkStatus| format!("{} of site {}", link.node, link.site);
    let by = links.iter().filter(|link| link.state == Err(Why::ShutOut));
    let by: Vec<String> = by.map(who).collect();
    (!by.is_empty()).then(|| Problem {
        what: format!(
            "two machines use this node's key, and what they send is not taken: so say {}",
            by.join(", ")
        ),
        next: "its state directory was copied: find the other machine; stop one of the two, delete its copy, and join it with a token of its own. The links return 60 s after only one is left".to_owned(),
    })
}

fn link_problem(link: &LinkStatus, no_relay: Option<&str>) -> Option<Problem> {
    let why = link.state.err().filter(|why| *why != Why::ShutOut)?;
    let who = format!("gateway {} of site {}", link.node, link.site);
    let tried = tried(link);
    let next = match why {
        Why::NoAnswer | Why::Silent => format!(
            "see whether it runs (`causeway status` there), and whether UDP passes between both: a firewall must let {} in",
            if tried.is_empty() { "its port".to_owned() } else { tried.clone() }
        ),
        Why::NoAddress => {
            "see whether it runs; start it with --endpoint HOST:PORT if this gateway has to call it".to_owned()
        }
        Why::NotHeard => {
            "see what `causeway status` there says of this gateway; if it is not heard there either, something drops UDP in this direction only: look at the firewalls between both, this host's among them".to_owned()
        }
        Why::NotProven => {
            "see whether it runs a version that fits this one; if its record claims another's key, revoke it with `causeway node revoke`".to_owned()
        }
        Why::Accused => "see whether it runs, on its own host".to_owned(),
        Why::Goodbye => "start it again if that was not meant".to_owned(),
        Why::TwoOfOneKey | Why::ShutOut => {
            "a state directory was copied: stop one of the two, delete its copy, and join it with a token of its own".to_owned()
        }
    };
    let mut what = format!("{who} is not connected: {}", sentence(why));
    if matches!(why, Why::NoAnswer | Why::Silent) && !tried.is_empty() {
        what = format!("{what} (tried {tried})");
    }
    if let Some(why) = no_relay {
        what = format!("{what}; no relay either: {why}");
    }
    Some(Problem { what, next })
}

/// The addresses that were tried in vain.
fn tried(link: &LinkStatus) -> String {
    let direct = link.candidates.iter().filter(|(_, kind, state)| {
        *kind != PathKind::Relay && !matches!(state, CandidateState::Answered { .. })
    });
    let texts: Vec<String> = direct.map(|(address, ..)| address.to_string()).collect();
    texts.join(", ")
}

fn path_problems(link: &LinkStatus) -> Vec<Problem> {
    let mut problems = Vec::new();
    if link.state.is_err() {
        return problems;
    }
    let who = format!("gateway {} of site {}", link.node, link.site);
    if link.path.is_some_and(|(_, kind)| kind == PathKind::Relay) {
        let tried = tried(link);
        let why = if tried.is_empty() {
            "no address of it is known".to_owned()
        } else {
            format!("none of its addresses answers: {tried}")
        };
        problems.push(Problem {
            what: format!("{who} is reached through a relay only, which is slow: {why}"),
            next: "let UDP in at one of the two sites, and name the address with --endpoint HOST:PORT there".to_owned(),
        });
    }
    if link.mtu < SMALL_MTU {
        problems.push(Problem {
            what: format!("the path to {who} carries packets of {} bytes only", link.mtu),
            next: "IPv6 needs 1280 inside the tunnel, which costs pieces here; see which tunnel or interface on the way is so small".to_owned(),
        });
    }
    problems
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    fn link(state: Result<(), Why>) -> LinkStatus {
        LinkStatus {
            of: SigningKey::from_seed(&[1; 32]).public(),
            site: "berlin".parse().unwrap(),
            node: "gate-1".parse().unwrap(),
            is_sibling: false,
            state,
            proven: true,
            carries: true,
            held_down: false,
            path: None,
            rtt: None,
            jitter: None,
            loss: 0.0,
            mtu: 1420,
            failovers: 0,
            down_for: Duration::ZERO,
            seen_as: None,
            candidates: vec![(
                "192.0.2.1:51820".parse().unwrap(),
                PathKind::Record,
                CandidateState::Silent { tries: 3 },
            )],
        }
    }

    #[test]
    fn a_report_serves_all_who_ask_within_a_quarter_of_a_second() {
        let (begin, mut shown) = (Duration::from_secs(100), Shown::default());
        assert_eq!(shown.get(begin), None);
        let made = shown.keep(Status::default(), begin);
        let again = shown.get(begin + Shown::KEPT / 2).unwrap();
        assert!(Arc::ptr_eq(&made, &again));
        assert_eq!(shown.get(begin + Shown::KEPT), None);
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

    #[test]
    fn a_silent_gateway_is_told_with_what_was_tried() {
        let problem = link_problem(&link(Err(Why::NoAnswer)), Some("it is off")).unwrap();
        assert!(problem.what.contains("gate-1 of site berlin"));
        assert!(problem.what.contains("192.0.2.1:51820"));
        assert!(problem.what.contains("no relay either: it is off"));
        assert!(problem.next.contains("firewall"));
        assert_eq!(link_problem(&link(Ok(())), None), None);
    }

    #[test]
    fn two_machines_with_this_nodes_key_are_one_problem_whoever_says_so() {
        let (one, mut other) = (link(Err(Why::ShutOut)), link(Err(Why::ShutOut)));
        other.node = "gate-2".parse().unwrap();
        assert_eq!(link_problem(&one, None), None);
        let problem = own_key_problem(&[one, link(Ok(())), other]).unwrap();
        let who = "gate-1 of site berlin, gate-2 of site berlin";
        assert!(problem.what.contains("this node's key") && problem.what.contains(who));
        assert!(problem.next.contains("token of its own"));
        assert_eq!(own_key_problem(&[link(Ok(()))]), None);
    }

    #[test]
    fn a_lost_broker_is_told_with_the_reasons() {
        let reasons = vec!["b:7800: refused".to_owned()];
        let problem = broker_problem(&BrokerState::Cached { reasons }).unwrap();
        assert!(problem.what.contains("b:7800: refused"));
        let address = "b:7800".to_owned();
        assert_eq!(broker_problem(&BrokerState::Connected { address }), None);
    }

    #[test]
    fn a_relay_and_a_small_path_are_told() {
        let mut relayed = link(Ok(()));
        relayed.path = Some(("127.0.0.1:1".parse().unwrap(), PathKind::Relay));
        relayed.mtu = 1200;
        let what: Vec<String> = path_problems(&relayed)
            .into_iter()
            .map(|problem| problem.what)
            .collect();
        assert!(what[0].contains("relay") && what[0].contains("192.0.2.1:51820"));
        assert!(what[1].contains("1200"));
        assert!(path_problems(&link(Ok(()))).is_empty());
    }
}
