//! `causeway demo`: a mesh of three sites on this machine, shown and measured.
//!
//! Everything is made inside namespaces of processes, mounts and networks whose first process is a
//! child of this one. The kernel ends all of it with that process, and that one ends with its
//! parent: nothing stays behind whatever ends whom, two demos never meet, and this machine's own
//! network is never touched. No other program is needed.

mod cast;
mod echo;
mod inside;
mod kept;
mod lab;
mod mesh;
mod outside;
mod plan;
mod story;
mod table;
mod tour;
mod transfer;
mod wire;

use std::process::ExitCode;

use clap::builder::FalseyValueParser;

use crate::command::Output;

/// Show a mesh of three sites on this machine, in namespaces that go with it.
///
/// Makes a broker, three sites with two gateways and two workers each, one of them behind a NAT,
/// joins them with tokens, pings from everywhere to everywhere, measures a transfer, kills a gateway
/// and shows what that did. It takes less than a minute, and nothing of it stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    how: How,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct How {
    /// Leave it running, and say how to look around and how to end it.
    #[arg(long, env = "CAUSEWAY_KEEP", value_parser = FalseyValueParser::new())]
    keep: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run a command, or a shell, on one of the machines of a demo that was left running.
    Enter(kept::Enter),
    /// End a demo that was left running; nothing of it stays.
    Stop(kept::Stop),
    /// The first process inside.
    #[command(hide = true)]
    Inside(How),
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        None => outside::run(arguments.how),
        Some(Command::Inside(how)) => inside::run(how),
        Some(Command::Enter(enter)) => kept::enter(&enter),
        Some(Command::Stop(stop)) => kept::stop(&stop),
    }
}
