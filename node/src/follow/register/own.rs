//! The record that this node signs about itself. Its number is durable before it is sent, and
//! above every number of ours that anybody has proven to us.

use proto::entry::Role;
use proto::key::SigningKey;
use proto::life::next_sequence;
use proto::name::Name;
use proto::record::{Member, NodeState, Presence, Record, SignedRecord};

use super::Register;
use crate::cache::{Line, MAX_LEAP};
use crate::state::LocalNode;

#[derive(Default)]
pub(in crate::follow) struct Own {
    /// The last one signed, with its record.
    pub(super) last: Option<(Member, Record)>,
    /// The highest number known to be signed.
    sequence: u64,
}

/// What the next record is to say.
pub(in crate::follow) struct Wanted<'a> {
    pub(in crate::follow) presence: &'a Presence,
    pub(in crate::follow) role: Role,
    pub(in crate::follow) now: u64,
}

impl Own {
    pub(super) fn handle_shown(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// Whether a higher number than that of the last record is about.
    pub(in crate::follow) fn is_behind(&self) -> bool {
        self.last
            .as_ref()
            .is_some_and(|(_, record)| record.sequence < self.sequence)
    }

    pub(in crate::follow) fn member(&self) -> Option<&Member> {
        self.last.as_ref().map(|(member, _)| member)
    }

    /// A broker says that it has a record of ours with this number.
    pub(in crate::follow) fn handle_claimed(&mut self, latest: u64) {
        if latest.saturating_sub(self.sequence) <= MAX_LEAP {
            self.handle_shown(latest);
        }
    }

    fn says(&self, node: &Name, wanted: &Wanted<'_>) -> bool {
        self.last.as_ref().is_some_and(|(_, record)| {
            record.sequence >= self.sequence
                && record.node == *node
                && record.role == wanted.role
                && record.presence() == Some(wanted.presence)
        })
    }
}

impl Register {
    /// Makes the next record unless the last one says the same. To be sent once the lines are
    /// durable. `false` when there is no number left.
    pub(in crate::follow) fn sign_own(&mut self, local: &LocalNode, wanted: &Wanted<'_>) -> bool {
        let membership = &local.membership;
        if self.own.says(&membership.node, wanted) {
            return true;
        }
        let Some(sequence) = next_sequence(self.own.sequence, 0) else {
            return false;
        };
        let record = Record {
            mesh: membership.mesh,
            site: membership.site().clone(),
            node: membership.node.clone(),
            role: wanted.role,
            identity: local.identity_key(),
            sequence,
            issued: wanted.now,
            state: NodeState::Present(wanted.presence.clone()),
        };
        let member = sign(record.clone(), &local.identity, membership.enrolment());
        self.lines.push(Line::Own(member.write()));
        self.keep_own(member, record);
        true
    }

    /// From the cache; checked like anything else that is read.
    pub(super) fn restore_own(&mut self, bytes: &[u8]) {
        let read = Member::read(bytes).ok().and_then(|member| {
            let record = SignedRecord::read(&member.record).ok()?;
            record.verify().ok()?;
            Some((member, record.record().clone()))
        });
        if let Some((member, record)) = read
            && record.identity == self.identity
            && record.sequence >= self.own.sequence
        {
            self.keep_own(member, record);
        }
    }

    fn keep_own(&mut self, member: Member, record: Record) {
        // Taken by the rules for all, so that it is known when a broker shows it. Refused it may
        // be, by a ledger that has revoked us: the broker will say so.
        let _taken = self.mesh.handle_member(&member);
        self.note_records();
        self.own.sequence = record.sequence;
        self.own.last = Some((member, record));
    }
}

fn sign(record: Record, identity: &SigningKey, enrolment: &[u8]) -> Member {
    Member {
        enrolment: enrolment.to_vec(),
        record: record.sign(identity).bytes().to_vec(),
    }
}
