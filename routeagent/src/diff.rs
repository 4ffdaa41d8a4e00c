//! From what is wanted and what is found to what has to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::guard::{FoundTable, SetName, Span, Table};
use crate::settings::VXLAN_DEVICE;
use crate::wanted::{
    Forwarding, Group, Neighbour, Nexthop, Place, Rule, To, Vxlan, Wanted, Way, nexthop_line,
    route_line,
};

/// What is ours in the kernel, and what our routes need there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub routes: BTreeMap<Place, Way>,
    pub rules: BTreeSet<Rule>,
    pub nexthops: BTreeMap<u32, Nexthop>,
    /// Numbers that somebody else has given.
    pub foreign_nexthops: BTreeSet<u32>,
    /// If it is ours.
    pub vxlan: Option<Vxlan>,
    /// Of that interface, as the next.
    pub forwarding: BTreeSet<Forwarding>,
    pub neighbours: BTreeSet<Neighbour>,
    pub guard: Option<FoundTable>,
    /// Interfaces that are up; nothing is routed by others.
    pub devices: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the nft table anew, whole, in one transaction.
    Guard(Table),
    /// Elements of a set come and go, in one transaction.
    Elements {
        set: SetName,
        add: BTreeSet<Span>,
        remove: BTreeSet<Span>,
    },
    RemoveVxlan,
    SetForwarding(Forwarding),
    RemoveForwarding(Forwarding),
    SetNeighbour(Neighbour),
    RemoveNeighbour(Neighbour),
    AddNexthop(u32, Nexthop),
    ReplaceNexthop(u32, Nexthop),
    RemoveNexthop(u32, Nexthop),
    AddRoute(Place, Way),
    ReplaceRoute(Place, Way),
    RemoveRoute(Place, Way),
    AddRule(Rule),
    RemoveRule(Rule),
}

/// In an order in which at no moment less is guarded than before or after: what closes comes
/// first, what leads into the mesh next, and what is taken away last. Before all a gateway that died
/// is taken out of the groups that live on without it, however much has to be closed for others.
pub fn diff(wanted: &Wanted, found: &Found) -> Vec<Change> {
    let hops = Hops::new(wanted, found);
    let mut changes = hops.at_once();
    let guard = guard(&wanted.guard, found.guard.as_ref());
    let (closing, leading): (Vec<_>, Vec<_>) = wanted
        .routes
        .iter()
        .partition(|(_, way)| matches!(way, Way::Unreachable));
    let routes = |changes: &mut Vec<Change>, routes: Vec<(&Place, &Way)>| {
        for (place, way) in routes {
            changes.extend(route(place, way, found));
        }
    };
    // While a table is made anew there is an instant without either: routes that close come before.
    let is_anew = found.guard.is_some() && guard.iter().any(|one| matches!(one, Change::Guard(_)));
    if is_anew {
        routes(&mut changes, closing);
        changes.extend(guard);
    } else {
        changes.extend(guard);
        routes(&mut changes, closing);
    }
    changes.extend(link_layer(wanted, found));
    changes.extend(hops.leading());
    routes(&mut changes, leading);
    let missing = wanted.rules.difference(&found.rules).cloned();
    changes.extend(missing.map(Change::AddRule));
    let stale = found.rules.difference(&wanted.rules).cloned();
    changes.extend(stale.map(Change::RemoveRule));
    for (place, way) in &found.routes {
        if !wanted.routes.contains_key(place) {
            changes.push(Change::RemoveRoute(*place, way.clone()));
        }
    }
    changes.extend(hops.stale());
    changes.extend(link_layer_stale(wanted, found));
    changes
}

/// What is to be done about next hops and groups, and when.
struct Hops<'a> {
    wanted: &'a BTreeMap<u32, Nexthop>,
    found: &'a BTreeMap<u32, Nexthop>,
    /// Taken out of their groups by the kernel, none of which is left without members.
    at_once: BTreeSet<u32>,
    /// Groups that lose members which are the last of others, and so cannot go yet.
    thinned: BTreeSet<u32>,
}

impl<'a> Hops<'a> {
    fn new(wanted: &'a Wanted, found: &'a Found) -> Hops<'a> {
        let (wanted, found) = (&wanted.nexthops, &found.nexthops);
        let gone = |id: &&u32| !wanted.contains_key(*id);
        let dead: BTreeSet<u32> = found
            .iter()
            .filter(|(_, nexthop)| matches!(nexthop, Nexthop::Hop(_)))
            .map(|(id, _)| id)
            .filter(gone)
            .copied()
            .collect();
        let last = found.values().filter_map(|nexthop| match nexthop {
            Nexthop::Group(group) => Some(&group.members).filter(|all| all.is_subset(&dead)),
            Nexthop::Hop(_) => None,
        });
        let last: BTreeSet<u32> = last.flatten().copied().collect();
        let mut hops = Hops {
            wanted,
            found,
            at_once: dead.difference(&last).copied().collect(),
            thinned: BTreeSet::new(),
        };
        let ids = wanted.keys().filter(|id| hops.is_thinned(id));
        hops.thinned = ids.copied().collect();
        hops
    }

    fn is_thinned(&self, id: &u32) -> bool {
        let there = self.found.get(id).map(|there| self.remains(there));
        let both = (self.wanted.get(id), there);
        let (Some(Nexthop::Group(group)), Some(Nexthop::Group(there))) = both else {
            return false;
        };
        let is_less = group.members.len() < there.members.len();
        is_less && group.members.is_subset(&there.members)
    }

    fn at_once(&self) -> Vec<Change> {
        let dead = self.at_once.iter().filter_map(|id| self.remove(id));
        let wanted = self.wanted.iter();
        let thinned = wanted.filter(|(id, _)| self.thinned.contains(*id));
        let thinned = thinned.map(|(id, group)| Change::ReplaceNexthop(*id, group.clone()));
        dead.chain(thinned).collect()
    }

    fn remove(&self, id: &u32) -> Option<Change> {
        let there = self.found.get(id)?;
        Some(Change::RemoveNexthop(*id, there.clone()))
    }

    /// Those that groups are made of come before the groups.
    fn of_kind(&self, groups: bool) -> impl Iterator<Item = Change> {
        let is_group = |nexthop: &Nexthop| matches!(nexthop, Nexthop::Group(_));
        let wanted = self.wanted.iter();
        let of_kind = wanted.filter(move |(_, nexthop)| is_group(nexthop) == groups);
        let of_kind = of_kind.filter(|(id, _)| !self.thinned.contains(*id));
        of_kind.filter_map(|(id, nexthop)| match self.found.get(id) {
            Some(there) if self.remains(there) == *nexthop => None,
            Some(_) => Some(Change::ReplaceNexthop(*id, nexthop.clone())),
            None => Some(Change::AddNexthop(*id, nexthop.clone())),
        })
    }

    fn leading(&self) -> Vec<Change> {
        self.of_kind(false).chain(self.of_kind(true)).collect()
    }

    /// What the kernel leaves of it when the dead ones are gone.
    fn remains(&self, there: &Nexthop) -> Nexthop {
        match there {
            Nexthop::Hop(hop) => Nexthop::Hop(hop.clone()),
            Nexthop::Group(group) => Nexthop::Group(Group {
                members: group.members.difference(&self.at_once).copied().collect(),
                resilient: group.resilient,
            }),
        }
    }

    /// Groups first: a hop takes its routes along, and may be the last of a group.
    fn stale(&self) -> Vec<Change> {
        let gone = |id: &&u32| !self.wanted.contains_key(*id) && !self.at_once.contains(*id);
        let is_group = |id: &&u32| matches!(self.found.get(*id), Some(Nexthop::Group(_)));
        let (groups, hops): (Vec<&u32>, Vec<&u32>) =
            self.found.keys().filter(gone).partition(is_group);
        let ids = groups.into_iter().chain(hops);
        ids.filter_map(|id| self.remove(id)).collect()
    }
}

fn link_layer(wanted: &Wanted, found: &Found) -> Vec<Change> {
    let entries = wanted.forwarding.difference(&found.forwarding).cloned();
    let neighbours = wanted.neighbours.difference(&found.neighbours).cloned();
    let entries = entries.map(Change::SetForwarding);
    entries
        .chain(neighbours.map(Change::SetNeighbour))
        .filter(|_| found.devices.contains(VXLAN_DEVICE))
        .collect()
}

/// What goes with the interface needs no word.
fn link_layer_stale(wanted: &Wanted, found: &Found) -> Vec<Change> {
    if wanted.vxlan.is_none() {
        return found.vxlan.iter().map(|_| Change::RemoveVxlan).collect();
    }
    let entries = found.forwarding.difference(&wanted.forwarding);
    let entries =
        entries.filter(|there| wanted.forwarding.iter().all(|entry| entry.mac != there.mac));
    let neighbours = found.neighbours.difference(&wanted.neighbours);
    let neighbours = neighbours.filter(|there| {
        wanted
            .neighbours
            .iter()
            .all(|neighbour| neighbour.address != there.address)
    });
    let entries = entries.cloned().map(Change::RemoveForwarding);
    entries
        .chain(neighbours.cloned().map(Change::RemoveNeighbour))
        .collect()
}

fn route(place: &Place, way: &Way, found: &Found) -> Option<Change> {
    if let Way::Leads {
        to: To::Device(device),
        ..
    } = way
        && !found.devices.contains(device)
    {
        return None;
    }
    match found.routes.get(place) {
        Some(there) if there == way => None,
        Some(_) => Some(Change::ReplaceRoute(*place, way.clone())),
        None => Some(Change::AddRoute(*place, way.clone())),
    }
}

fn guard(wanted: &Table, found: Option<&FoundTable>) -> Vec<Change> {
    let Some(found) = found.filter(|found| found.shape == wanted.shape()) else {
        return vec![Change::Guard(wanted.clone())];
    };
    let none = BTreeSet::new();
    let mut changes = vec![];
    for (name, spans) in &wanted.sets {
        let there = found.sets.get(name).unwrap_or(&none);
        let add: BTreeSet<Span> = spans.difference(there).copied().collect();
        let remove: BTreeSet<Span> = there.difference(spans).copied().collect();
        if !add.is_empty() || !remove.is_empty() {
            changes.push(Change::Elements {
                set: *name,
                add,
                remove,
            });
        }
    }
    changes
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Guard(_) => out.write_str("nft table inet causeway made anew"),
            Change::Elements { set, add, remove } => {
                write!(out, "nft set {set}: {} in, {} out", add.len(), remove.len())
            }
            Change::RemoveVxlan => write!(out, "link del {VXLAN_DEVICE}"),
            Change::SetForwarding(entry) => write!(out, "fdb replace {entry}"),
            Change::RemoveForwarding(entry) => write!(out, "fdb del {entry}"),
            Change::SetNeighbour(neighbour) => write!(out, "neigh replace {neighbour}"),
            Change::RemoveNeighbour(neighbour) => write!(out, "neigh del {neighbour}"),
            Change::AddNexthop(id, nexthop) => {
                write!(out, "nexthop add {}", nexthop_line(*id, nexthop))
            }
            Change::ReplaceNexthop(id, nexthop) => {
                write!(out, "nexthop replace {}", nexthop_line(*id, nexthop))
            }
            Change::RemoveNexthop(id, nexthop) => {
                write!(out, "nexthop del {}", nexthop_line(*id, nexthop))
            }
            Change::AddRoute(place, way) => write!(out, "route add {}", route_line(place, way)),
            Change::ReplaceRoute(place, way) => {
                write!(out, "route replace {}", route_line(place, way))
            }
            Change::RemoveRoute(place, way) => {
                write!(out, "route del {}", route_line(place, way))
            }
            Change::AddRule(rule) => write!(out, "rule add {rule}"),
            Change::RemoveRule(rule) => write!(out, "rule del {rule}"),
        }
    }
}
