//! A run as text: medians with their spread, ratios, and the bars.

use std::fmt::Write as _;

use crate::bars::{Verdict, judge};
use crate::measure::Measure;
use crate::run::{Entrant, Run};
use crate::statistics::Summary;
use crate::subject::{CAUSEWAY, Subject};

/// The whole report, as Markdown that also reads well as it is.
pub(crate) fn text(run: &Run) -> String {
    let subjects: Vec<Subject> = run.subjects.iter().map(|entrant| entrant.subject).collect();
    let mut sections = vec![heading(run), table(&medians(run, &subjects))];
    if run.has(CAUSEWAY) && subjects.len() > 1 {
        sections
            .push("causeway as a multiple of each (medians); `+` is better, `-` worse:".to_owned());
        sections.push(table(&ratios(run, &subjects)));
        sections.push(table(&bars(&judge(run))));
    }
    sections.extend(failures(run));
    sections.join("\n\n") + "\n"
}

fn heading(run: &Run) -> String {
    let machine = &run.machine;
    let mut text = format!(
        "`{}`\n{} x {}, Linux {}, commit {}, {} rounds{}, machine time from {}",
        run.command,
        machine.cores,
        machine.processor,
        machine.kernel,
        machine.commit,
        run.rounds,
        if run.nic {
            ", outer wire as a card that does not segment"
        } else {
            ""
        },
        machine.cpu_source,
    );
    if machine.background_cores > 0.05 {
        let cores = machine.background_cores;
        let _ = write!(
            text,
            "\nNOT QUIET: {cores:.2} cores were busy before the run began"
        );
    }
    for entrant in &run.subjects {
        if let (Some(path), Some(version)) = (&entrant.program, &entrant.version) {
            let _ = write!(
                text,
                "\n{}: {version} ({})",
                entrant.subject.name(),
                path.display()
            );
        }
    }
    if run.subjects.iter().any(Entrant::is_outdated) {
        text += "\nOUTDATED: this wireguard-go predates its offloads; no bar is judged against it";
    }
    if let Some(load) = run.fixed_load {
        let _ = write!(
            text,
            "\nround trips under load beside {load:.2} Gb/s of TCP"
        );
        for (name, reached) in short_of_load(run) {
            let _ = write!(text, "; {name} carried only {reached:.2}");
        }
    }
    text
}

/// Who could not carry the load, and what they carried instead.
fn short_of_load(run: &Run) -> Vec<(&'static str, f64)> {
    let subjects = run.subjects.iter().map(|entrant| entrant.subject);
    subjects
        .filter(|&subject| !run.carried_load(subject))
        .filter_map(|subject| Some((subject.name(), run.median(subject, Measure::LoadReached)?)))
        .collect()
}

fn medians(run: &Run, subjects: &[Subject]) -> Vec<Vec<String>> {
    let mut head = vec!["median (min to max)".to_owned(), "unit".to_owned()];
    head.extend(subjects.iter().map(|subject| subject.name().to_owned()));
    let mut rows = vec![head];
    for measure in Measure::all() {
        let cells: Vec<String> = subjects
            .iter()
            .map(|&subject| cell(run.summary(subject, measure)))
            .collect();
        if cells.iter().any(|cell| cell != "-") {
            let mut row = vec![measure.name(), measure.unit().to_owned()];
            row.extend(cells);
            rows.push(row);
        }
    }
    rows
}

fn cell(summary: Option<Summary>) -> String {
    summary.map_or("-".to_owned(), |summary| {
        let [median, min, max] = [summary.median, summary.min, summary.max].map(number);
        format!("{median} ({min} to {max})")
    })
}

/// Three significant digits.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 || value == 0.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn ratios(run: &Run, subjects: &[Subject]) -> Vec<Vec<String>> {
    let others: Vec<Subject> = subjects
        .iter()
        .copied()
        .filter(|&subject| subject != CAUSEWAY)
        .collect();
    let mut head = vec!["causeway against".to_owned()];
    head.extend(others.iter().map(|subject| subject.name().to_owned()));
    let mut rows = vec![head];
    for measure in Measure::all() {
        let Some(own) = run.median(CAUSEWAY, measure) else {
            continue;
        };
        let mut row = vec![measure.name()];
        row.extend(
            others
                .iter()
                .map(|&other| ratio(measure, own, run.median(other, measure))),
        );
        rows.push(row);
    }
    rows
}

fn ratio(measure: Measure, own: f64, other: Option<f64>) -> String {
    let Some(other) = other.filter(|&other| other > 0.0) else {
        return "-".to_owned();
    };
    let ratio = own / other;
    let better = (ratio > 1.0) == measure.more_is_better();
    format!("{ratio:.2} {}", if better { "+" } else { "-" })
}

pub(crate) fn bars(verdicts: &[Verdict]) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["measure", "bar", "found", "met"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(verdicts.iter().map(|verdict| {
        let met = match verdict.met {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "not judged",
        };
        vec![
            verdict.what.clone(),
            verdict.bar.clone(),
            verdict.found.clone(),
            met.to_owned(),
        ]
    }));
    rows
}

fn failures(run: &Run) -> Option<String> {
    let lines: Vec<String> = run
        .failures
        .iter()
        .map(|failure| {
            format!(
                "FAILED: round {}, {}: {}",
                failure.round,
                failure.subject.name(),
                failure.why
            )
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// A Markdown table with its columns aligned; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    let mut lines: Vec<String> = rows.iter().map(|row| line(row, &widths)).collect();
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    lines.insert(1.min(lines.len()), line(&rule, &widths));
    lines.join("\n")
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .zip(widths)
        .map(|(cell, &width)| format!("{cell:<width$}"))
        .collect();
    format!("| {} |", cells.join(" | "))
}

#[cfg(test)]
pub(crate) mod tests;
