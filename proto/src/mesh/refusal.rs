//! Why an entry, an enrolment or a member is not taken.

use thiserror::Error;

use crate::blob::BlobError;
use crate::enrolment::EnrolmentError;
use crate::entry::{GrantRole, Role};
use crate::key::{MeshId, PublicKey};
use crate::ledger::LedgerError;
use crate::name::Name;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EntryRefusal {
    #[error("the ledger entry cannot be read: {0}")]
    Form(#[from] BlobError),
    /// To be shown again once its parent is here.
    #[error("the ledger entry follows one that is not here")]
    Orphan,
    #[error("{0}")]
    Ledger(LedgerError),
}

impl From<LedgerError> for EntryRefusal {
    fn from(why: LedgerError) -> EntryRefusal {
        if matches!(why, LedgerError::Orphan { .. }) {
            EntryRefusal::Orphan
        } else {
            EntryRefusal::Ledger(why)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemberRefusal {
    #[error("the enrolment cannot be read: {0}")]
    EnrolmentForm(BlobError),
    #[error("the record cannot be read: {0}")]
    RecordForm(BlobError),
    #[error("it is of another mesh, {0}")]
    WrongMesh(MeshId),
    /// To be shown again once the ledger is complete.
    #[error("its grant is not in the ledger as it is known here")]
    NoGrant,
    #[error("its grant was closed, and it is not among those that stay")]
    GrantClosed,
    #[error("its site was revoked")]
    SiteRevoked,
    #[error("its identity was revoked")]
    Revoked,
    /// Verified all the same and held: it comes in by itself if the ledger settles so.
    #[error("its grant is quarantined until the ledger's fork is settled")]
    Quarantined,
    #[error("it claims use {use_number} of a grant for {most}")]
    UseNumber { use_number: u32, most: u32 },
    #[error("{0}")]
    Enrolment(#[from] EnrolmentError),
    /// To be shown again once the ledger is complete.
    #[error("its enrolment was counted by {0}, no broker of the grant's store")]
    ForeignBroker(PublicKey),
    #[error("its record is of another identity than its enrolment")]
    OtherIdentity,
    #[error("its record is not signed by the identity it names")]
    RecordSignature,
    #[error("its record is for site {claimed}, its grant for site {granted}")]
    WrongSite { claimed: Name, granted: Name },
    #[error("its record is of a {claimed}, its grant for: {granted}")]
    WrongRole { claimed: Role, granted: GrantRole },
    #[error("its record has sequence number {shown}, and {latest} is known")]
    OldSequence { shown: u64, latest: u64 },
    #[error("its record differs from a known one with the same sequence number {0}")]
    SameSequence(u64),
    /// Held: it comes in by itself once the ledger has refused the other.
    #[error("its use of the grant is also held by {0}: a broker has counted one use twice")]
    TwoForOneUse(PublicKey),
    /// Not held: of the site, or for one use of one of its grants.
    #[error("of site {site} as many are held as are taken here: {most}")]
    Quota { site: Name, most: usize },
}

impl MemberRefusal {
    /// Whether the ledger, once it has grown, may say otherwise: worth showing again then.
    pub fn may_pass_later(&self) -> bool {
        match self {
            MemberRefusal::NoGrant
            | MemberRefusal::GrantClosed
            | MemberRefusal::SiteRevoked
            | MemberRefusal::Revoked
            | MemberRefusal::Quarantined
            | MemberRefusal::ForeignBroker(_)
            | MemberRefusal::TwoForOneUse(_)
            | MemberRefusal::Quota { .. } => true,
            MemberRefusal::EnrolmentForm(_)
            | MemberRefusal::RecordForm(_)
            | MemberRefusal::WrongMesh(_)
            | MemberRefusal::UseNumber { .. }
            | MemberRefusal::Enrolment(_)
            | MemberRefusal::OtherIdentity
            | MemberRefusal::RecordSignature
            | MemberRefusal::WrongSite { .. }
            | MemberRefusal::WrongRole { .. }
            | MemberRefusal::OldSequence { .. }
            | MemberRefusal::SameSequence(_) => false,
        }
    }
}
