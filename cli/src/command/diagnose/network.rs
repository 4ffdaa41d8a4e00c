//! Addresses and routes of this host beside those of the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use ip_network::IpNetwork;
use node::netlink::interfaces::{Interface, dump, interfaces};
use node::netlink::{attribute, u32_at};
use node::status::Kernel;
use proto::prefix::overlap;
use serde_json::Value;

use super::check::{Check, Group, Sheet};
use super::known::Known;

const GETROUTE: u16 = 26;
const GETRULE: u16 = 34;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const FRA_PRIORITY: u16 = 6;
const MAIN: u32 = 254;
const UNICAST: u8 = 1;
/// All of ours have this protocol.
const OURS: u8 = 199;
const FRA_PROTOCOL: u16 = 21;
const CNI: &str = "/etc/cni/net.d";
/// A directory that holds more is none of CNI's.
const MOST_FILES: usize = 64;
const MOST_BYTES: u64 = 1 << 20;

/// One of this host that leads somewhere by an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    network: (IpAddr, u8),
    device: String,
    /// By a router, and not on the interface itself.
    is_routed: bool,
}

pub(super) fn checks(known: &Known) -> Vec<Check> {
    let mut sheet = Sheet::new(Group::Network);
    let all = match interfaces() {
        Ok(all) => all,
        Err(error) => {
            sheet.skipped(
                "addresses",
                format!("the addresses of this host cannot be read: {error}"),
            );
            return sheet.done();
        }
    };
    own_address(&mut sheet, known, &all);
    let kernel = known.kernel();
    match routes(&all, &tables_of(kernel)) {
        Ok((routes, foreign)) => {
            overlaps(&mut sheet, known, &routes);
            tables(&mut sheet, foreign);
        }
        Err(error) => sheet.skipped(
            "overlap",
            format!("the routes of this host cannot be read: {error}"),
        ),
    }
    cni(&mut sheet, known);
    rules(&mut sheet, &priorities_of(kernel));
    mtus(&mut sheet, &all);
    sheet.done()
}

/// Its routes, the same for this node's own packets, and those back to agents.
fn tables_of(kernel: Kernel) -> RangeInclusive<u32> {
    kernel.table..=kernel.table.saturating_add(2)
}

/// Of the rules that lead to them.
fn priorities_of(kernel: Kernel) -> RangeInclusive<u32> {
    kernel.rule_priority.saturating_sub(2)..=kernel.rule_priority
}

/// A node is found in its site by an address of it.
fn own_address(sheet: &mut Sheet, known: &Known, all: &BTreeMap<u32, Interface>) {
    let own = known.own_prefixes();
    if own.is_empty() {
        return sheet.skipped(
            "lan-address",
            "which prefixes this site has is not known before it has joined; give its token with --token-file",
        );
    }
    let inside = all.values().flat_map(|interface| {
        let addresses = interface.addresses.iter();
        addresses.map(|address| (interface.name.as_str(), *address))
    });
    let inside: Vec<String> = inside
        .filter(|(_, address)| own.iter().any(|prefix| prefix.contains(*address)))
        .map(|(name, address)| format!("{address} ({name})"))
        .collect();
    let granted: Vec<String> = own.iter().map(ToString::to_string).collect();
    let granted = granted.join(", ");
    if inside.is_empty() {
        sheet.warning(
            "lan-address",
            format!("none of this machine's addresses lies in its site's prefixes ({granted})"),
            "a gateway at the edge is given one with --address; else correct the prefixes with `causeway site add-prefix`",
        );
    } else {
        sheet.passed("lan-address", format!("{} in {granted}", inside.join(", ")));
    }
}

/// Those of this host, and who else uses our tables.
fn routes(
    all: &BTreeMap<u32, Interface>,
    tables: &RangeInclusive<u32>,
) -> std::io::Result<(BTreeSet<Route>, BTreeSet<u32>)> {
    let (mut routes, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    dump(GETROUTE, 12, |body| {
        let Some(head) = body.get(..12) else { return };
        let (length, protocol, kind) = (head[1], head[5], head[7]);
        let attributes = &body[12..];
        let number = |kind| attribute(attributes, kind).and_then(|bytes| u32_at(bytes, 0));
        let table = number(RTA_TABLE).unwrap_or(u32::from(head[4]));
        if tables.contains(&table) && protocol != OURS {
            foreign.insert(table);
        }
        let device = number(RTA_OIF).and_then(|index| all.get(&index));
        let destination = attribute(attributes, RTA_DST).and_then(ip);
        if table == MAIN
            && protocol != OURS
            && kind == UNICAST
            && length > 0
            && let (Some(device), Some(address)) = (device, destination)
        {
            routes.insert(Route {
                network: (address, length),
                device: device.name.clone(),
                is_routed: [RTA_GATEWAY, RTA_VIA]
                    .into_iter()
                    .any(|kind| attribute(attributes, kind).is_some()),
            });
        }
    })?;
    Ok((routes, foreign))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

impl Route {
    fn network(&self) -> Option<IpNetwork> {
        IpNetwork::new_truncate(self.network.0, self.network.1).ok()
    }
}

fn overlaps(sheet: &mut Sheet, known: &Known, routes: &BTreeSet<Route>) {
    let remote = known.remote_prefixes();
    if remote.is_empty() {
        return sheet.skipped("overlap", "no other site's prefixes are known here");
    }
    let mut is_any = false;
    for route in routes {
        let Some(network) = route.network() else {
            continue;
        };
        let hit = remote.iter().find(|(prefix, _)| overlap(*prefix, network));
        let Some((prefix, site)) = hit else { continue };
        // A broader way to a router is for what the mesh does not have.
        if route.is_routed && network.netmask() < prefix.netmask() {
            continue;
        }
        is_any = true;
        if route.is_routed {
            sheet.warning(
                "overlap",
                format!(
                    "there is a route to {network} by {}, and it overlaps {prefix} of site {site}: it goes through the mesh as long as that runs, and elsewhere without",
                    maker(&route.device)
                ),
                format!("remove it if the mesh is to take its place: ip route delete {network} dev {}", route.device),
            );
            continue;
        }
        // Ours is asked first, whatever the length.
        sheet.failed(
            "overlap",
            format!(
                "{network} is reached here by {}, and it overlaps {prefix} of site {site}, which goes through the mesh instead",
                maker(&route.device)
            ),
            "give one of the two another network; what the site does not need is taken from it with `causeway site remove-prefix`",
        );
    }
    if !is_any {
        let count = remote.len();
        sheet.passed(
            "overlap",
            format!("no route of this host overlaps the {count} prefixes of other sites"),
        );
    }
}

/// Interfaces that are known to be of containers.
fn maker(device: &str) -> String {
    const KNOWN: [(&str, &str); 9] = [
        ("docker", "Docker"),
        ("br-", "Docker"),
        ("cni", "a CNI bridge"),
        ("flannel", "Flannel"),
        ("cilium", "Cilium"),
        ("lxc", "Cilium"),
        ("cali", "Calico"),
        ("kube-bridge", "kube-router"),
        ("weave", "Weave"),
    ];
    let known = KNOWN.iter().find(|(prefix, _)| device.starts_with(prefix));
    known.map_or_else(
        || format!("interface {device}"),
        |(_, name)| format!("interface {device} of {name}"),
    )
}

fn tables(sheet: &mut Sheet, foreign: BTreeSet<u32>) {
    for table in foreign {
        sheet.failed(
            "table",
            format!("routing table {table} has routes that are not Causeway's"),
            format!("look at them with `ip route show table {table}`; give the daemon another table with --table"),
        );
    }
}

fn rules(sheet: &mut Sheet, priorities: &RangeInclusive<u32>) {
    let mut taken = BTreeSet::new();
    let asked = dump(GETRULE, 12, |body| {
        let Some(attributes) = body.get(12..) else {
            return;
        };
        let priority = attribute(attributes, FRA_PRIORITY).and_then(|bytes| u32_at(bytes, 0));
        let protocol = attribute(attributes, FRA_PROTOCOL).and_then(|bytes| bytes.first().copied());
        if let Some(priority) = priority.filter(|priority| priorities.contains(priority))
            && protocol != Some(OURS)
        {
            taken.insert(priority);
        }
    });
    if let Err(error) = asked {
        return sheet.skipped(
            "rule-priority",
            format!("the routing rules cannot be read: {error}"),
        );
    }
    if taken.is_empty() {
        return sheet.passed(
            "rule-priority",
            format!(
                "the routing rules {} to {} are free or Causeway's",
                priorities.start(),
                priorities.end()
            ),
        );
    }
    let taken: Vec<String> = taken.iter().map(ToString::to_string).collect();
    sheet.failed(
        "rule-priority",
        format!(
            "another program has a routing rule of priority {}",
            taken.join(", ")
        ),
        "look at it with `ip rule`; give the daemon another place with --rule-priority",
    );
}

/// Ranges that containers get, as the CNI's configuration has them.
fn cni(sheet: &mut Sheet, known: &Known) {
    if !Path::new(CNI).exists() {
        return;
    }
    let entries = match fs::read_dir(CNI) {
        Ok(entries) => entries.flatten().take(MOST_FILES),
        Err(error) => {
            return sheet.skipped("cni", format!("{CNI} cannot be read: {error}; use sudo"));
        }
    };
    let mut ranges = BTreeSet::new();
    for entry in entries {
        let path = entry.path();
        let is_small = entry
            .metadata()
            .is_ok_and(|found| found.len() <= MOST_BYTES);
        let text = is_small.then(|| fs::read_to_string(&path).ok()).flatten();
        let value: Option<Value> = text.and_then(|text| serde_json::from_str(&text).ok());
        collect(&value.unwrap_or_default(), &mut ranges);
    }
    let remote = known.remote_prefixes();
    let mut is_any = false;
    for range in &ranges {
        if let Some((prefix, site)) = remote.iter().find(|(prefix, _)| overlap(*prefix, *range)) {
            is_any = true;
            sheet.failed(
                "cni",
                format!("containers here get addresses of {range}, which overlaps {prefix} of site {site}"),
                "give one of the two another range",
            );
        }
    }
    if !is_any {
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let saw = match texts.len() {
            0 => format!("{CNI} names no ranges"),
            _ => format!(
                "containers get addresses of {}, apart from the mesh's",
                texts.join(", ")
            ),
        };
        sheet.passed("cni", saw);
    }
}

/// Every text in it that is a network.
fn collect(value: &Value, into: &mut BTreeSet<IpNetwork>) {
    match value {
        Value::String(text) => {
            let parts = text.split_once('/').and_then(|(address, length)| {
                Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?))
            });
            let network =
                parts.and_then(|(address, length)| IpNetwork::new_truncate(address, length).ok());
            // A default route is no range.
            into.extend(network.filter(|network| network.netmask() > 0));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, into)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Of the interfaces that lead out.
fn mtus(sheet: &mut Sheet, all: &BTreeMap<u32, Interface>) {
    for interface in all.values().filter(|interface| interface.has_router) {
        let path = format!("/sys/class/net/{}/mtu", interface.name);
        let mtu = fs::read_to_string(path).ok();
        let Some(mtu) = mtu.and_then(|text| text.trim().parse::<u32>().ok()) else {
            continue;
        };
        let saw = format!("{} has an MTU of {mtu}", interface.name);
        // Inner IPv6 needs 1280, WireGuard over IPv6 80 more.
        if mtu < 1360 {
            sheet.warning(
                "interface-mtu",
                format!("{saw}: full IPv6 packets travel in pieces"),
                format!(
                    "ip link set {} mtu 1500, if what is behind it carries that",
                    interface.name
                ),
            );
        } else {
            sheet.passed("interface-mtu", saw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_wherever_a_configuration_has_them() {
        let text = r#"{"plugins":[{"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],
            "routes":[{"dst":"0.0.0.0/0"}]}},{"subnet":"fd00:10::1/64","name":"a/b"}]}"#;
        let mut found = BTreeSet::new();
        collect(&serde_json::from_str(text).unwrap(), &mut found);
        let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.1.0/24", "fd00:10::/64"]);
    }
}
