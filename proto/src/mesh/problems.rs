//! Collects what a person should look at.

use crate::ledger::PrefixState;

use super::problem::Problem;
use super::{Mesh, Place, addresses};

impl Mesh {
    /// All problems as they are now. Looks at everything: for status, not for every change.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(fork) = &self.charter().fork {
            problems.push(Problem::Fork {
                split: fork.split,
                heads: fork.heads.clone(),
            });
        }
        problems.extend(self.prefix_problems());
        problems.extend(self.use_problems());
        problems.extend(self.shared_problems());
        problems.extend(self.double_problems());
        problems.extend(self.address_problems());
        problems
    }

    fn prefix_problems(&self) -> impl Iterator<Item = Problem> {
        self.prefixes().into_iter().filter_map(|prefix| {
            let (site, with) = (prefix.site, prefix.prefix);
            match prefix.state {
                PrefixState::Owned => None,
                PrefixState::Overlaps {
                    site: with_site,
                    prefix: with_prefix,
                } => Some(Problem::PrefixOverlaps {
                    site,
                    prefix: with,
                    with_site,
                    with_prefix,
                }),
                PrefixState::Quarantined => Some(Problem::PrefixQuarantined { site, prefix: with }),
                PrefixState::Refused(why) => Some(Problem::PrefixRefused {
                    site,
                    prefix: with,
                    why,
                }),
            }
        })
    }

    fn use_problems(&self) -> impl Iterator<Item = Problem> {
        self.register.uses().filter_map(|(of, contenders)| {
            if contenders.len() < 2 {
                return None;
            }
            let mut good = self.register.good_contenders(of, self.charter());
            if good.len() < 2 {
                return None;
            }
            good.sort_by_key(|contender| contender.identity);
            let mut brokers: Vec<_> = good.iter().map(|contender| contender.broker).collect();
            brokers.sort();
            brokers.dedup();
            Some(Problem::TwoForOneUse {
                grant: of.0,
                use_number: of.1,
                identities: good.iter().map(|contender| contender.identity).collect(),
                brokers,
                taken: self.register.holder(of, self.charter()),
            })
        })
    }

    fn shared_problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for ((site, node), identities) in self.names.shared() {
            problems.push(Problem::TwoForOneName {
                site: site.clone(),
                node: node.clone(),
                identities,
            });
        }
        for (key, identities) in self.wireguard_keys.shared() {
            let nodes = identities.iter().filter_map(|identity| self.node(identity));
            problems.push(Problem::CopiedWireguardKey {
                key: *key,
                nodes: nodes
                    .map(|node| {
                        let record = &node.record;
                        (record.site.clone(), record.node.clone(), node.identity)
                    })
                    .collect(),
            });
        }
        problems
    }

    fn double_problems(&self) -> impl Iterator<Item = Problem> {
        self.doubles.iter().filter_map(|(identity, sequence)| {
            let held = self.register.get(identity)?;
            if matches!(held.place, Place::Out(_)) {
                return None;
            }
            Some(Problem::TwoOfOneIdentity {
                site: held.node.record.site.clone(),
                node: held.node.record.node.clone(),
                identity: *identity,
                sequence: *sequence,
            })
        })
    }

    fn address_problems(&self) -> impl Iterator<Item = Problem> {
        self.nodes().flat_map(|node| {
            let site = &node.record.site;
            let presence = node.record.presence();
            presence
                .into_iter()
                .flat_map(addresses)
                .filter_map(|address| {
                    let why = self.check_address(site, address).err()?;
                    Some(Problem::AddressRefused {
                        site: site.clone(),
                        node: node.record.node.clone(),
                        address,
                        why,
                    })
                })
                .collect::<Vec<_>>()
        })
    }
}
