//! Which prefixes a site may have at all, and when two overlap.

use std::net::Ipv6Addr;

use ip_network::IpNetwork;
use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RefusedPrefix {
    #[error("it is a default route; no site is an exit for another")]
    Default,
    #[error("it holds loopback addresses")]
    Loopback,
    #[error("it holds link-local addresses")]
    LinkLocal,
    #[error("it holds multicast addresses")]
    Multicast,
    #[error("it holds unspecified, broadcast or reserved addresses")]
    Reserved,
}

/// Whether one lies in the other, or they are the same.
pub fn overlap(one: IpNetwork, other: IpNetwork) -> bool {
    match (one, other) {
        (IpNetwork::V4(_), IpNetwork::V4(_)) | (IpNetwork::V6(_), IpNetwork::V6(_)) => {
            one.contains(other.network_address()) || other.contains(one.network_address())
        }
        (IpNetwork::V4(_), IpNetwork::V6(_)) | (IpNetwork::V6(_), IpNetwork::V4(_)) => false,
    }
}

/// What no ledger can give to a site. Judged by overlap, so that a half of the Internet, which
/// would hold all of it, is refused too.
pub fn check(prefix: IpNetwork) -> Result<(), RefusedPrefix> {
    if prefix.netmask() == 0 || holds_public_ipv6(prefix) {
        return Err(RefusedPrefix::Default);
    }
    for (text, why) in NEVER {
        let never: IpNetwork = text.parse().expect("the table holds prefixes");
        if overlap(prefix, never) {
            return Err(*why);
        }
    }
    Ok(())
}

/// `2000::/3` is all there is to reach: it is a default route by another name.
fn holds_public_ipv6(prefix: IpNetwork) -> bool {
    match prefix {
        IpNetwork::V4(_) => false,
        IpNetwork::V6(prefix) => {
            prefix.netmask() <= 3 && prefix.contains(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0))
        }
    }
}

const NEVER: &[(&str, RefusedPrefix)] = &[
    ("0.0.0.0/8", RefusedPrefix::Reserved),
    ("127.0.0.0/8", RefusedPrefix::Loopback),
    ("169.254.0.0/16", RefusedPrefix::LinkLocal),
    ("224.0.0.0/4", RefusedPrefix::Multicast),
    ("240.0.0.0/4", RefusedPrefix::Reserved),
    ("::/127", RefusedPrefix::Loopback),
    ("::ffff:0:0/96", RefusedPrefix::Reserved),
    ("fe80::/10", RefusedPrefix::LinkLocal),
    ("ff00::/8", RefusedPrefix::Multicast),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn the_whole_of_a_family_is_a_default_route_however_it_is_put() {
        for text in ["0.0.0.0/0", "::/0", "2000::/3"] {
            assert_eq!(check(net(text)), Err(RefusedPrefix::Default), "{text}");
        }
        for text in [
            "0.0.0.0/1",
            "128.0.0.0/1",
            "128.0.0.0/2",
            "192.0.0.0/2",
            "64.0.0.0/2",
            "::/1",
            "8000::/1",
            "::/2",
            "::/3",
        ] {
            assert!(check(net(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_refused_is_refused_in_part_and_within_more() {
        for (text, why) in [
            ("127.0.0.1/32", RefusedPrefix::Loopback),
            ("126.0.0.0/7", RefusedPrefix::Loopback),
            ("::1/128", RefusedPrefix::Loopback),
            ("::/96", RefusedPrefix::Loopback),
            ("169.254.7.0/24", RefusedPrefix::LinkLocal),
            ("fe80::1/128", RefusedPrefix::LinkLocal),
            ("fe00::/8", RefusedPrefix::LinkLocal),
            ("239.0.0.0/8", RefusedPrefix::Multicast),
            ("ff02::/16", RefusedPrefix::Multicast),
            ("0.0.0.0/32", RefusedPrefix::Reserved),
            ("255.255.255.255/32", RefusedPrefix::Reserved),
            ("::ffff:10.0.0.0/104", RefusedPrefix::Reserved),
        ] {
            assert_eq!(check(net(text)), Err(why), "{text}");
        }
    }

    #[test]
    fn private_and_public_prefixes_of_any_length_are_taken() {
        for text in [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.1.1/32",
            "100.64.0.0/10",
            "203.0.113.0/24",
            "fd00::/8",
            "fc00::/7",
            "2001:db8::/32",
            "2001:db8::1/128",
        ] {
            assert_eq!(check(net(text)), Ok(()), "{text}");
        }
    }

    /// First and last address as numbers, the families apart.
    fn span(prefix: IpNetwork) -> (u8, u128, u128) {
        let (family, first, bits) = match prefix {
            IpNetwork::V4(prefix) => (4, u128::from(u32::from(prefix.network_address())), 32),
            IpNetwork::V6(prefix) => (6, u128::from(prefix.network_address()), 128),
        };
        let free = bits - u32::from(prefix.netmask());
        let size = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        (family, first, first + size)
    }

    fn any_prefix() -> impl Strategy<Value = IpNetwork> {
        // Few bits vary, so that overlaps are frequent.
        (any::<bool>(), any::<u8>(), 0..=128_u8).prop_map(|(four, bits, length)| {
            if four {
                let address = std::net::Ipv4Addr::new(10, bits, bits & 3, bits & 1);
                IpNetwork::new_truncate(address, length % 33).unwrap()
            } else {
                let bits = u16::from(bits);
                let address = Ipv6Addr::new(0xfd00, bits, 0, bits & 3, 0, 0, 0, bits & 1);
                IpNetwork::new_truncate(address, length).unwrap()
            }
        })
    }

    proptest! {
        #[test]
        fn two_overlap_when_their_addresses_do(one in any_prefix(), other in any_prefix()) {
            let (left, right) = (span(one), span(other));
            let expected = left.0 == right.0 && left.1 <= right.2 && right.1 <= left.2;
            prop_assert_eq!(overlap(one, other), expected);
            prop_assert_eq!(overlap(other, one), expected);
            prop_assert!(overlap(one, one));
        }
    }
}
