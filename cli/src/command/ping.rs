//! `causeway ping`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use gateway::status::{Pong, Status};
use proto::name::Name;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::command::Output;
use crate::local::{AskError, Place, Who};
use crate::parse;
use crate::print;

/// More than the gateways of a site, times the rounds that can be under way.
const ANSWERS: usize = 1024;

/// Measure the way through the tunnel to each gateway of a site.
///
/// Each gateway of the site answers by itself; what is measured is the link between both gateways,
/// on the path that data takes. Exit code 0: at least one answer came. 1: none did, or no gateway
/// runs here.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The site whose gateways are asked.
    #[arg(value_name = "SITE", value_parser = parse::name)]
    site: Name,
    #[command(flatten)]
    place: Place,
    /// How often each gateway is asked.
    #[arg(long, value_name = "N", env = "CAUSEWAY_COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000_000), default_value = "4")]
    count: u32,
    /// Seconds between two questions, 0.2 at least.
    #[arg(long, value_name = "SECONDS", env = "CAUSEWAY_INTERVAL", value_parser = interval, default_value = "1")]
    interval: Duration,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Shown<'a> {
    site: &'a str,
    gateways: Vec<Summary<'a>>,
    answers: &'a [Pong],
}

#[derive(Serialize)]
struct Summary<'a> {
    gateway: &'a str,
    sent: usize,
    answered: usize,
    /// 0 to 1.
    loss: f64,
    least_ms: Option<f64>,
    mean_ms: Option<f64>,
    most_ms: Option<f64>,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let pongs = runtime.block_on(collect(&arguments))?;
    let summaries = summaries(&pongs);
    let is_answered = summaries.iter().any(|summary| summary.answered > 0);
    if arguments.output.json {
        print::json(&Shown {
            site: arguments.site.as_str(),
            gateways: summaries,
            answers: &pongs,
        })?;
    } else {
        let lines: Vec<String> = summaries.iter().map(Summary::line).collect();
        print::data(&format!("\n{}", lines.concat()))?;
    }
    if is_answered {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "causeway: no gateway of site {} answers; `causeway status` says why and what to do",
        arguments.site
    );
    Ok(ExitCode::FAILURE)
}

/// Every answer, each printed when it comes. Ends early on Ctrl-C.
async fn collect(arguments: &Arguments) -> anyhow::Result<Vec<Pong>> {
    let (answers, mut told) = mpsc::channel(ANSWERS);
    tokio::spawn(ask_all(
        arguments.place.clone(),
        arguments.site.clone(),
        (arguments.count, arguments.interval),
        answers,
    ));
    let mut pongs = Vec::new();
    loop {
        let answer = tokio::select! {
            answer = told.recv() => answer,
            _ = tokio::signal::ctrl_c() => None,
        };
        match answer {
            None => return Ok(pongs),
            Some(Ok(pong)) => {
                if !arguments.output.json && !print::more(&line(&pong))? {
                    return Ok(pongs);
                }
                pongs.push(pong);
            }
            Some(Err(AskError::Refused(refusal))) if pongs.is_empty() => {
                bail!(
                    "{}{}",
                    AskError::Refused(refusal),
                    sites(&arguments.place).await
                )
            }
            Some(Err(AskError::Absent(why))) => match agent(&arguments.place).await {
                Some(words) => bail!("{words}"),
                None => bail!("{why}"),
            },
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

/// One question after the other, whether or not the last one is answered yet.
async fn ask_all(
    place: Place,
    site: Name,
    (count, interval): (u32, Duration),
    answers: mpsc::Sender<Result<Pong, AskError>>,
) {
    let mut pace = tokio::time::interval(interval);
    for number in 1..=count {
        tokio::select! {
            _ = pace.tick() => {}
            () = answers.closed() => return,
        }
        let (place, site, answers) = (place.clone(), site.clone(), answers.clone());
        tokio::spawn(async move {
            for answer in ask(&place, &site, number).await {
                // Whoever waited for it may have seen enough.
                let _told = answers.send(answer).await;
            }
        });
    }
}

async fn ask(place: &Place, site: &Name, number: u32) -> Vec<Result<Pong, AskError>> {
    let body = match place
        .get(Who::Gateway, &format!("/ping?site={site}&count=1"))
        .await
    {
        Ok(body) => body,
        Err(error) => return vec![Err(error)],
    };
    let lines = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    let pongs = lines.map(|line| {
        let pong: Pong = serde_json::from_slice(line).map_err(|error| {
            AskError::Failed(format!(
                "the gateway's answer cannot be read ({error}): is it of another version? Use the `causeway` it was started with"
            ))
        })?;
        Ok(Pong {
            site: print::plain(&pong.site),
            gateway: print::plain(&pong.gateway),
            number,
            rtt_ms: pong.rtt_ms,
            path: pong.path.map(|path| print::plain(&path)),
            endpoint: pong.endpoint.map(|endpoint| print::plain(&endpoint)),
        })
    });
    pongs.collect()
}

/// Where to ask instead, if it is an agent that runs here.
async fn agent(place: &Place) -> Option<String> {
    let body = place.get(Who::Agent, "/status").await.ok()?;
    let status: routeagent::status::Status = serde_json::from_slice(&body).ok()?;
    let gateways = status.gateways.iter();
    let gateways: Vec<String> = gateways.map(|one| print::plain(&one.name)).collect();
    Some(format!(
        "this machine runs an agent, which has no links to measure; ask on a gateway of its site ({}). `causeway status` here shows the round trip to each",
        print::list(&gateways)
    ))
}

/// Which sites there are, as the end of what is said of one that is not.
async fn sites(place: &Place) -> String {
    let body = place.get(Who::Gateway, "/status").await.unwrap_or_default();
    let Ok(status) = serde_json::from_slice::<Status>(&body) else {
        return String::new();
    };
    let mut sites: Vec<String> = status
        .links
        .iter()
        .map(|link| print::plain(&link.site))
        .collect();
    sites.sort();
    sites.dedup();
    if sites.is_empty() {
        ". No other gateway is known here".to_owned()
    } else {
        format!(". Gateways are known of {}", sites.join(", "))
    }
}

fn line(pong: &Pong) -> String {
    let answer = match pong.rtt_ms {
        Some(rtt) => format!("{rtt:.3} ms"),
        None => "no answer".to_owned(),
    };
    let way = match (pong.path.as_deref(), &pong.endpoint) {
        (Some("relay"), _) => ", relay through a broker".to_owned(),
        (Some(path), Some(endpoint)) => format!(", {path} to {endpoint}"),
        (Some(path), None) => format!(", {path}"),
        (None, _) => ", no path".to_owned(),
    };
    format!("{} {}: {answer}{way}\n", pong.gateway, pong.number)
}

fn summaries(pongs: &[Pong]) -> Vec<Summary<'_>> {
    let mut gateways: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    for pong in pongs {
        gateways.entry(&pong.gateway).or_default().push(pong.rtt_ms);
    }
    gateways
        .into_iter()
        .map(|(gateway, times)| summary(gateway, &times))
        .collect()
}

fn summary<'a>(gateway: &'a str, times: &[Option<f64>]) -> Summary<'a> {
    let answered: Vec<f64> = times.iter().copied().flatten().collect();
    let count = answered.len();
    Summary {
        gateway,
        sent: times.len(),
        answered: count,
        loss: 1.0 - count as f64 / times.len().max(1) as f64,
        least_ms: answered.iter().copied().reduce(f64::min),
        mean_ms: (count > 0).then(|| answered.iter().sum::<f64>() / count as f64),
        most_ms: answered.iter().copied().reduce(f64::max),
    }
}

impl Summary<'_> {
    fn line(&self) -> String {
        let times = match (self.least_ms, self.mean_ms, self.most_ms) {
            (Some(least), Some(mean), Some(most)) => {
                format!(", round trip {least:.3} to {most:.3} ms, {mean:.3} ms on average")
            }
            _ => String::new(),
        };
        format!(
            "{}: {} of {} answered, {:.0} % lost{times}\n",
            self.gateway,
            self.answered,
            self.sent,
            self.loss * 100.0
        )
    }
}

/// Shorter would be more questions at once than a gateway takes.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.2..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "seconds from 0.2 to 3600, like 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_what_was_lost() {
        let pong = |number, rtt_ms| Pong {
            gateway: "gate-1".to_owned(),
            number,
            rtt_ms,
            ..Pong::default()
        };
        let pongs = [
            pong(1, Some(1.0)),
            pong(2, None),
            pong(3, Some(4.0)),
            pong(4, None),
        ];
        let lines: Vec<String> = summaries(&pongs).iter().map(Summary::line).collect();
        assert_eq!(
            lines,
            [
                "gate-1: 2 of 4 answered, 50 % lost, round trip 1.000 to 4.000 ms, 2.500 ms on average\n"
            ]
        );
        let lines: Vec<String> = summaries(&pongs[1..2]).iter().map(Summary::line).collect();
        assert_eq!(lines, ["gate-1: 0 of 1 answered, 100 % lost\n"]);
    }

    #[test]
    fn an_interval_is_not_too_short_for_the_gateway() {
        assert_eq!(interval("0.2"), Ok(Duration::from_millis(200)));
        for text in ["0", "0.1", "-1", "NaN", "inf", "x", ""] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
