//! Closes the ways to other sites' prefixes while no daemon runs yet, from what the node's cache
//! holds: nothing leaves in clear between the moment the network comes up and the daemon's start.
//!
//! It only adds. What an earlier run left may carry traffic, and the daemon takes over what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use ip_network::IpNetwork;
use node::follow::{Cached, View};
use proto::entry::Role;
use proto::key::PublicKey;
use proto::ledger::Standing;

use crate::agent::{self, StartError};
use crate::diff::{Change, Found};
use crate::facts::{Exit, Facts, Gateways, Mode, Neighbour, Vxlan};
use crate::guard::{self, FoundTable, Table, merged};
use crate::held::{Held, Reach};
use crate::lock::{Holder, Lock};
use crate::netlink::nft::Nft;
use crate::netlink::request::Requests;
use crate::netlink::{nexthop, route};
use crate::plan::{Ground, plan};
use crate::settings::Settings;
use crate::wanted::{LAST_METRIC, MAIN_TABLE, Place, Way, route_line};

/// What is closed now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Of other sites, as the cache has them.
    pub prefixes: Vec<IpNetwork>,
    /// What was missing, one line each.
    pub added: Vec<String>,
    /// A daemon that runs here and does all this itself: nothing was done.
    pub kept_by: Option<Holder>,
}

#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("not all ways to other sites could be closed: {}", .0.join("; "))]
    Kernel(Vec<String>),
}

/// Blocks; needs no interface but the loopback, and no network.
pub fn close(known: &Cached, settings: &Settings) -> Result<Closed, CloseError> {
    let Some(facts) = facts(known) else {
        return Ok(Closed::default());
    };
    agent::need_privilege()?;
    let lock = match Lock::take() {
        Ok(lock) => lock,
        Err(StartError::Running(holder)) => {
            return Ok(Closed {
                kept_by: Some(holder),
                ..Closed::default()
            });
        }
        Err(error @ (StartError::Privilege | StartError::Kernel(_))) => return Err(error.into()),
    };
    let raw = Requests::new().map_err(StartError::Kernel)?;
    let mut closing = Closing::default();
    closing.guard(Nft::new(), &guard::closed(&facts, settings));
    closing.routes(&raw, &facts, settings);
    drop(lock);
    if closing.failed.is_empty() {
        Ok(closing.closed)
    } else {
        Err(CloseError::Kernel(closing.failed))
    }
}

/// `None` before anything of the mesh is known.
fn facts(known: &Cached) -> Option<Facts> {
    let view = &known.view;
    if view.standing == Standing::NoGrant && view.prefixes.is_empty() {
        return None;
    }
    let held = Held::of(view, |_| Reach::default());
    let presence = known.own.as_ref().and_then(|own| own.presence());
    Some(Facts {
        // The address of the last run: there may be no interface yet.
        lan: presence
            .and_then(|own| own.lan_address)
            .into_iter()
            .collect(),
        prefixes: held.remote,
        local: held.local,
        services: held.services,
        exit: Exit::Gateways(Gateways {
            gateways: gateways(view),
            mode: Mode::Direct,
            is_turning: false,
            vxlan: Vxlan {
                port: 0,
                own: view.identity,
            },
        }),
    })
}

/// A prefix that covers one of them is not routed.
fn gateways(view: &View) -> BTreeMap<PublicKey, Neighbour> {
    let all = view.peers.iter().filter_map(|(who, peer)| {
        let record = &peer.node.record;
        let is_ours = record.role == Role::Gateway && record.site == view.site;
        let lan = peer.lan_address.filter(|_| is_ours)?;
        let neighbour = Neighbour {
            name: record.node.clone(),
            lan,
            other: None,
            probes: Vec::new(),
        };
        Some((*who, neighbour))
    });
    all.collect()
}

#[derive(Default)]
struct Closing {
    closed: Closed,
    failed: Vec<String>,
}

impl Closing {
    fn guard(&mut self, nft: io::Result<Nft>, wanted: &Table) {
        let nft = match nft {
            Ok(nft) => nft,
            Err(error) => {
                let why = "load the module nf_tables";
                return self
                    .failed
                    .push(format!("nf_tables cannot be spoken to: {error}; {why}"));
            }
        };
        let found = match nft.found() {
            Ok(found) => found,
            Err(refused) => return self.failed.push(refused.to_string()),
        };
        for change in missing(wanted, found) {
            self.note(
                change.to_string(),
                nft.apply(&change).map_err(|refused| refused.to_string()),
            );
        }
    }

    fn routes(&mut self, raw: &Requests, facts: &Facts, settings: &Settings) {
        let ground = Ground {
            kernel: nexthop::knows(raw),
            ..Ground::default()
        };
        let found = match route::list(raw, &BTreeMap::new()) {
            Ok(found) => found,
            Err(refused) => return self.failed.push(refused.to_string()),
        };
        let wanted = plan(facts, &ground, &Found::default(), settings).routes;
        let last = |place: &Place| place.table == MAIN_TABLE && place.metric == LAST_METRIC;
        for (place, way) in wanted.into_iter().filter(|(place, _)| last(place)) {
            self.closed.prefixes.push(place.prefix);
            if found.get(&place) != Some(&Way::Unreachable) {
                let done = route::replace(raw, &place, &way, &BTreeMap::new());
                let line = format!("route {}", route_line(&place, &way));
                self.note(line, done.map_err(|refused| refused.to_string()));
            }
        }
    }

    fn note(&mut self, line: String, done: Result<(), String>) {
        match done {
            Ok(()) => self.closed.added.push(line),
            Err(refused) => self.failed.push(refused),
        }
    }
}

/// A table that guards already keeps its ways out, and learns what it does not know.
fn missing(wanted: &Table, found: Option<FoundTable>) -> Vec<Change> {
    let guards = |found: &FoundTable| {
        let mut chains = wanted.chains.iter();
        chains.all(|chain| {
            let there = found.shape.get(chain.name);
            let has = |comment| there.is_some_and(|there| there.comments.contains(&comment));
            chain.rules.iter().map(|rule| rule.comment()).all(has)
        })
    };
    let Some(found) = found.filter(guards) else {
        return vec![Change::Guard(wanted.clone())];
    };
    let none = BTreeSet::new();
    let changes = wanted.sets.iter().filter_map(|(set, spans)| {
        let there = found.sets.get(set).unwrap_or(&none);
        let all = merged(there.union(spans).copied().collect());
        let add: BTreeSet<_> = all.difference(there).copied().collect();
        let remove = there.difference(&all).copied().collect();
        (!add.is_empty()).then_some(Change::Elements {
            set: *set,
            add,
            remove,
        })
    });
    changes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::{SetName, Span};
    use crate::wanted::Family;

    const MESH: SetName = SetName::Mesh(Family::V4);

    fn table(prefixes: &[&str]) -> Table {
        let facts = Facts {
            lan: Vec::new(),
            prefixes: prefixes
                .iter()
                .map(|prefix| {
                    let remote = crate::facts::Remote {
                        site: "far".parse().unwrap(),
                        mtu: None,
                        by: BTreeSet::new(),
                    };
                    (prefix.parse().unwrap(), remote)
                })
                .collect(),
            local: Vec::new(),
            services: Vec::new(),
            exit: Exit::Gateways(Gateways {
                gateways: BTreeMap::new(),
                mode: Mode::Direct,
                is_turning: false,
                vxlan: Vxlan {
                    port: 0,
                    own: proto::key::SigningKey::from_seed(&[7; 32]).public(),
                },
            }),
        };
        guard::closed(&facts, &Settings::default())
    }

    fn as_found(table: &Table) -> FoundTable {
        FoundTable {
            sets: table.sets.clone(),
            shape: table.shape(),
        }
    }

    fn span(first: &str, last: &str) -> Span {
        Span {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        }
    }

    #[test]
    fn a_guard_that_is_there_only_learns_what_it_does_not_know() {
        let old = as_found(&table(&["10.2.0.0/16", "10.9.0.0/16"]));
        assert_eq!(missing(&table(&["10.2.0.0/16"]), Some(old.clone())), []);
        let changes = missing(&table(&["10.2.0.0/15"]), Some(old));
        let wider = Change::Elements {
            set: MESH,
            add: BTreeSet::from([span("10.2.0.0", "10.3.255.255")]),
            remove: BTreeSet::from([span("10.2.0.0", "10.2.255.255")]),
        };
        assert_eq!(changes, [wider]);
    }

    #[test]
    fn a_guard_that_lets_something_out_is_made_anew() {
        let wanted = table(&["10.2.0.0/16"]);
        let anew = [Change::Guard(wanted.clone())];
        assert_eq!(missing(&wanted, None), anew);
        let mut found = as_found(&wanted);
        found.shape.get_mut("leaving").unwrap().comments.pop();
        assert_eq!(missing(&wanted, Some(found)), anew);
    }
}
