//! What a gateway knows of the mesh, to be compared with others and handed over inside tunnels
//! when no broker does it.
//!
//! Gateways only: everyone is told of all of these, while a site's agents are its own business, so
//! that two gateways with nothing to tell each other have one digest.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::entry::{Role, SignedEntry};
use crate::key::{Domain, Hash, PublicKey};
use crate::mesh::Mesh;
use crate::record::Member;

/// Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knowledge {
    /// What counts of the ledger, parents first.
    pub entries: Arc<Vec<SignedEntry>>,
    /// Sorted; as [`crate::ledger::Ledger::heads`].
    pub heads: Vec<Hash>,
    /// Gateways in good standing with the sequence of their latest record, withdrawals among them:
    /// without those a node that has left would stay with whoever missed it.
    pub members: Arc<BTreeMap<PublicKey, (u64, Arc<Member>)>>,
    /// The digest over all {identity, sequence} of `members`.
    pub records: Hash,
}

impl Default for Knowledge {
    fn default() -> Knowledge {
        Knowledge {
            entries: Arc::default(),
            heads: Vec::new(),
            members: Arc::default(),
            records: digest(&BTreeMap::new()),
        }
    }
}

impl Knowledge {
    pub fn of(mesh: &Mesh) -> Knowledge {
        Knowledge::default().with_ledger(mesh).with_members(mesh)
    }

    /// The same with the ledger as it is now; untouched if that has not changed.
    pub fn with_ledger(self, mesh: &Mesh) -> Knowledge {
        let heads = mesh.ledger().heads();
        if heads == self.heads {
            return self;
        }
        let entries = mesh.ledger().missing(&[]);
        Knowledge {
            entries: Arc::new(entries.into_iter().cloned().collect()),
            heads,
            ..self
        }
    }

    /// The same with the records as they are now. What has not changed is shared with the former.
    pub fn with_members(self, mesh: &Mesh) -> Knowledge {
        let gateways = mesh
            .members()
            .filter(|node| node.record.role == Role::Gateway);
        let members: BTreeMap<_, _> = gateways
            .map(|node| {
                let (identity, sequence) = (node.identity, node.record.sequence);
                let former = self.members.get(&identity);
                let same = former.filter(|(_, member)| **member == node.member);
                let member =
                    same.map_or_else(|| Arc::new(node.member.clone()), |(_, same)| same.clone());
                (identity, (sequence, member))
            })
            .collect();
        if members == *self.members {
            return self;
        }
        Knowledge {
            records: digest(&members),
            members: Arc::new(members),
            ..self
        }
    }

    /// The entries that are not behind those of `heads` that are known here; parents first.
    pub fn missing(&self, heads: &[Hash]) -> Vec<&SignedEntry> {
        let mut behind: HashSet<Hash> = heads.iter().copied().collect();
        let mut missing: Vec<&SignedEntry> = Vec::new();
        for entry in self.entries.iter().rev() {
            if behind.contains(&entry.hash()) {
                behind.insert(entry.entry().previous);
                behind.extend(entry.entry().body.settled());
            } else {
                missing.push(entry);
            }
        }
        missing.reverse();
        missing
    }
}

/// In the order of identities, which is that of the map.
fn digest(members: &BTreeMap<PublicKey, (u64, Arc<Member>)>) -> Hash {
    let mut said = Vec::with_capacity(members.len() * 40);
    for (identity, (sequence, _)) in members {
        said.extend_from_slice(identity.as_bytes());
        said.extend_from_slice(&sequence.to_be_bytes());
    }
    Hash::of(Domain::Records, &said)
}
