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
/// site's prefixes. Only where neither family has either, that of the default route: beside one
/// that is certain it would be a way in from outside. The given one's family comes first.
pub fn lan_addresses(
    given: Option<IpAddr>,
    interfaces: &BTreeMap<u32, Interface>,
    prefixes: &Prefixes,
) -> Vec<IpAddr> {
    let v4_first = given.is_none_or(|address| address.is_ipv4());
    let families = [v4_first, !v4_first];
    let certain = families.iter().filter_map(|is_v4| {
        let fits = |address: &IpAddr| address.is_ipv4() == *is_v4;
        let inside = || inside(interfaces, prefixes).find(fits);
        given.filter(fits).or_else(inside)
    });
    let certain: Vec<IpAddr> = certain.collect();
    // A site without prefixes, or of which nothing is known yet, has no network to be found in.
    if !certain.is_empty() || prefixes.own.is_empty() {
        return certain;
    }
    let by_default = families.iter().filter_map(|is_v4| {
        let all = interfaces.values();
        let leading = all.filter(|one| one.has_default && is_outer(one));
        let all = leading.flat_map(|one| &one.addresses).copied();
        all.filter(|address| address.is_ipv4() == *is_v4 && is_global(*address))
            .min()
    });
    by_default.collect()
}

/// The best of each family first: a bridge of containers may have an address of the site too.
fn inside(
    interfaces: &BTreeMap<u32, Interface>,
    prefixes: &Prefixes,
) -> impl Iterator<Item = IpAddr> {
    let all = interfaces.values().flat_map(|one| {
        let addresses = one.addresses.iter();
        addresses.map(move |address| (!is_outer(one), *address))
    });
    let mut own: Vec<_> = all.filter(|(_, own)| prefixes.is_own(*own)).collect();
    own.sort_unstable();
    own.into_iter().map(|(_, address)| address)
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

    #[test]
    fn an_uplink_is_no_lan_address_beside_one_inside_the_site() {
        let prefixes = |own: &str| Prefixes {
            own: vec![own.parse().unwrap()],
            others: Vec::new(),
        };
        let eth0 = interface("eth0", None, true, &["198.51.100.1", "2001:db8::1"]);
        let eth1 = interface("eth1", None, false, &["10.1.0.3", "fd00:1::3"]);
        let interfaces = BTreeMap::from([(1, eth0), (2, eth1)]);
        let lan = |given: Option<&str>, own: &str| {
            let given = given.map(|text| text.parse().unwrap());
            let found = lan_addresses(given, &interfaces, &prefixes(own));
            let found: Vec<String> = found.iter().map(IpAddr::to_string).collect();
            found.join(" ")
        };
        assert_eq!(lan(None, "fd00:1::/48"), "fd00:1::3");
        assert_eq!(lan(Some("fd00:1::3"), "fd00:1::/48"), "fd00:1::3");
        assert_eq!(lan(None, "10.1.0.0/16"), "10.1.0.3");
        assert_eq!(lan(Some("fd00:1::3"), "10.1.0.0/16"), "fd00:1::3 10.1.0.3");
        // The site's prefixes may be those of its pods alone.
        assert_eq!(lan(None, "10.9.0.0/16"), "198.51.100.1 2001:db8::1");
    }

    #[test]
    fn before_a_prefix_is_known_only_what_was_given_is_a_lan_address() {
        let eth0 = interface("eth0", None, true, &["198.51.100.1"]);
        let interfaces = BTreeMap::from([(1, eth0)]);
        let nothing = Prefixes::default();
        assert!(lan_addresses(None, &interfaces, &nothing).is_empty());
        let given = Some([10, 1, 0, 3].into());
        assert_eq!(lan_addresses(given, &interfaces, &nothing).len(), 1);
    }
}
