//! Which of a host's addresses are of use: its own in its site, and those at which others find it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ip_network::IpNetwork;
use proto::ledger::PrefixState;

use crate::follow::View;
use crate::netlink::interfaces::Interface;

/// Interfaces that lead into tunnels or nowhere: what is on them is reached by another address, or
/// only from this host.
const INNER_KINDS: [&str; 13] = [
    "tun",
    "vxlan",
    "wireguard",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "xfrm",
    "dummy",
];
/// Of containers and virtual machines on this host.
const INNER_NAMES: [&str; 9] = [
    "docker", "br-", "cni", "flannel", "cali", "cilium", "lxc", "virbr", "podman",
];

/// The mesh as far as addresses go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    pub own: Vec<IpNetwork>,
    pub others: Vec<IpNetwork>,
}

impl Prefixes {
    /// Those in force.
    pub fn of(view: &View) -> Prefixes {
        let all = view.prefixes.iter();
        let in_force = all.filter(|owned| owned.state == PrefixState::Owned);
        let (own, others): (Vec<_>, Vec<_>) = in_force.partition(|owned| owned.site == view.site);
        Prefixes {
            own: own.iter().map(|owned| owned.prefix).collect(),
            others: others.iter().map(|owned| owned.prefix).collect(),
        }
    }

    /// By the longest prefix that holds it.
    pub fn is_own(&self, address: IpAddr) -> bool {
        longest(&self.own, address) > longest(&self.others, address)
    }

    pub fn is_anothers(&self, address: IpAddr) -> bool {
        longest(&self.others, address) > longest(&self.own, address)
    }
}

/// Its length and one more; 0 if there is none.
fn longest(prefixes: &[IpNetwork], address: IpAddr) -> u8 {
    let holding = prefixes.iter().filter(|prefix| prefix.contains(address));
    holding
        .map(|prefix| prefix.netmask() + 1)
        .max()
        .unwrap_or(0)
}

/// This node's own addresses in its site, at most one a family: the given one, else one inside the
/// site's prefixes, else that of the default route.
pub fn lan_addresses(
    given: Option<IpAddr>,
    interfaces: &BTreeMap<u32, Interface>,
    prefixes: &Prefixes,
) -> Vec<IpAddr> {
    let of_family = |is_v4: bool| {
        let fits = |address: &IpAddr| address.is_ipv4() == is_v4;
        let given = given.filter(fits);
        let inside = || {
            let all = interfaces.values().flat_map(|one| {
                let addresses = one.addresses.iter();
                addresses.map(move |address| (!is_outer(one), *address))
            });
            // A bridge of containers may have an address of the site too.
            let own = all.filter(|(_, address)| fits(address) && prefixes.is_own(*address));
            own.min().map(|(_, address)| address)
        };
        let by_default = || {
            let all = interfaces.values();
            let leading = all.filter(|one| one.has_default && is_outer(one));
            let all = leading.flat_map(|one| &one.addresses);
            all.filter(|address| fits(address) && is_global(**address))
                .min()
                .copied()
        };
        given.or_else(inside).or_else(by_default)
    };
    [true, false].into_iter().filter_map(of_family).collect()
}

/// Those by which a router is reached first.
pub fn usable_addresses(interfaces: &BTreeMap<u32, Interface>) -> Vec<IpAddr> {
    let mut usable: Vec<(bool, bool, IpAddr)> = interfaces
        .values()
        .filter(|interface| is_outer(interface))
        .flat_map(|interface| {
            let key = (!interface.has_default, !interface.has_router);
            let addresses = interface.addresses.iter();
            addresses.map(move |address| (key.0, key.1, *address))
        })
        .filter(|(_, _, address)| is_global(*address))
        .collect();
    usable.sort_unstable();
    usable.into_iter().map(|(_, _, address)| address).collect()
}

fn is_outer(interface: &Interface) -> bool {
    let kind = interface.kind.as_deref();
    if kind.is_some_and(|kind| INNER_KINDS.contains(&kind)) {
        return false;
    }
    // A bridge may be the way out, of a host of virtual machines.
    let is_inner = INNER_NAMES
        .iter()
        .any(|name| interface.name.starts_with(name));
    interface.has_router || (!is_inner && kind != Some("bridge"))
}

/// Whether another host may find us there.
pub fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240)
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_multicast() || is_special(v6)),
    }
}

fn is_special(address: Ipv6Addr) -> bool {
    address.is_unspecified()
        || address.is_unicast_link_local()
        || address.to_ipv4_mapped().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, kind: Option<&str>, router: bool, addresses: &[&str]) -> Interface {
        Interface {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            has_router: router,
            has_default: router,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Interface::default()
        }
    }

    #[test]
    fn what_was_given_is_the_lan_address_before_all_else() {
        let prefixes = Prefixes {
            own: vec!["10.1.0.0/16".parse().unwrap()],
            others: vec!["10.2.0.0/16".parse().unwrap()],
        };
        let eth0 = interface("eth0", None, true, &["198.51.100.1"]);
        let eth1 = interface("eth1", None, false, &["10.1.0.7", "10.1.0.3"]);
        let mut interfaces = BTreeMap::from([(1, eth0), (2, eth1)]);
        let lan = |given: Option<&str>, interfaces: &BTreeMap<u32, Interface>| {
            let given = given.map(|text| text.parse().unwrap());
            lan_addresses(given, interfaces, &prefixes)
        };
        let (third, seventh): (IpAddr, IpAddr) = ([10, 1, 0, 3].into(), [10, 1, 0, 7].into());
        assert_eq!(lan(None, &interfaces), [third]);
        assert_eq!(lan(Some("10.1.0.7"), &interfaces), [seventh]);
        let pods = interface("cni0", Some("bridge"), false, &["10.1.0.1"]);
        interfaces.insert(9, pods);
        assert_eq!(lan(None, &interfaces), [third]);
        interfaces.retain(|index, _| *index == 1);
        let outside: IpAddr = [198, 51, 100, 1].into();
        assert_eq!(lan(None, &interfaces), [outside]);
    }
}
