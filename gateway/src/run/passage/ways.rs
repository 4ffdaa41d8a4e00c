//! Between which addresses it is tried: from one of another site to one of this site's network, once
//! for each family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ip_network::IpNetwork;
use node::follow::View;
use node::netlink::interfaces::Interface;
use proto::ledger::PrefixState;

use crate::roster;

/// Addresses that are looked at for one that is nobody's of this host.
const NEIGHBOURS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// `lan` are this node's own addresses in its site.
pub(super) fn ways(view: &View, interfaces: &BTreeMap<u32, Interface>, lan: &[IpAddr]) -> Vec<Way> {
    let all = lan.iter().filter_map(|own| {
        let remote = view.prefixes.iter();
        let remote = remote.filter(|held| {
            held.state == PrefixState::Owned
                && held.site != view.site
                && held.prefix.is_ipv4() == own.is_ipv4()
        });
        let mut sources = remote.map(|held| last_of(held.prefix));
        Some(Way {
            source: sources.find(|source| !roster::is_own(view, *source))?,
            destination: neighbour(view, interfaces, *own)?,
        })
    });
    all.collect()
}

/// One that has a node if there is one, else any of the same network; of this site in any case, as
/// the guard lets nothing else in.
fn neighbour(view: &View, interfaces: &BTreeMap<u32, Interface>, own: IpAddr) -> Option<IpAddr> {
    let is_other = |address: &IpAddr| {
        let mut all = interfaces.values();
        address.is_ipv4() == own.is_ipv4()
            && roster::is_own(view, *address)
            && !all.any(|one| one.lengths.contains_key(address))
    };
    let is_near = |address: &IpAddr| interfaces.values().any(|one| one.is_near(own, *address));
    let peers = view.peers.values();
    let of_site = peers.filter(|peer| peer.node.record.site == view.site);
    let mut nodes = of_site.filter_map(|peer| peer.lan_address).filter(is_other);
    let length = interfaces.values().find_map(|one| one.lengths.get(&own))?;
    let network = IpNetwork::new_truncate(own, *length).ok()?;
    let any = || hosts(network).find(|address| is_other(address) && is_near(address));
    nodes.find(is_near).or_else(any)
}

/// The last address that a host may have.
fn last_of(prefix: IpNetwork) -> IpAddr {
    let length = u32::from(prefix.netmask());
    match prefix.network_address() {
        IpAddr::V4(first) => {
            let rest = u32::MAX.checked_shr(length).unwrap_or(0);
            // The very last one of a network is for all of its hosts.
            let last = if length < 31 { rest - 1 } else { rest };
            std::net::Ipv4Addr::from_bits(first.to_bits() | last).into()
        }
        IpAddr::V6(first) => {
            let rest = u128::MAX.checked_shr(length).unwrap_or(0);
            std::net::Ipv6Addr::from_bits(first.to_bits() | rest).into()
        }
    }
}

fn hosts(network: IpNetwork) -> impl Iterator<Item = IpAddr> {
    let first = network.network_address();
    let all = (1..=NEIGHBOURS).map(move |number| match first {
        IpAddr::V4(first) => {
            std::net::Ipv4Addr::from_bits(first.to_bits().saturating_add(number as u32)).into()
        }
        IpAddr::V6(first) => {
            std::net::Ipv6Addr::from_bits(first.to_bits().saturating_add(number as u128)).into()
        }
    });
    let end = last_of(network);
    all.filter(move |address: &IpAddr| network.contains(*address) && *address <= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn the_last_address_of_a_prefix_is_one_that_a_host_may_have() {
        for (prefix, last) in [
            ("10.2.0.0/16", "10.2.255.254"),
            ("10.2.0.4/30", "10.2.0.6"),
            ("10.2.0.4/31", "10.2.0.5"),
            ("10.2.0.4/32", "10.2.0.4"),
            ("fd00:2::/64", "fd00:2::ffff:ffff:ffff:ffff"),
            ("fd00:2::1/128", "fd00:2::1"),
        ] {
            assert_eq!(last_of(network(prefix)), address(last), "{prefix}");
        }
    }

    #[test]
    fn neighbours_are_hosts_of_the_network_alone() {
        let of = |text: &str| hosts(network(text)).collect::<Vec<_>>();
        assert_eq!(
            of("10.1.0.4/30"),
            [address("10.1.0.5"), address("10.1.0.6")]
        );
        assert!(of("10.1.0.4/32").is_empty());
        assert_eq!(of("fd00:1::/64")[0], address("fd00:1::1"));
        assert_eq!(of("10.1.0.0/16").len(), NEIGHBOURS);
    }
}
