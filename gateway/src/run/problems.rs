//! What a person should look at, from links and brokers, and what to do about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use node::status::Problem;

use super::report::sentence;
use crate::links::{LinkStatus, PathKind, Why};

/// Addresses that this host has no route to, and the reason.
pub(super) type Unrouted = BTreeMap<SocketAddr, String>;

/// Below this most of what people use needs care.
const SMALL_MTU: u16 = 1280;

/// One for all links: others know of two, and this node is the one to be looked at.
pub(super) fn own_key_problem(links: &[LinkStatus]) -> Option<Problem> {
    let who = |link: &LinkStatus| format!("{} of site {}", link.node, link.site);
    let by = links.iter().filter(|link| link.state == Err(Why::ShutOut));
    let by: Vec<String> = by.map(who).collect();
    (!by.is_empty()).then(|| Problem {
        what: format!(
            "two machines use this node's key, and what they send is not taken: so say {}",
            by.join(", ")
        ),
        stops: true,
        next: "its state directory was copied: find the other machine; stop one of the two, delete its copy, and join it with a token of its own. The links return 60 s after only one is left".to_owned(),
    })
}

pub(super) fn link_problem(
    link: &LinkStatus,
    no_relay: Option<&str>,
    unrouted: &Unrouted,
) -> Option<Problem> {
    let why = link.state.err().filter(|why| *why != Why::ShutOut)?;
    let who = format!("gateway {} of site {}", link.node, link.site);
    if matches!(why, Why::NoAnswer | Why::Silent | Why::NotHeard)
        && let Some((own, next)) = own_fault(link, unrouted)
    {
        return Some(Problem::new(format!("{who} is not connected: {own}"), next));
    }
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
    Some(Problem::new(what, next))
}

/// The addresses that were tried in vain, with the one that was used last before the others.
fn tried(link: &LinkStatus) -> String {
    let last = link.path.map(|(address, _)| address);
    let mut all = direct(link);
    all.sort_by_key(|address| Some(*address) != last);
    let texts = all.iter().map(|address| {
        let used = if Some(*address) == last {
            " (used last)"
        } else {
            ""
        };
        format!("{address}{used}")
    });
    texts.collect::<Vec<String>>().join(", ")
}

pub(super) fn direct(link: &LinkStatus) -> Vec<SocketAddr> {
    let candidates = link.candidates.iter();
    let direct = candidates.filter(|(_, kind, _)| *kind != PathKind::Relay);
    direct.map(|(address, ..)| *address).collect()
}

/// Whether nothing can leave this host for it. An address inside the other's site often has no
/// route; that says nothing as long as there are others.
fn own_fault(link: &LinkStatus, unrouted: &Unrouted) -> Option<(String, String)> {
    let all = direct(link);
    let last = link.path.map(|(address, _)| address);
    let is_last = |address: &&SocketAddr| Some(**address) == last;
    let is_cut_off = all.iter().all(|address| unrouted.contains_key(address));
    let shown = all.iter().find(is_last).or(all.first())?;
    let why = unrouted.get(shown)?;
    let is_used = last == Some(*shown);
    (is_cut_off || is_used).then(|| {
        (
            format!("this host has no route to {shown}: {why}"),
            format!("`ip route get {}`, `ip route` and `ip rule` here: the network or its default route is missing on this host, or a rule was taken away", shown.ip()),
        )
    })
}

pub(super) fn path_problems(link: &LinkStatus, unrouted: &Unrouted) -> Vec<Problem> {
    let mut problems = Vec::new();
    if link.state.is_err() {
        return problems;
    }
    let who = format!("gateway {} of site {}", link.node, link.site);
    if link.path.is_some_and(|(_, kind)| kind == PathKind::Relay) {
        let tried = tried(link);
        let own = own_fault(link, unrouted);
        let why = if let Some((own, _)) = &own {
            own.clone()
        } else if tried.is_empty() {
            "no address of it is known".to_owned()
        } else {
            format!("none of its addresses answers: {tried}")
        };
        problems.push(Problem::new(
            format!("{who} is reached through a relay only, which is slow: {why}"),
            own.map_or_else(
                || "let UDP in at one of the two sites, and name the address with --endpoint HOST:PORT there".to_owned(),
                |(_, next)| next,
            ),
        ));
    }
    if link.mtu < SMALL_MTU {
        problems.push(Problem::new(
            format!("the path to {who} carries packets of {} bytes only", link.mtu),
            "IPv6 needs 1280 inside the tunnel, which costs pieces here; see which tunnel or interface on the way is so small",
        ));
    }
    problems
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proto::key::SigningKey;

    use super::*;
    use crate::links::CandidateState;

    pub(in super::super) fn link(state: Result<(), Why>) -> LinkStatus {
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
    fn a_silent_gateway_is_told_with_what_was_tried() {
        let problem = link_problem(
            &link(Err(Why::NoAnswer)),
            Some("it is off"),
            &Unrouted::new(),
        )
        .unwrap();
        assert!(problem.what.contains("gate-1 of site berlin"));
        assert!(problem.what.contains("192.0.2.1:51820"));
        assert!(problem.what.contains("no relay either: it is off"));
        assert!(problem.next.contains("firewall"));
        assert_eq!(link_problem(&link(Ok(())), None, &Unrouted::new()), None);
    }

    /// It answered at this address until lately, and has another one that never did.
    fn fallen_silent(used: SocketAddr) -> LinkStatus {
        let mut fallen = link(Err(Why::Silent));
        let rtt = Duration::from_millis(9);
        let answered = CandidateState::Answered { rtt };
        fallen.candidates.push((used, PathKind::Record, answered));
        fallen.path = Some((used, PathKind::Record));
        fallen
    }

    #[test]
    fn the_address_that_was_used_last_is_told_before_those_that_never_answered() {
        let fallen = fallen_silent("203.0.113.3:51820".parse().unwrap());
        let problem = link_problem(&fallen, None, &Unrouted::new()).unwrap();
        let tried = "tried 203.0.113.3:51820 (used last), 192.0.2.1:51820";
        assert!(problem.what.contains(tried), "{}", problem.what);
    }

    #[test]
    fn a_host_without_a_route_is_told_so_and_no_firewall_is_blamed() {
        let used: SocketAddr = "203.0.113.3:51820".parse().unwrap();
        let fallen = fallen_silent(used);
        let why = "Network is unreachable".to_owned();
        let of_used = Unrouted::from([(used, why.clone())]);
        let problem = link_problem(&fallen, None, &of_used).unwrap();
        assert!(
            problem
                .what
                .contains("this host has no route to 203.0.113.3:51820")
        );
        assert!(
            problem.next.contains("ip route get 203.0.113.3") && !problem.next.contains("firewall")
        );
        let other = "192.0.2.1:51820".parse().unwrap();
        let of_other = Unrouted::from([(other, why)]);
        let problem = link_problem(&fallen, None, &of_other).unwrap();
        assert!(!problem.what.contains("no route"), "{}", problem.what);
        let never = link_problem(&link(Err(Why::NoAnswer)), None, &of_other).unwrap();
        assert!(never.what.contains("no route to 192.0.2.1:51820"));
    }

    #[test]
    fn two_machines_with_this_nodes_key_are_one_problem_whoever_says_so() {
        let (one, mut other) = (link(Err(Why::ShutOut)), link(Err(Why::ShutOut)));
        other.node = "gate-2".parse().unwrap();
        assert_eq!(link_problem(&one, None, &Unrouted::new()), None);
        let problem = own_key_problem(&[one, link(Ok(())), other]).unwrap();
        let who = "gate-1 of site berlin, gate-2 of site berlin";
        assert!(problem.what.contains("this node's key") && problem.what.contains(who));
        assert!(problem.next.contains("token of its own"));
        assert_eq!(own_key_problem(&[link(Ok(()))]), None);
    }

    #[test]
    fn a_relay_and_a_small_path_are_told() {
        let mut relayed = link(Ok(()));
        relayed.path = Some(("127.0.0.1:1".parse().unwrap(), PathKind::Relay));
        relayed.mtu = 1200;
        let what: Vec<String> = path_problems(&relayed, &Unrouted::new())
            .into_iter()
            .map(|problem| problem.what)
            .collect();
        assert!(what[0].contains("relay") && what[0].contains("192.0.2.1:51820"));
        assert!(what[1].contains("1200"));
        assert!(path_problems(&link(Ok(())), &Unrouted::new()).is_empty());
    }
}
