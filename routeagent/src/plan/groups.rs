//! Which group of next hops each prefix is led to.
//!
//! A gateway that dies is taken out of all groups by the kernel, with one request. For that the
//! routes must go on naming the group they name, though another set of gateways is in it now. So a
//! group is not known by its members: those that routes name already stay, as long as these agree.

use std::collections::{BTreeMap, BTreeSet};

use ip_network::IpNetwork;

use super::leads::free;
use crate::diff::Found;
use crate::settings::{GROUP_BASE, Kernel, Settings};
use crate::wanted::{Group, Nexthop, To, Way};

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) of: BTreeMap<IpNetwork, u32>,
    pub(super) groups: BTreeMap<u32, Group>,
}

/// `members` are numbers of next hops.
pub(super) fn assign(
    members: &BTreeMap<IpNetwork, BTreeSet<u32>>,
    found: &Found,
    settings: &Settings,
    kernel: Kernel,
) -> Assigned {
    let there = groups(found, kernel);
    let named = named(members, found, settings, &there);
    let mut kept = keep(members, &named, &there, kernel);
    adopt(members, &there, &mut kept, kernel);
    let mut used: BTreeSet<u32> = found.nexthops.keys().copied().collect();
    used.extend(&found.foreign_nexthops);
    let mut by_members: BTreeMap<BTreeSet<u32>, u32> = BTreeMap::new();
    for (id, group) in &kept {
        by_members.entry(group.members.clone()).or_insert(*id);
    }
    let mut of = BTreeMap::new();
    for (prefix, set) in members {
        let own = named.get(prefix).filter(|id| is(&kept, id, set));
        let id = match own.or_else(|| by_members.get(set)) {
            Some(id) => *id,
            None => {
                let id = free(GROUP_BASE, &bytes(set), &used);
                used.insert(id);
                by_members.insert(set.clone(), id);
                kept.insert(id, group(set, kernel));
                id
            }
        };
        of.insert(*prefix, id);
    }
    let wanted: BTreeSet<u32> = of.values().copied().collect();
    kept.retain(|id, _| wanted.contains(id));
    Assigned { of, groups: kept }
}

fn is(kept: &BTreeMap<u32, Group>, id: &u32, set: &BTreeSet<u32>) -> bool {
    kept.get(id).is_some_and(|group| group.members == *set)
}

fn group(set: &BTreeSet<u32>, kernel: Kernel) -> Group {
    Group {
        members: set.clone(),
        resilient: kernel.resilient,
    }
}

/// Of the kind that is wanted: one of the other kind cannot become it.
fn groups(found: &Found, kernel: Kernel) -> BTreeMap<u32, &Group> {
    let groups = found
        .nexthops
        .iter()
        .filter_map(|(id, nexthop)| match nexthop {
            Nexthop::Group(group) => Some((*id, group)),
            Nexthop::Hop(_) => None,
        });
    groups
        .filter(|(_, group)| group.resilient == kernel.resilient)
        .collect()
}

/// The group that the route of each prefix names now.
fn named(
    members: &BTreeMap<IpNetwork, BTreeSet<u32>>,
    found: &Found,
    settings: &Settings,
    there: &BTreeMap<u32, &Group>,
) -> BTreeMap<IpNetwork, u32> {
    let routes = found.routes.iter().filter_map(|(place, way)| match way {
        Way::Leads {
            to: To::Group(id), ..
        } if place.table == settings.table => Some((place.prefix, *id)),
        Way::Leads { .. } | Way::Unreachable | Way::Strange => None,
    });
    routes
        .filter(|(prefix, id)| members.contains_key(prefix) && there.contains_key(id))
        .collect()
}

/// Each group becomes what those that name it want: as it is for whoever wants it so, else for most.
fn keep(
    members: &BTreeMap<IpNetwork, BTreeSet<u32>>,
    named: &BTreeMap<IpNetwork, u32>,
    there: &BTreeMap<u32, &Group>,
    kernel: Kernel,
) -> BTreeMap<u32, Group> {
    let alive: BTreeSet<u32> = members.values().flatten().copied().collect();
    let mut votes: BTreeMap<u32, BTreeMap<&BTreeSet<u32>, usize>> = BTreeMap::new();
    for (prefix, id) in named {
        if let Some(set) = members.get(prefix) {
            *votes.entry(*id).or_default().entry(set).or_default() += 1;
        }
    }
    let kept = votes.into_iter().filter_map(|(id, votes)| {
        let living: BTreeSet<u32> = there
            .get(&id)?
            .members
            .intersection(&alive)
            .copied()
            .collect();
        let set = match votes.get_key_value(&living) {
            Some((set, _)) => *set,
            None => *votes.iter().max_by_key(|(_, count)| **count)?.0,
        };
        Some((id, group(set, kernel)))
    });
    kept.collect()
}

/// Groups that no route names any more, as after a flush, serve those that want just them.
fn adopt(
    members: &BTreeMap<IpNetwork, BTreeSet<u32>>,
    there: &BTreeMap<u32, &Group>,
    kept: &mut BTreeMap<u32, Group>,
    kernel: Kernel,
) {
    let wanted: BTreeSet<&BTreeSet<u32>> = members.values().collect();
    for set in wanted {
        let exists = kept.values().any(|group| group.members == *set);
        let fits = |(id, there): &(&u32, &&Group)| !kept.contains_key(id) && there.members == *set;
        if !exists && let Some((id, _)) = there.iter().find(fits) {
            kept.insert(*id, group(set, kernel));
        }
    }
}

fn bytes(set: &BTreeSet<u32>) -> Vec<u8> {
    set.iter().flat_map(|id| id.to_be_bytes()).collect()
}
