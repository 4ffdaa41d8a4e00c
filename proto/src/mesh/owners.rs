//! Which site owns an address, and which addresses of a record may be used at all.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ip_network::IpNetwork;
use thiserror::Error;

use crate::ledger::{PrefixState, SitePrefix};
use crate::name::Name;
use crate::prefix::{self, RefusedPrefix};

/// The prefixes that sites own now, by length: an address is looked up once for each length in
/// use, however many prefixes there are.
#[derive(Default)]
pub(super) struct Owners {
    lengths_v4: BTreeSet<u8>,
    lengths_v6: BTreeSet<u8>,
    sites: HashMap<IpNetwork, Name>,
}

/// Why an address of a record is left out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RefusedAddress {
    #[error("it is a loopback address")]
    Loopback,
    #[error("it is a link-local address")]
    LinkLocal,
    #[error("it is a multicast address")]
    Multicast,
    #[error("it is unspecified, broadcast or reserved")]
    Reserved,
    #[error("it lies inside {prefix} of site {site}")]
    OtherSite { site: Name, prefix: IpNetwork },
}

impl Owners {
    pub(super) fn new(prefixes: &[SitePrefix]) -> Owners {
        let mut owners = Owners::default();
        for owned in prefixes {
            if owned.state != PrefixState::Owned {
                continue;
            }
            match owned.prefix {
                IpNetwork::V4(prefix) => owners.lengths_v4.insert(prefix.netmask()),
                IpNetwork::V6(prefix) => owners.lengths_v6.insert(prefix.netmask()),
            };
            owners.sites.insert(owned.prefix, owned.site.clone());
        }
        owners
    }

    fn owner(&self, address: IpAddr) -> Option<(IpNetwork, &Name)> {
        let lengths = match address {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        lengths.iter().rev().find_map(|length| {
            let prefix = IpNetwork::new_truncate(address, *length).ok()?;
            Some((prefix, self.sites.get(&prefix)?))
        })
    }

    /// Whether a node of this site may be reached at this address. One inside its own site's
    /// prefix is normal; one inside another site's would lead the tunnel through the tunnel.
    pub(super) fn check(&self, site: &Name, address: IpAddr) -> Result<(), RefusedAddress> {
        check_kind(address)?;
        match self.owner(address) {
            Some((prefix, owner)) if owner != site => Err(RefusedAddress::OtherSite {
                site: owner.clone(),
                prefix,
            }),
            Some(_) | None => Ok(()),
        }
    }
}

fn check_kind(address: IpAddr) -> Result<(), RefusedAddress> {
    let length = match address {
        IpAddr::V4(_) => Ipv4Addr::BITS,
        IpAddr::V6(_) => Ipv6Addr::BITS,
    };
    let host = IpNetwork::new(address, u8::try_from(length).expect("at most 128"))
        .expect("a host has no host bits");
    prefix::check(host).map_err(|why| match why {
        RefusedPrefix::Loopback => RefusedAddress::Loopback,
        RefusedPrefix::LinkLocal => RefusedAddress::LinkLocal,
        RefusedPrefix::Multicast => RefusedAddress::Multicast,
        RefusedPrefix::Default | RefusedPrefix::Reserved => RefusedAddress::Reserved,
    })
}
