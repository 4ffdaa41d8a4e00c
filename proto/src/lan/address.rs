//! The addresses that probes go to: of no site and of no network outside, derived from the
//! gateway's identity so that nobody has to hand them out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ProbeBy;
use crate::key::{Domain, Hash, PublicKey};

/// 198.18.0.0/15, for tests of devices (RFC 2544).
const V4: [u8; 2] = [198, 18];
/// 2001:2::/48, the same for IPv6 (RFC 5180).
const V6: [u8; 6] = [0x20, 0x01, 0, 2, 0, 0];

/// Of a gateway, one of each family. Two ways of one gateway never share an address; two gateways
/// of one site might, once in 65,536, and then only learn less.
pub fn probe_addresses(gateway: &PublicKey, by: ProbeBy) -> (Ipv4Addr, Ipv6Addr) {
    let hash = Hash::of(Domain::LanProbe, gateway.as_bytes()).0;
    let way = match by {
        ProbeBy::Direct => 0,
        ProbeBy::Vxlan => 1,
    };
    let v4 = [V4[0], V4[1] | way, hash[0], hash[1]];
    let mut v6 = [0; 16];
    v6[..6].copy_from_slice(&V6);
    v6[7] = way;
    v6[8..].copy_from_slice(&hash[..8]);
    (v4.into(), v6.into())
}

/// Whether it is of the range that probes go to.
pub fn is_probe_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => [V4[0], V4[1]] == [v4.octets()[0], v4.octets()[1] & !1],
        IpAddr::V6(v6) => v6.octets().starts_with(&V6),
    }
}

/// The one in the family of `like`.
pub fn probe_address(gateway: &PublicKey, by: ProbeBy, like: IpAddr) -> IpAddr {
    let (v4, v6) = probe_addresses(gateway, by);
    match like {
        IpAddr::V4(_) => v4.into(),
        IpAddr::V6(_) => v6.into(),
    }
}
