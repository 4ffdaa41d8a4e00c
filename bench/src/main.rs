//! Causeway's numbers, each with the command that repeats it; see README.md for how to read them.

#![forbid(unsafe_code)]

mod agents;
mod bars;
mod broker;
mod chart;
mod cpu;
mod iperf;
mod link;
mod machine;
mod measure;
mod mesh;
mod micro;
mod output;
mod report;
mod run;
mod scale;
mod site;
mod statistics;
mod subject;
mod topology;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures Causeway against other user-space WireGuards")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// worker - gateway = gateway - worker: speed, CPU, round trips and memory of every subject
    Site(site::Options),
    /// Many peers and many allowed-ips: the speed of one busy peer, memory, CPU at rest
    Scale(scale::Options),
    /// Nanoseconds and instructions per packet of each step of the packet path
    Micro(micro::Options),
    /// A broker and a thousand sites: how fast a change reaches all, memory, a crash, a flood
    Broker(broker::Options),
    /// A link between two gateways against `causeway wg`, in turn: speed
    Link(link::Options),
    /// From worker to worker with route agents, direct and by VXLAN, against `causeway wg`: speed
    Workers(link::Options),
    /// A gateway with a thousand remote ones: the speed of its busy link, memory, CPU at rest
    Mesh(mesh::Options),
    /// A gateway with five hundred agents: CPU of their hellos
    Agents(agents::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Site(options) => site::run(&options),
        What::Scale(options) => scale::run(&options),
        What::Micro(options) => micro::run(&options),
        What::Broker(options) => broker::run(&options),
        What::Link(options) => link::run(&options),
        What::Workers(options) => link::run_workers(&options),
        What::Mesh(options) => mesh::run(&options),
        What::Agents(options) => agents::run(&options),
    }
}
