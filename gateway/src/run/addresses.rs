//! Where this gateway can be found: which addresses its record names, in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ip_network::IpNetwork;
use proto::record::MAX_CANDIDATES;

use crate::io::netlink::interfaces::Interface;

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

/// How an address is known; the first of two that are the same tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum From {
    Configured,
    Reflected,
    Lan,
    Interface,
}

impl From {
    pub(super) fn name(self) -> &'static str {
        match self {
            From::Configured => "configured",
            From::Reflected => "reflected",
            From::Lan => "lan",
            From::Interface => "interface",
        }
    }
}

/// What is known of this host's addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Of `--endpoint`, resolved, in the order given.
    pub(super) configured: Vec<SocketAddr>,
    /// By brokers, at most one a family.
    pub(super) reflected: Vec<SocketAddr>,
    /// Of `--address`.
    pub(super) given_lan: Option<IpAddr>,
    pub(super) interfaces: BTreeMap<u32, Interface>,
    pub(super) port: u16,
}

/// The mesh as far as addresses go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prefixes {
    pub(super) own: Vec<IpNetwork>,
    pub(super) others: Vec<IpNetwork>,
}

impl Prefixes {
    /// By the longest prefix that holds it.
    fn is_own(&self, address: IpAddr) -> bool {
        longest(&self.own, address) > longest(&self.others, address)
    }

    pub(super) fn is_anothers(&self, address: IpAddr) -> bool {
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

/// At most eight, the likeliest first; the same input gives the same list.
pub(super) fn candidates(known: &Known, prefixes: &Prefixes) -> Vec<(SocketAddr, From)> {
    let with_port = |address: IpAddr| SocketAddr::new(address, known.port);
    let lan = lan_addresses(known, prefixes);
    let interfaces = usable_addresses(&known.interfaces);
    let all = known
        .configured
        .iter()
        .map(|address| (*address, From::Configured))
        .chain(
            known
                .reflected
                .iter()
                .map(|address| (*address, From::Reflected)),
        )
        .chain(
            lan.into_iter()
                .map(|address| (with_port(address), From::Lan)),
        )
        .chain(
            interfaces
                .into_iter()
                .map(|address| (with_port(address), From::Interface)),
        );
    let mut seen = BTreeSet::new();
    all.filter(|(address, _)| address.port() != 0 && is_global(address.ip()))
        .filter(|(address, _)| !prefixes.is_anothers(address.ip()))
        .filter(|(address, _)| seen.insert(*address))
        .take(MAX_CANDIDATES)
        .collect()
}

/// This node's own addresses in its site, at most one a family: the given one, else one inside the
/// site's prefixes, else that of the default route.
pub(super) fn lan_addresses(known: &Known, prefixes: &Prefixes) -> Vec<IpAddr> {
    let of_family = |is_v4: bool| {
        let fits = |address: &IpAddr| address.is_ipv4() == is_v4;
        let given = known.given_lan.filter(fits);
        let inside = || {
            let all = known.interfaces.values().flat_map(|one| {
                let addresses = one.addresses.iter();
                addresses.map(move |address| (!is_outer(one), *address))
            });
            // A bridge of containers may have an address of the site too.
            let own = all.filter(|(_, address)| fits(address) && prefixes.is_own(*address));
            own.min().map(|(_, address)| address)
        };
        let by_default = || {
            let all = known.interfaces.values();
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
fn usable_addresses(interfaces: &BTreeMap<u32, Interface>) -> Vec<IpAddr> {
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
fn is_global(address: IpAddr) -> bool {
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
        }
    }

    fn known(interfaces: Vec<Interface>) -> Known {
        Known {
            interfaces: (1..).zip(interfaces).collect(),
            port: 51820,
            ..Known::default()
        }
    }

    fn prefixes() -> Prefixes {
        Prefixes {
            own: vec!["10.1.0.0/16".parse().unwrap()],
            others: vec!["10.2.0.0/16".parse().unwrap()],
        }
    }

    fn shown(known: &Known) -> Vec<String> {
        let found = candidates(known, &prefixes());
        found
            .iter()
            .map(|(address, from)| format!("{address} {}", from.name()))
            .collect()
    }

    #[test]
    fn the_order_is_configured_reflected_lan_then_by_routers() {
        let mut known = known(vec![
            interface("eth1", None, false, &["192.0.2.9"]),
            interface("eth0", None, true, &["198.51.100.1", "2001:db8::1"]),
            interface("lan", Some("veth"), false, &["10.1.0.2"]),
        ]);
        known.configured = vec!["203.0.113.5:4000".parse().unwrap()];
        known.reflected = vec!["203.0.113.6:5000".parse().unwrap()];
        assert_eq!(
            shown(&known),
            [
                "203.0.113.5:4000 configured",
                "203.0.113.6:5000 reflected",
                "10.1.0.2:51820 lan",
                "[2001:db8::1]:51820 lan",
                "198.51.100.1:51820 interface",
                "192.0.2.9:51820 interface",
            ]
        );
    }

    #[test]
    fn tunnels_and_bridges_of_containers_are_left_out() {
        let known = known(vec![
            interface("lo", None, false, &["127.0.0.1", "::1"]),
            interface("causeway0", Some("tun"), false, &["192.0.2.1"]),
            interface("flannel.1", Some("vxlan"), true, &["192.0.2.2"]),
            interface("docker0", Some("bridge"), false, &["172.17.0.1"]),
            interface("cni0", Some("bridge"), false, &["192.0.2.3"]),
            interface("cali12", Some("veth"), false, &["192.0.2.4"]),
            interface("br0", Some("bridge"), true, &["192.0.2.5", "fe80::1"]),
        ]);
        assert_eq!(shown(&known), ["192.0.2.5:51820 lan"]);
    }

    #[test]
    fn an_address_inside_another_sites_prefix_is_left_out() {
        let known = known(vec![interface("eth0", None, true, &["10.2.0.1"])]);
        assert!(shown(&known).is_empty());
    }

    #[test]
    fn what_was_given_is_the_lan_address_before_all_else() {
        let mut known = known(vec![
            interface("eth0", None, true, &["198.51.100.1"]),
            interface("eth1", None, false, &["10.1.0.7", "10.1.0.3"]),
        ]);
        let lan = |known: &Known| lan_addresses(known, &prefixes());
        assert_eq!(lan(&known), ["10.1.0.3".parse::<IpAddr>().unwrap()]);
        known.given_lan = Some("10.1.0.7".parse().unwrap());
        assert_eq!(lan(&known), ["10.1.0.7".parse::<IpAddr>().unwrap()]);
        known.given_lan = None;
        let pods = interface("cni0", Some("bridge"), false, &["10.1.0.1"]);
        known.interfaces.insert(9, pods);
        assert_eq!(lan(&known), ["10.1.0.3".parse::<IpAddr>().unwrap()]);
        known.interfaces.retain(|index, _| *index == 1);
        assert_eq!(lan(&known), ["198.51.100.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn at_most_as_many_as_a_record_holds() {
        let addresses: Vec<String> = (1..20).map(|last| format!("192.0.2.{last}")).collect();
        let texts: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let known = known(vec![interface("eth0", None, true, &texts)]);
        assert_eq!(candidates(&known, &prefixes()).len(), MAX_CANDIDATES);
    }
}
