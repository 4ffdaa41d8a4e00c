//! `causeway gateway run`.

use std::net::{IpAddr, SocketAddr};

use clap::builder::{ArgAction, FalseyValueParser};
use gateway::data::index::MAX_THREADS;
use gateway::io::Offload;

use crate::command::Directories;
use crate::command::flags::{Kernel, Metrics, lan_address, metrics};
use crate::name;
use crate::parse;
use node::cloud::Source as Metadata;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Carry this site's traffic to and from all others until told to end.
    Run(Box<Run>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    #[command(flatten)]
    directories: Directories,
    /// Where other gateways reach it, UDP; `[::]` is every address of this machine.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        env = "CAUSEWAY_LISTEN",
        value_parser = listen,
        default_value = "[::]:51820"
    )]
    listen: SocketAddr,
    /// The interface to make, or to take over from an earlier run.
    #[arg(long, value_name = "IFNAME", env = "CAUSEWAY_TUN", value_parser = name::parse, default_value = "causeway0")]
    tun: String,
    /// This machine's own address in its site; found out if not given.
    #[arg(long, value_name = "LAN_IP", env = "CAUSEWAY_ADDRESS", value_parser = lan_address)]
    address: Option<IpAddr>,
    /// Where other sites reach this gateway, if a NAT or a firewall forwards to it; may be given several times.
    #[arg(long, value_name = "H:P", env = "CAUSEWAY_ENDPOINT", value_parser = endpoint, value_delimiter = ',')]
    endpoint: Vec<String>,
    /// How data travels: auto or wireguard, which are the same in this version.
    #[arg(long, value_name = "HOW", env = "CAUSEWAY_DATAPATH", value_parser = datapath, default_value = "auto")]
    datapath: Datapath,
    #[command(flatten)]
    kernel: Kernel,
    /// Metrics and health over HTTP, for this machine only; `off` for neither.
    #[arg(long, value_name = "ADDRESS:PORT", env = "CAUSEWAY_METRICS", value_parser = metrics, default_value = "127.0.0.1:9780")]
    metrics: Metrics,
    /// Accept forwarded packets of the mesh where another firewall drops them by default.
    #[arg(long, env = "CAUSEWAY_OPEN_FORWARD", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    open_forward: bool,
    /// Who tells region and zone where `join` was given none: auto (the cloud's metadata service),
    /// off, or the address of one.
    #[arg(
        long,
        value_name = "HOW",
        env = "CAUSEWAY_METADATA",
        default_value = "auto"
    )]
    metadata: Metadata,
    /// Data threads; one per core if not given.
    #[arg(long, value_name = "N", env = "CAUSEWAY_THREADS", value_parser = threads)]
    threads: Option<usize>,
    /// Leave these unused even where the kernel has them: tso, uso, udp-segment, udp-gro, multi-queue,
    /// steering.
    #[arg(
        long,
        value_name = "LIST",
        env = "CAUSEWAY_WITHOUT",
        value_delimiter = ','
    )]
    without: Vec<Offload>,
}

/// Both mean WireGuard until there are lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Datapath {
    Auto,
    Wireguard,
}

pub(crate) fn run(command: Command) -> anyhow::Result<()> {
    let Command::Run(arguments) = command;
    let options = gateway::run::Options {
        state_directory: arguments.directories.state_dir,
        runtime_directory: arguments.directories.runtime_dir,
        listen: arguments.listen,
        tun: arguments.tun,
        address: arguments.address,
        endpoints: arguments.endpoint,
        table: arguments.kernel.table,
        rule_priority: arguments.kernel.rule_priority,
        fwmark: arguments.kernel.fwmark(),
        vxlan_port: arguments.kernel.vxlan_port,
        metrics: arguments.metrics.0,
        open_forward: arguments.open_forward,
        metadata: arguments.metadata,
        threads: arguments.threads,
        without: arguments.without,
    };
    match arguments.datapath {
        Datapath::Auto | Datapath::Wireguard => {}
    }
    gateway::run::run(options).map_err(Into::into)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = "an address of this machine and a port, like [::]:51820 or 192.0.2.1:51820; a name is not enough";
    let address: SocketAddr = text.parse().map_err(|_| wrong.to_owned())?;
    if address.port() == 0 {
        return Err("port 0 would be another one at each start; choose one".to_owned());
    }
    Ok(address)
}

fn endpoint(text: &str) -> Result<String, String> {
    parse::address(text).map_err(|_| {
        "host:port as other sites reach it, like gate.example.org:51820 or 192.0.2.1:51820"
            .to_owned()
    })
}

fn datapath(text: &str) -> Result<Datapath, String> {
    match text {
        "auto" => Ok(Datapath::Auto),
        "wireguard" => Ok(Datapath::Wireguard),
        "lanes" => {
            Err("this version has no lanes yet; auto will use them once there are".to_owned())
        }
        _ => Err("auto or wireguard".to_owned()),
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        Ok(_) | Err(_) => Err(format!("a number from 1 to {MAX_THREADS}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_refused_in_words() {
        assert_eq!(datapath("auto"), Ok(Datapath::Auto));
        assert!(datapath("lanes").unwrap_err().contains("no lanes yet"));
        assert!(datapath("warp").is_err());
    }

    #[test]
    fn a_port_of_chance_is_refused() {
        assert!(listen("[::]:0").is_err());
        assert!(listen("[::]:51820").is_ok());
    }
}
