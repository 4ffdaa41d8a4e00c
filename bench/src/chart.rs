//! A run as a picture: one panel a unit, one group of bars a measure, one colour a subject.

use std::fmt::Write as _;

use crate::measure::{Load, Measure, TCP, UDP_SIZES};
use crate::report::number;
use crate::run::Run;
use crate::statistics::Summary;
use crate::subject::{BORINGTUN_CLI, CAUSEWAY, GOTATUN, Subject, WIREGUARD_GO};

const PANEL_WIDTH: f64 = 460.0;
const PANEL_HEIGHT: f64 = 250.0;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 84.0;
/// Inside a panel: above the bars for the title, below them for the names.
const TITLE: f64 = 44.0;
const NAMES: f64 = 24.0;
/// A bar and the gap behind it.
const WIDEST: f64 = 64.0;

struct Panel {
    title: &'static str,
    measures: Vec<(Measure, &'static str)>,
}

fn panels() -> Vec<Panel> {
    let tcp = ["one stream", "four streams", "reverse"];
    let udp = ["64 bytes", "300 bytes", "1200 bytes"];
    let of_tcp = |measure: fn(_) -> Measure| TCP.map(measure).into_iter().zip(tcp).collect();
    let of_udp = |measure: fn(_) -> Measure| UDP_SIZES.map(measure).into_iter().zip(udp).collect();
    vec![
        Panel {
            title: "TCP, Gb/s (more is better)",
            measures: of_tcp(Measure::TcpRate),
        },
        Panel {
            title: "CPU-seconds of the machine per gigabit (less is better)",
            measures: of_tcp(Measure::TcpMachineCpu),
        },
        Panel {
            title: "UDP under 1 % loss, thousand packets/s (more is better)",
            measures: of_udp(Measure::UdpRate),
        },
        Panel {
            title: "Gateway CPU per packet, microseconds (less is better)",
            measures: of_udp(Measure::UdpGatewayCpu),
        },
        Panel {
            title: "Round trip at rest, milliseconds (less is better)",
            measures: round_trips(Load::Idle),
        },
        Panel {
            title: "Round trip under one fixed load, milliseconds (less is better)",
            measures: round_trips(Load::Fixed),
        },
        Panel {
            title: "CPU-seconds of the gateways per gigabit (less is better)",
            measures: of_tcp(Measure::TcpGatewayCpu),
        },
        Panel {
            title: "Resident memory of a gateway, MiB (less is better)",
            measures: vec![(Measure::Resident, "one peer")],
        },
    ]
}

fn round_trips(load: Load) -> Vec<(Measure, &'static str)> {
    vec![
        (Measure::RoundTrip(load, 50), "p50"),
        (Measure::RoundTrip(load, 99), "p99"),
    ]
}

/// The picture as SVG.
pub(crate) fn draw(run: &Run) -> String {
    let panels = panels();
    let rows = panels.len().div_ceil(2);
    let width = 2.0 * PANEL_WIDTH + 3.0 * MARGIN;
    let height = HEAD + to_f64(rows) * (PANEL_HEIGHT + MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    svg += &head(run);
    for (index, panel) in panels.iter().enumerate() {
        let x = MARGIN + to_f64(index % 2) * (PANEL_WIDTH + MARGIN);
        let y = HEAD + to_f64(index / 2) * (PANEL_HEIGHT + MARGIN);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        svg += &draw_panel(run, panel);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn head(run: &Run) -> String {
    let wire = if run.nic {
        "outer card without segmentation"
    } else {
        "veth"
    };
    let machine = &run.machine;
    let title = format!(
        "Medians of {} rounds, {wire}; lines span lowest to highest",
        run.rounds
    );
    let place = format!(
        "{} x {}, Linux {}, commit {}",
        machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let mut svg = text(
        MARGIN,
        24.0,
        "font-size=\"16\" font-weight=\"bold\"",
        &title,
    );
    svg += &text(MARGIN, 44.0, "fill=\"#666666\"", &place);
    let mut x = MARGIN;
    for entrant in &run.subjects {
        let (name, colour) = (entrant.subject.name(), colour(entrant.subject));
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"56\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        svg += &text(x + 17.0, 66.5, "", name);
        x += 36.0 + 6.6 * to_f64(name.len());
    }
    svg
}

fn colour(subject: Subject) -> &'static str {
    match subject {
        Subject::Raw => "#b8b8b8",
        CAUSEWAY => "#d1495b",
        WIREGUARD_GO => "#2e86ab",
        BORINGTUN_CLI => "#edae49",
        GOTATUN => "#66a182",
    }
}

fn draw_panel(run: &Run, panel: &Panel) -> String {
    let mut svg = text(0.0, 16.0, "font-weight=\"bold\"", panel.title);
    let highest = panel
        .measures
        .iter()
        .flat_map(|&(measure, _)| bars(run, measure))
        .fold(0.0, |highest: f64, (_, summary)| highest.max(summary.max));
    let floor = PANEL_HEIGHT - NAMES;
    let _ = writeln!(
        svg,
        "<line x1=\"0\" y1=\"{floor}\" x2=\"{PANEL_WIDTH}\" y2=\"{floor}\" stroke=\"#333333\"/>"
    );
    let width = PANEL_WIDTH / to_f64(panel.measures.len());
    for (index, &(measure, name)) in panel.measures.iter().enumerate() {
        let left = to_f64(index) * width;
        svg += &text(
            left + width / 2.0,
            floor + 17.0,
            "text-anchor=\"middle\"",
            name,
        );
        let bars = bars(run, measure);
        if bars.is_empty() {
            let note = "text-anchor=\"middle\" fill=\"#999999\"";
            svg += &text(left + width / 2.0, floor - 8.0, note, "not measured");
            continue;
        }
        svg += &draw_group(
            &bars,
            left,
            width,
            (floor - TITLE) / highest.max(f64::MIN_POSITIVE),
        );
    }
    svg
}

/// Who has this measure; a subject without it takes no room.
fn bars(run: &Run, measure: Measure) -> Vec<(Subject, Summary)> {
    run.subjects
        .iter()
        .filter_map(|entrant| {
            let summary = run.summary(entrant.subject, measure)?;
            Some((entrant.subject, summary))
        })
        .collect()
}

fn draw_group(bars: &[(Subject, Summary)], left: f64, width: f64, scale: f64) -> String {
    let floor = PANEL_HEIGHT - NAMES;
    let step = (width * 0.9 / to_f64(bars.len())).min(WIDEST);
    let begin = left + (width - step * to_f64(bars.len())) / 2.0;
    let mut svg = String::new();
    for (index, (subject, summary)) in bars.iter().enumerate() {
        let x = begin + to_f64(index) * step;
        let height = summary.median * scale;
        let middle = x + step / 2.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"{}\"/>",
            floor - height,
            step * 0.86,
            colour(*subject)
        );
        let (top, bottom) = (floor - summary.max * scale, floor - summary.min * scale);
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.1}\" y1=\"{top:.1}\" x2=\"{0:.1}\" y2=\"{bottom:.1}\" stroke=\"#333333\"/>",
            x + step * 0.43
        );
        let label = "text-anchor=\"middle\" font-size=\"9\"";
        svg += &text(
            middle - step * 0.07,
            top - 4.0,
            label,
            &number(summary.median),
        );
    }
    svg
}

fn text(x: f64, y: f64, attributes: &str, content: &str) -> String {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>\n")
}

fn to_f64(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn every_measured_value_is_a_bar_and_every_mark_is_closed() {
        let svg = draw(&example());
        assert_eq!(
            svg.matches(colour(CAUSEWAY)).count(),
            1 + 3,
            "a key and three bars"
        );
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn names_cannot_break_the_markup() {
        assert!(text(0.0, 0.0, "", "<a&b>").contains("&lt;a&amp;b&gt;"));
    }
}
