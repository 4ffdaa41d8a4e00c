//! From what is wanted and what is found to what has to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::guard::{FoundTable, SetName, Span, Table};
use crate::wanted::{Place, Rule, Wanted, Way, route_line};

/// What is ours in the kernel, and what our routes need there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub routes: BTreeMap<Place, Way>,
    pub rules: BTreeSet<Rule>,
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
    AddRoute(Place, Way),
    ReplaceRoute(Place, Way),
    RemoveRoute(Place, Way),
    AddRule(Rule),
    RemoveRule(Rule),
}

/// In an order in which at no moment less is guarded than before or after: what closes comes
/// first, what leads into the tunnel next, and what is taken away last.
pub fn diff(wanted: &Wanted, found: &Found) -> Vec<Change> {
    let mut changes = guard(&wanted.guard, found.guard.as_ref());
    let (closing, leading): (Vec<_>, Vec<_>) = wanted
        .routes
        .iter()
        .partition(|(_, way)| matches!(way, Way::Unreachable));
    for (place, way) in closing.into_iter().chain(leading) {
        changes.extend(route(place, way, found));
    }
    let missing = wanted.rules.difference(&found.rules).cloned();
    changes.extend(missing.map(Change::AddRule));
    let stale = found.rules.difference(&wanted.rules).cloned();
    changes.extend(stale.map(Change::RemoveRule));
    for (place, way) in &found.routes {
        if !wanted.routes.contains_key(place) {
            changes.push(Change::RemoveRoute(*place, way.clone()));
        }
    }
    changes
}

fn route(place: &Place, way: &Way, found: &Found) -> Option<Change> {
    if let Way::Device { device, .. } = way
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
