//! The whole chain: authority -> grant -> one-time key -> identity -> record. What a signature
//! says never changes and is remembered; what the ledger says is asked anew each time.

use crate::enrolment::Enrolment;
use crate::entry::{Grant, Uses};
use crate::key::{Domain, Hash};
use crate::ledger::{Ledger, Standing};
use crate::record::{Member, Record, SignedRecord};

use super::memory::Memory;
use super::refusal::MemberRefusal;

/// A member whose whole chain holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub enrolment: Enrolment,
    pub record: SignedRecord,
    /// [`Member::hash`].
    pub hash: Hash,
}

/// Hashes of what was verified. Kept apart by kind, so that the bytes of one kind, cleverly made,
/// cannot pass for another.
#[derive(Default)]
pub(super) struct Remembered {
    enrolments: Memory,
    members: Memory,
}

impl Remembered {
    pub(super) fn remember(&mut self, member: &Member, verified: &Verified) {
        self.enrolments.remember(blob_hash(&member.enrolment));
        self.members.remember(verified.hash);
    }
}

/// A member as read: its form is right, nothing else is known.
pub(super) fn read(member: &Member) -> Result<Verified, MemberRefusal> {
    Ok(Verified {
        enrolment: Enrolment::read(&member.enrolment).map_err(MemberRefusal::EnrolmentForm)?,
        record: SignedRecord::read(&member.record).map_err(MemberRefusal::RecordForm)?,
        hash: member.hash(),
    })
}

/// All but the standing, which the caller judges. What costs least is looked at first.
pub(super) fn verify(
    read: &Verified,
    ledger: &Ledger,
    remembered: &Remembered,
) -> Result<(), MemberRefusal> {
    let grant = check_counted(&read.enrolment, ledger)?;
    check_record(read.record.record(), &read.enrolment, ledger, grant)?;
    if remembered.members.holds(&read.hash) {
        return Ok(());
    }
    verify_enrolment(&read.enrolment, grant, remembered)?;
    read.record
        .verify()
        .map_err(|_| MemberRefusal::RecordSignature)
}

/// Whether these bytes prove that their identity took their use of their grant. Revoked ones, and
/// those of a closed grant, have taken it too.
pub fn check_use(enrolment: &[u8], ledger: &Ledger) -> Result<Enrolment, MemberRefusal> {
    let enrolment = Enrolment::read(enrolment).map_err(MemberRefusal::EnrolmentForm)?;
    if enrolment.proof.mesh != ledger.mesh() {
        return Err(MemberRefusal::WrongMesh(enrolment.proof.mesh));
    }
    let grant = check_counted(&enrolment, ledger)?;
    enrolment.verify(grant)?;
    Ok(enrolment)
}

/// The three signatures of an enrolment.
pub(super) fn verify_enrolment(
    enrolment: &Enrolment,
    grant: &Grant,
    remembered: &Remembered,
) -> Result<(), MemberRefusal> {
    // One value has one form, so this hash is that of the bytes as received.
    if remembered.enrolments.holds(&blob_hash(&enrolment.write())) {
        return Ok(());
    }
    Ok(enrolment.verify(grant)?)
}

/// That the grant is there (that it is of this mesh is known), and that this use may have been counted by this broker.
pub(super) fn check_counted<'a>(
    enrolment: &Enrolment,
    ledger: &'a Ledger,
) -> Result<&'a Grant, MemberRefusal> {
    let proof = &enrolment.proof;
    let charter = ledger.charter();
    let grant = &charter
        .grant(&proof.grant)
        .ok_or(MemberRefusal::NoGrant)?
        .grant;
    match grant.uses {
        Uses::Unlimited => {}
        Uses::AtMost(most) if enrolment.use_number < most => {}
        Uses::AtMost(most) => {
            let use_number = enrolment.use_number;
            return Err(MemberRefusal::UseNumber { use_number, most });
        }
    }
    if charter.may_count(&enrolment.broker, &grant.store) {
        Ok(grant)
    } else {
        Err(MemberRefusal::ForeignBroker(enrolment.broker))
    }
}

fn check_record(
    record: &Record,
    enrolment: &Enrolment,
    ledger: &Ledger,
    grant: &Grant,
) -> Result<(), MemberRefusal> {
    if record.mesh != ledger.mesh() {
        return Err(MemberRefusal::WrongMesh(record.mesh));
    }
    if record.identity != enrolment.proof.identity {
        return Err(MemberRefusal::OtherIdentity);
    }
    if record.site != grant.site {
        return Err(MemberRefusal::WrongSite {
            claimed: record.site.clone(),
            granted: grant.site.clone(),
        });
    }
    if !grant.role.allows(record.role) {
        return Err(MemberRefusal::WrongRole {
            claimed: record.role,
            granted: grant.role,
        });
    }
    Ok(())
}

pub(super) fn check_standing(standing: Standing) -> Result<(), MemberRefusal> {
    match standing {
        Standing::Good => Ok(()),
        Standing::NoGrant => Err(MemberRefusal::NoGrant),
        Standing::GrantClosed => Err(MemberRefusal::GrantClosed),
        Standing::SiteRevoked => Err(MemberRefusal::SiteRevoked),
        Standing::Revoked => Err(MemberRefusal::Revoked),
        Standing::Quarantined => Err(MemberRefusal::Quarantined),
    }
}

pub(super) fn blob_hash(bytes: &[u8]) -> Hash {
    Hash::of(Domain::Verified, bytes)
}
