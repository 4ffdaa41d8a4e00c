//! A mesh against `causeway wg` on the same kind of path: a link between two gateways (`link`), and
//! the whole way from worker to worker with a route agent at both ends (`workers`).
//!
//! Equal networks are built. In the last of them `causeway wg` stands in the places of the gateways,
//! and workers have a plain route to it. They are measured in turn, so that whatever drifts on the
//! machine meets all alike; those that wait carry their keepalives and hellos only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ::tests::lab::Process;
use ::tests::mesh::{Mesh, PATIENCE, Plan};
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

const PORT: u16 = 51820;
const SPEED_LIMIT: f64 = 0.95;
/// What the others are measured against; the last of all.
const BASELINE: &str = "wg";

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of one TCP sample
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where to write every sample; by default target/bench/link.json or workers.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One kind of transfer, with the samples of each subject in Gb/s.
#[derive(Clone, Debug, Serialize)]
struct Kind {
    name: &'static str,
    #[serde(skip)]
    traffic: Traffic,
    samples: Vec<Vec<f64>>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    subjects: Vec<&'static str>,
    kinds: Vec<Kind>,
}

/// A link of a mesh.
pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(&["nft"])?;
    let mesh = Mesh::up("link", &[Plan::ONE, Plan::ONE])?;
    let run = measure(options, vec![("link", mesh)])?;
    publish(options, "link", &run)
}

/// Agents that route straight to their gateway, and agents that go by VXLAN.
pub(crate) fn run_workers(options: &Options) -> Result<()> {
    check_programs(&["nft"])?;
    let mut subjects = Vec::new();
    for mode in ["direct", "vxlan"] {
        let mut mesh = Mesh::at_rest(mode, &[Plan::ONE.agents(1), Plan::ONE.agents(1)])?;
        for agent in mesh.sites.iter_mut().flat_map(|site| &mut site.agents) {
            agent.arguments = ["--mode", mode].map(str::to_owned).into();
        }
        mesh.start_all()?;
        subjects.push((mode, mesh));
    }
    let run = measure(options, subjects)?;
    publish(options, "workers", &run)
}

fn kinds(subjects: usize) -> Vec<Kind> {
    [("one", 1, false), ("four", 4, false), ("reverse", 1, true)]
        .map(|(name, streams, reverse)| Kind {
            name,
            traffic: Traffic::Tcp {
                streams,
                reverse,
                rate: None,
            },
            samples: vec![Vec::new(); subjects],
        })
        .into()
}

fn measure(options: &Options, mut subjects: Vec<(&'static str, Mesh)>) -> Result<Run> {
    let plain = Mesh::at_rest("plain", &[Plan::ONE, Plan::ONE])?;
    let devices = stand_in(&plain)?;
    subjects.push((BASELINE, plain));
    let mut run = Run {
        machine: Machine::describe()?,
        subjects: subjects.iter().map(|(name, _)| *name).collect(),
        kinds: kinds(subjects.len()),
    };
    let servers: Result<Vec<Process>> = subjects.iter().map(|(_, mesh)| begin(mesh)).collect();
    let servers = servers?;
    for round in 0..usize::from(options.rounds) {
        for kind in &mut run.kinds {
            // Who goes first takes turns too.
            for turn in 0..subjects.len() {
                let at = (round + turn) % subjects.len();
                let (name, network) = &subjects[at];
                let found = speed(network, kind.traffic, options.seconds)?;
                eprintln!(
                    "round {}, tcp {}: {name} {found:.2} Gb/s",
                    round + 1,
                    kind.name
                );
                kind.samples[at].push(found);
            }
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
fn publish(options: &Options, what: &str, run: &Run) -> Result<()> {
    let json = serde_json::to_string_pretty(run).context("cannot write the run as JSON")?;
    let file = format!("{what}.json");
    output::write(options.json.as_deref(), &file, &(json + "\n"))?;
    println!("{}", text(run));
    Ok(())
}

fn text(run: &Run) -> String {
    let machine = &run.machine;
    let head = format!(
        "a mesh and `causeway wg` on {} x {}, Linux {}, commit {}",
        machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let contestants = 0..run.subjects.len().saturating_sub(1);
    let mut names = vec!["TCP, Gb/s".to_owned()];
    names.extend(run.subjects.iter().map(|name| (*name).to_owned()));
    let against = |at: usize| format!("{} / {BASELINE}", run.subjects[at]);
    names.extend(contestants.clone().map(against));
    let mut rows = vec![names];
    for kind in &run.kinds {
        let mut row = vec![kind.name.to_owned()];
        row.extend(kind.samples.iter().map(|samples| spread(samples)));
        let ratio = |at| kind.ratio(at).map_or_else(|| "-".to_owned(), number);
        row.extend(contestants.clone().map(ratio));
        rows.push(row);
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
    /// Of the medians of a subject and the one they are all measured against.
    fn ratio(&self, subject: usize) -> Option<f64> {
        Some(median(&self.samples[subject])? / median(self.samples.last()?)?)
    }
}

fn judge(run: &Run) -> Vec<Verdict> {
    let contestants = run.subjects.iter().enumerate();
    let contestants = contestants.filter(|(_, name)| **name != BASELINE);
    let verdicts = contestants.flat_map(|(at, name)| {
        run.kinds.iter().map(move |kind| Verdict {
            what: format!("{name}, tcp {} against causeway wg", kind.name),
            bar: format!(">= {SPEED_LIMIT}"),
            found: kind.ratio(at).map_or_else(|| "-".to_owned(), number),
            met: kind.ratio(at).map(|ratio| ratio >= SPEED_LIMIT),
        })
    });
    verdicts.collect()
}
