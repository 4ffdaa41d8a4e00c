//! What this node's kernel is told, and what has come of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ip_network::IpNetwork;
use node::follow::View;
use node::status::Problem;
use proto::key::PublicKey;
use proto::lan::{ProbeBy, probe_address};
use proto::ledger::Standing;
use tokio::sync::watch;

use super::Options;
use super::gateways::Gateways;
use super::place::Place;
use crate::facts::{self, Exit, Facts, Mode, Neighbour, Vxlan};
use crate::health::Choice;
use crate::held::{Held, Reach};
use crate::{Settings, StartError};

pub(super) struct Kernel {
    agent: crate::Handle,
    told: watch::Sender<Option<Arc<Facts>>>,
    vxlan: Vxlan,
    /// An earlier run has left routes: they are better than what is known before gateways answer.
    has_routes: bool,
}

/// What facts are made from.
pub(super) struct Known<'a> {
    pub(super) view: &'a View,
    pub(super) place: &'a Place,
    pub(super) gateways: &'a Gateways,
    pub(super) choice: &'a Choice,
    pub(super) mode: Mode,
    pub(super) is_turning: bool,
}

impl Kernel {
    /// First of all that is started: it fails where another has this network namespace. Blocks.
    pub(super) fn start(options: &Options, own: PublicKey) -> Result<Kernel, StartError> {
        let settings = Settings {
            table: options.table,
            rule_priority: options.rule_priority,
            fwmark: options.fwmark,
            ..Settings::default()
        };
        let (told, known) = watch::channel(None);
        let agent = crate::start(settings, known)?;
        Ok(Kernel {
            agent,
            told,
            vxlan: Vxlan {
                port: options.vxlan_port,
                own,
            },
            has_routes: crate::has_routes(),
        })
    }

    /// Tells what has changed, from the first facts on that rest on a ledger. Before gateways have
    /// answered, or had time to, only a kernel that has nothing yet is told, so that nothing leaves
    /// in clear.
    pub(super) fn tell(&self, known: &Known<'_>) {
        let is_blind = known.view.standing == Standing::NoGrant && known.view.prefixes.is_empty();
        if is_blind || self.has_routes && !known.choice.settled {
            return;
        }
        let facts = self.facts(known);
        self.told.send_if_modified(|told| {
            let is_new = told.as_deref() != Some(&facts);
            if is_new {
                *told = Some(Arc::new(facts));
            }
            is_new
        });
    }

    fn facts(&self, known: &Known<'_>) -> Facts {
        let held = Held::of(known.view, |site| {
            let chosen = known.choice.of(site);
            Reach {
                mtu: chosen.mtu,
                by: chosen.by,
            }
        });
        let gateways = known.gateways.iter().map(|(who, gateway)| {
            let health = known.choice.gateways.get(who);
            let other = health.and_then(|health| health.other_lan);
            let other = other.filter(|other| may_be_used(*other, gateway.lan, known.place));
            let by = |by, mode| (probe_address(who, by, gateway.lan), mode);
            let mut probes = Vec::new();
            if known.place.is_near(gateway.lan) {
                probes.push(by(ProbeBy::Direct, Mode::Direct));
            }
            if known.mode == Mode::Vxlan {
                probes.push(by(ProbeBy::Vxlan, Mode::Vxlan));
            }
            let neighbour = Neighbour {
                name: gateway.name.clone(),
                lan: gateway.lan,
                other,
                probes,
            };
            (*who, neighbour)
        });
        Facts {
            lan: known.place.lan().to_vec(),
            prefixes: held.remote,
            local: held.local,
            services: held.services,
            exit: Exit::Gateways(facts::Gateways {
                gateways: gateways.collect(),
                mode: known.mode,
                is_turning: known.is_turning,
                vxlan: self.vxlan,
            }),
        }
    }

    pub(super) fn is_told(&self) -> bool {
        self.told.borrow().is_some()
    }

    /// Whether the kernel forwards what it was last told of, or it is known why not.
    pub(super) fn is_applied(&self) -> bool {
        let told = self.told.borrow();
        told.as_ref()
            .is_some_and(|facts| self.agent.has_applied(facts))
    }

    /// Prefixes that no way leads to, though gateways reach their sites.
    pub(super) fn closed(&self) -> BTreeSet<IpNetwork> {
        self.agent.closed().borrow().clone()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let problems = self.agent.problems().borrow().clone();
        let shown = problems.into_iter().map(|problem| Problem {
            what: problem.what,
            next: problem.next,
            stops: problem.stops,
        });
        shown.collect()
    }

    /// What is programmed stays.
    pub(super) fn stop(self) {
        self.agent.stop();
    }
}

/// A gateway says this of itself, and it becomes a next hop: it must be a neighbour of the other
/// family, and not this node.
pub(super) fn may_be_used(other: IpAddr, lan: IpAddr, place: &Place) -> bool {
    other.is_ipv4() != lan.is_ipv4() && place.is_near(other) && !place.is_own(other)
}
