//! `causeway leave`.

use std::path::PathBuf;

use serde::Serialize;

use crate::command::Output;
use crate::print;

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
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown {
    site: String,
    node: String,
    identity: String,
    /// The brokers that have the goodbye, one for each store.
    told: Vec<String>,
    /// Why those of other stores have not.
    untold: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let left = runtime.block_on(node::leave::leave(&arguments.state_dir))?;
    eprintln!(
        "{} has left site {}; broker {} was told, and its keys are deleted. Its name is free; to come back, join with a new token",
        left.node,
        left.site,
        left.told.join(" and ")
    );
    for why in &left.untold {
        eprintln!("not told, where the name is free after 60 s: {why}");
    }
    if arguments.output.json {
        print::json(&Shown {
            site: left.site.to_string(),
            node: left.node.to_string(),
            identity: left.identity.to_string(),
            told: left.told,
            untold: left.untold,
        })?;
    }
    Ok(())
}
