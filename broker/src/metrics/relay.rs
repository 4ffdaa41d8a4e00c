//! What the relay counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Reason;

#[derive(Clone, Default)]
pub(crate) struct RelayMetrics {
    pub(crate) sessions: Gauge,
    pub(crate) pairs: Gauge,
    datagrams: Family<Way, Counter>,
    bytes: Family<Way, Counter>,
    dropped: Family<Reason, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    way: &'static str,
}

impl RelayMetrics {
    pub(super) fn register(&self, to: &mut Registry) {
        to.register(
            "relay_sessions",
            "Gateways that are at the relay",
            self.sessions.clone(),
        );
        to.register(
            "relay_pairs",
            "Pairs that both asked to be relayed",
            self.pairs.clone(),
        );
        to.register(
            "relay_datagrams",
            "Datagrams relayed, by the way they left",
            self.datagrams.clone(),
        );
        to.register(
            "relay_bytes",
            "Bytes of gateways relayed, by the way they left",
            self.bytes.clone(),
        );
        to.register(
            "relay_dropped",
            "Datagrams not relayed, by reason",
            self.dropped.clone(),
        );
    }

    pub(crate) fn handle_relayed(&self, way: &'static str, bytes: usize) {
        let way = Way { way };
        self.datagrams.get_or_create(&way).inc();
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.bytes.get_or_create(&way).inc_by(bytes);
    }

    pub(crate) fn handle_dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&Reason { reason }).inc();
    }
}
