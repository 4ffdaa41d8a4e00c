//! One broker process and many sites that watch: how fast a change reaches all, what the broker
//! takes, how all come back after it was killed, and what a flood of half-open connections does.
//!
//! The sites are simulated in this process, over TLS connections of their own, and share the
//! processors with the broker. What one of them has verified, the others take as verified.

mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::tests::broker::crowd::{Crowd, prepare};
use ::tests::broker::flood::Flood;
use ::tests::broker::{Broker, Mesh, look};
use ::tests::lab::wait_for;
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::cpu::{Memory, process_time};
use crate::machine::Machine;
use crate::output;

/// What takes longer has failed, whatever the bar.
const LIMIT: Duration = Duration::from_secs(300);
const SPREAD_LIMIT: Duration = Duration::from_secs(30);
const HONEST_JOINS: usize = 5;
const KIB_PER_MIB: f64 = 1024.0;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many sites are connected and watch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(2..=10_000))]
    sites: u16,
    /// How many changes are published, one after the other
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    changes: u16,
    /// How many connections the flood keeps half open
    #[arg(long, default_value_t = 10_000)]
    flood: usize,
    /// Where to write every sample; by default target/bench/broker.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Times in seconds, memory in MiB.
#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    sites: u16,
    /// From the start of the sites until each has joined, published and has everybody's record.
    all_joined: f64,
    changes: Vec<Change>,
    /// After the changes; the highest so far.
    resident: f64,
    peak: f64,
    /// From starting the killed broker until all sites are back and have everybody's record.
    all_back: f64,
    /// The same when all sites have lost what they knew.
    all_back_anew: f64,
    /// Of the broker, the higher of the two times.
    peak_after: f64,
    flood: FloodRun,
}

#[derive(Clone, Debug, Serialize)]
struct Change {
    /// How long each other site took to have it, ascending.
    times: Vec<f64>,
    /// Processor time of the broker.
    cpu: f64,
}

#[derive(Clone, Debug, Serialize)]
struct FloodRun {
    size: usize,
    /// In the course of it, those opened anew included.
    opened: usize,
    /// The broker's peak above what it had before.
    grown: f64,
    honest_joins: Vec<f64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let machine = Machine::describe()?;
    let watched = watch(options, machine)?;
    publish(options, &watched)
}

fn watch(options: &Options, machine: Machine) -> Result<Run> {
    let mut mesh = Mesh::at_rest("bench")?;
    eprintln!("signing {} grants", options.sites);
    let (authority, tickets) = prepare(&mesh, options.sites.into())?;
    mesh.brokers[0].start()?;
    let begin = Instant::now();
    let mut crowd = Crowd::start(&mesh, &authority, tickets)?;
    crowd.wait_until_all_know_all(LIMIT)?;
    let all_joined = begin.elapsed().as_secs_f64();
    eprintln!("all sites have joined after {all_joined:.1} s");
    let changes = spread(options, &mesh.brokers[0], &mut crowd)?;
    let pid = mesh.brokers[0].process().pid();
    let (resident, peak) = (Memory::of(pid)?.resident, peak(pid)?);
    let all_back = restart(&mut mesh.brokers[0], &mut crowd)?;
    // What came back must work.
    crowd.spread(0, SPREAD_LIMIT)?;
    let peak_once = self::peak(mesh.brokers[0].process().pid())?;
    crowd.forget(LIMIT)?;
    let all_back_anew = restart(&mut mesh.brokers[0], &mut crowd)?;
    crowd.spread(1, SPREAD_LIMIT)?;
    let peak_twice = self::peak(mesh.brokers[0].process().pid())?;
    drop(crowd);
    drop(mesh);
    Ok(Run {
        machine,
        sites: options.sites,
        all_joined,
        changes,
        resident,
        peak,
        all_back,
        all_back_anew,
        peak_after: peak_once.max(peak_twice),
        flood: flood(options.flood)?,
    })
}

fn spread(options: &Options, broker: &Broker, crowd: &mut Crowd) -> Result<Vec<Change>> {
    let pid = broker.process().pid();
    let mut changes = Vec::new();
    for number in 0..options.changes {
        // Spread over all sites, so that no node publishes more often than it may.
        let publisher = usize::from(number) * 7919 % crowd.len();
        let before = process_time(pid)?;
        let times = crowd.spread(publisher, SPREAD_LIMIT)?;
        let cpu = process_time(pid)?.saturating_sub(before).as_secs_f64();
        let mut times: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        eprintln!(
            "change {}: all have it after {:.0} ms",
            number + 1,
            times.last().copied().unwrap_or_default() * 1e3
        );
        changes.push(Change { times, cpu });
    }
    Ok(changes)
}

fn restart(broker: &mut Broker, crowd: &mut Crowd) -> Result<f64> {
    broker.kill();
    crowd.wait_until_all_are_lost(LIMIT)?;
    let begin = Instant::now();
    broker.start_without_waiting()?;
    crowd.wait_until_all_know_all(LIMIT)?;
    let all_back = begin.elapsed().as_secs_f64();
    eprintln!("all sites are back after {all_back:.1} s");
    Ok(all_back)
}

/// At a broker of its own, so that its memory is the flood's alone.
fn flood(size: usize) -> Result<FloodRun> {
    let mesh = Mesh::new("flood")?;
    let broker = &mesh.brokers[0];
    let pid = broker.process().pid();
    let uses = HONEST_JOINS.to_string();
    let token = mesh.token("paris", "10.1.0.0/16", &["--uses", &uses])?;
    let before = Memory::of(pid)?.resident;
    let flood = Flood::start(broker.address, size)?;
    wait_for("the flood is there", LIMIT, || flood.opened() >= size)?;
    let mut honest_joins = Vec::new();
    for number in 0..HONEST_JOINS {
        let said = mesh.join(&format!("n{number}"), &token)?.expect_success()?;
        honest_joins.push(said.took.as_secs_f64());
        eprintln!(
            "an honest join took {:.0} ms, {} connections are open",
            said.took.as_secs_f64() * 1e3,
            flood.open()
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    ensure!(look::healthy(broker.http), "the flooded broker is not well");
    Ok(FloodRun {
        size,
        opened: flood.opened(),
        grown: peak(pid)? - before,
        honest_joins,
    })
}

fn peak(pid: u32) -> Result<f64> {
    let kibibytes = u32::try_from(look::peak_resident(pid)?).context("more than 4 TiB")?;
    Ok(f64::from(kibibytes) / KIB_PER_MIB)
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn publish(options: &Options, run: &Run) -> Result<()> {
    let json = serde_json::to_string_pretty(run).context("cannot write the run as JSON")?;
    output::write(options.json.as_deref(), "broker.json", &(json + "\n"))?;
    println!("{}", report::text(run));
    Ok(())
}
