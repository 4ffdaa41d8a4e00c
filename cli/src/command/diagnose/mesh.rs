//! What this node's daemon and its cache tell: prefixes, links and their paths, translation on the
//! way, the gateways of an agent.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use node::cloud::{Cloud, Found};
use node::netlink::interfaces::interfaces;
use proto::ledger::{PrefixState, Standing};

use super::check::{Check, Group, Sheet};
use super::host::Privileges;
use super::known::{Known, Told};

/// IPv6 needs it inside.
const LEAST_MTU: u16 = 1280;

pub(super) fn checks(known: &Known, privileges: &Privileges) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Mesh);
    for why in &known.unread {
        if privileges.is_admin {
            sheet.failed("state", why.clone(), "");
        } else {
            sheet.skipped("state", format!("{why}; or use sudo"));
        }
    }
    for why in &known.silent {
        if !privileges.is_admin {
            sheet.skipped("daemon", format!("{why}; use sudo"));
            continue;
        }
        sheet.failed(
            "daemon",
            format!("a daemon's socket is there, and nobody answers: {why}"),
            "start it again (`causeway gateway run` or `causeway routeagent run`) and see its log",
        );
    }
    joined(&mut sheet, known);
    for (role, told) in known.daemons() {
        daemon(&mut sheet, role, told);
    }
    if let Some(told) = &known.gateway {
        links(&mut sheet, told);
        nat(&mut sheet, told);
    }
    if let Some(told) = &known.agent {
        gateways(&mut sheet, told);
    }
    cloud(&mut sheet, known);
    sheet.done()
}

fn joined(sheet: &mut Sheet, known: &Known) {
    let Some(node) = &known.node else {
        if known.unread.is_empty() {
            let why = "this machine has not joined a mesh (or --state-dir names another directory)";
            sheet.skipped("membership", why);
        }
        return;
    };
    let view = &node.view;
    let whose = format!("node {} of site {}", view.node, view.site);
    match view.standing {
        Standing::Good => sheet.passed("membership", format!("{whose}, in good standing")),
        Standing::NoGrant => sheet.skipped(
            "membership",
            format!("{whose}; its cache is empty, so nothing of the mesh is known yet"),
        ),
        Standing::GrantClosed
        | Standing::SiteRevoked
        | Standing::Revoked
        | Standing::Quarantined => {
            let problem = node::follow::Problem::Standing(view.standing);
            sheet.failed("membership", problem.to_string(), problem.next());
        }
    }
    if known.daemons().next().is_none() && known.silent.is_empty() {
        sheet.warning(
            "daemon",
            "no daemon of this node runs (or --runtime-dir names another directory)",
            "causeway gateway run, or causeway routeagent run",
        );
    }
    for held in view.prefixes.iter() {
        let why = match &held.state {
            PrefixState::Owned => continue,
            PrefixState::Overlaps { site, prefix } => {
                format!("overlaps {prefix} of site {site}, which had it first")
            }
            PrefixState::Quarantined => "the ledger is forked".to_owned(),
            PrefixState::Refused(why) => why.to_string(),
        };
        sheet.failed(
            "prefix",
            format!(
                "{} of site {} is not reached from here: {why}",
                held.prefix, held.site
            ),
            format!(
                "causeway site remove-prefix {} {}, or settle the ledger",
                held.site, held.prefix
            ),
        );
    }
}

/// What it says itself is not found out again.
fn daemon(sheet: &mut Sheet, role: &str, told: &Told) {
    let who = format!("the {role} {} of site {}", told.node, told.site);
    if told.ready {
        sheet.passed("daemon", format!("{who} runs and is ready"));
    } else {
        sheet.warning(
            "daemon",
            format!("{who} runs and is not ready"),
            "causeway status --wait",
        );
    }
    for problem in &told.problems {
        if problem.stops {
            sheet.failed("problem", problem.what.clone(), problem.next.clone());
        } else {
            sheet.warning("problem", problem.what.clone(), problem.next.clone());
        }
    }
    for prefix in &told.prefixes {
        if prefix.state == "unreachable" {
            sheet.failed(
                "prefix",
                format!(
                    "{} of site {} is unreachable now",
                    prefix.prefix, prefix.site
                ),
                format!(
                    "causeway ping {} on a gateway, and see that site's gateways",
                    prefix.site
                ),
            );
        }
    }
}

fn links(sheet: &mut Sheet, told: &Told) {
    for link in &told.links {
        let whose = format!("{} of site {}", link.gateway, link.site);
        if link.state != "up" {
            let why = link.why_text.clone().unwrap_or_else(|| link.state.clone());
            sheet.failed(
                "link",
                format!("gateway {whose} is not reached: {why}"),
                "see that UDP passes between the two, in one direction at least; `causeway status` shows which addresses were tried",
            );
            continue;
        }
        let by_relay = link.path.as_deref() == Some("relay");
        if by_relay {
            sheet.warning(
                "link",
                format!("gateway {whose} is reached through a broker's relay only"),
                "let UDP pass between the two, or give one of them an address that the other reaches with --endpoint",
            );
        } else {
            let rtt = link
                .rtt_ms
                .map_or_else(String::new, |rtt| format!(", {rtt:.1} ms"));
            sheet.passed("link", format!("gateway {whose} is reached{rtt}"));
        }
        let saw = format!("{} bytes fit through to gateway {whose}", link.mtu);
        if link.mtu < LEAST_MTU {
            sheet.warning(
                "path-mtu",
                format!("{saw}: IPv6 travels in pieces"),
                "raise the MTU of the network between the two, or of the interface there",
            );
        } else {
            sheet.passed("path-mtu", saw);
        }
    }
}

/// What lies between this gateway and others, by what they and brokers see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nat {
    None,
    /// One outer address and port for all.
    Cone,
    /// Another one for each.
    Symmetric,
    /// Translated, and seen from one place only.
    Some,
    Unknown,
}

fn kind_of_nat(own: &[IpAddr], seen: &BTreeSet<SocketAddr>, witnesses: usize) -> Nat {
    let Some(first) = seen.iter().next() else {
        return Nat::Unknown;
    };
    if seen.iter().all(|address| own.contains(&address.ip())) {
        return Nat::None;
    }
    match (seen.len(), witnesses) {
        (1, 2..) => Nat::Cone,
        (1, _) => Nat::Some,
        // Several lines out have several addresses; several ports of one are a translator's.
        _ if seen.iter().all(|address| address.ip() == first.ip()) => Nat::Symmetric,
        _ => Nat::Unknown,
    }
}

fn nat(sheet: &mut Sheet, told: &Told) {
    let own = interfaces().unwrap_or_default();
    let own: Vec<IpAddr> = own.into_values().flat_map(|one| one.addresses).collect();
    let of_others = told.links.iter().filter(|link| !link.sibling);
    let by_links = of_others.filter_map(|link| link.seen_as.clone());
    let reflected = told.addresses.iter().filter(|one| one.from == "reflected");
    let by_brokers = reflected.map(|one| one.address.clone());
    let all = by_links
        .chain(by_brokers)
        .filter_map(|text| text.parse().ok());
    let all: Vec<SocketAddr> = all.filter(|at: &SocketAddr| at.is_ipv4()).collect();
    let seen: BTreeSet<SocketAddr> = all.iter().copied().collect();
    let texts: Vec<String> = seen.iter().map(ToString::to_string).collect();
    let texts = texts.join(", ");
    match kind_of_nat(&own, &seen, all.len()) {
        Nat::None => sheet.passed("nat", format!("no NAT: others see this gateway at its own address {texts}")),
        Nat::Cone => sheet.passed("nat", format!("behind a NAT that keeps one port for all: {} see {texts}, so direct paths can be opened", all.len())),
        Nat::Some => sheet.passed("nat", format!("behind a NAT: seen as {texts}, by one only, so its kind is not known")),
        Nat::Symmetric => sheet.warning(
            "nat",
            format!("behind a NAT with another port for each: seen as {texts}. Sites that are behind such a one too are reached through a relay"),
            "forward a UDP port to this gateway and give it with --endpoint, or set the NAT to endpoint-independent mapping",
        ),
        Nat::Unknown if texts.is_empty() => sheet.skipped("nat", "unknown: neither a broker nor another gateway has told how it sees this one"),
        Nat::Unknown => sheet.skipped("nat", format!("unknown: seen as {texts}, by several ways out")),
    }
}

fn gateways(sheet: &mut Sheet, told: &Told) {
    sheet.passed("mode", format!("{}: {}", told.mode.used, told.mode.why));
    for gateway in &told.gateways {
        let who = format!("gateway {} at {}", gateway.name, gateway.address);
        if matches!(gateway.state.as_str(), "up" | "held_down") {
            sheet.passed("gateway", format!("{who} answers"));
        } else {
            sheet.failed(
                "gateway",
                format!(
                    "{who} does not answer this agent: {}",
                    gateway.state.replace('_', " ")
                ),
                "see that it runs, and that UDP 7802 passes both ways between the two",
            );
        }
    }
    if told.gateways.is_empty() {
        sheet.failed(
            "gateway",
            "no gateway of this site is known here",
            "start one: causeway gateway run",
        );
    }
}

/// Whether a cloud lets packets of foreign addresses pass, as they do between agents and gateways
/// that do without VXLAN.
fn cloud(sheet: &mut Sheet, known: &Known) {
    let Some(found) = &known.cloud else {
        return one_way(sheet, known, None);
    };
    let place = &found.place;
    sheet.passed(
        "cloud",
        format!(
            "{}, region {}, zone {}",
            found.cloud, place.region, place.zone
        ),
    );
    one_way(sheet, known, Some(found));
}

fn one_way(sheet: &mut Sheet, known: &Known, found: Option<&Found>) {
    const NAME: &str = "source-destination-check";
    let next = found.map_or_else(
        || "nothing, VXLAN is used instead; to do without, let the network pass foreign addresses (source/destination check off, IP forwarding on, no port security)".to_owned(),
        |found| format!("nothing, VXLAN is used instead; to do without: {}", switch(found)),
    );
    if let Some(told) = &known.agent {
        let probes: Vec<&str> = told.gateways.iter().map(|one| one.probe.as_str()).collect();
        match told.mode.used.as_str() {
            "direct" if probes.contains(&"passed") => sheet.passed(NAME, "packets of foreign addresses pass both ways between this node and its gateways"),
            "direct" if probes.contains(&"failed") => sheet.failed(NAME, "packets of foreign addresses do not pass between this node and its gateways, and mode direct needs them", found.map_or_else(|| "run the agent with --mode auto or vxlan".to_owned(), |found| format!("run the agent with --mode auto, or: {}", switch(found)))),
            "vxlan" if told.mode.why.contains("segment") => sheet.skipped(NAME, format!("not asked: {}", told.mode.why)),
            "vxlan" => sheet.warning(NAME, format!("foreign addresses do not pass here: {}", told.mode.why), next),
            _ => sheet.skipped(NAME, "the agent has not found out yet"),
        }
        return;
    }
    match found {
        Some(found) => sheet.skipped(NAME, format!("the metadata service of {} does not tell; agents find out and use VXLAN where foreign addresses do not pass. For those without an agent it must be off on gateways: {}", found.cloud, switch(found))),
        None => sheet.skipped(NAME, "only an agent can see this, and no cloud's metadata service answers"),
    }
}

/// Lets this machine pass on packets that are not its own.
fn switch(found: &Found) -> String {
    let instance = found.instance.as_deref();
    match found.cloud {
        Cloud::Aws => format!(
            "aws ec2 modify-instance-attribute --instance-id {} --no-source-dest-check",
            instance.unwrap_or("INSTANCE")
        ),
        Cloud::Azure => format!(
            "az network nic update --ip-forwarding true --ids $(az vm show --name {} --resource-group GROUP --query 'networkProfile.networkInterfaces[].id' --output tsv)",
            instance.unwrap_or("MACHINE")
        ),
        Cloud::Google => {
            "make the instance anew with --can-ip-forward; it cannot be changed later".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nat_is_known_by_what_several_see() {
        let own: IpAddr = "192.0.2.9".parse().unwrap();
        let kind = |seen: &[&str]| {
            let all = seen.iter().map(|text| text.parse().unwrap()).collect();
            kind_of_nat(&[own], &all, seen.len())
        };
        assert_eq!(kind(&[]), Nat::Unknown);
        assert_eq!(kind(&["192.0.2.9:51820"]), Nat::None);
        assert_eq!(kind(&["198.51.100.1:40000"]), Nat::Some);
        assert_eq!(
            kind(&["198.51.100.1:40000", "198.51.100.1:40000"]),
            Nat::Cone
        );
        assert_eq!(
            kind(&["198.51.100.1:40000", "198.51.100.1:40001"]),
            Nat::Symmetric
        );
        assert_eq!(
            kind(&["198.51.100.1:40000", "203.0.113.1:40000"]),
            Nat::Unknown
        );
    }
}
