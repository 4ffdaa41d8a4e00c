//! What other programs' rules mean for a node of a mesh, in words and with the way out.

use std::collections::BTreeSet;

use ip_network::IpNetwork;

use super::{Accept, Finding, Packets, Program, Ruleset, State, walk};
use crate::guard::{BEFORE_SRCNAT, Hook};
use crate::wanted::Family;

/// What a node is and wants. Before it has joined, most of it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// Prefixes of other sites; [`private_networks`] without those of this node while none is known.
    pub remote: Vec<IpNetwork>,
    /// Prefixes of this site.
    pub local: Vec<IpNetwork>,
    /// By which the mesh is reached: a gateway's tunnel, an agent's VXLAN, or the LAN's.
    pub mesh_devices: Vec<String>,
    /// Of the site's own network.
    pub inner_devices: Vec<String>,
    /// Whether it passes on packets of the mesh, as gateways do.
    pub forwards: bool,
    pub listening: Vec<Listening>,
}

/// A port where packets must arrive that nothing of this node asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// For a person: "outer datagrams of the tunnels".
    pub what: String,
    pub accept: Accept,
    /// From where; empty for anywhere.
    pub from: Vec<IpNetwork>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// A translation of a remote private address, as people write who have no mesh.
    Leftover,
    /// Masquerade and the like that would come before what keeps sources.
    SourceChange,
    Forward,
    Input,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub topic: Topic,
    pub finding: Finding,
    pub what: String,
    pub next: String,
}

/// Everything in the way, certain or possible; one entry a rule and topic.
pub fn judge(ruleset: &Ruleset, situation: &Situation) -> Vec<Judged> {
    let mut all = leftovers(ruleset, situation);
    all.extend(source_changes(ruleset, situation));
    if situation.forwards {
        all.extend(forward_drops(ruleset, situation));
    }
    all.extend(input_drops(ruleset, situation));
    all
}

/// Where remote private addresses may lie: RFC 1918 and unique local addresses.
pub fn private_networks() -> Vec<IpNetwork> {
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

fn of_family(networks: &[IpNetwork], family: Family) -> Vec<IpNetwork> {
    let all = networks.iter().copied();
    all.filter(|network| Family::of(network.network_address()) == family)
        .collect()
}

/// The first of each rule; a certain one before others.
fn once(findings: Vec<Finding>) -> Vec<Finding> {
    let mut findings = findings;
    findings.sort_by_key(|finding| !finding.certain);
    let mut seen = BTreeSet::new();
    findings.retain(|finding| seen.insert(finding.rule.to_string()));
    findings
}

fn leftovers(ruleset: &Ruleset, situation: &Situation) -> Vec<Judged> {
    let mut found = vec![];
    for family in Family::BOTH {
        let remote = of_family(&situation.remote, family);
        if remote.is_empty() {
            continue;
        }
        for hook in [Hook::Output, Hook::Prerouting] {
            let packets = Packets {
                destination: remote.clone(),
                source_is_own: hook == Hook::Output,
                ..Packets::new(hook, family)
            };
            let met = ruleset.met(&packets).into_iter();
            let changes = met.filter(|met| walk::changes_destination(&met.act));
            found.extend(changes.map(|met| ruleset.finding(&met)));
        }
    }
    let judged = once(found).into_iter().map(|finding| {
        let rule = &finding.rule;
        Judged {
            topic: Topic::Leftover,
            what: format!(
                "a rule translates addresses of other sites, so packets for them never come to the mesh: {rule}"
            ),
            next: rule.remove.clone().unwrap_or_default(),
            finding,
        }
    });
    judged.collect()
}

/// Chains after ours find the source kept for good.
fn source_changes(ruleset: &Ruleset, situation: &Situation) -> Vec<Judged> {
    let mut found = vec![];
    for family in Family::BOTH {
        let remote = of_family(&situation.remote, family);
        if remote.is_empty() {
            continue;
        }
        for device in &situation.mesh_devices {
            let packets = Packets {
                source: of_family(&situation.local, family),
                source_is_own: true,
                destination: remote.clone(),
                output: Some(device.clone()),
                ..Packets::new(Hook::Postrouting, family)
            };
            let changes = ruleset.translations(&packets).into_iter();
            found.extend(changes.filter(|finding| finding.rule.priority <= BEFORE_SRCNAT));
        }
    }
    let judged = once(found).into_iter().map(|finding| {
        let rule = &finding.rule;
        Judged {
            topic: Topic::SourceChange,
            what: format!(
                "a rule changes the source of packets for the mesh before it can be kept: {rule}"
            ),
            next: format!(
                "give its chain the priority srcnat (100) or a later one, or remove the rule: {}",
                rule.remove.clone().unwrap_or_default()
            ),
            finding,
        }
    });
    judged.collect()
}

fn forward_drops(ruleset: &Ruleset, situation: &Situation) -> Vec<Judged> {
    let mut all = vec![];
    for device in &situation.mesh_devices {
        let mut found = vec![];
        for family in Family::BOTH {
            let remote = of_family(&situation.remote, family);
            let local = of_family(&situation.local, family);
            if remote.is_empty() || local.is_empty() {
                continue;
            }
            for inner in &situation.inner_devices {
                let inward = Packets {
                    source: remote.clone(),
                    destination: local.clone(),
                    input: Some(device.clone()),
                    output: Some(inner.clone()),
                    state: State::Untracked,
                    ..Packets::new(Hook::Forward, family)
                };
                let outward = Packets {
                    source: local.clone(),
                    destination: remote.clone(),
                    input: Some(inner.clone()),
                    output: Some(device.clone()),
                    ..inward.clone()
                };
                found.extend(ruleset.drops(&inward));
                found.extend(ruleset.drops(&outward));
            }
        }
        let judged = once(found).into_iter().map(|finding| {
            let ways = [Accept::From(device.clone()), Accept::To(device.clone())];
            let mut commands: Vec<String> = ways.iter().map(|way| finding.opening(way)).collect();
            commands.dedup();
            Judged {
                topic: Topic::Forward,
                what: forward_words(&finding),
                next: format!("start with --open-forward, or: {}", commands.join("; ")),
                finding,
            }
        });
        all.extend(judged);
    }
    all
}

fn forward_words(finding: &Finding) -> String {
    let rule = &finding.rule;
    let may = if finding.certain { "drops" } else { "may drop" };
    if rule.remove.is_none() {
        return format!(
            "the {} chain {} {} {} {may} forwarded packets of the mesh: its policy is drop, and no rule of it accepts them for certain",
            if rule.program == Program::LegacyIptables {
                "old iptables"
            } else {
                "nft"
            },
            rule.family,
            rule.table,
            rule.chain
        );
    }
    format!("a rule {may} forwarded packets of the mesh: {rule}")
}

fn input_drops(ruleset: &Ruleset, situation: &Situation) -> Vec<Judged> {
    let mut all = vec![];
    for listening in &situation.listening {
        let (protocol, port) = match listening.accept {
            Accept::Udp(port) => (17, port),
            Accept::Tcp(port) => (6, port),
            Accept::From(_) | Accept::To(_) => continue,
        };
        let mut found = vec![];
        for family in Family::BOTH {
            let source = of_family(&listening.from, family);
            if source.is_empty() && !listening.from.is_empty() {
                continue;
            }
            for hook in [Hook::Prerouting, Hook::Input] {
                let packets = Packets {
                    source: source.clone(),
                    destination_is_own: true,
                    protocol: Some(protocol),
                    port: Some(port),
                    ..Packets::new(hook, family)
                };
                found.extend(ruleset.drops(&packets));
            }
        }
        let judged = once(found).into_iter().map(|finding| {
            let may = if finding.certain { "drops" } else { "may drop" };
            let name = if protocol == 17 { "UDP" } else { "TCP" };
            Judged {
                topic: Topic::Input,
                what: format!(
                    "a rule {may} what comes to {name} port {port} ({}): {}",
                    listening.what, finding.rule
                ),
                next: finding.opening(&listening.accept),
                finding,
            }
        });
        all.extend(judged);
    }
    all
}
