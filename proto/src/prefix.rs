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
