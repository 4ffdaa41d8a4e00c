//! The ledger as every receiver keeps it: a tree of the authority's entries, and what holds
//! because of them.
//!
//! Normally the tree is a line. What holds depends only on which entries are here, never on the
//! order in which they came: `line` says which of them count, `charter` adds them up, `signing`
//! makes the next one.

mod charter;
mod line;
mod signing;
mod spans;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use thiserror::Error;

use crate::entry::{Body, Entry, SignedEntry};
use crate::key::{Domain, Hash, MeshId, PublicKey};

pub use charter::{
    Charter, Fork, GrantStanding, GrantState, MAX_BROKERS, MAX_SITE_PREFIXES, PrefixState,
    SitePrefix, Standing,
};
pub use signing::SigningError;

use line::{Line, Place};

/// How much of what a replaced authority signed beside its replacement is kept. It means nothing,
/// so its owner must not be able to fill memory with it.
pub const MAX_VOID: usize = 4096;
pub const MAX_VOID_BYTES: usize = 4 << 20;

/// What entry 0 has in place of an entry before it.
pub const NOTHING_BEFORE: Hash = Hash([0; 32]);

#[derive(Clone)]
pub struct Ledger {
    mesh: MeshId,
    /// In order of arrival, so parents before children.
    links: Vec<Link>,
    index: HashMap<Hash, usize>,
    line: Line,
    charter: Charter,
}

/// An entry in the tree.
#[derive(Clone)]
struct Link {
    signed: SignedEntry,
    parent: Option<usize>,
    /// In order of arrival.
    children: Vec<usize>,
    settles: Option<Settles>,
    /// In force behind this entry.
    authority: PublicKey,
    recovery: Hash,
}

/// What a settlement says of the tree.
#[derive(Clone, Copy)]
struct Settles {
    other: usize,
    /// Where the other branch leaves the one that goes on: it and all that follows are given up.
    abandoned: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    New,
    Known,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    pub number: u64,
    pub hash: Hash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    #[error("this ledger is of another mesh: its entry 0 is not the one the mesh is named for")]
    OtherMesh,
    #[error("ledger entry {number} follows one that is not here; send those before it first")]
    Orphan { number: u64 },
    #[error("ledger entry {number} does not have the number that follows the entry before it")]
    Number { number: u64 },
    #[error("ledger entry {number} is of a kind that cannot stand there")]
    Misplaced { number: u64 },
    #[error(
        "ledger entry {number} is not signed by the authority in force before it: it is forged or damaged"
    )]
    Signature { number: u64 },
    #[error(
        "ledger entry {number} changes the authority, but not by the recovery key the ledger committed to"
    )]
    Recovery { number: u64 },
    #[error("ledger entry {number} settles a fork, but the two it names are no two branches")]
    Settlement { number: u64 },
    #[error(
        "ledger entry {number} is signed by a replaced authority beside its replacement, and there are too many of those"
    )]
    Void { number: u64 },
}

impl Ledger {
    pub fn new(mesh: MeshId) -> Ledger {
        Ledger {
            mesh,
            links: Vec::new(),
            index: HashMap::new(),
            line: Line::default(),
            charter: Charter::default(),
        }
    }

    /// Entry 0, to be signed by the authority it names; its hash is the mesh.
    pub fn genesis(issued: u64, authority: PublicKey, recovery: &PublicKey) -> Entry {
        Entry {
            number: 0,
            previous: NOTHING_BEFORE,
            issued,
            body: Body::Genesis {
                authority,
                recovery: recovery_hash(recovery),
            },
        }
    }

    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn len(&self) -> usize {
        self.links.len()
    }

    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// Order of arrival: parents first.
    pub fn entries(&self) -> impl Iterator<Item = &SignedEntry> {
        self.links.iter().map(|link| &link.signed)
    }

    pub fn entry(&self, hash: &Hash) -> Option<&SignedEntry> {
        self.index.get(hash).map(|&at| &self.links[at].signed)
    }

    /// The entries that no other follows or settles, sorted: what to tell another so that it can
    /// say what is missing. More than one is not yet a fork, since a branch that was given up may
    /// have grown: [`Charter::fork`] says whether one is open. What is void is left out, here and
    /// in [`Ledger::missing`]: it means nothing, and not everyone keeps it.
    pub fn heads(&self) -> Vec<Hash> {
        let counting = self.counting();
        let mut followed = vec![false; self.links.len()];
        let links = self.links.iter().zip(&counting);
        for (link, _) in links.filter(|(_, counts)| **counts) {
            for before in link.before() {
                followed[before] = true;
            }
        }
        let mut heads: Vec<Hash> = (0..self.links.len())
            .filter(|&at| counting[at] && !followed[at])
            .map(|at| self.links[at].signed.hash())
            .collect();
        heads.sort_unstable();
        heads
    }

    /// Of the line that holds; when it is forked, where it splits. `None` when empty.
    pub fn head(&self) -> Option<Head> {
        self.line.head.map(|at| self.head_at(at))
    }

    /// What is not behind those of `heads` that are known here; parents first.
    pub fn missing(&self, heads: &[Hash]) -> Vec<&SignedEntry> {
        let known = heads.iter().filter_map(|hash| self.index.get(hash));
        let behind = line::behind(&self.links, known.copied());
        let counting = self.counting();
        (0..self.links.len())
            .filter(|&at| counting[at] && !behind[at])
            .map(|at| &self.links[at].signed)
            .collect()
    }

    /// What holds now.
    pub fn charter(&self) -> &Charter {
        &self.charter
    }

    /// Whether an entry belongs here, at the cost of one signature: [`Ledger::insert`] would take
    /// it, or knows it.
    pub fn check(&self, entry: &SignedEntry) -> Result<(), LedgerError> {
        if self.index.contains_key(&entry.hash()) {
            return Ok(());
        }
        let link = self.link(entry.clone())?;
        self.place_beside(&link).map(|_| ())
    }

    /// Takes an entry if the one it follows is here and the right key has signed it.
    pub fn insert(&mut self, entry: SignedEntry) -> Result<Inserted, LedgerError> {
        if let Some(&at) = self.index.get(&entry.hash()) {
            let known = &self.links[at];
            if known.signed.bytes() != entry.bytes() {
                self.check_signature(&entry, known.parent)?;
            }
            return Ok(Inserted::Known);
        }
        let link = self.link(entry)?;
        let place = self.place_beside(&link)?;
        let goes_on = self.line.goes_on(&self.links, &link);
        let at = self.add(link);
        match place {
            Some(place) => self.line.extend_beside(&self.links, place),
            None if goes_on => {
                self.line.extend();
                self.charter.apply(&self.links[at].signed);
            }
            None => {
                self.line = Line::of(&self.links);
                self.charter = Charter::of(&self.links, &self.line);
            }
        }
        Ok(Inserted::New)
    }

    fn place_beside(&self, link: &Link) -> Result<Option<Place>, LedgerError> {
        let place = self.line.place_beside(&self.links, link);
        let length = link.signed.bytes().len();
        let is_too_much =
            self.line.void >= MAX_VOID || self.line.void_bytes + length > MAX_VOID_BYTES;
        if place == Some(Place::Void) && is_too_much {
            return Err(LedgerError::Void {
                number: link.number(),
            });
        }
        Ok(place)
    }

    fn add(&mut self, link: Link) -> usize {
        let at = self.links.len();
        if let Some(parent) = link.parent {
            self.links[parent].children.push(at);
        }
        self.index.insert(link.signed.hash(), at);
        self.links.push(link);
        at
    }

    /// Checks form, numbers and signature against what stands before the entry.
    fn link(&self, signed: SignedEntry) -> Result<Link, LedgerError> {
        let entry = signed.entry();
        let number = entry.number;
        if let Body::Genesis {
            authority,
            recovery,
        } = entry.body
        {
            return self.link_genesis(signed, authority, recovery);
        }
        let &parent = self
            .index
            .get(&entry.previous)
            .ok_or(LedgerError::Orphan { number })?;
        // First of all, so that nothing else is done for whoever is not the authority.
        self.check_signature(&signed, Some(parent))?;
        let settles = self.settles(entry, parent)?;
        let before = settles.map_or(0, |settles| self.links[settles.other].number());
        let before = before.max(self.links[parent].number());
        if before.checked_add(1) != Some(number) {
            return Err(LedgerError::Number { number });
        }
        let (authority, recovery) = match entry.body {
            Body::Authority {
                authority,
                next_recovery,
                ..
            } => (authority, next_recovery),
            Body::Genesis { .. }
            | Body::Grant(_)
            | Body::Prefixes { .. }
            | Body::Revocation { .. }
            | Body::SiteRevoked { .. }
            | Body::Broker(_)
            | Body::BrokerRemoved { .. }
            | Body::Settlement { .. } => {
                (self.links[parent].authority, self.links[parent].recovery)
            }
        };
        Ok(Link {
            signed,
            parent: Some(parent),
            children: Vec::new(),
            settles,
            authority,
            recovery,
        })
    }

    fn link_genesis(
        &self,
        signed: SignedEntry,
        authority: PublicKey,
        recovery: Hash,
    ) -> Result<Link, LedgerError> {
        let number = signed.entry().number;
        if number != 0 || signed.entry().previous != NOTHING_BEFORE {
            return Err(LedgerError::Misplaced { number });
        }
        if signed.hash() != self.mesh {
            return Err(LedgerError::OtherMesh);
        }
        self.check_signature(&signed, None)?;
        Ok(Link {
            signed,
            parent: None,
            children: Vec::new(),
            settles: None,
            authority,
            recovery,
        })
    }

    /// By the authority in force at the parent, or the recovery key committed to there.
    fn check_signature(
        &self,
        signed: &SignedEntry,
        parent: Option<usize>,
    ) -> Result<(), LedgerError> {
        let number = signed.entry().number;
        let holds = match (parent, &signed.entry().body) {
            (Some(parent), Body::Authority { recovery, .. }) => {
                if recovery_hash(recovery) != self.links[parent].recovery {
                    return Err(LedgerError::Recovery { number });
                }
                signed.verify(recovery)
            }
            (Some(parent), _) => signed.verify(&self.links[parent].authority),
            (None, Body::Genesis { authority, .. }) => signed.verify(authority),
            (None, _) => return Err(LedgerError::Misplaced { number }),
        };
        holds.map_err(|_| LedgerError::Signature { number })
    }

    fn settles(&self, entry: &Entry, parent: usize) -> Result<Option<Settles>, LedgerError> {
        let number = entry.number;
        let Body::Settlement { other } = &entry.body else {
            return Ok(None);
        };
        let &other = self
            .index
            .get(other)
            .ok_or(LedgerError::Orphan { number })?;
        let abandoned = self
            .leaves_line_of(parent, other)
            .ok_or(LedgerError::Settlement { number })?;
        Ok(Some(Settles { other, abandoned }))
    }

    /// The first entry on the way to `other` that is not on the way to `kept`. `None` if one is
    /// on the way to the other, since then they are no two branches.
    fn leaves_line_of(&self, kept: usize, other: usize) -> Option<usize> {
        let line = self.way_to(kept);
        if self.way_to(other).contains(&kept) {
            return None;
        }
        let mut at = other;
        let mut above = None;
        while !line.contains(&at) {
            above = Some(at);
            at = self.links[at].parent?;
        }
        above
    }

    fn way_to(&self, at: usize) -> BTreeSet<usize> {
        std::iter::successors(Some(at), |&at| self.links[at].parent).collect()
    }

    fn head_at(&self, at: usize) -> Head {
        self.links[at].head()
    }

    /// All but what is void, save what a settlement that is not void needs to stand on.
    fn counting(&self) -> Vec<bool> {
        let places = self.line.places.iter().enumerate();
        let counting = places.filter(|(_, place)| **place != Place::Void);
        line::behind(&self.links, counting.map(|(at, _)| at))
    }
}

impl Link {
    fn number(&self) -> u64 {
        self.signed.entry().number
    }

    fn body(&self) -> &Body {
        &self.signed.entry().body
    }

    fn head(&self) -> Head {
        Head {
            number: self.number(),
            hash: self.signed.hash(),
        }
    }

    /// What it follows, and what it settles.
    fn before(&self) -> impl Iterator<Item = usize> + use<> {
        let settled = self.settles.map(|settles| settles.other);
        self.parent.into_iter().chain(settled)
    }

    fn changes_authority(&self) -> bool {
        matches!(self.body(), Body::Authority { .. })
    }
}

/// What entry 0 and each change of authority commit to.
pub fn recovery_hash(recovery: &PublicKey) -> Hash {
    Hash::of(Domain::RecoveryKey, recovery.as_bytes())
}

impl fmt::Debug for Ledger {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "Ledger of {} with {} entries",
            self.mesh.short(),
            self.links.len()
        )
    }
}

impl fmt::Display for Head {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.number, self.hash.short())
    }
}
