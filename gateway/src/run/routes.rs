//! This host's own routes: what the route agent is told, and what it has to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use node::follow::View;
use proto::key::PublicKey;
use proto::ledger::Standing;
use routeagent::facts::Facts;
use tokio::sync::watch;

use super::presence::Whereabouts;
use super::{Error, Options};
use crate::links::Carriers;
use crate::roster::{self, Tunnel};
use crate::status::Problem;

pub(super) struct Routes {
    tun: String,
    port: u16,
    settings: routeagent::Settings,
    /// Once there is something to tell.
    agent: Option<(routeagent::Handle, watch::Sender<Arc<Facts>>)>,
}

impl Routes {
    pub(super) fn new(options: &Options, port: u16) -> Routes {
        Routes {
            tun: options.tun.clone(),
            port,
            settings: routeagent::Settings {
                table: options.table,
                rule_priority: options.rule_priority,
                fwmark: options.fwmark,
                open_forward: options.open_forward,
                ..routeagent::Settings::default()
            },
            agent: None,
        }
    }

    /// Tells what has changed. The agent starts with the first facts that rest on a ledger: before,
    /// it would take down what an earlier run has left.
    pub(super) fn tell(
        &mut self,
        view: &View,
        whereabouts: &Whereabouts,
        carriers: &Carriers,
        mtus: &BTreeMap<PublicKey, u16>,
    ) -> Result<(), Error> {
        let tunnel = Tunnel {
            tun: self.tun.clone(),
            lan: whereabouts.lan().to_vec(),
            listen_port: self.port,
        };
        let facts = roster::facts(view, &tunnel, carriers, mtus);
        let Some((_, told)) = &self.agent else {
            if view.standing == Standing::NoGrant && view.prefixes.is_empty() {
                return Ok(());
            }
            let (told, known) = watch::channel(Arc::new(facts));
            self.agent = Some((routeagent::start(self.settings.clone(), known)?, told));
            return Ok(());
        };
        told.send_if_modified(|known| {
            let is_new = **known != facts;
            if is_new {
                *known = Arc::new(facts);
            }
            is_new
        });
        Ok(())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let Some((agent, _)) = &self.agent else {
            return Vec::new();
        };
        let problems = agent.problems().borrow().clone();
        let shown = problems.into_iter().map(|problem| Problem {
            what: problem.what,
            next: problem.next,
        });
        shown.collect()
    }

    /// What is programmed stays.
    pub(super) fn stop(self) {
        if let Some((agent, _)) = self.agent {
            agent.stop();
        }
    }
}
