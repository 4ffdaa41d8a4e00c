//! What the pages of gateway and agent share.

use node::status::{Broker, Prefix, Problem};

use crate::print::{self, Table};

pub(super) const NOTHING: &str = "-";
/// What is not ready by then waits for more than its links.
const STARTING_S: u64 = 5;

pub(super) fn is_lost(prefix: &Prefix) -> bool {
    prefix.state == "unreachable"
}

/// `eu-central-1, eu-central-1a`.
pub(super) fn place(region: &str, zone: &str) -> String {
    let known = [region, zone].into_iter().filter(|word| !word.is_empty());
    let known: Vec<&str> = known.collect();
    print::list(&known)
}

pub(super) fn broker(broker: &Broker) -> String {
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

pub(super) fn prefixes(prefixes: &[Prefix]) -> String {
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

pub(super) fn entry(word: &str, problem: &Problem) -> String {
    let next = if problem.next.is_empty() {
        String::new()
    } else {
        format!("\n  What to do: {}", problem.next)
    };
    format!("{word} {}{next}\n", problem.what)
}

/// `12 s`, `3 min`, `5 h`, `2 d`.
pub(super) fn age_of(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(super) fn readiness(is_ready: bool, uptime_s: u64) -> &'static str {
    match is_ready {
        true => "ready",
        false if uptime_s < STARTING_S => "starting",
        false => "not ready",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let texts = [0, 119, 120, 7200, 172_800].map(age_of);
        assert_eq!(texts, ["0 s", "119 s", "2 min", "2 h", "2 d"]);
    }
}
