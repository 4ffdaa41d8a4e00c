//! Leaving a mesh: a signed goodbye, then the node's keys are gone.

use std::path::Path;

use proto::entry::SignedEntry;
use proto::key::PublicKey;
use proto::ledger::Ledger;
use proto::life::next_sequence;
use proto::message::{Refusal, Reply, Request};
use proto::name::Name;
use proto::record::{Member, NodeState, Record, SignedRecord};
use proto::token::TokenBroker;
use thiserror::Error;

use crate::cache::{self, Line};
use crate::contacts::contacts;
use crate::journal::{Journal, JournalError};
use crate::login::log_in;
use crate::session::{Failure, Session, Why};
use crate::state::{LocalNode, StateDir, StateError};

/// How often a number is raised because a broker knows a higher one.
const MAX_ROUNDS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub site: Name,
    pub node: Name,
    pub identity: PublicKey,
    /// The broker that has the goodbye.
    pub told: String,
}

#[derive(Debug, Error)]
pub enum LeaveError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Cache(#[from] JournalError),
    #[error("no broker could be told that this node leaves, and nothing was changed here; try again when one can be reached, or delete {directory} (the name is free again after 60 s of silence){}", list(.tried))]
    NoBroker {
        directory: String,
        tried: Vec<Failure>,
    },
}

/// Tells one broker, then removes `node/` from the state directory. A node that is no longer one
/// (revoked, its grant closed) has nobody to tell.
pub async fn leave(state_dir: &Path) -> Result<Left, LeaveError> {
    let state = StateDir::open(state_dir)?;
    let _lock = state.lock()?;
    let node = state.joined()?;
    let running = node.lock()?;
    let (ledger, last) = read_cache(&node)?;
    let mut tried = Vec::new();
    for broker in contacts(&node.membership.brokers, ledger.charter()) {
        match tell(&broker, &node, &ledger, last).await {
            Ok(()) => {
                let left = Left {
                    site: node.membership.site().clone(),
                    node: node.membership.node.clone(),
                    identity: node.identity_key(),
                    told: broker.address,
                };
                drop(running);
                state.remove_node()?;
                state.clear_joining();
                return Ok(left);
            }
            Err(failure) => tried.push(failure),
        }
    }
    Err(LeaveError::NoBroker {
        directory: state_dir.join("node").display().to_string(),
        tried,
    })
}

/// The ledger as it was last known, and the highest number this node has signed.
fn read_cache(node: &LocalNode) -> Result<(Ledger, u64), JournalError> {
    let (_, content) = Journal::open(&node.cache_path())?;
    let mut ledger = Ledger::new(node.membership.mesh);
    let mut last = 0;
    for line in content.lines.iter().filter_map(|line| line.parse().ok()) {
        match line {
            Line::Entry(bytes) => {
                if let Ok(entry) = SignedEntry::read(&bytes) {
                    // An entry that does not fit is asked for again by whoever follows next.
                    let _inserted = ledger.insert(entry);
                }
            }
            Line::Own(bytes) => last = last.max(cache::own_sequence(&bytes).unwrap_or(0)),
            Line::Sequence(identity, sequence) if identity == node.identity_key() => {
                last = last.max(sequence);
            }
            Line::Member(_)
            | Line::Sequence(..)
            | Line::Absent(..)
            | Line::Forgotten(_)
            | Line::Synced(..) => {}
        }
    }
    Ok((ledger, last))
}

async fn tell(
    broker: &TokenBroker,
    node: &LocalNode,
    ledger: &Ledger,
    last: u64,
) -> Result<(), Failure> {
    let membership = &node.membership;
    let (mut session, _) = Session::connect(&broker.address, broker.key, membership.mesh).await?;
    let entries: Vec<SignedEntry> = ledger.entries().cloned().collect();
    match log_in(&mut session, node, &entries).await {
        Ok(()) => {}
        Err(Failure {
            why: Why::Refused(Refusal::Revoked | Refusal::SiteRevoked),
            ..
        }) => return Ok(()),
        Err(failure) => return Err(failure),
    }
    let mut last = last;
    for _ in 0..MAX_ROUNDS {
        let sequence = next_sequence(last, 0).unwrap_or(u64::MAX);
        let member = withdrawal(node, sequence).write();
        match session.call(Request::Publish { member }).await {
            Ok(Reply::Published { .. }) => {
                session.close().await;
                return Ok(());
            }
            Ok(_) => {
                return Err(Failure {
                    address: broker.address.clone(),
                    why: Why::OutOfOrder,
                });
            }
            Err(Failure {
                why: Why::Refused(Refusal::OldSequence { latest }),
                ..
            }) => last = latest,
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure {
        address: broker.address.clone(),
        why: Why::OutOfOrder,
    })
}

fn withdrawal(node: &LocalNode, sequence: u64) -> Member {
    let membership = &node.membership;
    let record = Record {
        mesh: membership.mesh,
        site: membership.site().clone(),
        node: membership.node.clone(),
        role: membership.first_role(),
        identity: node.identity_key(),
        sequence,
        issued: crate::now(),
        state: NodeState::Withdrawn,
    };
    let signed: SignedRecord = record.sign(&node.identity);
    Member {
        enrolment: membership.enrolment().to_vec(),
        record: signed.bytes().to_vec(),
    }
}

fn list(tried: &[Failure]) -> String {
    tried
        .iter()
        .map(|failure| format!("\n  {failure}"))
        .collect()
}
