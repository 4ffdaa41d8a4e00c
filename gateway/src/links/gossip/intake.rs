//! What neighbours hand over, on its way to be verified: known things are left out, entries wait
//! for their parents, and many small handovers of a neighbour become few.
//!
//! Nothing here is verified yet, so each neighbour has books and room of its own: what one sends
//! says nothing of what another sends, and all get their turn.

mod early;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::control::Handover;
use proto::entry::SignedEntry;
use proto::key::{Hash, PublicKey};
use proto::record::{Member, SignedRecord};

use early::Early;

/// The same is not handed over again within this time: it is being verified.
const HANDED: Duration = Duration::from_secs(2);
/// Of one neighbour.
const MAX_HANDED: usize = 4096;
/// Between two turns, and how many neighbours' handovers go in one.
const APART: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 4;
/// Of one neighbour, until its turn.
const MAX_BYTES: usize = 512 * 1024;
const SIGNATURE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Intake {
    sources: BTreeMap<PublicKey, Source>,
    /// Those of whom something waits, in turn.
    turns: VecDeque<PublicKey>,
    /// When something was handed over last.
    flushed: Option<Duration>,
}

/// What is known here, and verified.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) entries: &'a HashSet<Hash>,
    pub(super) members: &'a BTreeMap<PublicKey, (u64, Arc<Member>)>,
}

/// What came from one neighbour.
#[derive(Debug, Default)]
struct Source {
    waiting: Vec<Waiting>,
    bytes: usize,
    handed: HashMap<Hash, Handed>,
    early: Early,
    is_gone: bool,
}

#[derive(Debug)]
struct Handed {
    at: Duration,
    /// The hash of an entry does not cover it: another one may be the right one.
    signature: [u8; SIGNATURE],
}

#[derive(Debug)]
enum Waiting {
    Entry(Hash, Vec<u8>),
    Member(PublicKey, u64, Vec<u8>),
}

impl Intake {
    pub(super) fn handle_handover(
        &mut self,
        from: &PublicKey,
        handover: Handover,
        known: Known<'_>,
        now: Duration,
    ) {
        let source = self.sources.entry(*from).or_default();
        source.is_gone = false;
        source.handle_handover(handover, known, now);
        self.queue(from);
    }

    /// Entries have become known: some need not wait any more.
    pub(super) fn handle_known(&mut self, known: &HashSet<Hash>, now: Duration) {
        let sources = self.sources.iter_mut();
        let waiting = sources.filter(|(_, source)| !source.early.is_empty());
        let mut freed = Vec::new();
        for (from, source) in waiting {
            source.free(known, now);
            freed.push(*from);
        }
        freed.iter().for_each(|from| self.queue(from));
    }

    /// What it has handed over whole still counts.
    pub(super) fn handle_gone(&mut self, of: &PublicKey) {
        if let Some(source) = self.sources.get_mut(of) {
            source.early = Early::default();
            source.is_gone = true;
            if source.waiting.is_empty() {
                self.sources.remove(of);
            }
        }
    }

    /// Whether this very neighbour has sent it just now: others' word for it counts for nothing.
    pub(super) fn has_handed(&self, by: &PublicKey, hash: &Hash, now: Duration) -> bool {
        let source = self.sources.get(by);
        source.is_some_and(|source| source.has_handed(hash, now))
    }

    pub(super) fn due(&self) -> Option<Duration> {
        (!self.turns.is_empty()).then(|| self.flushed.map_or(Duration::ZERO, |at| at + APART))
    }

    /// What is to be verified now, each neighbour's apart. What others' handovers have made known
    /// meanwhile is left out.
    pub(super) fn flush(&mut self, known: Known<'_>, now: Duration) -> Vec<(PublicKey, Handover)> {
        let mut all = Vec::new();
        if self.due().is_none_or(|at| now < at) {
            return all;
        }
        while all.len() < AT_ONCE
            && let Some(from) = self.turns.pop_front()
        {
            let Some(source) = self.sources.get_mut(&from) else {
                continue;
            };
            let handover = source.take(known);
            if source.is_gone {
                self.sources.remove(&from);
            }
            if handover != Handover::default() {
                all.push((from, handover));
            }
        }
        if !all.is_empty() {
            self.flushed = Some(now);
        }
        all
    }

    fn queue(&mut self, from: &PublicKey) {
        let source = self.sources.get(from);
        let waits = source.is_some_and(|source| !source.waiting.is_empty());
        if waits && !self.turns.contains(from) {
            self.turns.push_back(*from);
        }
    }
}

impl Source {
    fn handle_handover(&mut self, handover: Handover, known: Known<'_>, now: Duration) {
        let entries = handover.entries.iter();
        let entries = entries
            .filter_map(|bytes| SignedEntry::read(bytes).ok())
            .filter(|entry| !known.entries.contains(&entry.hash()))
            .take(early::MAX);
        let mut is_any_new = false;
        for entry in entries {
            if self.lacking(&entry, known.entries, now).next().is_some() {
                self.early.keep(entry);
            } else {
                is_any_new |= self.accept_entry(&entry, now);
            }
        }
        if is_any_new {
            self.free(known.entries, now);
        }
        for bytes in handover.members {
            self.accept_member(bytes, known, now);
        }
    }

    fn free(&mut self, known: &HashSet<Hash>, now: Duration) {
        let mut early = std::mem::take(&mut self.early);
        for entry in early.free(|entry| self.lacking(entry, known, now).collect()) {
            if !known.contains(&entry.hash()) {
                self.accept_entry(&entry, now);
            }
        }
        self.early = early;
    }

    /// Which of those that it builds on have not come yet.
    fn lacking<'a>(
        &'a self,
        entry: &'a SignedEntry,
        known: &'a HashSet<Hash>,
        now: Duration,
    ) -> impl Iterator<Item = Hash> + use<'a> {
        let needed = [Some(&entry.entry().previous), entry.entry().body.settled()];
        let needed = needed.into_iter().flatten().copied();
        let has_parents = entry.entry().number > 0;
        needed
            .filter(move |hash| has_parents && !known.contains(hash) && !self.has_handed(hash, now))
    }

    fn has_handed(&self, hash: &Hash, now: Duration) -> bool {
        let handed = self.handed.get(hash);
        handed.is_some_and(|handed| now < handed.at + HANDED)
    }

    fn accept_entry(&mut self, entry: &SignedEntry, now: Duration) -> bool {
        let bytes = entry.bytes();
        let hash = entry.hash();
        let signature = bytes.last_chunk().copied().unwrap_or([0; SIGNATURE]);
        let is_new = self.has_room(bytes) && self.remember(hash, signature, now);
        if is_new {
            self.bytes += bytes.len();
            self.waiting.push(Waiting::Entry(hash, bytes.to_vec()));
        }
        is_new
    }

    fn accept_member(&mut self, bytes: Vec<u8>, known: Known<'_>, now: Duration) {
        let Ok(member) = Member::read(&bytes) else {
            return;
        };
        let Ok(signed) = SignedRecord::read(&member.record) else {
            return;
        };
        let (identity, sequence) = (signed.record().identity, signed.record().sequence);
        // The hash of a record covers all of it.
        let signature = [0; SIGNATURE];
        if known.is_newer(&identity, sequence)
            && self.has_room(&bytes)
            && self.remember(member.hash(), signature, now)
        {
            self.bytes += bytes.len();
            let waiting = Waiting::Member(identity, sequence, bytes);
            self.waiting.push(waiting);
        }
    }

    fn has_room(&self, bytes: &[u8]) -> bool {
        self.bytes + bytes.len() <= MAX_BYTES
    }

    /// `false` if the very same was handed over just now.
    fn remember(&mut self, hash: Hash, signature: [u8; SIGNATURE], now: Duration) -> bool {
        let handed = self.handed.get(&hash);
        if handed.is_some_and(|handed| now < handed.at + HANDED && handed.signature == signature) {
            return false;
        }
        if self.handed.len() >= MAX_HANDED {
            self.handed.retain(|_, handed| now < handed.at + HANDED);
        }
        if self.handed.len() >= MAX_HANDED {
            return false;
        }
        self.handed.insert(hash, Handed { at: now, signature });
        true
    }

    fn take(&mut self, known: Known<'_>) -> Handover {
        self.bytes = 0;
        let mut handover = Handover::default();
        for waiting in std::mem::take(&mut self.waiting) {
            match waiting {
                Waiting::Entry(hash, bytes) if !known.entries.contains(&hash) => {
                    handover.entries.push(bytes);
                }
                Waiting::Member(identity, sequence, bytes)
                    if known.is_newer(&identity, sequence) =>
                {
                    handover.members.push(bytes);
                }
                Waiting::Entry(..) | Waiting::Member(..) => {}
            }
        }
        handover
    }
}

impl Known<'_> {
    fn is_newer(&self, identity: &PublicKey, sequence: u64) -> bool {
        let known = self.members.get(identity);
        known.is_none_or(|(known, _)| *known < sequence)
    }
}
