//! `causeway cleanup`.

use clap::builder::FalseyValueParser;
use serde::Serialize;

use crate::command::Output;
use crate::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only say what would be removed.
    #[arg(long, env = "CAUSEWAY_DRY_RUN", value_parser = FalseyValueParser::new())]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown {
    dry_run: bool,
    /// One line for each thing of ours that was in the kernel.
    removed: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let dry_run = arguments.dry_run;
    let cleaned = routeagent::cleanup(dry_run)?;
    if let Some(holder) = &cleaned.in_use {
        eprintln!("{holder} uses all this; cleanup refuses to remove it until that is stopped");
    }
    if arguments.output.json {
        return print::json(&Shown {
            dry_run,
            removed: cleaned.removed,
        });
    }
    let done = if dry_run { "would remove" } else { "removed" };
    for line in &cleaned.removed {
        print::data(&format!("{done} {line}\n"))?;
    }
    if cleaned.removed.is_empty() {
        eprintln!("nothing of causeway is in this network namespace");
    }
    Ok(())
}
