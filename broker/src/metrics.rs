//! What the broker counts, for Prometheus.

mod relay;

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub(crate) use relay::RelayMetrics;

pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) connections: Counter,
    /// Connections that have not said who they are.
    pub(crate) waiting: Gauge,
    pub(crate) sessions: Gauge,
    pub(crate) watchers: Gauge,
    pub(crate) closed: Family<Reason, Counter>,
    pub(crate) enrolments: Family<Outcome, Counter>,
    pub(crate) publications: Family<Outcome, Counter>,
    pub(crate) refusals: Family<Reason, Counter>,
    pub(crate) pushes: Counter,
    pub(crate) pushed_bytes: Counter,
    pub(crate) snapshots: Counter,
    pub(crate) relay: RelayMetrics,
    pub(crate) reflected: Counter,
    pub(crate) not_reflected: Counter,
    pub(crate) ledger_entries: Gauge,
    pub(crate) nodes: Gauge,
    pub(crate) store_up: Gauge,
    pub(crate) store_revision: Gauge,
    /// 1 when the authority's key is on this host.
    pub(crate) authority_near: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("causeway_broker"),
            connections: Counter::default(),
            waiting: Gauge::default(),
            sessions: Gauge::default(),
            watchers: Gauge::default(),
            closed: Family::default(),
            enrolments: Family::default(),
            publications: Family::default(),
            refusals: Family::default(),
            pushes: Counter::default(),
            pushed_bytes: Counter::default(),
            snapshots: Counter::default(),
            relay: RelayMetrics::default(),
            reflected: Counter::default(),
            not_reflected: Counter::default(),
            ledger_entries: Gauge::default(),
            nodes: Gauge::default(),
            store_up: Gauge::default(),
            store_revision: Gauge::default(),
            authority_near: Gauge::default(),
        };
        metrics.register_sessions();
        metrics.register_state();
        metrics.relay.register(&mut metrics.registry);
        metrics
    }

    fn register_sessions(&mut self) {
        let to = &mut self.registry;
        to.register("connections", "Connections taken", self.connections.clone());
        to.register(
            "waiting",
            "Connections that have not said who they are",
            self.waiting.clone(),
        );
        to.register("sessions", "Callers that are known", self.sessions.clone());
        to.register("watchers", "Sessions that watch", self.watchers.clone());
        to.register(
            "closed",
            "Connections closed, by reason",
            self.closed.clone(),
        );
        to.register("enrolments", "Requests to enrol", self.enrolments.clone());
        to.register(
            "publications",
            "Records handed in",
            self.publications.clone(),
        );
        to.register("refusals", "Requests refused", self.refusals.clone());
        to.register("pushes", "Batches sent to watchers", self.pushes.clone());
        to.register(
            "pushed_bytes",
            "Bytes sent to watchers",
            self.pushed_bytes.clone(),
        );
        to.register(
            "snapshots",
            "Watches that began with everything",
            self.snapshots.clone(),
        );
    }

    fn register_state(&mut self) {
        let to = &mut self.registry;
        to.register("reflected", "Reflector's answers", self.reflected.clone());
        to.register(
            "not_reflected",
            "Datagrams not answered",
            self.not_reflected.clone(),
        );
        to.register(
            "ledger_entries",
            "Entries of the ledger",
            self.ledger_entries.clone(),
        );
        to.register("nodes", "Records listed", self.nodes.clone());
        to.register(
            "store_up",
            "1 while the store can be written",
            self.store_up.clone(),
        );
        to.register(
            "store_revision",
            "How far the store has come",
            self.store_revision.clone(),
        );
        to.register(
            "authority_key_on_host",
            "1 when the authority's key is on this host",
            self.authority_near.clone(),
        );
    }

    pub(crate) fn handle_closed(&self, reason: &'static str) {
        self.closed.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_carries_the_brokers_name() {
        let metrics = Metrics::new();
        metrics.connections.inc();
        metrics.handle_closed("idle");
        let text = metrics.text().unwrap();
        assert!(text.contains("causeway_broker_connections_total 1"));
        assert!(text.contains(r#"causeway_broker_closed_total{reason="idle"} 1"#));
    }
}
