//! What a follower has taken, and what of it has still to be made durable. Pure: it is told what
//! was received and when, and hands out lines for the cache.

mod gossip;
mod listing;
mod own;
mod shown;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[path = "../../tests/node/world.rs"]
#[expect(dead_code, reason = "whole-crate tests use all of it")]
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proto::entry::SignedEntry;
use proto::key::{MeshId, PublicKey};
use proto::life::is_dropped;
use proto::mesh::{EntryRefusal, MemberRefusal, Mesh, Taken};
use proto::message::Push;
use proto::record::{Member, SignedRecord};

use super::refused::Item;
use super::{Cause, Refused};
use crate::cache::Line;
use crate::stores::StoreName;
pub(super) use gossip::Handed;
use listing::Listing;
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
    from: String,
    pub(super) refused: Refused,
    /// The bytes of every member held, present or not, as the cache has to have them.
    members: BTreeMap<PublicKey, Vec<u8>>,
    /// Numbers of those whose records are no longer kept.
    sequences: BTreeMap<PublicKey, u64>,
    /// For how long no store that could be reached has listed these.
    absent: BTreeMap<PublicKey, Duration>,
    stores: BTreeMap<StoreName, Listing>,
    /// The sequences of records that came from other gateways, since this process began.
    gossiped: BTreeMap<PublicKey, u64>,
    orphans: VecDeque<SignedEntry>,
    /// The cache held records that lacked what they rest on.
    incomplete: bool,
    pub(super) own: Own,
    /// With any store.
    pub(super) last_sync: Option<u64>,
    /// Not durable yet.
    lines: Vec<Line>,
    shown: Shown,
}

/// Who sent what is to be taken.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) store: StoreName,
    pub(super) address: String,
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
            stores: BTreeMap::new(),
            gossiped: BTreeMap::new(),
            orphans: VecDeque::new(),
            incomplete: false,
            own: Own::default(),
            last_sync: None,
            lines: Vec::new(),
            shown: Shown::default(),
        }
    }

    /// One line of the cache, in the order they were written. Nothing is taken on trust.
    pub(super) fn handle_line(&mut self, line: Line, now: u64) {
        match line {
            Line::Entry(bytes) => self.handle_entry(&bytes, now),
            Line::Member(bytes) => {
                self.handle_member(None, &bytes, now);
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
            Line::Synced(store, position, at) => {
                self.mesh.handle_synced();
                self.last_sync = self.last_sync.max(Some(at));
                if let Some(store) = store {
                    let listing = self.listing(store);
                    listing.position = Some(position);
                    listing.last_sync = Some(at);
                }
            }
            Line::Unlisted(store, identity) => self.handle_unlisted(store, identity),
            Line::Listed(store, identity) => {
                self.listing(store).lacks.remove(&identity);
            }
        }
    }

    /// After the last line: what was read is durable already. What was of no use is asked for
    /// again.
    pub(super) fn handle_loaded(&mut self, whole: bool) {
        if !whole || std::mem::take(&mut self.incomplete) {
            for listing in self.stores.values_mut() {
                listing.position = None;
            }
        }
        self.orphans.clear();
        self.refused = Refused::default();
        self.lines.clear();
        self.note_events();
        self.handle_durable();
    }

    /// Takes a batch of a watch.
    pub(super) fn handle_push(&mut self, source: &Source, push: &Push, now: u64) {
        let store = source.store;
        self.from.clone_from(&source.address);
        if push.reset {
            self.handle_reset(store);
        }
        for entry in &push.entries {
            self.handle_entry(entry, now);
        }
        for member in &push.members {
            if let Some(identity) = self.handle_member(Some(store), member, now) {
                self.handle_listed(store, identity);
            }
        }
        for identity in &push.forgotten {
            // A broker's word alone removes nothing; it starts the clock.
            if let Ok(identity) = PublicKey::new(*identity) {
                self.handle_unlisted(store, identity);
            }
        }
        if push.caught_up {
            self.handle_caught_up(store, push.position, now);
        }
        self.note_events();
    }

    /// Entries as they came with a reply.
    pub(super) fn handle_entries(&mut self, source: &Source, entries: &[Vec<u8>], now: u64) {
        self.from.clone_from(&source.address);
        for entry in entries {
            self.handle_entry(entry, now);
        }
        self.note_events();
    }

    fn handle_entry(&mut self, bytes: &[u8], now: u64) {
        match self.mesh.handle_entry(bytes) {
            Ok(Taken::New) => self.handle_new_entry(bytes),
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
        let settled = entry.body.settled();
        let mut before = settled.into_iter().chain([&entry.previous]);
        before.all(|hash| ledger.entry(hash).is_some())
    }

    /// The identity, if it is listed by this, whether it counts now or not.
    fn handle_member(
        &mut self,
        store: Option<StoreName>,
        bytes: &[u8],
        now: u64,
    ) -> Option<PublicKey> {
        let member = match Member::read(bytes) {
            Ok(member) => member,
            Err(error) => {
                self.report(Cause::Unreadable, format!("a record: {error}"), now);
                return None;
            }
        };
        match self.mesh.handle_member(&member) {
            Ok(taken) => {
                let (identity, sequence) = identity_of(&member)?;
                if let Some(store) = store {
                    self.listing(store).shown.insert(identity, sequence);
                }
                if taken == Taken::New {
                    self.keep(&member);
                }
                Some(identity)
            }
            Err(refusal) => self.handle_refused(store, &member, &refusal, now),
        }
    }

    fn handle_refused(
        &mut self,
        store: Option<StoreName>,
        member: &Member,
        refusal: &MemberRefusal,
        now: u64,
    ) -> Option<PublicKey> {
        if let (Some(store), MemberRefusal::OldSequence { shown, .. }) = (store, refusal)
            && let Some((identity, _)) = identity_of(member)
            && self.is_behind(store, &identity, *shown)
        {
            return Some(identity);
        }
        let held = is_held_back(refusal);
        match store {
            Some(store) => self.listing(store).may_pass |= refusal.may_pass_later(),
            None => self.incomplete |= refusal.may_pass_later() && !held,
        }
        let cause = if is_of(member, &self.mesh.id()) {
            Cause::of_member(refusal)
        } else {
            Cause::ForeignMesh
        };
        self.report(cause, describe(member, refusal), now);
        if held { self.keep(member) } else { None }
    }

    fn keep(&mut self, member: &Member) -> Option<PublicKey> {
        let (identity, sequence) = identity_of(member)?;
        // Not always with the enrolment it was shown with.
        let bytes = self.mesh.held(&identity).unwrap_or(member).write();
        if self.members.get(&identity) != Some(&bytes) {
            self.lines.push(Line::Member(bytes.clone()));
            self.members.insert(identity, bytes);
        }
        self.note_records();
        self.sequences.remove(&identity);
        if identity == self.identity {
            // If it is newer than we know of, this directory was restored from a snapshot.
            self.own.handle_shown(sequence);
        }
        Some(identity)
    }

    /// The stores that can be reached now could be for so long since the last time. Records that
    /// none of them has listed for too long are dropped.
    pub(super) fn handle_reachable(&mut self, passed: Duration) {
        for identity in self.unlisted() {
            let absent = self.absent.entry(identity).or_default();
            *absent += passed;
            if is_dropped(*absent) {
                self.forget(identity);
                self.lines.push(Line::Forgotten(identity));
            } else {
                self.lines.push(Line::Absent(identity, absent.as_secs()));
            }
        }
        self.note_events();
    }

    fn forget(&mut self, identity: PublicKey) {
        if let Some(sequence) = self.mesh.sequence(&identity) {
            self.sequences.insert(identity, sequence);
        }
        self.mesh.forget(&identity);
        self.members.remove(&identity);
        self.gossiped.remove(&identity);
        self.note_records();
        self.absent.remove(&identity);
        for listing in self.stores.values_mut() {
            listing.lacks.remove(&identity);
        }
    }

    /// What ended a conversation with this source.
    pub(super) fn handle_garbage(&mut self, source: &Source, cause: Cause, what: String, now: u64) {
        self.from.clone_from(&source.address);
        self.report(cause, what, now);
    }

    fn report(&mut self, cause: Cause, what: String, now: u64) {
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

/// Counts for nothing now, and may later.
fn is_held_back(refusal: &MemberRefusal) -> bool {
    matches!(
        refusal,
        MemberRefusal::Quarantined | MemberRefusal::TwoForOneUse(_)
    )
}

/// Whether a record says that it is of this mesh, or says nothing that can be read.
fn is_of(member: &Member, mesh: &MeshId) -> bool {
    SignedRecord::read(&member.record).map_or(true, |record| record.record().mesh == *mesh)
}

fn identity_of(member: &Member) -> Option<(PublicKey, u64)> {
    let record = SignedRecord::read(&member.record).ok()?;
    Some((record.record().identity, record.record().sequence))
}
