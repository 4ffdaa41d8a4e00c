//! From facts to the kernel state that a node needs.

mod groups;
mod leads;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ip_network::IpNetwork;

use crate::diff::Found;
use crate::facts::{Exit, Facts};
use crate::guard;
use crate::link_layer::Mac;
use crate::settings::{Kernel, Settings, VXLAN_DEVICE};
use crate::wanted::{Family, LAST_METRIC, MAIN_TABLE, Place, Rule, Sysctl, Vxlan, Wanted, Way};

/// What every path is taken to carry until one was measured.
const START_MTU: u16 = 1280;
/// The kernel turns 0 into this for IPv6.
const V6_METRIC: u32 = 1024;
/// Ethernet, VXLAN, UDP and IP around a packet.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// IPv6 is switched off on interfaces below.
const LEAST_MTU: u32 = 1280;

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

/// What others have made of this node, and what its kernel can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    pub devices: Devices,
    /// Of gateways' addresses, the interface in whose network they are.
    pub on_link: BTreeMap<IpAddr, String>,
    /// Of this node's LAN addresses, the MTU of their interfaces.
    pub mtus: BTreeMap<IpAddr, u32>,
    /// The name of our VXLAN interface is somebody else's.
    pub name_taken: bool,
    pub kernel: Kernel,
}

pub fn plan(facts: &Facts, ground: &Ground, found: &Found, settings: &Settings) -> Wanted {
    let mut wanted = Wanted {
        rules: rules(facts, ground, settings),
        guard: guard::table(facts, &ground.devices, settings),
        sysctls: sysctls(facts, &ground.devices),
        vxlan: vxlan(facts, ground),
        ..Wanted::default()
    };
    for prefix in routed(facts, ground) {
        let last = Place {
            table: MAIN_TABLE,
            prefix,
            metric: LAST_METRIC,
        };
        wanted.routes.insert(last, Way::Unreachable);
    }
    leads::put(facts, ground, found, settings, &mut wanted);
    wanted
}

/// The interface between agents and gateways, where there is need of it and nothing in its way.
pub fn vxlan(facts: &Facts, ground: &Ground) -> Option<Vxlan> {
    let (parameters, neighbours) = leads::over_vxlan(facts)?;
    if ground.name_taken {
        return None;
    }
    let own = |v4: bool| facts.lan.iter().find(|own| own.is_ipv4() == v4);
    let theirs = |v4: bool| neighbours.values().any(|node| node.lan.is_ipv4() == v4);
    let local = [true, false]
        .into_iter()
        .find_map(|v4| own(v4).filter(|_| theirs(v4)))
        .or_else(|| own(true).or_else(|| own(false)))?;
    let overhead = if local.is_ipv4() {
        OVERHEAD_V4
    } else {
        OVERHEAD_V6
    };
    let mtu = ground.mtus.get(local).copied().unwrap_or(1500);
    Some(Vxlan {
        port: parameters.port,
        local: *local,
        mac: Mac::of(&parameters.own),
        mtu: mtu.saturating_sub(overhead).max(LEAST_MTU),
    })
}

/// Prefixes of other sites that this node can have routes for.
fn routed(facts: &Facts, ground: &Ground) -> impl Iterator<Item = IpNetwork> {
    let prefixes = facts.prefixes.keys().copied();
    prefixes
        .filter(|prefix| refusal(facts, *prefix).is_none())
        .filter(|prefix| ground.kernel.v6 || matches!(prefix, IpNetwork::V4(_)))
}

/// What of this site's own a remote prefix would cut off.
pub fn refusal(facts: &Facts, prefix: IpNetwork) -> Option<IpNetwork> {
    // What is sent to them must not be sent through them.
    let gateways = facts.gateways().into_iter();
    let gateways = gateways.flat_map(|gateways| gateways.gateways.values());
    let own = facts
        .lan
        .iter()
        .map(|address| IpNetwork::from(*address))
        .chain(facts.local.iter().copied())
        .chain(gateways.map(|gateway| IpNetwork::from(gateway.lan)));
    own.into_iter()
        .find(|own| contains(prefix, own.network_address()) && prefix.netmask() <= own.netmask())
}

pub fn contains(prefix: IpNetwork, address: IpAddr) -> bool {
    prefix.contains(address)
}

pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    one.contains(other.network_address()) || other.contains(one.network_address())
}

fn rules(facts: &Facts, ground: &Ground, settings: &Settings) -> BTreeSet<Rule> {
    let families = Family::BOTH.into_iter();
    let families = families.filter(|family| ground.kernel.v6 || *family == Family::V4);
    let back = facts
        .tunnel()
        .filter(|tunnel| !tunnel.agents.is_empty())
        .map(|tunnel| tunnel.tun.clone());
    let rules = families.map(|family| {
        // `not` would turn the interface round as well, so the bits are asked to be clear.
        let own = Rule {
            family,
            priority: settings.own_rule_priority(),
            own: true,
            from: None,
            not: false,
            fwmark: (0, settings.fwmark.1),
            table: settings.own_table(),
        };
        let all = Rule {
            family,
            priority: settings.rule_priority,
            own: false,
            from: None,
            not: true,
            fwmark: settings.fwmark,
            table: settings.table,
        };
        let back = back.clone().map(|tun| Rule {
            family,
            priority: settings.return_rule_priority(),
            own: false,
            from: Some(tun),
            not: false,
            fwmark: (0, 0),
            table: settings.return_table(),
        });
        [Some(own), Some(all), back]
    });
    rules.flatten().flatten().collect()
}

fn sysctls(facts: &Facts, devices: &Devices) -> BTreeSet<Sysctl> {
    let sysctl = |key: &str, fine: &[&'static str], set| Sysctl {
        key: key.to_owned(),
        fine: fine.to_vec(),
        set,
        optional: false,
    };
    let mut all = BTreeSet::from([sysctl("net/ipv4/conf/all/src_valid_mark", &["1"], "1")]);
    // Strict filtering drops what a sibling delivers to this node over the LAN. That of all
    // interfaces stays as it is: it would let sources of the mesh in from outside.
    let mut loose: BTreeSet<&str> = devices.inner.keys().map(String::as_str).collect();
    if devices.vxlan != 0 {
        loose.insert(VXLAN_DEVICE);
    }
    match &facts.exit {
        Exit::Tunnel(tunnel) => {
            loose.insert(&tunnel.tun);
            all.extend(forwarding(facts));
        }
        // By ports too, so that two nodes use all gateways between them.
        Exit::Gateways(_) => all.extend(Family::BOTH.map(|family| Sysctl {
            optional: true,
            ..sysctl(
                match family {
                    Family::V4 => "net/ipv4/fib_multipath_hash_policy",
                    Family::V6 => "net/ipv6/fib_multipath_hash_policy",
                },
                &["1", "2", "3"],
                "1",
            )
        })),
    }
    for device in loose {
        let key = format!("net/ipv4/conf/{device}/rp_filter");
        all.insert(sysctl(&key, &["0", "2"], "2"));
    }
    all
}

/// Nothing is forwarded before there is a guard that keeps what is the mesh's on our links: sysctls
/// are set last, and a node that knows no prefix yet has nothing to forward.
fn forwarding(facts: &Facts) -> Vec<Sysctl> {
    let sysctl = |key: &str, fine: &[&'static str]| Sysctl {
        key: key.to_owned(),
        fine: fine.to_vec(),
        set: "1",
        optional: false,
    };
    let mut all = vec![];
    if !facts.prefixes.is_empty() {
        all.push(sysctl("net/ipv4/ip_forward", &["1"]));
    }
    let v6 = |prefix: &IpNetwork| matches!(prefix, IpNetwork::V6(_));
    // A node without IPv6 in the mesh keeps listening to its router.
    if facts.prefixes.keys().any(v6) {
        all.push(sysctl("net/ipv6/conf/all/forwarding", &["1", "2"]));
    }
    all
}

#[cfg(test)]
mod tests;
