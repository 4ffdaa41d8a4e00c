//! The one binary `causeway`: parses, wires the crates together, prints.

#![forbid(unsafe_code)]

mod ask;
mod authority;
mod brokers;
mod command;
mod config;
mod demo;
mod drops;
mod local;
mod logging;
mod name;
mod outlook;
mod parse;
mod print;
mod private;
#[cfg(test)]
mod scratch;
mod secret;
mod signing;
mod time;
mod uses;
mod wg;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Joins private networks over the fastest WireGuard there is.
#[derive(Debug, Parser)]
#[command(name = "causeway", version)]
struct Arguments {
    /// A TOML file whose keys are the names of flags; flags and environment go before it.
    #[arg(long, global = true, value_name = "FILE", env = "CAUSEWAY_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a mesh, serve its nodes, and say which brokers it has.
    #[command(subcommand)]
    Broker(command::broker::Command),
    /// Make, show and revoke the tokens with which machines join a site.
    #[command(subcommand)]
    Token(command::token::Command),
    /// Make this machine a node of a site, with a token.
    Join(command::join::Arguments),
    /// Carry a site's traffic to and from all others.
    #[command(subcommand)]
    Gateway(command::gateway::Command),
    /// Send this machine's packets for other sites to its site's gateways.
    #[command(subcommand)]
    Routeagent(command::routeagent::Command),
    /// Show what this machine's gateway or agent does, and what is wrong.
    Status(command::status::Arguments),
    /// Measure the way through the tunnel to each gateway of a site.
    Ping(command::ping::Arguments),
    Diagnose(command::diagnose::Arguments),
    /// Print what to enter on a router for machines that run no agent.
    Routes(command::routes::Arguments),
    /// Follow one packet through the decisions of this machine.
    Trace(command::trace::Arguments),
    /// Say goodbye and delete this node's keys.
    Leave(command::leave::Arguments),
    /// Show and change sites and their prefixes.
    #[command(subcommand)]
    Site(command::site::Command),
    /// Show and revoke nodes.
    #[command(subcommand)]
    Node(command::node::Command),
    /// Show, carry and mend what the authority has signed.
    #[command(subcommand)]
    Ledger(command::ledger::Command),
    /// Let nothing out to other sites until the daemon runs: before the network comes up at boot.
    Close(command::close::Arguments),
    /// Take everything of causeway out of this machine's kernel.
    Cleanup(command::cleanup::Arguments),
    /// Show a mesh of three sites on this machine, in namespaces that go with it.
    Demo(demo::Arguments),
    /// Serve one interface as a drop-in user-space WireGuard.
    Wg(wg::Arguments),
    /// Show why packets were dropped.
    Drops(drops::Arguments),
}

/// Under this name the program is the subcommand `wg`, as wg-quick starts it.
const WG_NAME: &str = "causeway-wg";
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = match parse_words(expand_name(words.clone())) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let done = secret::leave_environment(&words, wants_token(&arguments.command)).and_then(|()| {
        logging::start();
        run(arguments.command)
    });
    done.unwrap_or_else(|error| {
        eprintln!("causeway: {}", print::error(&error));
        if error.is::<command::Usage>() {
            ExitCode::from(USAGE)
        } else {
            ExitCode::FAILURE
        }
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Wg(arguments) => return wg::run(arguments),
        Command::Status(arguments) => return command::status::run(&arguments),
        Command::Diagnose(arguments) => return command::diagnose::run(&arguments),
        Command::Ping(arguments) => return command::ping::run(arguments),
        Command::Demo(arguments) => return demo::run(arguments),
        Command::Drops(arguments) => drops::run(&arguments),
        Command::Trace(arguments) => return command::trace::run(&arguments),
        Command::Close(arguments) => command::close::run(&arguments),
        Command::Cleanup(arguments) => command::cleanup::run(&arguments),
        Command::Broker(command) => command::broker::run(command),
        Command::Token(command) => command::token::run(command),
        Command::Join(arguments) => command::join::run(arguments),
        Command::Gateway(command) => command::gateway::run(command),
        Command::Routeagent(command) => command::routeagent::run(command),
        Command::Routes(arguments) => command::routes::run(&arguments),
        Command::Leave(arguments) => command::leave::run(&arguments),
        Command::Site(command) => command::site::run(command),
        Command::Node(command) => command::node::run(command),
        Command::Ledger(command) => command::ledger::run(command),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// The token of the environment is for `join` alone.
fn wants_token(command: &Command) -> bool {
    if let Command::Join(arguments) = command {
        arguments.wants_token()
    } else {
        false
    }
}

fn parse_words(words: Vec<OsString>) -> Result<Arguments, clap::Error> {
    let mut command = config::apply(plain(Arguments::command()), &words)
        .map_err(|why| Arguments::command().error(ErrorKind::InvalidValue, why))?;
    let matches = command.try_get_matches_from_mut(words)?;
    Arguments::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The help names the variables and leaves out what they hold.
fn plain(command: clap::Command) -> clap::Command {
    command
        .mut_args(|flag| flag.hide_env_values(true))
        .mut_subcommands(plain)
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
        parse_words(expand_name(words)).map(|arguments| arguments.command)
    }

    fn parse_wg(line: &str) -> wg::Arguments {
        let Command::Wg(arguments) = parse(line).unwrap() else {
            panic!("{line} is not wg");
        };
        arguments
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
    fn a_key_may_begin_with_a_dash() {
        let keys = (0..=u8::MAX)
            .map(|seed| proto::key::SigningKey::from_seed(&[seed; 32]).public())
            .filter(|key| key.to_string().starts_with('-'));
        let keys: Vec<_> = keys.collect();
        assert!(!keys.is_empty());
        for key in keys {
            for line in [
                format!("causeway broker init --mesh {key} --json"),
                format!("causeway broker add {key} --address b:1 --json"),
                format!("causeway broker remove {key} --json"),
                format!("causeway node revoke {key} --yes"),
            ] {
                assert!(
                    parse(&line).is_ok(),
                    "{line}: {}",
                    parse(&line).unwrap_err()
                );
            }
        }
    }

    fn check_flags(command: &clap::Command) {
        let flags = command
            .get_arguments()
            .filter(|flag| !flag.is_hide_set() && !flag.is_positional())
            .filter(|flag| !matches!(flag.get_id().as_str(), "help" | "version"));
        for flag in flags {
            let long = flag.get_long().unwrap();
            let wanted = format!("CAUSEWAY_{}", long.to_uppercase().replace('-', "_"));
            let found = flag
                .get_env()
                .map(|name| name.to_string_lossy().into_owned());
            assert_eq!(found, Some(wanted), "{} --{long}", command.get_name());
            assert!(flag.get_help().is_some(), "{} --{long}", command.get_name());
        }
        command.get_subcommands().for_each(check_flags);
    }

    #[test]
    fn every_flag_has_an_environment_name_and_a_word_of_help() {
        check_flags(&Arguments::command());
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
