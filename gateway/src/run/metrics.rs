//! The status as Prometheus reads it.

use node::local::metrics::Page;

use crate::drops::DropReason;
use crate::status::{Link, Status};

/// One family after the other, as the format wants it.
pub(super) fn text(status: &Status) -> String {
    let mut page = Page::new("causeway_gateway");
    page.gauge("ready", "1 once the gateway carries what it can");
    page.line(&[], u8::from(status.ready));
    page.gauge("uptime_seconds", "Since the start");
    page.line(&[], status.uptime_s);
    page.gauge("broker_connected", "1 while a broker is connected");
    page.line(&[], u8::from(status.broker.state == "connected"));
    page.gauge(
        "problems",
        "What a person should look at; see causeway status",
    );
    page.line(&[], status.problems.len());
    links(&mut page, &status.links);
    page.gauge(
        "prefix_reachable",
        "1 while packets for the prefix are carried",
    );
    for prefix in &status.prefixes {
        let is_reachable = prefix.state == "reachable" || prefix.state == "local";
        let labels = [
            ("site", prefix.site.as_str()),
            ("prefix", prefix.prefix.as_str()),
        ];
        page.line(&labels, u8::from(is_reachable));
    }
    page.gauge("agents", "Agents of this site, by whether they are heard");
    for state in ["up", "silent", "never"] {
        let of_state = status.agents.iter().filter(|agent| agent.state == state);
        page.line(&[("state", state)], of_state.count());
    }
    page.counter("dropped_packets_total", "Packets dropped, by reason");
    let mut drops = status.drops.clone();
    for reason in DropReason::ALL {
        drops.entry(reason.label().to_owned()).or_default();
    }
    for (reason, count) in drops {
        page.line(&[("reason", &reason)], count);
    }
    page.text()
}

fn links(page: &mut Page, links: &[Link]) {
    type Value = fn(&Link) -> Option<f64>;
    let gauges: [(&str, &str, Value); 7] = [
        ("link_up", "1 while packets pass both ways", |link| {
            Some(f64::from(u8::from(link.state == "up")))
        }),
        (
            "link_relayed",
            "1 while the path in use is a relay",
            |link| Some(f64::from(u8::from(link.path.as_deref() == Some("relay")))),
        ),
        ("link_held_down", "1 while it is used last", |link| {
            Some(f64::from(u8::from(link.held_down)))
        }),
        ("link_rtt_seconds", "Round trip", |link| {
            link.rtt_ms.map(|rtt| rtt / 1000.0)
        }),
        ("link_jitter_seconds", "Of the round trip", |link| {
            link.jitter_ms.map(|jitter| jitter / 1000.0)
        }),
        (
            "link_loss_ratio",
            "Of the hellos of the last minute",
            |link| Some(link.loss),
        ),
        (
            "link_mtu_bytes",
            "Inner packets that the path carries",
            |link| Some(f64::from(link.mtu)),
        ),
    ];
    let counters: [(&str, &str, Value); 4] = [
        ("link_sent_bytes_total", "Outer bytes", |link| {
            Some(link.tx_bytes as f64)
        }),
        ("link_received_bytes_total", "Outer bytes", |link| {
            Some(link.rx_bytes as f64)
        }),
        ("link_failovers_total", "Times it went down", |link| {
            Some(link.failovers as f64)
        }),
        ("link_down_seconds_total", "How long it was down", |link| {
            Some(link.down_ms as f64 / 1000.0)
        }),
    ];
    let all = gauges
        .into_iter()
        .map(|family| ("gauge", family))
        .chain(counters.into_iter().map(|family| ("counter", family)));
    for (kind, (name, help, value)) in all {
        page.family(name, help, kind);
        for link in links {
            if let Some(value) = value(link) {
                page.line(&[("site", &link.site), ("gateway", &link.gateway)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_carry_their_names_and_every_reason_is_listed() {
        let mut status = Status {
            links: vec![Link {
                site: "berlin".to_owned(),
                gateway: "gate-1".to_owned(),
                state: "up".to_owned(),
                rtt_ms: Some(1.5),
                failovers: 2,
                ..Link::default()
            }],
            ..Status::default()
        };
        status.drops.insert("udp_replay".to_owned(), 7);
        let text = text(&status);
        for line in [
            "causeway_gateway_link_up{site=\"berlin\",gateway=\"gate-1\"} 1",
            "causeway_gateway_link_rtt_seconds{site=\"berlin\",gateway=\"gate-1\"} 0.0015",
            "causeway_gateway_link_failovers_total{site=\"berlin\",gateway=\"gate-1\"} 2",
            "causeway_gateway_dropped_packets_total{reason=\"udp_replay\"} 7",
            "causeway_gateway_ready 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("link_jitter_seconds{"),
            "nothing is known of it"
        );
        let reasons = text.matches("dropped_packets_total{").count();
        assert_eq!(reasons, DropReason::ALL.len());
    }
}
