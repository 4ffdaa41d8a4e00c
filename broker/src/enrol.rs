//! A join: the proof, the window, and one use taken by compare-and-set.

use std::sync::Arc;
use std::time::Instant;

use proto::enrolment::JoinProof;
use proto::entry::{Grant, SignedEntry, Uses};
use proto::key::{Domain, Hash, PublicKey, Signature};
use proto::ledger::{Charter, GrantState, Standing};
use proto::message::{Enrol, Refusal};
use tracing::{debug, info};

use crate::broker::{Broker, unix_now};
use crate::entries;
use crate::session::too_often;
use crate::store::{Claim, Enrolled};
use crate::tls::Exporter;

/// Who has proven a join; the use is still to be taken.
pub(crate) struct Proven {
    pub(crate) proof: JoinProof,
    pub(crate) grant: Grant,
}

/// Checks everything that costs the store nothing, and takes in the grant's own entry if it is
/// what this broker lacks.
pub(crate) async fn prove(
    broker: &Arc<Broker>,
    asked: &Enrol,
    exporter: &Exporter,
) -> Result<Proven, Refusal> {
    let proof = JoinProof::read(&asked.proof).map_err(|_| Refusal::BadProof)?;
    let entry = SignedEntry::read(&asked.grant).map_err(|_| Refusal::BadProof)?;
    let grant = entry.grant().cloned().ok_or(Refusal::BadProof)?;
    if entry.hash() != proof.grant {
        return Err(Refusal::BadProof);
    }
    check_mesh(broker, &proof)?;
    // By the join key that the entry names; whether the ledger has that entry comes next.
    check_signatures(asked, &proof, &grant, exporter)?;
    take_grant(broker, entry).await?;
    Ok(Proven { proof, grant })
}

fn check_mesh(broker: &Broker, proof: &JoinProof) -> Result<(), Refusal> {
    let register = broker.register();
    let mesh = register.mesh().ok_or(Refusal::NotReady)?.id();
    if proof.mesh == mesh {
        Ok(())
    } else {
        Err(Refusal::WrongMesh { mesh: mesh.0 })
    }
}

fn check_signatures(
    asked: &Enrol,
    proof: &JoinProof,
    grant: &Grant,
    exporter: &Exporter,
) -> Result<(), Refusal> {
    proof.verify(grant).map_err(|_| Refusal::BadProof)?;
    let signed = [
        (&grant.join_key, asked.join_session),
        (&proof.identity, asked.identity_session),
    ];
    for (key, signature) in signed {
        key.verify(Domain::Session, exporter, &Signature(signature))
            .map_err(|_| Refusal::BadProof)?;
    }
    Ok(())
}

/// A broker that was down when the grant was signed takes it from whoever joins with it.
async fn take_grant(broker: &Arc<Broker>, entry: SignedEntry) -> Result<(), Refusal> {
    let hash = entry.hash();
    let is_known = || {
        let register = broker.register();
        let mesh = register.mesh();
        mesh.is_some_and(|mesh| mesh.charter().grant(&hash).is_some())
    };
    if is_known() {
        return Ok(());
    }
    match entries::take(broker, vec![entry], entries::By::Anybody).await {
        Ok(()) if is_known() => Ok(()),
        Err(down @ Refusal::StoreDown { .. }) => Err(down),
        Ok(()) | Err(_) => Err(Refusal::GrantUnknown),
    }
}

/// Takes a use, or finds the one that this identity took before. Answers with the enrolment.
pub(crate) async fn enrol(broker: &Arc<Broker>, proven: Proven) -> Result<Vec<u8>, Refusal> {
    let Proven { proof, grant } = proven;
    let (identity, id) = (proof.identity, proof.grant);
    check_standing(broker, &grant, &id, &identity)?;
    let claim = Claim {
        grant: id,
        uses: grant.uses,
        proof,
    };
    let site = &grant.site;
    match broker
        .ask(broker.store.enrol(claim, Arc::clone(&broker.key)))
        .await?
    {
        Enrolled::Fresh(enrolment) => {
            broker.joins().handle_taken(id, Instant::now());
            info!(
                target: "audit",
                "audit: token {} of site {site} is used by node key {identity}", id.short()
            );
            Ok(enrolment)
        }
        Enrolled::Again(enrolment) => {
            debug!(
                "node key {identity} repeats its join with token {}",
                id.short()
            );
            Ok(enrolment)
        }
        Enrolled::AllUsed { holder } => Err(refuse_used(&grant, &id, &identity, holder)),
    }
}

fn refuse_used(
    grant: &Grant,
    id: &Hash,
    refused: &PublicKey,
    holder: Option<PublicKey>,
) -> Refusal {
    let held = holder.map_or_else(
        || "others".to_owned(),
        |holder| format!("node key {holder}"),
    );
    info!(
        target: "audit",
        "audit: token {} of site {} is used up by {held}; refused to node key {refused}",
        id.short(), grant.site
    );
    Refusal::TokenUsed {
        uses: match grant.uses {
            Uses::AtMost(uses) => uses,
            Uses::Unlimited => 0,
        },
        holder: holder.map(|holder| *holder.as_bytes()),
    }
}

fn check_standing(
    broker: &Broker,
    grant: &Grant,
    id: &Hash,
    identity: &PublicKey,
) -> Result<(), Refusal> {
    let register = broker.register();
    let mesh = register.mesh().ok_or(Refusal::NotReady)?;
    let charter = mesh.charter();
    let standing = charter.standing(id, identity);
    if standing != Standing::Good {
        return Err(refusal_of(standing));
    }
    check_store(broker, charter, grant)?;
    // Whoever has a use may ask for its enrolment again, also after the window has closed: it may
    // have crashed before it could store it.
    if register.has_used(id, identity) {
        return Ok(());
    }
    let is_open = charter
        .grant(id)
        .is_some_and(|standing| standing.state == GrantState::Open);
    if !is_open {
        return Err(Refusal::TokenClosed);
    }
    check_window(grant, unix_now())?;
    let allowed = broker.joins().check(id, Instant::now());
    allowed.map_err(too_often)
}

pub(crate) fn refusal_of(standing: Standing) -> Refusal {
    match standing {
        Standing::Good | Standing::NoGrant => Refusal::GrantUnknown,
        Standing::GrantClosed => Refusal::TokenClosed,
        Standing::SiteRevoked => Refusal::SiteRevoked,
        Standing::Revoked => Refusal::Revoked,
        Standing::Quarantined => Refusal::BadLedger {
            why: "the ledger is forked above this grant; settle it with `causeway ledger settle`"
                .to_owned(),
        },
    }
}

/// Only one store counts a grant's uses, and only brokers that the ledger names sign for it.
fn check_store(broker: &Broker, charter: &Charter, grant: &Grant) -> Result<(), Refusal> {
    let is_ours = grant.store == broker.store_id;
    let own = broker.key.public();
    let is_named = charter.brokers.iter().any(|named| named.key == own);
    if is_ours && is_named {
        return Ok(());
    }
    let others = charter
        .brokers
        .iter()
        .filter(|named| named.store == grant.store && named.key != own);
    let brokers = others
        .flat_map(|named| {
            let key = *named.key.as_bytes();
            named
                .addresses
                .iter()
                .map(move |address| (address.clone(), key))
        })
        .collect();
    Err(Refusal::WrongStore { brokers })
}

fn check_window(grant: &Grant, now: u64) -> Result<(), Refusal> {
    if now < grant.not_before {
        return Err(Refusal::TokenNotYet {
            not_before: grant.not_before,
            now,
        });
    }
    if now > grant.not_after {
        return Err(Refusal::TokenExpired {
            not_after: grant.not_after,
            now,
        });
    }
    Ok(())
}
