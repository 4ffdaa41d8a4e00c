//! Round trips from everyone to everyone, narrow enough for a terminal.

use std::time::Duration;

use super::plan::Machine;

const LABEL: usize = 27;
const CELL: usize = 4;

/// Columns stand in the order of the rows, those of a site together.
pub(super) fn matrix(machines: &[Machine], times: &[Vec<Option<Duration>>]) -> String {
    let mut sites = format!("{:LABEL$}", "from \\ to");
    let mut columns = " ".repeat(LABEL);
    let mut last = None;
    for machine in machines {
        let begins = last != Some(machine.site);
        if begins {
            let in_site = machines
                .iter()
                .filter(|one| one.site == machine.site)
                .count();
            sites.push_str(&format!(
                " {:width$}",
                machine.site.name,
                width = in_site * CELL
            ));
        }
        columns.push_str(gap(begins));
        columns.push_str(&format!("{:>CELL$}", machine.short()));
        last = Some(machine.site);
    }
    let mut lines = vec![sites, columns];
    for (from, row) in machines.iter().zip(times) {
        let label = format!("{} {} {}", from.site.name, from.short(), from.v4());
        let mut line = format!("{label:LABEL$}");
        let mut last = None;
        for (to, time) in machines.iter().zip(row) {
            line.push_str(gap(last != Some(to.site)));
            let cell = if from == to {
                "-".to_owned()
            } else {
                cell(*time)
            };
            line.push_str(&format!("{cell:>CELL$}"));
            last = Some(to.site);
        }
        lines.push(line);
    }
    lines.join("\n")
}

fn gap(begins: bool) -> &'static str {
    if begins { " " } else { "" }
}

/// In milliseconds, as exact as there is room for.
fn cell(time: Option<Duration>) -> String {
    match time.map(|time| time.as_secs_f64() * 1e3) {
        None => "!!".to_owned(),
        Some(millis) if millis < 9.95 => format!("{millis:.1}"),
        Some(millis) => format!("{millis:.0}"),
    }
}

pub(super) fn summary(times: &[Option<Duration>]) -> String {
    let mut answered: Vec<f64> = times
        .iter()
        .flatten()
        .map(|time| time.as_secs_f64() * 1e3)
        .collect();
    answered.sort_by(f64::total_cmp);
    let (Some(median), Some(slowest)) = (answered.get(answered.len() / 2), answered.last()) else {
        return "no ping was answered".to_owned();
    };
    format!(
        "{} of {} pings answered, half of them within {median:.1} ms, the slowest after {slowest:.1} ms",
        answered.len(),
        times.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;

    #[test]
    fn the_table_fits_a_terminal_and_names_what_is_not_answered() {
        let machines: Vec<Machine> = plan::machines().collect();
        let time = Some(Duration::from_micros(1234));
        let mut times = vec![vec![time; machines.len()]; machines.len()];
        times[1][7] = None;
        let text = matrix(&machines, &times);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest.unwrap() <= 80, "{text}");
        assert_eq!(text.matches("!!").count(), 1, "{text}");
        assert_eq!(text.matches("1.2").count(), 12 * 11 - 1, "{text}");
    }

    #[test]
    fn a_summary_counts_what_came() {
        let times = [
            Some(Duration::from_millis(2)),
            None,
            Some(Duration::from_millis(1)),
        ];
        assert_eq!(
            summary(&times),
            "2 of 3 pings answered, half of them within 2.0 ms, the slowest after 2.0 ms"
        );
        assert_eq!(summary(&[None]), "no ping was answered");
    }
}
