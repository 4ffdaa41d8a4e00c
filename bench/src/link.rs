//! A link between two gateways of a mesh against `causeway wg` on the same kind of path.
//!
//! Two equal networks are built. In one gateways run, in the other `causeway wg` stands in their
//! places. They are measured in turn, so that whatever drifts on the machine meets both alike; the
//! one that waits carries its keepalives and hellos only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ::tests::lab::Process;
use ::tests::mesh::{Mesh, Nat, PATIENCE, Plan};
use ::tests::wireguard::{Device, Implementation, Keys, MTU, Program};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::bars::Verdict;
use crate::iperf::{self, Traffic};
use crate::machine::Machine;
use crate::output;
use crate::report::{bars, number, table};
use crate::site::check_programs;
use crate::statistics::{Summary, median};

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};
const PORT: u16 = 51820;
const SPEED_LIMIT: f64 = 0.95;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of one TCP sample
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where to write every sample; by default target/bench/link.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One kind of transfer, with its samples in Gb/s.
#[derive(Clone, Debug, Serialize)]
struct Kind {
    name: &'static str,
    #[serde(skip)]
    traffic: Traffic,
    link: Vec<f64>,
    wireguard: Vec<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    kinds: Vec<Kind>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(&["nft"])?;
    let run = measure(options)?;
    publish(options, &run)
}

fn kinds() -> Vec<Kind> {
    [("one", 1, false), ("four", 4, false), ("reverse", 1, true)]
        .map(|(name, streams, reverse)| Kind {
            name,
            traffic: Traffic::Tcp {
                streams,
                reverse,
                rate: None,
            },
            link: Vec::new(),
            wireguard: Vec::new(),
        })
        .into()
}

fn measure(options: &Options) -> Result<Run> {
    let mut run = Run {
        machine: Machine::describe()?,
        kinds: kinds(),
    };
    let mesh = Mesh::up("link", &[ONE, ONE])?;
    let plain = Mesh::at_rest("plain", &[ONE, ONE])?;
    let devices = stand_in(&plain)?;
    let servers = [begin(&mesh)?, begin(&plain)?];
    for round in 0..options.rounds {
        for kind in &mut run.kinds {
            // Who goes first takes turns too.
            let mut both = [(&mesh, &mut kind.link), (&plain, &mut kind.wireguard)];
            if round % 2 == 1 {
                both.reverse();
            }
            for (network, samples) in both {
                samples.push(speed(network, kind.traffic, options.seconds)?);
            }
            let found = |samples: &[f64]| samples.last().copied().map_or_else(String::new, number);
            let (link, wireguard) = (found(&kind.link), found(&kind.wireguard));
            eprintln!(
                "round {}, tcp {}: link {link} Gb/s, wg {wireguard} Gb/s",
                round + 1,
                kind.name
            );
        }
    }
    drop((servers, devices));
    Ok(run)
}

/// `causeway wg` in the places of the gateways, which do not run.
fn stand_in(plain: &Mesh) -> Result<[Device; 2]> {
    let program = Program {
        implementation: Implementation::Causeway,
        path: Implementation::Causeway.locate()?,
        arguments: Vec::new(),
    };
    let device = |site: usize| {
        let namespace = &plain.sites[site].gateways[0].namespace;
        namespace.forward()?;
        let keys = Keys::generate(namespace)?;
        let device = Device::launch(namespace, &program, PORT, keys)?;
        device.up(MTU)?;
        anyhow::Ok(device)
    };
    let devices = [device(0)?, device(1)?];
    for (site, other) in [(0, 1), (1, 0)] {
        let endpoint = SocketAddr::new(plain.sites[other].gateways[0].outer, PORT);
        let prefix = format!("10.{}.0.0/16", plain.sites[other].number);
        devices[site].peer(&devices[other], Some(endpoint), &prefix)?;
        let route = ["route", "add", &prefix, "dev", devices[site].interface()];
        devices[site].namespace().run("ip", &route)?;
    }
    Ok(devices)
}

/// Workers that know the inner MTU, so that neither gains by path MTU discovery, and a server.
fn begin(network: &Mesh) -> Result<Process> {
    for site in &network.sites {
        let mtu = MTU.to_string();
        site.worker
            .run("ip", &["link", "set", "eth0", "mtu", &mtu])?;
    }
    network.wait_for_ping(0, 1, PATIENCE)?;
    iperf::server(&network.sites[1].worker)
}

/// Gb/s from the first site's worker to the second's.
pub(crate) fn speed(network: &Mesh, traffic: Traffic, seconds: u32) -> Result<f64> {
    let transfer = iperf::run(
        &network.sites[0].worker,
        far_worker(network)?,
        traffic,
        seconds,
    )?;
    Ok(transfer.gigabits_per_second())
}

fn far_worker(network: &Mesh) -> Result<Ipv4Addr> {
    match network.sites[1].worker_address() {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => bail!("{address} is not what iperf is given here"),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn publish(options: &Options, run: &Run) -> Result<()> {
    let json = serde_json::to_string_pretty(run).context("cannot write the run as JSON")?;
    output::write(options.json.as_deref(), "link.json", &(json + "\n"))?;
    println!("{}", text(run));
    Ok(())
}

fn text(run: &Run) -> String {
    let machine = &run.machine;
    let head = format!(
        "a link of a mesh and `causeway wg` on {} x {}, Linux {}, commit {}",
        machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let mut rows = vec![
        ["TCP, Gb/s", "link", "wg", "link / wg"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for kind in &run.kinds {
        rows.push(vec![
            kind.name.to_owned(),
            spread(&kind.link),
            spread(&kind.wireguard),
            kind.ratio().map_or_else(|| "-".to_owned(), number),
        ]);
    }
    [head, table(&rows), table(&bars(&judge(run)))].join("\n\n") + "\n"
}

fn spread(samples: &[f64]) -> String {
    Summary::of(samples).map_or_else(
        || "-".to_owned(),
        |found| {
            let [median, min, max] = [found.median, found.min, found.max].map(number);
            format!("{median} ({min} to {max})")
        },
    )
}

impl Kind {
    /// Of the medians.
    fn ratio(&self) -> Option<f64> {
        Some(median(&self.link)? / median(&self.wireguard)?)
    }
}

fn judge(run: &Run) -> Vec<Verdict> {
    run.kinds
        .iter()
        .map(|kind| Verdict {
            what: format!("tcp {} against causeway wg", kind.name),
            bar: format!(">= {SPEED_LIMIT}"),
            found: kind.ratio().map_or_else(|| "-".to_owned(), number),
            met: kind.ratio().map(|ratio| ratio >= SPEED_LIMIT),
        })
        .collect()
}
