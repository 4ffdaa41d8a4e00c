//! One look at the kernel: everything that is ours, and what it stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Agent, tun};
use crate::diff::Found;
use crate::facts::Facts;
use crate::netlink::link::{Address, Link};
use crate::netlink::route::Indexes;
use crate::netlink::rule::Rules;
use crate::netlink::vxlan::{self, Named};
use crate::netlink::{Refused, link, nexthop, route, rule};
use crate::plan::{Devices, Ground};
use crate::settings::VXLAN_DEVICE;

pub(super) struct Seen {
    pub(super) found: Found,
    pub(super) rules: Rules,
    pub(super) links: BTreeMap<String, Link>,
    pub(super) addresses: Vec<Address>,
    pub(super) vxlan: Named,
}

impl Seen {
    pub(super) fn indexes(&self) -> Indexes {
        let links = self.links.iter();
        links
            .map(|(name, link)| (name.clone(), link.index))
            .collect()
    }

    pub(super) fn index(&self, name: &str) -> u32 {
        self.links.get(name).map_or(0, |link| link.index)
    }

    /// The interface in whose network an address is; of several the narrowest.
    fn network_of(&self, address: IpAddr) -> Option<String> {
        let networks = self
            .addresses
            .iter()
            .filter_map(|own| Some((own, own.network()?)));
        let (own, _) = networks
            .filter(|(own, network)| own.address != address && network.contains(address))
            .max_by_key(|(_, network)| network.netmask())?;
        self.name(own.index).cloned()
    }

    fn name(&self, index: u32) -> Option<&String> {
        let mut links = self.links.iter();
        links
            .find(|(_, link)| link.index == index)
            .map(|(name, _)| name)
    }

    pub(super) fn devices(&self, facts: &Facts) -> Devices {
        let is_inner = |address| {
            facts.lan.contains(&address)
                || facts.local.iter().any(|prefix| prefix.contains(address))
        };
        let indexes: BTreeSet<u32> = self
            .addresses
            .iter()
            .filter(|own| is_inner(own.address))
            .map(|own| own.index)
            .collect();
        let inner = self.links.iter().filter(|(name, link)| {
            let name = name.as_str();
            Some(name) != tun(facts)
                && name != VXLAN_DEVICE
                && name != "lo"
                && indexes.contains(&link.index)
        });
        Devices {
            tun: tun(facts).map_or(0, |tun| self.index(tun)),
            vxlan: match &self.vxlan {
                Named::Ours { index, .. } => *index,
                Named::Nobodys | Named::Foreign => 0,
            },
            inner: inner
                .map(|(name, link)| (name.clone(), link.index))
                .collect(),
        }
    }
}

impl Agent {
    pub(super) async fn see(&mut self, facts: &Facts) -> Result<Seen, Refused> {
        let links = link::list(&self.handle).await?;
        let names = links
            .iter()
            .map(|(name, link)| (link.index, name.clone()))
            .collect();
        let rules = rule::list(&self.handle).await?;
        let nexthops = nexthop::list(&self.raw, &names)?;
        let named = vxlan::find(&self.raw)?;
        let mut found = Found {
            routes: route::list(&self.raw, &names)?,
            rules: rules.ours.clone(),
            nexthops: nexthops.ours,
            foreign_nexthops: nexthops.foreign,
            devices: links
                .iter()
                // The kernel takes no next hop at an interface without a carrier.
                .filter(|(name, link)| {
                    link.up && (link.carrier || Some(name.as_str()) == tun(facts))
                })
                .map(|(name, _)| name.clone())
                .collect(),
            ..Found::default()
        };
        self.vxlan = 0;
        if let Named::Ours { index, vxlan } = &named {
            self.vxlan = *index;
            found.vxlan = vxlan.clone();
            found.forwarding = vxlan::forwarding(&self.raw, *index)?;
            found.neighbours = vxlan::neighbours(&self.raw, *index)?;
        }
        Ok(Seen {
            found,
            rules,
            links,
            addresses: link::addresses(&self.handle).await?,
            vxlan: named,
        })
    }

    pub(super) fn ground(&self, facts: &Facts, seen: &Seen) -> Ground {
        let gateways = facts.gateways().into_iter();
        let addresses = gateways
            .flat_map(|gateways| gateways.gateways.values())
            .flat_map(|gateway| [Some(gateway.lan), gateway.other])
            .flatten();
        let own = |address: &IpAddr| {
            let own = seen.addresses.iter().find(|own| own.address == *address)?;
            let link = seen.links.get(seen.name(own.index)?)?;
            Some((*address, link.mtu))
        };
        let on_link: BTreeMap<IpAddr, String> = addresses
            .filter_map(|address| Some((address, seen.network_of(address)?)))
            .collect();
        let mut devices = seen.devices(facts);
        // A gateway's network is the site's, whatever this node's own address in it.
        let leading = on_link
            .values()
            .filter_map(|name| seen.links.get_key_value(name));
        let leading = leading.map(|(name, link)| (name.clone(), link.index));
        devices.inner.extend(leading);
        Ground {
            devices,
            on_link,
            mtus: facts.lan.iter().filter_map(own).collect(),
            name_taken: seen.vxlan == Named::Foreign,
            kernel: self.kernel,
        }
    }
}
