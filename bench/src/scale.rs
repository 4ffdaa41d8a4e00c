//! Many peers and many allowed-ips: what they cost the one peer that is busy.
//!
//! Cases take turns as subjects do between sites. Idle peers are configured and silent; in the
//! last case each of them has a session as well.

mod cases;
mod crowd;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use self::cases::{Case, cases};
use self::crowd::Crowd;
use crate::cpu::{Memory, process_time};
use crate::iperf::{self, Traffic};
use crate::machine::Machine;
use crate::output;
use crate::site::check_programs;
use crate::subject::{CAUSEWAY, Contender, Programs, Subject};
use crate::topology::{FAR_WORKER, Topology, Tunnel};

/// Timers and a runtime's helpers calm down before the quiet is measured.
const SETTLE: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to measure
    #[arg(long, value_delimiter = ',', value_parser = Subject::parse, default_value = CAUSEWAY.name())]
    subjects: Vec<Subject>,
    #[command(flatten)]
    programs: Programs,
    /// How often each case is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Seconds of one TCP sample
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Where to write every sample; by default target/bench/scale.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One subject's measurements of all cases.
#[derive(Clone, Debug, Serialize)]
struct Run {
    machine: Machine,
    subject: Subject,
    samples: Vec<Sample>,
}

/// One case in one round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    round: u8,
    case: Case,
    /// TCP of the busy peer, Gb/s.
    speed: f64,
    /// MiB resident after the traffic.
    resident: f64,
    /// Milliseconds on a processor per second of rest.
    quiet: f64,
    /// How many of the idle peers have a session.
    sessions: usize,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(&[])?;
    let mut runs = Vec::new();
    for &subject in &options.subjects {
        let contender = options.programs.contender(subject)?;
        runs.push(measure(options, &contender)?);
    }
    publish(options, &runs)
}

fn measure(options: &Options, contender: &Contender) -> Result<Run> {
    let machine = Machine::describe()?;
    let topology = Topology::new(false)?;
    topology.add_crowd()?;
    let _server = iperf::server(&topology.far.worker)?;
    let crowd = Crowd::new(cases().iter().map(|case| case.peers).max().unwrap_or(0))?;
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        let mut order = cases();
        let turn = usize::from(round) % order.len();
        order.rotate_left(turn);
        for case in order {
            let name = contender.subject.name();
            eprintln!(
                "round {} of {}: {name}, {}",
                round + 1,
                options.rounds,
                case.name()
            );
            let sample = visit(options, &topology, contender, (&crowd, case))
                .with_context(|| format!("{name} with {}", case.name()))?;
            samples.push(Sample {
                round: round + 1,
                ..sample
            });
        }
    }
    Ok(Run {
        machine,
        subject: contender.subject,
        samples,
    })
}

fn visit(
    options: &Options,
    topology: &Topology,
    contender: &Contender,
    (crowd, case): (&Crowd, Case),
) -> Result<Sample> {
    let tunnel = Tunnel::start(topology, contender)?;
    let device = tunnel.near().context("the bare path has no peers")?;
    let pid = device.process().pid();
    crowd.configure(device, case)?;
    let sessions = if case.sessions {
        crowd.shake_hands(topology, device, case)?
    } else {
        0
    };
    let traffic = Traffic::Tcp {
        streams: 1,
        reverse: false,
        rate: None,
    };
    let worker = &topology.near.worker;
    let speed = iperf::run(worker, FAR_WORKER, traffic, options.seconds)?.gigabits_per_second();
    std::thread::sleep(SETTLE);
    let before = process_time(pid)?;
    std::thread::sleep(QUIET);
    let worked = process_time(pid)?.saturating_sub(before);
    let resident = Memory::of(pid)?.resident;
    eprintln!("  {speed:.2} Gb/s, {resident:.1} MiB, {sessions} idle sessions");
    Ok(Sample {
        round: 0,
        case,
        speed,
        resident,
        quiet: worked.as_secs_f64() * 1e3 / QUIET.as_secs_f64(),
        sessions,
    })
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn publish(options: &Options, runs: &[Run]) -> Result<()> {
    let json = serde_json::to_string_pretty(runs).context("cannot write the run as JSON")?;
    output::write(options.json.as_deref(), "scale.json", &(json + "\n"))?;
    for run in runs {
        println!("{}", report::text(run));
    }
    Ok(())
}
