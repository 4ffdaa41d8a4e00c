//! The one binary `causeway`: parses, wires the crates together, prints.

#![forbid(unsafe_code)]

mod drops;
mod logging;
mod name;
mod wg;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Joins private networks over the fastest WireGuard there is.
#[derive(Debug, Parser)]
#[command(name = "causeway", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve one interface as a drop-in user-space WireGuard.
    Wg(wg::Arguments),
    /// Show why packets were dropped.
    Drops(drops::Arguments),
}

/// Under this name the program is the subcommand `wg`, as wg-quick starts it.
const WG_NAME: &str = "causeway-wg";

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(expand_name(std::env::args_os().collect()));
    logging::start();
    let done = match arguments.command {
        Command::Wg(arguments) => wg::run(arguments),
        Command::Drops(arguments) => drops::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("causeway: {error:#}");
        ExitCode::FAILURE
    })
}

/// `causeway-wg wg0` means `causeway wg wg0`.
fn expand_name(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_wg = arguments
        .first()
        .is_some_and(|first| Path::new(first).file_name() == Some(WG_NAME.as_ref()));
    if is_wg {
        arguments.insert(1, "wg".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use gateway::wg::Offload;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = line.split(' ').map(OsString::from).collect();
        Arguments::try_parse_from(expand_name(words)).map(|arguments| arguments.command)
    }

    fn parse_wg(line: &str) -> wg::Arguments {
        match parse(line).unwrap() {
            Command::Wg(arguments) => arguments,
            Command::Drops(_) => panic!("{line} is drops"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn both_names_of_the_program_mean_the_same() {
        let by_subcommand = parse_wg("causeway wg wg0 -f");
        assert_eq!(parse_wg("/usr/bin/causeway-wg -f wg0"), by_subcommand);
        assert!(by_subcommand.foreground);
    }

    #[test]
    fn the_arguments_of_wg_quick_are_understood() {
        assert_eq!(parse_wg("causeway-wg wg0").name, "wg0");
    }

    #[test]
    fn offloads_are_a_list_of_known_names() {
        let arguments = parse_wg("causeway wg wg0 --without tso,udp-gro --threads 2");
        assert_eq!(arguments.without, [Offload::Tso, Offload::UdpGro]);
        assert_eq!(arguments.threads, Some(2));
        let error = parse("causeway wg wg0 --without warp").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error
                .to_string()
                .contains("tso, uso, udp-segment, udp-gro, multi-queue, steering")
        );
    }

    #[test]
    fn bad_usage_is_exit_code_two() {
        for line in [
            "causeway",
            "causeway wg",
            "causeway wg a/b",
            "causeway wg wg0 --threads 0",
            "causeway fly",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
