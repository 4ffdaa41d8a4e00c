//! This host's own routes: what the route agent is told, and what it has to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use node::follow::View;
use proto::key::PublicKey;
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
    facts: watch::Sender<Arc<Facts>>,
}

impl Routes {
    pub(super) fn new(options: &Options, view: &View, port: u16) -> Routes {
        let tunnel = Tunnel {
            tun: options.tun.clone(),
            lan: Vec::new(),
            listen_port: port,
        };
        let none = roster::facts(view, &tunnel, &Carriers::default(), &BTreeMap::new());
        let (facts, _) = watch::channel(Arc::new(none));
        Routes {
            tun: options.tun.clone(),
            port,
            facts,
        }
    }

    /// Tells what has changed.
    pub(super) fn tell(
        &self,
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
        self.facts.send_if_modified(|known| {
            let is_new = **known != facts;
            if is_new {
                *known = Arc::new(facts);
            }
            is_new
        });
        Ok(())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// What is programmed stays.
    pub(super) fn stop(self) {}
}
