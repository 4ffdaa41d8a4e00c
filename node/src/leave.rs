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

use crate::cache::{self, Line, MAX_LEAP};
use crate::journal::{Journal, JournalError};
use crate::login::log_in;
use crate::session::{Failure, Session, Ways, Why};
use crate::state::{LocalNode, StateDir, StateError};
use crate::stores::{contacts_of, stores};

/// How often a number is raised because a broker knows a higher one.
const MAX_ROUNDS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub site: Name,
    pub node: Name,
    pub identity: PublicKey,
    /// The brokers that have the goodbye, one for each store that could be told.
    pub told: Vec<String>,
    /// Why brokers of the other stores have not; there the name is free after 60 s of silence.
    pub untold: Vec<String>,
}

#[derive(Debug, Error)]
pub enum LeaveError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Cache(#[from] JournalError),
    #[error("no broker could be told that this node leaves, and it still is one; try again when one can be reached, or delete {directory} (the name is free again after 60 s of silence){}", list(.tried))]
    NoBroker {
        directory: String,
        tried: Vec<Failure>,
    },
}

/// Tells one broker of each store, then removes `node/` from the state directory. A node that is no longer one
/// (revoked, its grant closed) has nobody to tell.
pub async fn leave(state_dir: &Path) -> Result<Left, LeaveError> {
    let state = StateDir::open(state_dir)?;
    let _lock = state.lock()?;
    let node = state.joined()?;
    let running = node.lock()?;
    let mut goodbye = Goodbye::read(&node)?;
    let (told, tried) = goodbye.tell_all().await?;
    if told.is_empty() {
        return Err(LeaveError::NoBroker {
            directory: state_dir.join("node").display().to_string(),
            tried,
        });
    }
    let left = Left {
        site: node.membership.site().clone(),
        node: node.membership.node.clone(),
        identity: node.identity_key(),
        told,
        untold: tried.iter().map(Failure::to_string).collect(),
    };
    drop(running);
    state.remove_node()?;
    state.clear_joining();
    Ok(left)
}

/// What is said to one broker after the other.
struct Goodbye<'a> {
    node: &'a LocalNode,
    /// As it was last known.
    ledger: Ledger,
    journal: Journal,
    /// The highest number this node has signed.
    last: u64,
}

impl Goodbye<'_> {
    fn read(node: &LocalNode) -> Result<Goodbye<'_>, JournalError> {
        let (journal, content) = Journal::open(&node.cache_path())?;
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
                | Line::Synced(..)
                | Line::Unlisted(..)
                | Line::Listed(..) => {}
            }
        }
        Ok(Goodbye {
            node,
            ledger,
            journal,
            last,
        })
    }

    /// Who has been told, and of stores where nobody has: who could not be.
    async fn tell_all(&mut self) -> Result<(Vec<String>, Vec<Failure>), JournalError> {
        let token = &self.node.membership.brokers;
        let (mut told, mut untold) = (Vec::new(), Vec::new());
        for store in stores(token, self.ledger.charter()) {
            let mut tried = Vec::new();
            for broker in contacts_of(&store, token, self.ledger.charter()) {
                match self.tell(&broker).await? {
                    Ok(()) => {
                        told.push(broker.address);
                        tried.clear();
                        break;
                    }
                    Err(failure) => tried.push(failure),
                }
            }
            untold.append(&mut tried);
        }
        Ok((told, untold))
    }

    async fn tell(&mut self, broker: &TokenBroker) -> Result<Result<(), Failure>, JournalError> {
        let mut session = match self.connect(broker).await {
            Ok(Some(session)) => session,
            Ok(None) => return Ok(Ok(())),
            Err(failure) => return Ok(Err(failure)),
        };
        for _ in 0..MAX_ROUNDS {
            let Some(member) = self.sign()? else {
                break;
            };
            match session.call(Request::Publish { member }).await {
                Ok(Reply::Published { .. }) => {
                    session.close().await;
                    return Ok(Ok(()));
                }
                Ok(_) => break,
                // A false word must not use the numbers up: a goodbye that nothing can follow
                // would be a way to end this node whenever the broker likes.
                Err(Failure {
                    why: Why::Refused(Refusal::OldSequence { latest }),
                    ..
                }) if latest.saturating_sub(self.last) <= MAX_LEAP => {
                    self.last = self.last.max(latest);
                }
                Err(failure) => return Ok(Err(failure)),
            }
        }
        Ok(Err(Failure {
            address: broker.address.clone(),
            why: Why::OutOfOrder,
        }))
    }

    /// `None` if there this node is one no more.
    async fn connect(&self, broker: &TokenBroker) -> Result<Option<Session>, Failure> {
        let mesh = self.node.membership.mesh;
        let ways = Ways::of(self.node);
        let connected = Session::connect_by(&broker.address, broker.key, mesh, &ways).await;
        let (mut session, _) = connected?;
        let entries: Vec<SignedEntry> = self.ledger.entries().cloned().collect();
        match log_in(&mut session, self.node, &entries).await {
            Ok(()) => Ok(Some(session)),
            Err(Failure {
                why: Why::Refused(Refusal::Revoked | Refusal::SiteRevoked),
                ..
            }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Durable before it is sent: should no broker take it, this node goes on above its number.
    fn sign(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        let Some(sequence) = next_sequence(self.last, 0) else {
            return Ok(None);
        };
        let member = withdrawal(self.node, sequence).write();
        let line = Line::Own(member.clone()).to_string();
        self.journal.append(&[line])?;
        self.last = sequence;
        Ok(Some(member))
    }
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
