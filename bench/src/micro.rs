//! Nanoseconds and instructions per packet of each step of the packet path, alone and in memory.
//!
//! Time is that of the thread on a processor, the median of repeats that take turns. Instructions come from counters around this program run
//! again with a fixed number of turns: once with few and once with many, so that what it takes to
//! begin cancels out.

mod counter;
mod steps;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use nix::time::{ClockId, clock_gettime};

use self::counter::Counter;
use self::steps::{STEPS, Step, Turn};
use crate::report::{number, table};
use crate::statistics::Summary;

const REPEATS: usize = 7;
const REPEAT_TIME: Duration = Duration::from_millis(100);
const TURNS_BETWEEN_LOOKS: usize = 16;
/// Turns of the longer counted run; the shorter is a tenth.
const COUNTED_TURNS: u32 = 500;

#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Run this step alone and print nothing, for counters around the program
    #[arg(long, value_parser = Step::parse, requires = "turns", hide = true)]
    step: Option<Step>,
    /// How often
    #[arg(long, hide = true)]
    turns: Option<u32>,
}

/// What one step costs for each packet.
struct Cost {
    name: &'static str,
    /// Of every repeat.
    nanoseconds: Vec<f64>,
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
    let counter = Counter::find();
    let mut costs = Vec::new();
    for (step, nanoseconds) in STEPS.into_iter().zip(time_all()?) {
        costs.push(Cost {
            name: step.title(),
            nanoseconds,
            instructions: counter.map(|counter| count(counter, step)).transpose()?,
        });
    }
    let steps: Vec<(&Step, &Cost)> = STEPS.iter().zip(&costs).collect();
    let open = opening(&steps);
    costs.extend(open);
    match counter {
        Some(counter) => println!("instructions counted by {}\n", counter.name()),
        None => println!("NO INSTRUCTIONS: perf does not count here, and there is no valgrind\n"),
    }
    println!("{}", table(&rows(&costs)));
    Ok(())
}

/// Nanoseconds per packet of every step in every repeat.
fn time_all() -> Result<Vec<Vec<f64>>> {
    let mut turns = Vec::new();
    for step in STEPS {
        turns.push((step.prepare()?, Vec::new()));
    }
    // The first repeat warms up.
    for repeat in 0..=REPEATS {
        for (turn, times) in &mut turns {
            let time = time(turn)?;
            if repeat > 0 {
                times.push(time);
            }
        }
    }
    Ok(turns.into_iter().map(|(_, times)| times).collect())
}

fn time(turn: &mut Turn) -> Result<f64> {
    let begin = thread_time()?;
    let (mut packets, mut used) = (0, Duration::ZERO);
    while used < REPEAT_TIME {
        for _ in 0..TURNS_BETWEEN_LOOKS {
            packets += turn();
        }
        used = thread_time()? - begin;
    }
    let packets = u32::try_from(packets).context("too many packets for one repeat")?;
    Ok(used.as_secs_f64() * 1e9 / f64::from(packets))
}

/// Time of this thread on a processor: what others do meanwhile does not count.
fn thread_time() -> Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    Ok(time.context("cannot read the thread's clock")?.into())
}

/// Instructions per packet, in user space.
fn count(counter: Counter, step: Step) -> Result<f64> {
    let mut turn = step.prepare()?;
    let per_turn = u32::try_from(turn()).context("too many packets in one turn")?;
    let few = COUNTED_TURNS / 10;
    let more = counter.count(&again(step, COUNTED_TURNS)?)? - counter.count(&again(step, few)?)?;
    Ok(more / f64::from(COUNTED_TURNS - few) / f64::from(per_turn))
}

/// The command line that runs a step of this program alone.
fn again(step: Step, turns: u32) -> Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let turns = turns.to_string();
    let words = ["micro", "--step", step.name(), "--turns", &turns];
    let mut line = vec![program.to_string_lossy().into_owned()];
    line.extend(words.map(str::to_owned));
    Ok(line)
}

/// Only what was sealed can be opened, and only once, so opening is the difference.
fn opening(costs: &[(&Step, &Cost)]) -> Option<Cost> {
    let of = |wanted| {
        costs
            .iter()
            .find(|(step, _)| **step == wanted)
            .map(|(_, cost)| cost)
    };
    let (both, seal) = (of(Step::SealOpen)?, of(Step::Seal)?);
    let pairs = both.nanoseconds.iter().zip(&seal.nanoseconds);
    Some(Cost {
        name: "open 1420 bytes (the difference)",
        nanoseconds: pairs.map(|(both, seal)| both - seal).collect(),
        instructions: both
            .instructions
            .zip(seal.instructions)
            .map(|(both, seal)| both - seal),
    })
}

fn rows(costs: &[Cost]) -> Vec<Vec<String>> {
    let head = ["step", "ns/packet (min to max)", "instructions/packet"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(costs.iter().map(|cost| {
        let time = Summary::of(&cost.nanoseconds).map(|time| {
            let [median, min, max] = [time.median, time.min, time.max].map(number);
            format!("{median} ({min} to {max})")
        });
        vec![
            cost.name.to_owned(),
            time.unwrap_or("-".to_owned()),
            cost.instructions.map_or("-".to_owned(), number),
        ]
    }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_is_what_remains_of_both_in_the_same_repeat() {
        let cost = |nanoseconds: [f64; 2], instructions| Cost {
            name: "",
            nanoseconds: nanoseconds.to_vec(),
            instructions,
        };
        let (seal, both) = (
            cost([600.0, 900.0], Some(10.0)),
            cost([1100.0, 1800.0], Some(25.0)),
        );
        let open = opening(&[(&Step::Seal, &seal), (&Step::SealOpen, &both)]).unwrap();
        assert_eq!(open.nanoseconds, [500.0, 900.0]);
        assert_eq!(open.instructions, Some(15.0));
        assert!(opening(&[(&Step::Seal, &seal)]).is_none());
    }

    #[test]
    fn a_thread_that_sleeps_uses_no_time() {
        let begin = thread_time().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time().unwrap() - begin < Duration::from_millis(25));
    }
}
