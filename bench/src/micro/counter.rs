//! Counts the instructions of a program in user space.

use std::process::Command;

use ::tests::lab::find_program;
use anyhow::{Context as _, Result, bail};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// The processor's own counter.
    Perf,
    /// A simulated processor, for virtual machines that hide the counter. It lacks the newest
    /// vector instructions, so code that chooses by them may take another path.
    Cachegrind,
}

impl Counter {
    /// The best there is here.
    pub(super) fn find() -> Option<Counter> {
        let works = |counter: &Counter| counter.count(&["true".to_owned()]).is_ok();
        [Counter::Perf, Counter::Cachegrind].into_iter().find(works)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Counter::Perf => "perf",
            Counter::Cachegrind => "cachegrind",
        }
    }

    fn command(self) -> &'static [&'static str] {
        match self {
            Counter::Perf => &[
                "perf",
                "stat",
                "--event=instructions:u",
                "--field-separator=,",
                "--",
            ],
            Counter::Cachegrind => &[
                "valgrind",
                "--tool=cachegrind",
                "--cache-sim=no",
                "--cachegrind-out-file=/dev/null",
            ],
        }
    }

    /// Runs a command line and returns its instructions.
    pub(super) fn count(self, line: &[String]) -> Result<f64> {
        let (program, arguments) = self.command().split_first().context("no command")?;
        find_program(program).with_context(|| format!("{program} is not on PATH"))?;
        let output = Command::new(program)
            .args(arguments)
            .args(line)
            .output()
            .with_context(|| format!("cannot start {program}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{program} failed: {}", text.trim());
        }
        let count = match self {
            Counter::Perf => parse_perf(&text),
            Counter::Cachegrind => parse_cachegrind(&text),
        };
        count.with_context(|| format!("{program} counts no instructions: {}", text.trim()))
    }
}

/// The first field of the line of the event.
fn parse_perf(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.contains("instructions"))?;
    line.split(',').next()?.parse().ok()
}

/// `==1== I   refs:      9,894,854`
fn parse_cachegrind(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|line| line.contains("I ") && line.contains("refs:"))?;
    let (_, count) = line.split_once("refs:")?;
    count.trim().replace(',', "").parse().ok()
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
    fn cachegrind_writes_its_count_with_commas() {
        let text = "==7== Cachegrind\n==7== I   refs:      9,894,854\n";
        assert_eq!(parse_cachegrind(text), Some(9_894_854.0));
        assert_eq!(parse_cachegrind("==7== Cachegrind\n"), None);
    }
}
