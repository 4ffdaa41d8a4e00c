//! Addresses on the VXLAN interface, made of node keys: nobody plans them, and every node knows those
//! of all others.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use proto::key::{Domain, Hash, PublicKey};

/// Of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Locally administered, of one station.
    pub fn of(identity: &PublicKey) -> Mac {
        let [a, b, c, d, e, ..] = Hash::of(Domain::Vxlan, identity.as_bytes()).0;
        Mac([2, a, b, c, d, e])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The next hop of packets to a node; no interface has it as its address.
pub fn next_hop(identity: &PublicKey) -> IpAddr {
    let hash = Hash::of(Domain::Vxlan, identity.as_bytes()).0;
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&hash[8..16]);
    Ipv6Addr::from(octets).into()
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    #[test]
    fn addresses_are_those_of_one_key() {
        let key = |number| SigningKey::from_seed(&[number; 32]).public();
        let mac = Mac::of(&key(1)).to_string();
        assert!(mac.starts_with("02:") && mac.len() == 17, "{mac}");
        assert_ne!(Mac::of(&key(1)), Mac::of(&key(2)));
        assert_ne!(next_hop(&key(1)), next_hop(&key(2)));
        assert!(next_hop(&key(1)).to_string().starts_with("fe80::"));
    }
}
