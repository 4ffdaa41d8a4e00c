//! A record that a node hands in: its chain, its name, its site's quota, then the store.

use std::sync::Arc;
use std::time::Duration;

use proto::entry::Role;
use proto::key::PublicKey;
use proto::life;
use proto::mesh::{MemberRefusal, Verified};
use proto::message::Refusal;
use proto::record::{Member, Record};
use tracing::{debug, info};

use crate::broker::Broker;
use crate::session::reason_of;
use crate::store::{Publication, Published};

/// Others may take or lose the name meanwhile; not for ever.
const TRIES: usize = 3;
/// What the register needs to follow the store, many times over.
const LISTED_WITHIN: Duration = Duration::from_secs(1);

/// Answers with the revision at which the record is in the store.
pub(crate) async fn publish(
    broker: &Arc<Broker>,
    caller: &PublicKey,
    bytes: Vec<u8>,
) -> Result<u64, Refusal> {
    let verified = check(broker, caller, &bytes).inspect_err(|refusal| {
        let why = if let Refusal::BadRecord { why } = refusal {
            why.as_str()
        } else {
            reason_of(refusal)
        };
        info!(target: "audit", "audit: a record of node key {caller} is refused: {why}");
    })?;
    let record = verified.record.record();
    check_quota(broker, record)?;
    let mut holder = broker.register().holder(&record.site, &record.node);
    for _ in 0..TRIES {
        let publication = Publication {
            identity: record.identity,
            site: record.site.clone(),
            node: record.node.clone(),
            sequence: record.sequence,
            bytes: bytes.clone(),
            withdrawn: record.presence().is_none(),
            takes_over: take_over(broker, record, holder)?,
        };
        match broker.ask(broker.store.publish(publication)).await? {
            Published::Done { revision } | Published::Same { revision } => {
                broker.follow(revision).await;
                debug!("record {} of node {} taken", record.sequence, record.node);
                return Ok(revision);
            }
            Published::Old { sequence } => {
                return Err(Refusal::OldSequence { latest: sequence });
            }
            Published::NameHeld { holder: found } => {
                await_listing(broker, &found).await;
                holder = Some(found);
            }
        }
    }
    Err(match holder {
        Some(holder) => name_taken(broker, &holder),
        None => Refusal::TooOften { retry_s: 1 },
    })
}

fn check(broker: &Broker, caller: &PublicKey, bytes: &[u8]) -> Result<Verified, Refusal> {
    let member = Member::read(bytes).map_err(|error| Refusal::BadRecord {
        why: error.to_string(),
    })?;
    let register = broker.register();
    let mesh = register.mesh().ok_or(Refusal::NotReady)?;
    let verified = mesh
        .check_member(&member)
        .map_err(|error| refusal(&error))?;
    if verified.record.record().identity == *caller {
        Ok(verified)
    } else {
        Err(Refusal::NotAllowed)
    }
}

fn refusal(error: &MemberRefusal) -> Refusal {
    match error {
        MemberRefusal::Revoked | MemberRefusal::GrantClosed => Refusal::Revoked,
        MemberRefusal::SiteRevoked => Refusal::SiteRevoked,
        MemberRefusal::WrongRole { .. } => Refusal::WrongRole,
        MemberRefusal::WrongMesh(mesh) => Refusal::WrongMesh { mesh: mesh.0 },
        MemberRefusal::NoGrant => Refusal::GrantUnknown,
        MemberRefusal::EnrolmentForm(_)
        | MemberRefusal::RecordForm(_)
        | MemberRefusal::Quarantined
        | MemberRefusal::UseNumber { .. }
        | MemberRefusal::Enrolment(_)
        | MemberRefusal::ForeignBroker(_)
        | MemberRefusal::OtherIdentity
        | MemberRefusal::RecordSignature
        | MemberRefusal::WrongSite { .. }
        | MemberRefusal::OldSequence { .. }
        | MemberRefusal::SameSequence(_)
        | MemberRefusal::TwoForOneUse(_)
        | MemberRefusal::Quota { .. } => Refusal::BadRecord {
            why: error.to_string(),
        },
    }
}

fn check_quota(broker: &Broker, record: &Record) -> Result<(), Refusal> {
    if record.presence().is_none() {
        return Ok(());
    }
    let (what, most) = match record.role {
        Role::Gateway => ("gateways", life::MAX_GATEWAYS),
        Role::Agent => ("agents", life::MAX_AGENTS),
    };
    let others = broker
        .register()
        .count_of(&record.site, record.role, &record.identity);
    if u32::try_from(others).is_ok_and(|others| others < most) {
        Ok(())
    } else {
        Err(Refusal::Quota {
            what: format!("{what} of site {}", record.site),
            most,
        })
    }
}

/// The store may be ahead of the register: a holder that has just taken the name is not listed yet,
/// and must not be judged gone for that. One that is revoked is set aside.
async fn await_listing(broker: &Broker, holder: &PublicKey) {
    let mut changed = broker.watch();
    let is_known = || {
        let register = broker.register();
        register.listed(holder).is_some() || register.is_set_aside(holder)
    };
    let listed = async {
        while !is_known() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    // Late or not, the register has the last word.
    let _listed = tokio::time::timeout(LISTED_WITHIN, listed).await;
}

/// The holder whose name may pass to this record; an error while it lives.
fn take_over(
    broker: &Broker,
    record: &Record,
    holder: Option<PublicKey>,
) -> Result<Option<PublicKey>, Refusal> {
    let Some(holder) = holder.filter(|holder| *holder != record.identity) else {
        return Ok(None);
    };
    // A goodbye needs no name.
    if record.presence().is_none() {
        return Ok(None);
    }
    let left = {
        let register = broker.register();
        // One that is not known here yet is judged by when it was heard, as any other.
        match register.listed(&holder) {
            Some(listed) => listed.withdrawn,
            None => register.is_set_aside(&holder),
        }
    };
    if !life::name_may_move(broker.unheard_for(&holder), left) {
        return Err(name_taken(broker, &holder));
    }
    info!(
        "node {} of site {} is node key {} from now on; its former key {holder} was gone",
        record.node, record.site, record.identity
    );
    Ok(Some(holder))
}

fn name_taken(broker: &Broker, holder: &PublicKey) -> Refusal {
    Refusal::NameTaken {
        holder: *holder.as_bytes(),
        heard_s: broker.unheard_for(holder).as_secs(),
    }
}
