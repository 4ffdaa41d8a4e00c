//! `causeway drops IFNAME`: the drop counters of a running interface.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use gateway::wg::{protocol, socket};

use crate::name;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The interface that `causeway wg` serves.
    #[arg(value_name = "IFNAME", value_parser = name::parse)]
    name: String,
    /// Print one JSON object, with the reasons that never occurred as well.
    #[arg(long, env = "CAUSEWAY_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name = &arguments.name;
    let answer = socket::ask(Path::new(socket::DIRECTORY), name, "get_drops=1\n\n")
        .with_context(|| format!("cannot read the drop counters of interface {name}"))?;
    let Some(drops) = protocol::parse_drops(&answer) else {
        bail!(
            "interface {name} does not count drops; it is served by another WireGuard, start it with `causeway wg`"
        );
    };
    let text = if arguments.json {
        to_json(&drops)
    } else {
        to_table(&drops)
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot print the drop counters; check standard output"),
    }
}

/// Labels are lower-case letters, digits and underscores: nothing to escape.
fn to_json(drops: &[(&str, u64)]) -> String {
    let pairs: Vec<String> = drops
        .iter()
        .map(|(label, count)| format!("\"{label}\":{count}"))
        .collect();
    format!("{{{}}}\n", pairs.join(","))
}

fn to_table(drops: &[(&str, u64)]) -> String {
    let happened = drops.iter().filter(|(_, count)| *count > 0);
    let width = happened
        .clone()
        .map(|(label, _)| label.len())
        .max()
        .unwrap_or(0);
    let lines: Vec<String> = happened
        .map(|(label, count)| format!("{label:width$}  {count:>12}\n"))
        .collect();
    if lines.is_empty() {
        "no drops\n".to_owned()
    } else {
        lines.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DROPS: [(&str, u64); 3] = [("no_peer", 0), ("udp_replay", 7), ("staging_full", 12)];

    #[test]
    fn the_table_names_what_happened_and_nothing_else() {
        assert_eq!(
            to_table(&DROPS),
            "udp_replay               7\nstaging_full            12\n"
        );
        assert_eq!(to_table(&DROPS[..1]), "no drops\n");
    }

    #[test]
    fn json_has_every_reason() {
        assert_eq!(
            to_json(&DROPS),
            "{\"no_peer\":0,\"udp_replay\":7,\"staging_full\":12}\n"
        );
        assert_eq!(to_json(&[]), "{}\n");
    }
}
