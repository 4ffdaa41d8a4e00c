//! A report of what brokers sent and was not taken: each cause is named and counted, the latest
//! are kept with their sentences. Nothing in it grows with what a hostile broker sends.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use proto::ledger::LedgerError;
use proto::mesh::{EntryRefusal, MemberRefusal};

use crate::session::Why;

const MAX_LATEST: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A signature that does not hold, or of a key that has no say.
    Forged,
    /// An older record, or another with a known number.
    Replayed,
    /// Of another mesh.
    ForeignMesh,
    /// A record for another site than its grant's.
    ForeignSite,
    /// A role that the grant does not allow.
    ForeignRole,
    /// Of a grant that is not in the ledger.
    UnknownGrant,
    /// Counted by a broker that is none of the grant's store, or above its uses.
    MisCounted,
    /// Of an identity, grant or site that the ledger has revoked or closed.
    Revoked,
    /// Held back until the ledger's fork is settled.
    Quarantined,
    /// Two identities for one use of a grant.
    TwoForOneUse,
    /// A ledger entry before the one it follows.
    OutOfOrder,
    /// A ledger entry that cannot stand where it says.
    Misplaced,
    /// Bytes that are no record, enrolment or entry.
    Unreadable,
    /// More than anybody may have.
    TooMany,
    /// A frame or message that is none; the connection was ended.
    Garbage,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub cause: Cause,
    pub what: String,
    /// The broker that sent it.
    pub from: String,
    /// Unix seconds.
    pub at: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    counts: BTreeMap<Cause, u64>,
    latest: VecDeque<Item>,
}

impl Refused {
    pub fn counts(&self) -> &BTreeMap<Cause, u64> {
        &self.counts
    }

    pub fn count(&self, cause: Cause) -> u64 {
        self.counts.get(&cause).copied().unwrap_or(0)
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The oldest of them first.
    pub fn latest(&self) -> impl Iterator<Item = &Item> {
        self.latest.iter()
    }

    /// Of another gateway, which is believed nothing and can be had by anybody who has taken one:
    /// no reason to look up.
    pub(super) fn count_quietly(&mut self, item: Item) {
        let count = self.count_one(item.cause);
        if count.is_power_of_two() {
            tracing::debug!(cause = %item.cause, from = item.from, count, "not taken: {}", item.what);
        }
        self.keep(item);
    }

    fn count_one(&mut self, cause: Cause) -> u64 {
        let count = self.counts.entry(cause).or_default();
        *count += 1;
        *count
    }

    pub(super) fn add(&mut self, item: Item) {
        let count = self.count_one(item.cause);
        // The first of a cause, then ever fewer: a hostile broker must not fill the log.
        if count.is_power_of_two() {
            tracing::warn!(cause = %item.cause, from = item.from, count, "not taken: {}", item.what);
        }
        self.keep(item);
    }

    fn keep(&mut self, item: Item) {
        if self.latest.len() >= MAX_LATEST {
            self.latest.pop_front();
        }
        self.latest.push_back(item);
    }
}

impl Cause {
    /// An honest broker may send what the ledger has just revoked; it is counted all the same.
    pub(super) fn of_member(refusal: &MemberRefusal) -> Cause {
        match refusal {
            MemberRefusal::EnrolmentForm(_) | MemberRefusal::RecordForm(_) => Cause::Unreadable,
            MemberRefusal::WrongMesh(_) => Cause::ForeignMesh,
            MemberRefusal::NoGrant => Cause::UnknownGrant,
            MemberRefusal::GrantClosed | MemberRefusal::SiteRevoked | MemberRefusal::Revoked => {
                Cause::Revoked
            }
            MemberRefusal::Quarantined => Cause::Quarantined,
            MemberRefusal::UseNumber { .. } | MemberRefusal::ForeignBroker(_) => Cause::MisCounted,
            MemberRefusal::Enrolment(_)
            | MemberRefusal::OtherIdentity
            | MemberRefusal::RecordSignature => Cause::Forged,
            MemberRefusal::WrongSite { .. } => Cause::ForeignSite,
            MemberRefusal::WrongRole { .. } => Cause::ForeignRole,
            MemberRefusal::OldSequence { .. } | MemberRefusal::SameSequence(_) => Cause::Replayed,
            MemberRefusal::TwoForOneUse(_) => Cause::TwoForOneUse,
            MemberRefusal::Quota { .. } => Cause::TooMany,
        }
    }

    pub(super) fn of_entry(refusal: &EntryRefusal) -> Cause {
        match refusal {
            EntryRefusal::Form(_) => Cause::Unreadable,
            EntryRefusal::Orphan => Cause::OutOfOrder,
            EntryRefusal::Ledger(why) => match why {
                LedgerError::OtherMesh => Cause::ForeignMesh,
                LedgerError::Orphan { .. } => Cause::OutOfOrder,
                LedgerError::Number { .. }
                | LedgerError::Misplaced { .. }
                | LedgerError::Settlement { .. } => Cause::Misplaced,
                LedgerError::Signature { .. } | LedgerError::Recovery { .. } => Cause::Forged,
                LedgerError::Void { .. } => Cause::TooMany,
            },
        }
    }

    /// Whether a conversation ended because of what the broker sent.
    pub(super) fn of_failure(why: &Why) -> Option<Cause> {
        let sent = matches!(
            why,
            Why::Frame(_) | Why::Message(_) | Why::OutOfOrder | Why::NoReply | Why::Endless
        );
        sent.then_some(Cause::Garbage)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Cause::Forged => "forged",
            Cause::Replayed => "replayed",
            Cause::ForeignMesh => "foreign_mesh",
            Cause::ForeignSite => "foreign_site",
            Cause::ForeignRole => "foreign_role",
            Cause::UnknownGrant => "unknown_grant",
            Cause::MisCounted => "miscounted",
            Cause::Revoked => "revoked",
            Cause::Quarantined => "quarantined",
            Cause::TwoForOneUse => "two_for_one_use",
            Cause::OutOfOrder => "out_of_order",
            Cause::Misplaced => "misplaced",
            Cause::Unreadable => "unreadable",
            Cause::TooMany => "too_many",
            Cause::Garbage => "garbage",
        })
    }
}
