//! The status as Prometheus reads it.

use node::local::metrics::Page;

use crate::status::{Gateway, Status};

pub(super) fn text(status: &Status) -> String {
    let mut page = Page::new("causeway_agent");
    page.gauge("ready", "1 once the kernel sends what it can");
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
    page.gauge("mode", "1 for the way that packets go to the gateways");
    for mode in ["direct", "vxlan", "undecided"] {
        page.line(&[("mode", mode)], u8::from(status.mode.used == mode));
    }
    gateways(&mut page, &status.gateways);
    page.gauge(
        "prefix_reachable",
        "1 while packets for the prefix are sent to a gateway",
    );
    for prefix in &status.prefixes {
        let is_reachable = prefix.state == "reachable" || prefix.state == "local";
        let labels = [
            ("site", prefix.site.as_str()),
            ("prefix", prefix.prefix.as_str()),
        ];
        page.line(&labels, u8::from(is_reachable));
    }
    page.text()
}

fn gateways(page: &mut Page, gateways: &[Gateway]) {
    type Value = fn(&Gateway) -> Option<f64>;
    let families: [(&str, &str, Value); 5] = [
        ("gateway_up", "1 while it answers", |one| {
            Some(flag_of(one.state == "up" || one.state == "held_down"))
        }),
        ("gateway_held_down", "1 while it is used last", |one| {
            Some(flag_of(one.held_down))
        }),
        ("gateway_carries", "1 while packets are sent to it", |one| {
            Some(flag_of(one.carries))
        }),
        ("gateway_rtt_seconds", "Round trip of a hello", |one| {
            one.rtt_ms.map(|rtt| rtt / 1000.0)
        }),
        (
            "gateway_reaches_sites",
            "How many sites it says it reaches",
            |one| Some(one.reaches as f64),
        ),
    ];
    for (name, help, value) in families {
        page.gauge(name, help);
        for gateway in gateways {
            if let Some(value) = value(gateway) {
                page.line(&[("gateway", &gateway.name)], value);
            }
        }
    }
}

fn flag_of(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_carry_their_names_and_what_is_unknown_is_left_out() {
        let mut status = Status::default();
        status.mode.used = "vxlan".to_owned();
        status.gateways = vec![Gateway {
            name: "gate-1".to_owned(),
            state: "up".to_owned(),
            reaches: 3,
            ..Gateway::default()
        }];
        let text = text(&status);
        for line in [
            "causeway_agent_ready 0",
            "causeway_agent_mode{mode=\"vxlan\"} 1",
            "causeway_agent_mode{mode=\"direct\"} 0",
            "causeway_agent_gateway_up{gateway=\"gate-1\"} 1",
            "causeway_agent_gateway_reaches_sites{gateway=\"gate-1\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            !text.contains("gateway_rtt_seconds{"),
            "nothing is known of it"
        );
    }
}
