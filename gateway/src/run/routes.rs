//! This host's own routes: what the route agent is told, and what it has to say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use node::follow::View;
use node::status::Problem;
use proto::key::PublicKey;
use proto::ledger::Standing;
use routeagent::facts::Facts;
use tokio::sync::watch;

use super::agents::Kernel;
use super::{Daemon, Error, Options};
use crate::links::Carriers;
use crate::roster::{self, Tunnel};

pub(super) struct Routes {
    agent: routeagent::Handle,
    told: watch::Sender<Option<Arc<Facts>>>,
}

impl Routes {
    /// First of all that is started: it fails where another gateway has this network namespace, and
    /// that must come before anybody hears of us. It may take a second, off the event loop.
    pub(super) async fn start(options: &Options) -> Result<Routes, Error> {
        let settings = routeagent::Settings {
            table: options.table,
            rule_priority: options.rule_priority,
            fwmark: options.fwmark,
            open_forward: options.open_forward,
            ..routeagent::Settings::default()
        };
        let (told, known) = watch::channel(None);
        let started = tokio::task::spawn_blocking(move || routeagent::start(settings, known));
        let agent = started
            .await
            .map_err(|_| Error::Ended("the start of the routes has ended"))??;
        Ok(Routes { agent, told })
    }

    /// Tells what has changed, from the first facts on that rest on a ledger: before, the agent would
    /// take down what an earlier run has left.
    pub(super) fn tell(
        &self,
        view: &View,
        tunnel: &Tunnel,
        carriers: &Carriers,
        mtus: &BTreeMap<PublicKey, u16>,
    ) {
        if view.standing == Standing::NoGrant && view.prefixes.is_empty() {
            return;
        }
        let facts = roster::facts(view, tunnel, carriers, mtus);
        self.told.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(&facts);
            if is_new {
                *known = Some(Arc::new(facts));
            }
            is_new
        });
    }

    /// Whether the kernel forwards what it was last told of, or it is known why not.
    pub(super) fn are_applied(&self) -> bool {
        let told = self.told.borrow();
        told.as_ref()
            .is_some_and(|facts| self.agent.has_applied(facts))
    }

    /// As agents are told.
    fn kernel(&self) -> Kernel {
        Kernel {
            is_applied: self.are_applied(),
            stops: self.agent.problems().borrow().iter().any(|one| one.stops),
        }
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

impl Daemon {
    /// Our own kernel, and the agents.
    pub(super) fn tell_facts(&mut self, now: Duration) {
        let carriers = self.links.carriers();
        if std::mem::take(&mut self.facts_are_old) | self.hellos.take_change() {
            let place = Tunnel {
                tun: self.options.tun.clone(),
                lan: self.whereabouts.lan().to_vec(),
                listen_port: self.plane.port,
                vxlan_port: self.options.vxlan_port,
                agents: self.hellos.reached(),
            };
            self.routes.tell(&self.view, &place, carriers, &self.mtus);
            self.hellos.handle_lan(self.whereabouts.lan());
            self.hellos.handle_sites();
        }
        let kernel = self.routes.kernel();
        self.hellos.sweep(kernel, carriers, &self.mtus, now);
    }
}
