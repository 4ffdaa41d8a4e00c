//! What neighbours hand over, on its way to be verified: known things are left out, entries wait
//! for their parents, and many small handovers become few.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proto::control::Handover;
use proto::entry::SignedEntry;
use proto::key::{Hash, PublicKey};
use proto::record::{Member, SignedRecord};

/// The same is not handed over again within this time: it is being verified.
const HANDED: Duration = Duration::from_secs(2);
const MAX_HANDED: usize = 8192;
/// Between two that are handed over.
const APART: Duration = Duration::from_millis(100);
/// Of one that is handed over.
const MAX_BYTES: usize = 1 << 20;
/// Entries that came before their parents.
const MAX_EARLY: usize = 1024;
const MAX_EARLY_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Intake {
    waiting: Handover,
    waiting_bytes: usize,
    /// When something was handed over last.
    flushed: Option<Duration>,
    handed: HashMap<Hash, Duration>,
    early: Vec<SignedEntry>,
}

type Members = BTreeMap<PublicKey, (u64, Arc<Member>)>;

impl Intake {
    pub(super) fn handle_handover(
        &mut self,
        handover: Handover,
        known: &HashSet<Hash>,
        members: &Members,
        now: Duration,
    ) {
        let entries = handover.entries.iter();
        let mut entries: Vec<SignedEntry> = entries
            .filter_map(|bytes| SignedEntry::read(bytes).ok())
            .filter(|entry| !known.contains(&entry.hash()) && !self.has_handed(&entry.hash(), now))
            .collect();
        entries.truncate(MAX_EARLY);
        for entry in entries {
            if self.is_early(&entry, known, now) {
                self.keep_early(entry);
            } else {
                self.accept_entry(entry, now);
            }
        }
        for entry in self.handle_known(known, now) {
            self.accept_entry(entry, now);
        }
        for bytes in handover.members {
            self.accept_member(bytes, members, now);
        }
    }

    /// Those that need not wait any more.
    pub(super) fn handle_known(
        &mut self,
        known: &HashSet<Hash>,
        now: Duration,
    ) -> Vec<SignedEntry> {
        let mut ready = Vec::new();
        loop {
            let early = std::mem::take(&mut self.early);
            let (more, still): (Vec<_>, Vec<_>) = early.into_iter().partition(|entry| {
                !self.is_early(entry, known, now)
                    || ready
                        .iter()
                        .any(|r: &SignedEntry| r.hash() == entry.entry().previous)
            });
            self.early = still;
            if more.is_empty() {
                ready.retain(|entry| !known.contains(&entry.hash()));
                return ready;
            }
            ready.extend(more);
        }
    }

    pub(super) fn accept_entry(&mut self, entry: SignedEntry, now: Duration) {
        let bytes = entry.bytes();
        if self.waiting_bytes + bytes.len() > MAX_BYTES || !self.remember(entry.hash(), now) {
            return;
        }
        self.waiting_bytes += bytes.len();
        self.waiting.entries.push(bytes.to_vec());
    }

    pub(super) fn has_handed(&self, hash: &Hash, now: Duration) -> bool {
        self.handed.get(hash).is_some_and(|at| now < *at + HANDED)
    }

    pub(super) fn due(&self) -> Option<Duration> {
        (self.waiting_bytes > 0).then(|| self.flushed.map_or(Duration::ZERO, |at| at + APART))
    }

    /// What is to be verified now.
    pub(super) fn flush(&mut self, now: Duration) -> Option<Handover> {
        self.due().filter(|at| now >= *at)?;
        self.flushed = Some(now);
        self.waiting_bytes = 0;
        Some(std::mem::take(&mut self.waiting))
    }

    fn accept_member(&mut self, bytes: Vec<u8>, members: &Members, now: Duration) {
        let Ok(member) = Member::read(&bytes) else {
            return;
        };
        let Ok(signed) = SignedRecord::read(&member.record) else {
            return;
        };
        let record = signed.record();
        let known = members.get(&record.identity);
        let is_new = known.is_none_or(|(sequence, _)| *sequence < record.sequence);
        if is_new
            && self.waiting_bytes + bytes.len() <= MAX_BYTES
            && self.remember(member.hash(), now)
        {
            self.waiting_bytes += bytes.len();
            self.waiting.members.push(bytes);
        }
    }

    /// Whether one that it builds on has not come yet.
    fn is_early(&self, entry: &SignedEntry, known: &HashSet<Hash>, now: Duration) -> bool {
        let needed = [Some(&entry.entry().previous), entry.entry().body.settled()];
        let mut needed = needed.into_iter().flatten();
        let is_there = |hash: &Hash| known.contains(hash) || self.has_handed(hash, now);
        entry.entry().number > 0 && !needed.all(is_there)
    }

    fn keep_early(&mut self, entry: SignedEntry) {
        let bytes: usize = self.early.iter().map(|early| early.bytes().len()).sum();
        let is_kept = self.early.iter().any(|early| early.hash() == entry.hash());
        if is_kept || bytes + entry.bytes().len() > MAX_EARLY_BYTES {
            return;
        }
        if self.early.len() >= MAX_EARLY {
            self.early.remove(0);
        }
        self.early.push(entry);
    }

    /// `false` if it was handed over just now.
    fn remember(&mut self, hash: Hash, now: Duration) -> bool {
        if self.has_handed(&hash, now) {
            return false;
        }
        if self.handed.len() >= MAX_HANDED {
            self.handed.retain(|_, at| now < *at + HANDED);
        }
        if self.handed.len() >= MAX_HANDED {
            return false;
        }
        self.handed.insert(hash, now);
        true
    }
}
