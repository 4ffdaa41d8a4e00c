//! `causeway close`.

use std::path::PathBuf;

use node::follow::cached;
use node::state::{LocalNode, StateDir, StateError};
use routeagent::{Closed, Settings, close};
use serde::Serialize;

use crate::command::Output;
use crate::command::flags::{Fwmark, fwmark};
use crate::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What this machine keeps: its node, and what that last knew of the mesh.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    state_dir: PathBuf,
    /// As the daemon has it: value and mask of what may leave all the same.
    #[arg(long, value_name = "V/M", env = "CAUSEWAY_FWMARK", value_parser = fwmark, default_value = "0x1000/0x1000")]
    fwmark: Fwmark,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown {
    joined: bool,
    /// Prefixes of other sites that nothing leaves for.
    closed: Vec<String>,
    /// One line for each thing that was missing.
    added: Vec<String>,
    /// A daemon that runs, and keeps them closed itself.
    kept_by: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Some(node) = joined(arguments)? else {
        return tell(arguments, None);
    };
    let settings = Settings {
        fwmark: (arguments.fwmark.0, arguments.fwmark.1),
        ..Settings::default()
    };
    let closed = close(&cached(&node), &settings)?;
    tell(arguments, Some(closed))
}

/// A machine that is no node yet starts like every other.
fn joined(arguments: &Arguments) -> anyhow::Result<Option<LocalNode>> {
    match StateDir::open(&arguments.state_dir).and_then(|state| state.node()) {
        Ok(node) => Ok(node),
        Err(StateError::Missing(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn tell(arguments: &Arguments, closed: Option<Closed>) -> anyhow::Result<()> {
    let joined = closed.is_some();
    let closed = closed.unwrap_or_default();
    if arguments.output.json {
        return print::json(&Shown {
            joined,
            closed: closed.prefixes.iter().map(ToString::to_string).collect(),
            added: closed.added,
            kept_by: closed.kept_by.map(|holder| holder.to_string()),
        });
    }
    for line in &closed.added {
        print::data(&format!("added {line}\n"))?;
    }
    eprintln!("{}", sentence(arguments, joined, &closed));
    Ok(())
}

fn sentence(arguments: &Arguments, joined: bool, closed: &Closed) -> String {
    if !joined {
        let directory = arguments.state_dir.display();
        return format!("{directory} is part of no mesh: there is nothing to close");
    }
    if let Some(holder) = &closed.kept_by {
        return format!("{holder} runs and keeps other sites' prefixes itself: nothing to do");
    }
    let count = print::count(closed.prefixes.len(), "prefix", "prefixes");
    match (closed.prefixes.is_empty(), closed.added.is_empty()) {
        (true, true) => {
            "no prefix of another site is known here yet: there is nothing to close".to_owned()
        }
        (true, false) => "no prefix of another site is known here yet; the guard stands".to_owned(),
        (false, true) => format!("{count} of other sites, all closed before"),
        (false, false) => format!(
            "{count} of other sites closed; the gateway or agent opens the ways it knows when it starts, `causeway cleanup` all of them"
        ),
    }
}
