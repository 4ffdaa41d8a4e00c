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
    verdicts.push(memory(run));
    verdicts
}

fn speed_against(run: &Run, tcp: Tcp, rival: Subject, factor: f64) -> Verdict {
    let measure = Measure::TcpRate(tcp);
    let ratio = ratio(run.median(CAUSEWAY, measure), run.median(rival, measure));
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
    against_the_best(what, own, |rival| run.machine_cpu(rival), &Bar::AtMost(0.5))
}

fn measure_against_the_best(run: &Run, measure: Measure, bar: &Bar) -> Verdict {
    let own = run.median(CAUSEWAY, measure);
    against_the_best(measure.name(), own, |rival| run.median(rival, measure), bar)
}

/// Compares with the rival that has the lowest value, and says which that was.
fn against_the_best(
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
    verdict
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
