//! The commands around trust: what they share, and one file for each.

pub(crate) mod broker;
pub(crate) mod cleanup;
pub(crate) mod close;
pub(crate) mod diagnose;
pub(crate) mod flags;
pub(crate) mod gateway;
pub(crate) mod join;
pub(crate) mod leave;
pub(crate) mod ledger;
pub(crate) mod node;
pub(crate) mod ping;
pub(crate) mod routeagent;
pub(crate) mod routes;
pub(crate) mod site;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod trace;

use std::path::PathBuf;

use clap::builder::FalseyValueParser;

/// Where this machine keeps what, and where its broker listens.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Directories {
    /// What this machine keeps: node, broker, authority.
    #[arg(
        long,
        value_name = "D",
        env = "CAUSEWAY_STATE_DIR",
        default_value = "/var/lib/causeway"
    )]
    pub(crate) state_dir: PathBuf,
    /// Where daemons on this machine have their sockets.
    #[arg(
        long,
        value_name = "R",
        env = "CAUSEWAY_RUNTIME_DIR",
        default_value = "/run/causeway"
    )]
    pub(crate) runtime_dir: PathBuf,
}

/// What commands that sign need.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Signing {
    #[command(flatten)]
    pub(crate) directories: Directories,
    /// The authority's directory; D/authority if not given.
    #[arg(long, value_name = "DIR", env = "CAUSEWAY_AUTHORITY")]
    authority: Option<PathBuf>,
    /// Do not ask brokers for entries that are missing here, and tell none.
    #[arg(long, env = "CAUSEWAY_OFFLINE", value_parser = FalseyValueParser::new())]
    pub(crate) offline: bool,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Output {
    /// Print JSON.
    #[arg(long, env = "CAUSEWAY_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
}

/// Wrong usage that only shows once files were read: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl Signing {
    pub(crate) fn authority(&self) -> PathBuf {
        self.authority
            .clone()
            .unwrap_or_else(|| self.directories.state_dir.join("authority"))
    }
}

impl Directories {
    /// Of the ledger that a broker on this machine imports at its start.
    pub(crate) fn broker_ledger(&self) -> PathBuf {
        self.state_dir.join("broker").join("ledger")
    }

    /// The broker of this machine, if there is one that this user may look at.
    pub(crate) fn local_broker(&self) -> Option<::broker::directory::Directory> {
        ::broker::directory::open(&self.state_dir).ok()
    }

    pub(crate) fn broker_socket(&self) -> PathBuf {
        self.runtime_dir.join("broker.sock")
    }
}

impl std::fmt::Display for Usage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
