//! What one store lists of the members that are held, and how far it has been followed.

use std::collections::{BTreeSet, HashMap};

use proto::key::PublicKey;
use proto::message::Position;

use super::Register;
use crate::cache::Line;
use crate::stores::StoreName;

#[derive(Default)]
pub(super) struct Listing {
    pub(super) position: Option<Position>,
    /// Unix seconds of the last time that all it had was taken.
    pub(super) last_sync: Option<u64>,
    /// Members held that it does not list. A store is taken to list all others: one that has not
    /// been asked for everything yet keeps a record rather than loses it.
    pub(super) lacks: BTreeSet<PublicKey>,
    /// Who was named since a snapshot began.
    snapshot: Option<BTreeSet<PublicKey>>,
    /// The highest number it has shown of each identity since this process began.
    pub(super) shown: HashMap<PublicKey, u64>,
    /// All it has was taken, and the conversation goes on.
    reachable: bool,
    /// It sent what a longer ledger may allow.
    pub(super) may_pass: bool,
    /// And the ledger has become longer.
    pub(super) relist: bool,
}

impl Register {
    pub(super) fn listing(&mut self, store: StoreName) -> &mut Listing {
        self.stores.entry(store).or_default()
    }

    pub(super) fn handle_reset(&mut self, store: StoreName) {
        self.listing(store).snapshot = Some(BTreeSet::new());
    }

    pub(super) fn handle_listed(&mut self, store: StoreName, identity: PublicKey) {
        let listing = self.listing(store);
        if let Some(named) = &mut listing.snapshot {
            named.insert(identity);
        }
        if listing.lacks.remove(&identity) {
            self.lines.push(Line::Listed(store, identity));
        }
        self.end_absence(identity);
    }

    pub(super) fn handle_unlisted(&mut self, store: StoreName, identity: PublicKey) {
        if identity == self.identity || !self.members.contains_key(&identity) {
            return;
        }
        if self.listing(store).lacks.insert(identity) {
            self.lines.push(Line::Unlisted(store, identity));
        }
    }

    pub(super) fn handle_caught_up(&mut self, store: StoreName, position: Position, now: u64) {
        if let Some(named) = self.listing(store).snapshot.take() {
            let held = self.members.keys().copied();
            let missing: Vec<PublicKey> = held.filter(|held| !named.contains(held)).collect();
            for identity in missing {
                self.handle_unlisted(store, identity);
            }
        }
        self.mesh.handle_synced();
        self.last_sync = Some(now);
        let listing = self.stores.entry(store).or_default();
        listing.position = Some(position);
        listing.last_sync = Some(now);
        listing.reachable = true;
        let lacks = &listing.lacks;
        let absent = self.absent.keys().filter(|absent| !lacks.contains(absent));
        let listed: Vec<PublicKey> = absent.copied().collect();
        for identity in listed {
            self.end_absence(identity);
        }
        self.note_synced(store, position, now);
    }

    /// What could not be written yet and says less goes.
    fn note_synced(&mut self, store: StoreName, position: Position, now: u64) {
        let since = self.lines.iter().rev();
        let count = since
            .take_while(|line| matches!(line, Line::Synced(..)))
            .count();
        let tail = self.lines.split_off(self.lines.len() - count);
        let of_others = |line: &Line| !matches!(line, Line::Synced(of, ..) if *of == Some(store));
        self.lines.extend(tail.into_iter().filter(of_others));
        self.lines.push(Line::Synced(Some(store), position, now));
    }

    fn end_absence(&mut self, identity: PublicKey) {
        if self.absent.remove(&identity).is_some() {
            self.lines.push(Line::Absent(identity, 0));
        }
    }

    /// The conversation with a store has ended. A snapshot that was not whole says nothing.
    pub(in crate::follow) fn handle_lost(&mut self, store: StoreName) {
        let listing = self.listing(store);
        listing.snapshot = None;
        listing.reachable = false;
    }

    /// Members that none of the stores which can be reached lists.
    pub(super) fn unlisted(&self) -> Vec<PublicKey> {
        let mut reachable = self.stores.values().filter(|listing| listing.reachable);
        let Some(first) = reachable.next() else {
            return Vec::new();
        };
        let others: Vec<&Listing> = reachable.collect();
        let nowhere = |identity: &&PublicKey| {
            let mut others = others.iter();
            others.all(|other| other.lacks.contains(*identity))
        };
        first.lacks.iter().filter(nowhere).copied().collect()
    }

    /// A record older than the one held is a replay if its store has shown the newer one, or if
    /// there is no other that could have. Else that store is merely behind.
    pub(super) fn is_behind(&self, store: StoreName, identity: &PublicKey, sequence: u64) -> bool {
        let listing = self.stores.get(&store);
        let shown = listing.and_then(|listing| listing.shown.get(identity));
        let other = self.stores.len() > 1 || self.is_gossiped_above(identity, sequence);
        other && shown.is_none_or(|shown| *shown <= sequence)
    }

    /// Stores that no broker is known of any more.
    pub(in crate::follow) fn retain_stores(&mut self, known: &BTreeSet<StoreName>) {
        self.stores.retain(|store, _| known.contains(store));
    }

    pub(in crate::follow) fn position(&self, store: StoreName) -> Option<Position> {
        self.stores.get(&store)?.position
    }

    pub(in crate::follow) fn last_sync_with(&self, store: StoreName) -> Option<u64> {
        self.stores.get(&store)?.last_sync
    }

    /// Whether to ask a store for everything again: the ledger has grown since something it sent
    /// was refused.
    pub(in crate::follow) fn take_relist(&mut self, store: StoreName) -> bool {
        std::mem::take(&mut self.listing(store).relist)
    }
}
