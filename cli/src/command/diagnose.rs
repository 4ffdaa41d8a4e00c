//! `causeway diagnose`: looks at everything a gateway or an agent needs of this machine and its
//! network, before it joins and after, and changes nothing.

mod brokers;
mod check;
mod firewall;
mod host;
mod kernel;
mod known;
mod mesh;
mod nat;
mod network;
mod passage;
mod ports;
mod sysctls;
mod tries;

use std::path::PathBuf;
use std::process::ExitCode;

use node::cloud;
use serde::Serialize;

use crate::command::Output;
use crate::parse;
use crate::print;
use check::{Check, Outcome};
use host::Privileges;
use known::Known;

/// Look at everything a node needs of this machine and its network, and change nothing.
///
/// Works before joining and after, on any node; as another user than root it says what it could
/// not look at. Exit code 1: something failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What this machine keeps.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    state_dir: PathBuf,
    /// Where daemons on this machine have their sockets.
    #[arg(
        long,
        value_name = "R",
        env = "CAUSEWAY_RUNTIME_DIR",
        default_value = "/run/causeway"
    )]
    runtime_dir: PathBuf,
    /// Before joining: the file that holds the token. It is looked at and not used up.
    #[arg(long, value_name = "F", env = "CAUSEWAY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// A broker whose port to try; those of the token and of the mesh are asked anyway.
    #[arg(long, value_name = "H:P", env = "CAUSEWAY_BROKER", value_parser = parse::address, value_delimiter = ',')]
    broker: Vec<String>,
    /// Which metadata service to ask for the cloud: auto, off, or an address.
    #[arg(
        long,
        value_name = "HOW",
        env = "CAUSEWAY_METADATA",
        default_value = "auto"
    )]
    metadata: cloud::Source,
    /// How this program tries what the kernel can do, in a process of its own.
    #[arg(long, hide = true, value_name = "WHOM")]
    try_kernel: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown {
    passed: usize,
    skipped: usize,
    warnings: usize,
    failed: usize,
    checks: Vec<Check>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if let Some(whom) = &arguments.try_kernel {
        let tried = tries::try_all(whom == kernel::AS_USER);
        print::json(&tried)?;
        return Ok(ExitCode::SUCCESS);
    }
    let privileges = Privileges::of_this_process();
    // What the kernel can do takes longest, and a process of its own anyway.
    let checks = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| kernel::checks(&privileges));
        let rest = look(arguments, &privileges);
        let mut checks = kernel.join().unwrap_or_default();
        checks.extend(rest?);
        anyhow::Ok(checks)
    })?;
    show(arguments, checks)
}

fn look(arguments: &Arguments, privileges: &Privileges) -> anyhow::Result<Vec<Check>> {
    let mut known = Known::gather(arguments);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (cloud, brokers, seen) = runtime.block_on(async {
        tokio::join!(
            cloud::find(&arguments.metadata),
            brokers::checks(&known, &arguments.broker),
            nat::ask(&known)
        )
    });
    // Names are looked up by threads that nobody need wait for.
    runtime.shutdown_background();
    (known.cloud, known.seen) = (cloud, seen);
    let mut checks = host::checks(&known, privileges);
    checks.extend(network::checks(&known));
    checks.extend(firewall::checks(&known, privileges));
    checks.extend(passage::checks(&known, &arguments.runtime_dir));
    checks.extend(brokers);
    checks.extend(mesh::checks(&known, privileges));
    Ok(checks)
}

fn show(arguments: &Arguments, checks: Vec<Check>) -> anyhow::Result<ExitCode> {
    let count = |result| checks.iter().filter(|check| check.result == result).count();
    let shown = Shown {
        passed: count(Outcome::Passed),
        skipped: count(Outcome::Skipped),
        warnings: count(Outcome::Warning),
        failed: count(Outcome::Failed),
        checks,
    };
    if arguments.output.json {
        print::json(&shown)?;
    } else {
        print::data(&text(&shown))?;
    }
    Ok(match shown.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What needs nobody first and short, failures last.
fn text(shown: &Shown) -> String {
    let mut checks: Vec<&Check> = shown.checks.iter().collect();
    checks.sort_by_key(|check| (check.result, check.group));
    let mut text = String::new();
    for check in checks {
        let saw = print::plain(&check.saw);
        text.push_str(&format!(
            "{:8} {:<26} {saw}\n",
            check.result.word(),
            check.name
        ));
        if !check.next.is_empty() {
            text.push_str(&format!(
                "         what to do: {}\n",
                print::plain(&check.next)
            ));
        }
    }
    text.push_str(&format!(
        "\n{} passed, {} could not be looked at, {}, {} failed\n",
        shown.passed,
        shown.skipped,
        print::count(shown.warnings, "warning", "warnings"),
        shown.failed
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::check::{Group, Sheet};
    use super::*;

    #[test]
    fn failures_come_last_with_their_way_out() {
        let mut sheet = Sheet::new(Group::Host);
        sheet.failed("b", "it burns", "put it out");
        sheet.warning("c", "it smokes", "");
        sheet.passed("a", "it is cold");
        let shown = Shown {
            passed: 1,
            skipped: 0,
            warnings: 1,
            failed: 1,
            checks: sheet.done(),
        };
        let text = text(&shown);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("passed   a "), "{text}");
        assert!(lines[1].starts_with("WARNING  c "), "{text}");
        assert!(lines[2].starts_with("FAILED   b "), "{text}");
        assert_eq!(lines[3].trim(), "what to do: put it out");
        assert!(lines[5].contains("1 warning, 1 failed"), "{text}");
    }
}
