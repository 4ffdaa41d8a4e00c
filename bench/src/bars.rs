//! What Causeway must reach against its rivals, and whether a run shows it.

use crate::measure::{Load, Measure, TCP, Tcp, UDP_SIZES};
use crate::run::Run;
use crate::subject::{BORINGTUN_CLI, CAUSEWAY, GOTATUN, RIVALS, Subject, WIREGUARD_GO};

/// Resident MiB of one gateway process with one peer.
const MEMORY_LIMIT: f64 = 24.0;

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) what: String,
    pub(crate) bar: String,
    pub(crate) found: String,
    /// `None` where the run lacks what it takes to judge.
    pub(crate) met: Option<bool>,
}

enum Bar {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// All bars of a run, in the order of the table they come from.
pub(crate) fn judge(run: &Run) -> Vec<Verdict> {
    if run.nic {
        return TCP
            .map(|tcp| speed_against(run, tcp, WIREGUARD_GO, 1.9))
            .to_vec();
    }
    let mut verdicts = Vec::new();
    for tcp in TCP {
        for (rival, factor) in [(WIREGUARD_GO, 2.0), (GOTATUN, 5.0), (BORINGTUN_CLI, 8.0)] {
            verdicts.push(speed_against(run, tcp, rival, factor));
        }
    }
    for tcp in [Tcp::One, Tcp::Reverse] {
        verdicts.push(speed_against(run, tcp, Subject::Raw, 0.35));
    }
    verdicts.push(four_against_one(run));
    verdicts.push(machine_cpu(run));
    for size in UDP_SIZES {
        verdicts.push(measure_against_the_best(
            run,
            Measure::UdpGatewayCpu(size),
            &Bar::AtMost(0.5),
        ));
    }
    for load in [Load::Idle, Load::Fixed] {
        for per_cent in [50, 99] {
            let measure = Measure::RoundTrip(load, per_cent);
            verdicts.push(measure_against_the_best(run, measure, &Bar::Below(1.0)));
        }
    }
    verdicts.extend(at_the_same_load(run));
    verdicts.push(memory(run));
    verdicts
}

fn speed_against(run: &Run, tcp: Tcp, rival: Subject, factor: f64) -> Verdict {
    let measure = Measure::TcpRate(tcp);
    let reference = run.median(rival, measure).filter(|_| run.counts(rival));
    let ratio = ratio(run.median(CAUSEWAY, measure), reference);
    verdict(measure.name(), &Bar::AtLeast(factor), rival.name(), ratio)
}

fn four_against_one(run: &Run) -> Verdict {
    let rate = |tcp| run.median(CAUSEWAY, Measure::TcpRate(tcp));
    let ratio = ratio(rate(Tcp::Four), rate(Tcp::One));
    verdict(
        Measure::TcpRate(Tcp::Four).name(),
        &Bar::AtLeast(1.0),
        "tcp one",
        ratio,
    )
}

fn machine_cpu(run: &Run) -> Verdict {
    let what = "machine cpu, median of the three tcp".to_owned();
    let own = run.machine_cpu(CAUSEWAY);
    let value = |rival| run.machine_cpu(rival);
    against_the_best(run, what, own, value, &Bar::AtMost(0.5))
}

fn measure_against_the_best(run: &Run, measure: Measure, bar: &Bar) -> Verdict {
    let own = run.median(CAUSEWAY, measure);
    let value = |rival| run.median(rival, measure);
    against_the_best(run, measure.name(), own, value, bar)
}

/// Compares with the rival that has the lowest value, and says which that was. It is judged only
/// if all three took part: being better than the rest of them proves little.
fn against_the_best(
    run: &Run,
    what: String,
    own: Option<f64>,
    value: impl Fn(Subject) -> Option<f64>,
    bar: &Bar,
) -> Verdict {
    let values = RIVALS
        .into_iter()
        .filter_map(|rival| Some((rival, value(rival)?)));
    let best = values.min_by(|(_, left), (_, right)| left.total_cmp(right));
    let ratio = ratio(own, best.map(|(_, value)| value));
    let mut verdict = verdict(what, bar, "the best rival", ratio);
    if let (Some(_), Some((rival, _))) = (ratio, best) {
        verdict.found = format!("{} {}", verdict.found, rival.name());
    }
    if !RIVALS.into_iter().all(|rival| run.counts(rival)) {
        verdict.met = None;
    }
    verdict
}

/// Round trips under load against only those who carried that load, where others did not.
fn at_the_same_load(run: &Run) -> Vec<Verdict> {
    let measured = |rival: &Subject| run.median(*rival, Measure::LoadReached).is_some();
    if RIVALS
        .iter()
        .filter(|rival| measured(rival))
        .all(|&rival| run.carried_load(rival))
    {
        return Vec::new();
    }
    let verdict = |per_cent| {
        let measure = Measure::RoundTrip(Load::Fixed, per_cent);
        let value = |rival| {
            run.median(rival, measure)
                .filter(|_| run.carried_load(rival))
        };
        let own = run.median(CAUSEWAY, measure);
        let what = format!("{}, who carried the load", measure.name());
        against_the_best(run, what, own, value, &Bar::Below(1.0))
    };
    [50, 99].map(verdict).to_vec()
}

fn memory(run: &Run) -> Verdict {
    let resident = run.median(CAUSEWAY, Measure::Resident);
    Verdict {
        what: Measure::Resident.name(),
        bar: format!("<= {MEMORY_LIMIT} MiB"),
        found: resident.map_or("-".to_owned(), |value| format!("{value:.1} MiB")),
        met: resident.map(|value| value <= MEMORY_LIMIT),
    }
}

fn ratio(value: Option<f64>, reference: Option<f64>) -> Option<f64> {
    let (value, reference) = (value?, reference?);
    (reference > 0.0).then(|| value / reference)
}

fn verdict(what: String, bar: &Bar, against: &str, ratio: Option<f64>) -> Verdict {
    let (sign, limit) = match bar {
        Bar::AtLeast(limit) => (">=", limit),
        Bar::AtMost(limit) => ("<=", limit),
        Bar::Below(limit) => ("<", limit),
    };
    Verdict {
        what,
        bar: format!("{sign} {limit} x {against}"),
        found: ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2} x")),
        met: ratio.map(|ratio| match bar {
            Bar::AtLeast(limit) => ratio >= *limit,
            Bar::AtMost(limit) => ratio <= *limit,
            Bar::Below(limit) => ratio < *limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Sample;
    use crate::report::tests::example;
    use crate::run::Entrant;

    /// All three rivals with the given round trip and what each carried of a load of 1 Gb/s.
    fn loaded(rivals: [(f64, f64); 3]) -> Run {
        let mut run = example();
        run.fixed_load = Some(1.0);
        let all = [CAUSEWAY].into_iter().chain(RIVALS);
        run.subjects = all
            .clone()
            .map(|subject| Entrant {
                subject,
                program: None,
                version: None,
            })
            .collect();
        for (subject, (p50, reached)) in all.zip([(1.0, 1.0)].into_iter().chain(rivals)) {
            let values = [
                (Measure::RoundTrip(Load::Fixed, 50), p50),
                (Measure::LoadReached, reached),
            ];
            run.samples.extend(values.map(|(measure, value)| Sample {
                round: 1,
                subject,
                measure,
                value,
            }));
        }
        run
    }

    fn about_loaded_p50(run: &Run) -> Vec<(String, Option<bool>)> {
        let verdicts = judge(run).into_iter();
        verdicts
            .filter(|verdict| verdict.what.starts_with("round trip loaded, p50"))
            .map(|verdict| (verdict.found, verdict.met))
            .collect()
    }

    #[test]
    fn round_trips_are_judged_against_the_best_rival() {
        let run = loaded([(2.0, 1.0), (4.0, 1.0), (8.0, 1.0)]);
        let expected = [("0.50 x wireguard-go".to_owned(), Some(true))];
        assert_eq!(about_loaded_p50(&run), expected);
    }

    #[test]
    fn a_rival_that_did_not_carry_the_load_is_judged_with_and_without() {
        let run = loaded([(2.0, 1.0), (0.5, 0.3), (8.0, 1.0)]);
        let expected = [
            ("2.00 x boringtun-cli".to_owned(), Some(false)),
            ("0.50 x wireguard-go".to_owned(), Some(true)),
        ];
        assert_eq!(about_loaded_p50(&run), expected);
    }

    #[test]
    fn the_best_of_three_is_not_judged_when_one_is_missing_or_outdated() {
        let mut run = loaded([(2.0, 1.0), (4.0, 1.0), (8.0, 1.0)]);
        run.subjects[1].version = Some("wireguard-go v0.0.20220316".to_owned());
        assert_eq!(about_loaded_p50(&run)[0].1, None);
        run.subjects.remove(1);
        assert_eq!(about_loaded_p50(&run)[0].1, None);
    }
}
