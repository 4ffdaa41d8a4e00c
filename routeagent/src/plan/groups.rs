//! Which group of next hops each prefix is led to.
//!
//! A gateway that dies is taken out of all groups by the kernel, with one request. For that the
//! routes must go on naming the group they name, though another set of gateways is in it now. So a
//! group is not known by its members: those that routes name already stay, as long as these agree.
//!
//! No group serves both families: the kernel refuses IPv4 hops in a group that a route of IPv6
//! names, and both may want the same members now and others in the next moment.

use std::collections::{BTreeMap, BTreeSet};

use ip_network::IpNetwork;

use super::leads::free;
use crate::diff::Found;
use crate::settings::{GROUP_BASE, Kernel, Settings};
use crate::wanted::{Family, Group, Nexthop, To, Way};

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Assigned {
    pub(super) of: BTreeMap<IpNetwork, u32>,
    pub(super) groups: BTreeMap<u32, Group>,
}

/// Groups that stay or come, with whose they are.
type Kept = BTreeMap<u32, (Family, Group)>;
type Members = BTreeMap<IpNetwork, BTreeSet<u32>>;

/// `members` are numbers of next hops.
pub(super) fn assign(
    members: &Members,
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
    let mut by_members: BTreeMap<(Family, BTreeSet<u32>), u32> = BTreeMap::new();
    for (id, (family, group)) in &kept {
        let key = (*family, group.members.clone());
        by_members.entry(key).or_insert(*id);
    }
    let mut of = BTreeMap::new();
    for (prefix, set) in members {
        let key = (family(prefix), set.clone());
        let own = named.get(prefix).filter(|id| is(&kept, id, set));
        let id = match own.or_else(|| by_members.get(&key)) {
            Some(id) => *id,
            None => {
                let id = free(GROUP_BASE, &bytes(&key), &used);
                used.insert(id);
                kept.insert(id, (key.0, group(set, kernel)));
                by_members.insert(key, id);
                id
            }
        };
        of.insert(*prefix, id);
    }
    let wanted: BTreeSet<u32> = of.values().copied().collect();
    let kept = kept.into_iter().filter(|(id, _)| wanted.contains(id));
    Assigned {
        of,
        groups: kept.map(|(id, (_, group))| (id, group)).collect(),
    }
}

fn family(prefix: &IpNetwork) -> Family {
    Family::of(prefix.network_address())
}

fn is(kept: &Kept, id: &u32, set: &BTreeSet<u32>) -> bool {
    kept.get(id).is_some_and(|(_, group)| group.members == *set)
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

/// The group that the route of each prefix names now. One that IPv6 names is no other's, whatever
/// an earlier release made of it.
fn named(
    members: &Members,
    found: &Found,
    settings: &Settings,
    there: &BTreeMap<u32, &Group>,
) -> BTreeMap<IpNetwork, u32> {
    let routes = found.routes.iter().filter_map(|(place, way)| match way {
        Way::Leads {
            to: To::Group(id), ..
        } => Some((place, *id)),
        Way::Leads { .. } | Way::Unreachable | Way::Strange => None,
    });
    let of_v6 = routes.clone();
    let of_v6 = of_v6.filter(|(place, _)| family(&place.prefix) == Family::V6);
    let of_v6: BTreeSet<u32> = of_v6.map(|(_, id)| id).collect();
    routes
        .filter(|(place, id)| place.table == settings.table && there.contains_key(id))
        .map(|(place, id)| (place.prefix, id))
        .filter(|(prefix, _)| members.contains_key(prefix))
        .filter(|(prefix, id)| family(prefix) == Family::V6 || !of_v6.contains(id))
        .collect()
}

/// Each group becomes what those that name it want: as it is for whoever wants it so, else for most.
fn keep(
    members: &Members,
    named: &BTreeMap<IpNetwork, u32>,
    there: &BTreeMap<u32, &Group>,
    kernel: Kernel,
) -> Kept {
    let alive: BTreeSet<u32> = members.values().flatten().copied().collect();
    let mut votes: BTreeMap<(u32, Family), BTreeMap<&BTreeSet<u32>, usize>> = BTreeMap::new();
    for (prefix, id) in named {
        if let Some(set) = members.get(prefix) {
            let votes = votes.entry((*id, family(prefix))).or_default();
            *votes.entry(set).or_default() += 1;
        }
    }
    let kept = votes.into_iter().filter_map(|((id, family), votes)| {
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
        Some((id, (family, group(set, kernel))))
    });
    kept.collect()
}

/// Groups that no route names any more, as after a flush, serve those that want just them: of
/// several the one that was made for them.
fn adopt(members: &Members, there: &BTreeMap<u32, &Group>, kept: &mut Kept, kernel: Kernel) {
    let wanted = members
        .iter()
        .map(|(prefix, set)| (family(prefix), set))
        .collect::<BTreeSet<_>>();
    for (family, set) in wanted {
        let is_it = |(of, group): &(Family, Group)| *of == family && group.members == *set;
        let exists = kept.values().any(is_it);
        let fits = |(id, there): &(&u32, &&Group)| !kept.contains_key(id) && there.members == *set;
        let own = free(GROUP_BASE, &bytes(&(family, set.clone())), &BTreeSet::new());
        let own = there.get_key_value(&own).filter(fits);
        let found = own.or_else(|| there.iter().find(fits));
        if !exists && let Some((id, _)) = found {
            kept.insert(*id, (family, group(set, kernel)));
        }
    }
}

fn bytes((family, set): &(Family, BTreeSet<u32>)) -> Vec<u8> {
    let family = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    let ids = set.iter().flat_map(|id| id.to_be_bytes());
    ids.chain([family]).collect()
}
