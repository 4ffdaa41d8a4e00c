//! Whose prefix an address lies in. An outer address inside a foreign site's prefix would lead the
//! tunnel through the tunnel, or our probes to a foreign host.

use std::net::IpAddr;

use ip_network::IpNetwork;
use proto::name::Name;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Prefixes {
    own: Name,
    /// The longest first.
    owned: Vec<(IpNetwork, Name)>,
}

impl Prefixes {
    pub(crate) fn new(own: Name, mut owned: Vec<(IpNetwork, Name)>) -> Prefixes {
        owned.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.netmask()));
        Prefixes { own, owned }
    }

    /// Whether a gateway of this site may say that it is found there.
    pub(crate) fn may_tell(&self, site: &Name, address: IpAddr) -> bool {
        self.owner(address).is_none_or(|owner| owner == site)
    }

    /// Whether it may seem to send from there. A router of ours that translates what comes in makes
    /// it seem to be one of us.
    pub(crate) fn may_send(&self, site: &Name, address: IpAddr) -> bool {
        let owner = self.owner(address);
        owner.is_none_or(|owner| owner == site || *owner == self.own)
    }

    fn owner(&self, address: IpAddr) -> Option<&Name> {
        let mut owned = self.owned.iter();
        let found = owned.find(|(prefix, _)| prefix.contains(address));
        found.map(|(_, site)| site)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_a_foreign_prefix_is_nobodys_elses() {
        let name = |text: &str| -> Name { text.parse().unwrap() };
        let owned = [
            ("10.0.0.0/8", "c"),
            ("10.1.0.0/16", "a"),
            ("10.2.0.0/16", "b"),
            ("fd00:2::/32", "b"),
        ];
        let owned = owned.map(|(prefix, site)| (prefix.parse().unwrap(), name(site)));
        let prefixes = Prefixes::new(name("a"), owned.to_vec());
        for (address, site, may_tell, may_send) in [
            ("10.2.0.1", "b", true, true),
            ("10.2.0.1", "c", false, false),
            ("10.3.0.1", "c", true, true),
            ("10.1.0.1", "b", false, true),
            ("10.1.0.1", "a", true, true),
            ("fd00:2::1", "c", false, false),
            ("198.51.100.1", "c", true, true),
        ] {
            let (site, address) = (name(site), address.parse().unwrap());
            assert_eq!(prefixes.may_tell(&site, address), may_tell, "{address}");
            assert_eq!(prefixes.may_send(&site, address), may_send, "{address}");
        }
    }
}
