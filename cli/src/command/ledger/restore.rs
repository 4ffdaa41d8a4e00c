//! `causeway ledger restore`: the key was kept, the ledger was not.

use std::path::PathBuf;

use anyhow::Context;
use proto::key::MeshId;
use proto::ledger::Ledger;
use serde::Serialize;

use crate::authority::{self, ledger_file};
use crate::brokers::{self, Brokers, Caller, Place};
use crate::command::{Directories, Output, Signing, Usage};
use crate::parse::{self, BrokerAddress};
use crate::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    signing: Signing,
    /// A ledger file to take; else brokers are asked.
    #[arg(long, value_name = "FILE", env = "CAUSEWAY_FILE")]
    file: Option<PathBuf>,
    /// The mesh, if no broker runs on this machine; membership.json of any node and broker.json of any broker name it.
    #[arg(long, value_name = "ID", env = "CAUSEWAY_MESH_ID")]
    mesh_id: Option<MeshId>,
    /// A broker to ask, with its pin: H:P=PIN. The one on this machine is asked anyway.
    #[arg(long, value_name = "H:P=PIN", env = "CAUSEWAY_BROKER", value_parser = parse::broker, value_delimiter = ',')]
    broker: Vec<BrokerAddress>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Restored {
    mesh: String,
    entries: usize,
    head: u64,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let directory = arguments.signing.authority();
    let key = authority::read_key_alone(&directory)?;
    let mut ledger = match (&arguments.file, arguments.mesh_id) {
        (Some(file), _) => ledger_file::read(file)?,
        (None, Some(mesh)) => Ledger::new(mesh),
        (None, None) => Ledger::new(local_mesh(&arguments.signing.directories)?),
    };
    let mut brokers = Brokers::reach(
        &arguments.signing.directories,
        places(&arguments.broker)?,
        ledger.mesh(),
        Caller::Authority(&key),
    )?;
    for entry in brokers.fetch(&ledger) {
        if let Err(why) = ledger.insert(entry.clone()) {
            eprintln!(
                "causeway: {} is refused: {why}",
                authority::entry_name(&entry)
            );
        }
    }
    for why in brokers.failures() {
        eprintln!("causeway: {why}");
    }
    let head = ledger
        .head()
        .context("no broker had the ledger of this mesh; see above why, then repeat with others in --broker, or with --file")?;
    authority::write_ledger(&directory, &key, &ledger)?;
    eprintln!(
        "The ledger in {} is back, up to entry {head}. Compare with what you remember: a broker can leave out the newest entries.",
        directory.display()
    );
    if arguments.output.json {
        print::json(&Restored {
            mesh: ledger.mesh().to_string(),
            entries: ledger.len(),
            head: head.number,
        })?;
    }
    Ok(())
}

fn local_mesh(directories: &Directories) -> anyhow::Result<MeshId> {
    brokers::mesh_of_local(directories).ok_or_else(|| {
        let socket = directories.broker_socket();
        Usage(format!(
            "no broker answers on {}: give a copy of the ledger with --file, or the mesh with --mesh-id (membership.json of any node and broker.json of any broker name it) and a broker with --broker H:P=PIN",
            socket.display()
        ))
        .into()
    })
}

fn places(asked: &[BrokerAddress]) -> anyhow::Result<Vec<Place>> {
    asked
        .iter()
        .map(|BrokerAddress { address, pin }| {
            let pin = pin.with_context(|| {
                format!("without the ledger nothing tells the key of {address}: give it as --broker {address}=PIN")
            })?;
            Ok(Place {
                address: address.clone(),
                pin,
            })
        })
        .collect()
}
