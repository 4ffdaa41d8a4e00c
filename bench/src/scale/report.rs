//! A scale run as text.

use super::cases::{Case, MOST, ONE, THOUSAND, THOUSAND_SESSIONS, cases};
use super::{Run, Sample};
use crate::report::{number, table};
use crate::statistics::{Summary, median};
use crate::subject::CAUSEWAY;

const SPEED_LIMIT: f64 = 0.95;
const MEMORY_LIMIT: f64 = 24.0;
/// KiB for one idle peer.
const PEER_LIMIT: f64 = 16.0;

pub(super) fn text(run: &Run) -> String {
    let machine = &run.machine;
    let mut head = format!(
        "{}: {} x {}, Linux {}, commit {}",
        run.subject.name(),
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.commit
    );
    if machine.background_cores > 0.05 {
        head += &format!(
            "\nNOT QUIET: {:.2} cores were busy before",
            machine.background_cores
        );
    }
    let mut sections = vec![head, table(&rows(run))];
    if run.subject == CAUSEWAY {
        sections.push(table(&bars(run)));
    }
    sections.join("\n\n") + "\n"
}

fn rows(run: &Run) -> Vec<Vec<String>> {
    let head = [
        "case",
        "busy peer Gb/s",
        "of one peer's",
        "resident MiB",
        "quiet ms/s",
        "sessions",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for case in cases() {
        let own = |value: fn(&Sample) -> f64| cell(&values(run, case, value));
        let sessions = samples(run, case).map(|sample| sample.sessions).min();
        rows.push(vec![
            case.name(),
            own(|sample| sample.speed),
            cell(&ratios(run, case)),
            own(|sample| sample.resident),
            own(|sample| sample.quiet),
            sessions.map_or("-".to_owned(), |count| count.to_string()),
        ]);
    }
    rows
}

fn samples(run: &Run, case: Case) -> impl Iterator<Item = &Sample> {
    run.samples.iter().filter(move |sample| sample.case == case)
}

fn values(run: &Run, case: Case, value: fn(&Sample) -> f64) -> Vec<f64> {
    samples(run, case).map(value).collect()
}

/// The speed against that of one peer in the same round, so that drift cancels.
fn ratios(run: &Run, case: Case) -> Vec<f64> {
    let one = |round| samples(run, ONE).find(|sample| sample.round == round);
    samples(run, case)
        .filter_map(|sample| Some(sample.speed / one(sample.round)?.speed))
        .collect()
}

fn cell(values: &[f64]) -> String {
    Summary::of(values).map_or("-".to_owned(), |summary| {
        let [median, min, max] = [summary.median, summary.min, summary.max].map(number);
        format!("{median} ({min} to {max})")
    })
}

fn bars(run: &Run) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["measure", "bar", "found", "met"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let speed = median(&ratios(run, MOST));
    let met = speed.map(|ratio| ratio >= SPEED_LIMIT);
    rows.push(bar(
        MOST.name(),
        format!(">= {SPEED_LIMIT} of one peer"),
        speed,
        met,
    ));
    let resident = |case| median(&values(run, case, |sample| sample.resident));
    let one = resident(ONE);
    let met = one.map(|mebibytes| mebibytes <= MEMORY_LIMIT);
    rows.push(bar(
        "memory, one peer".to_owned(),
        format!("<= {MEMORY_LIMIT} MiB"),
        one,
        met,
    ));
    for case in [THOUSAND, THOUSAND_SESSIONS] {
        let each = resident(case)
            .zip(one)
            .map(|(all, one)| per_peer(case, all - one));
        let met = each.map(|kibibytes| kibibytes <= PEER_LIMIT);
        let what = format!("memory each, {}", case.name());
        rows.push(bar(what, format!("<= {PEER_LIMIT} KiB"), each, met));
    }
    rows
}

/// MiB more for all, as KiB for each idle peer.
fn per_peer(case: Case, more: f64) -> f64 {
    more * 1024.0 / f64::from(case.peers - 1)
}

fn bar(what: String, bar: String, found: Option<f64>, met: Option<bool>) -> Vec<String> {
    let met = match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "not judged",
    };
    vec![
        what,
        bar,
        found.map_or("-".to_owned(), number),
        met.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    fn sample(round: u8, case: Case, speed: f64, resident: f64) -> Sample {
        Sample {
            round,
            case,
            speed,
            resident,
            quiet: 0.0,
            sessions: 0,
        }
    }

    fn two_rounds() -> Run {
        Run {
            machine: example().machine,
            subject: CAUSEWAY,
            samples: vec![
                sample(1, ONE, 10.0, 10.0),
                sample(1, MOST, 9.6, 40.0),
                sample(2, ONE, 5.0, 10.0),
                sample(2, MOST, 4.7, 40.0),
                sample(2, THOUSAND, 5.0, 10.0 + 999.0 * 20.0 / 1024.0),
            ],
        }
    }

    #[test]
    fn speeds_are_compared_within_their_round() {
        let ratios = ratios(&two_rounds(), MOST);
        assert!(
            (ratios[0] - 0.96).abs() < 1e-9 && (ratios[1] - 0.94).abs() < 1e-9,
            "{ratios:?}"
        );
    }

    #[test]
    fn bars_are_judged_where_they_were_measured() {
        let bars = bars(&two_rounds());
        let met: Vec<&str> = bars.iter().skip(1).map(|row| row[3].as_str()).collect();
        // 0.95 of the speed, 10 MiB, 20 KiB each, and no case with sessions.
        assert_eq!(met, ["yes", "yes", "NO", "not judged"]);
        assert_eq!(bars[3][2], "20.0");
    }
}
