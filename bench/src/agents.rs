//! A gateway with many agents: what their hellos cost it in processor time.
//!
//! The agents are simulated in this process and program no kernel; what they say is what real ones
//! say, over real sockets.

use std::path::PathBuf;
use std::time::Duration;

use ::tests::mesh::{Askers, Mesh, PATIENCE, Plan};
use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use crate::bars::Verdict;
use crate::cpu::{Memory, process_time};
use crate::machine::Machine;
use crate::output;
use crate::report::{bars, number, table};
use crate::site::check_programs;
use crate::statistics::Summary;

/// What a start stirs up has calmed down: probes come only every ten seconds then.
const SETTLE: Duration = Duration::from_secs(15);
/// Cores.
const LIMIT: f64 = 0.1;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many agents there are
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=5000))]
    agents: u16,
    /// How often it is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of one sample
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Where to write every sample; by default target/bench/agents.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Cores, MiB.
#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    agents: u16,
    without: Vec<f64>,
    with: Vec<f64>,
    resident: f64,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(&[])?;
    let run = measure(options)?;
    let json = serde_json::to_string_pretty(&run).context("cannot write the run as JSON")?;
    output::write(options.json.as_deref(), "agents.json", &(json + "\n"))?;
    print(&run);
    Ok(())
}

fn measure(options: &Options) -> Result<Run> {
    let machine = Machine::describe()?;
    let mesh = Mesh::up("agents", &[Plan::ONE, Plan::ONE])?;
    let gateway = &mesh.sites[0].gateways[0];
    let pid = gateway.process()?.pid();
    std::thread::sleep(SETTLE);
    let without = samples(options, pid)?;
    eprintln!("{} agents join", options.agents);
    let askers = Askers::start(&mesh, (0, 1), options.agents)?;
    askers.wait_until_used(&[&gateway.name], PATIENCE * 2)?;
    eprintln!("all hear the gateway");
    std::thread::sleep(SETTLE);
    let with = samples(options, pid)?;
    askers.wait_until_used(&[&gateway.name], PATIENCE)?;
    Ok(Run {
        machine,
        agents: options.agents,
        without,
        with,
        resident: Memory::of(pid)?.resident,
    })
}

fn samples(options: &Options, pid: u32) -> Result<Vec<f64>> {
    let one = |_| {
        let before = process_time(pid)?;
        let time = Duration::from_secs(options.seconds);
        std::thread::sleep(time);
        let worked = process_time(pid)?.saturating_sub(before);
        Ok(worked.as_secs_f64() / time.as_secs_f64())
    };
    (0..options.rounds).map(one).collect()
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn print(run: &Run) {
    let machine = &run.machine;
    println!(
        "a gateway with {} agents on {} x {}, Linux {}, commit {}\n",
        run.agents, machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let spread = |samples: &[f64]| {
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
        row("processor without agents", "cores", spread(&run.without)),
        row("processor with them", "cores", spread(&run.with)),
        row("memory, resident", "MiB", number(run.resident)),
    ];
    println!("{}\n", table(&rows));
    let found = Summary::of(&run.with).map(|found| found.median);
    let verdict = Verdict {
        what: "processor with them, cores".to_owned(),
        bar: format!("< {LIMIT}"),
        found: found.map_or_else(|| "-".to_owned(), number),
        met: found.map(|found| found < LIMIT),
    };
    println!("{}", table(&bars(&[verdict])));
}
