//! From what is taken to what is shown: additions once they are durable, removals at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ip_network::IpNetwork;
use proto::entry::Broker;
use proto::key::{Hash, PublicKey};
use proto::knowledge::Knowledge;
use proto::ledger::{PrefixState, SitePrefix};
use proto::mesh::{Event, Problem};
use proto::name::Name;

use super::Register;
use crate::cache::Line;
use crate::follow::Peer;

/// Shared with every view until it changes.
#[derive(Clone, Default)]
pub(in crate::follow) struct Shown {
    pub(in crate::follow) peers: BTreeMap<PublicKey, Arc<Peer>>,
    pub(in crate::follow) prefixes: Arc<Vec<SitePrefix>>,
    pub(in crate::follow) cut_off: Arc<BTreeSet<(IpNetwork, Name)>>,
    pub(in crate::follow) brokers: Arc<Vec<Broker>>,
    pub(in crate::follow) heads: Arc<Vec<Hash>>,
    pub(in crate::follow) problems: Arc<Vec<Problem>>,
    pub(in crate::follow) knowledge: Arc<Knowledge>,
    /// How many entries the ledger had when `knowledge` was made.
    ledger: usize,
    /// What is to be made anew once the lines are durable.
    stale: Stale,
}

#[derive(Clone, Default)]
struct Stale {
    peers: BTreeSet<PublicKey>,
    prefixes: bool,
    brokers: bool,
    problems: bool,
    records: bool,
}

impl Register {
    /// What changed since the last look. Whoever is no longer good is gone at once, durable or
    /// not.
    pub(super) fn note_events(&mut self) {
        while let Some(event) = self.mesh.poll_event() {
            match event {
                Event::NodeRevoked(identity)
                | Event::NodeHidden(identity)
                | Event::NodeWithdrawn(identity)
                | Event::NodeForgotten(identity) => {
                    self.note_records();
                    self.shown.stale.peers.insert(identity);
                    if self.shown.peers.remove(&identity).is_some() {
                        tracing::info!(?event, "a node is gone");
                    }
                }
                Event::NodeChanged(identity) => {
                    self.note_records();
                    self.shown.stale.peers.insert(identity);
                }
                Event::PrefixesChanged => self.note_prefixes(),
                Event::BrokersChanged => {
                    let now = &self.mesh.charter().brokers;
                    let kept = Arc::make_mut(&mut self.shown.brokers);
                    kept.retain(|broker| now.contains(broker));
                    self.shown.stale.brokers = true;
                }
                Event::ProblemsChanged => self.shown.stale.problems = true,
            }
        }
        self.note_ledger();
    }

    /// What is held has changed, with an event or without.
    pub(super) fn note_records(&mut self) {
        self.shown.stale.records = true;
    }

    /// Not only once it is durable: entries prove themselves, and a full disk must not keep a
    /// revocation from others.
    fn note_ledger(&mut self) {
        if self.mesh.ledger().len() != self.shown.ledger {
            self.shown.ledger = self.mesh.ledger().len();
            // It may have put out who had left.
            self.note_records();
            let knowledge = Knowledge::clone(&self.shown.knowledge);
            self.shown.knowledge = Arc::new(knowledge.with_ledger(&self.mesh));
        }
    }

    fn note_prefixes(&mut self) {
        let now = self.mesh.prefixes();
        let by_owner: HashMap<_, _> = now
            .iter()
            .map(|prefix| ((prefix.prefix, &prefix.site, prefix.service), prefix))
            .collect();
        let kept = Arc::make_mut(&mut self.shown.prefixes);
        kept.retain_mut(|prefix| {
            let owner = (prefix.prefix, &prefix.site, prefix.service);
            match by_owner.get(&owner) {
                // It stays closed from here: nothing for it may leave in clear meanwhile.
                Some(now) if now.state == PrefixState::Quarantined => {
                    prefix.clone_from(now);
                    true
                }
                now => now == Some(&&*prefix),
            }
        });
        self.shown.cut_off = Arc::new(self.mesh.charter().cut_off.clone());
        self.shown.stale.prefixes = true;
        // Which addresses of a node may be used depends on whose prefix they are in.
        let all = self.mesh.nodes().map(|node| node.identity);
        self.shown.stale.peers.extend(all);
    }

    /// Lines that are to be durable before what they say is shown.
    pub(in crate::follow) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// All lines are durable: what they say may be shown.
    pub(in crate::follow) fn handle_durable(&mut self) {
        self.lines.clear();
        let stale = std::mem::take(&mut self.shown.stale);
        for identity in stale.peers {
            match self.peer(&identity) {
                Some(peer) => self.shown.peers.insert(identity, Arc::new(peer)),
                None => self.shown.peers.remove(&identity),
            };
        }
        if stale.prefixes {
            self.shown.prefixes = Arc::new(self.mesh.prefixes());
        }
        if stale.brokers {
            self.shown.brokers = Arc::new(self.mesh.charter().brokers.clone());
        }
        if stale.problems {
            self.shown.problems = Arc::new(self.mesh.problems());
        }
        if stale.records {
            let knowledge = Knowledge::clone(&self.shown.knowledge);
            self.shown.knowledge = Arc::new(knowledge.with_members(&self.mesh));
        }
        let heads = self.mesh.ledger().heads();
        if *self.shown.heads != heads {
            self.shown.heads = Arc::new(heads);
        }
    }

    /// Not for ourselves.
    fn peer(&self, identity: &PublicKey) -> Option<Peer> {
        let node = self.mesh.node(identity)?;
        (node.identity != self.identity).then(|| Peer {
            candidates: self.mesh.usable_candidates(node),
            lan_address: self.mesh.usable_lan_address(node),
            joined: self.mesh.joined(identity).unwrap_or((u64::MAX, u32::MAX)),
            node: node.clone(),
        })
    }

    pub(in crate::follow) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Entries that wait for others which the broker has not sent.
    pub(in crate::follow) fn waiting_entries(&self) -> usize {
        self.orphans.len()
    }

    /// Everything, for a cache written anew. Members that contend for one use come behind the
    /// point up to which all was settled, so that reading it again ends the same way.
    pub(in crate::follow) fn all_lines(&self) -> Vec<Line> {
        let entries = self.mesh.ledger().entries();
        let mut lines: Vec<Line> = entries
            .map(|entry| Line::Entry(entry.bytes().to_vec()))
            .collect();
        let (present, others): (Vec<_>, Vec<_>) = self
            .members
            .iter()
            .partition(|(identity, _)| self.mesh.node(identity).is_some());
        let member = |(_, bytes): (&PublicKey, &Vec<u8>)| Line::Member(bytes.clone());
        lines.extend(present.into_iter().map(member));
        for (store, listing) in &self.stores {
            if let (Some(position), Some(at)) = (listing.position, listing.last_sync) {
                lines.push(Line::Synced(Some(*store), position, at));
            }
        }
        lines.extend(others.into_iter().map(member));
        for (store, listing) in &self.stores {
            let lacks = listing.lacks.iter();
            lines.extend(lacks.map(|identity| Line::Unlisted(*store, *identity)));
        }
        let sequences = self.sequences.iter();
        lines.extend(sequences.map(|(identity, number)| Line::Sequence(*identity, *number)));
        let absent = self.absent.iter();
        lines.extend(absent.map(|(identity, time)| Line::Absent(*identity, time.as_secs())));
        lines.extend(self.own.member().map(|own| Line::Own(own.write())));
        lines
    }
}
