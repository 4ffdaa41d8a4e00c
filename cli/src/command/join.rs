//! `causeway join`.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::bail;
use node::join::{JoinError, Joined, Options, Step};
use proto::name::Name;
use serde::Serialize;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::command::{Output, Usage};
use crate::parse;
use crate::print;
use crate::secret;

/// Waiting this long needs no word.
const QUIET: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What this machine keeps; made if it is not there.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    state_dir: PathBuf,
    /// The file that holds the token; standard input or CAUSEWAY_TOKEN if not given.
    #[arg(long, value_name = "F", env = "CAUSEWAY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// This machine's name in its site; its host name if not given.
    #[arg(long, value_name = "NAME", env = "CAUSEWAY_NODE", value_parser = parse::name)]
    node: Option<Name>,
    /// Where in the world it stands, for people.
    #[arg(long, value_name = "R", env = "CAUSEWAY_REGION", default_value = "")]
    region: String,
    /// Where in its region.
    #[arg(long, value_name = "Z", env = "CAUSEWAY_ZONE", default_value = "")]
    zone: String,
    /// A gateway of this site, by its address here, with its port if that is not 7802: brokers that this machine cannot reach are reached through it, now and later.
    #[arg(long, value_name = "GATEWAY", env = "CAUSEWAY_VIA", value_parser = parse::gateway)]
    via: Option<String>,
    /// Only to say why a token does not belong there.
    #[arg(long = "token", hide = true, value_name = "TOKEN")]
    token: Option<String>,
    #[arg(hide = true, value_name = "TOKEN")]
    words: Vec<String>,
    #[command(flatten)]
    output: Output,
}

impl Arguments {
    /// Whether the token of the environment is to be used.
    pub(crate) fn wants_token(&self) -> bool {
        self.token_file.is_none()
    }
}

#[derive(Serialize)]
struct Shown {
    mesh: String,
    site: String,
    node: String,
    role: String,
    identity: String,
    /// It belonged to the mesh before.
    already: bool,
}

pub(crate) fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.token.is_some() || !arguments.words.is_empty() {
        bail!(Usage(
            "a token must not stand on the command line: every user of this machine can read it there (ps), and the shell keeps it. Take it as known: make another with `causeway token create`, revoke this one with `causeway token revoke`, and give the new one with --token-file FILE, on standard input, or in CAUSEWAY_TOKEN".to_owned()
        ));
    }
    let token = token(&arguments)?;
    let options = Options {
        token,
        state_dir: arguments.state_dir,
        node: arguments.node,
        region: arguments.region,
        zone: arguments.zone,
        via: arguments.via,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let joined = runtime.block_on(narrated(options))?;
    if arguments.output.json {
        print::json(&Shown {
            mesh: joined.mesh.to_string(),
            site: joined.site.to_string(),
            node: joined.node.to_string(),
            role: joined.role.to_string(),
            identity: joined.identity.to_string(),
            already: joined.already,
        })?;
    }
    Ok(())
}

/// Each step as it is done. Which brokers failed is told once: when another has taken the join, or
/// by the error.
async fn narrated(options: Options) -> Result<Joined, JoinError> {
    let mut failed = Vec::new();
    let mut tell = |step: Step| {
        if let Step::Failed(_) = step {
            return failed.push(step);
        }
        if let Step::Proven { .. } = step {
            for earlier in failed.drain(..) {
                eprintln!("{earlier}");
            }
        }
        eprintln!("{step}");
    };
    let mut joining = pin!(node::join::join(options, &mut tell));
    match timeout(QUIET, &mut joining).await {
        Ok(done) => done,
        Err(_) => {
            eprintln!("still waiting for a broker of the token to answer");
            joining.await
        }
    }
}

/// A machine that belongs to a mesh already needs no token, and is not asked for one. One in a
/// file is still compared; standard input is left alone, since it may never end.
fn token(arguments: &Arguments) -> anyhow::Result<Option<Zeroizing<String>>> {
    let is_joined = node::join::joined(&arguments.state_dir)?.is_some();
    let file = arguments.token_file.as_deref();
    if is_joined && file.is_none_or(|file| !file.exists()) {
        return Ok(None);
    }
    secret::read(file, "token", "--token-file").map(Some)
}
