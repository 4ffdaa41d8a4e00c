//! What makes the kernel's state less than it should be though all of ours is in place.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use ip_network::IpNetwork;
use proto::key::PublicKey;

use super::see::Seen;
use super::{Agent, tun};
use crate::facts::{Exit, Facts, Mode, Neighbour};
use crate::guard::{Span, spans};
use crate::netlink::link::Link;
use crate::netlink::{Refused, route};
use crate::plan::{self, Ground, overlap, refusal as cut_off};
use crate::problem::Problem;
use crate::settings::{ALIAS, Kernel, VXLAN_DEVICE};
use crate::sysctl::{self, Memory};
use crate::wanted::{Family, Vxlan};

/// The facts without addresses that this node does not have: the kernel refuses routes with them.
pub(super) fn usable(facts: &Facts, seen: &Seen, problems: &mut Vec<Problem>) -> Facts {
    let mut usable = facts.clone();
    let has = |address| seen.addresses.iter().any(|own| own.address == address);
    usable.lan.retain(|address| {
        let there = has(*address);
        if !there {
            problems.push(Problem::new(
                format!("{address} is no address of this node, so it cannot be the source of what it sends into the mesh"),
                format!("ip address add {address} on the site's interface, or name another LAN address"),
            ));
        }
        there
    });
    if let Some(tun) = tun(facts)
        && !seen.found.devices.contains(tun)
    {
        problems.push(Problem::new(
            format!("the interface {tun} is missing or down"),
            format!(
                "the gateway makes it anew within a second; if it is only down: ip link set {tun} up"
            ),
        ).that_stops_traffic());
    }
    usable
}

/// What cannot be made on the way to others.
pub(super) fn no_vxlan(refused: &Refused, wanted: &Vxlan) -> Problem {
    let Vxlan { port, .. } = wanted;
    let next = match refused.error.raw_os_error() {
        Some(libc::EADDRINUSE | libc::EEXIST) => format!(
            "something else has UDP port {port} or this VXLAN identifier (`ss -lunp`, `ip -d link show type vxlan`): stop it, or give all nodes of this site another port with --vxlan-port"
        ),
        Some(libc::EOPNOTSUPP) => {
            "load the module vxlan, or use --mode direct where the site's network lets addresses of other sites through".to_owned()
        }
        _ => "it is tried again every second; look at `ip -d link show causeway-vx`".to_owned(),
    };
    Problem::new(
        format!("the interface {VXLAN_DEVICE} cannot be made: {refused}"),
        next,
    )
    .that_stops_traffic()
}

/// Whether every neighbour can be reached, and with what the kernel has.
pub(super) fn hops(facts: &Facts, ground: &Ground, seen: &Seen, problems: &mut Vec<Problem>) {
    if ground.name_taken && (facts.gateways().is_some() || !agents(facts).is_empty()) {
        problems.push(foreign_vxlan(facts));
    }
    if !ground.kernel.v6 && facts.prefixes.keys().any(is_v6) {
        problems.push(Problem::new(
            "this kernel runs without IPv6: IPv6 prefixes of other sites cannot be reached from here",
            "start the kernel without ipv6.disable=1 if they are needed",
        ));
    }
    let Some(gateways) = facts.gateways() else {
        return;
    };
    problems.extend(older(ground));
    // Where it is not used it need not be reached.
    let used: BTreeSet<&PublicKey> = facts.prefixes.values().flat_map(|one| &one.by).collect();
    let used = gateways
        .gateways
        .iter()
        .filter(|(who, _)| used.contains(who));
    for (_, gateway) in used {
        problems.extend(match gateways.mode {
            Mode::Direct => not_on_link(gateway, ground, seen),
            Mode::Vxlan => other_family(gateway, facts, ground),
        });
    }
}

fn agents(facts: &Facts) -> Vec<&Neighbour> {
    let tunnel = facts.tunnel().into_iter();
    tunnel.flat_map(|tunnel| tunnel.agents.values()).collect()
}

fn is_v6(prefix: &IpNetwork) -> bool {
    matches!(prefix, IpNetwork::V6(_))
}

fn foreign_vxlan(facts: &Facts) -> Problem {
    let needs = match &facts.exit {
        Exit::Tunnel(tunnel) => !tunnel.agents.is_empty(),
        Exit::Gateways(gateways) => gateways.mode == Mode::Vxlan,
    };
    let problem = Problem::new(
        format!(
            "there is an interface {VXLAN_DEVICE} that Causeway has not made; it is left alone, and VXLAN cannot be used"
        ),
        format!("if nobody needs it: ip link del {VXLAN_DEVICE}"),
    );
    if needs {
        problem.that_stops_traffic()
    } else {
        problem
    }
}

fn older(ground: &Ground) -> Option<Problem> {
    let what = match ground.kernel {
        Kernel {
            nexthops: false, ..
        } => {
            "this kernel has no next hop objects (Linux 5.3): routes name all gateways, and flows of the others may move when one comes or goes"
        }
        Kernel {
            resilient: false, ..
        } => {
            "this kernel has no resilient groups of next hops (Linux 5.13): flows of the other gateways may move when one comes or goes"
        }
        Kernel { .. } => return None,
    };
    let next = "nothing needs to be done; a newer kernel does better";
    Some(Problem::new(what, next))
}

fn not_on_link(gateway: &Neighbour, ground: &Ground, seen: &Seen) -> Option<Problem> {
    let Neighbour { name, lan, .. } = gateway;
    match ground.on_link.get(lan) {
        None => Some(Problem::new(
            format!(
                "gateway {name} at {lan} is in no network of this node: nothing can be sent to it directly"
            ),
            "use --mode auto or vxlan, or give this node an address in the gateway's network",
        )),
        Some(device) if !seen.found.devices.contains(device) => Some(Problem::new(
            format!("gateway {name} at {lan} is behind {device}, which is down or has no carrier"),
            format!("ip link set {device} up; look at its cable or virtual switch"),
        )),
        Some(_) => None,
    }
}

fn other_family(gateway: &Neighbour, facts: &Facts, ground: &Ground) -> Option<Problem> {
    let local = plan::vxlan(facts, ground)?.local;
    let Neighbour { name, lan, .. } = gateway;
    (lan.is_ipv4() != local.is_ipv4()).then(|| {
        Problem::new(
            format!("gateway {name} is at {lan} and this node at {local}: the two cannot speak VXLAN with each other"),
            "give both a LAN address of one family with --address",
        )
    })
}

pub(super) fn refusal(refused: &Refused) -> Problem {
    let next = match refused.error.raw_os_error() {
        Some(libc::EEXIST) => "another program has the same; remove it, ours follows",
        Some(libc::EPERM) => "run as root or with CAP_NET_ADMIN",
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ENOENT) => {
            "the kernel lacks a feature: it needs policy routing and nf_tables with nat, fib and sets"
        }
        _ => "it is tried again every second; look at `ip monitor all` for who is in the way",
    };
    Problem::new(format!("the kernel refused: {refused}"), next).that_stops_traffic()
}

impl Agent {
    pub(super) fn check_others(&mut self, facts: &Facts, seen: &Seen, problems: &mut Vec<Problem>) {
        check_overlaps(facts, seen, problems);
        problems.extend(self.left_by_gateway(facts, seen));
        match self.check_tables() {
            Ok(found) => problems.extend(found),
            Err(refused) => tracing::debug!(%refused, "foreign routes are not judged"),
        }
        match self.check_rules(facts, seen) {
            Ok(found) => problems.extend(found),
            Err(refused) => tracing::debug!(%refused, "foreign rules are not judged"),
        }
        match &self.nft {
            Ok(nft) => match self.filters.check(nft, facts, seen, &self.settings) {
                Ok(found) => problems.extend(found),
                Err(refused) => problems.push(refusal(&refused)),
            },
            Err(error) => problems.push(Problem::new(
                format!("nf_tables cannot be spoken to: {error}"),
                "load the module nf_tables; until then two of three guards against sending in clear are in place",
            )),
        }
    }

    /// An agent makes no tunnel and forwards nothing. What it finds of that it leaves alone: somebody
    /// else may have come to rely on it meanwhile.
    fn left_by_gateway(&self, facts: &Facts, seen: &Seen) -> Option<Problem> {
        facts.gateways()?;
        let ours = |(name, link): &(&String, &Link)| {
            *name != VXLAN_DEVICE && link.alias.as_deref() == Some(ALIAS)
        };
        let tunnels = seen.links.iter().filter(ours);
        let tunnels = tunnels.map(|(name, _)| format!("the interface {name}"));
        let kept = self.memory.iter().flat_map(Memory::to_restore);
        let forwarding = kept.filter(|kept| sysctl::FORWARDING.contains(&kept.key.as_str()));
        let forwarding =
            forwarding.map(|kept| format!("{}={}", kept.key.replace('/', "."), kept.set));
        let left: Vec<String> = tunnels.chain(forwarding).collect();
        (!left.is_empty()).then(|| {
            Problem::new(
                format!(
                    "this machine was a gateway before, and of that is left: {}",
                    left.join(", ")
                ),
                "stop this agent, run `causeway cleanup`, and start it again; nothing of the mesh passes meanwhile",
            )
        })
    }

    /// Rules before ours that lead to a table with a route for a mesh prefix.
    fn check_rules(&self, facts: &Facts, seen: &Seen) -> Result<Vec<Problem>, Refused> {
        let mut problems = vec![];
        let prefixes: Vec<IpNetwork> = facts.prefixes.keys().copied().collect();
        let [v4, v6] = Family::BOTH.map(|family| spans(&prefixes, family));
        for rule in &seen.rules.foreign {
            if rule.priority > self.settings.rule_priority {
                continue;
            }
            let mesh = match rule.family {
                Family::V4 => &v4,
                Family::V6 => &v6,
            };
            let taken = |route: &IpNetwork| touches(mesh, *route);
            if let Some(route) = route::foreign(&self.raw, rule.family, rule.table, taken)? {
                problems.push(Problem::new(
                    format!(
                        "the rule with priority {} to table {} comes before ours, and {route} there takes packets for the mesh",
                        rule.priority, rule.table
                    ),
                    format!(
                        "give that rule a priority above {}, or ours a lower one with --rule-priority",
                        self.settings.rule_priority
                    ),
                ).that_stops_traffic());
            }
        }
        Ok(problems)
    }

    /// Routes of others in tables that are meant to be ours alone.
    fn check_tables(&self) -> Result<Vec<Problem>, Refused> {
        let settings = &self.settings;
        let mut problems = vec![];
        for table in [
            settings.table,
            settings.own_table(),
            settings.return_table(),
        ] {
            for family in Family::BOTH {
                let foreign = route::foreign(&self.raw, family, table, |_| true)?;
                problems.extend(foreign.map(|route| {
                    Problem::new(
                        format!("another program has routes in our table {table}, as for {route}: packets for the mesh may take them"),
                        "remove them, or start with another number with --table",
                    )
                }));
            }
        }
        Ok(problems)
    }
}

/// Whether an address of `route` is in any of `mesh`: both may be many thousands.
fn touches(mesh: &BTreeSet<Span>, route: IpNetwork) -> bool {
    let route = Span::of(route);
    let last = Span {
        first: route.last,
        last: Ipv6Addr::from([0xff; 16]).into(),
    };
    let nearest = mesh.range(..=last).next_back();
    nearest.is_some_and(|nearest| nearest.last >= route.first)
}

fn check_overlaps(facts: &Facts, seen: &Seen, problems: &mut Vec<Problem>) {
    for (prefix, remote) in &facts.prefixes {
        if let Some(own) = cut_off(facts, *prefix) {
            problems.push(Problem::new(
                format!(
                    "{prefix} of site {} covers {own} of this site; it is not routed",
                    remote.site
                ),
                "give the sites prefixes that do not overlap",
            ));
            continue;
        }
        let clash = seen.addresses.iter().find(|own| {
            !own.address.is_loopback()
                && own
                    .network()
                    .is_some_and(|network| overlap(network, *prefix))
        });
        if let Some(own) = clash {
            let network = own.network().map(|network| network.to_string());
            let name = seen
                .links
                .iter()
                .find(|(_, link)| link.index == own.index)
                .map_or("an interface", |(name, _)| name.as_str());
            problems.push(Problem::new(
                format!(
                    "{prefix} of site {} overlaps {} of {name} on this node: neighbours there are now sought in the mesh",
                    remote.site,
                    network.unwrap_or_default()
                ),
                format!("move the network of {name} to other addresses, or withdraw the prefix"),
            ));
        }
    }
}
