//! `causeway routeagent run`.

use std::net::IpAddr;

use node::cloud::Source as Metadata;
use routeagent::run::Asked;

use crate::command::Directories;
use crate::command::flags::{Kernel, Metrics, lan_address, metrics};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Send this machine's packets for other sites to its site's gateways until told to end.
    Run(Box<Run>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    directories: Directories,
    /// How packets go to the gateways: direct (on the same segment), vxlan, or auto, which finds out.
    #[arg(long, value_name = "HOW", env = "CAUSEWAY_MODE", value_parser = mode, default_value = "auto")]
    mode: Asked,
    /// This machine's own address in its site; found out if not given.
    #[arg(long, value_name = "LAN_IP", env = "CAUSEWAY_ADDRESS", value_parser = lan_address)]
    address: Option<IpAddr>,
    #[command(flatten)]
    kernel: Kernel,
    /// Metrics and health over HTTP, for this machine only; `off` for neither.
    #[arg(long, value_name = "ADDRESS:PORT", env = "CAUSEWAY_METRICS", value_parser = metrics, default_value = "127.0.0.1:9781")]
    metrics: Metrics,
    /// Who tells region and zone where `join` was given none: auto (the cloud's metadata service),
    /// off, or the address of one.
    #[arg(
        long,
        value_name = "HOW",
        env = "CAUSEWAY_METADATA",
        default_value = "auto"
    )]
    metadata: Metadata,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let Command::Run(arguments) = command;
    let options = routeagent::run::Options {
        state_directory: arguments.directories.state_dir,
        runtime_directory: arguments.directories.runtime_dir,
        mode: arguments.mode,
        address: arguments.address,
        table: arguments.kernel.table,
        rule_priority: arguments.kernel.rule_priority,
        fwmark: arguments.kernel.fwmark(),
        vxlan_port: arguments.kernel.vxlan_port,
        metrics: arguments.metrics.0,
        metadata: arguments.metadata,
    };
    routeagent::run::run(options).map_err(Into::into)
}

fn mode(text: &str) -> Result<Asked, String> {
    match text {
        "auto" => Ok(Asked::Auto),
        "direct" => Ok(Asked::Direct),
        "vxlan" => Ok(Asked::Vxlan),
        _ => Err("auto, direct or vxlan".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_three_words() {
        assert_eq!(mode("vxlan"), Ok(Asked::Vxlan));
        assert!(mode("tunnel").unwrap_err().contains("direct"));
    }
}
