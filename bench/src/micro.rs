//! Nanoseconds and instructions per packet of each step of the packet path, alone and in memory.
//!
//! Time is the median of repeated runs. Instructions come from `perf stat` around this program
//! run again with a fixed number of turns: once with few and once with many, so that what it
//! takes to begin cancels out.

mod steps;

use std::process::Command;
use std::time::{Duration, Instant};

use ::tests::lab::find_program;
use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::steps::{STEPS, Step};
use crate::report::{number, table};
use crate::statistics::Summary;

const REPEATS: usize = 7;
/// Long enough to be scheduled out of now and then in every repeat alike.
const REPEAT_TIME: Duration = Duration::from_millis(100);
/// Turns of the longer counted run; the shorter is a tenth.
const COUNTED_TURNS: u64 = 2000;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Run this step alone and print nothing, for counters around the program
    #[arg(long, value_parser = Step::parse, requires = "turns", hide = true)]
    step: Option<Step>,
    /// How often
    #[arg(long, hide = true)]
    turns: Option<u64>,
}

/// What one step costs.
struct Cost {
    step: Step,
    nanoseconds: Summary,
    instructions: Option<f64>,
}

#[expect(
    clippy::print_stdout,
    reason = "the report is what this program is for"
)]
pub(crate) fn run(options: &Options) -> Result<()> {
    if let (Some(step), Some(turns)) = (options.step, options.turns) {
        let mut turn = step.prepare()?;
        for _ in 0..turns {
            turn();
        }
        return Ok(());
    }
    let counts = instructions_can_be_counted();
    if let Err(why) = &counts {
        eprintln!("NO INSTRUCTIONS: {why:#}");
    }
    let mut costs = Vec::new();
    for step in STEPS {
        costs.push(Cost {
            step,
            nanoseconds: time(step)?,
            instructions: counts.is_ok().then(|| count(step)).transpose()?,
        });
    }
    println!("{}", table(&rows(&costs)));
    Ok(())
}

/// Nanoseconds per packet.
fn time(step: Step) -> Result<Summary> {
    let mut turn = step.prepare()?;
    let mut repeats = Vec::new();
    // The first repeat warms up.
    for _ in 0..=REPEATS {
        let begin = Instant::now();
        let mut packets = 0;
        while begin.elapsed() < REPEAT_TIME {
            packets += turn();
        }
        let packets = u32::try_from(packets).context("too many packets for one repeat")?;
        repeats.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(packets));
    }
    repeats.remove(0);
    Summary::of(&repeats).context("nothing was timed")
}

fn instructions_can_be_counted() -> Result<()> {
    find_program("perf").context("perf is not on PATH")?;
    perf(&["true"]).map(drop)
}

/// Instructions per packet, in user space.
fn count(step: Step) -> Result<f64> {
    let mut turn = step.prepare()?;
    let per_turn = u32::try_from(turn()).context("too many packets in one turn")?;
    let few = COUNTED_TURNS / 10;
    let more = counted(step, COUNTED_TURNS)? - counted(step, few)?;
    let turns = u32::try_from(COUNTED_TURNS - few).context("too many turns")?;
    Ok(more / f64::from(turns) / f64::from(per_turn))
}

fn counted(step: Step, turns: u64) -> Result<f64> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let program = program.to_string_lossy();
    let turns = turns.to_string();
    perf(&[&program, "micro", "--step", step.name(), "--turns", &turns])
}

/// Runs a program under `perf stat` and returns its instructions in user space.
fn perf(program: &[&str]) -> Result<f64> {
    let output = Command::new("perf")
        .args([
            "stat",
            "--event",
            "instructions:u",
            "--field-separator",
            ",",
            "--",
        ])
        .args(program)
        .output()
        .context("cannot start perf")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("perf stat failed: {}", text.trim());
    }
    parse_perf(&text).with_context(|| format!("perf counts no instructions: {}", text.trim()))
}

/// The first field of the line of the event.
fn parse_perf(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("instructions"))?;
    line.split(',').next()?.parse().ok()
}

fn rows(costs: &[Cost]) -> Vec<Vec<String>> {
    let head = ["step", "ns/packet (min to max)", "instructions/packet"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for cost in costs {
        let [median, min, max] = [
            cost.nanoseconds.median,
            cost.nanoseconds.min,
            cost.nanoseconds.max,
        ]
        .map(number);
        rows.push(vec![
            cost.step.title().to_owned(),
            format!("{median} ({min} to {max})"),
            cost.instructions.map_or("-".to_owned(), number),
        ]);
    }
    // Only what was sealed can be opened, and only once, so opening is the difference.
    if let Some((both, seal)) = find(costs, Step::SealOpen).zip(find(costs, Step::Seal)) {
        let instructions = both.instructions.zip(seal.instructions);
        rows.push(vec![
            "open (the difference)".to_owned(),
            number(both.nanoseconds.median - seal.nanoseconds.median),
            instructions.map_or("-".to_owned(), |(both, seal)| number(both - seal)),
        ]);
    }
    rows
}

fn find(costs: &[Cost], step: Step) -> Option<&Cost> {
    costs.iter().find(|cost| cost.step == step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_is_read_where_it_counts_and_refused_where_it_cannot() {
        let counted = "12345,,instructions:u,100000,100.00,1.2,insn per cycle\n";
        assert_eq!(parse_perf(counted), Some(12345.0));
        let refused = "<not supported>,,instructions:u,0,100.00,,\n";
        assert_eq!(parse_perf(refused), None);
        assert_eq!(parse_perf(""), None);
    }

    #[test]
    fn opening_is_what_remains_of_both() {
        let cost = |step, nanoseconds| Cost {
            step,
            nanoseconds: Summary {
                median: nanoseconds,
                min: nanoseconds,
                max: nanoseconds,
            },
            instructions: None,
        };
        let rows = rows(&[cost(Step::Seal, 600.0), cost(Step::SealOpen, 1100.0)]);
        assert_eq!(rows[3], ["open (the difference)", "500", "-"]);
    }
}
