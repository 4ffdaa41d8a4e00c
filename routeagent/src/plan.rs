//! From facts to the kernel state that a gateway needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::facts::Facts;
use crate::guard;
use crate::settings::Settings;
use crate::wanted::{Family, LAST_METRIC, MAIN_TABLE, Place, Rule, Sysctl, Wanted, Way};

/// What every path is taken to carry until one was measured.
const START_MTU: u16 = 1280;
/// The kernel turns 0 into this for IPv6.
const V6_METRIC: u32 = 1024;

/// Interfaces with their indexes: one that was made anew has another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Devices {
    /// 0 while it is away, which is the index of none.
    pub tun: u32,
    /// The same of the VXLAN interface.
    pub vxlan: u32,
    /// Of the site's own network.
    pub inner: BTreeMap<String, u32>,
}

pub fn plan(facts: &Facts, devices: &Devices, settings: &Settings) -> Wanted {
    let mut wanted = Wanted {
        rules: rules(settings),
        guard: guard::table(facts, devices, settings),
        sysctls: sysctls(facts, devices),
        ..Wanted::default()
    };
    for (prefix, remote) in &facts.prefixes {
        if refusal(facts, *prefix).is_some() {
            continue;
        }
        let last = Place {
            table: MAIN_TABLE,
            prefix: *prefix,
            metric: LAST_METRIC,
        };
        wanted.routes.insert(last, Way::Unreachable);
        let Some(tunnel) = facts.tunnel() else {
            continue;
        };
        let network = prefix.network_address();
        let metric = if network.is_ipv4() { 0 } else { V6_METRIC };
        let source = facts
            .lan
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == network.is_ipv4());
        // Packets that are forwarded must not meet an MTU here: the kernel would refuse those above
        // it, and the packet path can cut them.
        let mtus = [
            (settings.table, None),
            (settings.own_table(), Some(remote.mtu.unwrap_or(START_MTU))),
        ];
        for (table, mtu) in mtus {
            let place = Place {
                table,
                prefix: *prefix,
                metric,
            };
            let way = Way::Device {
                device: tunnel.tun.clone(),
                source,
                mtu,
            };
            wanted.routes.insert(place, way);
        }
    }
    wanted
}

/// What of this site's own a remote prefix would cut off.
pub fn refusal(facts: &Facts, prefix: IpNetwork) -> Option<IpNetwork> {
    let own = facts
        .lan
        .iter()
        .map(|address| IpNetwork::from(*address))
        .chain(facts.local.iter().copied());
    own.into_iter()
        .find(|own| contains(prefix, own.network_address()) && prefix.netmask() <= own.netmask())
}

pub fn contains(prefix: IpNetwork, address: IpAddr) -> bool {
    prefix.contains(address)
}

pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network_address()) || other.contains(one.network_address())
}

fn rules(settings: &Settings) -> BTreeSet<Rule> {
    let rules = Family::BOTH.map(|family| {
        [
            // `not` would turn the interface round as well, so the bits are asked to be clear.
            Rule {
                family,
                priority: settings.own_rule_priority(),
                own: true,
                not: false,
                fwmark: (0, settings.fwmark.1),
                table: settings.own_table(),
            },
            Rule {
                family,
                priority: settings.rule_priority,
                own: false,
                not: true,
                fwmark: settings.fwmark,
                table: settings.table,
            },
        ]
    });
    rules.into_iter().flatten().collect()
}

fn sysctls(facts: &Facts, devices: &Devices) -> BTreeSet<Sysctl> {
    let sysctl = |key: &str, fine: &[&'static str], set| Sysctl {
        key: key.to_owned(),
        fine: fine.to_vec(),
        set,
    };
    let mut all = BTreeSet::from([sysctl("net/ipv4/conf/all/src_valid_mark", &["1"], "1")]);
    // Strict filtering drops what a sibling delivers to this node over the LAN. That of all
    // interfaces stays as it is: it would let sources of the mesh in from outside.
    let tun = facts.tunnel().map(|tunnel| &tunnel.tun);
    for device in devices.inner.keys().chain(tun) {
        let key = format!("net/ipv4/conf/{device}/rp_filter");
        all.insert(sysctl(&key, &["0", "2"], "2"));
    }
    // Nothing is forwarded before there is a guard that keeps what is the mesh's on our links:
    // sysctls are set last, and a node that knows no prefix yet has nothing to forward.
    if !facts.prefixes.is_empty() {
        all.insert(sysctl("net/ipv4/ip_forward", &["1"], "1"));
    }
    let v6 = |prefix: &IpNetwork| matches!(prefix, IpNetwork::V6(_));
    // A node without IPv6 in the mesh keeps listening to its router.
    if facts.prefixes.keys().any(v6) {
        all.insert(sysctl("net/ipv6/conf/all/forwarding", &["1", "2"], "1"));
    }
    all
}

#[cfg(test)]
mod tests;
