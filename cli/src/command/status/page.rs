//! A gateway's status as a person reads it: tables, and sentences about what is wrong.

use gateway::status::{Link, Status};
use node::status::{Broker, Prefix, Problem};

use crate::print::{self, Table};
use crate::time;

const NOTHING: &str = "-";
/// What is not ready by then waits for more than its links.
const STARTING_S: u64 = 5;

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

fn is_lost(prefix: &Prefix) -> bool {
    prefix.state == "unreachable"
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
    let ready = match status.ready {
        true => "ready",
        false if status.uptime_s < STARTING_S => "starting",
        false => "not ready",
    };
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

/// `eu-central-1, eu-central-1a`.
fn place(region: &str, zone: &str) -> String {
    let known = [region, zone].into_iter().filter(|word| !word.is_empty());
    let known: Vec<&str> = known.collect();
    print::list(&known)
}

fn broker(broker: &Broker) -> String {
    let synced = match broker.last_sync_s {
        Some(age) => format!("last in step {} ago", age_of(age)),
        None => "never in step yet".to_owned(),
    };
    match (broker.state.as_str(), &broker.address) {
        ("connected", Some(address)) => format!("connected to {address}"),
        ("cached", _) => format!("none connected, the mesh is known from the cache, {synced}"),
        (state, _) => format!("{state}, {synced}"),
    }
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

fn prefixes(prefixes: &[Prefix]) -> String {
    let mut table = Table::new(["prefix", "site", "state", "through", "mtu"]);
    for prefix in prefixes {
        let mut through = print::list(&prefix.gateways);
        if prefix.by_siblings {
            through.push_str(" (of this site)");
        }
        table.row([
            prefix.prefix.clone(),
            prefix.site.clone(),
            prefix.state.replace('_', " "),
            through,
            prefix
                .mtu
                .map_or_else(|| NOTHING.to_owned(), |mtu| mtu.to_string()),
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

fn entry(word: &str, problem: &Problem) -> String {
    let next = if problem.next.is_empty() {
        String::new()
    } else {
        format!("\n  What to do: {}", problem.next)
    };
    format!("{word} {}{next}\n", problem.what)
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

/// `12 s`, `3 min`, `5 h`, `2 d`.
fn age_of(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_ages_are_short() {
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
        let texts = [0, 119, 120, 7200, 172_800].map(age_of);
        assert_eq!(texts, ["0 s", "119 s", "2 min", "2 h", "2 d"]);
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
