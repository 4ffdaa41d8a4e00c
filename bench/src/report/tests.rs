use super::*;
use crate::machine::Machine;
use crate::measure::{Load, Sample, Tcp};
use crate::run::{Entrant, Failure};
use crate::subject::WIREGUARD_GO;

/// Two rounds of two subjects and three measures, with one failure.
pub(crate) fn example() -> Run {
    let values = [
        (CAUSEWAY, Measure::TcpRate(Tcp::One), [4.0, 6.0]),
        (WIREGUARD_GO, Measure::TcpRate(Tcp::One), [2.0, 2.5]),
        (CAUSEWAY, Measure::RoundTrip(Load::Idle, 50), [0.4, 0.4]),
        (WIREGUARD_GO, Measure::RoundTrip(Load::Idle, 50), [0.2, 0.4]),
        (CAUSEWAY, Measure::Resident, [20.0, 30.0]),
    ];
    let samples = values.iter().flat_map(|&(subject, measure, values)| {
        values
            .into_iter()
            .zip(1..)
            .map(move |(value, round)| Sample {
                round,
                subject,
                measure,
                value,
            })
    });
    let entrant = |subject| Entrant {
        subject,
        program: None,
        version: None,
    };
    Run {
        command: "bench site".to_owned(),
        machine: Machine {
            processor: "Abacus".to_owned(),
            cores: 2,
            kernel: "6.1".to_owned(),
            commit: "abc".to_owned(),
            cpu_source: "beads".to_owned(),
            background_cores: 0.25,
        },
        nic: false,
        rounds: 2,
        subjects: vec![entrant(CAUSEWAY), entrant(WIREGUARD_GO)],
        fixed_load: None,
        samples: samples.collect(),
        failures: vec![Failure {
            round: 2,
            subject: WIREGUARD_GO,
            why: "it is gone".to_owned(),
        }],
    }
}

#[test]
fn the_report_of_a_small_run_reads_as_expected() {
    // After a change that is meant: copy what the failure shows on the left.
    assert_eq!(text(&example()), include_str!("example.txt"));
}

#[test]
fn numbers_have_three_significant_digits() {
    let shown = [0.0, 0.0123, 0.5, 1.234, 12.34, 123.4, 1234.0].map(number);
    assert_eq!(
        shown,
        ["0.00", "0.012", "0.500", "1.23", "12.3", "123", "1234"]
    );
}

#[test]
fn on_a_card_that_does_not_segment_only_the_current_rival_counts() {
    let run = Run {
        nic: true,
        ..example()
    };
    let verdicts = judge(&run);
    assert_eq!(verdicts.len(), 3);
    assert_eq!(verdicts[0].bar, ">= 1.9 x wireguard-go");
    assert_eq!(verdicts[0].met, Some(true));
    assert_eq!(verdicts[1].met, None, "four streams were not measured");
}

#[test]
fn a_run_without_causeway_has_medians_but_no_ratios() {
    let mut run = example();
    run.subjects.remove(0);
    let text = text(&run);
    assert!(text.contains("wireguard-go"));
    assert!(!text.contains("causeway"));
}
