//! Every subject in turn between two sites: speed, processor time, round trips, memory.
//!
//! Within a round each subject is started afresh and measured, and the order moves on by one each
//! round, so that whatever drifts on the machine meets all of them alike.

mod round_trip;
mod tcp;
mod udp;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ::tests::lab::find_program;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::round_trip::RoundTrips;
use crate::cpu::{Memory, Meter};
use crate::iperf::{self, Client, Traffic};
use crate::machine::Machine;
use crate::measure::{Load, Measure, Sample, TCP, Tcp, UDP_SIZES};
use crate::run::{Entrant, Failure, Run};
use crate::subject::{Choice, Contender, RIVALS};
use crate::topology::{FAR_WORKER, Topology, Tunnel};
use crate::{chart, output, report};

/// The part of the best rival's speed that all carry while round trips are measured.
const FIXED_LOAD: f64 = 0.8;
const ROUND_TRIP_TIME: Duration = Duration::from_millis(1500);
const LOADED_SECONDS: u32 = 3;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    choice: Choice,
    /// How often each subject is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Make the wire between the gateways behave as a card that does not segment
    #[arg(long)]
    nic: bool,
    /// Seconds of one TCP sample
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Group::ALL)]
    measures: Vec<Group>,
    /// Gb/s beside the round trips under load, instead of 0.8 of the best rival's speed
    #[arg(long, value_name = "GBPS")]
    load: Option<f64>,
    /// Where to write every sample; by default target/bench/site.json or site-nic.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where to draw the medians; by default target/bench/site.svg or site-nic.svg
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    Tcp,
    Udp,
    Rtt,
    Memory,
}

impl Group {
    const ALL: [Group; 4] = [Group::Tcp, Group::Udp, Group::Rtt, Group::Memory];
}

pub(crate) fn run(options: &Options) -> Result<()> {
    check_programs(if options.nic { &["ethtool"] } else { &[] })?;
    let contenders = options.choice.contenders()?;
    let mut run = Run {
        command: std::env::args()
            .skip(1)
            .fold("bench".to_owned(), |line, word| line + " " + &word),
        machine: Machine::describe()?,
        nic: options.nic,
        rounds: usize::from(options.rounds),
        subjects: contenders.iter().map(entrant).collect(),
        fixed_load: None,
        samples: Vec::new(),
        failures: Vec::new(),
    };
    measure_all(options, &contenders, &mut run)?;
    publish(options, &run)
}

/// Root and the programs that all measurements between sites need, and some `more`.
pub(crate) fn check_programs(more: &[&str]) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run it with sudo");
    }
    for program in ["ip", "ss", "wg", "iperf3"].iter().chain(more) {
        if find_program(program).is_none() {
            bail!("{program} is not on PATH; install it and run again");
        }
    }
    Ok(())
}

fn entrant(contender: &Contender) -> Entrant {
    let path = contender
        .program
        .as_ref()
        .map(|program| program.path.clone());
    let version = path.as_ref().map(|path| {
        let output = Command::new(path).arg("--version").output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default()
            .lines()
            .next()
            .unwrap_or("unknown")
            .to_owned()
    });
    Entrant {
        subject: contender.subject,
        program: path,
        version,
    }
}

fn measure_all(options: &Options, contenders: &[Contender], run: &mut Run) -> Result<()> {
    let topology = Topology::new(options.nic)?;
    let _server = iperf::server(&topology.far.worker)?;
    rounds("", contenders, run, |round, contender, run| {
        let visit = Visit::begin(&topology, contender, round)?;
        visit.unloaded(options, run);
        Ok(())
    });
    if !options.measures.contains(&Group::Rtt) {
        return Ok(());
    }
    // Only now is it known what the best rival reaches.
    run.fixed_load = options.load.or_else(|| fixed_load(run));
    let Some(load) = run.fixed_load else {
        eprintln!("no round trips under load: no rival's speed was measured; --load names one");
        return Ok(());
    };
    rounds("loaded ", contenders, run, |round, contender, run| {
        let visit = Visit::begin(&topology, contender, round)?;
        let values = visit.loaded(load)?;
        visit.record(run, values);
        Ok(())
    });
    Ok(())
}

fn fixed_load(run: &Run) -> Option<f64> {
    let speeds = RIVALS.map(|rival| run.median(rival, Measure::TcpRate(Tcp::One)));
    let best = speeds.into_iter().flatten().max_by(f64::total_cmp)?;
    Some(FIXED_LOAD * best)
}

/// Visits every contender once a round. One that fails is recorded as failed; the others go on.
fn rounds(
    what: &str,
    contenders: &[Contender],
    run: &mut Run,
    visit: impl Fn(usize, &Contender, &mut Run) -> Result<()>,
) {
    for round in 0..run.rounds {
        for position in 0..contenders.len() {
            let contender = &contenders[(round + position) % contenders.len()];
            let name = contender.subject.name();
            eprintln!("{what}round {} of {}: {name}", round + 1, run.rounds);
            if let Err(error) = visit(round + 1, contender, run) {
                fail(run, round + 1, contender, &error);
            }
        }
    }
}

fn fail(run: &mut Run, round: usize, contender: &Contender, error: &anyhow::Error) {
    eprintln!("  {}: {error:#}", contender.subject.name());
    run.failures.push(Failure {
        round,
        subject: contender.subject,
        why: format!("{error:#}"),
    });
}

/// One subject in one round.
struct Visit<'a> {
    topology: &'a Topology,
    contender: &'a Contender,
    round: usize,
    tunnel: Tunnel,
    meter: Meter,
}

type Values = Vec<(Measure, f64)>;

impl<'a> Visit<'a> {
    fn begin(topology: &'a Topology, contender: &'a Contender, round: usize) -> Result<Visit<'a>> {
        let tunnel = Tunnel::start(topology, contender)?;
        let meter = Meter::new(&tunnel.pids());
        Ok(Visit {
            topology,
            contender,
            round,
            tunnel,
            meter,
        })
    }

    /// Everything that needs no load beside it. What fails does not keep the rest from being measured.
    fn unloaded(&self, options: &Options, run: &mut Run) {
        let wanted = |group| options.measures.contains(&group);
        if wanted(Group::Tcp) {
            for kind in TCP {
                self.take(run, self.tcp(kind, options.seconds));
            }
        }
        if wanted(Group::Udp) {
            for size in UDP_SIZES {
                self.take(run, self.udp(size));
            }
        }
        if wanted(Group::Rtt) {
            self.take(run, self.idle());
        }
        // Last: it is what remains after the work.
        if wanted(Group::Memory) {
            self.take(run, self.memory());
        }
    }

    fn take(&self, run: &mut Run, outcome: Result<Values>) {
        match outcome {
            Ok(values) => self.record(run, values),
            Err(error) => fail(run, self.round, self.contender, &error),
        }
    }

    fn record(&self, run: &mut Run, values: Values) {
        for (measure, value) in values {
            eprintln!(
                "  {} {} {}",
                measure.name(),
                report::number(value),
                measure.unit()
            );
            run.samples.push(Sample {
                round: self.round,
                subject: self.contender.subject,
                measure,
                value,
            });
        }
    }

    fn has_gateways(&self) -> bool {
        self.tunnel.near().is_some()
    }

    fn tcp(&self, kind: Tcp, seconds: u32) -> Result<Values> {
        let mut values = tcp::sample(self, kind, seconds)?.to_vec();
        values.retain(|(measure, _)| {
            self.has_gateways() || !matches!(measure, Measure::TcpGatewayCpu(_))
        });
        Ok(values)
    }

    fn udp(&self, size: u16) -> Result<Values> {
        let Some(capacity) = udp::capacity(self, size)? else {
            bail!("no rate of udp {size} was found that loses less than 1 %");
        };
        let mut values = vec![(Measure::UdpRate(size), capacity.rate / 1e3)];
        if self.has_gateways() {
            values.push((Measure::UdpGatewayCpu(size), capacity.gateway_cpu * 1e6));
        }
        Ok(values)
    }

    fn idle(&self) -> Result<Values> {
        Ok(round_trips(Load::Idle, &self.echo(ROUND_TRIP_TIME)?))
    }

    fn echo(&self, length: Duration) -> Result<RoundTrips> {
        let Topology { near, far, .. } = self.topology;
        let trips = round_trip::measure(&near.worker, &far.worker, FAR_WORKER, length)?;
        if trips.unanswered > 0 {
            eprintln!(
                "  {} of {} questions without an answer",
                trips.unanswered, trips.count
            );
        }
        Ok(trips)
    }

    /// Round trips beside a TCP stream of `load` Gb/s.
    fn loaded(&self, load: f64) -> Result<Values> {
        let traffic = Traffic::Tcp {
            streams: 1,
            reverse: false,
            rate: Some(load * 1e9),
        };
        let worker = &self.topology.near.worker;
        let client = Client::start(worker, FAR_WORKER, traffic, LOADED_SECONDS)?;
        // The stream settles first, and outlasts the questions.
        std::thread::sleep(Duration::from_millis(500));
        let length = Duration::from_secs(LOADED_SECONDS.into()) - Duration::from_secs(1);
        let trips = self.echo(length)?;
        let transfer = client.finish()?;
        let mut values = round_trips(Load::Fixed, &trips);
        values.push((Measure::LoadReached, transfer.gigabits_per_second()));
        Ok(values)
    }

    fn memory(&self) -> Result<Values> {
        let Some(device) = self.tunnel.near() else {
            return Ok(Values::new());
        };
        let memory = Memory::of(device.process().pid())?;
        Ok(vec![
            (Measure::Resident, memory.resident),
            (Measure::Proportional, memory.proportional),
        ])
    }
}

fn round_trips(load: Load, trips: &RoundTrips) -> Values {
    vec![
        (Measure::RoundTrip(load, 50), trips.p50),
        (Measure::RoundTrip(load, 99), trips.p99),
    ]
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
fn publish(options: &Options, run: &Run) -> Result<()> {
    let name = if options.nic { "site-nic" } else { "site" };
    let json = serde_json::to_string_pretty(run).context("cannot write the run as JSON")?;
    output::write(
        options.json.as_deref(),
        &format!("{name}.json"),
        &(json + "\n"),
    )?;
    output::write(
        options.svg.as_deref(),
        &format!("{name}.svg"),
        &chart::draw(run),
    )?;
    println!("{}", report::text(run));
    Ok(())
}
