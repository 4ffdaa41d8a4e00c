//! What makes the kernel's state less than it should be though all of ours is in place.

use std::collections::BTreeSet;

use ip_network::IpNetwork;

use super::{Agent, Seen, tun};
use crate::facts::Facts;
use crate::netlink::nft::Nft;
use crate::netlink::{Refused, route};
use crate::plan::{Devices, overlap, refusal as cut_off};
use crate::problem::Problem;
use crate::settings::VXLAN_DEVICE;
use crate::wanted::Family;

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
        && seen.found.devices.is_empty()
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

pub(super) fn devices(facts: &Facts, seen: &Seen) -> Devices {
    let is_inner = |address| {
        facts.lan.contains(&address) || facts.local.iter().any(|prefix| prefix.contains(address))
    };
    let indexes: BTreeSet<u32> = seen
        .addresses
        .iter()
        .filter(|own| is_inner(own.address))
        .map(|own| own.index)
        .collect();
    let index = |name: Option<&str>| {
        let link = name.and_then(|name| seen.links.get(name));
        link.map_or(0, |link| link.index)
    };
    let inner = seen.links.iter().filter(|(name, link)| {
        Some(name.as_str()) != tun(facts) && *name != "lo" && indexes.contains(&link.index)
    });
    Devices {
        tun: index(tun(facts)),
        vxlan: index(Some(VXLAN_DEVICE)),
        inner: inner
            .map(|(name, link)| (name.clone(), link.index))
            .collect(),
    }
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
    pub(super) async fn check_others(
        &self,
        facts: &Facts,
        seen: &Seen,
        problems: &mut Vec<Problem>,
    ) {
        check_overlaps(facts, seen, problems);
        match self.check_rules(facts, seen).await {
            Ok(found) => problems.extend(found),
            Err(refused) => tracing::debug!(%refused, "foreign rules are not judged"),
        }
        match &self.nft {
            Ok(nft) => match self.check_forward(nft, facts) {
                Ok(found) => problems.extend(found),
                Err(refused) => problems.push(refusal(&refused)),
            },
            Err(error) => problems.push(Problem::new(
                format!("nf_tables cannot be spoken to: {error}"),
                "load the module nf_tables; until then two of three guards against sending in clear are in place",
            )),
        }
    }

    /// Rules before ours that lead to a table with a route for a mesh prefix.
    async fn check_rules(&self, facts: &Facts, seen: &Seen) -> Result<Vec<Problem>, Refused> {
        let mut problems = vec![];
        for rule in &seen.rules.foreign {
            if rule.priority > self.settings.rule_priority {
                continue;
            }
            let prefixes: BTreeSet<IpNetwork> = facts
                .prefixes
                .keys()
                .filter(|prefix| Family::of(prefix.network_address()) == rule.family)
                .copied()
                .collect();
            let caught = route::foreign(&self.handle, rule.family, rule.table, &prefixes).await?;
            if let Some(route) = caught.first() {
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

    /// Opens other programs' chains if that is wanted, and otherwise tells of them.
    fn check_forward(&self, nft: &Nft, facts: &Facts) -> Result<Vec<Problem>, Refused> {
        let tun = tun(facts).unwrap_or(VXLAN_DEVICE);
        let mut problems = vec![];
        for chain in nft.forward_chains()? {
            if nft.openings(&chain)?.len() >= 2 {
                continue;
            }
            if self.settings.open_forward {
                nft.open(&chain, tun)?;
                tracing::info!(%chain, "accept rules inserted");
                continue;
            }
            problems.push(Problem::new(
                format!("the nft chain {chain} drops forwarded packets that its rules do not accept; mesh traffic may be among them"),
                format!(
                    "start with --open-forward, or: nft insert rule {chain} iifname {tun} accept; nft insert rule {chain} oifname {tun} accept"
                ),
            ).that_stops_traffic());
        }
        Ok(problems)
    }
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
