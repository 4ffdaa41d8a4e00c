//! A gateway's status as a person reads it: tables, and sentences about what is wrong.

use ::gateway::status::{Link, Status};
use node::status::Prefix;

use super::page::{NOTHING, age_of, broker, entry, is_lost, place, prefixes, readiness};
use crate::print::{self, Table};
use crate::time;

/// What the exit code tells.
pub(super) fn is_well(status: &Status) -> bool {
    status.ready
        && status.broker.state == "connected"
        && status.links.iter().all(is_up)
        && !status.prefixes.iter().any(is_lost)
        && !status.problems.iter().any(|problem| problem.stops)
}

fn is_up(link: &Link) -> bool {
    link.state == "up"
}

/// Nobody is there to carry it, which is no fault of anything here.
fn is_vacant(prefix: &Prefix) -> bool {
    prefix.state == "no_gateway"
}

pub(super) fn text(status: &Status) -> String {
    let mut text = head(status);
    if !status.links.is_empty() {
        text.push('\n');
        text.push_str(&links(&status.links));
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
    if status.links.is_empty()
        && let Some(problem) = status.problems.first()
    {
        return problem.what.clone();
    }
    let up = status.links.iter().filter(|link| is_up(link)).count();
    format!("{up} of {} up", links_of(status))
}

fn links_of(status: &Status) -> String {
    print::count(status.links.len(), "link", "links")
}

fn head(status: &Status) -> String {
    let ready = readiness(status.ready, status.uptime_s);
    let mut lines = vec![
        format!(
            "gateway {} of site {}, causeway {}, {ready}, up for {}",
            status.node,
            status.site,
            status.version,
            time::words(status.uptime_s)
        ),
        format!("mesh    {}", status.mesh),
        format!("place   {}", place(&status.region, &status.zone)),
        format!("broker  {}", broker(&status.broker)),
        format!(
            "tunnel  {}, UDP port {}{}",
            status.tun,
            status.listen_port,
            addresses(status)
        ),
    ];
    if !status.drops.is_empty() {
        let counts: Vec<String> = status
            .drops
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        lines.push(format!("dropped {}", counts.join(", ")));
    }
    lines.join("\n") + "\n"
}

fn addresses(status: &Status) -> String {
    let all = status.addresses.iter();
    let all: Vec<String> = all
        .map(|own| format!("{} ({})", own.address, own.from))
        .collect();
    if all.is_empty() {
        return ", no address that others could call".to_owned();
    }
    format!(", others call {}", all.join(", "))
}

fn links(links: &[Link]) -> String {
    let mut table = Table::new([
        "site",
        "place",
        "gateway",
        "state",
        "path",
        "endpoint",
        "datapath",
        "rtt",
        "loss",
        "mtu",
        "sent",
        "received",
        "handshake",
    ]);
    for link in links {
        let known = |value: Option<String>| value.unwrap_or_else(|| NOTHING.to_owned());
        table.row([
            link.site.clone(),
            place(&link.region, &link.zone),
            link.gateway.clone(),
            state(link),
            path(link),
            endpoint(link),
            link.datapath.clone(),
            known(link.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            format!("{:.1} %", link.loss * 100.0),
            link.mtu.to_string(),
            bytes(link.tx_bytes),
            bytes(link.rx_bytes),
            known(
                link.last_handshake_s
                    .map(|age| format!("{} ago", age_of(age))),
            ),
        ]);
    }
    table.text()
}

fn state(link: &Link) -> String {
    match &link.why {
        Some(why) => format!("{} ({})", link.state, why.replace('_', " ")),
        None if link.held_down => format!("{} (held down)", link.state),
        None => link.state.clone(),
    }
}

fn path(link: &Link) -> String {
    match (&link.path, link.path_kind.as_deref()) {
        (Some(path), Some("lan")) => format!("{path} (lan)"),
        (Some(path), _) => path.clone(),
        (None, _) => NOTHING.to_owned(),
    }
}

/// Of a relay the gateway knows only its own end.
fn endpoint(link: &Link) -> String {
    match (link.path.as_deref(), &link.endpoint) {
        (Some("relay"), _) => "through a broker".to_owned(),
        (_, Some(endpoint)) => endpoint.clone(),
        (_, None) => NOTHING.to_owned(),
    }
}

fn verdict(status: &Status) -> String {
    if !status.problems.is_empty() {
        let problems = status.problems.iter();
        let problems: Vec<String> = problems.map(|one| entry("PROBLEM", one)).collect();
        return problems.join("\n");
    }
    let up = status.links.iter().filter(|link| is_up(link)).count();
    if status.links.is_empty() {
        return "No other gateway is known here. If there should be one: `causeway node list` where the authority or the broker is shows who has joined; `causeway token create --site NAME --cidr PREFIX` makes the token for one that has not.\n".to_owned();
    }
    if !status.ready {
        let links = links_of(status);
        return format!(
            "It is starting: {up} of {links} up. `causeway status --wait` waits for it.\n"
        );
    }
    if !is_well(status) {
        return format!(
            "{up} of {} up. What is not is being tried; if it stays so, this place will say why.\n",
            links_of(status)
        );
    }
    let verb = if up == 1 { "is" } else { "are" };
    let which = if status.prefixes.iter().any(is_vacant) {
        "every prefix that has a gateway"
    } else {
        "every prefix"
    };
    format!(
        "All is well: {} {verb} up, and {which} is reachable.\n",
        links_of(status)
    )
}

/// `987 B`, `1.4 KiB`, `12.0 GiB`.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // What rounds to 1024.0 is shown as one of the next.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use node::status::{Broker, Problem};

    use super::*;

    #[test]
    fn amounts_are_short() {
        let texts = [0, 1023, 1024, 1_468_006, 1_048_575, u64::MAX].map(bytes);
        assert_eq!(
            texts,
            [
                "0 B",
                "1023 B",
                "1.0 KiB",
                "1.4 MiB",
                "1.0 MiB",
                "16384.0 PiB"
            ]
        );
    }

    #[test]
    fn well_means_that_nothing_at_all_is_down() {
        let link = Link {
            state: "up".to_owned(),
            ..Link::default()
        };
        let well = Status {
            ready: true,
            broker: Broker {
                state: "connected".to_owned(),
                ..Broker::default()
            },
            links: vec![link],
            ..Status::default()
        };
        assert!(is_well(&well));
        let mut starting = well.clone();
        starting.ready = false;
        let mut cached = well.clone();
        cached.broker.state = "cached".to_owned();
        let mut down = well.clone();
        down.links[0].state = "down".to_owned();
        let mut noted = well.clone();
        noted.problems = vec![Problem::new("a relay", "")];
        noted.prefixes = vec![Prefix {
            state: "no_gateway".to_owned(),
            ..Prefix::default()
        }];
        assert!(is_well(&noted), "nothing that is in use is down");
        let mut stopped = well.clone();
        stopped.problems = vec![Problem {
            stops: true,
            ..Problem::default()
        }];
        let mut lost = well;
        lost.prefixes = vec![Prefix {
            state: "unreachable".to_owned(),
            ..Prefix::default()
        }];
        for status in [starting, cached, down, stopped, lost] {
            assert!(!is_well(&status), "{status:?}");
        }
    }
}
