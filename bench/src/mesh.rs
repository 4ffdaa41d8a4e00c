//! A gateway of a large mesh: what a thousand remote gateways at rest cost the one link that is
//! busy, in memory, and in processor time.
//!
//! Two meshes run side by side and are measured in turn: one of two sites, and one with the crowd
//! besides. The crowd is simulated in this process and takes its share of the processors from both.

use std::path::PathBuf;
use std::time::Duration;

use ::tests::mesh::{Crowd, Mesh, Nat, PATIENCE, Plan};
use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::bars::Verdict;
use crate::cpu::{Memory, process_time};
use crate::iperf::{self, Traffic};
use crate::link;
use crate::machine::Machine;
use crate::output;
use crate::report::{bars, number, table};
use crate::site::check_programs;
use crate::statistics::Summary;

const ONE: Plan = Plan {
    gateways: 1,
    nat: Nat::None,
};
const CROWD_LIMIT: Duration = Duration::from_secs(120);
/// Links that just came up speak more often for ten seconds.
const SETTLE: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_secs(10);
/// MiB, cores, and the part of one link's speed.
const MEMORY_LIMIT: f64 = 128.0;
const REST_LIMIT: f64 = 0.1;
const SPEED_LIMIT: f64 = 0.9;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many remote gateways there are besides the busy one
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=5000))]
    gateways: u16,
    /// How often each mesh is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of one TCP sample
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where to write every sample; by default target/bench/mesh.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Gb/s, MiB, cores.
#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    gateways: u16,
    /// Of the busy link without and with the others.
    alone: Vec<f64>,
    among: Vec<f64>,
    resident: f64,
    rest: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(&[])?;
    let run = measure(options)?;
    publish(options, &run)
}

fn measure(options: &Options) -> Result<Run> {
    let machine = Machine::describe()?;
    let alone = Mesh::up("alone", &[ONE, ONE])?;
    let mut among = Mesh::at_rest("among", &[ONE, ONE])?;
    eprintln!("{} gateways join", options.gateways);
    let crowd = Crowd::start(&mut among, options.gateways, (0, 0))?;
    among.start_gateways()?;
    among.wait_until_up(PATIENCE)?;
    crowd.wait_until_up(CROWD_LIMIT)?;
    eprintln!("all are up");
    std::thread::sleep(SETTLE);
    let pid = among.sites[0].gateways[0].process()?.pid();
    let before = process_time(pid)?;
    std::thread::sleep(QUIET);
    let worked = process_time(pid)?.saturating_sub(before);
    let servers = [iperf_server(&alone)?, iperf_server(&among)?];
    let mut run = Run {
        machine,
        gateways: options.gateways,
        alone: Vec::new(),
        among: Vec::new(),
        resident: 0.0,
        rest: worked.as_secs_f64() / QUIET.as_secs_f64(),
    };
    for round in 0..options.rounds {
        run.alone.push(speed(&alone, options.seconds)?);
        run.among.push(speed(&among, options.seconds)?);
        let (alone, among) = (run.alone[usize::from(round)], run.among[usize::from(round)]);
        eprintln!(
            "round {}: {alone:.2} Gb/s alone, {among:.2} among many",
            round + 1
        );
    }
    run.resident = Memory::of(pid)?.resident;
    crowd.wait_until_up(PATIENCE)?;
    drop(servers);
    Ok(run)
}

fn iperf_server(mesh: &Mesh) -> Result<::tests::lab::Process> {
    iperf::server(&mesh.sites[1].worker)
}

fn speed(mesh: &Mesh, seconds: u32) -> Result<f64> {
    let traffic = Traffic::Tcp {
        streams: 1,
        reverse: false,
        rate: None,
    };
    link::speed(mesh, traffic, seconds)
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn publish(options: &Options, run: &Run) -> Result<()> {
    let json = serde_json::to_string_pretty(run).context("cannot write the run as JSON")?;
    output::write(options.json.as_deref(), "mesh.json", &(json + "\n"))?;
    println!("{}", text(run));
    Ok(())
}

fn text(run: &Run) -> String {
    let machine = &run.machine;
    let head = format!(
        "one busy link and {} links at rest on {} x {}, Linux {}, commit {}",
        run.gateways, machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let speeds = |samples: &[f64]| {
        Summary::of(samples).map_or_else(
            || "-".to_owned(),
            |found| {
                let [median, min, max] = [found.median, found.min, found.max].map(number);
                format!("{median} ({min} to {max})")
            },
        )
    };
    let row = |what: &str, unit: &str, found: String| vec![what.to_owned(), unit.to_owned(), found];
    let rows = vec![
        row("measure", "unit", "found".to_owned()),
        row("TCP, one link", "Gb/s", speeds(&run.alone)),
        row("TCP, one link among many", "Gb/s", speeds(&run.among)),
        row("memory, resident", "MiB", number(run.resident)),
        row("processor at rest", "cores", number(run.rest)),
    ];
    [head, table(&rows), table(&bars(&judge(run)))].join("\n\n") + "\n"
}

fn judge(run: &Run) -> Vec<Verdict> {
    let median = |samples: &[f64]| Summary::of(samples).map(|found| found.median);
    let ratio = median(&run.among)
        .zip(median(&run.alone))
        .map(|(among, alone)| among / alone);
    vec![
        Verdict {
            what: "speed among many against one link's".to_owned(),
            bar: format!(">= {SPEED_LIMIT}"),
            found: ratio.map_or_else(|| "-".to_owned(), number),
            met: ratio.map(|ratio| ratio >= SPEED_LIMIT),
        },
        Verdict {
            what: "memory, MiB".to_owned(),
            bar: format!("< {MEMORY_LIMIT}"),
            found: number(run.resident),
            met: Some(run.resident < MEMORY_LIMIT),
        },
        Verdict {
            what: "processor at rest, cores".to_owned(),
            bar: format!("< {REST_LIMIT}"),
            found: number(run.rest),
            met: Some(run.rest < REST_LIMIT),
        },
    ]
}
