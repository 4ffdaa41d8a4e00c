//! Where this gateway can be found: which addresses its record names, in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use node::addresses::{Prefixes, is_global, lan_addresses, usable_addresses};
use node::netlink::interfaces::Interface;
use proto::record::MAX_CANDIDATES;

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

/// At most eight, the likeliest first; the same input gives the same list.
pub(super) fn candidates(known: &Known, prefixes: &Prefixes) -> Vec<(SocketAddr, From)> {
    let with_port = |address: IpAddr| SocketAddr::new(address, known.port);
    let lan = lan_addresses(known.given_lan, &known.interfaces, prefixes);
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
                "198.51.100.1:51820 interface",
                "[2001:db8::1]:51820 interface",
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
    fn at_most_as_many_as_a_record_holds() {
        let addresses: Vec<String> = (1..20).map(|last| format!("192.0.2.{last}")).collect();
        let texts: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let known = known(vec![interface("eth0", None, true, &texts)]);
        assert_eq!(candidates(&known, &prefixes()).len(), MAX_CANDIDATES);
    }
}
