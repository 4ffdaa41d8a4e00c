//! What the store holds, in memory and verified: the mesh, and every record in the order of its
//! last change. A watcher is a cursor over that order, so that a thousand of them cost no queue.

mod batch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use proto::entry::{Role, SignedEntry};
use proto::key::{Hash, MeshId, PublicKey};
use proto::ledger::LedgerError;
use proto::life;
use proto::mesh::{EntryRefusal, Event, MemberRefusal, Mesh, Taken};
use proto::message::{GrantUse, Position};
use proto::name::Name;
use proto::record::{Member, SignedRecord};
use thiserror::Error;
use tracing::{info, warn};

use crate::entries;
use crate::store::{Change, Contents, Heard, StoredUse};

pub(crate) use batch::{Cursor, Scope};

/// Dropped records that watchers are told of one by one; who was away for more gets a snapshot.
const MOST_GONE: usize = 4096;

pub(crate) struct Register {
    mesh: Option<Mesh>,
    epoch: [u8; 16],
    revision: u64,
    items: BTreeMap<PublicKey, Item>,
    /// Of all items, by the revision of the last change.
    order: BTreeMap<(u64, [u8; 32]), PublicKey>,
    gone: BTreeMap<(u64, [u8; 32]), PublicKey>,
    /// Who resumes from below has missed that something is gone.
    floor: u64,
    names: HashMap<(Name, Name), PublicKey>,
    /// In the store, refused here; tried again when the ledger grows.
    set_aside: BTreeMap<PublicKey, Vec<u8>>,
    uses: BTreeMap<(Hash, u32), Use>,
    used_by: BTreeSet<(Hash, PublicKey)>,
    heard: HashMap<PublicKey, Heard>,
}

/// Of a grant, and what proves it.
struct Use {
    identity: PublicKey,
    enrolment: Box<[u8]>,
}

struct Item {
    revision: u64,
    /// `None` once it is gone.
    listed: Option<Listed>,
}

#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) site: Name,
    pub(crate) node: Name,
    pub(crate) role: Role,
    pub(crate) withdrawn: bool,
    /// Others have it as a gateway, so they are told what becomes of it.
    was_gateway: bool,
}

#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error(
        "the store holds the ledger of another mesh: give this broker its own store, or make it anew with `causeway broker init`"
    )]
    OtherMesh,
    #[error(
        "an entry in the store is no part of the ledger, somebody else has written to the store: {0}. Restore the store from a copy"
    )]
    Entry(EntryRefusal),
}

impl Register {
    /// `mesh` is `None` for a broker that waits for its ledger.
    pub(crate) fn new(mesh: Option<MeshId>) -> Register {
        Register {
            mesh: mesh.map(|mesh| Mesh::new(mesh, None)),
            epoch: [0; 16],
            revision: 0,
            items: BTreeMap::new(),
            order: BTreeMap::new(),
            gone: BTreeMap::new(),
            floor: 0,
            names: HashMap::new(),
            set_aside: BTreeMap::new(),
            uses: BTreeMap::new(),
            used_by: BTreeSet::new(),
            heard: HashMap::new(),
        }
    }

    /// Takes everything from the store, at start or after falling behind.
    pub(crate) fn load(&mut self, contents: Contents) -> Result<(), LoadError> {
        let mesh = self.mesh.take();
        *self = Register {
            mesh,
            epoch: contents.epoch,
            revision: contents.revision,
            floor: contents.forgotten_at,
            ..Register::new(None)
        };
        for entry in &contents.entries {
            self.take_entry(entry).map_err(|refusal| match refusal {
                EntryRefusal::Ledger(LedgerError::OtherMesh) => LoadError::OtherMesh,
                EntryRefusal::Form(_) | EntryRefusal::Orphan | EntryRefusal::Ledger(_) => {
                    LoadError::Entry(refusal)
                }
            })?;
        }
        for member in contents.members {
            self.take_member(member.revision, member.identity, member.bytes);
        }
        if let Some(mesh) = &mut self.mesh {
            let held: Vec<PublicKey> = mesh.nodes().map(|node| node.identity).collect();
            for identity in held {
                if !self.items.contains_key(&identity) && !self.set_aside.contains_key(&identity) {
                    mesh.forget(&identity);
                }
            }
            mesh.handle_synced();
        }
        for taken in contents.uses {
            self.take_use(taken);
        }
        self.heard = contents.heard.into_iter().collect();
        self.drain_events();
        Ok(())
    }

    /// One change of the store. Tells whether the ledger has grown.
    pub(crate) fn handle_change(&mut self, revision: u64, change: Change) -> bool {
        let grown = match change {
            Change::Entry(bytes) => self.handle_entry(revision, &bytes),
            Change::Member { identity, bytes } => {
                self.take_member(revision, identity, bytes);
                false
            }
            Change::Forgotten(identity) => {
                self.handle_forgotten(revision, identity);
                false
            }
            Change::Use(taken) => {
                self.take_use(taken);
                false
            }
            Change::Heard(identity, heard) => {
                self.heard.insert(identity, heard);
                false
            }
        };
        self.drain_events();
        grown
    }

    /// All changes up to here have been handled.
    pub(crate) fn handle_revision(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        if let Some(mesh) = &mut self.mesh {
            mesh.handle_synced();
        }
    }

    fn handle_entry(&mut self, revision: u64, bytes: &[u8]) -> bool {
        match self.take_entry(bytes) {
            Ok(Taken::New) => {
                entries::audit(bytes);
                let aside = std::mem::take(&mut self.set_aside);
                for (identity, bytes) in aside {
                    self.take_member(revision, identity, bytes);
                }
                true
            }
            Ok(Taken::Known) => false,
            Err(refusal) => {
                warn!("an entry in the store is no part of the ledger and is left out: {refusal}");
                false
            }
        }
    }

    /// The first entry of a waiting broker's store says which mesh it is.
    fn take_entry(&mut self, bytes: &[u8]) -> Result<Taken, EntryRefusal> {
        if self.mesh.is_none() {
            let entry = SignedEntry::read(bytes)?;
            self.mesh = Some(Mesh::new(entry.hash(), None));
        }
        self.mesh
            .as_mut()
            .map_or(Err(EntryRefusal::Orphan), |mesh| mesh.handle_entry(bytes))
    }

    fn take_member(&mut self, revision: u64, identity: PublicKey, bytes: Vec<u8>) {
        let (Some(mesh), Ok(member)) = (&mut self.mesh, Member::read(&bytes)) else {
            warn!("the record of {identity} in the store cannot be read and is left out");
            return;
        };
        match mesh.handle_member(&member) {
            // What is held until the ledger decides is shown to others, who decide alike.
            Ok(_) | Err(MemberRefusal::Quarantined | MemberRefusal::TwoForOneUse(_)) => {}
            Err(MemberRefusal::OldSequence { .. }) => return,
            Err(refusal) if refusal.may_pass_later() => {
                self.unlist(&identity);
                self.set_aside.insert(identity, bytes);
                return;
            }
            Err(refusal) => {
                warn!("the record of {identity} in the store is left out: {refusal}");
                return;
            }
        }
        if let Ok(signed) = SignedRecord::read(&member.record) {
            self.list(revision, &signed, bytes);
        }
    }

    fn list(&mut self, revision: u64, signed: &SignedRecord, bytes: Vec<u8>) {
        let record = signed.record();
        let identity = record.identity;
        let former = self.unlist(&identity);
        let was_gateway = former.is_some_and(|former| former.was_gateway);
        let listed = Listed {
            bytes: bytes.into(),
            site: record.site.clone(),
            node: record.node.clone(),
            role: record.role,
            withdrawn: record.presence().is_none(),
            was_gateway: was_gateway || record.role == Role::Gateway,
        };
        if !listed.withdrawn {
            self.names
                .insert((listed.site.clone(), listed.node.clone()), identity);
        }
        self.place(revision, identity, Some(listed));
    }

    fn handle_forgotten(&mut self, revision: u64, identity: PublicKey) {
        self.unlist(&identity);
        self.set_aside.remove(&identity);
        self.heard.remove(&identity);
        if let Some(mesh) = &mut self.mesh {
            mesh.forget(&identity);
        }
        self.place(revision, identity, None);
        self.gone.insert((revision, *identity.as_bytes()), identity);
        while self.gone.len() > MOST_GONE
            && let Some(((revision, _), identity)) = self.gone.pop_first()
        {
            self.floor = self.floor.max(revision);
            self.unlist(&identity);
        }
    }

    fn place(&mut self, revision: u64, identity: PublicKey, listed: Option<Listed>) {
        self.order
            .insert((revision, *identity.as_bytes()), identity);
        self.items.insert(identity, Item { revision, listed });
    }

    fn unlist(&mut self, identity: &PublicKey) -> Option<Listed> {
        let item = self.items.remove(identity)?;
        let place = (item.revision, *identity.as_bytes());
        self.order.remove(&place);
        self.gone.remove(&place);
        let listed = item.listed?;
        let name = (listed.site.clone(), listed.node.clone());
        if self.names.get(&name) == Some(identity) {
            self.names.remove(&name);
        }
        Some(listed)
    }

    fn take_use(&mut self, taken: StoredUse) {
        self.used_by.insert((taken.grant, taken.identity));
        let proven = Use {
            identity: taken.identity,
            enrolment: taken.enrolment.into_boxed_slice(),
        };
        self.uses.insert((taken.grant, taken.use_number), proven);
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.mesh.as_mut().and_then(Mesh::poll_event) {
            match event {
                Event::NodeRevoked(identity) => self.set_revoked_aside(identity),
                Event::NodeHidden(_)
                | Event::NodeWithdrawn(_)
                | Event::NodeForgotten(_)
                | Event::NodeChanged(_)
                | Event::PrefixesChanged
                | Event::BrokersChanged
                | Event::ProblemsChanged => {}
            }
        }
    }

    /// Watchers learn it from the ledger's entry.
    fn set_revoked_aside(&mut self, identity: PublicKey) {
        if let Some(listed) = self.unlist(&identity) {
            info!(
                "node {} of site {} is revoked; its record is spread no more",
                listed.node, listed.site
            );
            self.set_aside.insert(identity, listed.bytes.to_vec());
        }
    }
}

/// What others ask of it.
impl Register {
    /// `None` until the ledger is here.
    pub(crate) fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_ref().filter(|mesh| !mesh.ledger().is_empty())
    }

    pub(crate) fn mesh_id(&self) -> Option<MeshId> {
        self.mesh.as_ref().map(Mesh::id)
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            revision: self.revision,
        }
    }

    pub(crate) fn listed(&self, identity: &PublicKey) -> Option<&Listed> {
        self.items.get(identity)?.listed.as_ref()
    }

    /// Its record is here, and counts for nothing as the ledger is.
    pub(crate) fn is_set_aside(&self, identity: &PublicKey) -> bool {
        self.set_aside.contains_key(identity)
    }

    pub(crate) fn count(&self) -> usize {
        self.order.len() - self.gone.len()
    }

    pub(crate) fn holder(&self, site: &Name, node: &Name) -> Option<PublicKey> {
        self.names.get(&(site.clone(), node.clone())).copied()
    }

    pub(crate) fn heard(&self, identity: &PublicKey) -> Option<Heard> {
        self.heard.get(identity).copied()
    }

    pub(crate) fn any_heard(&self) -> Option<(PublicKey, Heard)> {
        let (identity, heard) = self.heard.iter().next()?;
        Some((*identity, *heard))
    }

    pub(crate) fn has_used(&self, grant: &Hash, identity: &PublicKey) -> bool {
        self.used_by.contains(&(*grant, *identity))
    }

    /// Nodes of a site and role but for this one; withdrawn ones take no room.
    pub(crate) fn count_of(&self, site: &Name, role: Role, except: &PublicKey) -> usize {
        self.items
            .iter()
            .filter(|(identity, _)| *identity != except)
            .filter_map(|(_, item)| item.listed.as_ref())
            .filter(|listed| !listed.withdrawn && listed.role == role && listed.site == *site)
            .count()
    }

    /// In the order of their identities, after this one.
    pub(crate) fn nodes_after(
        &self,
        after: Option<[u8; 32]>,
    ) -> impl Iterator<Item = (PublicKey, &Listed)> {
        self.items
            .iter()
            .filter(move |(identity, _)| after.is_none_or(|after| *identity.as_bytes() > after))
            .filter_map(|(identity, item)| Some((*identity, item.listed.as_ref()?)))
    }

    pub(crate) fn uses_after(
        &self,
        after: Option<([u8; 32], u32)>,
    ) -> impl Iterator<Item = GrantUse> {
        let start = after.map_or(Bound::Unbounded, |(grant, number)| {
            Bound::Excluded((Hash(grant), number))
        });
        self.uses
            .range((start, Bound::Unbounded))
            .map(|((grant, use_number), taken)| GrantUse {
                grant: grant.0,
                use_number: *use_number,
                identity: *taken.identity.as_bytes(),
                enrolment: taken.enrolment.to_vec(),
            })
    }

    /// Whose records are to be dropped; `is_here` says who is connected to this broker.
    pub(crate) fn silent(
        &self,
        now: u64,
        serving_since: u64,
        is_here: impl Fn(&PublicKey) -> bool,
    ) -> Vec<PublicKey> {
        let is_silent = |identity: &PublicKey| {
            let heard = self.heard(identity);
            let unheard = life::unheard_for(now, heard.map_or(0, |heard| heard.at), serving_since);
            !is_here(identity)
                && !heard.is_some_and(|heard| heard.connected)
                && life::is_dropped(unheard)
        };
        let listed = self.items.iter().filter(|(_, item)| item.listed.is_some());
        listed
            .map(|(identity, _)| identity)
            .chain(self.set_aside.keys())
            .filter(|identity| is_silent(identity))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proto::key::SigningKey;

    use super::*;

    const WEEK: u64 = 7 * 24 * 3600;

    fn key(seed: u8) -> PublicKey {
        SigningKey::from_seed(&[seed; 32]).public()
    }

    fn listed() -> Listed {
        Listed {
            bytes: Arc::from([0; 100].as_slice()),
            site: "berlin".parse().unwrap(),
            node: "gate".parse().unwrap(),
            role: Role::Gateway,
            withdrawn: false,
            was_gateway: true,
        }
    }

    fn with(count: u8) -> Register {
        let mut register = Register::new(None);
        for seed in 1..=count {
            register.place(u64::from(seed), key(seed), Some(listed()));
        }
        register.handle_revision(u64::from(count));
        register
    }

    fn scope() -> Scope {
        Scope {
            identity: key(99),
            site: "paris".parse().unwrap(),
            reach: batch::Reach::Gateway,
        }
    }

    #[test]
    fn only_who_is_nowhere_connected_and_long_unheard_is_dropped() {
        let mut register = with(4);
        let heard = |at, connected| Heard { at, connected };
        register.heard.insert(key(1), heard(0, false));
        register.heard.insert(key(2), heard(0, true));
        register.heard.insert(key(3), heard(0, false));
        register.heard.insert(key(4), heard(50, false));
        let is_here = |identity: &PublicKey| *identity == key(3);
        assert_eq!(register.silent(WEEK + 10, 10, is_here), [key(1)]);
        assert_eq!(register.silent(WEEK + 9, 10, is_here), []);
        // The broker was not there to hear for longer than that.
        assert_eq!(register.silent(100 * WEEK, 100 * WEEK, is_here), []);
    }

    #[test]
    fn what_is_gone_is_told_to_who_had_it_and_left_out_of_a_snapshot() {
        let mut register = with(3);
        let mut cursor = register.start(None, &[]);
        let all = register.batch(&mut cursor, &scope()).unwrap();
        assert_eq!((all.members.len(), all.caught_up), (3, true));
        assert_eq!(register.batch(&mut cursor, &scope()), None);
        register.handle_forgotten(4, key(2));
        register.handle_revision(4);
        let change = register.batch(&mut cursor, &scope()).unwrap();
        assert_eq!(change.forgotten, [*key(2).as_bytes()]);
        assert_eq!(change.position.revision, 4);
        let mut cursor = register.start(None, &[]);
        let all = register.batch(&mut cursor, &scope()).unwrap();
        assert_eq!((all.members.len(), all.forgotten.len()), (2, 0));
    }

    #[test]
    fn who_was_away_while_too_much_went_is_sent_everything() {
        let mut register = with(3);
        let position = Position {
            epoch: [0; 16],
            revision: 3,
        };
        let mut resumed = register.start(Some(position), &[]);
        assert!(!register.batch(&mut resumed, &scope()).unwrap().reset);
        register.floor = 5;
        register.handle_revision(6);
        assert!(register.batch(&mut resumed, &scope()).unwrap().reset);
        let mut again = register.start(Some(position), &[]);
        assert!(register.batch(&mut again, &scope()).unwrap().reset);
    }

    #[test]
    fn a_snapshot_larger_than_a_frame_comes_in_parts_and_counts_only_when_whole() {
        let mut register = Register::new(None);
        for seed in 1..=200 {
            let large = Listed {
                bytes: Arc::from([0; 4000].as_slice()),
                ..listed()
            };
            // All of one revision, as one transaction writes them.
            register.place(7, key(seed), Some(large));
        }
        register.handle_revision(7);
        let mut cursor = register.start(None, &[]);
        let mut parts = Vec::new();
        while let Some(push) = register.batch(&mut cursor, &scope()) {
            parts.push(push);
        }
        let members: usize = parts.iter().map(|push| push.members.len()).sum();
        assert_eq!((members, parts.len()), (200, 4));
        assert!(parts[0].reset && parts[1..].iter().all(|push| !push.reset));
        let (last, others) = parts.split_last().unwrap();
        assert!(last.caught_up && last.position.revision == 7);
        assert!(
            others
                .iter()
                .all(|push| !push.caught_up && push.position.revision == 0)
        );
        for push in &parts {
            let answer = proto::message::Answer::Push(push.clone());
            assert!(proto::codec::encode(&answer).is_ok());
        }
    }

    #[test]
    fn changes_cut_within_a_revision_resume_before_it() {
        let mut register = with(3);
        let mut cursor = register.start(None, &[]);
        register.batch(&mut cursor, &scope()).unwrap();
        for seed in 10..=90 {
            let large = Listed {
                bytes: Arc::from([0; 4000].as_slice()),
                ..listed()
            };
            register.place(9, key(seed), Some(large));
        }
        register.handle_revision(9);
        let part = register.batch(&mut cursor, &scope()).unwrap();
        assert!(!part.caught_up && !part.reset);
        assert_eq!(part.position.revision, 8);
        let rest = register.batch(&mut cursor, &scope()).unwrap();
        assert_eq!(part.members.len() + rest.members.len(), 81);
        assert!(rest.caught_up);
    }
}
