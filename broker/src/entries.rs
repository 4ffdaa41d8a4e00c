//! Entries of the ledger that come in: checked whole before any is stored.

use std::sync::Arc;

use proto::entry::{Body, SignedEntry};
use proto::frame::MAX_FRAME;
use proto::key::Hash;
use proto::ledger::{Ledger, LedgerError};
use proto::message::{Refusal, Reply};
use tracing::info;

use crate::broker::Broker;

/// What is around an entry in a message must fit a frame as well.
const MAX_ENTRY: usize = MAX_FRAME - 16 * 1024;
/// Of the entries in one reply.
const BUDGET: usize = MAX_FRAME - 32 * 1024;

/// Who brings entries. They prove themselves, save to a broker that waits for its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The authority this broker was made for, or this host.
    Authority,
    Anybody,
}

/// A stolen authority can sign thousands of branches; what a frame has no room for is left out, and
/// whoever is told of fewer is sent, or sends, what the other has already.
const MOST_HEADS: usize = 512;

/// Takes entries in, parents first, and answers with the heads that this broker has then.
pub(crate) async fn put(
    broker: &Arc<Broker>,
    entries: Vec<Vec<u8>>,
    by: By,
) -> Result<Vec<[u8; 32]>, Refusal> {
    let read = read(&entries)?;
    take(broker, read, by).await?;
    Ok(heads(broker))
}

pub(crate) fn heads(broker: &Broker) -> Vec<[u8; 32]> {
    let register = broker.register();
    let ledger = register.mesh().map(|mesh| mesh.ledger());
    ledger.map_or(Vec::new(), heads_of)
}

fn heads_of(ledger: &Ledger) -> Vec<[u8; 32]> {
    let heads = ledger.heads().into_iter().take(MOST_HEADS);
    heads.map(|head| head.0).collect()
}

fn read(entries: &[Vec<u8>]) -> Result<Vec<SignedEntry>, Refusal> {
    let bad = |why: String| Refusal::BadLedger { why };
    entries
        .iter()
        .map(|bytes| SignedEntry::read(bytes).map_err(|error| bad(error.to_string())))
        .collect()
}

pub(crate) async fn take(
    broker: &Arc<Broker>,
    entries: Vec<SignedEntry>,
    by: By,
) -> Result<(), Refusal> {
    let new = check(broker, entries, by)?;
    if new.is_empty() {
        return Ok(());
    }
    let revision = broker.ask(broker.store.append(new)).await?;
    broker.follow(revision).await;
    Ok(())
}

/// Those that are not known yet, if all of them belong into the ledger.
fn check(broker: &Broker, entries: Vec<SignedEntry>, by: By) -> Result<Vec<SignedEntry>, Refusal> {
    let register = broker.register();
    let known = register.mesh().map(|mesh| mesh.ledger());
    let is_known = |hash: &Hash| known.is_some_and(|ledger| ledger.entry(hash).is_some());
    let new: Vec<SignedEntry> = entries
        .into_iter()
        .filter(|entry| !is_known(&entry.hash()))
        .collect();
    let Some(first) = new.first() else {
        return Ok(new);
    };
    let mut ledger = match (known, register.mesh_id()) {
        (Some(ledger), _) => {
            // Before a copy is made: anybody can name a parent that is here.
            ledger.check(first).map_err(|error| bad(&error))?;
            ledger.clone()
        }
        (None, Some(mesh)) => Ledger::new(mesh),
        // A waiting broker learns from entry 0 which mesh it is of.
        (None, None) => {
            check_beginning(broker, first, by)?;
            Ledger::new(first.hash())
        }
    };
    for entry in &new {
        let length = entry.bytes().len();
        if length > MAX_ENTRY {
            return Err(Refusal::BadLedger {
                why: format!("an entry of {length} bytes, which fits no frame"),
            });
        }
        ledger.insert(entry.clone()).map_err(|error| bad(&error))?;
    }
    let authorities = &ledger.charter().authorities;
    if known.is_none() && !authorities.contains(&broker.authority) {
        return Err(foreign(broker));
    }
    Ok(new)
}

/// Anybody can begin a mesh and then change its authority to a key that is not theirs, for that
/// needs no word of the key. So who is not the authority must bring the mesh that it began.
fn check_beginning(broker: &Broker, first: &SignedEntry, by: By) -> Result<(), Refusal> {
    let began = match &first.entry().body {
        Body::Genesis { authority, .. } => *authority == broker.authority,
        Body::Grant(_)
        | Body::Prefixes { .. }
        | Body::Revocation { .. }
        | Body::SiteRevoked { .. }
        | Body::Broker(_)
        | Body::BrokerRemoved { .. }
        | Body::Authority { .. }
        | Body::Settlement { .. } => false,
    };
    if began || by == By::Authority {
        Ok(())
    } else {
        Err(foreign(broker))
    }
}

fn foreign(broker: &Broker) -> Refusal {
    Refusal::BadLedger {
        why: format!(
            "this broker was made for a mesh of authority {}, which is none of this ledger",
            broker.authority
        ),
    }
}

fn bad(why: &LedgerError) -> Refusal {
    Refusal::BadLedger {
        why: why.to_string(),
    }
}

/// What is not behind these heads, as much as fits.
pub(crate) fn missing(broker: &Broker, heads: &[[u8; 32]]) -> Reply {
    let register = broker.register();
    let heads: Vec<Hash> = heads.iter().copied().map(Hash).collect();
    let Some(mesh) = register.mesh() else {
        return Reply::Refused(Refusal::NotReady);
    };
    let mut room = BUDGET;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    let missing = mesh.ledger().missing(&heads);
    for entry in &missing {
        let length = entry.bytes().len() + 8;
        if length > room && !entries.is_empty() {
            break;
        }
        room = room.saturating_sub(length);
        entries.push(entry.bytes().to_vec());
    }
    Reply::Ledger {
        more: entries.len() < missing.len(),
        entries,
        heads: heads_of(mesh.ledger()),
    }
}

/// For the audit: what an entry says, in words.
pub(crate) fn audit(bytes: &[u8]) {
    let Ok(entry) = SignedEntry::read(bytes) else {
        return;
    };
    let number = entry.entry().number;
    let says = match &entry.entry().body {
        Body::Genesis { authority, .. } => format!("the mesh begins, authority {authority}"),
        Body::Grant(grant) => format!(
            "grant {} for site {}: uses {}, role {}",
            entry.hash().short(),
            grant.site,
            grant.uses,
            grant.role
        ),
        Body::Prefixes { site, .. } => format!("the prefixes of site {site} change"),
        Body::Revocation { keys, closings } => {
            let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
            let grants: Vec<String> = closings.iter().map(|one| one.grant.short()).collect();
            format!(
                "revoked: [{}]; grants closed: [{}]",
                keys.join(", "),
                grants.join(", ")
            )
        }
        Body::SiteRevoked { site } => format!("site {site} is revoked"),
        Body::Broker(named) => format!("broker {} is named", named.key),
        Body::BrokerRemoved { key } => format!("broker {key} is removed"),
        Body::Authority { authority, .. } => format!("the authority changes to {authority}"),
        Body::Settlement { .. } => "a fork is settled".to_owned(),
    };
    info!(target: "audit", "audit: ledger entry {number}: {says}");
}
