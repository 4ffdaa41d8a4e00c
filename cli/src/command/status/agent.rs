//! An agent's status as a person reads it.

use routeagent::status::{Gateway, Status};

use super::page::{NOTHING, age_of, broker, entry, is_lost, place, prefixes, readiness};
use crate::print::{self, Table};
use crate::time;

/// What the exit code tells.
pub(super) fn is_well(status: &Status) -> bool {
    status.ready
        && status.broker.state == "connected"
        && status.gateways.iter().all(answers)
        && !status.prefixes.iter().any(is_lost)
        && !status.problems.iter().any(|problem| problem.stops)
}

fn answers(gateway: &Gateway) -> bool {
    gateway.state == "up" || gateway.state == "held_down"
}

pub(super) fn text(status: &Status) -> String {
    let mut text = head(status);
    if !status.gateways.is_empty() {
        text.push('\n');
        text.push_str(&gateways(&status.gateways));
    }
    if !status.prefixes.is_empty() {
        text.push('\n');
        text.push_str(&prefixes(&status.prefixes));
    }
    text.push('\n');
    for remark in &status.remarks {
        text.push_str(&entry("NOTE", remark));
        text.push('\n');
    }
    text.push_str(&verdict(status));
    text
}

/// While it starts.
pub(super) fn progress(status: &Status) -> String {
    if status.gateways.is_empty()
        && let Some(problem) = status.problems.first()
    {
        return problem.what.clone();
    }
    format!("{} of {} answer", answering(status), gateways_of(status))
}

fn answering(status: &Status) -> usize {
    status.gateways.iter().filter(|one| answers(one)).count()
}

fn gateways_of(status: &Status) -> String {
    print::count(status.gateways.len(), "gateway", "gateways")
}

fn head(status: &Status) -> String {
    let addresses = [&status.lan_address, &status.other_lan_address];
    let addresses: Vec<&str> = addresses
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let lines = [
        format!(
            "agent {} of site {}, causeway {}, {}, up for {}",
            status.node,
            status.site,
            status.version,
            readiness(status.ready, status.uptime_s),
            time::words(status.uptime_s)
        ),
        format!("mesh    {}", status.mesh),
        format!("place   {}", place(&status.region, &status.zone)),
        format!("broker  {}", broker(&status.broker)),
        format!("address {}", print::list(&addresses)),
        format!("mode    {}", mode(status)),
    ];
    lines.join("\n") + "\n"
}

fn mode(status: &Status) -> String {
    let mode = &status.mode;
    if mode.asked == mode.used || mode.asked == "auto" {
        format!("{} ({}): {}", mode.used, mode.asked, mode.why)
    } else {
        format!("{} ({} was asked for): {}", mode.used, mode.asked, mode.why)
    }
}

fn gateways(gateways: &[Gateway]) -> String {
    let mut table = Table::new([
        "gateway", "address", "state", "rtt", "reaches", "way", "carries", "heard",
    ]);
    for gateway in gateways {
        let known = |value: Option<String>| value.unwrap_or_else(|| NOTHING.to_owned());
        table.row([
            gateway.name.clone(),
            gateway.address.clone(),
            gateway.state.replace('_', " "),
            known(gateway.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            print::count(gateway.reaches, "site", "sites"),
            gateway.probe.clone(),
            if gateway.carries { "yes" } else { "no" }.to_owned(),
            known(
                gateway
                    .last_heard_s
                    .map(|age| format!("{} ago", age_of(age))),
            ),
        ]);
    }
    table.text()
}

fn verdict(status: &Status) -> String {
    if !status.problems.is_empty() {
        let problems = status.problems.iter();
        let problems: Vec<String> = problems.map(|one| entry("PROBLEM", one)).collect();
        return problems.join("\n");
    }
    let (answering, gateways) = (answering(status), gateways_of(status));
    if status.gateways.is_empty() {
        return "No gateway of this site is known yet.\n".to_owned();
    }
    if !status.ready {
        return format!(
            "It is starting: {answering} of {gateways} answer. `causeway status --wait` waits for it.\n"
        );
    }
    if !is_well(status) {
        return format!(
            "{answering} of {gateways} answer. What is not well is being tried; if it stays so, this place will say why.\n"
        );
    }
    let verb = if answering == 1 { "answers" } else { "answer" };
    format!("All is well: {gateways} {verb}, and every prefix is reachable.\n")
}

#[cfg(test)]
mod tests {
    use node::status::{Broker, Prefix, Problem};

    use super::*;

    fn well() -> Status {
        let gateway = Gateway {
            name: "gate-1".to_owned(),
            state: "up".to_owned(),
            ..Gateway::default()
        };
        Status {
            ready: true,
            broker: Broker {
                state: "connected".to_owned(),
                ..Broker::default()
            },
            gateways: vec![gateway],
            ..Status::default()
        }
    }

    #[test]
    fn well_means_that_every_gateway_answers_and_nothing_is_stopped() {
        assert!(is_well(&well()));
        assert!(text(&well()).contains("All is well: 1 gateway answers"));
        let mut silent = well();
        silent.gateways[0].state = "silent".to_owned();
        let mut lost = well();
        lost.prefixes = vec![Prefix {
            state: "unreachable".to_owned(),
            ..Prefix::default()
        }];
        let mut stopped = well();
        stopped.problems = vec![Problem {
            stops: true,
            ..Problem::default()
        }];
        let mut cached = well();
        cached.broker.state = "cached".to_owned();
        for status in [silent, lost, stopped, cached] {
            assert!(!is_well(&status), "{status:?}");
        }
    }

    #[test]
    fn the_mode_is_told_with_what_was_asked_and_why() {
        let mut status = well();
        status.mode.asked = "auto".to_owned();
        status.mode.used = "vxlan".to_owned();
        status.mode.why = "gateway gate-1 is not on this node's segment".to_owned();
        let page = text(&status);
        assert!(
            page.contains("mode    vxlan (auto): gateway gate-1 is not"),
            "{page}"
        );
    }
}
