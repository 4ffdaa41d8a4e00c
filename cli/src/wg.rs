//! `causeway wg IFNAME`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use gateway::data::index::MAX_THREADS;
use gateway::wg::background::{self, Background};
use gateway::wg::{Offload, Options};

use crate::name;

#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Arguments {
    /// The interface to make and serve.
    #[arg(value_name = "IFNAME", value_parser = name::parse)]
    pub(crate) name: String,
    /// Stay in the foreground.
    #[arg(short, long, env = "CAUSEWAY_FOREGROUND", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) foreground: bool,
    /// Data threads; one per core if not given.
    #[arg(long, value_name = "N", env = "CAUSEWAY_THREADS", value_parser = parse_threads)]
    pub(crate) threads: Option<usize>,
    /// Leave these unused even where the kernel has them: tso, uso, udp-segment, udp-gro, multi-queue,
    /// steering.
    #[arg(
        long,
        value_name = "LIST",
        env = "CAUSEWAY_WITHOUT",
        value_delimiter = ','
    )]
    pub(crate) without: Vec<Offload>,
    /// Where words go once in the background; nowhere if not given.
    #[arg(long, value_name = "PATH", env = "CAUSEWAY_LOG_FILE")]
    pub(crate) log_file: Option<PathBuf>,
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        Ok(_) | Err(_) => Err(format!("not a number from 1 to {MAX_THREADS}")),
    }
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let log_file = arguments.log_file.as_deref();
    let second = match (arguments.foreground, log_file) {
        (true, None) => None,
        (true, Some(path)) => {
            background::log_to(path)?;
            None
        }
        (false, _) => match Background::enter(log_file)? {
            Some(second) => Some(second),
            None => return Ok(background::start()?.into()),
        },
    };
    let name = arguments.name.clone();
    gateway::wg::run(arguments.into(), || announce(second))
        .with_context(|| format!("interface {name}"))?;
    Ok(ExitCode::SUCCESS)
}

fn announce(second: Option<Background>) {
    // Whoever waits sees its pipe end and says so; the interface works either way.
    if let Some(Err(error)) = second.map(Background::ready) {
        tracing::warn!(%error, "cannot leave the terminal");
    }
}

impl From<Arguments> for Options {
    fn from(arguments: Arguments) -> Options {
        Options {
            name: arguments.name,
            threads: arguments.threads,
            without: arguments.without,
        }
    }
}
