//! What a join tells while it goes on.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use proto::entry::GrantRole;
use proto::key::PublicKey;
use proto::name::Name;

use super::Tried;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Already {
        site: Name,
        node: Name,
    },
    Reached {
        address: String,
        key: PublicKey,
    },
    Failed(Tried),
    /// A broker hung up, as one does that has too many callers; it is asked again.
    Waiting(Duration),
    /// Another store counts the token's uses.
    SentOn {
        address: String,
        to: Vec<String>,
    },
    /// The identity is durable here and has been shown to the broker.
    Proven {
        site: Name,
        use_number: u32,
    },
    LedgerChecked {
        entries: usize,
    },
    Stored {
        path: PathBuf,
        identity: PublicKey,
    },
    Next {
        state_dir: PathBuf,
        role: GrantRole,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Already { site, node } => {
                write!(
                    out,
                    "already part of the mesh as {node} of site {site}: nothing to do"
                )
            }
            Step::Reached { address, key } => {
                write!(out, "broker {address} reached; its key is the pinned {key}")
            }
            Step::Failed(tried) => write!(out, "broker {tried}"),
            Step::Waiting(wait) => {
                write!(out, "trying again in {:.1} s", wait.as_secs_f32())
            }
            Step::SentOn { address, to } => write!(
                out,
                "broker {address} does not count this token's uses; trying {}",
                to.join(", ")
            ),
            Step::Proven { site, use_number } => write!(
                out,
                "token proven: use {} of its grant for site {site} is this machine's",
                u64::from(*use_number) + 1
            ),
            Step::LedgerChecked { entries } => {
                write!(
                    out,
                    "ledger of {entries} entries checked: it contains the grant"
                )
            }
            Step::Stored { path, identity } => {
                write!(out, "identity {identity} stored in {}", path.display())
            }
            Step::Next { state_dir, role } => {
                let gateway = format!("causeway gateway run --state-dir {}", state_dir.display());
                let agent = format!(
                    "causeway routeagent run --state-dir {}",
                    state_dir.display()
                );
                match role {
                    GrantRole::Gateway => write!(out, "next: {gateway}"),
                    GrantRole::Agent => write!(out, "next: {agent}"),
                    GrantRole::Any => write!(out, "next: {gateway}   or: {agent}"),
                }
            }
        }
    }
}
