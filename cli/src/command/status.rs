//! `causeway status`.

mod agent;
mod gateway;
mod page;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::builder::FalseyValueParser;
use serde_json::Value;

use crate::command::Output;
use crate::local::{AskError, Place, Who};
use crate::print;
use crate::time;

const REDRAW: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(200);

/// Show what this machine's gateway or agent does, and what is wrong.
///
/// Exit code 0: it is ready, every link of the gateway is up or every gateway of the agent answers,
/// every prefix of a site with a gateway is reachable, a broker is connected, and no problem is
/// known that stops traffic now, such as a firewall of this host. 1: one of these is not so, or
/// neither gateway nor agent answers. Every other problem is worth a look and changes no exit code,
/// and so is what begins with NOTE.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Show it again every second, until Ctrl-C.
    #[arg(long, env = "CAUSEWAY_WATCH", value_parser = FalseyValueParser::new())]
    watch: bool,
    /// Wait until it is ready, then show it; exit code 0 once it is.
    #[arg(long, env = "CAUSEWAY_WAIT", value_parser = FalseyValueParser::new(), conflicts_with = "watch")]
    wait: bool,
    /// How long --wait waits.
    #[arg(long, value_name = "TIME", env = "CAUSEWAY_TIMEOUT", value_parser = time::parse_duration, default_value = "60s")]
    timeout: u64,
    #[command(flatten)]
    output: Output,
}

/// As it was told, and as it is shown.
struct Answer {
    told: Value,
    status: Shown,
}

enum Shown {
    Gateway(Box<::gateway::status::Status>),
    Agent(Box<routeagent::status::Status>),
}

impl Shown {
    fn is_well(&self) -> bool {
        match self {
            Shown::Gateway(status) => gateway::is_well(status),
            Shown::Agent(status) => agent::is_well(status),
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Shown::Gateway(status) => status.ready,
            Shown::Agent(status) => status.ready,
        }
    }

    fn text(&self) -> String {
        match self {
            Shown::Gateway(status) => gateway::text(status),
            Shown::Agent(status) => agent::text(status),
        }
    }

    /// While it starts.
    fn progress(&self) -> String {
        match self {
            Shown::Gateway(status) => gateway::progress(status),
            Shown::Agent(status) => agent::progress(status),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if arguments.watch {
            watch(arguments).await?;
            return Ok(ExitCode::SUCCESS);
        }
        if arguments.wait {
            let answers = wait(arguments).await?;
            print::data(&text(&answers, arguments)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let answers = ask(&arguments.place).await?;
        print::data(&text(&answers, arguments)?)?;
        Ok(if answers.iter().all(|answer| answer.status.is_well()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// All that run here; usually it is one.
async fn ask(place: &Place) -> Result<Vec<Answer>, AskError> {
    let gateway = ask_one(place, Who::Gateway).await;
    let agent = ask_one(place, Who::Agent).await;
    match (gateway, agent) {
        (Ok(gateway), Ok(agent)) => Ok(vec![gateway, agent]),
        (Ok(answer), Err(AskError::Absent(_))) | (Err(AskError::Absent(_)), Ok(answer)) => {
            Ok(vec![answer])
        }
        // What one that was killed has left tells which of the two ran here.
        (Err(AskError::Absent(_)), Err(AskError::Absent(why)))
            if place.was_here(Who::Agent) && !place.was_here(Who::Gateway) =>
        {
            Err(AskError::Absent(why))
        }
        (Err(AskError::Absent(why)), Err(AskError::Absent(_))) => Err(AskError::Absent(format!(
            "{why}. Nor does an agent run here (`causeway routeagent run`)"
        ))),
        (Err(AskError::Absent(_)), Err(error)) | (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

async fn ask_one(place: &Place, who: Who) -> Result<Answer, AskError> {
    let body = place.get(who, "/status").await?;
    read(who, &body).map_err(|error| {
        AskError::Failed(format!(
            "the {}'s answer cannot be read ({error}): is it of another version? Use the `causeway` it was started with",
            who.name()
        ))
    })
}

/// What it shows is made plain before anything is done with it.
fn read(who: Who, body: &[u8]) -> serde_json::Result<Answer> {
    let told: Value = serde_json::from_slice(body)?;
    if told.get("node").is_none() {
        return Err(serde::de::Error::missing_field("node"));
    }
    let mut shown = told.clone();
    make_plain(&mut shown);
    let status = match who {
        Who::Gateway => Shown::Gateway(serde_json::from_value(shown)?),
        Who::Agent => Shown::Agent(serde_json::from_value(shown)?),
    };
    Ok(Answer { told, status })
}

fn make_plain(value: &mut Value) {
    match value {
        Value::String(text) => *text = print::plain(text),
        Value::Array(values) => values.iter_mut().for_each(make_plain),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    make_plain(&mut value);
                    (print::plain(&name), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// One is shown as it is, several in a list.
fn text(answers: &[Answer], arguments: &Arguments) -> anyhow::Result<String> {
    if !arguments.output.json {
        let texts: Vec<String> = answers.iter().map(|answer| answer.status.text()).collect();
        return Ok(texts.join("\n"));
    }
    let all: Vec<&Value> = answers.iter().map(|answer| &answer.told).collect();
    let text = match (all.as_slice(), arguments.watch) {
        ([one], true) => serde_json::to_string(one),
        ([one], false) => serde_json::to_string_pretty(one),
        (all, true) => serde_json::to_string(all),
        (all, false) => serde_json::to_string_pretty(all),
    };
    Ok(print::quiet_json(&text.context("cannot write JSON")?) + "\n")
}

/// Until nobody reads it any more. A gateway that is started again is shown again.
async fn watch(arguments: &Arguments) -> anyhow::Result<()> {
    let is_screen = io::stdout().is_terminal() && !arguments.output.json;
    let mut is_first = true;
    loop {
        let text = match ask(&arguments.place).await {
            Ok(answers) => text(&answers, arguments)?,
            Err(error) if arguments.output.json => {
                eprintln!("causeway: {error}");
                String::new()
            }
            Err(error) => format!("{error}\n"),
        };
        let block = match (is_screen, is_first || arguments.output.json) {
            (true, _) => drawn(&text, is_first),
            (false, true) => text,
            (false, false) => format!("\n{text}"),
        };
        if !print::more(&block)? {
            return Ok(());
        }
        is_first = false;
        tokio::time::sleep(REDRAW).await;
    }
}

/// Over what was there before, line by line, so that nothing flickers.
fn drawn(text: &str, is_first: bool) -> String {
    let clear = if is_first { "\x1b[2J" } else { "" };
    let lines = text.replace('\n', "\x1b[K\n");
    format!("{clear}\x1b[H{lines}\x1b[J")
}

async fn wait(arguments: &Arguments) -> anyhow::Result<Vec<Answer>> {
    let begun = Instant::now();
    let limit = Duration::from_secs(arguments.timeout);
    let mut told = String::new();
    loop {
        let why = match ask(&arguments.place).await {
            Ok(answers) => {
                let waited = answers.iter().find(|answer| !answer.status.is_ready());
                let Some(waited) = waited else {
                    return Ok(answers);
                };
                waited.status.progress()
            }
            Err(error @ (AskError::Absent(_) | AskError::Refused(_))) => error.to_string(),
            Err(error @ AskError::Failed(_)) => return Err(error.into()),
        };
        if begun.elapsed() >= limit {
            bail!("not ready after {}: {why}", time::words(arguments.timeout));
        }
        if why != told {
            eprintln!("waiting: {why}");
            told = why;
        }
        tokio::time::sleep(LOOK).await;
    }
}
