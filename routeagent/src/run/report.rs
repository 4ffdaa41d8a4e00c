//! From what is known to what is shown.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ip_network::IpNetwork;
use node::status::{Kernel, Prefix, Problem, broker, broker_problem, millis, view_problems};
use proto::key::PublicKey;
use proto::ledger::{PrefixState, SitePrefix};

use super::{Daemon, PATIENCE};
use crate::facts;
use crate::health::{GatewayHealth, GatewayState, ProbeHealth};
use crate::status::{Gateway, Mode, Status};

impl Daemon {
    pub(super) fn status(&self, now: Duration) -> Status {
        let view = &*self.view;
        let uptime = now.saturating_sub(self.begun);
        let mut problems = view_problems(view);
        problems.extend(self.problems(now));
        if uptime >= PATIENCE {
            problems.extend(broker_problem(
                &view.broker,
                "come once one can be reached, if need be through a gateway of this site",
            ));
        }
        let closed = self.kernel.closed();
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
        Status {
            mesh: view.mesh.to_string(),
            site: view.site.to_string(),
            node: view.node.to_string(),
            role: "agent".to_owned(),
            identity: view.identity.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: uptime.as_secs(),
            ready: self.is_ready.load(Ordering::Relaxed),
            broker: broker(view),
            lan_address: text(self.place.own()),
            other_lan_address: text(self.place.other()),
            region: self.standing.region.clone(),
            zone: self.standing.zone.clone(),
            kernel: Kernel {
                table: self.options.table,
                rule_priority: self.options.rule_priority,
                vxlan_port: self.options.vxlan_port,
            },
            mode: self.show_mode(),
            gateways: self.show_gateways(now),
            prefixes: view
                .prefixes
                .iter()
                .map(|owned| self.show_prefix(owned, &closed))
                .collect(),
            problems,
            remarks: self.remarks(),
        }
    }

    fn remarks(&self) -> Vec<Problem> {
        let family = self.missing_family(&self.kernel.closed());
        self.place.remark().into_iter().chain(family).collect()
    }

    fn show_mode(&self) -> Mode {
        let used = match self.mode.used() {
            None => "undecided",
            Some(facts::Mode::Direct) => "direct",
            Some(facts::Mode::Vxlan) => "vxlan",
        };
        Mode {
            asked: self.mode.asked().name().to_owned(),
            used: used.to_owned(),
            why: self.mode.why().sentence(),
        }
    }

    fn show_gateways(&self, now: Duration) -> Vec<Gateway> {
        let choice = self.health.choice();
        let carrying = |who: &PublicKey| {
            let mut sites = self.view.prefixes.iter().map(|owned| &owned.site);
            sites.any(|site| *site != self.view.site && choice.of(site).by.contains(who))
        };
        let all = choice.gateways.iter();
        let mut all: Vec<Gateway> = all
            .map(|(who, health)| self.show_gateway(who, health, carrying(who), now))
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn show_gateway(
        &self,
        who: &PublicKey,
        health: &GatewayHealth,
        carries: bool,
        now: Duration,
    ) -> Gateway {
        let way = match self.mode.programmed() {
            facts::Mode::Direct => health.direct,
            facts::Mode::Vxlan => health.vxlan,
        };
        let age = |at: Duration| now.saturating_sub(at).as_secs();
        Gateway {
            name: health.name.to_string(),
            identity: who.to_string(),
            address: health.address.to_string(),
            other_address: health.other_lan.map(|address| address.to_string()),
            state: health.state.name().to_owned(),
            rtt_ms: health.rtt.map(millis),
            reaches: health.reaches,
            probe: found(way).to_owned(),
            direct: found(health.direct).to_owned(),
            vxlan: found(health.vxlan).to_owned(),
            forwards: health.forwards,
            last_heard_s: health.last_heard.map(age),
            held_down: health.state == GatewayState::HeldDown,
            carries,
        }
    }

    fn show_prefix(&self, owned: &SitePrefix, closed: &BTreeSet<IpNetwork>) -> Prefix {
        let chosen = self.choice.of(&owned.site);
        let state = match &owned.state {
            PrefixState::Owned if owned.site == self.view.site => "local",
            // Not what gateways say they reach: what this node's kernel has a way for.
            PrefixState::Owned if !chosen.by.is_empty() && !closed.contains(&owned.prefix) => {
                "reachable"
            }
            PrefixState::Owned => "unreachable",
            PrefixState::Quarantined => "quarantined",
            PrefixState::Overlaps { .. } | PrefixState::Refused(_) => "refused",
        };
        let counts = state == "reachable";
        let name = |who: &PublicKey| self.gateways.get(who).map(|one| one.name.to_string());
        let mut gateways: Vec<String> = chosen
            .by
            .iter()
            .filter(|_| counts)
            .filter_map(name)
            .collect();
        gateways.sort();
        Prefix {
            prefix: owned.prefix.to_string(),
            site: owned.site.to_string(),
            state: state.to_owned(),
            gateways,
            by_siblings: false,
            mtu: chosen.mtu.filter(|_| counts),
        }
    }
}

/// What the probes of one way have found.
const fn found(way: ProbeHealth) -> &'static str {
    match way.passed {
        Some(true) => "passed",
        Some(false) => "failed",
        None => "untried",
    }
}
