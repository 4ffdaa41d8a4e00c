//! What a follower has taken, and what of it has still to be made durable. Pure: it is told what
//! was received and when, and hands out lines for the cache.

mod own;
mod shown;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "../../tests/node/world.rs"]
#[expect(dead_code, reason = "whole-crate tests use all of it")]
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proto::entry::{Body, SignedEntry};
use proto::key::{MeshId, PublicKey};
use proto::life::is_dropped;
use proto::mesh::{EntryRefusal, MemberRefusal, Mesh, Taken};
use proto::message::{Position, Push};
use proto::record::{Member, SignedRecord};

use super::refused::Item;
use super::{Cause, Refused};
use crate::cache::Line;
use own::Own;
pub(super) use own::Wanted;
use shown::Shown;

/// Entries that wait for those before them, and their bytes.
const MAX_ORPHANS: usize = 256;
const MAX_ORPHAN_BYTES: usize = 1 << 20;

pub(super) struct Register {
    pub(super) mesh: Mesh,
    identity: PublicKey,
    /// Where what is received comes from, for the report.
    pub(super) from: String,
    pub(super) refused: Refused,
    /// The bytes of every member held, present or not, as the cache has to have them.
    members: BTreeMap<PublicKey, Vec<u8>>,
    /// Numbers of those whose records are no longer kept.
    sequences: BTreeMap<PublicKey, u64>,
    /// For how long brokers that could be reached have not listed these.
    absent: BTreeMap<PublicKey, Duration>,
    /// Who was named since a snapshot began.
    snapshot: Option<BTreeSet<PublicKey>>,
    orphans: VecDeque<SignedEntry>,
    pub(super) own: Own,
    position: Option<Position>,
    pub(super) last_sync: Option<u64>,
    /// Not durable yet.
    lines: Vec<Line>,
    shown: Shown,
    /// Something was refused that a longer ledger may allow, and the ledger has become longer.
    may_pass: bool,
    relist: bool,
}

impl Register {
    pub(super) fn new(mesh: Mesh, identity: PublicKey) -> Register {
        Register {
            mesh,
            identity,
            from: "the cache".to_owned(),
            refused: Refused::default(),
            members: BTreeMap::new(),
            sequences: BTreeMap::new(),
            absent: BTreeMap::new(),
            snapshot: None,
            orphans: VecDeque::new(),
            own: Own::default(),
            position: None,
            last_sync: None,
            lines: Vec::new(),
            shown: Shown::default(),
            may_pass: false,
            relist: false,
        }
    }

    /// One line of the cache, in the order they were written. Nothing is taken on trust.
    pub(super) fn handle_line(&mut self, line: Line, now: u64) {
        match line {
            Line::Entry(bytes) => self.handle_entry(&bytes, now),
            Line::Member(bytes) => {
                self.handle_member(&bytes, now);
            }
            Line::Own(bytes) => self.restore_own(&bytes),
            Line::Sequence(identity, sequence) => {
                self.mesh.restore_sequence(identity, sequence);
                self.sequences.insert(identity, sequence);
                if identity == self.identity {
                    self.own.handle_shown(sequence);
                }
            }
            Line::Absent(identity, 0) => {
                self.absent.remove(&identity);
            }
            Line::Absent(identity, seconds) => {
                self.absent.insert(identity, Duration::from_secs(seconds));
            }
            Line::Forgotten(identity) => self.forget(identity),
            Line::Synced(position, at) => {
                self.mesh.handle_synced();
                self.position = Some(position);
                self.last_sync = Some(at);
            }
        }
    }

    /// After the last line: what was read is durable already.
    pub(super) fn handle_loaded(&mut self) {
        self.orphans.clear();
        self.refused = Refused::default();
        self.lines.clear();
        self.note_events();
        self.handle_durable();
    }

    /// Takes a batch of a watch.
    pub(super) fn handle_push(&mut self, push: &Push, now: u64) {
        if push.reset {
            self.snapshot = Some(BTreeSet::new());
        }
        for entry in &push.entries {
            self.handle_entry(entry, now);
        }
        for member in &push.members {
            if let Some(identity) = self.handle_member(member, now) {
                self.handle_listed(identity);
            }
        }
        for identity in &push.forgotten {
            // A broker's word alone removes nothing; it starts the clock.
            if let Ok(identity) = PublicKey::new(*identity) {
                self.handle_unlisted(identity);
            }
        }
        if push.caught_up {
            self.handle_caught_up(push.position, now);
        }
        self.note_events();
    }

    /// Entries as they came with a reply.
    pub(super) fn handle_entries(&mut self, entries: &[Vec<u8>], now: u64) {
        for entry in entries {
            self.handle_entry(entry, now);
        }
        self.note_events();
    }

    fn handle_entry(&mut self, bytes: &[u8], now: u64) {
        match self.mesh.handle_entry(bytes) {
            Ok(Taken::New) => {
                self.lines.push(Line::Entry(bytes.to_vec()));
                self.relist |= std::mem::take(&mut self.may_pass);
                self.adopt_orphans();
            }
            Ok(Taken::Known) => {}
            Err(refusal) => {
                if refusal == EntryRefusal::Orphan {
                    self.keep_orphan(bytes);
                }
                self.report(Cause::of_entry(&refusal), refusal.to_string(), now);
            }
        }
    }

    fn keep_orphan(&mut self, bytes: &[u8]) {
        let Ok(orphan) = SignedEntry::read(bytes) else {
            return;
        };
        if self.orphans.contains(&orphan) {
            return;
        }
        self.orphans.push_back(orphan);
        let mut held: usize = self.orphans.iter().map(|held| held.bytes().len()).sum();
        while (self.orphans.len() > MAX_ORPHANS || held > MAX_ORPHAN_BYTES)
            && let Some(gone) = self.orphans.pop_front()
        {
            held -= gone.bytes().len();
        }
    }

    /// Entries that came too early, as long as one of them fits. What is refused for another
    /// reason than its place is dropped; it was reported when it came.
    fn adopt_orphans(&mut self) {
        while let Some(at) = self.orphans.iter().position(|orphan| self.is_due(orphan))
            && let Some(orphan) = self.orphans.remove(at)
        {
            if self.mesh.handle_entry(orphan.bytes()) == Ok(Taken::New) {
                self.lines.push(Line::Entry(orphan.bytes().to_vec()));
            }
        }
    }

    /// Whether all that it follows is here. Looked up only: a broker that sends many must not have
    /// each read and verified again whenever the ledger grows.
    fn is_due(&self, orphan: &SignedEntry) -> bool {
        let ledger = self.mesh.ledger();
        let entry = orphan.entry();
        let settled = match &entry.body {
            Body::Settlement { other } => Some(other),
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Authority { .. } => None,
        };
        let mut before = settled.into_iter().chain([&entry.previous]);
        before.all(|hash| ledger.entry(hash).is_some())
    }

    /// The identity, if its chain held: it is listed, whether it counts now or not.
    fn handle_member(&mut self, bytes: &[u8], now: u64) -> Option<PublicKey> {
        let member = match Member::read(bytes) {
            Ok(member) => member,
            Err(error) => {
                self.report(Cause::Unreadable, format!("a record: {error}"), now);
                return None;
            }
        };
        match self.mesh.handle_member(&member) {
            Ok(Taken::New) => self.keep(&member),
            Ok(Taken::Known) => identity_of(&member).map(|(identity, _)| identity),
            Err(refusal) => {
                self.may_pass |= refusal.may_pass_later();
                let cause = if is_of(&member, &self.mesh.id()) {
                    Cause::of_member(&refusal)
                } else {
                    Cause::ForeignMesh
                };
                self.report(cause, describe(&member, &refusal), now);
                let held = matches!(
                    refusal,
                    MemberRefusal::Quarantined | MemberRefusal::TwoForOneUse(_)
                );
                if held { self.keep(&member) } else { None }
            }
        }
    }

    fn keep(&mut self, member: &Member) -> Option<PublicKey> {
        let (identity, sequence) = identity_of(member)?;
        // Not always with the enrolment it was shown with.
        let bytes = self.mesh.held(&identity).unwrap_or(member).write();
        if self.members.get(&identity) != Some(&bytes) {
            self.lines.push(Line::Member(bytes.clone()));
            self.members.insert(identity, bytes);
        }
        self.sequences.remove(&identity);
        if identity == self.identity {
            // If it is newer than we know of, this directory was restored from a snapshot.
            self.own.handle_shown(sequence);
        }
        Some(identity)
    }

    fn handle_listed(&mut self, identity: PublicKey) {
        if let Some(named) = &mut self.snapshot {
            named.insert(identity);
        }
        if self.absent.remove(&identity).is_some() {
            self.lines.push(Line::Absent(identity, 0));
        }
    }

    fn handle_unlisted(&mut self, identity: PublicKey) {
        if identity != self.identity && self.members.contains_key(&identity) {
            self.absent.entry(identity).or_default();
        }
    }

    fn handle_caught_up(&mut self, position: Position, now: u64) {
        if let Some(named) = self.snapshot.take() {
            let missing: Vec<PublicKey> = self
                .members
                .keys()
                .filter(|identity| !named.contains(identity))
                .copied()
                .collect();
            for identity in missing {
                self.handle_unlisted(identity);
            }
        }
        self.mesh.handle_synced();
        self.position = Some(position);
        self.last_sync = Some(now);
        // What could not be written yet and says less goes.
        if let Some(Line::Synced(..)) = self.lines.last() {
            self.lines.pop();
        }
        self.lines.push(Line::Synced(position, now));
    }

    /// A broker was reachable for so long since the last time. Records that none has listed for
    /// too long are dropped.
    pub(super) fn handle_reachable(&mut self, passed: Duration) {
        let mut dropped = Vec::new();
        for (identity, absent) in &mut self.absent {
            *absent += passed;
            if is_dropped(*absent) {
                dropped.push(*identity);
            } else {
                self.lines.push(Line::Absent(*identity, absent.as_secs()));
            }
        }
        for identity in dropped {
            self.forget(identity);
            self.lines.push(Line::Forgotten(identity));
        }
        self.note_events();
    }

    fn forget(&mut self, identity: PublicKey) {
        if let Some(sequence) = self.mesh.sequence(&identity) {
            self.sequences.insert(identity, sequence);
        }
        self.mesh.forget(&identity);
        self.members.remove(&identity);
        self.absent.remove(&identity);
    }

    pub(super) fn report(&mut self, cause: Cause, what: String, now: u64) {
        self.refused.add(Item {
            cause,
            what,
            from: self.from.clone(),
            at: now,
        });
    }
}

/// What a record is about, with why it was refused; bytes that cannot be read name nobody.
fn describe(member: &Member, refusal: &MemberRefusal) -> String {
    match SignedRecord::read(&member.record) {
        Ok(record) => {
            let record = record.record();
            format!(
                "a record of {}/{} ({}): {refusal}",
                record.site, record.node, record.identity
            )
        }
        Err(_) => format!("a record: {refusal}"),
    }
}

/// Whether a record says that it is of this mesh, or says nothing that can be read.
fn is_of(member: &Member, mesh: &MeshId) -> bool {
    SignedRecord::read(&member.record).map_or(true, |record| record.record().mesh == *mesh)
}

fn identity_of(member: &Member) -> Option<(PublicKey, u64)> {
    let record = SignedRecord::read(&member.record).ok()?;
    Some((record.record().identity, record.record().sequence))
}
