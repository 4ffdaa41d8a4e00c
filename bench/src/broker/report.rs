//! A run with a broker as text.

use super::{Change, Run};
use crate::bars::Verdict;
use crate::report::{bars, number, table};
use crate::statistics::{Summary, quantile};

/// Seconds.
const REACHED_LIMIT: f64 = 2.0;
const BACK_LIMIT: f64 = 30.0;
const JOIN_LIMIT: f64 = 2.0;
/// MiB.
const MEMORY_LIMIT: f64 = 256.0;
const GROWTH_LIMIT: f64 = 32.0;

pub(super) fn text(run: &Run) -> String {
    let machine = &run.machine;
    let mut head = format!(
        "{} sites and their broker on {} x {}, Linux {}, commit {}",
        run.sites, machine.cores, machine.processor, machine.kernel, machine.commit
    );
    if machine.background_cores > 0.05 {
        head += &format!(
            "\nNOT QUIET: {:.2} cores were busy before",
            machine.background_cores
        );
    }
    let sections = [head, table(&rows(run)), table(&bars(&judge(run)))];
    sections.join("\n\n") + "\n"
}

fn rows(run: &Run) -> Vec<Vec<String>> {
    let mut rows = vec![["measure", "unit", "found"].map(str::to_owned).to_vec()];
    rows.extend(watching(run));
    rows.extend(trouble(run));
    rows
}

fn watching(run: &Run) -> Vec<Vec<String>> {
    let all = all_times(run);
    let counted = format!("{} x {}", run.changes.len(), run.sites - 1);
    let last = spread(run, |change| change.times.last().copied());
    let cpu = spread(run, |change| Some(change.cpu));
    vec![
        row("all sites joined", "s", Some(number(run.all_joined))),
        row(
            &format!("a change at one site, p50 of {counted}"),
            "ms",
            quantile(&all, 50).map(milliseconds),
        ),
        row("the same, p99", "ms", quantile(&all, 99).map(milliseconds)),
        row("a change at the last site, median (min to max)", "ms", last),
        row("broker's processor time for a change", "ms", cpu),
        row(
            "broker's memory, resident",
            "MiB",
            Some(number(run.resident)),
        ),
        row("the same, peak", "MiB", Some(number(run.peak))),
    ]
}

fn trouble(run: &Run) -> Vec<Vec<String>> {
    let flood = &run.flood;
    vec![
        row(
            "all sites back after a crash",
            "s",
            Some(number(run.all_back)),
        ),
        row(
            "the same, from nothing",
            "s",
            Some(number(run.all_back_anew)),
        ),
        row(
            "broker's memory then, peak",
            "MiB",
            Some(number(run.peak_after)),
        ),
        row(
            &format!("honest join in a flood of {}, the slowest", flood.size),
            "ms",
            slowest_join(run).map(milliseconds),
        ),
        row(
            "connections the flood opened",
            "",
            Some(flood.opened.to_string()),
        ),
        row(
            "broker's memory in the flood, growth",
            "MiB",
            Some(number(flood.grown)),
        ),
    ]
}

fn row(what: &str, unit: &str, found: Option<String>) -> Vec<String> {
    let found = found.unwrap_or_else(|| "-".to_owned());
    vec![what.to_owned(), unit.to_owned(), found]
}

fn judge(run: &Run) -> Vec<Verdict> {
    let memory = run.peak.max(run.peak_after);
    vec![
        at_most(
            "a change reaches all sites, p99",
            (REACHED_LIMIT, "s"),
            quantile(&all_times(run), 99),
        ),
        below("broker's memory, peak", (MEMORY_LIMIT, "MiB"), memory),
        at_most(
            "all sites back after a crash",
            (BACK_LIMIT, "s"),
            Some(run.all_back.max(run.all_back_anew)),
        ),
        at_most(
            "honest join in the flood",
            (JOIN_LIMIT, "s"),
            slowest_join(run),
        ),
        below(
            "memory the flood costs",
            (GROWTH_LIMIT, "MiB"),
            run.flood.grown,
        ),
    ]
}

fn at_most(what: &str, (limit, unit): (f64, &str), found: Option<f64>) -> Verdict {
    Verdict {
        what: what.to_owned(),
        bar: format!("<= {limit} {unit}"),
        found: found.map_or("-".to_owned(), |found| format!("{} {unit}", number(found))),
        met: found.map(|found| found <= limit),
    }
}

fn below(what: &str, (limit, unit): (f64, &str), found: f64) -> Verdict {
    Verdict {
        what: what.to_owned(),
        bar: format!("< {limit} {unit}"),
        found: format!("{} {unit}", number(found)),
        met: Some(found < limit),
    }
}

/// Of all sites and changes, ascending.
fn all_times(run: &Run) -> Vec<f64> {
    let times = run.changes.iter().flat_map(|change| &change.times);
    let mut times: Vec<f64> = times.copied().collect();
    times.sort_by(f64::total_cmp);
    times
}

fn slowest_join(run: &Run) -> Option<f64> {
    let joins = run.flood.honest_joins.iter().copied();
    joins.max_by(f64::total_cmp)
}

fn spread(run: &Run, value: fn(&Change) -> Option<f64>) -> Option<String> {
    let values: Vec<f64> = run.changes.iter().filter_map(value).collect();
    let summary = Summary::of(&values)?;
    let [median, min, max] = [summary.median, summary.min, summary.max].map(milliseconds);
    Some(format!("{median} ({min} to {max})"))
}

fn milliseconds(seconds: f64) -> String {
    number(seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::super::FloodRun;
    use super::*;
    use crate::report::tests::example;

    fn run() -> Run {
        let change = Change {
            times: vec![0.1, 0.2, 0.4],
            cpu: 0.05,
        };
        Run {
            machine: example().machine,
            sites: 4,
            all_joined: 1.0,
            changes: vec![change.clone(), change],
            resident: 20.0,
            peak: 30.0,
            all_back: 3.0,
            all_back_anew: 31.0,
            peak_after: 300.0,
            flood: FloodRun {
                size: 10,
                opened: 20,
                grown: 1.5,
                honest_joins: vec![0.1, 2.5, 0.2],
            },
        }
    }

    #[test]
    fn each_bar_is_judged_by_the_worst_that_was_found() {
        let verdicts = judge(&run());
        let met: Vec<Option<bool>> = verdicts.iter().map(|verdict| verdict.met).collect();
        let expected = [true, false, false, false, true].map(Some);
        assert_eq!(met, expected, "{verdicts:?}");
        assert_eq!(verdicts[1].found, "300 MiB");
    }

    #[test]
    fn nothing_is_judged_of_changes_that_were_not_made() {
        let mut run = run();
        run.changes.clear();
        assert_eq!(judge(&run)[0].met, None);
        assert!(text(&run).contains("not judged"));
    }

    #[test]
    fn times_of_all_changes_count_together() {
        assert_eq!(all_times(&run()), [0.1, 0.1, 0.2, 0.2, 0.4, 0.4]);
    }
}
