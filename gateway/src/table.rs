//! Which prefix leads to which site, and who carries each site's packets: from the verified view
//! and what the links say, to what the packet path looks up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ip_network::IpNetwork;
use proto::key::{Domain, Hash, PublicKey};
use proto::ledger::{PrefixState, SitePrefix};
use proto::name::Name;

use crate::data::snapshot::{Carried, Choice, LinkPlace, Mesh, Owner, OwnerId, Sender, Snapshot};
use crate::drops::DropReason;
use crate::links::{Carriers, Carry};
use crate::packet::address;

/// Complete, and free of where links live: that is the plane's to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Prefixes of this site.
    pub own: Vec<IpNetwork>,
    /// Where agents of this site send probes to this gateway.
    pub probes: Vec<IpAddr>,
    pub sites: BTreeMap<Name, Site>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    pub prefixes: Vec<IpNetwork>,
    /// `None`: from here nobody reaches it.
    pub carry: Option<Carry>,
}

/// Where a link lives, and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) place: LinkPlace,
    pub(crate) site: Name,
    /// Whether its tunnel is its own; else it carries control packets only.
    pub(crate) is_proven: bool,
}

impl Table {
    /// Only prefixes in force count; a gateway says nothing of its own site to itself.
    pub fn new(prefixes: &Arc<Vec<SitePrefix>>, local_site: &Name, carriers: &Carriers) -> Table {
        let mut table = Table::default();
        for owned in prefixes
            .iter()
            .filter(|owned| owned.state == PrefixState::Owned)
        {
            if owned.site == *local_site {
                table.own.push(owned.prefix);
                continue;
            }
            let site = table.sites.entry(owned.site.clone()).or_default();
            site.prefixes.push(owned.prefix);
        }
        table.carry(carriers);
        table
    }

    /// Takes over who carries what; a site without a prefix has nothing to be carried.
    pub fn carry(&mut self, carriers: &Carriers) {
        for (name, site) in &mut self.sites {
            site.carry = carriers.sites.get(name).cloned();
        }
    }

    /// A gateway of a site without prefixes may still be there; nothing of it passes.
    pub(crate) fn compile<'a>(
        &self,
        local_site: &Name,
        links: impl Iterator<Item = (&'a PublicKey, &'a Placed)>,
    ) -> Mesh {
        let ids: BTreeMap<&Name, OwnerId> = self.sites.keys().zip((0..).map(OwnerId)).collect();
        let (mut places, mut senders) = (BTreeMap::new(), Vec::new());
        for (identity, placed) in links.filter(|(_, placed)| placed.is_proven) {
            places.insert(*identity, placed.place);
            if placed.site == *local_site {
                senders.push((placed.place, Sender::Sibling));
            } else if let Some(id) = ids.get(&placed.site) {
                senders.push((placed.place, Sender::Site(*id)));
            }
        }
        let owners = self.sites.values().map(|site| Owner {
            carried: carried(site.carry.as_ref(), &places),
        });
        let prefixes = self.sites.iter().flat_map(|(name, site)| {
            let id = ids[name];
            site.prefixes.iter().map(move |prefix| (*prefix, id))
        });
        Mesh {
            owners: owners.collect(),
            prefixes: prefixes.collect(),
            senders,
            own: self.own.clone(),
            probes: self.probes.clone(),
            own_port: None,
        }
    }
}

fn carried(carry: Option<&Carry>, places: &BTreeMap<PublicKey, LinkPlace>) -> Carried {
    let choices = |gateways: &[PublicKey]| -> Box<[Choice]> {
        let found = gateways.iter().filter_map(|gateway| {
            Some(Choice {
                seed: seed_of(gateway),
                place: *places.get(gateway)?,
            })
        });
        found.collect()
    };
    let nobody = Carried::Nobody(DropReason::SiteDown);
    match carry {
        None => nobody,
        Some(Carry::Direct(gateways)) => match choices(gateways) {
            choices if choices.is_empty() => nobody,
            choices => Carried::By(choices),
        },
        Some(Carry::Siblings(siblings)) => match choices(siblings) {
            choices if choices.is_empty() => nobody,
            choices => Carried::BySiblings(choices),
        },
    }
}

/// The one of these gateways that carries a packet with these headers, on every node alike.
pub fn carrier(of: &[PublicKey], packet: &[u8]) -> Option<PublicKey> {
    let destination = address::destination(packet)?;
    let choices = of.iter().zip(0..).map(|(gateway, slot)| Choice {
        seed: seed_of(gateway),
        place: LinkPlace { thread: 0, slot },
    });
    let owner = Owner {
        carried: Carried::By(choices.collect()),
    };
    let mesh = Mesh {
        prefixes: vec![(destination.into(), OwnerId(0))],
        owners: vec![owner],
        ..Mesh::default()
    };
    let chosen = Snapshot::mesh(mesh).link_for(destination, packet).ok()?;
    of.get(chosen.slot as usize).copied()
}

/// What a gateway weighs in the rendezvous hash: the same on every node.
fn seed_of(gateway: &PublicKey) -> u64 {
    let hash = Hash::of(Domain::ControlAddress, gateway.as_bytes());
    u64::from_be_bytes(std::array::from_fn(|at| hash.0[at]))
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;
    use crate::data::snapshot::Onward;

    fn identity(number: u8) -> PublicKey {
        SigningKey::from_seed(&[number; 32]).public()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn prefix(text: &str, site: &str, state: PrefixState) -> SitePrefix {
        SitePrefix {
            prefix: text.parse().unwrap(),
            site: name(site),
            service: false,
            number: 1,
            state,
        }
    }

    fn place(thread: u32, slot: u32) -> LinkPlace {
        LinkPlace { thread, slot }
    }

    fn prefixes() -> Arc<Vec<SitePrefix>> {
        Arc::new(vec![
            prefix("10.1.0.0/16", "here", PrefixState::Owned),
            prefix("10.2.0.0/16", "berlin", PrefixState::Owned),
            prefix("fd00:2::/48", "berlin", PrefixState::Owned),
            prefix("10.3.0.0/16", "paris", PrefixState::Owned),
            prefix("10.4.0.0/16", "paris", PrefixState::Quarantined),
        ])
    }

    fn placed() -> Vec<(PublicKey, Placed)> {
        let one = |number, site, thread, slot| {
            let placed = Placed {
                place: place(thread, slot),
                site: name(site),
                is_proven: number != 5,
            };
            (identity(number), placed)
        };
        vec![
            one(1, "here", 0, 0),
            one(2, "berlin", 1, 0),
            one(3, "berlin", 0, 1),
            one(4, "elsewhere", 1, 1),
            one(5, "berlin", 1, 2),
        ]
    }

    fn snapshot(carriers: &[(&str, Carry)]) -> Snapshot {
        let sites = carriers
            .iter()
            .map(|(site, carry)| (name(site), carry.clone()))
            .collect();
        let table = Table::new(&prefixes(), &name("here"), &Carriers { sites });
        let placed = placed();
        let links = placed.iter().map(|(identity, placed)| (identity, placed));
        Snapshot::mesh(table.compile(&name("here"), links))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_leads_to_a_gateway_that_carries_its_site() {
        let snapshot = snapshot(&[("berlin", Carry::Direct(vec![identity(3)]))]);
        for to in ["10.2.7.7", "fd00:2::7"] {
            assert_eq!(snapshot.link_for(address(to), &[]), Ok(place(0, 1)));
        }
        let reason = snapshot.link_for(address("10.3.0.1"), &[]);
        assert_eq!(reason, Err(DropReason::SiteDown), "nobody carries it");
        for to in ["10.4.0.1", "10.1.0.1", "192.0.2.1"] {
            let reason = snapshot.link_for(address(to), &[]);
            assert_eq!(reason, Err(DropReason::NoPeer), "{to} is not in force");
        }
    }

    #[test]
    fn carriers_without_a_link_carry_nothing() {
        let snapshot = snapshot(&[("berlin", Carry::Direct(vec![identity(9)]))]);
        let reason = snapshot.link_for(address("10.2.0.1"), &[]);
        assert_eq!(reason, Err(DropReason::SiteDown));
    }

    #[test]
    fn who_has_not_proven_its_tunnel_neither_gets_nor_gives_anything() {
        let snapshot = snapshot(&[("berlin", Carry::Direct(vec![identity(5)]))]);
        let (berlin, here) = (address("10.2.0.1"), address("10.1.0.1"));
        assert_eq!(snapshot.link_for(berlin, &[]), Err(DropReason::SiteDown));
        assert_eq!(
            snapshot.admit(place(1, 2), berlin, here),
            Err(DropReason::InnerNotAllowed)
        );
    }

    #[test]
    fn what_may_come_through_a_link_is_its_sites_whoever_carries() {
        let snapshot = snapshot(&[("berlin", Carry::Siblings(vec![identity(1)]))]);
        let (berlin, here) = (address("10.2.0.1"), address("10.1.0.1"));
        let admit = |place, from, to| snapshot.admit(place, from, to);
        assert_eq!(admit(place(1, 0), berlin, here), Ok(Onward::Tun));
        assert_eq!(
            admit(place(1, 1), berlin, here),
            Err(DropReason::InnerNotAllowed),
            "of a site without prefixes"
        );
        assert_eq!(
            admit(place(0, 0), here, berlin),
            Err(DropReason::SiblingSiteLost),
            "from a sibling never to a sibling"
        );
    }

    #[test]
    fn every_gateway_weighs_the_same_everywhere_and_no_two_alike() {
        assert_eq!(seed_of(&identity(1)), seed_of(&identity(1)));
        assert_ne!(seed_of(&identity(1)), seed_of(&identity(2)));
    }
}
